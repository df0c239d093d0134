"""Frames into a pcapng file: a tee around any link, one capture interface per link, both directions told apart.

dpkt makes the file's headers. The block around each frame is made here: dpkt takes 9 us for one with its direction
flags, a `Struct` 0.5 us, and a frame's whole way through the stack has less than the former.

Whoever knows something of a frame may have it written as the frame's comment. What is known of a guest's frame is known
when it was looked at: so the frames of a batch are held until the next thing is to be written, which is what became of
them, or until the next batch is asked for.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from struct import Struct
from typing import Final

import trio
from dpkt import pcapng

from guest_iface.link import MAX_FRAME, Link, LinkError

log = logging.getLogger(__name__)

BUFFER_BYTES: Final = 1 << 20
"""Bytes that wait in memory before they are written."""
FLUSH_INTERVAL: Final = 0.25
"""Seconds after which what waits is written anyway."""

# The Enhanced Packet Block and its options, draft-ietf-opsawg-pcapng sections 4.3 and 3.5. Little-endian.
_HEAD: Final = Struct("<IIIIIII")  # type, length, interface, time (high, low), captured length, original length
_OPTION: Final = Struct("<HH")  # code, length
_TAIL: Final = Struct("<HHIHHI")  # epb_flags, its length, value, end of options, 0, length again
_PACKET_BLOCK: Final = 6
_COMMENT: Final = 1
_EPB_FLAGS: Final = 2
SEGMENT_OFFLOAD: Final = "segment offload "
"""What an interface's comment begins with where frames may be larger than the MTU, and their checksums partial."""
INBOUND: Final = 1
"""epb_flags of a frame from the guest."""
OUTBOUND: Final = 2
"""epb_flags of a frame to the guest."""
_BLOCK_OVERHEAD: Final = _HEAD.size + _TAIL.size

MAX_COMMENT: Final = 4096
"""Characters of a comment; an option holds 65,535 bytes."""

Comment = Callable[[bytes, int], str]
"""What stands beside a frame of that direction in the file: one line, empty for most frames."""


