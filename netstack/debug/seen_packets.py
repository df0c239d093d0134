"""One frame of a capture as a value: who to whom, which protocol, and what a story needs of it.

Nothing here raises for what is in a frame: one that cannot be read is a packet of kind `other` whose `fault` says why.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from netstack.wire import arp, ethernet, icmp, ipv4, tcp, udp

UNKNOWN: Final = 0
FROM_GUEST: Final = 1
TO_GUEST: Final = 2
"""Directions, as a capture's flags have them (guest_iface.pcapng)."""

Endpoint = tuple[bytes, int]
"""A packed address, 4 or 16 bytes, and a port: 0 where there is none, the identifier for echo."""

_NOBODY: Final[Endpoint] = (b"", 0)
_IPV6_HEADER: Final = 40
_IPV6 = Struct("!IHBB16s16s")
_VLAN_TAG: Final = 4
# Extension headers that are skipped: hop-by-hop options, routing, destination options (RFC 8200 section 4).
_IPV6_EXTENSIONS: Final = (0, 43, 60)
_IPV6_FRAGMENT: Final = 44
_ICMPV6: Final = 58
_MAX_EXTENSIONS: Final = 8


class Recorded(NamedTuple):
    """A frame as a capture has it.

    `number` counts from 1. `time` in seconds since 1970. `direction` is UNKNOWN where the capture does not say.
    `size` is the frame's length on the wire, of which `data` may hold less (snaplen). Without `ethernet` it is a bare
    IP packet.
    """

    number: int
    time: float
    direction: int
    data: bytes
    size: int
    comment: str = ""
    ethernet: bool = True


class Segment(NamedTuple):
    """The header of a TCP segment. `length`: bytes of text on the wire; `window` as sent, before its scale."""

    sequence: int
    acknowledgement: int
    flags: int
    window: int
    options: tcp.TcpOptions
    length: int


class Packet(NamedTuple):
    """What a frame is. `kind`: tcp, udp, icmp, arp, ip (another protocol, or a later fragment) or other.

    `source` and `destination` have ports where the protocol has any. `payload` is what was captured behind the
    transport's header. `protocol` is the number in the IP header. `packet_size`: bytes of the IP packet. `source_mac`
    is empty where the link has none.
    """

    number: int
    time: float
    direction: int
    size: int
    comment: str
    kind: str
    source: Endpoint = _NOBODY
    destination: Endpoint = _NOBODY
    payload: bytes = b""
    segment: Segment | None = None
    icmp: icmp.Echo | icmp.IcmpError | None = None
    arp: arp.Arp | None = None
    protocol: int = 0
    fragment: bool = False
    dont_fragment: bool = False
    packet_size: int = 0
    fault: str = ""
    source_mac: bytes = b""


def decode(frame: Recorded) -> Packet:
    """Read a frame. Raises nothing."""
    data, blank = frame.data, Packet(frame.number, frame.time, frame.direction, frame.size, frame.comment, "other")
    mac = b""
    if not frame.ethernet:
        ethertype = ethernet.IPV6 if data[:1] and data[0] >> 4 == 6 else ethernet.IPV4
    else:
        mac, ethertype, data = data[6:12], data[12:14], data[ethernet.HEADER :]
        if ethertype == ethernet.VLAN:
            ethertype, data = data[2:4], data[_VLAN_TAG:]
    blank = blank._replace(source_mac=mac)
    if len(frame.data) < frame.size:
        # Cut off by the capture: the lengths in the headers still count, and what is missing reads as zeros.
        data = data.ljust(len(data) + frame.size - len(frame.data), b"\0")
    if ethertype == ethernet.IPV4:
        return _ipv4(blank, data)
    if ethertype == ethernet.IPV6:
        return _ipv6(blank, data)
    if ethertype == ethernet.ARP:
        message = arp.parse(data)
        if isinstance(message, str):
            return blank._replace(fault=message)
        return blank._replace(
            kind="arp", arp=message, source=(message.sender_ip, 0), destination=(message.target_ip, 0)
        )
    return blank._replace(fault=f"ethertype 0x{ethertype.hex()}" if ethertype else "frame too short")


