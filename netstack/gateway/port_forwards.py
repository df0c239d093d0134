"""One port forward at work: connections or datagrams that come to a socket of this host go on to a guest's port."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket
import struct
from abc import ABC, abstractmethod
from collections import OrderedDict
from functools import partial
from typing import Any, Final

import trio

from guest_iface.unix_socket import BoundPath
from netstack.engine.settings import NetworkSettings
from netstack.gateway.forward_addresses import GuestPort
from netstack.gateway.host_streams import set_stream_options
from netstack.gateway.inbound import Endpoint, Inbound

log = logging.getLogger(__name__)

MAX_FLOWS: Final = 8192
"""Connections of one forward; further ones are reset."""
MAX_CLIENTS: Final = 1024
"""Clients of one UDP forward; beyond, the one silent for longest is forgotten."""
MAX_DIALS: Final = 256
"""Connections of one forward that the guest has not answered; the others wait in the backlog."""
BACKLOG: Final = 1024
PER_WAKE: Final = 64
"""Connections or datagrams taken before others have their turn."""
PAUSE: Final = 0.1
"""Seconds until the next try where the host has no descriptor left."""

_RESET: Final = struct.pack("ii", 1, 0)
_SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_MAPPED: Final = "::ffff:"


class Forward(ABC):
    """What is exposed. `local` has the port that was chosen, where it was left open."""

    def __init__(self, protocol: str, local: str, remote: str) -> None:
        self.protocol = protocol
        self.local = local
        self.remote = remote
        self.asked_by = ""
        """The guest that asked for it, dotted; empty where somebody on the host did."""
        self.accepted = 0
        """Connections, or clients of datagrams, so far."""
        self.failed = 0
        """Those of them that did not reach the guest."""

    @property
    @abstractmethod
    def active(self) -> int:
        """Connections or clients now."""

    @abstractmethod
    async def run(self) -> None:
        """Take what comes until cancelled, or closed."""

    @abstractmethod
    def close(self) -> None:
        """Listen no more. Safe to call twice."""

    @abstractmethod
    def end_flows(self) -> None:
        """End what there is."""


class KeepSource:
    """Which clients a guest may see as they are: their address must mean nothing else to it."""

    def __init__(self, network: NetworkSettings) -> None:
        self._network = network

    def kept(self, client: Endpoint | None) -> Endpoint | None:
        """The client, where the guest's answers to it come back here for certain; else None."""
        if client is None or len(client[0]) != 4:
            return None
        address, network = ipaddress.IPv4Address(client[0]), self._network
        if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_reserved:
            return None
        own = network.in_subnet(client[0]) or client[0] in network.virtual_ips or client[0] in network.nat
        return None if own or not client[1] else client


def endpoint_of(address: Any) -> Endpoint | None:
    """A socket address as the engine has it; None for those of unix sockets."""
    if not isinstance(address, tuple) or not address[0]:
        return None
    host = str(address[0]).partition("%")[0]
    if host.startswith(_MAPPED) and "." in host:  # IPv4 by a socket for both
        host = host.removeprefix(_MAPPED)
    # A socket's own spelling needs none of ipaddress's care, which costs every accepted connection ten times that.
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host), int(address[1])


