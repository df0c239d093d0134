"""Which acknowledgements of a batch need no look: those that the next frame says again, and more.

A guest that reads a download answers every second segment, in runs, because its segments come in runs. An
acknowledgement is cumulative (RFC 9293 section 3.10.7.4), and may be lost at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from netstack.wire.ipv4 import MORE_FRAGMENTS, OFFSET_MASK, TCP
from netstack.wire.tcp import ACK

MIN_BATCH: Final = 8
"""Frames from which on looking for runs is worth it."""

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_FRAGMENT: Final = MORE_FRAGMENTS | OFFSET_MASK
_FLAGS: Final = 47
"""Where they are in a frame."""
# MACs to total length; fragment, TTL, protocol; the acknowledgement; the flags.
_FIELDS = Struct("!18s2x4s18xI2s")
_LEAD: Final = b"\x01\x01\x08\x0a"
# By the frame's length: type to total length, data offset and flags of a segment with ACK alone, without text: with
# time stamps, without options, and padded to what Ethernet asks for.
_PLAIN: Final = {
    66: (b"\x08\x00\x45\x00\x00\x34", b"\x80\x10"),
    54: (b"\x08\x00\x45\x00\x00\x28", b"\x50\x10"),
    60: (b"\x08\x00\x45\x00\x00\x28", b"\x50\x10"),
}
_OTHER: Final = (b"", b"", b"", 0)
"""What `_said` gives for everything that is no pure acknowledgement: nothing is like it."""


def without_superseded(frames: Sequence[bytes]) -> list[bytes]:
    """The frames of a batch, in order, less those pure acknowledgements whose next frame is another of the same
    connection, from the same place in the guest's stream, that acknowledges more.
    """
    kept: list[bytes] = []
    place = b""
    before: tuple[bytes, bytes, bytes, int] | None = None
    for frame in frames:
        # Addresses, ports and sequence number of a segment that is nothing else.
        here = frame[26:42] if len(frame) in _PLAIN and frame[_FLAGS] == ACK else b""
        if here != place or not here:
            # Most that are short are no run, but of as many connections: what they are is asked when a second comes.
            kept.append(frame)
            place, before = here, None
            continue
        if before is None:
            before = _said(kept[-1])
        start, way, acknowledgement, flags = _FIELDS.unpack_from(frame)
        same = start == before[0] and way == before[1] and flags == before[2]
        if same and (len(frame) != 66 or frame[54:58] == _LEAD) and 0 < (acknowledgement - before[3]) & _MASK < _HALF:
            kept[-1] = frame
            before = start, way, flags, acknowledgement
        else:
            kept.append(frame)
            before = None
    return kept


def _said(frame: bytes) -> tuple[bytes, bytes, bytes, int]:
    """What another acknowledgement has to have in common with this frame, if it is one, and what it acknowledges."""
    plain = _PLAIN[len(frame)]
    start, way, acknowledgement, flags = _FIELDS.unpack_from(frame)
    whole = way[3] == TCP and not int.from_bytes(way[:2], "big") & _FRAGMENT
    if start[12:] != plain[0] or flags != plain[1] or not whole or (len(frame) == 66 and frame[54:58] != _LEAD):
        return _OTHER
    return start, way, flags, acknowledgement
