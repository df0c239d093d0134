"""UDP flows that may not go anywhere yet: a QUIC hello has to say the name, a hook has to be asked, an address found.

Their datagrams wait here; the owner sends them on, or refuses them.
"""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple

from netstack.engine import effects
from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.peek import DatagramPeek, Refuse
from netstack.engine.timers import NOT_SCHEDULED, Timers
from netstack.engine.verdict import REFUSE, Question, Verdict

MAX_WAITING: int = 256
"""Flows that wait, each with at most MAX_HELD datagrams."""
MAX_HELD: Final = 16
"""Datagrams kept per flow; further ones are lost, as datagrams are: what comes first holds the hello."""
MAX_HELD_BYTES: Final = 32 * 1024
"""Their payload, but for the first one's: a client sends 10 full-sized packets before it hears anything."""
NAME_DEADLINE: Final = 5.0
"""Seconds to say the name."""
ANSWER_DEADLINE: Final = 15.0
"""Seconds for the hook to speak and for the name's address to be found."""

NAME: Final = Verdict(REFUSE, "quic", "no-name-in-time")
HOOK: Final = Verdict(REFUSE, "hook", "hook-silent")
ADDRESS: Final = Verdict(REFUSE, "dial", "no-address-in-time")
"""What a flow waits for, as the refusal when it does not come."""


class Held(NamedTuple):
    """One datagram of the guest that waits: its payload, what is left of its TTL, and its packet's start."""

    payload: bytes
    ttl: int
    packet: bytes


class Waiting:
    """A flow that waits."""

    __slots__ = ("deadline", "dialled", "held", "key", "peek", "question", "room", "scheduled", "verdict", "waits_for")

    def __init__(self, key: bytes, question: Question, dialled: bytes, now: float) -> None:
        self.key = key
        self.question = question
        self.dialled = dialled
        """Where the guest wants to go, after NAT; a name decides otherwise."""
        self.held: list[Held] = []
        self.room = MAX_HELD_BYTES
        self.peek: DatagramPeek | None = None
        """Reads the hello; None once it has said the name, or where none is needed."""
        self.verdict: Verdict | None = None
        """What the policy says, as soon as it can."""
        self.waits_for = NAME
        self.deadline = now + NAME_DEADLINE
        self.scheduled = NOT_SCHEDULED


class WaitingDatagrams:
    """The flows that wait."""

    def __init__(self, judge: Judge, outbox: Outbox) -> None:
        self._judge = judge
        self._outbox = outbox
        self._flows: dict[bytes, Waiting] = {}
        self._by_number: dict[int, Waiting] = {}
        self.timers: Timers[Waiting] = Timers()
        """Its first deadline says when `expired` wants to be called."""

    def hold(self, key: bytes, held: Held, now: float) -> tuple[Question, Verdict] | bool:
        """Take a datagram of a flow that waits: True if there is one, with its refusal if this datagram decides it."""
        flow = self._flows.get(key)
        if flow is None:
            return False
        if len(flow.held) >= MAX_HELD or len(held.payload) > flow.room:
            self._outbox.drop("udp-waits-too-long")
            return True
        flow.room -= len(held.payload)
        flow.held.append(held)
        if flow.peek is None:
            return True
        refusal = self._read_on(flow, flow.peek, now)
        return True if refusal is None else (flow.question, refusal)

    def begin(
        self, key: bytes, question: Question, verdict: Verdict, dialled: bytes, held: Held, now: float
    ) -> Verdict | None:
        """A flow that has to wait: for its name (a PEEK), or for the hook.

        Returns the refusal if there is one at once.
        """
        if len(self._flows) >= MAX_WAITING:
            return Verdict(REFUSE, verdict.step, "too-many-waiting-flows")
        flow = self._flows[key] = self._by_number[question.flow] = Waiting(key, question, dialled, now)
        flow.held.append(held)
        self.timers.schedule(flow)
        if verdict.action != REFUSE and not verdict.allowed:
            flow.peek = DatagramPeek(strict_ech=self._judge.policy.settings.strict_ech)
            return self._read_on(flow, flow.peek, now)
        self._admit(flow, verdict, now)
        return None

    def _read_on(self, flow: Waiting, peek: DatagramPeek, now: float) -> Verdict | None:
        outcome = peek.feed(flow.held[-1].payload)
        if outcome is None:
            return None
        flow.peek = None
        if isinstance(outcome, Refuse):
            self._forget(flow)
            return Verdict(REFUSE, "quic", outcome.reason, "", outcome.name, "quic")
        verdict = self._judge.named(flow.question, outcome.name, "quic", outcome.source, now)
        if not verdict.allowed and not self._judge.overrulable(verdict):
            self._forget(flow)
            return verdict
        self._admit(flow, verdict, now)
        return None

    def _admit(self, flow: Waiting, verdict: Verdict, now: float) -> None:
        flow.verdict = verdict
        flow.deadline = now + ANSWER_DEADLINE
        if self._judge.consults:
            flow.waits_for = HOOK
            self._outbox.effects.append(effects.ConsultFlow(flow.question, verdict))
        else:
            self._find(flow, verdict)

    def _find(self, flow: Waiting, verdict: Verdict) -> None:
        flow.waits_for = ADDRESS
        port = flow.question.destination[1]
        self._outbox.effects.append(effects.ResolveName(flow.question.flow, verdict.name, port))

    def consulted(self, number: int, verdict: Verdict) -> tuple[Waiting, Verdict] | None:
        """The hook has spoken. Returns the flow if it waits no longer: allowed to go to its address, or refused."""
        flow = self._by_number.get(number)
        if flow is None:
            return None
        if verdict.allowed and verdict.source in ("quic", "synthetic"):
            flow.verdict = verdict
            self._find(flow, verdict)
            return None
        self._forget(flow)
        return flow, verdict

    def resolved(self, number: int) -> Waiting | None:
        """The flow whose name was looked up; it waits no longer. None when it was given up meanwhile."""
        flow = self._by_number.get(number)
        if flow is not None:
            self._forget(flow)
        return flow

    def expired(self, now: float) -> list[tuple[Waiting, Verdict]]:
        """The flows that took too long, and for what."""
        flows = self.timers.due(now)
        for flow in flows:
            self._forget(flow)
        return [(flow, flow.waits_for) for flow in flows]

    def judge_again(self, now: float) -> list[tuple[Waiting, Verdict]]:
        """The flows that the policy now in force refuses; they wait no longer."""
        refused = []
        for flow in list(self._flows.values()):
            known = flow.verdict
            verdict = (
                self._judge.first(flow.question, now) if known is None else self._judge.again(flow.question, known, now)
            )
            if verdict.action == REFUSE:
                self._forget(flow)
                refused.append((flow, verdict))
        return refused

    def _forget(self, flow: Waiting) -> None:
        flow.deadline = inf
        self._flows.pop(flow.key, None)
        self._by_number.pop(flow.question.flow, None)
