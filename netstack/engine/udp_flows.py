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
from netstack.engine.host_errors import HostErrors, quotable
from netstack.engine.outbox import Outbox
from netstack.engine.settings import NetworkSettings
from netstack.engine.timers import Timers
from netstack.wire import ipv4, udp


class UdpFlow:
    """What one guest port exchanges with one destination."""

    __slots__ = (
        "deadline", "destination", "dialled", "guest", "heard_at", "id", "key", "last_packet", "mapping", "opened_at",
        "peer", "received", "replied", "scheduled", "sent", "timeout",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        key: bytes,
        mapping: Mapping,
        peer: Peer,
        destination: tuple[bytes, int],
        dialled: tuple[bytes, int],
        now: float,
    ) -> None:
        self.id = number
        self.key = key
        self.mapping = mapping
        self.peer = peer
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


class Peer:
    """An address that a mapping's guest has sent to."""

    __slots__ = ("flows", "ports", "seen_as")

    def __init__(self) -> None:
        self.ports: dict[int, UdpFlow] = {}
        """Its ports -> the flow by which each was addressed last: NAT may give the guest two names for one address."""
        self.seen_as = b""
        """The address by which the guest knows it."""
        self.flows = 0
        """How many there are, all ports and names counted."""


class Mapping:
    """A guest's address and port, and the host socket that stands for them."""

    __slots__ = ("guest", "id", "peers")

    def __init__(self, number: int, guest: tuple[bytes, int]) -> None:
        self.id = number
        self.guest = guest
        self.peers: dict[bytes, Peer] = {}
        """By the address that is dialled."""


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
        peer = flow.peer
        peer.ports[datagram.destination_port] = flow
        peer.seen_as = header.destination
        flow.last_packet = quotable(packet)
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
        peer = mapping.peers.get(dialled)
        if peer is None:
            peer = mapping.peers[dialled] = Peer()
        peer.flows += 1
        destination = (header.destination, datagram.destination_port)
        target = (dialled, datagram.destination_port)
        flow = UdpFlow(self._outbox.next_flow(), key, mapping, peer, destination, target, now)
        flow.timeout = self._settings.udp_unreplied_timeout
        flow.deadline = now + flow.timeout
        self.table[key] = self._unreplied[flow.id] = flow
        self._timers.schedule(flow)
        self._outbox.report(FlowOpened(flow.id, "udp", flow.guest, destination, target))
        return flow

    def received(self, number: int, address: bytes, port: int, payload: bytes, now: float) -> None:
        """A datagram came to a mapping's host socket."""
        mapping = self._by_number.get(number)
        if mapping is None:
            return
        peer = mapping.peers.get(address)
        if peer is None:
            self._outbox.drop("udp-from-stranger")
            return
        source = peer.seen_as
        flow = peer.ports.get(port)
        if flow is not None:
            source = flow.destination[0]
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
        peer = mapping.peers.get(address) if mapping is not None else None
        flow = peer.ports.get(port) if peer is not None else None
        if flow is not None:
            self._host_errors.tell(failure, flow.last_packet, now, dialled=address, offender=offender, mtu=mtu)

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
        mapping, peer = flow.mapping, flow.peer
        address, port = flow.dialled
        peer.flows -= 1
        if peer.ports.get(port) is flow:
            del peer.ports[port]
        if not peer.flows:
            del mapping.peers[address]
        self._outbox.report(
            FlowClosed(
                flow.id, "udp", flow.guest, flow.destination, flow.dialled, reason, flow.sent, flow.received,
                now - flow.opened_at,
            )
        )  # fmt: skip
        if not mapping.peers:
            guest, guest_port = mapping.guest
            del self._mappings[guest + guest_port.to_bytes(2, "big")], self._by_number[mapping.id]
            self._outbox.effects.append(effects.CloseDatagrams(mapping.id))
