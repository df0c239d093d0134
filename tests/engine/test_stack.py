"""The whole engine: what becomes of each kind of frame and packet before any flow sees it.

Each test names where a packet goes and holds all that follows from it: what is asked of the host, what the guest hears,
which drop is counted, which refusal is told.
"""

from __future__ import annotations

import math

import pytest
from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_SSRR,
    IPOption_Timestamp,
    fragment,
)
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from netstack.engine.effects import OpenDatagrams, OpenEcho, OpenStream, SendDatagram, SendEcho
from netstack.engine.events import FrameDropped

from .wire_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    HOST_ALIAS,
    LOOPBACK,
    OTHER_MAC,
    SERVER,
    UNUSED,
    VirtualWire,
    ip,
    payload_of,
    ping,
    udp,
)

HOST_UNREACHABLE, PORT_UNREACHABLE, PROTOCOL_UNREACHABLE, PROHIBITED = (3, 1), (3, 3), (3, 2), (3, 13)
TTL_EXCEEDED, REASSEMBLY_EXPIRED = (11, 0), (11, 1)


def syn(destination: str, port: int = 80, **fields: object) -> Packet:
    return IP(**({"src": GUEST, "dst": destination} | fields)) / TCP(sport=40_000, dport=port, flags="S", seq=1)


def probes(destination: str, **fields: object) -> list[Packet]:
    """One packet of each protocol that can become a flow."""
    return [syn(destination, **fields), udp(destination, 9, b"x", **fields), ping(destination, **fields)]


def refusals(
    destination: str, reason: str, told: tuple[str, ...], ports: tuple[int, ...] = (80, 9, 0)
) -> list[tuple[str, tuple[bytes, int], str, str, str]]:
    """What `VirtualWire.refused` says when the first of the `probes` were refused, and the guest `told` so."""
    kinds = (("tcp", "syn"), ("udp", "datagram"), ("icmp", "echo"))
    return [
        (protocol, (ip(destination), port), step, reason, word)
        for (protocol, step), port, word in zip(kinds, ports, told, strict=False)
    ]


def is_reset(frame: Ether) -> bool:
    return frame.haslayer(TCP) and str(frame[TCP].flags) == "RA" and frame[TCP].ack == 2


# -- addresses -------------------------------------------------------------------------------------------------------


def test_an_address_of_the_internet_is_dialled_as_it_is() -> None:
    wire = VirtualWire()
    wire.send(*probes(SERVER))
    assert wire.asked() == [
        OpenStream(1, ip(SERVER), 80),
        OpenDatagrams(3),
        SendDatagram(3, ip(SERVER), 9, b"x", 63),
        OpenEcho(4),
        SendEcho(4, ip(SERVER), 1, b"abc", 63),
    ]
    assert wire.hears_nothing()


def test_the_host_alias_is_dialled_at_the_hosts_loopback() -> None:
    wire = VirtualWire()
    wire.send(*probes(HOST_ALIAS))
    dialled = [effect for effect in wire.asked() if not isinstance(effect, OpenDatagrams | OpenEcho)]
    assert [effect.address for effect in dialled] == [ip(LOOPBACK)] * 3
    assert wire.hears_nothing()


def test_an_unused_address_of_the_subnet_is_never_dialled() -> None:
    """gvproxy defect 13. The host's own network may have the same numbers."""
    wire = VirtualWire()
    packets = probes(UNUSED)
    wire.send(*packets)
    assert wire.asks_nothing()
    for frame, packet in zip(wire.hear(), packets, strict=True):
        quoted = wire.quoted(frame, *HOST_UNREACHABLE)
        assert (quoted.dst, bytes(quoted.payload)) == (UNUSED, bytes(packet.payload))
    assert wire.refused() == refusals(UNUSED, "unused-address", ("unreachable",) * 3)
    assert wire.dropped == {}


def test_a_stray_segment_to_an_unused_address_is_not_answered_in_its_name() -> None:
    wire = VirtualWire()
    wire.send(IP(src=GUEST, dst=UNUSED) / TCP(sport=1, dport=2, flags="A", seq=5, ack=6))
    assert wire.hears_nothing()
    assert wire.dropped == {"tcp-no-connection": 1}


