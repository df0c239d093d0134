"""Engine events as JSON lines, for people with `jq` and for programs: one object a line, to a file or standard output.

`write` only appends to a bounded queue. A task turns what is queued into text and writes it from a worker thread, so a
slow disk or a reader that stands still never holds up a frame. Events that found no room, or that the file system would
not take, are counted, and the count is written as a line of its own (`events_lost`). A flood of one kind is cut to
what its budget allows, and the rest counted (`events_suppressed`, once a second).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from math import inf, isfinite, modf
from pathlib import Path
from typing import Any, Final, Literal

import trio

from netstack.engine.events import (
    DnsEvent,
    Event,
    FlowClosed,
    FlowOpened,
    FlowRefused,
    FrameDropped,
    LeaseEvent,
    PolicyReplaced,
)
from netstack.engine.verdict import ACTION_WORDS, Verdict
from netstack.gateway.event_budget import EventBudget

log = logging.getLogger(__name__)

QUEUE_EVENTS: Final = 16_384
"""Events that wait for the writer; further ones are counted as lost."""
GATHER_SECONDS: Final = 0.02
"""How long events are gathered after some were written: a thread for each would cost more than the events do."""
GATHER_MANY_SECONDS: Final = 0.1
"""The same while more happen than are told."""
TELL_SUPPRESSED: Final = 1.0
"""Seconds between two lines that say how many events were left out."""
CLOSE_SECONDS: Final = 1.0
"""How long the end of the program waits for what is still queued."""

_NAMES: Final = {
    LeaseEvent: "lease",
    DnsEvent: "dns",
    FlowOpened: "flow_opened",
    FlowClosed: "flow_closed",
    FlowRefused: "flow_refused",
    PolicyReplaced: "policy_replaced",
    FrameDropped: "frame_dropped",
}

_JSON: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))
"""Made once: `json.dumps` would make one for each line."""


class EventLogError(Exception):
    """The events cannot be written; the message names the file and why."""


def endpoint_words(endpoint: tuple[bytes, int] | bytes) -> str:
    """`address:port`, `[address]:port`, or an address alone."""
    if isinstance(endpoint, bytes):
        return socket.inet_ntoa(endpoint)
    address, port = endpoint
    if len(address) == 4:
        return f"{socket.inet_ntoa(address)}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, address)}]:{port}"


def _iso(when: float) -> str:
    """As datetime has it, to the microsecond, halves to the even one."""
    fraction, seconds = modf(when)
    microseconds = round(fraction * 1e6)
    if microseconds >= 1_000_000:
        microseconds -= 1_000_000
        seconds += 1
    elif microseconds < 0:
        microseconds += 1_000_000
        seconds -= 1
    return f"{_second(seconds)}.{microseconds:06d}Z"


@lru_cache(maxsize=2)
def _second(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _verdict_fields(verdict: Verdict | None) -> dict[str, object]:
    """A verdict's words, the empty ones left out. The name is what a guest said: the JSON encoder escapes it.

    `reason_code` is why it may or may not go; the `reason` of a flow's end is how it ended.
    """
    if verdict is None:
        return {}
    words = {
        "verdict": ACTION_WORDS[verdict.action],
        "step": verdict.step,
        "reason_code": verdict.reason,
        "rule": verdict.rule,
        "name": verdict.name,
        "name_source": verdict.source,
    }
    return {key: value for key, value in words.items() if value}


_WORDS: Final[Mapping[str, Callable[[Any], object]]] = {
    "mac": lambda mac: mac.hex(":"),
    "address": socket.inet_ntoa,
    "guest": endpoint_words,
    "destination": endpoint_words,
    "dialled": endpoint_words,
    "seconds": lambda seconds: round(seconds, 6),
}


def event_fields(event: Event) -> dict[str, object]:
    """An event in plain words: addresses dotted, endpoints `address:port`, MACs with colons, strings as they came."""
    fields: dict[str, object] = {"event": _NAMES[type(event)]}
    for key, value in event._asdict().items():
        if key == "verdict":
            # A question's name stays as the guest spelled it.
            fields |= {word: said for word, said in _verdict_fields(value).items() if word not in fields}
        elif key != "note" or value:
            fields[key] = _WORDS[key](value) if key in _WORDS else value
    return fields


def _kind(event: Event) -> str:
    """What an event's budget is for: its name, and apart from the others the refusals among questions."""
    kind = _NAMES[type(event)]
    if isinstance(event, DnsEvent) and event.verdict is not None and not event.verdict.allowed:
        kind += "_refused"
    return kind


