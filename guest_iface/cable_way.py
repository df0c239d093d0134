"""One direction of a cable: a limit and impairments in a row, each frame through the first impairment that is for it.

From the guest the limit comes first, to the guest last: a limit is the guest's own line, impairments are what lies
beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from guest_iface.impair import Impairer
from guest_iface.link import MAX_FRAME, MIN_FRAME, LinkCounters
from guest_iface.segments import cut_frame
from guest_iface.shaping import QUEUE_FULL, Shaper, largest_whole

Rule = tuple[Callable[[bytes], bool] | None, Impairer]
"""Which frames (None: all), and what happens to them."""


class Way:
    """Frames in, and out when their time has come. Pure: the time comes in."""

    def __init__(
        self,
        *,
        shaper: Shaper | None,
        rules: Sequence[Rule],
        to_guest: bool,
        mtu: int,
        counters: LinkCounters,
        plan: object = None,
    ) -> None:
        """`mtu` is the link's, bytes. What the shaper drops is counted in `counters`.

        `plan` is for whoever made it: what it was made of.
        """
        self.plan = plan
        self.shaper = shaper
        self.rules = tuple(rules)
        self._to_guest = to_guest
        self._mtu = mtu
        self._counters = counters
        self._ready: list[bytes] = []
        """Frames that are due and were not asked for yet."""
        # Chances are about packets on a wire: a card would cut large frames before them.
        self._largest = MIN_FRAME + mtu if rules else MAX_FRAME
        if shaper is not None:
            self._largest = min(self._largest, max(MIN_FRAME + mtu, largest_whole(shaper.limit)))

    def admit(self, frames: Sequence[bytes], now: float) -> None:
        """Take frames that came now."""
        if any(len(frame) > self._largest for frame in frames):
            frames = [piece for frame in frames for piece in cut_frame(frame, self._largest - MIN_FRAME)]
        if self._to_guest or self.shaper is None:
            self._impair(frames, now)
        else:
            self.shaper.admit(frames)

    def _impair(self, frames: Sequence[bytes], now: float) -> None:
        if not self.rules:
            self._leave(frames)
            return
        for frame in frames:
            for matches, impairer in self.rules:
                if matches is None or matches(frame):
                    impairer.admit(frame, now)
                    break
            else:
                self._leave([frame])

    def _leave(self, frames: Sequence[bytes]) -> None:
        """The impairments are over."""
        if self._to_guest and self.shaper is not None:
            lost = self.shaper.admit(frames)
            if lost:
                self._counters.drop_sent(QUEUE_FULL, lost)
        else:
            self._ready += frames

    def due(self, now: float, most: int = 1 << 30) -> list[bytes]:
        """At most so many frames whose time has come, in order."""
        if not self._to_guest and self.shaper is not None:
            self._impair(self.shaper.due(now), now)
        for _, impairer in self.rules:
            self._leave(impairer.due(now))
        if self._to_guest and self.shaper is not None:
            self._ready += self.shaper.due(now)
        out, self._ready = self._ready[:most], self._ready[most:]
        return out

    @property
    def next_due(self) -> float:
        """When `due` will have something, infinity when nothing waits."""
        if self._ready:
            return -inf
        due = inf if self.shaper is None else self.shaper.next_due
        for _, impairer in self.rules:
            due = min(due, impairer.next_due)
        return due

    @property
    def is_full(self) -> bool:
        """Whether whoever admits had better wait: frames wait for the limit."""
        return self.shaper is not None and bool(self.shaper.waiting)

    @property
    def is_behind(self) -> bool:
        """Whether whoever can hold data back should."""
        return self.shaper is not None and self.shaper.is_behind

    def clear(self) -> list[bytes]:
        """Let go of all that wait, in the order they would have gone."""
        out, self._ready = self._ready, []
        if self.shaper is not None and self._to_guest:
            out += self.shaper.clear()
        for _, impairer in self.rules:
            out += impairer.clear()
        if self.shaper is not None and not self._to_guest:
            out += self.shaper.clear()
        return out
