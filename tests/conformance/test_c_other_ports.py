"""Conformance C17: names on ports where nothing can be read, by answers our DNS gave and by synthetic addresses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine.wire_guest import GUEST, OTHER_MAC, GuestTcp, ip, payload_of, sent_bytes
from wire import hellos

from netstack.engine.effects import AbortStream, OpenNamed, OpenStream, ShutdownStream
from netstack.engine.events import FlowClosed, FlowOpened, FlowRefused
from netstack.engine.verdict import ALLOW, Verdict
from netstack.network_spec import NetworkSpec

from .policy_wire import (
    ATTACKER,
    CDN,
    NAME,
    OTHER_NAME,
    SITE,
    TRUE_SITE,
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
SSH = "github.example.com"


# -- C17: names on other ports ----------------------------------------------------------------------------------------


def test_C17_a_name_with_a_port(guest: Guest) -> None:
    """Server-first protocols: the address our DNS gave this guest is opened on the rule's port, and on no other."""
    wire = guest(f"{SSH}:22", NAME)
    refused_at_syn(wire, SITE, 22, "no-rule")
    assert wire.resolve(SSH, SITE) == [SITE]
    connection = dialled_as_is(wire, SITE, 22, "answered-name", f"{SSH}:22", SSH)
    wire.stack.stream_received(connection.flow, b"SSH-2.0-server\r\n")
    assert connection.hear_bytes() == b"SSH-2.0-server\r\n", "the server speaks first"
    refused_at_syn(wire, SITE, 5432, "no-rule")
    refused_at_syn(wire, CDN, 22, "no-rule")


def test_C17_a_name_without_a_port_is_for_the_web(guest: Guest) -> None:
    wire = guest(NAME, f"{NAME}:5432")
    assert wire.resolve(NAME, SITE) == [SITE]
    dialled_as_is(wire, SITE, 5432, "answered-name", f"{NAME}:5432", NAME)
    for port in (22, 5433, 8080):
        refused_at_syn(wire, SITE, port, "no-rule")
    connection = peeked(wire, SITE, 443)
    say(connection, b"SSH-2.0-client\r\n")
    turned_away(wire, connection, refusal("not-http", "other"))


def test_C17_pins_expire_and_belong_to_one_guest(guest: Guest) -> None:
    wire = guest(f"{SSH}:22")
    assert wire.resolve(SSH, SITE, ttl=1) == [SITE]
    wire.wait(59)
    connection = dialled_as_is(wire, SITE, 22, "answered-name", f"{SSH}:22", SSH)
    other = wire.connection(SITE, 22, source="192.168.127.3", source_mac=OTHER_MAC)
    other.syn()
    other.hear_one("RA")
    assert wire.asks_nothing()
    assert_told(wire, other, refusal("no-rule"), "reset")
    wire.wait(2)
    refused_at_syn(wire, SITE, 22, "no-rule")
    connection.say(b"a live flow keeps the address its name had")
    assert sent_bytes(wire.asked())


def test_C17_no_pin_lives_longer_than_an_hour(guest: Guest) -> None:
    wire = guest(f"{SSH}:22")
    assert wire.resolve(SSH, SITE, ttl=86400) == [SITE]
    wire.wait(3599)
    dialled_as_is(wire, SITE, 22, "answered-name", f"{SSH}:22", SSH)
    wire.wait(2)
    refused_at_syn(wire, SITE, 22, "no-rule")


def test_C17_a_name_that_was_not_allowed_pins_nothing(guest: Guest) -> None:
    wire = guest(f"{SSH}:22")
    assert wire.resolve(OTHER_NAME) == ["0.0.0.0"]
    refused_at_syn(wire, ATTACKER, 22, "no-rule")


def synthetic(guest: Guest, *rules: str) -> PolicyWire:
    return guest(spec=NetworkSpec.enabled(rules, answers="synthetic"))


def open_synthetic(wire: PolicyWire, address: str, port: int, name: str, rule: str) -> GuestTcp:
    """(D) The name is dialled before (G) the SYN is answered: no byte of the guest's is waited for."""
    connection = wire.connection(address, port)
    connection.syn()
    opened = wire.asked_one(OpenNamed)
    assert opened == OpenNamed(opened.flow, name, port)
    assert wire.hears_nothing()
    connection.flow = opened.flow
    wire.stack.stream_opened(opened.flow, wire.now, ip(TRUE_SITE))
    connection.finish_handshake()
    event = wire.one_flow_event()
    assert isinstance(event, FlowOpened)
    assert (event.destination, event.dialled) == ((ip(address), port), (ip(TRUE_SITE), port))
    assert event.verdict == Verdict(ALLOW, "syn", "name-rule", rule, name, "synthetic")
    return connection


def test_C17_synthetic_answers(guest: Guest) -> None:
    wire = synthetic(guest, f"{SSH}:22", NAME)
    (address,) = wire.resolve(SSH, SITE)
    (other,) = wire.resolve(NAME, SITE)
    assert address.startswith("198.18.")
    assert address != other
    connection = open_synthetic(wire, address, 22, SSH, f"{SSH}:22")
    wire.stack.stream_received(connection.flow, b"SSH-2.0-server\r\n")
    assert connection.hear_bytes() == b"SSH-2.0-server\r\n"
    for piece in (b"S", b"SH-2.0-client", b"\r\n", b"\x00\x00\x05"):
        connection.say(piece)
        assert sent_bytes(wire.asked()) == piece, "nothing waits"
    for port in (443, 5432):
        refused_at_syn(wire, address, port, "port-not-covered", rule=f"{SSH}:22", name=SSH, source="synthetic")
    refused_at_syn(wire, other, 22, "port-not-covered", rule=NAME, name=NAME, source="synthetic")
    refused_at_syn(wire, SITE, 22, "no-rule")
    refused_at_syn(wire, "198.18.77.77", 22, "reserved-address")