@pytest.mark.parametrize("own", [GATEWAY, "192.168.127.9"])
def test_a8_an_unserved_port_of_the_gateway_is_refused_by_the_address_that_was_addressed(own: str) -> None:
    """gvproxy defect 13; conformance A8. A virtual IP without NAT is the gateway's own."""
    wire = VirtualWire(virtual_ips=frozenset({ip("192.168.127.9")}), nat={})
    datagram = udp(own, 9, b"x")
    wire.send(syn(own), datagram)
    assert wire.asks_nothing()
    unreachable, reset = sorted(wire.hear(), key=is_reset)
    assert is_reset(reset)
    assert (reset[IP].src, reset[TCP].sport, reset[TCP].dport) == (own, 80, 40_000)
    assert bytes(wire.quoted(unreachable, *PORT_UNREACHABLE, source=own).payload) == bytes(datagram.payload)
    assert wire.refused() == refusals(own, "unserved-port", ("reset", "unreachable"))
    assert wire.dropped == {}


def test_a_virtual_ip_serves_no_dns() -> None:
    """The gateway's name server is at the gateway's address only."""
    wire = VirtualWire(virtual_ips=frozenset({ip("192.168.127.9")}), nat={})
    wire.send(syn("192.168.127.9", 53), udp("192.168.127.9", 53, bytes(12)))
    assert {frame.haslayer(TCP) for frame in wire.hear()} == {0, 1}
    assert wire.refused() == refusals("192.168.127.9", "unserved-port", ("reset", "unreachable"), ports=(53, 53))
    assert wire.dropped == {}


FORBIDDEN = {
    "169.254.169.254": "metadata",
    "169.254.0.1": "link-local",
    "127.0.0.1": "loopback",
    "127.1.2.3": "loopback",
    "0.0.0.1": "this network",
    "240.0.0.1": "class E",
    "255.255.255.254": "class E",
}


@pytest.mark.parametrize("address", FORBIDDEN, ids=[f"{text}-{name}" for text, name in FORBIDDEN.items()])
def test_a2_a3_a5_forbidden_addresses_are_never_dialled_and_refused_at_once(address: str) -> None:
    """Conformance A2, A3, A5."""
    wire = VirtualWire()
    wire.send(*probes(address))
    assert wire.asks_nothing()
    frames = wire.hear()
    assert [is_reset(frame) for frame in frames] == [True, False, False]
    for frame in frames[1:]:
        assert wire.quoted(frame, *PROHIBITED).dst == address
    reason = "metadata" if address.startswith("169.254.") else "forbidden-address"
    assert wire.refused() == refusals(address, reason, ("reset", "unreachable", "unreachable"))
    assert wire.dropped == {}


def test_metadata_access_opens_the_metadata_block() -> None:
    """gvproxy defect 7: there the flag is dead."""
    wire = VirtualWire(metadata_access=True)
    wire.send(*probes("169.254.169.254"))
    assert len(wire.asked()) == 5
    assert wire.hears_nothing()


@pytest.mark.parametrize("address", ["224.0.0.251", "239.255.255.250", "255.255.255.255", "192.168.127.255"])
@pytest.mark.parametrize("framed_to", ["group", "gateway"])
def test_e14_groups_and_broadcasts_are_dropped_in_silence(address: str, framed_to: str) -> None:
    """Conformance E14; RFC 1122 section 3.2.2: no error about them, whoever the frame is for."""
    wire = VirtualWire()
    wire.send(*probes(address), destination=BROADCAST_MAC if framed_to == "group" else GATEWAY_MAC)
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.refused() == refusals(address, "group-address", ("nothing",) * 3)
    assert wire.dropped == {}


def test_a_stray_segment_to_a_group_is_not_answered() -> None:
    wire = VirtualWire()
    for flags in ("A", "FA", "SA", "R", ""):
        wire.send(IP(src=GUEST, dst="224.0.0.1") / TCP(sport=1, dport=2, flags=flags))
    assert wire.hears_nothing()


@pytest.mark.parametrize("protocol", [0, 2, 41, 47, 50, 132, 255])
def test_e6_other_protocols_are_refused(protocol: int) -> None:
    """Conformance E6."""
    wire = VirtualWire()
    wire.send(IP(src=GUEST, dst=SERVER, proto=protocol) / Raw(b"abcdefghij"))
    assert wire.asks_nothing()
    assert wire.quoted(wire.hear_one(), *PROTOCOL_UNREACHABLE).proto == protocol
    assert wire.refused() == [(str(protocol), (ip(SERVER), 0), "datagram", "ip-protocol", "unreachable")]
    assert wire.dropped == {}