def _ipv4(blank: Packet, data: bytes) -> Packet:
    header = ipv4.parse(data, verify_checksum=False)
    if isinstance(header, str):
        return blank._replace(fault=header)
    body = data[header.header_length : header.total_length]
    found = blank._replace(
        kind="ip",
        source=(header.source, 0),
        destination=(header.destination, 0),
        protocol=header.protocol,
        fragment=header.more_fragments or header.fragment_offset > 0,
        dont_fragment=header.dont_fragment,
        packet_size=header.total_length,
    )
    if header.fragment_offset:
        return found._replace(payload=body)
    if header.protocol == ipv4.ICMP:
        return _icmp(found, body)
    return _transport(found, header.protocol, body)


def _ipv6(blank: Packet, data: bytes) -> Packet:
    if len(data) < _IPV6_HEADER:
        return blank._replace(fault="ip-truncated")
    _, length, following, _, source, destination = _IPV6.unpack_from(data)
    body = data[_IPV6_HEADER : _IPV6_HEADER + length]
    for _ in range(_MAX_EXTENSIONS):
        if following not in _IPV6_EXTENSIONS or len(body) < 8:
            break
        following, body = body[0], body[8 + body[1] * 8 :]
    found = blank._replace(
        kind="ip",
        source=(source, 0),
        destination=(destination, 0),
        protocol=following,
        fragment=following == _IPV6_FRAGMENT,
        packet_size=_IPV6_HEADER + length,
        payload=body,
    )
    return found if following in (_IPV6_FRAGMENT, _ICMPV6) else _transport(found, following, body)


def _transport(found: Packet, protocol: int, body: bytes) -> Packet:
    source, destination = found.source[0], found.destination[0]
    if protocol == ipv4.TCP:
        if len(body) < tcp.HEADER:
            return found._replace(fault="tcp-truncated")
        source_port, destination_port, sequence, acknowledgement, offset_flags, window, _, _ = tcp.FIELDS.unpack_from(
            body
        )
        start = (offset_flags >> 12) * 4
        if not tcp.HEADER <= start <= len(body):
            return found._replace(fault="tcp-offset")
        options = tcp.parse_options(body[tcp.HEADER : start])
        segment = Segment(sequence, acknowledgement, offset_flags & 0x3F, window, options, len(body) - start)
        return found._replace(
            kind="tcp",
            source=(source, source_port),
            destination=(destination, destination_port),
            segment=segment,
            payload=body[start:],
        )
    if protocol == ipv4.UDP:
        datagram = udp.parse(body, source, destination, verify_checksum=False)
        if not isinstance(datagram, str):
            return found._replace(
                kind="udp",
                source=(source, datagram.source_port),
                destination=(destination, datagram.destination_port),
                payload=datagram.payload,
            )
        if found.fragment and len(body) >= udp.HEADER:  # its length is the whole datagram's
            return found._replace(
                kind="udp",
                source=(source, int.from_bytes(body[:2], "big")),
                destination=(destination, int.from_bytes(body[2:4], "big")),
                payload=body[udp.HEADER :],
            )
        return found._replace(fault=datagram)
    return found._replace(payload=body)


def _icmp(found: Packet, body: bytes) -> Packet:
    message = icmp.parse(body, verify_checksum=False)
    if isinstance(message, str):
        return found._replace(kind="icmp", fault=message, payload=body)
    if isinstance(message, icmp.Echo):
        # Both ends of an echo have its identifier, so that request and reply are one conversation.
        source = (found.source[0], message.identifier)
        return found._replace(
            kind="icmp",
            icmp=message,
            source=source,
            destination=(found.destination[0], message.identifier),
            payload=message.payload,
        )
    return found._replace(kind="icmp", icmp=message)


def endpoint_text(endpoint: Endpoint) -> str:
    """`10.0.0.5:443`, `[2001:db8::1]:443`, or the address alone when the port is 0."""
    address, port = endpoint
    shown = address_text(address)
    if not port:
        return shown
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


def address_text(address: bytes) -> str:
    """A packed address as text; `?` for what is none."""
    if len(address) == 4:
        return ipv4.format_address(address)
    if len(address) == 16:
        import ipaddress  # IPv6 is rare on these links, and the import is not free

        return str(ipaddress.IPv6Address(address))
    return "?"


def flags_text(flags: int) -> str:
    """TCP flags in tcpdump's letters: `S`, `S.`, `P.`, `F.`, `R`."""
    letters = (("S", tcp.SYN), ("F", tcp.FIN), ("R", tcp.RST), ("P", tcp.PSH), ("U", tcp.URG), (".", tcp.ACK))
    return "".join(letter for letter, flag in letters if flags & flag)
