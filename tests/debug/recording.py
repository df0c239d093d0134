"""Captures made in memory: what a guest and the real Stack said to each other, with verdicts beside the frames."""

from __future__ import annotations

from random import Random

from conformance.policy_wire import PolicyWire
from engine.tcp_guest import GuestModel
from engine.tcp_simulation import EngineEnd, Link, Simulation
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from guest_iface.pcapng import INBOUND, OUTBOUND
from netstack.debug.seen_packets import FROM_GUEST, TO_GUEST, Recorded
from netstack.engine.tcp_limits import TcpLimits
from netstack.gateway.capture_comments import CaptureComments
from netstack.network_spec import NetworkSpec
from netstack.wire import ipv4

WALL = 1_700_000_000.0
"""Virtual time 0, on the wall."""


def numbered(frames: list[tuple[float, int, bytes, str]]) -> list[Recorded]:
    """Frames in the order of their times, as a capture has them."""
    frames = sorted(frames, key=lambda each: each[0])
    return [
        Recorded(number, WALL + time, direction, data, len(data), comment)
        for number, (time, direction, data, comment) in enumerate(frames, 1)
    ]


class RecordingWire(PolicyWire):
    """A guest at the real Stack whose link is captured, as CaptureWriter would."""

    def __init__(self, *rules: str, spec: NetworkSpec | None = None, **changes: object) -> None:
        self._said: list[tuple[float, int, bytes, str]] = []
        self._held: list[tuple[float, bytes]] = []
        self._comments = CaptureComments()
        self._noted = 0
        super().__init__(*rules, spec=spec, **changes)

    def send(self, *packets: Packet | bytes, source: str = "02:00:00:00:00:02", destination: str = "") -> None:
        for packet in packets:
            framed = packet
            if not isinstance(packet, bytes | Ether):
                framed = Ether(src=source, dst=destination or "5a:94:ef:e4:0c:dd") / packet
            self._held.append((self.now, bytes(framed)))
        super().send(*packets, source=source, destination=destination or "5a:94:ef:e4:0c:dd")

    def flush(self) -> None:
        before = len(self._frames)
        super().flush()
        for event in self.events[self._noted :]:
            self._comments.note(event)
        self._noted = len(self.events)
        for time, frame in self._held:
            self._said.append((time, FROM_GUEST, frame, self._comments.take(frame, INBOUND)))
        self._held.clear()
        for frame in self._frames[before:]:
            self._said.append((self.now, TO_GUEST, frame, self._comments.take(frame, OUTBOUND)))

    def capture(self) -> list[Recorded]:
        """What is on record."""
        self.flush()
        return numbered(self._said)


def simulated(
    engine: EngineEnd,
    guest: GuestModel,
    link: Link,
    *,
    seconds: float = 60.0,
    seed: int = 1,
    drop: object = None,
    at_guest: bool = False,
) -> list[Recorded]:
    """The engine's connection and a guest on an impaired link, captured at the engine's end: what the engine sends is
    on record whether it arrives or not, what the guest sends only if it does. `at_guest`: at the guest's end.
    """
    said: list[tuple[float, int, bytes, str]] = []
    simulation = Simulation(engine, guest, link, seed)
    simulation.random = Random(seed)
    if drop is not None:
        simulation.drop = drop  # type: ignore[assignment]  # a function of the test's

    near: GuestModel | EngineEnd = guest if at_guest else engine
    near_side, receive = int(at_guest), near.receive

    def put(side: int, frame: bytes, now: float) -> None:
        said.append((now, FROM_GUEST, _addressed(frame), "") if side else (now, TO_GUEST, frame, ""))

    def watch(side: int, frame: bytes, now: float) -> None:
        if side == near_side:
            put(side, frame, now)

    def received(frame: bytes, now: float) -> None:
        put(1 - near_side, frame, now)
        receive(frame, now)

    simulation.watch = watch
    near.receive = received  # type: ignore[method-assign]  # seen from outside
    simulation.run(seconds, lambda: engine.over and guest.over)
    return numbered(said)


def _addressed(frame: bytes) -> bytes:
    """A GuestModel's frame with the IP header it leaves out."""
    packet = ipv4.build(b"\x0a\0\0\2", b"\x0a\0\0\1", ipv4.TCP, frame[34:])
    return frame[:14] + packet


def engine_end(outgoing: bytes = b"", **options: object) -> EngineEnd:
    """The engine's end of a connection, at an Ethernet's MSS."""
    limits = TcpLimits(mss=1460, max_receive_window=1 << 20, max_congestion_window=1 << 20)
    return EngineEnd(limits, 7000, outgoing=outgoing, **options)  # type: ignore[arg-type]  # by name, as written
