"""The port forwards of one gateway: made and ended while it runs, listed for whoever asks."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Final

import trio

from guest_iface.link import LinkError
from guest_iface.unix_socket import BoundPath, bind_unix
from netstack.engine.settings import NetworkSettings
from netstack.gateway.forward_addresses import (
    ForwardError,
    GuestSocket,
    bind,
    local_path,
    parse_guest_port,
    parse_unix_remote,
    shown_remote,
)
from netstack.gateway.inbound import Inbound
from netstack.gateway.port_forwards import BACKLOG, DatagramForward, Forward, KeepSource, StreamForward

if TYPE_CHECKING:
    from netstack.gateway.asyncio_thread import AsyncioThread

log = logging.getLogger(__name__)

MAX_FORWARDS: Final = 1024


class Forwards:
    """Every forward by its protocol and local address. `run` has to be running while one is exposed."""

    def __init__(self, inbound: Inbound, network: NetworkSettings, *, keep_source: bool = False) -> None:
        """With `keep_source` guests see a client's own address where it can be kept, else the gateway's."""
        self._inbound = inbound
        self._keep = KeepSource(network) if keep_source else None
        self._forwards: dict[tuple[str, str], Forward] = {}
        self._by_ssh: list[Forward] = []
        self._device_ip = network.device_ip
        self._thread: AsyncioThread | None = None
        self._one_at_a_time = trio.Lock()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve what is exposed until cancelled; then nothing is, and no socket file is left."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            forwards = [*self._forwards.values(), *self._by_ssh]
            self._forwards.clear()
            self._by_ssh.clear()
            for forward in forwards:
                forward.close()  # connections end with the driver, whose guests are leaving
            if self._thread is not None:
                await self._thread.close()

    def listing(self) -> list[Forward]:
        """What is exposed, by local address and protocol."""
        return sorted(self._forwards.values(), key=lambda forward: (forward.local, forward.protocol))

    async def expose(self, protocol: str, local: str, remote: str, *, asked_by: str = "") -> Forward:
        """Listen at `local`, and bring what comes to `remote`; what was made, with the port that was chosen for `:0`.

        `protocol` is tcp or udp (`local` is `host:port`, an empty host every interface; `remote` `ip:port` of a guest)
        or unix (`local` is a path, `remote` `tcp://ip:port` or `ssh-tunnel://user@ip/socket?key=PATH`). `asked_by` is
        the guest who wants it, if one does. Raises ForwardError.
        """
        async with self._one_at_a_time:
            self._check_free(protocol, local)
            forward = await self._make(protocol, local, remote)
            forward.asked_by = asked_by
            self._start(forward)
            self._forwards[protocol, forward.local] = forward
        log.info("forward %s %s to %s", protocol, forward.local, forward.remote)
        if protocol != "unix" and forward.local.startswith((":", "0.0.0.0:", "[::]:")):
            log.warning("forward %s %s: whoever reaches this host reaches it", protocol, forward.local)
        return forward

    def _start(self, forward: Forward) -> None:
        if self._nursery is None:
            forward.close()
            raise ForwardError("the gateway is not running")
        self._nursery.start_soon(self._run, forward)

    async def _run(self, forward: Forward) -> None:
        try:
            await forward.run()
        except Exception:  # a defect of one forward ends it alone, with its traceback in the log: guests live on
            log.exception("forward %s %s has failed", forward.protocol, forward.local)
            forward.close()

    def _check_free(self, protocol: str, local: str) -> None:
        if (protocol, self._key(protocol, local)) in self._forwards:
            raise ForwardError(f"proxy already running for {protocol} on {local}")
        if len(self._forwards) >= MAX_FORWARDS:
            raise ForwardError(f"{MAX_FORWARDS} proxies are running already")

    def _key(self, protocol: str, local: str) -> str:
        return local_path(local) if protocol == "unix" else local

    async def _make(self, protocol: str, local: str, remote: str) -> Forward:
        if protocol == "tcp":
            target = parse_guest_port(remote)
            made = await bind("tcp", local, backlog=BACKLOG)
            return StreamForward("tcp", made.local, remote, made.sock, None, target, self._inbound, self._keep)
        if protocol == "udp":
            target = parse_guest_port(remote)
            made = await bind("udp", local, backlog=0)
            return DatagramForward(made.local, remote, made.sock, target, self._inbound, self._keep)
        if protocol == "unix":
            return self._make_unix(local_path(local), remote)
        if protocol == "npipe":
            raise ForwardError("named pipes are not supported by this platform")
        raise ForwardError(f"unknown protocol {protocol}")

    def _make_unix(self, path: str, remote: str) -> Forward:
        target = parse_unix_remote(remote)
        if isinstance(target, GuestSocket):
            return self._make_ssh(path, shown_remote(remote), target, secure=False, first_log_in=False)
        sock, bound = listen_unix(path)
        return StreamForward("unix", path, remote, sock, bound, target, self._inbound, None)

    def _make_ssh(self, path: str, remote: str, target: GuestSocket, *, secure: bool, first_log_in: bool) -> Forward:
        from netstack.gateway.asyncio_thread import AsyncioThread
        from netstack.gateway.ssh_forwards import GuestSsh, SocketForward

        sock, bound = listen_unix(path)
        thread = self._thread = self._thread or AsyncioThread()
        ssh = GuestSsh(self._inbound, thread, target, secure=secure)
        return SocketForward(path, remote, sock, bound, ssh, first_log_in=first_log_in)

    async def expose_ssh(
        self,
        path: str | os.PathLike[str],
        dest: str,
        user: str,
        identity: str | os.PathLike[str],
        *,
        port: int = 22,
        passphrase: str = "",
        secure: bool = False,
    ) -> Forward:
        """Have the unix socket `path` lead to the unix socket `dest` in the guest with the device IP, by SSH.

        The socket is there at once; clients are served once the guest lets `user` in with the private key in the file
        `identity`, which is tried for as long as it takes. `secure` wants the guest's host key in ~/.ssh/known_hosts.
        Not among `listing`. Raises ForwardError.
        """
        local = local_path(os.fspath(path))
        target = GuestSocket(self._device_ip, port, user, dest, os.fspath(identity), passphrase)
        remote = f"ssh://{user}@{socket.inet_ntoa(self._device_ip)}:{port}{dest}"
        forward = self._make_ssh(local, remote, target, secure=secure, first_log_in=True)
        self._start(forward)
        self._by_ssh.append(forward)
        await trio.lowlevel.checkpoint()
        return forward

    async def unexpose(self, protocol: str, local: str, *, close_flows: bool = False) -> None:
        """Listen there no more. Connections go on, unless `close_flows` has them reset. Raises ForwardError."""
        forward = self._forwards.pop((protocol, self._key(protocol, local)), None)
        if forward is None:
            raise ForwardError("proxy not found")
        forward.close()
        if close_flows:
            forward.end_flows()
        log.info("forward %s %s ended", protocol, forward.local)
        await trio.lowlevel.checkpoint()


def listen_unix(path: str) -> tuple[socket.socket, BoundPath]:
    """A listening unix socket of mode 0600. A dead one is replaced; what is none, or lives, stays as it is.

    Raises ForwardError.
    """
    if not path:
        raise ForwardError("listen unix: missing address")
    try:
        sock, bound = bind_unix(path, socket.SOCK_STREAM)
    except LinkError as error:
        raise ForwardError(f"listen unix {path}: bind: {str(error).removeprefix(f'{path}: ')}") from None
    sock.listen(BACKLOG)
    return sock, bound
