"""Who is who in a capture: the guest, the gateway, and the network they are on.

A capture of our own says it (`recorded_settings`). Of any other one it is found out from its first frames, in this
order: what the caller says, DHCP, the direction flags of pcapng, who looks for whom by ARP, who opens connections.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from netstack.debug import packets
from netstack.debug.capture_reader import INBOUND, OUTBOUND, CapturedFrame, CaptureError
from netstack.engine.settings import LinkTraits, NetworkSettings
from netstack.wire import arp, dhcp, ethernet, tcp

DEFAULT_PREFIX: Final = 24
_MAC = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
QUEUE_FRAMES: Final = 65_535
"""A replayed guest waits for nobody: the window we offer is the largest there is."""
RAW_GUEST_MAC: Final = bytes.fromhex("020000000002")
"""What a guest is called in a capture of packets without Ethernet headers."""
RAW_GATEWAY_MAC: Final = bytes.fromhex("020000000001")


@dataclass(frozen=True, slots=True)
class Parties:
    """The result. Frames whose source is `gateway_mac` are the recorded host side; all others are guests'.

    `guest_ip` is empty where nobody had an address.
    """

    network: NetworkSettings
    guest_mac: bytes
    guest_ip: bytes
    how: str
    """How it was found out, for people."""

    @property
    def gateway_mac(self) -> bytes:
        """The recorded gateway's."""
        return self.network.gateway_mac


def parse_guest(text: str) -> bytes:
    """`--guest`: an IPv4 address (4 bytes) or a MAC (6 bytes). Raises ValueError."""
    if _MAC.fullmatch(text):
        return bytes.fromhex(text.replace(":", "").replace("-", ""))
    try:
        return ipaddress.IPv4Address(text).packed
    except ValueError:
        raise ValueError(f"{text!r} is neither an IPv4 address nor a MAC address") from None


def from_packet(frame: CapturedFrame, guest_ip: bytes) -> bytes:
    """A raw packet with the Ethernet header it would have had."""
    if frame.ethernet:
        return frame.data
    if frame.data[12:16] == guest_ip:
        return ethernet.frame(RAW_GATEWAY_MAC, RAW_GUEST_MAC, ethernet.IPV4, frame.data)
    return ethernet.frame(RAW_GUEST_MAC, RAW_GATEWAY_MAC, ethernet.IPV4, frame.data)


class _Seen:
    """What the first frames say."""

    def __init__(self, frames: Sequence[CapturedFrame]) -> None:
        self.frames: list[tuple[CapturedFrame, packets.Packet]] = [
            (each, packets.read(each.data) if each.ethernet else packets.read_ip(each.data)) for each in frames
        ]

    def dhcp(self) -> Iterable[tuple[CapturedFrame, dhcp.DhcpMessage]]:
        for frame, packet in self.frames:
            message = packets.dhcp_message(packet)
            if message is not None:
                yield frame, message


def find(frames: Sequence[CapturedFrame], guest: bytes | None, where: str) -> Parties:
    """Look at a capture's first frames. `guest` is its address (4 or 6 bytes) where the caller knows it.

    Raises CaptureError if nobody in it can be told to be the guest.
    """
    seen = _Seen(frames)
    guest_mac, guest_ip, how = _guest(seen, guest)
    if not guest_mac and not guest_ip:
        raise CaptureError(
            f"{where}: cannot tell who is the guest: no DHCP, no direction flags, nobody opens anything;"
            " say it with --guest IP or --guest MAC"
        )
    if any(not frame.ethernet for frame, _ in seen.frames):
        guest_mac, gateway_mac = RAW_GUEST_MAC, RAW_GATEWAY_MAC
    else:
        if not guest_mac:
            guest_mac = _mac_of(seen, guest_ip, where)
        gateway_mac = _gateway_mac(seen, guest_mac)
    guest_ip = guest_ip or _ip_of(seen, guest_mac)
    return Parties(_network(seen, guest_mac, guest_ip, gateway_mac), guest_mac, guest_ip, how)


def _guest(seen: _Seen, guest: bytes | None) -> tuple[bytes, bytes, str]:
    """MAC and address, one of which may be empty, and how they were found."""
    if guest is not None:
        return (guest, b"", "--guest") if len(guest) == 6 else (b"", guest, "--guest")
    for _frame, message in seen.dhcp():
        if message.op == dhcp.BOOT_REPLY and any(message.yiaddr):
            return message.chaddr[:6], message.yiaddr, "DHCP"
    for frame, message in seen.dhcp():
        if message.op == dhcp.BOOT_REQUEST and frame.ethernet:
            return message.chaddr[:6], b"", "DHCP"
    for frame, packet in seen.frames:
        if frame.direction == INBOUND and frame.ethernet and ethernet.is_unicast(frame.data[6:12]):
            return frame.data[6:12], b"", "the direction flags"
        if frame.direction == INBOUND and packet.source:
            return b"", packet.source, "the direction flags"
    asked = [
        frame.data[6:12]
        for frame, packet in seen.frames
        if packet.kind == "arp" and packet.flags == arp.REQUEST and packet.source not in (packet.destination, bytes(4))
    ]
    opened = [
        (frame.data[6:12] if frame.ethernet else b"", packet.source)
        for frame, packet in seen.frames
        if (packet.kind == "tcp" and packet.flags & (tcp.SYN | tcp.ACK) == tcp.SYN)
        or (packet.kind == "udp" and packet.destination_port in (53, 443, 123))
        or (packet.kind == "icmp" and packet.flags >> 8 == 8)
    ]
    if opened:
        mac, address = opened[0]
        return mac, address, "who opens connections"
    if asked:
        return asked[0], b"", "who asks by ARP"
    for frame, packet in seen.frames:
        if packet.header is not None:
            return (frame.data[6:12] if frame.ethernet else b""), packet.source, "who speaks first"
    return b"", b"", ""


