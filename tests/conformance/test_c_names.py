"""Conformance class C, the first half: TLS names and the addresses they stand for.

An allowed name is dialled as the gateway itself resolves it, whatever address the guest had chosen. HTTP's half is in
test_c_requests.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine.wire_guest import GuestTcp, ip, sent_bytes
from wire import hellos

from netstack.engine.effects import OpenNamed, ShutdownStream
from netstack.engine.events import FlowClosed
from netstack.network_spec import NetworkSpec

from .policy_wire import (
    ATTACKER,
    CDN,
    NAME,
    OTHER_NAME,
    SITE,
    TRUE_SITE,
    PolicyWire,
    dialled_as_is,
    is_gone,
    opened_by_name,
    peeked,
    refusal,
    refused_at_syn,
    say,
    turned_away,
)

Guest = Callable[..., PolicyWire]
SSH = "github.example.com"


def crafted(*names: bytes) -> bytes:
    return hellos.records(hellos.message(hellos.server_name(*names)))


def exchange(wire: PolicyWire, connection: GuestTcp) -> None:
    """Bytes flow both ways, unread by anybody."""
    connection.hear()
    connection.say(b"\x17\x03\x03 from the guest")
    assert sent_bytes(wire.asked()) == b"\x17\x03\x03 from the guest"
    wire.stack.stream_received(connection.flow, b"from the server")
    assert connection.hear_bytes() == b"from the server"


# -- C1, C3, C4 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [ATTACKER, CDN, SITE])
@pytest.mark.parametrize("rule", [NAME, f"{NAME}:443", "*.example.com", f"tcp/{NAME}"])
def test_C1_an_allowed_name_at_any_address(guest: Guest, address: str, rule: str) -> None:
    """The attacker's host gets not one byte: the name is dialled where it really is."""
    wire = guest(rule)
    hello = hellos.python_ssl(NAME)
    connection = peeked(wire, address)
    say(connection, hello)
    opened_by_name(wire, connection, hello, rule=rule)
    exchange(wire, connection)
    wire.stack.stream_ended(connection.flow)
    connection.hear()
    connection.fin()
    assert wire.asked()[0] == ShutdownStream(connection.flow)
    closed = wire.one_flow_event()
    assert isinstance(closed, FlowClosed)
    assert (closed.reason, closed.dialled) == ("finished", (ip(TRUE_SITE), 443))
    assert (closed.sent, closed.received) == (len(hello) + 18, 15)


@pytest.mark.parametrize("hello", [hellos.openssl(NAME.encode()), hellos.python_ssl("API.Example.COM")],
                         ids=["post-quantum", "upper case"])  # fmt: skip
def test_C1_real_hellos(guest: Guest, hello: bytes) -> None:
    wire = guest(NAME)
    connection = peeked(wire, ATTACKER)
    say(connection, hello)
    opened_by_name(wire, connection, hello)


def test_C1_an_address_that_was_answered(guest: Guest) -> None:
    """Of it nothing is noted, as long as the answer lives; of any other it is told that DNS never gave it."""
    wire = guest(NAME)
    hello = hellos.python_ssl(NAME)
    assert wire.resolve(NAME, SITE) == [SITE]
    for address, seconds, note in ((SITE, 200, ""), (ATTACKER, 0, "address-not-answered"), (SITE, 200, ""),
                                   (SITE, 0, "address-not-answered")):  # fmt: skip
        connection = peeked(wire, address)
        say(connection, hello)
        opened_by_name(wire, connection, hello, note=note)
        wire.wait(seconds)
        wire.hear()


def test_C1_the_post_quantum_hello_does_not_fit_one_segment() -> None:
    hello = hellos.openssl(NAME.encode())
    assert len(hello) > 1460
    assert hellos.X25519MLKEM768.to_bytes(2, "big") in hello


@pytest.mark.parametrize("address", [CDN, SITE])
def test_C3_another_name_at_an_address_of_an_allowed_one(guest: Guest, address: str) -> None:
    wire = guest(NAME)
    assert sorted(wire.resolve(NAME, SITE, CDN)) == sorted([SITE, CDN])
    connection = peeked(wire, address)
    say(connection, hellos.python_ssl(OTHER_NAME))
    turned_away(wire, connection, refusal("name-not-allowed", "tls", name=OTHER_NAME, source="sni"))


@pytest.mark.parametrize("name", ["evilapi.example.com.evil.org", "evilexample.com", "example.com", "com",
                                  "api.example.com.example.net", "a.api.example.com"])  # fmt: skip
def test_C3_names_that_only_look_allowed(guest: Guest, name: str) -> None:
    wire = guest(NAME, "*.sub.example.com")
    connection = peeked(wire, SITE)
    say(connection, hellos.python_ssl(name))
    turned_away(wire, connection, refusal("name-not-allowed", "tls", name=name, source="sni"))


