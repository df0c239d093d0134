"""How many lines of the event log each kind of event may have: a guest that floods must not fill a disk.

A token bucket for each kind, refusals apart: whoever wants to hide a refused question among thousands of others does
not get it pushed out. What is left out is counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

BURST: Final = 1000
"""Lines of one kind at once."""
RATE: Final = 100.0
"""Lines of one kind a second in the long run: some 30 KiB, or 2.5 GiB a day."""


class _Bucket:
    __slots__ = ("at", "tokens")

    def __init__(self, now: float) -> None:
        self.tokens = float(BURST)
        self.at = now


class EventBudget:
    """One log's. Kinds are the caller's few words: the table is as large as there are."""

    def __init__(self) -> None:
        self.suppressed: Counter[str] = Counter()
        """Events left out since they were last told, by kind."""
        self._buckets: dict[str, _Bucket] = {}

    def admit(self, kind: str, now: float) -> bool:
        """Whether an event of this kind may have a line. `now` in seconds; a clock set back costs nothing."""
        bucket = self._buckets.get(kind)
        if bucket is None:
            bucket = self._buckets[kind] = _Bucket(now)
        bucket.tokens = min(float(BURST), bucket.tokens + max(0.0, now - bucket.at) * RATE)
        bucket.at = now
        if bucket.tokens < 1.0:
            self.suppressed[kind] += 1
            return False
        bucket.tokens -= 1.0
        return True

    def take_suppressed(self) -> dict[str, int]:
        """The counts, which begin again."""
        counts, self.suppressed = self.suppressed, Counter()
        return dict(counts)
