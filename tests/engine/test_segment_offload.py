"""Segments larger than the MTU and checksums that are only partial, where the guest's link does the rest."""

from __future__ import annotations

from random import Random

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from netstack.engine.effects import OpenStream, SendStream
from netstack.engine.stack import Stack
from netstack.engine.tcp_limits import TcpLimits
from netstack.wire.tcp import SegmentWriter

from .tcp_guest import GuestModel
from .tcp_simulation import EngineEnd, Link, Simulation
from .wire_guest import (
    ENGINE_ISN,
    GATEWAY_MAC,
    GUEST,
    GUEST_ISN,
    GUEST_MAC,
    OTHER_MAC,
    SERVER,
    START,
    VirtualWire,
    internet_sum,
    mac,
    network,
)

LARGEST = 65_455
MSS = 1460


def payload_length(frame: bytes) -> int:
    """Bytes of text in a TCP frame, by its own lengths."""
    return int.from_bytes(frame[16:18], "big") - 20 - (frame[46] >> 4) * 4


def wire(offload: dict[str, int]) -> VirtualWire:
    """A stack whose guests' links do what is said by MAC."""
    made = VirtualWire(network(verify=False))
    table = {mac(name): largest for name, largest in offload.items()}
    made.stack = Stack(
        made.settings,
        initial_sequence=lambda _key, _now: ENGINE_ISN,
        segment_offload=lambda address: table.get(address, 0),
    )
    return made


def open_flow(made: VirtualWire, *, source: str = GUEST_MAC, address: str = GUEST, mss: int = MSS) -> int:
    """The guest's handshake with SERVER:80; the flow's number. What was said is in `made.handshake`."""
    packet = IP(src=address, dst=SERVER)
    made.send(packet / TCP(sport=4000, dport=80, seq=GUEST_ISN, window=65_535, flags="S", options=[("MSS", mss)]),
              source=source)  # fmt: skip
    flow = made.asked_one(OpenStream).flow
    made.stack.stream_opened(flow, START)
    made.flush()
    made.send(
        packet / TCP(sport=4000, dport=80, seq=GUEST_ISN + 1, ack=ENGINE_ISN + 1, window=65_535, flags="A"),
        source=source,
    )
    return flow


def partial_sum_is_right(frame: bytes) -> bool:
    """The pseudo-header's sum, and nothing else, is in the checksum field: what NEEDS_CSUM means."""
    pseudo = frame[26:34] + bytes((0, 6)) + (len(frame) - 34).to_bytes(2, "big")
    return int.from_bytes(frame[50:52], "big") == internet_sum(pseudo)


def test_many_segments_in_one_frame() -> None:
    made = wire({GUEST_MAC: LARGEST})
    flow = open_flow(made)
    [answer] = made.hear_raw()
    assert partial_sum_is_right(answer)
    made.stack.stream_received(flow, bytes(range(256)) * 1600)
    [frame] = made.hear_raw()
    assert payload_length(frame) == len(frame) - 54 == 10 * MSS, "the initial window, whole"
    assert partial_sum_is_right(frame)
    assert internet_sum(frame[14:34]) == 0xFFFF
    sent = 10 * MSS
    largest = 0
    while sent < 256 * 1600:
        acknowledged = TCP(sport=4000, dport=80, seq=GUEST_ISN + 1, ack=ENGINE_ISN + 1 + sent, window=65_535, flags="A")
        made.send(IP(src=GUEST, dst=SERVER) / acknowledged)
        for frame in made.hear_raw():
            packet = Ether(frame)[TCP]
            assert packet.seq == ENGINE_ISN + 1 + sent
            text = payload_length(frame)
            assert bytes(packet.payload) == (bytes(range(256)) * 1600)[sent : sent + text]
            sent += text
            assert text % MSS == 0 or sent == 256 * 1600, "cut at segments, but for the end and the window's"
            largest = max(largest, text)
    assert largest == 65_535 // MSS * MSS == 44 * MSS


def test_a_guest_with_small_segments_gets_no_large_frames() -> None:
    made = wire({GUEST_MAC: LARGEST})
    flow = open_flow(made, mss=1000)
    made.hear_raw()
    made.stack.stream_received(flow, bytes(5000))
    frames = made.hear_raw()
    assert [payload_length(frame) for frame in frames] == [1000] * 5
    assert all(map(partial_sum_is_right, frames)), "its link sums them all the same"


def test_the_link_of_each_guest_decides() -> None:
    """Two guests on one gateway: one link offloads, one does not."""
    made = wire({GUEST_MAC: LARGEST, OTHER_MAC: 0})
    large = open_flow(made)
    plain = open_flow(made, source=OTHER_MAC, address="192.168.127.9")
    made.hear_raw()
    for flow in (large, plain):
        made.stack.stream_received(flow, bytes(3 * MSS))
    frames = made.hear_raw()
    assert [payload_length(frame) for frame in frames if frame[:6] == mac(GUEST_MAC)] == [3 * MSS]
    theirs = [frame for frame in frames if frame[:6] == mac(OTHER_MAC)]
    assert [payload_length(frame) for frame in theirs] == [MSS] * 3
    for frame in theirs:
        pseudo = frame[26:34] + bytes((0, 6)) + (len(frame) - 34).to_bytes(2, "big")
        assert internet_sum(pseudo + frame[34:]) == 0xFFFF


