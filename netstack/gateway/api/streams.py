"""A connection as Hypercorn reads it: one request at a time, in time, and nothing lost when something else takes over.

gvproxy's `/connect` and `/tunnel` turn a connection into a stream of frames or bytes, and their clients begin with
that right behind the request. So each head is looked at here first, on a connection that is kept alive too, and what
follows it stays in one buffer, whoever reads it in the end.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, Final

import trio

from netstack.gateway.api.request_head import BadRequest, RequestHead, parse_head

TIMEOUT: Final = 10.0
"""Seconds for a head, for a body, for a piece of an answer to be taken, and between two requests, as in gvproxy."""
MAX_BODY: Final = 16 << 20
"""Bytes of a request's body: a policy of a hundred thousand rules has three million."""
MAX_GUEST_BODY: Final = 64 << 10
"""The same for those that come from a guest, who may ask for little."""
_READ: Final = 64 * 1024


class _Addresses:
    """What Hypercorn asks of a socket: who is there. A guest's connection is a socket pair on this machine."""

    def __init__(self, family: int, peer: Any, name: Any) -> None:
        self.family = family
        self._peer = peer
        self._name = name

    def getpeername(self) -> Any:
        return self._peer

    def getsockname(self) -> Any:
        return self._name


class RequestStream:
    """One connection. `next_request` looks at a head; then Hypercorn reads the request by `receive_some`."""

    def __init__(self, stream: trio.SocketStream, *, guest: tuple[str, int] | None, raw_paths: frozenset[str]) -> None:
        """`guest`: the address of the guest it comes from, None for programs on the host. `raw_paths` take it over."""
        self._stream = stream
        self._raw_paths = raw_paths
        self._buffer = bytearray()
        self._left: float = 0
        self._answers = False
        self._deadline = inf
        self._max_body = MAX_BODY if guest is None else MAX_GUEST_BODY
        self._no_more: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.taken_over: RequestHead | None = None
        """The request that makes a raw connection of this one: it is no longer for Hypercorn."""
        # A socket that its peer has closed already does not say who that was.
        self.socket = _Addresses(socket.AF_UNIX, "", "")
        if guest is not None:
            self.socket = _Addresses(socket.AF_INET, guest, ("", 80))
        elif stream.socket.family != socket.AF_UNIX:
            try:
                self.socket = _Addresses(stream.socket.family, stream.socket.getpeername(), stream.socket.getsockname())
            except OSError:
                return

    def at_end(self, told: Callable[[], Awaitable[None]]) -> None:
        """Have this called when no request follows."""
        self._no_more = told

    # -- one request after the other ----------------------------------------------------------------------------------

    async def next_request(self) -> RequestHead | None:
        """The head of the next request, or None when there is none any more, or none in time. Raises BadRequest.

        A client that has been answered before may take its time to begin: how much is Hypercorn's to say, which knows
        whether it is still being answered.
        """
        if self._answers and not self._buffer:
            self._buffer += await self._stream.receive_some(_READ)
            if not self._buffer:
                return None
        self._answers = True
        with trio.move_on_after(TIMEOUT):
            while (head := parse_head(bytes(self._buffer))) is None:
                data = await self._stream.receive_some(_READ)
                if not data:
                    return None
                self._buffer += data
            if (head.body or 0) > self._max_body:
                raise BadRequest("413 Content Too Large")
            if head.path in self._raw_paths:
                del self._buffer[: head.size]
                self.taken_over = head
            else:
                self._buffer[: head.size] = head.forwarded
                self._left = len(head.forwarded) + (self._max_body if head.body is None else head.body)
                self._deadline = trio.current_time() + TIMEOUT
            return head
        return None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes of the request, then of the next one; b"" at the end, or when something else takes over."""
        data = await self._receive(max_bytes or _READ)
        if not data:
            # An answer that is still to come is the last; without this Hypercorn would wait for another request.
            await self._no_more()
        return data

    async def _receive(self, max_bytes: int) -> bytes:
        if self.taken_over is not None:
            return b""
        if not self._left:
            try:
                if await self.next_request() is None or self.taken_over is not None:
                    return b""
            except BadRequest:
                return b""
        if not self._buffer:
            with trio.move_on_at(self._deadline):
                self._buffer += await self._stream.receive_some(_READ)
        count = int(min(len(self._buffer), self._left, max_bytes))
        piece = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._left -= count
        return piece

    async def send_all(self, data: bytes) -> None:
        """Send, in time: raises BrokenResourceError for a client that does not read."""
        try:
            with trio.fail_after(TIMEOUT):
                await self._stream.send_all(data)
        except trio.TooSlowError as error:
            raise trio.BrokenResourceError("the client does not read") from error

    async def send_eof(self) -> None:
        """Say that no answer follows, unless the connection lives on as something else."""
        if self.taken_over is None:
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close it, with the same exception."""
        if self.taken_over is None:
            await self._stream.aclose()

    # -- what is none of Hypercorn's ----------------------------------------------------------------------------------

    def detach(self) -> tuple[trio.SocketStream, bytes]:
        """The connection itself, and the bytes that came behind the request that took it over."""
        early = bytes(self._buffer)
        self._buffer.clear()
        return self._stream, early

    async def refuse(self, status: str, text: str, *headers: str) -> None:
        """Answer with an error, in gvproxy's form, and close. For requests that Hypercorn does not see."""
        body = f"{text}\n".encode()
        lines = [
            f"HTTP/1.1 {status}",
            "Content-Type: text/plain; charset=utf-8",
            "X-Content-Type-Options: nosniff",
            *headers,
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        try:
            await self.send_all("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
