"""Frames larger than the MTU, cut as a network card would, and what a checksum would notice of damage.

Only TCP over IPv4 comes so large (segmentation offload), and its checksums are partial then: they hold the sum of the
pseudo-header, and so do those of the pieces.
"""

from __future__ import annotations

from typing import Final

from guest_iface.frame_fields import TCP, UDP

_IP: Final = 14
_IPV4: Final = b"\x08\x00"
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80


def cut_frame(frame: bytes, mtu: int) -> list[bytes]:
    """The frames of at most `mtu` bytes of IP that carry the same. What is no TCP over IPv4 stays whole."""
    if len(frame) <= _IP + mtu or frame[12:14] != _IPV4 or len(frame) < _IP + 40 or frame[_IP + 9] != TCP:
        return [frame]
    tcp = _IP + 4 * (frame[_IP] & 15)
    if tcp < _IP + 20 or tcp + 20 > len(frame):
        return [frame]
    text = tcp + 4 * (frame[tcp + 12] >> 4)
    size = _IP + mtu - text
    if text < tcp + 20 or text >= len(frame) or size <= 0:
        return [frame]
    sequence = int.from_bytes(frame[tcp + 4 : tcp + 8], "big")
    identification = int.from_bytes(frame[_IP + 4 : _IP + 6], "big")
    pieces = []
    for number, start in enumerate(range(text, len(frame), size)):
        payload = frame[start : start + size]
        head = bytearray(frame[:text])
        head[_IP + 2 : _IP + 4] = (text - _IP + len(payload)).to_bytes(2, "big")
        head[_IP + 4 : _IP + 6] = (identification + number & 0xFFFF).to_bytes(2, "big")
        head[_IP + 10 : _IP + 12] = bytes(2)
        head[_IP + 10 : _IP + 12] = (0xFFFF - _folded(head[_IP:tcp])).to_bytes(2, "big")
        head[tcp + 4 : tcp + 8] = (sequence + start - text & 0xFFFFFFFF).to_bytes(4, "big")
        if start + size < len(frame):
            head[tcp + 13] &= ~_FIN_PSH
        if number:
            head[tcp + 13] &= ~_CWR  # RFC 3168 section 6.1.2: once for each window
        pseudo = bytes(head[_IP + 12 : _IP + 20]) + (TCP).to_bytes(2, "big")
        head[tcp + 16 : tcp + 18] = _folded(pseudo + (text - tcp + len(payload)).to_bytes(2, "big")).to_bytes(2, "big")
        pieces.append(bytes(head) + payload)
    return pieces


def _folded(data: bytes | bytearray) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071) of an even number of bytes, not inverted."""
    return int.from_bytes(data, "big") % 0xFFFF


def checksum_covers(frame: bytes, position: int) -> bool:
    """Whether a receiver that looks at checksums would drop a frame with one bit of the byte at `position` flipped."""
    if position < _IP or frame[12:14] != _IPV4 or len(frame) < _IP + 20:
        return False  # Ethernet's own sum ends at the card
    header = 4 * (frame[_IP] & 15)
    total = int.from_bytes(frame[_IP + 2 : _IP + 4], "big")
    if position < _IP + header:
        return True
    unsummed = frame[_IP + 9] == UDP and frame[_IP + header + 6 : _IP + header + 8] == bytes(2)  # RFC 768
    return position < _IP + total and not unsummed
