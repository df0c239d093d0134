"""What one engine has seen and said, as plain numbers. Counting costs nothing on the hot path.

A batch is counted once, and what is taken by the hot path is what is left of it when everything else, which is counted
one by one, is taken away. What a connection counts for itself is added here when it ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from netstack.wire import ipv4, tcp

_PROTOCOL: Final = 23
_FLAGS: Final = 47
"""Places in a frame of ours whose IPv4 header has no options."""


class LossTotals:
    """What was lost on the way to guests, and how it was repaired: of one connection, or of many."""

    __slots__ = (
        "duplicates",
        "fast_repeats",
        "fast_starts",
        "sack_starts",
        "tail_probes",
        "timeout_repeats",
        "timeouts",
    )

    def __init__(self) -> None:
        self.timeouts = 0
        """Retransmission timers that ran out."""
        self.fast_starts = 0
        """Fast recoveries begun by duplicate acknowledgements alone."""
        self.sack_starts = 0
        """The same, where the guest sends SACK."""
        self.fast_repeats = 0
        """Segments sent again in them."""
        self.timeout_repeats = 0
        """Segments sent again after a timeout, SYNs among them."""
        self.tail_probes = 0
        """Segments sent again to ask what became of the last ones (RFC 8985 section 7)."""
        self.duplicates = 0
        """Segments that a guest said it got twice (RFC 2883)."""

    def add(self, other: LossTotals) -> None:
        """Add what another counted."""
        self.timeouts += other.timeouts
        self.fast_starts += other.fast_starts
        self.sack_starts += other.sack_starts
        self.fast_repeats += other.fast_repeats
        self.timeout_repeats += other.timeout_repeats
        self.tail_probes += other.tail_probes
        self.duplicates += other.duplicates

    @property
    def repeats(self) -> int:
        """Segments sent again, whatever for."""
        return self.fast_repeats + self.timeout_repeats + self.tail_probes


class Counters:
    """One engine's."""

    __slots__ = (
        "connections_called", "connections_failed", "connections_opened", "connections_reset", "connections_silent",
        "datagrams_long_way", "datagrams_quick", "frames", "icmp_received", "icmp_sent", "long_way", "losses",
        "packets_long_way", "packets_sent", "resets_received", "resets_sent", "segments_long_way", "segments_sent",
        "unserved_datagrams",
    )  # fmt: skip

    def __init__(self) -> None:
        self.frames = 0
        """Frames handed to `receive_frames`: whoever hands them over adds them, once a batch."""
        self.long_way = 0
        """Those that the hot path did not take."""
        self.packets_long_way = 0
        """IPv4 packets among these, fragments and malformed ones too."""
        self.segments_long_way = 0
        self.datagrams_long_way = 0
        self.datagrams_quick = 0
        """UDP datagrams that the hot path took."""
        self.unserved_datagrams = 0
        """Those for a port of the gateway that nobody serves."""
        self.icmp_received: Counter[int] = Counter()
        """By type."""
        self.icmp_sent: Counter[int] = Counter()
        self.packets_sent = 0
        """IP packets of UDP and ICMP for guests, before they are fragmented."""
        self.segments_sent = 0
        self.resets_sent = 0
        self.resets_received = 0
        self.connections_opened = 0
        """Handshakes completed that guests began."""
        self.connections_called = 0
        """Handshakes completed that we began: port forwards."""
        self.connections_failed = 0
        """Connections that ended before their handshake was complete."""
        self.connections_reset = 0
        """Those that were reset after it, by either side."""
        self.connections_silent = 0
        """Those whose guest did not answer any more."""
        self.losses = LossTotals()
        """Of connections that have ended."""

    @property
    def packets_received(self) -> int:
        """IPv4 packets from guests."""
        return self.frames - self.long_way + self.packets_long_way

    @property
    def segments_received(self) -> int:
        """TCP segments that are whole and have a right checksum."""
        return self.frames - self.long_way - self.datagrams_quick + self.segments_long_way

    @property
    def datagrams_received(self) -> int:
        """UDP datagrams, those for the gateway's own services too."""
        return self.datagrams_quick + self.datagrams_long_way

    @property
    def datagrams_sent(self) -> int:
        """UDP datagrams to guests, those of DNS and DHCP too."""
        return self.packets_sent - sum(self.icmp_sent.values())

    def went_out(self, frames: Sequence[bytes]) -> None:
        """Frames that did not wait for the end of a batch: SYNs, resets, challenges, DHCP's answers."""
        for frame in frames:
            if frame[_PROTOCOL] == ipv4.TCP:
                self.segments_sent += 1
                if frame[_FLAGS] & tcp.RST:
                    self.resets_sent += 1
            else:
                self.packets_sent += 1

    def losses_with(self, living: Iterable[LossTotals]) -> LossTotals:
        """The losses of all connections, those that live among them."""
        total = LossTotals()
        total.add(self.losses)
        for each in living:
            total.add(each)
        return total
