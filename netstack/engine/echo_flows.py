"""ICMP echo through ping sockets: one for each guest address and identifier (RFC 5508 section 3.1).

Nothing is ever faked.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import Any, Final, NamedTuple

from netstack.engine import effects
from netstack.engine.events import FlowClosed, FlowOpened
from netstack.engine.host_errors import HostErrors, quotable
from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.settings import NetworkSettings
from netstack.engine.timers import NOT_SCHEDULED, Timers
from netstack.engine.verdict import REFUSE, Question, Verdict
from netstack.wire import icmp, ipv4

IDLE: Final = 60.0
"""Seconds a mapping lives without a packet (RFC 5508 section 3.2 REQ-1)."""
MAX_DESTINATIONS: Final = 64
"""Addresses remembered per mapping; a tool that pings more with one identifier loses the answers of the first."""
MAX_REQUESTS: Final = 64
"""Requests remembered per mapping, to be quoted: traceroute has sixteen under way, each for another hop."""

MAX_ASKING: Final = 64
"""Requests that wait for the hook; further ones are lost, as pings are."""
MAX_APPROVED: Final = 1024
"""Pairs of guest and destination the hook has allowed; then it is asked about all of them again."""


class _Request(NamedTuple):
    """An echo request on its way out, with what was asked about it."""

    question: Question
    packet: bytes
    header: ipv4.Ipv4
    echo: icmp.Echo
    dialled: bytes


class EchoFlow:
    """One guest address and identifier."""

    __slots__ = (
        "deadline", "destinations", "first", "guest", "heard_at", "id", "identifier", "opened_at", "received",
        "requests", "scheduled", "sent", "verdict",
    )  # fmt: skip

    def __init__(self, number: int, guest: bytes, identifier: int, verdict: Verdict, now: float) -> None:
        self.id = number
        self.verdict = verdict
        self.guest = guest
        self.identifier = identifier
        self.destinations: dict[bytes, bytes] = {}
        """Dialled address -> the address the guest knows."""
        self.requests: dict[tuple[bytes, int], bytes] = {}
        """Dialled address and sequence number -> the start of the packet, the latest last."""
        self.first = (guest, guest)
        self.opened_at = now
        self.heard_at = now
        self.deadline = now + IDLE
        self.scheduled = NOT_SCHEDULED
        self.sent = 0
        self.received = 0


class EchoFlows:
    """Every echo flow of one engine."""

    def __init__(self, settings: NetworkSettings, outbox: Outbox, host_errors: HostErrors, judge: Judge) -> None:
        self._judge = judge
        self._asking: dict[int, _Request] = {}
        self._approved: dict[tuple[bytes, bytes], tuple[float, Verdict]] = {}
        self._settings = settings
        self._outbox = outbox
        self._host_errors = host_errors
        self._table: dict[tuple[bytes, int], EchoFlow] = {}
        self._by_number: dict[int, EchoFlow] = {}
        self._timers: Timers[EchoFlow] = Timers()
        self.timers: tuple[Timers[Any], ...] = (self._timers,)
        """Whose first deadline says when `advance` wants to be called."""

    def request(self, packet: bytes, header: ipv4.Ipv4, echo: icmp.Echo, dialled: bytes, now: float) -> None:
        """An echo request from the guest to `dialled`, the address after NAT."""
        question = Question(
            self._outbox.next_flow(), ipv4.ICMP, (header.source, echo.identifier), (header.destination, 0)
        )
        request = _Request(question, packet, header, echo, dialled)
        verdict = self._judge.echo(question)
        if not verdict.allowed and not self._judge.overrulable(verdict):
            self._refuse(request, verdict, now)
        elif not self._judge.consults:
            self._send(request, verdict, now)
        else:
            until, approval = self._approved.get((header.source, header.destination), (-inf, verdict))
            if now <= until:
                self._send(request, approval, now)
            elif len(self._asking) < MAX_ASKING:
                self._asking[question.flow] = request
                self._outbox.effects.append(effects.ConsultFlow(question, verdict))
            else:
                self._outbox.drop("icmp-waits-for-hook")

    def consulted(self, number: int, verdict: Verdict, now: float) -> None:
        """The hook has spoken about a request; what it allows holds for that destination for a while."""
        request = self._asking.pop(number, None)
        if request is None:
            return
        if not verdict.allowed:
            self._refuse(request, verdict, now)
            return
        if len(self._approved) >= MAX_APPROVED:
            self._approved.clear()
        self._approved[request.header.source, request.header.destination] = now + IDLE, verdict
        self._send(request, verdict, now)

    def _refuse(self, request: _Request, verdict: Verdict, now: float) -> None:
        kept = quotable(request.packet)
        told = self._host_errors.tell(effects.PROHIBITED, kept, now, dialled=request.header.destination)
        self._judge.refused(request.question, verdict, "unreachable" if told else "nothing", now)

    def _send(self, request: _Request, verdict: Verdict, now: float) -> None:
        question, packet, header, echo, dialled = request
        place = (header.source, echo.identifier)
        flow = self._table.get(place)
        if flow is None:
            if len(self._table) >= self._settings.max_echo_flows:
                self._outbox.drop("icmp-table-full")
                self._close(next(iter(self._table.values())), "evicted", now)
            flow = EchoFlow(question.flow, header.source, echo.identifier, verdict, now)
            flow.first = (header.destination, dialled)
            self._table[place] = self._by_number[flow.id] = flow
            self._timers.schedule(flow)
            self._outbox.effects.append(effects.OpenEcho(flow.id))
            self._outbox.report(
                FlowOpened(
                    flow.id, "icmp", (header.source, echo.identifier), (header.destination, 0), (dialled, 0), verdict
                )
            )
        if dialled not in flow.destinations and len(flow.destinations) >= MAX_DESTINATIONS:
            del flow.destinations[next(iter(flow.destinations))]
        flow.destinations[dialled] = header.destination
        flow.requests.pop((dialled, echo.sequence), None)
        if len(flow.requests) >= MAX_REQUESTS:
            del flow.requests[next(iter(flow.requests))]
        flow.requests[dialled, echo.sequence] = quotable(packet)
        flow.heard_at = now
        flow.sent += len(echo.payload)
        self._outbox.effects.append(
            effects.SendEcho(flow.id, dialled, echo.sequence, echo.payload, max(0, header.ttl - 1))
        )

    def received(self, number: int, address: bytes, sequence: int, payload: bytes, now: float) -> None:
        """An echo reply came to a ping socket."""
        flow = self._by_number.get(number)
        known = flow.destinations.get(address) if flow is not None else None
        if flow is None or known is None:
            self._outbox.drop("icmp-from-stranger")
            return
        flow.heard_at = now
        flow.received += len(payload)
        reply = icmp.build_echo(request=False, identifier=flow.identifier, sequence=sequence, payload=payload)
        self._outbox.send(known, flow.guest, ipv4.ICMP, reply)

    def failed(
        self,
        number: int,
        address: bytes,
        failure: int,
        now: float,
        *,
        sequence: int | None,
        offender: bytes,
        mtu: int,
    ) -> None:
        """The host was told, or found out, that a request did not arrive: the latest if `sequence` is not known."""
        flow = self._by_number.get(number)
        if flow is None:
            return
        if sequence is None:
            sequence = next((each for target, each in reversed(flow.requests) if target == address), 0)
        kept = flow.requests.get((address, sequence))
        if kept is not None:
            # A host that is there refuses no echo: what the socket calls refused is an unreachable host.
            cause = effects.HOST_UNREACHABLE if failure == effects.REFUSED else failure
            self._host_errors.tell(cause, kept, now, dialled=address, offender=offender, mtu=mtu)

    @property
    def flows(self) -> Collection[EchoFlow]:
        """Those that live."""
        return self._by_number.values()

    def end(self, number: int, now: float) -> bool:
        """End a flow because somebody on the host wants it; False when it is none of these."""
        flow = self._by_number.get(number)
        if flow is not None:
            self._close(flow, "closed by hand", now)
        return flow is not None

    def guest_left(self, guests: frozenset[bytes], now: float) -> None:
        """The guests with these addresses are gone."""
        for flow in [flow for flow in self._table.values() if flow.guest in guests]:
            self._close(flow, "guest left", now)

    def judge_again(self, now: float) -> None:
        """End the mappings that the policy now in force would refuse; requests to other places are judged anew."""
        self._approved.clear()
        asking, self._asking = self._asking, {}
        for request in asking.values():  # what the hook was told of the policy is over
            self._refuse(request, Verdict(REFUSE, "replaced", "policy-replaced"), now)
        for flow in list(self._table.values()):
            question = Question(flow.id, ipv4.ICMP, (flow.guest, flow.identifier), (flow.first[0], 0))
            verdict = self._judge.echo(question)
            if not verdict.allowed:
                self._judge.refused(question, verdict, "nothing", now)
                self._close(flow, "refused", now)

    def advance(self, now: float) -> None:
        """End the mappings that were silent for too long."""
        for flow in self._timers.due(now):
            flow.deadline = flow.heard_at + IDLE
            if flow.deadline <= now:
                self._close(flow, "idle", now)
            else:
                self._timers.schedule(flow)

    def _close(self, flow: EchoFlow, reason: str, now: float) -> None:
        flow.deadline = inf
        del self._table[flow.guest, flow.identifier], self._by_number[flow.id]
        self._outbox.effects.append(effects.CloseEcho(flow.id))
        known, dialled = flow.first
        self._outbox.report(
            FlowClosed(
                flow.id, "icmp", (flow.guest, flow.identifier), (known, 0), (dialled, 0), reason, flow.sent,
                flow.received, now - flow.opened_at, flow.verdict,
            )
        )  # fmt: skip
