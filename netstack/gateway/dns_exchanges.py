"""DNS questions on their way over UDP, each on a socket of its own: sent by a plain call, answered by a plain call.

A question that a server answers at once is the usual case, and costs no task: one selector holds all the sockets, and
one task waits for it. What is more than one datagram there and one back is for whoever asked.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Awaitable, Callable
from struct import Struct
from typing import Final

import trio

from netstack.gateway.poller import READ, Poller
from netstack.gateway.resolv_conf import Server
from netstack.wire import dns as wire

_ID: Final = Struct("2s")
_IDS: Final = 128
"""Random ids fetched from the kernel at once: one at a time costs a system call a question."""


class _Exchange:
    """One question that waits for its answer."""

    __slots__ = ("deadline", "done", "query", "sock")

    def __init__(
        self, sock: socket.socket, query: bytes, deadline: float, done: Callable[[bytes | OSError | None], None]
    ) -> None:
        self.sock = sock
        self.query = query
        self.deadline = deadline
        self.done = done


class Exchanges:
    """Questions under way. `ignored` counts datagrams that answer nothing. `run` must be running."""

    def __init__(self) -> None:
        self.ignored = 0
        self.now = -math.inf
        """When the last answers came, or times were up (trio's clock)."""
        self._ids: list[bytes] = []
        self._poller: Poller | None = None
        self._waiting: dict[int, _Exchange] = {}  # by descriptor, oldest first
        self._alarm = trio.CancelScope()

    @property
    def running(self) -> bool:
        """Whether answers are being waited for."""
        return self._poller is not None

    def start(
        self, server: Server, message: bytes, deadline: float, done: Callable[[bytes | OSError | None], None]
    ) -> None:
        """Send a question under an id of its own. Raises OSError when it cannot even be sent.

        `done` gets the answer, the error that came instead, or None when `deadline` (trio's clock) has passed.
        """
        if self._poller is None:
            raise RuntimeError("nobody waits for answers")
        if not self._ids:
            self._ids = [number for (number,) in _ID.iter_unpack(os.urandom(_IDS * _ID.size))]
        query = self._ids.pop() + message[2:]
        sock = open_connected(server)
        descriptor = sock.fileno()
        try:
            sock.send(query)
            self._poller.register(descriptor, READ)
        except OSError:
            sock.close()
            raise
        self._waiting[descriptor] = _Exchange(sock, query, deadline, done)
        if deadline < self._alarm.deadline:
            self._alarm.deadline = deadline

    def fileno(self) -> int:
        """Readable while there are answers for `handle_ready`. Raises RuntimeError while `run` does not run."""
        if self._poller is None:
            raise RuntimeError("nobody waits for answers")
        return self._poller.fileno()

    def handle_ready(self, now: float, _rounds: int = 0) -> bool:
        """Take the answers that are there; whether anything was."""
        self.now = now
        ready = [] if self._poller is None else self._poller.poll()
        for descriptor, _ in ready:
            self._receive(descriptor)
        return bool(ready)

    async def run(self, told: Callable[[], None], attend: Callable[[Exchanges], Awaitable[None]]) -> None:
        """Wait for answers until cancelled; then forget all questions.

        `attend` calls `handle_ready` whenever there is something, `told` is called after questions had no answer.
        """
        self._poller = poller = Poller()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_time, told)
                await attend(self)
        finally:
            self._poller = None
            for exchange in self._waiting.values():
                exchange.sock.close()
            self._waiting.clear()
            poller.close()

    def _receive(self, descriptor: int) -> None:
        exchange = self._waiting[descriptor]
        answer: bytes | OSError
        try:
            answer = exchange.sock.recv(wire.MAX_MESSAGE)
        except BlockingIOError:
            return  # a datagram with a bad checksum wakes us too
        except OSError as error:
            answer = error
        else:
            if not wire.answers_question(answer, exchange.query):
                self.ignored += 1
                return
        self._end(descriptor, exchange, answer)

    def _end(self, descriptor: int, exchange: _Exchange, answer: bytes | OSError | None) -> None:
        del self._waiting[descriptor]
        if self._poller is not None:
            self._poller.unregister(descriptor)
        exchange.sock.close()
        exchange.done(answer)

    async def _watch_time(self, told: Callable[[], None]) -> None:
        while True:
            # All wait for about as long: the oldest is the first whose time is up, or will be looked at next time.
            oldest = next(iter(self._waiting.values()), None)
            with trio.CancelScope(deadline=trio.current_time() + 3600 if oldest is None else oldest.deadline) as scope:
                self._alarm = scope
                await trio.sleep_forever()
            now = self.now = trio.current_time()
            late = [(descriptor, each) for descriptor, each in self._waiting.items() if each.deadline <= now]
            for descriptor, each in late:
                self._end(descriptor, each, None)
            if late:
                told()


def open_connected(server: Server) -> socket.socket:
    """A non-blocking UDP socket with a source port of the kernel's choice, for one server. Raises OSError."""
    sock = socket.socket(server.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(server.address)
    except OSError:
        sock.close()
        raise
    return sock
