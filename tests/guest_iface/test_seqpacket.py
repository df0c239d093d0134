"""bess: frames as records of a sequenced-packet socket."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from guest_iface import transmit
from guest_iface.link import BATCH, Link, LinkClosed
from guest_iface.listener import SocketListener
from guest_iface.seqpacket import SeqpacketLink
from tests.guest_iface.conftest import DEADLINE, frame_of, receive_frames, running


@contextlib.asynccontextmanager
async def seqpacket_guest(directory: Path) -> AsyncIterator[tuple[Link, socket.socket]]:
    listener = SocketListener.bind_unix(directory / "net", SeqpacketLink, kind=socket.SOCK_SEQPACKET)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as guest:
        guest.connect(os.fspath(directory / "net"))
        async with running(await listener.accept()) as link:
            guest.setblocking(False)
            yield link, guest
    listener.close()


async def test_bess_records_are_frames(directory: Path) -> None:
    async with seqpacket_guest(directory) as (link, guest):
        for size in (0, 1, 5, 13, 14, 0, 65_562):
            guest.send(frame_of(size))
        assert [len(frame) for frame in await receive_frames(link, 2)] == [14, 65_562]
        assert link.counters.drops == {"frame too short": 5}
        link.send_batch([frame_of(60, 1), frame_of(61, 2)])
        assert [guest.recv(2000), guest.recv(2000)] == [frame_of(60, 1), frame_of(61, 2)]


async def test_a_bess_guest_that_leaves(directory: Path) -> None:
    async with seqpacket_guest(directory) as (link, guest):
        guest.send(frame_of(60))
        guest.close()
        assert await link.receive_batch() == [frame_of(60)]
        with pytest.raises(LinkClosed, match="closed the connection"):
            await link.receive_batch()
        link.send_batch([frame_of(60)] * 2)
        assert link.counters.drops == {"no guest attached": 2}


async def test_a_bess_guest_that_does_not_read(directory: Path) -> None:
    async with seqpacket_guest(directory) as (link, guest):
        sent = 0
        while link.backlog < 100:
            link.send_batch([frame_of(1514)] * BATCH)
            sent += BATCH
        for _ in range(sent):
            await trio.lowlevel.wait_readable(guest)
            guest.recv(2000)
        assert link.backlog == 0
        assert link.counters.tx_frames == sent


async def test_a_descriptor_that_is_writable_and_takes_nothing_is_not_spun_on(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """ENOBUFS: the queue waits a little between tries."""
    monkeypatch.setattr(transmit, "CONGESTION_PAUSE", 1.0)
    ours, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = SeqpacketLink(ours, "test")
    tries: list[float] = []
    write = link._write

    def refuse(frame: bytes) -> int:
        tries.append(trio.current_time())
        if len(tries) < 4:
            raise OSError(105, "No buffer space available")
        return write(frame)

    link._write = refuse
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            link.send_batch([frame_of(60)])
            await link.wait_backlog_drained()
            link.close()
    assert [later - earlier for earlier, later in itertools.pairwise(tries[1:])] == [1.0, 1.0]
    assert guest.recv(100) == frame_of(60)
    guest.close()
