"""The sending half of a TCP connection: what is on its way to the guest, what is sent next, and when it is repeated."""

from __future__ import annotations

from math import inf
from typing import Final

from netstack.engine.tcp_buffers import SendBuffer
from netstack.engine.tcp_limits import MIN_BUFFER
from netstack.engine.tcp_receiver import Receiver
from netstack.engine.tcp_recovery import INITIAL_RTO, MAX_RTO, MIN_PATIENCE, LossRecovery, RoundTrip
from netstack.engine.tcp_timestamps import Timestamps
from netstack.wire.segment_trains import MIN_SEGMENTS
from netstack.wire.tcp import ACK, FIN, PSH, Frame, SegmentWriter

DEFAULT_MSS: Final = 536
"""Without an MSS option (RFC 9293 section 3.7.1)."""
MAX_RETRANSMISSIONS: Final = 10
"""Then the guest counts as gone: more than 100 s (RFC 9293 section 3.8.3, R2)."""
LONG_TRAIN: Final = 32
"""Segments in one piece of the buffer that are worth a pass of their own."""
LARGEST_IN_TRAIN: Final = 16 * 1024
"""Bytes of a segment up to which making many in one pass costs less: what is larger is not copied at all."""
LARGE_READ: Final = 8
"""Segments that are worth a read of the host, however much more could be held."""
MAX_PROBES: Final = 10
"""Window probes without any answer before the guest counts as gone."""

# What the timer is running for: one thing at a time (RFC 8985 section 8).
IDLE: Final = 0
RETRANSMIT: Final = 1
PROBE_TAIL: Final = 2
LOSE_PATIENCE: Final = 3
PERSIST: Final = 4

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000


