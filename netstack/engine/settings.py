"""What the engine is told before the first frame: addresses, limits and what the link can carry.

Plain frozen values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

BROADCAST_MAC = b"\xff" * 6
MAX_WINDOW = 4 << 20
"""Bytes of a TCP window at most."""


@dataclass(frozen=True, slots=True)
class ZoneRecord:
    """One A record of a local zone: by exact label(s) left of the zone, or by a regular expression searched in them.

    `address` is a packed IPv4 address (4 bytes). Exactly one of `name` and `regexp` is set; `name` may hold dots and is
    compared without case; an empty `name` with no regexp is the apex.
    """

    name: str
    address: bytes
    regexp: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Zone:
    """A DNS zone answered by the gateway itself. `name` without a trailing dot, lower case; "" is not allowed."""

    name: str
    records: tuple[ZoneRecord, ...] = ()
    default_ip: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTraits:
    """What the engine must know of the guest's link; guest_iface.link.LinkCapabilities says it to the driver."""

    mtu: int = 1500
    """Largest IP packet towards the guest, bytes, 68..65535."""
    queue_frames: int = 1000
    """Frames the link can hold towards us before it drops: bounds the window we advertise (window <= queue x MSS)."""
    verify_checksums: bool = True
    """False where bytes cannot be damaged on the way, and may be partial (offload): then they are not looked at."""
    tcp_window: int | None = None
    """Bytes that a TCP connection may have on its way, each way; None: what the link holds, MAX_WINDOW at most."""

    @property
    def mss(self) -> int:
        """The largest TCP segment, bytes: the MTU less two headers of 20 (RFC 9293 section 3.7.1)."""
        return self.mtu - 40

    @property
    def window(self) -> int:
        """What `tcp_window` says; else three quarters of what the queue holds. A segment at least, bytes."""
        follows = min(MAX_WINDOW, self.queue_frames * self.mss * 3 // 4)
        return max(self.mss, follows if self.tcp_window is None else self.tcp_window)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """The guest's network. Addresses are packed (4 bytes), MACs are 6 bytes; defaults are gvproxy's."""

    subnet: bytes = b"\xc0\xa8\x7f\x00"
    prefix_length: int = 24
    gateway_ip: bytes = b"\xc0\xa8\x7f\x01"
    device_ip: bytes = b"\xc0\xa8\x7f\x02"
    host_ip: bytes = b"\xc0\xa8\x7f\xfe"
    gateway_mac: bytes = b"\x5a\x94\xef\xe4\x0c\xdd"
    link: LinkTraits = field(default_factory=LinkTraits)
    nat: Mapping[bytes, bytes] = field(default_factory=lambda: {b"\xc0\xa8\x7f\xfe": b"\x7f\x00\x00\x01"})
    """Destination address the guest uses -> address that is dialled."""
    virtual_ips: frozenset[bytes] = frozenset({b"\xc0\xa8\x7f\xfe"})
    """Further addresses the gateway answers ARP for."""
    static_leases: Mapping[bytes, bytes] = field(default_factory=dict)
    """Guest MAC -> its address."""
    search_domains: tuple[str, ...] = ()
    zones: tuple[Zone, ...] = ()
    metadata_access: bool = False
    """True opens 169.254.0.0/16 to the guest (cloud metadata services live there)."""
    lease_time: int = 3600
    """Seconds."""
    udp_unreplied_timeout: float = 30.0
    """Seconds a UDP flow lives after its last datagram while the other side never answered."""
    udp_replied_timeout: float = 180.0
    """Seconds once it was answered (RFC 4787 section 4.3 asks for two minutes or more)."""
    tcp_keepalive: float = inf
    """Idle seconds before a guest is asked whether its connection still lives; off (RFC 9293 section 3.8.4)."""
    dial_timeout: float = 30.0
    """Seconds a TCP dial may take, each on its own."""
    max_tcp_flows: int = 16384
    max_udp_flows: int = 8192
    max_echo_flows: int = 256
    max_leases: int = 4096

    @property
    def netmask(self) -> int:
        """The subnet mask as a 32-bit number."""
        return (0xFFFFFFFF << (32 - self.prefix_length)) & 0xFFFFFFFF

    @property
    def broadcast_ip(self) -> bytes:
        """The subnet's directed broadcast address."""
        return (int.from_bytes(self.subnet, "big") | (~self.netmask & 0xFFFFFFFF)).to_bytes(4, "big")

    def in_subnet(self, address: bytes) -> bool:
        """Whether a packed address belongs to the guest's subnet."""
        mask = 0xFFFFFFFF << (32 - self.prefix_length) & 0xFFFFFFFF
        return int.from_bytes(address, "big") & mask == int.from_bytes(self.subnet, "big")

    def may_be_guest(self, address: bytes) -> bool:
        """Whether a packed address is one that a guest can have."""
        nobody = (self.subnet, self.broadcast_ip, self.gateway_ip)
        return self.in_subnet(address) and address not in nobody and address not in self.virtual_ips
