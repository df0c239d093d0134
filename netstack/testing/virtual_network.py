"""A network in memory: the real engine, scripted servers and names behind it, on trio's clock.

    async with VirtualNetwork(names={"example.org": ["203.0.113.5"]}) as network:
        network.serve_tcp("203.0.113.5", 80, handler)
        guest = network.attach(VirtualGuest())

No socket is opened and nothing waits for the wall clock: under `trio.testing.MockClock(autojump_threshold=0)` (the
`autojump_clock` fixture of pytest-trio) a test of minutes takes milliseconds, and the same test gives the same bytes.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio

from guest_iface.capture import CaptureWriter
from guest_iface.pcapng import OUTBOUND
from netstack.engine import effects
from netstack.engine.events import Event
from netstack.engine.settings import LinkTraits, NetworkSettings
from netstack.engine.stack import Stack
from netstack.gateway.capture_comments import CaptureComments
from netstack.network_spec import NetworkSpec
from netstack.recorded_settings import recorder
from netstack.testing.virtual_guest import VirtualGuest
from netstack.wire import ipv4

TTL: Final = 60
"""Seconds, of the DNS answers that are made here."""
FIRST_SEQUENCE: Final = 1_000_000
"""Every connection of the engine begins a million after the one before: no dice in a test."""
_WAITING_ROUNDS: Final = 100_000
"""Exchanges without time going by after which something talks in circles."""

Handler = Callable[["ServerStream"], Awaitable[None]]
DatagramHandler = Callable[[bytes], Sequence[bytes] | bytes | None]
E = TypeVar("E")


class ServerStream(trio.abc.HalfCloseableStream):
    """A server's end of one connection: what a handler of `serve_tcp` is given."""

    def __init__(self, network: VirtualNetwork, flow: int) -> None:
        self._network = network
        self._flow = flow
        self._received = bytearray()
        self._guest_ended = False
        self._over = ""
        self._changed = trio.Event()

    def wake(self) -> None:
        """Something has changed for whoever waits."""
        self._changed.set()
        self._changed = trio.Event()

    def take(self, data: bytes) -> None:
        """Bytes from the guest. They count as read once `receive_some` gives them: a server that does not read stops
        the guest."""
        self._received += data
        self.wake()

    def end(self, *, reset: bool = False) -> None:
        """The guest has finished, or reset."""
        self._guest_ended = True
        self._over = "the guest reset the connection" if reset else self._over
        self.wake()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send to the guest; waits while the engine has no room. Raises trio.BrokenResourceError after a reset."""
        await trio.lowlevel.checkpoint()
        rest = memoryview(bytes(data))
        while rest:
            if self._over:
                raise trio.BrokenResourceError(self._over)
            room = self._network.stack.stream_room(self._flow)
            if not room:
                await self._changed.wait()
                continue
            self._network.stack.stream_received(self._flow, bytes(rest[:room]))
            rest = rest[room:]
            self._network.flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room in the engine."""
        await trio.lowlevel.checkpoint()
        while not self._over and not self._network.stack.stream_room(self._flow):
            await self._changed.wait()

    async def send_eof(self) -> None:
        """End this direction (FIN)."""
        await trio.lowlevel.checkpoint()
        self._network.stack.stream_ended(self._flow)
        self._network.flush()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What the guest sent next, b"" at its end. Raises trio.BrokenResourceError after a reset."""
        await trio.lowlevel.checkpoint()
        while not self._received:
            if self._over:
                raise trio.BrokenResourceError(self._over)
            if self._guest_ended:
                return b""
            await self._changed.wait()
        data = bytes(self._received[:max_bytes])
        del self._received[: len(data)]
        self._network.stack.stream_sent(self._flow, len(data))
        self._network.flush()
        return data

    async def receive_exactly(self, count: int) -> bytes:
        """That many bytes. Raises EOFError if the guest ends before."""
        data = b""
        while len(data) < count:
            piece = await self.receive_some(count - len(data))
            if not piece:
                raise EOFError(f"the guest ended after {len(data)} of {count} bytes")
            data += piece
        return data

    def reset(self) -> None:
        """Reset the connection (RST)."""
        if not self._over:
            self._over = "reset by the server"
            self._network.stack.stream_reset(self._flow, self._network.now())
            self._network.flush()
            self.wake()

    async def aclose(self) -> None:
        """Finish: FIN, if it was not sent."""
        self._network.stack.stream_ended(self._flow)
        self._network.flush()
        await trio.lowlevel.checkpoint()


class VirtualNetwork:
    """One gateway, its guests, and the Internet behind it. An asynchronous context manager.

    `events` is everything the engine told; `frames` everything on the wire, as (seconds, from the guest?, frame).
    """

    def __init__(
        self,
        spec: NetworkSpec | None = None,
        settings: NetworkSettings | None = None,
        *,
        names: Mapping[str, Sequence[str]] | None = None,
        wire: Callable[[bytes, bool], Sequence[bytes]] | None = None,
        capture: str | os.PathLike[str] | None = None,
    ) -> None:
        """`spec`: what guests may reach. `names`: addresses by name, for DNS; add to `self.names` at any time.

        `wire(frame, from_guest)` gives what arrives of a frame: nothing where it is lost, two where it is duplicated.
        `capture`: a pcapng file of all of it, which `netstack replay` plays again byte for byte.
        """
        self.settings = settings or NetworkSettings(link=LinkTraits(verify_checksums=True))
        self.names: dict[str, Sequence[str]] = dict(names or {})
        self.answer_dns: Callable[[bytes], bytes | None] = self._answer_dns
        """What the host's resolvers say to a DNS message; None for no answer. Replace it for odd ones."""
        self.answers_ping: set[str] = set()
        """Addresses that answer pings; others are unreachable."""
        self.events: list[Event] = []
        self.frames: list[tuple[float, bool, bytes]] = []
        self.guests: list[VirtualGuest] = []
        self._sequence = FIRST_SEQUENCE
        policy = (spec or NetworkSpec()).policy()
        self.stack = Stack(self.settings, initial_sequence=self._initial_sequence, policy=policy)
        self._policy = policy
        self._wire = wire
        self._capture_path = capture
        self._capture: CaptureWriter | None = None
        self._comments = CaptureComments()
        self._servers: dict[tuple[bytes, int], Handler] = {}
        self._failures: dict[tuple[bytes, int], int] = {}
        self._udp_servers: dict[tuple[bytes, int], DatagramHandler] = {}
        self._streams: dict[int, ServerStream] = {}
        self._inbox: list[bytes] = []
        self._flushing = False
        self._round_at, self._rounds = -math.inf, 0
        self._nursery: trio.Nursery | None = None
        self._manager: Any = None
        self._alarm = trio.CancelScope()
        self._carry_out: dict[type, Callable[[Any, float], None]] = {
            effects.Report: self._report,
            effects.OpenStream: self._open_stream,
            effects.OpenNamed: self._open_named,
            effects.ResolveName: self._resolve_name,
            effects.SendStream: self._send_stream,
            effects.ReadStream: self._read_stream,
            effects.ShutdownStream: self._shutdown_stream,
            effects.AbortStream: self._abort_stream,
            effects.SendDatagram: self._send_datagram,
            effects.SendEcho: self._send_echo,
            effects.ResolveUpstream: self._resolve_upstream,
        }

    async def __aenter__(self) -> Self:
        if self._capture_path is not None:
            self._capture = CaptureWriter(
                self._capture_path,
                clock=self.now,
                comment=self._comments.take,
                remark=recorder(self.settings, self._policy),
            )
            self._capture.add_interface("virtual")
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._watch_time)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        try:
            swallowed: bool | None = await self._manager.__aexit__(kind, error, trace)
        finally:
            self._nursery = None
            if self._capture is not None:
                self._capture.close()
        return swallowed

    # -- what a test sets up -------------------------------------------------------------------------------------------

    def attach(self, guest: VirtualGuest) -> VirtualGuest:
        """Put a guest on the network; the same guest."""
        guest.attach(self)
        self.guests.append(guest)
        return guest

    def serve_tcp(self, address: str, port: int, handler: Handler) -> None:
        """Run `handler(stream)` for each connection that reaches `address:port`."""
        self._servers[_place(address, port)] = handler

    def serve_udp(self, address: str, port: int, handler: DatagramHandler) -> None:
        """`handler(payload)` gives the datagram, or the datagrams, that answer; None: none."""
        self._udp_servers[_place(address, port)] = handler

    def fail_tcp(self, address: str, port: int, failure: int) -> None:
        """Dials to `address:port` end with a failure of netstack.engine.effects (REFUSED, TIMED_OUT, ...)."""
        self._failures[_place(address, port)] = failure

    def told(self, kind: type[E]) -> list[E]:
        """The events of one kind, so far."""
        return [event for event in self.events if isinstance(event, kind)]

    # -- frames --------------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """A guest puts a frame on the wire."""
        self._inbox.append(frame)

    def flush(self) -> None:
        """Let everything happen that is to happen now, and set the alarm for the rest."""
        if self._flushing:
            return
        self._flushing = True
        try:
            for _ in range(_WAITING_ROUNDS):
                if not self._round():
                    break
            else:
                raise RuntimeError("guests and servers talk to each other for ever, and no time goes by")
        finally:
            self._flushing = False
        self._alarm.deadline = self._deadline()

    def _round(self) -> bool:
        """One exchange; whether anything was said."""
        stack = self.stack
        moment = trio.current_time()
        self._rounds = self._rounds + 1 if moment == self._round_at else 0
        self._round_at = moment
        now = self.now()
        batch, self._inbox = self._inbox, []
        arrived = [each for frame in batch for each in self._passes(frame, from_guest=True)]
        if self._capture is not None and arrived:
            self._capture.hold(0, arrived)
        for frame in arrived:
            self.frames.append((now, True, frame))
            stack.receive_frame(frame, now)
        if stack.next_deadline() <= now:
            stack.advance(now)
        while asked := stack.take_effects(now):
            for effect in asked:
                perform = self._carry_out.get(type(effect))
                if perform is not None:
                    perform(effect, now)
        sent = stack.take_frames(now)
        if self._capture is not None:
            self._capture.release()
            if sent:
                self._capture.write(0, sent, OUTBOUND)
        for frame in sent:
            self.frames.append((now, False, frame))
            for each in self._passes(frame, from_guest=False):
                for guest in self.guests:
                    if each[0] & 1 or each[:6] == guest.mac:
                        guest.receive_frame(each, now)
        for guest in self.guests:
            guest.speak(now)
        return bool(batch or sent or self._inbox)

    def now(self) -> float:
        """Seconds of trio's clock; exchanges at one moment of it are a nanosecond apart, as no two are at once."""
        return trio.current_time() + self._rounds * 1e-9

    def _passes(self, frame: bytes, *, from_guest: bool) -> Sequence[bytes]:
        return (frame,) if self._wire is None else self._wire(frame, from_guest)

    def _deadline(self) -> float:
        return min([self.stack.next_deadline(), *(guest.deadline for guest in self.guests)], default=math.inf)

    async def _watch_time(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._deadline()) as self._alarm:
                await trio.sleep_forever()
            self.flush()

    def _initial_sequence(self, _key: bytes, _now: float) -> int:
        self._sequence += FIRST_SEQUENCE
        return self._sequence & 0xFFFFFFFF

    # -- the host side -------------------------------------------------------------------------------------------------

    def _report(self, effect: effects.Report, _now: float) -> None:
        self.events.append(effect.event)
        self._comments.note(effect.event)

    def _open_stream(self, effect: effects.OpenStream, now: float) -> None:
        self._dial(effect.flow, effect.address, effect.port, now, named=False)

    def _dial(self, flow: int, address: bytes, port: int, now: float, *, named: bool) -> None:
        handler = self._servers.get((address, port))
        if handler is None or self._nursery is None:
            failure = self._failures.get((address, port), effects.REFUSED)
            self.stack.stream_failed(flow, failure, now)
            return
        stream = self._streams[flow] = ServerStream(self, flow)
        self.stack.stream_opened(flow, now, address if named else None)
        self._nursery.start_soon(self._serve, handler, stream)

    async def _serve(self, handler: Handler, stream: ServerStream) -> None:
        try:
            await handler(stream)
        except trio.BrokenResourceError:
            return  # the guest has gone; a handler need not mind
        await stream.aclose()

    def _open_named(self, effect: effects.OpenNamed, now: float) -> None:
        known = [socket.inet_aton(each) for each in self.names.get(effect.name, ())]
        faults = [self.stack.candidate_fault(ipv4.TCP, each, effect.port) for each in known]
        usable = [each for each, fault in zip(known, faults, strict=True) if not fault]
        if usable:
            self._dial(effect.flow, self.stack.dialled(usable[0]), effect.port, now, named=True)
        elif known:
            self.stack.stream_objected(effect.flow, faults[0], now)
        else:
            self.stack.stream_failed(effect.flow, effects.NO_ADDRESS, now)

    def _resolve_name(self, effect: effects.ResolveName, now: float) -> None:
        known = [socket.inet_aton(each) for each in self.names.get(effect.name, ())]
        usable = [each for each in known if not self.stack.candidate_fault(ipv4.UDP, each, effect.port)]
        self.stack.name_resolved(effect.flow, usable[0] if usable else None, now)

    def _send_stream(self, effect: effects.SendStream, _now: float) -> None:
        stream = self._streams.get(effect.flow)
        if stream is not None:
            stream.take(b"".join(effect.chunks))

    def _read_stream(self, effect: effects.ReadStream, _now: float) -> None:
        if (stream := self._streams.get(effect.flow)) is not None:
            stream.wake()

    def _shutdown_stream(self, effect: effects.ShutdownStream, _now: float) -> None:
        if (stream := self._streams.get(effect.flow)) is not None:
            stream.end()

    def _abort_stream(self, effect: effects.AbortStream, _now: float) -> None:
        if (stream := self._streams.pop(effect.flow, None)) is not None:
            stream.end(reset=True)

    def _send_datagram(self, effect: effects.SendDatagram, now: float) -> None:
        place = (effect.address, effect.port)
        handler = self._udp_servers.get(place)
        if handler is None:
            self.stack.datagram_failed(effect.flow, *place, effects.REFUSED, now)
            return
        answers = handler(effect.payload)
        for answer in (answers,) if isinstance(answers, bytes) else answers or ():
            self.stack.datagram_received(effect.flow, *place, answer, now)

    def _send_echo(self, effect: effects.SendEcho, now: float) -> None:
        if socket.inet_ntoa(effect.address) in self.answers_ping:
            self.stack.echo_received(effect.flow, effect.address, effect.sequence, effect.payload, now)
        else:
            self.stack.echo_failed(effect.flow, effect.address, effects.HOST_UNREACHABLE, now, sequence=effect.sequence)

    def _resolve_upstream(self, effect: effects.ResolveUpstream, now: float) -> None:
        self.stack.dns_resolved(effect.query, self.answer_dns(effect.message), now)

    def _answer_dns(self, message: bytes) -> bytes | None:
        """What a resolver says that knows `names`: A records, and that there is nothing else."""
        try:
            query = dns.message.from_wire(message)
        except dns.exception.DNSException:
            return None
        response = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        addresses = self.names.get(question.name.to_text(omit_final_dot=True).lower())
        if addresses is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A and addresses:
            response.answer.append(dns.rrset.from_text(question.name, TTL, "IN", "A", *addresses))
        return response.to_wire()


def _place(address: str, port: int) -> tuple[bytes, int]:
    return socket.inet_aton(address), port
