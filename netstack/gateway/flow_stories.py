"""What happened to each flow, kept for a while so that it can be told: questions, verdicts, dials and their ends.

It hears the engine's events and the dialler's attempts: a few for each flow, none for a frame. Everything is bounded.
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from netstack.engine.events import DnsEvent, Event, FlowClosed, FlowOpened, FlowRefused
from netstack.engine.snapshot import ConnectionSnapshot, FlowSnapshot
from netstack.engine.verdict import ACTION_WORDS, Verdict
from netstack.gateway.event_log import endpoint_words, event_fields
from netstack.gateway.host_streams import DialWatch, address_text

MAX_FLOWS: Final = 2048
"""Flows that are remembered; the one that was heard of longest ago makes room."""
MAX_STEPS: Final = 48
"""Steps of one flow: a dial has at most 16 addresses. Later ones but the last are counted, not kept."""
MAX_SAMPLED: Final = 512
"""Flows that are looked at each time."""
SAMPLE_SECONDS: Final = 0.25
"""How often living flows are looked at."""
MAX_QUESTIONS: Final = 1024
"""DNS questions that are remembered."""


class FlowStory:
    """One flow's."""

    def __init__(self, flow: int) -> None:
        self.flow = flow
        self.steps: list[dict[str, object]] = []
        self.left_out = 0
        self.facts: dict[str, object] = {}
        """What is known of it by now: protocol, ends, verdict, bytes."""
        self.closed = False
        self.seconds: dict[str, float] = {}
        """What its time went to, as far as it was looked at (`sample`)."""
        self.moved = (0, 0)
        """Bytes sent and received when it was looked at last."""
        self.turn = ""
        """Who is to say something now, by who did last."""

    def add(self, now: float, what: str, **details: object) -> None:
        """Another step, at `now` seconds since 1970."""
        if len(self.steps) >= MAX_STEPS:
            self.left_out += 1
            del self.steps[-1]
        self.steps.append({"time": now, "what": what, **details})

    def as_values(self) -> dict[str, object]:
        """The story in plain words and numbers, as JSON has it."""
        return {
            "flow": self.flow,
            **self.facts,
            "closed": self.closed,
            "seconds_by_cause": {word: round(seconds, 3) for word, seconds in self.seconds.items()},
            "steps": list(self.steps),
            "steps_left_out": self.left_out,
        }


class FlowStories(DialWatch):
    """One gateway's."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._clock = clock
        self._flows: OrderedDict[int, FlowStory] = OrderedDict()
        self._questions: deque[dict[str, object]] = deque(maxlen=MAX_QUESTIONS)

    def flows(self) -> list[dict[str, object]]:
        """All that are remembered, the one heard of last at the end."""
        return [each.as_values() for each in self._flows.values() if each.facts]

    def flow(self, number: int) -> dict[str, object] | None:
        """One flow's story, None if it is not remembered."""
        found = self._flows.get(number)
        return None if found is None else found.as_values()

    def questions(self) -> list[dict[str, object]]:
        """The DNS questions remembered, the newest last."""
        return list(self._questions)

    def note(self, event: Event) -> None:
        """Hear an engine's event."""
        if isinstance(event, DnsEvent):
            self._questions.append({"time": self._clock(), **event_fields(event)})
        elif isinstance(event, FlowOpened | FlowRefused | FlowClosed):
            self._note_flow(event)

    def _note_flow(self, event: FlowOpened | FlowRefused | FlowClosed) -> None:
        now, story = self._clock(), self._story(event.flow)
        if not story.facts:
            self._learned(story, event)
        story.facts |= {
            "protocol": event.protocol,
            "guest": endpoint_words(event.guest),
            "destination": endpoint_words(event.destination),
        }
        if isinstance(event, FlowRefused):
            story.facts["verdict"] = _verdict(event.verdict)
            story.closed = True
            story.add(now, "refused", verdict=_verdict(event.verdict), told=event.told)
        elif isinstance(event, FlowOpened):
            story.facts |= {"verdict": _verdict(event.verdict), "dialled": endpoint_words(event.dialled)}
            story.add(
                now, "opened", verdict=_verdict(event.verdict), dialled=endpoint_words(event.dialled), note=event.note
            )
        else:
            story.facts.setdefault("verdict", _verdict(event.verdict))
            story.facts |= {"dialled": endpoint_words(event.dialled), "sent": event.sent, "received": event.received}
            story.facts |= {"reason": event.reason, "seconds": event.seconds}
            story.closed = True
            story.add(now, "closed", reason=event.reason, sent=event.sent, received=event.received)

    def _learned(self, story: FlowStory, event: FlowOpened | FlowRefused | FlowClosed) -> None:
        """The guest's last question for the name that the flow is for, if it asked any."""
        name = event.verdict.name
        guest = endpoint_words(event.guest[0])
        for asked in reversed(self._questions) if name else ():
            if asked["guest"] == guest and str(asked["name"]).lower().rstrip(".") == name:
                story.steps.insert(0, {"what": "asked", **asked})
                return

    def looked_up(self, flow: int, name: str, addresses: list[bytes], faults: dict[bytes, str]) -> None:
        """See DialWatch."""
        found = [address_text(each) for each in addresses]
        objections = {address_text(each): fault for each, fault in faults.items()}
        self._story(flow).add(self._clock(), "looked-up", name=name, addresses=found, objections=objections)

    def dialling(self, flow: int, address: bytes, port: int) -> None:
        """See DialWatch."""
        self._story(flow).add(self._clock(), "dialling", address=endpoint_words((address, port)))

    def dialled(self, flow: int, address: bytes, port: int, number: int) -> None:
        """See DialWatch."""
        where = endpoint_words((address, port))
        if number:
            word = os.strerror(number)
            name = errno.errorcode.get(number, str(number))
            self._story(flow).add(self._clock(), "dial-failed", address=where, error=name, message=word)
        else:
            self._story(flow).add(self._clock(), "connected", address=where)

    def sample(self, flows: Iterable[FlowSnapshot], seconds: float) -> None:
        """Look at living flows, which was done `seconds` ago last: to what does that time go?"""
        for flow in islice(flows, MAX_SAMPLED):
            connection = flow.connection
            story = self._flows.get(flow.flow)
            if connection is not None and story is not None:
                word = _goes_to(story, flow, connection)
                story.seconds[word] = story.seconds.get(word, 0.0) + seconds

    def _story(self, flow: int) -> FlowStory:
        story = self._flows.get(flow)
        if story is None:
            if len(self._flows) >= MAX_FLOWS:
                self._flows.popitem(last=False)
            story = self._flows[flow] = FlowStory(flow)
        else:
            self._flows.move_to_end(flow)
        return story


def _goes_to(story: FlowStory, flow: FlowSnapshot, connection: ConnectionSnapshot) -> str:
    """What a flow's time goes to now: the words are those of netstack.debug.tcp_timeline."""
    moved = (flow.sent, flow.received)
    if moved != story.moved:
        story.turn = "idle" if flow.received != story.moved[1] else "upstream"
        story.moved = moved
    if flow.state in ("connecting", "consulting", "peeking"):
        return "connecting"
    if connection.recovering:
        return "loss"
    room = connection.guest_window - connection.in_flight
    if (connection.queued and room < connection.segment) or connection.unread:
        return "receiver window"
    if connection.in_flight or connection.queued:
        return "network"
    return story.turn or "idle"


def _verdict(verdict: Verdict) -> dict[str, str]:
    """A verdict with its action in a word."""
    return {**verdict._asdict(), "action": ACTION_WORDS[verdict.action]}