def test_C4_inside_tls_nothing_is_read(guest: Guest) -> None:
    """Documented residual: who has an allowed server's key may be asked for another host by Host or :authority."""
    wire = guest(NAME)
    connection = peeked(wire, SITE)
    hello = hellos.python_ssl(NAME)
    say(connection, hello)
    opened_by_name(wire, connection, hello)
    inside = b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n"
    connection.say(inside)
    assert sent_bytes(wire.asked()) == inside


# -- C5 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [22, 53, 853, 8443])
def test_C5_raw_address_where_no_name_can_be_read(guest: Guest, port: int) -> None:
    refused_at_syn(guest(NAME), ATTACKER, port, "no-rule")
    refused_at_syn(guest(f"{NAME}:443"), ATTACKER, 80, "no-rule")
    refused_at_syn(guest(spec=NetworkSpec.enabled(deny_all=True)), ATTACKER, 443, "no-rule")


def test_C5_a_scan_of_a_port_where_names_are_read(guest: Guest) -> None:
    """The handshake has to be completed to read a name; a guest that says none and closes is told by a reset."""
    wire = guest(NAME)
    connection = peeked(wire, ATTACKER)
    connection.fin()
    turned_away(wire, connection, refusal("closed-without-name"), told="reset")
    connection = peeked(wire, ATTACKER)
    connection.rst()
    assert wire.hears_nothing()
    assert wire.asks_nothing()
    closed = wire.one_flow_event()
    assert isinstance(closed, FlowClosed)
    assert (closed.reason, closed.sent, closed.received) == ("reset by guest", 0, 0)
    assert is_gone(connection)


# -- C6, C7, C8 -------------------------------------------------------------------------------------------------------

NO_NAMES = {
    "sni-ip-literal": [b"93.184.216.34", b"2606:2800:220:1::1", b"0x7f000001", b"127.1", b"api.example.com:443"],
    "sni-empty": [b""],
    "sni-nul": [b"api.example.com\0.evil.net", b"\0", b"api.example.com\0"],
    "sni-whitespace": [b" api.example.com", b"api.example.com ", b"api.example .com", b"api.example.com\r\n"],
    "sni-not-ascii": ["bücher.example".encode(), b"\xff\xfe", "\N{SNOWMAN}".encode() * 80],
    "sni-too-long": [b"a." * 128 + b"example.com", b"x" * 256, b"x" * 60000],
    "sni-trailing-dot": [b"api.example.com.", b"api.example.com..", b".", b"1.1.1.1."],
    "sni-not-a-name": [b"-.example.com", b"a..example.com", b".example.com", b"*.example.com", b"[api.example.com]",
                       b"user@api.example.com", b"a" * 64 + b".example.com"],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "name"), [(reason, name) for reason, names in NO_NAMES.items() for name in names])
def test_C6_names_that_are_none(guest: Guest, reason: str, name: bytes) -> None:
    wire = guest(NAME, "*.example.com", SITE)
    connection = peeked(wire, ATTACKER)
    say(connection, crafted(name))
    turned_away(wire, connection, refusal(reason, "tls", source="sni"))


@pytest.mark.parametrize("hello", [hellos.python_ssl(None), hellos.openssl(None), hellos.records(hellos.message())],
                         ids=["python", "post-quantum", "no extensions"])  # fmt: skip
def test_C6_no_name(guest: Guest, hello: bytes) -> None:
    """Refused where a name decides; an address rule needs none."""
    wire = guest(NAME, CDN)
    connection = peeked(wire, ATTACKER)
    say(connection, hello)
    turned_away(wire, connection, refusal("no-name", "tls", source="sni"))
    by_address = dialled_as_is(wire, CDN, 443, "address-rule", CDN)
    say(by_address, hello)
    assert sent_bytes(wire.asked()) == hello


def test_C6_another_kind_of_name(guest: Guest) -> None:
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, hellos.records(hellos.message(hellos.server_name(NAME.encode(), kind=1))))
    turned_away(wire, connection, refusal("sni-type", "tls", source="sni"))


def test_C7_two_names(guest: Guest) -> None:
    for names in ((NAME, OTHER_NAME), (OTHER_NAME, NAME), (NAME, NAME)):
        wire = guest(NAME)
        connection = peeked(wire)
        say(connection, crafted(*(name.encode() for name in names)))
        turned_away(wire, connection, refusal("sni-several-names", "tls", source="sni"))


def test_C7_two_extensions(guest: Guest) -> None:
    for names in ((NAME, OTHER_NAME), (OTHER_NAME, NAME), (NAME, NAME)):
        wire = guest(NAME)
        connection = peeked(wire)
        say(connection, hellos.records(hellos.message(*(hellos.server_name(name.encode()) for name in names))))
        turned_away(wire, connection, refusal("tls-duplicate-extension", "tls", source="sni"))


