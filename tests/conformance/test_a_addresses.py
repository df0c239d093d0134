"""Conformance class A: destinations that must not be reached, by address or by a name that leads there (SSRF).

policy.md decides where it differs from the table: a name rule that covers a port makes the gateway complete the
handshake there and read the name, so only other ports are refused at the SYN.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from engine.wire_guest import GATEWAY, GUEST, GUEST_MAC, HOST_ALIAS, LOOPBACK, ip
from scapy.layers.inet import TCP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from wire import hellos
from wire.http_requests import get

from netstack.engine import addresses
from netstack.engine.effects import OpenNamed, OpenStream
from netstack.engine.events import FlowOpened, FlowRefused
from netstack.engine.rules import TCP as TCP_PROTOCOL
from netstack.network_spec import NetworkSpec
from netstack.policy_check import check

from .policy_wire import (
    ATTACKER,
    HOST_NAME,
    NAME,
    SITE,
    PolicyWire,
    assert_told,
    dialled_as_is,
    peeked,
    refusal,
    refused_at_syn,
    say,
    turned_away,
)

Guest = Callable[..., PolicyWire]

PRIVATE = {
    "10.0.0.0": "private",
    "10.255.255.255": "private",
    "172.16.0.0": "private",
    "172.31.255.255": "private",
    "192.168.0.0": "private",
    "192.168.255.255": "private",
    "100.64.0.0": "cgnat",
    "100.127.255.255": "cgnat",
}
BESIDE = ("9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0",
          "100.63.255.255", "100.128.0.0")  # fmt: skip
METADATA = ("168.63.129.16", "192.0.0.192", "100.100.100.200")


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def objection(wire: PolicyWire, address: str, port: int = 443) -> str:
    """What is said of an address that an allowed name stands for."""
    return wire.stack.candidate_fault(TCP_PROTOCOL, packed(address), port)


def objected(wire: PolicyWire, name: str, address: str, port: int, reason: str) -> None:
    """An allowed name leads to a place it must not: (G) told so, (D) nothing is dialled, (E) one refusal."""
    connection = peeked(wire, SITE, port)
    say(connection, hellos.python_ssl(name) if port == 443 else get(f"Host: {name}"))
    flow = wire.asked_one(OpenNamed).flow
    assert objection(wire, address, port) == reason
    wire.stack.stream_objected(flow, reason, wire.now)
    source = "sni" if port == 443 else "host"
    verdict = refusal(reason, "dial", rule=name, name=name, source=source)
    turned_away(wire, connection, verdict, told="alert" if port == 443 else "forbidden")


# -- A1 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "kind"), PRIVATE.items())
@pytest.mark.parametrize("rules", [[NAME], ["@public"], [f"{NAME}:22"]], ids=["name", "public", "port"])
def test_A1_private_addresses(guest: Guest, address: str, kind: str, rules: list[str]) -> None:
    wire = guest(*rules)
    for port in (22, 80, 443):
        refused_at_syn(wire, address, port, f"{kind}-address")
    assert objection(wire, address) == f"{kind}-address"


@pytest.mark.parametrize("address", BESIDE)
def test_A1_their_neighbours_are_public(guest: Guest, address: str) -> None:
    dialled_as_is(guest("@public"), address, 22, "address-rule", "@public")
    peeked(guest(NAME), address)
    refused_at_syn(guest(NAME), address, 22, "no-rule")


def test_A1_an_address_rule_opens_them(guest: Guest) -> None:
    wire = guest("10.1.0.0/16:5432", NAME)
    dialled_as_is(wire, "10.1.255.255", 5432, "address-rule", "10.1.0.0/16:5432")
    refused_at_syn(wire, "10.1.255.255", 5433, "port-not-covered", rule="10.1.0.0/16:5432")
    refused_at_syn(wire, "10.1.255.255", 443, "port-not-covered", rule="10.1.0.0/16:5432")
    refused_at_syn(wire, "10.2.0.0", 5432, "private-address")


def test_A1_without_a_list_they_are_reached(guest: Guest) -> None:
    dialled_as_is(guest(), "10.0.0.5", 22, "no-list")


# -- A2 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [[], [NAME], ["0.0.0.0/0"], ["127.0.0.0/8"]], ids=["none", "name", "all", "listed"])
@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "127.255.255.255"])
def test_A2_loopback(guest: Guest, address: str, rules: list[str]) -> None:
    wire = guest(*rules)
    for port in (22, 80, 443):
        refused_at_syn(wire, address, port, "forbidden-address")
    assert objection(wire, address) == "loopback-address"


def test_A2_loopback_of_ipv6(guest: Guest) -> None:
    wire = guest(NAME, "[::1]")
    ipv6_goes_nowhere(wire, "::1")
    assert objection(wire, "::1") == "loopback-address"


def ipv6_goes_nowhere(wire: PolicyWire, address: str) -> None:
    """The guest's network has no IPv6: a frame of it is dropped and counted, and nothing else happens."""
    before = wire.dropped.get("frame-ipv6", 0)
    syn = IPv6(src="fe80::2", dst=address) / TCP(sport=4000, dport=443, flags="S")
    ping = IPv6(src="fe80::2", dst=address) / ICMPv6EchoRequest()
    wire.send(syn, ping, Ether(src=GUEST_MAC, dst="33:33:00:00:00:01", type=0x86DD) / bytes(syn))
    assert wire.hears_nothing()
    assert wire.asks_nothing()
    assert not wire.flow_events()
    assert wire.dropped["frame-ipv6"] == before + 3


