"""Asks the host's DNS servers on behalf of the guests: one message in, the server's answer out.

Each question goes out from a socket of its own, so with a source port the kernel picks at random, and with a random
id (RFC 5452 sections 9.1 and 9.2). The socket is connected: the kernel takes datagrams from that server only, and an
ICMP "port unreachable" is known at once. What does not answer the question is ignored and the wait goes on.

Servers are asked one after the other. One that does not answer is put behind the others for a while, longer each time,
and then tried again with one question and little patience, so a dead first server costs next to nothing.

The usual question takes no task: the first attempt at a server that is well is a call, and so is its answer (see
dns_exchanges). Only what needs more than that becomes a search.

Slow names cannot starve quick ones: first attempts and later ones have places of their own, half of all each, and
waiting questions get them in order. A question without an answer leaves its first place after one timeout (2 s) and is
over after 10 s: the 1024 slow questions that one guest may have under way take about 200 of the 256 first places.
"""

from __future__ import annotations

import errno
import logging
import math
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from netstack.gateway.busy_poll import Pollable
from netstack.gateway.dns_exchanges import Exchanges, open_connected
from netstack.gateway.resolv_conf import Configuration, Server, parse_resolv_conf, parse_server, shown
from netstack.wire import dns as wire

log = logging.getLogger(__name__)

DEADLINE: Final = 10.0
"""Seconds from a question to its answer or None, waiting for a place included. Twice a stub's usual patience."""
TCP_TIMEOUT: Final = 5.0
MAX_IN_FLIGHT: Final = 512
RESOLV_CONF: Final = Path("/etc/resolv.conf")

_MAX_FILE: Final = 65536
_CHECK_INTERVAL: Final = 1.0
WARN_AGAIN: Final = 60.0
"""Seconds between two warnings that no server answers."""
_FIRST_PENALTY: Final = 5.0
_MAX_PENALTY: Final = 60.0
_MAX_FAILURES: Final = 10  # counted no further: the penalty has long stopped growing
_PROBE_TIMEOUT: Final = 0.25
_FAILURES: Final = (wire.SERVFAIL, wire.NOTIMP, wire.REFUSED)
_NOT_AT_ONCE: Final = (*_FAILURES, wire.FORMERR)
# Our own trouble, which says nothing about the server.
_LOCAL_ERRORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)


Attend = Callable[[Pollable], Awaitable[None]]
"""Handles something whenever it is ready, until cancelled: BusyPoll.attend."""


class _Health:
    """What is remembered of one server: times on trio's clock."""

    __slots__ = ("failed_at", "failures", "last_answer", "suspect_until")

    def __init__(self) -> None:
        self.failures = 0
        self.failed_at = -math.inf
        self.suspect_until = -math.inf
        self.last_answer = -math.inf

    def answered(self, now: float) -> None:
        self.failures = 0
        self.suspect_until = -math.inf
        self.last_answer = now

    def failed(self, now: float, asked: float) -> None:
        # A server that answered others meanwhile is well, and only this name was slow; one that failed others meanwhile
        # has had its penalty: many questions that find it dead together are one finding.
        if asked > self.last_answer and asked >= self.failed_at:
            self.suspect_until = now + min(_FIRST_PENALTY * 2**self.failures, _MAX_PENALTY)
            self.failures = min(self.failures + 1, _MAX_FAILURES)
            self.failed_at = now


class AnswersDns(ABC):
    """What is needed of a resolver."""

    @abstractmethod
    async def ask(self, message: bytes) -> bytes | None:
        """Ask upstream; None when nobody answered."""

    def begin(self, _message: bytes, _done: Callable[[bytes | None], None]) -> bool:
        """Ask without a task, if that is possible: `done` gets the answer later. False: use `ask`."""
        return False

    async def run(self, _told: Callable[[], None], _attend: Attend) -> None:
        """Carry on what was begun, until cancelled.

        `attend` is the driver's: it calls `handle_ready` whenever there is something, and flushes; `told` is called
        after answers that came otherwise.
        """
        await trio.sleep_forever()