def test_igmp_to_its_group_is_dropped_in_silence() -> None:
    wire = VirtualWire()
    wire.send(IP(src=GUEST, dst="224.0.0.22", proto=2, ttl=1) / Raw(bytes(8)), destination="01:00:5e:00:00:16")
    assert wire.hears_nothing()
    assert wire.refused() == [("2", (ip("224.0.0.22"), 0), "datagram", "ip-protocol", "nothing")]


def test_a_refusal_says_what_the_guest_was_told() -> None:
    """The rate of ICMP errors is bounded (RFC 1812 section 4.3.2.8); what is not sent is not said to have been."""
    wire = VirtualWire()
    for port in range(1, 241):
        wire.send(udp(UNUSED, port))
    told = [told for *_, told in wire.refused()]
    assert told == ["unreachable"] * 200 + ["nothing"] * 40
    assert len(wire.hear()) == 200


# -- time to live ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_whose_time_is_up_is_not_dialled(ttl: int) -> None:
    """gvproxy defect 5: no traceroute. The first hop is the gateway."""
    wire = VirtualWire()
    packets = probes(SERVER, ttl=ttl)
    wire.send(*packets)
    assert wire.asks_nothing()
    for frame, packet in zip(wire.hear(), packets, strict=True):
        assert bytes(wire.quoted(frame, *TTL_EXCEEDED).payload) == bytes(packet.payload)
    assert wire.dropped == {"ip-ttl-exceeded": 3}


@pytest.mark.parametrize("ttl", [0, 1])
def test_the_gateways_own_addresses_are_no_hop(ttl: int) -> None:
    """RFC 1122 section 3.2.1.7. The host's alias is where the packet ends, not one hop further."""
    wire = VirtualWire()
    wire.send(ping(GATEWAY, ttl=ttl), *probes(HOST_ALIAS, ttl=ttl))
    assert wire.hear_one()[ICMP].type == 0
    kinds = [type(effect) for effect in wire.asked()]
    assert kinds == [OpenStream, OpenDatagrams, SendDatagram, OpenEcho, SendEcho]


@pytest.mark.parametrize(("ttl", "left"), [(2, 1), (30, 29), (64, 63), (255, 254)])
def test_one_hop_is_taken_off(ttl: int, left: int) -> None:
    wire = VirtualWire()
    wire.send(udp(SERVER, 9, ttl=ttl), ping(SERVER, ttl=ttl))
    assert [effect.ttl for effect in wire.asked() if isinstance(effect, SendDatagram | SendEcho)] == [left, left]


@pytest.mark.parametrize("ttl", [0, 1])
def test_what_is_left_is_never_below_zero(ttl: int) -> None:
    wire = VirtualWire()
    wire.send(udp(HOST_ALIAS, 9, ttl=ttl), ping(HOST_ALIAS, ttl=ttl))
    assert [effect.ttl for effect in wire.asked() if isinstance(effect, SendDatagram | SendEcho)] == [0, 0]


def test_a_segment_of_an_open_flow_whose_time_is_up() -> None:
    """The quick way of known flows looks at it as well."""
    for verify in (True, False):
        wire = VirtualWire(verify=verify)
        connection = wire.open_tcp()
        packet = connection.segment("PA", b"late")
        packet.ttl = 1
        wire.send(packet)
        assert wire.asks_nothing()
        assert wire.quoted(wire.hear_one(), *TTL_EXCEEDED).proto == 6


# -- where packets say they come from --------------------------------------------------------------------------------


SOURCES = {
    "10.5.5.5": "ip-source-off-subnet",
    "127.0.0.1": "ip-source-off-subnet",
    "224.0.0.1": "ip-source-off-subnet",
    "255.255.255.255": "ip-source-off-subnet",
    "192.168.127.0": "ip-source-off-subnet",
    "192.168.127.255": "ip-source-off-subnet",
    GATEWAY: "ip-source-is-gateway",
    HOST_ALIAS: "ip-source-is-gateway",
    "0.0.0.0": "ip-source-off-subnet",
}


@pytest.mark.parametrize(("source", "reason"), SOURCES.items())
def test_e9_sources_nobody_can_have(source: str, reason: str) -> None:
    """Conformance E9; gvproxy answers none of these, and dials for them."""
    wire = VirtualWire()
    wire.send(*probes(SERVER, src=source))
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.dropped == {reason: 3}


