"""Many datagrams in one system call: recvmmsg(2) and sendmmsg(2), which Python's socket module does not have.

Measured with frames of 1,514 bytes on Linux 6.18, microseconds a frame, plain calls against these: 64 at a time sending
1.40 / 1.03 and receiving 1.37 / 0.97; 8 at a time 1.43 / 1.40 and 1.55 / 1.25; one at a time 1.7 / 3.8 and 3.0 / 3.5.
Frames of 64 KiB gain nothing, because what is received has to be copied out of the buffers. So the caller uses them for
large batches of small frames.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import sys
from array import array
from collections.abc import Sequence
from typing import Final

from guest_iface.link import BATCH, MAX_FRAME

MIN_BATCH: Final = 16
"""Frames from which on a batch call costs less than single ones. (Out of reach, it turns batch calls off.)"""
LARGE_FRAME: Final = 16_384
"""Average bytes of a frame from which on single calls cost less."""

_SLOT: Final = (MAX_FRAME + 1 + 7) // 8 * 8
"""Bytes of buffer for each received datagram, one more than allowed, so that one that was cut short shows."""


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr: a struct msghdr, and how many bytes it came to."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("_end", ctypes.c_size_t * 0),
        ("length", ctypes.c_uint32),
    )


def available() -> bool:
    """Whether this platform has the calls, in the layout that is used here."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_size_t) != 8 or ctypes.sizeof(_Message) != 64:
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, "recvmmsg") and hasattr(library, "sendmmsg")


class BatchCalls:
    """The calls for one socket, with the arrays they need. Never waits."""

    def __init__(self, descriptor: int) -> None:
        """`available()` must hold. Room for received frames is mapped here; what is never filled costs no memory."""
        self._descriptor = descriptor
        library = ctypes.CDLL(None, use_errno=True)
        self._recvmmsg = library.recvmmsg
        self._recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
        self._sendmmsg = library.sendmmsg
        self._sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
        self._send_flags = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # 0.5 us each time
        self._in_vectors, self._incoming = _messages()
        self._out_vectors, self._outgoing = _messages()
        self._buffer = mmap.mmap(-1, BATCH * _SLOT)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._slots = range(0, BATCH * _SLOT, _SLOT)
        for vector, offset in zip(self._in_vectors, self._slots, strict=True):
            vector.base, vector.length = start + offset, MAX_FRAME + 1
        self._in_address = ctypes.addressof(self._incoming)
        self._out_address = ctypes.addressof(self._outgoing)
        # The `length` of each message, and base and length of each vector in turn, as plain numbers.
        words = memoryview(self._incoming).cast("B").cast("I")
        self._lengths = words[_Message.length.offset // 4 :: ctypes.sizeof(_Message) // 4]
        self._pieces = memoryview(self._out_vectors).cast("B").cast("Q")

    def receive(self) -> list[bytes]:
        """All datagrams that are there, BATCH at most; none, when none are. Each cut to MAX_FRAME + 1 bytes.

        Raises OSError.
        """
        count = self._recvmmsg(self._descriptor, self._in_address, BATCH, socket.MSG_DONTWAIT, None)
        if count < 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EINTR):
                return []
            raise OSError(number, errno.errorcode.get(number, "recvmmsg"))
        buffer = self._buffer
        return [buffer[at : at + size] for at, size in zip(self._slots, self._lengths[:count].tolist(), strict=False)]

    def send(self, frames: Sequence[bytes]) -> int:
        """Send the first BATCH frames at most, in order; how many the socket took. What stopped it, the next call says:
        a single one, because this one keeps an error to itself once it has sent something.
        """
        frames = frames[:BATCH]
        count = len(frames)
        pointers = (ctypes.c_char_p * count)(*frames)
        self._pieces[: 2 * count : 2] = memoryview(pointers).cast("B").cast("Q")
        self._pieces[1 : 2 * count : 2] = memoryview(array("Q", map(len, frames)))
        sent: int = self._sendmmsg(self._descriptor, self._out_address, count, self._send_flags)
        return max(sent, 0)


def _messages() -> tuple[ctypes.Array[_IoVector], ctypes.Array[_Message]]:
    """One vector for each of BATCH messages."""
    vectors, messages = (_IoVector * BATCH)(), (_Message * BATCH)()
    start = ctypes.addressof(vectors)
    for index, message in enumerate(messages):
        message.vectors, message.vector_count = start + index * ctypes.sizeof(_IoVector), 1
    return vectors, messages
