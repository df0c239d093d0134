"""The two byte streams of a TCP connection: what came and may have gaps, what was sent and may have to be sent again.

Positions are sequence numbers that never wrap (a Python int grows); the connection takes them modulo 2**32 on the wire.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

MAX_PIECES: Final = 4096
"""Out-of-order pieces kept per connection: a 4 MiB window of 1,024-byte segments with its first one missing."""
MAX_SACKED_RANGES: Final = 512
"""Ranges kept in a scoreboard; a guest that acknowledges every other byte gains nothing by naming more."""
MAX_GATHERED: Final = 2
"""Pieces of text in one segment that are left as they are: a segment seldom lies across more than one boundary."""
_RECENT: Final = 8
_SMALL_CHUNK: Final = 2048
# What a connection has that loses nothing and whose order is kept, shared by all such: never changed, only replaced.
_NO_POSITIONS: Final[list[int]] = []
_NO_RUNS: Final[list[list[bytes]]] = []


class ReceiveBuffer:
    """The receive side: bytes in order wait in `ready`, bytes beyond a gap wait until it is filled.

    The first bytes accepted for a position win: a retransmission with other bytes changes nothing (conformance D1).
    """

    __slots__ = (
        "_ends", "_grown_at", "_pieces", "_recent", "_runs", "edge", "gaps", "limit", "limit_max", "mss", "next",
        "ready", "shift", "unsent",
    )  # fmt: skip

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
        # What waits beyond a gap, as ranges that neither overlap nor touch: [start, end) and the pieces that fill it.
        self.gaps = _NO_POSITIONS
        """Where each range beyond a gap starts; empty while everything came in order."""
        self._ends = _NO_POSITIONS
        self._runs = _NO_RUNS
        self._pieces = 0
        self._recent = _NO_POSITIONS

    def begin(self, start: int, limit: int, limit_max: int, shift: int) -> None:
        """The guest has said where its bytes begin and what it understands; none of them has come yet."""
        self.next = self.edge = self._grown_at = start
        self.limit = limit
        self.limit_max = limit_max
        self.shift = shift

    def insert(self, position: int, data: bytes) -> bool:
        """Take `data` at `position` (at or beyond `next`); returns whether `next` moved.

        A piece beyond MAX_PIECES is not kept; the guest will send it again.
        """
        if not data:
            return False
        if position > self.next:
            if self._pieces < MAX_PIECES:
                self._keep(position, data)
            return False
        end = self.next + len(data)
        if not self.gaps or end < self.gaps[0]:
            self.ready.append(data)
            self.next = end
            return True
        self._keep(position, data)
        self.ready += self._runs[0]
        self.next = self._ends[0]
        self._pieces -= len(self._runs[0])
        del self.gaps[0], self._ends[0], self._runs[0]
        return True

    def _keep(self, position: int, data: bytes) -> None:
        """Store the parts of `data` that are not there yet, and join the ranges they connect."""
        if self.gaps is _NO_POSITIONS:
            self.gaps, self._ends, self._runs = [], [], []
        starts, ends, runs = self.gaps, self._ends, self._runs
        start, end = position, position + len(data)
        first = bisect_left(ends, start)  # the first range that [start, end) overlaps or touches,
        last = bisect_right(starts, end)  # and the first one beyond
        run: list[bytes] = []
        reached = start
        for index in range(first, last):
            left = starts[index]
            if left > reached:
                run.append(data[reached - start : left - start])
                self._pieces += 1
            if run:
                run += runs[index]
            else:
                run = runs[index]
                position = left
            reached = ends[index]
        if end > reached:
            run.append(data[reached - start :])
            self._pieces += 1
            reached = end
        starts[first:last] = [position]
        ends[first:last] = [reached]
        runs[first:last] = [run]
        others = [other for other in self._recent if not position <= other < reached]
        self._recent = [start, *others[: _RECENT - 1]]

    def mark(self, position: int) -> None:
        """Note that there is something at `position`, which has no bytes: a FIN beyond a gap keeps its place."""
        if position > self.next and position != self.highest:
            self._keep(position, b"")

    def holds(self, position: int, end: int) -> bool:
        """Whether all of [position, end) waits beyond a gap."""
        index = bisect_right(self.gaps, position) - 1
        return index >= 0 and self._ends[index] >= end

    def sack_blocks(self, limit: int) -> list[tuple[int, int]]:
        """Up to `limit` ranges held beyond `next`, the one that changed last first (RFC 2018 section 4)."""
        blocks: list[tuple[int, int]] = []
        for position in self._recent:
            index = bisect_right(self.gaps, position) - 1
            if index >= 0 and position < self._ends[index] and len(blocks) < limit:
                blocks.append((self.gaps[index], self._ends[index]))
        return blocks

    @property
    def highest(self) -> int:
        """The position after the last byte that was kept."""
        return self._ends[-1] if self._ends else self.next

    def offered(self) -> int:
        """The window we could offer now: what may wait here less what waits; below 0 if that is more."""
        waiting = self.unsent + (sum(map(len, self.ready)) if self.ready else 0)
        return self.limit - waiting

    def advertise(self) -> int:
        """The window for the next segment, as it goes on the wire; never takes back what was offered."""
        receive = self.next
        # A whole buffer has gone through since the last time, and the host kept up: give the guest twice as much.
        if receive - self._grown_at > self.limit and 2 * self.unsent <= self.limit:
            self._grown_at = receive
            self.limit = min(2 * self.limit, self.limit_max)
        offered = self.offered()
        edge = receive + offered
        # Receiver's silly window avoidance (RFC 9293 section 3.8.6.2.2): no small steps of the right edge.
        if edge - self.edge < min(self.limit // 2, self.mss):
            edge = self.edge
        shift = self.shift
        window = min((edge - receive) >> shift, 0xFFFF)
        # Rounding down would take back a little of what was offered (RFC 7323 section 2.4), rounding up gives a little
        # away each time: up, until a guest that counts on it has got a quarter more than there is room for.
        if receive + (window << shift) < self.edge and window < 0xFFFF:
            rounded = receive + (window + 1 << shift)
            if rounded - receive - offered <= self.limit >> 2:
                window += 1
        self.edge = max(self.edge, receive + (window << shift))
        return window

    def window_if(self, unsent: int) -> int:
        """What `advertise` would say if the host had left so many bytes; nothing changes. For replays."""
        kept = self.unsent, self.limit, self.edge, self._grown_at
        self.unsent = unsent
        window = self.advertise()
        self.unsent, self.limit, self.edge, self._grown_at = kept
        return window

    def window_opened(self) -> bool:
        """Whether the guest should hear that there is room again, because it may be waiting for it."""
        step = min(self.limit // 2, 2 * self.mss)
        return self.edge - self.next < step and self.next + self.offered() - self.edge >= step

    def clear(self) -> None:
        """Forget what waits beyond a gap: nothing will fill it any more."""
        self.gaps = self._ends = self._recent = _NO_POSITIONS
        self._runs = _NO_RUNS
        self._pieces = 0


class SendBuffer:
    """The send side: bytes from the host, kept until the guest has acknowledged them."""

    __slots__ = ("_chunks", "_cursor_index", "_cursor_start", "_start", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        """Position of the first byte not yet acknowledged."""
        self.end = start
        """Position after the last byte."""
        self._chunks: list[bytes] = []
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
        gone, start = 0, self._start
        for chunk in self._chunks:
            if start + len(chunk) > position:
                break
            start += len(chunk)
            gone += 1
        if gone:
            del self._chunks[:gone]
            self._start = start
            self._cursor_index -= gone
            if self._cursor_index < 0:
                self._cursor_index, self._cursor_start = 0, start

    def slice(self, position: int, length: int) -> bytes:
        """`length` bytes from `position`; both must lie between `start` and `end`."""
        chunk, offset = self.run_at(position)
        piece = chunk[offset : offset + length]
        if len(piece) == length:
            return piece
        chunks, index = self._chunks, self._cursor_index
        parts = [piece]
        length -= len(piece)
        while length:
            index += 1
            parts.append(chunks[index][:length])
            length -= len(parts[-1])
        return b"".join(parts)

    def pieces(self, position: int, length: int) -> list[bytes | memoryview]:
        """The same as it lies here, in MAX_GATHERED pieces at most: nothing is copied unless there would be more."""
        chunk, offset = self.run_at(position)
        pieces: list[bytes | memoryview] = [_part(chunk, offset, length)]
        index, left = self._cursor_index, length - len(pieces[0])
        while left:
            if len(pieces) == MAX_GATHERED:
                return [self.slice(position, length)]
            index += 1
            pieces.append(_part(self._chunks[index], 0, left))
            left -= len(pieces[-1])
        return pieces

    def run_at(self, position: int) -> tuple[bytes, int]:
        """The piece that holds the byte at `position`, between `start` and `end`, and where in it that byte is."""
        chunks = self._chunks
        index, start = self._cursor_index, self._cursor_start
        if position < start:
            index, start = 0, self._start
        while position >= start + len(chunks[index]):
            start += len(chunks[index])
            index += 1
        self._cursor_index, self._cursor_start = index, start
        return chunks[index], position - start

    def clear(self) -> None:
        """Forget the bytes: the connection is over."""
        self._chunks.clear()


def _part(chunk: bytes, offset: int, length: int) -> bytes | memoryview:
    """At most `length` bytes from `offset` on, without a copy."""
    return chunk if not offset and len(chunk) <= length else memoryview(chunk)[offset : offset + length]


class Scoreboard:
    """What the guest has selectively acknowledged beyond SND.UNA (RFC 2018): ranges that neither overlap nor touch."""

    __slots__ = ("_ends", "_starts", "sacked")

    def __init__(self) -> None:
        self._starts = self._ends = _NO_POSITIONS
        self.sacked = 0
        """Bytes acknowledged beyond SND.UNA."""

    def add(self, left: int, right: int) -> int:
        """Note that [left, right) arrived; returns how many bytes of it are news."""
        if self._starts is _NO_POSITIONS:
            self._starts, self._ends = [], []
        starts, ends = self._starts, self._ends
        first = bisect_left(ends, left)
        last = bisect_right(starts, right)
        if first == last:
            if len(starts) >= MAX_SACKED_RANGES:
                return 0
            held = 0
        else:
            held = sum(ends[first:last]) - sum(starts[first:last])
            left, right = min(left, starts[first]), max(right, ends[last - 1])
        starts[first:last] = [left]
        ends[first:last] = [right]
        news = right - left - held
        self.sacked += news
        return news

    def acknowledge(self, position: int) -> None:
        """SND.UNA moved to `position`."""
        starts, ends = self._starts, self._ends
        gone = bisect_right(ends, position)
        if gone:
            self.sacked -= sum(ends[:gone]) - sum(starts[:gone])
            del starts[:gone], ends[:gone]
        if starts and starts[0] < position:
            self.sacked -= position - starts[0]
            starts[0] = position

    @property
    def highest(self) -> int:
        """The end of the highest range; 0 when nothing was acknowledged selectively."""
        return self._ends[-1] if self._ends else 0

    def loss_edge(self, mss: int) -> int:
        """Bytes not acknowledged below this position count as lost (RFC 6675 section 4, IsLost); 0 for none.

        That is where three separate ranges, or more than two full segments, were acknowledged above.
        """
        above = 0
        for index in range(1, len(self._starts) + 1):
            left = self._starts[-index]
            above += self._ends[-index] - left
            if index == 3 or above > 2 * mss:
                return left
        return 0

    def hole_at(self, position: int, limit: int) -> tuple[int, int] | None:
        """The first stretch at or after `position` and before `limit` that is not acknowledged."""
        index = bisect_right(self._ends, position)
        if index < len(self._starts) and self._starts[index] <= position:
            position = self._ends[index]
            index += 1
        if position >= limit:
            return None
        if index < len(self._starts):
            limit = min(limit, self._starts[index])
        return position, limit

    def missing(self, left: int, right: int) -> int:
        """How many bytes of [left, right) are not acknowledged."""
        if right <= left:
            return 0
        total = right - left
        for index in range(bisect_right(self._ends, left), len(self._starts)):
            start = self._starts[index]
            if start >= right:
                break
            total -= min(self._ends[index], right) - max(start, left)
        return total

    def clear(self) -> None:
        """Forget everything."""
        self._starts = self._ends = _NO_POSITIONS
        self.sacked = 0
