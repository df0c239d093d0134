"""The first bytes of a flow: which name do they say?

A peek is fed what the guest sends, in order, until it knows. It keeps nothing for the caller: the bytes that were fed
are the bytes to send upstream, unchanged, so what was judged is what the server gets.

An outcome is None while more is needed (NEED_MORE), then Named or Refuse; once known it never changes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from netstack.engine.names import canonical
from netstack.wire.http_head import HeadReader, RequestHead, plain_head
from netstack.wire.quic_initial import InitialReader
from netstack.wire.request_stream import RequestStream
from netstack.wire.tls_hello import HANDSHAKE, ClientHello, HelloReader

TLS: Final = "tls"
HTTP: Final = "http"
QUIC: Final = "quic"
OTHER: Final = "other"

NEED_MORE: Final = None

_OTHER_FAULTS: Final = frozenset(("not-http", "proxy-protocol", "not-quic"))
"""Faults after which nobody on the other side would understand a 403."""


class Named(NamedTuple):
    """The first bytes say one name.

    `name` is canonical. `source`: sni, host or quic, where it came from. `protocol`: tls, http or quic. `details` is
    all that was read. For HTTP, later requests must be judged too: feed every byte, the peeked ones first, to a
    RequestGuard, and send what it lets pass.
    """

    name: str
    source: str
    protocol: str
    details: ClientHello | RequestHead


class Refuse(NamedTuple):
    """The first bytes say no name that could be judged.

    `protocol` (tls, http, quic, other) says how to tell the guest. `name` is the canonical name where there was one.
    """

    reason: str
    protocol: str
    name: str = ""


Outcome = Named | Refuse | None


class StreamPeek:
    """Peeks at a TCP flow to `port`: TLS when the first byte says so, HTTP/1 otherwise.

    Never holds more than it was given, and no more than 64 KiB of TLS or 16 KiB of HTTP. `strict_ech` refuses any hello
    with Encrypted ClientHello in it, GREASE included.
    """

    __slots__ = ("_outcome", "_port", "_reader", "_strict_ech", "protocol")

    def __init__(self, port: int, *, strict_ech: bool) -> None:
        self.protocol = ""
        """tls, http or other: how to refuse a flow that never comes to an outcome. Empty before the first byte."""
        self._port = port
        self._strict_ech = strict_ech
        self._reader: HelloReader | HeadReader | None = None
        self._outcome: Outcome = None

    def feed(self, chunk: bytes) -> Outcome:
        """The next bytes from the guest, of any length."""
        if self._outcome is not None or not chunk:
            return self._outcome
        if self._reader is None:
            tls = chunk[0] == HANDSHAKE
            self.protocol = TLS if tls else HTTP
            result: ClientHello | RequestHead | str | None = None if tls else plain_head(chunk)
            if result is None:
                self._reader = HelloReader() if tls else HeadReader()
                result = self._reader.feed(chunk)
        else:
            result = self._reader.feed(chunk)
        if isinstance(result, RequestHead):
            self._outcome = judge_request(result, self._port)
        else:
            self._outcome = _judge_hello(result, self.protocol, "sni", strict_ech=self._strict_ech)
        if self._outcome is not None:
            self.protocol = self._outcome.protocol
            self._reader = None
        return self._outcome


class DatagramPeek:
    """Peeks at a UDP flow: QUIC v1 or v2, its hello spread over no more than 8 datagrams."""

    def __init__(self, *, strict_ech: bool) -> None:
        self._strict_ech = strict_ech
        self._reader: InitialReader | None = InitialReader()
        self._outcome: Outcome = None

    def feed(self, datagram: bytes) -> Outcome:
        """The next datagram from the guest, whole."""
        if self._reader is not None:
            self._outcome = _judge_hello(self._reader.feed(datagram), QUIC, "quic", strict_ech=self._strict_ech)
            if self._outcome is not None:
                self._reader = None
        return self._outcome


class Passage(NamedTuple):
    """`data` may go upstream. With `refuse`, nothing that comes after it may: answer 403 and close."""

    data: bytes
    refuse: Refuse | None


class RequestGuard:
    """Judges every request on one plain HTTP connection: all must be for the host that the connection was opened for.

    Fed from the connection's first byte on. Heads are held back until they are complete (16 KiB at most), bodies pass
    as they come. After a request for WebSocket see RequestStream.
    """

    __slots__ = ("_first", "_name", "_port", "_refuse", "_stream")

    def __init__(self, name: str, port: int, first: RequestHead | None = None) -> None:
        """`first` is the head the connection begins with, where a peek has read it already, and found that name."""
        self._name = name
        self._port = port
        self._first = first
        self._stream = RequestStream(first)
        self._refuse: Refuse | None = None

    def feed(self, chunk: bytes) -> Passage:
        """The next bytes from the guest. After a refusal nothing passes."""
        if self._refuse is not None:
            return Passage(b"", self._refuse)
        pieces = self._stream.feed(chunk)
        if len(pieces) == 1 and pieces[0].head is self._first and not self._stream.fault:
            return Passage(pieces[0].data, None)
        passed = []
        for piece in pieces:
            if piece.head is not None and piece.head is not self._first:
                self._refuse = self._judge(piece.head)
                if self._refuse is not None:
                    break
            passed.append(piece.data)
        if self._refuse is None and self._stream.fault:
            self._refuse = Refuse(self._stream.fault, HTTP)
        return Passage(passed[0] if len(passed) == 1 else b"".join(passed), self._refuse)

    def _judge(self, head: RequestHead) -> Refuse | None:
        outcome = judge_request(head, self._port)
        if isinstance(outcome, Refuse):
            return outcome
        return None if outcome.name == self._name else Refuse("host-changed", HTTP, outcome.name)


def judge_request(head: RequestHead, port: int) -> Named | Refuse:
    """Which name a request on a connection to `port` is for."""
    if not head.host:
        return Refuse("no-name", HTTP)
    if head.is_address:
        return Refuse("host-ip-literal", HTTP)
    name = canonical(head.host)
    if name is None:
        return Refuse("host-not-a-name", HTTP)
    if head.port and head.port != port:
        return Refuse("host-port", HTTP, name)
    return Named(name, "host", HTTP, head)


def _judge_hello(hello: ClientHello | str | None, protocol: str, source: str, *, strict_ech: bool) -> Outcome:
    """What a reader's answer that is no request means.

    With Encrypted ClientHello the outer name decides: it is where the server is.
    """
    if hello is None:
        return None
    if isinstance(hello, str):
        return Refuse(hello, OTHER if hello in _OTHER_FAULTS else protocol)
    if hello.server_name is None:
        return Refuse("no-name", protocol)
    name = canonical(hello.server_name)
    if name is None:
        return Refuse("sni-not-a-name", protocol)
    if strict_ech and hello.has_ech:
        return Refuse("ech", protocol, name)
    return Named(name, source, protocol, hello)
