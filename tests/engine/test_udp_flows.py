"""UDP through NAT in virtual time: mappings, who may answer under which name, for how long, what failures look like."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from netstack.engine import effects
from netstack.engine.effects import CloseDatagrams, OpenDatagrams, SendDatagram
from netstack.engine.events import FlowClosed, FlowOpened
from netstack.engine.verdict import ALLOW, Verdict

from .wire_guest import (
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    HOST_ALIAS,
    LOOPBACK,
    OTHER_MAC,
    OTHER_SERVER,
    SERVER,
    VirtualWire,
    ip,
    network,
    payload_of,
    udp,
)

DF = {"flags": "DF"}


@pytest.fixture(autouse=True, params=[True, False], ids=["verified", "trusted"])
def checksums(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where checksums are not verified, datagrams of a known flow take a short way: nobody may see the difference."""
    monkeypatch.setitem(network.__kwdefaults__ or {}, "verify", request.param)


def mapped(
    wire: VirtualWire, destination: str = SERVER, port: int = 7, data: bytes = b"hello", **fields: object
) -> int:
    """Send a datagram from a port that has no mapping yet; the number of its mapping."""
    wire.send(udp(destination, port, data, **fields))
    opened, sent = wire.asked()
    assert isinstance(opened, OpenDatagrams)
    assert isinstance(sent, SendDatagram)
    return opened.flow


def answer(wire: VirtualWire, mapping: int, source: str, port: int, data: bytes) -> None:
    wire.stack.datagram_received(mapping, ip(source), port, data, wire.now)


def heard(wire: VirtualWire) -> tuple[str, int, str, int, bytes]:
    """The one datagram that came: from whom, to whom, what."""
    packet = wire.hear_one()[IP]
    return packet.src, packet.sport, packet.dst, packet.dport, payload_of(packet[UDP])


# -- mappings --------------------------------------------------------------------------------------------------------


def test_there_and_back() -> None:
    wire = VirtualWire()
    mapping = mapped(wire)
    answer(wire, mapping, SERVER, 7, b"HELLO")
    assert heard(wire) == (SERVER, 7, GUEST, 5000, b"HELLO")


def test_a_guests_port_has_one_socket_for_all_destinations() -> None:
    """RFC 4787 section 4.1, REQ-1: endpoint-independent mapping."""
    wire = VirtualWire()
    mapping = mapped(wire)
    wire.send(udp(SERVER, 8), udp(OTHER_SERVER, 7), udp(HOST_ALIAS, 9))
    assert wire.asked() == [
        SendDatagram(mapping, ip(SERVER), 8, b"", 63),
        SendDatagram(mapping, ip(OTHER_SERVER), 7, b"", 63),
        SendDatagram(mapping, ip(LOOPBACK), 9, b"", 63),
    ]


def test_another_port_and_another_guest_have_sockets_of_their_own() -> None:
    wire = VirtualWire()
    first = mapped(wire)
    second = mapped(wire, source_port=5001)
    wire.send(udp(SERVER, 7, src="192.168.127.3"), source=OTHER_MAC)
    third = wire.asked()[0].flow
    assert len({first, second, third}) == 3
    answer(wire, third, SERVER, 7, b"x")
    frame = wire.hear_one()
    assert (frame.dst, frame[IP].dst) == (OTHER_MAC, "192.168.127.3")


def test_answers_come_from_any_port_of_an_address_the_guest_has_sent_to() -> None:
    """RFC 4787 section 5: address-dependent filtering."""
    wire = VirtualWire()
    mapping = mapped(wire)
    answer(wire, mapping, SERVER, 9999, b"from elsewhere")
    assert heard(wire) == (SERVER, 9999, GUEST, 5000, b"from elsewhere")
    answer(wire, mapping, OTHER_SERVER, 7, b"from a stranger")
    assert wire.hears_nothing()
    assert wire.dropped == {"udp-from-stranger": 1}


