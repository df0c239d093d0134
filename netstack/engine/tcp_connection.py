"""One TCP connection facing the guest: RFC 9293, with the time and every random number passed in.

What it does with a segment is in `receive`, what it says in `output`, what time does to it in `advance`. It knows no
address: a SegmentWriter turns what it says into frames. Positions never wrap; they are sequence numbers modulo 2**32.

The directions are a Sender and a Receiver; here is what joins them: states, handshake, acceptable segments, the end.
"""

from __future__ import annotations

from math import inf
from typing import Final

from netstack.engine import tcp_states as st
from netstack.engine.tcp_buffers import ReceiveBuffer
from netstack.engine.tcp_limits import (
    CHALLENGE_INTERVAL,
    MAX_SYN_RETRANSMISSIONS,
    MIN_BUFFER,
    MIN_MSS,
    WINDOW_SHIFT,
    TcpLimits,
)
from netstack.engine.tcp_receiver import Receiver
from netstack.engine.tcp_sender import DEFAULT_MSS, Sender
from netstack.engine.tcp_timestamps import Timestamps
from netstack.wire import tcp
from netstack.wire.tcp import ACK, FIN, PSH, RST, SYN, SegmentWriter

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_SPECIAL: Final = 0x3F & ~(PSH | FIN)
_ESTABLISHED: Final = st.ESTABLISHED
_SYN_RECEIVED: Final = st.SYN_RECEIVED


