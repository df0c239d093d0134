"""Conformance class C, the second half: plain HTTP, whose requests have to name the host of their connection."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine.wire_guest import GATEWAY, GuestTcp, ip, payload_of, sent_bytes
from wire import hellos
from wire.http_requests import WEBSOCKET, get, written

from netstack.engine.effects import AbortStream, CloseStream, OpenNamed, SendStream, ShutdownStream
from netstack.engine.events import FlowClosed, FlowRefused

from .policy_wire import (
    ATTACKER,
    CDN,
    NAME,
    OTHER_NAME,
    SITE,
    PolicyWire,
    is_gone,
    opened_by_name,
    peeked,
    refusal,
    refused_at_syn,
    say,
    turned_away,
)

Guest = Callable[..., PolicyWire]
HEAD = get(f"Host: {NAME}")
EVIL = get(f"Host: {OTHER_NAME}")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def opened(guest: Guest, data: bytes = HEAD, address: str = SITE, *rules: str) -> tuple[PolicyWire, GuestTcp]:
    """A connection whose first bytes were allowed and sent on."""
    wire = guest(*(rules or (NAME,)))
    connection = peeked(wire, address, 80)
    say(connection, data)
    opened_by_name(wire, connection, data, source="host", rule=rules[0] if rules else "")
    connection.hear()
    return wire, connection


def answered(wire: PolicyWire, connection: GuestTcp, answer: bytes = ANSWER) -> None:
    wire.stack.stream_received(connection.flow, answer)
    assert connection.hear_bytes() == answer


def cut_off(
    wire: PolicyWire, connection: GuestTcp, reason: str, name: str = "", *, sent: bytes = b"", step: str = "http"
) -> None:
    """(G) A 403 and the end, (D) the server is reset and gets no more than `sent`, (E) one refusal, one end."""
    *passed, abort = wire.asked()
    assert sent_bytes(passed) == sent
    assert abort == AbortStream(connection.flow)
    heard = connection.hear()
    said = b"".join(payload_of(segment) for segment in heard)
    assert said.startswith(b"HTTP/1.1 403 ")
    assert reason.encode() in said
    assert "F" in str(heard[-1].flags)
    refused, closed = wire.flow_events()
    assert isinstance(refused, FlowRefused)
    assert refused.verdict == refusal(reason, step, name=name, source="host")
    assert (refused.told, refused.flow) == ("forbidden", connection.flow)
    assert isinstance(closed, FlowClosed)
    assert (closed.flow, closed.reason) == (connection.flow, "refused")
    connection.say(HEAD)
    assert wire.asks_nothing(), "nothing passes any more"
    wire.wait(6)
    assert is_gone(connection)


# -- C2, C9 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [SITE, CDN, ATTACKER])
@pytest.mark.parametrize("port", [80, 443])
def test_C2_an_allowed_host_at_any_address(guest: Guest, address: str, port: int) -> None:
    wire = guest(NAME)
    connection = peeked(wire, address, port)
    say(connection, HEAD)
    opened_by_name(wire, connection, HEAD, source="host")
    answered(wire, connection)


def test_C2_another_host_at_an_allowed_address(guest: Guest) -> None:
    wire = guest(NAME)
    assert wire.resolve(NAME, SITE) == [SITE]
    connection = peeked(wire, SITE, 80)
    say(connection, EVIL)
    line = turned_away(wire, connection, refusal("name-not-allowed", "http", name=OTHER_NAME, source="host"))
    assert line.endswith(b"netstack: evil.example.net is refused, no rule allows it (name-not-allowed)\n")


@pytest.mark.parametrize(
    "host", [NAME, "API.EXAMPLE.COM", "api.example.com.", "api.example.com:80", "\tapi.example.com\t"]
)
def test_C2_spellings_of_the_name(guest: Guest, host: str) -> None:
    """Judged in one form, sent as they came."""
    opened(guest, get(f"Host: {host}"))


def test_C2_below_a_wildcard(guest: Guest) -> None:
    opened(guest, HEAD, ATTACKER, "*.example.com")
    wire = guest("*.example.com")
    connection = peeked(wire, SITE, 80)
    say(connection, get("Host: example.com"))
    turned_away(wire, connection, refusal("name-not-allowed", "http", name="example.com", source="host"))


NO_HOSTS = {
    "ip literal": (get("Host: 93.184.216.34"), "host-ip-literal", ""),
    "ip literal with port": (get("Host: 93.184.216.34:80"), "host-ip-literal", ""),
    "ipv6 literal": (get("Host: [2606:2800:220:1::1]"), "host-ip-literal", ""),
    "absent": (get("Accept: */*"), "host-missing", ""),
    "absent in 1.0": (get(line="GET / HTTP/1.0"), "no-name", ""),
    "empty": (get("Host:"), "host-empty", ""),
    "twice": (get(f"Host: {NAME}", f"Host: {OTHER_NAME}"), "host-duplicate", ""),
    "twice, the other first": (get(f"Host: {OTHER_NAME}", f"Host: {NAME}"), "host-duplicate", ""),
    "twice the same": (get(f"Host: {NAME}", f"host: {NAME}"), "host-duplicate", ""),
    "list": (get(f"Host: {NAME}, {OTHER_NAME}"), "host-not-a-name", ""),
    "folded": (get(f"Host: {NAME}", f" {OTHER_NAME}"), "http-obs-fold", ""),
    "fold first": (get(f" Host: {NAME}"), "http-obs-fold", ""),
    "blank before colon": (get(f"Host : {NAME}"), "http-space-before-colon", ""),
    "tab before colon": (get(f"Host\t: {NAME}"), "http-space-before-colon", ""),
    "userinfo": (get(f"Host: user@{NAME}"), "host-userinfo", ""),
    "userinfo that looks allowed": (get(f"Host: {NAME}@{OTHER_NAME}"), "host-userinfo", ""),
    "another port": (get(f"Host: {NAME}:8080"), "host-port", NAME),
    "port of https": (get(f"Host: {NAME}:443"), "host-port", NAME),
    "port 080": (get(f"Host: {NAME}:080"), "host-port", ""),
    "empty port": (get(f"Host: {NAME}:"), "host-port", ""),
    "path": (get(f"Host: {NAME}/x"), "host-not-a-name", ""),
    "nul": (get(f"Host: {NAME}\0.{OTHER_NAME}"), "http-nul", ""),
    "not ascii": (get("Host: b\xfccher.example"), "host-not-ascii", ""),
    "wildcard": (get("Host: *.example.com"), "host-not-a-name", ""),
    "two dots": (get("Host: api..example.com"), "host-not-a-name", ""),
    "no colon": (get("Host"), "http-field-line", ""),
}


@pytest.mark.parametrize(("data", "reason", "name"), NO_HOSTS.values(), ids=NO_HOSTS)
def test_C9_hosts_that_are_none(guest: Guest, data: bytes, reason: str, name: str) -> None:
    wire = guest(NAME, OTHER_NAME, "*.example.com", "93.184.216.0/24:8443")
    connection = peeked(wire, SITE, 80)
    say(connection, data)
    turned_away(wire, connection, refusal(reason, "http", name=name, source="host"))


# -- C10 --------------------------------------------------------------------------------------------------------------

STRANGE = {
    "absolute form": (get(f"Host: {NAME}", line=f"GET http://{OTHER_NAME}/ HTTP/1.1"), "host-differs-from-target"),
    "absolute form, other Host": (
        get(f"Host: {OTHER_NAME}", line=f"GET http://{NAME}/ HTTP/1.1"),
        "host-differs-from-target",
    ),
    "absolute form without Host": (get(line=f"GET http://{NAME}/ HTTP/1.0"), "host-differs-from-target"),
    "absolute form with userinfo": (
        get(f"Host: {NAME}", line=f"GET http://{NAME}@{OTHER_NAME}/ HTTP/1.1"),
        "host-userinfo",
    ),
    "https target": (get(f"Host: {NAME}", line=f"GET https://{NAME}/ HTTP/1.1"), "http-target"),
    "leading newline": (b"\r\n" + HEAD, "http-leading-newline"),
    "bare newlines": (HEAD.replace(b"\r\n", b"\n"), "http-bare-lf"),
    "one bare newline": (HEAD.replace(b"\r\nHost", b"\nHost"), "http-bare-lf"),
    "bare carriage return": (get(f"Host: {NAME}\rHost: {OTHER_NAME}"), "http-control-character"),
    "http/0.9": (b"GET /\r\n", "http-0.9"),
    "lower case": (get(f"Host: {NAME}", line="get / HTTP/1.1"), "http-method"),
    "http/2 prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2-prior-knowledge"),
    "http/2 in the request line": (get(f"Host: {NAME}", line="GET / HTTP/2"), "http-version"),
    "two blanks": (get(f"Host: {NAME}", line="GET  / HTTP/1.1"), "http-request-line"),
    "h2c": (
        get(f"Host: {NAME}", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
        "http-h2c",
    ),
    "h2c by settings": (get(f"Host: {NAME}", "HTTP2-Settings: AAMAAABk"), "http-h2c"),
    "another upgrade": (get(f"Host: {NAME}", "Connection: Upgrade", "Upgrade: TLS/1.0"), "http-upgrade"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "reason"), STRANGE.values(), ids=STRANGE)
def test_C10_requests_of_two_readings(guest: Guest, data: bytes, reason: str) -> None:
    wire = guest(NAME, OTHER_NAME)
    connection = peeked(wire, SITE, 80)
    say(connection, data)
    turned_away(wire, connection, refusal(reason, "http", source="host"))


def test_C10_the_proxy_protocol(guest: Guest) -> None:
    for data, reason in (
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + HEAD, "proxy-protocol"),
        (b"PROXY UNKNOWN\r\n" + HEAD, "proxy-protocol"),
        (b"\r\n\r\n\0\r\nQUIT\n" + HEAD, "http-leading-newline"),
    ):
        wire = guest(NAME)
        connection = peeked(wire, SITE, 80)
        say(connection, data)
        step = "other" if reason == "proxy-protocol" else "http"
        turned_away(wire, connection, refusal(reason, step, source="host" if step == "http" else ""))


def test_C10_absolute_form_that_agrees(guest: Guest) -> None:
    opened(guest, get(f"Host: {NAME}", line=f"GET http://{NAME}/x HTTP/1.1"))


# -- C11 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 13, 1400])
def test_C11_a_second_request_for_another_host(guest: Guest, size: int) -> None:
    """One after the other: the first is answered, the second never reaches the server, not a byte of its head."""
    wire, connection = opened(guest)
    answered(wire, connection)
    say(connection, HEAD, size)
    assert sent_bytes(wire.asked()) == HEAD
    answered(wire, connection)
    wire.events.clear()
    say(connection, EVIL, size)
    cut_off(wire, connection, "host-changed", OTHER_NAME)


def test_C11_another_allowed_host_is_another_host(guest: Guest) -> None:
    wire, connection = opened(guest, HEAD, SITE, NAME, OTHER_NAME)
    say(connection, EVIL)
    cut_off(wire, connection, "host-changed", OTHER_NAME)


def test_C11_pipelined(guest: Guest) -> None:
    """Two requests in one segment: the head that names another host holds the connection back."""
    wire = guest(NAME)
    connection = peeked(wire, SITE, 80)
    say(connection, HEAD + EVIL)
    connection.flow = wire.asked_one(OpenNamed).flow
    wire.stack.stream_opened(connection.flow, wire.now, ip(CDN))
    assert wire.asked() == [AbortStream(connection.flow)]
    assert payload_of(connection.hear()[-1]).startswith(b"HTTP/1.1 403 ")
    verdicts = [event.verdict for event in wire.told(FlowRefused)]
    assert verdicts == [refusal("host-changed", "http", name=OTHER_NAME, source="host")]


BODIES = {
    "length": (get(f"Host: {NAME}", f"Content-Length: {len(EVIL)}", line="POST / HTTP/1.1"), b""),
    "chunked": (
        get(f"Host: {NAME}", "Transfer-Encoding: chunked", line="POST / HTTP/1.1") + b"%x\r\n" % len(EVIL),
        b"\r\n0\r\n\r\n",
    ),
}


@pytest.mark.parametrize(("before", "after"), BODIES.values(), ids=BODIES)
def test_C11_a_body_is_no_request(guest: Guest, before: bytes, after: bytes) -> None:
    wire, connection = opened(guest, before + EVIL + after)
    answered(wire, connection)
    say(connection, EVIL)
    cut_off(wire, connection, "host-changed", OTHER_NAME)


SMUGGLED = {
    "both lengths": ((f"Content-Length: {len(EVIL)}", "Transfer-Encoding: chunked"), "http-length-and-coding"),
    "two lengths": (("Content-Length: 0", f"Content-Length: {len(EVIL)}"), "http-content-length"),
    "length with a sign": (("Content-Length: +0",), "http-content-length"),
    "coding not last": (("Transfer-Encoding: chunked, identity",), "http-transfer-coding"),
    "coding with a tab": (("Transfer-Encoding:\vchunked",), "http-control-character"),
}


@pytest.mark.parametrize(("fields", "reason"), SMUGGLED.values(), ids=SMUGGLED)
def test_C11_no_body_has_two_lengths(guest: Guest, fields: tuple[str, ...], reason: str) -> None:
    data = get(f"Host: {NAME}", *fields, line="POST / HTTP/1.1")
    wire = guest(NAME)
    connection = peeked(wire, SITE, 80)
    say(connection, data + EVIL)
    turned_away(wire, connection, refusal(reason, "http", source="host"))
    wire, connection = opened(guest)
    say(connection, data + EVIL)
    cut_off(wire, connection, reason)


def test_C11_the_guest_ends_in_the_middle_of_a_head(guest: Guest) -> None:
    wire, connection = opened(guest)
    connection.say(EVIL[:-3])
    assert wire.asks_nothing()
    connection.fin()
    assert wire.asked() == [ShutdownStream(connection.flow)], "and the rest is never sent"
    answered(wire, connection)
    wire.stack.stream_ended(connection.flow)
    connection.hear()
    connection.ack()
    assert wire.asked() == [CloseStream(connection.flow)]
    assert wire.one_flow_event().reason == "finished"


# -- C12, C13, C14 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [f"{OTHER_NAME}:443", f"{NAME}:443", f"{NAME}:80", "10.0.0.1:22"])
def test_C12_connect(guest: Guest, target: str) -> None:
    """What is said after it would be for somebody else: refused, first or later on the connection."""
    data = get(f"Host: {NAME}", line=f"CONNECT {target} HTTP/1.1")
    wire = guest(NAME, OTHER_NAME)
    connection = peeked(wire, SITE, 80)
    say(connection, data + hellos.python_ssl(OTHER_NAME))
    turned_away(wire, connection, refusal("http-connect", "http", source="host"))
    wire, connection = opened(guest)
    answered(wire, connection)
    say(connection, data)
    cut_off(wire, connection, "http-connect")


def test_C12_connect_by_the_gateway(guest: Guest) -> None:
    wire = guest(NAME)
    for port in (80, 443, 1080, 3128, 8080):
        refused_at_syn(wire, GATEWAY, port, "unserved-port")


def test_C13_a_redirect_is_followed_by_another_connection(guest: Guest) -> None:
    wire, connection = opened(guest)
    answered(wire, connection, f"HTTP/1.1 302 Found\r\nLocation: http://{OTHER_NAME}/\r\n\r\n".encode())
    assert wire.resolve(OTHER_NAME) == ["0.0.0.0"]
    wire.events.clear()
    refused_at_syn(wire, "0.0.0.0", 80, "forbidden-address")
    followed = peeked(wire, ATTACKER, 80)
    say(followed, EVIL)
    turned_away(wire, followed, refusal("name-not-allowed", "http", name=OTHER_NAME, source="host"))


def test_C14_websocket(guest: Guest) -> None:
    """Allowed for its host, then opaque: every byte passes unchanged, requests among them."""
    upgrade = get(f"Host: {NAME}", *WEBSOCKET)
    wire, connection = opened(guest, upgrade)
    answered(wire, connection, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
    frame = b"\x81\x85\x01\x02\x03\x04igoho"
    for data in (frame, EVIL, bytes(range(256)) * 5, hellos.python_ssl(OTHER_NAME)):
        say(connection, data)
        assert sent_bytes(wire.asked()) == data
        connection.hear()
    answered(wire, connection, b"\x81\x02hi")
    assert not wire.flow_events()


def test_C14_a_websocket_that_never_was(guest: Guest) -> None:
    """Asking for one opens nothing by itself: a request that follows is judged like any other."""
    wire, connection = opened(guest, get(f"Host: {NAME}", *WEBSOCKET))
    answered(wire, connection)
    say(connection, EVIL)
    cut_off(wire, connection, "host-changed", OTHER_NAME)


def test_C14_websocket_to_another_host(guest: Guest) -> None:
    wire = guest(NAME)
    connection = peeked(wire, SITE, 80)
    say(connection, get(f"Host: {OTHER_NAME}", *WEBSOCKET))
    turned_away(wire, connection, refusal("name-not-allowed", "http", name=OTHER_NAME, source="host"))


def test_C11_real_clients_requests_pass_unchanged(guest: Guest) -> None:
    """http.client, kept alive: sizes, chunks, Expect."""
    first = written("POST", "/a", NAME, body=b"x" * 3000, headers={"Expect": "100-continue"})
    wire, connection = opened(guest, first)
    for data in (written("PUT", "/b", NAME, body=iter([b"a" * 10, b"b" * 5000]), encode_chunked=True),
                 written("GET", "/c", NAME), written("DELETE", "/d", f"{NAME}:80")):  # fmt: skip
        answered(wire, connection)
        say(connection, data, 700)
        sent = wire.asked()
        assert sent_bytes(sent) == data
        assert all(isinstance(effect, SendStream) for effect in sent)
        wire.stack.stream_sent(connection.flow, len(data))
        connection.hear()
    assert not wire.flow_events()
