"""What the link tests share: sockets on the guest's side, and a link that is run and closed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from guest_iface.link import Link

DEADLINE = 10.0
"""Seconds a test may wait for the kernel before it fails; nothing here is expected to take a tenth of it."""


def frame_of(size: int, fill: int = 0x2A) -> bytes:
    """A frame of that many bytes; what is in it means nothing to a link."""
    return bytes([fill & 0xFF]) * size


@contextlib.asynccontextmanager
async def running(link: Link) -> AsyncIterator[Link]:
    """Run a link's own task for the time of the block, then close it."""
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            try:
                yield link
            finally:
                link.close()
                nursery.cancel_scope.cancel()


async def receive_frames(link: Link, count: int) -> list[bytes]:
    """Frames until there are `count` of them."""
    frames: list[bytes] = []
    with trio.fail_after(DEADLINE):
        while len(frames) < count:
            frames += await link.receive_batch()
    return frames


async def until(condition: Callable[[], bool]) -> None:
    """Give other tasks and the kernel room until something has become true."""
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


def qemu(*frames: bytes) -> bytes:
    """Frames as QEMU puts them on a stream."""
    return b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)


def vpn(*frames: bytes) -> bytes:
    """Frames as vpnkit puts them on a stream."""
    return b"".join(struct.pack("<H", len(frame)) + frame for frame in frames)


async def read_exactly(guest: trio.SocketStream, count: int) -> bytes:
    """That many bytes of what we sent the guest."""
    data = b""
    while len(data) < count:
        piece = await guest.receive_some(count - len(data))
        assert piece
        data += piece
    return data


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short-named directory: a unix socket's path has 107 bytes at most, and pytest's own tmp_path can be longer."""
    path = Path(tempfile.mkdtemp(prefix="ns-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def guest_socket(directory: Path) -> Iterator[Callable[..., socket.socket]]:
    """Makes the unix datagram sockets of guests, bound in the directory."""
    made: list[socket.socket] = []

    def make(name: str | None = "guest", connect: str | None = None) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.append(sock)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 7 << 20)
        if name is not None:
            with contextlib.suppress(FileNotFoundError):
                (directory / name).unlink()
            sock.bind(os.fspath(directory / name))
        if connect is not None:
            sock.connect(os.fspath(directory / connect))
        return sock

    yield make
    for sock in made:
        sock.close()
