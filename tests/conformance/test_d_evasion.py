"""Conformance class D: first flights made to be read one way by a filter and another way by the server.

Every verdict is about exactly the bytes that go upstream: in whatever segments they come, the first accepted ones win.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine.wire_guest import GuestTcp, ip, payload_of, sent_bytes
from wire import hellos
from wire.http_requests import get

from netstack.engine.effects import AbortStream, OpenNamed, ShutdownStream
from netstack.engine.events import FlowClosed, FlowOpened, FlowRefused

from .policy_wire import (
    ALERT,
    NAME,
    OTHER_NAME,
    SITE,
    PolicyWire,
    cut,
    dialled_as_is,
    is_gone,
    opened_by_name,
    peeked,
    refusal,
    say,
    turned_away,
)

Guest = Callable[..., PolicyWire]
HELLO = hellos.python_ssl(NAME)
OTHER_HELLO = hellos.python_ssl(OTHER_NAME)
POST_QUANTUM = hellos.openssl(NAME.encode())
REQUEST = get(f"Host: {NAME}")
MESSAGE = hellos.message(hellos.server_name(NAME.encode()))
STREAM = hellos.records(MESSAGE)


def put_at(connection: GuestTcp, offset: int, data: bytes) -> None:
    """A data segment at an offset of the guest's stream, wherever it stands."""
    connection.put("PA", data, seq=(connection.isn + 1 + offset) & 0xFFFFFFFF)


# -- D1 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hello", [HELLO, POST_QUANTUM], ids=["classic", "post-quantum"])
def test_D1_one_byte_segments(guest: Guest, hello: bytes) -> None:
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, hello, 1)
    opened_by_name(wire, connection, hello)


def test_D1_one_byte_segments_of_another_name(guest: Guest) -> None:
    wire = guest(OTHER_NAME)
    connection = peeked(wire)
    say(connection, STREAM, 1)
    turned_away(wire, connection, refusal("name-not-allowed", "tls", name=NAME, source="sni"))


def test_D1_segments_in_any_order(guest: Guest) -> None:
    wire = guest(NAME)
    connection = peeked(wire)
    pieces = cut(POST_QUANTUM, [100] * 20)
    offsets = [sum(map(len, pieces[:index])) for index in range(len(pieces))]
    for index in reversed(range(1, len(pieces))):
        put_at(connection, offsets[index], pieces[index])
        assert wire.asks_nothing(), "the first byte is missing"
    put_at(connection, 0, pieces[0])
    connection.sent += len(POST_QUANTUM)
    opened_by_name(wire, connection, POST_QUANTUM)


@pytest.mark.parametrize("first", [HELLO, OTHER_HELLO], ids=["allowed first", "allowed second"])
def test_D1_what_is_sent_again_with_other_bytes(guest: Guest, first: bytes) -> None:
    """The same positions twice, in order and beyond a gap: the first bytes are judged, and they are what is sent."""
    other = (OTHER_HELLO if first == HELLO else HELLO).ljust(len(first), b"\0")[: len(first)]
    for start in (0, 40):
        wire = guest(NAME)
        connection = peeked(wire)
        if start:
            put_at(connection, start, first[start:])  # kept beyond a gap
            put_at(connection, start, other[start:])
            put_at(connection, start + 20, other[start + 20 :])
            put_at(connection, 0, first[:start] + other[start:])
        else:
            put_at(connection, 0, first[:30])
            put_at(connection, 0, other[:30])
            put_at(connection, 0, other[:20] + first[20:])
        connection.sent += len(first)
        if first == HELLO:
            opened_by_name(wire, connection, first)
        else:
            turned_away(wire, connection, refusal("name-not-allowed", "tls", name=OTHER_NAME, source="sni"))


def test_D1_bytes_after_the_verdict_are_not_judged_again(guest: Guest) -> None:
    """A retransmission of the whole hello with another name after the dial changes nothing."""
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, HELLO)
    opened_by_name(wire, connection, HELLO)
    put_at(connection, 0, OTHER_HELLO)
    assert wire.asks_nothing()


# -- D5 ---------------------------------------------------------------------------------------------------------------

NEITHER = {
    "0x16 and then http": (b"\x16" + REQUEST, "tls", "tls-version"),
    "http in a tls record": (b"\x16\x03\x01\x00\x30" + REQUEST.ljust(48), "tls", "tls-not-client-hello"),
    "sslv2 hello": (b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + bytes(37), "other", "not-http"),
    "alert first": (ALERT + HELLO, "other", "not-http"),
    "application data first": (b"\x17\x03\x03\x00\x10" + bytes(16) + HELLO, "other", "not-http"),
    "alert after half a hello": (hellos.records(hellos.message_of(HELLO), [9])[:14] + ALERT, "tls", "tls-content-type"),
    "smtp": (b"EHLO me.example\r\nSTARTTLS\r\n", "other", "not-http"),
    "ssh": (b"SSH-2.0-OpenSSH_9.9\r\n", "other", "not-http"),
    "postgres": (b"\x00\x00\x00\x08\x04\xd2\x16\x2f" + HELLO, "other", "not-http"),
    "zeros": (bytes(100), "other", "not-http"),
    "high bytes": (b"\xff" * 100, "other", "not-http"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "step", "reason"), NEITHER.values(), ids=NEITHER)
@pytest.mark.parametrize("port", [80, 443])
def test_D5_neither_tls_nor_http(guest: Guest, data: bytes, step: str, reason: str, port: int) -> None:
    wire = guest(NAME)
    connection = peeked(wire, SITE, port)
    say(connection, data)
    turned_away(wire, connection, refusal(reason, step, source="sni" if step == "tls" else ""))
    by_address = guest(SITE)
    connection = dialled_as_is(by_address, SITE, port, "address-rule", SITE)
    say(connection, data)
    assert sent_bytes(by_address.asked()) == data, "an address rule asks nothing"


