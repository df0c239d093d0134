"""A simple TCP of the guest, to try ours against: written for being obviously right, and knowing nothing of ours."""

from __future__ import annotations

from math import inf
from struct import Struct

_TCP = Struct("!HHIIHHHH")
_MASK = 0xFFFF_FFFF
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_ETHERNET = bytes(12) + b"\x08\x00"


class GuestModel:
    """Options as asked, every received byte kept by its position, a fixed number of segments on their way.

    The first unacknowledged segment is repeated on a timer and after three duplicates.
    """

    def __init__(
        self,
        isn: int,
        outgoing: bytes,
        *,
        sack: bool = True,
        timestamps: bool = True,
        scale: int | None = 7,
        window: int = 1 << 18,
        mss: int = 1460,
        segments: int = 20,
        delayed_ack: float = 0.0,
        read_rate: float = inf,
        reader_stalls: tuple[float, float] | None = None,
    ) -> None:
        self.isn = isn
        self.outgoing = outgoing
        self.offer = (sack, timestamps, scale)
        self.sack, self.timestamps, self.scale = sack, timestamps, scale
        self.peer_scale = 0
        self.window = window if scale is not None else min(window, 0xFFFF)
        self.mss = mss
        self.segment_size = mss - (12 if timestamps else 0)
        self.segments = segments
        self.delayed_ack = delayed_ack
        self.read_rate = read_rate
        self.stalls = reader_stalls
        # Stream positions: 0 is the SYN, 1 the first byte. Python ints, wrapped on the wire.
        self.una = 0
        self.next = 0
        self.peer_window = 0
        self.duplicates = 0
        self.repeat = False
        self.repeated_at = -1
        self.peer_isn: int | None = None
        self.bytes: dict[int, int] = {}
        self.expected = 1
        self.received = bytearray()
        self.read = 0
        self.read_at = 0.0
        self.last_offered = self.window
        self.peer_fin: int | None = None
        self.peer_finished = False
        self.reset = False
        self.established = False
        self.must_ack = False
        self.unacked = 0
        self.at_once: list[bytes] = []
        self.newest = range(0)
        self.duplicate: tuple[int, int] | None = None
        self.recent_positions: list[int] = []
        self.ack_at = inf
        self.timer_at = 0.0
        self.rto = 0.3
        self.read_timer = inf
        self.recent = 0
        self.echo = 0
        self.now = 0.0
        self.timeouts = 0
        self.edge = window
        self.beyond = 0
        """Bytes the engine sent beyond what was offered, at most; a window probe is one."""

    @property
    def deadline(self) -> float:
        return min(self.timer_at, self.ack_at, self.read_timer)

    @property
    def over(self) -> bool:
        return self.reset or (self.peer_finished and self.una == len(self.outgoing) + 2)

    # -- in

    def receive(self, frame: bytes, now: float) -> None:
        self.now = now
        _, _, sequence, acknowledgement, flags, window, _, _ = _TCP.unpack_from(frame, 34)
        text = 34 + (flags >> 12) * 4
        payload = frame[text:]
        options = self._options(frame[54:text])
        if flags & _RST:
            self.reset = True
            self.timer_at = self.ack_at = self.read_timer = inf
            return
        if flags & _SYN:
            if self.peer_isn is None:
                self.peer_isn = sequence
                sack, timestamps, scale = self.offer
                self.sack = sack and 4 in options
                self.timestamps = timestamps and 8 in options
                self.scale = scale if 3 in options else None
                self.peer_scale = options[3][0] if 3 in options and scale is not None else 0
                if self.scale is None:
                    self.window = min(self.window, 0xFFFF)
                self.segment_size = self.mss - (12 if self.timestamps else 0)
                self.peer_window = window
            else:
                self.peer_window = max(self.peer_window, 1)
            self.must_ack = True
        if self.peer_isn is None:
            return
        position = self._near(sequence - self.peer_isn, self.expected)
        if self.timestamps and 8 in options:
            value = int.from_bytes(options[8][:4], "big")
            if position <= self.expected:
                self.recent = value
        if flags & _ACK:
            self._take_ack(self._near(acknowledgement - self.isn, self.una), window, flags, payload)
        if payload or flags & _FIN:
            self._take_data(position, payload, bool(flags & _FIN))

    def _take_ack(self, position: int, window: int, flags: int, payload: bytes) -> None:
        scaled = window << (0 if flags & _SYN else self.peer_scale)
        if position > self.next:
            return
        if position > self.una:
            self.una = position
            self.established = True
            self.duplicates = 0
            self.rto = 0.3
            self.timer_at = self.now + self.rto if self.una < self.next else inf
            self.peer_window = scaled
        elif position == self.una:
            if self.una < self.next and not payload and scaled == self.peer_window:
                self.duplicates += 1
                if self.duplicates == 3 and self.repeated_at < self.una:
                    self.repeat = True
            self.peer_window = scaled

    def _take_data(self, position: int, payload: bytes, fin: bool) -> None:
        had = self.expected
        self.beyond = max(self.beyond, position + len(payload) - self.edge)
        in_order = position == self.expected and not self.bytes
        self.newest = range(position, position)
        for index, byte in enumerate(payload):
            where = position + index
            if where >= self.expected and where < had + self.last_offered and where not in self.bytes:
                self.bytes[where] = byte
                self.newest = range(position, where + 1)
        while self.expected in self.bytes:
            self.received.append(self.bytes.pop(self.expected))
            self.expected += 1
        if fin and position + len(payload) <= had + self.last_offered:
            self.peer_fin = position + len(payload)
        if self.peer_fin is not None and self.expected == self.peer_fin and not self.peer_finished:
            self.peer_finished = True
            self.expected += 1
            self.must_ack = True
        self.unacked += 1
        known = len(self.received) + 1 > had
        twice = bool(payload) and position + len(payload) <= had
        if payload and (twice or not known):
            # Out of order or known already: at once, each on its own (RFC 5681 section 4.2, RFC 2883).
            fresh = any(byte_at in self.newest for byte_at in (position,))
            self.duplicate = (position, position + len(payload)) if twice or not fresh else None
            self.recent_positions = [position, *self.recent_positions][:50]
            self.at_once.append(self._frame(self.next, _ACK, b""))
            self.duplicate = None
        elif not in_order or self.unacked >= 2 or not self.delayed_ack:
            self.must_ack = True
        elif self.ack_at == inf:
            self.ack_at = self.now + self.delayed_ack

    @staticmethod
    def _near(number: int, base: int) -> int:
        return base + ((number - base + 0x8000_0000) & _MASK) - 0x8000_0000

    @staticmethod
    def _options(data: bytes) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        while data and data[0]:
            if data[0] == 1:
                data = data[1:]
                continue
            found[data[0]] = data[2 : data[1]]
            data = data[data[1] :]
        return found

    # -- out

    def settle(self, now: float) -> list[bytes]:
        self.now = now
        if self.reset:
            return []
        frames, self.at_once = self.at_once, []
        expired = now >= self.timer_at
        if now >= self.read_timer:
            self.read_timer = inf
        self._read(now)
        if self.peer_isn is None:
            if expired:
                frames.append(self._frame(0, _SYN, b""))
                self.next = 1
                self.timer_at = now + self.rto
                self.rto = min(2 * self.rto, 5)
            return frames
        end = len(self.outgoing) + 1
        if expired and self.una < self.next:
            self.repeat = True
            self.timeouts += 1
            self.rto = min(2 * self.rto, 5)
            self.timer_at = now + self.rto
        elif expired:
            # Nothing is on its way: a window probe if the peer's window is closed.
            if self.una < end and self.una - 1 + self.peer_window <= self.una - 1:
                frames.append(self._frame(self.next, _ACK, self.outgoing[self.next - 1 : self.next]))
                self.rto = min(2 * self.rto, 5)
                self.timer_at = now + self.rto
                self.next = max(self.next, min(self.next + 1, end))
            else:
                self.timer_at = inf
        if self.repeat:
            self.repeat = False
            self.repeated_at = self.una
            frames.append(self._data(self.una, min(self.una + self.segment_size, self.next)))
        edge = min(self.una + self.peer_window, self.una + self.segments * self.segment_size)
        while self.next < min(end, edge):
            size = min(self.segment_size, end - self.next, edge - self.next)
            if size < self.segment_size and self.next + size < end and self.una < self.next:
                break
            frames.append(self._data(self.next, self.next + size))
            self.next += size
            if self.timer_at == inf:
                self.timer_at = now + self.rto
        if self.next == end and self.established:
            frames.append(self._data(self.next, self.next + 1))
            self.next += 1
            if self.timer_at == inf:
                self.timer_at = now + self.rto
        if self.next < end and self.una == self.next and self.timer_at == inf:
            self.timer_at = now + self.rto
        if frames:
            self._acked()
        if self.must_ack or now >= self.ack_at:
            frames.append(self._frame(self.next, _ACK, b""))
            self._acked()
        return frames

    def _acked(self) -> None:
        self.must_ack = False
        self.unacked = 0
        self.ack_at = inf

    def _read(self, now: float) -> None:
        """What the application reads, which is what opens the window."""
        if self.read_rate == inf:
            self.read = len(self.received)
            return
        if self.read < len(self.received) and now >= self.read_at:
            before = self._offered()
            self.read = min(len(self.received), self.read + 2000)
            self.read_at = now + 2000 / self.read_rate
            if before < self.segment_size <= self._offered():
                self.must_ack = True
        if self.read < len(self.received):
            self.read_timer = max(self.read_at, now)

    def _offered(self) -> int:
        return max(0, self.window - (len(self.received) - self.read))

    def _data(self, start: int, end: int) -> bytes:
        """The segment from position `start` to `end`; the FIN lies behind the last byte."""
        last = len(self.outgoing) + 1
        flags = _ACK | (_FIN if end > last else 0) | (_SYN if start == 0 else 0)
        if start == 0:
            return self._frame(0, _SYN, b"")
        return self._frame(start, flags, self.outgoing[start - 1 : min(end, last) - 1])

    def _frame(self, position: int, flags: int, payload: bytes) -> bytes:
        options = b""
        stamp = int(self.now * 1000 + 7_000_000) & _MASK
        window = self._offered()
        if flags & _SYN:
            sack, timestamps, scale = self.offer
            options = b"\x02\x04" + self.mss.to_bytes(2, "big")
            options += b"\x01\x01\x04\x02" if sack else b""
            options += b"\x01\x01\x08\x0a" + stamp.to_bytes(4, "big") + bytes(4) if timestamps else b""
            options += bytes((1, 3, 3, scale)) if scale is not None else b""
            wire_window = min(window, 0xFFFF)
        else:
            if self.timestamps:
                options = b"\x01\x01\x08\x0a" + stamp.to_bytes(4, "big") + self.recent.to_bytes(4, "big")
            wire_window = min(window >> (self.scale or 0), 0xFFFF)
            self.last_offered = wire_window << (self.scale or 0)
            self.edge = max(self.edge, self.expected + self.last_offered)
            if self.sack and (self.bytes or self.duplicate) and not payload:
                options += self._sack_blocks(3 if self.timestamps else 4)
        acknowledgement = (self.expected + (self.peer_isn or 0)) & _MASK if flags & _ACK else 0
        header = _TCP.pack(
            4000,
            80,
            (self.isn + position) & _MASK,
            acknowledgement,
            (20 + len(options)) << 10 | flags,
            wire_window,
            0,
            0,
        )
        return _ETHERNET + bytes(20) + header + options + payload

    def _sack_blocks(self, limit: int) -> bytes:
        blocks: list[list[int]] = []
        for position in sorted(self.bytes):
            if blocks and blocks[-1][1] == position:
                blocks[-1][1] = position + 1
            else:
                blocks.append([position, position + 1])
        blocks.sort(
            key=lambda block: min(
                (i for i, p in enumerate(self.recent_positions) if block[0] <= p < block[1]), default=99
            )
        )
        chosen = ([list(self.duplicate)] if self.duplicate else []) + blocks
        chosen = chosen[:limit]
        base = self.peer_isn or 0
        data = b"".join(((n + base) & _MASK).to_bytes(4, "big") for block in chosen for n in block)
        return bytes((1, 1, 5, 2 + len(data))) + data