def test_C17_what_a_synthetic_address_is_told_has_to_agree(guest: Guest) -> None:
    for data, name, source, told in (
        (hellos.python_ssl(OTHER_NAME), OTHER_NAME, "sni", "alert"),
        (hellos.python_ssl("b.example.com"), "b.example.com", "sni", "alert"),
        (b"GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n", "b.example.com", "host", "forbidden"),
    ):
        wire = synthetic(guest, NAME, "b.example.com")
        (address,) = wire.resolve(NAME, SITE)
        connection = open_synthetic(wire, address, 443, NAME, NAME)
        for at in range(0, len(data), 50):
            connection.say(data[at : at + 50])
        sent = [effect for effect in wire.asked() if not isinstance(effect, AbortStream)]
        assert data.startswith(sent_bytes(sent))
        assert len(sent_bytes(sent)) < len(data), "what would let the server act is held back"
        said = b"".join(payload_of(segment) for segment in connection.hear())
        assert said.startswith(b"\x15" if told == "alert" else b"HTTP/1.1 403 ")
        refused, closed = wire.flow_events()
        step = {"sni": "tls", "host": "http"}[source]
        assert refused.verdict == refusal("name-disagrees-with-address", step, name=name, source=source)
        assert refused.told == told
        assert closed.reason == "refused"


@pytest.mark.parametrize(
    "data",
    [
        hellos.python_ssl(NAME),
        hellos.python_ssl(None),
        b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        b"letters without an end of line",
        b"EHLO me\r\n",
        b"\x00\x01binary",
        b"\x16",
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1400])
def test_C17_to_a_synthetic_address_everything_else_passes_unchanged(guest: Guest, data: bytes, size: int) -> None:
    wire = synthetic(guest, f"{NAME}:1-65535")
    (address,) = wire.resolve(NAME, SITE)
    connection = open_synthetic(wire, address, 7000, NAME, f"{NAME}:1-65535")
    say(connection, data, size)
    connection.fin()
    *sent, finished = wire.asked()
    assert sent_bytes(sent) == data
    assert finished == ShutdownStream(connection.flow)
    assert not wire.flow_events()


def test_C17_opened_and_refused_in_one_batch(guest: Guest) -> None:
    """The hello came with the handshake's last acknowledgement: the flow was open before it was refused."""
    wire = synthetic(guest, NAME)
    (address,) = wire.resolve(NAME, SITE)
    connection = wire.connection(address, 443)
    connection.syn()
    wire.stack.stream_opened(wire.asked_one(OpenNamed).flow, wire.now, ip(TRUE_SITE))
    connection.heard = connection.hear_one("SA").seq + 1
    connection.say(hellos.python_ssl(OTHER_NAME))
    assert wire.asked_one(AbortStream)
    assert [type(event) for event in wire.flow_events()] == [FlowOpened, FlowRefused, FlowClosed]


def test_C17_later_requests_to_a_synthetic_address_have_to_agree(guest: Guest) -> None:
    wire = synthetic(guest, NAME, "b.example.com")
    (address,) = wire.resolve(NAME, SITE)
    connection = open_synthetic(wire, address, 80, NAME, NAME)
    first = b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n"
    say(connection, first, 10)
    assert sent_bytes(wire.asked()) == first
    connection.say(b"GET / HTTP/1.1\r\nHost: b.example.com\r\n\r\n")
    assert wire.asked_one(AbortStream)
    refused, _ = wire.flow_events()
    assert refused.verdict == refusal("host-changed", "http", name="b.example.com", source="host")


def test_C17_http_without_a_host_at_a_synthetic_address(guest: Guest) -> None:
    """Refused: nobody would read its later requests."""
    wire = synthetic(guest, NAME)
    (address,) = wire.resolve(NAME, SITE)
    connection = open_synthetic(wire, address, 80, NAME, NAME)
    connection.say(b"GET / HTTP/1.0\r\n\r\n")
    assert wire.asked_one(AbortStream)
    assert wire.flow_events()[0].verdict == refusal("no-name", "http", source="host")


def test_C17_two_guests_and_one_synthetic_address(guest: Guest) -> None:
    """It stands for the same name, whoever asks: there is nothing to be had by knowing another's."""
    wire = synthetic(guest, f"{SSH}:22")
    (address,) = wire.resolve(SSH, SITE)
    assert wire.resolve(SSH, SITE, guest="192.168.127.3", mac=OTHER_MAC) == [address]
    assert GUEST != "192.168.127.3"
    opened = wire.connection(address, 22, source="192.168.127.3", source_mac=OTHER_MAC)
    opened.syn()
    assert wire.asked_one(OpenNamed).name == SSH
    assert not [effect for effect in wire.asked() if isinstance(effect, OpenStream)]
