"""What all links share: the drain-without-waiting receive loop and the bounded transmit queue.

Sending is one plain non-blocking write. Only what the kernel does not take at once is queued, and written by `run`
when the descriptor is writable again. Receiving reads first and waits only when there was nothing, or when the read
before has found a single frame, so that a busy link costs no epoll call and a quiet one no read in vain.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, cast

import trio

from guest_iface.batch_calls import LARGE_FRAME, MIN_BATCH, BatchCalls
from guest_iface.link import (
    BATCH,
    MAX_FRAME,
    MIN_FRAME,
    Frame,
    Link,
    LinkCapabilities,
    LinkClosed,
    LinkCounters,
    LinkError,
    Pieces,
    frame_size,
    whole,
)

QUEUE_FRAMES: Final = 4096
"""Frames the transmit queue holds before it drops."""
QUEUE_BYTES: Final = 16 << 20
"""Bytes the transmit queue holds before it drops: 256 frames of 64 KiB."""
LARGE_BATCH: Final = 8
"""Frames taken from a guest in one wake-up while they are large: 64 of them, read, written to the host and acknowledged
as a whole, are most of a window, and the guest and we would take turns.
"""
CONGESTION_PAUSE: Final = 0.001
"""Seconds until the next try when a descriptor says it is writable and then takes nothing (ENOBUFS does that)."""

QUEUE_FULL: Final = "transmit queue full"
NO_GUEST: Final = "no guest attached"
TOO_SHORT: Final = "frame too short"
TOO_LONG: Final = "frame too long"


class QueuedLink(Link):
    """A link over non-blocking descriptors. A subclass says how to read, how to write, and which descriptors to wait
    for.
    """

    def __init__(
        self,
        name: str,
        capabilities: LinkCapabilities,
        *,
        read_fd: int,
        write_fd: int,
        queue_frames: int = QUEUE_FRAMES,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self.name = name
        self.capabilities = capabilities
        self.counters = LinkCounters()
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._queue_frames = queue_frames
        self._queue_bytes = queue_bytes
        self._work = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._attached = True
        self._closed = False
        self._failure = ""
        self._error: LinkError | None = None
        """What `receive_now` found, and `receive_batch` is to tell."""
        self._owes_checkpoint = False
        self._ran_dry = False
        """The last read has taken the one frame there was: the next is to be waited for, and a read would be in vain.

        After several frames the guest is busy, and there may be more by now: reading first saves the wait.
        """

    # What a subclass provides.

    @abstractmethod
    def _receive(self, limit: int) -> list[bytes]:
        """At most `limit` frames that are there already, checked and counted; none if there are none.

        Raises LinkError when nothing will come any more.
        """

    @abstractmethod
    def _transmit(self, frames: Sequence[Frame]) -> int:
        """Hand frames to the kernel in order and count them; how many of them are done with (written, or dropped and
        counted).
        """

    @abstractmethod
    def _release(self) -> None:
        """Close the descriptors and remove what was bound. Called once."""

    @property
    def _unfinished(self) -> bool:
        """Whether part of a frame was written and the rest must go before anything else."""
        return False

    # The receiving side.

    async def receive_batch(self) -> list[bytes]:
        """See Link. A link that is never empty yields to the other tasks once a batch; it does so before it reads, so
        that a cancelled call has taken nothing, and no wait comes between a frame and its answer.
        """
        if self._owes_checkpoint:
            self._owes_checkpoint = False
            await trio.lowlevel.checkpoint()
        waited = False
        while not self._closed:
            if self._error is not None:
                raise self._error
            if not self._ran_dry and (frames := self._receive(BATCH)):
                self._owes_checkpoint = not (waited or self._ran_dry)
                return frames
            if self._failure:
                raise LinkClosed(self._failure)
            self._ran_dry = False
            waited = True
            try:
                await trio.lowlevel.wait_readable(self._read_fd)
            except trio.ClosedResourceError:
                # Woken on purpose: the link was closed, the write side failed, or the guest was found gone.
                continue
        raise LinkClosed(f"{self.name}: the link was closed")

    @property
    def descriptor(self) -> int:
        """See Link."""
        return self._read_fd

    def receive_now(self, limit: int = BATCH) -> list[bytes]:
        """See Link."""
        if self._closed or self._error is not None:
            return []
        try:
            frames = self._receive(limit)
        except LinkError as error:
            self._error = error
            self._look_again()
            return []
        # Whoever polls comes back as long as the descriptor says so.
        self._ran_dry = not self.holds_frames
        return frames

    def _fail(self, reason: str) -> None:
        """The guest was found gone: once what it left has been read, `receive_batch` raises LinkClosed."""
        self._failure = f"{self.name}: {reason}"
        self._attached = False
        self._look_again()

    def _look_again(self) -> None:
        """There may be something to read that the descriptor does not tell of."""
        self._ran_dry = False
        self._wake(self._read_fd)

    def _wake(self, fd: int) -> None:
        """Make whoever waits for a descriptor look again. Outside of a trio run nobody waits."""
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(fd)

    # The sending side.

    def send_batch(self, frames: Sequence[Frame]) -> None:
        """See Link."""
        if not self._attached:
            self.counters.drop_sent(NO_GUEST, len(frames))
            return
        if self._queue or self._unfinished:
            self._enqueue(frames)
            return
        taken = self._transmit(frames)
        if taken < len(frames):
            self._enqueue(frames[taken:])
        if self._queue or self._unfinished:
            self._work.unpark_all()

    def _enqueue(self, frames: Sequence[Frame]) -> None:
        if not self._attached:
            self.counters.drop_sent(NO_GUEST, len(frames))
            return
        for position, frame in enumerate(frames):
            size = frame_size(frame)
            if len(self._queue) >= self._queue_frames or self._queued_bytes + size > self._queue_bytes:
                # The newest go: what is queued is older and in order, and TCP recovers best from a dropped tail.
                self.counters.drop_sent(QUEUE_FULL, len(frames) - position)
                return
            self._queue.append(whole(frame))
            self._queued_bytes += size

    def _discard_queue(self) -> None:
        if self._queue:
            self.counters.drop_sent(NO_GUEST, len(self._queue))
            self._queue.clear()
            self._queued_bytes = 0
        self._drained.unpark_all()

    @property
    def backlog(self) -> int:
        """See Link."""
        return len(self._queue) + self._unfinished

    async def wait_backlog_drained(self) -> None:
        """See Link."""
        while self.backlog and not self._closed:
            await self._drained.park()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Link."""
        task_status.started()
        while not self._closed:
            if not self.backlog:
                await self._work.park()
                continue
            try:
                await trio.lowlevel.wait_writable(self._write_fd)
            except trio.ClosedResourceError:
                continue
            before = self.backlog
            self._flush()
            if self.backlog and self.backlog == before:
                await trio.sleep(CONGESTION_PAUSE)

    def _flush(self) -> None:
        """Write one batch of the queue; the loop in `run` lets other tasks in between batches."""
        batch = list(islice(self._queue, BATCH))
        for _ in range(self._transmit(batch)):
            self._queued_bytes -= len(self._queue.popleft())
        if not self._attached:
            self._discard_queue()
        if not self.backlog:
            self._drained.unpark_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """See Link."""
        if self._closed:
            return
        self._closed = True
        self._attached = False
        self._discard_queue()
        self._work.unpark_all()
        self._wake(self._read_fd)
        if self._write_fd != self._read_fd:
            self._wake(self._write_fd)
        self._release()


