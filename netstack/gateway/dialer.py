"""Dials names: looks their addresses up itself, asks the policy about each, and takes the first that answers.

Only what the policy lets pass is dialled, whatever address the guest had chosen. Attempts start 250 ms apart, the next
at once when one fails, IPv6 and IPv4 in turn (Happy Eyeballs, RFC 8305).
"""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Callable
from typing import Final, Protocol

import trio

from netstack.engine import effects
from netstack.engine.effects import OpenNamed, ResolveName
from netstack.engine.stack import Stack
from netstack.gateway.host_streams import DialWatch, HostStreams, address_text, new_stream_socket
from netstack.gateway.resolver import AnswersDns
from netstack.gateway.socket_errors import failure_of
from netstack.wire import dns as wire
from netstack.wire import ipv4

ATTEMPT_DELAY: Final = 0.25
"""Seconds between two attempts (RFC 8305 section 5)."""
MAX_ATTEMPTS: Final = 16
"""Addresses tried for one flow."""

_AAAA: Final = 28
_UNROUTED: Final = ("2001:db8::1", 53)


class DialsNames(Protocol):
    """What is needed of a dialer."""

    def ask(self, resolver: AnswersDns) -> None:
        """Look names up there from now on."""

    def cancel(self, flow: int) -> None:
        """The flow has ended: stop dialling for it."""

    def open_at_once(self, effect: OpenNamed, now: float) -> bool:
        """Begin to connect without a task, if that is possible. False: use `open_named`."""

    def begin(self, flow: int) -> None:
        """`open_named` is on its way for this flow: from here on it can be cancelled, its task may not have begun."""

    async def open_named(self, effect: OpenNamed) -> None:
        """Connect a TCP flow that was begun to its name, and tell the stack what came of it, unless it is cancelled."""

    async def resolve_name(self, effect: ResolveName) -> None:
        """Find an address for a datagram flow."""


class Dialer:
    """Carries out OpenNamed and ResolveName."""

    def __init__(self, stack: Stack, streams: HostStreams, resolver: AnswersDns, flush: Callable[[], None]) -> None:
        """`flush` is called after the stack was told something."""
        self._stack = stack
        self._streams = streams
        self.watch: DialWatch | None = None
        """Who is told of lookups and dials, if anybody is."""
        self._resolver = resolver
        self._flush = flush
        self._scopes: dict[int, trio.CancelScope] = {}
        self._lookups: dict[tuple[str, int], _Lookup] = {}
        self._families = (wire.A, _AAAA) if _host_has_ipv6() else (wire.A,)

    def ask(self, resolver: AnswersDns) -> None:
        """Look names up there from now on."""
        self._resolver = resolver

    def cancel(self, flow: int) -> None:
        """The flow has ended: stop dialling for it."""
        scope = self._scopes.pop(flow, None)
        if scope is not None:
            scope.cancel()

    def open_at_once(self, effect: OpenNamed, now: float) -> bool:
        """Begin to connect a TCP flow whose name has one address, which is known: no race, and no task for it.

        False when it needs more than that; then it is for `open_named`.
        """
        known = []
        for qtype in self._families:
            found = self._stack.names.known(effect.name, qtype, now)
            if found is None:
                return False
            known += found
        if len(known) != 1 or self._stack.candidate_fault(ipv4.TCP, known[0], effect.port):
            return False
        self._streams.dial(effect.flow, self._stack.dialled(known[0]), effect.port, now)
        return True

    def begin(self, flow: int) -> None:
        """See DialsNames."""
        self._scopes[flow] = trio.CancelScope()

    async def open_named(self, effect: OpenNamed) -> None:
        """See DialsNames."""
        scope = self._scopes.get(effect.flow)
        if scope is None:
            return  # cancelled before this task had its turn
        with scope:
            found = await self.addresses(effect.name)
            fit = []
            faults: dict[bytes, str] = {}
            for address in found:
                fault = self._stack.candidate_fault(ipv4.TCP, address, effect.port)
                if fault:
                    faults[address] = fault
                else:
                    fit.append(self._stack.dialled(address))
            if self.watch is not None:
                self.watch.looked_up(effect.flow, effect.name, found, faults)
            with _Race(effect.flow, effect.port, self.watch) as race:
                await race.run(fit[:MAX_ATTEMPTS])
                if self._scopes.pop(effect.flow, None) is None:
                    return  # cancelled when this task was on its way here
                now = trio.current_time()
                if race.winner is not None:
                    self._streams.adopt(effect.flow, race.winner)
                    self._stack.stream_opened(effect.flow, now, race.address)
                    race.winner = None
                elif faults and not fit:
                    self._stack.stream_objected(effect.flow, next(iter(faults.values())), now)
                else:
                    self._stack.stream_failed(effect.flow, race.failure if fit else effects.NO_ADDRESS, now)
            self._flush()

    async def resolve_name(self, effect: ResolveName) -> None:
        """Find an address for a datagram flow; `name_resolved` gets it."""
        found = await self.addresses(effect.name)
        usable = (
            self._stack.dialled(each)
            for each in found
            if len(each) == 4 and not self._stack.candidate_fault(ipv4.UDP, each, effect.port)
        )
        self._stack.name_resolved(effect.flow, next(usable, None), trio.current_time())
        self._flush()

    async def addresses(self, name: str) -> list[bytes]:
        """Every address of a canonical name, IPv6 and IPv4 in turn; none when nobody knows."""
        answers: dict[int, list[bytes]] = {}

        async def ask(qtype: int) -> None:
            answers[qtype] = await self._ask(name, qtype)

        async with trio.open_nursery() as nursery:
            for qtype in self._families:
                nursery.start_soon(ask, qtype)
        mixed = itertools.zip_longest(answers.get(_AAAA, ()), answers.get(wire.A, ()))
        return [address for pair in mixed for address in pair if address is not None]

    async def _ask(self, name: str, qtype: int) -> list[bytes]:
        names = self._stack.names
        while True:
            known = names.known(name, qtype, trio.current_time())
            if known is not None:
                return known
            lookup = self._lookups.get((name, qtype))
            if lookup is None:
                break
            await lookup.over.wait()
            if lookup.found is not None:
                return lookup.found
            # Whoever had asked was cancelled.
        lookup = self._lookups[name, qtype] = _Lookup()
        try:
            answer = await self._resolver.ask(names.question(name, qtype))
            lookup.found = names.learn(name, qtype, answer, trio.current_time())
        finally:
            del self._lookups[name, qtype]
            lookup.over.set()
        return lookup.found


