"""One TCP connection facing the guest: RFC 9293, with the time and every random number passed in.

What it does with a segment is in `receive`, what it says in `output`, what time does to it in `advance`. It knows no
address: a SegmentWriter turns what it says into frames. Positions are sequence numbers that never wrap; they are taken
modulo 2**32 where they meet the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from netstack.engine import tcp_states as st
from netstack.engine.tcp_buffers import ReceiveBuffer, SendBuffer
from netstack.engine.tcp_recovery import INITIAL_RTO, MAX_RTO, LossRecovery, RoundTrip
from netstack.wire import tcp
from netstack.wire.tcp import ACK, FIN, PSH, RST, SYN, SegmentWriter

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000

WINDOW_SHIFT: Final = 7
"""Our window scale: windows up to 8 MiB."""
MIN_MSS: Final = 48
"""A guest that asks for smaller segments gets these (Linux's tcp_min_snd_mss, after CVE-2019-11479)."""
DEFAULT_MSS: Final = 536
"""Without an MSS option (RFC 9293 section 3.7.1)."""
DELAYED_ACK: Final = 0.04
"""Seconds; RFC 9293 section 3.8.6.3 allows up to 0.5."""
TIME_WAIT_SECONDS: Final = 60.0
"""Twice a segment lifetime of 30 s, as Linux and gVisor have it."""
MAX_RETRANSMISSIONS: Final = 10
"""Then the guest counts as gone: more than 100 s (RFC 9293 section 3.8.3, R2)."""
MAX_SYN_RETRANSMISSIONS: Final = 6
MAX_PROBES: Final = 10
"""Window probes without any answer before the guest counts as gone."""
CHALLENGE_INTERVAL: Final = 0.1
"""Seconds between answers to segments that do not fit the connection (RFC 5961 section 10)."""
PAWS_IDLE: Final = 24 * 86400.0
"""Seconds after which a kept time stamp says nothing any more (RFC 7323 section 5.5)."""
MIN_BUFFER: Final = 64 * 1024
"""What a connection may buffer in each direction before it has shown that it needs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpLimits:
    """What bounds every connection. Sizes in bytes, times in seconds."""

    mss: int = 1460
    """The largest segment we take: link MTU less 40."""
    max_receive_window: int = 1 << 20
    """Never more than the link can queue, else frames are lost before they are read."""
    max_send_buffer: int = 4 << 20
    max_congestion_window: int = 4 << 20
    keepalive_idle: float = inf
    """Idle time before the guest is asked whether it is still there; off by default (RFC 9293 section 3.8.4)."""
    keepalive_interval: float = 75.0
    keepalive_probes: int = 9


class TcpConnection:
    """The guest's TCP peer.

    `receive`, `write`, `finish`, `abort` and `advance` change state; what cannot wait for the end of the batch (resets,
    SYNs, duplicate acknowledgements, probes) they append to `urgent`. `output` emits the rest, once a batch. `deadline`
    is when `advance` wants to be called next.
    """

    __slots__ = (
        "_challenge_at", "_delayed_ack_at", "_duplicate_block", "_fin_sent", "_finishing", "_guest_shift", "_last_ack_sent",
        "_last_heard", "_limits", "_max_window", "_must_ack", "_persisting", "_probes", "_recovery", "_retransmissions",
        "_round_trip", "_sack", "_scaled", "_timer_at", "_timestamps", "_ts_offset", "_ts_recent", "_ts_recent_at",
        "_unacknowledged", "_unanswered", "_urgent", "_writer", "deadline", "receive_buffer", "send_buffer", "send_next",
        "send_una", "send_window", "signals", "state",
    )  # fmt: skip

    def __init__(self, writer: SegmentWriter, limits: TcpLimits, isn: int, urgent: list[bytes]) -> None:
        """`isn`: this connection's initial sequence number (RFC 6528), 0..2**32-1; it also offsets the time stamps."""
        self._writer = writer
        self._limits = limits
        self._urgent = urgent
        self.state = st.CLOSED
        self.signals = 0
        self.deadline = inf
        # Send side: SND.UNA, SND.NXT, SND.WND.
        self.send_una = isn
        self.send_next = isn
        self.send_window = 0
        self.send_buffer = SendBuffer(isn + 1)
        self._max_window = 0
        self._guest_shift = 0
        self._finishing = False
        self._fin_sent = False
        self._recovery = LossRecovery(DEFAULT_MSS, sack=False, limit=limits.max_congestion_window)
        # Receive side.
        self.receive_buffer = ReceiveBuffer(0, 0, 0, 0, limits.mss)
        self._must_ack = False
        self._unacknowledged = 0
        self._last_ack_sent = 0
        self._duplicate_block: tuple[int, int] | None = None
        # Options.
        self._sack = True
        self._scaled = True
        self._timestamps = True
        self._ts_offset = isn
        self._ts_recent = 0
        self._ts_recent_at = 0.0
        # Timers: one for retransmission, persist, keep-alive and TIME-WAIT, which exclude each other.
        self._round_trip = RoundTrip()
        self._timer_at = inf
        self._delayed_ack_at = inf
        self._retransmissions = 0
        self._persisting = False
        self._probes = 0
        self._unanswered = 0
        self._last_heard = 0.0
        self._challenge_at = 0.0

    # -- opening ---------------------------------------------------------------------------------------------------

    def syn_came(self, sequence: int, window: int, options: tcp.TcpOptions, now: float) -> None:
        """The guest's SYN: keep what it offers and wait in LISTEN for `accept` or `abort`."""
        self.state = st.LISTEN
        self._take_syn(sequence, window, options, now)

    def _take_syn(self, sequence: int, window: int, options: tcp.TcpOptions, now: float) -> None:
        limits = self._limits
        mss = max(MIN_MSS, min(options.mss or DEFAULT_MSS, limits.mss))
        self._sack = options.sack_permitted
        self._timestamps = options.timestamps is not None
        if options.timestamps is not None:
            self._ts_recent, self._ts_recent_at = options.timestamps[0], now
            mss -= 12  # RFC 6691: the MSS does not count options, a segment has to
        # RFC 7323 section 2.2: scaling is on only if both sides send the option; the window of a SYN is never scaled.
        self._scaled = options.window_scale is not None
        self._guest_shift = options.window_scale or 0
        largest = limits.max_receive_window if self._scaled else min(limits.max_receive_window, 0xFFFF)
        shift = WINDOW_SHIFT if self._scaled else 0
        self.receive_buffer = ReceiveBuffer(sequence + 1, min(MIN_BUFFER, largest), largest, shift, limits.mss)
        self._recovery = LossRecovery(mss, sack=self._sack, limit=limits.max_congestion_window)
        self.send_window = self._max_window = window
        self._last_heard = now

    def accept(self, now: float) -> None:
        """Answer the SYN that waits in LISTEN."""
        self._move(st.ACCEPT)
        self._send_syn(SYN | ACK, now)

    def connect(self, now: float) -> None:
        """Open towards the guest."""
        self._move(st.CONNECT)
        self._send_syn(SYN, now)

    def _send_syn(self, flags: int, now: float) -> None:
        options = tcp.build_syn_options(
            self._limits.mss,
            window_scale=WINDOW_SHIFT if self._scaled else None,
            sack_permitted=self._sack,
            timestamps=(self._clock(now), self._ts_recent) if self._timestamps else None,
        )
        buffer = self.receive_buffer
        window = min(buffer.limit or MIN_BUFFER, 0xFFFF)
        acknowledgement = 0
        if flags & ACK:
            acknowledgement = buffer.next & _MASK
            buffer.edge = buffer.next + window
            self._last_ack_sent = buffer.next
        self._urgent.append(self._writer.frame(self.send_una & _MASK, acknowledgement, flags, window, options))
        self.send_next = self.send_una + 1
        if not self._retransmissions:
            self._round_trip.start(self.send_next, now)
        self._timer_at = now + self._round_trip.timeout
        self._set_deadline()

    def _opened(self, event: int, now: float) -> None:
        self._move(event)
        self.signals |= st.OPENED
        self._round_trip.acknowledged(self.send_next, now)
        if self._retransmissions:
            # RFC 6298 section 5.7 and RFC 6928 section 2: a SYN was lost, start with a cautious timer and one segment.
            self._round_trip.timeout = 3 * INITIAL_RTO
            self._recovery.window = self._recovery.mss
        self._retransmissions = 0
        self._timer_at = inf

    # -- what the owner does -----------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes `write` takes now. Grows with what the guest takes: twice the smaller of congestion and guest's window."""
        if self._finishing or self.state not in st.CAN_SEND:
            return 0
        useful = 2 * min(self._recovery.window, self.send_window)
        limit = max(MIN_BUFFER, min(useful, self._limits.max_send_buffer))
        return max(0, limit - (self.send_buffer.end - self.send_buffer.start))

    def write(self, data: bytes) -> None:
        """Queue bytes for the guest. Ignored once the connection cannot send any more."""
        if not self._finishing and self.state in st.CAN_SEND:
            self.send_buffer.append(data)

    def finish(self) -> None:
        """Send FIN after what is queued."""
        self._finishing = True

    def abort(self) -> None:
        """Reset the connection (RFC 9293 section 3.10.5); in LISTEN, refuse it (section 3.10.7.1)."""
        state = self.state
        receive = self.receive_buffer.next & _MASK
        if state == st.LISTEN:
            self._urgent.append(self._writer.frame(0, receive, RST | ACK, 0))
        elif state not in (st.CLOSED, st.TIME_WAIT, st.SYN_SENT):
            self._urgent.append(self._writer.frame(self.send_next & _MASK, receive, RST | ACK, 0))
        self._end(0)

    # -- segments from the guest ---------------------------------------------------------------------------------------

    def receive(
        self, sequence: int, acknowledgement: int, flags: int, window: int, options: bytes, payload: bytes, now: float
    ) -> None:
        """Process a segment whose checksum is right. `window` as on the wire; `flags` the low six bits."""
        buffer = self.receive_buffer
        # Header prediction: the next bytes in order, or an acknowledgement, of a connection with nothing special going on.
        if (
            self.state == st.ESTABLISHED
            and flags & ~PSH == ACK
            and sequence == buffer.next & _MASK
            and len(payload) <= buffer.edge - buffer.next
            and not buffer.has_gaps
            and not self._recovery.mode
        ):
            acknowledged = (acknowledgement - self.send_una) & _MASK
            usual = acknowledged <= self.send_next - self.send_una
            if self._timestamps:
                stamps = tcp.parse_options(options).timestamps if len(options) == 12 else None
                if stamps is None or (stamps[0] - self._ts_recent) & _MASK >= _HALF:
                    usual = False
                elif usual and buffer.next == self._last_ack_sent:  # RFC 7323 section 4.3
                    self._ts_recent, self._ts_recent_at = stamps[0], now
            elif options:
                usual = False
            if usual:
                self._last_heard = now
                self._unanswered = 0
                if acknowledged or not payload or not self.send_window:
                    self._take_ack(acknowledged, window << self._guest_shift, bool(payload), now)
                else:
                    self.send_window = window << self._guest_shift
                if payload:
                    buffer.ready.append(payload)
                    buffer.next += len(payload)
                    self._unacknowledged += len(payload)
                return
        if self.state == st.SYN_SENT:
            self._receive_syn_sent(sequence, acknowledgement, flags, window, options, payload, now)
        elif self.state == st.LISTEN:
            if flags & RST and sequence == buffer.next & _MASK:
                self._end(st.PEER_RESET)
        elif self.state != st.CLOSED:
            self._receive_general(sequence, acknowledgement, flags, window, options, payload, now)
            self._set_deadline()

    def _receive_general(
        self, sequence: int, acknowledgement: int, flags: int, window: int, options: bytes, payload: bytes, now: float
    ) -> None:
        """RFC 9293 section 3.10.7.4, in its order."""
        buffer = self.receive_buffer
        parsed = tcp.parse_options(options) if options else tcp.NO_OPTIONS
        position = buffer.next + ((sequence - buffer.next + _HALF) & _MASK) - _HALF
        length = len(payload) + (flags & FIN)
        if self._timestamps and not flags & RST and not self._passes_paws(parsed, now):
            return
        if self.state == st.SYN_RECEIVED and flags & SYN and position == buffer.next - 1:
            if not flags & ACK:
                self._repeat_syn_ack(now)
                return
            flags &= ~SYN  # the other half of a simultaneous open (figure 8): its SYN is known, its ACK is news
            position += 1
        # First, the sequence number.
        if not self._acceptable(position, length):
            self._answer_unacceptable(position, length, flags, now)
            return
        # Second, a reset: only at the exact position, else a challenge (RFC 5961 section 3.2).
        if flags & RST:
            if position == buffer.next:
                self._end(st.PEER_RESET)
            else:
                self._challenge(now)
            return
        # Fourth, a SYN in the window: a challenge (RFC 5961 section 4.2).
        if flags & SYN:
            self._challenge(now)
            return
        # Fifth, the acknowledgement.
        if not flags & ACK:
            return
        if parsed.timestamps is not None and position <= self._last_ack_sent:
            self._ts_recent, self._ts_recent_at = parsed.timestamps[0], now
        self._last_heard = now
        self._unanswered = 0
        acknowledged = ((acknowledgement - self.send_una + _HALF) & _MASK) - _HALF
        if self.state == st.SYN_RECEIVED:
            if acknowledged != 1:
                self._urgent.append(self._writer.frame(acknowledgement, 0, RST, 0))
                return
            self.send_una += 1
            acknowledged = 0
            self._opened(st.SYN_ACKED, now)
            self.send_window = self._max_window = window << self._guest_shift
        outstanding = self.send_next - self.send_una
        if self._probes and acknowledged == outstanding + 1 and self.send_next < self.send_buffer.end:
            self.send_next += 1  # the guest took the byte of a window probe: it counts as sent
            outstanding += 1
        # RFC 5961 section 5.2: an acknowledgement of what we never sent, or of ages ago, is answered and dropped.
        if acknowledged > outstanding or acknowledged < -self._max_window:
            self._challenge(now)
            return
        if acknowledged >= 0:
            self._take_sack(parsed.sack)
            if acknowledged and self._recovery.mode and parsed.timestamps is not None:
                # In recovery only the echoed time stamp tells which of several transmissions was acknowledged (RFC 7323 section 4.1).
                self._round_trip.measured(((self._clock(now) - parsed.timestamps[1]) & _MASK) / 1000)
            self._take_ack(acknowledged, window << self._guest_shift, bool(length), now)
        # Seventh, the text; eighth, FIN. Urgent data is data like any other (RFC 9293 section 3.8.5, RFC 6093).
        if length and self.state != st.CLOSED:
            self._take_text(position, payload, flags, now)

    def _passes_paws(self, options: tcp.TcpOptions, now: float) -> bool:
        """RFC 7323 section 5.3; section 3.2: without its time stamp a segment is dropped in silence."""
        if options.timestamps is None:
            return False
        if (options.timestamps[0] - self._ts_recent) & _MASK < _HALF or now - self._ts_recent_at > PAWS_IDLE:
            return True
        self._challenge(now)
        return False

    def _acceptable(self, position: int, length: int) -> bool:
        """The four cases of RFC 9293 section 3.10.7.4, with the right edge we have offered."""
        expected, edge = self.receive_buffer.next, self.receive_buffer.edge
        if length == 0 or edge == expected:
            return position == expected or expected <= position < edge
        return position < edge and position + length > expected

    def _answer_unacceptable(self, position: int, length: int, flags: int, now: float) -> None:
        if flags & RST:
            return
        if length and position + length <= self.receive_buffer.next:
            self._duplicate_block = (position, position + length)
            self._must_ack = True  # our acknowledgement was lost, or the guest repeats too early
        else:
            self._challenge(now)
        if self.state == st.TIME_WAIT and flags & FIN:
            self._timer_at = now + TIME_WAIT_SECONDS

    def _take_text(self, position: int, payload: bytes, flags: int, now: float) -> None:
        if self.state not in st.CAN_RECEIVE:
            # The guest had finished; whatever comes now is a repetition (a FIN again, say).
            self._must_ack = True
            if self.state == st.TIME_WAIT:
                self._timer_at = now + TIME_WAIT_SECONDS
            return
        buffer = self.receive_buffer
        end = position + len(payload)
        fin = bool(flags & FIN)
        if end > buffer.edge:  # what does not fit the window is cut off, and the FIN with it
            payload = payload[: max(0, buffer.edge - position)]
            self._must_ack = True
            fin = False
        if payload:
            had_gaps = buffer.has_gaps
            before = buffer.next
            if end <= before:
                self._duplicate_block = (position, end)
                self._must_ack = True
            elif not buffer.insert(max(position, before), payload[max(0, before - position) :]):
                # RFC 5681 section 4.2: out of order: at once, one for each; the sender counts them.
                self._send_ack(self._urgent, now)
            else:
                self._unacknowledged += buffer.next - before
                self._must_ack |= had_gaps
        if fin:
            self._must_ack = True
            if end == buffer.next:
                buffer.next += 1
                buffer.edge = max(buffer.edge, buffer.next)
                self.signals |= st.PEER_FINISHED
                self._move(st.FIN_CAME)
                if self.state == st.TIME_WAIT:
                    self._enter_time_wait(now)

    def _receive_syn_sent(
        self, sequence: int, acknowledgement: int, flags: int, window: int, options: bytes, payload: bytes, now: float
    ) -> None:
        """RFC 9293 section 3.10.7.3."""
        if flags & ACK and acknowledgement != self.send_next & _MASK:
            if not flags & RST:
                self._urgent.append(self._writer.frame(acknowledgement, 0, RST, 0))
            return
        if flags & RST:
            if flags & ACK:
                self._end(st.PEER_RESET)
            return
        if not flags & SYN:
            return
        self._take_syn(sequence, window, tcp.parse_options(options), now)
        if not flags & ACK:
            self._move(st.SYN_CAME)
            self._send_syn(SYN | ACK, now)
            return
        self.send_una = self.send_next
        buffer = self.receive_buffer
        buffer.edge = buffer.next + min(buffer.limit, 0xFFFF)
        self._opened(st.SYN_ACK_CAME, now)
        self._must_ack = True
        if payload or flags & FIN:
            self._take_text(sequence + 1, payload, flags, now)

    def _repeat_syn_ack(self, now: float) -> None:
        """The guest says SYN again: our SYN-ACK was lost."""
        if now >= self._challenge_at:
            self._challenge_at = now + CHALLENGE_INTERVAL
            self._round_trip.cancel()
            self._send_syn(SYN | ACK, now)

    # -- acknowledgements ------------------------------------------------------------------------------------------------

    def _take_sack(self, blocks: tuple[tuple[int, int], ...]) -> None:
        if not self._sack:
            return
        una = self.send_una
        for left, right in blocks:
            start = una + ((left - una + _HALF) & _MASK) - _HALF
            end = una + ((right - una + _HALF) & _MASK) - _HALF
            # A block below SND.UNA reports a duplicate (RFC 2883); one beyond SND.NXT is nonsense.
            if una <= start < end <= self.send_next:
                self._recovery.scoreboard.add(start, end)

    def _take_ack(self, acknowledged: int, window: int, has_text: bool, now: float) -> None:
        """An acceptable acknowledgement of `acknowledged` more bytes, and the guest's window (already scaled)."""
        recovery = self._recovery
        previous, self.send_window = self.send_window, window
        if window > self._max_window:
            self._max_window = window
        if window > previous:
            self._probes = 0
        if not acknowledged:
            # What makes a duplicate acknowledgement (RFC 5681 section 2); with SACK the scoreboard decides.
            outstanding = self.send_next > self.send_una
            if (
                outstanding
                and not has_text
                and (self._sack or window == previous)
                and recovery.duplicate(self.send_una, self.send_next)
            ):
                self._round_trip.cancel()
            return
        self._probes = 0
        self._retransmissions = 0
        self.send_una = una = self.send_una + acknowledged
        self._round_trip.acknowledged(una, now)
        buffer = self.send_buffer
        if recovery.advanced(acknowledged, una, self.send_next):
            self._round_trip.cancel()
        self.signals |= st.ROOM
        self._persisting = False
        self._timer_at = now + self._round_trip.timeout if una < self.send_next else inf
        if una <= buffer.end:
            buffer.acknowledge(una)
        else:
            buffer.acknowledge(buffer.end)
            self._fin_acknowledged(now)

    def _fin_acknowledged(self, now: float) -> None:
        if self.state in (st.FIN_WAIT_1, st.CLOSING, st.LAST_ACK):
            self._move(st.FIN_ACKED)
            if self.state == st.TIME_WAIT:
                self._enter_time_wait(now)
            elif self.state == st.CLOSED:
                self._end(st.ENDED)

    def _enter_time_wait(self, now: float) -> None:
        self.signals |= st.ENDED
        self.send_buffer.clear()
        self._timer_at = now + TIME_WAIT_SECONDS

    # -- what we send --------------------------------------------------------------------------------------------------

    def output(self, frames: list[bytes], room: int, now: float) -> bool:
        """Append the frames that are due, at most `room` of them with data. Returns whether data had to wait for room."""
        waiting = False
        if self.state in st.SYNCHRONIZED and (self.send_una < self.send_buffer.end or self._finishing):
            start = len(frames)
            waiting = self._send_data(frames, room, now)
            if len(frames) > start:
                self._ack_went_out()
        if self._must_ack:
            self._send_ack(frames, now)
        elif self._unacknowledged:
            # RFC 9293 section 3.8.6.3: for every second full segment at once, else within DELAYED_ACK.
            if self._unacknowledged >= 2 * self._limits.mss:
                self._send_ack(frames, now)
            elif self._delayed_ack_at == inf:
                self._delayed_ack_at = now + DELAYED_ACK
        elif self.state in st.CAN_RECEIVE and self.receive_buffer.window_opened():
            self._send_ack(frames, now)
        self._set_deadline()
        return waiting

    def _send_data(self, frames: list[bytes], room: int, now: float) -> bool:
        """Retransmissions, then new data, then FIN, as the windows allow. Returns whether some had to wait for room."""
        una, recovery, buffer = self.send_una, self._recovery, self.send_buffer
        mss, end = recovery.mss, buffer.end
        position = self.send_next
        if una == position and now - self._last_heard > self._round_trip.timeout:
            recovery.restart_after_idle()
        allowance = recovery.window - recovery.in_flight(una, position)
        last = len(frames) + room
        stamps = tcp.build_timestamps(self._clock(now), self._ts_recent) if self._timestamps else b""
        acknowledgement = self.receive_buffer.next & _MASK
        window = self.receive_buffer.advertise()
        emit = self._writer.frame
        while recovery.mode and recovery.may_repeat(allowance, una):
            lost = recovery.next_lost(una)
            if lost is None:
                break
            if len(frames) >= last:
                return True
            left, right = lost[0], min(lost[0] + mss, lost[1])
            payload = buffer.slice(left, min(right, end) - left) if left < end else b""
            flags = ACK | PSH | FIN if right > end else ACK | PSH  # only FIN lies beyond the last byte
            frames.append(emit(left & _MASK, acknowledgement, flags, window, stamps, payload))
            recovery.repeated_to(left, right, una, position)
            allowance -= right - left
            self._round_trip.cancel()
            if self._timer_at == inf:
                self._timer_at = now + self._round_trip.timeout
        recovery.was_limiting = False
        edge = una + self.send_window
        waiting = closed = False
        while position < end:
            length = min(mss, end - position)
            if position + length > edge:
                length = edge - position
                # Sender's silly window avoidance (RFC 9293 section 3.8.6.2.1): a sliver only if it is half the largest window.
                if length <= 0 or length < min(mss, self._max_window // 2):
                    closed = True
                    break
            if length > allowance:
                recovery.was_limiting = True
                if position > una:
                    break
            if len(frames) >= last:
                waiting = True
                break
            payload = buffer.slice(position, length)
            flags = ACK
            if position + length == end:
                flags = ACK | PSH
                if self._finishing:
                    flags = ACK | PSH | FIN
                    self._send_fin()
            frames.append(emit(position & _MASK, acknowledgement, flags, window, stamps, payload))
            position += length + (flags & FIN)
            allowance -= length
        if self._finishing and position == end and not self._fin_sent:
            frames.append(emit(position & _MASK, acknowledgement, ACK | FIN, window, stamps))
            self._send_fin()
            position += 1
        if position > self.send_next:
            if not recovery.mode:
                self._round_trip.start(position, now)
            if self._timer_at == inf or una == self.send_next:
                self._timer_at = now + self._round_trip.timeout
                self._persisting = False
            self.send_next = position
        elif closed and una == position and not self._persisting:
            self._persisting = (
                True  # nothing is on its way that could bring the window's opening back (section 3.8.6.1)
            )
            self._timer_at = now + self._round_trip.timeout
        return waiting

    def _send_fin(self) -> None:
        self._fin_sent = True
        self._move(st.FIN_SENT)

    def _send_ack(self, frames: list[bytes], now: float) -> None:
        options = tcp.build_timestamps(self._clock(now), self._ts_recent) if self._timestamps else b""
        buffer = self.receive_buffer
        if self._sack and (self._duplicate_block or buffer.has_gaps):
            blocks = (
                [self._duplicate_block] if self._duplicate_block else []
            )  # RFC 2883: what came twice is the first block
            blocks += buffer.sack_blocks((3 if self._timestamps else 4) - len(blocks))
            options += tcp.build_sack([(left & _MASK, right & _MASK) for left, right in blocks])
        frames.append(self._writer.frame(self.send_next & _MASK, buffer.next & _MASK, ACK, buffer.advertise(), options))
        self._ack_went_out()

    def _ack_went_out(self) -> None:
        self._must_ack = False
        self._duplicate_block = None
        self._unacknowledged = 0
        self._delayed_ack_at = inf
        self._last_ack_sent = self.receive_buffer.next

    def _challenge(self, now: float) -> None:
        if now >= self._challenge_at:
            self._challenge_at = now + CHALLENGE_INTERVAL
            self._send_ack(self._urgent, now)

    def _clock(self, now: float) -> int:
        """Our time stamps: milliseconds from a start nobody can guess (RFC 7323 section 5.4)."""
        return (int(now * 1000) + self._ts_offset) & _MASK

    # -- time ------------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Let the timers that are due do their work; call `output` afterwards for what they have to say."""
        if now >= self._delayed_ack_at:
            self._must_ack = True
            self._delayed_ack_at = inf
        if now >= self._timer_at:
            self._timer_at = inf
            self._timer_expired(now)
        self._set_deadline()

    def _timer_expired(self, now: float) -> None:
        state = self.state
        if state == st.TIME_WAIT:
            self._end(st.ENDED)
        elif state in (st.SYN_SENT, st.SYN_RECEIVED):
            self._retransmissions += 1
            if self._retransmissions > MAX_SYN_RETRANSMISSIONS:
                self._give_up()
                return
            self._round_trip.back_off()
            self._send_syn(SYN if state == st.SYN_SENT else SYN | ACK, now)
        elif state not in st.SYNCHRONIZED:
            return
        elif self.send_una < self.send_next:
            self._retransmissions += 1
            if self._retransmissions > MAX_RETRANSMISSIONS:
                self._give_up()
                return
            self._round_trip.back_off()
            self._recovery.timed_out(
                self.send_una, self.send_next, first=self._retransmissions == 1, distrust=self._retransmissions > 2
            )
        elif self.send_next < self.send_buffer.end:
            self._probe_window(now)
        else:
            self._keep_alive(now)

    def _probe_window(self, now: float) -> None:
        """A byte beyond the closed window makes the guest say whether it is still closed (RFC 9293 section 3.8.6.1)."""
        if self._unanswered >= MAX_PROBES:
            self._give_up()
            return
        payload = self.send_buffer.slice(self.send_next, 1)
        self._send_probe(self.send_next, payload, now)
        self._timer_at = now + min(MAX_RTO, self._round_trip.timeout * 2 ** min(self._probes, 10))

    def _keep_alive(self, now: float) -> None:
        limits = self._limits
        due = self._last_heard + limits.keepalive_idle
        if now < due:
            self._timer_at = due
        elif self._unanswered >= limits.keepalive_probes:
            self._give_up()
        else:
            self._send_probe(self.send_next - 1, b"", now)
            self._timer_at = now + limits.keepalive_interval

    def _send_probe(self, position: int, payload: bytes, now: float) -> None:
        self._probes += 1
        self._unanswered += 1
        stamps = tcp.build_timestamps(self._clock(now), self._ts_recent) if self._timestamps else b""
        buffer = self.receive_buffer
        self._urgent.append(
            self._writer.frame(position & _MASK, buffer.next & _MASK, ACK, buffer.advertise(), stamps, payload)
        )

    def _give_up(self) -> None:
        self.abort()
        self.signals |= st.GAVE_UP

    def _set_deadline(self) -> None:
        if self._timer_at == inf and self._limits.keepalive_idle != inf and self.state in st.SYNCHRONIZED:
            self._timer_at = self._last_heard + self._limits.keepalive_idle
        self.deadline = min(self._timer_at, self._delayed_ack_at)

    def _move(self, event: int) -> None:
        self.state = st.TRANSITIONS[self.state, event]

    def _end(self, signal: int) -> None:
        if self.state != st.CLOSED:
            self._move(st.OVER)
        self.signals |= signal | st.ENDED
        self.send_buffer.clear()
        self.receive_buffer.clear()
        self._must_ack = False
        self._unacknowledged = 0
        self._timer_at = self._delayed_ack_at = self.deadline = inf
