"""What filters look at in a frame: addresses, protocol and ports, read once, by offset. No decision, no checksum."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

ARP: Final = 0x0806
IPV4: Final = 0x0800
IPV6: Final = 0x86DD
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMP6: Final = 58
NONE: Final = -1
"""No such field in this frame."""

_HEADER: Final = 14
_VLAN_TYPES: Final = (b"\x81\x00", b"\x88\xa8")
_MAX_TAGS: Final = 2
_MAX_EXTENSIONS: Final = 8
_IPV6_EXTENSIONS: Final = (0, 43, 60)
"""Hop-by-hop options, routing, destination options: each tells its own length (RFC 8200 section 4)."""
_IPV6_FRAGMENT: Final = 44
_PORTS: Final = Struct("!HH")
_NO_PORTS: Final = (NONE, NONE, NONE)


class Fields(NamedTuple):
    """Of one frame. Addresses are packed: 6 bytes of MACs, 4 or 16 of IP; empty where there is none."""

    ethertype: int
    """Behind VLAN tags, if there are any."""
    mac_source: bytes
    mac_destination: bytes
    protocol: int = NONE
    """IPv4's protocol, or the last of IPv6's next headers."""
    source: bytes = b""
    destination: bytes = b""
    source_port: int = NONE
    """Of TCP and UDP; NONE in all fragments but the first, which has them."""
    destination_port: int = NONE
    tcp_flags: int = NONE
    """TCP's eight flags; NONE as of the ports."""


def read_fields(frame: bytes) -> Fields:
    """The fields of a frame, as far as it is long enough to have them. Raises nothing."""
    at = _HEADER
    kind = frame[12:14]
    for _ in range(_MAX_TAGS):
        if kind not in _VLAN_TYPES:
            break
        kind = frame[at + 2 : at + 4]
        at += 4
    ethertype = int.from_bytes(kind, "big")
    source_mac, destination_mac = frame[6:12], frame[:6]
    if ethertype == IPV4 and len(frame) >= at + 20:
        protocol = frame[at + 9]
        # RFC 791 section 3.1: the 13 bits of the fragment's offset.
        later = (frame[at + 6] & 0x1F) or frame[at + 7]
        ports = _NO_PORTS if later else _ports(frame, protocol, at + 4 * (frame[at] & 15))
        return Fields(
            ethertype, source_mac, destination_mac, protocol, frame[at + 12 : at + 16], frame[at + 16 : at + 20], *ports
        )
    if ethertype == IPV6 and len(frame) >= at + 40:
        return _ipv6(frame, at)
    if ethertype == ARP and len(frame) >= at + 28:
        # RFC 826 with the address lengths of Ethernet and IPv4, which is all that is in use.
        source, destination = frame[at + 14 : at + 18], frame[at + 24 : at + 28]
        return Fields(ethertype, source_mac, destination_mac, NONE, source, destination)
    return Fields(ethertype, source_mac, destination_mac)


def _ipv6(frame: bytes, at: int) -> Fields:
    protocol, text = frame[at + 6], at + 40
    ports = _NO_PORTS
    for _ in range(_MAX_EXTENSIONS):
        if protocol == _IPV6_FRAGMENT and len(frame) >= text + 8:
            if frame[text + 2] or frame[text + 3] & 0xF8:
                protocol = frame[text]
                break
            protocol, text = frame[text], text + 8
        elif protocol in _IPV6_EXTENSIONS and len(frame) >= text + 8:
            protocol, text = frame[text], text + 8 * (frame[text + 1] + 1)
        else:
            ports = _ports(frame, protocol, text)
            break
    return Fields(
        IPV6, frame[6:12], frame[:6], protocol, frame[at + 8 : at + 24], frame[at + 24 : at + 40], *ports
    )  # fmt: skip


def _ports(frame: bytes, protocol: int, text: int) -> tuple[int, int, int]:
    """Both ports, and TCP's flags."""
    if protocol in (TCP, UDP) and len(frame) >= text + 4:
        source, destination = _PORTS.unpack_from(frame, text)
        return source, destination, frame[text + 13] if protocol == TCP and len(frame) > text + 13 else NONE
    return _NO_PORTS
