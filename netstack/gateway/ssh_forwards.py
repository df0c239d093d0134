"""Unix sockets of this host that lead to unix sockets in a guest, by SSH: what clients of `podman` connect to.

One SSH connection carries all connections of a forward, each as a channel of its own (direct-streamlocal). The library
speaks asyncio, so it lives in a thread with a loop of its own; trio's loop accepts, dials the guest, and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from guest_iface.unix_socket import BoundPath
from netstack.gateway.asyncio_thread import END_SECONDS, AsyncioThread
from netstack.gateway.forward_addresses import GuestSocket
from netstack.gateway.inbound import Endpoint, Inbound
from netstack.gateway.port_forwards import Listener, reset

if TYPE_CHECKING:
    import asyncssh

log = logging.getLogger(__name__)

ATTEMPTS: Final = 60
FIRST_PAUSE: Final = 0.1
"""Seconds after the first failed attempt; doubled after each, up to LAST_PAUSE, as gvproxy has it."""
LAST_PAUSE: Final = 1.0
SLOW_PAUSE: Final = 30.0
"""Seconds between attempts after ATTEMPTS of them: the guest may have been started late, or be repaired."""
DIAL_TIMEOUT: Final = 5.0
LOGIN_TIMEOUT: Final = 15.0
"""Seconds for the SSH handshake and login."""
RECONNECTS: Final = 3
"""Attempts for one connection that finds the SSH connection dead."""
RECONNECT_PAUSE: Final = 0.2
KEEPALIVE: Final = 15
"""Seconds of silence before the guest is asked whether it is there; three without an answer end the connection."""
SETTLE: Final = 0.1
"""Seconds in which the end of a connection shows that has failed a channel."""
PIECE: Final = 64 * 1024


class SshError(Exception):
    """The guest's SSH server cannot be used for this. `lost`: the connection is no more, another one may do."""

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


class GuestSsh:
    """The SSH connection to one guest, made when it is wanted."""

    def __init__(self, inbound: Inbound, thread: AsyncioThread, target: GuestSocket, *, secure: bool = False) -> None:
        """With `secure` the guest's host key has to be in the user's known_hosts."""
        self._inbound = inbound
        self._thread = thread
        self.target = target
        self._known_hosts = str(Path("~/.ssh/known_hosts").expanduser()) if secure else None
        self._connection: asyncssh.SSHClientConnection | None = None
        self._one_login = trio.Lock()

    async def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + END_SECONDS):
                await self._thread.run(_disconnect, self._connection)

    async def connected(self) -> asyncssh.SSHClientConnection:
        """The connection, made now if there is none that lives. Raises SshError and OSError."""
        async with self._one_login:
            if self._connection is None or self._connection.is_closed():
                target = self.target
                ours, theirs = socket.socketpair()
                try:
                    ours.setblocking(False)
                    theirs.setblocking(False)
                    await self._inbound.splice(theirs, (target.address, target.port), timeout=DIAL_TIMEOUT)
                except BaseException:
                    ours.close()
                    theirs.close()
                    raise
                await self._thread.run(self._log_in, ours)
            if self._connection is None:
                raise SshError("the connection has ended", lost=True)
            return self._connection

    async def _log_in(self, sock: socket.socket) -> None:
        import asyncssh

        target = self.target
        logging.getLogger("asyncssh").setLevel(logging.WARNING)  # every connection and channel is news to it
        try:
            key = asyncssh.read_private_key(target.key, target.passphrase or None)
            self._connection = await asyncssh.connect(
                socket.inet_ntoa(target.address),  # whose host key it is: what is dialled is the socket
                target.port,
                sock=sock,
                known_hosts=self._known_hosts,
                username=target.user,
                client_keys=[key],
                config=None,  # this is not the user's own ssh: nothing of theirs is wanted but the key
                agent_path=None,
                preferred_auth="publickey",
                login_timeout=LOGIN_TIMEOUT,
                keepalive_interval=KEEPALIVE,
            )
        except (OSError, ValueError, asyncssh.Error) as error:
            sock.close()
            raise SshError(_words(error)) from error
        except BaseException:
            sock.close()
            raise

    async def relay(self, sock: socket.socket) -> None:
        """Join a client's connection to the socket in the guest, until both directions have ended. Owns the socket.

        Raises SshError and OSError, with the client reset.
        """
        try:
            for attempt in range(RECONNECTS + 1):
                connection = await self.connected()
                try:
                    await self._thread.run(_relay, connection, self.target.path, sock)
                except SshError as error:
                    if not error.lost or attempt == RECONNECTS:
                        raise
                    await trio.sleep(RECONNECT_PAUSE)
                else:
                    return
        except BaseException:
            reset(sock)
            raise