def test_an_answer_has_the_name_the_guest_used() -> None:
    wire = VirtualWire()
    mapping = mapped(wire, HOST_ALIAS)
    answer(wire, mapping, LOOPBACK, 7, b"x")
    assert heard(wire)[:2] == (HOST_ALIAS, 7)
    answer(wire, mapping, LOOPBACK, 8, b"x")
    assert heard(wire)[:2] == (HOST_ALIAS, 8)


def test_two_names_for_one_address() -> None:
    """NAT leads both to the same place: an answer has the name used last; the end of one flow is not the other's."""
    first, second = "192.168.127.254", "192.168.127.253"
    settings = network(nat={ip(first): ip(LOOPBACK), ip(second): ip(LOOPBACK)})
    wire = VirtualWire(settings)
    mapping = mapped(wire, first)
    answer(wire, mapping, LOOPBACK, 7, b"x")
    assert heard(wire)[0] == first
    wire.send(udp(second, 7))
    answer(wire, mapping, LOOPBACK, 7, b"x")
    assert heard(wire)[0] == second
    wire.send(udp(first, 7))
    answer(wire, mapping, LOOPBACK, 7, b"x")
    assert heard(wire)[0] == first
    wire.wait(400)
    assert wire.asked()[-1] == CloseDatagrams(mapping)
    assert [event.destination[0] for event in wire.told(FlowClosed)] == [ip(first), ip(second)]
    assert wire.rests()


def test_an_answer_to_a_flow_that_has_ended_beside_one_that_lives() -> None:
    wire = VirtualWire(udp_unreplied_timeout=10, udp_replied_timeout=20)
    mapping = mapped(wire)
    wire.wait(5)
    wire.send(udp(OTHER_SERVER, 7))
    wire.wait(6)
    assert wire.asked() == [SendDatagram(mapping, ip(OTHER_SERVER), 7, b"", 63)], "the socket is needed still"
    answer(wire, mapping, SERVER, 7, b"too late")
    assert wire.hears_nothing()
    answer(wire, mapping, OTHER_SERVER, 7, b"in time")
    assert heard(wire)[0] == OTHER_SERVER


# -- payloads --------------------------------------------------------------------------------------------------------


def test_empty_datagrams_both_ways() -> None:
    """gvproxy defect 4: there they are lost, and an empty answer ends the flow."""
    wire = VirtualWire()
    mapping = mapped(wire, data=b"")
    answer(wire, mapping, SERVER, 7, b"")
    assert heard(wire) == (SERVER, 7, GUEST, 5000, b"")
    answer(wire, mapping, SERVER, 7, b"and on")
    assert heard(wire)[4] == b"and on"


