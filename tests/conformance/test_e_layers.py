"""Conformance class E, E7 to E14: fragments, options, spoofing, ARP, strange frames, DHCP, IPv6, other guests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine.wire_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    HOST_ALIAS,
    OTHER_MAC,
    UNUSED,
    internet_sum,
    ip,
    mac,
    ping,
    udp,
)
from scapy.layers.dhcp import BOOTP, DHCP
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
    fragment,
)
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw
from wire import quic_packets as quic

from netstack.engine import fragments
from netstack.engine.effects import SendDatagram
from netstack.engine.events import FlowRefused, LeaseEvent

from .packets import (
    HOST_UNREACHABLE,
    dropped,
    goes_out,
    ignored,
    refused,
    was_refused,
)
from .policy_wire import ATTACKER, NAME, OTHER_NAME, SITE, PolicyWire

Guest = Callable[..., PolicyWire]
METADATA = "168.63.129.16"


# -- E7: fragments ---------------------------------------------------------------------------------------------------


def pieces(packet: Packet, size: int) -> list[Packet]:
    """A packet in fragments with `size` bytes each."""
    return list(fragment(IP(bytes(packet)), fragsize=size))


@pytest.mark.parametrize("size", [8, 16, 504])
@pytest.mark.parametrize("order", [1, -1], ids=["in order", "backwards"])
def test_E7_a_datagram_in_fragments_is_judged_whole(guest: Guest, size: int, order: int) -> None:
    wire = guest(f"{SITE}:5000")
    packet = udp(SITE, 5001, bytes(1200))
    *some, last = pieces(packet, size)[::order]
    wire.send(*some)
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.flow_events() == []
    wire.send(last)
    was_refused(wire, packet, "port-not-covered", rule=f"{SITE}:5000")
    wire.send(*pieces(udp(SITE, 5000, bytes(1200)), size)[::order])
    assert [type(each) for each in wire.asked()][-1] is SendDatagram


def test_E7_a_tiny_first_fragment_hides_no_flags(guest: Guest) -> None:
    """RFC 1858: ports in the first one, SYN in the second."""
    wire = guest(f"{SITE}:443")
    syn = IP(src=GUEST, dst=SITE, id=9) / TCP(sport=40_000, dport=22, flags="S", seq=1)
    wire.send(*pieces(syn, 8))
    frame = wire.hear_one()
    assert (str(frame[TCP].flags), frame[TCP].ack) == ("RA", 2)
    assert wire.asks_nothing()
    event = wire.one_flow_event()
    assert isinstance(event, FlowRefused)
    assert (event.verdict.reason, event.destination) == ("port-not-covered", (ip(SITE), 22))


def test_E7_a_hello_in_fragments(guest: Guest) -> None:
    wire = guest(NAME)
    (datagram,) = quic.client(OTHER_NAME)
    packet = udp(SITE, 443, datagram)
    wire.send(*pieces(packet, 400))
    was_refused(wire, packet, "name-not-allowed", step="quic", name=OTHER_NAME, source="quic")


@pytest.mark.parametrize("second", [8, 0, 16], ids=["teardrop", "the same place", "inside"])
def test_E7_overlaps_drop_all_of_it(guest: Guest, second: int) -> None:
    """RFC 5722's answer, for IPv4 too: which bytes count is nobody's guess."""
    wire = guest(f"{SITE}:5000")
    whole = bytes(udp(SITE, 5000, bytes(64)))[20:]
    other = bytes(udp(SITE, 9, b"\xff" * 64))[20:]

    def piece(at: int, data: bytes, more: bool) -> Packet:
        flags = "MF" if more else 0
        return IP(src=GUEST, dst=SITE, id=5, proto=17, flags=flags, frag=at // 8) / Raw(data)

    wire.send(piece(0, whole[:24], more=True), piece(second, other[second : second + 24], more=True))
    wire.send(piece(24, whole[24:], more=False))
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.flow_events() == []
    assert wire.dropped["fragment-overlap"] == 1
    assert set(wire.dropped) <= {"fragment-overlap", "fragment-of-dropped"}


def test_E7_fragments_that_are_never_completed(guest: Guest) -> None:
    """10,000 of them: the table is bounded, others are not kept out, and all of it is gone in the end."""
    wire = guest(f"{SITE}:5000")
    head = bytearray(
        bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / IP(src=GUEST, dst=SITE, proto=17, flags="MF", len=84))
    )
    for number in range(10_000):
        head[18:20], head[24:26] = number.to_bytes(2, "big"), bytes(2)
        head[24:26] = (0xFFFF - internet_sum(bytes(head[14:34]))).to_bytes(2, "big")
        wire.stack.receive_frame(bytes(head) + bytes(64), wire.now)
    assert wire.asks_nothing()
    assert wire.flow_events() == []
    assert wire.dropped["fragment-no-room"] == 10_000 - fragments.MAX_DATAGRAMS_PER_GUEST
    wire.wait(61)
    wire.hear()
    wire.send(*pieces(udp(SITE, 5000, bytes(1200)), 504))
    assert [type(each) for each in wire.asked()][-1] is SendDatagram


def test_E7_a_packet_longer_than_packets_are(guest: Guest) -> None:
    """The ping of death."""
    wire = guest(SITE)
    dropped(
        wire,
        "fragment-beyond-maximum",
        IP(src=GUEST, dst=SITE, id=7, proto=1, flags=0, frag=8189) / Raw(bytes(1400)),
    )


# -- E8: IP options and IPv6's headers -------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [IPOption_LSRR, IPOption_SSRR])
@pytest.mark.parametrize("before", [[], [IPOption_NOP()], [IPOption_RR(routers=["0.0.0.0"])]], ids=["", "nop", "rr"])
def test_E8_source_routes(guest: Guest, option: type, before: list[Packet]) -> None:
    wire = guest("0.0.0.0/0")
    options = [*before, option(routers=["10.0.0.1"])]
    for packet in (
        IP(src=GUEST, dst=SITE, options=options) / UDP(sport=1, dport=2) / Raw(b"x"),
        IP(src=GUEST, dst=SITE, options=options) / TCP(sport=1, dport=443, flags="S"),
        IP(src=GUEST, dst=SITE, options=options) / ICMP(),
    ):
        dropped(wire, "ip-source-route", packet)


def test_E8_other_options_do_not_hide_the_ports(guest: Guest) -> None:
    wire = guest(f"{SITE}:5000")
    for options in ([IPOption_RR(routers=["0.0.0.0"] * 9)], [IPOption_Router_Alert()], [IPOption_NOP()] * 40):
        packet = IP(src=GUEST, dst=SITE, options=options) / UDP(sport=4000, dport=9) / Raw(b"x")
        wire.send(packet)
        frame = wire.hear_one()
        assert (frame[ICMP].type, frame[ICMP].code) == (3, 3)
        assert wire.asks_nothing()
    assert wire.stack.judge.refusals == {"port-not-covered": 3}


@pytest.mark.parametrize(
    "packet",
    [
        IPv6(dst="2606:4700::1") / IPv6ExtHdrRouting(type=0, addresses=["::1"]) / TCP(dport=443, flags="S"),
        IPv6(dst="2606:4700::1") / IPv6ExtHdrHopByHop() / UDP(dport=53),
        IPv6(dst="2606:4700::1") / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / TCP(dport=443, flags="S"),
        IPv6(dst="2606:4700::1") / IPv6ExtHdrFragment(m=1) / TCP(dport=443, flags="S"),
    ],
    ids=["routing", "hop by hop", "chain", "fragment"],
)
def test_E8_ipv6_and_its_headers_go_nowhere(guest: Guest, packet: Packet) -> None:
    dropped(guest("0.0.0.0/0", "[::]/0"), "frame-ipv6", *[packet] * 12)


# -- E9: spoofed sources ---------------------------------------------------------------------------------------------

SPOOFED = {
    "8.8.8.8": "ip-source-off-subnet",
    "10.0.0.1": "ip-source-off-subnet",
    "127.0.0.1": "ip-source-off-subnet",
    "0.0.0.0": "ip-source-off-subnet",
    "255.255.255.255": "ip-source-off-subnet",
    "224.0.0.1": "ip-source-off-subnet",
    "192.168.127.0": "ip-source-off-subnet",
    "192.168.127.255": "ip-source-off-subnet",
    GATEWAY: "ip-source-is-gateway",
    HOST_ALIAS: "ip-source-is-gateway",
}


@pytest.mark.parametrize("source", SPOOFED)
def test_E9_addresses_that_are_not_the_guests(guest: Guest, source: str) -> None:
    wire = guest("0.0.0.0/0")
    for packet in (
        udp(SITE, 5000, b"x", src=source),
        IP(src=source, dst=SITE) / TCP(dport=443, flags="S"),
        ping(SITE, src=source),
    ):
        dropped(wire, SPOOFED[source], packet)


def test_E9_another_guests_address(guest: Guest) -> None:
    """Leased to one MAC, it is nobody else's; an address without a lease is whose it was first."""
    wire = guest("0.0.0.0/0", static_leases={mac(GUEST_MAC): ip(GUEST)})
    assert wire.dhcp() == GUEST
    dropped(wire, "ip-source-of-another", udp(SITE, 5000, b"x"), source=OTHER_MAC)
    wire.send(udp(SITE, 5000, b"x", src="192.168.127.9"))
    wire.asked()
    wire.events.clear()
    dropped(wire, "ip-source-of-another", udp(SITE, 5000, b"x", src="192.168.127.9"), source=OTHER_MAC)
    goes_out(wire, SITE, 5000, b"mine", source_port=5001)


