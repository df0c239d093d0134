"""What the engine has to say: effects for the driver, frames for the guest, and counts for whoever asks."""

from __future__ import annotations

from netstack.engine.counters import Counters
from netstack.engine.effects import Effect, Report
from netstack.engine.events import Event, FrameDropped
from netstack.engine.refusals import is_told
from netstack.wire import ipv4, udp


class Outbox:
    """Shared by every part of one engine; the stack empties it."""

    __slots__ = ("_identification", "_last_flow", "counters", "dropped", "effects", "frames", "packets")

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.frames: list[bytes] = []
        """Frames that do not wait for the end of the batch: answers, errors, resets, in order."""
        self.packets: list[tuple[bytes, bytes]] = []
        """(destination address, IP packet) for the guest's subnet; the stack finds the MAC and fragments."""
        self.dropped: dict[str, int] = {}
        """Frames, packets and flows refused, by reason word."""
        self.counters = Counters()
        self._last_flow = 0
        self._identification = 0

    def next_flow(self) -> int:
        """A flow number never given before."""
        self._last_flow += 1
        return self._last_flow

    def send(self, source: bytes, destination: bytes, protocol: int, payload: bytes) -> None:
        """Queue an IP packet for the guest.

        It may be fragmented, so it has an identification (RFC 6864 section 4.3).
        """
        self._identification = (self._identification + 1) & 0xFFFF
        packet = ipv4.build(source, destination, protocol, payload, identification=self._identification)
        if protocol == ipv4.ICMP:
            self.counters.icmp_sent[payload[0]] += 1
        self.packets.append((destination, packet))

    def send_datagram(
        self, source: bytes, source_port: int, destination: bytes, destination_port: int, payload: bytes
    ) -> None:
        """Queue a UDP datagram for the guest, as `send` does."""
        self._identification = (self._identification + 1) & 0xFFFF
        packet = udp.packet(source, source_port, destination, destination_port, payload, self._identification)
        self.packets.append((destination, packet))

    def drop(self, reason: str) -> None:
        """Count a drop; the 1st, 10th, 100th, ... of a reason is an event, so that a flood cannot fill a log."""
        total = self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if is_told(total):
            self.report(FrameDropped(reason, total))

    def report(self, event: Event) -> None:
        """Tell people of something."""
        self.effects.append(Report(event))