# -- A3, A4 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [[], [NAME], ["169.254.0.0/16"], ["0.0.0.0/0", "@public"]],
                         ids=["none", "name", "listed", "all"])  # fmt: skip
@pytest.mark.parametrize("address", ["169.254.169.254", "169.254.0.1", "169.254.255.255"])
def test_A3_link_local(guest: Guest, address: str, rules: list[str]) -> None:
    wire = guest(*rules)
    for port in (80, 443, 8080):
        refused_at_syn(wire, address, port, "metadata")
    assert objection(wire, address, 80) == "metadata"


def test_A3_no_name_leads_there(guest: Guest) -> None:
    wire = guest(NAME, f"{NAME}:8080", "169.254.0.0/16")
    assert wire.resolve(NAME, "169.254.169.254") == [], "not even told"
    refused_at_syn(wire, "169.254.169.254", 8080, "metadata")
    objected(wire, NAME, "169.254.169.254", 80, "metadata")


def test_A3_opted_in(guest: Guest) -> None:
    dialled_as_is(guest(metadata_access=True), "169.254.169.254", 80, "no-list")
    wire = guest(NAME, metadata_access=True)
    refused_at_syn(wire, "169.254.169.254", 80, "link-local-address")
    wire = guest("169.254.169.254:80", metadata_access=True)
    dialled_as_is(wire, "169.254.169.254", 80, "address-rule", "169.254.169.254:80")


@pytest.mark.parametrize("rules", [[], [NAME], ["@public"], ["0.0.0.0/0", *METADATA]],
                         ids=["none", "name", "public", "listed"])  # fmt: skip
@pytest.mark.parametrize("address", METADATA)
def test_A4_other_metadata_services(guest: Guest, address: str, rules: list[str]) -> None:
    wire = guest(*rules)
    for port in (80, 443, 32526):
        refused_at_syn(wire, address, port, "metadata")
    assert objection(wire, address) == "metadata"


def test_A4_no_name_leads_there(guest: Guest) -> None:
    for address in METADATA:
        wire = guest(NAME, address)
        assert wire.resolve(NAME, address) == []
        objected(wire, NAME, address, 443, "metadata")


def test_A4_metadata_of_ipv6(guest: Guest) -> None:
    wire = guest("[fd00:ec2::254]", NAME)
    ipv6_goes_nowhere(wire, "fd00:ec2::254")
    assert objection(wire, "fd00:ec2::254") == "metadata"


# -- A5 ---------------------------------------------------------------------------------------------------------------

NOWHERE = {
    "0.0.0.0": "unspecified-address",
    "0.0.0.1": "unspecified-address",
    "240.0.0.1": "reserved-address",
    "255.255.255.254": "reserved-address",
}
RESERVED = ("192.0.0.8", "198.18.0.1", "198.19.255.255", "192.0.2.1", "203.0.113.1", "192.88.99.1")


@pytest.mark.parametrize("rules", [[], [NAME], ["@public"], ["0.0.0.0/0"]], ids=["none", "name", "public", "all"])
@pytest.mark.parametrize(("address", "kind"), NOWHERE.items())
def test_A5_addresses_that_are_none(guest: Guest, address: str, kind: str, rules: list[str]) -> None:
    wire = guest(*rules)
    refused_at_syn(wire, address, 443, "forbidden-address")
    if rules and rules != ["0.0.0.0/0"]:
        assert objection(wire, address) == kind
    if address.startswith("0."):
        assert objection(wire, address) == kind, "0.0.0.0 is the host itself to connect(2)"


