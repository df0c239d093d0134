"""A few thousand frames ahead of the one that is being replayed: what the host side is going to say is asked of them.

Our initial sequence number has to be known when the guest's SYN is played, and the recorded one comes with the SYN-ACK.
How much of a stream the host side had read is seen from where the next PSH is. Bounded: LOOKAHEAD frames, whatever
the size of the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from netstack.debug import packets
from netstack.debug.capture_reader import CapturedFrame, CaptureError
from netstack.wire import tcp

LOOKAHEAD: Final = 4096
"""Frames held."""
NEAR: Final = 8
"""Segments that are looked at for the answer to what the guest just said."""
SYN_ACK: Final = tcp.SYN | tcp.ACK


class Seen(NamedTuple):
    """A frame of the file: from a guest or from the host side; its bytes with an Ethernet header; what is in it.

    `passes_by`: from one guest to another, and no business of the engine's.
    """

    captured: CapturedFrame
    from_guest: bool
    frame: bytes
    packet: packets.Packet
    passes_by: bool = False


class Lookahead:
    """Iterate over it once. The indexes speak of the frames behind the one that was yielded last."""

    def __init__(self, frames: Iterable[CapturedFrame], limit: int = LOOKAHEAD) -> None:
        self._frames = iter(frames)
        self._fault: CaptureError | None = None
        self._limit = limit
        self._waiting: deque[CapturedFrame] = deque()
        self._held: deque[Seen] = deque()
        self._segments: dict[bytes, deque[tuple[int, packets.Packet]]] = {}
        self._answers: dict[bytes, deque[tuple[int, packets.Packet]]] = {}

    def first(self) -> list[CapturedFrame]:
        """The first frames, before any was yielded: to find out who is who. Raises CaptureError if there is none."""
        while len(self._waiting) < self._limit and (frame := self._next()) is not None:
            self._waiting.append(frame)
        if self._fault is not None and not self._waiting:
            raise self._fault
        return list(self._waiting)

    def _next(self) -> CapturedFrame | None:
        """The next frame of the file. What is wrong behind it is said once everything before it was played."""
        try:
            return next(self._frames, None) if self._fault is None else None
        except CaptureError as fault:
            self._fault = fault
            return None

    def play(self, see: Callable[[CapturedFrame], Seen]) -> Iterator[Seen]:
        """The frames in order; `see` says who each is from. Raises CaptureError after the last that could be read."""
        while True:
            while len(self._held) < self._limit:
                frame = self._waiting.popleft() if self._waiting else self._next()
                if frame is None:
                    break
                self._hold(see(frame))
            if not self._held:
                if self._fault is not None:
                    raise self._fault
                return
            seen = self._held.popleft()
            self._release(seen)
            yield seen

    def _hold(self, seen: Seen) -> None:
        self._held.append(seen)
        packet = seen.packet
        if seen.from_guest or seen.passes_by or packet.kind != "tcp":
            return
        number = seen.captured.number
        if not packet.fault:
            self._segments.setdefault(packet.reversed_key, deque()).append((number, packet))
        if packet.flags & (tcp.SYN | tcp.RST):
            self._answers.setdefault(packet.reversed_key, deque()).append((number, packet))

    def _release(self, seen: Seen) -> None:
        if seen.from_guest or seen.passes_by or seen.packet.kind != "tcp":
            return
        key = seen.packet.reversed_key
        for index in (self._segments, self._answers):
            waiting = index.get(key)
            if waiting and waiting[0][0] == seen.captured.number:
                waiting.popleft()
                if not waiting:
                    del index[key]

    def answers_at(self, time: int) -> Iterator[packets.Packet]:
        """What the host side says at the moment of the frame that was yielded last: TCP alone."""
        for seen in self._held:
            if seen.from_guest or seen.captured.time != time:
                return
            if seen.packet.kind == "tcp" and not seen.passes_by:
                yield seen.packet

    def peek(self) -> Seen | None:
        """The frame that comes next."""
        return self._held[0] if self._held else None

    def answer(self, key: bytes) -> packets.Packet | None:
        """The next SYN-ACK for a guest's flow; None when a reset comes before it, or nothing in sight."""
        waiting = self._answers.get(key)
        if not waiting:
            return None
        packet = waiting[0][1]
        return packet if packet.flags & SYN_ACK == SYN_ACK else None

    def texts(self, key: bytes) -> Iterator[packets.Packet]:
        """The segments with text that the host side is going to send on a guest's flow."""
        for _, packet in self._segments.get(key, ()):
            if packet.body:
                yield packet

    def acknowledging(self, key: bytes, position: int, besides: int) -> packets.Packet | None:
        """The segment of the host side's that acknowledges so much of a guest's flow, after `besides` others."""
        for _, packet in islice(self._segments.get(key, ()), NEAR + besides):
            if packet.acknowledgement == position and not packet.flags & tcp.RST:
                if not besides:
                    return packet
                besides -= 1
        return None

    def goes_on(self, key: bytes) -> bool:
        """Whether the host side is going to speak on a guest's flow as if it knew it."""
        waiting = self._segments.get(key)
        return waiting is not None and not waiting[0][1].flags & (tcp.RST | tcp.SYN)

    def dns_over_tcp(self, guest: bytes, question: bytes) -> bytes | None:
        """The answer over TCP to a question that was answered by half of it over UDP (RFC 7766 section 5)."""
        for key, waiting in self._segments.items():
            if key[:4] == guest and key[10:12] == b"\0\x35":
                stream = b"".join(packet.body for _, packet in waiting)
                for message in packets.dns_messages(stream):
                    if packets.dns_question(message) == question:
                        return message
        return None