def test_E9_a_segment_of_another_guests_flow(guest: Guest) -> None:
    wire = guest("0.0.0.0/0")
    connection = wire.open_tcp(SITE, 443)
    wire.events.clear()
    dropped(wire, "ip-source-of-another", connection.segment("PA", b"injected"), source=OTHER_MAC)
    dropped(wire, "ip-source-of-another", connection.segment("R"), source=OTHER_MAC)


@pytest.mark.parametrize("source", [GATEWAY_MAC, BROADCAST_MAC, "01:00:5e:00:00:01", "33:33:00:00:00:01"])
def test_E9_macs_that_are_no_guests(guest: Guest, source: str) -> None:
    dropped(guest("0.0.0.0/0"), "frame-bad-source", udp(SITE, 5000, b"x"), source=source)


def test_E9_frames_for_others(guest: Guest) -> None:
    dropped(guest("0.0.0.0/0"), "frame-for-another", udp(SITE, 5000, b"x"), to=OTHER_MAC)


def test_E9_unicast_in_a_group_frame(guest: Guest) -> None:
    dropped(guest("0.0.0.0/0"), "ip-unicast-in-group-frame", udp(SITE, 5000, b"x"), to=BROADCAST_MAC)


# -- E10: ARP and strange frames -------------------------------------------------------------------------------------


