"""How much may be on its way to the guest, what of it counts as lost, and how long to wait for news of it.

Congestion control is NewReno with byte counting (RFC 5681, RFC 6582, RFC 3465). Where the guest sends SACK, losses are
repaired by it (RFC 6675); what has been overtaken counts as lost, a repetition too, and a path that reorders is given
time (RFC 8985, by the order of transmission instead of a clock for each segment). The round-trip timer is RFC 6298.
"""

from __future__ import annotations

from math import inf
from typing import Final

from netstack.engine.counters import LossTotals
from netstack.engine.tcp_buffers import Scoreboard

INITIAL_RTO: Final = 1.0
"""Seconds (RFC 6298 section 2.1)."""
MIN_VARIATION: Final = 0.2
"""Seconds the timeout is above the round-trip time at least, as in Linux: so long a guest may delay its word."""
MAX_RTO: Final = 60.0
MAX_QUEUEING: Final = 0.002
"""Seconds that data may wait on its way beyond twice the time the way takes; then the congestion window is too large.
The guest's link loses nothing where we wait for it, so no loss would ever stop a window; what it holds then is cold in
the processor's caches, and in everybody's way: after 8 flows with 4 MiB each a ninth waited for a second. A request
beside 1 and 8 downloads waits for 3 and 5 ms; for 10 and 14 where windows only stop growing, at 4 ms.
"""
LEAST_LASTS: Final = 10.0
"""Seconds after which the shortest round-trip time may be another one: paths change."""
MIN_PROBE_TIMEOUT: Final = 0.01
"""Seconds before the end of what was sent is probed, at least."""
MIN_PATIENCE: Final = 0.001
"""Seconds to wait for what has been overtaken, at least."""
DUPLICATE_THRESHOLD: Final = 3
PATIENT_WINDOW: Final = 128 * 1024
"""Bytes of a congestion window that is never too large, however long what is sent waits; four segments, if they are
more.
"""
MAX_PATIENCE: Final = 4
"""Quarters of a round-trip time (RFC 8985 section 6.2.4: the reordering window is one round trip at most)."""
_EXAMINED: Final = 16
"""The oldest repetitions looked at for each acknowledgement: a guest must not make us walk over thousands."""
_NO_REPEATS: Final[list[tuple[int, int]]] = []  # of all that have repeated nothing; never changed, only replaced

# How lost segments are being repaired.
NONE: Final = 0
FAST: Final = 1
TIMEOUT: Final = 2


class RoundTrip:
    """The retransmission timeout, and the one segment being timed (never a repeated one: Karn)."""

    __slots__ = (
        "_least", "_least_at", "_variation", "probe_timeout", "queueing", "smoothed", "timed_at", "timed_position",
        "timeout",
    )  # fmt: skip

    def __init__(self) -> None:
        self.timeout = INITIAL_RTO
        """Seconds until what was sent counts as lost (RTO)."""
        self.probe_timeout = INITIAL_RTO
        """Seconds until the end of what was sent is probed (RFC 8985 section 7.2)."""
        self.smoothed = 0.0
        """The smoothed round-trip time, seconds; 0 while nothing was measured."""
        self.timed_position = -1
        """The acknowledgement that ends the measurement; -1 when nothing is measured."""
        self.timed_at = 0.0
        self._variation = 0.0
        self.queueing = False
        """Whether what is sent waits somewhere on its way for longer than the way itself takes."""
        self._least = inf
        self._least_at = -inf

    def start(self, position: int, now: float) -> None:
        """Time the segment that ends at `position`, unless another is being timed."""
        if self.timed_position < 0:
            self.timed_position, self.timed_at = position, now

    def acknowledged(self, position: int, now: float) -> None:
        """Everything before `position` has arrived."""
        if 0 <= self.timed_position <= position:
            sample = now - self.timed_at
            if sample <= self._least or now - self._least_at > LEAST_LASTS:
                self._least, self._least_at = sample, now
            self.queueing = sample > 2 * self._least + MAX_QUEUEING
            self.measured(sample)
            self.timed_position = -1

    def measured(self, sample: float) -> None:
        """Take a round-trip time in seconds into the average (RFC 6298 section 2)."""
        if self.smoothed == 0.0:
            self.smoothed, self._variation = sample, sample / 2
        else:
            self._variation += (abs(self.smoothed - sample) - self._variation) / 4
            self.smoothed += (sample - self.smoothed) / 8
        self.timeout = min(MAX_RTO, self.smoothed + max(MIN_VARIATION, 4 * self._variation))
        self.probe_timeout = max(MIN_PROBE_TIMEOUT, 2 * self.smoothed)

    def cancel(self) -> None:
        """Something was sent again: what is being timed says nothing any more (RFC 6298 section 3)."""
        self.timed_position = -1

    def back_off(self) -> None:
        """RFC 6298 section 5.5."""
        self.timeout = min(MAX_RTO, 2 * self.timeout)
        self.timed_position = -1


