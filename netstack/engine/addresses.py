"""What kind of place an IP address is: public, or one of the many that must not be reached by a name.

Addresses are packed, 4 or 16 bytes. The tables are the IANA special-purpose registries (RFC 6890) and the places where
clouds keep their metadata services.
"""

from __future__ import annotations

from typing import Final

_SPECIAL_IPV4: Final = (
    (b"\x00\x00\x00\x00", 8, "unspecified"),  # RFC 1122 section 3.2.1.3
    (b"\x0a\x00\x00\x00", 8, "private"),  # RFC 1918
    (b"\x64\x40\x00\x00", 10, "cgnat"),  # RFC 6598
    (b"\x7f\x00\x00\x00", 8, "loopback"),
    (b"\xa9\xfe\x00\x00", 16, "link-local"),  # RFC 3927
    (b"\xac\x10\x00\x00", 12, "private"),
    (b"\xc0\x00\x00\x00", 24, "reserved"),  # RFC 6890: protocol assignments
    (b"\xc0\x00\x02\x00", 24, "reserved"),  # RFC 5737: documentation
    (b"\xc0\x58\x63\x00", 24, "reserved"),  # RFC 7526: 6to4 relays
    (b"\xc0\xa8\x00\x00", 16, "private"),
    (b"\xc6\x12\x00\x00", 15, "reserved"),  # RFC 2544: benchmarking
    (b"\xc6\x33\x64\x00", 24, "reserved"),  # RFC 5737
    (b"\xcb\x00\x71\x00", 24, "reserved"),  # RFC 5737
    (b"\xe0\x00\x00\x00", 4, "multicast"),
    (b"\xf0\x00\x00\x00", 4, "reserved"),  # RFC 1112 section 4, and 255.255.255.255
)
# The same by first byte, as (shift, number, word): most have none, and every address in a DNS answer is looked up.
_SPECIAL_BY_FIRST_BYTE: Final = tuple(
    tuple(
        (32 - length, int.from_bytes(network, "big") >> (32 - length), word)
        for network, length, word in _SPECIAL_IPV4
        if first >> max(0, 8 - length) == network[0] >> max(0, 8 - length)
    )
    for first in range(256)
)
_METADATA_IPV4: Final = frozenset(
    {
        b"\xa8\x3f\x81\x10",  # 168.63.129.16, Azure
        b"\xc0\x00\x00\xc0",  # 192.0.0.192, Oracle
        b"\x64\x64\x64\xc8",  # 100.100.100.200, Alibaba
    }
)
_METADATA_IPV6: Final = (
    b"\xfd\x00\x0e\xc2",  # fd00:ec2::/32, Amazon
    b"\xfd\x20\x00\xce",  # fd20:ce::/32, Google
    b"\xfd\x00\x00\xc1",  # fd00:c1::/32, Oracle
)
_NAT64: Final = b"\x00\x64\xff\x9b" + bytes(8)  # RFC 6052: an IPv4 address in the last four bytes
_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 section 2.5.5.2
_GLOBAL_IPV6_FIRST: Final = (0x20, 0x3F)  # 2000::/3, the only space given out (RFC 4291 section 2.4)


METADATA: Final = ("link-local", "metadata")
"""Kinds of places where a cloud's metadata service may live: link-local ones, and the few known addresses."""


def is_metadata(address: bytes) -> bool:
    """Whether a cloud's metadata service may live there."""
    return kind(address) in METADATA


def kind(address: bytes) -> str:
    """`public`, or what it is instead.

    That is: private, loopback, link-local, cgnat, multicast, reserved, metadata, unspecified, or embedded (a public
    IPv4 address written as an IPv6 one).
    """
    if len(address) == 4:
        if address in _METADATA_IPV4:
            return "metadata"
        special = _SPECIAL_BY_FIRST_BYTE[address[0]]
        if special:
            whole = int.from_bytes(address, "big")
            for shift, number, word in special:
                if whole >> shift == number:
                    return word
        return "public"
    embedded = _embedded_ipv4(address)
    if embedded is not None:
        # An IPv4 address in IPv6's clothes is judged as what it is, and is no public IPv6 address either.
        inner = kind(embedded)
        return inner if inner != "public" else "embedded"
    if address == bytes(16):
        return "unspecified"
    if address == bytes(15) + b"\x01":
        return "loopback"
    first = address[0]
    if first == 0xFF:
        return "multicast"
    if first == 0xFE and address[1] & 0xC0 == 0x80:
        return "link-local"
    if first & 0xFE == 0xFC:
        return "metadata" if address.startswith(_METADATA_IPV6) else "private"
    if not _GLOBAL_IPV6_FIRST[0] <= first <= _GLOBAL_IPV6_FIRST[1]:
        return "reserved"
    if address[:2] == b"\x20\x01" and (address[2] <= 1 or address[2:4] == b"\x0d\xb8"):
        return "reserved"  # protocol assignments, Teredo among them (RFC 2928: 2001::/23), documentation (RFC 3849)
    if address[:2] == b"\x3f\xff":
        return "reserved"  # documentation (RFC 9637)
    return "public"


def _embedded_ipv4(address: bytes) -> bytes | None:
    """The IPv4 address inside a mapped, compatible, NAT64 or 6to4 address."""
    if address.startswith((_MAPPED, _NAT64)):
        return address[12:]
    if address[:2] == b"\x20\x02":  # RFC 3056
        return address[2:6]
    if address[:12] == bytes(12) and address[12:] not in (bytes(4), b"\x00\x00\x00\x01"):  # RFC 4291 section 2.5.5.1
        return address[12:]
    if address[:6] == b"\x00\x64\xff\x9b\x00\x01":  # RFC 8215: NAT64 of the local network, whatever it embeds
        return b"\x0a\x00\x00\x00"
    return None
