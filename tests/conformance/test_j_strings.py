"""Conformance J6 and J9: what a guest says cannot add to a log, and what it says in confidence is not in there."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from engine.wire_guest import BROADCAST_MAC, GATEWAY, GUEST_MAC, GuestTcp, mac, payload_of, udp
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from wire import hellos
from wire.http_requests import get

from netstack.engine.events import FlowRefused, LeaseEvent
from netstack.gateway.capture_comments import CaptureComments
from netstack.gateway.event_log import event_line

from .event_lines import WHEN, lines
from .policy_wire import NAME, OTHER_NAME, SITE, PolicyWire, opened_by_name, peeked, say

Guest = Callable[..., PolicyWire]

# -- J6 ---------------------------------------------------------------------------------------------------------------

NASTY = {
    "newline": b'x\n{"event":"flow_opened"}',
    "return": b"x\r\nx",
    "quotes": b'","verdict":"allowed","x":"',
    "escape": b"\x1b[2J\x1b]0;owned\x07",
    "json": b'{"a":[1]}',
    "backslash": b"\\u000a\\",
    "nul": b"a\0b",
    "delete and C1": b"\x7f\xc2\x9b31m",
    "invalid UTF-8": b"\xff\xfe\xc3(",
    "line separator": "a\u2028b\u2029c\u0085".encode(),
    "right to left": "\u202egro.live".encode(),
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_J6_strings_of_the_guest(guest: Guest, text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """SNI, Host, the question's name, the host name in DHCP: one line of JSON each, also beside the captured frame."""
    wire = guest(NAME)
    comments = CaptureComments()
    say(peeked(wire), hellos.records(hellos.message(hellos.server_name(text))))
    http = peeked_again(wire, SITE)
    say(http, b"GET / HTTP/1.1\r\nHost: " + text + b"\r\n\r\n")
    head = b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    question = head + bytes((len(text),)) + text + b"\x07example\x00\x00\x01\x00\x01"
    wire.send(udp(GATEWAY, 53, question))
    discover = BOOTP(chaddr=mac(GUEST_MAC), xid=7) / DHCP(
        options=[("message-type", "discover"), ("hostname", text), "end"]
    )
    wire.send(IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / discover, destination=BROADCAST_MAC)
    found = lines(wire)
    assert [line["event"] for line in found] == ["flow_refused", "flow_refused", "dns", "lease"]
    assert len(wire.told(FlowRefused)) == 2
    assert len(wire.told(LeaseEvent)) == 1
    assert all(set(line) >= {"time", "event"} and line.get("verdict") != "allowed" for line in found)
    for frame in wire.hear_raw():
        packet = Ether(frame)
        if packet.haslayer(TCP) and packet[TCP].sport == 80:
            line = payload_of(packet[TCP]).partition(b"\r\n\r\n")[2]
            assert line.decode("ascii").removesuffix("\n").isprintable()
    for event in wire.events:
        comments.note(event)
    said = [*comments._flows.values(), *comments._questions.values()]
    assert len(said) == 3
    assert all(text.isascii() and text.isprintable() for text in said)
    assert capsys.readouterr() == ("", "")


# -- J9 ---------------------------------------------------------------------------------------------------------------

SECRETS = ("s3cr3t-token", "s3cr3t-cookie", "s3cr3t-path", "s3cr3t-query", "s3cr3t-body", "s3cr3t-user", "s3cr3t-chunk")


def secret_request(host: str, *fields: str) -> bytes:
    return (
        get(
            f"Host: {host}",
            "Authorization: Bearer s3cr3t-token",
            "Cookie: session=s3cr3t-cookie",
            "Content-Length: 11",
            *fields,
            line="POST /s3cr3t-path?key=s3cr3t-query HTTP/1.1",
        )
        + b"s3cr3t-body"
    )


def test_J9_no_secrets_in_events_and_comments(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    """Allowed, refused, malformed in every way that has a reason, cut off later: headers, paths and bodies stay out."""
    caplog.set_level(logging.DEBUG)
    wire = guest(NAME)
    connection = peeked(wire, SITE, 80)
    say(connection, secret_request(NAME))
    opened_by_name(wire, connection, secret_request(NAME), source="host")
    say(connection, secret_request(OTHER_NAME))
    requests = [
        secret_request(OTHER_NAME),
        secret_request(f"s3cr3t-user:s3cr3t-token@{NAME}"),
        secret_request(NAME, "X: s3cr3t-cookie\x01"),
        secret_request(NAME, "s3cr3t-token"),
        secret_request("93.184.216.34"),
        secret_request(NAME).replace(b"/s3cr3t-path", b"http://s3cr3t-user@evil.example/s3cr3t-path"),
        b"s3cr3t-token\r\n",
    ]
    for at, data in enumerate(requests):
        refused = peeked_again(wire, f"104.16.1.{at + 1}")
        say(refused, data)
        wire.hear()
    comments = CaptureComments()
    for event in wire.events:
        comments.note(event)
    assert len(wire.told(FlowRefused)) == len(requests) + 1
    told = "".join(event_line(event, WHEN) for event in wire.events) + "".join(comments._flows.values()) + caplog.text
    assert [secret for secret in SECRETS if secret in told] == []
    assert [secret for secret in SECRETS if any(secret in repr(event) for event in wire.events)] == []


def peeked_again(wire: PolicyWire, address: str) -> GuestTcp:
    """`peeked`, with events before it."""
    connection = wire.connection(address, 80)
    wire.hear()
    connection.syn()
    connection.finish_handshake()
    return connection


def test_J9_what_the_guest_is_told_repeats_no_secret(guest: Guest) -> None:
    for host in (OTHER_NAME, f"s3cr3t-user:s3cr3t-token@{NAME}", "s3cr3t-user@"):
        wire = guest(NAME)
        connection = peeked(wire, SITE, 80)
        say(connection, secret_request(host))
        said = b"".join(payload_of(segment) for segment in connection.hear()).decode()
        assert said.startswith("HTTP/1.1 403")
        assert [secret for secret in SECRETS if secret in said] == []
