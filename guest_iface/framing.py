"""How frames are kept apart on a byte stream: a length in front of each. Bytes in, frames out; no I/O.

The reader owns one buffer that is read into and never grows; a frame is copied once, out of it. The buffer is a
mapping of its own: what no burst has touched yet costs no memory.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from struct import Struct
from typing import Final

from guest_iface.link import MIN_FRAME, LinkError

READ_BYTES: Final = 1 << 20
"""What one read may bring at most, bytes."""


@dataclass(frozen=True, slots=True)
class Framing:
    """A length prefix and the lengths it may announce. `shortest` and `longest` in bytes, both included."""

    prefix: Struct
    shortest: int
    longest: int


BIG_ENDIAN_32: Final = Framing(Struct(">I"), MIN_FRAME, 65_550)
"""QEMU, libkrun, passt. libkrun's receive buffer holds 65,550 bytes, and it dies on more."""
LITTLE_ENDIAN_16: Final = Framing(Struct("<H"), MIN_FRAME, 65_535)
"""vpnkit and hyperkit, gvproxy's stdio and /connect."""


class FrameReader:
    """Splits a byte stream into frames. Read into `room()`, say how much came with `filled()`, then `take()`."""

    def __init__(self, framing: Framing, name: str, *, size: int = READ_BYTES) -> None:
        """`name` is used in errors. `size`: bytes one read may bring."""
        self._framing = framing
        self._name = name
        # Room for one read behind the longest possible piece of a frame.
        self._view = memoryview(mmap.mmap(-1, size + framing.longest + framing.prefix.size))
        self._size = size
        self._start = 0
        self._end = 0

    def room(self) -> memoryview:
        """Where the next bytes are to be read to; call it once `take` had nothing more to give."""
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._view) - self._end < self._size // 2:
            # What is left is a piece of one frame. It moves once in half a buffer of bytes: linear, however small the
            # reads.
            piece = bytes(self._view[self._start : self._end])
            self._view[: len(piece)] = piece
            self._start, self._end = 0, len(piece)
        return self._view[self._end : self._end + self._size]

    def filled(self, count: int) -> None:
        """`count` bytes were read into `room()`."""
        self._end += count

    def take(self, limit: int) -> list[bytes]:
        """At most `limit` whole frames. Raises LinkError, after all frames before it were taken, on a length out of
        bounds.
        """
        frames: list[bytes] = []
        framing, view, position, end = self._framing, self._view, self._start, self._end
        unpack_from, width = framing.prefix.unpack_from, framing.prefix.size
        shortest, longest = framing.shortest, framing.longest
        while end - position >= width and len(frames) < limit:
            (length,) = unpack_from(view, position)
            if not shortest <= length <= longest:
                if frames:
                    break
                raise LinkError(
                    f"{self._name}: a frame of {length} bytes is announced, {shortest} to {longest} are possible"
                )
            following = position + width + length
            if following > end:
                break
            frames.append(bytes(view[position + width : following]))
            position = following
        self._start = position
        return frames

    @property
    def holds_frame(self) -> bool:
        """Whether `take` has more to give, or an error to raise."""
        width = self._framing.prefix.size
        here = self._end - self._start - width
        if here < 0:
            return False
        (length,) = self._framing.prefix.unpack_from(self._view, self._start)
        return bool(length <= here or length > self._framing.longest)

    def check_end(self) -> None:
        """The stream has ended: raises LinkError unless it ended between two frames."""
        width = self._framing.prefix.size
        here = self._end - self._start
        if here == 0:
            return
        if here < width:
            raise LinkError(f"{self._name}: the stream ended inside a frame's length, after {here} of {width} bytes")
        (length,) = self._framing.prefix.unpack_from(self._view, self._start)
        raise LinkError(f"{self._name}: the stream ended inside a frame, after {here - width} of {length} bytes")
