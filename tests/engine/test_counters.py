"""What the engine counts is what was there: each number next to what the guest sent and heard, by scapy's reckoning."""

from __future__ import annotations

from collections import Counter

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw

from netstack.engine import snapshot
from netstack.engine.effects import OpenDatagrams, OpenStream

from .wire_guest import BROADCAST_MAC, GATEWAY, GUEST, GUEST_MAC, SERVER, VirtualWire, ip


class CountedWire(VirtualWire):
    """Counts batches as the driver does, and keeps all that was heard."""

    def send(self, *packets: Packet | bytes, **options: str) -> None:  # type: ignore[override]
        self.stack.counters.frames += len(packets)
        super().send(*packets, **options)

    def segment(self, flags: str, seq: int = 1000, ack: int = 7001, data: bytes = b"", dport: int = 80) -> Packet:
        header = TCP(sport=40_000, dport=dport, flags=flags, seq=seq, ack=ack, window=60_000)
        packet = IP(src=GUEST, dst=SERVER) / header
        return packet / Raw(data) if data else packet

    def connect(self) -> int:
        """A connection to a server that is there; the flow's number."""
        self.send(self.segment("S"))
        flow = self.asked_one(OpenStream).flow
        self.stack.stream_opened(flow, self.now)
        self.send(self.segment("A", 1001))
        return flow


@pytest.mark.parametrize("verify", [True, False])
def test_every_segment_is_counted_on_both_ways_in(verify: bool) -> None:
    """With checksums to verify all of them go the long way; without, those of an open connection do not."""
    wire = CountedWire(verify=verify)
    flow = wire.connect()
    for number in range(20):
        wire.send(wire.segment("PA", 1001 + number * 10, data=b"x" * 10))
    wire.stack.stream_received(flow, b"y" * 5000)
    counters = wire.stack.counters
    heard = wire.hear()
    assert counters.segments_received == counters.packets_received == 22
    assert counters.segments_sent == len(heard) == len([frame for frame in heard if TCP in frame])
    assert (counters.connections_opened, counters.connections_failed, counters.resets_sent) == (1, 0, 0)
    assert snapshot.gauges(wire.stack)[:2] == (1, 1)
    wire.send(wire.segment("RA", 1201))
    assert (counters.resets_received, counters.connections_reset) == (1, 1)
    assert snapshot.gauges(wire.stack)[:2] == (0, 0)
    assert (counters.long_way >= 23) == verify


def test_resets_and_connections_that_never_were() -> None:
    wire = CountedWire()
    wire.send(wire.segment("A", dport=81))  # stray: reset
    wire.send(wire.segment("R", dport=81))  # a reset itself
    wire.send(wire.segment("S"))
    wire.stack.stream_failed(wire.asked_one(OpenStream).flow, 1, wire.now)
    heard = wire.hear()
    counters = wire.stack.counters
    assert counters.resets_sent == len([frame for frame in heard if TCP in frame and "R" in frame[TCP].flags])
    assert counters.resets_sent >= 1
    assert (counters.resets_received, counters.connections_failed, counters.connections_opened) == (1, 1, 0)


def test_losses_are_kept_beyond_their_connection() -> None:
    wire = CountedWire(verify=False)
    flow = wire.connect()
    wire.stack.stream_received(flow, b"y" * 500)
    wire.hear()
    for _ in range(2):
        wire.now = wire.stack.next_deadline()
        wire.stack.advance(wire.now)
        wire.flush()
    repeated = [frame for frame in wire.hear() if len(frame[TCP].payload) == 500]
    losses = snapshot.gauges(wire.stack).losses
    assert (losses.timeouts, losses.timeout_repeats, losses.repeats) == (2, len(repeated), len(repeated))
    assert wire.stack.counters.losses.timeouts == 0, "the connection counts for itself while it lives"
    (shown,) = snapshot.flows(wire.stack, wire.now)
    assert shown.connection is not None
    assert shown.connection.losses.timeouts == 2
    assert (shown.connection.in_flight, shown.connection.queued) == (500, 0)
    wire.send(wire.segment("RA", 1001))
    assert wire.stack.counters.losses.timeouts == 2
    assert snapshot.gauges(wire.stack).losses.timeouts == 2, "and is not counted twice"


def test_datagrams_pings_and_arp() -> None:
    wire = CountedWire(verify=False)
    datagram = IP(src=GUEST, dst=SERVER) / UDP(sport=40_000, dport=5000) / Raw(b"x")
    wire.send(datagram, datagram, datagram)
    mapping = next(effect for effect in wire.asked() if isinstance(effect, OpenDatagrams)).flow
    wire.stack.datagram_received(mapping, ip(SERVER), 5000, b"answer", wire.now)
    wire.send(IP(src=GUEST, dst=GATEWAY) / UDP(sport=1, dport=99) / Raw(b"nobody"))
    wire.send(IP(src=GUEST, dst=GATEWAY) / ICMP(type=8, id=1, seq=1) / Raw(b"ping"))
    wire.send(ARP(op=1, hwsrc=GUEST_MAC, psrc=GUEST, pdst=GATEWAY), destination=BROADCAST_MAC)
    wire.send(ARP(op=1, hwsrc=GUEST_MAC, psrc=GUEST, pdst="192.168.127.50"), destination=BROADCAST_MAC)
    counters, neighbours = wire.stack.counters, wire.stack.neighbours
    heard = wire.hear()
    kinds = Counter(frame[ICMP].type for frame in heard if ICMP in frame)
    assert (counters.datagrams_received, counters.datagrams_sent, counters.unserved_datagrams) == (4, 1, 1)
    assert counters.datagrams_quick == 2, "the first opens the flow"
    assert counters.icmp_received == {8: 1}
    assert dict(counters.icmp_sent) == dict(kinds) == {3: 1, 0: 1}
    assert (neighbours.requests_received, neighbours.requests_for_others, neighbours.replies_sent) == (2, 1, 1)
    assert counters.packets_received == 5
    assert snapshot.open_flows(wire.stack) == {"tcp": 0, "udp": 1, "icmp": 0}


def test_a_flow_of_any_kind_can_be_ended() -> None:
    wire = CountedWire(verify=False)
    stream = wire.connect()
    wire.send(IP(src=GUEST, dst=SERVER) / UDP(sport=40_000, dport=5000) / Raw(b"x"))
    wire.send(IP(src=GUEST, dst=SERVER) / ICMP(type=8, id=7, seq=1) / Raw(b"x"))
    found = {flow.protocol: flow for flow in snapshot.flows(wire.stack, wire.now)}
    assert sorted(found) == ["icmp", "tcp", "udp"]
    assert found["tcp"].flow == stream
    assert snapshot.find(wire.stack, found["udp"].flow, wire.now) == found["udp"]
    for flow in found.values():
        assert wire.stack.end_flow(flow.flow, wire.now)
        assert not wire.stack.end_flow(flow.flow, wire.now)
        assert snapshot.find(wire.stack, flow.flow, wire.now) is None
    assert any("R" in frame[TCP].flags for frame in wire.hear() if TCP in frame)
    assert not list(snapshot.flows(wire.stack, wire.now))
