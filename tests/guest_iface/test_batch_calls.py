"""Many datagrams with one system call against real sockets: order, bounds, and what stops a call half-way."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from guest_iface import transmit
from guest_iface.batch_calls import LARGE_FRAME, MIN_BATCH, BatchCalls, available
from guest_iface.link import BATCH, MAX_FRAME
from guest_iface.transmit import LARGE_BATCH
from guest_iface.unixgram import UnixgramLink
from tests.guest_iface.conftest import frame_of, receive_frames, running, until

pytestmark = pytest.mark.skipif(not available(), reason="recvmmsg(2) and sendmmsg(2) of 64-bit Linux")

GuestSocket = Callable[..., socket.socket]
FRAMES = [frame_of(60 + number, number) for number in range(BATCH + 6)]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for sock in (ours, guest):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with ours, guest:
        yield ours, guest


def everything(sock: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(sock.recv(1 << 17))
    except BlockingIOError:
        return found


def test_a_call_gives_what_is_there_in_order_and_never_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, guest = pair
    calls = BatchCalls(ours.fileno())
    assert calls.receive() == []
    for frame in FRAMES:
        guest.send(frame)
    assert calls.receive() == FRAMES[:BATCH]
    assert calls.receive() == FRAMES[BATCH:]
    assert calls.receive() == []


def test_a_datagram_that_was_cut_short_shows(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, guest = pair
    for size in (0, MAX_FRAME, MAX_FRAME + 1, 100_000, 60):
        guest.send(frame_of(size))
    received = BatchCalls(ours.fileno()).receive()
    assert [len(datagram) for datagram in received] == [0, MAX_FRAME, MAX_FRAME + 1, MAX_FRAME + 1, 60]


def test_what_was_received_stays_as_it_is(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, guest = pair
    calls = BatchCalls(ours.fileno())
    guest.send(frame_of(60, 1))
    first = calls.receive()
    guest.send(frame_of(60, 2))
    assert calls.receive() == [frame_of(60, 2)]
    assert first == [frame_of(60, 1)]


def test_errors_of_a_receiving_call_are_raised() -> None:
    with pytest.raises(OSError, match="EBADF") as raised:
        BatchCalls(-1).receive()
    assert raised.value.errno == errno.EBADF


def test_at_most_a_batch_is_sent_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, guest = pair
    calls = BatchCalls(ours.fileno())
    assert calls.send(FRAMES) == BATCH
    assert calls.send(FRAMES[BATCH:]) == len(FRAMES) - BATCH
    assert everything(guest) == FRAMES


def test_zeros_in_a_frame_do_not_end_it(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, guest = pair
    frames = [bytes(60), b"\0" * 59 + b"x"]
    assert BatchCalls(ours.fileno()).send(frames) == 2
    assert everything(guest) == frames


def test_a_full_socket_takes_part_of_a_batch(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, guest = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
    calls = BatchCalls(ours.fileno())
    frames = [frame_of(4000, number) for number in range(BATCH)]
    sent = calls.send(frames)
    assert 0 < sent < BATCH
    assert calls.send(frames[sent:]) == 0
    assert everything(guest) == frames[:sent]


def test_a_peer_that_has_gone_takes_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, guest = pair
    guest.close()
    assert BatchCalls(ours.fileno()).send(FRAMES) == 0


@pytest.mark.parametrize("from_frames", [MIN_BATCH, 10_000], ids=["batch-calls", "single-calls"])
async def test_a_busy_link_carries_every_frame_in_order(
    directory: Path, guest_socket: GuestSocket, monkeypatch: pytest.MonkeyPatch, from_frames: int
) -> None:
    monkeypatch.setattr(transmit, "MIN_BATCH", from_frames)
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(14))
        await receive_frames(link, 1)
        for start in range(0, 600, 50):
            frames = [frame_of(14 + number, number) for number in range(start, start + 50)]
            for frame in frames:
                guest.send(frame)
            assert await receive_frames(link, len(frames)) == frames
            link.send_batch(frames)
            assert [guest.recv(2000) for _ in frames] == frames
        assert link.counters.tx_bytes == link.counters.rx_bytes - 14 == sum(14 + number for number in range(600))
        assert link.counters.tx_frames == link.counters.rx_frames - 1 == 600
        assert not link.counters.drops


async def test_no_frames_in_a_busy_batch_are_counted(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        for frame in FRAMES[:MIN_BATCH]:
            guest.send(frame)
        assert await receive_frames(link, MIN_BATCH) == FRAMES[:MIN_BATCH]
        for datagram in (frame_of(60), frame_of(13), frame_of(MAX_FRAME + 1), frame_of(100_000), frame_of(61)):
            guest.send(datagram)
        assert await receive_frames(link, 2) == [frame_of(60), frame_of(61)]
        assert link.counters.drops == {"frame too short": 1, "frame too long": 2}


async def test_after_large_frames_a_batch_is_small(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(LARGE_FRAME))
        await receive_frames(link, 1)
        for frame in FRAMES[: LARGE_BATCH + 2]:
            guest.send(frame)
        assert await link.receive_batch() == FRAMES[:LARGE_BATCH]
        assert await link.receive_batch() == FRAMES[LARGE_BATCH : LARGE_BATCH + 2]


async def test_what_a_batch_could_not_send_follows_in_order(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        assert isinstance(link, UnixgramLink)
        link._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        frames = [frame_of(4000, number) for number in range(3 * BATCH)]
        link.send_batch(frames)
        assert 0 < link.backlog < len(frames)
        arrived: list[bytes] = []

        def read_all() -> bool:
            arrived.extend(everything(guest))
            return len(arrived) >= len(frames)

        guest.setblocking(False)
        await until(read_all)
        assert arrived == frames
        assert not link.counters.tx_dropped


class DyingPeer(BatchCalls):
    """A guest that dies in the middle of a batch: the kernel says so to nobody, and has disconnected us."""

    def __init__(self, sock: socket.socket, guest: socket.socket, after: int) -> None:
        super().__init__(sock.fileno())
        self._guest, self._after = guest, after

    def send(self, frames: Sequence[bytes]) -> int:
        sent = super().send(frames[: self._after])
        self._guest.close()
        assert super().send(frames[sent:]) == 0
        return sent


async def test_a_guest_that_dies_in_the_middle_of_a_batch_is_noticed(
    directory: Path, guest_socket: GuestSocket
) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        assert isinstance(link, UnixgramLink)
        link._batch_calls = DyingPeer(link._sock, guest, after=20)
        link.send_batch(FRAMES[:50])
        assert link.peer is None
        assert (link.counters.tx_frames, link.counters.tx_dropped) == (20, 30)
        assert link.counters.drops == {"no guest attached": 30}
        link._batch_calls = None
        following = guest_socket(connect="net", name="next")
        following.send(frame_of(70))
        assert await receive_frames(link, 1) == [frame_of(70)]
        assert link.counters.guests == 2


async def test_a_frame_the_socket_refuses_costs_that_frame_only(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        assert isinstance(link, UnixgramLink)
        link._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        too_much = frame_of(8 << 20)  # EMSGSIZE: more than the send buffer will ever hold
        link.send_batch([*FRAMES[:20], too_much, *FRAMES[20:40]])
        assert [guest.recv(2000) for _ in range(40)] == FRAMES[:40]
        assert link.counters.drops == {"not accepted by the guest's socket": 1}


async def test_a_quiet_link_waits_without_a_read_in_vain(
    directory: Path, guest_socket: GuestSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a single frame there is nothing more: the descriptor is waited for at once."""
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        guest.send(frame_of(61))
        await receive_frames(link, 1)
        assert isinstance(link, UnixgramLink)
        reads = 0
        read = link._read

        def counted(size: int) -> bytes:
            nonlocal reads
            reads += 1
            return read(size)

        monkeypatch.setattr(link, "_read", counted)
        received: list[bytes] = []

        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                received.extend(await link.receive_batch())

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            assert reads == 0
            guest.send(frame_of(62))
        assert received == [frame_of(62)]
        assert reads == 2


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_link_can_do_without(pair: tuple[socket.socket, socket.socket], *, wanted: bool) -> None:
    ours, guest = pair
    async with running(UnixgramLink.from_fd(os.dup(ours.fileno()), batch_calls=wanted)) as link:
        assert link.capabilities.batch_calls is wanted
        assert (link._batch_calls is not None) is wanted
        for frames in (FRAMES[:MIN_BATCH], FRAMES[:BATCH]):
            for frame in frames:
                guest.send(frame)
            assert await receive_frames(link, len(frames)) == frames
            link.send_batch(frames)
            assert everything(guest) == frames
