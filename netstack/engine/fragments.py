"""IPv4 fragments: put together with bounds on everything (RFC 791 section 3.2, RFC 815's idea), and cut."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final

from netstack.wire import ipv4
from netstack.wire.checksum import checksum

TIMEOUT: Final = 30.0
"""Seconds from a datagram's first fragment to its end, complete or not. RFC 791 speaks of 15; Linux waits 30."""
MAX_DATAGRAMS: Final = 256
MAX_DATAGRAMS_PER_GUEST: Final = 64
MAX_BYTES: Final = 4 * 1024 * 1024
"""Bytes held for all datagrams, each fragment counted with FRAGMENT_OVERHEAD."""
MAX_BYTES_PER_GUEST: Final = 1024 * 1024
FRAGMENT_OVERHEAD: Final = 128
"""What a fragment costs beside its bytes (object headers, list slots): 8-byte fragments are mostly this."""
MAX_FRAGMENTS: Final = 2048
"""Per datagram: 65,515 bytes cut for the smallest MTU, 68, are 1,365."""
MIN_MTU: Final = 68
"""RFC 791 section 3.2: every link carries this much; a header of 60 bytes and 8 of data fit it."""

_OPTION_COPY: Final = 0x80
_OPTION_END: Final = 0
_OPTION_NOP: Final = 1
_WORD = Struct("!H")

_Key = tuple[bytes, bytes, bytes, int, int]


class _Datagram:
    """Fragments of one datagram, by offset. `spoiled` says that it was dropped, and its other fragments with it."""

    __slots__ = ("cost", "expires", "first", "held", "pieces", "spoiled", "starts", "total")

    def __init__(self, expires: float) -> None:
        self.expires = expires
        self.starts: list[int] = []
        self.pieces: list[bytes] = []
        self.held = 0
        self.cost = FRAGMENT_OVERHEAD
        self.total: int | None = None
        self.first = b""
        self.spoiled = False

    def add(self, start: int, piece: bytes, *, last: bool) -> str | None:
        """Take one piece of payload; a reason word when it contradicts what came before it."""
        end = start + len(piece)
        at = bisect_left(self.starts, start)
        if at < len(self.starts) and self.starts[at] == start and self.pieces[at] == piece:
            # The network may duplicate a packet; the same bytes at the same place contradict nothing.
            return "fragment-duplicate"
        if at > 0 and self.starts[at - 1] + len(self.pieces[at - 1]) > start:
            return "fragment-overlap"
        if at < len(self.starts) and self.starts[at] < end:
            return "fragment-overlap"
        if self.total is not None and (last or end > self.total):
            return "fragment-length-changed"
        if last:
            if self.starts and self.starts[-1] + len(self.pieces[-1]) > end:
                return "fragment-length-changed"
            self.total = end
        if len(self.pieces) >= MAX_FRAGMENTS:
            return "fragment-too-many"
        self.starts.insert(at, start)
        self.pieces.insert(at, piece)
        self.held += len(piece)
        return None