def event_line(event: Event, when: float) -> str:
    """One line of the log. `when` is in seconds since 1970; control and non-ASCII characters come out as \\uXXXX."""
    return f'{{"time":"{_iso(when)}","event":{_TEXTS[type(event)](event)}}}\n'


# The lines as `_line` makes them of `event_fields`, in a third of its time: whatever has room for thousands a second
# should not need a core for them. _text escapes all that is text, whoever said it.

_text: Final = json.encoder.encode_basestring_ascii


def _number(value: float) -> str:
    """As JSON has it: NaN and Infinity among them."""
    rounded = round(value, 6)
    return repr(rounded) if isfinite(rounded) else _JSON.encode(rounded)


@lru_cache(maxsize=256)
def _verdict_text(verdict: Verdict, *, with_name: bool = True) -> str:
    """Its pairs, each with a comma behind it."""
    words = _verdict_fields(verdict).items()
    return "".join(f'"{key}":{_text(str(said))},' for key, said in words if with_name or key != "name")


def _lease_text(event: LeaseEvent) -> str:
    return (
        f'"lease","action":{_text(event.action)},"mac":"{event.mac.hex(":")}",'
        f'"address":"{socket.inet_ntoa(event.address)}","hostname":{_text(event.hostname)}'
    )


def _dns_text(event: DnsEvent) -> str:
    # A question's name stays as the guest spelled it.
    judged = "" if event.verdict is None else "," + _verdict_text(event.verdict, with_name=False)[:-1]
    return (
        f'"dns","guest":"{socket.inet_ntoa(event.guest)}","name":{_text(event.name)},"qtype":{_text(event.qtype)},'
        f'"transport":{_text(event.transport)},"source":{_text(event.source)},"rcode":{_text(event.rcode)},'
        f'"answers":{event.answers},"seconds":{_number(event.seconds)}{judged}'
    )


def _flow_text(event: FlowOpened | FlowClosed | FlowRefused) -> str:
    return (
        f'"flow":{event.flow},"protocol":{_text(event.protocol)},"guest":"{endpoint_words(event.guest)}",'
        f'"destination":"{endpoint_words(event.destination)}",'
    )


def _opened_text(event: FlowOpened) -> str:
    note = f'"note":{_text(event.note)},' if event.note else ""
    return (
        f'"flow_opened",{_flow_text(event)}"dialled":"{endpoint_words(event.dialled)}",'
        f'{_verdict_text(event.verdict)}{note}"direction":{_text(event.direction)}'
    )


def _closed_text(event: FlowClosed) -> str:
    return (
        f'"flow_closed",{_flow_text(event)}"dialled":"{endpoint_words(event.dialled)}",'
        f'"reason":{_text(event.reason)},"sent":{event.sent},"received":{event.received},'
        f'"seconds":{_number(event.seconds)},{_verdict_text(event.verdict)}"direction":{_text(event.direction)}'
    )


def _refused_text(event: FlowRefused) -> str:
    return (
        f'"flow_refused",{_flow_text(event)}{_verdict_text(event.verdict)}"told":{_text(event.told)},'
        f'"total":{event.total},"generation":{event.generation}'
    )


def _policy_text(event: PolicyReplaced) -> str:
    return (
        f'"policy_replaced","generation":{event.generation},"why":{_text(event.why)},'
        f'"access":{_text(event.access)},"rules":{event.rules}'
    )


def _dropped_text(event: FrameDropped) -> str:
    return f'"frame_dropped","reason":{_text(event.reason)},"total":{event.total}'


_TEXTS: Final[Mapping[type, Callable[[Any], str]]] = {
    LeaseEvent: _lease_text,
    DnsEvent: _dns_text,
    FlowOpened: _opened_text,
    FlowClosed: _closed_text,
    FlowRefused: _refused_text,
    PolicyReplaced: _policy_text,
    FrameDropped: _dropped_text,
}


