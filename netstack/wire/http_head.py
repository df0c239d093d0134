"""HTTP/1 requests, as far as they say which host is meant and where the next request begins (RFC 9110, RFC 9112).

Strict: where the RFC lets a recipient repair a message (bare LF, folded lines, blanks before the colon, a length given
twice), two recipients may repair it differently, and what is judged here would not be what the server obeys. Such a
message is malformed: a reason word. Nothing else but HTTP/1.0 and 1.1 is read: no HTTP/0.9, no HTTP/2 in the clear.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from netstack.wire.tls_hello import is_address

MAX_HEAD: Final = 16384
"""Bytes of one request line with its fields, the empty line included; also of a body's trailer section."""
MAX_FIELDS: Final = 256
MAX_NAME_SHOWN: Final = 255

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"  # RFC 9110 section 5.6.2
# RFC 9110 section 5.5: a value is visible characters, blanks and obs-text. Blanks around it are taken off afterwards:
# a pattern for them beside this one would try every way to share them out.
_VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
# Methods are tokens and case-sensitive; all that exist are upper case, and some servers take any case for them.
_FIRST_LINE: Final = rb"([A-Z][A-Z0-9_-]{0,31}) ([\x21-\x7e]++) HTTP/1\.([01])\r\n"
_REQUEST_LINE = re.compile(_FIRST_LINE)
_FIELD_LINE = re.compile(rb"(" + _TOKEN + rb"):(" + _VALUE + rb")\r\n")
_PLAIN_HEAD = re.compile(_FIRST_LINE + rb"(?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*+\r\n")
"""A whole head with nothing wrong in any of its lines."""
# A port without digits or with leading zeros is legal in a URI; nobody sends one, and readers differ about it.
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([1-9][0-9]{0,4}))?")
_HTTP_VERSION = re.compile(rb".* HTTP/[0-9](?:\.[0-9])?\r\n", re.DOTALL)
_SIMPLE_REQUEST = re.compile(rb"GET [^ ]+\r?\n")
_PROXY_LINE = re.compile(rb"PROXY (?:TCP4|TCP6|UNKNOWN)[ \r]")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_MAX_CHUNK_LINE: Final = 17

# What a trailer must not carry (RFC 9110 section 6.5.1): some recipients merge it into the head.
_NEVER_IN_TRAILER: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"http2-settings", b"trailer", b"te")
)


class RequestHead(NamedTuple):
    """One request's head.

    `host` is the Host field as sent, without its port; empty when an HTTP/1.0 request has none. `port` is 0 when the
    field has none. `version` is the minor version, 0 or 1. `is_address`: the host is an IP address in one of the forms
    that URL parsers know. `body` is the body's length in bytes, -1 when it is chunked. `size` is the head's own length.
    """

    method: str
    target: bytes
    version: int
    host: bytes
    port: int
    is_address: bool
    body: int
    websocket: bool
    size: int


