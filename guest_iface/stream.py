"""A guest on a byte stream with a length before each frame: QEMU, libkrun, passt, stdio, gvproxy's /connect, vpnkit.

A stream makes the guest wait where a datagram socket would drop, and it says when the guest leaves.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Final, Self

from guest_iface.framing import BIG_ENDIAN_32, LITTLE_ENDIAN_16, FrameReader, Framing
from guest_iface.link import FRAME_PIECES, Frame, LinkCapabilities, LinkClosed, LinkError, frame_size, whole
from guest_iface.transmit import TOO_LONG, TOO_SHORT, QueuedLink

STREAM_QUEUE_FRAMES: Final = 65_536
"""What a stream link says of its queue: frames are not dropped on the way, the guest waits."""
UNIX_SEND_BUFFER: Final = 1 << 20
"""SO_SNDBUF asked for on unix sockets, bytes: enough that a batch is written in few calls, little enough to hold no
seconds.
"""
WRITE_FRAMES: Final = 1024 // (1 + FRAME_PIECES)
"""Frames in one write: IOV_MAX is 1024, and each has its prefix and its pieces."""


class StreamLink(QueuedLink):
    """Frames with a length prefix over a pair of non-blocking descriptors (the same one twice for a socket)."""

    def __init__(
        self,
        read_fd: int,
        write_fd: int,
        name: str,
        *,
        framing: Framing = BIG_ENDIAN_32,
        mtu: int = 1500,
        already_read: bytes = b"",
    ) -> None:
        """Owns the descriptors. `mtu` in bytes, 68..65535. `already_read`: the stream's first bytes, when something
        read them along with what came before (an HTTP request).
        """
        capabilities = LinkCapabilities(mtu=mtu, largest_frame=framing.longest, queue_frames=STREAM_QUEUE_FRAMES)
        super().__init__(name, capabilities, read_fd=read_fd, write_fd=write_fd)
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._framing = framing
        self._reader = FrameReader(framing, name)
        self._remainder = memoryview(b"")
        self.counters.guests = 1
        if already_read:
            self._reader.room()[: len(already_read)] = already_read
            self._reader.filled(len(already_read))

    @classmethod
    def from_socket(
        cls,
        sock: socket.socket,
        name: str,
        *,
        framing: Framing = BIG_ENDIAN_32,
        mtu: int = 1500,
        already_read: bytes = b"",
    ) -> Self:
        """Take over a connected stream socket."""
        prepare_stream_socket(sock)
        fd = sock.detach()
        return cls(fd, fd, name, framing=framing, mtu=mtu, already_read=already_read)

    @classmethod
    def from_fd(cls, fd: int, *, framing: Framing = BIG_ENDIAN_32, mtu: int = 1500) -> Self:
        """Take over an inherited connected stream socket. Raises LinkError if it is no such thing."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise LinkError(f"fd {fd}: not a socket: {error.strerror}") from error
        if sock.type != socket.SOCK_STREAM:
            kind = sock.type
            sock.detach()
            raise LinkError(f"fd {fd}: not a stream socket (type {kind!r})")
        return cls.from_socket(sock, f"fd {fd}", framing=framing, mtu=mtu)

    @property
    def holds_frames(self) -> bool:
        """See Link."""
        return self._reader.holds_frame

    def _receive(self, limit: int) -> list[bytes]:
        reader = self._reader
        frames = reader.take(limit)
        while not frames:
            try:
                count = os.readv(self._read_fd, [reader.room()])
            except BlockingIOError:
                return frames
            except OSError as error:
                raise LinkClosed(f"{self.name}: {error.strerror}") from error
            if count == 0:
                reader.check_end()
                raise LinkClosed(f"{self.name}: the guest has closed the connection")
            reader.filled(count)
            frames = reader.take(limit)
        self.counters.rx_frames += len(frames)
        self.counters.rx_bytes += sum(map(len, frames))
        return frames

    def send_batch(self, frames: Sequence[Frame]) -> None:
        """See Link. A frame whose length the prefix may not say is dropped and counted."""
        if not frames:
            return
        sizes = list(map(len, frames))  # of one in pieces, the number of those: too short for a frame
        if max(sizes) > self._framing.longest or min(sizes) < self._framing.shortest:
            frames = [frame for frame in frames if self._fits(frame)]
        super().send_batch(frames)

    def _fits(self, frame: Frame) -> bool:
        size = frame_size(frame)
        if size > self._framing.longest:
            self.counters.drop_sent(TOO_LONG)
            return False
        if size < self._framing.shortest:
            self.counters.drop_sent(TOO_SHORT)
            return False
        return True

    @property
    def _unfinished(self) -> bool:
        return len(self._remainder) > 0

    def _transmit(self, frames: Sequence[Frame]) -> int:
        if self._remainder:
            self._remainder = self._remainder[self._write([self._remainder]) :]
            if self._remainder:
                return 0
        taken = 0
        while taken < len(frames) and self._attached:
            part = frames[taken : taken + WRITE_FRAMES]
            pieces: list[bytes | memoryview] = []
            pack = self._framing.prefix.pack
            for frame in part:
                if isinstance(frame, bytes):
                    pieces += (pack(len(frame)), frame)
                else:
                    pieces += (pack(frame_size(frame)), *frame)
            written = self._write(pieces)
            wanted = sum(map(len, pieces))
            if written < wanted:
                return taken + self._split(part, written)
            self.counters.tx_frames += len(part)
            self.counters.tx_bytes += wanted - len(part) * self._framing.prefix.size
            taken += len(part)
        return taken

    def _write(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Bytes that the kernel took; none when it took none."""
        try:
            return os.writev(self._write_fd, pieces)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._remainder = memoryview(b"")
            self._fail(f"cannot send: {error.strerror}")
            return 0

    def _split(self, frames: Sequence[Frame], written: int) -> int:
        """The kernel took `written` bytes of these frames: how many frames that began; the rest of the last one is
        kept.
        """
        width = self._framing.prefix.size
        for position, frame in enumerate(frames):
            size = width + frame_size(frame)
            if written < size:
                if written == 0:
                    self._count(frames[:position])
                    return position
                self._remainder = memoryview(self._framing.prefix.pack(size - width) + whole(frame))[written:]
                self._count(frames[: position + 1])
                return position + 1
            written -= size
        return len(frames)

    def _count(self, frames: Sequence[Frame]) -> None:
        self.counters.tx_frames += len(frames)
        self.counters.tx_bytes += sum(map(frame_size, frames))

    def _release(self) -> None:
        os.close(self._read_fd)
        if self._write_fd != self._read_fd:
            os.close(self._write_fd)


class StdioLink(StreamLink):
    """Frames on standard input and output (2-byte little-endian lengths), for a parent process that speaks over pipes.

    From here on only frames may go to descriptor 1: it is moved away, and what anything else prints goes to
    descriptor 2. Both are put back when the link is closed.
    """

    def __init__(self, *, stdin: int = 0, stdout: int = 1, stderr: int = 2, mtu: int = 1500) -> None:
        """Take the descriptors over. `mtu` in bytes, 68..65521 (with its Ethernet header a packet has to fit 16 bits).

        Raises LinkError on a terminal, where frames would be nothing but noise.
        """
        if os.isatty(stdin) or os.isatty(stdout):
            raise LinkError(
                "stdio: standard input and output carry frames; they have to be pipes or sockets, not a terminal"
            )
        self._places = (stdin, stdout)
        # O_NONBLOCK belongs to the open file, which the parent (a shell's terminal) may share.
        self._were_blocking = (os.get_blocking(stdin), os.get_blocking(stdout))
        read_fd, write_fd = os.dup(stdin), os.dup(stdout)
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor is wanted, there is no path to speak of
            os.dup2(nothing.fileno(), stdin)
        os.dup2(stderr, stdout)
        super().__init__(read_fd, write_fd, "stdio", framing=LITTLE_ENDIAN_16, mtu=mtu)

    def _release(self) -> None:
        for descriptor, place, was_blocking in zip(
            (self._read_fd, self._write_fd), self._places, self._were_blocking, strict=True
        ):
            os.set_blocking(descriptor, was_blocking)
            os.dup2(descriptor, place)
        super()._release()


def prepare_stream_socket(sock: socket.socket) -> None:
    """A unix socket gets room for a batch of large frames; on TCP a frame goes out at once, and a host that vanished is
    noticed within two minutes.
    """
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BUFFER)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)
