"""The port forwards of one gateway: made and ended while it runs, listed for whoever asks."""

from __future__ import annotations

import logging
import socket
from typing import Final

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
)
from netstack.gateway.inbound import Inbound
from netstack.gateway.port_forwards import BACKLOG, DatagramForward, Forward, KeepSource, StreamForward

log = logging.getLogger(__name__)

MAX_FORWARDS: Final = 1024


class Forwards:
    """Every forward by its protocol and local address. `run` has to be running while one is exposed."""

    def __init__(self, inbound: Inbound, network: NetworkSettings, *, keep_source: bool = False) -> None:
        """With `keep_source` guests see a client's own address where it can be kept, else the gateway's."""
        self._inbound = inbound
        self._keep = KeepSource(network) if keep_source else None
        self._forwards: dict[tuple[str, str], Forward] = {}
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
            forwards, self._forwards = self._forwards, {}
            for forward in forwards.values():
                forward.close()  # connections end with the driver, whose guests are leaving

    def listing(self) -> list[Forward]:
        """What is exposed, by local address and protocol."""
        return sorted(self._forwards.values(), key=lambda forward: (forward.local, forward.protocol))

    async def expose(self, protocol: str, local: str, remote: str) -> Forward:
        """Listen at `local`, and bring what comes to `remote`; what was made, with the port that was chosen for `:0`.

        `protocol` is tcp or udp (`local` is `host:port`, an empty host every interface; `remote` `ip:port` of a guest)
        or unix (`local` is a path, `remote` `tcp://ip:port` or `ssh-tunnel://user@ip/socket?key=PATH`). Raises
        ForwardError.
        """
        async with self._one_at_a_time:
            self._check_free(protocol, local)
            forward = await self._make(protocol, local, remote)
            nursery = self._nursery
            if nursery is None:
                forward.close()
                raise ForwardError("the gateway is not running")
            self._forwards[protocol, forward.local] = forward
            nursery.start_soon(forward.run)
        log.info("forward %s %s to %s", protocol, forward.local, remote)
        if protocol != "unix" and forward.local.startswith((":", "0.0.0.0:", "[::]:")):
            log.warning("forward %s %s: whoever reaches this host reaches it", protocol, forward.local)
        return forward

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
            raise ForwardError("ssh-tunnel: to come")
        sock, bound = listen_unix(path)
        return StreamForward("unix", path, remote, sock, bound, target, self._inbound, None)

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
