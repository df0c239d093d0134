"""Port 53 of the gateway, by datagrams and by TCP: questions made and answers read by dnspython.

What is answered is told in test_dns_server.py; here, how a question finds its way in and its answer the way back.
"""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from scapy.layers.inet import IP, UDP

from netstack.engine import dns_server, tcp_sessions
from netstack.engine.effects import ResolveUpstream
from netstack.engine.events import FlowClosed, FlowOpened
from netstack.engine.settings import Zone, ZoneRecord

from .wire_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OTHER_MAC,
    SERVER,
    GuestTcp,
    VirtualWire,
    ip,
    mac,
    payload_of,
    udp,
)

ZONE = Zone(
    "corp.test",
    tuple(ZoneRecord(f"host{number}", bytes((10, 0, number >> 8, number & 255))) for number in range(300))
    + tuple(ZoneRecord("many", bytes((10, 1, number >> 8, number & 255))) for number in range(200)),
)


@pytest.fixture(params=[True, False], ids=["verified", "trusted"])
def wire(request: pytest.FixtureRequest) -> VirtualWire:
    return VirtualWire(verify=request.param, zones=(ZONE,))


def question(name: str = "host1.corp.test", kind: str = "A", ident: int = 1) -> bytes:
    return dns.message.make_query(name, kind, id=ident).to_wire()


def answer_to(effect: ResolveUpstream, address: str = "203.0.113.80", ttl: int = 60) -> bytes:
    """What a resolver says to a question that was asked upstream."""
    asked = dns.message.from_wire(effect.message)
    response = dns.message.make_response(asked)
    response.answer.append(dns.rrset.from_text(asked.question[0].name, ttl, "IN", "A", address))
    return response.to_wire()


def addresses(message: bytes) -> list[str]:
    return [record.address for rrset in dns.message.from_wire(message).answer for record in rrset]


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


def messages_in(stream: bytes) -> list[bytes]:
    """The messages of a whole stream, each behind its length."""
    messages = []
    while stream:
        length = int.from_bytes(stream[:2], "big")
        assert len(stream) >= 2 + length, "a message that is cut off"
        messages.append(stream[2 : 2 + length])
        stream = stream[2 + length :]
    return messages


def open_dns(wire: VirtualWire, **options: object) -> GuestTcp:
    """A connection to the name server: accepted at once, there is nothing to dial."""
    connection = wire.connection(GATEWAY, 53, **options)
    connection.syn()
    assert wire.asks_nothing()
    connection.finish_handshake()
    return connection


# -- by datagram -----------------------------------------------------------------------------------------------------


def heard_answer(wire: VirtualWire) -> bytes:
    frame = wire.hear_one()
    packet = frame[IP]
    assert (packet.src, packet.sport, packet.dst, packet.dport) == (GATEWAY, 53, GUEST, 5000)
    return payload_of(packet[UDP])


def test_a_local_name_is_answered_in_the_same_batch(wire: VirtualWire) -> None:
    wire.send(udp(GATEWAY, 53, question()))
    message = heard_answer(wire)
    assert addresses(message) == ["10.0.0.1"]
    assert wire.asks_nothing()
    assert wire.rests(), "no flow, nothing to time out"
    assert wire.told(FlowOpened) == []


def test_another_name_is_asked_upstream_once_for_all_who_want_it(wire: VirtualWire) -> None:
    wire.send(udp(GATEWAY, 53, question("example.com", ident=11)))
    effect = wire.asked_one(ResolveUpstream)
    assert wire.hears_nothing()
    wire.send(udp(GATEWAY, 53, question("example.com", ident=12), src="192.168.127.3"), source=OTHER_MAC)
    assert wire.asks_nothing()
    wire.stack.dns_resolved(effect.query, answer_to(effect), wire.now)
    frames = wire.hear()
    assert [(frame.dst, frame[IP].dst, dns.message.from_wire(payload_of(frame[UDP])).id) for frame in frames] == [
        (GUEST_MAC, GUEST, 11),
        (OTHER_MAC, "192.168.127.3", 12),
    ]
    wire.send(udp(GATEWAY, 53, question("example.com", ident=13)))
    assert addresses(heard_answer(wire)) == ["203.0.113.80"], "from the cache"