def initial_window(mss: int) -> int:
    """RFC 6928: ten segments, but no more than 14,600 bytes unless two segments are more."""
    return min(10 * mss, max(2 * mss, 14600))


class LossRecovery(LossTotals):
    """The congestion window and the repair of losses. `una` and `sent` are SND.UNA and SND.NXT of the connection."""

    __slots__ = (
        "_again", "_duplicate_acks", "_evidence", "_first", "_limit", "_newest_arrived", "_patience_raised_at",
        "_point", "_recent_repeats", "_repeats", "_serial", "_threshold", "lost_edge", "mode", "mss", "patience",
        "repeated", "sack", "scoreboard", "was_limiting", "window",
    )  # fmt: skip

    def __init__(self, mss: int, *, sack: bool, limit: int) -> None:
        super().__init__()
        self.mss = mss
        self.sack = sack
        self.window = initial_window(mss)
        """The congestion window, bytes."""
        self.was_limiting = False
        """Whether the last output stopped at this window: only then it may grow (RFC 7661)."""
        self.mode = NONE
        self.repeated = 0
        """Everything lost below this position was sent again in this recovery (HighRxt)."""
        self.lost_edge = 0
        """Everything below this position that is not acknowledged counts as lost."""
        self.patience = 0
        """Quarters of a round-trip time that an overtaken segment is waited for; 0 while the path keeps the order."""
        self.scoreboard = Scoreboard()
        self._limit = limit
        self._threshold = limit
        self._point = 0
        self._first = False
        self._duplicate_acks = 0
        # Repetitions on their way, oldest first: (left, right, SND.NXT when it was sent, serial number).
        self._repeats: list[tuple[int, int, int, int]] = []
        self._recent_repeats = _NO_REPEATS
        self._serial = 0
        self._newest_arrived = 0
        self._again: list[tuple[int, int]] = []
        self._evidence = (0, 0)
        self._patience_raised_at = 0

    def begin(self, mss: int, *, sack: bool, limit: int) -> None:
        """The guest's SYN has come, and says what these are; nothing but a SYN has been sent yet."""
        self.mss = mss
        self.sack = sack
        self.window = initial_window(mss)
        self._limit = self._threshold = limit

    # -- news from the guest ------------------------------------------------------------------------------------------

    @property
    def patient_window(self) -> int:
        """Bytes of a window that is not too large however long what is sent waits."""
        return max(PATIENT_WINDOW, 4 * self.mss)

    def ease(self) -> None:
        """What was sent has waited on its way: an eighth less from now on. Once a round trip."""
        self.window = min(self.window, max(self.patient_window, self.window - self.window // 8))

    def acknowledged(self, count: int, sacked_before: int, una: int, sent: int) -> None:
        """`count` bytes up to `una` were acknowledged; the scoreboard held `sacked_before` before this segment."""
        board = self.scoreboard
        if board.sacked:
            board.acknowledge(una)
        if self.mode == NONE:
            self._duplicate_acks = 0
            if self.was_limiting:
                self._grow(count)
            return
        if una >= self._point:
            self._leave(sent - una)
            return
        if self.mode == TIMEOUT:
            # After a timeout an acknowledgement may cover a lot that had arrived before (RFC 3465 section 2.3).
            self._grow(count + board.sacked - sacked_before if self.sack else min(count, self.mss))
        elif not self.sack:
            # A partial acknowledgement (RFC 6582 section 3.2 step 4): the next gap begins at SND.UNA.
            self._duplicate_acks = max(0, self._duplicate_acks + 1 - count // self.mss)
            self.repeated = una
            self.lost_edge = min(una + self.mss, self._point)
            self._first = True
        self.repeated = max(self.repeated, una)

    def duplicate(self) -> None:
        """An acknowledgement came that says again what the one before said."""
        self._duplicate_acks += 1

    def came_twice(self, left: int, una: int, sent: int) -> None:
        """The guest got the segment at `left` twice (RFC 2883). If we repeated it, it was only late: wait longer."""
        self.duplicates += 1
        if una > self._patience_raised_at and any(start <= left < end for start, end in self._recent_repeats):
            self._patience_raised_at = sent
            self.patience = min(self.patience + 1, MAX_PATIENCE)

    def judge(self, una: int, sent: int) -> None:
        """Decide what of the outstanding bytes is lost, now that the guest has told something new."""
        if not self.sack:
            # RFC 6582 section 3.2 step 2: not again for losses of the window that was just repaired.
            if self.mode == NONE and self._duplicate_acks >= DUPLICATE_THRESHOLD and una > self._point:
                self._enter(una, sent, min(una + self.mss, sent))
            return
        if self.mode == NONE:
            board = self.scoreboard
            if not board.sacked or self.patience:
                return
            # RFC 6675 section 5, with what follows from it in RFC 8985 section 6.2: all that was overtaken is lost.
            if self._duplicate_acks >= DUPLICATE_THRESHOLD or board.loss_edge(self.mss) > una:
                self._enter(una, sent, board.highest)
            return
        self._strike_off(una)
        if not self.patience:
            self._give_up_overtaken(una, self.scoreboard.highest, self._newest_arrived)

    def undecided(self, una: int) -> bool:
        """Whether something was overtaken that does not count as lost yet."""
        highest = self.scoreboard.highest
        if self.scoreboard.hole_at(max(una, self.lost_edge), highest) is not None:
            return True
        examined = self._repeats[:_EXAMINED]
        return any(marker < highest or serial < self._newest_arrived for _, _, marker, serial in examined)

    def note_evidence(self) -> None:
        """Remember what has arrived by now, for `run_out_of_patience`."""
        self._evidence = (self.scoreboard.highest, self._newest_arrived)

    def run_out_of_patience(self, una: int, sent: int) -> None:
        """What had been overtaken at `note_evidence` and is still missing is lost."""
        highest, newest = self._evidence
        if self.scoreboard.hole_at(una, highest) is None:
            return
        if self.mode == NONE:
            self._enter(una, sent, highest)
        else:
            self._strike_off(una)
            self._give_up_overtaken(una, highest, newest)

    def _strike_off(self, una: int) -> None:
        """Forget repetitions that have arrived, and remember which was the newest."""
        missing = []
        for entry in self._repeats[:_EXAMINED]:
            left, right, _, serial = entry
            if self.scoreboard.hole_at(max(left, una), right) is None:
                self._newest_arrived = max(self._newest_arrived, serial)
            else:
                missing.append(entry)
        self._repeats[:_EXAMINED] = missing

    def _give_up_overtaken(self, una: int, highest: int, newest: int) -> None:
        """Count as lost what was sent before what has arrived: the byte below `highest`, the repetition `newest`."""
        self.lost_edge = max(self.lost_edge, highest)
        kept = []
        for entry in self._repeats[:_EXAMINED]:
            left, right, marker, serial = entry
            if marker < highest or serial < newest:
                self._again.append((max(left, una), right))
            else:
                kept.append(entry)
        self._repeats[:_EXAMINED] = kept

    def timed_out(self, una: int, sent: int, *, first: bool) -> None:
        """The retransmission timer ran out: all that is not acknowledged is lost (RFC 5681 section 3.1).

        `first`: for the first time since SND.UNA moved. RFC 6675 section 5.1 lets the scoreboard live on.
        """
        if first:
            self._halve(sent - una)
        if not first or self.scoreboard.hole_at(una, una + 1) is None:
            # The guest may throw away what it acknowledged selectively (RFC 2018 section 8).
            self.scoreboard.clear()
        self._begin(TIMEOUT, una, sent, sent)
        self.window = self.mss

    def _enter(self, una: int, sent: int, lost_edge: int) -> None:
        self._halve(sent - una)
        self._begin(FAST, una, sent, lost_edge)
        self.window = self._threshold

    def _begin(self, mode: int, una: int, sent: int, lost_edge: int) -> None:
        self.mode = mode
        self.repeated = una
        self.lost_edge = lost_edge
        self._point = sent
        self._first = True
        if mode == TIMEOUT:
            self.timeouts += 1
            self._duplicate_acks = 0
        elif self.sack:
            self.sack_starts += 1
        else:
            self.fast_starts += 1
        self._repeats.clear()
        self._again.clear()

    def _halve(self, flight: int) -> None:
        self._threshold = max(flight // 2, 2 * self.mss)

    def _leave(self, flight: int) -> None:
        if self.mode == FAST:
            # RFC 6582 section 3.2 step 3: leave without a burst.
            self.window = min(self._threshold, max(flight + self.mss, initial_window(self.mss)))
        self.mode = NONE
        self.lost_edge = 0
        self._duplicate_acks = 0
        self._repeats.clear()
        self._again.clear()

    def _grow(self, count: int) -> None:
        """RFC 5681 section 3.1, counting bytes (RFC 3465)."""
        window = self.window
        window += count if window < self._threshold else max(1, self.mss * count // window)
        self.window = min(window, self._limit)

    # -- what to send -------------------------------------------------------------------------------------------------

    def in_flight(self, una: int, sent: int) -> int:
        """Bytes believed to be on their way: the pipe of RFC 6675 section 4."""
        board = self.scoreboard
        if self.mode == NONE:
            if self.sack:
                return sent - una - board.sacked
            # Limited transmit (RFC 3042): each of the first two duplicates lets one new segment out.
            return max(0, sent - una - min(self._duplicate_acks, DUPLICATE_THRESHOLD - 1) * self.mss)
        if self.mode == FAST and not self.sack:
            return max(0, sent - una - self._duplicate_acks * self.mss)
        edge = min(max(self.lost_edge, una), sent)
        flight = board.missing(una, min(self.repeated, edge)) + board.missing(edge, sent)
        for left, right in self._again:
            flight -= board.missing(max(left, una), right)
        return max(0, flight)

    def next_lost(self, una: int) -> tuple[int, int] | None:
        """The next stretch (left, right) to send again; None when all that counts as lost was (RFC 6675's NextSeg)."""
        while self._again:
            left, right = self._again[0]
            hole = self.scoreboard.hole_at(max(left, una), right)
            if hole is not None:
                return hole
            del self._again[0]
        return self.scoreboard.hole_at(max(self.repeated, una), self.lost_edge)

    def may_repeat(self, allowance: int) -> bool:
        """Whether a lost segment may go out: the first of a recovery always, others as the window allows."""
        return allowance >= self.mss or self._first

    def repeated_to(self, left: int, right: int, sent: int) -> None:
        """[left, right), which `next_lost` gave or a part of it, was sent again while SND.NXT was `sent`."""
        if self._again and right <= self._again[0][1]:
            self._again[0] = (right, self._again[0][1])
        else:
            self.repeated = right
        self._first = False
        if self.mode == FAST:
            self.fast_repeats += 1
        else:
            self.timeout_repeats += 1
        if self.sack:
            self._serial += 1
            self._repeats.append((left, right, sent, self._serial))
            self._recent_repeats = [*self._recent_repeats[1 - 2 * _EXAMINED :], (left, right)]

    def restart_after_idle(self) -> None:
        """RFC 5681 section 4.1: after an idle time the path must be tried again."""
        self.window = min(self.window, initial_window(self.mss))
