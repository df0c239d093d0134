"""Frames into pcapng: chosen by a filter, cut to a length, described by a comment, handed to a sink as blocks.

dpkt makes a block with its direction flags in 9 us, a `Struct` in 0.5, and a frame's whole way through the stack has
less than the former: so the blocks are made here and in pcapng.py.

Whoever knows something of a frame may have it written as the frame's comment. What is known of a guest's frame is known
when it was looked at: so the frames of a batch are held until the next thing is to be written, which is what became of
them, or until the next batch is asked for.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from guest_iface import pcapng
from guest_iface.link import MAX_FRAME
from guest_iface.pcapng import INBOUND

APPLICATION: Final = "netstack"
MAX_INTERFACES: Final = 4096
"""Links that one capture describes; frames of links beyond are left out."""

Comment = Callable[[bytes, int], str]
"""What stands beside a frame of that direction in the file: one line, empty for most frames."""
Remark = Callable[[int], str]
"""The comment of a file, made of the nanoseconds between its times and the clock's."""
Chooser = Callable[[bytes], bool]
"""Whether a frame is to be captured."""


class Sink(ABC):
    """Where blocks go. Each list of pieces is whole blocks."""

    failure: str = ""
    """Why nothing is taken any more; empty while all is well."""

    @abstractmethod
    def put(self, pieces: list[bytes], size: int) -> bool:
        """Take blocks of `size` bytes together; False when there is no room, and they are lost."""

    @abstractmethod
    def describe(self, block: bytes) -> None:
        """Take a block that whoever reads the frames behind it must have."""

    @abstractmethod
    def close(self, last: bytes) -> None:
        """Take a last block, or several, and end. Safe to call twice."""


@dataclass(slots=True)
class InterfaceCounts:
    """Of one interface of a capture."""

    received: int = 0
    """Frames that were chosen."""
    lost: int = 0
    """Those of them that the sink had no room for."""


