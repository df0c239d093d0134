"""UDP through NAT: one host socket for each guest address and port.

The mapping is endpoint-independent (RFC 4787 section 4.1).

A *flow* here is what one guest port exchanges with one destination; its mapping owns the host socket and lives as long
as any of its flows. Answers are let in from addresses the guest has sent to (address-dependent filtering, RFC 4787
section 5), whatever their port.
"""

from __future__ import annotations

from math import inf

from netstack.engine import effects
from netstack.engine.events import FlowClosed, FlowOpened
from netstack.engine.host_errors import HostErrors
from netstack.engine.outbox import Outbox
from netstack.engine.settings import NetworkSettings
from netstack.engine.timers import Timers
from netstack.wire import ipv4, udp


class UdpFlow:
    """What one guest port exchanges with one destination."""

    __slots__ = (
        "deadline", "destination", "dialled", "guest", "heard_at", "id", "key", "last_packet", "mapping", "opened_at",
        "received", "replied", "scheduled", "sent", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        key: bytes,
        mapping: Mapping,
        destination: tuple[bytes, int],
        dialled: tuple[bytes, int],
        now: float,
    ) -> None:
        self.id = number
        self.key = key
        self.mapping = mapping
        self.guest = mapping.guest
        self.destination = destination
        self.dialled = dialled
        self.last_packet = b""
        """The start of the guest's last packet: an ICMP error quotes it."""
        self.replied = False
        self.opened_at = now
        self.heard_at = now
        self.timeout = 0.0
        self.deadline = inf
        self.scheduled = inf
        self.sent = 0
        self.received = 0


class Mapping:
    """A guest's address and port, and the host socket that stands for them."""

    __slots__ = ("flows", "guest", "id", "seen_as")

    def __init__(self, number: int, guest: tuple[bytes, int]) -> None:
        self.id = number
        self.guest = guest
        self.flows: dict[tuple[bytes, int], UdpFlow] = {}
        """By the address and port that are dialled."""
        self.seen_as: dict[bytes, bytes] = {}
        """Dialled address -> the address the guest knows it by."""


class UdpFlows:
    """Every UDP flow of one engine. `table` has them by the 12 bytes of addresses and ports."""

    def __init__(self, settings: NetworkSettings, outbox: Outbox, host_errors: HostErrors) -> None:
        self.table: dict[bytes, UdpFlow] = {}
        self._settings = settings
        self._outbox = outbox
        self._host_errors = host_errors
        self._mappings: dict[bytes, Mapping] = {}
        self._by_number: dict[int, Mapping] = {}
        self._unreplied: dict[int, UdpFlow] = {}
        self._timers: Timers[UdpFlow] = Timers()

    def send(self, key: bytes, packet: bytes, header: ipv4.Ipv4, datagram: udp.Udp, dialled: bytes, now: float) -> None:
        """A datagram from the guest to `dialled`, the address after NAT."""
        flow = self.table.get(key)
        if flow is None:
            flow = self._open(key, header, datagram, dialled, now)
        flow.last_packet = packet[:576]
        flow.heard_at = now
        flow.sent += len(datagram.payload)
        self._outbox.effects.append(
            effects.SendDatagram(flow.mapping.id, *flow.dialled, datagram.payload, max(0, header.ttl - 1))
        )

    def _open(self, key: bytes, header: ipv4.Ipv4, datagram: udp.Udp, dialled: bytes, now: float) -> UdpFlow:
        if len(self.table) >= self._settings.max_udp_flows:
            # The oldest that was never answered makes room, else the oldest of all.
            oldest = next(iter(self._unreplied.values()), None) or next(iter(self.table.values()))
            self._outbox.drop("udp-table-full")
            self._close(oldest, "evicted", now)
        place = header.source + datagram.source_port.to_bytes(2, "big")
        mapping = self._mappings.get(place)
        if mapping is None:
            mapping = Mapping(self._outbox.next_flow(), (header.source, datagram.source_port))
            self._mappings[place] = self._by_number[mapping.id] = mapping
            self._outbox.effects.append(effects.OpenDatagrams(mapping.id))
        destination = (header.destination, datagram.destination_port)
        target = (dialled, datagram.destination_port)
        flow = UdpFlow(self._outbox.next_flow(), key, mapping, destination, target, now)
        flow.timeout = self._settings.udp_unreplied_timeout
        flow.deadline = now + flow.timeout
        self.table[key] = mapping.flows[target] = self._unreplied[flow.id] = flow
        mapping.seen_as[dialled] = header.destination
        self._timers.schedule(flow)
        self._outbox.report(FlowOpened(flow.id, "udp", flow.guest, destination, target))
        return flow

    def received(self, number: int, address: bytes, port: int, payload: bytes, now: float) -> None:
        """A datagram came to a mapping's host socket."""
        mapping = self._by_number.get(number)
        if mapping is None:
            return
        source = mapping.seen_as.get(address)
        if source is None:
            self._outbox.drop("udp-from-stranger")
            return
        flow = mapping.flows.get((address, port))
        if flow is not None:
            flow.heard_at = now
            flow.received += len(payload)
            if not flow.replied:
                flow.replied = True
                flow.timeout = self._settings.udp_replied_timeout
                self._unreplied.pop(flow.id, None)
        guest, guest_port = mapping.guest
        self._outbox.send(source, guest, ipv4.UDP, udp.build(source, port, guest, guest_port, payload))

    def failed(
        self, number: int, address: bytes, port: int, failure: int, now: float, *, offender: bytes, mtu: int
    ) -> None:
        """The host was told, or found out, that a datagram did not arrive."""
        mapping = self._by_number.get(number)
        flow = mapping.flows.get((address, port)) if mapping is not None else None
        if flow is not None and flow.last_packet:
            self._host_errors.tell(failure, flow.last_packet, flow.destination[0], now, offender=offender, mtu=mtu)

    def guest_left(self, guests: frozenset[bytes], now: float) -> None:
        """The guests with these addresses are gone."""
        for flow in [flow for flow in self.table.values() if flow.guest[0] in guests]:
            self._close(flow, "guest left", now)

    def next_deadline(self) -> float:
        """When `advance` wants to be called."""
        return self._timers.next_deadline()

    def advance(self, now: float) -> None:
        """End the flows that were silent for too long."""
        for flow in self._timers.due(now):
            flow.deadline = flow.heard_at + flow.timeout
            if flow.deadline <= now:
                self._close(flow, "idle", now)
            else:
                self._timers.schedule(flow)

    def _close(self, flow: UdpFlow, reason: str, now: float) -> None:
        flow.deadline = inf
        flow.last_packet = b""
        del self.table[flow.key]
        self._unreplied.pop(flow.id, None)
        mapping = flow.mapping
        del mapping.flows[flow.dialled]
        self._outbox.report(
            FlowClosed(
                flow.id, "udp", flow.guest, flow.destination, flow.dialled, reason, flow.sent, flow.received,
                now - flow.opened_at,
            )
        )  # fmt: skip
        if mapping.flows:
            if all(address != flow.dialled[0] for address, _ in mapping.flows):
                del mapping.seen_as[flow.dialled[0]]
            return
        guest, port = mapping.guest
        del self._mappings[guest + port.to_bytes(2, "big")], self._by_number[mapping.id]
        self._outbox.effects.append(effects.CloseDatagrams(mapping.id))