class PacketLink(QueuedLink):
    """A link whose descriptor keeps frames apart by itself: one read is one frame, one write is one frame.

    A subclass sets `_read` (takes the largest size, gives bytes), `_write` and `_write_pieces` (both take a frame and
    give the bytes of it that went out), and `_batch_calls` where its descriptor is a socket: under load, many frames
    then go with one call.
    """

    _read: Callable[[int], bytes]
    _write: Callable[[bytes], int]
    _write_pieces: Callable[[Pieces], int]
    _batch_calls: BatchCalls | None = None
    _many: bool = False
    """Whether the last batch was one for which a batch call would have cost less."""
    _limit: int = BATCH
    """Frames of the next batch: fewer after large ones, so that the guest goes on while we are busy with them."""

    def _receive(self, limit: int) -> list[bytes]:
        if self._many and limit == BATCH and self._batch_calls is not None:
            return self._receive_many(self._batch_calls)
        frames: list[bytes] = []
        read, append = self._read, frames.append
        try:
            for _ in range(min(limit, self._limit)):
                # One byte more than allowed, so that a datagram that was cut short shows. Measured at 1514 bytes: a
                # plain read into a fresh object costs 1.3 us, into a reused buffer and copied out 1.55 us (see
                # heap.py).
                append(read(MAX_FRAME + 1))
        except BlockingIOError:
            self._ran_dry = len(frames) == 1
        except OSError as error:
            self._read_failed(error)
        return self._checked(frames) if frames else frames

    def _receive_many(self, calls: BatchCalls) -> list[bytes]:
        frames: list[bytes] = []
        try:
            frames = calls.receive()
        except OSError as error:
            self._read_failed(error)
        if not frames:
            self._many = False
            return frames
        return self._checked(frames)

    def _checked(self, frames: list[bytes]) -> list[bytes]:
        """Count frames; leave out what is none."""
        sizes = list(map(len, frames))
        total = sum(sizes)
        large = total >= len(sizes) * LARGE_FRAME
        self._many = not large and len(sizes) >= MIN_BATCH
        self._limit = LARGE_BATCH if large else BATCH
        if min(sizes) < MIN_FRAME or max(sizes) > MAX_FRAME:
            frames = [frame for frame in frames if self._is_frame(frame)]
            total = sum(map(len, frames))
        self.counters.rx_frames += len(frames)
        self.counters.rx_bytes += total
        return frames

    def _is_frame(self, datagram: bytes) -> bool:
        if len(datagram) < MIN_FRAME:
            self.counters.drop_received(TOO_SHORT)
            return False
        if len(datagram) > MAX_FRAME:
            self.counters.drop_received(TOO_LONG)
            return False
        return True

    def _transmit(self, frames: Sequence[Frame]) -> int:
        write = self._write
        taken = sent_bytes = failed = 0
        if len(frames) >= MIN_BATCH and self._batch_calls is not None and tuple not in map(type, frames):
            taken, sent_bytes = self._transmit_many(self._batch_calls, cast(Sequence[bytes], frames))
        while taken < len(frames):
            try:
                for frame in frames[taken:] if taken else frames:
                    sent_bytes += write(frame) if isinstance(frame, bytes) else self._write_pieces(frame)
                    taken += 1
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    break
                taken += 1
                failed += 1
                self.counters.drop_sent(self._write_failed(error))
                if not self._attached:
                    break
        self.counters.tx_frames += taken - failed
        self.counters.tx_bytes += sent_bytes
        return taken

    def _transmit_many(self, calls: BatchCalls, frames: Sequence[bytes]) -> tuple[int, int]:
        """Frames, and bytes of them, that went out before something stood in the way: single writes find out what."""
        taken = sent_bytes = 0
        while len(frames) - taken >= MIN_BATCH:
            part = frames[taken : taken + BATCH]
            sent = calls.send(part)
            taken += sent
            sent_bytes += sum(map(len, part[:sent]))
            if sent < len(part):
                break
        return taken, sent_bytes

    def _read_failed(self, error: OSError) -> None:
        """A read failed otherwise than for want of frames. By default that is the end of the link."""
        self._fail(str(error.strerror))
        self._discard_queue()

    def _write_failed(self, error: OSError) -> str:
        """A write failed: the reason to count. By default no further frame can go there."""
        self._fail(f"cannot send: {error.strerror}")
        return NO_GUEST