class Sender:
    """SND.UNA, SND.NXT and SND.WND, the bytes between and behind them, and when to send which."""

    __slots__ = (
        "_expired", "_persisted", "_probed", "_sent_at", "_tail_probed", "_timer", "buffer", "fin_sent", "finishing",
        "largest", "max_window", "next", "recovery", "retransmissions", "round_trip", "shift", "timer_at", "una",
        "unanswered", "window", "window_from", "writer",
    )  # fmt: skip

    def __init__(self, writer: SegmentWriter, isn: int) -> None:
        self.writer = writer
        self.una = isn
        self.next = isn
        self.window = 0
        """Bytes beyond `una` the guest takes."""
        self.max_window = 0
        """The largest `window` so far."""
        self.window_from = 0
        """Position of the guest's segment that told it last (SND.WL1)."""
        self.shift = 0
        self.buffer = SendBuffer(isn + 1)
        self.finishing = False
        """FIN goes out behind the last byte of the buffer."""
        self.fin_sent = False
        self.recovery = LossRecovery(DEFAULT_MSS, sack=False, limit=DEFAULT_MSS)
        self.largest = DEFAULT_MSS
        """Bytes of new text in one frame: a segment's, or a multiple of it where the link cuts them itself."""
        self.round_trip = RoundTrip()
        self.timer_at = inf
        self.retransmissions = 0
        self.unanswered = 0
        """Repetitions and probes sent since the guest was last heard."""
        self._timer = IDLE
        self._persisted = 0
        self._expired = IDLE
        self._probed = -1
        self._tail_probed = False
        self._sent_at = 0.0

    @property
    def fin_acknowledged(self) -> bool:
        """Whether the guest has everything, the FIN too."""
        return self.una > self.buffer.end

    @property
    def has_everything_acknowledged(self) -> bool:
        """Whether the guest has all bytes that were written."""
        return self.buffer.end == self.buffer.start

    def room(self, most: int) -> int:
        """Bytes that may be written now; `most` bounds what is held. Grows with what the guest takes."""
        return max(0, self._limit(most) - (self.buffer.end - self.buffer.start))

    def readable(self, most: int) -> int:
        """The same for reading a host, where few large reads cost less than many small: nothing while there is less
        than a quarter of all that may be held, or LARGE_READ segments.
        """
        limit, mss = self._limit(most), self.recovery.mss
        room = limit - (self.buffer.end - self.buffer.start)
        return room if room >= max(mss, min(limit // 4, LARGE_READ * mss)) else 0

    def _limit(self, most: int) -> int:
        """What may be held: the smaller of congestion and the guest's window is on its way, and as much again waits,
        MIN_BUFFER or two segments at most.
        """
        useful, mss = min(self.recovery.window, self.window), self.recovery.mss
        useful += min(useful, max(MIN_BUFFER, 2 * mss))
        return max(MIN_BUFFER, 2 * mss, min(useful, most))

    def stop(self) -> None:
        """The connection is over: forget the bytes."""
        self.buffer.clear()
        self._timer, self.timer_at = IDLE, inf

    # -- opening ------------------------------------------------------------------------------------------------------

    def syn_sent(self, now: float, *, repeated: bool) -> None:
        """A SYN went out: it takes one position."""
        self.next = self.una + 1
        if repeated:
            self.round_trip.cancel()
        else:
            self.round_trip.start(self.next, now)
        self._start(RETRANSMIT, now + self.round_trip.timeout)

    def syn_acknowledged(self, now: float) -> None:
        """The guest has our SYN."""
        self.una = self.next
        self.round_trip.acknowledged(self.next, now)
        if self.retransmissions:
            # A SYN was lost: begin with a cautious timer (RFC 6298 section 5.7) and one segment (RFC 5681 section 3.1).
            self.round_trip.timeout = 3 * INITIAL_RTO
            self.recovery.window = self.recovery.mss
        self.retransmissions = 0
        self._sent_at = now
        self._start(IDLE, inf)

    # -- acknowledgements ---------------------------------------------------------------------------------------------

    def offered(self, window: int) -> None:
        """The guest takes `window` bytes beyond `una` (already scaled)."""
        if window > self.window:
            self._persisted = 0
        self.window = window
        self.max_window = max(self.max_window, window)

    def probe_taken(self, count: int) -> bool:
        """Whether an acknowledgement of `count` bytes is for the byte of a window probe; then it counts as sent."""
        if self.una + count != self._probed or self._probed != self.next + 1:
            return False
        self.next = self._probed
        return True

    def acknowledged(self, count: int, now: float, *, sacked_before: int = 0) -> None:
        """The guest has `count` more bytes (at least one); the scoreboard held `sacked_before` before this segment."""
        recovery = self.recovery
        self.una = una = self.una + count
        self.retransmissions = 0
        self._persisted = 0
        self._tail_probed = False
        trip = self.round_trip
        if 0 <= trip.timed_position <= una:
            trip.acknowledged(una, now)
            if trip.queueing:
                recovery.ease()
        if trip.queueing and recovery.window >= recovery.patient_window:
            recovery.was_limiting = False  # more on its way would only wait there
        recovery.acknowledged(count, sacked_before, una, self.next)
        buffer = self.buffer
        buffer.acknowledge(una if una < buffer.end else buffer.end)
        if una == self.next:
            self._start(IDLE, inf)
        elif recovery.scoreboard.sacked or recovery.mode:
            self._judge(now, restart=True)
        else:
            self._start_repair_timer(now)

    def selected(self, blocks: tuple[tuple[int, int], ...], acknowledgement: int) -> int:
        """Take SACK blocks of a segment that acknowledges up to `acknowledgement`; returns how many bytes are news."""
        recovery, una = self.recovery, self.una
        if not recovery.sack:
            return 0
        ranges = [tuple(una + ((edge - una + _HALF) & _MASK) - _HALF for edge in block) for block in blocks]
        news = 0
        for index, (start, end) in enumerate(ranges):
            if not start < end <= self.next:
                continue  # nonsense: empty, or beyond what we sent
            if not index and (
                end <= acknowledgement or (len(ranges) > 1 and ranges[1][0] <= start < end <= ranges[1][1])
            ):
                # Below what is acknowledged, or inside the second block: bytes that came twice (RFC 2883 section 4).
                recovery.came_twice(start, una, self.next)
            elif start >= acknowledgement:
                news += recovery.scoreboard.add(start, end)
        return news

    def acknowledged_nothing(self, news: int, now: float, *, duplicate: bool) -> None:
        """An acknowledgement of nothing new; `duplicate`: it says what the one before said (RFC 5681 section 2)."""
        if self.una == self.next:
            return
        # With SACK only what tells something new counts (RFC 6675 section 2).
        if news or (duplicate and not self.recovery.sack):
            self.recovery.duplicate()
            self._tail_probed = False
            self._judge(now, restart=self._timer == PROBE_TAIL)

    def _judge(self, now: float, *, restart: bool) -> None:
        recovery = self.recovery
        recovery.judge(self.una, self.next)
        if recovery.undecided(self.una):
            if self._timer != LOSE_PATIENCE:
                self._have_patience(now)
        elif restart or self._timer == LOSE_PATIENCE:
            self._start_repair_timer(now)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _start(self, timer: int, at: float) -> None:
        self._timer, self.timer_at = timer, at

    def _start_repair_timer(self, now: float) -> None:
        """Something is on its way: how long until its end is probed, or all of it is lost?"""
        recovery, trip = self.recovery, self.round_trip
        if (
            recovery.sack
            and not recovery.mode
            and not self._tail_probed
            # The guest may delay its word on a single segment for longer than a timeout takes (RFC 8985 section 7.2).
            and self.next - self.una > recovery.mss
            and trip.probe_timeout < trip.timeout
        ):
            self._timer, self.timer_at = PROBE_TAIL, now + trip.probe_timeout
        else:
            self._timer, self.timer_at = RETRANSMIT, now + trip.timeout

    def _have_patience(self, now: float) -> None:
        """Something was overtaken: it may only be late (RFC 8985 section 6.2)."""
        self.recovery.note_evidence()
        trip = self.round_trip
        round_trip = trip.smoothed or trip.timeout / 2
        patience = max(MIN_PATIENCE, max(1, self.recovery.patience) * round_trip / 4)
        self._start(LOSE_PATIENCE, now + patience)

    def expired(self, now: float) -> bool:
        """`timer_at` has come; `emit` does what follows from it. Returns whether the guest may still be there."""
        timer, trip = self._timer, self.round_trip
        if timer == LOSE_PATIENCE:
            self.recovery.run_out_of_patience(self.una, self.next)
            if self.recovery.undecided(self.una):
                self._have_patience(now)
            else:
                self._start(RETRANSMIT, now + trip.timeout)
        elif timer == PROBE_TAIL:
            self._expired = timer
            self._start(RETRANSMIT, now + trip.timeout)
        elif timer == PERSIST:
            if self.unanswered >= MAX_PROBES:
                return False
            self._expired = timer
            self._start(IDLE, inf)
        else:
            self.retransmissions += 1
            self.unanswered += 1
            # A guest that closes its window over what was sent is there while it answers (RFC 9293 section 3.8.6.1).
            if (self.retransmissions if self.window else self.unanswered) > MAX_RETRANSMISSIONS:
                return False
            trip.back_off()
            self.recovery.timed_out(self.una, self.next, first=self.retransmissions == 1)
            self._start(RETRANSMIT, now + trip.timeout)
        return True

    # -- what is sent -------------------------------------------------------------------------------------------------

    def emit(self, frames: list[Frame], room: int, receiver: Receiver, stamps: Timestamps, now: float) -> bool:
        """Append repetitions, new data and FIN, as the windows allow; returns whether some had to wait for `room`."""
        una, position, recovery, buffer = self.una, self.next, self.recovery, self.buffer
        end, expired = buffer.end, self._expired
        if position >= end and (self.fin_sent or not self.finishing) and not recovery.mode and not expired:
            return False
        self._expired = IDLE
        mss, largest, edge = recovery.mss, self.largest, una + self.window
        if una == position and now - self._sent_at > self.round_trip.timeout:
            recovery.restart_after_idle()
        allowance = recovery.window - recovery.in_flight(una, position)
        start = len(frames)
        last = start + room
        options = stamps.option(now)
        acknowledgement = receiver.buffer.next & _MASK
        offered = receiver.buffer.edge
        window = receiver.buffer.advertise()
        emit, gather = self.writer.frame, self.writer.gathered
        waiting = closed = False
        while recovery.mode and recovery.may_repeat(allowance):
            lost = recovery.next_lost(una)
            if lost is None:
                break
            if len(frames) >= last:
                waiting = True
                break
            left, right = lost[0], min(lost[0] + mss, lost[1])
            flags, payload = self._again(left, right)
            frames.append(emit(left & _MASK, acknowledgement, flags, window, options, payload))
            recovery.repeated_to(left, right, position)
            allowance -= right - left
            if left == una and self._timer == RETRANSMIT:
                self.timer_at = now + self.round_trip.timeout
        if expired == PROBE_TAIL:
            # RFC 8985 section 7.3: one new segment if there is one, else the last one again.
            self._tail_probed = True
            if position < min(end, edge):
                allowance = max(allowance, mss)
            elif position > una:
                left = max(una, position - mss)
                recovery.tail_probes += 1
                flags, payload = self._again(left, position)
                frames.append(emit(left & _MASK, acknowledgement, flags, window, options, payload))
        recovery.was_limiting = False
        while position < end:
            if largest == mss and mss <= LARGEST_IN_TRAIN:
                # Whole segments that nothing stands in the way of.
                count = min(
                    (min(end - position - self.finishing, allowance, edge - position)) // mss, last - len(frames)
                )
                if count >= MIN_SEGMENTS:
                    text, offset = buffer.run_at(position)
                    within = (len(text) - offset) // mss
                    if within < min(count, LONG_TRAIN):  # it pays to put the pieces together
                        count = min(count, LONG_TRAIN)
                        text, offset = buffer.slice(position, count * mss), 0
                    else:
                        count = min(count, within)
                    taken = count * mss
                    frames += self.writer.train(
                        position & _MASK, acknowledgement, window, options, text, offset, count, mss,
                        push=position + taken == end,
                    )  # fmt: skip
                    position += taken
                    allowance -= taken
                    continue
            length = end - position
            if length > mss:
                # Whole segments only, as many as one frame holds and both windows allow, but one of them always.
                length = min(length, largest, max(mss, allowance), max(mss, edge - position))
                if length < end - position:
                    length -= length % mss
            if position + length > edge:
                length = edge - position
                # Sender's silly window avoidance (RFC 9293 section 3.8.6.2.1): a sliver only if it is half the largest
                # window, or if nothing else has helped for the time of a probe.
                if length <= 0 or (length < min(mss, self.max_window // 2) and expired != PERSIST):
                    closed = True
                    break
            if length > allowance:
                recovery.was_limiting = True
                if position > una:
                    break
            if len(frames) >= last:
                waiting = True
                break
            position += length
            flags = ACK
            if position == end:
                flags = ACK | PSH
                if self.finishing and position < edge:
                    flags = ACK | PSH | FIN
                    self.fin_sent = True
            if length > LARGEST_IN_TRAIN:
                pieces = buffer.pieces(position - length, length)
                frames.append(gather(position - length & _MASK, acknowledgement, flags, window, options, pieces))
            else:
                payload = buffer.slice(position - length, length)
                frames.append(emit(position - length & _MASK, acknowledgement, flags, window, options, payload))
            allowance -= length
        if self.fin_sent:
            position = end + 1
        elif self.finishing and position == end:
            if position < edge:
                frames.append(emit(position & _MASK, acknowledgement, ACK | FIN, window, options))
                self.fin_sent = True
                position += 1
            else:
                closed = True
        if position > self.next:
            self._went_out(position, now)
        elif closed and una == position:
            self._persist(frames, acknowledgement, window, options, expired, now)
        if len(frames) == start:
            receiver.buffer.edge = offered  # nobody heard of a larger window
        return waiting

    def _again(self, left: int, right: int) -> tuple[int, bytes]:
        """Flags and text of a segment that is sent once more. Only FIN lies beyond the last byte."""
        self.round_trip.cancel()
        end = self.buffer.end
        payload = self.buffer.slice(left, min(right, end) - left) if left < end else b""
        return (ACK | PSH | FIN if right > end else ACK | PSH), payload

    def _went_out(self, position: int, now: float) -> None:
        """Everything before `position` has been sent, some of it for the first time."""
        if not self.recovery.mode:
            self.round_trip.start(position, now)
        was_empty = self.una == self.next
        self.next = position
        self._sent_at = now
        if was_empty or self._timer in (IDLE, PROBE_TAIL):  # the tail has moved (RFC 8985 section 7.2)
            self._start_repair_timer(now)

    def _persist(
        self, frames: list[Frame], acknowledgement: int, window: int, options: bytes, expired: int, now: float
    ) -> None:
        """Nothing is on its way that could bring the news of an opened window: ask (RFC 9293 section 3.8.6.1)."""
        timeout = self.round_trip.timeout
        if expired == PERSIST:
            self._persisted += 1
            self.unanswered += 1
            position, payload = self.next - 1, b""
            if self.next < self.buffer.end:
                position, payload = self.next, self.buffer.slice(self.next, 1)
                self._probed = self.next + 1
            frames.append(self.writer.frame(position & _MASK, acknowledgement, ACK, window, options, payload))
            timeout = min(MAX_RTO, timeout * 2 ** min(self._persisted, 10))
        elif self._timer == PERSIST:
            return
        self._start(PERSIST, now + timeout)