class TcpConnection:
    """The guest's TCP peer.

    `receive`, `write`, `finish`, `abort` and `advance` change state; what cannot wait for the end of the batch (resets,
    SYNs, duplicate acknowledgements, challenges) they append to `urgent`. `output` emits the rest, once a batch; call
    it after any of them. `deadline` is when `advance` wants to be called next.
    """

    __slots__ = (
        "_last_heard", "_limits", "_quiet_at", "_scaled", "_sender", "_urgent", "_writer", "challenge_at", "deadline",
        "receive_buffer", "receiver", "signals", "stamps", "state",
    )  # fmt: skip

    def __init__(self, writer: SegmentWriter, limits: TcpLimits, isn: int, urgent: list[bytes]) -> None:
        """`isn`: this connection's initial sequence number (RFC 6528), 0..2**32-1; it also offsets the time stamps."""
        self._writer = writer
        self._limits = limits
        self._urgent = urgent
        self.state = st.CLOSED
        self.signals = 0
        """What the owner has to know: bits of tcp_states, which it clears."""
        self.deadline = inf
        self.receive_buffer = ReceiveBuffer(0, 0, 0, 0, limits.mss)
        self.receiver = Receiver(self.receive_buffer, limits.mss, sack=True)
        self._sender = Sender(writer, isn)
        self.stamps = Timestamps(isn)
        self._scaled = True
        self._quiet_at = inf  # when TIME-WAIT ends, or a guest that has been silent is asked whether it is there
        self._last_heard = 0.0
        self.challenge_at = 0.0

    @property
    def send_next(self) -> int:
        """Position after everything sent so far (SND.NXT)."""
        return self._sender.next

    @property
    def sender(self) -> Sender:
        """The half that sends, to be looked at."""
        return self._sender

    # -- opening ------------------------------------------------------------------------------------------------------

    def syn_came(self, sequence: int, window: int, options: tcp.TcpOptions, now: float) -> None:
        """The guest's SYN: keep what it offers and wait in LISTEN for `accept` or `abort`."""
        self.state = st.LISTEN
        self._take_syn(sequence, window, options, now)

    def _take_syn(self, sequence: int, window: int, options: tcp.TcpOptions, now: float) -> None:
        limits, sender, stamps = self._limits, self._sender, self.stamps
        mss = min(limits.mss, max(MIN_MSS, options.mss or DEFAULT_MSS))
        # A link that cuts frames cuts them to its MTU, which is too long for a guest that asks for less.
        offload = self._writer.offload if mss == limits.mss else 0
        stamps.used = options.timestamps is not None
        if options.timestamps is not None:
            stamps.note(options.timestamps[0], now)
            mss -= 12  # RFC 6691: the MSS does not count options, a segment has to
        # RFC 7323 section 2.2: scaling is on only if both sides send the option; the window of a SYN is never scaled.
        self._scaled = options.window_scale is not None
        largest = limits.max_receive_window if self._scaled else min(limits.max_receive_window, 0xFFFF)
        shift = WINDOW_SHIFT if self._scaled else 0
        self.receive_buffer.begin(sequence + 1, min(MIN_BUFFER, largest), largest, shift)
        self.receiver.begin(mss, sack=options.sack_permitted)
        sender.recovery.begin(mss, sack=options.sack_permitted, limit=limits.max_congestion_window)
        sender.largest = max(mss, offload - offload % mss)
        sender.shift = options.window_scale or 0
        sender.offered(window)
        self._last_heard = now

    def accept(self, now: float) -> None:
        """Answer the SYN that waits in LISTEN."""
        self._move(st.ACCEPT)
        self._send_syn(SYN | ACK, now)

    def connect(self, now: float) -> None:
        """Open towards the guest."""
        self._move(st.CONNECT)
        self._send_syn(SYN, now)

    def _send_syn(self, flags: int, now: float, *, repeated: bool = False) -> None:
        stamps, sender, buffer = self.stamps, self._sender, self.receive_buffer
        options = tcp.build_syn_options(
            self._limits.mss,
            window_scale=WINDOW_SHIFT if self._scaled else None,
            sack_permitted=self.receiver.sack,
            timestamps=(stamps.clock(now), stamps.recent) if stamps.used else None,
        )
        window = min(MIN_BUFFER, self._limits.max_receive_window, 0xFFFF)
        acknowledgement = buffer.next & _MASK if flags & ACK else 0
        if flags & ACK:
            buffer.edge = max(buffer.edge, buffer.next + window)
        self._urgent.append(self._writer.frame(sender.una & _MASK, acknowledgement, flags, window, options))
        sender.recovery.timeout_repeats += repeated
        sender.syn_sent(now, repeated=repeated)
        self._set_deadline()

    def _opened(self, event: int, now: float) -> None:
        self._move(event)
        self.signals |= st.OPENED
        self._sender.syn_acknowledged(now)

    # -- what the owner does ------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes `write` takes now."""
        return self._sender.room(self._limits.max_send_buffer) if self._is_writable() else 0

    @property
    def readable(self) -> int:
        """Bytes of the host that are worth a read now."""
        return self._sender.readable(self._limits.max_send_buffer) if self._is_writable() else 0

    def _is_writable(self) -> bool:
        return not self._sender.finishing and self.state in st.CAN_SEND

    @property
    def segment(self) -> int:
        """Bytes of a full segment to the guest."""
        return self._sender.recovery.mss

    def write(self, data: bytes) -> None:
        """Queue bytes for the guest. Ignored once the connection cannot send any more."""
        if data and self._is_writable():
            self._sender.buffer.append(data)

    def finish(self) -> None:
        """Send FIN after what is queued."""
        self._sender.finishing = True

    def abort(self) -> None:
        """Reset the connection (RFC 9293 section 3.10.5); in LISTEN, refuse it (section 3.10.7.1)."""
        state, receive = self.state, self.receive_buffer.next & _MASK
        if state not in (st.CLOSED, st.TIME_WAIT, st.SYN_SENT):
            sequence = 0 if state == st.LISTEN else self._sender.next & _MASK
            self._urgent.append(self._writer.frame(sequence, receive, RST | ACK, 0))
        self._end(0)

    # -- segments from the guest --------------------------------------------------------------------------------------

    def receive(
        self, sequence: int, acknowledgement: int, flags: int, window: int, options: bytes,
        payload: bytes | memoryview, now: float,
    ) -> None:  # fmt: skip
        """Process a segment whose checksum is right. `window` as on the wire; `flags` the low six bits.

        A view goes on as it is if it is the next in order; what waits is copied, or it would keep all of its frame.
        """
        buffer, sender = self.receive_buffer, self._sender
        expected = buffer.next
        state = self.state
        # Header prediction: the next bytes in order, their end, or an acknowledgement, while nothing special is going
        # on. That is all a connection has to hear that opens, says little, and closes.
        if (
            sequence == expected & _MASK
            and flags & _SPECIAL == ACK
            and (state == _ESTABLISHED or state in (st.UNFINISHED if payload or flags & FIN else st.ANSWERING))
            and not buffer.gaps
            and not sender.recovery.mode
            and len(payload) <= buffer.edge - expected
        ):
            acknowledged = (acknowledgement - sender.una) & _MASK
            usual = acknowledged <= sender.next - sender.una
            if state == _SYN_RECEIVED and not acknowledged:
                usual = False
            stamps = self.stamps
            if stamps.used:
                usual = usual and (options == stamps.last_options or stamps.fit(options))
                if usual and expected == self.receiver.last_ack_sent:  # RFC 7323 section 4.3
                    stamps.recent, stamps.recent_at = stamps.last_value, now
            elif options:
                usual = False
            if usual:
                self._last_heard = now
                sender.unanswered = 0
                window <<= sender.shift
                same_window = window == sender.window
                if not same_window:
                    sender.offered(window)
                if state == _SYN_RECEIVED:
                    self._opened(st.SYN_ACKED, now)
                elif acknowledged:
                    sender.acknowledged(acknowledged, now)
                    self.signals |= st.ROOM
                    if sender.fin_sent:
                        self._look_for_fin_acknowledged(now)
                elif same_window and not payload and not flags & FIN:
                    sender.acknowledged_nothing(0, now, duplicate=True)
                if payload:
                    buffer.ready.append(payload)
                    buffer.next = expected + len(payload)
                    self.receiver.unacknowledged += len(payload)
                if flags & FIN:
                    self._take_text(buffer.next, b"", FIN, now)
                return
        text = bytes(payload)
        if state == st.SYN_SENT:
            self._receive_syn_sent(sequence, acknowledgement, flags, window, options, text, now)
        elif state == st.LISTEN:
            if flags & RST and sequence == expected & _MASK:
                self._end(st.PEER_RESET)
            elif flags & (SYN | ACK | RST) == SYN:  # said again, or anew: the last one is answered, its stamp echoed
                self._take_syn(sequence, window, tcp.parse_options(options), now)
        elif state != st.CLOSED:
            self._receive_general(sequence, acknowledgement, flags, window, options, text, now)
            self._set_deadline()

    def _receive_general(
        self, sequence: int, acknowledgement: int, flags: int, window: int, options: bytes, payload: bytes, now: float
    ) -> None:
        """RFC 9293 section 3.10.7.4, in its order."""
        buffer, receiver, sender, stamps = self.receive_buffer, self.receiver, self._sender, self.stamps
        parsed = tcp.parse_options(options) if options else tcp.NO_OPTIONS
        position = buffer.next + ((sequence - buffer.next + _HALF) & _MASK) - _HALF
        length = len(payload) + (flags & FIN)
        if self.state == st.SYN_RECEIVED and flags & (SYN | RST) == SYN and position == buffer.next - 1:
            if not flags & ACK:
                self._repeat_syn_ack(now)
                return
            flags &= ~SYN  # the other half of a simultaneous open (figure 8): its SYN is known, its ACK is news
            position += 1
        if stamps.used and not flags & RST and not self._passes_paws(parsed, flags, now):
            return
        # First, the sequence number.
        if not receiver.acceptable(position, length):
            if not flags & RST:
                self._answer_unacceptable(position, length, flags, now)
            return
        # Second, a reset: only at the exact position, else a challenge (RFC 5961 section 3.2); none ends a TIME-WAIT
        # early (RFC 1337 section 3).
        if flags & RST:
            if position != buffer.next:
                self._challenge(now)
            elif self.state != st.TIME_WAIT:
                self._end(st.PEER_RESET)
            return
        # Fourth, a SYN in the window: a challenge (RFC 5961 section 4.2).
        if flags & SYN:
            self._challenge(now)
            return
        # Fifth, the acknowledgement.
        if not flags & ACK:
            return
        if parsed.timestamps is not None and position <= receiver.last_ack_sent:
            stamps.note(parsed.timestamps[0], now)
        acknowledged = ((acknowledgement - sender.una + _HALF) & _MASK) - _HALF
        if self.state == st.SYN_RECEIVED:
            if acknowledged != 1:
                self._urgent.append(self._writer.frame(acknowledgement, 0, RST, 0))
                return
            self._opened(st.SYN_ACKED, now)
            sender.offered(window << sender.shift)
            sender.window_from = position
            acknowledged = 0
        elif acknowledged > sender.next - sender.una and not sender.probe_taken(acknowledged):
            self._challenge(now)  # acknowledges what we never sent (RFC 5961 section 5.2)
            return
        elif acknowledged < -sender.max_window:
            self._challenge(now)  # or what was acknowledged ages ago
            return
        self._last_heard = now
        sender.unanswered = 0
        if acknowledged >= 0:
            fresh = acknowledged > 0 or position >= max(sender.window_from, buffer.next)
            self._take_acknowledgement(acknowledged, position, length, window << sender.shift, fresh, parsed, now)
        # Seventh, the text; eighth, FIN. Urgent data is data like any other (RFC 9293 section 3.8.5, RFC 6093).
        if length and self.state != st.CLOSED:
            self._take_text(position, payload, flags, now)

    def _take_acknowledgement(
        self, acknowledged: int, position: int, length: int, window: int, fresh: bool, options: tcp.TcpOptions,
        now: float,
    ) -> None:  # fmt: skip
        """An acceptable acknowledgement; `fresh`: its window is no older than the one we know (SND.WL1, SND.WL2)."""
        sender = self._sender
        sacked_before = sender.recovery.scoreboard.sacked
        news = sender.selected(options.sack, sender.una + acknowledged) if options.sack else 0
        same_window = window == sender.window
        if fresh:
            sender.offered(window)
            sender.window_from = position
        if not acknowledged:
            sender.acknowledged_nothing(news, now, duplicate=same_window and not length)
            return
        if sender.recovery.mode and options.timestamps is not None:
            # In recovery only the echoed stamp tells which of several transmissions arrived (RFC 7323 section 4.1).
            sample = self.stamps.round_trip(options.timestamps[1], now)
            if sample is not None:
                sender.round_trip.measured(sample)
        sender.acknowledged(acknowledged, now, sacked_before=sacked_before)
        self.signals |= st.ROOM
        if sender.fin_sent:
            self._look_for_fin_acknowledged(now)

    def _look_for_fin_acknowledged(self, now: float) -> None:
        if self._sender.fin_acknowledged and self.state in (st.FIN_WAIT_1, st.CLOSING, st.LAST_ACK):
            self._move(st.FIN_ACKED)
            if self.state == st.TIME_WAIT:
                self._enter_time_wait(now)
            elif self.state == st.CLOSED:
                self._end(st.ENDED)

    def _passes_paws(self, options: tcp.TcpOptions, flags: int, now: float) -> bool:
        """RFC 7323 section 5.3; section 3.2: without its time stamp a segment is dropped in silence."""
        stamp = options.timestamps
        if stamp is not None and not self.stamps.is_old(stamp[0], now):
            return True
        if stamp is not None or flags & SYN:  # a SYN is a guest that has forgotten us (RFC 5961 section 4.2)
            self._challenge(now)
        return False

    def _answer_unacceptable(self, position: int, length: int, flags: int, now: float) -> None:
        if length and not flags & SYN and position + length <= self.receive_buffer.next:
            self.receiver.repeated(position, position + length)
            if self.state == st.TIME_WAIT and flags & FIN:
                self._quiet_at = now + st.TIME_WAIT_SECONDS
        else:
            self._challenge(now)

    def _take_text(self, position: int, payload: bytes, flags: int, now: float) -> None:
        receiver = self.receiver
        if self.state not in st.CAN_RECEIVE:
            receiver.must_ack = True  # the guest had finished: whatever comes now is a repetition
            return
        if receiver.take(position, payload, fin=bool(flags & FIN)):
            self._urgent.append(self._ack(now))
        if receiver.finished:
            self.signals |= st.PEER_FINISHED
            self._move(st.FIN_CAME)
            if self.state == st.TIME_WAIT:
                self._enter_time_wait(now)

    def _receive_syn_sent(
        self, sequence: int, acknowledgement: int, flags: int, window: int, options: bytes, payload: bytes, now: float
    ) -> None:
        """RFC 9293 section 3.10.7.3."""
        if flags & ACK and acknowledgement != self._sender.next & _MASK:
            if not flags & RST:
                self._urgent.append(self._writer.frame(acknowledgement, 0, RST, 0))
            return
        if flags & (RST | ACK) == RST | ACK:
            self._end(st.PEER_RESET)
        if flags & RST or not flags & SYN:
            return
        self._take_syn(sequence, window, tcp.parse_options(options), now)
        if not flags & ACK:
            self._move(st.SYN_CAME)
            self._send_syn(SYN | ACK, now, repeated=self._sender.retransmissions > 0)
            return
        buffer = self.receive_buffer
        buffer.edge = buffer.next + min(buffer.limit, 0xFFFF)
        self._opened(st.SYN_ACK_CAME, now)
        self.receiver.must_ack = True
        if payload or flags & FIN:
            self._take_text(buffer.next, payload, flags, now)
        self._set_deadline()

    def _repeat_syn_ack(self, now: float) -> None:
        """The guest says SYN again: our SYN-ACK was lost."""
        if now >= self.challenge_at:
            self.challenge_at = now + CHALLENGE_INTERVAL
            self._send_syn(SYN | ACK, now, repeated=True)

    # -- what we say --------------------------------------------------------------------------------------------------

    def output(self, frames: list[tcp.Frame], room: int, now: float) -> bool:
        """Append the frames that are due, at most `room` of them with data; returns whether data had to wait for it."""
        state, sender, receiver = self.state, self._sender, self.receiver
        waiting = False
        if state in st.SYNCHRONIZED:
            if sender.una < sender.buffer.end or sender.finishing:
                start = len(frames)
                waiting = sender.emit(frames, room, receiver, self.stamps, now)
                if sender.fin_sent and state in st.CAN_SEND:
                    self._move(st.FIN_SENT)
                if len(frames) > start and not receiver.has_blocks:
                    receiver.acknowledgement_went_out()
            if receiver.is_due():
                frames.append(self._ack(now))
            elif receiver.unacknowledged:
                receiver.wait(now)
        elif receiver.must_ack:
            frames.append(self._ack(now))
        self._set_deadline()
        return waiting

    def _ack(self, now: float) -> bytes:
        """An acknowledgement that goes out now."""
        buffer, receiver = self.receive_buffer, self.receiver
        options = self.stamps.option(now)
        if receiver.has_blocks:
            options += receiver.sack_option(3 if options else 4)
        receiver.acknowledgement_went_out()
        position, expected = self._sender.next & _MASK, buffer.next & _MASK
        return self._writer.frame(position, expected, ACK, buffer.advertise(), options)

    def _challenge(self, now: float) -> None:
        if now >= self.challenge_at:
            self.challenge_at = now + CHALLENGE_INTERVAL
            self._urgent.append(self._ack(now))

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Let the timers that are due do their work; call `output` afterwards for what they have to say."""
        receiver, sender = self.receiver, self._sender
        if now >= receiver.delayed_ack_at:
            receiver.must_ack = True
        if now >= sender.timer_at:
            if self.state in (st.SYN_SENT, st.SYN_RECEIVED):
                self._repeat_syn(now)
            elif not sender.expired(now):
                self._give_up()
        if now >= self._quiet_at:
            self._quiet_at = inf
            if self.state == st.TIME_WAIT:
                self._end(st.ENDED)
            else:
                self._keep_alive(now)
        self._set_deadline()

    def _repeat_syn(self, now: float) -> None:
        sender = self._sender
        sender.retransmissions += 1
        if sender.retransmissions > MAX_SYN_RETRANSMISSIONS:
            self._give_up()
        else:
            sender.round_trip.back_off()
            self._send_syn(SYN if self.state == st.SYN_SENT else SYN | ACK, now, repeated=True)

    def _keep_alive(self, now: float) -> None:
        """Something the guest has already makes it say that it is there (RFC 9293 section 3.8.4)."""
        limits, sender = self._limits, self._sender
        if self._last_heard + limits.keepalive_idle > now:
            return  # heard of meanwhile: _set_deadline looks again
        self._quiet_at = now + limits.keepalive_interval
        if sender.timer_at != inf:
            return  # it is being asked already
        if sender.unanswered >= limits.keepalive_probes:
            self._give_up()
            return
        sender.unanswered += 1
        buffer, options = self.receive_buffer, self.stamps.option(now)
        position = sender.next - 1 & _MASK
        self._urgent.append(self._writer.frame(position, buffer.next & _MASK, ACK, buffer.advertise(), options))

    def _give_up(self) -> None:
        self.abort()
        self.signals |= st.GAVE_UP

    def _set_deadline(self) -> None:
        if self._quiet_at == inf and self._limits.keepalive_idle != inf and self.state in st.SYNCHRONIZED:
            self._quiet_at = self._last_heard + self._limits.keepalive_idle
        timer, delayed, quiet = self._sender.timer_at, self.receiver.delayed_ack_at, self._quiet_at
        first = timer if timer < delayed else delayed
        self.deadline = first if first < quiet else quiet

    def _enter_time_wait(self, now: float) -> None:
        self.signals |= st.ENDED
        self._sender.stop()
        self._quiet_at = now + st.TIME_WAIT_SECONDS

    def _move(self, event: int) -> None:
        self.state = st.TRANSITIONS[self.state, event]

    def _end(self, signal: int) -> None:
        if self.state != st.CLOSED:
            self._move(st.OVER)
        self.signals |= signal | st.ENDED
        self._sender.stop()
        self.receiver.stop()
        self._quiet_at = self.deadline = inf
