"""A capture that somebody reads while it goes on: pcapng as a stream of bytes, bounded, with its losses counted."""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from guest_iface.capture import Sink

QUEUE_BYTES: Final = 4 << 20
"""Bytes that wait for the reader before frames are lost."""
ENDED: Final = "the stream has ended"


class CaptureStream(Sink):
    """Use as an asynchronous iterator of bytes, by one reader; it ends with the capture."""

    def __init__(self, *, queue_bytes: int = QUEUE_BYTES) -> None:
        """`queue_bytes` wait at most, descriptions of interfaces and the end aside."""
        self.failure = ""
        self._queue: deque[bytes] = deque()
        self._waiting = 0
        self._limit = queue_bytes
        self._arrived = trio.Event()

    def describe(self, block: bytes) -> None:
        """See Sink."""
        if not self.failure:
            self._append(block)

    def put(self, blocks: bytes) -> bool:
        """See Sink."""
        if self.failure or self._waiting + len(blocks) > self._limit:
            return False
        self._append(blocks)
        return True

    def _append(self, blocks: bytes) -> None:
        self._queue.append(blocks)
        self._waiting += len(blocks)
        self._arrived.set()

    def close(self, last: bytes) -> None:
        """See Sink. The reader gets what waits, and then the end."""
        self.describe(last)
        self.failure = self.failure or ENDED
        self._arrived.set()

    def __aiter__(self) -> CaptureStream:
        return self

    async def __anext__(self) -> bytes:
        """All that waits: whole blocks."""
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self.failure:
                raise StopAsyncIteration
            await self._arrived.wait()
            self._arrived = trio.Event()
        data = b"".join(self._queue)
        self._queue.clear()
        self._waiting = 0
        return data
