"""UDP through NAT: one host socket for each guest address and port.

The mapping is endpoint-independent (RFC 4787 section 4.1).

A *flow* here is what one guest port exchanges with one destination; its mapping owns the host socket and lives as long
as any of its flows. Answers are let in from addresses the guest has sent to (address-dependent filtering, RFC 4787
section 5), whatever their port.
"""

from __future__ import annotations

from math import inf
from typing import Any

from netstack.engine import effects
from netstack.engine.compaction import compact
from netstack.engine.events import FlowClosed, FlowOpened
from netstack.engine.host_errors import HostErrors, quotable
from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.settings import NetworkSettings
from netstack.engine.timers import NOT_SCHEDULED, Timers
from netstack.engine.verdict import REFUSE, Question, Verdict
from netstack.engine.waiting_datagrams import Held, Waiting, WaitingDatagrams
from netstack.wire import ipv4, udp


class UdpFlow:
    """What one guest port exchanges with one destination."""

    __slots__ = (
        "deadline", "dialled", "heard_at", "id", "key", "last_packet", "mapping", "opened_at", "peer", "question",
        "received", "replied", "scheduled", "sent", "timeout", "verdict",
    )  # fmt: skip

    def __init__(
        self,
        key: bytes,
        question: Question,
        mapping: Mapping,
        peer: Peer,
        dialled: tuple[bytes, int],
        verdict: Verdict,
        now: float,
    ) -> None:
        self.id = question.flow
        self.key = key
        self.question = question
        self.mapping = mapping
        self.peer = peer
        self.dialled = dialled
        self.verdict = verdict
        self.last_packet = b""
        """The start of the guest's last packet: an ICMP error quotes it."""
        self.replied = False
        self.opened_at = now
        self.heard_at = now
        self.timeout = 0.0
        self.deadline = inf
        self.scheduled = NOT_SCHEDULED
        self.sent = 0
        self.received = 0


class Peer:
    """An address that a mapping's guest has sent to."""

    __slots__ = ("flows", "ports", "seen_as")

    def __init__(self) -> None:
        self.ports: dict[int, UdpFlow] = {}
        """Its ports -> the flow by which each was addressed last: NAT may give the guest two names for one address."""
        self.seen_as = b""
        """The address by which the guest knows it."""
        self.flows = 0
        """How many there are, all ports and names counted."""


class Mapping:
    """A guest's address and port, and the host socket that stands for them."""

    __slots__ = ("guest", "id", "peers")

    def __init__(self, number: int, guest: tuple[bytes, int]) -> None:
        self.id = number
        self.guest = guest
        self.peers: dict[bytes, Peer] = {}
        """By the address that is dialled."""


