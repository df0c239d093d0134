"""Two TCP parties over an impaired link on virtual time: the engine's connection on one side, a guest on the other.

`EngineEnd` drives a TcpConnection as the stack does; the other side is one more of them, or a GuestModel. They know
nothing of each other but frames.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from random import Random
from struct import Struct
from typing import Protocol

from guest_iface.link import all_whole
from netstack.engine import tcp_states as st
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.tcp_limits import TcpLimits
from netstack.wire.tcp import Frame, SegmentWriter, parse_options

_TCP = Struct("!HHIIHHHH")
_SYN, _ACK = 2, 16


class Party(Protocol):
    """One end of the link."""

    deadline: float

    def receive(self, frame: bytes, now: float) -> None:
        """A frame has come."""

    def settle(self, now: float) -> list[bytes]:
        """Everything of this moment has come: what is sent?"""


@dataclass
class Link:
    """What happens to frames on their way, in either direction. Times in seconds, chances 0..1, `rate` in bytes/s."""

    delay: float = 0.01
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_delay: float = 0.005
    rate: float = inf
    queue: int = 1000
    sent: int = 0
    lost: int = 0


@dataclass
class Simulation:
    """Moves frames between two parties until both are done or time is up."""

    left: Party
    right: Party
    link: Link
    seed: int = 0
    now: float = 0.0
    events: list[tuple[float, int, int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.order = 0
        self.free_at = [0.0, 0.0]
        self.watch: Callable[[int, bytes, float], None] | None = None
        self.drop: Callable[[int, bytes, float], bool] | None = None

    def _send(self, side: int, frames: list[bytes]) -> None:
        link, random = self.link, self.random
        for frame in frames:
            link.sent += 1
            if self.watch is not None:
                self.watch(side, frame, self.now)
            if self.drop is not None and self.drop(side, frame, self.now):
                link.lost += 1
                continue
            if random.random() < link.loss:
                link.lost += 1
                continue
            copies = 2 if random.random() < link.duplicate else 1
            for _ in range(copies):
                when = self.now
                if link.rate != inf:
                    start = max(self.now, self.free_at[side])
                    if start - self.now > link.queue * 1514 / link.rate:
                        link.lost += 1
                        continue
                    self.free_at[side] = when = start + len(frame) / link.rate
                when += link.delay + random.random() * link.jitter
                if random.random() < link.reorder:
                    when += link.reorder_delay
                self.order += 1
                heapq.heappush(self.events, (when, self.order, 1 - side, frame))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Go on until `done`, nothing is left to happen, or the clock shows `until`."""
        parties = (self.left, self.right)
        for side in (0, 1):
            self._send(side, parties[side].settle(self.now))
        while not done():
            moment = min(self.events[0][0] if self.events else inf, parties[0].deadline, parties[1].deadline)
            if moment > until:
                break
            self.now = moment = max(self.now, moment)
            touched = [parties[0].deadline <= moment, parties[1].deadline <= moment]
            while self.events and self.events[0][0] <= moment:
                _, _, side, frame = heapq.heappop(self.events)
                parties[side].receive(frame, moment)
                touched[side] = True
            for side in (0, 1):
                if touched[side]:
                    self._send(side, parties[side].settle(moment))


class EngineEnd:
    """A TcpConnection, driven as the stack does. The host side writes `outgoing`, takes `take_rate` bytes a second."""

    def __init__(
        self,
        limits: TcpLimits,
        isn: int,
        *,
        active: bool = False,
        outgoing: bytes = b"",
        take_rate: float = inf,
        offload: int = 0,
    ) -> None:
        self.urgent: list[bytes] = []
        writer = SegmentWriter(
            destination_mac=bytes(6),
            source_mac=bytes(6),
            source=b"\x0a\0\0\1",
            destination=b"\x0a\0\0\2",
            source_port=80,
            destination_port=4000,
            offload=offload,
        )
        self.connection = TcpConnection(writer, limits, isn, self.urgent)
        self.active = active
        self.outgoing = outgoing
        self.written = 0
        self.received = bytearray()
        self.take_rate = take_rate
        self.take_at = inf
        self.finished = False
        self.signals = 0
        self.worst_waiting = 0
        self.worst_window = 0

    @property
    def deadline(self) -> float:
        return min(self.connection.deadline, self.take_at)

    @property
    def over(self) -> bool:
        return self.connection.state in (st.CLOSED, st.TIME_WAIT) and bool(self.signals)

    def receive(self, frame: bytes, now: float) -> None:
        _, _, sequence, acknowledgement, flags, window, _, _ = _TCP.unpack_from(frame, 34)
        text = 34 + (flags >> 12) * 4
        flags &= 0x3F
        options, payload = frame[54:text], frame[text:]
        connection = self.connection
        if connection.state == st.CLOSED and flags & (_SYN | _ACK) == _SYN and not self.signals and not self.active:
            connection.syn_came(sequence, window, parse_options(options), now)
            connection.accept(now)
        else:
            connection.receive(sequence, acknowledgement, flags, window, options, payload, now)

    def settle(self, now: float) -> list[bytes]:
        connection = self.connection
        if self.active and not self.signals and connection.state == st.CLOSED:
            connection.connect(now)
        if now >= connection.deadline:
            connection.advance(now)
        self.signals |= connection.signals
        connection.signals = 0
        buffer = connection.receive_buffer
        if buffer.ready:
            chunks, buffer.ready = buffer.ready, []
            data = b"".join(chunks)
            self.received += data
            buffer.unsent += len(data)
        self.worst_waiting = max(self.worst_waiting, buffer.unsent)
        if self.take_rate == inf:
            buffer.unsent = 0
        elif buffer.unsent and self.take_at == inf:
            self.take_at = now + min(buffer.unsent, 4096) / self.take_rate
        elif now >= self.take_at:
            buffer.unsent -= min(buffer.unsent, 4096)
            self.take_at = now + min(buffer.unsent, 4096) / self.take_rate if buffer.unsent else inf
        if connection.state in (st.ESTABLISHED, st.CLOSE_WAIT):
            room = connection.room
            while room > 0 and self.written < len(self.outgoing):
                chunk = self.outgoing[self.written : self.written + min(room, 65536)]
                connection.write(chunk)
                self.written += len(chunk)
                room = connection.room
            if self.written == len(self.outgoing) and not self.finished:
                self.finished = True
                connection.finish()
        frames: list[Frame] = []
        connection.output(frames, 1 << 30, now)
        self.signals |= connection.signals
        connection.signals = 0
        self.worst_window = max(self.worst_window, buffer.edge - buffer.next)
        said = self.urgent + all_whole(frames)
        self.urgent.clear()
        return said
