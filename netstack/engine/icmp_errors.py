"""ICMP errors the gateway sends: about which packets one may be sent at all, how many, and what it looks like."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from netstack.engine.counters import Counters
from netstack.engine.settings import NetworkSettings
from netstack.wire import icmp, ipv4

GUEST_RATE: Final = 200.0
"""Errors per second one guest address is sent (RFC 1812 section 4.3.2.8)."""
GUEST_BURST: Final = 200.0
"""Errors it may be sent at once: a browser that falls back from UDP on many connections is told at once."""
TOTAL_RATE: Final = 1000.0
TOTAL_BURST: Final = 1000.0
MAX_GUESTS: Final = 1024
"""Guest addresses whose rate is kept; the one first seen makes room for a new one."""

_INTERNETWORK_CONTROL: Final = 0xC0
"""Precedence of errors, RFC 1812 section 4.3.2.5."""
_UNSPECIFIED: Final = bytes(4)
_LIMITED_BROADCAST: Final = b"\xff" * 4


class _TokenBucket:
    __slots__ = ("_burst", "_rate", "_stamp", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._stamp = -math.inf

    def take(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._stamp) * self._rate)
        self._stamp = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class IcmpErrors:
    """Makes error packets. `drop` is called with a reason word for each error that may not be sent."""

    def __init__(
        self, settings: NetworkSettings, *, drop: Callable[[str], None], counters: Counters | None = None
    ) -> None:
        self._settings = settings
        self._sent = (counters or Counters()).icmp_sent
        self._drop = drop
        # The subnet's two broadcast forms (RFC 1122 section 3.2.1.3), and all ones.
        self._broadcasts = frozenset({settings.subnet, settings.broadcast_ip, _LIMITED_BROADCAST})
        # RFC 1812 section 4.3.2.3 wants as much as fits 576 bytes; a smaller link takes less, for the error has DF.
        self._largest = min(icmp.MAX_ERROR, settings.link.mtu)
        self._total = _TokenBucket(TOTAL_RATE, TOTAL_BURST)
        self._guests: dict[bytes, _TokenBucket] = {}

    def make(
        self,
        kind: int,
        code: int,
        packet: bytes,
        source: bytes,
        now: float,
        *,
        next_hop_mtu: int = 0,
        pointer: int = 0,
    ) -> bytes | None:
        """The whole IP packet that reports on `packet` to its sender, or None when none may be sent.

        `kind` and `code` are wire.icmp's; `source` is the gateway, or the address the guest addressed where a host
        would answer (port unreachable). Nothing may be reported about a packet that came in a broadcast frame (RFC 1122
        section 3.2.2): that is for the caller to know.
        """
        header = ipv4.parse(packet, verify_checksum=False)
        if isinstance(header, str) or not self._may_report(packet, header):
            self._drop("icmp-error-not-allowed")
            return None
        # As in Linux, path MTU discovery is never starved: its error is smaller than the packet it answers.
        if not (kind == icmp.UNREACHABLE and code == icmp.FRAGMENTATION_NEEDED) and not self._within_rate(
            header.source, now
        ):
            self._drop("icmp-error-rate")
            return None
        self._sent[kind] += 1
        message = icmp.build_error(
            kind,
            code,
            packet[: header.total_length],
            pointer=pointer,
            next_hop_mtu=next_hop_mtu,
            largest=max(self._largest, ipv4.HEADER + icmp.HEADER + header.header_length + icmp.MIN_QUOTED_PAYLOAD),
        )
        return ipv4.build(
            source,
            header.source,
            ipv4.ICMP,
            message,
            tos=_INTERNETWORK_CONTROL,
            flags_offset=ipv4.DONT_FRAGMENT,
        )

    def _may_report(self, packet: bytes, header: ipv4.Ipv4) -> bool:
        """RFC 1122 section 3.2.2 and RFC 1812 section 4.3.2.7."""
        if header.fragment_offset:
            return False
        if header.protocol == ipv4.ICMP and (
            header.total_length == header.header_length or packet[header.header_length] in icmp.ERROR_TYPES
        ):
            return False
        destination, source = header.destination, header.source
        if destination in self._broadcasts or 224 <= destination[0] < 240:
            return False
        # The sender must be one host: not this network, not loopback, no group, nothing reserved, no broadcast.
        return not (source[0] in (0, 127) or source[0] >= 224 or source in self._broadcasts)

    def _within_rate(self, guest: bytes, now: float) -> bool:
        bucket = self._guests.get(guest)
        if bucket is None:
            if len(self._guests) >= MAX_GUESTS:
                del self._guests[next(iter(self._guests))]
            bucket = self._guests[guest] = _TokenBucket(GUEST_RATE, GUEST_BURST)
        # The guest's own bound first: what it is refused there is not taken from the others.
        return bucket.take(now) and self._total.take(now)
