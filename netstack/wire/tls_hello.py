"""The TLS ClientHello, as far as it says which server is meant (RFC 8446 section 4.1.2, RFC 6066 section 3).

Read from the first bytes of a stream over any number of records, or as a bare message (QUIC has no record layer). Any
version from SSL 3.0 to TLS 1.3: what the version field says decides nothing here.

Nothing is repaired: a hello that two readers could understand in two ways names no server. A fault is a reason word.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import Final, NamedTuple

HANDSHAKE: Final = 0x16
"""Content type of the record that carries a hello, and so the first byte of every TLS stream (RFC 8446 section 5.1)."""
MAX_HELLO: Final = 65536
"""Bytes, record headers included. Post-quantum key shares make 2 KB usual; nobody needs more than a quarter of this."""
MAX_EXTENSIONS: Final = 256
"""Browsers send about twenty; thousands would only cost time to read."""
MAX_NAME: Final = 255

UNRECOGNIZED_NAME: Final = 112
"""Alert description of RFC 6066 section 3."""

_ALERT: Final = 0x15
_FATAL: Final = 2
_CLIENT_HELLO: Final = 1
_RECORD_HEADER: Final = 5
_MAX_RECORD: Final = 16384  # RFC 8446 section 5.1
_MESSAGE_HEADER: Final = 4  # type and three bytes of length
_FIXED: Final = 34  # version and random, before the session id
_MAX_SESSION_ID: Final = 32

_SERVER_NAME: Final = 0
_ALPN: Final = 16
# RFC 9849, and the encrypted SNI of the drafts before it: both hide the name that counts.
_HIDES_NAME: Final = (0xFE0D, 0xFFCE)

_RECORD = Struct("!BBBH")  # content type, version, length
_EXTENSION = Struct("!HH")  # type, length
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_.-]+")
_NUMBER = re.compile(rb"[0-9]+|0[xX][0-9a-fA-F]*")


class ClientHello(NamedTuple):
    """What a hello says about its destination.

    `server_name` is as sent, None when there is no such extension. `has_ech`: an Encrypted ClientHello came with it,
    real or GREASE (nobody but the server can tell). `alpn`: protocols offered, in order, GREASE included.
    """

    server_name: bytes | None
    has_ech: bool
    alpn: tuple[bytes, ...]


class HelloReader:
    """Reads a hello out of a stream that arrives in pieces of any size. What follows the hello is not looked at."""

    def __init__(self) -> None:
        self._pending = bytearray()  # records not yet read
        self._needed = _RECORD_HEADER  # bytes that must be pending before there is anything to do
        self._consumed = 0  # bytes of the records already read
        self._message = bytearray()
        self._message_size = 0  # 0 until the message's header is there
        self._result: ClientHello | str | None = None

    def feed(self, chunk: bytes) -> ClientHello | str | None:
        """The stream's next bytes. None: more are needed; a reason word: this is no hello that names one server."""
        if self._result is not None:
            return self._result
        pending = self._pending
        pending += chunk[: MAX_HELLO - self._consumed - len(pending)]
        if len(pending) >= self._needed:
            self._result = self._read_records()
        if self._result is None and self._consumed + len(pending) >= MAX_HELLO:
            self._result = "tls-too-long"
        if self._result is not None:
            self._pending = self._message = bytearray()
        return self._result

    def _read_records(self) -> ClientHello | str | None:
        """Take the complete records from what is pending.

        Only complete ones: whatever the pieces, the checks happen at the same bytes and in the same order.
        """
        pending = self._pending
        available = len(pending)
        at = 0
        while available - at >= _RECORD_HEADER:
            content_type, major, minor, length = _RECORD.unpack_from(pending, at)
            if content_type != HANDSHAKE:
                if not self._consumed and not at and content_type & 0x80 and minor == _CLIENT_HELLO:
                    return "tls-sslv2"  # RFC 5246 appendix E.2: two bytes of length, then the type
                return "tls-content-type"
            if major != 3:
                return "tls-version"
            # RFC 8446 section 5.1: handshake records are never empty.
            if not 0 < length <= _MAX_RECORD:
                return "tls-record-length"
            end = at + _RECORD_HEADER + length
            if end > available:
                break
            self._message += pending[at + _RECORD_HEADER : end]
            at = end
            result = self._read_message()
            if result is not None:
                return result
        del pending[:at]
        self._consumed += at
        self._needed = _RECORD_HEADER
        if len(pending) >= _RECORD_HEADER:
            self._needed += pending[3] << 8 | pending[4]
        return None

    def _read_message(self) -> ClientHello | str | None:
        message = self._message
        if not self._message_size:
            if len(message) < _MESSAGE_HEADER:
                return None
            size = client_hello_size(message)
            if isinstance(size, str):
                return size
            self._message_size = size
        if len(message) < self._message_size:
            return None
        # The server speaks next; a second message in the hello's last record has no reader who expects it.
        if len(message) > self._message_size:
            return "tls-trailing-bytes"
        return parse_client_hello(bytes(message))


