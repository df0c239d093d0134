"""How many frames a unix datagram link says it can queue, against how many the kernel takes."""

from __future__ import annotations

import contextlib
import socket

import pytest

from guest_iface import unixgram
from guest_iface.unixgram import UnixgramLink


@pytest.mark.parametrize("mtu", [68, 1500, 9000, 65_520])
@pytest.mark.parametrize("buffer", [212_992, 1 << 20])
def test_the_queue_holds_the_frames_it_says(mtu: int, buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest with buffers like ours gets that many of its largest frames into the socket, and no more."""
    monkeypatch.setattr(unixgram, "BUFFER_BYTES", buffer // 2)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs:
        ours.setblocking(False)
        link = UnixgramLink(ours, "pair", mtu=mtu)
        theirs.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer // 2)
        fitted = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                theirs.send(bytes(mtu + 14))
                fitted += 1
        assert link.capabilities.queue_frames == fitted
        link.close()
