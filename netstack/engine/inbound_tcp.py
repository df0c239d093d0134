"""TCP towards a guest: its MAC is found, our SYN goes out, and what comes of it is told to the host's side.

From the guest's SYN-ACK on the flow is spliced as one that the guest has opened.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Final, NamedTuple

from netstack.engine import effects
from netstack.engine import tcp_states as st
from netstack.engine.events import INBOUND, FlowClosed
from netstack.engine.neighbours import Neighbours
from netstack.engine.outbox import Outbox
from netstack.engine.settings import NetworkSettings
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.tcp_flow import GONE, TO_GUEST, TcpFlow
from netstack.engine.tcp_limits import TcpLimits
from netstack.engine.tcp_table import TcpTable
from netstack.engine.timers import Timers
from netstack.engine.verdict import ALLOW, Question, Verdict
from netstack.wire import icmp, ipv4, tcp

MAX_OPENING: int = 1024
"""Flows towards guests that have not answered yet, those included whose MAC is looked for."""
FIRST_PORT: Final = 1024
"""Ports for us to call from begin here (RFC 6056 section 3.2)."""
PORTS: Final = 65_536 - FIRST_PORT
FORWARD: Final = Verdict(ALLOW, "forward", "port-forward")
"""Under which flows towards guests live: no policy of what guests may reach speaks of them."""

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_REFUSALS: Final = (
    icmp.PROTOCOL_UNREACHABLE,
    icmp.PORT_UNREACHABLE,
    icmp.HOST_PROHIBITED,
    icmp.ADMINISTRATIVELY_PROHIBITED,
)
"""How a guest's firewall says no."""


class Opening(NamedTuple):
    """What the host's side asked for. `source` is who the guest sees, port 0 for any; `client` who it is."""

    flow: int
    source: tuple[bytes, int]
    guest: tuple[bytes, int]
    client: tuple[bytes, int] | None
    began: float
    give_up_at: float


class PortChooser:
    """Source ports that are hard to guess, and that come again as late as may be (RFC 6056 section 3.3.3)."""

    def __init__(self, keyed_hash: Callable[[bytes, float], int]) -> None:
        """`keyed_hash` is Stack's `initial_sequence`: at one time it depends on nothing but its key."""
        self._keyed_hash = keyed_hash
        self._given = 0

    def choose(self, key: Callable[[int], bytes], taken: Callable[[bytes], bool]) -> int:
        """A port whose key nobody has taken; 0 when there is none."""
        start = self._keyed_hash(key(0), 0.0)
        for _ in range(PORTS):
            port = FIRST_PORT + (start + self._given) % PORTS
            self._given += 1
            if not taken(key(port)):
                return port
        return 0


def key_of(guest: tuple[bytes, int], source: bytes, port: int) -> bytes:
    """The 12 bytes of addresses and ports in a packet from the guest to `source:port`."""
    return guest[0] + source + guest[1].to_bytes(2, "big") + port.to_bytes(2, "big")


def beyond(used: int | None, isn: int) -> int:
    """An initial sequence number for a connection that follows another with the same addresses and ports.

    It lies beyond `used`, the position after everything that was sent: nobody may take one connection's segments for
    the other's (RFC 9293 section 3.6.1). None where there was no other.
    """
    if used is None:
        return isn
    least = (used + 1) & _MASK
    return isn if (isn - least) & _MASK < _HALF else (least + 64_000) & _MASK


