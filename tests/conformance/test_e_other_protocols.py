"""Conformance class E: everything that is not TCP, and what lies below: UDP, QUIC, ICMP, fragments, spoofing, ARP, DHCP.

policy.md decides where it differs from the table: refused UDP gets ICMP port unreachable, so that clients fall back at
once, and the gateway answers pings of itself, also when nothing is allowed.
"""

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
    LOOPBACK,
    OTHER_MAC,
    UNUSED,
    ip,
    mac,
    payload_of,
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
from netstack.engine.effects import OpenEcho, ResolveName, SendDatagram, SendEcho
from netstack.engine.events import FlowOpened, FlowRefused, LeaseEvent
from netstack.network_spec import NetworkSpec

from .packets import (
    HOST_UNREACHABLE,
    PROHIBITED,
    PROTOCOL_UNREACHABLE,
    dropped,
    goes_out,
    hello,
    ignored,
    quic_by_name,
    refused,
    was_refused,
)
from .policy_wire import ATTACKER, NAME, OTHER_NAME, SITE, PolicyWire, opened_by_name, peeked, say

Guest = Callable[..., PolicyWire]
METADATA = "168.63.129.16"


# -- E1: UDP to hosts that are not listed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "data"),
    [(53, b"\x12\x34\1\0\0\1\0\0\0\0\0\0\1x\0\0\1\0\1"), (123, b"\x23" + bytes(47)), (443, b"no hello"), (514, b"<1>x"),
     (5000, b"exfiltrated"), (33434, b"")],
)  # fmt: skip
def test_E1_udp_to_an_unlisted_host(guest: Guest, port: int, data: bytes) -> None:
    wire = guest("10.0.0.0/8")
    refused(wire, udp(ATTACKER, port, data), "no-rule")


def test_E1_quic_to_an_unlisted_host(guest: Guest) -> None:
    wire = guest("10.0.0.0/8")
    for datagram in quic.client(NAME)[:1]:
        refused(wire, udp(ATTACKER, 443, datagram), "no-rule")


@pytest.mark.parametrize("rules", [[NAME], [f"{NAME}:8443", "*.example.org"], ["@host"], ["tcp/45.33.32.156"]])
def test_E1_whatever_else_is_listed(guest: Guest, rules: list[str]) -> None:
    wire = guest(*rules)
    by_address = "tcp/45.33.32.156" in rules
    reason, rule = ("port-not-covered", "tcp/45.33.32.156") if by_address else ("no-rule", "")
    refused(wire, udp(ATTACKER, 123, b"x"), reason, rule=rule)


def test_E1_under_deny_all_and_with_rules_for_it(guest: Guest) -> None:
    refused(guest(spec=NetworkSpec.enabled(deny_all=True)), udp(ATTACKER, 123, b"x"), "no-rule")
    goes_out(guest(f"udp/{ATTACKER}:123"), ATTACKER, 123, b"x")
    goes_out(guest("@public"), ATTACKER, 123, b"x")


def test_E1_every_datagram_is_refused_and_a_flood_of_them_told_by_orders_of_magnitude(guest: Guest) -> None:
    wire = guest("10.0.0.0/8")
    for number in range(100):
        wire.send(udp(ATTACKER, 5000, bytes([number])))
    assert len(wire.hear()) == 100
    assert wire.asks_nothing()
    assert [event.total for event in wire.told(FlowRefused)] == [1, 10, 100]


# -- E2: names and UDP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [[NAME], [f"{NAME}:5000"], ["*.example.com:1-65535"], [f"udp/{NAME}:5000"]])
def test_E2_udp_to_the_address_of_an_allowed_name(guest: Guest, rules: list[str]) -> None:
    """Nothing in a datagram says whom it is for."""
    wire = guest(*rules)
    assert wire.resolve(NAME, SITE) == [SITE]
    wire.events.clear()
    refused(wire, udp(SITE, 5000, b"x"), "no-rule")


def test_E2_what_is_no_hello_on_the_port_of_quic(guest: Guest) -> None:
    """DNSCrypt, WireGuard and the like on 443."""
    wire = guest(NAME)
    wire.resolve(NAME, SITE)
    wire.events.clear()
    refused(wire, udp(SITE, 443, b"r6fnvWj8" + bytes(300)), "not-quic", step="quic", source="quic")


