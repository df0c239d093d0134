"""Frames that are held at the link until somebody lets them go: breakpoints of a debugging session.

A breakpoint is a predicate on frames. What it matches, in either direction, waits in order; everything else passes.
What waits is bounded: frames beyond are dropped and counted, as by a link whose queue is full. Without a breakpoint
and without anybody who watches, the wrapper costs a call a batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import trio

from guest_iface.link import BATCH, Frame, Link, all_whole
from guest_iface.wrapped_link import WrappedLink

FROM_GUEST: Final = "from-guest"
TO_GUEST: Final = "to-guest"

MAX_BREAKPOINTS: Final = 16
MAX_HELD: Final = 1024
"""Frames that one breakpoint holds."""
OVERFLOW: Final = "breakpoint full"
DROPPED: Final = "dropped at a breakpoint"

Watcher = Callable[[str, str, bytes], None]
"""Told of each frame that passes: the link's name, the direction, the frame."""


class TooManyError(Exception):
    """There are MAX_BREAKPOINTS already."""


class Held(NamedTuple):
    """A frame that waits. `number` counts within its breakpoint, from 1; `time` is seconds since 1970."""

    number: int
    time: float
    direction: str
    link: BreakpointLink
    frame: bytes


class Breakpoint:
    """One predicate, and what it holds."""

    def __init__(self, number: int, text: str, matches: Callable[[bytes], bool]) -> None:
        self.number = number
        self.text = text
        """The filter, as it was written."""
        self.matches = matches
        self.held: deque[Held] = deque()
        self.hits = 0
        """Frames that it matched."""
        self.dropped = 0
        """Of those the ones that went no further."""

    def hold(self, link: BreakpointLink, direction: str, frame: bytes) -> bool:
        """Keep a frame; False when there is no room, and it is lost."""
        self.hits += 1
        if len(self.held) >= MAX_HELD:
            self.dropped += 1
            return False
        self.held.append(Held(self.hits, time.time(), direction, link, frame))
        return True

    def step(self, frames: int = 1) -> int:
        """Let the oldest frames go on; how many there were."""
        count = min(frames, len(self.held))
        for _ in range(count):
            each = self.held.popleft()
            each.link.let_go(each.direction, each.frame)
        return count

    def drop(self, frames: int | None = None) -> int:
        """Drop the oldest frames, all without a number; how many there were."""
        count = len(self.held) if frames is None else min(frames, len(self.held))
        for _ in range(count):
            each = self.held.popleft()
            each.link.count_drop(each.direction, DROPPED)
        self.dropped += count
        return count


class Breakpoints:
    """One gateway's. `wrap` each link; breakpoints come and go while it runs."""

    def __init__(self) -> None:
        self._all: dict[int, Breakpoint] = {}
        self._watchers: list[Watcher] = []
        self._next = 1
        self.active = False
        """Whether frames have to be looked at."""
        self.on_add: Callable[[], None] = lambda: None
        """Called when there is about to be one more."""

    def wrap(self, link: Link) -> BreakpointLink:
        """The same link, with breakpoints."""
        return BreakpointLink(link, self)

    def all(self) -> list[Breakpoint]:
        """Those there are, the oldest first."""
        return list(self._all.values())

    def get(self, number: int) -> Breakpoint | None:
        """The breakpoint of that number."""
        return self._all.get(number)

    def add(self, text: str, matches: Callable[[bytes], bool]) -> Breakpoint:
        """Hold what `matches` from now on. Raises TooManyError."""
        if len(self._all) >= MAX_BREAKPOINTS:
            raise TooManyError(f"there are {MAX_BREAKPOINTS} breakpoints already: release one first")
        self.on_add()
        made = self._all[self._next] = Breakpoint(self._next, text, matches)
        self._next += 1
        self._look()
        return made

    def remove(self, number: int) -> int:
        """Take a breakpoint away and let go what it holds; how many frames that were. Raises KeyError."""
        gone = self._all.pop(number)
        self._look()
        return gone.step(len(gone.held))

    def watch(self, watcher: Watcher) -> None:
        """Tell it of every frame that passes from now on."""
        self._watchers.append(watcher)
        self._look()

    def unwatch(self, watcher: Watcher) -> None:
        """Tell it nothing any more."""
        self._watchers.remove(watcher)
        self._look()

    def _look(self) -> None:
        self.active = bool(self._all or self._watchers)

    def forget(self, link: BreakpointLink) -> None:
        """A link is gone, and so are the frames that waited at it."""
        for each in self._all.values():
            each.held = deque(held for held in each.held if held.link is not link)

    def pass_on(self, link: BreakpointLink, direction: str, frames: Sequence[bytes]) -> list[bytes]:
        """The frames that no breakpoint holds. The oldest breakpoint that matches has a frame."""
        passing = []
        for frame in frames:
            found = next((each for each in self._all.values() if each.matches(frame)), None)
            if found is None:
                passing.append(frame)
            elif not found.hold(link, direction, frame):
                link.count_drop(direction, OVERFLOW)
        self.tell(link, direction, passing)
        return passing

    def tell(self, link: BreakpointLink, direction: str, frames: Sequence[bytes]) -> None:
        """Frames pass."""
        for watcher in self._watchers:
            for frame in frames:
                watcher(link.name, direction, frame)


class BreakpointLink(WrappedLink):
    """A link at which frames may be held. All else is the link's own."""

    def __init__(self, link: Link, breakpoints: Breakpoints) -> None:
        super().__init__(link)
        self._breakpoints = breakpoints
        self._released: list[bytes] = []
        """Frames from the guest that were held and may go on."""
        self._reading = trio.CancelScope()

    async def receive_batch(self) -> list[bytes]:
        """See Link."""
        while True:
            if self._released:
                await trio.lowlevel.checkpoint()
                frames, self._released = self._released, []
                return frames
            if not self._breakpoints.active:
                frames = await self._link.receive_batch()
                if not self._breakpoints.active:
                    return frames
            else:
                frames = []
                # A frame that is let go wakes the reader, who waits for the guest otherwise.
                with trio.CancelScope() as self._reading:
                    frames = await self._link.receive_batch()
            frames = self._breakpoints.pass_on(self, FROM_GUEST, frames)
            if frames:
                return frames

    def receive_now(self, limit: int = BATCH) -> list[bytes]:
        """See Link."""
        return [] if self._breakpoints.active or self._released else self._link.receive_now(limit)

    def send_batch(self, frames: Sequence[Frame]) -> None:
        """See Link."""
        if self._breakpoints.active:
            frames = self._breakpoints.pass_on(self, TO_GUEST, all_whole(frames))
        if frames:
            self._link.send_batch(frames)

    def let_go(self, direction: str, frame: bytes) -> None:
        """A frame that was held goes on."""
        self._breakpoints.tell(self, direction, [frame])
        if direction == TO_GUEST:
            self._link.send_batch([frame])
        else:
            self._released.append(frame)
            self._reading.cancel()

    def count_drop(self, direction: str, reason: str) -> None:
        """A frame goes no further."""
        if direction == TO_GUEST:
            self.counters.drop_sent(reason)
        else:
            self.counters.drop_received(reason)

    def close(self) -> None:
        """See Link."""
        self._breakpoints.forget(self)
        super().close()
