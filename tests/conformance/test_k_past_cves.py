"""Conformance class K: what programs of this kind were broken with before (libslirp, passt, vpnkit, gVisor).

One test a row, on the whole engine, with the three oracles of the other classes; K10, K11 and the descriptors of K6 are
in test_k_links.py. The parts have tests of their own for every case: tests/engine/test_fragments.py (K2),
tests/wire/test_hostile_bytes.py (K3), tests/engine/test_dhcp_server.py (K4), test_tcp_*.py (K5, K6, K8, K9),
tests/gateway/test_resolver.py (K7), tests/guest_iface (K10, K11).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise

import dns.message
import dns.rcode
import pytest
from engine.wire_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    SERVER,
    GuestTcp,
    VirtualWire,
    check_frame,
    ip,
    network,
    payload_of,
    sent_bytes,
    udp,
)
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from netstack.engine.effects import AbortStream, CloseStream, OpenDatagrams, OpenStream, ResolveUpstream, SendDatagram
from netstack.engine.events import DnsEvent, FlowClosed, FlowOpened, FrameDropped, LeaseEvent
from netstack.engine.stack import Stack
from netstack.gateway.driver import keyed_sequence_numbers
from netstack.network_spec import NetworkSpec

from .policy_wire import PolicyWire

Guest = Callable[..., PolicyWire]
OPEN = NetworkSpec.enabled()


def datagrams_sent(wire: VirtualWire) -> list[bytes]:
    """The payloads that were handed to host sockets since the last look, and nothing else was asked."""
    asked = wire.asked()
    assert all(isinstance(effect, OpenDatagrams | SendDatagram) for effect in asked), asked
    return [bytes(effect.payload) for effect in asked if isinstance(effect, SendDatagram)]


# -- K1: payload is never rewritten ----------------------------------------------------------------------------------

HELPED = {
    "ftp": (21, b"PORT 192,168,127,2,156,64\r\nEPRT |1|192.168.127.2|40000|\r\n"),
    "ftp-answer": (21, b"227 Entering Passive Mode (203,0,113,5,4,1).\r\n"),
    "irc": (6667, b"PRIVMSG a :\x01DCC SEND f 3232268034 1024 5\x01\r\n"),
    "ident": (113, b"40000, 21\r\n"),
    "rsh": (514, b"1023\0user\0user\0ls\0"),
    "realaudio": (7070, b"PNA\0\x0a\0\x01\0\0\x1a\x01\xc0\xa8\x7f\x02"),
}
"""What libslirp emulated: text and binary addresses inside the stream (CVE-2019-6778, CVE-2020-7039, CVE-2020-8608)."""


@pytest.mark.parametrize("what", HELPED)
def test_k1_a_stream_is_never_rewritten(guest: Guest, what: str) -> None:
    port, said = HELPED[what]
    wire = guest(spec=OPEN)
    connection = wire.open_tcp(SERVER, port)
    wire.events.clear()
    connection.say(said)
    assert sent_bytes(wire.asked()) == said
    wire.stack.stream_sent(connection.flow, len(said))
    wire.stack.stream_received(connection.flow, said)
    assert connection.hear_bytes() == said
    connection.close_both()
    event = wire.one_flow_event()
    assert isinstance(event, FlowClosed)
    assert (event.reason, event.sent, event.received) == ("finished", len(said), len(said))


@pytest.mark.parametrize("port", [69, 517, 5060, 7648])
def test_k1_a_datagram_is_never_rewritten(guest: Guest, port: int) -> None:
    """TFTP, talk, SIP, CU-SeeMe."""
    said = b"INVITE sip:a@203.0.113.5\r\nVia: SIP/2.0/UDP 192.168.127.2:5000\r\n\r\n" + ip(GUEST) + b"\x13\x88"
    wire = guest(spec=OPEN)
    wire.send(udp(SERVER, port, said))
    opened, sent = wire.asked()
    assert isinstance(opened, OpenDatagrams)
    assert isinstance(sent, SendDatagram)
    assert (sent.address, sent.port, bytes(sent.payload)) == (ip(SERVER), port, said)
    assert isinstance(wire.one_flow_event(), FlowOpened)
    wire.stack.datagram_received(opened.flow, ip(SERVER), port, said, wire.now)
    assert payload_of(wire.hear_one()[UDP]) == said


# -- K2: fragments ---------------------------------------------------------------------------------------------------


def piece(offset: int, data: bytes, *, more: bool, options: bytes = b"", identification: int = 9) -> Packet:
    """One fragment of a datagram to SERVER, made by hand; `offset` in bytes."""
    header = IP(src=GUEST, dst=SERVER, proto=17, id=identification, flags="MF" if more else 0, frag=offset // 8)
    raw = bytes(header / Raw(data))
    if options:
        head = bytearray(raw[:20]) + options
        head[0] = 0x40 + len(head) // 4
        head[2:4] = (len(head) + len(data)).to_bytes(2, "big")
        head[10:12] = bytes(2)
        total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, len(head), 2))
        total = (total & 0xFFFF) + (total >> 16)
        head[10:12] = (0xFFFF - ((total & 0xFFFF) + (total >> 16))).to_bytes(2, "big")
        raw = bytes(head) + data
    return IP(raw)


DATAGRAM = bytes(udp(SERVER, 7, bytes(range(48))))[20:]


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([piece(0, DATAGRAM[:24], more=True), piece(16, DATAGRAM[16:], more=False)], "fragment-overlap"),
        ([piece(0, DATAGRAM[:24], more=True), piece(65_528, bytes(100), more=False)], "fragment-beyond-maximum"),
    ],
    ids=["overlap", "oversize"],
)
def test_k2_fragments_that_lie(guest: Guest, pieces: list[Packet], reason: str) -> None:
    """Teardrop and the ping of death: nothing of it goes anywhere, and the next datagram does."""
    wire = guest(spec=OPEN)
    wire.send(*pieces)
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.flow_events() == []
    assert wire.dropped == {reason: 1}
    assert [event.reason for event in wire.told(FrameDropped)] == [reason]
    wire.send(*fragment(udp(SERVER, 7, b"whole" * 20, id=77), fragsize=64))
    assert datagrams_sent(wire) == [b"whole" * 20]


def test_k2_the_header_changes_between_fragments(guest: Guest) -> None:
    """Offsets count from the end of each fragment's own header: passt and libslirp took the first one's."""
    wire = guest(spec=OPEN)
    router_alert = bytes.fromhex("94040000")
    wire.send(piece(0, DATAGRAM[:24], more=True, options=router_alert * 3), piece(24, DATAGRAM[24:], more=False))
    assert datagrams_sent(wire) == [bytes(range(48))]
    wire.send(
        piece(0, DATAGRAM[:24], more=True, identification=10),
        piece(24, DATAGRAM[24:], more=False, options=router_alert * 10, identification=10),
    )
    assert datagrams_sent(wire) == [bytes(range(48))]
    assert wire.dropped == {}


def test_k2_fragments_without_end(guest: Guest) -> None:
    """Exhaustion and expiry: a bound, an ICMP error for those that began, and room again."""
    wire = guest(spec=OPEN)
    wire.send(*[piece(0, DATAGRAM[:24], more=True, identification=number) for number in range(1, 1001)])
    assert wire.asks_nothing()
    assert len(wire.stack._reassembler) < 256
    wire.hear()
    wire.wait(31)
    assert {(frame[1].src, frame[2].type, frame[2].code) for frame in wire.hear()} == {(GATEWAY, 11, 1)}
    assert len(wire.stack._reassembler) == 0
    wire.send(piece(0, DATAGRAM[:24], more=True), piece(24, DATAGRAM[24:], more=False))
    assert datagrams_sent(wire) == [bytes(range(48))]


# -- K3: lying lengths -----------------------------------------------------------------------------------------------

_HELLO = b"hello, world"
LENGTHS = {
    "ip-total": (udp(SERVER, 7, _HELLO), 2, 2),
    "ip-header": (udp(SERVER, 7, _HELLO), 0, 1),
    "udp": (udp(SERVER, 7, _HELLO), 24, 2),
    "tcp-offset": (IP(src=GUEST, dst=SERVER) / TCP(dport=80, flags="S", options=[("MSS", 1460)]), 32, 1),
    "tcp-option": (IP(src=GUEST, dst=SERVER) / TCP(dport=80, flags="S", options=[("MSS", 1460)]), 41, 1),
    "dns-label": (udp(GATEWAY, 53, bytes.fromhex("000101000001000000000000") + b"\3www\3org\0\0\1\0\1"), 40, 1),
    "dns-count": (udp(GATEWAY, 53, bytes.fromhex("000101000001000000000000") + b"\3www\3org\0\0\1\0\1"), 32, 2),
    "dhcp-option": (udp(GATEWAY, 67, bytes(236) + bytes.fromhex("638253633501013204c0a87f02ff"), 68), 269, 1),
}
"""A packet, where in it a length is, and its bytes."""


@pytest.mark.parametrize("what", LENGTHS)
def test_k3_each_length_at_its_limits(what: str) -> None:
    """0, 1, one less, one more, the largest: a bounded answer, and no byte goes out that was not in the datagram."""
    packet, at, size = LENGTHS[what]
    original = bytes(packet)
    exact = int.from_bytes(original[at : at + size], "big")
    largest = (1 << 8 * size) - 1
    for value in sorted({0, 1, max(0, exact - 1), min(largest, exact + 1), largest, largest >> 1} - {exact}):
        # Not verified, as on every link that cannot damage bytes: no checksum comes before the lie.
        wire = PolicyWire(spec=OPEN, verify=False)
        raw = bytearray(original)
        raw[at : at + size] = value.to_bytes(size, "big")
        wire.send(bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC)) + bytes(raw))
        for frame in wire.hear_raw():
            check_frame(frame, 1500)
        for effect in wire.asked():
            if isinstance(effect, SendDatagram):
                assert bytes(effect.payload) in _HELLO, (value, effect)
            else:
                assert isinstance(effect, OpenDatagrams | OpenStream | ResolveUpstream), (value, effect)
        wire.send(udp(SERVER, 9, b"still there"))
        assert datagrams_sent(wire) == [b"still there"], value


# -- K4: DHCP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [None, 0, 1, 576, 65_535])
def test_k4_no_options_make_a_reply_that_does_not_fit(largest: int | None) -> None:
    """Every option asked for twice, names of 255 bytes, a client that takes 0 or 64 KiB, the smallest link there is."""
    wire = VirtualWire(network(mtu=576, search_domains=tuple(f"{'d' * 60}{number}.example" for number in range(20))))
    options: list[object] = [
        ("message-type", "discover"),
        ("param_req_list", list(range(1, 255))),
        ("hostname", b"\xff\x00\n" * 85),
        ("client_id", bytes(64)),
        ("param_req_list", list(range(1, 255))),
        *([("max_dhcp_size", largest)] if largest is not None else []),
        "end",
    ]
    bootp = BOOTP(chaddr=bytes.fromhex(GUEST_MAC.replace(":", "")), xid=1) / DHCP(options=options)
    wire.send(IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / bootp, destination=BROADCAST_MAC)
    frame = wire.hear_one()
    assert len(frame) <= 14 + 576
    assert frame[IP].frag == 0
    assert "MF" not in frame[IP].flags
    assert frame[BOOTP].yiaddr == "192.168.127.2"
    assert ("message-type", 2) in frame[DHCP].options
    assert wire.asks_nothing()
    (event,) = wire.told(LeaseEvent)
    assert (event.action, event.address) == ("offered", ip("192.168.127.2"))


# -- K5: urgent data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("urgent", [0, 1, 5, 6, 0x7FFF, 0xFFFF])
def test_k5_urgent_pointers(guest: Guest, urgent: int) -> None:
    """On it, beyond it, zero, past the end of the sequence space: the bytes are bytes (libslirp: CVE-2018-11806)."""
    wire = guest(spec=OPEN)
    isn = 2**32 - 4  # the segment wraps
    connection = wire.connection(SERVER, 80, isn=isn)
    connection.syn()
    connection.flow = wire.asked_one(OpenStream).flow
    wire.stack.stream_opened(connection.flow, wire.now)
    connection.sent %= 2**32
    connection.finish_handshake()
    connection.put("PAU", b"first", urgptr=urgent)
    connection.sent = (connection.sent + 5) % 2**32
    assert sent_bytes(wire.asked()) == b"first"
    connection.put("AU", b"", urgptr=urgent)
    connection.say(b"then")
    assert sent_bytes(wire.asked()) == b"then"
    assert len(wire.told(FlowOpened)) == 1


# -- K6: states that never end ----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["FIN-WAIT-2", "LAST-ACK", "SYN-RECEIVED", "TIME-WAIT"])
def test_k6_a_guest_that_vanishes_leaves_no_flow(guest: Guest, end: str) -> None:
    """Whatever state it left in, with something to say to it or a FIN that it does not acknowledge."""
    wire = guest(spec=OPEN)
    connection = wire.connection(SERVER, 80)
    connection.syn()
    connection.flow = wire.asked_one(OpenStream).flow
    wire.stack.stream_opened(connection.flow, wire.now)
    if end != "SYN-RECEIVED":
        connection.finish_handshake()
    if end == "FIN-WAIT-2":
        # Our side has ended and is acknowledged; the guest's has not. The host is gone for good, which it says once
        # the guest speaks: until then the flow is half open, and the guest's to keep.
        wire.stack.stream_ended(connection.flow)
        connection.hear_one("FA")
        connection.ack()
        wire.stack.stream_reset(connection.flow, wire.now)
        connection.hear_one("RA")
    elif end == "LAST-ACK":
        connection.fin()
        wire.stack.stream_ended(connection.flow)
    elif end == "TIME-WAIT":
        wire.stack.stream_ended(connection.flow)
        connection.hear_one("FA")
        connection.ack()
        connection.fin()
    wire.wait(1000)
    wire.hear_raw()
    assert wire.stack.tcp.table == {}
    assert wire.stack.tcp._streams == {}
    assert len([each for each in wire.asked() if isinstance(each, AbortStream | CloseStream)]) == (end != "FIN-WAIT-2")
    assert len(wire.told(FlowClosed)) == 1
    assert wire.rests()


# -- K7: DNS ---------------------------------------------------------------------------------------------------------

HEADER = bytes.fromhex("000101000001000000000000")
BAD_QUESTIONS = {
    "loop": HEADER + b"\xc0\x0c\0\1\0\1",
    "forward pointer": HEADER + b"\xc0\x20\0\1\0\1",
    "label of 64": HEADER + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
    "name of 256": HEADER + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",
    "no question": bytes.fromhex("000101000000000000000000"),
    "two questions": bytes.fromhex("000101000002000000000000") + b"\1a\0\0\1\0\1" * 2,
}


@pytest.mark.parametrize("what", BAD_QUESTIONS)
def test_k7_questions_that_lie(guest: Guest, what: str) -> None:
    wire = guest(spec=OPEN)
    wire.send(udp(GATEWAY, 53, BAD_QUESTIONS[what]))
    answer = payload_of(wire.hear_one()[UDP])
    assert answer[3] & 15 == dns.rcode.FORMERR
    assert wire.asks_nothing()
    assert [event.rcode for event in wire.told(DnsEvent)] == ["FORMERR"]


@pytest.mark.parametrize("tail", [b"\xc0\x21", b"\xc0\xff", b"\xc0\x23\xc0\x21", b"\x3f", (b"\x3f" + b"a" * 63) * 4])
def test_k7_upstream_answers_that_lie(guest: Guest, tail: bytes) -> None:
    """A record whose name loops, points forward, or is too long: SERVFAIL, and the next question is answered."""
    wire = guest(spec=OPEN)
    for name, owner, rcode in (("www.example.org", tail, "SERVFAIL"), ("ftp.example.org", b"\xc0\x0c", "NOERROR")):
        wire.send(udp(GATEWAY, 53, dns.message.make_query(name, "A").to_wire()))
        asked = wire.asked_one(ResolveUpstream)
        head = asked.message[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + asked.message[12:33]
        wire.stack.dns_resolved(asked.query, head + owner + b"\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4", wire.now)
        reply = dns.message.from_wire(payload_of(wire.hear_one()[UDP]))
        assert dns.rcode.to_text(reply.rcode()) == rcode
        assert bool(reply.answer) == (rcode == "NOERROR")
        assert wire.told(DnsEvent)[-1].rcode == rcode


@pytest.mark.parametrize("what", ["name", "type"])
def test_k7_an_answer_to_another_question_is_no_answer(guest: Guest, what: str) -> None:
    """The resolver lets none in, by id, port and question (test_resolver.py); the engine would not believe them."""
    wire = guest(spec=OPEN)
    wire.send(udp(GATEWAY, 53, dns.message.make_query("www.example.org", "A").to_wire()))
    asked = wire.asked_one(ResolveUpstream)
    forged = bytearray(asked.message[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + asked.message[12:33])
    forged += b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4"
    forged[{"name": 13, "type": 30}[what]] ^= 1
    wire.stack.dns_resolved(asked.query, bytes(forged), wire.now)
    reply = dns.message.from_wire(payload_of(wire.hear_one()[UDP]))
    assert (reply.rcode(), reply.answer) == (dns.rcode.SERVFAIL, [])


# -- K8: TCP's numbers at their limits -------------------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [0, 1, 20, 67, 68, 65_535])
def test_k8_a_path_mtu_from_the_guest_changes_nothing(guest: Guest, mtu: int) -> None:
    """ "Fragmentation needed" with an MTU below what headers take: segments to the guest stay as large as they were."""
    wire = guest(spec=OPEN)
    connection = wire.open_tcp(SERVER, 80)
    quoted = bytes(IP(src=SERVER, dst=GUEST) / TCP(sport=80, dport=connection.source_port, seq=connection.heard))
    wire.send(IP(src=GUEST, dst=SERVER) / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(quoted))
    assert wire.dropped == {"icmp-error-from-guest": 1}
    assert wire.hears_nothing()
    assert wire.asks_nothing()
    wire.stack.stream_received(connection.flow, bytes(2920))
    assert [len(payload_of(segment)) for segment in connection.hear()] == [1460, 1460]


@pytest.mark.parametrize("mtu", [0, 67, 65_536])
def test_k8_a_link_mtu_that_cannot_be(mtu: int) -> None:
    with pytest.raises(ValueError, match=f"an MTU of {mtu} is outside"):
        Stack(network(mtu=mtu), initial_sequence=lambda _key, _now: 1)


def test_k8_a_window_of_zero_for_ever(guest: Guest) -> None:
    """A guest that answers each probe keeps its connection, and a bounded buffer; the host is not read meanwhile."""
    wire = guest(spec=OPEN)
    connection = wire.open_tcp(SERVER, 80, window=0)
    taken = 0
    for _ in range(200):
        room = wire.stack.stream_room(connection.flow)
        wire.stack.stream_received(connection.flow, bytes(min(room, 1 << 16)))
        taken += room
        wire.wait(30)
        heard = [frame for frame in wire.hear() if frame.haslayer(TCP)]  # it is asked by ARP too whether it is there
        assert len(heard) <= 30, "it is not asked more often than its patience grows"
        if heard:
            connection.ack()
    assert taken <= 256 * 1024
    assert wire.stack.stream_room(connection.flow) == 0
    assert wire.asks_nothing()
    assert wire.told(FlowClosed) == []
    connection.window = 65_535
    connection.ack()
    heard_bytes = len(connection.hear_bytes())
    assert heard_bytes > 0


def test_k8_a_window_that_shrinks(guest: Guest) -> None:
    """What was offered before is taken back: nothing is sent beyond what is offered now, and nothing is lost."""
    wire = guest(spec=OPEN)
    connection = wire.open_tcp(SERVER, 80, window=20_000)
    said = bytes(range(250)) * 200
    given = 0
    got = b""
    for window in (20_000, 5_000, 1, 0, 3_000, 65_535, 65_535, 65_535, 65_535, 65_535):
        connection.window = window
        if given < len(said):
            room = wire.stack.stream_room(connection.flow)
            wire.stack.stream_received(connection.flow, said[given : given + room])
            given += min(room, len(said) - given)
        connection.ack()
        wire.wait(0.001)
        got += in_order(connection)
        wire.wait(20)
        got += in_order(connection)
    assert got == said


def in_order(connection: GuestTcp) -> bytes:
    """The bytes that came and lie within the window, acknowledged."""
    got = b""
    for segment in (frame[TCP] for frame in connection.wire.hear() if frame.haslayer(TCP)):
        assert "R" not in segment.flags
        if segment.seq == connection.heard:
            data = payload_of(segment)[: connection.window]
            got += data
            connection.heard += len(data)
    connection.ack()
    return got


# -- K9: blind attacks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["R", "S", "PA", "FA", "RA"])
@pytest.mark.parametrize("distance", [-70_000, 100, 70_000, 2**31])
def test_k9_a_guess_ends_nothing(guest: Guest, flags: str, distance: int) -> None:
    """Another guest, or a program beside, that guesses: at most a challenge, and not one for each guess (RFC 5961).

    What looks like text said again is acknowledged again, as it has to be (RFC 9293 section 3.10.7.4).
    """
    wire = guest(spec=OPEN)
    connection = wire.open_tcp(SERVER, 80)
    for _ in range(50):
        guess = (connection.sent + distance) % 2**32
        acknowledged = (connection.heard + 2**30) % 2**32 if "A" in flags else 0
        connection.put(flags, b"evil" if "P" in flags else b"", seq=guess, ack=acknowledged)
    challenges = [segment for segment in connection.hear() if segment.ack == connection.sent]
    said_again = flags in ("PA", "FA") and distance in (-70_000, 2**31)
    assert len(challenges) <= (50 if said_again else 1)
    assert all(str(segment.flags) == "A" for segment in challenges)
    assert wire.asks_nothing()
    assert wire.told(FlowClosed) == []
    connection.say(b"mine")
    assert sent_bytes(wire.asked()) == b"mine"


def test_k9_initial_sequence_numbers_cannot_be_computed() -> None:
    """RFC 6528: neighbours in ports and time tell nothing of each other, and another run has other numbers."""
    one, other = keyed_sequence_numbers(), keyed_sequence_numbers()
    keys = [ip(GUEST) + ip(SERVER) + struct.pack("!HH", port, 80) for port in range(40_000, 41_000)]
    numbers = [one(key, 5.0) for key in keys]
    steps = {(after - before) % 2**32 for before, after in pairwise(numbers)}
    assert min(len(set(numbers)), len(steps)) > 990
    assert sum(one(key, 5.0) == other(key, 5.0) for key in keys) < 3
    assert (one(keys[0], 6.0) - numbers[0]) % 2**32 == 250_000, "the same flow again: later numbers, never earlier ones"
