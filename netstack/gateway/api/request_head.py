"""The head of an HTTP request, read before anything else is decided of it: where it goes, and where its body ends.

Bytes in, values out. What a request means is for Hypercorn; this knows enough to give it one request at a time, and to
find those that take the connection over.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qs, unquote

MAX_HEAD: Final = 16 * 1024
"""Bytes of a request line and its headers."""

_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([^ \r\n]+) HTTP/1\.([01])")
_END: Final = re.compile(rb"\r?\n\r?\n")
_LINE: Final = re.compile(rb"\r?\n")
_LENGTH: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_SPECIAL: Final = ("content-length", "transfer-encoding", "upgrade", "authorization")


class BadRequest(ValueError):  # noqa: N818 - what HTTP calls it
    """These bytes are no request head; the message is the status line to answer with."""


class RequestHead(NamedTuple):
    """A request line and the headers that matter to whoever carries the bytes."""

    method: str
    path: str
    query: dict[str, str]
    """First value of each key."""
    authorization: str
    size: int
    """Bytes up to and with the empty line."""
    body: int | None
    """Bytes that follow; None: chunked, the end is in them."""
    forwarded: bytes
    """The head as it is passed on: without an offer to speak another protocol (RFC 9110 section 7.8)."""


def parse_head(data: bytes) -> RequestHead | None:
    """The request that `data` begins with, or None if its head is not complete. Raises BadRequest."""
    skipped = len(data) - len(data.lstrip(b"\r\n"))  # RFC 9112 section 2.2: an empty line before it
    end = _END.search(data, skipped)
    if end is None or end.end() > MAX_HEAD:
        if len(data) > MAX_HEAD:
            raise BadRequest("431 Request Header Fields Too Large")
        return None
    first, *lines = _LINE.split(data[skipped : end.start()])
    matched = _REQUEST_LINE.fullmatch(first)
    if matched is None:
        raise BadRequest("505 HTTP Version Not Supported" if b" HTTP/" in first else "400 Bad Request")
    method, target, _ = (part.decode("ascii", "surrogateescape") for part in matched.groups())
    values: dict[str, str] = {}
    passed = [first]
    for line in lines:
        name, separator, value = line.partition(b":")
        key = name.decode("latin-1").lower()
        # A name with blanks around it is read as one header by one program and as another by the next (RFC 9112, 5.1).
        if not separator or not key or key != key.strip():
            raise BadRequest("400 Bad Request")
        if key in _SPECIAL:
            said = value.decode("latin-1").strip()
            if values.get(key, said) != said:
                raise BadRequest("400 Bad Request")
            values[key] = said
        if key != "upgrade":
            passed.append(line)
    path, _, query = target.partition("?")
    return RequestHead(
        method=method,
        path=unquote(path),
        query={key: found[0] for key, found in parse_qs(query, keep_blank_values=True, max_num_fields=64).items()},
        authorization=values.get("authorization", ""),
        size=end.end(),
        body=_body_length(values),
        forwarded=b"\r\n".join(passed) + b"\r\n\r\n",
    )


def _body_length(values: dict[str, str]) -> int | None:
    """RFC 9112 section 6.3. A request that says both is how requests are smuggled."""
    length = values.get("content-length")
    if "transfer-encoding" in values:
        if length is not None or values["transfer-encoding"].lower() != "chunked":
            raise BadRequest("400 Bad Request")
        return None
    if length is None:
        return 0
    if not _LENGTH.fullmatch(length):
        raise BadRequest("400 Bad Request")
    return int(length)
