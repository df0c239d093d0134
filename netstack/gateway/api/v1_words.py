"""The engine's values in the words of `/v1/`."""

from __future__ import annotations

import socket
from datetime import UTC, datetime

from netstack.api_models import Connection, Flow, Losses, Question, Verdict
from netstack.engine.events import OUTBOUND, DnsEvent, FlowClosed, FlowRefused
from netstack.engine.snapshot import ConnectionSnapshot, FlowSnapshot
from netstack.engine.verdict import ACTION_WORDS
from netstack.engine.verdict import Verdict as EngineVerdict
from netstack.gateway.event_log import endpoint_words
from netstack.gateway.records import Recorded


def utc(when: float) -> str:
    """Seconds since 1970 as RFC 3339 has them."""
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dotted(address: bytes) -> str:
    """A packed IPv4 address."""
    return socket.inet_ntoa(address)


def verdict_model(verdict: EngineVerdict) -> Verdict:
    """What was decided, and why."""
    return Verdict(
        verdict=ACTION_WORDS[verdict.action],
        step=verdict.step,
        reason=verdict.reason,
        rule=verdict.rule,
        name=verdict.name,
        name_source=verdict.source,
    )


def _connection_model(connection: ConnectionSnapshot) -> Connection:
    losses = connection.losses
    values = connection._asdict()
    values["losses"] = Losses(
        timeouts=losses.timeouts,
        recoveries=losses.fast_starts + losses.sack_starts,
        repeats=losses.repeats,
        duplicates=losses.duplicates,
    )
    return Connection(**values)


def open_flow(flow: FlowSnapshot, note: str) -> Flow:
    """A flow that is open."""
    return Flow(
        id=flow.flow,
        protocol=flow.protocol,
        direction=flow.direction,
        state=flow.state,
        guest=endpoint_words(flow.guest),
        destination=endpoint_words(flow.destination),
        dialled=endpoint_words(flow.dialled),
        verdict=verdict_model(flow.verdict),
        sent=flow.sent,
        received=flow.received,
        seconds=round(flow.age, 6),
        note=note,
        connection=None if flow.connection is None else _connection_model(flow.connection),
    )


def ended_flow(recorded: Recorded) -> Flow | None:
    """A flow that is over, out of its last event; None for an event of another kind."""
    event = recorded.event
    if isinstance(event, FlowClosed):
        return Flow(
            id=event.flow,
            protocol=event.protocol,
            direction=event.direction,
            state="closed",
            guest=endpoint_words(event.guest),
            destination=endpoint_words(event.destination),
            dialled=endpoint_words(event.dialled),
            verdict=verdict_model(event.verdict),
            sent=event.sent,
            received=event.received,
            seconds=round(event.seconds, 6),
            ended=event.reason,
            ended_at=utc(recorded.when),
        )
    if isinstance(event, FlowRefused):
        return Flow(
            id=event.flow,
            protocol=event.protocol,
            direction=OUTBOUND,
            state="refused",
            guest=endpoint_words(event.guest),
            destination=endpoint_words(event.destination),
            verdict=verdict_model(event.verdict),
            told=event.told,
            total=event.total,
            ended="refused",
            ended_at=utc(recorded.when),
        )
    return None


def question_model(recorded: Recorded, event: DnsEvent) -> Question:
    """A DNS question that was answered."""
    return Question(
        time=utc(recorded.when),
        guest=endpoint_words(event.guest),
        name=event.name,
        qtype=event.qtype,
        transport=event.transport,
        source=event.source,
        rcode=event.rcode,
        answers=event.answers,
        seconds=round(event.seconds, 6),
        verdict=None if event.verdict is None else verdict_model(event.verdict),
    )