@pytest.mark.parametrize("rules", [[], [NAME], ["0.0.0.0/0"]], ids=["none", "name", "all"])
@pytest.mark.parametrize("address", ["224.0.0.1", "239.255.255.255", "255.255.255.255", "192.168.127.255"])
def test_A5_groups_get_no_answer(guest: Guest, address: str, rules: list[str]) -> None:
    """Nobody speaks for a group (RFC 9293 section 3.9.2.3): silence, and the event says so."""
    wire = guest(*rules)
    connection = wire.connection(address, 443)
    connection.syn()
    assert wire.hears_nothing()
    assert wire.asks_nothing()
    assert_told(wire, connection, refusal("group-address"), "nothing")
    assert objection(wire, address), "nor does a name lead there"


@pytest.mark.parametrize("address", RESERVED)
def test_A5_reserved_addresses(guest: Guest, address: str) -> None:
    for rules in ([NAME], ["@public"]):
        wire = guest(*rules)
        refused_at_syn(wire, address, 443, "reserved-address")
        assert objection(wire, address) == "reserved-address"
    dialled_as_is(guest(address), address, 443, "address-rule", address)


# -- A6, A7 -----------------------------------------------------------------------------------------------------------

FORMS = {
    "::ffff:10.0.0.1": "private",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:169.254.169.254": "metadata",
    "::ffff:100.100.100.200": "metadata",
    "64:ff9b::a00:1": "private",
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b::a9fe:a9fe": "metadata",
    "64:ff9b:1::a00:1": "private",
    "64:ff9b:1::5db8:d822": "private",
    "2002:a00:1::": "private",
    "2002:7f00:1::1": "loopback",
    "::10.0.0.1": "private",
    "::127.0.0.1": "loopback",
    "::ffff:93.184.216.34": "embedded",
    "64:ff9b::5db8:d822": "embedded",
    "2002:5db8:d822::1": "embedded",
    "fec0::1": "reserved",
    "ff02::1": "multicast",
    "fe80::1": "metadata",
    "fc00::1": "private",
    "::": "unspecified",
    "2001:db8::1": "reserved",
    "2001::1": "reserved",
    "4000::1": "reserved",
}


@pytest.mark.parametrize(("address", "kind"), FORMS.items())
@pytest.mark.parametrize("rules", [[NAME], ["@public", NAME], ["0.0.0.0/0", NAME]], ids=["name", "public", "all"])
def test_A6_A7_forms_of_ipv6(address: str, kind: str, rules: list[str]) -> None:
    """IPv4 in IPv6's clothes is what it embeds, and never a public IPv6 address; what is not given out is refused."""
    wire = PolicyWire(*rules)
    ipv6_goes_nowhere(wire, address)
    wanted = "metadata" if kind == "metadata" else f"{kind}-address"
    assert objection(wire, address) == wanted
    assert addresses.kind(packed(address)) in (kind, "link-local")


def test_A7_a_public_ipv6_address_may_stand_for_a_name(guest: Guest) -> None:
    assert objection(guest(NAME), "2606:2800:220:1::1") == ""


# -- A8, A9, A10 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [[], [NAME], ["@host"], [GATEWAY]], ids=["none", "name", "host", "gateway"])
def test_A8_the_gateways_unserved_ports(guest: Guest, rules: list[str]) -> None:
    wire = guest(*rules)
    for port in (22, 80, 443, 52, 54, 65535):
        refused_at_syn(wire, GATEWAY, port, "unserved-port")
    assert objection(wire, GATEWAY) == "own-subnet"


@pytest.mark.parametrize("rules", [[NAME], ["0.0.0.0/0"], ["192.168.0.0/16"], ["@public"], [HOST_NAME]],
                         ids=["name", "all", "network", "public", "its-name"])  # fmt: skip
def test_A9_the_host_without_opt_in(guest: Guest, rules: list[str]) -> None:
    """Its name is answered, its address refused; a network around the address, or its name, is no opt-in."""
    wire = guest(*rules)
    assert wire.resolve(HOST_NAME) == [HOST_ALIAS]
    for port in (22, 443, 8080):
        refused_at_syn(wire, HOST_ALIAS, port, "private-address")
    assert objection(wire, HOST_ALIAS) == "own-subnet"


@pytest.mark.parametrize("rule", ["@host:8080", f"{HOST_ALIAS}:8080"])
def test_A9_the_host_with_opt_in(guest: Guest, rule: str) -> None:
    wire = guest(rule, NAME)
    refused_at_syn(wire, HOST_ALIAS, 22, "port-not-covered", rule=rule)
    connection = wire.connection(HOST_ALIAS, 8080)
    connection.syn()
    flow = wire.asked_one(OpenStream)
    assert (flow.address, flow.port) == (ip(LOOPBACK), 8080)
    wire.stack.stream_opened(flow.flow, wire.now)
    connection.finish_handshake()
    (event,) = wire.told(FlowOpened)
    assert (event.destination, event.dialled) == ((ip(HOST_ALIAS), 8080), (ip(LOOPBACK), 8080))
    assert (event.verdict.reason, event.verdict.rule) == ("address-rule", rule)
    assert objection(wire, HOST_ALIAS, 8080) == "own-subnet", "no name leads there, opted in or not"


