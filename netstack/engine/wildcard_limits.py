"""Bounds on what a wildcard lets out by DNS.

Whoever runs the name server of `example.com` reads every name below it that a guest asks for: a rule `*.example.com` is
a tunnel out (conformance B11). It cannot be closed without closing the rule, but it is made narrow: names below a
wildcard are no longer than real ones are, and a guest may ask for so many that it has not asked for before.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from netstack.engine.rules import RuleSet

MAX_LENGTH: Final = 128
"""Characters in front of the wildcard's suffix. Long real ones (storage buckets, brokers of clouds) have up to 100."""
MAX_LABELS: Final = 8
BURST: int = 1024
"""New questions at once, of one guest below one wildcard: a name asked for by A and AAAA is two."""
PER_SECOND: Final = 2.0
"""New questions in the long run. With the above: 160 bytes a second, at most."""
TOO_MANY: Final = "too-many-new-names"
MAX_BUCKETS: int = 8192
"""Pairs of guest and wildcard that are counted; the one longest unused makes room."""
MAX_SEEN: int = 32_768
"""Questions remembered as asked before, of all guests; the one longest unused is new again."""


def shape_fault(name: str, suffix: str) -> str:
    """What is wrong with the part of a canonical name in front of the wildcard's suffix; empty when it is right."""
    below = name[: -len(suffix) - 1]
    if len(below) > MAX_LENGTH:
        return "name-too-long-for-wildcard"
    if below.count(".") >= MAX_LABELS:
        return "too-many-labels-for-wildcard"
    return ""


class _Bucket:
    """Tokens left, and when they were counted."""

    __slots__ = ("at", "tokens")

    def __init__(self, now: float) -> None:
        self.tokens = float(BURST)
        self.at = now


class WildcardLimits:
    """A token bucket for each guest and wildcard. `refused` counts the questions for which there was no token."""

    def __init__(self) -> None:
        self.refused = 0
        self._buckets: OrderedDict[tuple[bytes, str], _Bucket] = OrderedDict()
        self._seen: OrderedDict[tuple[bytes, str, int], None] = OrderedDict()

    def fault(self, rules: RuleSet, guest: bytes, name: str, qtype: int, now: float) -> str:
        """Why a canonical name that the rules allow must not be looked up for a guest now; empty when it may."""
        suffix = rules.wildcard(name)
        if not suffix:
            return ""
        return shape_fault(name, suffix) or ("" if self.admit(guest, suffix, name, qtype, now) else TOO_MANY)

    def admit(self, guest: bytes, suffix: str, name: str, qtype: int, now: float) -> bool:
        """Whether a canonical name below `*.suffix` may be looked up: it is known, or there is a token for it.

        The type counts as much as the name does: 16 bits of it can be chosen freely.
        """
        question = (guest, name, qtype)
        if question in self._seen:
            self._seen.move_to_end(question)
            return True
        bucket = self._buckets.get((guest, suffix))
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._buckets.popitem(last=False)
            bucket = self._buckets[guest, suffix] = _Bucket(now)
        else:
            self._buckets.move_to_end((guest, suffix))
            bucket.tokens = min(float(BURST), bucket.tokens + (now - bucket.at) * PER_SECOND)
            bucket.at = now
        if bucket.tokens < 1:
            self.refused += 1
            return False
        bucket.tokens -= 1
        if len(self._seen) >= MAX_SEEN:
            self._seen.popitem(last=False)
        self._seen[question] = None
        return True
