"""The host's side of flows towards guests, and of streams to services that this program has at the gateway's address.

A stream is handed over as a socket: once the guest has answered it belongs to HostStreams as one that a guest had
dialled, and costs no task.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Any, Final, NamedTuple

import trio

from netstack.engine import effects
from netstack.engine.dns_port import PORT as DNS_PORT
from netstack.engine.stack import Stack
from netstack.gateway.busy_poll import BusyPoll
from netstack.gateway.dns_stream import serve_dns
from netstack.gateway.host_streams import HostStreams

log = logging.getLogger(__name__)

Endpoint = tuple[bytes, int]
"""A packed address and a port, as the engine has them."""
Handler = Callable[[trio.SocketStream, tuple[str, int]], Awaitable[None]]
"""Serves one connection, from this client (dotted address, port)."""

MAX_CONNECTIONS: Final = 256
"""Connections that one service at the gateway has at a time; further ones are reset."""
MAX_OF_GUEST: Final = 32
"""Those of them that one guest has, so that it keeps no other out."""
DIAL_TIMEOUT: Final = 10.0
"""Seconds a guest has to answer, as gvproxy has it."""
QUIET_SECONDS: Final = 60.0
"""For so long the log says no second time that a service refuses connections: guests could fill the disk with it."""

_ERRNOS: Final = {
    effects.REFUSED: errno.ECONNREFUSED,
    effects.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    effects.TIMED_OUT: errno.ETIMEDOUT,
    effects.PROHIBITED: errno.EACCES,
    effects.NO_RESOURCES: errno.ENOBUFS,
}


class _Dial(NamedTuple):
    """A stream that the guest has not answered yet."""

    sock: socket.socket
    done: Callable[[OSError | None], None]
    gone: Callable[[], None] | None


class _Datagrams(NamedTuple):
    """Where the guest's answers go."""

    deliver: Callable[[bytes], None]
    ended: Callable[[str], None]


class _Service:
    __slots__ = ("by_guest", "connections", "handler", "quiet_until")

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections = 0
        self.by_guest: dict[str, int] = {}
        """How many of them each has; nobody who has none is in it."""
        self.quiet_until = -inf

    def ended(self, guest: str) -> None:
        """One of a guest's connections is over."""
        self.connections -= 1
        left = self.by_guest.pop(guest) - 1
        if left:
            self.by_guest[guest] = left