def test_e9_the_source_of_another_guest() -> None:
    """Conformance E9: the address belongs to the MAC that was there first."""
    wire = VirtualWire()
    wire.send(udp(SERVER, 9))
    wire.asked()
    wire.send(*probes(SERVER), source=OTHER_MAC)
    assert wire.asks_nothing()
    assert wire.dropped == {"ip-source-of-another": 3}


def test_a_leased_address_is_its_holders() -> None:
    wire = VirtualWire()
    assert wire.dhcp() == GUEST
    wire.send(udp(SERVER, 9), source=OTHER_MAC)
    assert wire.asks_nothing()
    assert wire.dropped == {"ip-source-of-another": 1}
    wire.send(udp(SERVER, 9))
    assert len(wire.asked()) == 2


def test_dhcp_takes_three_steps_and_arp_then_finds_the_gateway() -> None:
    wire = VirtualWire()
    assert wire.dhcp() == GUEST
    assert wire.arp(GATEWAY) == GATEWAY_MAC
    assert wire.arp(HOST_ALIAS) == GATEWAY_MAC
    assert wire.arp(UNUSED) is None
    assert wire.dropped == {}


def test_dhcp_only_where_it_belongs() -> None:
    """A server on the Internet is a destination like any other; an address of nobody is none."""
    wire = VirtualWire()
    wire.send(udp(SERVER, 67, bytes(300), source_port=68))
    assert [type(effect) for effect in wire.asked()] == [OpenDatagrams, SendDatagram]
    wire.send(udp(UNUSED, 67, bytes(300), source_port=68))
    assert wire.quoted(wire.hear_one(), *HOST_UNREACHABLE)


# -- frames ----------------------------------------------------------------------------------------------------------

PLAIN = bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / udp(SERVER, 9, b"x"))
FRAMES = {
    "empty": (b"", "frame-truncated"),
    "one byte": (b"x", "frame-truncated"),
    "five bytes, which hang gvproxy": (PLAIN[:5], "frame-truncated"),
    "thirteen bytes, which crash gvproxy": (PLAIN[:13], "frame-truncated"),
    "a header alone": (PLAIN[:14], "ip-truncated"),
    "half an IP header": (PLAIN[:24], "ip-truncated"),
    "IP header alone": (PLAIN[:34], "ip-total-length"),
    "VFKT, which is four bytes": (b"VFKT", "frame-truncated"),
    "a tag": (bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / Dot1Q(vlan=5) / udp(SERVER, 9)), "frame-vlan"),
    "IPv6": (bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / IPv6()), "frame-ipv6"),
    "802.3 with a length": (PLAIN[:12] + b"\x00\x40" + bytes(64), "frame-type"),
    "LLDP": (bytes.fromhex("0180c200000e") + PLAIN[6:12] + b"\x88\xcc" + bytes(46), "frame-type"),
    "for another station": (bytes.fromhex("020000000077") + PLAIN[6:], "frame-for-another"),
    "to no station": (bytes(6) + PLAIN[6:], "frame-for-another"),
    "from a group": (PLAIN[:6] + b"\x01" + PLAIN[7:], "frame-bad-source"),
    "from everybody": (PLAIN[:6] + b"\xff" * 6 + PLAIN[12:], "frame-bad-source"),
    "from nobody": (PLAIN[:6] + bytes(6) + PLAIN[12:], "frame-bad-source"),
    "from ourselves": (PLAIN[:6] + PLAIN[:6] + PLAIN[12:], "frame-bad-source"),
    "IP version 5": (PLAIN[:14] + b"\x55" + PLAIN[15:], "ip-version"),
    "IP header of 16 bytes": (PLAIN[:14] + b"\x44" + PLAIN[15:], "ip-header-length"),
    "IP header longer than the packet": (PLAIN[:14] + b"\x4f" + PLAIN[15:], "ip-header-length"),
    "IP total length of 19": (PLAIN[:16] + b"\x00\x13" + PLAIN[18:], "ip-header-length"),
    "IP total length beyond the frame": (PLAIN[:16] + b"\xff\xff" + PLAIN[18:], "ip-total-length"),
    "ARP cut short": (PLAIN[:12] + b"\x08\x06" + bytes(27), "arp-truncated"),
}


