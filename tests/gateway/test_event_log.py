"""Events as JSON lines: words for every event, nothing of the guest's unescaped, and a writer that holds nobody up."""

from __future__ import annotations

import json
import logging
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.events import (
    DnsEvent,
    Event,
    FlowClosed,
    FlowOpened,
    FlowRefused,
    FrameDropped,
    LeaseEvent,
    PolicyReplaced,
)
from netstack.engine.verdict import ALLOW, REFUSE, Verdict
from netstack.gateway import event_log
from netstack.gateway.event_log import GATHER_SECONDS, EventLog, EventLogError, event_fields, event_line

WHEN = 1_764_000_000.25
GUEST = bytes([192, 168, 127, 2])
SERVER = bytes([93, 184, 215, 14])
NO_LIST = Verdict(ALLOW, "syn", "no-list")
BY_NAME = Verdict(ALLOW, "tls", "name-rule", "*.example.org", "www.example.org", "sni")
FLOW = FlowOpened(7, "tcp", (GUEST, 40000), (SERVER, 443), (SERVER, 443), NO_LIST)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            LeaseEvent("acknowledged", bytes.fromhex("5a94efe40cee"), GUEST, "vm"),
            '{"time":"2025-11-24T16:00:00.250000Z","event":"lease","action":"acknowledged",'
            '"mac":"5a:94:ef:e4:0c:ee","address":"192.168.127.2","hostname":"vm"}\n',
        ),
        (
            DnsEvent(GUEST, "example.org", "A", "udp", "upstream", "NOERROR", 1, 0.012345678),
            '{"time":"2025-11-24T16:00:00.250000Z","event":"dns","guest":"192.168.127.2","name":"example.org",'
            '"qtype":"A","transport":"udp","source":"upstream","rcode":"NOERROR","answers":1,"seconds":0.012346}\n',
        ),
        (
            DnsEvent(
                GUEST,
                "EVIL.example",
                "TXT",
                "udp",
                "policy",
                "NOERROR",
                0,
                0.0,
                Verdict(REFUSE, "dns", "name-not-allowed", "", "evil.example", "dns"),
            ),
            '{"time":"2025-11-24T16:00:00.250000Z","event":"dns","guest":"192.168.127.2","name":"EVIL.example",'
            '"qtype":"TXT","transport":"udp","source":"policy","rcode":"NOERROR","answers":0,"seconds":0.0,'
            '"verdict":"refused","step":"dns","reason_code":"name-not-allowed","name_source":"dns"}\n',
        ),
        (
            FLOW,
            '{"time":"2025-11-24T16:00:00.250000Z","event":"flow_opened","flow":7,"protocol":"tcp",'
            '"guest":"192.168.127.2:40000","destination":"93.184.215.14:443","dialled":"93.184.215.14:443",'
            '"verdict":"allowed","step":"syn","reason_code":"no-list","direction":"out"}\n',
        ),
        (
            FlowOpened(8, "tcp", (GUEST, 40000), (SERVER, 443), (bytes(15) + b"\x01", 443), BY_NAME),
            '{"time":"2025-11-24T16:00:00.250000Z","event":"flow_opened","flow":8,"protocol":"tcp",'
            '"guest":"192.168.127.2:40000","destination":"93.184.215.14:443","dialled":"[::1]:443",'
            '"verdict":"allowed","step":"tls","reason_code":"name-rule","rule":"*.example.org",'
            '"name":"www.example.org","name_source":"sni","direction":"out"}\n',
        ),
        (
            FlowClosed(7, "tcp", (GUEST, 40000), (SERVER, 443), (SERVER, 443), "closed by both", 10, 20, 1.5, NO_LIST),
            '{"time":"2025-11-24T16:00:00.250000Z","event":"flow_closed","flow":7,"protocol":"tcp",'
            '"guest":"192.168.127.2:40000","destination":"93.184.215.14:443","dialled":"93.184.215.14:443",'
            '"reason":"closed by both","sent":10,"received":20,"seconds":1.5,'
            '"verdict":"allowed","step":"syn","reason_code":"no-list","direction":"out"}\n',
        ),
        (
            FlowRefused(
                9,
                "udp",
                (GUEST, 40000),
                (SERVER, 443),
                Verdict(REFUSE, "quic", "name-not-allowed", "", "evil.example", "quic"),
                "unreachable",
                10,
                2,
            ),
            '{"time":"2025-11-24T16:00:00.250000Z","event":"flow_refused","flow":9,"protocol":"udp",'
            '"guest":"192.168.127.2:40000","destination":"93.184.215.14:443","verdict":"refused","step":"quic",'
            '"reason_code":"name-not-allowed","name":"evil.example","name_source":"quic","told":"unreachable",'
            '"total":10,"generation":2}\n',
        ),
        (
            PolicyReplaced(3, "kill-switch", "nothing", 0),
            '{"time":"2025-11-24T16:00:00.250000Z","event":"policy_replaced","generation":3,"why":"kill-switch",'
            '"access":"nothing","rules":0}\n',
        ),
        (
            FrameDropped("bad checksum", 100),
            '{"time":"2025-11-24T16:00:00.250000Z","event":"frame_dropped","reason":"bad checksum","total":100}\n',
        ),
    ],
)
def test_an_event_is_one_line_of_plain_words(event: Event, line: str):
    assert event_line(event, WHEN) == line