class CaptureWriter:
    """One pcapng file, readable by its owner only. Times are nanoseconds of the wall clock."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = trio.current_time,
        comment: Comment | None = None,
        remark: Callable[[int], str] | None = None,
    ) -> None:
        """Create or empty `path`. `clock` gives the `now` of the frames, seconds; `comment` is asked once about each
        frame, when it is written. `remark` gives the comment of the whole file; it is told what is added to the clock
        to make the file's times of it, nanoseconds. Raises LinkError if the file cannot be opened.
        """
        self.path = Path(path)
        self.failure = ""
        """Why writing has stopped; empty while all is well. A full disk ends the capture, not the network."""
        self._clock = clock
        self._comment = comment
        self._held: list[tuple[int, Sequence[bytes], int]] = []
        """Frames from guests that are being looked at: interface, frames, time."""
        self._wall_offset: int | None = None
        self._interfaces = 0
        self._pieces: list[bytes] = []
        self._pending = 0
        self._waiting = trio.Event()
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LinkError(f"{self.path}: cannot write the capture there: {error.strerror}") from error
        said = remark(self._offset()).encode() if remark is not None else b""
        remarks = [pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_COMMENT, data=said)] if said else []
        self._put(
            bytes(
                pcapng.SectionHeaderBlockLE(
                    opts=[
                        pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_SHB_USERAPPL, data=b"netstack"),
                        *remarks,
                        pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_ENDOFOPT),
                    ]
                )
            )
        )

    def tee(self, link: Link) -> CapturingLink:
        """The same link with all its frames written here as well."""
        return CapturingLink(link, self)

    def add_interface(self, name: str, segment_offload: int = 0) -> int:
        """Describe an Ethernet interface with nanosecond times; the number to write its frames with.

        `segment_offload` is the link's capability of that name: above 0, frames come with it in mind.
        """
        note = f"{SEGMENT_OFFLOAD}{segment_offload}".encode() if segment_offload else b""
        notes = [pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_COMMENT, data=note)] if note else []
        self._put(
            bytes(
                pcapng.InterfaceDescriptionBlockLE(
                    linktype=pcapng.DLT_EN10MB,
                    snaplen=MAX_FRAME,
                    opts=[
                        *notes,
                        pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_IF_NAME, data=name.encode()),
                        pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_IF_TSRESOL, data=b"\x09"),
                        pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_ENDOFOPT),
                    ],
                )
            )
        )
        self._interfaces += 1
        return self._interfaces - 1

    def hold(self, interface: int, frames: Sequence[bytes]) -> None:
        """Add frames from a guest that came now, and write them when it is known what became of them: at `release`, or
        before whatever else is written.
        """
        if not self.failure:
            self._held.append((interface, frames, self._stamp()))

    def release(self) -> None:
        """Write what is held."""
        if self._held:
            held, self._held = self._held, []
            for interface, frames, stamp in held:
                self._add(interface, frames, INBOUND, stamp)

    def write(self, interface: int, frames: Sequence[bytes], direction: int) -> None:
        """Add frames that pass now. `direction` is INBOUND or OUTBOUND."""
        self.release()
        if not self.failure:
            self._add(interface, frames, direction, self._stamp())

    def _stamp(self) -> int:
        """Nanoseconds of the wall clock."""
        return self._offset() + int(self._clock() * 1e9)

    def _offset(self) -> int:
        """Nanoseconds between the clock and the wall clock, the same for the whole file."""
        if self._wall_offset is None:
            self._wall_offset = time.time_ns() - int(self._clock() * 1e9)
        return self._wall_offset

    def _add(self, interface: int, frames: Sequence[bytes], direction: int, stamp: int) -> None:
        high, low = stamp >> 32, stamp & 0xFFFFFFFF
        put, head, tail = self._pieces.append, _HEAD.pack, _TAIL.pack
        comment = self._comment
        for frame in frames:
            size = len(frame)
            padding = -size & 3
            length = _BLOCK_OVERHEAD + size + padding
            said = comment(frame, direction) if comment is not None else ""
            option = _comment_option(said) if said else b""
            length += len(option)
            put(head(_PACKET_BLOCK, length, interface, high, low, size, size))
            put(frame)
            if padding:
                put(bytes(padding))
            if option:
                put(option)
            put(tail(_EPB_FLAGS, 4, direction, 0, 0, length))
            self._pending += length
        if self._pending >= BUFFER_BYTES:
            self.flush()
        else:
            self._waiting.set()

    def _put(self, block: bytes) -> None:
        self._pieces.append(block)
        self._pending += len(block)

    def flush(self) -> None:
        """Write what waits into the file."""
        data = memoryview(b"".join(self._pieces))
        self._pieces.clear()
        self._pending = 0
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self.failure = f"{self.path}: the capture ends here: {error.strerror}"
            log.error("%s", self.failure)  # noqa: TRY400 - the reason is in the message, a traceback says no more

    async def flush_when_waiting(self) -> None:
        """Write what waits FLUSH_INTERVAL seconds after it came, for ever."""
        while True:
            await self._waiting.wait()
            await trio.sleep(FLUSH_INTERVAL)
            self._waiting = trio.Event()
            self.flush()

    def close(self) -> None:
        """Write what waits and close the file. Safe to call twice."""
        if self._fd >= 0:
            if not self.failure:
                self.release()
                self.flush()
            os.close(self._fd)
            self._fd = -1
            self.failure = self.failure or f"{self.path}: closed"


def _comment_option(text: str) -> bytes:
    """opt_comment, draft-ietf-opsawg-pcapng section 3.5."""
    data = text[:MAX_COMMENT].encode(errors="replace")
    return _OPTION.pack(_COMMENT, len(data)) + data + bytes(-len(data) & 3)


class CapturingLink(Link):
    """A link whose frames are also written to a capture. All else is the link's own."""

    def __init__(self, link: Link, writer: CaptureWriter) -> None:
        """Wrap `link`. Frames to the guest are captured when they are handed over, also those that are then dropped."""
        self.name = link.name
        self.capabilities = link.capabilities
        self.counters = link.counters
        self._link = link
        self._writer = writer
        self._interface = writer.add_interface(link.name, link.capabilities.segment_offload)

    async def receive_batch(self) -> list[bytes]:
        """See Link."""
        self._writer.release()
        frames = await self._link.receive_batch()
        self._writer.hold(self._interface, frames)
        return frames

    def send_batch(self, frames: Sequence[bytes]) -> None:
        """See Link."""
        self._writer.write(self._interface, frames, OUTBOUND)
        self._link.send_batch(frames)

    @property
    def backlog(self) -> int:
        """See Link."""
        return self._link.backlog

    async def wait_backlog_drained(self) -> None:
        """See Link."""
        await self._link.wait_backlog_drained()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Link. Also writes the capture out while it is quiet."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._writer.flush_when_waiting)
            await self._link.run(task_status=task_status)
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """See Link."""
        self._link.close()
