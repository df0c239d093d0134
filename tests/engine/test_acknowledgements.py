"""Acknowledgements that the next one makes useless are left out of a batch, and nothing else is."""

from __future__ import annotations

from scapy.layers.l2 import Ether

from netstack.engine.acknowledgements import MIN_BATCH, without_superseded
from netstack.wire.tcp import ACK, PSH, SegmentWriter, build_sack, build_timestamps
from tests.engine.wire_guest import GATEWAY_MAC, GUEST_MAC, VirtualWire, network

STAMPS = build_timestamps(7, 9)


def writer(port: int = 40_000, mac: bytes = b"guest1") -> SegmentWriter:
    return SegmentWriter(
        destination_mac=b"gatewy", source_mac=mac, source=b"\x0a\0\0\2", destination=b"\x0a\0\0\1",
        source_port=port, destination_port=80,
    )  # fmt: skip


def ack(number: int, sequence: int = 1, options: bytes = STAMPS, **of: int) -> bytes:
    return writer(**of).frame(sequence, number & 0xFFFFFFFF, ACK, 500, options)


def test_the_last_of_a_run_is_left() -> None:
    assert without_superseded([ack(1000 * number) for number in range(40)]) == [ack(39_000)]
    assert without_superseded([ack(2**32 - 1000 + number * 300) for number in range(9)]) == [ack(1400)]
    bare = [ack(1000 * number, options=b"") for number in range(9)]
    assert without_superseded(bare) == bare[-1:]
    assert without_superseded([frame + bytes(6) for frame in bare]) == [bare[-1] + bytes(6)]


def test_runs_of_several_connections() -> None:
    runs = [ack(100 * number, port=port) for port in (1, 2, 3) for number in range(5)]
    assert without_superseded(runs) == [ack(400, port=port) for port in (1, 2, 3)]
    turns = [ack(100 * number, port=port) for number in range(5) for port in (1, 2, 3)]
    assert without_superseded(turns) == turns


def test_what_says_something_else_stays() -> None:
    """Duplicates are counted, older ones are judged, and everything that is no pure acknowledgement is for others."""
    for other in (
        ack(1000),  # a duplicate
        ack(999),  # an older one
        ack(2000, sequence=2),
        ack(2000, port=9),
        writer(mac=b"guest2").frame(1, 2000, ACK, 500, STAMPS),  # whoever claims to be the same
        writer().frame(1, 2000, ACK | PSH, 500, STAMPS),
        writer().frame(1, 2000, ACK, 500, STAMPS, b"text"),
        ack(2000, options=b""),
        ack(2000, options=build_sack([(5, 9)])),  # as long as time stamps are
    ):
        assert without_superseded([ack(1000), other]) == [ack(1000), other]
    sacked = [ack(1000, options=build_sack([(3000, 4000)])), ack(2000)]
    assert without_superseded(sacked) == sacked


def test_what_only_looks_like_one_stays() -> None:
    for position, value in ((12, 0x86), (14, 0x46), (15, 1), (17, 0x35), (20, 0x20), (23, 17)):
        likes = []
        for number in range(3):
            like = bytearray(ack(1000 * number))
            like[position] = value
            likes.append(bytes(like))
        assert without_superseded(likes) == likes, position


def test_a_batch_of_acknowledgements_has_the_effect_of_its_last() -> None:
    wire = VirtualWire(network(verify=False))
    connection = wire.open_tcp()
    wire.stack.stream_received(connection.flow, bytes(10 * 1460))
    assert len(connection.hear()) == 10
    first, last = connection.heard - 9 * 1460, connection.heard
    numbers = range(first, last + 1, 1460)
    assert len(numbers) >= MIN_BATCH
    frames = [bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / connection.segment("A", ack=number)) for number in numbers]
    flow = wire.stack.tcp.flow(connection.flow)
    assert flow is not None
    assert len(without_superseded(frames)) == 1
    wire.stack.receive_frames(frames, wire.now)
    assert flow.connection.sender.una == flow.connection.send_next == last
    assert flow.connection.sender.has_everything_acknowledged
