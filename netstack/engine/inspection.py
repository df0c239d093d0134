"""What the first bytes of a TCP flow say, and what follows of it.

A flow that has to say its name before it may go anywhere is fed here; what it says is kept in `held` and goes upstream
unchanged once it is allowed: the bytes judged are the bytes sent. A flow whose address says the name already (synthetic
answers) is only watched: its bytes pass as they come, but for the last ones of a hello or a request that disagrees, and
without its last bytes no server can act on either.
"""

from __future__ import annotations

from typing import Final

from netstack.engine.judge import Judge
from netstack.engine.peek import Named, Outcome, Refuse, RequestGuard, StreamPeek
from netstack.engine.verdict import REFUSE, Question, Verdict
from netstack.wire.http_head import RequestHead, http_refusal
from netstack.wire.tls_hello import tls_alert

_SOURCES: Final = {"tls": "sni", "http": "host"}

DEADLINE: Final = 5.0
"""Seconds a guest has to say the name (policy.md)."""


class Inspection:
    """One flow's inspection."""

    __slots__ = (
        "_guard", "_head", "_judge", "_name", "_peek", "_protocol", "_question", "_watched", "_watching", "held",
        "waiting",
    )  # fmt: skip

    def __init__(self, judge: Judge, question: Question, name: str = "") -> None:
        """`name` is what the flow's address stands for (canonical); without, the flow has to say it."""
        self.held: list[bytes] = []
        """What the guest has sent so far, in order, while that is still needed."""
        self._judge = judge
        self._question = question
        self._peek = StreamPeek(question.destination[1], strict_ech=judge.policy.settings.strict_ech)
        self._protocol = "other"
        self._name = name
        self._guard: RequestGuard | None = None
        self._head: RequestHead | None = None
        """The first request's, once it is read."""
        self.waiting = 0
        """Bytes of `held` that wait for a verdict or a dial; the owner's count."""
        self._watching = bool(name)
        self._watched = 0
        """Bytes that passed while they were watched."""

    def feed(self, chunk: bytes, now: float) -> Verdict | None:
        """Take the next bytes; the verdict as soon as they tell, None while more are needed."""
        outcome = self._read(chunk)
        if isinstance(outcome, Named):
            self._name = outcome.name
            return self._judge.named(self._question, outcome.name, outcome.protocol, outcome.source, now)
        return None if outcome is None else _refusal(outcome)

    def _read(self, chunk: bytes) -> Outcome:
        self.held.append(chunk)
        outcome = self._peek.feed(chunk)
        if outcome is not None:
            self._protocol = outcome.protocol
            if isinstance(outcome, Named) and isinstance(outcome.details, RequestHead):
                self._head = outcome.details
        return outcome

    def unfinished(self, reason: str) -> Verdict:
        """The verdict for a guest that says no more, or not soon enough."""
        self._protocol = self._peek.protocol or "other"
        return Verdict(REFUSE, self._protocol if self.held else "syn", reason)

    def follow(self) -> None:
        """The flow is allowed. Plain HTTP goes on being read: each of its requests has to name the same host."""
        if self._protocol == "http":
            self._guard = RequestGuard(self._name, self._question.destination[1], self._head)
            self._head = None

    @property
    def over(self) -> bool:
        """Whether an allowed flow needs no reading any more."""
        return self._guard is None and not self._watching

    def pass_on(self, chunks: list[bytes]) -> tuple[list[bytes], Verdict | None]:
        """What of the bytes of an allowed flow may be sent, the held ones first; and the refusal, if there is one."""
        if self.over:
            return chunks, None
        passed: list[bytes] = []
        for chunk in chunks:
            if self._guard is not None:
                data, refuse = self._guard.feed(chunk)
                refusal = None if refuse is None else _refusal(refuse)
            elif self._watching:
                data, refusal = self._watch(chunk)
            else:
                data, refusal = chunk, None
            if data:
                passed.append(data)
            if refusal is not None:
                return passed, refusal
        return passed, None

    def _watch(self, chunk: bytes) -> tuple[bytes, Verdict | None]:
        """A name in the first bytes has to be the one of the address; a protocol without names passes."""
        outcome = self._read(chunk)
        if outcome is None:
            self._watched += len(chunk)
            return chunk, None
        if isinstance(outcome, Named) and outcome.name != self._name:
            reason = "name-disagrees-with-address"
            return b"", Verdict(REFUSE, outcome.protocol, reason, "", outcome.name, outcome.source)
        if isinstance(outcome, Refuse) and outcome.protocol != "other" and outcome != Refuse("no-name", "tls"):
            return b"", _refusal(outcome)
        self._watching = False
        held, self.held = self.held, []
        self.follow()
        if self._guard is None:
            return chunk, None
        data, refuse = self._guard.feed(b"".join(held))
        return data[self._watched :], None if refuse is None else _refusal(refuse)

    def farewell(self, verdict: Verdict) -> tuple[bytes, str]:
        """What the guest is sent before its connection is closed, and the word for it; nothing means a reset."""
        if self._protocol == "tls":
            return tls_alert(), "alert"
        if self._protocol == "http":
            return http_refusal(verdict.name, verdict.reason), "forbidden"
        return b"", "reset"


def _refusal(refuse: Refuse) -> Verdict:
    return Verdict(REFUSE, refuse.protocol, refuse.reason, "", refuse.name, _SOURCES.get(refuse.protocol, ""))
