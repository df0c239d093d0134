"""What has happened lately, kept for whoever asks: ended and refused flows, DNS questions, and events as they come.

An event sink: it keeps what the engine reports, up to a bound, and gives it to subscribers that keep up. It costs an
append or two an event, and nothing a frame.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import trio

from netstack.engine.events import DnsEvent, Event, FlowClosed, FlowOpened, FlowRefused

MAX_FLOWS: Final = 4096
"""Flows that have ended or were refused, and are still told of."""
MAX_QUESTIONS: Final = 4096
"""DNS questions that are told of."""
MAX_NOTES: Final = 8192
"""Open flows whose note is kept."""
MAX_SUBSCRIBERS: Final = 64
QUEUE_EVENTS: Final = 2048
"""Events that wait for one subscriber; further ones are lost to it, and counted."""


class Recorded(NamedTuple):
    """An event, and when it came: seconds since 1970. `number` counts all events."""

    number: int
    when: float
    event: Event


class Subscription:
    """One listener's queue."""

    def __init__(self) -> None:
        self._queue: deque[Recorded] = deque()
        self._lost = 0
        self._woken = trio.Event()

    def put(self, recorded: Recorded) -> None:
        """Queue an event, or count it as lost."""
        if len(self._queue) >= QUEUE_EVENTS:
            self._lost += 1
        else:
            self._queue.append(recorded)
        self._woken.set()

    async def take(self) -> tuple[list[Recorded], int]:
        """Wait for events: those that have come, and how many were lost after them."""
        await self._woken.wait()
        self._woken = trio.Event()
        events, self._queue = list(self._queue), deque()
        lost, self._lost = self._lost, 0
        return events, lost


class Records:
    """One gateway's."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._clock = clock
        self._count = 0
        self._over: OrderedDict[int, Recorded] = OrderedDict()
        self.questions: deque[Recorded] = deque(maxlen=MAX_QUESTIONS)
        """DNS questions, the oldest first."""
        self._notes: dict[int, str] = {}
        self._subscriptions: set[Subscription] = set()

    def note(self, event: Event) -> None:
        """Keep an event. Never waits, never raises."""
        self._count += 1
        recorded = Recorded(self._count, self._clock(), event)
        if isinstance(event, DnsEvent):
            self.questions.append(recorded)
        elif isinstance(event, FlowClosed | FlowRefused):
            self._notes.pop(event.flow, None)
            # What was refused may also be closed: the refusal says more.
            if not isinstance(self._event_of(event.flow), FlowRefused):
                self._over[event.flow] = recorded
                if len(self._over) > MAX_FLOWS:
                    self._over.popitem(last=False)
        elif isinstance(event, FlowOpened) and event.note and len(self._notes) < MAX_NOTES:
            self._notes[event.flow] = event.note
        for subscription in self._subscriptions:
            subscription.put(recorded)

    def _event_of(self, flow: int) -> Event | None:
        recorded = self._over.get(flow)
        return None if recorded is None else recorded.event

    def over(self, flow: int) -> Recorded | None:
        """How a flow that is not open any more ended: FlowClosed or FlowRefused."""
        return self._over.get(flow)

    def all_over(self) -> Iterator[Recorded]:
        """All of these, the latest first."""
        return reversed(self._over.values())

    def note_of(self, flow: int) -> str:
        """What there is to be told of an open flow besides its verdict; mostly nothing."""
        return self._notes.get(flow, "")

    @property
    def subscribers(self) -> int:
        """How many listen."""
        return len(self._subscriptions)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Events from now on, for the time of the block. Whoever lets strangers listen keeps MAX_SUBSCRIBERS."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
