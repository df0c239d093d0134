"""Conformance class J, the engine's part: what events say, what they never say, and what the guest is told."""

from __future__ import annotations

import ast
import re
import socket
from collections.abc import Callable
from pathlib import Path

import dns.message
import pytest
from engine.wire_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    HOST_ALIAS,
    GuestTcp,
    ip,
    payload_of,
    ping,
    sent_bytes,
    udp,
)
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from wire import hellos
from wire.http_requests import get

from guest_iface.seqpacket import SeqpacketLink
from netstack.engine.effects import NETWORK_UNREACHABLE, OpenNamed, SendStream
from netstack.engine.events import DnsEvent, FlowClosed, FlowOpened, FlowRefused, FrameDropped
from netstack.network_spec import NetworkSpec

from .dns_client import framed, over_tcp
from .event_lines import lines
from .live import listener, running, settled
from .policy_wire import (
    ALERT,
    ATTACKER,
    NAME,
    OTHER_NAME,
    SITE,
    TRUE_SITE,
    PolicyWire,
    opened_by_name,
    peeked,
    say,
)
from .refusal_rows import STREAMS

Guest = Callable[..., PolicyWire]
ENGINE = Path(__file__).parents[2] / "netstack" / "engine"


def end(wire: PolicyWire, connection: GuestTcp) -> None:
    """Both sides finish."""
    connection.fin()
    wire.stack.stream_ended(connection.flow)
    wire.hear()
    connection.heard += 1
    connection.ack()
    wire.asked()


# -- J2 ---------------------------------------------------------------------------------------------------------------


def test_J2_an_allowed_flow(guest: Guest) -> None:
    """Opened and closed: time, flow, protocol, both ends, what was dialled, name and source, rule, bytes, duration."""
    rules = ["10.0.0.0/8", "*.example.com", OTHER_NAME]
    wire = guest(*rules)
    connection = peeked(wire)
    data = hellos.python_ssl(NAME)
    say(connection, data)
    flow = wire.asked_one(OpenNamed).flow
    wire.stack.stream_opened(flow, wire.now, ip(TRUE_SITE))
    wire.stack.stream_sent(flow, len(sent_bytes(wire.asked())))
    wire.stack.stream_received(flow, b"x" * 999)
    connection.flow = flow
    connection.hear_bytes()
    wire.wait(2)
    end(wire, connection)
    opened, closed = lines(wire)
    same = {
        "time": "2025-11-24T16:00:00.000000Z",
        "flow": flow,
        "protocol": "tcp",
        "guest": f"{GUEST}:{connection.source_port}",
        "destination": f"{SITE}:443",
        "dialled": f"{TRUE_SITE}:443",
        "direction": "out",
        "verdict": "allowed",
        "step": "tls",
        "reason_code": "name-rule",
        "rule": "*.example.com",
        "name": NAME,
        "name_source": "sni",
    }
    assert opened == same | {"event": "flow_opened", "note": "address-not-answered"}
    counted = {"event": "flow_closed", "reason": "finished", "sent": len(data), "received": 999, "seconds": 2.0}
    assert closed == same | counted
    assert wire.spec.allow_net.index(str(opened["rule"])) == 1, "a rule's text is its place in the list"


def test_J2_a_refused_flow(guest: Guest) -> None:
    wire = guest(f"{NAME}:80")
    connection = peeked(wire, SITE, 80)
    say(connection, get(f"Host: {OTHER_NAME}"))
    (refused,) = lines(wire)
    flow = refused.pop("flow")
    assert isinstance(flow, int)
    assert refused == {
        "time": "2025-11-24T16:00:00.000000Z",
        "event": "flow_refused",
        "protocol": "tcp",
        "guest": f"{GUEST}:{connection.source_port}",
        "destination": f"{SITE}:80",
        "verdict": "refused",
        "step": "http",
        "reason_code": "name-not-allowed",
        "name": OTHER_NAME,
        "name_source": "host",
        "told": "forbidden",
        "total": 1,
        "generation": 1,
    }
    wire.events.clear()
    wire.connection(SITE, 22).syn()
    wire.send(udp(SITE, 9), ping(SITE))
    found = lines(wire)
    assert len({line["flow"] for line in found} | {flow}) == 4, "each has a number of its own"
    assert [(line["protocol"], line["step"], line["destination"]) for line in found] == [
        ("tcp", "syn", f"{SITE}:22"), ("udp", "datagram", f"{SITE}:9"), ("icmp", "echo", f"{SITE}:0"),
    ]  # fmt: skip


@pytest.mark.parametrize(("packet", "protocol"), [(udp("10.0.0.1", 9, b"abc"), "udp"), (ping("10.0.0.1"), "icmp")])
def test_J2_other_protocols(guest: Guest, packet: IP, protocol: str) -> None:
    wire = guest("10.0.0.0/8")
    wire.send(packet)
    wire.wait(200)
    opened, closed = lines(wire)
    assert (opened["event"], closed["event"]) == ("flow_opened", "flow_closed")
    assert (opened["flow"], opened["protocol"]) == (closed["flow"], closed["protocol"]) == (opened["flow"], protocol)
    assert (closed["rule"], closed["reason"], closed["sent"], closed["received"]) == ("10.0.0.0/8", "idle", 3, 0)