@pytest.mark.parametrize("version", [quic.V1, quic.V2], ids=["v1", "v2"])
@pytest.mark.parametrize("large", [False, True], ids=["one datagram", "several"])
def test_E2_quic_by_an_allowed_name(guest: Guest, version: int, large: bool) -> None:
    """Whatever the address: the name is dialled."""
    wire = guest("*.example.com")
    datagrams = hello(wire, ATTACKER, NAME, version=version, large=large)
    mapping = quic_by_name(wire, ATTACKER, NAME, "*.example.com", datagrams)
    wire.stack.datagram_received(mapping, ip("104.16.132.229"), 443, b"answer", wire.now)
    packet = wire.hear_one()[IP]
    assert (packet.src, packet.sport, packet.dport) == (ATTACKER, 443, 5000), "under the address the guest knows"
    assert payload_of(packet[UDP]) == b"answer"


# -- E3: QUIC with another name --------------------------------------------------------------------------------------


def test_E3_an_allowed_address_and_another_name(guest: Guest) -> None:
    wire = guest(NAME)
    wire.resolve(NAME, SITE)
    wire.events.clear()
    (datagram,) = quic.client(OTHER_NAME)
    packet = udp(SITE, 443, datagram)
    refused(wire, packet, "name-not-allowed", step="quic", name=OTHER_NAME, source="quic")


def test_E3_a_name_over_several_datagrams(guest: Guest) -> None:
    wire = guest(NAME)
    first, *rest = quic.client(OTHER_NAME, large=True)
    wire.send(udp(SITE, 443, first))
    assert wire.hears_nothing()
    packets = [udp(SITE, 443, datagram) for datagram in rest]
    wire.send(*packets[:1])
    was_refused(wire, packets[0], "name-not-allowed", step="quic", name=OTHER_NAME, source="quic")


@pytest.mark.parametrize(
    ("name", "reason"), [(None, "no-name"), ("192.0.2.1", "sni-not-a-name"), ("a b", "sni-not-a-name")]
)
def test_E3_no_name_or_none_that_is_one(guest: Guest, name: str | None, reason: str) -> None:
    wire = guest(NAME)
    (datagram,) = quic.client(name)
    wire.send(udp(SITE, 443, datagram))
    (event,) = wire.flow_events()
    assert isinstance(event, FlowRefused)
    assert wire.asks_nothing()
    assert event.verdict.step == "quic"
    assert event.verdict.reason in {reason, "no-name"}


def test_E3_another_name_on_a_flow_that_is_open_goes_to_the_allowed_one(guest: Guest) -> None:
    """Nobody else can hear it: the flow is dialled by its first name for as long as it lives."""
    wire = guest(NAME)
    quic_by_name(wire, ATTACKER, NAME, NAME, hello(wire, ATTACKER, NAME))
    (later,) = quic.client(OTHER_NAME)
    wire.send(udp(ATTACKER, 443, later))
    datagram = wire.asked_one(SendDatagram)
    assert datagram.address == ip("104.16.132.229")
    assert wire.hears_nothing()
    wire.send(udp(SITE, 443, later))
    assert wire.asks_nothing(), "another address is another flow"
    wire.hear_one()


def test_E3_a_name_that_leads_nowhere(guest: Guest) -> None:
    """C15 for QUIC: no address of it may be used."""
    wire = guest(NAME)
    datagrams = hello(wire, SITE, NAME)
    asked = wire.asked_one(ResolveName)
    wire.stack.name_resolved(asked.flow, None, wire.now)
    packet = udp(SITE, 443, datagrams[-1])
    was_refused(wire, packet, "name-has-no-usable-address", step="dial", name=NAME, source="quic")


# -- E4: echo --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "reason", "answer"),
    [
        (ATTACKER, "no-rule", PROHIBITED),
        ("10.0.0.1", "no-rule", PROHIBITED),
        (HOST_ALIAS, "no-rule", PROHIBITED),
        (METADATA, "metadata", PROHIBITED),
        ("169.254.169.254", "metadata", PROHIBITED),
        ("127.0.0.1", "forbidden-address", PROHIBITED),
        (UNUSED, "unused-address", HOST_UNREACHABLE),
        ("224.0.0.1", "group-address", None),
        ("192.168.127.255", "group-address", None),
    ],
)
@pytest.mark.parametrize("deny_all", [False, True])
def test_E4_ping(guest: Guest, address: str, reason: str, answer: tuple[int, int] | None, deny_all: bool) -> None:
    spec = NetworkSpec.enabled(deny_all=True) if deny_all else NetworkSpec.enabled([NAME, f"{ATTACKER}:443"])
    refused(guest(spec=spec), ping(address), reason, step="echo", answer=answer)