def test_nobody_answered_upstream(wire: VirtualWire) -> None:
    """gvproxy defect 6: there it is NXDOMAIN."""
    wire.send(udp(GATEWAY, 53, question("example.com")))
    effect = wire.asked_one(ResolveUpstream)
    wire.stack.dns_resolved(effect.query, None, wire.now)
    assert dns.message.from_wire(heard_answer(wire)).rcode() == dns.rcode.SERVFAIL
    wire.stack.dns_resolved(effect.query, answer_to(effect), wire.now)  # said twice
    wire.stack.dns_resolved(999, None, wire.now)
    assert wire.hears_nothing()


def test_what_is_no_question_is_dropped(wire: VirtualWire) -> None:
    for data in (b"", b"x", bytes(11), dns.message.make_response(dns.message.make_query("a.", "A")).to_wire()):
        wire.send(udp(GATEWAY, 53, data))
    assert wire.hears_nothing()
    assert wire.dropped == {"dns-truncated": 3, "dns-not-a-query": 1}


def test_port_53_elsewhere_is_a_destination_like_any_other(wire: VirtualWire) -> None:
    wire.send(udp(SERVER, 53, question()))
    assert len(wire.asked()) == 2


# -- by TCP ----------------------------------------------------------------------------------------------------------


def test_a_question_by_tcp(wire: VirtualWire) -> None:
    connection = open_dns(wire)
    (opened,) = wire.told(FlowOpened)
    assert (opened.protocol, opened.destination, opened.dialled) == ("tcp", (ip(GATEWAY), 53), (ip(GATEWAY), 53))
    connection.say(framed(question(ident=5)))
    (message,) = messages_in(connection.hear_bytes())
    assert dns.message.from_wire(message).id == 5
    assert addresses(message) == ["10.0.0.1"]
    connection.fin()
    connection.hear_one("FA")
    connection.ack()
    assert wire.asks_nothing(), "no host socket is behind it"
    (closed,) = wire.told(FlowClosed)
    assert (closed.reason, closed.sent, closed.received) == ("finished", len(framed(question())), len(framed(message)))
    assert wire.stack.tcp.table == {}


def test_b5_pipelined_questions_are_all_answered(wire: VirtualWire) -> None:
    """Conformance B5; RFC 7766 section 6.2.1.1."""
    connection = open_dns(wire)
    names = [f"host{number}.corp.test" for number in range(300)]
    stream = framed(*(question(name, ident=number) for number, name in enumerate(names)))
    connection.sent = connection.isn + 1 + len(stream)
    wire.send(*resequenced(connection, stream))
    heard = b""
    while data := connection.hear_bytes():
        heard += data
    answers = {dns.message.from_wire(message).id: addresses(message) for message in messages_in(heard)}
    assert answers == {number: [f"10.0.{number >> 8}.{number & 255}"] for number in range(300)}


def resequenced(connection: GuestTcp, stream: bytes, size: int = 1460) -> list[object]:
    """A stream from the beginning of a connection, as segments."""
    return [
        connection.segment("A", stream[at : at + size], seq=connection.isn + 1 + at)
        for at in range(0, len(stream), size)
    ]


def test_one_byte_at_a_time(wire: VirtualWire) -> None:
    connection = open_dns(wire)
    for byte in framed(question(ident=1), question("host2.corp.test", ident=2)):
        connection.say(bytes([byte]))
    heard = b"".join(payload_of(segment) for segment in connection.hear())
    assert [addresses(message) for message in messages_in(heard)] == [["10.0.0.1"], ["10.0.0.2"]]