# -- J3 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sinkhole", ["null", "nxdomain", "refused"])
@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "HTTPS", "PTR", "ANY"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_J3_refused_questions(guest: Guest, transport: str, kind: str, sinkhole: str) -> None:
    """(G) an answer at once, (D) nothing upstream, (E) one event with the name as it was spelled, and its verdict."""
    wire = guest(spec=NetworkSpec.enabled([NAME], sinkhole=sinkhole))
    question = dns.message.make_query("Evil.Example.NET", kind)
    if transport == "udp":
        wire.send(udp(GATEWAY, 53, question.to_wire()))
        answer = dns.message.from_wire(payload_of(wire.hear_one()[UDP]))
    else:
        connection = over_tcp(wire)
        wire.events.clear()
        connection.say(framed(question))
        answer = dns.message.from_wire(connection.hear_bytes()[2:])
    rcode = {"null": "NOERROR", "nxdomain": "NXDOMAIN", "refused": "REFUSED"}[sinkhole]
    assert answer.rcode().name == rcode
    assert wire.asks_nothing()
    (event,) = wire.told(DnsEvent)
    (line,) = lines(wire)
    assert line == {
        "time": "2025-11-24T16:00:00.000000Z",
        "event": "dns",
        "guest": GUEST,
        "name": "Evil.Example.NET",
        "qtype": kind,
        "transport": transport,
        "source": "policy",
        "rcode": rcode,
        "answers": event.answers,
        "seconds": 0.0,
        "verdict": "refused",
        "step": "dns",
        "reason_code": "name-not-allowed",
        "name_source": "dns",
    }
    assert wire.stack.judge.refusals == {"name-not-allowed": 1}


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("HTTPS", {}, "service-binding-withheld"),
        ("SVCB", {}, "service-binding-withheld"),
        ("ANY", {}, "any-not-forwarded"),
        ("AAAA", {"answers": "synthetic"}, "synthetic-is-ipv4"),
    ],
)
def test_J3_withheld_answers_are_the_policys(guest: Guest, kind: str, options: dict[str, str], reason: str) -> None:
    """The name is allowed and the type is not for the guest: answered here, so the source is the policy."""
    wire = guest(spec=NetworkSpec.enabled([NAME], **options))
    wire.send(udp(GATEWAY, 53, dns.message.make_query(NAME, kind).to_wire()))
    assert dns.message.from_wire(payload_of(wire.hear_one()[UDP])).rcode() == 0
    assert wire.asks_nothing()
    (line,) = lines(wire)
    assert (line["source"], line["verdict"], line["reason_code"]) == ("policy", "allowed", reason)
    assert wire.stack.judge.refusals == {}


# -- J4 ---------------------------------------------------------------------------------------------------------------


def test_J4_bytes_of_a_flow_that_never_opened(guest: Guest) -> None:
    """The hello was held, and went nowhere: no byte is counted."""
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, hellos.python_ssl(NAME))
    flow = wire.asked_one(OpenNamed).flow
    wire.stack.stream_failed(flow, NETWORK_UNREACHABLE, wire.now)
    (closed,) = wire.told(FlowClosed)
    assert (closed.sent, closed.received, closed.reason) == (0, 0, "network unreachable")


@pytest.mark.parametrize("size", [1, 1400])
def test_J4_bytes_of_a_request_that_was_cut_off(guest: Guest, size: int) -> None:
    """What was refused is not counted: it was not sent."""
    wire = guest(NAME)
    connection = peeked(wire, SITE, 80)
    first, second = get(f"Host: {NAME}"), get(f"Host: {OTHER_NAME}")
    say(connection, first)
    opened_by_name(wire, connection, first, source="host")
    wire.stack.stream_received(connection.flow, b"y" * 77)
    connection.hear_bytes()
    say(connection, second, size)
    assert not [effect for effect in wire.asked() if isinstance(effect, SendStream)]
    (closed,) = wire.told(FlowClosed)
    assert (closed.sent, closed.received, closed.reason) == (len(first), 77, "refused")


async def test_J4_bytes_that_a_server_saw() -> None:
    """With real sockets: the numbers of the event are what came out at the other end, and what was put in there."""
    upload, download = b"u" * 5000, b"d" * 7001
    with listener() as (server, port):
        async with running("@host") as live:
            guest = await live.attach()
            await guest.syn(HOST_ALIAS, port)
            (answer,) = [frame[TCP] for frame in guest.hear() if frame.haslayer(TCP)]
            head = {"sport": 40_000, "dport": port}
            place, heard = 2, answer.seq + 1
            await guest.send(IP(src=GUEST, dst=HOST_ALIAS) / TCP(**head, flags="A", seq=place, ack=heard))
            connection, _ = server.accept()
            with connection:
                for at in range(0, len(upload), 1000):
                    segment = TCP(**head, flags="PA", seq=place + at, ack=heard) / Raw(upload[at : at + 1000])
                    await guest.send(IP(src=GUEST, dst=HOST_ALIAS) / segment)
                assert connection.recv(10_000) == upload
                connection.sendall(download)
            await live.settle_until(lambda: len(guest.link.heard) > 5)
            for _ in range(2):  # all of the data, then the FIN
                last = max(
                    frame[TCP].seq + len(payload_of(frame[TCP])) + ("F" in frame[TCP].flags)
                    for frame in map(Ether, guest.link.heard)
                    if frame.haslayer(TCP)
                )
                segment = TCP(**head, flags="A", seq=place + len(upload), ack=last, window=65_535)
                await guest.send(IP(src=GUEST, dst=HOST_ALIAS) / segment)
            segment = TCP(**head, flags="FA", seq=place + len(upload), ack=heard + len(download) + 1)
            await guest.send(IP(src=GUEST, dst=HOST_ALIAS) / segment)
            (closed,) = await live.wait_for(FlowClosed)
            assert (closed.sent, closed.received, closed.reason) == (len(upload), len(download), "finished")
            assert len(live.told(FlowOpened)) == 1


