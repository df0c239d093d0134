"""IPv4 headers (RFC 791): parse with every length checked, build, and the constants of the protocols above."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from netstack.wire.checksum import checksum

HEADER: Final = 20
MAX_PACKET: Final = 65_535
ICMP: Final = 1
IGMP: Final = 2
TCP: Final = 6
UDP: Final = 17

DEFAULT_TTL: Final = 64
DONT_FRAGMENT: Final = 0x4000
MORE_FRAGMENTS: Final = 0x2000
OFFSET_MASK: Final = 0x1FFF

_HEADER = Struct("!BBHHHBBH4s4s")


class Ipv4(NamedTuple):
    """The header of a packet. Lengths and offsets in bytes."""

    header_length: int
    tos: int
    total_length: int
    identification: int
    dont_fragment: bool
    more_fragments: bool
    fragment_offset: int
    ttl: int
    protocol: int
    source: bytes
    destination: bytes
    options: bytes


def parse(packet: bytes | memoryview, *, verify_checksum: bool) -> Ipv4 | str:
    """Read the header at the start of `packet`, which may be longer than the packet (Ethernet padding).

    Returns a reason word instead when the header cannot be trusted. Source: RFC 791 section 3.1, RFC 1122 section
    3.2.1.
    """
    if len(packet) < HEADER:
        return "ip-truncated"
    first, tos, total, ident, flags, ttl, protocol, _, source, destination = _HEADER.unpack_from(packet)
    if first >> 4 != 4:
        return "ip-version"
    header_length = (first & 0xF) * 4
    if header_length < HEADER or header_length > total:
        return "ip-header-length"
    if total > len(packet):
        return "ip-total-length"
    if verify_checksum and checksum(packet[:header_length]):
        return "ip-checksum"
    return Ipv4(
        header_length,
        tos,
        total,
        ident,
        bool(flags & DONT_FRAGMENT),
        bool(flags & MORE_FRAGMENTS),
        (flags & OFFSET_MASK) * 8,
        ttl,
        protocol,
        source,
        destination,
        bytes(packet[HEADER:header_length]),
    )


def build(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = DEFAULT_TTL,
    tos: int = 0,
    identification: int = 0,
    flags_offset: int = 0,
    options: bytes = b"",
) -> bytes:
    """A whole packet.

    `flags_offset` is the third 16-bit word: DF and MF bits, and the offset in 8-byte units; `options` a multiple of 4.
    Raises ValueError when it would not fit 65,535 bytes.
    """
    header_length = HEADER + len(options)
    total = header_length + len(payload)
    if total > MAX_PACKET:
        raise ValueError(f"an IPv4 packet of {total} bytes does not fit {MAX_PACKET}")
    first = 0x40 | header_length // 4
    fields = (first, tos, total, identification, flags_offset, ttl, protocol)
    head = _HEADER.pack(*fields, 0, source, destination) + options
    return _HEADER.pack(*fields, checksum(head), source, destination) + options + payload


def format_address(address: bytes) -> str:
    """Dotted quad of a packed address."""
    first, second, third, fourth = address
    return f"{first}.{second}.{third}.{fourth}"