@pytest.mark.parametrize("address", ["192.168.1.10", "10.0.2.15", "192.168.1.255"])
def test_A10_the_gateways_own_network(guest: Guest, address: str) -> None:
    """Addresses of the host's LAN, its broadcast among them, are private: only their own rule opens them."""
    wire = guest("@public", f"{NAME}:22")
    for port in (22, 80, 443):
        refused_at_syn(wire, address, port, "private-address")
    wire = guest(NAME)
    assert wire.resolve(NAME, address) == []
    objected(wire, NAME, address, 443, "private-address")


# -- A11, A12, A13 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0x7f000001", "017700000001", "2130706433", "127.1", "0x7f.1", "10.0.0.5", "1.1.1.1",
                                  "[::1]", "[::ffff:7f00:1]"])  # fmt: skip
def test_A11_addresses_in_every_base(guest: Guest, host: str) -> None:
    """A guest resolves them itself and meets A1 to A5; said as a name they are none."""
    wire = guest("@public:22", NAME, "*.example.com", "127.0.0.0/8")
    request = get(f"Host: {host}")
    connection = peeked(wire, SITE, 80)
    say(connection, request)
    turned_away(wire, connection, refusal("host-ip-literal", "http", source="host"))
    if not host.startswith("["):
        assert wire.resolve(host) == ["0.0.0.0"]


@pytest.mark.parametrize("rules", [("10.1.0.0/16:5432", "10.1.2.3:80"), ("10.1.2.3:80", "10.1.0.0/16:5432")])
def test_A12_order_means_nothing(guest: Guest, rules: tuple[str, str]) -> None:
    """There are no denying rules: what any rule allows is allowed, in whatever order they stand."""
    wire = guest(*rules)
    dialled_as_is(wire, "10.1.2.3", 80, "address-rule", "10.1.2.3:80")
    dialled_as_is(wire, "10.1.2.3", 5432, "address-rule", "10.1.0.0/16:5432")
    connection = wire.connection("10.1.2.3", 443)
    connection.syn()
    connection.hear_one("RA")
    assert wire.asks_nothing()
    assert wire.one_flow_event().verdict.reason == "port-not-covered"


def test_A13_a_port_outside_of_the_rule(guest: Guest) -> None:
    wire = guest(f"{NAME}:443", "10.1.2.3:8000-8080", "tcp/10.1.2.4")
    assert wire.resolve(NAME, SITE) == [SITE]
    for port in (80, 442, 444, 8443, 22):
        refused_at_syn(wire, SITE, port, "no-rule")
    peeked(wire, SITE, 443)
    for port in (7999, 8081):
        refused_at_syn(wire, "10.1.2.3", port, "port-not-covered", rule="10.1.2.3:8000-8080")
    dialled_as_is(wire, "10.1.2.4", 1, "address-rule", "tcp/10.1.2.4")


def test_A13_a_name_on_a_port_that_another_rule_opens(guest: Guest) -> None:
    """The handshake is completed for the other name's sake; this one is still not allowed here."""
    wire = guest(f"{NAME}:443", "other.example.org:80")
    connection = peeked(wire, SITE, 80)
    say(connection, get(f"Host: {NAME}"))
    verdict = refusal("port-not-covered", "http", rule=f"{NAME}:443", name=NAME, source="host")
    turned_away(wire, connection, verdict)


@pytest.mark.parametrize("address", [SITE, ATTACKER, "10.0.0.1", "192.168.1.1", "8.8.8.8"])
def test_what_is_answered_offline_is_what_happens(guest: Guest, address: str) -> None:
    """I6, for this class: `netstack policy check` and the engine agree."""
    for rules in ([], [NAME], ["@public"], ["10.0.0.0/8"], [f"{address}:443"]):
        spec = NetworkSpec.enabled(rules)
        wire = guest(spec=spec)
        connection = wire.connection(address, 443, source=GUEST)
        connection.syn()
        answer = check(spec, f"{address}:443")
        dialled = any(isinstance(effect, OpenStream) for effect in wire.asked())
        refused = bool(wire.told(FlowRefused))
        verdict = answer.steps[-1][1]
        assert answer.allowed == dialled, (rules, verdict)
        assert refused == (verdict.action == 0)
