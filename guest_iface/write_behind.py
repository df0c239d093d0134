"""Writing in a thread: while the kernel copies what is written, or a disk is slow, frames go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class WriteBehind:
    """Hands batches to `write` in a thread of its own, in order. Used by one thread; `write` must not raise."""

    def __init__(self, write: Callable[[list[bytes]], None]) -> None:
        """The thread begins with the first batch."""
        self._write = write
        self._batches: SimpleQueue[tuple[list[bytes], int] | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Each is written by one thread only.
        self._given = 0
        self._done = 0

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet."""
        return self._given - self._done

    def put(self, batch: list[bytes], size: int) -> None:
        """Have a batch of `size` bytes written."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
            self._thread.start()
        self._given += size
        self._batches.put((batch, size))

    def drain(self) -> None:
        """Wait until everything is written."""
        if self.waiting:
            over = threading.Event()
            self._batches.put(over)
            over.wait()

    def close(self) -> None:
        """Write everything, and end the thread."""
        if self._thread is not None:
            self._batches.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            if isinstance(batch, threading.Event):
                batch.set()
            else:
                self._write(batch[0])
                self._done += batch[1]
