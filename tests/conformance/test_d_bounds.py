"""Conformance class D, the second half: how much is read, for how long, and what lies about its length."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from wire import hellos
from wire.http_requests import get

from netstack.engine import tcp_admission, tcp_flows
from netstack.engine.effects import AbortStream, OpenNamed
from netstack.engine.events import FlowRefused
from netstack.engine.inspection import DEADLINE

from .policy_wire import (
    ATTACKER,
    NAME,
    OTHER_NAME,
    SITE,
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
HELLO = hellos.python_ssl(NAME)
REQUEST = get(f"Host: {NAME}")
MESSAGE = hellos.message(hellos.server_name(NAME.encode()))
STREAM = hellos.records(MESSAGE)


# -- D2, D3 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("segment", [1, 1400])
def test_D2_hello_over_many_records(guest: Guest, size: int, segment: int) -> None:
    stream = hellos.records(MESSAGE, [size] * len(MESSAGE))
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, stream, segment)
    opened_by_name(wire, connection, stream)
    wire = guest(OTHER_NAME)
    connection = peeked(wire)
    say(connection, stream, segment)
    turned_away(wire, connection, refusal("name-not-allowed", "tls", name=NAME, source="sni"))


def test_D2_an_empty_record_between(guest: Guest) -> None:
    stream = HELLO[:3] + b"\x00\x00" + HELLO
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, stream)
    turned_away(wire, connection, refusal("tls-record-length", "tls", source="sni"))


def test_D3_a_padded_hello_of_many_records(guest: Guest) -> None:
    """40 KiB of padding before the name (RFC 7685): read, allowed, sent as it came."""
    padding = hellos.extension(21, bytes(40_000))
    stream = hellos.records(hellos.message(padding, hellos.server_name(NAME.encode())))
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, stream)
    opened_by_name(wire, connection, stream)


def test_D3_a_hello_beyond_the_bound(guest: Guest) -> None:
    """65,536 bytes are read; a longer hello is refused by its own length field, at once."""
    padding = hellos.extension(21, bytes(65_480))
    stream = hellos.records(hellos.message(padding, hellos.server_name(NAME.encode())), [2] * 3)
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, stream[:21])
    turned_away(wire, connection, refusal("tls-too-long", "tls", source="sni"))


def test_D3_records_without_end(guest: Guest) -> None:
    """One-byte records make six bytes of each: the bound counts what came, and the window is what is kept."""
    message = hellos.message(hellos.extension(21, bytes(30_000)), hellos.server_name(NAME.encode()))
    stream = hellos.records(message, [1] * len(message))
    assert len(stream) > 100_000
    wire = guest(NAME)
    connection = wire.connection(SITE, 443)
    connection.syn(options=[("MSS", 1460), ("WScale", 7)])
    connection.finish_handshake()
    sent = 0
    while sent < len(stream) and not wire.told(FlowRefused):
        connection.say(stream[sent : sent + 1400])
        sent += 1400
    assert sent <= 65_536 + 1400
    assert wire.asks_nothing()
    (event,) = wire.told(FlowRefused)
    assert event.verdict == refusal("tls-too-long", "tls", source="sni")


def with_length(stream: bytes, at: int, size: int, value: int) -> bytes:
    return stream[:at] + value.to_bytes(size, "big") + stream[at + size :]


LIES = {
    "record of no bytes": (with_length(STREAM, 3, 2, 0), "tls-record-length"),
    "record above 16 KiB": (with_length(STREAM, 3, 2, 16_385), "tls-record-length"),
    "record one byte short": (with_length(STREAM, 3, 2, len(MESSAGE) - 1) + bytes(5), "tls-content-type"),
    "message one byte short": (with_length(STREAM, 6, 3, len(MESSAGE) - 5), "tls-trailing-bytes"),
    "message of 16 MB": (with_length(STREAM, 6, 3, 0xFFFFFF), "tls-too-long"),
    "session id of 33": (hellos.records(hellos.handshake(hellos.body(b"", session_id=bytes(33)))), "tls-session-id"),
    "session id of 255": (hellos.records(hellos.handshake(hellos.body(b"", session_id=bytes(255)))), "tls-session-id"),
    "odd cipher suites": (
        hellos.records(hellos.handshake(hellos.body(b"", suites=b"\x13\x01\x13"))),
        "tls-cipher-suites",
    ),
    "extensions one byte long": (
        hellos.records(hellos.handshake(hellos.body(hellos.server_name(NAME.encode())) + b"\0")),
        "tls-extensions-length",
    ),
    "extension beyond the end": (
        hellos.records(hellos.message(struct.pack("!HH", 0, 500) + bytes(20))),
        "tls-extension-length",
    ),
    "names beyond the extension": (
        hellos.records(hellos.message(hellos.extension(0, b"\x00\x20\x00\x00\x1dx"))),
        "sni-length",
    ),
    "another handshake message": (hellos.records(hellos.handshake(bytes(50), kind=2)), "tls-not-client-hello"),
    "a version that is none": (STREAM[:1] + b"\x04" + STREAM[2:], "tls-version"),
}  # fmt: skip


@pytest.mark.parametrize(("stream", "reason"), LIES.values(), ids=LIES)
@pytest.mark.parametrize("size", [1, 1400])
def test_D3_lengths_that_lie(guest: Guest, stream: bytes, reason: str, size: int) -> None:
    wire = guest(NAME)
    connection = peeked(wire)
    for at in range(0, len(stream), size):
        if wire.told(FlowRefused):
            break
        connection.say(stream[at : at + size])
    turned_away(wire, connection, refusal(reason, "tls", source="sni"))


# -- D4 ---------------------------------------------------------------------------------------------------------------


def test_D4_nothing_at_all(guest: Guest) -> None:
    wire = guest(NAME)
    connection = peeked(wire)
    wire.wait(DEADLINE - 0.1)
    assert wire.hears_nothing()
    assert not wire.flow_events()
    wire.wait(0.2)
    turned_away(wire, connection, refusal("no-name-in-time", "syn"))


@pytest.mark.parametrize(("data", "step"), [(HELLO, "tls"), (REQUEST, "http")], ids=["tls", "http"])
def test_D4_one_byte_a_second(guest: Guest, data: bytes, step: str) -> None:
    """The time counts from the handshake, not from the last byte."""
    wire = guest(NAME)
    connection = peeked(wire)
    for at in range(5):
        connection.say(data[at : at + 1])
        wire.wait(0.99)
    assert not wire.told(FlowRefused)
    connection.hear()
    wire.wait(0.1)
    turned_away(wire, connection, refusal("no-name-in-time", step))


def test_D4_a_name_in_the_last_moment(guest: Guest) -> None:
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, HELLO[:-1])
    wire.wait(DEADLINE - 0.1)
    connection.hear()
    say(connection, HELLO[-1:])
    opened_by_name(wire, connection, HELLO)
    wire.wait(3600)
    assert not wire.told(FlowRefused), "there is no time limit any more"


def test_D4_a_handshake_that_is_never_completed(guest: Guest) -> None:
    wire = guest(NAME)
    connection = wire.connection(ATTACKER, 443)
    connection.syn()
    connection.hear()
    wire.wait(DEADLINE + 0.1)
    assert [str(segment.flags) for segment in connection.hear()][-1] in ("R", "RA")
    (event,) = wire.flow_events()
    assert event.verdict == refusal("no-name-in-time", "syn")
    assert is_gone(connection)


def test_D4_many_at_once(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond MAX_PEEKING further flows are refused at their SYN; the others are not touched, and room comes back."""
    assert tcp_flows.MAX_PEEKING == 1024
    monkeypatch.setattr(tcp_flows, "MAX_PEEKING", 50)
    wire = guest(NAME, "10.0.0.0/8")
    for _ in range(50):
        peeked(wire, ATTACKER)
    refused_at_syn(wire, SITE, 443, "too-many-unnamed-flows")
    dialled_as_is(wire, "10.0.0.1", 443, "address-rule", "10.0.0.0/8")
    wire.wait(DEADLINE + 0.1)
    wire.hear()
    peeked_again = wire.connection(SITE, 443)
    peeked_again.syn()
    peeked_again.finish_handshake()


