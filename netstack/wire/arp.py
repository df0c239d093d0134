"""ARP for IPv4 over Ethernet (RFC 826): 28 bytes, one layout."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

REQUEST: Final = 1
REPLY: Final = 2
SIZE: Final = 28

_PACKET = Struct("!6sH6s4s6s4s")
# Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4: the only combination there is on this link.
_ETHERNET_IPV4: Final = b"\x00\x01\x08\x00\x06\x04"


class Arp(NamedTuple):
    """One request or reply. `sender_ip` is 0.0.0.0 in a probe (RFC 5227 section 2.1.1)."""

    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes


def parse(payload: bytes | memoryview) -> Arp | str:
    """Read what follows the Ethernet header; bytes after the 28th are padding.

    Returns a reason word when it is not ours to read.
    """
    if len(payload) < SIZE:
        return "arp-truncated"
    kind, operation, sender_mac, sender_ip, target_mac, target_ip = _PACKET.unpack_from(payload)
    if kind != _ETHERNET_IPV4:
        return "arp-type"
    if operation not in (REQUEST, REPLY):
        return "arp-operation"
    return Arp(operation, sender_mac, sender_ip, target_mac, target_ip)


def build(operation: int, sender_mac: bytes, sender_ip: bytes, target_mac: bytes, target_ip: bytes) -> bytes:
    """The 28 bytes after the Ethernet header."""
    return _PACKET.pack(_ETHERNET_IPV4, operation, sender_mac, sender_ip, target_mac, target_ip)