@pytest.mark.parametrize("deny_all", [False, True])
def test_E4_the_gateway_answers_for_itself_only(guest: Guest, deny_all: bool) -> None:
    wire = guest(spec=NetworkSpec.enabled(deny_all=True) if deny_all else NetworkSpec.enabled([NAME]))
    wire.send(ping(GATEWAY))
    reply = wire.hear_one()
    assert (reply[IP].src, reply[ICMP].type) == (GATEWAY, 0)
    assert wire.asks_nothing()
    assert wire.flow_events() == []


def test_E4_a_listed_address_is_really_pinged(guest: Guest) -> None:
    wire = guest(SITE, "@host")
    for address, dialled in ((SITE, SITE), (HOST_ALIAS, LOOPBACK)):
        wire.send(ping(address, identifier=len(address)))
        opened, sent = wire.asked()
        assert isinstance(opened, OpenEcho)
        assert (sent.address, sent.payload) == (ip(dialled), b"abc")
        assert wire.hears_nothing(), "nothing is faked"
        event = wire.one_flow_event()
        assert isinstance(event, FlowOpened)
        assert event.verdict.reason == "address-rule"


# -- E5: ICMP as a channel, and ICMP that lies -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 56, 1472, 65_507])
def test_E5_a_tunnel_in_the_payload_of_pings(guest: Guest, size: int) -> None:
    wire = guest(NAME)
    packet = ping(ATTACKER, bytes(size))
    wire.send(*fragment(packet, fragsize=1480))
    was_refused(wire, packet, "no-rule", step="echo", answer=PROHIBITED)


def test_E5_pings_of_a_flood_are_refused_with_a_bound(guest: Guest) -> None:
    wire = guest(NAME)
    wire.send(*(ping(ATTACKER, sequence=number) for number in range(5000)))
    assert wire.asks_nothing()
    assert len(wire.hear()) == 200, "errors have a rate (RFC 1812 section 4.3.2.8)"
    assert [event.total for event in wire.told(FlowRefused)] == [1, 10, 100, 1000]
    assert wire.dropped["icmp-error-rate"] == 4800


LIES = {
    "unreachable": ICMP(type=3, code=1),
    "port unreachable": ICMP(type=3, code=3),
    "fragmentation needed": ICMP(type=3, code=4, nexthopmtu=68),
    "source quench": ICMP(type=4),
    "redirect": ICMP(type=5, code=1, gw="192.168.127.66"),
    "time exceeded": ICMP(type=11),
    "parameter problem": ICMP(type=12),
}


@pytest.mark.parametrize("kind", LIES)
def test_E5_errors_from_the_guest_are_applied_to_nothing(guest: Guest, kind: str) -> None:
    """Each quotes a segment of ours on an open connection, as a router would; the connection does not notice."""
    wire = guest(SITE)
    connection = wire.open_tcp(SITE, 443)
    wire.stack.stream_received(connection.flow, b"hello")
    frame = wire.hear_one()
    wire.events.clear()
    lie = IP(src=GUEST, dst=GATEWAY) / LIES[kind] / Raw(bytes(frame[IP])[:28])
    dropped(wire, "icmp-error-from-guest", lie)
    wire.stack.stream_received(connection.flow, bytes(1460))
    later = wire.hear_one()
    assert (later[IP].len, later[TCP].dport) == (1500, connection.source_port), "of full size, to the same place"
    assert wire.flow_events() == []


@pytest.mark.parametrize(("kind", "code"), [(9, 0), (10, 0), (13, 0), (15, 0), (17, 0), (30, 0), (42, 0), (255, 9)])
def test_E5_other_messages_are_dropped(guest: Guest, kind: int, code: int) -> None:
    """Router advertisements and solicitations, timestamps, address masks, whatever comes."""
    wire = guest("0.0.0.0/0")
    before = dict(wire.dropped)
    ignored(wire, IP(src=GUEST, dst=SITE) / ICMP(type=kind, code=code) / Raw(bytes(20)))
    assert sum(wire.dropped.values()) == sum(before.values()) + 1


