"""The two byte streams of a TCP connection: what came and may have gaps, what was sent and may have to be sent again.

Positions are sequence numbers that never wrap (a Python int grows); the connection takes them modulo 2**32 on the wire.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import Final

MAX_PIECES: Final = 4096
"""Out-of-order pieces kept per connection: a 4 MiB window of 1,024-byte segments with its first one missing."""
MAX_SACKED_RANGES: Final = 512
"""Ranges kept in a scoreboard; a guest that acknowledges every other byte gains nothing by naming more."""
_SMALL_CHUNK: Final = 2048


class ReceiveBuffer:
    """The receive side: bytes in order wait in `ready`, bytes beyond a gap wait until it is filled.

    The first bytes accepted for a position win: a retransmission with other bytes changes nothing (conformance D1).
    """

    __slots__ = (
        "_grown_at",
        "_pieces",
        "_recent",
        "_starts",
        "edge",
        "limit",
        "limit_max",
        "mss",
        "next",
        "ready",
        "shift",
        "unsent",
    )

    def __init__(self, start: int, limit: int, limit_max: int, shift: int, mss: int) -> None:
        """`limit` and `limit_max`: what may wait here at first and at most, bytes; `shift`: window scale, 0..14."""
        self.next = start
        """Position of the next byte expected in order (RCV.NXT)."""
        self.edge = start
        """Position after the last byte we have offered to take (RCV.NXT + RCV.WND); it never moves back."""
        self.ready: list[bytes] = []
        """Payloads in order that nobody has taken yet."""
        self.unsent = 0
        """Bytes that left `ready` and the host has not taken yet."""
        self.limit = limit
        self.limit_max = limit_max
        self.shift = shift
        self.mss = mss
        self._grown_at = start
        self._starts: list[int] = []
        self._pieces: list[bytes] = []
        self._recent = start

    @property
    def has_gaps(self) -> bool:
        """Whether anything waits beyond a missing byte."""
        return bool(self._starts)

    def insert(self, position: int, data: bytes) -> bool:
        """Take `data` at `position` (at or beyond `next`); returns whether `next` moved.

        A piece beyond MAX_PIECES is not kept; the guest will send it again.
        """
        if position > self.next:
            self._keep(position, data)
            return False
        data = data[self.next - position :] if position < self.next else data
        if not data:
            return False
        if not self._starts:
            self.ready.append(data)
            self.next += len(data)
            return True
        self._keep(self.next, data, filling=True)
        taken = 0
        for start, piece in zip(self._starts, self._pieces, strict=True):
            if start != self.next:
                break
            self.ready.append(piece)
            self.next += len(piece)
            taken += 1
        del self._starts[:taken], self._pieces[:taken]
        return taken > 0

    def _keep(self, position: int, data: bytes, *, filling: bool = False) -> None:
        """Store the parts of `data` that are not there yet, between the pieces that are."""
        index = bisect_left(self._starts, position)
        if index:
            before_end = self._starts[index - 1] + len(self._pieces[index - 1])
            if before_end > position:
                data = data[before_end - position :]
                position = before_end
        while data:
            following = self._starts[index] if index < len(self._starts) else None
            room = len(data) if following is None else min(len(data), following - position)
            if room:
                if len(self._starts) >= MAX_PIECES and not filling:
                    return
                self._starts.insert(index, position)
                self._pieces.insert(index, data[:room])
                self._recent = position
                index += 1
            if following is None or room == len(data):
                return
            skip = room + len(self._pieces[index])
            position, data = position + skip, data[skip:]
            index += 1

    def sack_blocks(self, limit: int) -> list[tuple[int, int]]:
        """Up to `limit` ranges held beyond `next`, the one that changed last first (RFC 2018 section 4)."""
        ranges: list[tuple[int, int]] = []
        for start, piece in zip(self._starts, self._pieces, strict=True):
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], start + len(piece))
            else:
                ranges.append((start, start + len(piece)))
        recent = self._recent
        # The block of the newest segment first, then the highest ones: they are the ones a sender has yet to hear of.
        ranges.sort(key=lambda block: (not block[0] <= recent < block[1], -block[0]))
        return ranges[:limit]

    def offered(self) -> int:
        """The window we could offer now: what may wait here less what the host has not taken."""
        waiting = self.unsent + (sum(map(len, self.ready)) if self.ready else 0)
        return max(0, self.limit - waiting)

    def advertise(self) -> int:
        """The window for the next segment, as it goes on the wire; never takes back what was offered."""
        receive = self.next
        # The host kept up with a whole buffer since the last time: give the guest twice as much.
        if receive - self._grown_at > self.limit and not self.unsent:
            self._grown_at = receive
            self.limit = min(2 * self.limit, self.limit_max)
        edge = receive + self.offered()
        # Receiver's silly window avoidance (RFC 9293 section 3.8.6.2.2): no small steps of the right edge.
        if edge - self.edge < min(self.limit // 2, self.mss):
            edge = self.edge
        window = min((edge - receive) >> self.shift, 0xFFFF)
        self.edge = max(self.edge, receive + (window << self.shift))
        # Rounding down must not take back what was offered before (RFC 7323 section 2.4).
        if receive + (window << self.shift) < self.edge and window < 0xFFFF:
            window += 1
            self.edge = receive + (window << self.shift)
        return window

    def window_opened(self) -> bool:
        """Whether the guest should hear that there is room again, because it may be waiting for it."""
        step = min(self.limit // 2, 2 * self.mss)
        return self.edge - self.next < step and self.next + self.offered() - self.edge >= step

    def clear(self) -> None:
        """Forget what waits beyond a gap: nothing will fill it any more."""
        self._starts = []
        self._pieces = []


class SendBuffer:
    """The send side: bytes from the host, kept until the guest has acknowledged them."""

    __slots__ = ("_chunks", "_cursor_index", "_cursor_start", "_start", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        """Position of the first byte not yet acknowledged."""
        self.end = start
        """Position after the last byte."""
        self._chunks: deque[bytes] = deque()
        self._start = start
        # Where the last slice was taken: the next one is nearly always beside it.
        self._cursor_index = 0
        self._cursor_start = start

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        chunks = self._chunks
        if chunks and len(data) < _SMALL_CHUNK and len(chunks[-1]) < _SMALL_CHUNK:
            chunks[-1] += data  # an upstream that sends byte by byte must not cost an object per byte
        else:
            chunks.append(data)
        self.end += len(data)

    def acknowledge(self, position: int) -> None:
        """Everything before `position` (at most `end`) arrived: let it go."""
        self.start = position
        chunks = self._chunks
        while chunks and self._start + len(chunks[0]) <= position:
            self._start += len(chunks.popleft())
            self._cursor_index -= 1
        if self._cursor_index < 0 or not chunks:
            self._cursor_index, self._cursor_start = 0, self._start

    def slice(self, position: int, length: int) -> bytes:
        """`length` bytes from `position`; both must lie between `start` and `end`."""
        chunks = self._chunks
        index, start = self._cursor_index, self._cursor_start
        if position < start:
            index, start = 0, self._start
        while position >= start + len(chunks[index]):
            start += len(chunks[index])
            index += 1
        self._cursor_index, self._cursor_start = index, start
        offset = position - start
        piece = chunks[index][offset : offset + length]
        if len(piece) == length:
            return piece
        parts = [piece]
        length -= len(piece)
        while length:
            index += 1
            parts.append(chunks[index][:length])
            length -= len(parts[-1])
        return b"".join(parts)

    def clear(self) -> None:
        """Forget the bytes: the connection is over."""
        self._chunks.clear()


class Scoreboard:
    """What the guest has selectively acknowledged (RFC 2018), and what RFC 6675 concludes from it."""

    __slots__ = ("_ranges", "sacked")

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self.sacked = 0
        """Bytes acknowledged beyond SND.UNA."""

    def add(self, left: int, right: int) -> int:
        """Note that [left, right) arrived; returns how many bytes of it are news."""
        ranges = self._ranges
        first = bisect_left(ranges, (left, left))
        if first and ranges[first - 1][1] >= left:
            first -= 1
        last = first
        held = 0
        while last < len(ranges) and ranges[last][0] <= right:
            held += ranges[last][1] - ranges[last][0]
            last += 1
        if first == last and len(ranges) >= MAX_SACKED_RANGES:
            return 0
        if first < last:
            left, right = min(left, ranges[first][0]), max(right, ranges[last - 1][1])
        ranges[first:last] = [(left, right)]
        news = right - left - held
        self.sacked += news
        return news

    def acknowledge(self, position: int) -> None:
        """SND.UNA moved to `position`."""
        ranges = self._ranges
        while ranges and ranges[0][0] < position:
            left, right = ranges[0]
            if right > position:
                ranges[0] = (position, right)
                self.sacked -= position - left
                return
            self.sacked -= right - left
            del ranges[0]

    @property
    def highest(self) -> int:
        """The end of the highest range; 0 when nothing was acknowledged selectively."""
        return self._ranges[-1][1] if self._ranges else 0

    def loss_edge(self, mss: int) -> int:
        """Bytes not acknowledged below this position count as lost (RFC 6675 section 4, IsLost); 0 for none.

        That is where three separate ranges, or more than two full segments, were acknowledged above.
        """
        above = 0
        for count, (left, right) in enumerate(reversed(self._ranges), 1):
            above += right - left
            if count == 3 or above > 2 * mss:
                return left
        return 0

    def hole_at(self, position: int, limit: int) -> tuple[int, int] | None:
        """The first stretch at or after `position` and before `limit` that is not acknowledged."""
        for left, right in self._ranges:
            if position < left:
                return (position, min(left, limit)) if position < limit else None
            if position < right:
                position = right
        return (position, limit) if position < limit else None

    def missing(self, left: int, right: int) -> int:
        """How many bytes of [left, right) are not acknowledged."""
        if right <= left:
            return 0
        total = right - left
        for start, end in self._ranges:
            if start >= right:
                break
            if end > left:
                total -= min(end, right) - max(start, left)
        return total

    def clear(self) -> None:
        """Forget everything."""
        self._ranges = []
        self.sacked = 0
