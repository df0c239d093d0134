"""What one impairment does to the frames it is for: which are lost, doubled, damaged or late, and when each goes on.

Pure: frames, the time and a `random.Random` come in, frames and the next deadline come out. The same seed and the same
frames have the same fate.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from random import Random

from guest_iface.impair_chance import Dice, chance_dice, delay_dice, loss_dice
from guest_iface.impair_spec import Chance, Delay, Impairment
from guest_iface.segments import checksum_covers

_NEVER = Chance(0.0)


@dataclass(slots=True)
class ImpairmentCounts:
    """Frames so far."""

    seen: int = 0
    passed: int = 0
    """Gone on, duplicates and damaged ones included."""
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    unreadable: int = 0
    """Damaged, and dropped where they arrived, because of their checksum."""
    reordered: int = 0
    overlimit: int = 0
    """Dropped because `limit` frames were waiting."""


class Impairer:
    """One impairment in one direction of one link."""

    def __init__(
        self,
        spec: Impairment,
        random: Random,
        *,
        counts: ImpairmentCounts | None = None,
        receiver_sums: bool = True,
    ) -> None:
        """`counts` are added to, and may be others' too. `receiver_sums`: whoever takes the frames verifies checksums;
        if not, the damaged frames that one would drop are dropped here.
        """
        self.counts = ImpairmentCounts() if counts is None else counts
        self._spec = spec
        self._random = random
        self._receiver_sums = receiver_sums
        self._lost: Dice = (lambda: False) if spec.loss is None else loss_dice(spec.loss, random)
        self._doubled = chance_dice(spec.duplicate or _NEVER, random)
        self._corrupted = chance_dice(spec.corrupt or _NEVER, random)
        self._early = chance_dice(spec.reorder or _NEVER, random)
        self._held: Callable[[], float] = delay_dice(spec.delay or Delay(0), random)
        self._queue: list[tuple[float, int, bytes]] = []
        """By time and order of arrival."""
        self._arrivals = 0
        self._since_early = 0
        self._busy_until = -inf
        """With a rate: when the last frame has gone through."""
        self._slot_at = -inf
        """With slots: when the next one opens."""

    @property
    def waiting(self) -> int:
        """Frames that wait, the limit's at most."""
        return len(self._queue)

    def admit(self, frame: bytes, now: float) -> None:
        """Take a frame."""
        counts = self.counts
        counts.seen += 1
        copies = 1 + self._doubled() - self._lost()
        if copies == 2:
            counts.duplicated += 1
        elif not copies:
            counts.lost += 1
        for _ in range(copies):
            self._enqueue(frame, now)

    def _enqueue(self, frame: bytes, now: float) -> None:
        if self._corrupted():
            self.counts.corrupted += 1
            position = self._random.randrange(len(frame))
            if not self._receiver_sums and checksum_covers(frame, position):
                self.counts.unreadable += 1
                return
            damaged = bytearray(frame)
            damaged[position] ^= 1 << self._random.randrange(8)
            frame = bytes(damaged)
        if len(self._queue) >= self._spec.limit:
            self.counts.overlimit += 1
            return
        self._arrivals += 1
        spec = self._spec
        if spec.gap and self._since_early >= spec.gap - 1 and self._early():
            self._since_early = 0
            self.counts.reordered += 1
            heapq.heappush(self._queue, (now, self._arrivals, frame))
            return
        self._since_early += 1
        due = now + self._held()
        if spec.rate:
            # It follows the frame before it, and takes its own time on the wire.
            due = self._busy_until = max(due, self._busy_until) + len(frame) * 8 / spec.rate
        heapq.heappush(self._queue, (due, self._arrivals, frame))

    def due(self, now: float) -> list[bytes]:
        """The frames whose time has come, in order."""
        slot = self._spec.slot
        packets, room = self._spec.limit, inf
        if slot is not None:
            if now < self._slot_at:
                return []
            packets, room = slot.packets or packets, slot.size or inf
        out: list[bytes] = []
        queue = self._queue
        while queue and queue[0][0] <= now and packets > 0 and room > 0:
            frame = heapq.heappop(queue)[2]
            out.append(frame)
            packets -= 1
            room -= len(frame)
        if out and slot is not None:
            self._slot_at = now + self._random.uniform(slot.least, slot.most) / 1e9
        self.counts.passed += len(out)
        return out

    @property
    def next_due(self) -> float:
        """When `due` will have something, infinity when nothing waits."""
        return max(self._queue[0][0], self._slot_at) if self._queue else inf

    def clear(self) -> list[bytes]:
        """Let go of all that wait, in the order they came."""
        waiting = [frame for _, _, frame in sorted(self._queue, key=lambda entry: entry[1])]
        self._queue.clear()
        return waiting
