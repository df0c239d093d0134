"""Every reason for which the product refuses something, with the guest that runs into it: the rows of J1.

A row plays a guest until it is refused, once, and gives the wire. Rows that need more than first bytes are functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import dns.message
import pytest
import trio
import trio.testing
from engine.wire_guest import GATEWAY, LOOPBACK, UNUSED, GuestTcp, ip, ping, udp
from scapy.layers.inet import IP
from scapy.packet import Raw
from wire import hellos, quic_packets
from wire.hellos import body, extension, handshake, message, records, server_name
from wire.http_requests import HEAD, get
from wire.quic_packets import PING, crypto, datagram, packet

from netstack import hooks
from netstack.engine.effects import ConsultFlow, OpenNamed, ResolveName, ResolveUpstream
from netstack.hooks import Decision, HookRunner, Hooks
from netstack.network_spec import NetworkSpec

from .dns_client import respond
from .packets import hello
from .policy_wire import CDN, NAME, OTHER_NAME, SITE, PolicyWire, peeked, say

Row = Callable[[pytest.MonkeyPatch], PolicyWire]
ROWS: dict[str, Row] = {}
TLS_NAME = server_name(NAME.encode())
QUIC_HELLO = message(TLS_NAME)
EVIL = get(f"Host: {OTHER_NAME}")


def row(*reasons: str) -> Callable[[Row], Row]:
    def add(function: Row) -> Row:
        for reason in reasons:
            assert reason not in ROWS, reason
            ROWS[reason] = function
        return function

    return add


def bound(patch: pytest.MonkeyPatch, name: str, value: int) -> None:
    """Make a bound of the engine small, wherever it is read."""
    modules = [module for key, module in sys.modules.items() if key.startswith("netstack.") and hasattr(module, name)]
    assert modules
    for module in modules:
        patch.setattr(module, name, value)


# -- first bytes ------------------------------------------------------------------------------------------------------

TLS = {
    "alpn-length": message(TLS_NAME, extension(16, b"\x00\x00")),
    "name-not-allowed": message(server_name(OTHER_NAME.encode())),
    "no-name": message(extension(21, b"")),
    "sni-empty": message(server_name(b"")),
    "sni-ip-literal": message(server_name(b"93.184.216.34")),
    "sni-length": message(extension(0, b"")),
    "sni-not-a-name": message(server_name(b"user@api.example.com")),
    "sni-not-ascii": message(server_name("b\u00fccher.example".encode())),
    "sni-nul": message(server_name(b"api.example.com\0.evil.org")),
    "sni-several-names": message(server_name(NAME.encode(), b"evil.example")),
    "sni-too-long": message(server_name(b"a" * 256)),
    "sni-trailing-dot": message(server_name(b"api.example.com.")),
    "sni-type": message(server_name(NAME.encode(), kind=1)),
    "sni-whitespace": message(server_name(b"api.example.com ")),
    "tls-cipher-suites": handshake(body(TLS_NAME, suites=b"")),
    "tls-compression": handshake(body()[:-2] + b"\x00"),
    "tls-duplicate-extension": message(TLS_NAME, TLS_NAME),
    "tls-extension-length": message(TLS_NAME, b"\x00\x15\x00"),
    "tls-extensions-length": handshake(body(TLS_NAME) + b"\x00"),
    "tls-not-client-hello": handshake(bytes(60), kind=2),
    "tls-session-id": handshake(body(TLS_NAME, session_id=bytes(33))),
    "tls-too-long": handshake(body(TLS_NAME, extension(21, bytes(65_000))) + bytes(600)),
    "tls-too-many-extensions": message(*(extension(kind, b"") for kind in range(1000, 1257))),
    "tls-trailing-bytes": message(TLS_NAME) + b"\x00",
    "tls-truncated": handshake(body()[:34]),
}
STREAMS = {reason: records(content) for reason, content in TLS.items()} | {
    "tls-content-type": records(message(TLS_NAME), [10])[:15] + b"\x17\x03\x03\x00\x10",
    "tls-record-length": b"\x16\x03\x01\x00\x00",
    "tls-version": b"\x16\x02\x01\x00\x10",
    "host-differs-from-target": get(f"Host: {NAME}", line=f"GET http://{OTHER_NAME}/ HTTP/1.1"),
    "host-duplicate": get(f"Host: {NAME}", f"Host: {OTHER_NAME}"),
    "host-empty": get("Host:"),
    "host-ip-literal": get("Host: 93.184.216.34"),
    "host-missing": get(),
    "host-not-a-name": get("Host: *.example.com"),
    "host-not-ascii": get("Host: b\xfccher.example"),
    "host-port": get(f"Host: {NAME}:8080"),
    "host-userinfo": get(f"Host: user@{NAME}"),
    "http-0.9": b"GET /\r\n",
    "http-bare-lf": HEAD.replace(b"\r\n", b"\n"),
    "http-connect": get(f"Host: {NAME}", line=f"CONNECT {NAME}:443 HTTP/1.1"),
    "http-content-length": get(f"Host: {NAME}", "Content-Length: +0"),
    "http-control-character": get(f"Host: {NAME}", "X: a\x7f"),
    "http-field-line": get(f"Host: {NAME}", "no colon"),
    "http-h2c": get(f"Host: {NAME}", "HTTP2-Settings: AAMAAABk"),
    "http-leading-newline": b"\r\n" + HEAD,
    "http-length-and-coding": get(f"Host: {NAME}", "Content-Length: 5", "Transfer-Encoding: chunked"),
    "http-method": get(f"Host: {NAME}", line="get / HTTP/1.1"),
    "http-nul": get(f"Host: {NAME}\0"),
    "http-obs-fold": get(f"Host: {NAME}", " folded"),
    "http-request-line": get(f"Host: {NAME}", line="GET  / HTTP/1.1"),
    "http-space-before-colon": get(f"Host : {NAME}"),
    "http-target": get(f"Host: {NAME}", line="GET path HTTP/1.1"),
    "http-too-long": get(f"Host: {NAME}", "X: " + "x" * 17_000),
    "http-too-many-fields": get(f"Host: {NAME}", *["X: y"] * 256),
    "http-transfer-coding": get(f"Host: {NAME}", "Transfer-Encoding: gzip"),
    "http-upgrade": get(f"Host: {NAME}", "Connection: Upgrade", "Upgrade: TLS/1.0"),
    "http-version": get(f"Host: {NAME}", line="GET / HTTP/2"),
    "http2-prior-knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "not-http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "proxy-protocol": b"PROXY UNKNOWN\r\n" + HEAD,
}


def _stream(reason: str) -> Row:
    def play(_: pytest.MonkeyPatch) -> PolicyWire:
        data = STREAMS[reason]
        wire = PolicyWire(NAME, "*.wild.example.com")
        connection = peeked(wire, SITE, 443 if data[0] == 0x16 else 80)
        say(connection, data)
        return wire

    return play


ROWS |= {reason: _stream(reason) for reason in STREAMS}

QUIC_ID = b"\xc0\x00\x00\x00\x01\x08" + bytes(8)
DATAGRAMS = {
    "not-quic": [b"GET / HTTP/1.1\r\n\r\n"],
    "quic-connection-id": [b"\xc0\x00\x00\x00\x01\x07" + bytes(1194)],
    "quic-crypto-overlap": [
        packet(crypto(0, QUIC_HELLO[:100]), 0, pad=1200),
        packet(crypto(50, bytes(len(QUIC_HELLO) - 50)), 1, pad=1200),
    ],
    "quic-frame": [datagram(packet(bytes(3) + b"\x06"))],
    "quic-frame-type": [datagram(packet(bytes(3) + b"\x1e"))],
    "quic-length": [QUIC_ID + bytes(2)],
    "quic-not-initial": [b"\xe0\x00\x00\x00\x01\x08" + bytes(1194)],
    "quic-other-connection": [
        packet(crypto(0, QUIC_HELLO[:20]), 0, pad=1200),
        packet(crypto(20, QUIC_HELLO[20:]), 1, connection=b"another1", pad=1200),
    ],
    "quic-reserved-bits": [packet(crypto(0, QUIC_HELLO), reserved=0x04, pad=1200)],
    "quic-short-datagram": [packet(crypto(0, QUIC_HELLO))],
    "quic-token": [QUIC_ID + b"\x00"],
    "quic-too-long": [
        datagram(packet(crypto(0, QUIC_HELLO[:20]), 0, pad=1200), size=65_000),
        packet(crypto(20, QUIC_HELLO[20:]), 1, pad=1200),
    ],
    "quic-too-many-datagrams": [packet(crypto(0, QUIC_HELLO[:20]), 0, pad=1200)] * 8,
    "quic-too-many-frames": [datagram(packet(bytes(3) + PING * 1025))],
    "quic-too-many-packets": [datagram(*[packet(PING * 4)] * 33)],
    "quic-truncated": [QUIC_ID[:-1]],
    "quic-undecryptable": [QUIC_ID + bytes(2) + b"\x14" + bytes(1183)],
    "quic-version": [b"\xc0Q050" + bytes(1195)],
}


def _datagrams(reason: str) -> Row:
    def play(_: pytest.MonkeyPatch) -> PolicyWire:
        wire = PolicyWire(NAME)
        for payload in DATAGRAMS[reason]:
            whole = bytes(udp(SITE, 443, payload))
            size = 1480
            if len(whole) <= 1500:
                wire.send(udp(SITE, 443, payload))
                continue
            for at in range(0, len(whole) - 20, size):  # in fragments, as they would come
                piece = whole[20 + at : 20 + at + size]
                more = "MF" if 20 + at + size < len(whole) else 0
                wire.send(IP(src=IP(whole).src, dst=SITE, id=9, proto=17, frag=at // 8, flags=more) / Raw(piece))
        return wire

    return play


ROWS |= {reason: _datagrams(reason) for reason in DATAGRAMS}


# -- TCP --------------------------------------------------------------------------------------------------------------


def _syn(address: str, port: int = 443, *rules: str, **options: object) -> Row:
    def play(_: pytest.MonkeyPatch) -> PolicyWire:
        wire = PolicyWire(*(rules or (f"{NAME}:443",)), **options)
        wire.connection(address, port).syn()
        return wire

    return play


ROWS |= {
    "no-rule": _syn(SITE, 22),
    "port-not-covered": _syn("10.0.0.1", 23, "10.0.0.1:22"),
    "private-address": _syn("10.0.0.1"),
    "cgnat-address": _syn("100.64.0.1"),
    "reserved-address": _syn("198.18.0.1"),
    "metadata": _syn("169.254.169.254", 80),
    "forbidden-address": _syn(LOOPBACK),
    "group-address": _syn("224.0.0.1"),
    "unused-address": _syn(UNUSED),
    "unserved-port": _syn(GATEWAY, 22),
}


@row("closed-without-name")
def _closed(_: pytest.MonkeyPatch) -> PolicyWire:
    wire = PolicyWire(NAME)
    peeked(wire).fin()
    return wire


@row("no-name-in-time")
def _silent(_: pytest.MonkeyPatch) -> PolicyWire:
    wire = PolicyWire(NAME)
    peeked(wire)
    wire.wait(5)
    return wire


@row("ech")
def _ech(_: pytest.MonkeyPatch) -> PolicyWire:
    wire = PolicyWire(spec=NetworkSpec.enabled([NAME], strict_ech=True))
    say(peeked(wire), records(message(TLS_NAME, extension(hellos.ECH, bytes(40)))))
    return wire


@row("too-many-unnamed-flows")
def _many_peeks(patch: pytest.MonkeyPatch) -> PolicyWire:
    bound(patch, "MAX_PEEKING", 1)
    wire = PolicyWire(NAME)
    peeked(wire)
    wire.connection(SITE, 443).syn()
    return wire


@row("too-many-bytes-wait")
def _many_bytes(patch: pytest.MonkeyPatch) -> PolicyWire:
    bound(patch, "MAX_WAITING_BYTES", 10)
    wire = PolicyWire(NAME)
    peeked(wire).say(b"GET / HTTP/1.1\r\n")
    return wire


@row("table-full")
def _full(_: pytest.MonkeyPatch) -> PolicyWire:
    wire = PolicyWire("10.0.0.1", max_tcp_flows=1)
    wire.open_tcp("10.0.0.1", 22)
    wire.events.clear()
    wire.connection("10.0.0.1", 22).syn()
    return wire


@row("name-disagrees-with-address")
def _disagrees(_: pytest.MonkeyPatch) -> PolicyWire:
    wire = PolicyWire(spec=NetworkSpec.enabled([NAME, OTHER_NAME], answers="synthetic"))
    (address,) = wire.resolve(NAME, SITE)
    for datagram_ in quic_packets.client(OTHER_NAME):
        wire.send(udp(address, 443, datagram_))
    return wire


def _open_by_host(wire: PolicyWire, data: bytes = b"") -> GuestTcp:
    connection = peeked(wire, SITE, 80)
    say(connection, data or get(f"Host: {NAME}"))
    flow = wire.asked_one(OpenNamed).flow
    wire.stack.stream_opened(flow, wire.now, ip(SITE))
    wire.asked()
    wire.hear()
    wire.events.clear()
    return connection


def _later(data: bytes) -> Row:
    def play(_: pytest.MonkeyPatch) -> PolicyWire:
        wire = PolicyWire(NAME)
        connection = _open_by_host(wire, get(f"Host: {NAME}", "Transfer-Encoding: chunked", line="POST / HTTP/1.1"))
        connection.say(data)
        return wire

    return play


ROWS |= {
    "http-chunk": _later(b"0x5\r\n"),
    "http-trailer": _later(b"0\r\nHost: x\r\n\r\n"),
    "host-changed": _later(b"0\r\n\r\n" + EVIL),
}


# -- what a name stands for -------------------------------------------------------------------------------------------


def _objected(address: str) -> Row:
    """The dialer finds a name at an address, and the policy objects."""

    def play(_: pytest.MonkeyPatch) -> PolicyWire:
        wire = PolicyWire(NAME)
        say(peeked(wire, SITE, 80), get(f"Host: {NAME}"))
        flow = wire.asked_one(OpenNamed).flow
        packed = ip(address) if "." in address and ":" not in address else bytes.fromhex(address.replace(":", ""))
        fault = wire.stack.candidate_fault(6, packed, 80)
        wire.stack.stream_objected(flow, fault, wire.now)
        return wire

    return play


ROWS |= {
    "own-subnet": _objected("192.168.127.9"),
    "loopback-address": _objected("127.0.0.1"),
    "unspecified-address": _objected("0.0.0.0"),
    "multicast-address": _objected("224.0.0.1"),
    "embedded-address": _objected("0064:ff9b:0000:0000:0000:0000:5db8:d822"),
}


@row("name-has-no-usable-address")
def _no_address(_: pytest.MonkeyPatch) -> PolicyWire:
    wire = PolicyWire(NAME)
    hello(wire, SITE, NAME)
    wire.stack.name_resolved(wire.asked_one(ResolveName).flow, None, wire.now)
    return wire


@row("no-address-in-time")
def _slow_address(_: pytest.MonkeyPatch) -> PolicyWire:
    wire = PolicyWire(NAME)
    hello(wire, SITE, NAME)
    wire.asked_one(ResolveName)
    wire.wait(20)
    return wire


# -- UDP and others ---------------------------------------------------------------------------------------------------


@row("ip-protocol")
def _protocol(_: pytest.MonkeyPatch) -> PolicyWire:
    wire = PolicyWire(NAME)
    wire.send(IP(src="192.168.127.2", dst=SITE, proto=47) / Raw(bytes(20)))
    return wire


@row("too-many-waiting-flows")
def _waiting(patch: pytest.MonkeyPatch) -> PolicyWire:
    patch.setattr("netstack.engine.waiting_datagrams.MAX_WAITING", 1)
    wire = PolicyWire(NAME)
    part = packet(crypto(0, QUIC_HELLO[:20]), 0, pad=1200)
    wire.send(udp(SITE, 443, part, source_port=5000), udp(SITE, 443, part, source_port=5001))
    return wire


# -- DNS --------------------------------------------------------------------------------------------------------------


def _ask(wire: PolicyWire, name: str, kind: str = "A", klass: str = "IN") -> None:
    wire.send(udp(GATEWAY, 53, dns.message.make_query(name, kind, klass).to_wire(), source_port=5300))


def _question(name: str, kind: str = "A", klass: str = "IN") -> Row:
    def play(_: pytest.MonkeyPatch) -> PolicyWire:
        wire = PolicyWire("*.example.com")
        _ask(wire, name, kind, klass)
        return wire

    return play


ROWS |= {
    "not-a-host-name": _question("exa\\.mple.api.example.com"),
    "class-not-forwarded": _question(NAME, "TXT", "CH"),
    "name-too-long-for-wildcard": _question(f"{'a' * 63}.{'b' * 63}.{'c' * 9}.example.com"),
    "too-many-labels-for-wildcard": _question("a.b.c.d.e.f.g.h.i.example.com"),
}


@row("too-many-new-names")
def _tunnel(patch: pytest.MonkeyPatch) -> PolicyWire:
    patch.setattr("netstack.engine.wildcard_limits.BURST", 1)
    wire = PolicyWire("*.example.com")
    _ask(wire, "one.example.com")
    wire.stack.dns_resolved(wire.asked_one(ResolveUpstream).query, None, wire.now)
    wire.hear()
    wire.events.clear()
    _ask(wire, "two.example.com")
    return wire


@row("synthetic-pool-exhausted")
def _exhausted(_: pytest.MonkeyPatch) -> PolicyWire:
    wire = PolicyWire(spec=NetworkSpec.enabled([NAME], answers="synthetic"))
    wire.stack.judge.synthetic._max_names = 0
    _ask(wire, NAME)
    effect = wire.asked_one(ResolveUpstream)
    wire.stack.dns_resolved(effect.query, respond(effect, f"{NAME} 60 A {CDN}"), wire.now)
    return wire


# -- another policy, hooks --------------------------------------------------------------------------------------------


@row("disabled")
def _disabled(_: pytest.MonkeyPatch) -> PolicyWire:
    """The guest hears nothing: its card carries no frame any more."""
    wire = PolicyWire("10.0.0.1")
    wire.open_tcp("10.0.0.1", 22)
    wire.events.clear()
    wire.replace(NetworkSpec.disabled(), "api")
    wire.asked()
    return wire


@row("policy-replaced")
def _replaced(_: pytest.MonkeyPatch) -> PolicyWire:
    wire = PolicyWire("10.0.0.1")
    wire.stack.judge.consults = True
    wire.send(ping("10.0.0.1"))
    wire.asked_one(ConsultFlow)
    wire.replace(NetworkSpec.enabled(["10.0.0.1", "10.0.0.2"]))
    return wire


class _Does(Hooks):
    def __init__(self, what: str) -> None:
        self.what = what

    async def on_flow(self, _: hooks.Flow) -> Decision | None:
        if self.what == "raises":
            raise OSError
        if self.what == "hangs":
            await trio.sleep_forever()
        return hooks.refuse()


def _hook(what: str) -> Row:
    def play(patch: pytest.MonkeyPatch) -> PolicyWire:
        if what == "busy":
            bound(patch, "MAX_ASKING", 0)
        wire = PolicyWire("10.0.0.1")
        wire.stack.judge.consults = True
        wire.connection("10.0.0.1", 22).syn()
        asked = wire.asked_one(ConsultFlow)
        if what == "silent":  # the driver itself is: nobody answers for the hook
            wire.wait(30)
            return wire
        clock = trio.testing.MockClock(autojump_threshold=0)
        verdict = trio.run(HookRunner(_Does(what)).flow, asked.question, asked.verdict, clock=clock)
        wire.stack.flow_consulted(asked.question, verdict, wire.now)
        return wire

    return play


ROWS |= {
    "hook-busy": _hook("busy"),
    "hook-failed": _hook("raises"),
    "hook-timeout": _hook("hangs"),
    "hook-refuses": _hook("refuses"),
    "hook-silent": _hook("silent"),
}

SAYS_NOTHING = frozenset(("group-address", "disabled"))
"""Refusals of which the guest hears nothing: nobody speaks for a group, or at all."""
