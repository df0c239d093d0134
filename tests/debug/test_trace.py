"""`netstack trace`: a line a packet, with verdicts and references; filters; pipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conformance.policy_wire import OTHER_NAME
from hypothesis import given, settings
from hypothesis import strategies as st

from netstack.debug.flow_analysis import analyse
from netstack.debug.seen_flows import LIVE_CONVERSATIONS, SeenFlows
from netstack.debug.seen_packets import Recorded, decode
from netstack.debug.sequence_diagram import text as diagram
from netstack.debug.trace import TraceError, TraceOptions, lines

from . import failures
from .files import write_pcapng


def traced(frames: list[Recorded], **options: object) -> list[str]:
    return list(lines(frames, TraceOptions(**options)))  # type: ignore[arg-type]  # by name, as the tests write them


def test_lines_say_what_refers_to_what() -> None:
    said = traced(failures.c_wrong_sni())
    assert said[0].split()[:4] == ["0.000000", "#1", "f1", "udp"]
    assert "DNS " in said[0]
    assert " A? api.example.com" in said[0]
    assert "A: NOERROR, 93.184.216.34 (answers #1 after 0 us)  <allowed at dns: name-rule 'api.example.com'" in said[1]
    assert "[S], seq 0, win 65535, mss 1460, length 0 (api.example.com by DNS #2)" in said[2]
    assert "[S.], seq 0, ack 1" in said[3]
    assert "(answers #3 after 0 us)" in said[3]
    assert "(established, client 0 us away)" in said[4]
    assert f"length 517: TLS hello for {OTHER_NAME}" in said[5]
    assert f"<refused at tls: name-not-allowed, {OTHER_NAME}; told alert>" in said[5]
    assert "[FP.], seq 1:8, ack 518" in said[6]


def test_retransmissions_name_what_they_repeat_and_acks_what_they_answer() -> None:
    said = traced(failures.lossy_link())
    repeats = [line for line in said if "(repeats #" in line]
    assert len(repeats) == 19
    number = repeats[0].split()[1]
    original = repeats[0].partition("(repeats ")[2].rstrip(")")
    first = next(line for line in said if line.split()[1] == original)
    assert first.partition(" seq ")[2].split(",")[0] == repeats[0].partition(" seq ")[2].split(",")[0]
    assert any(f"acknowledges the retransmission {number})" in line for line in said)
    assert sum("duplicate ACK" in line for line in said) > 10


def test_errors_pings_and_addresses_have_references_too() -> None:
    assert any("ICMP nobody listens on the port (about #1)" in line for line in traced(failures.udp_port_unreachable()))
    assert "who has 10.7.0.77? tell 10.7.0.2" in traced(failures.nobody_at_an_address())[0]
    assert traced(failures.refused_port())[1].endswith("(refuses #1; over after 20 ms: 0 B out, 0 B back)")
    assert "asks the 3. time" in traced(failures.dns_timeout())[2]
    assert "(knows nothing of #1; over" in traced(failures.half_open())[1]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"filter": "udp port 53"}, 2),
        ({"filter": "tcp and host 93.184.216.34 and not port 80"}, 5),
        ({"filter": "name api.example.com"}, 5),
        ({"filter": "arp"}, 0),
        ({"flow": 2}, 5),
        ({"name": "API.example.com"}, 5),  # the question, and the connection until its hello says otherwise
        ({"name": OTHER_NAME}, 2),
        ({"name": "*.example.net"}, 2),
        ({"verdict": "refused"}, 2),
        ({"verdict": "any"}, 3),
    ],
)
def test_filters(options: dict[str, object], count: int) -> None:
    assert len(traced(failures.c_wrong_sni(), **options)) == count


@pytest.mark.parametrize("text", ["host", "port 70000", "bogus", "flow 3"])
def test_a_filter_that_makes_no_sense(text: str) -> None:
    with pytest.raises(TraceError, match="filter"):
        traced([], filter=text)


def test_absolute_times_and_json() -> None:
    frames = failures.c_wrong_sni()
    assert traced(frames, absolute=True)[0].split()[0] == "12:06:40.000000"
    values = [json.loads(line) for line in traced(frames, as_json=True)]
    assert [each["number"] for each in values] == [1, 2, 3, 4, 5, 6, 7]
    assert values[0]["direction"] == "from-guest"
    assert values[5]["name"] == OTHER_NAME
    assert values[5]["verdicts"][0]["reason"] == "name-not-allowed"


def test_a_pipe_in_and_out(tmp_path: Path) -> None:
    """Standard input to lines, and a reader that leaves after the first of them."""
    data = write_pcapng(tmp_path / "a.pcapng", failures.lossy_link()).read_bytes()
    command = f"{sys.executable} -m netstack trace - tcp port 80 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], input=data, capture_output=True, check=True)
    assert done.stdout.decode().split()[:4] == ["0.000000", "#1", "f1", "tcp"]
    assert done.stderr == b""


# -- whatever is in frames ---------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.binary(max_size=90), st.booleans(), st.integers(0, 2), st.text(max_size=30)), max_size=8))
def test_no_bytes_raise(frames: list[tuple[bytes, bool, int, str]]) -> None:
    recorded = []
    for number, (data, ip, direction, comment) in enumerate(frames, 1):
        framed = bytes(12) + b"\x08\x00\x45" + data if ip else data
        recorded.append(Recorded(number, float(number), direction, framed, len(framed) + number, comment))
    analysis = analyse(recorded)
    assert sum(map(sum, (report.packets for report in analysis.reports))) <= len(frames)
    for flow in analysis.flows:
        assert list(diagram(flow))
    traced(recorded)
    traced(recorded, as_json=True)


DAMAGED = [make() for make in (failures.c_wrong_sni, failures.dhcp_nak, failures.name_that_does_not_exist)]


@settings(max_examples=50)
@given(st.data())
def test_no_damaged_packet_raises(data: st.DataObject) -> None:
    """Real frames with some bytes changed, cut off or given twice."""
    frames = []
    for each in data.draw(st.sampled_from(DAMAGED)):
        frame = bytearray(each.data)
        for _ in range(data.draw(st.integers(0, 3))):
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        kept = bytes(frame[: data.draw(st.integers(0, len(frame)))])
        frames += [each._replace(data=kept)] * data.draw(st.integers(0, 2))
    analyse(frames)
    traced(frames)


def test_a_live_trace_forgets() -> None:
    flows = SeenFlows(live=True)
    frame = failures.refused_port()[0]
    for port in range(LIVE_CONVERSATIONS + 10):
        data = frame.data[:34] + (1 + port).to_bytes(2, "big") + frame.data[36:]
        flow = flows.add(decode(frame._replace(data=data)))
        assert flow is not None
        assert flow.number == port + 1
    assert not flows.all
    assert len(flows._open) == LIVE_CONVERSATIONS


def test_filters_as_tcpdumps_users_write_them() -> None:
    frames = failures.c_wrong_sni()
    opening = traced(frames, filter="tcp[tcpflags] & tcp-syn != 0")
    assert [line.split()[1] for line in opening] == ["#3", "#4"]
    assert len(traced(frames, filter="tcp port 443 and host 93.184.216.34")) == 5
    with pytest.raises(TraceError) as said:
        traced(frames, filter="ip[8] < 5")
    assert "only TCP's flags can be compared here" in str(said.value)
    assert "tcpdump -r FILE -w - EXPRESSION | netstack trace -" in str(said.value), "what to do instead"
