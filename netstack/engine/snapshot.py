"""What there is at one moment, as values: flows with their verdicts, and how their connections fare.

Nothing is kept for it: it is read out of the tables when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from netstack.engine import tcp_flow
from netstack.engine.counters import LossTotals
from netstack.engine.echo_flows import EchoFlow
from netstack.engine.events import INBOUND, OUTBOUND
from netstack.engine.inbound_tcp import FORWARD
from netstack.engine.inbound_udp import InboundDatagrams
from netstack.engine.stack import Stack
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.tcp_flow import TO_GUEST, TcpFlow
from netstack.engine.tcp_states import ESTABLISHED, STATE_NAMES, SYN_RECEIVED, SYN_SENT, SYNCHRONIZED, TIME_WAIT
from netstack.engine.udp_flows import UdpFlow
from netstack.engine.verdict import Verdict

STATE_WORDS: Final = {
    tcp_flow.PEEKING: "peeking",
    tcp_flow.CONSULTING: "consulting",
    tcp_flow.CONNECTING: "connecting",
    tcp_flow.SPLICED: "spliced",
    tcp_flow.DRAINING: "draining",
    tcp_flow.GONE: "gone",
}


class ConnectionSnapshot(NamedTuple):
    """The guest-facing TCP connection of a flow. Sizes in bytes, times in seconds."""

    state: str
    """RFC 9293's name."""
    round_trip: float
    """Smoothed; 0 while nothing was measured."""
    timeout: float
    """After which what was sent counts as lost."""
    segment: int
    congestion_window: int
    recovering: bool
    """Losses are being repaired."""
    guest_window: int
    """What the guest takes beyond what it has acknowledged."""
    own_window: int
    """What we take beyond what has come."""
    in_flight: int
    """Sent to the guest and not acknowledged."""
    queued: int
    """From the host, not sent to the guest yet."""
    unread: int
    """From the guest, not taken by the host yet."""
    losses: LossTotals


class FlowSnapshot(NamedTuple):
    """A flow that lives. Endpoints are packed addresses and ports; `destination` is the guest's before NAT."""

    flow: int
    protocol: str
    direction: str
    """out: the guest began it; in: somebody outside did."""
    state: str
    guest: tuple[bytes, int]
    destination: tuple[bytes, int]
    dialled: tuple[bytes, int]
    verdict: Verdict
    age: float
    """Seconds since it began."""
    sent: int
    """Bytes from the guest."""
    received: int
    """Bytes to the guest."""
    connection: ConnectionSnapshot | None = None


class TcpGauges(NamedTuple):
    """How many connections there are now."""

    connected: int
    """Of any state but LISTEN (a dial under way) and CLOSED."""
    established: int
    losses: LossTotals
    """Of all that were, these among them."""


def flows(stack: Stack, now: float) -> Iterator[FlowSnapshot]:
    """Every flow that is not over, in the order of their numbers within each protocol."""
    for flow in stack.tcp.tables.streams.values():
        yield tcp_snapshot(flow, now)
    for datagrams in stack.udp.table.values():
        yield _udp_snapshot(datagrams, now)
    for echo in stack.echo.flows:
        yield _echo_snapshot(echo, now)
    for inbound in stack.inbound_udp.table.values():
        yield _inbound_snapshot(inbound, now)


def open_flows(stack: Stack) -> dict[str, int]:
    """How many of these there are, by protocol."""
    return {
        "tcp": len(stack.tcp.tables.streams),
        "udp": len(stack.udp.table) + len(stack.inbound_udp.table),
        "icmp": len(stack.echo.flows),
    }


def find(stack: Stack, number: int, now: float) -> FlowSnapshot | None:
    """The flow of that number, if it lives."""
    flow = stack.tcp.tables.streams.get(number)
    if flow is not None:
        return tcp_snapshot(flow, now)
    return next((each for each in flows(stack, now) if each.flow == number), None)


def gauges(stack: Stack) -> TcpGauges:
    """Looks at every connection: for statistics that are asked for now and then."""
    connected, established = len(stack.tcp.time_wait), 0
    counted = SYNCHRONIZED | {SYN_SENT, SYN_RECEIVED, TIME_WAIT}
    recoveries = []
    for flow in stack.tcp.table.values():
        state = flow.connection.state
        connected += state in counted
        established += state == ESTABLISHED
        recoveries.append(flow.connection.sender.recovery)
    return TcpGauges(connected, established, stack.counters.losses_with(recoveries))


def tcp_snapshot(flow: TcpFlow, now: float) -> FlowSnapshot:
    """One TCP flow."""
    question = flow.question
    return FlowSnapshot(
        flow=flow.id,
        protocol="tcp",
        direction=INBOUND if flow.kind == TO_GUEST else OUTBOUND,
        state=STATE_WORDS[flow.state],
        guest=question.guest,
        destination=question.destination,
        dialled=flow.dialled,
        verdict=flow.verdict,
        age=now - flow.opened_at,
        sent=flow.sent,
        received=flow.received,
        connection=_connection_snapshot(flow.connection),
    )


def _connection_snapshot(connection: TcpConnection) -> ConnectionSnapshot:
    sender, buffer = connection.sender, connection.receive_buffer
    recovery = sender.recovery
    return ConnectionSnapshot(
        state=STATE_NAMES[connection.state],
        round_trip=sender.round_trip.smoothed,
        timeout=sender.round_trip.timeout,
        segment=recovery.mss,
        congestion_window=recovery.window,
        recovering=bool(recovery.mode),
        guest_window=sender.window,
        own_window=max(0, buffer.edge - buffer.next),
        in_flight=sender.next - sender.una,
        queued=max(0, sender.buffer.end - sender.next),
        unread=buffer.unsent,
        losses=recovery,
    )


def _udp_snapshot(flow: UdpFlow, now: float) -> FlowSnapshot:
    question = flow.question
    return FlowSnapshot(
        flow.id, "udp", OUTBOUND, "answered" if flow.replied else "unanswered", question.guest, question.destination,
        flow.dialled, flow.verdict, now - flow.opened_at, flow.sent, flow.received,
    )  # fmt: skip


def _echo_snapshot(flow: EchoFlow, now: float) -> FlowSnapshot:
    destination, dialled = flow.first
    return FlowSnapshot(
        flow.id, "icmp", OUTBOUND, "answered" if flow.received else "unanswered", (flow.guest, flow.identifier),
        (destination, 0), (dialled, 0), flow.verdict, now - flow.opened_at, flow.sent, flow.received,
    )  # fmt: skip


def _inbound_snapshot(flow: InboundDatagrams, now: float) -> FlowSnapshot:
    return FlowSnapshot(
        flow.id, "udp", INBOUND, "answered" if flow.received else "unanswered", flow.guest, flow.source, flow.client,
        FORWARD, now - flow.opened_at, flow.sent, flow.received,
    )  # fmt: skip
