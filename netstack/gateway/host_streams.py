"""TCP on the host's side: dials, and carries the bytes of established connections both ways."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, Protocol

from netstack.engine import effects
from netstack.gateway.poller import READ, WRITE
from netstack.gateway.socket_errors import failure_of
from netstack.gateway.socket_table import HostSocket, SocketTable, close_socket

MAX_PIECES: Final = 512
"""Pieces per vectored send, below IOV_MAX everywhere."""
MAX_LINGERING: Final = 256
"""Streams that are over but for bytes their peer has not taken; beyond, the oldest is reset. The guest has closed them,
so that none of the engine's bounds counts them.
"""
KEEPALIVE_IDLE: Final = 60
"""Seconds of silence before a host connection is asked whether it still lives, as gvproxy has it."""

_UNDER_WAY: Final = (errno.EALREADY, errno.EINPROGRESS)
_CONNECTED: Final = (0, errno.EISCONN)
"""What a dial that goes on and one that has succeeded say when they are asked again."""
_LINUX: Final = sys.platform == "linux"
_RESET: Final = struct.pack("ii", 1, 0)


class DialWatch(Protocol):
    """Who is told of dials: of each attempt when it begins, and when it is over."""

    def looked_up(self, flow: int, name: str, addresses: list[bytes], faults: dict[bytes, str]) -> None:
        """What a flow's name stands for, and why some of its addresses must not be dialled."""

    def dialling(self, flow: int, address: bytes, port: int) -> None:
        """An attempt begins."""

    def dialled(self, flow: int, address: bytes, port: int, number: int) -> None:
        """An attempt is over; `number` is the errno, 0 when it has connected."""


class StreamReports(Protocol):
    """Who hears what streams do: the stack, which says what each of these means."""

    def stream_opened(self, flow: int, now: float, address: bytes | None = None) -> None:
        """See Stack."""

    def stream_failed(self, flow: int, failure: int, now: float) -> None:
        """See Stack."""

    def stream_sent(self, flow: int, count: int) -> None:
        """See Stack."""

    def stream_room(self, flow: int) -> int:
        """See Stack."""

    def stream_received(self, flow: int, data: bytes) -> None:
        """See Stack."""

    def stream_ended(self, flow: int) -> None:
        """See Stack."""

    def stream_reset(self, flow: int, now: float) -> None:
        """See Stack."""


class HostStream(HostSocket):
    """A connection to a host, or the dial of one."""

    __slots__ = ("address", "closing", "connecting", "ended", "port", "shutting", "unsent")

    def __init__(self, flow: int, sock: socket.socket) -> None:
        super().__init__(flow, sock)
        self.connecting = True
        self.address = b""
        self.port = 0
        """What is dialled, address and port."""
        self.unsent: deque[bytes | memoryview] = deque()
        self.shutting = False
        self.closing = False
        self.ended = False


