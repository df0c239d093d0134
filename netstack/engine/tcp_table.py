"""The TCP flows there are: every table they are in, and how they leave them."""

from __future__ import annotations

from math import inf

from netstack.engine import effects
from netstack.engine.compaction import compact
from netstack.engine.events import INBOUND, OUTBOUND, FlowClosed, FlowOpened
from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.tcp_flow import CONSULTING, GONE, PEEKING, TO_GUEST, TcpFlow
from netstack.engine.tcp_time_wait import TimeWait
from netstack.engine.timers import Timers


class TcpTable:
    """Shared by those who open flows, admit them and carry their bytes. Bounds are theirs to keep."""

    def __init__(self, outbox: Outbox, judge: Judge, timers: Timers[TcpFlow], time_wait: TimeWait) -> None:
        self.by_key: dict[bytes, TcpFlow] = {}
        """By 12 bytes of addresses and ports: all that are not over."""
        self.streams: dict[int, TcpFlow] = {}
        """By number: those the host's side is not over for."""
        self.half_open: dict[int, TcpFlow] = {}
        """Whose handshake is not complete, the oldest first."""
        self.opening: dict[int, TcpFlow] = {}
        """Those towards guests that the guest has not answered."""
        self.time_wait = time_wait
        """What is left of those that are over, and may have to say so again; they count as well."""
        self.ending: list[TcpFlow] = []
        """Those that have entered TIME-WAIT in this batch."""
        self.peeking: dict[int, TcpFlow] = {}
        """Who have not said their name."""
        self.waiting_bytes = 0
        """Bytes that wait for a verdict or a dial, of all flows together."""
        self._outbox = outbox
        self._judge = judge
        self._timers = timers

    def __len__(self) -> int:
        """Connections there are, in whatever state."""
        return len(self.by_key) + len(self.time_wait)

    def __contains__(self, key: bytes) -> bool:
        """Whether there is a connection with these addresses and ports."""
        return key in self.by_key or key in self.time_wait

    def report_opened(self, flow: TcpFlow, now: float) -> None:
        """Tell people that a flow has reached its destination."""
        question, verdict = flow.question, flow.verdict
        note = self._judge.note(question, verdict, now)
        self._outbox.report(
            FlowOpened(
                flow.id, "tcp", question.guest, question.destination, flow.dialled, verdict, note, _direction(flow)
            )
        )

    def abandon(
        self,
        flow: TcpFlow,
        reason: str,
        now: float,
        *,
        tell_host: bool = True,
        failure: int = effects.HOST_UNREACHABLE,
    ) -> None:
        """End a flow at once: the host hears of a reset unless it knows, people of the reason.

        `failure` is what the host hears of a flow towards the guest that never got there.
        """
        if tell_host and flow.kind == TO_GUEST and not flow.upstream:
            self._outbox.effects.append(effects.InboundFailed(flow.id, failure))
        elif tell_host and flow.session is None and flow.state not in (PEEKING, CONSULTING):
            self._outbox.effects.append(effects.AbortStream(flow.id))
        self.close(flow, reason, now)
        self.forget(flow)

    def close(self, flow: TcpFlow, reason: str, now: float) -> None:
        """The host's side is over, for this reason; the connection may still say something to the guest."""
        counters = self._outbox.counters
        if flow.id in self.half_open or flow.id in self.opening:
            counters.connections_failed += 1
        elif reason.startswith("reset"):
            counters.connections_reset += 1
        elif reason == "guest silent":
            counters.connections_silent += 1
        self.release(flow)
        self.report_closed(flow, reason, now)

    def release(self, flow: TcpFlow) -> None:
        """The host's side is over, and nothing is told of it."""
        flow.state = GONE
        flow.upstream = False
        if flow.inspection is not None:
            self.waiting_bytes -= flow.inspection.waiting
            flow.inspection = None
        flow.packet = b""
        flow.limit_at = inf
        self.streams.pop(flow.id, None)
        self.half_open.pop(flow.id, None)
        self.peeking.pop(flow.id, None)
        self.opening.pop(flow.id, None)
        if flow.session is not None:
            flow.session.closed()

    def report_closed(self, flow: TcpFlow, reason: str, now: float) -> None:
        """Tell people of a flow's end."""
        question = flow.question
        self._outbox.report(
            FlowClosed(
                flow.id, "tcp", question.guest, question.destination, flow.dialled, reason, flow.sent, flow.received,
                now - flow.opened_at, flow.verdict, _direction(flow),
            )
        )  # fmt: skip

    def compact(self) -> None:
        """Give back the room of flows that are gone."""
        compact(self.by_key, self.streams, self.half_open, self.opening, self.peeking)
        self.time_wait.compact()

    def forget(self, flow: TcpFlow) -> None:
        """Nothing is left of it."""
        if not flow.forgotten:
            self._outbox.counters.losses.add(flow.connection.sender.recovery)
        flow.forgotten = True
        self._timers.forget(flow)
        if self.by_key.get(flow.key) is flow:
            del self.by_key[flow.key]

    def rest(self) -> None:
        """Those in `ending` have acknowledged the guest's FIN: of them only TIME-WAIT is left."""
        ending, self.ending = self.ending, []
        for flow in ending:
            if not flow.forgotten:
                self.forget(flow)
                self.time_wait.enter(flow.key, flow.mac, flow.id, flow.connection)


def _direction(flow: TcpFlow) -> str:
    return INBOUND if flow.kind == TO_GUEST else OUTBOUND
