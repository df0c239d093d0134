"""A capture's journal, played: the engine is told again what it was told, in order, with nothing to be reckoned."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, Final

from netstack.debug.capture_reader import CaptureError
from netstack.debug.lookahead import Seen
from netstack.engine import effects
from netstack.engine.events import Event
from netstack.engine.stack import Stack
from netstack.journal import (
    BY_HAND,
    BY_NAME,
    CALLS,
    COPIES,
    FRAMES,
    INJECTED,
    JUDGE,
    NOBODY,
    NOW,
    OFFLOAD,
    SEQUENCE,
    STOPPED,
    TAKE_BATCH,
    JournalError,
    decode,
)
from netstack.wire import tcp

MAX_AHEAD: Final = 64 << 20
"""Bytes of frames that are looked ahead for the text of a stream: more than a connection has on its way."""
MAX_STREAMS: Final = 65_536
"""Streams whose text is known ahead; the one that began first makes room."""
MAX_GAP: Final = 1 << 20
MAX_COPIES: Final = 4096
"""Links that one frame went out on."""
_MASK: Final = 0xFFFFFFFF
_RECEIVED: Final = BY_NAME["stream_received"].code
_TAKE_EFFECTS: Final = BY_NAME["take_effects"].code


class _Text:
    """What the host's side says on one connection, as far as the frames looked at show it."""

    __slots__ = ("data", "end", "over")

    def __init__(self, isn: int) -> None:
        self.data = bytearray()
        """What was not asked for yet."""
        self.end = isn + 1
        """The sequence number behind it."""
        self.over = False

    def hear(self, sequence: int, text: bytes) -> None:
        """A segment: new text goes out in order, so that only what is sent once more overlaps."""
        known = (self.end - sequence) & _MASK
        if known > 1 << 31:
            gap = (1 << 32) - known
            if gap > MAX_GAP:
                return
            self.data += bytes(gap)  # the capture has lost frames
            self.end += gap
            known = 0
        if known < len(text):
            self.data += text[known:]
            self.end += len(text) - known


class Ahead:
    """The frames of a file in order, and the text of the streams in those that are still to come."""

    def __init__(self, frames: Iterator[Seen]) -> None:
        self._frames = frames
        self._held: deque[Seen] = deque()
        self._size = 0
        self._fault: CaptureError | None = None
        self._over = False
        self._by_hand: deque[bytes] = deque()
        """Frames that are still to come, and are none of the engine's."""
        self._texts: OrderedDict[tuple[bytes, int], _Text] = OrderedDict()
        self._latest: dict[bytes, tuple[int, _Text]] = {}

    def __iter__(self) -> Iterator[Seen]:
        """The frames. Raises CaptureError behind the last that could be read."""
        while self._held or self._pull():
            seen = self._held.popleft()
            self._size -= len(seen.frame)
            yield seen
        if self._fault is not None:
            raise self._fault

    def text(self, key: bytes, isn: int, count: int) -> bytes:
        """The next bytes that the host's side says on a connection; zeros for what no frame was ever made of."""
        place = key, isn & _MASK
        while (text := self._texts.get(place)) is None or (len(text.data) < count and not text.over):
            if self._size > MAX_AHEAD or not self._pull():
                break
        if text is None:
            return bytes(count)
        data = bytes(text.data[:count])
        del text.data[:count]
        return data.ljust(count, b"\0")

    def _pull(self) -> bool:
        if self._over:
            return False
        try:
            seen = next(self._frames, None)
        except CaptureError as fault:
            self._fault, seen = fault, None
        if seen is None:
            self._over = True
            return False
        self._held.append(seen)
        self._size += len(seen.frame)
        for block in seen.captured.journal:
            self._by_hand.extend(frames_by_hand(block))
        packet = seen.packet
        if seen.from_guest:
            return True
        if self._by_hand and seen.frame == self._by_hand[0]:
            self._by_hand.popleft()
        elif packet.kind == "tcp" and not packet.fault and not seen.passes_by:
            self._hear(packet.reversed_key, packet.sequence, packet.flags, packet.body)
        return True

    def _hear(self, key: bytes, sequence: int, flags: int, body: bytes) -> None:
        known = self._latest.get(key)
        if flags & tcp.SYN and (known is None or known[0] != sequence):
            if known is not None:
                known[1].over = True
            text = self._texts[key, sequence] = _Text(sequence)
            self._latest[key] = sequence, text
            if len(self._texts) > MAX_STREAMS:
                (old, isn), _ = self._texts.popitem(last=False)
                if self._latest[old][0] == isn:
                    del self._latest[old]
        elif known is not None:
            if body:
                known[1].hear(sequence, body)
            if flags & (tcp.RST | tcp.FIN):
                known[1].over = True


def frames_by_hand(block: bytes) -> list[bytes]:
    """The frames that a block says were put on a link by hand: they stand behind it. No other block has any."""
    if block[:1] != bytes((BY_HAND,)):
        return []
    try:
        return [values[0] for code, values in decode(block) if code == BY_HAND]
    except JournalError:
        return []  # whoever plays it says so


