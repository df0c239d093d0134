"""A limit on the rate of one direction of a link: a token bucket, and the queue before it. Time comes in.

From the guest the queue is what was read in one go; while anything is in it the link is not read, so that the guest's
own queue fills and its kernel slows down. To the guest the queue has a bound in bytes; what finds no room is dropped
and counted, and whoever can hold data back is told to while the queue is half full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from guest_iface.link import MAX_FRAME

MIN_RATE_KBPS: Final = 8
MAX_RATE_KBPS: Final = 100_000_000
BURST_SECONDS: Final = 0.025
"""How much of the rate may go at once, unless told otherwise: timers on a busy machine are late by as much."""
MIN_BURST: Final = 3 * 1514
QUEUE_SECONDS: Final = 0.2
"""How long a frame waits in a full queue."""
MIN_QUEUE: Final = 16 * 1514
MAX_BURST: Final = 1 << 30
QUEUE_FULL: Final = "shaped queue full"


@dataclass(frozen=True, slots=True)
class Limit:
    """Of one direction."""

    kbps: float
    """Kilobits (1000 bits) per second of whole frames, MIN_RATE_KBPS to MAX_RATE_KBPS."""
    burst: int = 0
    """Bytes that may go at once after a pause, up to MAX_BURST. 0: what the rate carries in BURST_SECONDS."""

    def __post_init__(self) -> None:
        """Raises ValueError outside the bounds."""
        if not MIN_RATE_KBPS <= self.kbps <= MAX_RATE_KBPS:
            raise ValueError(f"{self.kbps:g} kbps: expected a rate from {MIN_RATE_KBPS} to {MAX_RATE_KBPS}")
        if not 0 <= self.burst <= MAX_BURST:
            raise ValueError(f"a burst of {self.burst} bytes: expected 0 to {MAX_BURST}")

    @property
    def bytes_per_second(self) -> float:
        """The rate."""
        return self.kbps * 125.0

    @property
    def burst_bytes(self) -> int:
        """What may go at once."""
        return self.burst or max(MIN_BURST, int(self.bytes_per_second * BURST_SECONDS))

    @property
    def queue_bytes(self) -> int:
        """What may wait."""
        return max(MIN_QUEUE, int(self.bytes_per_second * QUEUE_SECONDS))


class TokenBucket:
    """Fills at the limit's rate up to its burst. A frame may go while there is anything in it, and may overdraw it: so
    a frame larger than the burst goes too, and is waited for afterwards.
    """

    def __init__(self, limit: Limit, now: float) -> None:
        """Full at `now`."""
        self._rate = limit.bytes_per_second
        self._burst = float(limit.burst_bytes)
        self._tokens = self._burst
        self._at = now

    def take(self, size: int, now: float) -> bool:
        """Take a frame's bytes; False, and nothing is taken, while the bucket is empty."""
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        if self._tokens <= 0:
            return False
        self._tokens -= size
        return True

    @property
    def ready_at(self) -> float:
        """When there will be something in it, as things are."""
        return self._at if self._tokens > 0 else self._at + (1.0 - self._tokens) / self._rate


class Shaper:
    """One limit in one direction of one link, and the frames that wait for it."""

    def __init__(self, limit: Limit, now: float, *, bounded: bool) -> None:
        """`bounded`: drop what finds no room. Else whoever admits stops by itself while `waiting`."""
        self.limit = limit
        self.dropped = 0
        """Frames that found no room."""
        self._bucket = TokenBucket(limit, now)
        self._bound = limit.queue_bytes if bounded else 1 << 62
        self._queue: deque[bytes] = deque()
        self._bytes = 0

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return self._bytes

    @property
    def is_behind(self) -> bool:
        """Whether the queue is half full or more."""
        return self._bytes * 2 >= self._bound

    def admit(self, frames: Sequence[bytes]) -> int:
        """Take frames; how many of them found no room."""
        lost = 0
        for frame in frames:
            # An empty queue takes any frame, as large as it may be.
            if self._bytes and self._bytes + len(frame) > self._bound:
                lost += 1
            else:
                self._queue.append(frame)
                self._bytes += len(frame)
        self.dropped += lost
        return lost

    def due(self, now: float) -> list[bytes]:
        """The frames that may go, in order."""
        out: list[bytes] = []
        queue = self._queue
        while queue and self._bucket.take(len(queue[0]), now):
            frame = queue.popleft()
            self._bytes -= len(frame)
            out.append(frame)
        return out

    @property
    def next_due(self) -> float:
        """When `due` will have something, infinity when nothing waits."""
        return self._bucket.ready_at if self._queue else inf

    def clear(self) -> list[bytes]:
        """Let go of all that wait."""
        waiting = list(self._queue)
        self._queue.clear()
        self._bytes = 0
        return waiting


def largest_whole(limit: Limit) -> int:
    """Bytes of the largest frame that a limit lets pass in one piece: larger ones would hold up all others."""
    return min(MAX_FRAME, limit.burst_bytes)
