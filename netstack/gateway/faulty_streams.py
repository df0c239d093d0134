"""Host streams with faults: dialled late or not at all, reset after so many bytes, silent from then on, closed late.

Stands between the stack and the streams, in both directions, while there are stream faults; a flow without one costs a
look into a table. Nothing is lost that a later change of faults could need: what a black hole swallowed waits, bounded
by what the engine takes from a guest without the host's taking it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from netstack.engine import effects
from netstack.engine.effects import OpenNamed, OpenStream, ResolveName, SendStream
from netstack.fault_spec import DIAL_FAILURES, StreamFault
from netstack.gateway.dialer import DialsNames
from netstack.gateway.fault_table import FaultTable
from netstack.gateway.host_streams import StreamReports

if TYPE_CHECKING:
    from netstack.gateway.driver import Driver
    from netstack.gateway.resolver import AnswersDns

TAKEN_INTERVAL: Final = 0.005
"""Seconds between two looks at whether the guest has all that came before a reset."""
TAKEN_PATIENCE: Final = 10.0
"""Seconds after which it is reset anyway."""


class _Flow:
    """A flow with a fault."""

    __slots__ = ("ended", "fault", "left", "scope", "silent", "swallowed")

    def __init__(self, fault: StreamFault) -> None:
        self.fault = fault
        after = fault.reset_after if fault.reset_after is not None else fault.black_hole_after
        self.left = after
        """Bytes until it happens; None: nothing of the kind does."""
        self.silent = False
        """It has happened: nothing passes."""
        self.swallowed: list[effects.Effect] = []
        self.scope = trio.CancelScope()
        """Of what is waited for: a late dial, a late end."""
        self.ended = False


class FaultyStreams(StreamReports, DialsNames):
    """Carries faults out. `install` puts it in place, `remove` takes it away."""

    def __init__(self, driver: Driver) -> None:
        self.table = FaultTable(())
        self._driver = driver
        self._stack = driver.stack
        self._flows: dict[int, _Flow] = {}
        self._dialer: DialsNames | None = None
        self._perform: dict[type, Callable[[Any, float], None]] = {}

    def install(self) -> None:
        """From now on, what is asked of streams and what they do comes by here."""
        perform = self._driver.sockets.perform
        self._perform = dict(perform)
        perform[effects.OpenStream] = self._open
        perform[effects.SendStream] = self._send
        perform[effects.ReadStream] = self._unless_silent
        perform[effects.ShutdownStream] = self._unless_silent
        perform[effects.CloseStream] = self._end
        perform[effects.AbortStream] = self._end
        self._driver.sockets.streams.report_to(self)
        self._driver.go_through(resolver=None, dialer=self._take_dialer)

    def _take_dialer(self, dialer: DialsNames) -> DialsNames:
        self._dialer = dialer
        return self

    def remove(self) -> None:
        """All is as it was; what was held back goes on."""
        now = trio.current_time()
        self.release(now)
        self._driver.sockets.perform.update(self._perform)
        self._driver.sockets.streams.report_to(self._stack)
        dialer = self._dialer
        if dialer is not None:
            self._driver.go_through(resolver=None, dialer=lambda _: dialer)

    def release(self, now: float) -> None:
        """Let go of every flow that has a fault: other faults are in force. Late dials stay late."""
        for number, flow in list(self._flows.items()):
            swallowed, goes_on = flow.swallowed.copy(), flow.silent and flow.fault.reset_after is None
            flow.left, flow.silent = None, False
            flow.swallowed.clear()
            if goes_on:
                for effect in (*swallowed, effects.ReadStream(number)):
                    self._perform[type(effect)](effect, now)
        self._driver.flush()  # what was read meanwhile goes to the guest

    # What the engine asks for.

    def _fault(self, number: int) -> _Flow | None:
        """The fault of a flow that is about to be dialled."""
        flow = self._stack.tcp.flow(number)
        fault = None if flow is None else self.table.for_flow(flow.question)
        if fault is None:
            return None
        made = self._flows[number] = _Flow(fault)
        return made

    def _open(self, effect: OpenStream, now: float) -> None:
        flow = self._fault(effect.flow)
        if flow is None or not (flow.fault.dial_delay or flow.fault.dial):
            self._perform[OpenStream](effect, now)
        else:
            self._driver.start_soon(self._open_late, effect, flow)

    async def _open_late(self, effect: OpenStream, flow: _Flow) -> None:
        if await self._may_dial(effect.flow, flow):
            self._perform[OpenStream](effect, trio.current_time())
            self._driver.flush()

    async def _may_dial(self, number: int, flow: _Flow) -> bool:
        """Wait as long as the fault says; False where the dial fails by it, or the flow has ended meanwhile."""
        with flow.scope:
            await trio.sleep(flow.fault.dial_delay / 1e9)
        if flow.ended:
            return False
        if flow.fault.dial:
            self._flows.pop(number, None)
            self._stack.stream_failed(number, DIAL_FAILURES[flow.fault.dial], trio.current_time())
            self._driver.flush()
            return False
        return True

    def _send(self, effect: SendStream, now: float) -> None:
        flow = self._flows.get(effect.flow)
        if flow is None or flow.left is None:
            self._perform[SendStream](effect, now)
        elif flow.silent:
            flow.swallowed.append(effect)
        else:
            pieces: list[bytes | memoryview] = []
            rest: list[bytes | memoryview] = []
            for chunk in effect.chunks:
                taken = min(flow.left, len(chunk))
                flow.left -= taken
                if taken:
                    pieces.append(chunk if taken == len(chunk) else memoryview(chunk)[:taken])
                if taken < len(chunk):
                    rest.append(memoryview(chunk)[taken:])
            if pieces:
                self._perform[SendStream](SendStream(effect.flow, pieces), now)
            if rest and effect.flow in self._flows:
                flow.swallowed.append(SendStream(effect.flow, rest))
            self._look(effect.flow, flow)

    def _unless_silent(self, effect: effects.ReadStream | effects.ShutdownStream, now: float) -> None:
        flow = self._flows.get(effect.flow)
        if flow is None or not flow.silent:
            self._perform[type(effect)](effect, now)
        elif isinstance(effect, effects.ShutdownStream):
            flow.swallowed.append(effect)

    def _end(self, effect: effects.CloseStream | effects.AbortStream, now: float) -> None:
        self._forget(effect.flow)
        self._perform[type(effect)](effect, now)

    def _forget(self, number: int) -> None:
        flow = self._flows.pop(number, None)
        if flow is not None:
            flow.ended = True
            flow.scope.cancel()

    def _look(self, number: int, flow: _Flow) -> None:
        """See whether as many bytes have passed as the fault lets pass."""
        if flow.left == 0 and not flow.silent:
            flow.silent = True
            if flow.fault.reset_after is not None:
                self._driver.start_soon(self._reset, number, flow)

    async def _reset(self, number: int, flow: _Flow) -> None:
        """Reset both ends, once the guest has what came before."""
        with trio.move_on_after(TAKEN_PATIENCE):
            while not self._guest_has_all(number):  # noqa: ASYNC110 - the engine tells nobody of it
                await trio.sleep(TAKEN_INTERVAL)
        if not flow.ended and flow.silent:
            now = trio.current_time()
            self._forget(number)
            self._perform[effects.AbortStream](effects.AbortStream(number), now)
            self._stack.stream_reset(number, now)
            self._driver.flush()

    def _guest_has_all(self, number: int) -> bool:
        flow = self._stack.tcp.flow(number)
        return flow is None or flow.connection.sender.has_everything_acknowledged

    # What streams do.

    def stream_opened(self, flow: int, now: float, address: bytes | None = None) -> None:
        """See Stack."""
        self._stack.stream_opened(flow, now, address)
        found = self._flows.get(flow)
        if found is not None:
            self._look(flow, found)

    def stream_failed(self, flow: int, failure: int, now: float) -> None:
        """See Stack."""
        self._forget(flow)
        self._stack.stream_failed(flow, failure, now)

    def stream_sent(self, flow: int, count: int) -> None:
        """See Stack."""
        self._stack.stream_sent(flow, count)

    def stream_room(self, flow: int) -> int:
        """See Stack. None where nothing passes any more; no more than may pass before."""
        found = self._flows.get(flow)
        if found is None or found.left is None:
            return self._stack.stream_room(flow)
        return 0 if found.silent else min(found.left, self._stack.stream_room(flow))

    def stream_received(self, flow: int, data: bytes) -> None:
        """See Stack."""
        self._stack.stream_received(flow, data)
        found = self._flows.get(flow)
        if found is not None and found.left is not None:
            found.left = max(0, found.left - len(data))
            self._look(flow, found)

    def stream_ended(self, flow: int) -> None:
        """See Stack. Later, where the fault says so."""
        found = self._flows.get(flow)
        if found is None or not found.fault.slow_close:
            self._stack.stream_ended(flow)
        else:
            self._driver.start_soon(self._end_late, flow, found)

    async def _end_late(self, number: int, flow: _Flow) -> None:
        with flow.scope:
            await trio.sleep(flow.fault.slow_close / 1e9)
            self._stack.stream_ended(number)
            self._driver.flush()

    def stream_reset(self, flow: int, now: float) -> None:
        """See Stack."""
        self._forget(flow)
        self._stack.stream_reset(flow, now)

    # Names that are dialled.

    def ask(self, resolver: AnswersDns) -> None:
        """See DialsNames."""
        if self._dialer is not None:
            self._dialer.ask(resolver)

    def cancel(self, flow: int) -> None:
        """See DialsNames."""
        self._forget(flow)
        if self._dialer is not None:
            self._dialer.cancel(flow)

    def open_at_once(self, effect: OpenNamed, now: float) -> bool:
        """See DialsNames."""
        flow = self._fault(effect.flow)
        if flow is not None and (flow.fault.dial_delay or flow.fault.dial):
            return False
        return self._dialer is not None and self._dialer.open_at_once(effect, now)

    def begin(self, flow: int) -> None:
        """See DialsNames."""
        if self._dialer is not None:
            self._dialer.begin(flow)

    async def open_named(self, effect: OpenNamed) -> None:
        """See DialsNames."""
        flow = self._flows.get(effect.flow)
        if self._dialer is None:
            return
        if flow is not None and not await self._may_dial(effect.flow, flow):
            self._dialer.cancel(effect.flow)
            return
        await self._dialer.open_named(effect)

    async def resolve_name(self, effect: ResolveName) -> None:
        """See DialsNames."""
        if self._dialer is not None:
            await self._dialer.resolve_name(effect)
