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
from itertools import groupby
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
    """Where blocks go."""

    failure: str = ""
    """Why nothing is taken any more; empty while all is well."""

    @abstractmethod
    def put(self, blocks: bytes) -> bool:
        """Take whole blocks, one behind the other; False when there is no room, and they are lost."""

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
        knows: Callable[[], bool] | None = None,
        chooses: Chooser | None = None,
        snaplen: int = MAX_FRAME,
        remark: Remark | None = None,
    ) -> None:
        """`clock` gives the `now` of the frames, seconds; `comment` is asked once about each frame, when it is written,
        or about none of a batch before which `knows` says that there is nothing to be said.

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
        self._knows = knows
        self._chooses = chooses
        self._snaplen = snaplen
        self._held: list[tuple[int, Sequence[bytes]]] = []
        """Frames from guests that are being looked at: interface, frames."""
        self._wall_offset: int | None = None
        self._started = time.time_ns()
        self._closed = False
        self._lost = False
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
        if not anyhow and (self.leaves_links_out or self._lost):
            return False
        return self._sink.put(pcapng.journal(data))

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
        pieces: list[bytes] = []
        if self._comment is None or (self._knows is not None and not self._knows()):
            # Frames of a length have the same around them, and most of a batch are of one.
            sizes = list(map(len, frames))
            if sizes.count(sizes[0]) == len(sizes):
                self._put_alike(pieces, interface, frames, direction, stamp)
            else:
                for _, alike in groupby(frames, len):
                    self._put_alike(pieces, interface, list(alike), direction, stamp)
        else:
            for frame in frames:
                said = self._comment(frame, direction)
                self._put_alike(pieces, interface, (frame,), direction, stamp, said)
        counts = self.counts[interface]
        counts.received += len(frames)
        # The only copy. No frame is kept: their memory is the next ones', and not another thread's to be given back.
        if not self._sink.put(b"".join(pieces)):
            counts.lost += len(frames)
            self._lost = True

    def _put_alike(
        self,
        pieces: list[bytes],
        interface: int,
        frames: Sequence[bytes],
        direction: int,
        stamp: int,
        said: str = "",
    ) -> None:
        """Add the pieces of blocks for frames that are all of one length, each with that comment, if there is one."""
        size = len(frames[0])
        kept = min(size, self._snaplen)
        if kept < size:
            frames = [frame[:kept] for frame in frames]
        padding = -kept & 3
        option = bytes(padding) + pcapng.comment_option(said) if said else b""
        length = pcapng.PACKET_OVERHEAD + kept + (len(option) or padding)
        before = pcapng.HEAD.pack(
            pcapng.ENHANCED_PACKET, length, interface, stamp >> 32, stamp & 0xFFFFFFFF, kept, size
        )
        code, width = pcapng.TAIL_WORDS
        tail = pcapng.TAILS[0 if said else padding].pack(code, width, direction, 0, 0, length)
        behind = option + tail
        count = len(frames)
        blocks = [behind + before] * (2 * count + 1)
        blocks[0], blocks[-1] = before, behind
        blocks[1::2] = frames
        pieces += blocks

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
        knows: Callable[[], bool] | None = None,
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
        super().__init__(
            self.file, clock=clock, comment=comment, knows=knows, chooses=chooses, snaplen=snaplen, remark=remark
        )
        self.file.last_words = self.statistics

    def flush(self) -> None:
        """Write what waits into the file."""
        self.file.flush()

    async def flush_when_waiting(self) -> None:
        """Write what waits a moment after it came, for ever."""
        await self.file.flush_when_waiting()