ECH = {
    "grease of OpenSSL": hellos.openssl(NAME.encode(), ech=True),
    "crafted": hellos.records(
        hellos.message(hellos.server_name(NAME.encode()), hellos.extension(hellos.ECH, b"x" * 99))
    ),
    "esni of the drafts": hellos.records(
        hellos.message(hellos.extension(0xFFCE, b"x" * 99), hellos.server_name(NAME.encode()))
    ),
}


@pytest.mark.parametrize("hello", ECH.values(), ids=ECH)
def test_C8_the_outer_name_decides(guest: Guest, hello: bytes) -> None:
    """It is the server that is dialled: what it makes of the inner name is its own affair, as with C4."""
    wire = guest(NAME)
    connection = peeked(wire, ATTACKER)
    say(connection, hello)
    opened_by_name(wire, connection, hello)
    wire = guest(OTHER_NAME)
    connection = peeked(wire, ATTACKER)
    say(connection, hello)
    turned_away(wire, connection, refusal("name-not-allowed", "tls", name=NAME, source="sni"))


@pytest.mark.parametrize("hello", ECH.values(), ids=ECH)
def test_C8_strict(guest: Guest, hello: bytes) -> None:
    wire = guest(spec=NetworkSpec.enabled([NAME], strict_ech=True))
    connection = peeked(wire)
    say(connection, hello)
    turned_away(wire, connection, refusal("ech", "tls", name=NAME, source="sni"))


# -- C15, C16 ---------------------------------------------------------------------------------------------------------

PLACES = {
    "10.0.0.5": "private-address",
    "127.0.0.1": "loopback-address",
    "192.168.127.1": "own-subnet",
    "192.168.127.254": "own-subnet",
    "192.168.127.2": "own-subnet",
    "169.254.169.254": "metadata",
    "100.64.0.1": "cgnat-address",
    "198.18.0.1": "reserved-address",
    "224.0.0.1": "multicast-address",
    "0.0.0.0": "unspecified-address",
}


@pytest.mark.parametrize(("place", "reason"), PLACES.items())
def test_C15_an_allowed_name_that_leads_inside(guest: Guest, place: str, reason: str) -> None:
    wire = guest(NAME)
    assert wire.resolve(NAME, place) == []
    connection = peeked(wire, SITE)
    say(connection, hellos.python_ssl(NAME))
    flow = wire.asked_one(OpenNamed).flow
    assert wire.stack.candidate_fault(6, ip(place), 443) == reason
    wire.stack.stream_objected(flow, reason, wire.now)
    turned_away(wire, connection, refusal(reason, "dial", rule=NAME, name=NAME, source="sni"), told="alert")


def test_C15_an_address_rule_of_its_own(guest: Guest) -> None:
    """Opens its ports only, and neither the guest's own network nor metadata nor the host's loopback."""
    wire = guest(NAME, "10.0.0.0/8:443", "127.0.0.0/8", "192.168.0.0/16", "169.254.0.0/16")
    objection = wire.stack.candidate_fault
    assert wire.resolve(NAME, "10.0.0.5") == ["10.0.0.5"]
    assert objection(6, ip("10.0.0.5"), 443) == ""
    assert objection(6, ip("10.0.0.5"), 80) == "private-address"
    assert objection(6, ip("192.168.1.1"), 443) == ""
    for place in ("127.0.0.1", "192.168.127.1", "192.168.127.254", "169.254.169.254"):
        assert objection(6, ip(place), 443) == PLACES[place]


def test_C15_a_pinned_answer_opens_public_addresses_only(guest: Guest) -> None:
    """`name:22` and `10.0.0.5:80` together do not make 10.0.0.5:22, whatever the name's servers say."""
    wire = guest(f"{SSH}:22", "10.0.0.5:80")
    assert wire.resolve(SSH, "10.0.0.5") == ["10.0.0.5"]
    refused_at_syn(wire, "10.0.0.5", 22, "port-not-covered", rule="10.0.0.5:80")


def test_C15_public_and_private_mixed(guest: Guest) -> None:
    wire = guest(NAME)
    assert wire.resolve(NAME, "10.0.0.5", SITE, "127.0.0.1") == [SITE]


def test_C16_an_unlisted_name_by_address(guest: Guest) -> None:
    """curl --resolve evil:443:ADDRESS, with and without a name rule on the port."""
    wire = guest(NAME)
    connection = peeked(wire, ATTACKER)
    say(connection, hellos.python_ssl(OTHER_NAME))
    turned_away(wire, connection, refusal("name-not-allowed", "tls", name=OTHER_NAME, source="sni"))
    refused_at_syn(guest(CDN), ATTACKER, 443, "no-rule")