@pytest.mark.parametrize(("frame", "reason"), FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("verify", [True, False], ids=["verified", "trusted"])
def test_e10_k3_k10_what_is_no_frame_for_us(frame: bytes, reason: str, verify: bool) -> None:
    """gvproxy defect 1; conformance E10, K3, K10."""
    wire = VirtualWire(verify=verify)
    wire.send(frame)
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.dropped == {reason: 1}
    assert wire.rests()


def test_padding_behind_a_packet_is_no_part_of_it() -> None:
    """Ethernet's minimum of 60 bytes."""
    wire = VirtualWire()
    wire.send(PLAIN + bytes(17))
    assert [effect.payload for effect in wire.asked() if isinstance(effect, SendDatagram)] == [b"x"]
    connection = wire.open_tcp()
    wire.send(bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / connection.segment("A")) + bytes(6))
    assert wire.asks_nothing()


def test_a_unicast_packet_in_a_broadcast_frame() -> None:
    """RFC 1122 section 3.3.6: dropped, and nothing may be said about it."""
    wire = VirtualWire()
    for address in (SERVER, GATEWAY, HOST_ALIAS, UNUSED, "127.0.0.1"):
        wire.send(*probes(address), destination=BROADCAST_MAC)
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.dropped == {"ip-unicast-in-group-frame": 15}


# -- checksums -------------------------------------------------------------------------------------------------------

DAMAGED = {
    "ip": ([syn(SERVER, chksum=0x1234), udp(SERVER, 9, chksum=0x1234), ping(SERVER, chksum=0x1234)], "ip-checksum"),
    "tcp": ([IP(src=GUEST, dst=SERVER) / TCP(sport=1, dport=2, flags="S", chksum=0x1234)], "tcp-checksum"),
    "udp": ([IP(src=GUEST, dst=SERVER) / UDP(sport=1, dport=2, chksum=0x1234) / b"x"], "udp-checksum"),
    "icmp": ([IP(src=GUEST, dst=SERVER) / ICMP(type=8, chksum=0x1234) / b"x"], "icmp-checksum"),
}


@pytest.mark.parametrize(("packets", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_f9_damaged_packets_are_dropped_where_bytes_can_be_damaged(packets: list[Packet], reason: str) -> None:
    """Conformance F9."""
    wire = VirtualWire(verify=True)
    wire.send(*packets)
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.dropped == {reason: len(packets)}


@pytest.mark.parametrize(("packets", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_checksums_are_not_looked_at_where_they_may_be_partial(packets: list[Packet], reason: str) -> None:
    wire = VirtualWire(verify=False)
    wire.send(*packets)
    assert wire.asked()
    assert wire.dropped == {}


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "trusted"])
def test_a_damaged_segment_of_an_open_flow(verify: bool) -> None:
    wire = VirtualWire(verify=verify)
    connection = wire.open_tcp()
    connection.put("PA", b"x", chksum=0x1234)
    assert bool(wire.asked()) is not verify
    assert wire.dropped == ({"tcp-checksum": 1} if verify else {})


def test_a_datagram_without_checksum_is_as_good_as_any() -> None:
    wire = VirtualWire(verify=True)
    wire.send(IP(src=GUEST, dst=SERVER) / UDP(sport=1, dport=2, chksum=0) / b"x")
    assert wire.asked()


# -- options and fragments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [IPOption_LSRR(routers=["1.2.3.4"]), IPOption_SSRR(routers=["1.2.3.4"])])
@pytest.mark.parametrize("lead", [[], [IPOption_NOP(), IPOption_NOP()], [IPOption_RR(routers=["0.0.0.0"])]])
def test_e8_source_routes_are_dropped(option: Packet, lead: list[Packet]) -> None:
    """Conformance E8; RFC 7126 sections 4.3 and 4.4."""
    wire = VirtualWire()
    wire.send(*probes(SERVER, options=[*lead, option]))
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.dropped == {"ip-source-route": 3}


@pytest.mark.parametrize(
    "option",
    [IPOption_NOP(), IPOption_RR(routers=["0.0.0.0"] * 9), IPOption_Router_Alert(), IPOption_Timestamp(flg=0)],
)
def test_other_options_change_nothing(option: Packet) -> None:
    for verify in (True, False):
        wire = VirtualWire(verify=verify)
        wire.send(*probes(SERVER, options=[option]))
        assert len(wire.asked()) == 5
        wire.send(ping(GATEWAY, options=[option]))
        assert wire.hear_one()[ICMP].type == 0
        assert wire.dropped == {}


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "trusted"])
def test_segments_with_options_in_their_packets_reach_their_flow(verify: bool) -> None:
    wire = VirtualWire(verify=verify)
    connection = wire.open_tcp()
    packet = connection.segment("PA", b"with a record of its route")
    packet.options = [IPOption_RR(routers=["0.0.0.0"] * 3)]
    wire.send(packet)
    assert [bytes(chunk) for effect in wire.asked() for chunk in effect.chunks] == [b"with a record of its route"]