class HeadReader:
    """Reads one request head out of a stream that arrives in pieces of any size. What follows it is not looked at."""

    __slots__ = ("_data", "_fields", "_known", "_line", "_method", "_result", "_searched", "_target", "_version")

    def __init__(self) -> None:
        self._data = bytearray()
        self._line = 0  # where the line being read starts
        self._searched = 0  # no line end before this
        self._fields = 0
        self._method = ""
        self._target = b""
        self._version = 0
        self._known: dict[bytes, list[bytes]] = {}
        self._result: RequestHead | str | None = None

    @property
    def kept(self) -> int:
        """Bytes held: all that was fed, up to MAX_HEAD."""
        return len(self._data)

    def head_bytes(self, size: int) -> bytes:
        """The first `size` bytes as they came."""
        return bytes(self._data[:size])

    def feed(self, chunk: bytes) -> RequestHead | str | None:
        """The stream's next bytes. None: more are needed; a reason word: this is no request that names one host.

        Lines are judged one by one as they are complete, so that the pieces they came in change nothing.
        """
        if self._result is not None:
            return self._result
        data = self._data
        # Nearly every head comes in one piece and is as it should be: that is seen at once, and the rest line by line.
        plain = None if data else _PLAIN_HEAD.match(chunk, 0, MAX_HEAD)
        data += chunk[: MAX_HEAD - len(data)]
        if plain is not None and data.count(b"\n", 0, plain.end()) <= MAX_FIELDS + 2:
            self._result = self._read_plain(plain)
            return self._result
        if not self._line and data and not 0x41 <= data[0] & 0xDF <= 0x5A:
            self._result = "http-leading-newline" if data[0] in b"\r\n" else "not-http"
            return self._result
        while self._result is None:
            end = data.find(b"\n", self._searched) + 1
            if not end:
                self._searched = len(data)
                if len(data) >= MAX_HEAD:
                    self._result = "http-too-long"
                break
            self._result = self._read_line(bytes(data[self._line : end]))
            self._line = self._searched = end
        return self._result

    def _read_plain(self, head: re.Match[bytes]) -> RequestHead | str:
        method, self._target, version = head.groups()
        self._method = method.decode("ascii")
        if self._method == "CONNECT":
            return "http-connect"
        self._version = int(version)
        self._line = head.end() - 2
        known = self._known
        for name, value in _KNOWN_FIELDS.findall(self._data, 0, head.end()):
            known.setdefault(name.lower(), []).append(value.strip(b" \t"))
        return self._finish()

    def _read_line(self, line: bytes) -> RequestHead | str | None:
        if not self._line:
            return self._read_request_line(line)
        if line == b"\r\n":
            return self._finish()
        field = _FIELD_LINE.fullmatch(line)
        if field is None:
            return _field_fault(line)
        self._fields += 1
        if self._fields > MAX_FIELDS:
            return "http-too-many-fields"
        name = field[1].lower()
        if name in _READ_FIELDS:
            self._known.setdefault(name, []).append(field[2].strip(b" \t"))
        return None

    def _read_request_line(self, line: bytes) -> str | None:
        parts = _REQUEST_LINE.fullmatch(line)
        if parts is None:
            return _request_line_fault(line)
        self._method = parts[1].decode("ascii")
        self._target = parts[2]
        self._version = int(parts[3])
        return "http-connect" if self._method == "CONNECT" else None

    def _finish(self) -> RequestHead | str:
        """The empty line: judge the fields together."""
        known = self._known
        values = known.get(b"host", [])
        if len(values) > 1:
            return "host-duplicate"
        host, port = b"", 0
        if values:
            authority = _AUTHORITY.fullmatch(values[0])
            if authority is None:
                return _authority_fault(values[0])
            host = authority[1]
            port = int(authority[2] or 0)
            if port > 65535:
                return "host-port"
        elif self._version:
            return "host-missing"  # RFC 9112 section 3.2
        fault = _target_fault(self._method, self._target, values[0] if values else b"")
        if fault:
            return fault
        body = _body_length(known, self._version)
        if isinstance(body, str):
            return body
        websocket = False
        if b"upgrade" in known or b"http2-settings" in known:
            fault = self._upgrade_fault(body)
            if fault:
                return fault
            websocket = True
        size = self._line + 2
        address = host.startswith(b"[") or is_address(host)
        return RequestHead(self._method, self._target, self._version, host, port, address, body, websocket, size)

    def _upgrade_fault(self, body: int) -> str:
        """Why the connection may not change its protocol; empty when it asks for WebSocket (RFC 6455 section 4.1)."""
        known = self._known
        wanted = _members(known.get(b"upgrade", []))
        # RFC 7540 section 3.2; gone since RFC 9113, still obeyed by servers.
        if b"http2-settings" in known or any(word.startswith(b"h2c") for word in wanted):
            return "http-h2c"
        asked = b"upgrade" in _members(known.get(b"connection", []))
        if wanted != [b"websocket"] or not asked or self._method != "GET" or body or not self._version:
            return "http-upgrade"
        return ""