def _line(when: float, fields: Mapping[str, object]) -> str:
    return _JSON.encode({"time": _iso(when), **fields}) + "\n"


class EventLog:
    """Writes events to `target` (a file that is appended to, or "-") for as long as `run` is running."""

    def __init__(self, target: Path | Literal["-"], *, clock: Callable[[], float] = time.time) -> None:
        """Open the file. Raises EventLogError."""
        self._target = target
        self._clock = clock
        self._queue: deque[tuple[float, Event]] = deque()
        self._lost = 0
        self._budget = EventBudget()
        self._woken = trio.Event()
        self._reopen = False
        self._failing = False
        self._ending = trio.Event()
        self._file = self._open()

    def _open(self) -> int:
        if self._target == "-":
            return os.dup(1)
        try:
            return os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EventLogError(f"--events {self._target}: {error.strerror}") from error

    def write(self, event: Event) -> None:
        """Queue an event, stamped with the time now, if its kind has room. Never waits, never raises."""
        now = self._clock()
        suppresses = bool(self._budget.suppressed)
        if not self._budget.admit(_kind(event), now):
            if suppresses:
                return  # the writer knows already that there is something to be told of, and when
        elif len(self._queue) >= QUEUE_EVENTS:
            self._lost += 1
        else:
            self._queue.append((now, event))
        self._woken.set()

    def reopen(self) -> None:
        """Open the file again by its name before the next line: what log rotation asks for after renaming it."""
        self._reopen = True
        self._woken.set()

    async def run(self) -> None:
        """Write until cancelled; then what is still queued or being written, for at most CLOSE_SECONDS.

        A file that cannot be written or opened again is a warning and lost events: the guest keeps its network.
        """
        # Cancelling a write that is under way would lose it, so the writer is shielded and told to finish.
        writing = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_all, writing)
            try:
                await trio.sleep_forever()
            finally:
                self._ending.set()
                writing.deadline = trio.current_time() + CLOSE_SECONDS
                self._woken.set()

    async def _write_all(self, scope: trio.CancelScope) -> None:
        with scope:
            tell_at = inf
            while not self._ending.is_set():
                with trio.move_on_at(tell_at):
                    await self._woken.wait()
                self._woken = trio.Event()
                now = trio.current_time()
                await self._flush(tell=now >= tell_at)
                if not self._budget.suppressed:
                    tell_at = inf
                elif tell_at <= now or tell_at == inf:
                    tell_at = now + TELL_SUPPRESSED
            # What was written while the last piece was on its way.
            await self._flush(tell=True)
        os.close(self._file)

    async def _flush(self, *, tell: bool) -> None:
        """Write what is queued; with `tell` also what was left out."""
        while self._queue or self._reopen or (tell and self._budget.suppressed):
            if self._reopen:
                self._reopen = False
                self._open_again()
            events, self._queue = self._queue, deque()
            lost, self._lost = self._lost, 0
            notes: list[dict[str, object]] = [{"event": "events_lost", "lost": lost}] if lost else []
            suppressed = self._budget.take_suppressed() if tell else {}
            tell = False
            if suppressed:
                notes.append({"event": "events_suppressed", "suppressed": suppressed})
            if not await trio.to_thread.run_sync(self._write_out, events, notes, abandon_on_cancel=True):
                self._lost += lost + len(events)
                self._budget.suppressed.update(suppressed)
            with trio.move_on_after(GATHER_MANY_SECONDS if self._budget.suppressed else GATHER_SECONDS):
                await self._ending.wait()

    def _open_again(self) -> None:
        try:
            fresh = self._open()
        except EventLogError as error:
            log.warning("%s; writing on to the file opened before", error)
        else:
            os.close(self._file)
            self._file = fresh

    def _write_out(self, events: deque[tuple[float, Event]], notes: list[dict[str, object]]) -> bool:
        """Write the lines, from a worker thread. Returns whether they could be written."""
        lines = [event_line(event, when) for when, event in events]
        lines += [_line(self._clock(), note) for note in notes]
        data = memoryview("".join(lines).encode("ascii"))
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            if not self._failing:
                log.warning("--events %s: %s; events are lost", self._target, error.strerror)
            self._failing = True
            return False
        self._failing = False
        return True
