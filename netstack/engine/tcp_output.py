"""Who may speak: the connections that have something to send, and how they share the room there is on the link."""

from __future__ import annotations

from collections import deque
from collections.abc import Set

from netstack.engine.tcp_flow import TcpFlow
from netstack.engine.timers import Timers
from netstack.wire.tcp import Frame


class TcpOutput:
    """Collects the flows a batch has touched, and lets them speak at its end."""

    def __init__(self, timers: Timers[TcpFlow]) -> None:
        self.touched: list[TcpFlow] = []
        """The flows of this batch, in order."""
        self._timers = timers
        self._waiting: deque[TcpFlow] = deque()
        self._held: dict[bytes, list[TcpFlow]] = {}

    def touch(self, flow: TcpFlow) -> None:
        """This flow has something to say, or to be asked, at the end of the batch."""
        if not flow.touched:
            flow.touched = True
            self.touched.append(flow)

    def speak(self, frames: list[Frame], room: int, now: float, held: Set[bytes]) -> None:
        """Append what connections have to send, about `room` frames of it; the rest waits for the next call.

        Whoever had to wait comes first, in turn. Guests whose MAC is in `held` are sent no data, whatever the room.
        """
        for mac in [mac for mac in self._held if mac not in held] if self._held else ():
            self._waiting.extend(self._held.pop(mac))
        last = len(frames) + room
        served: list[TcpFlow] = []
        for _ in range(len(self._waiting)):
            if len(frames) >= last:
                break
            flow = self._waiting.popleft()
            flow.waits = False
            self._let_speak(flow, frames, last, now, held, served)
        touched, self.touched = self.touched, []
        for flow in touched:
            flow.touched = False
            self._let_speak(flow, frames, last, now, held, served)
        self._waiting.extend(served)

    def _let_speak(
        self, flow: TcpFlow, frames: list[Frame], last: int, now: float, held: Set[bytes], served: list[TcpFlow]
    ) -> None:
        """Let one flow say what it has to, and note whether it has to wait with the rest of it."""
        if flow.forgotten:
            return
        start = len(frames)
        stuck = flow.mac in held
        if flow.connection.output(frames, 0 if stuck else max(0, last - start), now) and not flow.waits:
            flow.waits = True
            if stuck:
                self._held.setdefault(flow.mac, []).append(flow)
            elif len(frames) > start:
                served.append(flow)  # behind those that got nothing
            else:
                self._waiting.append(flow)
        scheduled: float = flow.scheduled[0]
        if flow.connection.deadline < scheduled or flow.limit_at < scheduled:
            self._timers.schedule(flow)

    @property
    def waiting(self) -> bool:
        """Whether data of guests that were not held is left for the next time."""
        return bool(self._waiting)