_READ_FIELDS: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"http2-settings")
)
_KNOWN_FIELDS = re.compile(rb"\n(" + b"|".join(sorted(_READ_FIELDS)) + rb"):(" + _VALUE + rb")", re.IGNORECASE)
"""Those of them in a plain head."""


def _members(values: list[bytes]) -> list[bytes]:
    """The elements of a list field in lower case (RFC 9110 section 5.6.1)."""
    return [member.strip(b" \t").lower() for value in values for member in value.split(b",")]


def _request_line_fault(line: bytes) -> str:
    """What is wrong with a first line; `not-http` when it only happens to start with a letter."""
    if line.startswith(b"PRI * HTTP/2.0"):
        return "http2-prior-knowledge"  # RFC 9113 section 3.4
    if _PROXY_LINE.match(line):
        return "proxy-protocol"
    if not _HTTP_VERSION.fullmatch(line):
        if _HTTP_VERSION.fullmatch(line[:-1] + b"\r\n"):
            return "http-bare-lf"
        return "http-0.9" if _SIMPLE_REQUEST.fullmatch(line) else "not-http"
    if 0 in line:
        return "http-nul"
    if _CONTROL.search(line, 0, len(line) - 2):
        return "http-control-character"
    parts = line[:-2].split(b" ")
    if len(parts) != 3 or not parts[1] or not parts[1].isascii():
        return "http-request-line"
    return "http-method" if parts[2] in (b"HTTP/1.0", b"HTTP/1.1") else "http-version"


def _field_fault(line: bytes) -> str:
    """What is wrong with a field line."""
    if not line.endswith(b"\r\n"):
        return "http-bare-lf"
    if line[0] in b" \t":
        return "http-obs-fold"
    if 0 in line:
        return "http-nul"
    if _CONTROL.search(line, 0, len(line) - 2):
        return "http-control-character"
    name, colon, _ = line.partition(b":")
    return "http-space-before-colon" if colon and name.endswith((b" ", b"\t")) else "http-field-line"


def _authority_fault(value: bytes) -> str:
    """What is wrong with a Host field's value."""
    if not value:
        return "host-empty"
    if b"@" in value:
        return "host-userinfo"
    if not value.isascii():
        return "host-not-ascii"
    host, colon, _ = value.rpartition(b":")
    return "host-port" if colon and _AUTHORITY.fullmatch(host) else "host-not-a-name"


def _target_fault(method: str, target: bytes, host: bytes) -> str:
    """Why the request's target is not one that `host` (with its port) decides alone; empty when it is."""
    if target.startswith(b"/") or (target == b"*" and method == "OPTIONS"):
        return ""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() != b"http":
        return "http-target"
    authority = re.split(rb"[/?#]", rest, maxsplit=1)[0]
    if b"@" in authority:
        return "host-userinfo"
    # RFC 9112 section 3.2.2: the server goes by the target and ignores Host; a client sends the same in both.
    return "" if host and authority.lower() == host.lower() else "host-differs-from-target"


def _body_length(known: dict[bytes, list[bytes]], version: int) -> int | str:
    """Bytes of the body, -1 for chunked (RFC 9112 section 6.3)."""
    lengths = known.get(b"content-length", [])
    codings = known.get(b"transfer-encoding", [])
    if codings:
        if lengths:
            return "http-length-and-coding"
        # Other codings below a final chunked are legal and unused; HTTP/1.0 knows none (RFC 9112 section 6.1).
        if not version or len(codings) != 1 or codings[0].lower() != b"chunked":
            return "http-transfer-coding"
        return -1
    if not lengths:
        return 0
    if len(lengths) > 1 or not _CONTENT_LENGTH.fullmatch(lengths[0]):
        return "http-content-length"
    return int(lengths[0])


class Piece(NamedTuple):
    """Bytes to send on. With `head`, `data` is that request's head, whole: not to be sent before it is judged."""

    data: bytes
    head: RequestHead | None


