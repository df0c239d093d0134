"""One TCP flow: the guest's connection, what stands behind it, and how far both have come.

PEEKING (under a list: the guest's first bytes are to say the name) -> CONSULTING (a hook is asked) -> CONNECTING (the
dial is under way; without a peek the guest's SYN waits for it unanswered) -> SPLICED -> DRAINING (one side has
finished) -> GONE.

A flow towards the guest begins in CONNECTING: our SYN is on its way, and the host's side is there already.
"""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple, Protocol

from netstack.engine.inspection import Inspection
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.timers import NOT_SCHEDULED
from netstack.engine.verdict import Question, Verdict

PEEKING: Final = 1
CONSULTING: Final = 2
CONNECTING: Final = 3
SPLICED: Final = 4
DRAINING: Final = 5
GONE: Final = 6
"""The host's side is over and told; a connection in TIME-WAIT still answers the guest."""

# Who wanted the flow, and where it leads.
TO_NETWORK: Final = 1
"""The guest wants to go out: policies judge it."""
TO_GATEWAY: Final = 2
"""The guest wants a service of the gateway's own."""
TO_GUEST: Final = 3
"""Somebody outside wants to reach the guest: the host's owner has opened a way in."""


class Session(Protocol):
    """A service of the gateway's own on one connection: bytes in by `receive`, bytes out in `out`."""

    out: list[bytes]

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the guest. Called when `more` has nothing left to do."""

    def more(self, now: float) -> None:
        """What was in `out` is on its way: go on with what waits."""

    @property
    def failed(self) -> bool:
        """Whether the guest's bytes make no sense: the connection is reset."""

    @property
    def idle(self) -> bool:
        """Whether everything asked so far is answered."""

    def closed(self) -> None:
        """The connection is gone. Called once."""


class Syn(NamedTuple):
    """A segment that may open a flow, and where it came from."""

    key: bytes
    mac: bytes
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    sequence: int
    window: int
    options: bytes
    packet: bytes


class TcpFlow:
    """One guest connection, its upstream and what became of both."""

    __slots__ = (
        "connection", "dialled", "forgotten", "guest_finished", "id", "inspection", "key", "kind", "limit_at", "mac",
        "macs", "opened_at", "packet", "paused", "question", "received", "scheduled", "sent", "session", "state",
        "touched", "turned_away", "upstream", "verdict", "waits",
    )  # fmt: skip

    def __init__(
        self,
        question: Question,
        key: bytes,
        mac: bytes,
        connection: TcpConnection,
        dialled: tuple[bytes, int],
        verdict: Verdict,
        now: float,
        *,
        gateway_mac: bytes,
        kind: int = TO_NETWORK,
        packet: bytes = b"",
    ) -> None:
        self.id = question.flow
        self.question = question
        self.verdict = verdict
        """Why it may go where it goes."""
        self.kind = kind
        self.key = key
        self.mac = mac
        """The guest's."""
        self.macs = gateway_mac + mac
        """How its frames begin."""
        self.dialled = dialled
        """The host's end of it: what was dialled for the guest, or who reaches the guest."""
        self.connection = connection
        self.packet = packet
        """The start of the SYN, to be quoted in an ICMP error; dropped once the dial has ended."""
        self.state = CONNECTING
        self.session: Session | None = None
        self.inspection: Inspection | None = None
        self.upstream = False
        """There is a host connection to send to."""
        self.guest_finished = False
        """The guest ended its stream before there was a host connection to tell."""
        self.turned_away = False
        """Refused after the handshake: only the farewell is still on its way."""
        self.paused = False
        """The driver found no room and does not read the host socket until ReadStream."""
        self.touched = False
        self.waits = False
        """It has data for which the last `output` had no room."""
        self.forgotten = False
        """Out of the table: it says nothing any more, and wants no waking."""
        self.limit_at = inf
        """When the name, the hook, the dial, the farewell or a silent guest of a service has had enough time."""
        self.scheduled = NOT_SCHEDULED
        self.opened_at = now
        self.sent = 0
        self.received = 0

    @property
    def deadline(self) -> float:
        """When this flow wants to be woken."""
        if self.forgotten:
            return inf
        deadline = self.connection.deadline
        return deadline if deadline < self.limit_at else self.limit_at