class Inbound:
    """Carries out what the engine asks for flows of these kinds. Its `run` has to be running."""

    def __init__(self, stack: Stack, streams: HostStreams, flush: Callable[[], None], busy_poll: BusyPoll) -> None:
        """`flush` is the driver's: to be called after anything was asked of the engine. So is `busy_poll`, for whoever
        has a socket that such things come by.
        """
        self._stack = stack
        self._streams = streams
        self._flush = flush
        self.busy_poll = busy_poll
        self._gateway = stack.settings.gateway_ip
        self._gateway_text = socket.inet_ntoa(self._gateway)
        self._dials: dict[int, _Dial] = {}
        self._datagrams: dict[int, _Datagrams] = {}
        # Guests' questions the engine answers itself.
        self._services = {DNS_PORT: _Service(partial(serve_dns, stack, flush))}
        self._nursery: trio.Nursery | None = None
        self.perform: dict[type, Callable[[Any, float], None]] = {
            effects.InboundOpened: self._opened,
            effects.InboundFailed: self._failed,
            effects.DeliverDatagram: self._deliver,
            effects.InboundDatagramsEnded: self._datagrams_ended,
            effects.ServeStream: self._serve_stream,
        }
        """What to do for each kind of effect."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the handlers of services until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def close(self) -> None:
        """Nothing opens any more: who waits hears so. To be called before the host's sockets are closed."""
        dials, self._dials = self._dials, {}
        for dial in dials.values():
            dial.done(OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)))

    # -- streams ---------------------------------------------------------------------------------------------

    def begin(
        self,
        sock: socket.socket,
        guest: Endpoint,
        done: Callable[[OSError | None], None],
        *,
        source: Endpoint | None = None,
        client: Endpoint | None = None,
        timeout: float = DIAL_TIMEOUT,
        gone: Callable[[], None] | None = None,
    ) -> int:
        """Begin to open a connection to a guest, to join it to a connected, non-blocking socket; the flow's number.

        The guest sees `source` (the gateway, unless told otherwise; port 0 is any), records show `client`. `flush` has
        to be called afterwards. `done(None)` is called when the guest has answered; from there on the socket is the
        engine's, and `gone` is called when it is closed. `done(error)`: it stays the caller's. The errors are
        ECONNREFUSED, EHOSTUNREACH, ETIMEDOUT, EACCES (kill switch, disabled network), ENOBUFS and ECANCELED.
        """
        now = trio.current_time()
        flow = self._stack.open_inbound(source or (self._gateway, 0), guest, now, client=client, timeout=timeout)
        self._dials[flow] = _Dial(sock, done, gone)
        return flow

    def call_off(self, flow: int) -> None:
        """A stream that was begun is wanted no more: `done` is not called, the socket is the caller's."""
        if self._dials.pop(flow, None) is not None:
            self._stack.call_off_inbound(flow, trio.current_time())
            self._flush()

    def reset(self, flow: int) -> None:
        """Reset a stream that has been opened, at both ends. `flush` has to be called afterwards."""
        self._stack.stream_reset(flow, trio.current_time())
        self._streams.abort_flow(flow)

    async def splice(
        self,
        sock: socket.socket,
        guest: Endpoint,
        *,
        source: Endpoint | None = None,
        timeout: float = DIAL_TIMEOUT,  # noqa: ASYNC109  # the engine keeps it
    ) -> None:
        """`begin`, and wait for what comes of it. While this raises the socket is the caller's: OSError, Cancelled."""
        outcome: list[OSError | None] = []
        over = trio.Event()

        def done(error: OSError | None) -> None:
            outcome.append(error)
            over.set()

        flow = self.begin(sock, guest, done, source=source, timeout=timeout)
        self._flush()
        try:
            if not outcome:  # a cancellation that comes after the opening would leave nobody in charge of the socket
                await over.wait()
        except trio.Cancelled:
            self.call_off(flow)
            raise
        if outcome[0] is not None:
            raise outcome[0]

    def _opened(self, effect: effects.InboundOpened, now: float) -> None:
        dial = self._dials.pop(effect.flow, None)
        if dial is None:
            self._stack.stream_reset(effect.flow, now)
            return
        try:
            self._streams.adopt(effect.flow, dial.sock, dial.gone)
        except OSError as error:
            self._stack.stream_reset(effect.flow, now)
            dial.done(error)
        else:
            dial.done(None)
            # Most clients speak first, and have by now: the guest is told together with the handshake's end.
            self._streams.read_at_once(effect.flow, now)

    def _failed(self, effect: effects.InboundFailed, _now: float) -> None:
        dial = self._dials.pop(effect.flow, None)
        if dial is not None:
            number = _ERRNOS.get(effect.failure, errno.EHOSTUNREACH)
            dial.done(OSError(number, os.strerror(number)))

    async def dial(
        self,
        address: bytes,
        port: int,
        *,
        source: Endpoint | None = None,
        timeout: float = DIAL_TIMEOUT,  # noqa: ASYNC109  # as `splice`
    ) -> trio.SocketStream:
        """A stream to a guest's port, or to a service at the gateway. Raises OSError as `splice` does."""
        ours, theirs = _pair()
        try:
            if address == self._gateway:
                await trio.lowlevel.checkpoint()
                self._start_handler(port, theirs, (socket.inet_ntoa(address), 0))
            else:
                await self.splice(theirs, (address, port), source=source, timeout=timeout)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return _stream(ours)

    # -- datagrams -------------------------------------------------------------------------------------------

    def open_datagrams(
        self,
        guest: Endpoint,
        deliver: Callable[[bytes], None],
        ended: Callable[[str], None],
        *,
        source: Endpoint | None = None,
        client: Endpoint | None = None,
    ) -> int:
        """A flow for one client's datagrams; its number.

        `deliver` is called for each answer of the guest's, `ended` once with the reason, perhaps before this returns.
        """
        now = trio.current_time()
        flow = self._stack.open_inbound_datagrams(source or (self._gateway, 0), guest, now, client=client)
        self._datagrams[flow] = _Datagrams(deliver, ended)
        return flow

    def send_datagram(self, flow: int, payload: bytes) -> None:
        """A datagram for the guest. `flush` has to be called when all that came together were given."""
        self._stack.send_inbound_datagram(flow, payload, trio.current_time())

    def close_datagrams(self, flow: int) -> None:
        """No more of this flow."""
        self._stack.close_inbound_datagrams(flow, trio.current_time())
        self._flush()

    def flush(self) -> None:
        """Have what was asked done."""
        self._flush()

    def _deliver(self, effect: effects.DeliverDatagram, _now: float) -> None:
        known = self._datagrams.get(effect.flow)
        if known is not None:
            known.deliver(effect.payload)

    def _datagrams_ended(self, effect: effects.InboundDatagramsEnded, _now: float) -> None:
        known = self._datagrams.pop(effect.flow, None)
        if known is not None:
            known.ended(effect.reason)

    # -- services --------------------------------------------------------------------------------------------

    def serve(self, port: int, handler: Handler) -> None:
        """Have `handler` called for each connection of a guest to this port of the gateway.

        Raises ValueError for a port that is served already; 53 is, by the engine.
        """
        if port in self._services or not 0 < port < 65_536:
            raise ValueError(f"port {port} of the gateway cannot be served, or is already")
        self._services[port] = _Service(handler)
        self._stack.host_service(port)

    def stop_serving(self, port: int) -> None:
        """New connections to the port are reset from now on. Those there are go on."""
        if port != DNS_PORT and self._services.pop(port, None) is not None:
            self._stack.unhost_service(port)

    def _serve_stream(self, effect: effects.ServeStream, now: float) -> None:
        ours = theirs = None
        try:
            ours, theirs = _pair()
            self._streams.adopt(effect.flow, ours)
            address, port = effect.guest
            self._start_handler(effect.port, theirs, (socket.inet_ntoa(address), port))
        except OSError as error:
            service = self._services.get(effect.port)
            if service is not None and now >= service.quiet_until:
                service.quiet_until = now + QUIET_SECONDS
                log.warning("port %d of the gateway: %s", effect.port, error.strerror)
            self._stack.stream_failed(effect.flow, effects.REFUSED, now)
            self._streams.forget(effect.flow)
            for sock in (ours, theirs):
                if sock is not None:
                    sock.close()
            return
        self._stack.stream_opened(effect.flow, now)

    def _start_handler(self, port: int, sock: socket.socket, client: tuple[str, int]) -> None:
        """Raises OSError, and leaves the socket alone, when nobody serves the port or it has no room."""
        service = self._services.get(port)
        if service is None or self._nursery is None:
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        if service.connections >= MAX_CONNECTIONS:
            raise OSError(errno.ECONNREFUSED, f"{MAX_CONNECTIONS} connections are served already")
        # The host's own programs come by as many tunnels as the API allows.
        guest = client[0]
        of_guest = service.by_guest.get(guest, 0)
        if of_guest >= MAX_OF_GUEST and guest != self._gateway_text:
            raise OSError(errno.ECONNREFUSED, f"{MAX_OF_GUEST} connections of {guest} are served already")
        service.by_guest[guest] = of_guest + 1
        service.connections += 1
        self._nursery.start_soon(self._handle, service, port, _stream(sock), client)

    async def _handle(self, service: _Service, port: int, stream: trio.SocketStream, client: tuple[str, int]) -> None:
        try:
            async with stream:
                await service.handler(stream, client)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("port %d of the gateway: %s has gone", port, client[0])
        except Exception:  # a defect of one service ends that connection alone, with its traceback in the log
            log.exception("port %d of the gateway: the service failed", port)
        finally:
            service.ended(client[0])


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a stream inside this process, non-blocking. Raises OSError."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
