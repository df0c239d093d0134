"""Deadlines of many flows in one heap.

A deadline that moves later, as most do, costs nothing: the heap asks again when the old one is due.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf
from typing import Final, Generic, Protocol, TypeVar

_COMPACT_ABOVE: Final = 1024


class Timed(Protocol):
    """Something that wants to be woken at `deadline` (seconds; infinity for never)."""

    @property
    def deadline(self) -> float:
        """When it wants to be woken."""

    scheduled: float
    """The entry the heap holds for it; infinity when there is none. Only `Timers` writes it."""


T = TypeVar("T", bound=Timed)


class Timers(Generic[T]):
    """A heap of (time, order, owner); `scheduled` of an owner says which of its entries counts."""

    __slots__ = ("_compact_at", "_heap", "_order", "first")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = 0
        self.first = inf
        """When `due` should be asked next; it may come to nothing. Read after every batch, so that it is no call."""
        self._compact_at = _COMPACT_ABOVE

    def __len__(self) -> int:
        """Entries held, those included that have been replaced by an earlier one."""
        return len(self._heap)

    def schedule(self, owner: T) -> None:
        """Take note of the owner's deadline; call whenever it may have moved earlier."""
        deadline = owner.deadline
        if deadline < owner.scheduled:
            owner.scheduled = deadline
            self._order += 1
            heappush(self._heap, (deadline, self._order, owner))
            if deadline < self.first:
                self.first = deadline
            if len(self._heap) > self._compact_at:
                self._compact()

    def _compact(self) -> None:
        """Let go of owners without a deadline and of replaced entries: a flood of short flows must not fill it."""
        kept = []
        for entry in self._heap:
            when, _, owner = entry
            if when != owner.scheduled:
                continue
            if owner.deadline == inf:
                owner.scheduled = inf  # it may come back, and has no entry then
            else:
                kept.append(entry)
        heapify(kept)
        self._heap[:] = kept  # in place: `due` may be going through it
        self._compact_at = max(_COMPACT_ABOVE, 2 * len(kept))
        self.first = kept[0][0] if kept else inf

    def due(self, now: float) -> list[T]:
        """The owners whose deadline has come, in order; each has to be scheduled again if it goes on."""
        heap = self._heap
        owners: list[T] = []
        while heap and heap[0][0] <= now:
            when, _, owner = heappop(heap)
            if when != owner.scheduled:
                continue  # an earlier entry has taken this one's place
            owner.scheduled = inf
            if owner.deadline <= now:
                owners.append(owner)
            else:
                self.schedule(owner)
        self.first = heap[0][0] if heap else inf
        return owners
