"""UDP towards guests: datagrams of one client for one port of a guest, and what the guest answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Final

from netstack.engine import effects
from netstack.engine.events import INBOUND, FlowClosed, FlowOpened
from netstack.engine.inbound_tcp import FORWARD, PortChooser, key_of
from netstack.engine.outbox import Outbox
from netstack.engine.settings import NetworkSettings
from netstack.engine.timers import NOT_SCHEDULED, Timers
from netstack.wire import icmp, udp

MAX_FLOWS: int = 8192
"""Clients and guests' ports together; beyond, who was silent for longest makes room."""

CLOSED: Final = "no way in"
"""Why a flow has ended that was never begun: there is no network, the kill switch is on, or no guest can be there."""


class InboundDatagrams:
    """One client's datagrams for one port of a guest."""

    __slots__ = (
        "client", "deadline", "guest", "heard_at", "id", "key", "opened_at", "received", "scheduled", "sent", "source",
        "timeout",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        key: bytes,
        source: tuple[bytes, int],
        guest: tuple[bytes, int],
        client: tuple[bytes, int],
        timeout: float,
        now: float,
    ) -> None:
        self.id = number
        self.key = key
        self.source = source
        """Who the guest sees."""
        self.guest = guest
        self.client = client
        """Who it is."""
        self.timeout = timeout
        self.opened_at = now
        self.heard_at = now
        self.deadline = now + timeout
        self.scheduled = NOT_SCHEDULED
        self.sent = 0
        self.received = 0


class InboundUdp:
    """Every such flow of one engine. `table` has them by the 12 bytes of addresses and ports in a guest's packet."""

    def __init__(
        self,
        settings: NetworkSettings,
        outbox: Outbox,
        initial_sequence: Callable[[bytes, float], int],
        taken: Callable[[bytes], bool],
    ) -> None:
        """`initial_sequence` is Stack's; `taken` says whether a flow the guest has opened has this key."""
        self.table: dict[bytes, InboundDatagrams] = {}
        self._settings = settings
        self._outbox = outbox
        self._ports = PortChooser(initial_sequence)
        self._taken_outwards = taken
        self._by_number: dict[int, InboundDatagrams] = {}
        self._timers: Timers[InboundDatagrams] = Timers()
        self.timers: tuple[Timers[Any], ...] = (self._timers,)
        """Whose first deadline says when `advance` wants to be called."""
        self.closed = False
        """No way in: there is no network, or the kill switch is on."""

    def _taken(self, key: bytes) -> bool:
        return key in self.table or self._taken_outwards(key)

    def open(
        self,
        source: tuple[bytes, int],
        guest: tuple[bytes, int],
        client: tuple[bytes, int] | None,
        timeout: float,
        now: float,
    ) -> int:
        """A flow for the datagrams of one client; its number.

        One that cannot be is over at once: InboundDatagramsEnded.
        """
        number = self._outbox.next_flow()
        address, port = source
        if not port:
            port = self._ports.choose(partial(key_of, guest, address), self._taken)
        key = key_of(guest, address, port)
        if self.closed or not port or not self._settings.may_be_guest(guest[0]) or self._taken(key):
            self._outbox.effects.append(effects.InboundDatagramsEnded(number, CLOSED))
            return number
        if len(self.table) >= MAX_FLOWS:
            self._outbox.drop("udp-inbound-table-full")
            self._close(min(self.table.values(), key=_heard_at), "evicted", now)
        flow = InboundDatagrams(number, key, (address, port), guest, client or (address, port), timeout, now)
        self.table[key] = self._by_number[number] = flow
        self._timers.schedule(flow)
        self._outbox.report(FlowOpened(number, "udp", guest, flow.source, flow.client, FORWARD, direction=INBOUND))
        return number

    def send(self, number: int, payload: bytes, now: float) -> None:
        """A datagram of the client's, 65,507 bytes at most."""
        flow = self._by_number.get(number)
        if flow is None or len(payload) > udp.MAX_PAYLOAD:
            return
        flow.heard_at = now
        flow.received += len(payload)
        self._outbox.send_datagram(*flow.source, *flow.guest, payload)

    def answer(self, flow: InboundDatagrams, payload: bytes, now: float) -> None:
        """The guest answers."""
        flow.heard_at = now
        flow.sent += len(payload)
        self._outbox.effects.append(effects.DeliverDatagram(flow.id, payload))

    def refused_by_icmp(self, error: icmp.IcmpError, guest: bytes, now: float) -> bool:
        """An ICMP error of `guest`; whether it says that nobody is at a port to which we have sent."""
        quote = error.quote
        if error.type != icmp.UNREACHABLE or error.code == icmp.FRAGMENTATION_NEEDED or quote.destination != guest:
            return False
        source, port = quote.ports
        flow = self.table.get(key_of((guest, port), quote.source, source))
        if flow is None:
            return False
        self._outbox.drop("udp-inbound-refused")
        self._close(flow, "refused", now)
        return True

    def close(self, number: int, now: float) -> None:
        """The host's side wants the flow no more."""
        flow = self._by_number.get(number)
        if flow is not None:
            self._close(flow, "closed", now)

    def end(self, number: int, now: float) -> bool:
        """End a flow because somebody on the host wants it; False when it is none of these."""
        flow = self._by_number.get(number)
        if flow is not None:
            self._close(flow, "closed by hand", now)
        return flow is not None

    def close_all(self, closed: bool, reason: str, now: float) -> None:
        """Whether there is no way in from now on; then what there is ends for this reason."""
        self.closed = closed
        if closed:
            for flow in list(self.table.values()):
                self._close(flow, reason, now)

    def guest_left(self, guests: frozenset[bytes], now: float) -> None:
        """The guests with these addresses are gone."""
        for flow in [flow for flow in self.table.values() if flow.guest[0] in guests]:
            self._close(flow, "guest left", now)

    def advance(self, now: float) -> None:
        """End the flows that were silent for too long."""
        for flow in self._timers.due(now):
            flow.deadline = flow.heard_at + flow.timeout
            if flow.deadline <= now:
                self._close(flow, "idle", now)
            else:
                self._timers.schedule(flow)

    def _close(self, flow: InboundDatagrams, reason: str, now: float) -> None:
        flow.deadline = inf
        del self.table[flow.key], self._by_number[flow.id]
        self._outbox.effects.append(effects.InboundDatagramsEnded(flow.id, reason))
        self._outbox.report(
            FlowClosed(
                flow.id, "udp", flow.guest, flow.source, flow.client, reason, flow.sent, flow.received,
                now - flow.opened_at, FORWARD, INBOUND,
            )
        )  # fmt: skip


def _heard_at(flow: InboundDatagrams) -> float:
    return flow.heard_at
