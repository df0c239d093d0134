"""Listening for guests that connect: each accepted connection is a link of its own, and a restarted VM is the next
one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final, Self

import trio

from guest_iface.link import Link, LinkClosed, LinkError, Listener
from guest_iface.transmit import QueuedLink
from guest_iface.unix_socket import BoundPath, bind_unix

BACKLOG: Final = 16
MAX_GUESTS: Final = 64
"""Links of one listener that are open at once: as many as the switch's table has room for. Further guests are hung up
on.
"""
RETRY_PAUSE: Final = 0.1
"""Seconds until the next try after a failed one."""


LinkMaker = Callable[[socket.socket, str], QueuedLink]
"""Makes a link of an accepted connection and a name: `StreamLink.from_socket`, `SeqpacketLink`, `VpnkitLink`."""


def bind_vsock(cid: int | None, port: int) -> socket.socket:
    """A socket bound to a port of this context or, for None, of any. Raises LinkError where the kernel has no vsock."""
    name = f"vsock://{'' if cid is None else cid}:{port}"
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        raise LinkError(f"{name}: this host has no vsock: {error.strerror}") from error
    try:
        sock.bind((socket.VMADDR_CID_ANY if cid is None else cid, port))
    except OSError as error:
        sock.close()
        raise LinkError(f"{name}: cannot listen there: {error.strerror}") from error
    return sock


class SocketListener(Listener):
    """A listening socket and the kind of link it makes of each connection."""

    def __init__(self, sock: socket.socket, name: str, make_link: LinkMaker, *, bound: BoundPath | None = None) -> None:
        """Use a bound stream or seqpacket socket; it starts to listen here."""
        self.name = name
        self._sock = sock
        self._make_link = make_link
        self._bound = bound
        self._accepted = 0
        self._links: list[QueuedLink] = []
        self.refused = 0
        """Guests that were hung up on, because MAX_GUESTS were there."""
        self._closed = False
        sock.setblocking(False)
        sock.listen(BACKLOG)

    @classmethod
    def bind_unix(
        cls, path: str | os.PathLike[str], make_link: LinkMaker, *, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> Self:
        """Listen on a unix socket of mode 0600. Raises LinkError when the path is taken or unusable."""
        sock, bound = bind_unix(os.fspath(path), kind)
        scheme = "unixpacket" if kind == socket.SOCK_SEQPACKET else "unix"
        return cls(sock, f"{scheme}://{bound.path}", make_link, bound=bound)

    @classmethod
    def bind_tcp(cls, host: str, port: int, make_link: LinkMaker) -> Self:
        """Listen on a TCP port of a numeric address or host name; port 0 takes a free one. Raises LinkError when it
        cannot.
        """
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
            )[0]
            sock = socket.create_server(address[:2], family=family)
        except OSError as error:
            raise LinkError(f"tcp://{host}:{port}: cannot listen there: {error.strerror}") from error
        return cls(sock, f"tcp://{host}:{sock.getsockname()[1]}", make_link)

    @classmethod
    def bind_vsock(cls, cid: int | None, port: int, make_link: LinkMaker) -> Self:
        """Listen for virtual machines of this host, as vsock(7) has it; None is any context. Raises LinkError."""
        return cls(bind_vsock(cid, port), f"vsock://{'' if cid is None else cid}:{port}", make_link)

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        port: int = self._sock.getsockname()[1]
        return port

    async def accept(self) -> Link:
        """See Listener."""
        await trio.lowlevel.checkpoint()
        while not self._closed:
            try:
                connection, _ = self._sock.accept()
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_readable(self._sock)
                except trio.ClosedResourceError:
                    break
            except OSError:
                # No descriptors or memory left, or an error that was pending on the new connection (accept(2)): it
                # passes.
                await trio.sleep(RETRY_PAUSE)
            else:
                self._links = [link for link in self._links if not link.closed]
                if len(self._links) >= MAX_GUESTS:
                    self.refused += 1
                    connection.close()
                    continue
                self._accepted += 1
                self._links.append(self._make_link(connection, f"{self.name} guest {self._accepted}"))
                return self._links[-1]
        raise LinkClosed(f"{self.name}: no longer listening")

    def close(self) -> None:
        """See Listener."""
        if self._closed:
            return
        self._closed = True
        if self._bound is not None:
            self._bound.remove()
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
