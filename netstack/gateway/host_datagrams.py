"""UDP and ping sockets on the host's side: datagrams both ways, and the ICMP errors that come of them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Final

from netstack.engine import effects
from netstack.engine.stack import Stack
from netstack.gateway.poller import READ
from netstack.gateway.socket_errors import failure_of, keep_errors, read_errors
from netstack.gateway.socket_table import HostSocket, SocketTable, close_socket
from netstack.wire import icmp

DATAGRAMS_PER_WAKE: Final = 32
SEND_TRIES: Final = 3
"""A send fails with the errors of earlier ones first."""
DEFAULT_TTL: Final = 64
LOW_TTL: Final = 32
"""Datagrams with less are probes of the path (traceroute) and keep their TTL; others get the host's own."""

_NOT_NOW: Final = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS)
"""The host's queue is full: the datagram is lost, as datagrams are."""


class DatagramSocket(HostSocket):
    """The UDP socket of a mapping, for all its destinations."""

    __slots__ = ("ttl",)

    def __init__(self, flow: int, sock: socket.socket) -> None:
        super().__init__(flow, sock)
        self.ttl = DEFAULT_TTL


class PingSocket(DatagramSocket):
    """The ICMP socket of a flow of echo requests (icmp(7))."""

    __slots__ = ()


class HostDatagrams:
    """Carries out what is asked of datagram and ping sockets and reports what they do. Never awaits."""

    def __init__(self, stack: Stack, table: SocketTable) -> None:
        self._stack = stack
        self._table = table
        self._hosts = table.by_flow
        self._buffer = bytearray(65_536)
        self._view = memoryview(self._buffer)
        self.perform: dict[type, Callable[[Any, float], None]] = {
            effects.OpenDatagrams: self._open_datagrams,
            effects.SendDatagram: self._send_datagram,
            effects.CloseDatagrams: self._close_datagrams,
            effects.OpenEcho: self._open_echo,
            effects.SendEcho: self._send_echo,
            effects.CloseEcho: self._close_echo,
        }
        """What to do for each kind of effect."""

    # -- datagrams -------------------------------------------------------------------------------------------

    def _open_datagrams(self, effect: effects.OpenDatagrams, _now: float) -> None:
        self._datagrams(effect.flow)

    def _datagrams(self, flow: int) -> DatagramSocket | None:
        """The socket of a mapping. One that could not be made is tried again for each datagram: resources come back."""
        host = self._hosts.get(flow)
        if host is not None:
            return host if type(host) is DatagramSocket else None
        sock = None
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            keep_errors(sock)
            made = DatagramSocket(flow, sock)
            self._table.add(made, READ)
        except OSError:
            if sock is not None:
                close_socket(sock)
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

    def _send_to(self, host: DatagramSocket, data: bytes, address: bytes, port: int, ttl: int, now: float) -> int:
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

    def receive_datagrams(self, host: DatagramSocket, now: float) -> None:
        """Take the datagrams that have come."""
        for data, (address, port) in self._receive(host, now):
            self._stack.datagram_received(host.flow, socket.inet_aton(address), port, data, now)

    def _receive(self, host: DatagramSocket, now: float) -> list[tuple[bytes, tuple[str, int]]]:
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
            self._table.drop(host)

    def _report_errors(self, host: DatagramSocket, now: float) -> None:
        echo = type(host) is PingSocket
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

    def _echo(self, flow: int) -> PingSocket | int:
        """The ping socket of a flow, or why there is none (an effects word). It is tried again for each request."""
        host = self._hosts.get(flow)
        if host is not None:
            return host if type(host) is PingSocket else effects.NO_RESOURCES
        sock = None
        try:
            sock = open_ping_socket()
            keep_errors(sock)
            made = PingSocket(flow, sock)
            self._table.add(made, READ)
        except OSError as error:
            if sock is not None:
                close_socket(sock)
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

    def receive_echoes(self, host: PingSocket, now: float) -> None:
        """Take the echo replies that have come."""
        for data, (address, _) in self._receive(host, now):
            message = icmp.parse(data, verify_checksum=False)
            if isinstance(message, icmp.Echo) and not message.request:
                reply = (message.sequence, message.payload)
                self._stack.echo_received(host.flow, socket.inet_aton(address), *reply, now)

    def _close_echo(self, effect: effects.CloseEcho, _now: float) -> None:
        host = self._hosts.get(effect.flow)
        if host is not None:
            self._table.drop(host)


def open_ping_socket() -> socket.socket:
    """An unprivileged ICMP socket (icmp(7)). Raises OSError where net.ipv4.ping_group_range does not include us."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
