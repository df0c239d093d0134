"""A TCP flow that has to say its name before it may go anywhere: its first bytes, what they say, and what follows.

The bytes judged are the bytes sent: what is fed here is kept in `held` and goes upstream unchanged once it is allowed.
"""

from __future__ import annotations

from typing import Final

from netstack.engine.judge import Judge
from netstack.engine.peek import Named, Refuse, RequestGuard, StreamPeek
from netstack.engine.verdict import REFUSE, Question, Verdict
from netstack.wire.http_head import http_refusal
from netstack.wire.tls_hello import tls_alert

_SOURCES: Final = {"tls": "sni", "http": "host"}

DEADLINE: Final = 5.0
"""Seconds a guest has to say the name (policy.md)."""


class Inspection:
    """One flow's inspection."""

    __slots__ = ("_agrees", "_guard", "_judge", "_name", "_peek", "_protocol", "_question", "held")

    def __init__(self, judge: Judge, question: Question) -> None:
        self.held: list[bytes] = []
        """What the guest has sent so far, in order."""
        self._judge = judge
        self._question = question
        self._peek = StreamPeek(question.destination[1], strict_ech=judge.policy.settings.strict_ech)
        self._protocol = "other"
        self._name = ""
        self._guard: RequestGuard | None = None
        self._agrees = True

    def feed(self, chunk: bytes) -> Verdict | None:
        """Take the next bytes; the verdict as soon as they tell, None while more are needed."""
        self.held.append(chunk)
        outcome = self._peek.feed(chunk)
        if isinstance(outcome, Named):
            self._protocol = outcome.protocol
            self._name = outcome.name
            return self._judge.named(self._question, outcome.name, outcome.protocol, outcome.source)
        if isinstance(outcome, Refuse):
            self._protocol = outcome.protocol
            return _refusal(outcome)
        return None

    @classmethod
    def of_named(cls, judge: Judge, question: Question) -> Inspection:
        """For a flow whose address already says the name (synthetic answers): what it says itself has to agree."""
        inspection = cls(judge, question)
        inspection._agrees = False
        return inspection

    def unfinished(self, reason: str) -> Verdict:
        """The verdict for a guest that says no more, or not soon enough."""
        self._protocol = self._peek.protocol or "other"
        return Verdict(REFUSE, self._protocol if self.held else "syn", reason)

    def follow(self) -> None:
        """The flow is allowed. Plain HTTP goes on being read: each of its requests has to name the same host."""
        if self._protocol == "http":
            self._guard = RequestGuard(self._name, self._question.destination[1])

    def pass_on(self, chunks: list[bytes]) -> tuple[list[bytes], Verdict | None]:
        """What of the bytes of an allowed flow may be sent, the held ones first; and the refusal, if there is one."""
        passed: list[bytes] = []
        if not self._agrees:
            for chunk in chunks:
                refusal = self._compare(chunk)
                if refusal is not None:
                    return passed, refusal
            chunks, self.held = self._agreed_bytes()
        if self._guard is None:
            return chunks, None
        for chunk in chunks:
            data, refuse = self._guard.feed(chunk)
            if data:
                passed.append(data)
            if refuse is not None:
                return passed, _refusal(refuse)
        return passed, None

    def _agreed_bytes(self) -> tuple[list[bytes], list[bytes]]:
        """What may go on now, and what is held on to."""
        return (self.held, []) if self._agrees else ([], self.held)

    def _compare(self, chunk: bytes) -> Verdict | None:
        """A name in the first bytes has to be the one of the address; a protocol without names passes."""
        if self._agrees:
            self.held.append(chunk)
            return None
        verdict = self.feed(chunk)
        if verdict is None:
            return None
        if verdict.allowed:
            self.follow()
        elif verdict.name or not (verdict.reason == "no-name" or self._protocol == "other"):
            return verdict
        self._agrees = True
        return None

    def farewell(self, verdict: Verdict) -> tuple[bytes, str]:
        """What the guest is sent before its connection is closed, and the word for it; nothing means a reset."""
        if self._protocol == "tls":
            return tls_alert(), "alert"
        if self._protocol == "http":
            return http_refusal(verdict.name, verdict.reason), "forbidden"
        return b"", "reset"


def _refusal(refuse: Refuse) -> Verdict:
    return Verdict(REFUSE, refuse.protocol, refuse.reason, "", refuse.name, _SOURCES.get(refuse.protocol, ""))