@pytest.mark.parametrize("mtu", [68, 576, 1500, 9000, 65_535])
def test_the_largest_datagram_both_ways(mtu: int) -> None:
    wire = VirtualWire(mtu=mtu)
    data = bytes(number * 7 & 0xFF for number in range(65_507))
    packets: list[Packet] = list(fragment(udp(SERVER, 7, data), fragsize=(mtu - 20) // 8 * 8))
    wire.send(*packets)
    opened, sent = wire.asked()
    assert sent.payload == data
    answer(wire, opened.flow, SERVER, 7, data[::-1])
    packet = wire.reassembled()
    assert (packet.src, packet.dst, packet.sport, packet.dport) == (SERVER, GUEST, 7, 5000)
    assert payload_of(packet[UDP]) == data[::-1]


def test_datagrams_in_fragments_have_identifications_of_their_own() -> None:
    """RFC 6864 section 4.3."""
    wire = VirtualWire()
    mapping = mapped(wire)
    identifications = set()
    for _ in range(3):
        answer(wire, mapping, SERVER, 7, bytes(2000))
        frames = wire.hear()
        assert len({frame[IP].id for frame in frames}) == 1
        identifications.add(frames[0][IP].id)
    assert len(identifications) == 3


@pytest.mark.parametrize(("source", "destination"), [(0, 7), (5000, 0)])
def test_port_zero_is_nobodys(source: int, destination: int) -> None:
    wire = VirtualWire()
    wire.send(udp(SERVER, destination, b"x", source_port=source))
    assert wire.asks_nothing()
    assert wire.dropped == {"udp-port-zero": 1}


# -- life and end ----------------------------------------------------------------------------------------------------


def test_unreplied_flows_live_for_30_seconds() -> None:
    wire = VirtualWire()
    mapping = mapped(wire)
    wire.wait(29)
    assert wire.asks_nothing()
    wire.send(udp(SERVER, 7))  # what the guest sends counts
    assert wire.asked_one(SendDatagram)
    wire.wait(29.9)
    assert wire.asks_nothing()
    wire.wait(0.2)
    assert wire.asked_one(CloseDatagrams) == CloseDatagrams(mapping)
    assert wire.rests()


def test_replied_flows_live_for_180_seconds() -> None:
    wire = VirtualWire()
    mapping = mapped(wire)
    wire.wait(20)
    answer(wire, mapping, SERVER, 7, b"x")
    wire.wait(170)
    answer(wire, mapping, SERVER, 7, b"x")  # what comes counts as well
    wire.wait(179.9)
    assert wire.asks_nothing()
    wire.wait(0.2)
    assert wire.asked_one(CloseDatagrams) == CloseDatagrams(mapping)


def test_a_reply_from_another_port_is_none() -> None:
    wire = VirtualWire()
    mapping = mapped(wire)
    answer(wire, mapping, SERVER, 8, b"x")
    wire.wait(30.1)
    assert wire.asked_one(CloseDatagrams) == CloseDatagrams(mapping)


def test_timeouts_are_settings() -> None:
    wire = VirtualWire(udp_unreplied_timeout=2, udp_replied_timeout=4)
    first = mapped(wire)
    second = mapped(wire, source_port=5001)
    answer(wire, second, SERVER, 7, b"x")
    wire.wait(2.1)
    assert wire.asked_one(CloseDatagrams).flow == first
    wire.wait(2)
    assert wire.asked_one(CloseDatagrams).flow == second


def test_a_mapping_that_has_ended_begins_anew() -> None:
    wire = VirtualWire()
    first = mapped(wire)
    wire.wait(31)
    wire.asked()
    second = mapped(wire)
    assert second != first
    answer(wire, first, SERVER, 7, b"to nobody")
    assert wire.hears_nothing()


def test_flows_are_told_once_each_with_their_bytes() -> None:
    wire = VirtualWire()
    mapping = mapped(wire, HOST_ALIAS, data=b"12345")
    wire.send(udp(HOST_ALIAS, 7, b"678"), udp(SERVER, 9, b"x"))
    answer(wire, mapping, LOOPBACK, 7, b"abcdefg")
    wire.wait(200)
    opened = wire.told(FlowOpened)
    closed = wire.told(FlowClosed)
    guest = (ip(GUEST), 5000)
    ends = [(guest, (ip(HOST_ALIAS), 7), (ip(LOOPBACK), 7)), (guest, (ip(SERVER), 9), (ip(SERVER), 9))]
    verdict = Verdict(ALLOW, "datagram", "no-list")
    assert [event[1:] for event in opened] == [("udp", *each, verdict, "", "out") for each in ends]
    assert [event[1:] for event in closed] == [
        ("udp", *ends[1], "idle", 1, 0, 30.0, verdict, "out"),
        ("udp", *ends[0], "idle", 8, 7, 180.0, verdict, "out"),
    ]
    assert {event.flow for event in opened} == {event.flow for event in closed}


def test_the_guest_that_left() -> None:
    wire = VirtualWire()
    mapping = mapped(wire)
    wire.send(udp(SERVER, 7, src="192.168.127.3"), source=OTHER_MAC)
    other = wire.asked()[0].flow
    wire.stack.guest_left(bytes.fromhex(GUEST_MAC.replace(":", "")), wire.now)
    assert wire.asked_one(CloseDatagrams).flow == mapping
    assert [event.reason for event in wire.told(FlowClosed)] == ["guest left"]
    answer(wire, other, SERVER, 7, b"x")
    assert wire.hear_one()[IP].dst == "192.168.127.3"


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_at_the_bound_the_oldest_unreplied_flow_makes_room() -> None:
    wire = VirtualWire(max_udp_flows=3)
    mappings = [mapped(wire, source_port=5000 + number) for number in range(3)]
    answer(wire, mappings[0], SERVER, 7, b"x")
    wire.hear()
    wire.send(udp(SERVER, 7, source_port=6000))
    asked = wire.asked()
    assert [type(effect) for effect in asked] == [CloseDatagrams, OpenDatagrams, SendDatagram]
    assert asked[0].flow == mappings[1], "the first was answered"
    assert wire.dropped == {"udp-table-full": 1}
    answer(wire, mappings[0], SERVER, 7, b"goes on")
    assert heard(wire)[4] == b"goes on"


def test_at_the_bound_the_oldest_of_all_when_all_are_in_use() -> None:
    wire = VirtualWire(max_udp_flows=2)
    mappings = [mapped(wire, source_port=5000 + number) for number in range(2)]
    for mapping in mappings:
        answer(wire, mapping, SERVER, 7, b"x")
    wire.hear()
    wire.send(udp(SERVER, 7, source_port=6000))
    assert wire.asked()[0] == CloseDatagrams(mappings[0])


def test_a_port_that_talks_to_everybody_makes_room_for_itself() -> None:
    """The only mapping there is, at the bound: its oldest flow goes, its socket stays."""
    wire = VirtualWire(max_udp_flows=2)
    mapping = mapped(wire)
    for last in range(1, 10):
        wire.send(udp(f"203.0.113.{last}", 7))
        assert isinstance(wire.asked_one(SendDatagram), SendDatagram)
    answer(wire, mapping, "203.0.113.9", 7, b"x")
    assert heard(wire)[0] == "203.0.113.9"
    answer(wire, mapping, "203.0.113.1", 7, b"x")
    assert wire.hears_nothing()
    assert len(wire.told(FlowOpened)) == len(wire.told(FlowClosed)) + 2


def test_with_room_for_one() -> None:
    wire = VirtualWire(max_udp_flows=1)
    first = mapped(wire)
    wire.send(udp(SERVER, 8))
    closed, opened, sent = wire.asked()
    assert closed == CloseDatagrams(first)
    assert opened.flow == sent.flow != first


# -- failures --------------------------------------------------------------------------------------------------------

WORDS = {
    "refused": (effects.REFUSED, (3, 3), SERVER),
    "network": (effects.NETWORK_UNREACHABLE, (3, 0), GATEWAY),
    "host": (effects.HOST_UNREACHABLE, (3, 1), GATEWAY),
    "prohibited": (effects.PROHIBITED, (3, 13), GATEWAY),
    "timed out": (effects.TIMED_OUT, (3, 1), GATEWAY),
    "ttl": (effects.TTL_EXCEEDED, (11, 0), GATEWAY),
}


@pytest.mark.parametrize(("failure", "message", "source"), WORDS.values(), ids=WORDS)
def test_each_failure_is_the_icmp_error_it_stands_for(failure: int, message: tuple[int, int], source: str) -> None:
    """gvproxy defect 4: there a refused datagram is met with silence."""
    wire = VirtualWire()
    packet = udp(SERVER, 7, b"hello")
    mapping = mapped(wire)
    wire.stack.datagram_failed(mapping, ip(SERVER), 7, failure, wire.now)
    quoted = wire.quoted(wire.hear_one(), *message, source=source)
    assert bytes(quoted) == bytes(packet)


def test_no_resources_is_a_lost_datagram() -> None:
    wire = VirtualWire()
    wire.stack.datagram_failed(mapped(wire), ip(SERVER), 7, effects.NO_RESOURCES, wire.now)
    assert wire.hears_nothing()


def test_a_refusal_by_the_host_has_the_name_the_guest_used() -> None:
    wire = VirtualWire()
    mapping = mapped(wire, HOST_ALIAS)
    wire.stack.datagram_failed(mapping, ip(LOOPBACK), 7, effects.REFUSED, wire.now, offender=ip(LOOPBACK))
    quoted = wire.quoted(wire.hear_one(), 3, 3, source=HOST_ALIAS)
    assert (quoted.src, quoted.dst, quoted.dport) == (GUEST, HOST_ALIAS, 7)


def test_only_the_destination_that_failed_is_told() -> None:
    wire = VirtualWire()
    mapping = mapped(wire)
    wire.send(udp(OTHER_SERVER, 9, b"to the other"))
    wire.stack.datagram_failed(mapping, ip(OTHER_SERVER), 9, effects.REFUSED, wire.now)
    assert payload_of(wire.quoted(wire.hear_one(), 3, 3, source=OTHER_SERVER)[UDP]) == b"to the other"
    for address, port in ((SERVER, 8), ("9.9.9.9", 7)):
        wire.stack.datagram_failed(mapping, ip(address), port, effects.REFUSED, wire.now)
    assert wire.hears_nothing()


def test_a_router_on_the_way_speaks_for_itself() -> None:
    """Traceroute: each hop under its own address."""
    wire = VirtualWire()
    mapping = mapped(wire, ttl=3)
    wire.stack.datagram_failed(mapping, ip(SERVER), 7, effects.TTL_EXCEEDED, wire.now, offender=ip("198.51.100.1"))
    wire.quoted(wire.hear_one(), 11, 0, source="198.51.100.1")


def test_the_destination_that_speaks_for_itself_has_the_guests_name_for_it() -> None:
    wire = VirtualWire(nat={ip(HOST_ALIAS): ip("10.0.0.7")})
    mapping = mapped(wire, HOST_ALIAS)
    wire.stack.datagram_failed(mapping, ip("10.0.0.7"), 7, effects.PROHIBITED, wire.now, offender=ip("10.0.0.7"))
    wire.quoted(wire.hear_one(), 3, 13, source=HOST_ALIAS)


@pytest.mark.parametrize(
    "offender", ["127.0.0.1", "0.0.0.0", "192.168.127.9", "192.168.127.1", "224.0.0.1", "255.255.255.255"]
)
def test_offenders_that_mean_something_else_to_the_guest_are_the_gateway(offender: str) -> None:
    """The host's own network may have the numbers of the guest's."""
    wire = VirtualWire()
    mapping = mapped(wire)
    wire.stack.datagram_failed(mapping, ip(SERVER), 7, effects.HOST_UNREACHABLE, wire.now, offender=ip(offender))
    wire.quoted(wire.hear_one(), 3, 1, source=GATEWAY)


@pytest.mark.parametrize("size", [0, 8, 520, 548, 549, 1400, 1472])
@pytest.mark.parametrize("mtu", [576, 1500])
def test_errors_about_datagrams_of_any_size(size: int, mtu: int) -> None:
    """RFC 1812 section 4.3.2.3: as much of the packet as fits 576 bytes, with the length it had."""
    wire = VirtualWire(mtu=mtu)
    packet = udp(SERVER, 7, bytes(number & 0xFF for number in range(size)))
    wire.send(packet)
    wire.stack.datagram_failed(wire.asked()[0].flow, ip(SERVER), 7, effects.REFUSED, wire.now)
    frame = wire.hear_one()
    assert len(frame) - 14 == min(576, 56 + size)
    quote = bytes(frame[ICMP].payload)
    assert bytes(packet).startswith(quote)
    assert wire.quoted(frame, 3, 3, source=SERVER).len == 28 + size


def test_an_error_about_a_reassembled_datagram() -> None:
    wire = VirtualWire()
    data = bytes(number * 3 & 0xFF for number in range(9000))
    wire.send(*fragment(udp(SERVER, 7, data), fragsize=1480))
    wire.stack.datagram_failed(wire.asked()[0].flow, ip(SERVER), 7, effects.REFUSED, wire.now)
    quoted = wire.quoted(wire.hear_one(), 3, 3, source=SERVER)
    assert (quoted.len, quoted.frag, quoted.sport, quoted.dport) == (9028, 0, 5000, 7)
    assert data.startswith(payload_of(quoted[UDP]))


def test_too_big_names_the_mtu() -> None:
    """RFC 1191 section 4."""
    wire = VirtualWire()
    mapping = mapped(wire, data=bytes(1400), flags="DF")
    wire.stack.datagram_failed(mapping, ip(SERVER), 7, effects.TOO_BIG, wire.now, offender=ip("198.51.100.1"), mtu=1280)
    frame = wire.hear_one()
    assert wire.quoted(frame, 3, 4, source="198.51.100.1").len == 1428
    assert frame[ICMP].nexthopmtu == 1280


def test_too_big_is_of_no_concern_to_a_guest_that_allows_fragments() -> None:
    """RFC 792: code 4 is for DF; the host fragments the next one itself."""
    wire = VirtualWire()
    mapping = mapped(wire, data=bytes(1400))
    wire.stack.datagram_failed(mapping, ip(SERVER), 7, effects.TOO_BIG, wire.now, mtu=1280)
    assert wire.hears_nothing()


def test_an_mtu_beyond_all_bounds_and_one_that_means_nothing() -> None:
    wire = VirtualWire()
    mapping = mapped(wire, flags="DF")
    wire.stack.datagram_failed(mapping, ip(SERVER), 7, effects.TOO_BIG, wire.now, mtu=1 << 20)
    assert wire.hear_one()[ICMP].nexthopmtu == 65_535
    wire.stack.datagram_failed(mapping, ip(SERVER), 7, effects.REFUSED, wire.now, mtu=1280)
    frame = wire.hear_one()
    assert bytes(frame[ICMP])[4:8] == bytes(4), "unused is zero (RFC 792)"


def test_errors_of_mappings_that_are_gone() -> None:
    wire = VirtualWire()
    mapping = mapped(wire)
    wire.wait(31)
    wire.stack.datagram_failed(mapping, ip(SERVER), 7, effects.REFUSED, wire.now)
    wire.stack.datagram_failed(999, ip(SERVER), 7, effects.REFUSED, wire.now)
    assert wire.hears_nothing()


# -- the short way -----------------------------------------------------------------------------------------------------


def test_a_known_flow_is_its_guests_alone() -> None:
    wire = VirtualWire()
    mapped(wire)
    wire.send(udp(SERVER, 7, b"spoofed"), source=OTHER_MAC)
    assert wire.asks_nothing()
    assert wire.dropped == {"ip-source-of-another": 1}


@pytest.mark.parametrize(("length", "reason"), [(7, "udp-length"), (0, "udp-length"), (14, "udp-length")])
def test_lengths_are_looked_at_again_in_a_known_flow(length: int, reason: str) -> None:
    wire = VirtualWire(network(verify=False))
    mapped(wire)
    wire.send(IP(src=GUEST, dst=SERVER) / UDP(sport=5000, dport=7, len=length) / b"hello")
    assert wire.asks_nothing()
    assert wire.dropped == {reason: 1}


@pytest.mark.parametrize("total", [0, 19, 20, 27, 34])
def test_total_lengths_are_looked_at_again_in_a_known_flow(total: int) -> None:
    wire = VirtualWire(network(verify=False))
    mapped(wire)
    wire.send(IP(src=GUEST, dst=SERVER, len=total) / UDP(sport=5000, dport=7, len=max(0, total - 20)) / b"hello")
    assert wire.asks_nothing()
    assert sum(wire.dropped.values()) == 1


def test_what_is_behind_the_datagram_is_left_out() -> None:
    wire = VirtualWire(network(verify=False))
    mapping = mapped(wire)
    wire.send(IP(src=GUEST, dst=SERVER) / UDP(sport=5000, dport=7, len=10) / b"hello")
    wire.send(bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / udp(SERVER, 7, b"hi")) + bytes(10))
    assert wire.asked() == [
        SendDatagram(mapping, ip(SERVER), 7, b"he", 63),
        SendDatagram(mapping, ip(SERVER), 7, b"hi", 63),
    ]