NEIGHBOUR = "192.168.127.2"
"""What the first to ask is leased."""


def arp(**fields: object) -> Packet:
    values = {"op": "who-has", "hwsrc": GUEST_MAC, "psrc": "192.168.127.5", "pdst": GATEWAY}
    return Ether(src=GUEST_MAC, dst=BROADCAST_MAC) / ARP(**(values | fields))


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("arp-claims-gateway", {"op": "is-at", "psrc": GATEWAY, "pdst": GUEST}),
        ("arp-claims-gateway", {"psrc": GATEWAY, "pdst": GATEWAY}),
        ("arp-claims-gateway", {"psrc": HOST_ALIAS, "pdst": HOST_ALIAS}),
        ("arp-mac-mismatch", {"hwsrc": OTHER_MAC}),
        ("arp-claims-lease", {"op": "is-at", "psrc": NEIGHBOUR, "pdst": GATEWAY}),
        ("arp-claims-lease", {"psrc": NEIGHBOUR, "pdst": NEIGHBOUR}),
    ],
    ids=["reply", "gratuitous", "host alias", "another's MAC", "another's lease", "gratuitous for it"],
)
def test_E10_poison(guest: Guest, reason: str, fields: dict[str, object]) -> None:
    wire = guest(NAME)
    assert wire.dhcp(source=OTHER_MAC) == NEIGHBOUR
    assert wire.arp(GATEWAY, sender="192.168.127.5") == GATEWAY_MAC
    before = wire.stack.neighbours.entries()
    dropped(wire, reason, arp(**fields))
    assert wire.stack.neighbours.entries() == before


@pytest.mark.parametrize("address", [UNUSED, "192.168.127.2", "10.0.0.1", SITE, "0.0.0.0", "192.168.127.255"])
def test_E10_no_address_but_the_gateways_own_is_answered_for(guest: Guest, address: str) -> None:
    """No proxy ARP: not for the Internet, not for other guests."""
    wire = guest(NAME)
    assert wire.arp(address) is None
    assert wire.asks_nothing()