# What the next byte of a RequestStream belongs to.
_HEAD: Final = 0
_BODY: Final = 1
_CHUNK_SIZE: Final = 2
_CHUNK_DATA: Final = 3
_CHUNK_END: Final = 4
_TRAILER: Final = 5
_UPGRADED: Final = 6
_OPAQUE: Final = 7

# RFC 6455 section 5.2: text, binary, close, ping, pong. A first frame continues nothing.
_FIRST_OPCODES: Final = frozenset((1, 2, 8, 9, 10))
_MASKED: Final = 0x80


class RequestStream:
    """Cuts what a client sends on one HTTP/1 connection into requests. Bytes pass unchanged; bodies are never kept.

    The answers are not seen, so whether the server agreed to an Upgrade is not known. What follows a request for
    WebSocket is therefore read either as a masked WebSocket frame, after which the connection is `opaque`, or as the
    next request: no method has a second byte above 0x7F, and every frame of a client has (RFC 6455 section 5.1). A
    server that did not agree reads such a frame as a malformed request.
    """

    __slots__ = ("_first", "_line", "_reader", "_remaining", "_state", "_trailer_size", "fault")

    def __init__(self, first: RequestHead | None = None) -> None:
        """`first` is the head that the stream begins with, where somebody has read it already."""
        self._first = first
        self.fault = ""
        """The reason word once the stream is malformed; nothing passes any more."""
        self._state = _HEAD
        self._reader: HeadReader | None = None
        """Of a head that has begun."""
        self._remaining = 0  # of the body or the chunk
        self._line = bytearray()  # the beginning of a line of the chunked coding, or of a frame
        self._trailer_size = 0

    @property
    def opaque(self) -> bool:
        """Whether the connection has become WebSocket: everything passes."""
        return self._state == _OPAQUE

    def feed(self, chunk: bytes) -> list[Piece]:
        """The stream's next bytes, cut. A head that is not complete yet is held back, at most 16 KiB of it."""
        pieces: list[Piece] = []
        size = len(chunk)
        at = 0
        first = self._first
        if first is not None:
            self._first = None
            if size >= first.size:
                at = first.size
                pieces.append(Piece(chunk[:at], first))
                self._begin_body(first)
        while at < size and not self.fault:
            if self._state == _OPAQUE:
                pieces.append(Piece(chunk[at:] if at else chunk, None))
                break
            if self._state == _UPGRADED:
                at = self._read_after_upgrade(chunk, at, pieces)
            elif self._state == _HEAD:
                at = self._read_head(chunk, at, pieces)
            else:
                start = at
                at = self._read_body(chunk, at)
                if at > start:
                    pieces.append(Piece(chunk[start:at] if at - start < size else chunk, None))
        return pieces

    def _read_body(self, chunk: bytes, at: int) -> int:
        """Go on to the end of the body, of the chunk or of what is well-formed; returns how far it came."""
        while at < len(chunk) and not self.fault:
            state = self._state
            if state in (_BODY, _CHUNK_DATA):
                at = self._pass_body(chunk, at)
            elif state == _CHUNK_SIZE:
                at = self._read_chunk_size(chunk, at)
            elif state == _CHUNK_END:
                at = self._read_chunk_end(chunk, at)
            elif state == _TRAILER:
                at = self._read_trailer(chunk, at)
            else:
                break
        return at

    def _read_head(self, chunk: bytes, at: int, pieces: list[Piece]) -> int:
        reader = self._reader
        if reader is None:
            reader = self._reader = HeadReader()
        kept = reader.kept
        # Where the head probably ends: of many small requests in one chunk, each is copied once.
        end = chunk.find(b"\n\r\n", at) + 3
        if end < 3:
            end = len(chunk)
        head = reader.feed(chunk[at:end])
        if head is None:
            return end
        if isinstance(head, str):
            self.fault = head
            return at
        pieces.append(Piece(reader.head_bytes(head.size), head))
        self._reader = None
        self._begin_body(head)
        return at + head.size - kept

    def _begin_body(self, head: RequestHead) -> None:
        self._remaining = head.body
        if head.websocket:
            self._state = _UPGRADED
        elif head.body:
            self._state = _BODY if head.body > 0 else _CHUNK_SIZE

    def _pass_body(self, chunk: bytes, at: int) -> int:
        taken = min(self._remaining, len(chunk) - at)
        self._remaining -= taken
        if not self._remaining:
            self._state = _HEAD if self._state == _BODY else _CHUNK_END
        return at + taken

    def _take_line(self, chunk: bytes, at: int, limit: int) -> int:
        """Add to the line up to its end, or to `limit` bytes of it. Returns where it stopped."""
        room = limit - len(self._line)
        end = chunk.find(b"\n", at, at + room) + 1
        if not end:
            end = min(len(chunk), at + room)
        self._line += chunk[at:end]
        return end

    def _read_chunk_size(self, chunk: bytes, at: int) -> int:
        """A chunk's size (RFC 9112 section 7.1). Extensions are refused: nobody sends them but to confuse readers."""
        end = self._take_line(chunk, at, _MAX_CHUNK_LINE)
        if not self._line.endswith(b"\n") and len(self._line) < _MAX_CHUNK_LINE:
            return end
        size = _CHUNK_LINE.fullmatch(self._line)
        if size is None:
            self.fault = "http-chunk"
            return at
        self._remaining = int(size[1], 16)
        self._state = _CHUNK_DATA if self._remaining else _TRAILER
        self._trailer_size = 0
        self._line = bytearray()
        return end

    def _read_chunk_end(self, chunk: bytes, at: int) -> int:
        end = self._take_line(chunk, at, 2)
        if not b"\r\n".startswith(self._line):
            self.fault = "http-chunk"
            return at
        if len(self._line) == 2:
            self._line = bytearray()
            self._state = _CHUNK_SIZE
        return end

    def _read_trailer(self, chunk: bytes, at: int) -> int:
        end = self._take_line(chunk, at, MAX_HEAD - self._trailer_size)
        line = self._line
        if not line.endswith(b"\n"):
            if self._trailer_size + len(line) < MAX_HEAD:
                return end
            self.fault = "http-too-long"
            return at
        self._line = bytearray()
        if line == b"\r\n":
            self._state = _HEAD
            return end
        field = _FIELD_LINE.fullmatch(line)
        if field is None or bytes(field[1]).lower() in _NEVER_IN_TRAILER:
            self.fault = "http-trailer" if field else _field_fault(bytes(line))
            return at
        self._trailer_size += len(line)
        return end

    def _read_after_upgrade(self, chunk: bytes, at: int, pieces: list[Piece]) -> int:
        line = self._line
        end = min(len(chunk), at + 2 - len(line))
        line += chunk[at:end]
        if len(line) < 2:
            return end
        self._line = bytearray()
        if line[0] & 0x0F in _FIRST_OPCODES and line[1] & _MASKED:
            pieces.append(Piece(bytes(line), None))
            self._state = _OPAQUE
        else:
            self._state = _HEAD
            self._reader = HeadReader()
            result = self._reader.feed(bytes(line))
            if isinstance(result, str):
                self.fault = result
        return end


def http_refusal(name: str, reason: str) -> bytes:
    """The answer to a request that is not let out: 403, one line for the person or the program that asked.

    `name` is the host that no rule allows, empty when the request named none. Both are escaped: a guest chose them.
    """
    shown = _printable(name)[:MAX_NAME_SHOWN]
    if shown:
        line = f"netstack: {shown} is refused, no rule allows it ({_printable(reason)})\n"
    else:
        line = f"netstack: this request is refused, it names no host that a rule could allow ({_printable(reason)})\n"
    return (
        "HTTP/1.1 403 Forbidden\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n"
        f"Content-Length: {len(line)}\r\n"
        "Connection: close\r\n"
        "\r\n"
        f"{line}"
    ).encode("ascii")


def _printable(text: str) -> str:
    """Text as one line of visible ASCII; everything else as an escape."""
    return "".join(c if "\x20" <= c <= "\x7e" and c != "\\" else c.encode("unicode_escape").decode() for c in text)
