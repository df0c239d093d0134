"""The host's end of every flow: the only place that dials, and the only one that opens sockets for a guest.

One selector holds all host sockets; the driver waits for the selector itself, so an established flow costs no task, and
everything that is ready is handled in one wake-up before anything is sent to the guest.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from netstack.engine import effects
from netstack.engine.stack import Stack
from netstack.wire import icmp

READ_SIZE: Final = 65_536
"""Bytes taken from a host socket at once: one allocation the C library serves without a system call."""
MAX_PIECES: Final = 512
"""Pieces per vectored send, below IOV_MAX everywhere."""
DATAGRAMS_PER_WAKE: Final = 32
KEEPALIVE_IDLE: Final = 60
"""Seconds of silence before a host connection is asked whether it still lives, as gvproxy has it."""
DEFAULT_TTL: Final = 64
LOW_TTL: Final = 32
"""Datagrams with less are probes of the path (traceroute) and keep their TTL; others get the host's own."""

_IP_RECVERR: Final = 11  # Linux; the socket module has no name for it
_FROM_ICMP: Final = 2  # SO_EE_ORIGIN_ICMP
_LINUX: Final = sys.platform == "linux"
_RESET: Final = struct.pack("ii", 1, 0)

_FAILURES: Final = {
    errno.ECONNREFUSED: effects.REFUSED,
    errno.ECONNRESET: effects.REFUSED,
    errno.ENETUNREACH: effects.NETWORK_UNREACHABLE,
    errno.ENETDOWN: effects.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: effects.HOST_UNREACHABLE,
    errno.EHOSTDOWN: effects.HOST_UNREACHABLE,
    errno.EINVAL: effects.HOST_UNREACHABLE,  # Linux's answer to a blackhole route
    errno.EACCES: effects.PROHIBITED,
    errno.EPERM: effects.PROHIBITED,
    errno.ETIMEDOUT: effects.TIMED_OUT,
    errno.EMSGSIZE: effects.TOO_BIG,
}


def failure_of(number: int | None) -> int:
    """The effects word for an errno."""
    return _FAILURES.get(number or 0, effects.NO_RESOURCES)


class _Host:
    """A registered host socket."""

    __slots__ = ("flow", "interest", "sock")

    def __init__(self, flow: int, sock: socket.socket) -> None:
        self.flow = flow
        self.sock = sock
        self.interest = 0


