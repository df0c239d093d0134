"""HTTP/1 requests one after another on a connection: where each begins and ends (RFC 9112, RFC 6455).

As strict as http_head, for the same reason.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from netstack.wire.http_head import FIELD_LINE, MAX_HEAD, HeadReader, RequestHead, field_fault

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")
_MAX_CHUNK_LINE: Final = 17

# What a trailer must not carry (RFC 9110 section 6.5.1): some recipients merge it into the head.
_NEVER_IN_TRAILER: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"http2-settings", b"trailer", b"te")
)

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


class Piece(NamedTuple):
    """Bytes to send on. With `head`, `data` is that request's head, whole: not to be sent before it is judged."""

    data: bytes
    head: RequestHead | None


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
            if size == first.size:
                self._begin_body(first)
                return [Piece(chunk, first)]
            if size > first.size:
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
        field = FIELD_LINE.fullmatch(line)
        if field is None or bytes(field[1]).lower() in _NEVER_IN_TRAILER:
            self.fault = "http-trailer" if field else field_fault(bytes(line))
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