def _mac_of(seen: _Seen, address: bytes, where: str) -> bytes:
    for frame, packet in seen.frames:
        if packet.source == address and ethernet.is_unicast(frame.data[6:12]):
            return frame.data[6:12]
    looked = len(seen.frames)
    raise CaptureError(f"{where}: --guest: nothing comes from {_dotted(address)} in the first {looked} frames")


def _ip_of(seen: _Seen, mac: bytes) -> bytes:
    sources = Counter(
        packet.source
        for frame, packet in seen.frames
        if frame.data[6:12] == mac and packet.source and any(packet.source)
    )
    return sources.most_common(1)[0][0] if sources else b""


def _gateway_mac(seen: _Seen, guest_mac: bytes) -> bytes:
    """Whom the guest talks to most, or who talks to it."""
    partners: Counter[bytes] = Counter()
    for frame, packet in seen.frames:
        destination, source = frame.data[:6], frame.data[6:12]
        if source == guest_mac and destination and not destination[0] & 1:
            partners[destination] += 1
        elif destination == guest_mac or (frame.direction == OUTBOUND and packets.dhcp_message(packet)):
            partners[source] += 1
    return partners.most_common(1)[0][0] if partners else NetworkSettings().gateway_mac


def _network(seen: _Seen, guest_mac: bytes, guest_ip: bytes, gateway_mac: bytes) -> NetworkSettings:
    """The guest's network as the recorded gateway had it, as far as it can be seen."""
    lease: dhcp.DhcpMessage | None = None
    for _frame, message in seen.dhcp():
        if message.op == dhcp.BOOT_REPLY and any(message.yiaddr):
            lease = message
    prefix = DEFAULT_PREFIX
    gateway_ip = b""
    if lease is not None:
        mask = lease.options.get(dhcp.SUBNET_MASK, b"")
        if len(mask) == 4:
            prefix = int.from_bytes(mask, "big").bit_count()
        gateway_ip = lease.options.get(dhcp.SERVER_IDENTIFIER, b"") or lease.options.get(dhcp.ROUTER, b"")[:4]
    prefix = min(max(prefix, 8), 30)
    base = guest_ip or (lease.yiaddr if lease is not None else NetworkSettings().device_ip)
    mask_number = (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF
    subnet_number = int.from_bytes(base, "big") & mask_number
    subnet = subnet_number.to_bytes(4, "big")
    neighbours = {
        packet.source
        for frame, packet in seen.frames
        if (frame.data[6:12] == gateway_mac if frame.ethernet else packet.source != guest_ip)
        and len(packet.source) == 4
        and int.from_bytes(packet.source, "big") & mask_number == subnet_number
        and packet.source not in (guest_ip, subnet)
    }
    dns_servers = {
        packet.destination
        for frame, packet in seen.frames
        if packet.kind == "udp" and packet.destination_port == 53 and packet.destination in neighbours
    }
    if not gateway_ip:
        known = sorted(dns_servers) or []
        gateway_ip = known[0] if known else _unused(subnet_number, prefix, neighbours | {guest_ip})
    spoken_to = {
        packet.destination
        for frame, packet in seen.frames
        if packet.kind in ("tcp", "udp") and packet.destination_port not in (53, 67, 68)
    }
    # On-link servers are reached through host sockets, as others are; what the gateway's own address serves too.
    reached = {each for each in neighbours if each != gateway_ip or (each in spoken_to and each not in dns_servers)}
    mss = [
        options.mss + 40
        for _, packet in seen.frames
        if packet.kind == "tcp" and packet.flags & (tcp.SYN | tcp.ACK) == tcp.SYN | tcp.ACK
        if (options := tcp.parse_options(packet.options)).mss
    ]
    mtu = min(max(mss[0], 576), 65_521) if mss else 1500
    return replace(
        NetworkSettings(),
        subnet=subnet,
        prefix_length=prefix,
        gateway_ip=gateway_ip,
        gateway_mac=gateway_mac,
        device_ip=guest_ip or base,
        host_ip=gateway_ip,
        nat={each: each for each in reached},
        virtual_ips=frozenset(reached - {gateway_ip}),
        static_leases={guest_mac: guest_ip} if guest_ip and guest_mac else {},
        link=LinkTraits(mtu=mtu, queue_frames=QUEUE_FRAMES, verify_checksums=False),
    )


def _unused(subnet: int, prefix: int, taken: set[bytes]) -> bytes:
    for number in range(subnet + 1, subnet + (1 << (32 - prefix)) - 1):
        address = number.to_bytes(4, "big")
        if address not in taken:
            return address
    return NetworkSettings().gateway_ip


def _dotted(address: bytes) -> str:
    return ".".join(map(str, address))