class Capture:
    """What becomes of frames on their way into a sink. Times are nanoseconds of the wall clock."""

    def __init__(
        self,
        sink: Sink,
        *,
        clock: Callable[[], float] = trio.current_time,
        comment: Comment | None = None,
        chooses: Chooser | None = None,
        snaplen: int = MAX_FRAME,
        remark: Remark | None = None,
    ) -> None:
        """`clock` gives the `now` of the frames, seconds; `comment` is asked once about each frame, when it is written.

        `remark` gives the comment of the whole file: it is told by how many nanoseconds its times are ahead of `clock`.
        `chooses` says which frames are captured, all without; of each, `snaplen` bytes are kept, 1 to MAX_FRAME.
        """
        self.counts: list[InterfaceCounts] = []
        """By interface number."""
        self.leaves_links_out = False
        """There was a link beyond MAX_INTERFACES: its frames are not here."""
        self._sink = sink
        self._clock = clock
        self._comment = comment
        self._chooses = chooses
        self._snaplen = snaplen
        self._held: list[tuple[int, Sequence[bytes]]] = []
        """Frames from guests that are being looked at: interface, frames."""
        self._wall_offset: int | None = None
        self._started = time.time_ns()
        self._closed = False
        said = remark(self._offset()) if remark is not None else ""
        sink.describe(pcapng.section_header(APPLICATION, said))

    @property
    def failure(self) -> str:
        """Why nothing is captured any more; empty while all is well. A full disk ends the capture, not the network."""
        return self._sink.failure

    def add_interface(self, name: str) -> int:
        """Describe an Ethernet interface; the number to write its frames with, -1 for one link too many."""
        if len(self.counts) >= MAX_INTERFACES:
            self.leaves_links_out = True
            return -1
        if not self._closed:
            self._sink.describe(pcapng.interface_description(name, self._snaplen))
        self.counts.append(InterfaceCounts())
        return len(self.counts) - 1

    def hold(self, interface: int, frames: Sequence[bytes]) -> None:
        """Add frames from a guest that came now, and write them when it is known what became of them: at `release`, or
        before whatever else is written. Their time is the clock's then: that of the answers, which are their batch's.
        """
        if not self.failure:
            self._held.append((interface, frames))

    def release(self) -> None:
        """Write what is held."""
        if self._held:
            held, self._held = self._held, []
            stamp = self._stamp()
            for interface, frames in held:
                self._add(interface, frames, INBOUND, stamp)

    def write(self, interface: int, frames: Sequence[bytes], direction: int) -> None:
        """Add frames that pass now. `direction` is INBOUND or OUTBOUND."""
        self.release()
        if not self.failure:
            self._add(interface, frames, direction, self._stamp())

    def journal(self, data: bytes, *, anyhow: bool = False) -> bool:
        """Add bytes that are no frame, behind those that came before: what a replay has to know.

        False when they are lost, or frames are not here, unless `anyhow`: then there is no whole to be replayed.
        """
        self.release()
        if not anyhow and (self.leaves_links_out or any(counts.lost for counts in self.counts)):
            return False
        block = pcapng.journal(data)
        return self._sink.put([block, b"", b""], len(block))  # three pieces, as a frame's

    def _stamp(self) -> int:
        """Nanoseconds of the wall clock."""
        return self._offset() + int(self._clock() * 1e9)

    def _offset(self) -> int:
        """Nanoseconds between the clock and the wall clock, the same for the whole file."""
        if self._wall_offset is None:
            self._wall_offset = time.time_ns() - int(self._clock() * 1e9)
        return self._wall_offset

    def _add(self, interface: int, frames: Sequence[bytes], direction: int, stamp: int) -> None:
        if self._chooses is not None:
            frames = list(filter(self._chooses, frames))
        if interface < 0 or not frames:
            return
        high, low = stamp >> 32, stamp & 0xFFFFFFFF
        pieces: list[bytes] = []
        put, head, tails = pieces.append, pcapng.HEAD.pack, pcapng.TAILS
        code, width = pcapng.TAIL_WORDS
        comment, snaplen = self._comment, self._snaplen
        total = 0
        plain_size, plain_length, before, behind = -1, 0, b"", b""
        for frame in frames:
            size = len(frame)
            said = comment(frame, direction) if comment is not None else ""
            # Most frames of a batch are as long as the one before, and what stands around them is the same then.
            if size == plain_size and not said:
                put(before)
                put(frame)
                put(behind)
                total += plain_length
                continue
            kept = frame if size <= snaplen else frame[:snaplen]
            padding = -len(kept) & 3
            length = pcapng.PACKET_OVERHEAD + len(kept) + padding
            option = b""
            if said:
                option = bytes(padding) + pcapng.comment_option(said)
                length += len(option) - padding
                padding = 0
            before = head(pcapng.ENHANCED_PACKET, length, interface, high, low, len(kept), size)
            behind = option + tails[padding].pack(code, width, direction, 0, 0, length)
            plain_size, plain_length = (size, length) if kept is frame and not said else (-1, 0)
            put(before)
            put(kept)
            put(behind)
            total += length
        counts = self.counts[interface]
        counts.received += len(frames)
        if not self._sink.put(pieces, total):
            counts.lost += len(frames)

    def statistics(self) -> bytes:
        """A block for each interface that says what was seen and what was lost."""
        ended = time.time_ns()
        return b"".join(
            pcapng.interface_statistics(number, self._started, ended, counts.received, counts.lost)
            for number, counts in enumerate(self.counts)
        )

    def close(self) -> None:
        """Write what is held and the statistics, and end the sink. Safe to call twice."""
        if not self._closed:
            self._closed = True
            if not self.failure:
                self.release()
            self._sink.close(self.statistics())


class CaptureWriter(Capture):
    """A capture into a file, or into a row of files."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = trio.current_time,
        comment: Comment | None = None,
        chooses: Chooser | None = None,
        snaplen: int = MAX_FRAME,
        max_bytes: int = 0,
        max_files: int = 1,
        remark: Remark | None = None,
    ) -> None:
        """Create or empty `path`, for its owner only; CaptureFile has `max_bytes` and `max_files`, Capture the rest.

        Raises LinkError if the file cannot be opened.
        """
        from guest_iface.capture_file import CaptureFile

        self.file = CaptureFile(path, max_bytes=max_bytes, max_files=max_files)
        self.path = self.file.path
        super().__init__(self.file, clock=clock, comment=comment, chooses=chooses, snaplen=snaplen, remark=remark)
        self.file.last_words = self.statistics

    def flush(self) -> None:
        """Write what waits into the file."""
        self.file.flush()

    async def flush_when_waiting(self) -> None:
        """Write what waits a moment after it came, for ever."""
        await self.file.flush_when_waiting()
