"""How much may be on its way to the guest, what of it counts as lost, and how long to wait for news of it.

Congestion control is NewReno with byte counting (RFC 5681, RFC 6582, RFC 3465), on SACK information where the guest sends
it (RFC 6675). The round-trip timer is RFC 6298.
"""

from __future__ import annotations

from typing import Final

from netstack.engine.tcp_buffers import Scoreboard

INITIAL_RTO: Final = 1.0
"""Seconds (RFC 6298 section 2.1)."""
MIN_RTO: Final = 0.2
"""Below the second RFC 6298 section 2.4 recommends, as in every kernel: the guest is microseconds away."""
MAX_RTO: Final = 60.0
DUPLICATE_THRESHOLD: Final = 3

# How lost segments are being repaired.
NONE: Final = 0
FAST: Final = 1
TIMEOUT: Final = 2


class RoundTrip:
    """The retransmission timeout, and the one segment whose acknowledgement is being timed (Karn: never a repeated one)."""

    __slots__ = ("_smoothed", "_variation", "timed_at", "timed_position", "timeout")

    def __init__(self) -> None:
        self.timeout = INITIAL_RTO
        """Seconds until what was sent counts as lost (RTO)."""
        self.timed_position = -1
        """The acknowledgement that ends the measurement; -1 when nothing is measured."""
        self.timed_at = 0.0
        self._smoothed = 0.0
        self._variation = 0.0

    def start(self, position: int, now: float) -> None:
        """Time the segment that ends at `position`, unless another is being timed."""
        if self.timed_position < 0:
            self.timed_position, self.timed_at = position, now

    def acknowledged(self, position: int, now: float) -> None:
        """Everything before `position` has arrived."""
        if 0 <= self.timed_position <= position:
            self.measured(now - self.timed_at)
            self.timed_position = -1

    def measured(self, sample: float) -> None:
        """Take a round-trip time in seconds into the average (RFC 6298 section 2)."""
        if self._smoothed == 0.0:
            self._smoothed, self._variation = sample, sample / 2
        else:
            self._variation += (abs(self._smoothed - sample) - self._variation) / 4
            self._smoothed += (sample - self._smoothed) / 8
        self.timeout = min(MAX_RTO, max(MIN_RTO, self._smoothed + 4 * self._variation))

    def cancel(self) -> None:
        """Something was sent again: what is being timed says nothing any more (RFC 6298 section 3)."""
        self.timed_position = -1

    def back_off(self) -> None:
        """RFC 6298 section 5.5."""
        self.timeout = min(MAX_RTO, 2 * self.timeout)
        self.timed_position = -1


