"""The virtio_net_hdr before each frame of a TAP with offload, and the work it leaves to whoever takes the frame on.

Source: virtio 1.2 section 5.1.6, linux/virtio_net.h. A TAP speaks the legacy form: 10 bytes, in the machine's own byte
order.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

NEEDS_CSUM: Final = 1
"""Flag: the checksum field holds the pseudo-header's sum only."""
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1

MIN_SEGMENT: Final = 48
"""The smallest segments that frames are cut into, bytes of text (Linux's TCP_MIN_SND_MSS)."""
BAD_HEADER: Final = "offload that makes no sense"

_HEADER: Final = Struct("=BBHHHH")
SIZE: Final = _HEADER.size

_ETHERNET: Final = 14
TCP: Final = 6
"""In IPv4's protocol field."""
TCP_CHECKSUM: Final = 16
"""Where the checksum is in a TCP header."""
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80


class VnetHeader(NamedTuple):
    """What is left to do for a frame. Lengths and offsets in bytes, from the start of the frame."""

    flags: int = 0
    gso_type: int = GSO_NONE
    header_length: int = 0
    """Of all headers together, before the text that is cut; a hint."""
    segment_size: int = 0
    """Bytes of text in each segment but the last."""
    checksum_start: int = 0
    """Where the sum begins."""
    checksum_offset: int = 0
    """Where its field is, from `checksum_start`."""

    def encode(self) -> bytes:
        """The header's SIZE bytes."""
        return _HEADER.pack(*self)


def decode(data: bytes) -> VnetHeader:
    """The header at the start of `data`, which has SIZE bytes at least."""
    return VnetHeader(*_HEADER.unpack_from(data))


def finish(header: VnetHeader, frame: bytes) -> list[bytes] | str:
    """The frames that a network card would put on the wire: checksums complete, segments cut.

    A reason word where the header makes no sense for that frame; it is the guest's, which may write anything.
    """
    if header.gso_type != GSO_NONE:
        return _cut(header, frame)
    return complete(header, frame)


def complete(header: VnetHeader, frame: bytes) -> list[bytes] | str:
    """The frame in one piece whatever its length, with its checksum complete. Else as `finish`."""
    if not header.flags & NEEDS_CSUM:
        return [frame]
    start = header.checksum_start
    field = start + header.checksum_offset
    if start < _ETHERNET or field + 2 > len(frame):
        return BAD_HEADER
    # The field holds a sum already, so that it takes part in this one. 0 would mean "no checksum" in UDP (RFC 768).
    total = _complement(_sum(frame[start:])) or 0xFFFF
    return [frame[:field] + total.to_bytes(2, "big") + frame[field + 2 :]]


def _cut(header: VnetHeader, frame: bytes) -> list[bytes] | str:
    """The segments of a TCP frame over IPv4."""
    size = header.segment_size
    tcp = header.checksum_start
    if header.gso_type != GSO_TCPV4 or not header.flags & NEEDS_CSUM or size < MIN_SEGMENT:
        return BAD_HEADER
    if tcp < _ETHERNET + 20 or tcp + 20 > len(frame):
        return BAD_HEADER
    # The VLAN tags that there may be end where the IPv4 header begins, which says its own length.
    ip = next((at for at in (14, 18, 22) if at + 4 * (frame[at] & 0xF) == tcp and frame[at] >> 4 == 4), 0)
    text = tcp + 4 * (frame[tcp + 12] >> 4)
    if not ip or tcp < ip + 20 or text < tcp + 20 or text > len(frame) or frame[ip + 9] != TCP:
        return BAD_HEADER
    pseudo = _sum(frame[ip + 12 : ip + 20]) + TCP
    sequence = int.from_bytes(frame[tcp + 4 : tcp + 8], "big")
    identification = int.from_bytes(frame[ip + 4 : ip + 6], "big")
    segments = []
    for number, start in enumerate(range(text, max(len(frame), text + 1), size)):
        payload = frame[start : start + size]
        head = bytearray(frame[:text])
        head[ip + 2 : ip + 4] = (text - ip + len(payload)).to_bytes(2, "big")
        head[ip + 4 : ip + 6] = (identification + number & 0xFFFF).to_bytes(2, "big")
        head[ip + 10 : ip + 12] = bytes(2)
        head[ip + 10 : ip + 12] = _complement(_sum(head[ip:tcp])).to_bytes(2, "big")
        head[tcp + 4 : tcp + 8] = (sequence + start - text & 0xFFFFFFFF).to_bytes(4, "big")
        if start + size < len(frame):
            head[tcp + 13] &= ~_FIN_PSH
        if number:
            head[tcp + 13] &= ~_CWR  # RFC 3168 section 6.1.2: once for each window
        field = tcp + TCP_CHECKSUM
        head[field : field + 2] = bytes(2)
        total = pseudo + text - tcp + len(payload) + _sum(head[tcp:]) + _sum(payload)
        head[field : field + 2] = _complement(total).to_bytes(2, "big")
        segments.append(bytes(head) + payload)
    return segments


def _sum(data: bytes | bytearray) -> int:
    """Congruent to the ones' complement sum of 16-bit words (RFC 1071), not folded."""
    total = int.from_bytes(data, "big")
    return total << 8 if len(data) & 1 else total


def _complement(total: int) -> int:
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))