class Listener(Forward):
    """A forward of connections: accepts them, and gives each to `take`."""

    def __init__(self, protocol: str, local: str, remote: str, sock: socket.socket, bound: BoundPath | None) -> None:
        """Owns the listening socket, and the file it is bound to, if it is a unix socket."""
        super().__init__(protocol, local, remote)
        self._sock = sock
        self._bound = bound
        self._closed = False
        self._scarce = False
        self._room = trio.Event()

    @property
    @abstractmethod
    def dialling(self) -> int:
        """Connections that the guest has not answered."""

    @abstractmethod
    def take(self, sock: socket.socket, client: Endpoint | None) -> None:
        """A connection has come: owns the socket."""

    async def all_taken(self) -> None:
        """Those that came together have been given to `take`."""
        await trio.lowlevel.checkpoint()

    @property
    def closed(self) -> bool:
        """Whether nobody is accepted any more."""
        return self._closed

    def made_room(self) -> None:
        """A connection has been answered, or is gone."""
        self._room.set()

    async def run(self) -> None:
        """See Forward."""
        with contextlib.suppress(trio.ClosedResourceError):
            while not self._closed:
                if self.dialling >= MAX_DIALS:
                    self._room = trio.Event()
                    await self._room.wait()
                    continue
                await trio.lowlevel.wait_readable(self._sock)
                enough = self._accept()
                await self.all_taken()
                if not enough:
                    await trio.sleep(PAUSE)

    def _accept(self) -> bool:
        """Take the connections that wait; False where the host has no resources for them."""
        for _ in range(min(PER_WAKE, MAX_DIALS - self.dialling)):
            if self._closed:
                break
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _SCARCE:
                    if not self._scarce:  # said once, not for every try
                        log.warning("forward %s %s: %s; connections wait", self.protocol, self.local, error.strerror)
                    self._scarce = True
                    return False
                continue  # an error that was pending on the new connection (accept(2))
            self._scarce = False
            self.accepted += 1
            if self.active >= MAX_FLOWS:
                self.failed += 1
                reset(sock)
                continue
            sock.setblocking(False)
            self.take(sock, endpoint_of(address))
        return True

    def close(self) -> None:
        """See Forward."""
        if not self._closed:
            self._closed = True
            if self._bound is not None:
                self._bound.remove()
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
            self._room.set()


class StreamForward(Listener):
    """Connections go on to a guest's port. Those that are open are the engine's, and cost no task."""

    def __init__(
        self,
        protocol: str,
        local: str,
        remote: str,
        sock: socket.socket,
        bound: BoundPath | None,
        target: GuestPort,
        inbound: Inbound,
        keep: KeepSource | None,
    ) -> None:
        """`keep` decides whose address the guest sees; None: always the gateway's."""
        super().__init__(protocol, local, remote, sock, bound)
        if sock.family != socket.AF_UNIX:
            set_stream_options(sock)  # those that it accepts inherit them, and cost three calls less
        self._target = (target.address, target.port)
        self._inbound = inbound
        self._keep = keep
        self._dials: dict[int, socket.socket] = {}
        self._flows: set[int] = set()

    async def run(self) -> None:
        """See Forward."""
        self._inbound.busy_poll.add(self)
        try:
            await super().run()
        finally:
            self._inbound.busy_poll.remove(self)

    def fileno(self) -> int:
        """See Pollable."""
        return self._sock.fileno()

    def handle_ready(self, _now: float, _rounds: int) -> bool:
        """See Pollable. Where there is no room, or nothing to make room with, `run` waits."""
        return not self._scarce and self.dialling < MAX_DIALS and self._accept()

    def close(self) -> None:
        """See Forward."""
        self._inbound.busy_poll.remove(self)
        super().close()

    @property
    def active(self) -> int:
        """See Forward."""
        return len(self._dials) + len(self._flows)

    @property
    def dialling(self) -> int:
        """See Listener."""
        return len(self._dials)

    def take(self, sock: socket.socket, client: Endpoint | None) -> None:
        """See Listener."""
        self._dial(sock, client, self._keep.kept(client) if self._keep is not None else None)

    async def all_taken(self) -> None:
        """See Listener."""
        self._inbound.flush()
        await self._inbound.busy_poll.stay_awake(self, more=False)

    def _dial(self, sock: socket.socket, client: Endpoint | None, source: Endpoint | None) -> None:
        attempt = _Attempt()
        attempt.flow = self._inbound.begin(
            sock,
            self._target,
            partial(self._answered, attempt, sock, client, source),
            source=source,
            client=client,
            gone=partial(self._gone, attempt),
        )
        self._dials[attempt.flow] = sock

    def _answered(
        self, attempt: _Attempt, sock: socket.socket, client: Endpoint | None, source: Endpoint | None,
        error: OSError | None,
    ) -> None:  # fmt: skip
        self._dials.pop(attempt.flow, None)
        self.made_room()
        if error is None:
            self._flows.add(attempt.flow)
        elif source is not None and error.errno == errno.ENOBUFS and not self._closed:
            # Another forward has brought this very client to this very port: two connections cannot look the same.
            self._dial(sock, client, None)
        else:
            self.failed += 1
            log.debug("forward %s %s: %s: %s", self.protocol, self.local, self.remote, error.strerror)
            reset(sock)

    def _gone(self, attempt: _Attempt) -> None:
        self._flows.discard(attempt.flow)

    def end_flows(self) -> None:
        """See Forward. Connections are reset."""
        dials, self._dials = self._dials, {}
        for flow, sock in dials.items():
            self._inbound.call_off(flow)
            reset(sock)
        for flow in list(self._flows):
            self._inbound.reset(flow)
        self._inbound.flush()


