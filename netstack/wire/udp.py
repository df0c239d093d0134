"""UDP datagrams (RFC 768)."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from netstack.wire import ipv4
from netstack.wire.checksum import checksum, fold, ones_sum, pseudo_header_sum

HEADER: Final = 8
MAX_PAYLOAD: Final = ipv4.MAX_PACKET - ipv4.HEADER - HEADER
"""65,507 bytes."""

_HEADER = Struct("!HHHH")
_PACKET_HEADERS = Struct("!HHHHHH4s4sHHHH")
_TTL_PROTOCOL: Final = ipv4.DEFAULT_TTL << 8 | ipv4.UDP


class Udp(NamedTuple):
    """One datagram. An empty payload is a datagram like any other."""

    source_port: int
    destination_port: int
    payload: bytes


def parse(datagram: bytes | memoryview, source: bytes, destination: bytes, *, verify_checksum: bool) -> Udp | str:
    """Read an IP payload. Returns a reason word instead when its length or checksum is wrong.

    Bytes beyond the UDP length are ignored, as every host does.
    """
    if len(datagram) < HEADER:
        return "udp-truncated"
    source_port, destination_port, length, received = _HEADER.unpack_from(datagram)
    if not HEADER <= length <= len(datagram):
        return "udp-length"
    # RFC 768: an all-zero checksum says that the sender made none.
    if verify_checksum and received:
        pseudo = pseudo_header_sum(source, destination, ipv4.UDP, length)
        if checksum(datagram[:length], pseudo):
            return "udp-checksum"
    return Udp(source_port, destination_port, bytes(datagram[HEADER:length]))


def build(source: bytes, source_port: int, destination: bytes, destination_port: int, payload: bytes) -> bytes:
    """A whole datagram, checksum included. Raises ValueError above 65,507 bytes of payload."""
    length = HEADER + len(payload)
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a UDP payload of {len(payload)} bytes does not fit {MAX_PAYLOAD}")
    header = _HEADER.pack(source_port, destination_port, length, 0)
    value = checksum(header + payload, pseudo_header_sum(source, destination, ipv4.UDP, length))
    # RFC 768: a computed zero goes out as all ones, because zero means "no checksum".
    return _HEADER.pack(source_port, destination_port, length, value or 0xFFFF) + payload


def packet(
    source: bytes, source_port: int, destination: bytes, destination_port: int, payload: bytes, identification: int
) -> bytes:
    """`build` in an IPv4 packet without options, both headers in one go: answers to guests are many and small."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a UDP payload of {len(payload)} bytes does not fit {MAX_PAYLOAD}")
    length = HEADER + len(payload)
    addresses = int.from_bytes(source, "big") + int.from_bytes(destination, "big")
    ip_checksum = fold(0x4500 + length + ipv4.HEADER + identification + _TTL_PROTOCOL + addresses)
    # The length counts twice: in the pseudo-header and in the header.
    total = addresses + ipv4.UDP + 2 * length + source_port + destination_port + ones_sum(payload)
    return (
        _PACKET_HEADERS.pack(
            0x4500,
            length + ipv4.HEADER,
            identification,
            0,
            _TTL_PROTOCOL,
            ip_checksum,
            source,
            destination,
            source_port,
            destination_port,
            length,
            fold(total) or 0xFFFF,
        )
        + payload
    )
