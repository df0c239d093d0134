"""Port 53 of the gateway: joins the name server to datagrams and to TCP connections."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

from netstack.engine.dns_server import Answer, Ask, DnsServer, DnsStream, Drop
from netstack.engine.outbox import Outbox
from netstack.engine.verdict import Verdict

PORT: Final = 53


class _Datagram(NamedTuple):
    """Whom to answer, and from which address."""

    guest: bytes
    guest_port: int
    address: bytes


class _Question(NamedTuple):
    """One question of a TCP connection: a client may ask two with the same id, and is owed two answers."""

    flow: int
    number: int


class DnsPort:
    """The name server's two doors."""

    def __init__(self, server: DnsServer, outbox: Outbox, address: bytes, wake: Callable[[int], None]) -> None:
        """`address` is ours; `wake(flow)` is called when a TCP session got an answer from upstream."""
        self._server = server
        self._address = address
        self._outbox = outbox
        self._wake = wake
        self._sessions: dict[int, DnsSession] = {}

    def datagram(self, guest: bytes, guest_port: int, message: bytes, now: float) -> None:
        """A question by UDP."""
        token = _Datagram(guest, guest_port, self._address)
        outcome = self._server.ask(message, guest, "udp", token, now)
        if type(outcome) is Answer:
            self._send(token, outcome.message)
        elif type(outcome) is Ask:
            self._outbox.effects.append(outcome.effect)
        elif type(outcome) is Drop:
            self._outbox.drop(outcome.reason)

    def _send(self, to: _Datagram, message: bytes) -> None:
        self._outbox.send_datagram(to.address, PORT, to.guest, to.guest_port, message)

    def session(self, guest: bytes, flow: int, wake: Callable[[int], None] | None = None) -> DnsSession:
        """A TCP connection's session, or with a `wake` of its own that of any other stream."""
        session = DnsSession(self._server, self._outbox, guest, flow, wake=wake or self._wake, ended=self._sessions.pop)
        self._sessions[flow] = session
        return session

    def resolved(self, query: int, message: bytes | None, now: float) -> None:
        """What upstream said."""
        for token, answer in self._server.resolved(query, message, now):
            self._deliver(token, answer)

    def consulted(self, number: int, verdict: Verdict, now: float) -> None:
        """What the hook said."""
        result = self._server.consulted(number, verdict, now)
        if result is None:
            return
        token, outcome = result
        if isinstance(outcome, Answer):
            self._deliver(token, outcome.message)
        elif isinstance(outcome, Ask):
            self._outbox.effects.append(outcome.effect)

    def _deliver(self, token: Hashable, answer: bytes) -> None:
        if isinstance(token, _Datagram):
            self._send(token, answer)
        elif isinstance(token, _Question):
            session = self._sessions.get(token.flow)
            if session is not None:
                session.answered(answer)
                session.wake(token.flow)


class DnsSession:
    """DNS over one TCP connection (RFC 7766): any number of questions, answered as their answers come."""

    def __init__(
        self,
        server: DnsServer,
        outbox: Outbox,
        guest: bytes,
        flow: int,
        *,
        wake: Callable[[int], None],
        ended: Callable[[int], object],
    ) -> None:
        self.out: list[bytes] = []
        self.failed = False
        self._server = server
        self._outbox = outbox
        self._guest = guest
        self._flow = flow
        self._stream = DnsStream()
        self._waiting: deque[bytes] = deque()
        self._upstream = 0
        self._asked = 0
        self.wake = wake
        self._ended = ended

    @property
    def idle(self) -> bool:
        """Whether every question was answered."""
        return not self._waiting and not self._upstream

    def receive(self, data: bytes, now: float) -> None:
        """Bytes from the guest."""
        self._waiting += self._stream.receive(data)
        self.more(now)

    def more(self, now: float) -> None:
        """Answer what waits, until there is an answer to send: a guest that does not read is not answered further."""
        while self._waiting and not self.out and not self.failed:
            self._asked += 1
            token = _Question(self._flow, self._asked)
            outcome = self._server.ask(self._waiting.popleft(), self._guest, "tcp", token, now)
            if type(outcome) is Answer:
                self.out.append(DnsStream.frame(outcome.message))
            elif type(outcome) is Drop:
                self._outbox.drop(outcome.reason)
                self.failed = True
            else:
                self._upstream += 1
                if type(outcome) is Ask:
                    self._outbox.effects.append(outcome.effect)

    def answered(self, message: bytes) -> None:
        """An answer that came from upstream."""
        self._upstream -= 1
        self.out.append(DnsStream.frame(message))

    def closed(self) -> None:
        """The connection is gone; answers still to come have nowhere to go."""
        self._ended(self._flow)