class JournalPlayer:
    """Plays blocks of a journal into a stack."""

    def __init__(
        self,
        stack: Stack,
        ahead: Ahead,
        *,
        report: Callable[[Event], None],
        sent: Callable[[bytes, bytes], None],
    ) -> None:
        """`report` is told every event, `sent` what goes out to the host: the flow's key, the bytes."""
        self.now = 0.0
        """The engine's time."""
        self.stopped = ""
        """Why the journal has ended before the capture; empty while it goes on."""
        self.by_hand: deque[bytes] = deque()
        """Frames that are about to be recorded, and that the engine did not send."""
        self.skipped: list[str] = []
        """Of each guest's frame that the last block took: why it was not given to the engine, mostly empty."""
        self._stack = stack
        self._ahead = ahead
        self._report = report
        self._sent = sent
        self._sequences: deque[int] = deque()
        self._offloads: deque[int] = deque()
        self._methods = {
            call.code: (
                attrgetter(f"{call.place}.{call.name}" if call.place else call.name)(stack),
                call.letters.find("t"),
                tuple(call.keywords),
                len(call.letters),
            )
            for call in CALLS
        }
        # What went out is compared with frames of a capture, which are whole.
        self._methods[TAKE_BATCH] = (stack.take_frames, *self._methods[TAKE_BATCH][1:])

    def initial_sequence(self) -> int:
        """What was said when the engine asked for a number."""
        return self._sequences.popleft() if self._sequences else 0

    def segment_offload(self) -> int:
        """What was said when the engine asked what a link does."""
        return self._offloads.popleft() if self._offloads else 0

    def play(self, block: bytes, arrived: deque[Seen]) -> list[bytes]:
        """Do what a block says; `arrived` are the guests' frames that the engine was not given yet, of which it takes
        some. Returns the frames sent. Raises JournalError.
        """
        self.skipped = []
        if self.stopped:
            return []
        records = list(decode(block))
        self._sequences.extend(values[0] for code, values in records if code == SEQUENCE)
        self._offloads.extend(values[0] for code, values in records if code == OFFLOAD)
        answers: list[bytes] = []
        taken: list[bytes] = []
        for code, values in records:
            try:
                if code in self._methods:
                    said = self._call(code, values)
                    if code == TAKE_BATCH:
                        taken = said
                        answers += taken
                    elif code == _TAKE_EFFECTS:
                        self._carry_out(said)
                elif code == NOW:
                    self.now = values[0]
                elif code == FRAMES:
                    self._receive(values[0], values[1], arrived)
                elif code == INJECTED:
                    self._stack.receive_frame(values[0], self.now)
                elif code == JUDGE:
                    self._stack.judge.consults, self._stack.judge.loosens = values
                elif code == NOBODY:
                    answers.clear()
                elif code == COPIES:
                    del answers[len(answers) - len(taken) :]
                    answers += _multiplied(taken, values[0])
                elif code == BY_HAND:
                    self.by_hand.append(values[0])
                elif code == STOPPED:
                    self.stopped = values[0]
                    break
            except (LookupError, ValueError, TypeError, OverflowError) as error:
                raise JournalError(f"its journal makes no sense ({type(error).__name__}: {error})") from error
        return answers

    def _call(self, code: int, values: tuple[Any, ...]) -> Any:
        method, time, keywords, count = self._methods[code]
        given = list(values)
        if time >= 0:
            given[time] = self.now
        elif code == _RECEIVED:
            flow = self._stack.tcp.flow(given[0])
            if flow is None:
                return None
            if given[1] > 1 << 24:
                raise ValueError(f"a read of {given[1]} bytes")
            isn = flow.connection.sender.buffer.end - flow.received - 1
            given[1] = self._ahead.text(flow.key, isn, given[1])
        return method(*given[:count], **dict(zip(keywords, given[count:], strict=True)))

    def _receive(self, count: int, bits: bytes, arrived: deque[Seen]) -> None:
        if count > len(arrived):
            raise ValueError(f"{count} frames of {len(arrived)}")
        which = int.from_bytes(bits, "little") if bits else -1
        batch = []
        for number in range(count):
            frame = arrived.popleft().frame
            passes = which >> number & 1
            self.skipped.append("" if passes else "not for the gateway")
            if passes:
                batch.append(frame)
        self._stack.receive_frames(batch, self.now)

    def _carry_out(self, asked: list[effects.Effect]) -> None:
        """What was done about it is in the journal; here it is only told."""
        for effect in asked:
            if isinstance(effect, effects.Report):
                self._report(effect.event)
            elif isinstance(effect, effects.SendStream):
                flow = self._stack.tcp.flow(effect.flow)
                if flow is not None:
                    self._sent(flow.key, b"".join(effect.chunks))


def _multiplied(frames: list[bytes], counts: bytes) -> list[bytes]:
    """Each frame as often as two bytes say. Raises ValueError where they cannot be."""
    if len(counts) != 2 * len(frames):
        raise ValueError(f"{len(frames)} frames went out, copies are counted of {len(counts) // 2}")
    copies = [counts[at] | counts[at + 1] << 8 for at in range(0, len(counts), 2)]
    if max(copies, default=0) > MAX_COPIES:
        raise ValueError(f"a frame on {max(copies)} links")
    return [frame for frame, count in zip(frames, copies, strict=True) for _ in range(count)]
