"""Dials names: looks their addresses up itself, asks the policy about each, and takes the first that answers.

Only what the policy lets pass is dialled, whatever address the guest had chosen. Attempts start 250 ms apart, the
next at
once when one fails, IPv6 and IPv4 in turn (Happy Eyeballs, RFC 8305).
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
from netstack.gateway.host_sockets import HostSockets, failure_of, new_stream_socket
from netstack.wire import dns as wire
from netstack.wire import ipv4

ATTEMPT_DELAY: Final = 0.25
"""Seconds between two attempts (RFC 8305 section 5)."""
MAX_ATTEMPTS: Final = 16
"""Addresses tried for one flow."""

_AAAA: Final = 28
_UNROUTED: Final = ("2001:db8::1", 53)


class AnswersDns(Protocol):
    """What is needed of a resolver."""

    async def ask(self, message: bytes) -> bytes | None:
        """Ask upstream; None when nobody answered."""


class Dialer:
    """Carries out OpenNamed and ResolveName."""

    def __init__(self, stack: Stack, sockets: HostSockets, resolver: AnswersDns, flush: Callable[[], None]) -> None:
        """`flush` is called after the stack was told something."""
        self._stack = stack
        self._sockets = sockets
        self._resolver = resolver
        self._flush = flush
        self._scopes: dict[int, trio.CancelScope] = {}
        self._families = (wire.A, _AAAA) if _host_has_ipv6() else (wire.A,)

    def cancel(self, flow: int) -> None:
        """The flow has ended: stop dialling for it."""
        scope = self._scopes.pop(flow, None)
        if scope is not None:
            scope.cancel()

    async def open_named(self, effect: OpenNamed) -> None:
        """Connect a TCP flow to its name; `stream_opened` or `stream_failed` says what came of it."""
        with trio.CancelScope() as scope:
            self._scopes[effect.flow] = scope
            found = await self.addresses(effect.name)
            fit = [each for each in found if not self._stack.candidate_fault(ipv4.TCP, each, effect.port)]
            winner, failure = await _race(fit[:MAX_ATTEMPTS], effect.port)
            if self._scopes.pop(effect.flow, None) is None:
                if winner is not None:
                    winner[0].close()
                return
            now = trio.current_time()
            if winner is None:
                refused = effects.PROHIBITED if found and not fit else failure
                self._stack.stream_failed(effect.flow, refused, now)
            else:
                self._sockets.adopt(effect.flow, winner[0])
                self._stack.stream_opened(effect.flow, now, winner[1])
            self._flush()

    async def resolve_name(self, effect: ResolveName) -> None:
        """Find an address for a datagram flow; `name_resolved` gets it."""
        found = await self.addresses(effect.name)
        usable = (
            each for each in found if len(each) == 4 and not self._stack.candidate_fault(ipv4.UDP, each, effect.port)
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
        now = trio.current_time()
        names = self._stack.names
        known = names.known(name, qtype, now)
        if known is not None:
            return known
        answer = await self._resolver.ask(names.question(name, qtype))
        return names.learn(name, qtype, answer, trio.current_time())


async def _race(addresses: list[bytes], port: int) -> tuple[tuple[socket.socket, bytes] | None, int]:
    """The first connection that is made, and with which address; else the last failure."""
    winner: list[tuple[socket.socket, bytes]] = []
    failures = [effects.HOST_UNREACHABLE]

    async with trio.open_nursery() as nursery:

        async def attempt(address: bytes, failed: trio.Event) -> None:
            sock = new_stream_socket(address)
            try:
                number = await _connect(sock, address, port)
                if number == 0 and not winner:
                    winner.append((sock, address))
                    nursery.cancel_scope.cancel()
                elif number:
                    failures.append(failure_of(number))
            finally:
                if not winner or winner[0][0] is not sock:
                    sock.close()
                failed.set()

        for address in addresses:
            failed = trio.Event()
            nursery.start_soon(attempt, address, failed)
            with trio.move_on_after(ATTEMPT_DELAY):
                await failed.wait()
    return (winner[0] if winner else None), failures[-1]


async def _connect(sock: socket.socket, address: bytes, port: int) -> int:
    """Connect; the errno, 0 for success."""
    text = socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
    number = sock.connect_ex((text, port))
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