@pytest.mark.parametrize(
    "option", [b"\x83", b"\x83\x00", b"\x83\x01", b"\x07\x00\x83\x03", b"\x07\xff\x83\x03", b"\x00\x83"]
)
def test_malformed_options_end_the_reading(option: bytes) -> None:
    """What comes before a malformed option counts; nothing raises."""
    wire = VirtualWire()
    options = option + bytes(-len(option) % 4)
    header = bytes(IP(src=GUEST, dst=SERVER, proto=17, ihl=5 + len(options) // 4, len=28 + len(options), chksum=0))
    body = bytes(UDP(sport=1, dport=2, chksum=0, len=8))
    wire.send(bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x800)) + header + options + body)
    assert wire.asks_nothing()
    assert wire.dropped == {"ip-checksum": 1}
    trusting = VirtualWire(verify=False)
    trusting.send(bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x800)) + header + options + body)
    assert trusting.dropped == ({"ip-source-route": 1} if option[0] == 0x83 else {})


def in_pieces(packet: Packet, size: int) -> list[Packet]:
    return list(fragment(packet, fragsize=size))


def test_a_datagram_in_fragments_is_sent_as_one() -> None:
    wire = VirtualWire()
    data = bytes(range(256)) * 20
    pieces = in_pieces(udp(SERVER, 9, data), 800)
    assert len(pieces) == 7
    wire.send(*reversed(pieces))
    asked = wire.asked()
    assert [type(effect) for effect in asked] == [OpenDatagrams, SendDatagram]
    assert asked[1].payload == data
    assert wire.rests() is False, "the flow's time-out"


def test_e7_a_syn_in_fragments_is_a_syn() -> None:
    """Conformance E7: judged as a whole, so ports in the second fragment hide nothing."""
    wire = VirtualWire()
    pieces = in_pieces(syn(SERVER), 8)
    assert len(pieces) == 3
    for piece in pieces[:2]:
        wire.send(piece)
        assert wire.asks_nothing()
    wire.send(pieces[2])
    assert wire.asked_one(OpenStream) == OpenStream(1, ip(SERVER), 80)


def test_a_fragmented_syn_to_a_forbidden_address() -> None:
    wire = VirtualWire()
    wire.send(*in_pieces(syn("169.254.169.254"), 8))
    assert wire.asks_nothing()
    assert is_reset(wire.hear_one())


def test_segments_in_fragments_belong_to_their_flow() -> None:
    for verify in (True, False):
        wire = VirtualWire(verify=verify)
        connection = wire.open_tcp()
        wire.send(*in_pieces(connection.segment("PA", b"0123456789" * 10), 40))
        assert [bytes(chunk) for effect in wire.asked() for chunk in effect.chunks] == [b"0123456789" * 10]


def test_a_large_ping_of_the_gateway() -> None:
    """4,000 bytes in, 4,000 bytes out, both in fragments."""
    wire = VirtualWire()
    data = bytes(number % 251 for number in range(4000))
    wire.send(*in_pieces(ping(GATEWAY, data), 1480))
    reply = wire.reassembled()
    assert (reply.src, reply.dst, reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq) == (GATEWAY, GUEST, 0, 77, 1)
    assert payload_of(reply[ICMP]) == data


def test_fragments_that_never_become_whole() -> None:
    """RFC 792: a time exceeded of its own when the first fragment is there; then all is forgotten."""
    wire = VirtualWire()
    first, *_ = in_pieces(udp(SERVER, 9, bytes(2000)), 1000)
    wire.send(first)
    wire.wait(29.9)
    assert wire.hears_nothing()
    wire.wait(0.2)
    assert wire.quoted(wire.hear_one(), *REASSEMBLY_EXPIRED).dst == SERVER
    assert wire.rests()


def test_a_source_route_in_any_fragment() -> None:
    wire = VirtualWire()
    first, second = in_pieces(udp(SERVER, 9, bytes(1000)), 800)
    second.options = [IPOption_LSRR(routers=["1.2.3.4"])]
    wire.send(first, second)
    assert wire.asks_nothing()
    assert wire.dropped == {"ip-source-route": 1}