def test_every_kind_of_event_has_a_name():
    assert set(event_log._NAMES) == set(get_args(Event))


@given(st.text())
def test_j6_what_a_guest_chose_stays_on_one_printable_line_and_comes_back_unchanged(text: str):
    """Conformance J6: a host name in DHCP, a name in DNS, SNI, Host or QUIC cannot add a line or a key."""
    refused = Verdict(REFUSE, "tls", "name-not-allowed", "", text, "sni")
    for key, event in (
        ("hostname", LeaseEvent("refused", bytes(6), bytes(4), text)),
        ("name", DnsEvent(GUEST, text, "A", "udp", "upstream", "NOERROR", 1, 0.0)),
        ("name", FlowRefused(1, "tcp", (GUEST, 1), (SERVER, 2), refused, "alert", 1, 1)),
    ):
        line = event_line(event, WHEN)
        assert line.isascii()
        assert line[:-1].isprintable()
        assert json.loads(line).get(key, "") == text


_SECONDS = st.floats() | st.floats(0, 1000)
_ADDRESSES = st.binary(min_size=4, max_size=4)
_ENDPOINTS = st.tuples(_ADDRESSES | st.binary(min_size=16, max_size=16), st.integers(0, 65_535))
_VERDICTS = st.builds(Verdict, st.sampled_from((ALLOW, REFUSE)), *[st.text(max_size=5)] * 5)
_FIELDS: dict[str, st.SearchStrategy[object]] = {
    "mac": st.binary(min_size=6, max_size=6),
    "address": _ADDRESSES,
    "guest": _ENDPOINTS,
    "destination": _ENDPOINTS,
    "dialled": _ENDPOINTS,
    "seconds": _SECONDS,
    "verdict": _VERDICTS,
}
_BY_TYPE: dict[type, st.SearchStrategy[object]] = {str: st.text(max_size=5), int: st.integers(0, 2**64)}


def _events(kind: type) -> st.SearchStrategy[Event]:
    """Any event of a kind: a value for each field, by its name or its type."""
    fields = {name: _FIELDS[name] if name in _FIELDS else _BY_TYPE[of] for name, of in get_type_hints(kind).items()}
    if kind is DnsEvent:
        fields |= {"guest": _ADDRESSES, "verdict": st.none() | _VERDICTS}
    return st.builds(kind, **fields)