STRANGE = {
    "802.1Q": ("frame-vlan", Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / Dot1Q(vlan=5) / udp(SITE, 53, b"x")),
    "802.1Q tag 0": ("frame-vlan", Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / Dot1Q(vlan=0) / udp(SITE, 53, b"x")),
    "802.1ad": ("frame-type", Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x88A8) / Raw(bytes(46))),
    "802.3": ("frame-type", Dot3(src=GUEST_MAC, dst=GATEWAY_MAC, len=46) / LLC() / SNAP() / Raw(bytes(38))),
    "MPLS": ("frame-type", Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x8847) / Raw(bytes(46))),
    "PPPoE": ("frame-type", Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x8863) / Raw(bytes(46))),
    "loopback": ("frame-type", Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x9000) / Raw(bytes(46))),
    "runt": ("frame-truncated", bytes(13)),
    "empty": ("frame-truncated", b""),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_E10_strange_frames(guest: Guest, kind: str) -> None:
    reason, frame = STRANGE[kind]
    dropped(guest("0.0.0.0/0"), reason, bytes(frame))


def test_E10_a_jumbo_frame_is_judged_like_any(guest: Guest) -> None:
    wire = guest(f"{SITE}:5000")
    packet = udp(SITE, 5001, bytes(30_000))
    wire.send(packet)
    was_refused(wire, packet, "port-not-covered", rule=f"{SITE}:5000")


# -- E11: DHCP -------------------------------------------------------------------------------------------------------


def discover(source: str, **fields: object) -> Packet:
    bootp = BOOTP(chaddr=mac(source), xid=7, **fields) / DHCP(options=[("message-type", "discover"), "end"])
    return (
        Ether(src=source, dst=BROADCAST_MAC)
        / IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / bootp
    )


def test_E11_starvation_is_bounded_and_keeps_nobody_out(guest: Guest) -> None:
    """A subnet has so many addresses; whoever has one keeps it."""
    wire = guest(NAME, prefix_length=24)
    assert wire.dhcp() == GUEST
    for number in range(1000):
        wire.send(discover(f"02:11:00:00:{number >> 8:02x}:{number & 255:02x}"))
    wire.hear_raw()
    assert len(wire.stack.dhcp.leases(wire.now)) <= 254
    assert wire.stack.dhcp.leases(wire.now)[ip(GUEST)] == mac(GUEST_MAC)
    assert wire.dhcp() == GUEST
    assert wire.asks_nothing()


def test_E11_a_servers_answer_from_the_guest(guest: Guest) -> None:
    wire = guest(NAME)
    offer = BOOTP(op=2, yiaddr=GUEST, siaddr=GUEST, chaddr=mac(GUEST_MAC)) / DHCP(
        options=[("message-type", "offer"), ("server_id", GUEST), ("router", GUEST), "end"]
    )
    forged = Ether(src=GUEST_MAC, dst=BROADCAST_MAC) / IP(src="0.0.0.0", dst="255.255.255.255")
    ignored(wire, forged / UDP(sport=67, dport=67) / offer)
    assert not wire.told(LeaseEvent)
    for source in (GUEST, GATEWAY):
        packet = IP(src=source, dst="255.255.255.255") / UDP(sport=67, dport=68) / offer
        wire.send(packet, destination=BROADCAST_MAC)
        assert wire.hears_nothing()
        assert wire.asks_nothing()


def test_E11_options_that_overflow_and_other_client_ids(guest: Guest) -> None:
    wire = guest(NAME)
    base = bytes(discover(GUEST_MAC)[BOOTP])[:240]
    head = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    for options in (b"\x35\xff\x01", b"\x3d\xff" + bytes(10), b"\x35\x01\x01" + b"\x0c\xff" + b"a" * 30, b"\xff" * 300):
        wire.send(head / Raw(base + options), destination=BROADCAST_MAC)
        wire.hear_raw()
    assert wire.asks_nothing()
    address = wire.dhcp()
    for number in range(50):
        identifier = [("message-type", "discover"), ("client_id", bytes([1, number] * 8)), "end"]
        wire.send(head / BOOTP(chaddr=mac(GUEST_MAC), xid=9) / DHCP(options=identifier), destination=BROADCAST_MAC)
    wire.hear_raw()
    leases = wire.stack.dhcp.leases(wire.now)
    assert [each for each, holder in leases.items() if holder == mac(GUEST_MAC)] == [ip(address)], "one a MAC"
    assert len(leases) == 2, "and the gateway's own"


