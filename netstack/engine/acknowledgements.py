"""Which acknowledgements of a batch need no look: those that the next frame says again, and more.

A guest that reads a download answers every second segment, in runs, because its segments come in runs. An
acknowledgement is cumulative (RFC 9293 section 3.10.7.4), and may be lost at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from netstack.wire.ipv4 import MORE_FRAGMENTS, OFFSET_MASK, TCP

MIN_BATCH: Final = 8
"""Frames from which on looking for runs is worth it."""

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_FRAGMENT: Final = MORE_FRAGMENTS | OFFSET_MASK
# MACs to total length; fragment, TTL, protocol; addresses, ports and sequence number; the acknowledgement; the flags.
_FIELDS = Struct("!18s2x4s2x16sI2s")
_LEAD: Final = b"\x01\x01\x08\x0a"
# By the frame's length: type to total length, data offset and flags of a segment with ACK alone, without text: with
# time stamps, without options, and padded to what Ethernet asks for.
_PLAIN: Final = {
    66: (b"\x08\x00\x45\x00\x00\x34", b"\x80\x10"),
    54: (b"\x08\x00\x45\x00\x00\x28", b"\x50\x10"),
    60: (b"\x08\x00\x45\x00\x00\x28", b"\x50\x10"),
}


def without_superseded(frames: Sequence[bytes]) -> list[bytes]:
    """The frames of a batch, in order, less those pure acknowledgements whose next frame is another of the same
    connection, from the same place in the guest's stream, that acknowledges more.
    """
    kept: list[bytes] = []
    before: tuple[bytes, bytes, bytes, bytes] | None = None
    last = 0
    for frame in frames:
        plain = _PLAIN.get(len(frame))
        if plain is None:
            before = None
            kept.append(frame)
            continue
        start, way, place, acknowledgement, flags = _FIELDS.unpack_from(frame)
        same = (start, way, place, flags)
        if flags != plain[1] or (len(frame) == 66 and frame[54:58] != _LEAD):
            before = None
            kept.append(frame)
        elif same == before and 0 < (acknowledgement - last) & _MASK < _HALF:
            kept[-1] = frame
        else:
            kept.append(frame)
            whole = way[3] == TCP and not int.from_bytes(way[:2], "big") & _FRAGMENT
            before = same if whole and start[12:] == plain[0] else None
        last = acknowledgement
    return kept
