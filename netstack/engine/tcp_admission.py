"""Which TCP flows may go where they want: who has to say a name first, whom a hook is asked about, whom we turn away.

What the guest says before it may go anywhere is held, judged, and then sent as it came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from netstack.engine import effects
from netstack.engine.inspection import DEADLINE as PEEK_DEADLINE
from netstack.engine.inspection import Inspection
from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.settings import NetworkSettings
from netstack.engine.tcp_flow import CONNECTING, CONSULTING, GONE, PEEKING, TO_NETWORK, TcpFlow
from netstack.engine.tcp_table import TcpTable
from netstack.engine.timers import Timers
from netstack.engine.verdict import REFUSE, Verdict

MAX_WAITING_BYTES: int = 64 << 20
"""Bytes of guests that wait for a verdict or for the dial of a name, of all flows together."""
CONSULT_DEADLINE: Final = 30.0
"""Seconds after which a driver that does not answer for its hook counts as a refusal; its own deadline is shorter."""
FAREWELL: Final = 5.0
"""Seconds a guest that was turned away has to close its side before it is reset."""


class TcpAdmission:
    """Takes flows from their SYN to their dial, or turns them away."""

    def __init__(
        self,
        settings: NetworkSettings,
        table: TcpTable,
        outbox: Outbox,
        judge: Judge,
        timers: Timers[TcpFlow],
        touch: Callable[[TcpFlow], None],
    ) -> None:
        """`touch` is called for a flow that has something to say at the end of the batch."""
        self._settings = settings
        self._table = table
        self._outbox = outbox
        self._judge = judge
        self._timers = timers
        self._touch = touch

    def peek(self, flow: TcpFlow, now: float) -> None:
        """The flow's first bytes have to say its name: answer the guest, and wait for them."""
        flow.state = PEEKING
        flow.inspection = Inspection(self._judge, flow.question)
        flow.limit_at = now + PEEK_DEADLINE
        self._table.peeking[flow.id] = flow
        flow.connection.accept(now)

    def inspect(self, flow: TcpFlow, inspection: Inspection, chunks: list[bytes], now: float) -> None:
        """Bytes of a flow that has to say its name, or has said it and goes on being read."""
        if flow.upstream:
            self.send_on(flow, inspection, chunks, now)
            return
        count = sum(map(len, chunks))
        inspection.waiting += count
        self._table.waiting_bytes += count
        if self._table.waiting_bytes > MAX_WAITING_BYTES:
            if flow.state == CONNECTING:
                self._outbox.effects.append(effects.AbortStream(flow.id))  # the dial is for nobody any more
            fault = inspection.unfinished("too-many-bytes-wait")
            fault = fault._replace(name=flow.verdict.name, source=flow.verdict.source)
            self.turn_away(flow, inspection, fault, now)
            return
        for chunk in chunks:
            if flow.state != PEEKING:
                inspection.held.append(chunk)
                continue
            verdict = inspection.feed(chunk, now)
            if verdict is None:
                continue
            if not verdict.allowed and not (verdict.name and self._judge.overrulable(verdict)):
                self.turn_away(flow, inspection, verdict, now)
                return
            del self._table.peeking[flow.id]
            self.admit(flow, verdict, now)

    def admit(self, flow: TcpFlow, verdict: Verdict, now: float) -> None:
        """The policy has spoken: ask the hook if there is one, else dial."""
        flow.verdict = verdict
        if not self._judge.consults:
            self._dial(flow, now)
            return
        flow.state = CONSULTING
        flow.limit_at = now + CONSULT_DEADLINE
        self._outbox.effects.append(effects.ConsultFlow(flow.question, verdict))

    def consulted(self, number: int, verdict: Verdict, now: float) -> None:
        """The hook has spoken."""
        flow = self._table.streams.get(number)
        if flow is None or flow.state != CONSULTING:
            return
        if verdict.allowed:
            flow.verdict = verdict
            self._dial(flow, now)
        elif flow.inspection is not None:
            self.turn_away(flow, flow.inspection, verdict, now)
        else:  # the SYN was not answered yet
            flow.connection.abort()
            self._judge.refused(flow.question, verdict, "reset", now)
            self._table.release(flow)
            self._table.forget(flow)
        self._timers.schedule(flow)
        self._touch(flow)

    def _dial(self, flow: TcpFlow, now: float) -> None:
        flow.state = CONNECTING
        flow.limit_at = now + self._settings.dial_timeout
        if flow.verdict.source == "synthetic":
            flow.inspection = Inspection(self._judge, flow.question, flow.verdict.name)
        elif flow.inspection is not None:
            flow.inspection.follow()
        if flow.inspection is None:
            self._outbox.effects.append(effects.OpenStream(flow.id, *flow.dialled))
        else:
            self._outbox.effects.append(effects.OpenNamed(flow.id, flow.verdict.name, flow.dialled[1]))

    def send_on(self, flow: TcpFlow, inspection: Inspection, chunks: list[bytes], now: float) -> None:
        """Send what passes of the bytes of a flow that is there and goes on being read."""
        passed, refusal = inspection.pass_on(chunks)
        if refusal is not None:
            self.turn_away(flow, inspection, refusal, now)
            return
        if passed:
            flow.sent += sum(map(len, passed))
            self._outbox.effects.append(effects.SendStream(flow.id, passed))
        if inspection.over:
            flow.inspection = None

    def turn_away(self, flow: TcpFlow, inspection: Inspection, verdict: Verdict, now: float) -> None:
        """Refuse a flow whose handshake is complete: tell the guest in its own protocol, then close."""
        farewell, told = inspection.farewell(verdict)
        self._judge.refused(flow.question, verdict, told, now)
        if flow.upstream:
            self._outbox.effects.append(effects.AbortStream(flow.id))
            self._table.report_closed(flow, "refused", now)
        self._table.release(flow)
        flow.turned_away = True
        if not farewell:
            flow.connection.abort()
            self._table.forget(flow)
            return
        flow.connection.write(farewell)
        flow.connection.finish()
        flow.limit_at = now + FAREWELL

    def objected(self, number: int, fault: str, now: float) -> None:
        """The name leads only to places that must not be reached by it: nothing was dialled."""
        flow = self._table.streams.get(number)
        if flow is None or flow.state != CONNECTING or flow.inspection is None:
            return
        self.turn_away(flow, flow.inspection, flow.verdict._replace(action=REFUSE, step="dial", reason=fault), now)
        self._timers.schedule(flow)
        self._touch(flow)

    def ended(self, flow: TcpFlow, inspection: Inspection, now: float) -> None:
        """The guest has ended its stream and not said its name."""
        self.turn_away(flow, inspection, inspection.unfinished("closed-without-name"), now)

    def out_of_time(self, flow: TcpFlow, now: float) -> bool:
        """The flow has taken too long; False if it is none that waits to be admitted, or to leave."""
        if flow.turned_away:
            flow.connection.abort()
            self._table.forget(flow)
        elif flow.state == PEEKING and flow.inspection is not None:
            self.turn_away(flow, flow.inspection, flow.inspection.unfinished("no-name-in-time"), now)
        elif flow.state == CONSULTING:
            silent = Verdict(REFUSE, "hook", "hook-silent", "", flow.verdict.name, flow.verdict.source)
            self.consulted(flow.id, silent, now)
        else:
            return False
        return True

    def judge_again(self, now: float, *, final: bool = False) -> None:
        """Reset the flows that the policy now in force would refuse; the others live on.

        What is not the guest's doing is no policy's affair: a forward was opened by the host's owner. A `final` one
        (the kill switch) ends it all the same.
        """
        disabled = self._judge.policy.settings.disabled
        for flow in [flow for flow in self._table.by_key.values() if flow.state != GONE]:
            if flow.kind != TO_NETWORK:
                if disabled or (final and flow.session is None):  # names are answered whatever the policy
                    flow.connection.abort()
                    reason = "network disabled" if disabled else "kill switch"
                    self._table.abandon(flow, reason, now, failure=effects.PROHIBITED)
                continue
            if flow.state == PEEKING:
                verdict = self._judge.first(flow.question, now)
            else:
                verdict = self._judge.again(flow.question, flow.verdict, now)
            if verdict.action != REFUSE:
                continue
            flow.connection.abort()
            self._judge.refused(flow.question, verdict, "reset", now)
            if flow.state in (PEEKING, CONSULTING):  # it has not gone anywhere yet: the refusal is all there is to tell
                self._table.release(flow)
                self._table.forget(flow)
            else:
                self._table.abandon(flow, "refused", now)
