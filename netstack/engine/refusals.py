"""Refusals, counted: by reason for good, and by what each guest wanted for a while.

A flood of refused packets is told in few lines: the 1st, 10th, 100th, ... of each (conformance F13).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

MAX_REASONS: Final = 256
"""Reasons counted apart. The engine has a few dozen; a hook may give any text."""
OTHER_REASONS: Final = "other-reasons"
MAX_PLACES: Final = 256
"""Places a guest was refused that are counted one by one; those beyond are counted together."""
MAX_GUESTS: Final = 64
"""Guests that are counted each by itself, so that a flood by one hides no refusal of another; the rest are as one."""
FORGET: Final = 300.0
"""Seconds after which the counting of places begins again."""


class _Places:
    """Where one guest was refused, and how often."""

    __slots__ = ("beyond", "counts", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.counts: dict[Hashable, int] = {}
        self.beyond = 0


class Refusals:
    """One gateway's."""

    def __init__(self) -> None:
        self.by_reason: dict[str, int] = {}
        """Refusals so far, by reason."""
        self._guests: dict[bytes, _Places] = {}

    def count(self, reason: str) -> None:
        """One more for a reason."""
        by_reason = self.by_reason
        if reason not in by_reason and len(by_reason) >= MAX_REASONS:
            reason = OTHER_REASONS
        by_reason[reason] = by_reason.get(reason, 0) + 1

    def repetition(self, guest: bytes, place: Hashable, now: float) -> int:
        """The how-manieth refusal of a guest at a place this is."""
        if guest not in self._guests and len(self._guests) >= MAX_GUESTS:
            self._make_room(now)
        if guest not in self._guests and len(self._guests) >= MAX_GUESTS:
            guest = b""
        places = self._guests.get(guest)
        if places is None or now - places.since > FORGET:
            places = self._guests[guest] = _Places(now)
        count = places.counts.get(place)
        if count is None and len(places.counts) >= MAX_PLACES:
            places.beyond += 1
            return places.beyond
        count = places.counts[place] = (count or 0) + 1
        return count

    def begin_again(self) -> None:
        """Another policy is in force: what it refuses is told again."""
        self._guests.clear()

    def _make_room(self, now: float) -> None:
        self._guests = {guest: places for guest, places in self._guests.items() if now - places.since <= FORGET}


def is_told(count: int) -> bool:
    """Whether the `count`th of a kind is told: 1, 10, 100, ..."""
    return count == 1 or (count % 10 == 0 and str(count).rstrip("0") == "1")
