"""Packets a second: the engine alone on established TCP, and a whole `netstack replay` of the same packets.

    .venv/bin/python -m bench.replay [--packets N] [--json]

The engine: segments of 1448 bytes with time stamps come in, 40 a batch (what the first window holds), go out to a host
that takes them at once, and are acknowledged; then as many go to a guest that acknowledges every second one. Counted
are the frames in both directions. The replay: a capture of both, read, looked ahead, compared byte by byte, no lines.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import trio
from trio.testing import MockClock

from netstack.build_kind import build_kind
from netstack.debug.replay import Replay
from netstack.engine import effects
from netstack.engine.settings import LinkTraits, NetworkSettings
from netstack.engine.stack import Stack
from netstack.engine.tcp_flows import READ_AT_ONCE
from netstack.testing import ServerStream, VirtualGuest, VirtualNetwork
from netstack.wire import tcp

BATCH = 40
TEXT = bytes(1448)
TARGET = 100_000
SERVER = bytes((203, 0, 113, 5))
GUEST_MAC = bytes.fromhex("020000000002")


class _Wire:
    """One connection to a stack, whose frames are made before the clock runs."""

    def __init__(self) -> None:
        self.settings = NetworkSettings(link=LinkTraits(verify_checksums=False, queue_frames=65_535))
        self.stack = Stack(self.settings, initial_sequence=lambda _key, _now: 1000)
        self.writer = tcp.SegmentWriter(
            destination_mac=self.settings.gateway_mac, source_mac=GUEST_MAC, source=self.settings.device_ip,
            destination=SERVER, source_port=40_000, destination_port=80,
        )  # fmt: skip
        options = tcp.build_syn_options(1460, window_scale=10, sack_permitted=True, timestamps=(1, 0))
        self.exchange([self.writer.frame(0, 0, tcp.SYN, 65_535, options)], 0.0)
        self.exchange([self.segment(1, 1001)], 0.0)

    def segment(self, sequence: int, acknowledgement: int, text: bytes = b"") -> bytes:
        return self.writer.frame(
            sequence, acknowledgement & 0xFFFFFFFF, tcp.ACK, 8192, tcp.build_timestamps(2, 0), text
        )

    def exchange(self, frames: list[bytes], now: float) -> list[bytes]:
        """A batch, as a driver does it."""
        stack = self.stack
        for frame in frames:
            stack.receive_frame(frame, now)
        while asked := stack.take_effects(now):
            for effect in asked:
                if isinstance(effect, effects.SendStream):
                    stack.stream_sent(effect.flow, sum(map(len, effect.chunks)))
                elif isinstance(effect, effects.OpenStream):
                    stack.stream_opened(effect.flow, now)
        return stack.take_frames(now)


def upload(packets: int) -> float:
    """Packets a second of a guest that sends."""
    wire = _Wire()
    batches = [
        [wire.segment(1 + (at + each) * len(TEXT) & 0xFFFFFFFF, 1001, TEXT) for each in range(BATCH)]
        for at in range(0, packets, BATCH)
    ]
    came = 0
    start = time.perf_counter()
    for number, batch in enumerate(batches):
        came += len(batch) + len(wire.exchange(batch, number * 0.001))
    seconds = time.perf_counter() - start
    assert wire.stack.tcp.table[wire.settings.device_ip + SERVER + b"\x9c\x40\x00\x50"].sent == packets * len(TEXT)
    return came / seconds


def download(packets: int) -> float:
    """Packets a second of a guest that receives, and acknowledges every second segment."""
    wire = _Wire()
    flow = wire.stack.tcp.table[wire.settings.device_ip + SERVER + b"\x9c\x40\x00\x50"]
    size, data = packets * len(TEXT), bytes(READ_AT_ONCE)
    acknowledgements = [wire.segment(1, 1001 + (at + 2) * len(TEXT)) for at in range(0, packets, 2)]
    said = had = given = came = 0
    now = 0.0
    start = time.perf_counter()
    while had < packets:
        now += 0.001
        while given < size and (room := wire.stack.stream_room(flow.id)):
            piece = data[: min(room, size - given)]
            wire.stack.stream_received(flow.id, piece)
            given += len(piece)
        batch = acknowledgements[said // 2 : had // 2][:BATCH]
        said += 2 * len(batch)
        frames = wire.exchange(batch, now)
        came += len(batch) + len(frames)
        had += len(frames)
    return came / (time.perf_counter() - start)


def replayed(packets: int) -> float:
    """Packets a second of a whole replay."""

    async def talk(path: Path) -> None:
        async def server(stream: ServerStream) -> None:
            await stream.receive_exactly(packets * len(TEXT) // 2)
            await stream.send_all(bytes(packets * len(TEXT) // 2))

        async with VirtualNetwork(capture=path) as network:
            network.serve_tcp("203.0.113.5", 80, server)
            connection = await network.attach(VirtualGuest()).connect("203.0.113.5", 80)
            await connection.send_all(bytes(packets * len(TEXT) // 2))
            await connection.receive_all()

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "talk.pcapng"
        trio.run(talk, path, clock=MockClock(autojump_threshold=0))
        start = time.perf_counter()
        with Replay.open(path) as replay:
            for _ in replay:
                pass
        seconds = time.perf_counter() - start
    assert not replay.summary.differences
    return replay.summary.frames / seconds


def main() -> None:
    """Measure and tell; the best of three, because other programs only ever make it slower."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--packets", type=int, default=64_000, help="segments with text, each way")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = {
        "engine, guest sends": max(upload(arguments.packets) for _ in range(3)),
        "engine, guest receives": max(download(arguments.packets) for _ in range(3)),
        "netstack replay, both": max(replayed(arguments.packets // 8) for _ in range(3)),
    }
    if arguments.json:
        print(
            json.dumps({"build": build_kind(), "packets_per_second": {key: round(each) for key, each in rows.items()}})
        )
        return
    print(f"packets a second, {build_kind()}, {arguments.packets} segments of {len(TEXT)} bytes; target {TARGET:,}")
    for key, each in rows.items():
        print(f"  {key:<24} {each:>10,.0f}")


if __name__ == "__main__":
    main()