@pytest.mark.parametrize("kind", get_args(Event))
@given(data=st.data(), when=st.floats(0, 4e9))
def test_a_line_is_the_json_of_the_events_fields(kind: type, data: st.DataObject, when: float):
    """Byte for byte, though it is not made of them."""
    event = data.draw(_events(kind))
    moment = datetime.fromtimestamp(when, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert event_line(event, when) == json.dumps({"time": moment, **event_fields(event)}, separators=(",", ":")) + "\n"


@given(st.integers(0, 4_000_000_000), st.integers(-3, 3), st.integers(0, 1_000_000))
def test_times_are_those_of_datetime(second: int, ulps: int, microsecond: int):
    """Also beside a second's end, and half-way between two microseconds."""
    when = second + (microsecond + 0.5) / 1e6 if ulps else float(second)
    for _ in range(abs(ulps)):
        when = math.nextafter(when, math.copysign(math.inf, ulps))
    moment = datetime.fromtimestamp(when, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert json.loads(event_line(FrameDropped("x", 1), when))["time"] == moment


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_events_are_appended_and_the_last_ones_are_written_at_the_end(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event":"earlier"}\n')
    log = EventLog(path, clock=lambda: WHEN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        log.write(FLOW)
        await trio.testing.wait_all_tasks_blocked()
        log.write(FrameDropped("too short", 1))
        nursery.cancel_scope.cancel()
    assert [line["event"] for line in _lines(path)] == ["earlier", "flow_opened", "frame_dropped"]


async def test_events_beyond_the_queue_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(event_log, "QUEUE_EVENTS", 3)
    path = tmp_path / "events.jsonl"
    log = EventLog(path, clock=lambda: WHEN)
    for total in range(5):
        log.write(FrameDropped("too short", total))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        nursery.cancel_scope.cancel()
    assert [line["event"] for line in _lines(path)] == ["frame_dropped"] * 3 + ["events_lost"]
    assert _lines(path)[-1]["lost"] == 2


async def test_a_new_file_keeps_others_out(tmp_path: Path):
    EventLog(tmp_path / "events.jsonl")
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600


async def test_reopening_goes_on_in_a_new_file(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path, clock=lambda: WHEN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        log.write(FLOW)
        while not path.read_text():
            await trio.lowlevel.checkpoint()
        path.rename(tmp_path / "old")
        log.reopen()
        log.write(FrameDropped("too short", 1))
        nursery.cancel_scope.cancel()
    assert [line["event"] for line in _lines(tmp_path / "old")] == ["flow_opened"]
    assert [line["event"] for line in _lines(path)] == ["frame_dropped"]


async def test_what_follows_is_gathered_for_a_moment(tmp_path: Path, mock_clock: trio.testing.MockClock):
    path = tmp_path / "events.jsonl"
    log = EventLog(path, clock=lambda: WHEN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        log.write(FLOW)
        while not path.read_text() or trio.to_thread.current_default_thread_limiter().borrowed_tokens:
            await trio.lowlevel.checkpoint()
        for total in (1, 2):
            await trio.testing.wait_all_tasks_blocked()
            log.write(FrameDropped("too short", total))
        mock_clock.jump(GATHER_SECONDS / 2)
        await trio.testing.wait_all_tasks_blocked()
        assert len(_lines(path)) == 1
        mock_clock.jump(GATHER_SECONDS)
        while len(_lines(path)) < 3:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_a_file_that_cannot_be_opened_is_named():
    with pytest.raises(EventLogError, match="--events /nowhere/x: No such file"):
        EventLog(Path("/nowhere/x"))


async def test_a_full_disk_is_one_warning_and_lost_events(caplog: pytest.LogCaptureFixture):
    log = EventLog(Path("/dev/full"), clock=lambda: WHEN)
    with caplog.at_level(logging.WARNING):
        assert not log._write_out(event_log.deque([(WHEN, FLOW)]), [])
        assert not log._write_out(event_log.deque([(WHEN, FLOW)]), [{"event": "events_lost", "lost": 4}])
    assert [record.getMessage() for record in caplog.records] == [
        "--events /dev/full: No space left on device; events are lost"
    ]


async def test_a_reader_that_stands_still_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
):
    read_end, write_end = os.pipe()
    monkeypatch.setattr(os, "dup", lambda fd: write_end)
    log = EventLog("-", clock=lambda: WHEN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        for _ in range(2000):
            log.write(FLOW)
        await trio.testing.wait_all_tasks_blocked()
        assert len(log._queue) < 2000
        log.write(FLOW)
        nursery.cancel_scope.cancel()
    os.close(read_end)