def test_a_reset_of_no_connection_is_partial_too() -> None:
    made = wire({GUEST_MAC: LARGEST})
    made.send(IP(src=GUEST, dst=SERVER) / TCP(sport=4001, dport=80, flags="A", ack=7))
    [frame] = made.hear_raw()
    assert partial_sum_is_right(frame)


@pytest.mark.parametrize("path", ["fast", "general"])
def test_a_frame_of_64_kib_from_the_guest_is_taken_whole(path: str) -> None:
    made = wire({GUEST_MAC: LARGEST})
    open_flow(made)
    made.hear_raw()
    text = Random(1).randbytes(65_000)
    # An IP option leads past the fast path. The checksum is whatever the guest's kernel left there.
    options = [] if path == "fast" else [b"\x01\x01\x01\x01"]
    packet = IP(src=GUEST, dst=SERVER, options=[]) / TCP(
        sport=4000, dport=80, seq=GUEST_ISN + 1, ack=ENGINE_ISN + 1, flags="PA", chksum=0x1234
    )
    frame = bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / packet / Raw(text))
    if options:
        length = int.from_bytes(frame[16:18], "big") + 4
        frame = frame[:14] + b"\x46" + frame[15:16] + length.to_bytes(2, "big") + frame[18:34] + options[0] + frame[34:]
    made.send(frame)
    assert b"".join(made.asked_one(SendStream).chunks) == text
    [answer] = made.hear_raw()
    assert Ether(answer)[TCP].ack == GUEST_ISN + 1 + 65_000, "acknowledged at once: it is more than two segments"


def test_what_would_keep_more_of_a_frame_than_its_text_is_copied() -> None:
    """The text of a whole frame goes on where it lies. What waits for a gap, or has more behind it, does not."""
    made = wire({GUEST_MAC: LARGEST})
    flow = open_flow(made)
    made.hear_raw()
    expected = GUEST_ISN + 1

    def chunks(start: int, text: bytes, padding: int = 0) -> list[bytes | memoryview]:
        packet = IP(src=GUEST, dst=SERVER) / TCP(sport=4000, dport=80, seq=start, ack=ENGINE_ISN + 1, flags="A")
        made.send(bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / packet / Raw(text)) + bytes(padding))
        made.hear_raw()
        found = [chunk for effect in made.asked() if isinstance(effect, SendStream) for chunk in effect.chunks]
        made.stack.stream_sent(flow, sum(map(len, found)))
        return found

    [whole] = chunks(expected, b"a" * 20_000)
    assert isinstance(whole, memoryview)
    assert whole == b"a" * 20_000
    assert chunks(expected + 40_000, b"c" * 20_000) == []
    assert chunks(expected + 20_000, b"b" * 20_000) == [b"b" * 20_000, b"c" * 20_000]
    assert all(isinstance(chunk, bytes) for chunk in chunks(expected + 59_999, b"cd" + bytes(20_000)))
    [behind] = chunks(expected + 80_001, b"e" * 20_000, padding=40_000)
    assert isinstance(behind, bytes)
    assert behind == b"e" * 20_000


@pytest.mark.parametrize("seed", range(12))
def test_every_byte_arrives_over_links_that_lose_whole_frames(seed: int) -> None:
    random = Random(seed)
    down, up = random.randbytes(2_000_000), random.randbytes(30_000)
    engine = EngineEnd(TcpLimits(), 0xFFFF_0000, outgoing=down, offload=LARGEST)
    guest = GuestModel(
        1,
        up,
        sack=random.random() < 0.7,
        timestamps=random.random() < 0.5,
        window=random.choice((1 << 20, 50_000, 3_000)),
        read_rate=random.choice((float("inf"), 2e6)),
    )
    link = Link(
        delay=0.005,
        loss=random.choice((0.0, 0.02, 0.05)),
        duplicate=random.choice((0.0, 0.05)),
        reorder=random.choice((0.0, 0.1)),
    )
    simulation = Simulation(engine, guest, link, seed)
    largest = [0]

    def watch(side: int, frame: bytes, _now: float) -> None:
        if side == 0:
            largest[0] = max(largest[0], payload_length(frame))

    simulation.watch = watch
    simulation.run(3600.0, lambda: engine.over and guest.over)
    assert bytes(guest.received) == down
    assert bytes(engine.received) == up
    assert guest.beyond <= 1, "bytes beyond the guest's window, and not just a probe"
    if guest.window > 50_000:
        assert largest[0] > 4 * MSS


@pytest.mark.parametrize("length", [0, 1, 2, 1461, 60_001])
def test_the_partial_sum_of_a_writer(length: int) -> None:
    frame = SegmentWriter(
        destination_mac=bytes(6),
        source_mac=bytes(6),
        source=b"\xff\xff\xff\xff",
        destination=b"\0\0\0\0",
        source_port=1,
        destination_port=2,
        offload=LARGEST,
    ).frame(3, 4, 16, 5, b"", bytes(length))
    assert partial_sum_is_right(frame)


def test_the_host_is_read_by_whole_frames() -> None:
    """Else each read would leave a sliver, which costs the guest as much as the rest."""
    made = wire({GUEST_MAC: LARGEST})
    flow = open_flow(made)
    assert made.stack.stream_room(flow) == 44 * MSS
