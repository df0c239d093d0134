"""What one TCP conversation did, read out of its packets: the handshake, each direction's progress, losses, windows,
and where the time went.

Numbers are kept relative to the first one seen and unwrapped, so that a stream of any length is one line of integers.
What is decided here is only what the packets show; naming the cause is for `flow_causes`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple

from netstack.debug.seen_packets import Packet, Segment
from netstack.wire import tcp

CLIENT: Final = 0
"""The side that sent the SYN, or the first packet where none was captured."""
SERVER: Final = 1

CONNECTING: Final = "connecting"
RECEIVER: Final = "receiver window"
UPSTREAM: Final = "upstream"
SENDER: Final = "sender"
LOSS: Final = "loss"
NETWORK: Final = "network"
IDLE: Final = "idle"
SHARES: Final = (CONNECTING, UPSTREAM, SENDER, RECEIVER, LOSS, NETWORK, IDLE)
"""What the time of a flow goes to: the dial; the server, or the client, with nothing to send; a window that is closed;
waiting for what was lost; bytes on their way; nobody wanting anything."""

REORDER_SECONDS: Final = 0.003
"""A hole that is filled sooner was reordered, later it was lost (Wireshark's rule of thumb)."""
CLOCK_SLACK: Final = 0.001
"""Seconds a sender may take between a window that opens and its next segment."""
RTT_SLACK: Final = 1.1
"""By how much a round trip may be longer than the least one seen."""
MAX_TIMED: Final = 10_000
"""Segments that are timed."""
MAX_PHASES: Final = 10_000
"""Losses and shut windows of one direction that are kept."""
MAX_MARKS: Final = 100_000
"""The last segments of a conversation that plots and diagrams show; the figures are of all."""
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000


class Mark(NamedTuple):
    """One packet's place in the conversation, for diagrams and plots. Numbers are relative, `edge` absolute to them.

    `side` sent it. `note`: empty, or what is special: retransmission, out of order, keep-alive, window probe,
    zero window, window update, duplicate ACK.
    """

    packet: Packet
    time: float
    side: int
    start: int
    end: int
    acknowledged: int
    edge: int
    sack: tuple[tuple[int, int], ...]
    note: str


class Half:
    """One direction: what one side sent, and what the other said about it."""

    def __init__(self) -> None:
        self.base: int | None = None
        """The number all others are relative to: of the SYN, or of the first segment."""
        self.high = 0
        """The end of what was sent."""
        self.acknowledged = 0
        self.edge = 0
        """How far the receiver lets the sender go; 0 until it has said."""
        self.window = -1
        """What the receiver offered last, bytes; -1 until it has."""
        self.least_window = -1
        self.most_window = 0
        self.scale = 0
        self.scale_known = False
        """A SYN was captured: what windows mean is known."""
        self.mss = 0
        """What this side said it can take in one segment."""
        self.largest = 536
        """The most text in one segment so far; RFC 9293 section 3.7.1 says 536 before anything is known."""
        self.segments = 0
        self.data_bytes = 0
        """Text, each byte once."""
        self.retransmissions = 0
        self.retransmitted_bytes = 0
        self.reordered = 0
        self.duplicate_acks = 0
        """Of the receiver, about this direction."""
        self.sacks = 0
        self.zero_windows: list[tuple[float, float]] = []
        """From when to when the receiver's window was shut."""
        self.probes = 0
        self.keepalives = 0
        self.largest_acknowledged = 0
        """The most text in one segment that the other side has acknowledged."""
        self.first_data = 0.0
        self.last_data = 0.0
        self.fin_at = 0.0
        self.fin_end = -1
        self.reset_at = 0.0
        self.rtts: list[float] = []
        """Seconds from a segment to its acknowledgement, at the place of the capture; the first MAX_TIMED."""
        self.least_rtt = 0.0
        self.recovering_to = -1
        self.loss_phases: list[tuple[float, float]] = []
        self.stuck = (0, 0)
        """Of the segment retransmitted last: its text's length, and how often it was in a row."""
        self._stuck_at = -1
        self._holes: list[tuple[int, int, float]] = []
        self._timed: dict[int, float] = {}
        self._sent: dict[int, tuple[int, int]] = {}
        """By the end of what is not acknowledged: bytes of text, and the packet's number."""
        self.repeats = 0
        """The packet that the last retransmission repeats, where it is known."""
        self.resent = (-1, 0)
        """The end of the last retransmission that is not acknowledged, and its packet's number."""
        self._shut_since = 0.0
        self._edges: deque[tuple[float, int]] = deque()
        """Since when the sender may go how far, as the capture saw it said."""

    @property
    def outstanding(self) -> int:
        """Bytes (and SYN, FIN) sent and not acknowledged."""
        return max(0, self.high - self.acknowledged)

    @property
    def started(self) -> bool:
        """Whether anything of this side was seen."""
        return self.base is not None

    @property
    def shut(self) -> bool:
        """Whether the receiver's window is shut now."""
        return self.window == 0

    @property
    def full(self) -> bool:
        """Whether the window has no room for one more whole segment."""
        return self.scale_known and self.window >= 0 and self.edge - self.high < self.largest

    def relative(self, sequence: int) -> int:
        """A sequence number, as an offset to the first and unwrapped near what was seen last."""
        if self.base is None:
            self.base = sequence
        offset = (sequence - self.base) & _MASK
        near = offset + (self.high & ~_MASK)
        if near - self.high > _HALF:
            near -= _MASK + 1
        elif self.high - near > _HALF:
            near += _MASK + 1
        return near

    def sent(self, segment: Segment, now: float, number: int) -> tuple[int, int, str]:
        """This side sent a segment, the capture's packet `number`: where it begins and ends, and what is special."""
        syn, fin = bool(segment.flags & tcp.SYN), bool(segment.flags & tcp.FIN)
        start = self.relative(segment.sequence)
        end = start + segment.length + syn + fin
        if segment.flags & tcp.RST:
            self.reset_at = self.reset_at or now
            return start, start, ""
        self.segments += 1
        if fin:
            self.fin_end = end
            self.fin_at = self.fin_at or now
        if end == start:
            return start, end, "keep-alive" if self._is_keepalive(start, segment.length) else ""
        if segment.length:
            self.first_data = self.first_data or now
            self.last_data = now
        note = self._special(start, end, segment.length, now)
        self.repeats = self._sent.get(end, (0, 0))[1] if note == "retransmission" else 0
        if note == "retransmission":
            self.resent = (end, number)
        if not note or note == "out of order":
            self.data_bytes += max(0, segment.length)
        if end > self.high:
            if start > self.high and self.segments > 1:
                self._holes.append((self.high, start, now))
            self.high = end
            if not note and len(self._timed) < MAX_TIMED:
                self._timed[end] = now
        self._sent[end] = (segment.length, number)
        self.largest = max(self.largest, segment.length)
        return start, end, note

    def _is_keepalive(self, start: int, length: int) -> bool:
        """RFC 9293 section 3.8.4: a segment before what is acknowledged, with at most one byte."""
        if length <= 1 and start == self.acknowledged - 1 and self.high == self.acknowledged > 1:
            self.keepalives += 1
            return True
        return False

    def _special(self, start: int, end: int, length: int, now: float) -> str:
        if self._is_keepalive(start, length):
            return "keep-alive"
        if self.shut and length <= 1 and start <= self.acknowledged:
            self.probes += 1
            return "window probe"
        if start >= self.high:
            # One byte beyond a shut window asks whether it is still shut (RFC 9293 section 3.8.6.1).
            if self.shut and length == 1:
                self.probes += 1
                return "window probe"
            return ""
        for index, (hole_start, hole_end, since) in enumerate(self._holes):
            if hole_start <= start < hole_end:
                rest = [(hole_start, start, since), (end, hole_end, since)]
                self._holes[index : index + 1] = [each for each in rest if each[0] < each[1]]
                if now - since < max(REORDER_SECONDS, (self.rtts[-1] / 2 if self.rtts else 0.0)):
                    self.reordered += 1
                    return "out of order"
                self.data_bytes += length
                break
        self._retransmitted(start, length, now)
        return "retransmission"

    def _retransmitted(self, start: int, length: int, now: float) -> None:
        self.retransmissions += 1
        self.retransmitted_bytes += length
        # The same bytes again, perhaps cut smaller or joined: Karn's rule, no timing of what they cover.
        self._timed.clear()
        repeated = self.stuck[1] + 1 if start == self._stuck_at else 1
        self._stuck_at = start
        self.stuck = (length, repeated)
        if self.recovering_to < 0 and len(self.loss_phases) < MAX_PHASES:
            self.loss_phases.append((now, now))
        self.recovering_to = max(self.recovering_to, self.high)

    def heard(self, segment: Segment, acknowledged: int, window: int, *, pure: bool, now: float) -> str:
        """The other side said how far it has this direction: `acknowledged` relative, `window` in bytes.

        `pure`: it carried nothing else. What is special about it.
        """
        note = ""
        if segment.options.sack:
            self.sacks += 1
        if acknowledged > self.acknowledged:
            if 0 <= self.resent[0] <= acknowledged:
                note = f"acknowledges the retransmission #{self.resent[1]}"
                self.resent = (-1, 0)
            self._progress(acknowledged, now)
        elif acknowledged == self.acknowledged and pure and self.outstanding and window == self.window:
            self.duplicate_acks += 1
            note = "duplicate ACK"
        elif acknowledged == self.acknowledged and pure and window > self.window >= 0:
            note = "window update"
        if window == 0 and self.window != 0:
            self._shut_since = now
        if window == 0:
            note = "zero window"
        elif self.window == 0 and len(self.zero_windows) < MAX_PHASES:
            self.zero_windows.append((self._shut_since, now))
        if not segment.flags & tcp.SYN:  # the window in a SYN has no scale
            self.least_window = window if self.least_window < 0 else min(self.least_window, window)
            self.most_window = max(self.most_window, window)
        self.window = window
        if acknowledged + window > self.edge:
            self.edge = acknowledged + window
            self._edges.append((now, self.edge))
        return note

    def waited_for_window(self, end: int, now: float, rtt: float) -> bool:
        """Whether a segment to `end` that is seen now could not have come earlier: what let it go was said one round
        trip to the sender ago. To be asked with times that grow.
        """
        if not self.scale_known:
            return False
        moment = now - rtt * RTT_SLACK - CLOCK_SLACK
        while len(self._edges) > 1 and self._edges[1][0] <= moment:
            self._edges.popleft()
        return bool(self._edges) and self._edges[0][0] <= moment and self._edges[0][1] < end

    def _progress(self, acknowledged: int, now: float) -> None:
        self.acknowledged = acknowledged
        since = -1.0
        while self._timed and (end := next(iter(self._timed))) <= acknowledged:
            since = self._timed.pop(end)
        if since >= 0 and len(self.rtts) < MAX_TIMED:
            self.rtts.append(now - since)
            self.least_rtt = min(self.least_rtt or inf, now - since)
        while self._sent and (end := next(iter(self._sent))) <= acknowledged:
            self.largest_acknowledged = max(self.largest_acknowledged, self._sent.pop(end)[0])
        if self._stuck_at >= 0 and acknowledged > self._stuck_at:
            self._stuck_at, self.stuck = -1, (0, 0)
        if 0 <= self.recovering_to <= acknowledged:
            self.recovering_to = -1
            self.loss_phases[-1] = (self.loss_phases[-1][0], now)

    def finish(self, now: float) -> None:
        """The capture ends here."""
        if self.window == 0:
            self.zero_windows.append((self._shut_since, now))
        if self.recovering_to >= 0:
            self.loss_phases[-1] = (self.loss_phases[-1][0], now)


class Timeline:
    """One conversation's packets, taken in order, and what they amount to."""

    def __init__(self, keep: int = MAX_MARKS) -> None:
        """`keep`: how many of the last packets are kept as marks."""
        self.halves = (Half(), Half())
        self.marks: deque[Mark] = deque(maxlen=keep)
        self.shares: dict[str, float] = dict.fromkeys(SHARES, 0.0)
        """Seconds, by what they went to."""
        self.syn_at = self.syn_ack_at = self.established_at = 0.0
        self.established_by = 0
        """The number of the packet that completed the handshake."""
        self.closed_by = 0
        """Of the packet with which it was over."""
        self.syns = 0
        self.syn_acks = 0
        self.saw_syn = False
        self.refused_at = 0.0
        """A RST in answer to the SYN."""
        self.begin = self.end = 0.0
        self.reset_by = -1
        self.stray_reset = False
        """The RST was what a host says to a segment of a connection it knows nothing of."""
        self.idle_before_reset = 0.0
        self._packets = 0
        self._last: tuple[int, Segment] | None = None
        self._last_at = 0.0
        self._heard_at = [0.0, 0.0]

    @property
    def client(self) -> Half:
        """What the client sent."""
        return self.halves[CLIENT]

    @property
    def server(self) -> Half:
        """What the server sent."""
        return self.halves[SERVER]

    @property
    def closed(self) -> bool:
        """Whether both sides have finished, or one has reset."""
        return self.reset_by >= 0 or all(half.fin_at and half.acknowledged >= half.fin_end for half in self.halves)

    def take(self, packet: Packet, side: int) -> None:
        """The next packet, sent by `side`."""
        segment = packet.segment
        if segment is None:
            return
        now = packet.time
        if not self._packets:
            self.begin = now
        was_closed = self.closed
        half, other = self.halves[side], self.halves[1 - side]
        before = _State(half, other, self.established_at > 0, half.recovering_to >= 0 or other.recovering_to >= 0)
        start, end, note = half.sent(segment, now, packet.number)
        acknowledged = 0
        if segment.flags & tcp.ACK and other.started:
            acknowledged = other.relative(segment.acknowledgement)
            if not segment.flags & tcp.RST:
                window = segment.window << (0 if segment.flags & tcp.SYN else half.scale)
                pure = end == start
                said = other.heard(segment, acknowledged, window, pure=pure, now=now)
                note = note or said
        self._handshake(segment, side, packet)
        if segment.flags & tcp.RST and self.reset_by < 0:
            self._reset(segment, side, now)
        if self._packets and not was_closed:
            limited = segment.length > 0 and half.waited_for_window(end, now, other.least_rtt)
            word = before.goes_to(side, segment, note, limited=limited)
            spent = max(0.0, now - self._last_at)
            if word in (UPSTREAM, SENDER) and self._last is not None and self._last[0] != side:
                # What it heard last had to reach it, and this to come back, before it can have kept anybody waiting.
                travelled = min(spent, other.least_rtt * RTT_SLACK)
                self.shares[NETWORK] += travelled
                spent -= travelled
            self.shares[word] += spent
        if not was_closed:
            self.end = now
            self.closed_by = packet.number if self.closed else 0
        self._packets += 1
        self._last, self._last_at = (side, segment), now
        self._heard_at[side] = now
        sack = tuple((other.relative(left), other.relative(right)) for left, right in segment.options.sack)
        self.marks.append(Mark(packet, now, side, start, end, acknowledged, other.edge, sack, note))

    def finish(self) -> None:
        """There are no more packets."""
        for half in self.halves:
            half.finish(self._last_at)

    def _handshake(self, segment: Segment, side: int, packet: Packet) -> None:
        half, now = self.halves[side], packet.time
        if segment.flags & tcp.SYN:
            options = segment.options
            half.mss = options.mss or 536
            half.scale = options.window_scale or 0
            if segment.flags & tcp.ACK:
                self.syn_acks += 1
                self.syn_ack_at = self.syn_ack_at or now
                if options.window_scale is None:  # RFC 7323 section 2.2: both have to offer it
                    self.client.scale = 0
                for each in self.halves:
                    each.scale_known = self.saw_syn
            else:
                self.syns += 1
                self.saw_syn = True
                self.syn_at = self.syn_at or now
        elif self.syn_ack_at and not self.established_at and side == CLIENT and segment.flags & tcp.ACK:
            if not segment.flags & tcp.RST:
                self.established_at, self.established_by = now, packet.number
        elif not self.saw_syn and not self.established_at:
            self.established_at = now

    def _reset(self, segment: Segment, side: int, now: float) -> None:
        self.reset_by = side
        if side == SERVER and self.saw_syn and not self.syn_ack_at:
            self.refused_at = now
            return
        if self._last is None or self._last[0] == side:
            return
        asked = self._last[1]
        # RFC 9293 section 3.10.7.1: no connection, so the reset has the number the segment acknowledged, and no ACK.
        stray = not segment.flags & tcp.ACK and segment.sequence == asked.acknowledgement
        self.stray_reset = stray
        heard = self._heard_at[side]
        self.idle_before_reset = self._last_at - heard if heard else 0.0


class _State:
    """How things stood before a packet: who waited for whom."""

    def __init__(self, half: Half, other: Half, established: bool, recovering: bool) -> None:
        self._established = established
        self._recovering = recovering
        self._unacknowledged = half.outstanding > 0 or other.outstanding > 0
        self._shut = half.shut or other.shut
        self._full = any(each.full and each.data_bytes for each in (half, other))

    def goes_to(self, side: int, segment: Segment, note: str, *, limited: bool) -> str:
        """What the time up to this packet of `side` went to; `limited`: it had waited for the window."""
        if not self._established:
            return CONNECTING
        if note == "keep-alive":
            return IDLE
        if self._shut:
            return RECEIVER
        if note == "retransmission" or self._recovering:
            return LOSS
        if self._full or limited:
            return RECEIVER
        if self._unacknowledged:
            return NETWORK
        if segment.length:
            return UPSTREAM if side == SERVER else SENDER
        return IDLE


def median(values: Sequence[float]) -> float:
    """The middle one, 0 without any."""
    return sorted(values)[len(values) // 2] if values else 0.0