class _Stream(_Host):
    __slots__ = ("closing", "connecting", "ended", "shutting", "unsent")

    def __init__(self, flow: int, sock: socket.socket) -> None:
        super().__init__(flow, sock)
        self.connecting = True
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
        self._selector = selectors.DefaultSelector()
        self._hosts: dict[int, _Host] = {}
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
        return self._selector.fileno()

    def __len__(self) -> int:
        """Host sockets open."""
        return len(self._hosts)

    def close(self) -> None:
        """Close every host socket. Established connections are reset: their guest is going away."""
        for host in list(self._hosts.values()):
            if isinstance(host, _Stream):
                _reset_on_close(host.sock)
            self._drop(host)
        self._selector.close()

    def handle_ready(self, now: float) -> None:
        """Handle every host socket that is ready, once."""
        for key, mask in self._selector.select(0):
            host = key.data
            if type(host) is _Stream:
                if host.connecting:
                    self._connected(host, now)
                    continue
                if mask & selectors.EVENT_WRITE:
                    self._flush(host, now)
                if mask & selectors.EVENT_READ and host.sock.fileno() >= 0:
                    self._read(host, now)
            elif type(host) is _Echo:
                self._receive_echoes(host, now)
            elif type(host) is _Datagrams:
                self._receive_datagrams(host, now)

    # -- registration ----------------------------------------------------------------------------------------

    def _add(self, host: _Host, interest: int) -> None:
        self._hosts[host.flow] = host
        host.interest = interest
        self._selector.register(host.sock, interest, host)

    def _watch(self, host: _Host, interest: int) -> None:
        if interest == host.interest:
            return
        if not host.interest:
            self._selector.register(host.sock, interest, host)
        elif not interest:
            self._selector.unregister(host.sock)
        else:
            self._selector.modify(host.sock, interest, host)
        host.interest = interest

    def _drop(self, host: _Host) -> None:
        if host.interest:
            self._selector.unregister(host.sock)
            host.interest = 0
        host.sock.close()
        self._hosts.pop(host.flow, None)

    def _stream(self, flow: int) -> _Stream | None:
        host = self._hosts.get(flow)
        return host if isinstance(host, _Stream) else None

    # -- streams ---------------------------------------------------------------------------------------------

    def _open_stream(self, effect: effects.OpenStream, now: float) -> None:
        try:
            sock = new_stream_socket(effect.address)
        except OSError as error:
            self._stack.stream_failed(effect.flow, failure_of(error.errno), now)
            return
        number = sock.connect_ex((socket.inet_ntoa(effect.address), effect.port))
        stream = _Stream(effect.flow, sock)
        if number in (0, errno.EINPROGRESS):
            self._add(stream, selectors.EVENT_WRITE)
        else:
            sock.close()
            self._stack.stream_failed(effect.flow, failure_of(number), now)

    def adopt(self, flow: int, sock: socket.socket) -> None:
        """Take over a connected socket for a flow whose name was dialled."""
        stream = _Stream(flow, sock)
        stream.connecting = False
        self._add(stream, selectors.EVENT_READ)

    def _connected(self, stream: _Stream, now: float) -> None:
        number = stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._drop(stream)
            self._stack.stream_failed(stream.flow, failure_of(number), now)
            return
        stream.connecting = False
        self._watch(stream, selectors.EVENT_READ)
        self._stack.stream_opened(stream.flow, now)

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
                self._watch(stream, stream.interest | selectors.EVENT_WRITE)
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
            batch = [unsent[index] for index in range(min(len(unsent), MAX_PIECES))]
            sent = self._write(stream, batch, now)
            if not sent:
                return
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.popleft())
            if sent:
                unsent[0] = memoryview(unsent[0])[sent:]
        self._watch(stream, stream.interest & ~selectors.EVENT_WRITE)
        if stream.closing:
            self._drop(stream)
        elif stream.shutting:
            self._finish_writing(stream, now)

    def _read(self, stream: _Stream, now: float) -> None:
        room = self._stack.stream_room(stream.flow)
        if not room:
            self._watch(stream, stream.interest & ~selectors.EVENT_READ)
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
            self._watch(stream, stream.interest & ~selectors.EVENT_READ)
            self._stack.stream_ended(stream.flow)

    def _fail(self, stream: _Stream, now: float) -> None:
        self._drop(stream)
        self._stack.stream_reset(stream.flow, now)

    def _read_stream(self, effect: effects.ReadStream, _now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is not None and not stream.ended and not stream.connecting:
            self._watch(stream, stream.interest | selectors.EVENT_READ)

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
        stream.closing = True
        if not stream.unsent:
            self._drop(stream)

    def _abort_stream(self, effect: effects.AbortStream, _now: float) -> None:
        stream = self._stream(effect.flow)
        if stream is not None:
            _reset_on_close(stream.sock)
            self._drop(stream)

    # -- datagrams -------------------------------------------------------------------------------------------

    def _open_datagrams(self, effect: effects.OpenDatagrams, _now: float) -> None:
        with contextlib.suppress(OSError):  # without a socket every datagram fails, and says so
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            _report_errors(sock)
            self._add(_Datagrams(effect.flow, sock), selectors.EVENT_READ)

    def _send_datagram(self, effect: effects.SendDatagram, now: float) -> None:
        host = self._hosts.get(effect.flow)
        if not isinstance(host, _Datagrams):
            self._stack.datagram_failed(effect.flow, effect.address, effect.port, effects.NETWORK_UNREACHABLE, now)
            return
        number = self._send_to(host, effect.payload, effect.address, effect.port, effect.ttl, now)
        if number:
            self._stack.datagram_failed(effect.flow, effect.address, effect.port, failure_of(number), now)

    def _send_to(self, host: _Datagrams, data: bytes, address: bytes, port: int, ttl: int, now: float) -> int:
        """Send; the errno when that failed at once. An error of an earlier datagram is reported for what it is."""
        wanted = ttl if 0 < ttl < LOW_TTL else DEFAULT_TTL  # 0: the host itself was addressed
        if wanted != host.ttl:
            host.sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, wanted)
            host.ttl = wanted
        target = (socket.inet_ntoa(address), port)
        try:
            host.sock.sendto(data, target)
        except (BlockingIOError, InterruptedError):
            return 0  # the host's queue is full: lost, as datagrams are
        except OSError as error:
            if not self._read_error_queue(host, now):
                return error.errno or errno.EIO
            try:
                host.sock.sendto(data, target)
            except OSError as again:
                return again.errno or errno.EIO
        return 0

    def _receive_datagrams(self, host: _Datagrams, now: float) -> None:
        for _ in range(DATAGRAMS_PER_WAKE):
            try:
                size, source = host.sock.recvfrom_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._read_error_queue(host, now)
                continue
            address, port = source[:2]
            self._stack.datagram_received(host.flow, socket.inet_aton(address), port, bytes(self._view[:size]), now)

    def _close_datagrams(self, effect: effects.CloseDatagrams, _now: float) -> None:
        host = self._hosts.get(effect.flow)
        if host is not None:
            self._drop(host)

    # -- echo ------------------------------------------------------------------------------------------------

    def _open_echo(self, effect: effects.OpenEcho, _now: float) -> None:
        with contextlib.suppress(OSError):  # not allowed on this host: each request fails, and says so
            sock = open_ping_socket()
            _report_errors(sock)
            self._add(_Echo(effect.flow, sock), selectors.EVENT_READ)

    def _send_echo(self, effect: effects.SendEcho, now: float) -> None:
        host = self._hosts.get(effect.flow)
        if not isinstance(host, _Echo):
            self._stack.echo_failed(effect.flow, effect.address, effects.PROHIBITED, now)
            return
        # The kernel puts its own identifier in and makes the checksum.
        message = icmp.build_echo(request=True, identifier=0, sequence=effect.sequence, payload=effect.payload)
        number = self._send_to(host, message, effect.address, 0, effect.ttl, now)
        if number:
            self._stack.echo_failed(effect.flow, effect.address, failure_of(number), now)

    def _receive_echoes(self, host: _Echo, now: float) -> None:
        for _ in range(DATAGRAMS_PER_WAKE):
            try:
                size, source = host.sock.recvfrom_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._read_error_queue(host, now)
                continue
            message = icmp.parse(bytes(self._view[:size]), verify_checksum=False)
            if isinstance(message, icmp.Echo) and not message.request:
                address = socket.inet_aton(source[0])
                self._stack.echo_received(host.flow, address, message.sequence, message.payload, now)

    def _close_echo(self, effect: effects.CloseEcho, _now: float) -> None:
        host = self._hosts.get(effect.flow)
        if host is not None:
            self._drop(host)

    # -- errors of datagrams ---------------------------------------------------------------------------------

    def _read_error_queue(self, host: _Datagrams, now: float) -> bool:
        """Report the ICMP errors the kernel keeps for this socket; whether there was any (ip(7), IP_RECVERR)."""
        if not _LINUX:
            return False
        found = False
        while True:
            try:
                _, ancillary, _, target = host.sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return found
            found = True
            for level, kind, data in ancillary:
                if level == socket.IPPROTO_IP and kind == _IP_RECVERR:
                    self._report_error(host, data, socket.inet_aton(target[0]), target[1], now)

    def _report_error(self, host: _Datagrams, data: bytes, address: bytes, port: int, now: float) -> None:
        # struct sock_extended_err, then the offender's sockaddr_in.
        number, origin, kind, _, _, info, _ = struct.unpack_from("=IBBBBII", data)
        offender = data[20:24] if origin == _FROM_ICMP and len(data) >= 24 else b""
        expired = kind == icmp.TIME_EXCEEDED and origin == _FROM_ICMP
        failure = effects.TTL_EXCEEDED if expired else failure_of(number)
        if isinstance(host, _Echo):
            self._stack.echo_failed(host.flow, address, failure, now, offender=offender, mtu=info & 0xFFFF)
        else:
            self._stack.datagram_failed(host.flow, address, port, failure, now, offender=offender, mtu=info & 0xFFFF)


def new_stream_socket(address: bytes) -> socket.socket:
    """A TCP socket for dialling an address (4 or 16 bytes), with the options every host connection has.

    Raises OSError.
    """
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if _LINUX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    return sock


def open_ping_socket() -> socket.socket:
    """An unprivileged ICMP socket (icmp(7)). Raises OSError where net.ipv4.ping_group_range does not include us."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)


def _reset_on_close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # macOS refuses options on a socket that was reset already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _report_errors(sock: socket.socket) -> None:
    if _LINUX:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
