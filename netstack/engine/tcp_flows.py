"""TCP flows: the guest's SYN, the dial, the splice of two streams, and how one side's end reaches the other.

Whether a flow may go where it wants is for `tcp_admission`; the tables all of them are in are `tcp_table`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from itertools import islice
from math import inf
from typing import Any, Final

from netstack.engine import effects
from netstack.engine import tcp_states as st
from netstack.engine.host_errors import quotable, quoted_whole
from netstack.engine.icmp_errors import IcmpErrors
from netstack.engine.inbound_tcp import InboundTcp, beyond
from netstack.engine.judge import Judge
from netstack.engine.neighbours import Neighbours
from netstack.engine.outbox import Outbox
from netstack.engine.routes import GROUP, OUT, OWN, UNUSED, Route, refusal
from netstack.engine.settings import NetworkSettings
from netstack.engine.tcp_admission import TcpAdmission
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.tcp_flow import (
    CONNECTING,
    DRAINING,
    GONE,
    PEEKING,
    SPLICED,
    TO_GATEWAY,
    TO_GUEST,
    TO_NETWORK,
    Session,
    Syn,
    TcpFlow,
)
from netstack.engine.tcp_limits import TcpLimits
from netstack.engine.tcp_output import TcpOutput
from netstack.engine.tcp_sessions import SERVED_IDLE, serve
from netstack.engine.tcp_table import TcpTable
from netstack.engine.tcp_time_wait import TimeWait
from netstack.engine.timers import Timers
from netstack.engine.verdict import ALLOW, PEEK, REFUSE, Question, Verdict
from netstack.wire import icmp, ipv4, tcp

MAX_HALF_OPEN: int = 4096
"""Flows whose dial or handshake is not complete; beyond, the oldest is reset to make room (conformance F1)."""
MAX_PEEKING: int = 1024
"""Flows that have not said their name yet; further ones are reset, unless one of the oldest has shaken no hands yet."""
_LOOKED_AT: Final = 32
READ_AT_ONCE: Final = 512 * 1024
"""Bytes of one read of a host socket at most. What a batch costs however much is in it is shared by more then; measured
against 64 KiB: downloads 1.1 to 1.3 times as fast at an MTU of 1,500, 1.3 to 1.5 times at 65,520.
"""
_SERVED: Final = Verdict(ALLOW, "syn", "gateway-service")

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000

# What the guest is told when a dial fails; a refusal is a reset, which needs no packet of its own.
_UNREACHABLE_CODES: Final = {
    effects.NETWORK_UNREACHABLE: icmp.NET_UNREACHABLE,
    effects.HOST_UNREACHABLE: icmp.HOST_UNREACHABLE,
    effects.TIMED_OUT: icmp.HOST_UNREACHABLE,
    effects.NO_ADDRESS: icmp.HOST_UNREACHABLE,
    effects.PROHIBITED: icmp.ADMINISTRATIVELY_PROHIBITED,
}


class TcpFlows:
    """Every TCP flow of one engine.

    `table` is read by the stack's hot path: 12 bytes of addresses and ports -> flow; it is one of the `tables`.
    `admission` hears what hooks and policies say of them, `inbound` opens those towards guests.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        outbox: Outbox,
        errors: IcmpErrors,
        judge: Judge,
        neighbours: Neighbours,
        *,
        initial_sequence: Callable[[bytes, float], int],
        segment_offload: Callable[[bytes], int],
        services: Mapping[tuple[bytes, int], Callable[[bytes, int], Session]],
    ) -> None:
        """`initial_sequence(key, now)` gives ISNs (RFC 6528); `services` makes a session for (address, port).

        `segment_offload(mac)` is what the link of the guest with that MAC takes off us (see SegmentWriter).
        """
        self._settings = settings
        self._outbox = outbox
        self._errors = errors
        self._judge = judge
        self._initial_sequence = initial_sequence
        self._segment_offload = segment_offload
        self._services = services
        mss, window = settings.link.mss, settings.link.window
        self._limits = TcpLimits(
            mss=mss,
            max_receive_window=window,
            max_congestion_window=max(window, 10 * mss),
            keepalive_idle=settings.tcp_keepalive,
        )
        self._timers: Timers[TcpFlow] = Timers()
        self.time_wait = TimeWait(outbox, settings.gateway_mac)
        """Connections whose flows are over: segments for them are given to this."""
        self.timers: tuple[Timers[Any], ...] = (self._timers, self.time_wait.timers)
        """Whose first deadline says when `advance` wants to be called."""
        self._output = TcpOutput(self._timers)
        self.touch = self._output.touch
        self.tables = self._flows = flows = TcpTable(outbox, judge, self._timers, self.time_wait)
        self.table = flows.by_key
        self._streams = flows.streams
        self._half_open = flows.half_open
        self.admission = TcpAdmission(settings, flows, outbox, judge, self._timers, self.touch)
        self.inbound = InboundTcp(
            settings, flows, outbox, neighbours, self._timers, self._limits, initial_sequence=initial_sequence,
            segment_offload=segment_offload,
        )  # fmt: skip
        self.hosted: set[int] = set()
        """Ports of the gateway whose services are the driver's."""

    # -- from the guest --------------------------------------------------------------------------------------

    def reopens(self, flow: TcpFlow, sequence: int) -> bool:
        """Whether a SYN may take a flow's place that has ended in this batch: closed, or in TIME-WAIT (see there)."""
        connection = flow.connection
        if connection.state == st.CLOSED:
            return True
        return connection.state == st.TIME_WAIT and (sequence - connection.receive_buffer.next) & _MASK < _HALF

    def open(self, syn: Syn, route: Route, now: float) -> None:
        """A SYN that belongs to no flow, or takes the place of one that `reopens` names; `route` of its destination."""
        isn = self._initial_sequence(syn.key, now)
        old = self.table.get(syn.key)
        used = self.time_wait.leave(syn.key)
        if old is not None:
            self._settle(old, now)  # it has ended in this batch, and the host has to hear of it
            used = old.connection.send_next
            self._flows.forget(old)
        isn = beyond(used, isn)
        question = Question(
            self._outbox.next_flow(), ipv4.TCP, (syn.source, syn.source_port), (syn.destination, syn.destination_port)
        )
        service = self._services.get(question.destination) if route.kind == OWN else None
        hosted = service is None and self._is_hosted(question.destination)
        if service is None and not hosted and route.kind != OUT:
            self._refuse_route(syn, question, route.kind, now)
            return
        kind = TO_GATEWAY if service is not None or hosted else TO_NETWORK
        verdict = self._judge.first(question, now) if kind == TO_NETWORK else _SERVED
        refused = verdict.action == REFUSE and not self._judge.overrulable(verdict)
        if not refused:
            fault = self._no_room(verdict, now)
            if fault:
                verdict, refused = Verdict(REFUSE, "syn", fault), True
        if refused:
            self._judge.refused(question, verdict, "reset", now)
            self._reset(syn)
            return
        connection = TcpConnection(self._writer(syn), self._limits, isn, self._outbox.frames)
        connection.syn_came(syn.sequence, syn.window, tcp.parse_options(syn.options), now)
        flow = TcpFlow(
            question, syn.key, syn.mac, connection, (route.dialled, syn.destination_port), verdict, now,
            gateway_mac=self._settings.gateway_mac, kind=kind, packet=quotable(syn.packet),
        )  # fmt: skip
        self.table[syn.key] = flow
        self._streams[flow.id] = flow
        self._half_open[flow.id] = flow
        if service is not None:
            flow.session = service(syn.source, flow.id)
            connection.accept(now)
        elif hosted:
            flow.limit_at = now + self._settings.dial_timeout
            self._outbox.effects.append(effects.ServeStream(flow.id, syn.destination_port, question.guest))
        elif verdict.action == PEEK:
            self.admission.peek(flow, now)
        else:
            self.admission.admit(flow, verdict, now)
        self._timers.schedule(flow)

    def _is_hosted(self, destination: tuple[bytes, int]) -> bool:
        address, port = destination
        return port in self.hosted and address == self._settings.gateway_ip and not self.inbound.closed

    def _refuse_route(self, syn: Syn, question: Question, kind: int, now: float) -> None:
        told = "nothing"
        if kind == UNUSED:
            if self._unreachable(syn.packet, icmp.HOST_UNREACHABLE, now):
                told = "unreachable"
        elif kind != GROUP:
            told = "reset"
            self._reset(syn)
        self._judge.refused(question, Verdict(REFUSE, "syn", refusal(kind, syn.destination)), told, now)

    def _reset(self, syn: Syn) -> None:
        self.answer_stray(syn, tcp.SYN, 0, 0)

    def answer_stray(self, segment: Syn, flags: int, acknowledgement: int, length: int) -> None:
        """A segment of no connection gets a reset, unless it is one (RFC 9293 section 3.10.7.1)."""
        if flags & tcp.RST:
            self._outbox.counters.resets_received += 1
            return
        writer = self._writer(segment)
        if flags & tcp.ACK:
            frame = writer.frame(acknowledgement, 0, tcp.RST, 0)
        else:
            length += bool(flags & tcp.SYN) + bool(flags & tcp.FIN)
            frame = writer.frame(0, (segment.sequence + length) & _MASK, tcp.RST | tcp.ACK, 0)
        self._outbox.frames.append(frame)

    def _writer(self, segment: Syn) -> tcp.SegmentWriter:
        """Makes frames that go back where this segment came from."""
        return tcp.SegmentWriter(
            destination_mac=segment.mac,
            source_mac=self._settings.gateway_mac,
            source=segment.destination,
            destination=segment.source,
            source_port=segment.destination_port,
            destination_port=segment.source_port,
            offload=self._segment_offload(segment.mac),
        )

    def _unreachable(self, packet: bytes, code: int, now: float) -> bool:
        message = self._errors.make(icmp.UNREACHABLE, code, quoted_whole(packet), self._settings.gateway_ip, now)
        if message is None:
            return False
        self._outbox.packets.append((packet[12:16], message))
        return True

    def _no_room(self, verdict: Verdict, now: float) -> str:
        """Why there cannot be one flow more, whoever allows it; empty when there can."""
        if verdict.action == PEEK and len(self._flows.peeking) >= MAX_PEEKING:
            # A SYN flood does not keep out who means it (conformance F1).
            oldest = islice(self._flows.peeking.values(), _LOOKED_AT)
            silent = next((flow for flow in oldest if flow.id in self._half_open), None)
            if silent is None:
                return "too-many-unnamed-flows"
            self._evict_half_open(silent, now)
        return "" if self._make_room(now) else "table-full"

    def _make_room(self, now: float) -> bool:
        """Room for one more: a connection in TIME-WAIT goes first, then the oldest that was never completed."""
        if len(self._half_open) >= MAX_HALF_OPEN:
            self._evict_half_open(next(iter(self._half_open.values())), now)
        if len(self._flows) < self._settings.max_tcp_flows:
            return True
        if self.time_wait:
            self.time_wait.evict()
        elif self._half_open:
            self._evict_half_open(next(iter(self._half_open.values())), now)
        return len(self._flows) < self._settings.max_tcp_flows

    def _evict_half_open(self, flow: TcpFlow, now: float) -> None:
        self._outbox.drop("tcp-half-open-evicted")
        flow.connection.abort()
        self._flows.abandon(flow, "evicted", now)

    # -- from the host ---------------------------------------------------------------------------------------

    def opened(self, number: int, now: float, address: bytes | None = None) -> None:
        """The dial succeeded; `address` says which of a name's addresses answered.

        Without a peek the guest's SYN is answered now, and not before. With one, what the guest said goes out now.
        """
        flow = self._streams.get(number)
        if flow is None or flow.state != CONNECTING or flow.upstream:
            return
        flow.limit_at = inf
        flow.upstream = True
        flow.packet = b""
        flow.dialled = (address or flow.dialled[0], flow.dialled[1])
        if flow.connection.state == st.LISTEN:
            flow.connection.accept(now)
        elif flow.inspection is not None:
            flow.state = DRAINING if flow.guest_finished else SPLICED
            self._flows.report_opened(flow, now)
            held, flow.inspection.held = flow.inspection.held, []
            self._flows.waiting_bytes -= flow.inspection.waiting
            flow.inspection.waiting = 0
            self.admission.send_on(flow, flow.inspection, held, now)
            if flow.guest_finished and flow.upstream:
                self._outbox.effects.append(effects.ShutdownStream(flow.id))
            self.touch(flow)
        self._timers.schedule(flow)

    def failed(self, number: int, failure: int, now: float) -> None:
        """The dial failed: the guest hears what the host heard."""
        flow = self._streams.get(number)
        if flow is None or flow.state != CONNECTING:
            return
        code = _UNREACHABLE_CODES.get(failure) if flow.connection.state == st.LISTEN else None
        if code is None or not self._unreachable(flow.packet, code, now):
            flow.connection.abort()
        self._flows.close(flow, effects.FAILURE_WORDS[failure], now)
        self._flows.forget(flow)

    def flow(self, number: int) -> TcpFlow | None:
        """The flow of that number; None when there is none (any more)."""
        return self._streams.get(number)

    def taken(self, number: int, count: int) -> None:
        """The host socket took `count` bytes."""
        flow = self._streams.get(number)
        if flow is not None:
            buffer = flow.connection.receive_buffer
            buffer.unsent -= count
            if buffer.window_opened():
                self.touch(flow)

    def room(self, number: int) -> int:
        """Bytes the host socket may be read now; with 0 the driver waits for ReadStream.

        Whole segments: a read in the middle of a stream leaves no short one behind, and what fills one is not copied.
        """
        flow = self._streams.get(number)
        if flow is None:
            return 0
        connection = flow.connection
        room = min(connection.readable, READ_AT_ONCE)
        room -= room % connection.segment
        flow.paused = room == 0
        return room

    def received(self, number: int, data: bytes) -> None:
        """Bytes from the host for the guest."""
        flow = self._streams.get(number)
        if flow is not None:
            flow.received += len(data)
            flow.connection.write(data)
            self.touch(flow)

    def finished(self, number: int) -> None:
        """The host's side has ended its stream."""
        flow = self._streams.get(number)
        if flow is not None:
            flow.connection.finish()
            flow.state = max(flow.state, DRAINING) if flow.state != CONNECTING else flow.state
            self.touch(flow)

    def reset(self, number: int, now: float) -> None:
        """The host's side was reset: so is the guest's."""
        flow = self._streams.get(number)
        if flow is not None:
            flow.connection.abort()
            reason = "reset by client" if flow.kind == TO_GUEST else "reset by destination"
            self._flows.abandon(flow, reason, now, tell_host=False)

    def wake(self, number: int) -> None:
        """A session of this flow has put something into `out`."""
        flow = self._streams.get(number)
        if flow is not None:
            self.touch(flow)

    def guest_left(self, mac: bytes, now: float) -> None:
        """The guest with this MAC is gone: end what it had."""
        for flow in [flow for flow in self.table.values() if flow.mac == mac]:
            if flow.state != GONE:
                self._flows.abandon(flow, "guest left", now)
            else:
                self._flows.forget(flow)
        self.time_wait.guest_left(mac)

    # -- at the end of a batch -------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Turn what the guest did in this batch into effects."""
        for flow in self._output.touched:
            connection = flow.connection
            # Most were touched by the host's side, or are looked at once more: there is nothing to be done for them.
            if connection.signals or connection.receive_buffer.ready or flow.session is not None:
                self._settle(flow, now)

    def _settle(self, flow: TcpFlow, now: float) -> None:
        connection = flow.connection
        buffer = connection.receive_buffer
        if connection.signals & st.OPENED:  # first: what came with the handshake's last acknowledgement came after it
            connection.signals &= ~st.OPENED
            self._handshake_complete(flow, now)
        if flow.state == GONE:
            pass
        elif flow.session is not None:
            serve(flow, flow.session, self._flows, now)
        elif buffer.ready:
            chunks, buffer.ready = buffer.ready, []
            count = sum(map(len, chunks))
            buffer.unsent += count
            if flow.inspection is not None:
                self.admission.inspect(flow, flow.inspection, chunks, now)
            elif flow.upstream:
                flow.sent += count
                self._outbox.effects.append(effects.SendStream(flow.id, chunks))
        if connection.signals == st.ROOM and not flow.paused:
            connection.signals = 0  # nobody waits for it
        elif connection.signals:
            self._take_signals(flow, connection, now)

    def _handshake_complete(self, flow: TcpFlow, now: float) -> None:
        self._half_open.pop(flow.id, None)
        if flow.kind == TO_GUEST:
            self._outbox.counters.connections_called += 1
        else:
            self._outbox.counters.connections_opened += 1
        if flow.state != CONNECTING:
            return
        flow.state = SPLICED
        if flow.kind == TO_GUEST:
            self.inbound.opened(flow)
        self._flows.report_opened(flow, now)
        if flow.session is not None:
            flow.limit_at = now + SERVED_IDLE

    def _take_signals(self, flow: TcpFlow, connection: TcpConnection, now: float) -> None:
        signals, connection.signals = connection.signals, 0
        if flow.state == GONE:
            if connection.state == st.CLOSED:
                self._flows.forget(flow)
            return
        if signals & (st.PEER_RESET | st.GAVE_UP):
            reset = signals & st.PEER_RESET
            self._outbox.counters.resets_received += bool(reset)
            self._flows.abandon(
                flow, "reset by guest" if reset else "guest silent", now,
                failure=effects.REFUSED if reset else effects.TIMED_OUT,
            )  # fmt: skip
            return
        if signals & st.PEER_FINISHED:
            self._guest_finished(flow, now)
        if signals & st.ROOM and flow.paused and connection.readable:
            flow.paused = False
            self._outbox.effects.append(effects.ReadStream(flow.id))
        if signals & st.ENDED and flow.state != GONE:
            if flow.session is None:
                self._outbox.effects.append(effects.CloseStream(flow.id))
            self._flows.close(flow, "finished", now)
            if connection.state == st.TIME_WAIT:
                self._flows.ending.append(flow)
            else:
                self._flows.forget(flow)

    def _guest_finished(self, flow: TcpFlow, now: float) -> None:
        if flow.state == PEEKING and flow.inspection is not None:
            self.admission.ended(flow, flow.inspection, now)
        elif flow.session is not None:
            flow.state = DRAINING
            serve(flow, flow.session, self._flows, now)
        elif flow.upstream:
            flow.state = DRAINING
            self._outbox.effects.append(effects.ShutdownStream(flow.id))
        else:
            flow.guest_finished = True

    def output(self, frames: list[tcp.Frame], room: int, now: float, held: Set[bytes] = frozenset()) -> None:
        """Append what connections have to send, about `room` frames of it; the rest waits for the next call.

        Guests whose MAC is in `held` are sent no data, whatever the room.
        """
        self._output.speak(frames, room, now, held)
        if self._flows.ending:
            self._flows.rest()

    @property
    def waiting(self) -> bool:
        """Whether data of guests that were not held is left for the next `output`."""
        return self._output.waiting

    # -- time ------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Timers of connections, dials and services."""
        self.time_wait.advance(now)
        for flow in self._timers.due(now):
            if now >= flow.limit_at:
                flow.limit_at = inf
                self._out_of_time(flow, now)
            else:
                flow.connection.advance(now)
            self.touch(flow)

    def _out_of_time(self, flow: TcpFlow, now: float) -> None:
        if flow.session is not None:
            if flow.state == SPLICED:
                flow.state = DRAINING
                flow.limit_at = now + SERVED_IDLE
                flow.connection.finish()
            else:
                flow.connection.abort()
                self._flows.abandon(flow, "idle", now)
        elif flow.kind == TO_GUEST:
            flow.connection.abort()
            self._flows.abandon(flow, effects.FAILURE_WORDS[effects.TIMED_OUT], now, failure=effects.TIMED_OUT)
        elif not self.admission.out_of_time(flow, now) and flow.state == CONNECTING:
            self._outbox.effects.append(effects.AbortStream(flow.id))
            self.failed(flow.id, effects.TIMED_OUT, now)
