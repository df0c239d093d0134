"""What the host's kernel reports of what guests sent: an errno or an ICMP error from its queue, in engine words."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import Final, NamedTuple

from netstack.engine import effects
from netstack.wire import icmp

_LINUX: Final = sys.platform == "linux"
_IP_RECVERR: Final = 11  # Linux; the socket module has no name for it
_FROM_ICMP: Final = 2  # SO_EE_ORIGIN_ICMP; what the kernel found out itself, `sendto` has said already
_EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")  # struct sock_extended_err; the offender's sockaddr_in follows
_OFFENDER: Final = slice(_EXTENDED_ERROR.size + 4, _EXTENDED_ERROR.size + 8)

_FAILURES: Final = {
    errno.ECONNREFUSED: effects.REFUSED,
    errno.ECONNRESET: effects.REFUSED,
    errno.ENOPROTOOPT: effects.REFUSED,  # protocol unreachable
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
# Linux has one errno for all of these and for a host that is not there.
_PROHIBITED_CODES: Final = (icmp.NET_PROHIBITED, icmp.HOST_PROHIBITED, icmp.ADMINISTRATIVELY_PROHIBITED)


class SocketError(NamedTuple):
    """An ICMP error about something sent to `address:port`.

    `offender` (packed) said so, `mtu` means something for TOO_BIG, `quoted` is how the message began that was sent (of
    UDP: its payload), as far as the offender quoted it.
    """

    failure: int
    address: bytes
    port: int
    offender: bytes
    mtu: int
    quoted: bytes


def failure_of(number: int | None) -> int:
    """The effects word for an errno."""
    return _FAILURES.get(number or 0, effects.NO_RESOURCES)


def keep_errors(sock: socket.socket) -> None:
    """Have the kernel keep ICMP errors, each with its destination, also for an unconnected socket. Raises OSError."""
    if _LINUX:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def read_errors(sock: socket.socket) -> list[SocketError]:
    """Take the ICMP errors the kernel kept since the last time (ip(7), IP_RECVERR). Raises nothing."""
    errors: list[SocketError] = []
    while _LINUX:
        try:
            quoted, ancillary, _, target = sock.recvmsg(icmp.HEADER, 512, socket.MSG_ERRQUEUE)
        except OSError:
            break
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_RECVERR and target and len(data) >= _EXTENDED_ERROR.size:
                error = _error(data, socket.inet_aton(target[0]), target[1], quoted)
                if error is not None:
                    errors.append(error)
    return errors


def _error(data: bytes, address: bytes, port: int, quoted: bytes) -> SocketError | None:
    number, origin, kind, code, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
    if origin != _FROM_ICMP:
        return None
    failure = failure_of(number)
    if kind == icmp.TIME_EXCEEDED:
        failure = effects.TTL_EXCEEDED if code == icmp.TTL_EXCEEDED else effects.NO_RESOURCES
    elif kind == icmp.UNREACHABLE and code in _PROHIBITED_CODES:
        failure = effects.PROHIBITED
    return SocketError(failure, address, port, data[_OFFENDER], info, quoted)
