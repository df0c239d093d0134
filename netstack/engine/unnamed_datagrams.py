"""UDP flows that have to say their name first: QUIC under a list. Their datagrams wait until the name is known and found."""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple

from netstack.engine import effects
from netstack.engine.judge import Judge, Question
from netstack.engine.outbox import Outbox
from netstack.engine.peek import DatagramPeek, Named, Refuse
from netstack.engine.timers import Timers
from netstack.engine.verdict import REFUSE, Verdict

MAX_UNNAMED: Final = 256
"""Flows that wait for their name, each with at most what a DatagramPeek takes."""
MAX_HELD: Final = 16
"""Datagrams kept while the address is looked up; of more, the oldest is lost, as datagrams are."""
DEADLINE: Final = 5.0
"""Seconds to say the name, and as many to find its address."""


class Held(NamedTuple):
    """One datagram of the guest that waits: its payload, what is left of its TTL, and its packet's start."""

    payload: bytes
    ttl: int
    packet: bytes


class Unnamed:
    """A flow whose first datagrams are being read."""

    __slots__ = ("deadline", "held", "key", "question", "scheduled", "verdict", "_peek")

    def __init__(self, key: bytes, question: Question, peek: DatagramPeek, now: float) -> None:
        self.key = key
        self.question = question
        self.held: list[Held] = []
        self.verdict: Verdict | None = None
        """Set once the name is known and allowed: then its address is being looked up."""
        self.deadline = now + DEADLINE
        self.scheduled = inf
        self._peek = peek

    def feed(self, payload: bytes) -> Named | Refuse | None:
        """What the next datagram says."""
        outcome = self._peek.feed(payload)
        return outcome if isinstance(outcome, Named | Refuse) else None


class UnnamedDatagrams:
    """The flows that wait. Their owner sends what becomes of them."""

    def __init__(self, judge: Judge, outbox: Outbox) -> None:
        self._judge = judge
        self._outbox = outbox
        self._flows: dict[bytes, Unnamed] = {}
        self._by_number: dict[int, Unnamed] = {}
        self._timers: Timers[Unnamed] = Timers()

    def feed(self, key: bytes, question: Question, held: Held, now: float) -> Verdict | None:
        """Take a datagram. Returns the refusal if there is one; None while the flow waits for more."""
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= MAX_UNNAMED:
                return Verdict(REFUSE, "quic", "too-many-unnamed-flows")
            peek = DatagramPeek(strict_ech=self._judge.policy.settings.strict_ech)
            flow = self._flows[key] = self._by_number[question.flow] = Unnamed(key, question, peek, now)
            self._timers.schedule(flow)
        flow.held.append(held)
        if flow.verdict is not None:
            if len(flow.held) > MAX_HELD:
                del flow.held[0]
            return None
        outcome = flow.feed(held.payload)
        if outcome is None:
            return None
        if isinstance(outcome, Refuse):
            self._forget(flow)
            return Verdict(REFUSE, "quic", outcome.reason, "", outcome.name, "quic")
        verdict = self._judge.named(flow.question, outcome.name, "quic", outcome.source)
        if not verdict.allowed:
            self._forget(flow)
            return verdict
        flow.verdict = verdict
        flow.deadline = now + DEADLINE
        self._outbox.effects.append(effects.ResolveName(flow.question.flow, verdict.name, question.destination[1]))
        return None

    def resolved(self, number: int) -> Unnamed | None:
        """The flow whose name was looked up; it waits no longer. None when it was given up meanwhile."""
        flow = self._by_number.get(number)
        if flow is not None:
            self._forget(flow)
        return flow

    def next_deadline(self) -> float:
        """When `expired` wants to be called."""
        return self._timers.next_deadline()

    def expired(self, now: float) -> list[Unnamed]:
        """The flows that took too long."""
        flows = self._timers.due(now)
        for flow in flows:
            self._forget(flow)
        return flows

    def clear(self) -> list[Unnamed]:
        """Give all of them up: another policy is in force."""
        flows = list(self._flows.values())
        for flow in flows:
            self._forget(flow)
        return flows

    def _forget(self, flow: Unnamed) -> None:
        flow.deadline = inf
        self._flows.pop(flow.key, None)
        self._by_number.pop(flow.question.flow, None)