async def _disconnect(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    await connection.wait_closed()


async def _has_ended(connection: asyncssh.SSHClientConnection) -> bool:
    """Whether a channel failed because the connection is ending: that it has ended may show a moment later."""
    try:
        await asyncio.wait_for(connection.wait_closed(), SETTLE)
    except TimeoutError:
        return False
    return True


async def _relay(connection: asyncssh.SSHClientConnection, path: str, sock: socket.socket) -> None:
    import asyncssh

    try:
        from_guest, to_guest = await connection.open_unix_connection(path)
    except asyncssh.ChannelOpenError as error:
        raise SshError(f"{path}: {_words(error)}", lost=await _has_ended(connection)) from error
    except (OSError, asyncssh.Error) as error:
        raise SshError(_words(error), lost=True) from error
    try:
        from_client, to_client = await asyncio.open_unix_connection(sock=sock)
        try:
            await asyncio.gather(_copy(from_client, to_guest), _copy(from_guest, to_client))
        finally:
            to_client.close()
            with contextlib.suppress(OSError):
                await to_client.wait_closed()
    except (OSError, asyncssh.Error) as error:
        log.debug("%s: %s", path, _words(error))  # one side has gone in the middle: so does the other
    finally:
        to_guest.close()
        sock.close()


async def _copy(source: Any, target: Any) -> None:
    """Bytes one way, and the end of them."""
    while data := await source.read(PIECE):
        target.write(data)
        await target.drain()
    if target.can_write_eof():
        target.write_eof()


def _words(error: BaseException) -> str:
    return getattr(error, "reason", "") or getattr(error, "strerror", "") or str(error) or type(error).__name__


class SocketForward(Listener):
    """A unix socket here that leads to one in a guest. Each connection has a task."""

    def __init__(
        self, local: str, remote: str, sock: socket.socket, bound: BoundPath, ssh: GuestSsh, *, first_log_in: bool
    ) -> None:
        """With `first_log_in` nobody is accepted before the guest has let us in; else who comes first waits."""
        super().__init__("unix", local, remote, sock, bound)
        self._ssh = ssh
        self._first_log_in = first_log_in
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._active = 0

    @property
    def active(self) -> int:
        """See Forward."""
        return self._active

    @property
    def dialling(self) -> int:
        """See Listener. Those that wait for the guest have a task as all others."""
        return 0

    async def run(self) -> None:
        """See Forward. After `close` it goes on until the last connection has ended."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    if self._first_log_in:
                        await self._log_in()
                    await super().run()
        finally:
            await self._ssh.close()

    async def _log_in(self) -> None:
        pause, failures = FIRST_PAUSE, 0
        while not self.closed:
            try:
                await self._ssh.connected()
            except (SshError, OSError) as error:
                failures += 1
                if failures == ATTEMPTS:
                    log.warning("forward %s: no way in to the guest: %s; trying on", self.local, _words(error))
                    pause = SLOW_PAUSE
                else:
                    log.debug("forward %s: %s", self.local, _words(error))
                await trio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE) if failures < ATTEMPTS else SLOW_PAUSE
            else:
                log.info("forward %s: the guest has let us in", self.local)
                return

    def take(self, sock: socket.socket, client: Endpoint | None) -> None:  # noqa: ARG002  # unix clients have no address
        """See Listener."""
        if self._nursery is None:
            reset(sock)
            return
        self._active += 1
        self._nursery.start_soon(self._relay, sock)

    async def _relay(self, sock: socket.socket) -> None:
        try:
            await self._ssh.relay(sock)
        except (SshError, OSError) as error:
            self.failed += 1
            log.warning("forward %s: %s", self.local, _words(error))
        finally:
            self._active -= 1

    def end_flows(self) -> None:
        """See Forward."""
        self._scope.cancel()