# -- ICMP to the gateway ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (ICMP(type=0, id=1, seq=2), "icmp-unasked-reply"),
        (ICMP(type=3, code=1) / Raw(bytes(IP(src=SERVER, dst=GUEST) / UDP(sport=1, dport=2))), "icmp-error-from-guest"),
        (ICMP(type=11) / Raw(bytes(IP(src=SERVER, dst=GUEST) / UDP(sport=1, dport=2))), "icmp-error-from-guest"),
        (ICMP(type=5, gw="192.168.127.66"), "icmp-type"),
        (ICMP(type=9), "icmp-type"),
        (ICMP(type=13), "icmp-type"),
        (ICMP(type=8, code=3), "icmp-code"),
    ],
)
@pytest.mark.parametrize("destination", [GATEWAY, SERVER])
def test_e5_other_icmp_changes_nothing(message: Packet, reason: str, destination: str) -> None:
    """Conformance E5: never applied to the gateway's state, never passed on."""
    wire = VirtualWire()
    wire.send(IP(src=GUEST, dst=destination) / message)
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.dropped == {reason: 1}


# -- the rest of the interface ---------------------------------------------------------------------------------------


def test_f13_drops_are_told_at_powers_of_ten() -> None:
    """Conformance F13: a flood of rubbish cannot fill a log."""
    wire = VirtualWire()
    for _ in range(1234):
        wire.stack.receive_frame(b"x", wire.now)
    assert wire.told(FrameDropped) == [FrameDropped("frame-truncated", total) for total in (1, 10, 100, 1000)]
    assert wire.dropped == {"frame-truncated": 1234}


def test_an_idle_engine_wants_nothing() -> None:
    wire = VirtualWire()
    assert wire.rests()
    wire.stack.advance(wire.now + 1e6)
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    wire.arp(GATEWAY)
    assert wire.rests()


def test_a_guest_that_does_not_answer_arp() -> None:
    """Its MAC is not known any more when an answer comes: asked for three times, then the answer is dropped."""
    wire = VirtualWire()
    wire.send(udp(SERVER, 9))
    mapping = wire.asked()[0].flow
    wire.stack.neighbours._table.clear()
    wire.stack.datagram_received(mapping, ip(SERVER), 9, b"answer", wire.now)
    assert wire.hear_one()[ARP].pdst == GUEST
    wire.wait(2.5)
    assert [frame[ARP].pdst for frame in wire.hear()] == [GUEST] * 2
    wire.wait(2.0)
    assert wire.hears_nothing()
    assert wire.dropped == {"guest-does-not-answer-arp": 1}


def test_an_answer_waits_for_arp() -> None:
    wire = VirtualWire()
    wire.send(udp(SERVER, 9))
    mapping = wire.asked()[0].flow
    wire.stack.neighbours._table.clear()
    wire.stack.datagram_received(mapping, ip(SERVER), 9, b"answer", wire.now)
    assert wire.hear_one()[ARP].op == 1
    wire.send(ARP(op="is-at", hwsrc=GUEST_MAC, psrc=GUEST, hwdst=GATEWAY_MAC, pdst=GATEWAY))
    assert payload_of(wire.hear_one()[UDP]) == b"answer"


@pytest.mark.parametrize("mtu", [0, 67, 65_536])
def test_a_link_that_carries_no_ipv4_is_refused(mtu: int) -> None:
    with pytest.raises(ValueError, match="MTU"):
        VirtualWire(mtu=mtu)


@pytest.mark.parametrize("mtu", [68, 576, 1500, 9000, 65_535])
def test_no_frame_is_larger_than_the_link_carries(mtu: int) -> None:
    """`check_frame` looks at each of them."""
    wire = VirtualWire(mtu=mtu)
    connection = wire.open_tcp()
    wire.stack.stream_received(connection.flow, bytes(20_000))
    segments = connection.hear()
    assert segments
    assert all(len(payload_of(segment)) <= mtu - 40 for segment in segments)
    wire.send(*in_pieces(ping(GATEWAY, bytes(3000)), 1480))
    assert len(payload_of(wire.reassembled()[ICMP])) == 3000
    wire.send(*probes(UNUSED), udp(SERVER, 7, bytes(1000), ttl=1))
    assert len(wire.hear()) >= 4
    assert wire.stack.next_deadline() < math.inf