# -- D6, D7, D8 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "allowed"), [(HELLO, True), (OTHER_HELLO, False)], ids=["allowed", "refused"])
def test_D6_data_in_the_syn(guest: Guest, data: bytes, allowed: bool) -> None:
    """Not taken, and not acknowledged: the guest sends it again after the handshake (RFC 9293 section 3.10.7.4)."""
    wire = guest(NAME)
    connection = wire.connection(SITE, 443)
    connection.put("S", data, seq=connection.isn)
    connection.sent = connection.isn + 1
    assert connection.finish_handshake().ack == connection.isn + 1
    assert wire.asks_nothing()
    say(connection, data)
    if allowed:
        opened_by_name(wire, connection, data)
    else:
        turned_away(wire, connection, refusal("name-not-allowed", "tls", name=OTHER_NAME, source="sni"))


@pytest.mark.parametrize(("data", "allowed"), [(HELLO, True), (OTHER_HELLO, False)], ids=["allowed", "refused"])
@pytest.mark.parametrize("flags", ["PA", "PAF", "PAU"])
def test_D6_data_with_the_first_ack(guest: Guest, data: bytes, allowed: bool, flags: str) -> None:
    wire = guest(NAME)
    connection = wire.connection(SITE, 443)
    connection.syn()
    connection.heard = connection.hear_one("SA").seq + 1
    connection.put(flags, data)
    connection.sent += len(data) + ("F" in flags)
    if not allowed:
        verdict = refusal("name-not-allowed", "tls", name=OTHER_NAME, source="sni")
        heard = connection.hear()
        assert b"".join(map(payload_of, heard)) == ALERT
        assert wire.asks_nothing()
        assert [event.verdict for event in wire.told(FlowRefused)] == [verdict]
        return
    if "F" in flags:
        opened = wire.asked_one(OpenNamed)
        wire.stack.stream_opened(opened.flow, wire.now, ip(SITE))
        *sent, finished = wire.asked()
        assert sent_bytes(sent) == data
        assert finished == ShutdownStream(opened.flow)
    else:
        opened_by_name(wire, connection, data)


def test_D6_data_before_the_ack(guest: Guest) -> None:
    """A segment without ACK is dropped; one that acknowledges another number is answered by a reset."""
    wire = guest(NAME)
    connection = wire.connection(SITE, 443)
    connection.syn()
    connection.hear_one("SA")
    connection.put("P", HELLO)
    assert wire.hears_nothing()
    connection.put("PA", HELLO, ack=12345)
    assert connection.hear_one("R").seq == 12345
    assert wire.asks_nothing()
    assert not wire.flow_events()


def test_D7_reset_after_the_hello(guest: Guest) -> None:
    """While the name is looked up and dialled: the dial is ended, nothing is sent, one record is left."""
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, HELLO)
    flow = wire.asked_one(OpenNamed).flow
    connection.hear()
    connection.rst()
    assert wire.asked() == [AbortStream(flow)]
    closed = wire.one_flow_event()
    assert isinstance(closed, FlowClosed)
    assert (closed.reason, closed.sent) == ("reset by guest", 0)
    assert is_gone(connection)
    wire.stack.stream_opened(flow, wire.now, ip(SITE))
    assert wire.asks_nothing(), "too late"
    assert wire.rests(60)


def test_D7_reset_after_the_splice(guest: Guest) -> None:
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, HELLO)
    opened_by_name(wire, connection, HELLO)
    connection.hear()
    connection.rst()
    assert wire.asked() == [AbortStream(connection.flow)]
    assert wire.one_flow_event().reason == "reset by guest"
    assert is_gone(connection)


@pytest.mark.parametrize("early", [True, False], ids=["before the dial", "after it"])
def test_D7_half_closed_after_the_hello(guest: Guest, early: bool) -> None:
    """The server gets the hello and the guest's end, in that order, and its answer still comes."""
    wire = guest(NAME)
    connection = peeked(wire)
    say(connection, HELLO)
    if early:
        connection.fin()
    flow = wire.asked_one(OpenNamed).flow
    wire.stack.stream_opened(flow, wire.now, ip(SITE))
    if not early:
        connection.fin()
    *sent, finished = wire.asked()
    assert sent_bytes(sent) == HELLO
    assert finished == ShutdownStream(flow)
    assert [type(event) for event in wire.flow_events()] == [FlowOpened]
    connection.hear()
    wire.wait(60)
    assert wire.asks_nothing(), "it may wait as long as it likes"
    wire.stack.stream_received(flow, b"answer")
    assert connection.hear_bytes() == b"answer"


def test_D7_half_closed_before_the_name(guest: Guest) -> None:
    for data, step in ((HELLO[:-1], "tls"), (REQUEST[:-1], "http")):
        wire = guest(NAME)
        connection = peeked(wire)
        say(connection, data)
        connection.fin()
        turned_away(wire, connection, refusal("closed-without-name", step))


@pytest.mark.parametrize("pointer", [0, 1, 5, 100, 0xFFFF])
def test_D8_urgent_data_in_the_hello(guest: Guest, pointer: int) -> None:
    """Urgent data is data (RFC 6093): judged and sent where it stands, whatever the pointer says."""
    wire = guest(NAME)
    connection = peeked(wire)
    connection.put("PAU", HELLO[:60], urgptr=pointer)
    connection.sent += 60
    connection.put("PAU", HELLO[60:], urgptr=pointer)
    connection.sent += len(HELLO) - 60
    opened_by_name(wire, connection, HELLO)