class Resolver(AnswersDns):
    """The host's view of DNS. `asked`, `unanswered`, `over_tcp` and `ignored` (datagrams that fit nothing) count up.

    `ask` needs nothing but itself; for `begin`, `run` must be running.
    """

    def __init__(
        self,
        servers: Iterable[str] = (),
        *,
        resolv_conf: Path = RESOLV_CONF,
        never_ask: Collection[str] = (),
        max_in_flight: int = MAX_IN_FLIGHT,
        servers_changed: Callable[[], None] | None = None,
    ) -> None:
        """`servers` as `parse_server` reads them (which raises ValueError); none means those of `resolv_conf`.

        That file is looked at again at most once a second, when something is asked; `servers_changed` is called when
        it names others than before. `never_ask` are IP addresses that lead back to us: where the guest is this host
        (a TAP in its own namespace), a DHCP client may have written the gateway into resolv.conf. `max_in_flight`:
        sockets open at once, 2 or more.
        """
        self.asked = 0
        self.unanswered = 0
        self.over_tcp = 0
        self._exchanges = Exchanges()
        self._searches: trio.Nursery | None = None
        self._told: Callable[[], None] = lambda: None
        self._resolv_conf = resolv_conf
        self._never_ask = frozenset(parse_server(address).address[0] for address in never_ask)
        self._servers_changed = servers_changed
        self._first_places = trio.Semaphore(max_in_flight - max_in_flight // 2)
        self._later_places = trio.Semaphore(max_in_flight // 2)
        self._turn = 0
        given = tuple(parse_server(server) for server in servers)
        self._watching = not given
        self._checked = -math.inf
        self._file_state: tuple[int, ...] | None = None
        self._health: dict[Server, _Health] = {}
        self._configuration = Configuration(())
        self._silent = False
        self._warned = -math.inf
        if given:
            self._use(Configuration(given))

    @property
    def ignored(self) -> int:
        """Datagrams that answered no question."""
        return self._exchanges.ignored

    async def run(self, told: Callable[[], None], attend: Attend) -> None:
        """Wait for answers to what was begun, until cancelled. See AnswersDns."""
        self._told = told
        try:
            async with trio.open_nursery() as nursery:
                self._searches = nursery
                await self._exchanges.run(told, attend)
        finally:
            self._searches = None

    def begin(self, message: bytes, done: Callable[[bytes | None], None]) -> bool:
        """Ask a query as `ask` does, without waiting: `done` gets what `ask` returns, later.

        False, and nothing was done, when it needs more than one server that is well: then it is for `ask`.
        """
        if not self._exchanges.running:
            return False
        now = trio.current_time()
        self._refresh(now)
        configuration = self._configuration
        candidates: Sequence[Server] = configuration.servers
        if len(candidates) > 1:
            candidates = self._candidates(set(), self._turn + 1 if configuration.rotate else 0)
        if not candidates or self._health[candidates[0]].failures or configuration.attempts == 1:
            return False
        try:
            self._first_places.acquire_nowait()
        except trio.WouldBlock:
            return False
        server = candidates[0]
        over = partial(self._first_attempt_over, server, message, now, done)
        try:
            self._exchanges.start(server, message, now + configuration.timeout, over)
        except OSError:
            self._first_places.release()
            return False
        self.asked += 1
        self._turn += 1
        return True

    def _first_attempt_over(
        self,
        server: Server,
        message: bytes,
        asked: float,
        done: Callable[[bytes | None], None],
        answer: bytes | OSError | None,
    ) -> None:
        self._first_places.release()
        health = self._health.get(server) or _Health()
        if isinstance(answer, bytes):
            health.answered(self._exchanges.now)
            if not answer[2] << 8 & wire.TC and answer[3] & wire.RCODE not in _NOT_AT_ONCE:
                self._tell_answer()
                done(answer)
                return
        elif answer is None or answer.errno not in _LOCAL_ERRORS:
            health.failed(self._exchanges.now, asked)
        if self._searches is not None:
            heard = answer if isinstance(answer, bytes) else None
            self._searches.start_soon(self._go_on, server, message, heard, asked, done)

    async def _go_on(
        self,
        server: Server,
        message: bytes,
        heard: bytes | None,
        asked: float,
        done: Callable[[bytes | None], None],
    ) -> None:
        """What `begin` began needs more: over TCP, without EDNS, or of another server."""
        search = _Search(message)
        with trio.move_on_at(asked + DEADLINE):
            over = False
            if heard is not None:
                async with self._later_places:
                    over = await self._attempt(server, search, self._configuration.timeout, heard)
            if not over:
                await self._search(search, {server})
        done(self._outcome(search, asked))
        self._told()

    async def ask(self, message: bytes) -> bytes | None:
        """Ask one query (its id does not matter) and return a server's answer, None when there is none after 10 s.

        When all servers report a failure, that report is the answer. An answer cut off (TC) is only returned when
        no server gave the whole of it over TCP.
        """
        self.asked += 1
        asked = trio.current_time()
        self._refresh(asked)
        search = _Search(message)
        self._turn += 1
        with trio.move_on_after(DEADLINE):
            await self._search(search)
        return self._outcome(search, asked)

    def _outcome(self, search: _Search, asked: float) -> bytes | None:
        answer = search.best()
        if answer is None:
            self.unanswered += 1
            self._tell_silence(asked)
        else:
            self._tell_answer()
        return answer

    def _tell_answer(self) -> None:
        if self._silent:
            self._silent = False
            log.warning("a DNS server answers again")

    def _tell_silence(self, since: float) -> None:
        """Say it when nobody has answered anything since a question was asked: guests are only told SERVFAIL."""
        now = trio.current_time()
        servers = self._configuration.servers
        if now - self._warned < WARN_AGAIN or any(self._health[server].last_answer >= since for server in servers):
            return
        self._silent = True
        self._warned = now
        asked = ", ".join(shown(server) for server in servers)
        what = f"no DNS server answers (asked: {asked})" if asked else "there is no DNS server to ask"
        log.warning("%s: guests are told SERVFAIL, and names cannot be dialled", what)

    async def _search(self, search: _Search, tried: Collection[Server] = ()) -> None:
        """Ask server after server, `tried` not in the first round, until one has an answer to go with."""
        timeout, rounds = self._configuration.timeout, self._configuration.attempts
        places = self._later_places if tried else self._first_places
        turn = self._turn if self._configuration.rotate else 0
        for attempt in range(rounds):
            tried = set(search.failing) if attempt else {*tried, *search.failing}
            while self._candidates(tried, turn):
                try:
                    places.acquire_nowait()
                except trio.WouldBlock:
                    await places.acquire()
                try:
                    # Chosen now: what was learned of the servers while this question waited counts.
                    candidates = self._candidates(tried, turn)
                    if not candidates:
                        break
                    server = candidates[0]
                    tried.add(server)
                    last = attempt + 1 == rounds and len(candidates) == 1
                    # When nobody else is left to ask, it is waited for as long as the question lives.
                    if await self._attempt(server, search, math.inf if last else timeout * 2**attempt):
                        return
                finally:
                    places.release()
                places = self._later_places

    def _candidates(self, tried: set[Server], turn: int) -> list[Server]:
        """The servers not tried yet, those not known to be dead first."""
        servers = self._configuration.servers
        if turn and servers:
            begin = turn % len(servers)
            servers = servers[begin:] + servers[:begin]
        candidates = [server for server in servers if server not in tried]
        if len(candidates) > 1:
            now = trio.current_time()
            candidates.sort(key=lambda server: self._health[server].suspect_until > now)
        return candidates

    async def _attempt(self, server: Server, search: _Search, patience: float, heard: bytes | None = None) -> bool:
        """Ask one server once, or go on from what was `heard` of it. True when it gave an answer to go with."""
        asked = trio.current_time()
        # Servers change while questions wait: then this one's health is nobody's business any more.
        health = self._health.get(server) or _Health()
        if health.failures and len(self._configuration.servers) > 1 and patience < math.inf:
            # Back from its time behind the others: one question tries it, those that come meanwhile pass it by.
            patience = _PROBE_TIMEOUT
            health.suspect_until = max(health.suspect_until, asked + patience)
        answer: bytes | None = None
        try:
            with trio.move_on_after(patience):
                answer = await self._ask_udp(server, search.message, heard)
        except OSError as error:
            if error.errno in _LOCAL_ERRORS:
                return False
        if answer is None:
            health.failed(trio.current_time(), asked)
            return False
        health.answered(trio.current_time())
        if answer[2] << 8 & wire.TC:
            search.truncated = answer
            self.over_tcp += 1
            with trio.move_on_after(TCP_TIMEOUT):
                answer = await _ask_tcp(server, search.message)
            # After a timeout `answer` is still what came over UDP.
            if answer is None or answer is search.truncated:
                return False
        if answer[3] & wire.RCODE in _FAILURES:
            search.failing[server] = answer
            return False
        search.answer = answer
        return True

    async def _ask_udp(self, server: Server, message: bytes, heard: bytes | None) -> bytes:
        """A server's answer. Raises OSError when the server or the network refuses; waits for ever otherwise."""
        answer = heard or await self._exchange(server, message)
        if answer[3] & wire.RCODE in (wire.FORMERR, wire.NOTIMP) and _has_additional(message) > _has_additional(answer):
            # RFC 6891 section 7: a server that does not know EDNS says so by an error without OPT.
            answer = await self._exchange(server, wire.without_opt(message))
        return answer

    async def _exchange(self, server: Server, message: bytes) -> bytes:
        query = secrets.token_bytes(2) + message[2:]
        with open_connected(server) as sock:
            sock.send(query)
            while True:
                await trio.lowlevel.wait_readable(sock)
                try:
                    datagram = sock.recv(wire.MAX_MESSAGE)
                except BlockingIOError:
                    continue  # a datagram with a bad checksum wakes us too
                if wire.answers_question(datagram, query):
                    return datagram
                self._exchanges.ignored += 1

    def _refresh(self, now: float) -> None:
        """Look whether resolv.conf is another file than at the last look."""
        if not self._watching or now - self._checked < _CHECK_INTERVAL:
            return
        first = self._checked == -math.inf
        self._checked = now
        # Missing or unreadable: as if it were empty. A few hundred bytes of a local file are read without a thread.
        state: tuple[int, ...] | None = None
        text = ""
        try:
            found = self._resolv_conf.stat()
            state = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if state == self._file_state and not first:
                return
            with self._resolv_conf.open("rb") as file:
                text = file.read(_MAX_FILE).decode(errors="replace")
        except OSError:
            pass
        self._file_state = state
        before = self._configuration.servers
        self._use(parse_resolv_conf(text))
        if not first and self._configuration.servers != before and self._servers_changed is not None:
            self._servers_changed()

    def _use(self, configuration: Configuration) -> None:
        servers = tuple(server for server in configuration.servers if server.address[0] not in self._never_ask)
        self._configuration = configuration._replace(servers=servers)
        self._health = {server: self._health.get(server) or _Health() for server in servers}


class _Search:
    """One question on its way through the servers, and what they said so far."""

    __slots__ = ("answer", "failing", "message", "truncated")

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.answer: bytes | None = None
        self.truncated: bytes | None = None
        self.failing: dict[Server, bytes] = {}

    def best(self) -> bytes | None:
        """The answer, else one cut off, else the first server's report of failure."""
        return self.answer or self.truncated or next(iter(self.failing.values()), None)


async def _ask_tcp(server: Server, message: bytes) -> bytes | None:
    """A server's answer over a TCP connection of its own (RFC 7766), None when it does not come that way."""
    query = secrets.token_bytes(2) + message[2:]
    held = bytearray()
    with trio.socket.socket(server.family, socket.SOCK_STREAM) as sock:
        try:
            await sock.connect(server.address)
            stream = trio.SocketStream(sock)
            await stream.send_all(len(query).to_bytes(2, "big") + query)
            while len(held) < 2 or len(held) < 2 + int.from_bytes(held[:2], "big"):
                data = await stream.receive_some(2 + wire.MAX_MESSAGE)
                if not data:
                    return None
                held += data
        except (OSError, trio.BrokenResourceError):
            return None
    answer = bytes(held[2 : 2 + int.from_bytes(held[:2], "big")])
    return answer if wire.answers_question(answer, query) else None


def _has_additional(message: bytes) -> bool:
    return message[10:12] != b"\x00\x00"