class InboundTcp:
    """The opening of flows towards guests; once open they are TcpFlows' as all others are."""

    def __init__(
        self,
        settings: NetworkSettings,
        table: TcpTable,
        outbox: Outbox,
        neighbours: Neighbours,
        timers: Timers[TcpFlow],
        limits: TcpLimits,
        *,
        initial_sequence: Callable[[bytes, float], int],
        segment_offload: Callable[[bytes], int],
    ) -> None:
        """`initial_sequence` and `segment_offload` are Stack's."""
        self._settings = settings
        self._table = table
        self._outbox = outbox
        self._neighbours = neighbours
        self._timers = timers
        self._limits = limits
        self._initial_sequence = initial_sequence
        self._segment_offload = segment_offload
        self._ports = PortChooser(initial_sequence)
        self._resolving: dict[int, Opening] = {}
        self._opening = table.opening
        self.closed = False
        """No way in: there is no network, or the kill switch is on."""

    def __len__(self) -> int:
        """Flows that the guest has not answered yet."""
        return len(self._resolving) + len(self._opening)

    def open(
        self,
        source: tuple[bytes, int],
        guest: tuple[bytes, int],
        client: tuple[bytes, int] | None,
        now: float,
        timeout: float,
    ) -> int:
        """Begin to open a flow; its number. InboundOpened or InboundFailed tells what came of it."""
        opening = Opening(self._outbox.next_flow(), source, guest, client, now, now + timeout)
        if self.closed:
            self._fail(opening, effects.PROHIBITED, now)
        elif not self._settings.may_be_guest(guest[0]):
            self._fail(opening, effects.HOST_UNREACHABLE, now)
        elif len(self) >= MAX_OPENING:
            self._outbox.drop("tcp-too-many-inbound-opening")
            self._fail(opening, effects.NO_RESOURCES, now)
        else:
            self._resolving[opening.flow] = opening
            if not self._neighbours.resolve(guest[0], partial(self._resolved, opening.flow), now):
                del self._resolving[opening.flow]
                self._fail(opening, effects.NO_RESOURCES, now)
        return opening.flow

    def _fail(self, opening: Opening, failure: int, now: float) -> None:
        """The end of one that has no connection yet."""
        self._outbox.effects.append(effects.InboundFailed(opening.flow, failure))
        self._report_unopened(opening, effects.FAILURE_WORDS[failure], now)

    def _report_unopened(self, opening: Opening, reason: str, now: float) -> None:
        client = opening.client or opening.source
        self._outbox.report(
            FlowClosed(
                opening.flow, "tcp", opening.guest, opening.source, client, reason, 0, 0, now - opening.began, FORWARD,
                INBOUND,
            )
        )  # fmt: skip

    def _resolved(self, number: int, mac: bytes | None, now: float) -> None:
        """The neighbour table knows the guest's MAC, or that nobody answers."""
        opening = self._resolving.pop(number, None)
        if opening is None:
            return  # called off meanwhile
        if mac is None:
            self._fail(opening, effects.HOST_UNREACHABLE, now)
        elif not self._make_room():
            self._outbox.drop("tcp-table-full")
            self._fail(opening, effects.NO_RESOURCES, now)
        else:
            self._connect(opening, mac, now)

    def _make_room(self) -> bool:
        """Room for one more; only connections in TIME-WAIT give way: what guests have begun is not for us to end."""
        table = self._table
        if len(table) >= self._settings.max_tcp_flows and table.time_wait:
            table.time_wait.evict()
        return len(table) < self._settings.max_tcp_flows

    def _connect(self, opening: Opening, mac: bytes, now: float) -> None:
        guest, (source, port) = opening.guest, opening.source
        by_key = self._table.by_key
        if not port:
            port = self._ports.choose(partial(key_of, guest, source), self._table.__contains__)
        key = key_of(guest, source, port)
        old = by_key.get(key)
        if not port or (old is not None and not (old.state == GONE and old.connection.state == st.TIME_WAIT)):
            self._fail(opening, effects.NO_RESOURCES, now)
            return
        used = self._table.time_wait.leave(key)
        if old is not None:
            used = old.connection.send_next
            self._table.forget(old)
        isn = beyond(used, self._initial_sequence(key, now))
        writer = tcp.SegmentWriter(
            destination_mac=mac,
            source_mac=self._settings.gateway_mac,
            source=source,
            destination=guest[0],
            source_port=port,
            destination_port=guest[1],
            offload=self._segment_offload(mac),
        )
        connection = TcpConnection(writer, self._limits, isn, self._outbox.frames)
        question = Question(opening.flow, ipv4.TCP, guest, (source, port))
        client = opening.client or (source, port)
        flow = TcpFlow(
            question, key, mac, connection, client, FORWARD, opening.began,
            gateway_mac=self._settings.gateway_mac, kind=TO_GUEST,
        )  # fmt: skip
        flow.limit_at = opening.give_up_at
        by_key[key] = flow
        self._table.streams[flow.id] = flow
        self._opening[flow.id] = flow
        connection.connect(now)
        self._timers.schedule(flow)

    def opened(self, flow: TcpFlow) -> None:
        """The guest has answered."""
        self._opening.pop(flow.id, None)
        flow.limit_at = inf
        flow.upstream = True
        self._outbox.effects.append(effects.InboundOpened(flow.id))

    def call_off(self, number: int, now: float) -> None:
        """The host's side wants a flow no more that the guest has not answered."""
        opening = self._resolving.pop(number, None)
        if opening is not None:
            self._report_unopened(opening, "called off", now)
            return
        flow = self._opening.get(number)
        if flow is not None:
            flow.connection.abort()
            self._table.abandon(flow, "called off", now, tell_host=False)

    def refused_by_icmp(self, error: icmp.IcmpError, guest: bytes, now: float) -> bool:
        """An ICMP error of `guest`; whether it answers a SYN of ours, as a firewall does that rejects.

        One about a connection that is open changes nothing (RFC 5927 section 5.2), nor one that does not know our
        number.
        """
        quote = error.quote
        if error.type != icmp.UNREACHABLE or error.code not in _REFUSALS or quote.destination != guest:
            return False
        source, port = quote.ports
        flow = self._table.by_key.get(key_of((guest, port), quote.source, source))
        if flow is None or flow.id not in self._opening:
            return False
        if flow.connection.state != st.SYN_SENT or quote.tcp_sequence != (flow.connection.send_next - 1) & _MASK:
            return False
        flow.connection.abort()
        self._table.abandon(flow, "refused", now, failure=effects.REFUSED)
        return True

    def close(self, closed: bool, now: float) -> None:
        """Whether there is no way in from now on; whose MAC is still looked for is told."""
        self.closed = closed
        if closed:
            resolving, self._resolving = self._resolving, {}
            for opening in resolving.values():
                self._fail(opening, effects.PROHIBITED, now)