def test_D4_bytes_that_wait_are_bounded(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all flows together, while the name is read and while it is dialled; what was sent on or given up is free."""
    assert tcp_admission.MAX_WAITING_BYTES == 64 << 20
    monkeypatch.setattr(tcp_admission, "MAX_WAITING_BYTES", 3000)
    wire = guest(NAME)
    dialling = peeked(wire)
    say(dialling, HELLO + bytes(1000))
    dialling.flow = wire.asked_one(OpenNamed).flow
    dialling.hear()
    reading = peeked(wire)
    say(reading, HELLO[:400])
    reading.hear()
    dialling.say(bytes(1400))
    assert wire.asked() == [AbortStream(dialling.flow)]
    verdict = refusal("too-many-bytes-wait", "tls", name=NAME, source="sni")
    turned_away(wire, dialling, verdict)
    wire.events.clear()  # the other one took too long meanwhile
    for _ in range(5):  # 517 bytes each time, one after the other
        connection = peeked(wire)
        say(connection, HELLO + bytes(1000))
        opened_by_name(wire, connection, HELLO + bytes(1000))
    last = peeked(wire)
    say(last, HELLO)
    opened_by_name(wire, last, HELLO)


def test_D4_a_hook_overrules_no_bound(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that may allow what the policy refuses is not asked about a table that is full."""
    monkeypatch.setattr(tcp_flows, "MAX_PEEKING", 1)
    for reason, rules, changes in (
        ("too-many-unnamed-flows", [NAME], {}),
        ("table-full", ["10.0.0.0/8"], {"max_tcp_flows": 1}),
    ):
        wire = guest(*rules, **changes)
        first = dialled_as_is(wire, "10.0.0.1", 1, "address-rule", rules[0]) if changes else peeked(wire)
        wire.stack.judge.consults = wire.stack.judge.loosens = True
        refused_at_syn(wire, "10.0.0.1" if changes else SITE, 443, reason)
        assert not is_gone(first)


def test_D4_a_server_that_speaks_first_needs_no_name(guest: Guest) -> None:
    """Only where the rule is about addresses: there nothing is read, and nothing waited for."""
    wire = guest(NAME, f"{SITE}:443")
    connection = dialled_as_is(wire, SITE, 443, "address-rule", f"{SITE}:443")
    wire.stack.stream_received(connection.flow, b"220 ready\r\n")
    assert connection.hear_bytes() == b"220 ready\r\n"


# -- D9 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split", [b"GET /", b"GET / HTTP/1.1\r", b"Ho", b"Host", b"Host:", b"api.ex", b"com\r", b"\r\n\r"]
)
def test_D9_a_request_in_two_pieces(guest: Guest, split: bytes) -> None:
    at = REQUEST.index(split) + len(split)
    wire = guest(NAME)
    connection = peeked(wire, SITE, 80)
    connection.say(REQUEST[:at])
    assert wire.asks_nothing()
    connection.hear()
    wire.wait(1)
    connection.say(REQUEST[at:])
    opened_by_name(wire, connection, REQUEST, source="host")


def test_D9_a_head_within_the_bound(guest: Guest) -> None:
    request = get(f"Host: {NAME}", *(f"X-{number}: {'x' * 1000}" for number in range(15)))
    assert 15_000 < len(request) < 16_384
    wire = guest(NAME)
    connection = peeked(wire, SITE, 80)
    say(connection, request)
    opened_by_name(wire, connection, request, source="host")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (["X: " + "x" * 65_000], "http-too-long"),
        ([f"X: {'x' * 1000}"] * 64, "http-too-long"),
        (["X:"] * 300, "http-too-many-fields"),
    ],
    ids=["one long field", "64 KiB of fields", "many fields"],
)
def test_D9_a_head_beyond_the_bound(guest: Guest, fields: list[str], reason: str) -> None:
    request = get(*fields, f"Host: {NAME}")
    wire = guest(NAME)
    connection = peeked(wire, SITE, 80)
    sent = 0
    while sent < len(request) and not wire.told(FlowRefused):
        connection.say(request[sent : sent + 1400])
        sent += 1400
    assert sent < 20_000
    turned_away(wire, connection, refusal(reason, "http", source="host"))