@pytest.mark.parametrize("stream", [framed(b""), framed(b"x" * 11), framed(b"", question()), b"\x00\x01x"])
def test_what_is_no_dns_is_reset(wire: VirtualWire, stream: bytes) -> None:
    connection = open_dns(wire)
    connection.say(stream)
    assert str(connection.hear()[-1].flags) == "RA"
    assert [event.reason for event in wire.told(FlowClosed)] == ["not understood"]
    assert wire.stack.tcp.table == {}
    assert wire.stack._dns_port._sessions == {}


def test_b5_a_message_of_the_largest_size(wire: VirtualWire) -> None:
    """Conformance B5: 65,535 bytes are held, answered, and forgotten."""
    connection = open_dns(wire)
    stream = framed(question() + bytes(65_535 - len(question())))
    wire.send(*resequenced(connection, stream[:64_240]))
    wire.hear()
    assert wire.asks_nothing()
    wire.send(connection.segment("A", stream[64_240:], seq=connection.isn + 1 + 64_240))
    connection.sent += len(stream)
    (message,) = messages_in(b"".join(payload_of(segment) for segment in connection.hear()))
    assert dns.message.from_wire(message).rcode() in (dns.rcode.NOERROR, dns.rcode.FORMERR)


def test_the_guest_ends_its_side_right_after_the_question(wire: VirtualWire) -> None:
    connection = open_dns(wire)
    connection.put("FPA", framed(question()))
    connection.sent += len(framed(question())) + 1
    segments = connection.hear()
    assert [addresses(message) for message in messages_in(b"".join(map(payload_of, segments)))] == [["10.0.0.1"]]
    assert "F" in segments[-1].flags
    connection.ack()
    assert wire.stack.tcp.table == {}


def test_the_guest_ends_its_side_and_upstream_answers_later(wire: VirtualWire) -> None:
    connection = open_dns(wire)
    connection.put("FPA", framed(question("example.com"), question("example.org")))
    connection.sent += len(framed(question("example.com"), question("example.org"))) + 1
    effects = wire.asked()
    assert [type(effect) for effect in effects] == [ResolveUpstream] * 2
    connection.hear_one("A")
    for number, effect in enumerate(reversed(effects)):
        wire.wait(4)
        wire.stack.dns_resolved(effect.query, answer_to(effect), wire.now)
        segments = connection.hear()
        assert [addresses(message) for message in messages_in(b"".join(map(payload_of, segments)))] == [
            ["203.0.113.80"]
        ]
        assert ("F" in segments[-1].flags) is (number == 1), "ended when all is answered"
        connection.ack()
    assert [event.reason for event in wire.told(FlowClosed)] == ["finished"]


def test_the_same_question_twice_is_answered_twice(wire: VirtualWire) -> None:
    """Also with the same id: over TCP nothing is repeated by mistake, and the end waits for both."""
    connection = open_dns(wire)
    connection.put("FPA", framed(question("example.com"), question("example.com")))
    connection.sent += len(framed(question("example.com"), question("example.com"))) + 1
    effect = wire.asked_one(ResolveUpstream)
    wire.hear()
    wire.stack.dns_resolved(effect.query, answer_to(effect), wire.now)
    segments = connection.hear()
    assert len(messages_in(b"".join(map(payload_of, segments)))) == 2
    assert "F" in segments[-1].flags


def test_a_guest_that_hangs_up_while_upstream_is_asked(wire: VirtualWire) -> None:
    connection = open_dns(wire)
    connection.say(framed(question("example.com")))
    effect = wire.asked_one(ResolveUpstream)
    wire.hear()
    connection.rst()
    wire.stack.dns_resolved(effect.query, answer_to(effect), wire.now)
    assert wire.hears_nothing()
    assert wire.asks_nothing()
    assert wire.stack._dns_port._sessions == {}


