"""The captures of a gateway: into files and to readers, several at once, begun and ended at any time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from netstack import journal
from netstack.config import CaptureOptions
from netstack.engine.events import Event
from netstack.gateway.journal import Journal
from netstack.recorded_settings import recorder
from netstack.wire_options import DEFAULT_FILES

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_iface.capture import Capture, CaptureWriter, Chooser, Remark
    from netstack.gateway.capture_comments import CaptureComments
    from netstack.gateway.driver import Driver
    from netstack.gateway.wires import Wires

MAX_CAPTURES: Final = 16
"""At once."""
EVERYTHING: Final = CaptureOptions()


class CaptureError(Exception):
    """A capture that cannot begin; the message says why."""


@dataclass(frozen=True, slots=True)
class CaptureState:
    """What became of one so far."""

    id: int
    path: Path | None
    """None: it goes to a reader."""
    options: CaptureOptions
    frames: int
    lost: int
    failure: str


@dataclass(slots=True)
class _Running:
    capture: Capture
    comments: CaptureComments
    path: Path | None
    options: CaptureOptions
    flushing: trio.CancelScope


class Captures:
    """One gateway's. `note` wants every event: verdicts are comments."""

    def __init__(self, wires: Wires, driver: Driver, *, holds: Callable[[], bool] = lambda: False) -> None:
        """`holds` says whether anything else than `wires` may hold frames on their way: breakpoints."""
        self._wires = wires
        self._driver = driver
        self._holds = holds
        self._journal = Journal(driver, self._is_untouched)
        wires.on_touch = self._journal.touched
        self._running: dict[int, _Running] = {}
        self._next = 1
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._running)

    def touched(self) -> None:
        """From now on frames may be held on their way: a capture from the guests' side is not what the engine gets."""
        self._journal.touched()

    def note(self, event: Event) -> None:
        """Remember what was decided, for the frames it is about."""
        for each in self._running.values():
            each.comments.note(event)

    def start(self, path: Path, options: CaptureOptions = EVERYTHING) -> int:
        """Capture into a file; the number to stop it by. Raises CaptureError."""
        from guest_iface.capture import CaptureWriter
        from guest_iface.link import MAX_FRAME, LinkError
        from netstack.gateway.capture_comments import CaptureComments

        comments = CaptureComments()
        chooses = self._chooses(options)
        if any(each.path is not None and each.path.resolve() == path.resolve() for each in self._running.values()):
            raise CaptureError(f"{path}: another capture is being written there")
        try:
            writer = CaptureWriter(
                path,
                clock=self._engine_time,
                remark=self._remark(options),
                comment=comments.take,
                knows=comments.knows,
                chooses=chooses,
                snaplen=options.snaplen or MAX_FRAME,
                max_bytes=options.rotate_size or 0,
                max_files=options.rotate_count or DEFAULT_FILES,
            )
        except LinkError as error:
            raise CaptureError(str(error)) from error
        number = self._begin(writer, comments, path, options)
        self._keep_flushing(writer, self._running[number].flushing)
        return number

    @contextlib.asynccontextmanager
    async def stream(self, options: CaptureOptions = EVERYTHING) -> AsyncIterator[AsyncIterator[bytes]]:
        """Capture for a reader, for the time of the block: a pcapng file, piece by piece. Raises CaptureError.

        `stop` ends it from elsewhere, and the file has an end then.
        """
        from guest_iface.capture import Capture
        from guest_iface.capture_stream import CaptureStream
        from guest_iface.link import MAX_FRAME
        from netstack.gateway.capture_comments import CaptureComments

        comments, sink = CaptureComments(), CaptureStream()
        capture = Capture(
            sink,
            clock=self._engine_time,
            remark=self._remark(options),
            comment=comments.take,
            knows=comments.knows,
            chooses=self._chooses(options),
            snaplen=options.snaplen or MAX_FRAME,
        )
        number = self._begin(capture, comments, None, options)
        try:
            yield sink
        finally:
            self.stop(number)

    def _engine_time(self) -> float:
        """The time that the engine was told last: with it a capture replays byte for byte."""
        now = self._driver.now
        return now if now >= 0 else trio.current_time()

    def _remark(self, options: CaptureOptions) -> Remark | None:
        """What a replay has to know. A capture that leaves something out is replayed by what its frames mean."""
        if options.filter is not None or options.snaplen is not None:
            return None
        stack = self._driver.stack
        return recorder(
            stack.settings,
            stack.judge.policy.settings,
            stack.tcp.hosted,
            faithful=self._is_untouched(),
            journal=journal.FORMAT if self._has_journal(options) else 0,
        )

    def _is_untouched(self) -> bool:
        """Whether the engine gets what the guests send, and they what it sends: a capture is on the guests' side."""
        return self._wires.untouched and not self._holds()

    def _has_journal(self, options: CaptureOptions) -> bool:
        """Whether a capture holds everything from the beginning to its end, so that it can be played as it was."""
        return options == EVERYTHING and self._journal.possible

    def _chooses(self, options: CaptureOptions) -> Chooser | None:
        """What says which frames are meant. Raises CaptureError for a filter that cannot be."""
        from guest_iface.frame_filter import FilterError, parse_filter
        from guest_iface.frame_matching import frame_matcher, uses_names

        if len(self._running) >= MAX_CAPTURES:
            raise CaptureError(f"{MAX_CAPTURES} captures are running: expected one to be stopped before another begins")
        if options.filter is None:
            return None
        try:
            term = parse_filter(options.filter)
            matcher = frame_matcher(term, self._wires.names)
        except FilterError as error:
            raise CaptureError(str(error)) from error
        if uses_names(term):
            self._wires.learn_names()
        return matcher

    def _begin(self, capture: Capture, comments: CaptureComments, path: Path | None, options: CaptureOptions) -> int:
        number = self._next
        self._next += 1
        self._running[number] = _Running(capture, comments, path, options, trio.CancelScope())
        self._wires.listen(capture)
        if self._has_journal(options):
            self._journal.begin(capture)
        return number

    def _keep_flushing(self, writer: CaptureWriter, scope: trio.CancelScope) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._flush, writer, scope)

    async def _flush(self, writer: CaptureWriter, scope: trio.CancelScope) -> None:
        with scope:
            await writer.flush_when_waiting()

    def stop(self, number: int) -> bool:
        """End one: what waits is written, and the file is closed. False if there is none of that number."""
        running = self._running.pop(number, None)
        if running is None:
            return False
        self._journal.end(running.capture)
        self._wires.stop_listening(running.capture)
        running.flushing.cancel()
        running.capture.close()
        return True

    def states(self) -> list[CaptureState]:
        """All that are running."""
        return [
            CaptureState(
                number,
                each.path,
                each.options,
                sum(counts.received for counts in each.capture.counts),
                sum(counts.lost for counts in each.capture.counts),
                each.capture.failure,
            )
            for number, each in self._running.items()
        ]

    async def run(self) -> None:
        """Write out what waits while it is quiet, until cancelled."""
        from guest_iface.capture import CaptureWriter

        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for each in self._running.values():
                    if isinstance(each.capture, CaptureWriter):
                        self._keep_flushing(each.capture, each.flushing)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def close(self) -> None:
        """End all. Safe to call twice."""
        for number in list(self._running):
            self.stop(number)