# -- J7 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", sorted(STREAMS))
def test_J7_told_at_once_in_its_own_protocol(guest: Guest, reason: str) -> None:
    """403 with the reason for HTTP, alert 112 for TLS, a reset for others; no time passes, and nothing is left."""
    wire = guest(NAME)
    data = STREAMS[reason]
    connection = peeked(wire, SITE, 443 if data[0] == 0x16 else 80)
    begun = wire.now
    say(connection, data)
    heard = connection.hear()
    assert wire.now == begun
    said = b"".join(payload_of(segment) for segment in heard)
    (event,) = wire.told(FlowRefused)
    if data[0] == 0x16:
        assert (event.told, said) == ("alert", ALERT)
    elif event.told == "forbidden":
        assert said.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert said.rstrip().endswith(f"({reason})".encode())
    else:
        assert (event.told, said) == ("reset", b"")
        assert reason in {"not-http", "proxy-protocol"}
    assert ("R" if event.told == "reset" else "F") in "".join(str(segment.flags) for segment in heard)
    assert wire.asks_nothing()


@pytest.mark.parametrize("address", [SITE, "10.0.0.1", HOST_ALIAS, "169.254.169.254", GATEWAY])
def test_J7_a_reset_at_once(guest: Guest, address: str) -> None:
    wire = guest(f"{NAME}:443")
    connection = wire.connection(address, 22)
    connection.syn()
    connection.hear_one("RA")
    assert len(wire.told(FlowRefused)) == 1
    assert wire.asks_nothing()


# -- J8 ---------------------------------------------------------------------------------------------------------------


async def test_J8_counters_of_reasons() -> None:
    """Drops by reason (whose first word is the protocol), refusals by reason; repeated ones are counted, not told."""
    async with running(NAME) as live:
        guest = await live.attach()
        other = await live.attach("02:00:00:00:00:03", "192.168.127.3")
        for _ in range(3):
            guest.link.put([b"short"])
            await guest.send(IP(src=GUEST, dst=SITE, options=[b"\x83\x03\x04\x00"]) / UDP(sport=1, dport=2))
        for port in (22, 22, 23):
            await guest.syn(ATTACKER, port)
        await other.send(Ether(src=guest.mac, dst=BROADCAST_MAC) / Raw(bytes(50)))
        stack = live.driver.stack
        assert stack.dropped == {
            "switch-frame-too-short": 3,
            "ip-source-route": 3,
            "switch-source-mac-belongs-to-another-port": 1,
        }
        assert stack.judge.refusals == {"no-rule": 3}
        assert [(event.reason, event.total) for event in live.told(FrameDropped)] == [
            (reason, 1) for reason in stack.dropped
        ]


async def test_J8_counters_of_an_interface() -> None:
    """Frames and bytes in both directions, and drops by their reason, of each guest's link."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = SeqpacketLink(ours, "guest")
    asked = bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / ping(GATEWAY))
    with theirs:
        async with running(NAME) as live:
            live.serve(link)
            for frame in (asked, asked, b"short", bytes(70_000)):
                theirs.send(frame)
            await live.settle_until(lambda: link.counters.rx_frames + link.counters.rx_dropped >= 4)
            await settled()
            counters = link.counters
            assert (counters.rx_frames, counters.rx_bytes, counters.rx_dropped) == (2, 2 * len(asked), 2)
            assert (counters.tx_frames, counters.tx_bytes, counters.tx_dropped) == (2, 2 * len(asked), 0)
            assert sum(counters.drops.values()) == 2
            assert live.driver.stack.dropped == {}


def test_J8_each_drop_names_its_protocol() -> None:
    """By inspection: the first word of a reason is a protocol, so counters can be added up by protocol."""
    said: set[str] = set()
    for path in ENGINE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in {"drop", "_drop"}:
                said |= {arg.value for arg in call.args if isinstance(arg, ast.Constant)}
    assert len(said) > 25
    protocol = re.compile(r"(arp|dhcp|dns|fragment|frame|icmp|ip|network|tcp|udp)-[a-z0-9-]+|guest-does-not-answer-arp")
    assert {reason for reason in said if not protocol.fullmatch(reason)} == set()