def test_E5_answers_to_no_question(guest: Guest) -> None:
    wire = guest("0.0.0.0/0")
    dropped(wire, "icmp-unasked-reply", IP(src=GUEST, dst=SITE) / ICMP(type=0, id=7, seq=1) / Raw(b"abc"))


# -- E6: other IP protocols ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 2, 4, 41, 47, 50, 51, 88, 89, 103, 112, 132, 136, 253, 255])
@pytest.mark.parametrize("rules", [["0.0.0.0/0", "@public"], [NAME]], ids=["all listed", "a name"])
def test_E6_other_protocols(guest: Guest, number: int, rules: list[str]) -> None:
    """GRE, ESP, SCTP, IP in IP, 6in4: nothing here carries them, whatever is listed."""
    packet = IP(src=GUEST, dst=SITE, proto=number) / Raw(bytes(40))
    refused(guest(*rules), packet, "ip-protocol", answer=PROTOCOL_UNREACHABLE)


def test_E6_a_packet_in_a_packet_is_not_looked_into(guest: Guest) -> None:
    packet = IP(src=GUEST, dst=SITE, proto=4) / IP(src=GUEST, dst=SITE) / TCP(dport=443, flags="S")
    refused(guest(SITE), packet, "ip-protocol", answer=PROTOCOL_UNREACHABLE)


def test_E6_igmp_is_met_with_silence(guest: Guest) -> None:
    """Every kernel sends it; nobody is told of an error in a packet to a group (RFC 1122 section 3.2.2)."""
    wire = guest(NAME)
    packet = IP(src=GUEST, dst="224.0.0.22", proto=2, ttl=1) / Raw(bytes(16))
    wire.send(packet, destination="01:00:5e:00:00:16")
    was_refused(wire, packet, "ip-protocol", answer=None)


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
    for number in range(10_000):
        wire.send(IP(src=GUEST, dst=SITE, id=number % 65536, proto=17, flags="MF") / Raw(bytes(64)))
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


def arp(**fields: object) -> Packet:
    values = {"op": "who-has", "hwsrc": GUEST_MAC, "psrc": GUEST, "pdst": GATEWAY}
    return Ether(src=GUEST_MAC, dst=BROADCAST_MAC) / ARP(**(values | fields))


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("arp-claims-gateway", {"op": "is-at", "psrc": GATEWAY, "pdst": GUEST}),
        ("arp-claims-gateway", {"psrc": GATEWAY, "pdst": GATEWAY}),
        ("arp-claims-gateway", {"psrc": HOST_ALIAS, "pdst": HOST_ALIAS}),
        ("arp-mac-mismatch", {"hwsrc": OTHER_MAC}),
        ("arp-claims-lease", {"op": "is-at", "psrc": "192.168.127.3", "pdst": GATEWAY}),
    ],
    ids=["reply", "gratuitous", "host alias", "another's MAC", "another's lease"],
)
def test_E10_poison(guest: Guest, reason: str, fields: dict[str, object]) -> None:
    wire = guest(NAME)
    wire.dhcp(source=OTHER_MAC) if reason == "arp-claims-lease" else None
    assert wire.arp(GATEWAY) == GATEWAY_MAC
    if reason == "arp-claims-lease":
        holder = wire.stack.dhcp.holder(ip("192.168.127.2"))
        assert holder in {None, mac(OTHER_MAC)}
        fields = fields | {"psrc": next(each for each in ("192.168.127.2", "192.168.127.3")
                                        if wire.stack.dhcp.holder(ip(each)) == mac(OTHER_MAC))}  # fmt: skip
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
    for number in range(2000):
        wire.send(discover(f"02:11:00:00:{number >> 8:02x}:{number & 255:02x}"))
    wire.hear_raw()
    assert len(wire.stack.dhcp.leases(wire.now)) <= 253
    assert wire.stack.dhcp.leases(wire.now)[mac(GUEST_MAC)] == ip(GUEST)
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
    assert list(wire.stack.dhcp.leases(wire.now).values()) == [ip(address)], "one lease a MAC, whatever it calls itself"


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
