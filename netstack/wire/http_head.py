"""The head of an HTTP/1 request, as far as it says which host is meant and how long its body is (RFC 9110, RFC 9112).

Strict: where the RFC lets a recipient repair a message (bare LF, folded lines, blanks before the colon, a length given
twice), two recipients may repair it differently, and what is judged here would not be what the server obeys. Such a
message is malformed: a reason word. Nothing else but HTTP/1.0 and 1.1 is read: no HTTP/0.9, no HTTP/2 in the clear.
"""

from __future__ import annotations

import re
from functools import lru_cache
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
FIELD_LINE: Final = re.compile(rb"(" + _TOKEN + rb"):(" + _VALUE + rb")\r\n")
"""A field with nothing wrong in it, of a head or a trailer section: its name, its value."""
_PLAIN_HEAD = re.compile(_FIRST_LINE + rb"(?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*+\r\n")
"""A whole head with nothing wrong in any of its lines."""
# A port without digits or with leading zeros is legal in a URI; nobody sends one, and readers differ about it.
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([1-9][0-9]{0,4}))?")
_HTTP_VERSION = re.compile(rb".* HTTP/[0-9](?:\.[0-9])?\r\n", re.DOTALL)
_SIMPLE_REQUEST = re.compile(rb"GET [^ ]+\r?\n")
_PROXY_LINE = re.compile(rb"PROXY (?:TCP4|TCP6|UNKNOWN)[ \r]")
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


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
        plain = None if data else plain_head(chunk)
        data += chunk[: MAX_HEAD - len(data)]
        if plain is not None:
            self._result = plain
            return plain
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

    def _read_line(self, line: bytes) -> RequestHead | str | None:
        if not self._line:
            return self._read_request_line(line)
        if line == b"\r\n":
            return _judged(self._method, self._target, self._version, self._known, self._line + 2)
        field = FIELD_LINE.fullmatch(line)
        if field is None:
            return field_fault(line)
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


def plain_head(chunk: bytes) -> RequestHead | str | None:
    """What a HeadReader says of a stream that begins with this chunk, if a whole head is in it and as it should be:
    nearly every one comes in one piece. None for all others: those are read line by line.
    """
    plain = _PLAIN_HEAD.match(chunk, 0, MAX_HEAD)
    if plain is None:
        return None
    size = plain.end()
    if chunk.count(b"\n", 0, size) > MAX_FIELDS + 2:
        return None
    method, target, version = plain.groups()
    if method == b"CONNECT":
        return "http-connect"
    known: dict[bytes, list[bytes]] = {}
    for name, value in _KNOWN_FIELDS.findall(chunk, 0, size):
        known.setdefault(name.lower(), []).append(value.strip(b" \t"))
    return _judged(method.decode("ascii"), target, 1 if version == b"1" else 0, known, size)


def _judged(method: str, target: bytes, version: int, known: dict[bytes, list[bytes]], size: int) -> RequestHead | str:
    """A head whose lines are all well-formed: judge its fields together."""
    values = known.get(b"host")
    host, port, address = b"", 0, False
    if values is not None:
        if len(values) > 1:
            return "host-duplicate"
        value = values[0]
        authority = _known_authority(value) if len(value) <= MAX_NAME_SHOWN else _authority(value)
        if isinstance(authority, str):
            return authority
        host, port, address = authority
    elif version:
        return "host-missing"  # RFC 9112 section 3.2
    if not target.startswith(b"/"):
        fault = _target_fault(method, target, values[0] if values else b"")
        if fault:
            return fault
    if len(known) == 1 and values is not None:  # nothing but the host
        return RequestHead(method, target, version, host, port, address, 0, False, size)
    body = _body_length(known, version)
    if isinstance(body, str):
        return body
    websocket = False
    if b"upgrade" in known or b"http2-settings" in known:
        fault = _upgrade_fault(method, version, known, body)
        if fault:
            return fault
        websocket = True
    return RequestHead(method, target, version, host, port, address, body, websocket, size)


def _authority(value: bytes) -> tuple[bytes, int, bool] | str:
    """Host, port and whether it is an address, of a Host field's value; or what is wrong with it."""
    authority = _AUTHORITY.fullmatch(value)
    if authority is None:
        return _authority_fault(value)
    host = authority[1]
    port = int(authority[2] or 0)
    if port > 65535:
        return "host-port"
    return host, port, host.startswith(b"[") or is_address(host)


_known_authority = lru_cache(maxsize=1024)(_authority)
"""The same hosts are asked again and again."""


def _upgrade_fault(method: str, version: int, known: dict[bytes, list[bytes]], body: int) -> str:
    """Why the connection may not change its protocol; empty when it asks for WebSocket (RFC 6455 section 4.1)."""
    wanted = _members(known.get(b"upgrade", []))
    # RFC 7540 section 3.2; gone since RFC 9113, still obeyed by servers.
    if b"http2-settings" in known or any(word.startswith(b"h2c") for word in wanted):
        return "http-h2c"
    asked = b"upgrade" in _members(known.get(b"connection", []))
    if wanted != [b"websocket"] or not asked or method != "GET" or body or not version:
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


def field_fault(line: bytes) -> str:
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