# -- E12: IPv6 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packet",
    [
        IPv6(src="fe80::1", dst="ff02::2") / ICMPv6ND_RS(),
        IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_RA(),
        IPv6(src="::", dst="ff02::1:ff00:1") / ICMPv6ND_NS(tgt="fe80::1"),
        IPv6(src="fe80::1", dst="fe80::2") / ICMPv6ND_NA(tgt="fe80::2"),
        IPv6(src="fe80::1", dst="ff02::fb") / UDP(sport=5353, dport=5353),
        IPv6(src="fd00::2", dst="fd00::3") / TCP(dport=22, flags="S"),
        IPv6(src="fe80::1", dst="::ffff:10.0.0.1") / TCP(dport=80, flags="S"),
        IPv6(src="fe80::1", dst="2606:4700::1111") / UDP(dport=443),
        IPv6(src="fe80::1", dst="2606:4700::1111") / ICMPv6EchoRequest(),
        IPv6(src="fe80::1", dst="fd00:ec2::254") / TCP(dport=80, flags="S"),
    ],
    ids=["RS", "RA", "DAD", "NA", "mDNS", "ULA", "mapped", "QUIC", "ping", "metadata"],
)
@pytest.mark.parametrize("rules", [[], ["[::]/0", "0.0.0.0/0"], [NAME]], ids=["no list", "all listed", "a name"])
def test_E12_there_is_no_ipv6(guest: Guest, packet: Packet, rules: list[str]) -> None:
    wire = guest(*rules)
    for destination in (GATEWAY_MAC, "33:33:00:00:00:02"):
        dropped(wire, "frame-ipv6", Ether(src=GUEST_MAC, dst=destination) / packet)


# -- E13: other guests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [[NAME], ["192.168.0.0/16", "0.0.0.0/0"], []], ids=["a name", "listed", "no list"])
def test_E13_another_guests_address_by_way_of_the_gateway(guest: Guest, rules: list[str]) -> None:
    """What the switch does between guests: see test_e_two_guests.py."""
    wire = guest(*rules)
    neighbour = "192.168.127.3"
    wire.send(ping(GATEWAY, src=neighbour), source=OTHER_MAC)
    wire.hear()
    wire.events.clear()
    refused(wire, udp(neighbour, 5000, b"x"), "unused-address", answer=HOST_UNREACHABLE)
    refused(wire, ping(neighbour), "unused-address", step="echo", answer=HOST_UNREACHABLE)
    syn = IP(src=GUEST, dst=neighbour) / TCP(sport=40_000, dport=22, flags="S")
    refused(wire, syn, "unused-address", step="syn", answer=HOST_UNREACHABLE)


# -- E14: multicast and broadcast ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port", "to"),
    [
        ("239.255.255.250", 1900, "01:00:5e:7f:ff:fa"),
        ("224.0.0.251", 5353, "01:00:5e:00:00:fb"),
        ("224.0.0.252", 5355, "01:00:5e:00:00:fc"),
        ("192.168.127.255", 137, BROADCAST_MAC),
        ("192.168.127.255", 138, BROADCAST_MAC),
        ("255.255.255.255", 9999, BROADCAST_MAC),
        ("224.0.0.1", 5000, GATEWAY_MAC),
    ],
    ids=["SSDP", "mDNS", "LLMNR", "NetBIOS", "NetBIOS", "broadcast", "unicast frame"],
)
@pytest.mark.parametrize("rules", [[], ["0.0.0.0/0", "224.0.0.0/4"], [NAME]], ids=["no list", "all listed", "a name"])
def test_E14_groups_and_broadcasts(guest: Guest, address: str, port: int, to: str, rules: list[str]) -> None:
    wire = guest(*rules)
    packet = udp(address, port, b"M-SEARCH * HTTP/1.1\r\n\r\n")
    wire.send(packet, destination=to)
    was_refused(wire, packet, "group-address", answer=None)


# -- what has to go on -----------------------------------------------------------------------------------------------


def test_E_none_of_it_disturbs_a_flow(guest: Guest) -> None:
    """All of the above while a connection is open, and it carries on."""
    wire = guest(NAME, SITE)
    connection = wire.open_tcp(SITE, 8443)
    for _, frame in STRANGE.values():
        wire.send(bytes(frame))
    for source in SPOOFED:
        wire.send(udp(SITE, 1, b"x", src=source))
    wire.send(*(udp(ATTACKER, port, b"x") for port in range(1, 500)))
    wire.hear()
    wire.asked()
    wire.stack.stream_received(connection.flow, b"still here")
    assert connection.hear_bytes() == b"still here"
