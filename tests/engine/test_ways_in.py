"""A segment that opens a flow, or answers one of ours, is taken by the hot path where nothing is left to be asked.

Where checksums are verified everything goes the long way: both ways have to say, do and count the same.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP, IPOption_NOP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from netstack.engine.counters import Counters
from netstack.engine.effects import Effect, InboundOpened, OpenStream
from netstack.engine.events import Event
from netstack.engine.policy import PolicySettings

from .wire_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    OTHER_MAC,
    SERVER,
    UNUSED,
    VirtualWire,
    ip,
)

LINUX = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (5, 0)), ("NOP", None), ("WScale", 7)]


def syn(
    *, src: str = GUEST, dst: str = SERVER, port: int = 80, seq: int = 1000, ack: int = 0, flags: str = "S",
    header: int | None = None,
) -> Packet:  # fmt: skip
    """A SYN as Linux says it; `header` in words, where it is not as long as it says."""
    segment = TCP(sport=40_000, dport=port, seq=seq, ack=ack, flags=flags, window=64_240, options=LINUX, dataofs=header)
    return IP(src=src, dst=dst, flags="DF") / segment


def whole(packet: Packet, *, source: str = GUEST_MAC, destination: str = GATEWAY_MAC) -> bytes:
    return bytes(Ether(src=source, dst=destination) / packet)


def changed(packet: Packet, **fields: int) -> bytes:
    """A frame whose IP header has other fields, with a checksum that is right."""
    for field, value in fields.items():
        packet.setfieldval(field, value)
    return whole(packet)


FRAMES: dict[str, bytes] = {
    "plain": whole(syn()),
    "without options": whole(IP(src=GUEST, dst=SERVER) / TCP(sport=40_000, dport=80, flags="S")),
    "padded": whole(syn()) + bytes(6),
    "with text": whole(syn() / Raw(b"text")),
    "pushed": whole(syn(flags="SPUEC")),
    "syn-fin": whole(syn(flags="SF")),
    "syn-ack": whole(syn(flags="SA")),
    "syn-reset": whole(syn(flags="SR")),
    "no flags": whole(syn(flags="")),
    "acknowledgement": whole(syn(flags="A")),
    "header too short": whole(syn(header=4)),
    "header too long": whole(syn(header=15)),
    "cut": whole(syn())[:60],
    "length too small": changed(syn(), len=39),
    "no hop left": changed(syn(), ttl=1),
    "fragment": changed(syn(), flags=1),
    "ip options": whole(
        IP(src=GUEST, dst=SERVER, options=[IPOption_NOP()] * 4) / TCP(sport=40_000, dport=80, flags="S")
    ),
    "from another's mac": whole(syn(), source=OTHER_MAC),
    "broadcast": whole(syn(), destination=BROADCAST_MAC),
    "for another": whole(syn(), destination=OTHER_MAC),
    "from the gateway": whole(syn(src=GATEWAY)),
    "from elsewhere": whole(syn(src="10.0.0.1")),
    "from a new address": whole(syn(src=UNUSED)),
    "to the name server": whole(syn(dst=GATEWAY, port=53)),
    "to the gateway": whole(syn(dst=GATEWAY)),
    "to nobody": whole(syn(dst=UNUSED)),
    "to metadata": whole(syn(dst="169.254.169.254")),
    "to a group": whole(syn(dst="224.0.0.1")),
    "to loopback": whole(syn(dst="127.0.0.1")),
}


class CountedWire(VirtualWire):
    """Counts frames as the driver does."""

    def send(self, *packets: Packet | bytes, **options: str) -> None:
        self.stack.counters.frames += len(packets)
        super().send(*packets, **options)

    def begin(self) -> None:
        """The guest has said something before, and its address is known."""
        self.send(IP(src=GUEST, dst=SERVER) / TCP(sport=39_999, dport=9, flags="A"))

    def outcome(self) -> tuple[list[Effect], list[bytes], list[Event], dict[str, int], tuple[int, ...]]:
        """What came of it: asked of the host, said to the guest, told to people, dropped, counted."""
        return self.asked(), self.hear_raw(), self.events, self.dropped, counted(self.stack.counters)


def counted(counters: Counters) -> tuple[int, ...]:
    return (
        counters.packets_received, counters.segments_received, counters.segments_sent, counters.resets_sent,
        counters.resets_received, counters.connections_opened, counters.connections_failed,
    )  # fmt: skip


def on_both_ways(play: Callable[[CountedWire], None]) -> CountedWire:
    """Play the same on both; what came of it has to be the same. The wire with the short way."""
    long, short = (CountedWire(verify=verify) for verify in (True, False))
    for wire in (long, short):
        wire.begin()
        play(wire)
    assert long.outcome() == short.outcome()
    return short


@pytest.mark.parametrize("name", FRAMES)
def test_what_opens_a_flow(name: str) -> None:
    """And what does not, though it looks much like it."""

    def play(wire: CountedWire) -> None:
        wire.send(FRAMES[name])
        wire.send(FRAMES["plain"])

    on_both_ways(play)


def test_the_hot_path_takes_a_plain_syn() -> None:
    wire = CountedWire(verify=False)
    wire.begin()
    before = wire.stack.counters.long_way
    wire.send(FRAMES["plain"])
    assert wire.stack.counters.long_way == before
    assert wire.asked_one(OpenStream) == OpenStream(1, ip(SERVER), 80)


def test_a_syn_that_comes_again_and_one_of_an_old_connection() -> None:
    """While the dial is under way, after it, and when the connection waits in TIME-WAIT."""

    def play(wire: CountedWire) -> None:
        wire.send(FRAMES["plain"], FRAMES["plain"])
        flow = wire.asked_one(OpenStream).flow
        wire.stack.stream_opened(flow, wire.now)
        wire.send(FRAMES["plain"])
        wire.send(syn(flags="A", seq=1001, ack=7001))
        wire.send(FRAMES["plain"])
        wire.stack.stream_ended(flow)
        wire.flush()
        wire.send(syn(flags="FA", seq=1001, ack=7002))
        wire.wait(1.0)
        wire.send(syn(seq=900))
        assert wire.stack.tcp.time_wait, "an old SYN takes nobody's place"
        wire.send(syn(seq=5000))
        assert not wire.stack.tcp.time_wait

    on_both_ways(play)


@pytest.mark.parametrize(
    "settings", [PolicySettings(disabled=True), PolicySettings(rules=())], ids=["disabled", "empty"]
)
def test_where_nothing_may_be_opened(settings: PolicySettings) -> None:
    def play(wire: CountedWire) -> None:
        wire.stack.replace_policy(settings, "api", wire.now)
        wire.send(FRAMES["plain"])
        assert wire.asks_nothing()

    on_both_ways(play)


@pytest.mark.parametrize("source", [GUEST_MAC, OTHER_MAC])
@pytest.mark.parametrize("flags", ["SA", "S", "SF", "SR", "SRA", "SFA"])
def test_an_answer_to_our_syn(flags: str, source: str) -> None:
    """Of the guest, or of another that says it is; and what is none."""

    def play(wire: CountedWire) -> None:
        wire.stack.open_inbound((ip(GATEWAY), 5000), (ip(GUEST), 22), wire.now)
        wire.flush()
        answer = IP(src=GUEST, dst=GATEWAY) / TCP(sport=22, dport=5000, flags=flags, seq=1, ack=7001, options=LINUX)
        wire.send(answer, source=source)

    wire = on_both_ways(play)
    opened = flags in ("SA", "SFA") and source == GUEST_MAC
    assert any(flow.state != 3 for flow in wire.stack.tcp.table.values()) == opened


def test_the_hot_path_takes_an_answer_to_our_syn() -> None:
    wire = CountedWire(verify=False)
    wire.begin()
    flow = wire.stack.open_inbound((ip(GATEWAY), 5000), (ip(GUEST), 22), wire.now)
    wire.flush()
    before = wire.stack.counters.long_way
    wire.send(IP(src=GUEST, dst=GATEWAY) / TCP(sport=22, dport=5000, flags="SA", seq=1, ack=7001, options=LINUX))
    assert wire.stack.counters.long_way == before
    assert wire.asked_one(InboundOpened) == InboundOpened(flow)