class HostStreams:
    """Carries out what is asked of streams and reports what they do. Never awaits."""

    def __init__(self, stack: StreamReports, table: SocketTable) -> None:
        self._stack = stack
        self._table = table
        self._hosts = table.by_flow
        self._lingering: dict[int, HostStream] = {}
        self.watch: DialWatch | None = None
        """Who is told of dials, if anybody is."""
        self.more_reads = 0
        """Reads left in this wake-up for streams that had as much to say as was asked for."""
        self.perform: dict[type, Callable[[Any, float], None]] = {
            effects.OpenStream: self._open_stream,
            effects.SendStream: self._send_stream,
            effects.ReadStream: self._read_stream,
            effects.ShutdownStream: self._shutdown_stream,
            effects.CloseStream: self._close_stream,
            effects.AbortStream: self._abort_stream,
        }
        """What to do for each kind of effect."""

    def report_to(self, stack: StreamReports) -> None:
        """Tell this from now on what streams do, instead of the stack, which it passes on to."""
        self._stack = stack

    def _stream(self, flow: int) -> HostStream | None:
        host = self._hosts.get(flow)
        return host if isinstance(host, HostStream) else None

    def _drop(self, stream: HostStream) -> None:
        self._lingering.pop(stream.flow, None)
        self._table.drop(stream)

    def _open_stream(self, effect: effects.OpenStream, now: float) -> None:
        self.dial(effect.flow, effect.address, effect.port, now)

    def dial(self, flow: int, address: bytes, port: int, now: float) -> None:
        """Begin to connect; the stack is told what came of it, and which address it was."""
        watch = self.watch
        if watch is not None:
            watch.dialling(flow, address, port)
        try:
            sock = new_stream_socket(address)
        except OSError as error:
            if watch is not None:
                watch.dialled(flow, address, port, error.errno or errno.EIO)
            self._stack.stream_failed(flow, failure_of(error.errno), now)
            return
        target = (address_text(address), port)
        try:
            number = sock.connect_ex(target)
            if number == errno.EINPROGRESS:
                # A destination on this host has answered by now: to ask once more costs less than a wake-up.
                number = sock.connect_ex(target)
            if number in _UNDER_WAY:
                stream = HostStream(flow, sock)
                stream.address, stream.port = address, port
                self._table.add(stream, WRITE)
                return
            if number in _CONNECTED:
                number = self._opened_at_once(flow, sock, address, port, now)
                if not number:
                    return
        except OSError as error:
            number = error.errno or errno.EIO
        close_socket(sock)
        if watch is not None:
            watch.dialled(flow, address, port, number)
        self._stack.stream_failed(flow, failure_of(number), now)

    def _opened_at_once(self, flow: int, sock: socket.socket, address: bytes, port: int, now: float) -> int:
        """The dial has succeeded already; the errno if it is worth nothing all the same. Raises OSError."""
        if _is_connected_to_itself(sock, port):
            _reset_on_close(sock)
            return errno.ECONNREFUSED
        self.adopt(flow, sock)
        if self.watch is not None:
            self.watch.dialled(flow, address, port, 0)
        self._stack.stream_opened(flow, now, address)
        return 0

    def adopt(self, flow: int, sock: socket.socket, gone: Callable[[], None] | None = None) -> None:
        """Take over a connected socket: of a name that was dialled, or of a client for a guest. Raises OSError.

        `gone` is called when it is closed.
        """
        stream = HostStream(flow, sock)
        stream.connecting = False
        stream.gone = gone
        self._table.add(stream, READ)

    def read_at_once(self, flow: int, now: float) -> None:
        """Take what the peer of an adopted socket has said meanwhile, without waiting to be told of it."""
        stream = self._stream(flow)
        if stream is not None:
            self.read(stream, now)

    def forget(self, flow: int) -> None:
        """Close the socket of a flow, if it has one: nobody is to hear of it."""
        stream = self._stream(flow)
        if stream is not None:
            self._drop(stream)

    def connected(self, stream: HostStream, now: float) -> None:
        """The dial is over, well or badly."""
        number = stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not number and _is_connected_to_itself(stream.sock, stream.port):
            _reset_on_close(stream.sock)
            number = errno.ECONNREFUSED
        if self.watch is not None:
            self.watch.dialled(stream.flow, stream.address, stream.port, number)
        if number:
            self._drop(stream)
            self._stack.stream_failed(stream.flow, failure_of(number), now)
            return
        stream.connecting = False
        self._stack.stream_opened(stream.flow, now, stream.address)
        if not self._table.watch(stream, READ):
            self._fail(stream, now)

    def _send_stream(self, effect: effects.SendStream, now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is None:
            return
        chunks = effect.chunks
        if stream.unsent:
            stream.unsent.extend(chunks)
            return
        sent = self._write(stream, chunks, now)
        if sent is None:
            return
        for index, chunk in enumerate(chunks):
            if sent < len(chunk):
                stream.unsent.append(memoryview(chunk)[sent:])
                stream.unsent.extend(chunks[index + 1 :])
                if not self._table.watch(stream, stream.interest | WRITE):
                    self._fail(stream, now)
                return
            sent -= len(chunk)

    def _write(self, stream: HostStream, chunks: Sequence[bytes | memoryview], now: float) -> int | None:
        """Send what the socket takes now; the number of bytes, or None when the stream is gone."""
        try:
            sent = stream.sock.send(chunks[0]) if len(chunks) == 1 else stream.sock.sendmsg(chunks[:MAX_PIECES])
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._fail(stream, now)
            return None
        self._stack.stream_sent(stream.flow, sent)
        return sent

    def flush(self, stream: HostStream, now: float) -> None:
        """Send what waits, as far as the socket takes it, and what was to come after it."""
        unsent = stream.unsent
        while unsent:
            sent = self._write(stream, list(islice(unsent, MAX_PIECES)), now)
            if not sent:
                return
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.popleft())
            if sent:
                unsent[0] = memoryview(unsent[0])[sent:]
        if stream.closing:
            self._drop(stream)
        elif not self._table.watch(stream, stream.interest & ~WRITE):
            self._fail(stream, now)
        elif stream.shutting:
            self._finish_writing(stream, now)

    def read(self, stream: HostStream, now: float) -> None:
        """Take what the peer has sent, as much as there is room for, or its end."""
        if not self._take(stream, now) and stream.interest & READ and not self._unwatch(stream):
            self._fail(stream, now)

    def _unwatch(self, stream: HostStream) -> bool:
        return self._table.watch(stream, stream.interest & ~READ)

    def _take(self, stream: HostStream, now: float) -> bool:
        """Do so; whether there is more to be waited for."""
        while True:
            room = self._stack.stream_room(stream.flow)
            if not room:
                return False
            try:
                data = stream.sock.recv(room)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                self._fail(stream, now)
                return False
            if not data:
                self._ended(stream, now)
                return False
            self._stack.stream_received(stream.flow, data)
            if len(data) < room or not self.more_reads:
                return True
            self.more_reads -= 1

    def _ended(self, stream: HostStream, now: float) -> None:
        """The peer has finished. If the guest had before, nothing more comes by this socket either way."""
        stream.ended = True
        if stream.shutting and not stream.unsent:
            self._drop(stream)
        elif not self._unwatch(stream):
            self._fail(stream, now)
            return
        self._stack.stream_ended(stream.flow)

    def _fail(self, stream: HostStream, now: float) -> None:
        self._drop(stream)
        self._stack.stream_reset(stream.flow, now)

    def _read_stream(self, effect: effects.ReadStream, now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is None or stream.ended or stream.connecting:
            return
        # What it has is read at once: a busy stream that has to pause often then costs the poller nothing.
        if self._take(stream, now) and not self._table.watch(stream, stream.interest | READ):
            self._fail(stream, now)

    def _shutdown_stream(self, effect: effects.ShutdownStream, now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is not None:
            stream.shutting = True
            if not stream.unsent:
                self._finish_writing(stream, now)

    def _finish_writing(self, stream: HostStream, now: float) -> None:
        try:
            stream.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._fail(stream, now)

    def _close_stream(self, effect: effects.CloseStream, _now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is None:
            return
        if not stream.unsent:
            self._table.drop(stream)
            return
        stream.closing = True
        self._lingering[effect.flow] = stream
        if len(self._lingering) > MAX_LINGERING:
            self.abort(next(iter(self._lingering.values())))

    def _abort_stream(self, effect: effects.AbortStream, _now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is not None:
            self.abort(stream)

    def abort_flow(self, flow: int) -> None:
        """Reset the connection of a flow, if it has one."""
        stream = self._stream(flow)
        if stream is not None:
            self.abort(stream)

    def abort(self, stream: HostStream) -> None:
        """Reset the connection."""
        _reset_on_close(stream.sock)
        self._drop(stream)


def address_text(address: bytes) -> str:
    """A packed address, 4 or 16 bytes, as the socket module takes it."""
    return socket.inet_ntoa(address) if len(address) == 4 else socket.inet_ntop(socket.AF_INET6, address)


def new_stream_socket(address: bytes) -> socket.socket:
    """A TCP socket for dialling an address (4 or 16 bytes), with the options every host connection has.

    Raises OSError.
    """
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        set_stream_options(sock)
    except OSError:
        sock.close()
        raise
    return sock


def set_stream_options(sock: socket.socket) -> None:
    """What every host connection has: no delay for small segments, and a question after silence. Raises OSError."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if _LINUX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)


def _reset_on_close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # macOS refuses options on a socket that was reset already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _is_connected_to_itself(sock: socket.socket, port: int) -> bool:
    """Whether a dial to a local port that nobody listens on was given that very port as its own, and met itself."""
    try:
        own = sock.getsockname()
        return bool(own[1] == port and own == sock.getpeername())
    except OSError:
        return False  # reset again already: reading will tell
