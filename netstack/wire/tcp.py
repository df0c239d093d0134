"""TCP segments (RFC 9293 section 3.1): options in and out, and a writer that makes whole frames for one connection."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from netstack.wire.checksum import LARGE, fold, ones_sum
from netstack.wire.ethernet import IPV4
from netstack.wire.ipv4 import DEFAULT_TTL, TCP
from netstack.wire.segment_trains import cutter

HEADER: Final = 20
FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20

FIELDS = Struct("!HHIIHHHH")
"""Source port, destination port, sequence, acknowledgement, offset and flags, window, checksum, urgent pointer."""

_END: Final = 0
_NOP: Final = 1
_MSS: Final = 2
_WINDOW_SCALE: Final = 3
_SACK_PERMITTED: Final = 4
_SACK: Final = 5
_TIMESTAMPS: Final = 8

MAX_SHIFT: Final = 14
"""A window scale above it is used as this (RFC 7323 section 2.3)."""

_TIMESTAMP_PAIR = Struct("!II")
_PADDED_TIMESTAMPS = Struct("!4sII")
_TIMESTAMPS_LEAD: Final = b"\x01\x01\x08\x0a"
# The options of a SYN in the order Linux has them: MSS, SACK permitted, time stamps, window scale.
_USUAL_SYN = Struct("!2sH4sII3sB")
_MSS_LEAD: Final = b"\x02\x04"
_SACK_AND_TIMESTAMPS_LEAD: Final = b"\x04\x02\x08\x0a"
_WINDOW_SCALE_LEAD: Final = b"\x01\x03\x03"
# One string up to the IP total length, then what varies; 54 bytes in all.
_FRAME_HEADERS = Struct("!16sH6sH12sIIHHHH")
_MIDDLE: Final = bytes((0, 0, 0x40, 0, DEFAULT_TTL, TCP))
"""Identification, DF, TTL and protocol."""
_FLAGS: Final = 47
_CHECKSUM: Final = 50
"""Where these are in such a frame."""
_MASK: Final = 0xFFFFFFFF


class TcpOptions(NamedTuple):
    """The options we act on; None where absent. SACK blocks are (left, right) sequence numbers, at most 4."""

    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    timestamps: tuple[int, int] | None = None
    sack: tuple[tuple[int, int], ...] = ()


NO_OPTIONS: Final = TcpOptions()


def parse_options(data: bytes) -> TcpOptions:
    """Read an options field. A malformed one ends the reading: what came before it counts (as Linux does it)."""
    if len(data) == 20:
        lead, largest, second, value, echo, third, shift = _USUAL_SYN.unpack(data)
        if lead == _MSS_LEAD and second == _SACK_AND_TIMESTAMPS_LEAD and third == _WINDOW_SCALE_LEAD:
            return TcpOptions(largest, min(shift, MAX_SHIFT), True, (value, echo))
    elif len(data) == 12 and (stamps := plain_timestamps(data)) is not None:
        return TcpOptions(timestamps=stamps)
    mss = window_scale = None
    sack_permitted = False
    timestamps: tuple[int, int] | None = None
    sack: tuple[tuple[int, int], ...] = ()
    position = 0
    while position < len(data):
        kind = data[position]
        if kind == _END:
            break
        if kind == _NOP:
            position += 1
            continue
        length = data[position + 1] if position + 1 < len(data) else 0
        if length < 2 or position + length > len(data):
            break
        value = data[position + 2 : position + length]
        if kind == _MSS and length == 4:
            mss = int.from_bytes(value, "big")
        elif kind == _WINDOW_SCALE and length == 3:
            window_scale = min(value[0], MAX_SHIFT)
        elif kind == _SACK_PERMITTED and length == 2:
            sack_permitted = True
        elif kind == _TIMESTAMPS and length == 10:
            timestamps = _TIMESTAMP_PAIR.unpack(value)
        elif kind == _SACK and length >= 10 and length % 8 == 2:
            sack = tuple(_TIMESTAMP_PAIR.iter_unpack(value))[:4]
        position += length
    return TcpOptions(mss, window_scale, sack_permitted, timestamps, sack)


def plain_timestamps(options: bytes) -> tuple[int, int] | None:
    """The value and echo of an options field with nothing but time stamps, laid out as RFC 7323 appendix A advises."""
    if len(options) != 12:
        return None
    lead, value, echo = _PADDED_TIMESTAMPS.unpack(options)
    return (value, echo) if lead == _TIMESTAMPS_LEAD else None


def build_syn_options(
    mss: int, *, window_scale: int | None, sack_permitted: bool, timestamps: tuple[int, int] | None
) -> bytes:
    """The options of a SYN or SYN-ACK, padded to a multiple of 4. None leaves an option out."""
    parts = [b"\x02\x04" + mss.to_bytes(2, "big")]
    if timestamps is not None:
        # SACK-permitted takes the place of the two NOPs before time stamps, as Linux packs them.
        lead = b"\x04\x02\x08\x0a" if sack_permitted else _TIMESTAMPS_LEAD
        parts.append(_PADDED_TIMESTAMPS.pack(lead, *timestamps))
    elif sack_permitted:
        parts.append(b"\x01\x01\x04\x02")
    if window_scale is not None:
        parts.append(bytes((1, 3, 3, window_scale)))
    return b"".join(parts)


def build_timestamps(value: int, echo: int) -> bytes:
    """The 12 bytes of a time stamps option with its two NOPs."""
    return _PADDED_TIMESTAMPS.pack(_TIMESTAMPS_LEAD, value, echo)


def build_sack(blocks: list[tuple[int, int]]) -> bytes:
    """A SACK option with two NOPs before it; at most 4 blocks, 3 beside time stamps (RFC 2018 section 3)."""
    return bytes((1, 1, _SACK, 2 + 8 * len(blocks))) + b"".join(_TIMESTAMP_PAIR.pack(*block) for block in blocks)


Frame = bytes | tuple[bytes, *tuple[bytes | memoryview, ...]]
"""A frame, or the pieces of a large one in order; the first has all its headers."""


class SegmentWriter:
    """Makes the frames of one direction of one connection: everything that never changes is packed and summed once.

    Packets carry DF and identification 0 (RFC 6864 section 4.1: an atomic datagram needs none).
    """

    __slots__ = ("_ends", "_ip_sum", "_prefix", "_pseudo_sum", "_tcp_sum", "offload")

    def __init__(
        self,
        *,
        destination_mac: bytes,
        source_mac: bytes,
        source: bytes,
        destination: bytes,
        source_port: int,
        destination_port: int,
        offload: int = 0,
    ) -> None:
        """`offload` is LinkCapabilities.segment_offload of the guest's link: above 0 the checksum is partial."""
        self.offload = offload
        """How many bytes of text a frame may hold that the other side cuts; 0 when it does not."""
        self._prefix = destination_mac + source_mac + IPV4 + b"\x45\x00"
        self._ends = source + destination + source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")
        addresses = int.from_bytes(source, "big") + int.from_bytes(destination, "big")
        self._ip_sum = 0x4500 + 0x4000 + (DEFAULT_TTL << 8 | TCP) + addresses
        self._pseudo_sum = addresses + TCP
        self._tcp_sum = self._pseudo_sum + source_port + destination_port

    def frame(
        self,
        sequence: int,
        acknowledgement: int,
        flags: int,
        window: int,
        options: bytes = b"",
        payload: bytes = b"",
        *,
        more: int = 0,
        more_sum: int = 0,
    ) -> bytes:
        """One frame. `window` as it goes on the wire (already shifted); `options` a multiple of 4 bytes.

        Without a payload, `more` bytes may follow elsewhere, whose sum (not folded) is `more_sum`.
        """
        header = HEADER + len(options)
        length = header + len(payload) + more
        offset_flags = header << 10 | flags
        if self.offload:
            # The pseudo-header's sum, not complemented: the rest is added to it where the frame goes.
            checksum = 0xFFFF - fold(self._pseudo_sum + length)
        else:
            # A 32-bit number is congruent to the sum of its two halves: no need to split sequence numbers to sum them.
            total = self._tcp_sum + length + sequence + acknowledgement + offset_flags + window + more_sum
            if options:
                total += int.from_bytes(options, "big")
            if len(payload) >= LARGE:
                total += ones_sum(payload)
            elif payload:
                body = int.from_bytes(payload, "big")
                total += body << 8 if length & 1 else body
            checksum = fold(total)
        headers = _FRAME_HEADERS.pack(
            self._prefix,
            length + 20,
            _MIDDLE,
            fold(self._ip_sum + length + 20),
            self._ends,
            sequence,
            acknowledgement,
            offset_flags,
            window,
            checksum,
            0,
        )
        return b"%b%b%b" % (headers, options, payload) if options else headers + payload

    def gathered(
        self, sequence: int, acknowledgement: int, flags: int, window: int, options: bytes,
        pieces: Sequence[bytes | memoryview],
    ) -> Frame:  # fmt: skip
        """The same in pieces: the headers, and those of a large payload as they are."""
        size = total = 0
        for piece in pieces:
            if not self.offload:
                # At an odd place the bytes of each word change sides: that multiplies the sum by 256.
                total += ones_sum(piece) << 8 if size & 1 else ones_sum(piece)
            size += len(piece)
        return (self.frame(sequence, acknowledgement, flags, window, options, more=size, more_sum=total), *pieces)

    def train(
        self, sequence: int, acknowledgement: int, window: int, options: bytes, text: bytes, start: int, count: int,
        size: int, *, push: bool,
    ) -> list[bytes]:  # fmt: skip
        """The frames of `count` segments with ACK and `size` bytes each of `text`, from `start` on; see `frame`.

        `push`: the last one has PSH too.
        """
        cut = None if self.offload or size & 1 else cutter(count)
        if cut is None:
            frames = []
            for at in range(start, start + count * size, size):
                frames.append(self.frame(sequence, acknowledgement, ACK, window, options, text[at : at + size]))
                sequence = sequence + size & _MASK
        else:
            header = HEADER + len(options)
            length = header + size
            offset_flags = header << 10 | ACK
            total = self._tcp_sum + length + acknowledgement + offset_flags + window + int.from_bytes(options, "big")
            headers = _FRAME_HEADERS.pack(
                self._prefix,
                length + 20,
                _MIDDLE,
                fold(self._ip_sum + length + 20),
                self._ends,
                0,
                acknowledgement,
                offset_flags,
                window,
                0,
                0,
            )
            frames = cut(headers + options, sequence, total % 0xFFFF, text, start, count, size)
        if push:
            last = frames[-1]
            checksum = int.from_bytes(last[_CHECKSUM : _CHECKSUM + 2], "big")
            if not self.offload:
                checksum = (checksum - PSH) % 0xFFFF
            frames[-1] = b"%b%c%b%b%b" % (
                last[:_FLAGS], ACK | PSH, last[_FLAGS + 1 : _CHECKSUM], checksum.to_bytes(2, "big"),
                last[_CHECKSUM + 2 :],
            )  # fmt: skip
        return frames
