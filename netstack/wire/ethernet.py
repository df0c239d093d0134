"""Ethernet II: 6 bytes destination, 6 bytes source, 2 bytes type; no tag, no FCS."""

from __future__ import annotations

from typing import Final

HEADER: Final = 14
BROADCAST: Final = b"\xff" * 6
IPV4: Final = b"\x08\x00"
ARP: Final = b"\x08\x06"
IPV6: Final = b"\x86\xdd"
VLAN: Final = b"\x81\x00"


def frame(destination: bytes, source: bytes, ethertype: bytes, payload: bytes) -> bytes:
    """A whole frame. Not padded to 60 bytes: no wire carries it."""
    return b"%b%b%b%b" % (destination, source, ethertype, payload)


def is_unicast(mac: bytes) -> bool:
    """Whether a 6-byte MAC names one station (group bit clear) and is not all zeros."""
    return not mac[0] & 1 and any(mac)


def format_mac(mac: bytes) -> str:
    """`aa:bb:cc:dd:ee:ff`, lower case."""
    return mac.hex(":")
