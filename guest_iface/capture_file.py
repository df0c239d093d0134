"""Capture blocks into a file, or into a row of files of bounded size: the newest is FILE, the one before it FILE.1."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

import trio

from guest_iface import pcapng
from guest_iface.capture import Sink
from guest_iface.link import LinkError
from guest_iface.write_behind import WriteBehind

log = logging.getLogger(__name__)

BUFFER_BYTES: Final = 2 << 20
"""Bytes that wait in memory before they are handed over to be written."""
MAX_BEHIND: Final = 64 << 20
"""Bytes handed over and not written: beyond, frames are lost, and counted, until the disk has caught up."""
FLUSH_INTERVAL: Final = 0.25
"""Seconds after which what waits is written anyway."""
MIN_FILE_BYTES: Final = 1 << 16
"""The smallest files of a row: a frame of any length fits, with what each file begins with."""
MAX_FILES: Final = 1000
UNCACHED: Final = 0x80
"""RWF_DONTCACHE (linux/fs.h; Linux 6.14): the kernel begins to write to the disk at once, and lets go of the pages as
soon as they are there. Nobody reads a capture soon, and it takes no other file's place in memory. Where memory is
lent by a hypervisor that has to be asked for each new page, this is what a capture costs most: 4.2 us for a frame of
1514 bytes that goes into new pages, 0.3 into those that have just become free.
"""
_NOT_SO: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""What a kernel or a file system says that does not know it."""
_MAX_PIECES: Final = 1024
"""Of one write (IOV_MAX)."""


class CaptureFile(Sink):
    """Readable by its owner only. Each file of a row can be read without the others."""

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int = 0, max_files: int = 1) -> None:
        """Create or empty `path`. Above 0, `max_bytes` (MIN_FILE_BYTES or more) is when a file is full: it is renamed
        PATH.1, PATH.1 is renamed PATH.2, and so on; `max_files` (1 to MAX_FILES) are kept, PATH among them.

        Raises LinkError if the file cannot be opened.
        """
        self.path = Path(path)
        self.failure = ""
        self.last_words: Callable[[], bytes] = bytes
        """What is written at the end of each file."""
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._descriptions: list[bytes] = []
        self._pieces: list[bytes] = []
        self._pending = 0
        self._size = 0
        """Bytes of this file, those that wait included."""
        self._waiting = trio.Event()
        self._uncached = UNCACHED
        self._behind = WriteBehind(self._write_much)
        try:
            self._fd = self._open()
        except OSError as error:
            raise LinkError(f"{self.path}: cannot write the capture there: {error.strerror}") from error

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def describe(self, block: bytes) -> None:
        """See Sink. Each file of a row begins with these blocks."""
        self._descriptions.append(block)
        self._append(block)

    def put(self, blocks: bytes) -> bool:
        """See Sink. What is lost is lost to `failure`, which says so, or to a slow disk."""
        if self._behind.waiting > MAX_BEHIND:
            return False
        if self._max_bytes and self._size + len(blocks) > self._max_bytes:
            self._put_in_turn(blocks)
        else:
            self._append(blocks)
        if self._pending >= BUFFER_BYTES:
            pieces, size, self._pieces, self._pending = self._pieces, self._pending, [], 0
            self._behind.put(pieces, size)
        elif not self._waiting.is_set():
            self._waiting.set()
        return not self.failure

    def _put_in_turn(self, blocks: bytes) -> None:
        """Block by block, with another file where one is full."""
        start = 0
        while start < len(blocks):
            end = start + pcapng.block_length(blocks, start)
            if self._size + end - start > self._max_bytes:
                self._rotate()
            self._append(blocks[start:end])
            start = end

    def _append(self, blocks: bytes) -> None:
        if not self.failure:
            self._pieces.append(blocks)
            self._pending += len(blocks)
            self._size += len(blocks)

    def _rotate(self) -> None:
        self._append(self.last_words())
        self.flush()
        if self.failure:
            return
        os.close(self._fd)
        self._fd = -1
        names = [
            self.path,
            *(self.path.with_name(f"{self.path.name}.{number}") for number in range(1, self._max_files)),
        ]
        try:
            for newer, older in reversed(list(pairwise(names))):
                with contextlib.suppress(FileNotFoundError):
                    newer.replace(older)
            self._fd = self._open()
        except OSError as error:
            self._fail(error)
            return
        self._size = 0
        self._append(b"".join(self._descriptions))

    def flush(self) -> None:
        """Write what waits into the file, and wait for what is being written."""
        self._behind.drain()
        pieces, self._pieces, self._pending = self._pieces, [], 0
        self._write(pieces)

    def _write_much(self, pieces: list[bytes]) -> None:
        self._write(pieces, self._uncached)

    def _write(self, pieces: list[bytes], flags: int = 0) -> None:
        if self.failure:
            return
        try:
            for start in range(0, len(pieces), _MAX_PIECES):
                part = pieces[start : start + _MAX_PIECES]
                total = sum(map(len, part))
                written = self._write_part(part, flags)
                if written < total:
                    rest = memoryview(b"".join(part))[written:]
                    while rest:
                        rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._fail(error)

    def _write_part(self, part: list[bytes], flags: int) -> int:
        if flags & self._uncached:
            try:
                return os.pwritev(self._fd, part, -1, flags)
            except OSError as error:
                if error.errno not in _NOT_SO:
                    raise
            except NotImplementedError:
                pass  # this Python's C library has no pwritev2(2)
            self._uncached = 0
        return os.writev(self._fd, part)

    def _fail(self, error: OSError) -> None:
        self.failure = f"{self.path}: the capture ends here: {error.strerror}"
        log.error("%s", self.failure)

    async def flush_when_waiting(self) -> None:
        """Write what waits FLUSH_INTERVAL seconds after it came, for ever."""
        while True:
            await self._waiting.wait()
            await trio.sleep(FLUSH_INTERVAL)
            self._waiting = trio.Event()
            if not self._behind.waiting:  # what is being written is more than a moment's
                self.flush()
            elif self._pieces:
                self._waiting.set()

    def close(self, last: bytes) -> None:
        """See Sink."""
        if not self.failure:
            self._append(last)
            self.flush()
        self._behind.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.failure = self.failure or f"{self.path}: closed"
