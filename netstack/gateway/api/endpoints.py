"""Where the API listens: unix sockets of mode 0600, TCP, and how many connections it has at once."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from guest_iface.link import LinkError
from guest_iface.listener import bind_vsock
from guest_iface.unix_socket import BoundPath, bind_unix
from netstack.config import Endpoint, TcpEndpoint, UnixEndpoint, VsockEndpoint
from netstack.gateway import RunFailed

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 1024
"""Connections of one endpoint that are served at once; further ones wait in the backlog."""
BACKLOG: Final = 4096
"""Connections the kernel keeps for us; a unix socket's clients are refused beyond, not made to wait."""
RETRY_PAUSE: Final = 0.1
"""Seconds until the next try after accepting has failed."""

Serve = Callable[[trio.SocketStream], Awaitable[None]]


class ApiListener:
    """One listening socket."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Bind and listen. Raises RunFailed when the path or port is taken, or cannot be had."""
        self._bound: BoundPath | None = None
        self._slots = trio.Semaphore(MAX_CONNECTIONS, max_value=MAX_CONNECTIONS)
        if isinstance(endpoint, UnixEndpoint):
            try:
                sock, self._bound = bind_unix(str(endpoint.path), socket.SOCK_STREAM)
            except LinkError as error:
                raise RunFailed(str(error)) from error
            self.name = f"unix://{endpoint.path}"
        elif isinstance(endpoint, VsockEndpoint):
            try:
                sock = bind_vsock(endpoint.cid, endpoint.port)
            except LinkError as error:
                raise RunFailed(str(error)) from error
            self.name = f"vsock://{'' if endpoint.cid is None else endpoint.cid}:{endpoint.port}"
        else:
            sock = _bind_tcp(endpoint)
            host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
            self.name = f"tcp://{host}:{sock.getsockname()[1]}"
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._sock = sock

    async def run(self, serve: Serve) -> None:
        """Serve each connection in a task of its own until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._slots.acquire()
                connection = await self._accept()
                nursery.start_soon(self._serve, trio.SocketStream(trio.socket.from_stdlib_socket(connection)), serve)

    async def _accept(self) -> socket.socket:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                connection, _ = self._sock.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                # No descriptors or memory left, or an error that was pending on the new connection (accept(2)).
                log.warning("%s: cannot accept: %s", self.name, error.strerror)
                await trio.sleep(RETRY_PAUSE)
            else:
                return connection

    async def _serve(self, stream: trio.SocketStream, serve: Serve) -> None:
        try:
            await serve(stream)
        finally:
            self._slots.release()

    def close(self) -> None:
        """Stop listening, and remove the socket's file if it is still ours. Safe to call twice."""
        if self._sock.fileno() < 0:
            return
        if self._bound is not None:
            self._bound.remove()
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


def _bind_tcp(endpoint: TcpEndpoint) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise RunFailed(f"tcp://{endpoint.host}:{endpoint.port}: cannot listen there: {error.strerror}") from error
