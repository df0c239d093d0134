"""The host's end of every flow: the only place that dials, and the only one that opens sockets for a guest.

One selector holds all host sockets; the driver waits for the selector itself, so an established flow costs no task, and
everything that is ready is handled in one wake-up before anything is sent to the guest.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

from netstack.engine import effects
from netstack.engine.stack import Stack
from netstack.gateway.poller import READ, WRITE, Poller
from netstack.gateway.socket_errors import failure_of, keep_errors, read_errors
from netstack.wire import icmp

READ_SIZE: Final = 65_536
"""Bytes taken from a host socket at once: one allocation the C library serves without a system call."""
MAX_PIECES: Final = 512
"""Pieces per vectored send, below IOV_MAX everywhere."""
DATAGRAMS_PER_WAKE: Final = 32
SOCKETS_PER_WAKE: Final = 128
"""Sockets handled before what came of it is sent to the guest, and before the guest is heard again."""
MAX_LINGERING: Final = 256
"""Streams that are over but for bytes their peer has not taken; beyond, the oldest is reset. The guest has closed them,
so that none of the engine's bounds counts them.
"""
SEND_TRIES: Final = 3
"""A send fails with the errors of earlier ones first."""
KEEPALIVE_IDLE: Final = 60
"""Seconds of silence before a host connection is asked whether it still lives, as gvproxy has it."""
DEFAULT_TTL: Final = 64
LOW_TTL: Final = 32
"""Datagrams with less are probes of the path (traceroute) and keep their TTL; others get the host's own."""

_LINUX: Final = sys.platform == "linux"
_RESET: Final = struct.pack("ii", 1, 0)
_NOT_NOW: Final = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS)
"""The host's queue is full: the datagram is lost, as datagrams are."""


class _Host:
    """A registered host socket."""

    __slots__ = ("descriptor", "flow", "interest", "sock")

    def __init__(self, flow: int, sock: socket.socket) -> None:
        self.flow = flow
        self.sock = sock
        self.descriptor = sock.fileno()
        self.interest = 0


class _Stream(_Host):
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


class _Datagrams(_Host):
    __slots__ = ("ttl",)

    def __init__(self, flow: int, sock: socket.socket) -> None:
        super().__init__(flow, sock)
        self.ttl = DEFAULT_TTL


class _Echo(_Datagrams):
    __slots__ = ()