def test_a_guest_that_does_not_read_is_not_answered_further(wire: VirtualWire) -> None:
    """Its questions wait with it, in its own window; the rest of the engine does not work for it."""
    connection = open_dns(wire, window=2000)
    stream = framed(*(question("many.corp.test", ident=number) for number in range(2000)))
    sent = 0
    while sent < len(stream):
        chunk = stream[sent : sent + 1460]
        connection.put("A", chunk)
        connection.sent += len(chunk)
        sent += len(chunk)
        answers = connection.hear()
        if answers and answers[-1].window < 1460:
            break
    assert sent < len(stream), "the window closes"
    flow = next(iter(wire.stack.tcp._streams.values()))
    session = next(iter(wire.stack._dns_port._sessions.values()))
    assert flow.received <= 192 * 1024
    assert len(session._waiting) <= 1460 // 20
    # Once it reads, all that came is answered.
    connection.window = 65_535
    heard = bytearray()
    for _ in range(500):
        connection.ack()
        data = b"".join(payload_of(segment) for segment in connection.hear())
        if not data:
            break
        heard += data
    assert len(heard) > 192 * 1024


def test_a_silent_connection_is_closed_after_30_seconds(wire: VirtualWire) -> None:
    """RFC 7766 section 6.2.3."""
    connection = open_dns(wire)
    wire.wait(20)
    connection.say(framed(question()))
    connection.hear_bytes()
    wire.wait(29.9)
    assert wire.hears_nothing()
    wire.wait(0.2)
    connection.hear_one("FA")
    connection.put("FA")
    connection.sent += 1
    connection.hear_one("A")
    assert [event.reason for event in wire.told(FlowClosed)] == ["finished"]


def test_a_connection_that_was_never_used_is_closed_too(wire: VirtualWire) -> None:
    connection = open_dns(wire)
    wire.wait(30.1)
    connection.hear_one("FA")


def test_a_guest_that_neither_reads_nor_leaves_is_reset(wire: VirtualWire) -> None:
    """It acknowledges, and never takes a byte: that is not a sign of life."""
    connection = open_dns(wire, window=0)
    connection.say(framed(question()))
    for _ in range(70):
        wire.wait(1)
        connection.ack()
    assert str(connection.hear()[-1].flags) in ("RA", "R")
    assert [event.reason for event in wire.told(FlowClosed)] == ["idle"]
    assert wire.stack.tcp.table == {}
    assert tcp_sessions.SERVED_IDLE == 30.0


def test_a_guest_that_left(wire: VirtualWire) -> None:
    connection = open_dns(wire)
    connection.say(framed(question("example.com")))
    effect = wire.asked_one(ResolveUpstream)
    wire.hear()
    wire.stack.guest_left(mac(GUEST_MAC), wire.now)
    assert wire.asks_nothing()
    wire.stack.dns_resolved(effect.query, answer_to(effect), wire.now)
    wire.wait(100)
    assert wire.hears_nothing()


def test_questions_beyond_the_bound_are_answered_all_the_same(
    wire: VirtualWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More questions under way than a guest may have: SERVFAIL at once, in both transports."""
    monkeypatch.setattr(dns_server, "MAX_WAITING_PER_GUEST", 3)
    connection = open_dns(wire)
    connection.say(framed(*(question(f"{number}.example.com", ident=number) for number in range(5))))
    assert len(wire.asked()) == 3
    heard = [dns.message.from_wire(message) for message in messages_in(connection.hear_bytes())]
    assert [(message.id, message.rcode()) for message in heard] == [(3, dns.rcode.SERVFAIL), (4, dns.rcode.SERVFAIL)]
    wire.send(udp(GATEWAY, 53, question("5.example.com")))
    assert dns.message.from_wire(heard_answer(wire)).rcode() == dns.rcode.SERVFAIL


def test_a_large_answer_that_tcp_was_asked_for(wire: VirtualWire) -> None:
    wire.send(udp(GATEWAY, 53, question("many.corp.test")))
    assert dns.message.from_wire(heard_answer(wire)).flags & dns.flags.TC
    connection = open_dns(wire)
    connection.say(framed(question("many.corp.test")))
    (message,) = messages_in(connection.hear_bytes())
    assert len(addresses(message)) == 200
