"""The host sockets that are open for guests, and what each of them is watched for."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from netstack.engine.compaction import compact
from netstack.gateway.poller import Poller


class HostSocket:
    """One of them."""

    __slots__ = ("descriptor", "flow", "gone", "interest", "sock")

    def __init__(self, flow: int, sock: socket.socket) -> None:
        self.flow = flow
        self.sock = sock
        self.descriptor = sock.fileno()
        self.gone: Callable[[], None] | None = None
        """Called when it is closed."""
        self.interest = 0
        """READ | WRITE: what is waited for now."""


class SocketTable:
    """Shared by those who carry streams and datagrams; nobody else talks to the poller."""

    def __init__(self) -> None:
        self.by_flow: dict[int, HostSocket] = {}
        self.watched: dict[int, HostSocket] = {}
        """By descriptor: those that are waited for."""
        self.poller = Poller()
        self.closed = False

    def add(self, host: HostSocket, interest: int) -> None:
        """Watch a new socket. Raises OSError when the kernel has no place for it (epoll_ctl(2): ENOMEM, ENOSPC)."""
        if self.closed:
            raise OSError(errno.ECANCELED, "the host's side is closed")
        self.poller.register(host.descriptor, interest)
        self.watched[host.descriptor] = host
        host.interest = interest
        self.by_flow[host.flow] = host

    def watch(self, host: HostSocket, interest: int) -> bool:
        """Change what is waited for; False when that could not be done: nothing more will be heard of the socket."""
        if interest == host.interest:
            return True
        try:
            if not host.interest:
                self.poller.register(host.descriptor, interest)
                self.watched[host.descriptor] = host
            elif interest:
                self.poller.modify(host.descriptor, interest)
            else:
                self._unwatch(host)
        except OSError:
            return False
        host.interest = interest
        return True

    def _unwatch(self, host: HostSocket) -> None:
        host.interest = 0
        del self.watched[host.descriptor]
        self.poller.unregister(host.descriptor)

    def drop(self, host: HostSocket) -> None:
        """Close a socket and forget it."""
        if host.interest:
            self._unwatch(host)
        self.by_flow.pop(host.flow, None)
        close_socket(host.sock)
        if host.gone is not None:
            host.gone()

    def compact(self) -> None:
        """Give back the room of sockets that are gone."""
        compact(self.by_flow, self.watched)

    def close(self) -> None:
        """No socket is added from now on. To be called when all are dropped."""
        self.closed = True
        self.poller.close()


def close_socket(sock: socket.socket) -> None:
    """Close a socket, whatever has become of its connection."""
    try:  # noqa: SIM105 - `suppress` costs half a microsecond more, for each connection
        sock.close()
    except OSError:
        pass  # an error of the connection; the descriptor is closed all the same