class Reassembler:
    """Datagrams on their way to being whole.

    Any overlap drops the whole datagram, its later fragments included, so that nobody can show a filter one transport
    header and a host another. `drop` is called with a reason word for each fragment that goes nowhere.
    """

    def __init__(self, *, drop: Callable[[str], None]) -> None:
        self._drop = drop
        # In order of arrival, which with one time-out for all is the order of expiry.
        self._datagrams: dict[_Key, _Datagram] = {}
        self._per_guest: dict[bytes, list[int]] = {}
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """What is held at this moment, overhead included."""
        return self._bytes

    def __len__(self) -> int:
        """Datagrams not yet whole, spoiled ones included."""
        return len(self._datagrams)

    def receive(self, packet: bytes | memoryview, header: ipv4.Ipv4, guest: bytes, now: float) -> bytes | None:
        """Take a fragment (`header` is what ipv4.parse read from it) and return the whole packet if this completes it.

        `guest` is whom the bounds are kept for and whose fragments may belong together: the frame's source MAC.
        """
        key = (guest, header.source, header.destination, header.identification, header.protocol)
        piece = bytes(packet[header.header_length : header.total_length])
        start = header.fragment_offset
        datagram = self._datagrams.get(key)
        if datagram is not None and datagram.expires <= now:
            # Not yet collected by `advance`: the identification has come round again.
            self._forget(key)
            datagram = None
        if datagram is not None and datagram.spoiled:
            self._drop("fragment-of-dropped")
            return None
        if datagram is None:
            datagram = self._admit(key, now)
        fault = self._fault(header, piece)
        if fault is None:
            before = datagram.cost
            fault = datagram.add(start, piece, last=not header.more_fragments)
            if fault == "fragment-duplicate":
                self._drop(fault)
                return None
            if fault is None:
                if start == 0:
                    datagram.first = bytes(packet[: header.total_length])
                    datagram.cost += len(datagram.first)
                datagram.cost += len(piece) + FRAGMENT_OVERHEAD
                self._charge(guest, datagram.cost - before)
        if fault is not None:
            self._drop(fault)
            self._spoil(key, datagram)
            return None
        if datagram.held == datagram.total:
            self._forget(key)
            whole = self._join(datagram)
            if whole is None:
                self._drop("fragment-beyond-maximum")
            return whole
        self._make_room(key)
        return None

    def advance(self, now: float) -> list[bytes]:
        """Forget what took too long. Returns the first fragments of those datagrams whose first fragment had come.

        Their senders are owed a time exceeded, code 1 (RFC 792); the others are not (RFC 1122 section 3.3.2).
        """
        expired: list[bytes] = []
        while self._datagrams:
            key, datagram = next(iter(self._datagrams.items()))
            if datagram.expires > now:
                break
            self._forget(key)
            if not datagram.spoiled:
                self._drop("fragment-timeout")
                if datagram.first:
                    expired.append(datagram.first)
        return expired

    def next_deadline(self) -> float:
        """When `advance` has something to do; infinity when nothing waits."""
        for datagram in self._datagrams.values():
            return datagram.expires
        return math.inf

    @staticmethod
    def _fault(header: ipv4.Ipv4, piece: bytes) -> str | None:
        if not piece:
            return "fragment-empty"
        # RFC 791 section 3.2: all but the last are cut at multiples of 8 bytes.
        if header.more_fragments and len(piece) % 8:
            return "fragment-unaligned"
        if header.header_length + header.fragment_offset + len(piece) > ipv4.MAX_PACKET:
            return "fragment-beyond-maximum"
        return None

    @staticmethod
    def _join(datagram: _Datagram) -> bytes | None:
        """The packet, under the header that came with its first fragment (a later one carries fewer options).

        None when that header, longer than those of the other fragments, makes it too long.
        """
        header_length = (datagram.first[0] & 0xF) * 4
        if header_length + datagram.held > ipv4.MAX_PACKET:
            return None
        header = bytearray(datagram.first[:header_length])
        _WORD.pack_into(header, 2, header_length + datagram.held)
        _WORD.pack_into(header, 6, 0)
        _WORD.pack_into(header, 10, 0)
        _WORD.pack_into(header, 10, checksum(header))
        return b"".join([header, *datagram.pieces])

    def _admit(self, key: _Key, now: float) -> _Datagram:
        guest = key[0]
        usage = self._per_guest.get(guest)
        if usage is not None and usage[0] >= MAX_DATAGRAMS_PER_GUEST:
            self._evict(self._oldest(guest))
        elif len(self._datagrams) >= MAX_DATAGRAMS:
            self._evict(next(iter(self._datagrams)))
        datagram = self._datagrams[key] = _Datagram(now + TIMEOUT)
        self._per_guest.setdefault(guest, [0, 0])[0] += 1
        self._charge(guest, datagram.cost)
        return datagram

    def _make_room(self, newest: _Key) -> None:
        """Drop the oldest datagrams until both byte bounds hold, never `newest`: alone it is within both."""
        guest = newest[0]
        while self._per_guest[guest][1] > MAX_BYTES_PER_GUEST:
            self._evict(self._oldest(guest, besides=newest))
        while self._bytes > MAX_BYTES:
            self._evict(next(key for key in self._datagrams if key != newest))

    def _oldest(self, guest: bytes, besides: _Key | None = None) -> _Key:
        return next(key for key in self._datagrams if key[0] == guest and key != besides)

    def _evict(self, key: _Key) -> None:
        self._drop("fragment-no-room")
        self._forget(key)

    def _spoil(self, key: _Key, datagram: _Datagram) -> None:
        self._charge(key[0], FRAGMENT_OVERHEAD - datagram.cost)
        datagram.cost = FRAGMENT_OVERHEAD
        datagram.spoiled = True
        datagram.starts, datagram.pieces, datagram.first = [], [], b""

    def _forget(self, key: _Key) -> None:
        datagram = self._datagrams.pop(key)
        self._charge(key[0], -datagram.cost)
        usage = self._per_guest[key[0]]
        usage[0] -= 1
        if not usage[0]:
            del self._per_guest[key[0]]

    def _charge(self, guest: bytes, cost: int) -> None:
        self._bytes += cost
        self._per_guest[guest][1] += cost


def fragment(packet: bytes, mtu: int) -> list[bytes]:
    """Cut a packet into fragments of at most `mtu` bytes each; a packet that fits comes back alone.

    Whether it may be cut (DF) is the caller's decision; fragments can be cut again. Raises ValueError when `mtu` is
    below 68 or the packet's own header cannot be read.
    """
    if mtu < MIN_MTU:
        raise ValueError(f"an MTU of {mtu} is below IPv4's minimum of {MIN_MTU}")
    if len(packet) <= mtu:
        return [packet]
    header = ipv4.parse(packet, verify_checksum=False)
    if isinstance(header, str):
        raise ValueError(f"not an IPv4 packet: {header}")  # noqa: TRY004 - a str is a reason word, no wrong type
    payload = packet[header.header_length : header.total_length]
    fragments = []
    options = header.options
    position = 0
    while position < len(payload):
        room = (mtu - ipv4.HEADER - len(options)) // 8 * 8
        piece = payload[position : position + room]
        more = header.more_fragments or position + len(piece) < len(payload)
        fragments.append(
            ipv4.build(
                header.source,
                header.destination,
                header.protocol,
                piece,
                ttl=header.ttl,
                tos=header.tos,
                identification=header.identification,
                flags_offset=(ipv4.MORE_FRAGMENTS if more else 0) | (header.fragment_offset + position) // 8,
                options=options,
            )
        )
        position += len(piece)
        if position == len(piece):
            # RFC 791 section 3.2: the first fragment has all the options, the others those marked for copying.
            options = b"".join(_copied_options(header.options))
            options += bytes(-len(options) % 4)
    return fragments


def _copied_options(options: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(options):
        kind = options[position]
        if kind == _OPTION_END:
            return
        if kind == _OPTION_NOP:
            position += 1
            continue
        length = options[position + 1] if position + 1 < len(options) else 0
        if not 2 <= length <= len(options) - position:
            return
        if kind & _OPTION_COPY:
            yield options[position : position + length]
        position += length
