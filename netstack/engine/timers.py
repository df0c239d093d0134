"""Deadlines of many flows in one heap.

A deadline that moves later, as most do, costs nothing: the heap asks again when the old one is due.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Final, Generic, Protocol, TypeVar

_COMPACT_ABOVE: Final = 1024
NOT_SCHEDULED: Final[list[Any]] = [inf, 0, None]
"""The entry of who has none."""


class Timed(Protocol):
    """Something that wants to be woken at `deadline` (seconds; infinity for never)."""

    @property
    def deadline(self) -> float:
        """When it wants to be woken."""

    scheduled: list[Any]
    """The entry the heap holds for it, NOT_SCHEDULED when there is none. Only `Timers` writes it."""


T = TypeVar("T", bound=Timed)


class Timers(Generic[T]):
    """A heap of [time, order, owner]. One that was replaced, or whose owner is gone, has no owner any more."""

    __slots__ = ("_compact_at", "_heap", "_order", "first")

    def __init__(self) -> None:
        self._heap: list[list[Any]] = []
        self._order = 0
        self.first = inf
        """When `due` should be asked next; it may come to nothing. Read after every batch, so that it is no call."""
        self._compact_at = _COMPACT_ABOVE

    def __len__(self) -> int:
        """Entries held, those included that count no more."""
        return len(self._heap)

    def schedule(self, owner: T) -> None:
        """Take note of the owner's deadline; call whenever it may have moved earlier."""
        deadline = owner.deadline
        entry = owner.scheduled
        if deadline < entry[0]:
            entry[2] = None
            self._order += 1
            owner.scheduled = entry = [deadline, self._order, owner]
            heappush(self._heap, entry)
            if deadline < self.first:
                self.first = deadline
            if len(self._heap) > self._compact_at:
                self._compact()

    def forget(self, owner: T) -> None:
        """The owner wants no waking any more.

        What was built for a flow that is over is free at once: the next flow finds it in the processor's cache.
        """
        owner.scheduled[2] = None
        owner.scheduled = NOT_SCHEDULED

    def _compact(self) -> None:
        """Let go of owners without a deadline and of entries without an owner: short flows must not fill it."""
        kept = []
        for entry in self._heap:
            owner = entry[2]
            if owner is None:
                continue
            if owner.deadline == inf:
                self.forget(owner)  # it may come back
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
            owner = heappop(heap)[2]
            if owner is None:
                continue
            owner.scheduled = NOT_SCHEDULED
            if owner.deadline <= now:
                owners.append(owner)
            else:
                self.schedule(owner)
        self.first = heap[0][0] if heap else inf
        return owners
