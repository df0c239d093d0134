"""The driver's side of the border as a model that holds the engine to its words.

It carries out no effect. It knows which flows are alive on the host's side and what may be asked of each, and it says
only what a driver may say. Whatever the engine asks beyond that is an assertion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from netstack.engine import effects
from netstack.engine.effects import (
    AbortStream,
    CloseDatagrams,
    CloseEcho,
    CloseStream,
    DeliverDatagram,
    Effect,
    InboundDatagramsEnded,
    InboundFailed,
    InboundOpened,
    OpenDatagrams,
    OpenEcho,
    OpenStream,
    ReadStream,
    Report,
    ResolveUpstream,
    SendDatagram,
    SendEcho,
    SendStream,
    ShutdownStream,
)
from netstack.engine.events import Event, FlowClosed, FlowOpened
from netstack.engine.stack import Stack


@dataclass
class HostStream:
    """A host socket as the driver would have it."""

    connected: bool = False
    shut: bool = False
    ended: bool = False
    unsent: int = 0
    sent: bytearray = field(default_factory=bytearray)
    paused: bool = False


class HostModel:
    """Takes effects, checks each, and can answer with anything a real host might."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.streams: dict[int, HostStream] = {}
        self.finished: dict[int, HostStream] = {}
        """Streams that are over, with what the guest sent on them."""
        self.mappings: dict[int, list[tuple[bytes, int]]] = {}
        self.echoes: dict[int, list[bytes]] = {}
        self.queries: dict[int, bytes] = {}
        self.opening: set[int] = set()
        """Streams towards guests that we have asked for and heard nothing of."""
        self.inbound_datagrams: set[int] = set()
        self.highest = 0
        self.opened: set[int] = set()
        self.closed: set[int] = set()
        self.events: list[Event] = []

    # -- what the engine asks ------------------------------------------------------------------------------------------

    def flush(self, now: float) -> list[bytes]:
        """The end of a batch; the frames for the guest."""
        while asked := self.stack.take_effects(now):
            for effect in asked:
                self._take(effect)
        return self.stack.take_frames(now)

    def _take(self, effect: Effect) -> None:
        if isinstance(effect, Report):
            self._take_event(effect.event)
        elif isinstance(effect, ResolveUpstream):
            assert effect.query not in self.queries
            self.queries[effect.query] = effect.message
        elif isinstance(effect, OpenStream | OpenDatagrams | OpenEcho):
            assert effect.flow > self.highest, "flow numbers are never given twice"
            self.highest = effect.flow
            if isinstance(effect, OpenStream):
                self.streams[effect.flow] = HostStream()
            elif isinstance(effect, OpenDatagrams):
                self.mappings[effect.flow] = []
            else:
                self.echoes[effect.flow] = []
        elif isinstance(effect, SendDatagram):
            assert 0 <= effect.ttl <= 254
            assert len(effect.payload) <= 65_507
            self.mappings[effect.flow].append((effect.address, effect.port))
        elif isinstance(effect, SendEcho):
            assert 0 <= effect.ttl <= 254
            self.echoes[effect.flow].append(effect.address)
        elif isinstance(effect, InboundOpened | InboundFailed):
            self.opening.remove(effect.flow)
            if isinstance(effect, InboundOpened):
                self.streams[effect.flow] = HostStream(connected=True)
        elif isinstance(effect, DeliverDatagram):
            assert effect.flow in self.inbound_datagrams
        elif isinstance(effect, InboundDatagramsEnded):
            self.inbound_datagrams.remove(effect.flow)
        elif isinstance(effect, CloseDatagrams):
            del self.mappings[effect.flow]
        elif isinstance(effect, CloseEcho):
            del self.echoes[effect.flow]
        else:
            self._take_stream(effect)

    def _take_stream(self, effect: SendStream | ReadStream | ShutdownStream | CloseStream | AbortStream) -> None:
        assert effect.flow in self.streams, f"{effect} names no living flow"
        stream = self.streams[effect.flow]
        if isinstance(effect, AbortStream):
            self.finished[effect.flow] = self.streams.pop(effect.flow)
            return
        assert stream.connected
        if isinstance(effect, SendStream):
            assert not stream.shut
            assert effect.chunks
            for chunk in effect.chunks:
                assert len(chunk)
                stream.sent += chunk
                stream.unsent += len(chunk)
        elif isinstance(effect, ReadStream):
            assert stream.paused, "only asked of a stream that was paused"
            assert not stream.ended
            stream.paused = False
        elif isinstance(effect, ShutdownStream):
            assert not stream.shut
            stream.shut = True
        else:
            assert stream.shut
            assert stream.ended
            self.finished[effect.flow] = self.streams.pop(effect.flow)

    def _take_event(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, FlowOpened):
            assert event.flow not in self.opened
            assert event.flow not in self.closed
            self.opened.add(event.flow)
        elif isinstance(event, FlowClosed):
            assert event.flow not in self.closed, "told once"
            assert event.protocol == "tcp" or event.flow in self.opened
            assert event.sent >= 0
            assert event.seconds >= 0
            self.closed.add(event.flow)

    # -- what a host may want ------------------------------------------------------------------------------------------

    def call(self, source: tuple[bytes, int], guest: tuple[bytes, int], now: float) -> None:
        """Open a stream to a guest."""
        self.opening.add(self.stack.open_inbound(source, guest, now))

    def call_off(self, random: Random, now: float) -> None:
        """Want one of them no more."""
        if self.opening:
            flow = random.choice(sorted(self.opening))
            self.opening.remove(flow)
            self.stack.call_off_inbound(flow, now)

    def send_to_guest(self, source: tuple[bytes, int], guest: tuple[bytes, int], data: bytes, now: float) -> None:
        """A datagram of a client's, the first or another one."""
        if len(self.inbound_datagrams) < 3:
            self.inbound_datagrams.add(self.stack.open_inbound_datagrams(source, guest, now))
        for flow in self.inbound_datagrams:
            self.stack.send_inbound_datagram(flow, data, now)

    # -- what a host may say -------------------------------------------------------------------------------------------

    def open_stream(self, flow: int, now: float) -> None:
        """The dial has succeeded."""
        self.streams[flow].connected = True
        self.stack.stream_opened(flow, now)

    def fail_stream(self, flow: int, failure: int, now: float) -> None:
        """The dial has failed."""
        self.finished[flow] = self.streams.pop(flow)
        self.stack.stream_failed(flow, failure, now)

    def take_bytes(self, flow: int, count: int) -> None:
        """The host's kernel takes some of what waits."""
        stream = self.streams[flow]
        count = min(count, stream.unsent)
        if count:
            stream.unsent -= count
            self.stack.stream_sent(flow, count)

    def give_bytes(self, flow: int, data: bytes) -> int:
        """The host has bytes for the guest: as many as there is room for."""
        stream = self.streams[flow]
        room = self.stack.stream_room(flow)
        if not room:
            stream.paused = True
            return 0
        data = data[:room]
        self.stack.stream_received(flow, data)
        return len(data)

    def end_stream(self, flow: int) -> None:
        """The host ends its side."""
        self.streams[flow].ended = True
        self.stack.stream_ended(flow)

    def reset_stream(self, flow: int, now: float) -> None:
        """The host resets."""
        self.finished[flow] = self.streams.pop(flow)
        self.stack.stream_reset(flow, now)

    def say_anything(self, random: Random, now: float) -> None:
        """One thing a host may say, if there is anything to say it about."""
        choice = random.randrange(4)
        if choice == 0 and self.mappings:
            flow = random.choice(list(self.mappings))
            address, port = random.choice(self.mappings[flow] or [(bytes(4), 0)])
            if random.random() < 0.5:
                payload = random.randbytes(random.choice((0, 10, 3000)))
                self.stack.datagram_received(flow, address, port, payload, now)
            else:
                failure = random.choice(list(effects.FAILURE_WORDS))
                self.stack.datagram_failed(flow, address, port, failure, now, offender=address, mtu=1280)
        elif choice == 1 and self.echoes:
            flow = random.choice(list(self.echoes))
            address = random.choice(self.echoes[flow] or [bytes(4)])
            if random.random() < 0.5:
                self.stack.echo_received(flow, address, 1, b"abc", now)
            else:
                self.stack.echo_failed(flow, address, random.choice(list(effects.FAILURE_WORDS)), now)
        elif choice == 2 and self.queries:
            query = random.choice(list(self.queries))
            message = self.queries.pop(query)
            reply = message[:2] + b"\x81\x80" + message[4:] if random.random() < 0.7 else None
            self.stack.dns_resolved(query, reply, now)
        elif self.streams:
            flow = random.choice(list(self.streams))
            self.say_of_stream(flow, random, now)

    def say_of_stream(self, flow: int, random: Random, now: float) -> None:
        """One thing a host may say about a stream."""
        stream = self.streams[flow]
        if not stream.connected:
            if random.random() < 0.7:
                self.open_stream(flow, now)
            else:
                self.fail_stream(flow, random.choice(list(effects.FAILURE_WORDS)), now)
            return
        choice = random.random()
        if choice < 0.4:
            self.take_bytes(flow, random.choice((1, 1000, 1 << 20)))
        elif choice < 0.85 and not stream.ended and not stream.paused:
            self.give_bytes(flow, random.randbytes(random.choice((1, 500, 5000, 65_536))))
        elif choice < 0.95 and not stream.ended:
            self.end_stream(flow)
        elif choice > 0.98:
            self.reset_stream(flow, now)