class LossRecovery:
    """The congestion window and the repair of losses. `una` and `sent` are SND.UNA and SND.NXT of the connection."""

    __slots__ = (
        "_duplicate_acks", "_limit", "_marker", "_point", "_threshold", "mode", "mss", "repeated", "sack", "scoreboard",
        "was_limiting", "window",
    )  # fmt: skip

    def __init__(self, mss: int, *, sack: bool, limit: int) -> None:
        self.mss = mss
        self.sack = sack
        # RFC 6928: ten segments, but no more than 14,600 bytes unless two segments are more.
        self.window = min(10 * mss, max(2 * mss, 14600))
        """The congestion window, bytes."""
        self.was_limiting = False
        """Whether the last output stopped at this window: only then it may grow (RFC 7661)."""
        self.mode = NONE
        self.repeated = 0
        """Everything lost below this position was sent again in this recovery (HighRxt)."""
        self.scoreboard = Scoreboard()
        self._limit = limit
        self._threshold = limit
        self._point = 0
        self._duplicate_acks = 0
        self._marker = 0

    def duplicate(self, una: int, sent: int) -> bool:
        """An acknowledgement came that acknowledges nothing new. Returns whether recovery begins."""
        self._duplicate_acks += 1
        return self._consider(una, sent)

    def advanced(self, count: int, una: int, sent: int) -> bool:
        """`count` bytes up to `una` were acknowledged. Returns whether recovery begins."""
        if self.scoreboard.sacked:
            self.scoreboard.acknowledge(una)
        if self.mode == NONE:
            self._duplicate_acks = 0
            if self.was_limiting:
                self._grow(count)
            return self.scoreboard.sacked > 0 and self._consider(una, sent)
        if una >= self._point:
            self._leave(sent - una)
            return False
        if self.mode == TIMEOUT:
            self._grow(count)
        elif not self.sack:
            # A partial acknowledgement (RFC 6582 section 3.2 step 4): the next gap begins at SND.UNA.
            self._duplicate_acks = max(0, self._duplicate_acks - count // self.mss)
            self.repeated = una
        self.repeated = max(self.repeated, una)
        return False

    def _grow(self, count: int) -> None:
        """RFC 5681 section 3.1, counting bytes (RFC 3465)."""
        window = self.window
        window += count if window < self._threshold else max(1, self.mss * count // window)
        self.window = min(window, self._limit)

    def _consider(self, una: int, sent: int) -> bool:
        """Enter recovery when enough was reported beyond a gap (RFC 6675 section 5, RFC 5681 section 3.2)."""
        if self.mode != NONE:
            return False
        if self.sack:
            lost = self.scoreboard.loss_edge(self.mss) > una
        else:
            lost = self._duplicate_acks >= DUPLICATE_THRESHOLD
        # RFC 6582 section 3.2 step 2: not again for losses of the window that was just repaired.
        if not lost or una < self._point:
            return False
        self._halve(sent - una)
        self.mode = FAST
        self.window = self._threshold
        self._begin(una, sent)
        return True

    def timed_out(self, una: int, sent: int, *, first: bool, distrust: bool) -> None:
        """The retransmission timer ran out: everything not acknowledged is lost (RFC 5681 section 3.1, RFC 6675 section 5.1).

        `distrust`: forget what was acknowledged selectively, a guest may throw it away (RFC 2018 section 8).
        """
        if first:
            self._halve(sent - una)
        self.mode = TIMEOUT
        self.window = self.mss
        self._duplicate_acks = 0
        if distrust:
            self.scoreboard.clear()
        self._begin(una, sent)

    def _begin(self, una: int, sent: int) -> None:
        self._point = sent
        self.repeated = una
        self._marker = 0

    def _halve(self, flight: int) -> None:
        self._threshold = max(flight // 2, 2 * self.mss)

    def _leave(self, flight: int) -> None:
        if self.mode == FAST:
            # RFC 6582 section 3.2 step 3: leave without a burst.
            burst = max(flight + self.mss, 10 * self.mss)
            self.window = min(self._threshold, burst)
        self.mode = NONE
        self._duplicate_acks = 0

    def in_flight(self, una: int, sent: int) -> int:
        """Bytes believed to be on their way: the pipe of RFC 6675 section 4."""
        outstanding = sent - una
        board = self.scoreboard
        if self.mode == NONE or (self.mode == FAST and not self.sack):
            arrived = board.sacked if self.sack else self._duplicate_acks * self.mss
            return max(0, outstanding - arrived)
        edge = self._lost_below(una)
        return board.missing(una, min(self.repeated, edge)) + board.missing(max(edge, una), sent)

    def _lost_below(self, una: int) -> int:
        """The position below which whatever is not acknowledged counts as lost."""
        if self.mode == TIMEOUT:
            return self._point
        if self.sack:
            return max(self.scoreboard.loss_edge(self.mss), una)
        return min(una + self.mss, self._point)

    def next_lost(self, una: int) -> tuple[int, int] | None:
        """The next stretch (left, right) to send again, None when all that counts as lost was (RFC 6675 section 4, NextSeg)."""
        if self._marker and self.scoreboard.highest > self._marker + DUPLICATE_THRESHOLD * self.mss:
            # Bytes first sent after SND.UNA was repeated have arrived, and it has not: it was lost again, start over.
            self.repeated = una
            self._marker = 0
        return self.scoreboard.hole_at(max(self.repeated, una), self._lost_below(una))

    def may_repeat(self, allowance: int, una: int) -> bool:
        """Whether a lost segment may go out: the first of a recovery always, others as the window allows."""
        return allowance >= self.mss or self.repeated == una

    def repeated_to(self, left: int, right: int, una: int, sent: int) -> None:
        """[left, right) was sent again while SND.NXT was `sent`."""
        self.repeated = right
        if left == una and self.sack:
            self._marker = sent

    def restart_after_idle(self) -> None:
        """RFC 5681 section 4.1: after an idle time the path must be tried again."""
        self.window = min(self.window, max(10 * self.mss, 2 * self.mss))
