"""Conformance class E, E1 to E6: UDP, QUIC, ICMP, and the protocols that nothing here carries.

policy.md decides where it differs from the table: refused UDP gets ICMP port unreachable, so that clients fall back at
once, and the gateway answers pings of itself, also when nothing is allowed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine.wire_guest import (
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    HOST_ALIAS,
    LOOPBACK,
    UNUSED,
    ip,
    payload_of,
    ping,
    udp,
)
from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    fragment,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from wire import quic_packets as quic

from netstack.engine.effects import OpenEcho, ResolveName, SendDatagram
from netstack.engine.events import FlowOpened, FlowRefused
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
from .policy_wire import ATTACKER, NAME, OTHER_NAME, SITE, PolicyWire

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
    ("name", "reason"), [(None, "no-name"), ("192.0.2.1", "sni-not-a-name"), ("a b", "sni-whitespace")]
)
def test_E3_no_name_or_none_that_is_one(guest: Guest, name: str | None, reason: str) -> None:
    wire = guest(NAME)
    (datagram,) = quic.client(name)
    wire.send(udp(SITE, 443, datagram))
    (event,) = wire.flow_events()
    assert isinstance(event, FlowRefused)
    assert wire.asks_nothing()
    assert event.verdict.step == "quic"
    assert event.verdict.reason in {reason, "no-name"}, "aioquic sends no SNI for an address"


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
    frame = bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / ping(ATTACKER))
    wire.send(*[frame] * 5000)
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
    dropped(wire, "icmp-type" if kind in {"source quench", "redirect"} else "icmp-error-from-guest", lie)
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