class _Attempt:
    """One dial; the number of its flow is known after it has begun."""

    __slots__ = ("flow",)

    def __init__(self) -> None:
        self.flow = 0


class DatagramForward(Forward):
    """Datagrams go on to a guest's port; what it answers goes back to the client it answers."""

    def __init__(
        self, local: str, remote: str, sock: socket.socket, target: GuestPort, inbound: Inbound, keep: KeepSource | None
    ) -> None:
        """Owns the socket. `keep` is StreamForward's."""
        super().__init__("udp", local, remote)
        self._sock = sock
        self._target = (target.address, target.port)
        self._inbound = inbound
        self._keep = keep
        self._clients: OrderedDict[Any, int] = OrderedDict()
        self._closed = False
        self._buffer = bytearray(65_536)
        self._view = memoryview(self._buffer)
        with contextlib.suppress(OSError):  # a burst of the length of the kernel's bound waits
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    @property
    def active(self) -> int:
        """See Forward."""
        return len(self._clients)

    async def run(self) -> None:
        """See Forward."""
        if not self._closed:
            with contextlib.suppress(trio.ClosedResourceError):
                await self._inbound.busy_poll.attend(self)

    def fileno(self) -> int:
        """See Pollable."""
        return self._sock.fileno()

    def handle_ready(self, _now: float, _rounds: int) -> bool:
        """See Pollable."""
        taken = 0
        for _ in range(PER_WAKE):
            try:
                size, address = self._sock.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError:
                continue  # an error of an earlier answer
            self._take(address, bytes(self._view[:size]))
            taken += 1
        return taken > 0

    def _take(self, address: Any, payload: bytes) -> None:
        flow = self._clients.get(address)
        if flow is None:
            flow = self._begin(address)
        else:
            self._clients.move_to_end(address)
        self._inbound.send_datagram(flow, payload)

    def _begin(self, address: Any) -> int:
        if len(self._clients) >= MAX_CLIENTS:
            _, oldest = self._clients.popitem(last=False)
            self._inbound.close_datagrams(oldest)
        self.accepted += 1
        client = endpoint_of(address)
        source = self._keep.kept(client) if self._keep is not None else None
        flow = self._inbound.open_datagrams(
            self._target, partial(self._answer, address), partial(self._ended, address), source=source, client=client
        )
        self._clients[address] = flow
        return flow

    def _answer(self, address: Any, payload: bytes) -> None:
        with contextlib.suppress(OSError):  # lost, as datagrams are
            self._sock.sendto(payload, address)

    def _ended(self, address: Any, reason: str) -> None:
        self._clients.pop(address, None)
        if reason != "idle":
            self.failed += 1
            log.debug("forward udp %s: %s: %s", self.local, self.remote, reason)

    def close(self) -> None:
        """See Forward."""
        if not self._closed:
            self._closed = True
            self._inbound.busy_poll.remove(self)
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
            self.end_flows()  # without their socket no answer comes back

    def end_flows(self) -> None:
        """See Forward."""
        for flow in list(self._clients.values()):
            self._inbound.close_datagrams(flow)


def reset(sock: socket.socket) -> None:
    """Close a client's connection with a reset: that it was accepted meant nothing."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with contextlib.suppress(OSError):
        sock.close()