class HostSockets:
    """Carries out the engine's effects on host sockets and reports what they do. Never awaits."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._poller = Poller()
        self._closed = False
        self._hosts: dict[int, _Host] = {}
        self._watched: dict[int, _Host] = {}  # by descriptor
        self._lingering: dict[int, _Stream] = {}
        self._ready: deque[tuple[_Host, int]] = deque()
        self._buffer = bytearray(65_536)
        self._view = memoryview(self._buffer)
        self.perform: dict[type, Callable[[Any, float], None]] = {
            effects.OpenStream: self._open_stream,
            effects.SendStream: self._send_stream,
            effects.ReadStream: self._read_stream,
            effects.ShutdownStream: self._shutdown_stream,
            effects.CloseStream: self._close_stream,
            effects.AbortStream: self._abort_stream,
            effects.OpenDatagrams: self._open_datagrams,
            effects.SendDatagram: self._send_datagram,
            effects.CloseDatagrams: self._close_datagrams,
            effects.OpenEcho: self._open_echo,
            effects.SendEcho: self._send_echo,
            effects.CloseEcho: self._close_echo,
        }
        """What to do for each kind of effect."""

    def fileno(self) -> int:
        """Readable when any host socket has something to be handled by `handle_ready`."""
        return self._poller.fileno()

    def __len__(self) -> int:
        """Host sockets open."""
        return len(self._hosts)

    def close(self) -> None:
        """Close every host socket. Established connections are reset: their guest is going away.

        What is asked for afterwards fails as on a host without resources. Safe to call twice.
        """
        if self._closed:
            return
        self._closed = True
        for host in list(self._hosts.values()):
            if isinstance(host, _Stream):
                _reset_on_close(host.sock)
            self._drop(host)
        self._poller.close()

    def handle_ready(self, now: float) -> None:
        """Handle host sockets that are ready, each once and SOCKETS_PER_WAKE at most; the others are next."""
        ready = self._ready
        if not ready:
            watched = self._watched
            ready.extend([(watched[descriptor], mask) for descriptor, mask in self._poller.poll()])
        for _ in range(min(len(ready), SOCKETS_PER_WAKE)):
            host, mask = ready.popleft()
            mask &= host.interest  # what was ready may have been closed since, or be watched no more
            if not mask:
                continue
            if type(host) is _Stream:
                if host.connecting:
                    self._connected(host, now)
                    continue
                if mask & WRITE:
                    self._flush(host, now)
                if mask & host.interest & READ:
                    self._read(host, now)
            elif type(host) is _Echo:
                self._receive_echoes(host, now)
            elif type(host) is _Datagrams:
                self._receive_datagrams(host, now)

    # -- registration ----------------------------------------------------------------------------------------

    def _add(self, host: _Host, interest: int) -> None:
        """Watch a new socket. Raises OSError when the kernel has no place for it (epoll_ctl(2): ENOMEM, ENOSPC)."""
        if self._closed:
            raise OSError(errno.ECANCELED, "the host's side is closed")
        self._poller.register(host.descriptor, interest)
        self._watched[host.descriptor] = host
        host.interest = interest
        self._hosts[host.flow] = host

    def _watch(self, stream: _Stream, interest: int, now: float) -> bool:
        """Change what is waited for; False when that could not be done, which is the end of the stream."""
        if interest == stream.interest:
            return True
        try:
            if not stream.interest:
                self._poller.register(stream.descriptor, interest)
                self._watched[stream.descriptor] = stream
            elif interest:
                self._poller.modify(stream.descriptor, interest)
            else:
                self._unwatch(stream)
        except OSError:
            self._fail(stream, now)
            return False
        stream.interest = interest
        return True

    def _unwatch(self, host: _Host) -> None:
        host.interest = 0
        del self._watched[host.descriptor]
        self._poller.unregister(host.descriptor)

    def _drop(self, host: _Host) -> None:
        if host.interest:
            self._unwatch(host)
        self._hosts.pop(host.flow, None)
        self._lingering.pop(host.flow, None)
        _close(host.sock)

    def _stream(self, flow: int) -> _Stream | None:
        host = self._hosts.get(flow)
        return host if isinstance(host, _Stream) else None

    # -- streams ---------------------------------------------------------------------------------------------

    def _open_stream(self, effect: effects.OpenStream, now: float) -> None:
        self.dial(effect.flow, effect.address, effect.port, now)

    def dial(self, flow: int, address: bytes, port: int, now: float) -> None:
        """Begin to connect; the stack is told what came of it, and which address it was."""
        try:
            sock = new_stream_socket(address)
        except OSError as error:
            self._stack.stream_failed(flow, failure_of(error.errno), now)
            return
        try:
            number = sock.connect_ex((address_text(address), port))
            if number in (0, errno.EINPROGRESS):
                stream = _Stream(flow, sock)
                stream.address, stream.port = address, port
                self._add(stream, WRITE)
                return
        except OSError as error:
            number = error.errno or errno.EIO
        _close(sock)
        self._stack.stream_failed(flow, failure_of(number), now)

    def adopt(self, flow: int, sock: socket.socket) -> None:
        """Take over a connected socket for a flow whose name was dialled."""
        stream = _Stream(flow, sock)
        stream.connecting = False
        self._add(stream, READ)

    def _connected(self, stream: _Stream, now: float) -> None:
        number = stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not number and _is_connected_to_itself(stream.sock, stream.port):
            _reset_on_close(stream.sock)
            number = errno.ECONNREFUSED
        if number:
            self._drop(stream)
            self._stack.stream_failed(stream.flow, failure_of(number), now)
            return
        stream.connecting = False
        self._stack.stream_opened(stream.flow, now, stream.address)
        self._watch(stream, READ, now)

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
                self._watch(stream, stream.interest | WRITE, now)
                return
            sent -= len(chunk)

    def _write(self, stream: _Stream, chunks: Sequence[bytes | memoryview], now: float) -> int | None:
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

    def _flush(self, stream: _Stream, now: float) -> None:
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
        elif self._watch(stream, stream.interest & ~WRITE, now) and stream.shutting:
            self._finish_writing(stream, now)

    def _read(self, stream: _Stream, now: float) -> None:
        room = self._stack.stream_room(stream.flow)
        if not room:
            self._watch(stream, stream.interest & ~READ, now)
            return
        try:
            data = stream.sock.recv(min(room, READ_SIZE))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._fail(stream, now)
            return
        if data:
            self._stack.stream_received(stream.flow, data)
        else:
            stream.ended = True
            if self._watch(stream, stream.interest & ~READ, now):
                self._stack.stream_ended(stream.flow)

    def _fail(self, stream: _Stream, now: float) -> None:
        self._drop(stream)
        self._stack.stream_reset(stream.flow, now)

    def _read_stream(self, effect: effects.ReadStream, now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is not None and not stream.ended and not stream.connecting:
            self._watch(stream, stream.interest | READ, now)

    def _shutdown_stream(self, effect: effects.ShutdownStream, now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is not None:
            stream.shutting = True
            if not stream.unsent:
                self._finish_writing(stream, now)

    def _finish_writing(self, stream: _Stream, now: float) -> None:
        try:
            stream.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._fail(stream, now)

    def _close_stream(self, effect: effects.CloseStream, _now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is None:
            return
        if not stream.unsent:
            self._drop(stream)
            return
        stream.closing = True
        self._lingering[effect.flow] = stream
        if len(self._lingering) > MAX_LINGERING:
            self._abort(next(iter(self._lingering.values())))

    def _abort_stream(self, effect: effects.AbortStream, _now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is not None:
            self._abort(stream)

    def _abort(self, stream: _Stream) -> None:
        _reset_on_close(stream.sock)
        self._drop(stream)

    # -- datagrams -------------------------------------------------------------------------------------------

    def _open_datagrams(self, effect: effects.OpenDatagrams, _now: float) -> None:
        self._datagrams(effect.flow)

    def _datagrams(self, flow: int) -> _Datagrams | None:
        """The socket of a mapping. One that could not be made is tried again for each datagram: resources come back."""
        host = self._hosts.get(flow)
        if host is not None:
            return host if type(host) is _Datagrams else None
        sock = None
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            keep_errors(sock)
            made = _Datagrams(flow, sock)
            self._add(made, READ)
        except OSError:
            if sock is not None:
                _close(sock)
            return None
        return made

    def _send_datagram(self, effect: effects.SendDatagram, now: float) -> None:
        host = self._datagrams(effect.flow)
        if host is None:
            failure = effects.NETWORK_UNREACHABLE
        else:
            failure = self._send_to(host, effect.payload, effect.address, effect.port, effect.ttl, now)
        if failure:
            self._stack.datagram_failed(effect.flow, effect.address, effect.port, failure, now)

    def _send_to(self, host: _Datagrams, data: bytes, address: bytes, port: int, ttl: int, now: float) -> int:
        """Send; the effects word if that failed, else 0. Errors of earlier datagrams go to whom they concern."""
        wanted = ttl if 0 < ttl < LOW_TTL else DEFAULT_TTL  # 0: the host itself was addressed
        target = (socket.inet_ntoa(address), port)
        number = 0
        for _ in range(SEND_TRIES):
            try:
                if wanted != host.ttl:
                    host.sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, wanted)
                    host.ttl = wanted
                host.sock.sendto(data, target)
            except OSError as error:
                if error.errno in _NOT_NOW:
                    return 0
                number = error.errno or errno.EIO
                self._report_errors(host, now)
            else:
                return 0
        return failure_of(number)

    def _receive_datagrams(self, host: _Datagrams, now: float) -> None:
        for data, (address, port) in self._receive(host, now):
            self._stack.datagram_received(host.flow, socket.inet_aton(address), port, data, now)

    def _receive(self, host: _Datagrams, now: float) -> list[tuple[bytes, tuple[str, int]]]:
        """What has come to a socket, DATAGRAMS_PER_WAKE of it at most; errors are reported on the way."""
        received = []
        for count in range(DATAGRAMS_PER_WAKE):
            try:
                size, source = host.sock.recvfrom_into(self._buffer)
            except OSError as error:
                if error.errno not in _NOT_NOW or not count:  # woken for nothing but the errors that wait
                    self._report_errors(host, now)
                if error.errno in _NOT_NOW:
                    break
            else:
                received.append((bytes(self._view[:size]), source))
        return received

    def _close_datagrams(self, effect: effects.CloseDatagrams, _now: float) -> None:
        host = self._hosts.get(effect.flow)
        if host is not None:
            self._drop(host)

    def _report_errors(self, host: _Datagrams, now: float) -> None:
        echo = type(host) is _Echo
        for failure, address, port, offender, mtu, quoted in read_errors(host.sock):
            if echo:
                request = icmp.parse(quoted, verify_checksum=False)
                sequence = request.sequence if isinstance(request, icmp.Echo) else None
                self._stack.echo_failed(host.flow, address, failure, now, sequence=sequence, offender=offender, mtu=mtu)
            else:
                self._stack.datagram_failed(host.flow, address, port, failure, now, offender=offender, mtu=mtu)

    # -- echo ------------------------------------------------------------------------------------------------

    def _open_echo(self, effect: effects.OpenEcho, _now: float) -> None:
        self._echo(effect.flow)

    def _echo(self, flow: int) -> _Echo | int:
        """The ping socket of a flow, or why there is none (an effects word). It is tried again for each request."""
        host = self._hosts.get(flow)
        if host is not None:
            return host if type(host) is _Echo else effects.NO_RESOURCES
        sock = None
        try:
            sock = open_ping_socket()
            keep_errors(sock)
            made = _Echo(flow, sock)
            self._add(made, READ)
        except OSError as error:
            if sock is not None:
                _close(sock)
            scarce = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)
            return effects.NETWORK_UNREACHABLE if scarce else effects.PROHIBITED
        return made

    def _send_echo(self, effect: effects.SendEcho, now: float) -> None:
        host = self._echo(effect.flow)
        if isinstance(host, int):
            failure = host
        else:
            # The kernel puts its own identifier in and makes the checksum.
            message = icmp.build_echo(request=True, identifier=0, sequence=effect.sequence, payload=effect.payload)
            failure = self._send_to(host, message, effect.address, 0, effect.ttl, now)
        if failure:
            self._stack.echo_failed(effect.flow, effect.address, failure, now, sequence=effect.sequence)

    def _receive_echoes(self, host: _Echo, now: float) -> None:
        for data, (address, _) in self._receive(host, now):
            message = icmp.parse(data, verify_checksum=False)
            if isinstance(message, icmp.Echo) and not message.request:
                reply = (message.sequence, message.payload)
                self._stack.echo_received(host.flow, socket.inet_aton(address), *reply, now)

    def _close_echo(self, effect: effects.CloseEcho, _now: float) -> None:
        host = self._hosts.get(effect.flow)
        if host is not None:
            self._drop(host)


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
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if _LINUX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    except OSError:
        sock.close()
        raise
    return sock


def open_ping_socket() -> socket.socket:
    """An unprivileged ICMP socket (icmp(7)). Raises OSError where net.ipv4.ping_group_range does not include us."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)


def _reset_on_close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # macOS refuses options on a socket that was reset already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # an error of the connection; the descriptor is closed all the same
        sock.close()


def _is_connected_to_itself(sock: socket.socket, port: int) -> bool:
    """Whether a dial to a local port that nobody listens on was given that very port as its own, and met itself."""
    try:
        own = sock.getsockname()
        return bool(own[1] == port and own == sock.getpeername())
    except OSError:
        return False  # reset again already: reading will tell