class UdpFlows:
    """Every UDP flow of one engine. `table` has them by the 12 bytes of addresses and ports."""

    def __init__(self, settings: NetworkSettings, outbox: Outbox, host_errors: HostErrors, judge: Judge) -> None:
        self.table: dict[bytes, UdpFlow] = {}
        self._judge = judge
        self._waiting = WaitingDatagrams(judge, outbox)
        self._settings = settings
        self._outbox = outbox
        self._host_errors = host_errors
        self._mappings: dict[bytes, Mapping] = {}
        self._by_number: dict[int, Mapping] = {}
        self._unreplied: dict[int, UdpFlow] = {}
        self._timers: Timers[UdpFlow] = Timers()
        self.timers: tuple[Timers[Any], ...] = (self._timers, self._waiting.timers)
        """Whose first deadlines say when `advance` wants to be called."""

    def compact(self) -> None:
        """Give back the room of flows that are gone."""
        compact(self.table, self._mappings, self._by_number, self._unreplied)

    def send(self, key: bytes, packet: bytes, header: ipv4.Ipv4, datagram: udp.Udp, dialled: bytes, now: float) -> None:
        """A datagram from the guest to `dialled`, the address after NAT."""
        held = Held(datagram.payload, max(0, header.ttl - 1), quotable(packet))
        flow = self.table.get(key)
        if flow is None:
            waits = self._waiting.hold(key, held, now)
            if waits is True:
                return
            if waits:
                self.refuse(*waits, held.packet, now)
                return
            flow = self._begin(key, header, datagram, dialled, held, now)
        if flow is not None:
            self.send_on(flow, held.payload, held.ttl, held.packet, now)

    def _begin(
        self, key: bytes, header: ipv4.Ipv4, datagram: udp.Udp, dialled: bytes, held: Held, now: float
    ) -> UdpFlow | None:
        """A datagram that belongs to no flow: judge it. None when it may not go out, or not yet."""
        question = Question(
            self._outbox.next_flow(),
            ipv4.UDP,
            (header.source, datagram.source_port),
            (header.destination, datagram.destination_port),
        )
        judge = self._judge
        verdict = judge.first(question, now)
        refusal = verdict if verdict.action == REFUSE and not judge.overrulable(verdict) else None
        if refusal is None:
            if verdict.allowed and not judge.consults and verdict.source != "synthetic":
                return self._open(key, question, (dialled, datagram.destination_port), verdict, now)
            refusal = self._waiting.begin(key, question, verdict, dialled, held, now)
        if refusal is not None:
            self.refuse(question, refusal, held.packet, now)
        return None

    def consulted(self, number: int, verdict: Verdict, now: float) -> None:
        """The hook has spoken about a flow that waits for it."""
        done = self._waiting.consulted(number, verdict)
        if done is None:
            return
        waiting, verdict = done
        if verdict.allowed:
            self._release(waiting, waiting.dialled, verdict, now)
        else:
            self.refuse(waiting.question, verdict, waiting.held[-1].packet, now)

    def send_on(self, flow: UdpFlow, payload: bytes, ttl: int, kept: bytes, now: float) -> None:
        """One more datagram of a flow; `ttl` is what is left of it, `kept` what errors will quote of its packet."""
        peer = flow.peer
        peer.ports[flow.dialled[1]] = flow
        peer.seen_as = flow.question.destination[0]
        flow.last_packet = kept
        flow.heard_at = now
        flow.sent += len(payload)
        self._outbox.effects.append(effects.SendDatagram(flow.mapping.id, *flow.dialled, payload, ttl))

    def refuse(self, question: Question, verdict: Verdict, kept: bytes, now: float) -> None:
        """Tell the guest at once, so that its programs fall back at once: ICMP port unreachable."""
        told = self._host_errors.tell(effects.REFUSED, kept, now, dialled=question.destination[0])
        self._judge.refused(question, verdict, "unreachable" if told else "nothing", now)

    def name_resolved(self, number: int, address: bytes | None, now: float) -> None:
        """The address of a QUIC flow's name, None when there is none that may be used."""
        waiting = self._waiting.resolved(number)
        if waiting is None or waiting.verdict is None:
            return
        if address is None:
            self._give_up(waiting, Verdict(REFUSE, "dial", "name-has-no-usable-address"), now)
            return
        self._release(waiting, address, waiting.verdict, now)

    def _release(self, waiting: Waiting, address: bytes, verdict: Verdict, now: float) -> None:
        """Let a flow go that has waited, and its datagrams with it."""
        target = (address, waiting.question.destination[1])
        flow = self._open(waiting.key, waiting.question, target, verdict, now)
        for held in waiting.held:
            self.send_on(flow, held.payload, held.ttl, held.packet, now)

    def _give_up(self, waiting: Waiting, verdict: Verdict, now: float) -> None:
        """Refuse a flow that has waited, under the name it may have said."""
        known = waiting.verdict
        if known is not None:
            verdict = verdict._replace(name=known.name, source=known.source)
        self.refuse(waiting.question, verdict, waiting.held[-1].packet, now)

    def _open(self, key: bytes, question: Question, target: tuple[bytes, int], verdict: Verdict, now: float) -> UdpFlow:
        if len(self.table) >= self._settings.max_udp_flows:
            # The oldest that was never answered makes room, else the oldest of all.
            oldest = next(iter(self._unreplied.values()), None) or next(iter(self.table.values()))
            self._outbox.drop("udp-table-full")
            self._close(oldest, "evicted", now)
        guest, guest_port = question.guest
        place = guest + guest_port.to_bytes(2, "big")
        mapping = self._mappings.get(place)
        if mapping is None:
            mapping = Mapping(self._outbox.next_flow(), question.guest)
            self._mappings[place] = self._by_number[mapping.id] = mapping
            self._outbox.effects.append(effects.OpenDatagrams(mapping.id))
        peer = mapping.peers.get(target[0])
        if peer is None:
            peer = mapping.peers[target[0]] = Peer()
        peer.flows += 1
        flow = UdpFlow(key, question, mapping, peer, target, verdict, now)
        flow.timeout = self._settings.udp_unreplied_timeout
        flow.deadline = now + flow.timeout
        self.table[key] = self._unreplied[flow.id] = flow
        self._timers.schedule(flow)
        note = self._judge.note(question, verdict, now)
        self._outbox.report(FlowOpened(flow.id, "udp", question.guest, question.destination, target, verdict, note))
        return flow

    def received(self, number: int, address: bytes, port: int, payload: bytes, now: float) -> None:
        """A datagram came to a mapping's host socket."""
        mapping = self._by_number.get(number)
        if mapping is None:
            return
        peer = mapping.peers.get(address)
        if peer is None:
            self._outbox.drop("udp-from-stranger")
            return
        source = peer.seen_as
        flow = peer.ports.get(port)
        if flow is not None:
            source = flow.question.destination[0]
            flow.heard_at = now
            flow.received += len(payload)
            if not flow.replied:
                flow.replied = True
                flow.timeout = self._settings.udp_replied_timeout
                self._unreplied.pop(flow.id, None)
        guest, guest_port = mapping.guest
        self._outbox.send_datagram(source, port, guest, guest_port, payload)

    def failed(
        self, number: int, address: bytes, port: int, failure: int, now: float, *, offender: bytes, mtu: int
    ) -> None:
        """The host was told, or found out, that a datagram did not arrive."""
        mapping = self._by_number.get(number)
        peer = mapping.peers.get(address) if mapping is not None else None
        flow = peer.ports.get(port) if peer is not None else None
        if flow is not None:
            self._host_errors.tell(failure, flow.last_packet, now, dialled=address, offender=offender, mtu=mtu)

    def end(self, number: int, now: float) -> bool:
        """End a flow because somebody on the host wants it; False when it is none of these."""
        flow = next((flow for flow in self.table.values() if flow.id == number), None)
        if flow is not None:
            self._close(flow, "closed by hand", now)
        return flow is not None

    def guest_left(self, guests: frozenset[bytes], now: float) -> None:
        """The guests with these addresses are gone."""
        for flow in [flow for flow in self.table.values() if flow.question.guest[0] in guests]:
            self._close(flow, "guest left", now)

    def judge_again(self, now: float) -> None:
        """End the flows that the policy now in force would refuse; the others live on."""
        for waiting, refusal in self._waiting.judge_again(now):
            self.refuse(waiting.question, refusal, waiting.held[-1].packet, now)
        for flow in list(self.table.values()):
            verdict = self._judge.again(flow.question, flow.verdict, now)
            if not verdict.allowed:
                self.refuse(flow.question, verdict, flow.last_packet, now)
                self._close(flow, "refused", now)

    def advance(self, now: float) -> None:
        """End the flows that were silent for too long."""
        for waiting, refusal in self._waiting.expired(now):
            self._give_up(waiting, refusal, now)
        for flow in self._timers.due(now):
            flow.deadline = flow.heard_at + flow.timeout
            if flow.deadline <= now:
                self._close(flow, "idle", now)
            else:
                self._timers.schedule(flow)

    def _close(self, flow: UdpFlow, reason: str, now: float) -> None:
        flow.deadline = inf
        flow.last_packet = b""
        del self.table[flow.key]
        self._unreplied.pop(flow.id, None)
        mapping, peer = flow.mapping, flow.peer
        address, port = flow.dialled
        peer.flows -= 1
        if peer.ports.get(port) is flow:
            del peer.ports[port]
        if not peer.flows:
            del mapping.peers[address]
        self._outbox.report(
            FlowClosed(
                flow.id, "udp", flow.question.guest, flow.question.destination, flow.dialled, reason, flow.sent,
                flow.received, now - flow.opened_at, flow.verdict,
            )
        )  # fmt: skip
        if not mapping.peers:
            guest, guest_port = mapping.guest
            del self._mappings[guest + guest_port.to_bytes(2, "big")], self._by_number[mapping.id]
            self._outbox.effects.append(effects.CloseDatagrams(mapping.id))