def client_hello_size(message: bytes | bytearray) -> int | str:
    """How long the message is that begins with these four bytes or more; a reason word when it is no usable hello."""
    if message[0] != _CLIENT_HELLO:
        return "tls-not-client-hello"
    size = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
    return size if size <= MAX_HELLO else "tls-too-long"


def parse_client_hello(message: bytes) -> ClientHello | str:
    """Read one whole handshake message, its header of four bytes included. A reason word when it is malformed."""
    size = len(message)
    if size < _MESSAGE_HEADER + _FIXED + 1:
        return "tls-truncated"
    expected = client_hello_size(message)
    if expected != size:
        return expected if isinstance(expected, str) else "tls-length"
    if message[_MESSAGE_HEADER] != 3:
        return "tls-version"
    at = _MESSAGE_HEADER + _FIXED
    if message[at] > _MAX_SESSION_ID:
        return "tls-session-id"
    at += 1 + message[at]
    if at + 2 > size:
        return "tls-truncated"
    suites = message[at] << 8 | message[at + 1]
    if not suites or suites & 1:
        return "tls-cipher-suites"
    at += 2 + suites
    if at >= size:
        return "tls-truncated"
    if not message[at]:
        return "tls-compression"
    at += 1 + message[at]
    if at == size:  # TLS 1.2 and before: extensions may be left out altogether
        return ClientHello(None, has_ech=False, alpn=())
    if at + 2 > size:
        return "tls-truncated"
    if at + 2 + (message[at] << 8 | message[at + 1]) != size:
        return "tls-extensions-length"
    return _parse_extensions(message, at + 2)


def _parse_extensions(message: bytes, at: int) -> ClientHello | str:
    size = len(message)
    server_name: bytes | None = None
    alpn: tuple[bytes, ...] = ()
    seen: set[int] = set()
    while at < size:
        if at + 4 > size:
            return "tls-extension-length"
        kind, length = _EXTENSION.unpack_from(message, at)
        at += 4
        end = at + length
        if end > size:
            return "tls-extension-length"
        if kind in seen:  # RFC 8446 section 4.2
            return "tls-duplicate-extension"
        seen.add(kind)
        if len(seen) > MAX_EXTENSIONS:
            return "tls-too-many-extensions"
        if kind == _SERVER_NAME:
            name = _parse_server_name(message[at:end])
            if isinstance(name, str):
                return name
            server_name = name
        elif kind == _ALPN:
            protocols = _parse_alpn(message[at:end])
            if isinstance(protocols, str):
                return protocols
            alpn = protocols
        at = end
    return ClientHello(server_name, not seen.isdisjoint(_HIDES_NAME), alpn)


def _parse_server_name(data: bytes) -> bytes | str:
    """The one host name of a server_name extension (RFC 6066 section 3)."""
    if len(data) < 5 or (data[0] << 8 | data[1]) != len(data) - 2:
        return "sni-length"
    if data[2]:  # host_name is the only type there is; the form of any other is unknown
        return "sni-type"
    end = 5 + (data[3] << 8 | data[4])
    if end > len(data):
        return "sni-length"
    if end < len(data):
        return "sni-several-names"
    name = data[5:]
    return _name_fault(name) or name


def _name_fault(name: bytes) -> str:
    """Why a server name cannot be a host name in the form of RFC 6066 section 3; empty when it may be."""
    if not name:
        return "sni-empty"
    if len(name) > MAX_NAME:
        return "sni-too-long"
    if _PLAIN_NAME.fullmatch(name):
        # "without a trailing dot"; "literal IPv4 and IPv6 addresses are not permitted".
        if name.endswith(b"."):
            return "sni-trailing-dot"
        return "sni-ip-literal" if is_address(name) else ""
    if 0 in name:
        return "sni-nul"
    if not name.isascii():
        return "sni-not-ascii"
    if name.split() != [name]:
        return "sni-whitespace"
    return "sni-ip-literal" if is_address(name) else "sni-not-a-name"


def is_address(host: bytes) -> bool:
    """Whether URL parsers take `host` for an IP address, in whatever base (WHATWG URL: its last label is a number)."""
    last = host.removesuffix(b".").rpartition(b".")[2]
    return b":" in host or (last[:1].isdigit() and _NUMBER.fullmatch(last) is not None)


def _parse_alpn(data: bytes) -> tuple[bytes, ...] | str:
    """The protocol names of an ALPN extension (RFC 7301 section 3.1)."""
    size = len(data)
    if size < 4 or (data[0] << 8 | data[1]) != size - 2:
        return "alpn-length"
    protocols = []
    at = 2
    while at < size:
        end = at + 1 + data[at]
        if end > size or end == at + 1:
            return "alpn-length"
        protocols.append(data[at + 1 : end])
        at = end
    return tuple(protocols)


def tls_alert(description: int = UNRECOGNIZED_NAME) -> bytes:
    """A fatal alert in the clear, as a server sends it before there are keys (RFC 8446 section 6)."""
    # Record version 0x0303 whatever the hello offered: TLS 1.3 demands it, older readers take any 0x03xx here.
    return bytes((_ALERT, 3, 3, 0, 2, _FATAL, description))