class _Lookup:
    """A question on its way upstream: many flows may wait for its answer, and none asks the same again meanwhile."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.found: list[bytes] | None = None


class _Race:
    """Attempts to connect to several addresses. As a context manager it closes a winner that nobody took."""

    def __init__(self, flow: int, port: int, watch: DialWatch | None) -> None:
        self.winner: socket.socket | None = None
        self.address = b""
        """The winner's."""
        self.failure = effects.HOST_UNREACHABLE
        """Why the last attempt that failed did."""
        self._flow = flow
        self._port = port
        self._watch = watch

    async def run(self, addresses: list[bytes]) -> None:
        """Try them until one answers or all have failed."""
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(self._attempt, address, failed, nursery.cancel_scope)
                with trio.move_on_after(ATTEMPT_DELAY):
                    await failed.wait()

    async def _attempt(self, address: bytes, failed: trio.Event, everybody: trio.CancelScope) -> None:
        watch = self._watch
        if watch is not None:
            watch.dialling(self._flow, address, self._port)
        try:
            sock = new_stream_socket(address)
        except OSError as error:  # no descriptors left, or no such family on this host
            if watch is not None:
                watch.dialled(self._flow, address, self._port, error.errno or errno.EIO)
            self.failure = failure_of(error.errno)
            failed.set()
            return
        try:
            number = await _connect(sock, address, self._port)
            if watch is not None:
                watch.dialled(self._flow, address, self._port, number)
            if number:
                self.failure = failure_of(number)
            elif self.winner is None:
                self.winner, self.address = sock, address
                everybody.cancel()
        finally:
            if self.winner is not sock:
                sock.close()
            failed.set()

    def __enter__(self) -> _Race:
        return self

    def __exit__(self, *_: object) -> None:
        if self.winner is not None:
            self.winner.close()


async def _connect(sock: socket.socket, address: bytes, port: int) -> int:
    """Connect; the errno, 0 for success."""
    number = sock.connect_ex((address_text(address), port))
    if number not in (0, errno.EINPROGRESS):
        return number
    await trio.lowlevel.wait_writable(sock)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _host_has_ipv6() -> bool:
    """Whether the host has any route for IPv6: without, asking for AAAA would only cost time. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(_UNROUTED)
    except OSError:
        return False
    return True
