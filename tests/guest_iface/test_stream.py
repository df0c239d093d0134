"""Stream links against real sockets and pipes: QEMU's framing, stdio, listeners, and VMs that come back."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from guest_iface import listener as listener_module
from guest_iface.framing import LITTLE_ENDIAN_16
from guest_iface.link import BATCH, LinkClosed, LinkError
from guest_iface.listener import SocketListener
from guest_iface.stream import StdioLink, StreamLink
from tests.guest_iface.conftest import frame_of, qemu, read_exactly, receive_frames, running, vpn


@contextlib.asynccontextmanager
async def stream_pair() -> AsyncIterator[tuple[StreamLink, trio.SocketStream]]:
    """A link on one end of a stream socket pair, and the guest's end."""
    ours, theirs = socket.socketpair()
    link = StreamLink.from_socket(ours, "test")
    async with running(link), trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as guest:
        yield link, guest


async def test_frames_both_ways() -> None:
    async with stream_pair() as (link, guest):
        frames = [frame_of(14, 1), frame_of(1514, 2), frame_of(65_550, 3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.send_all, qemu(*frames))
            assert await receive_frames(link, 3) == frames
        link.send_batch(frames)
        assert await read_exactly(guest, len(qemu(*frames))) == qemu(*frames)
        counters = link.counters
        assert (counters.rx_frames, counters.rx_bytes) == (3, 14 + 1514 + 65_550)
        assert (counters.tx_frames, counters.tx_bytes) == (3, 14 + 1514 + 65_550)


async def test_frames_one_byte_at_a_time() -> None:
    async with stream_pair() as (link, guest), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def drip() -> None:
            for byte in qemu(frame_of(14, 1), frame_of(300, 2)):
                await guest.send_all(bytes([byte]))

        assert await receive_frames(link, 2) == [frame_of(14, 1), frame_of(300, 2)]


async def test_a_batch_has_at_most_64_frames() -> None:
    async with stream_pair() as (link, guest):
        await guest.send_all(qemu(*[frame_of(20, number) for number in range(150)]))
        batches = [await link.receive_batch() for _ in range(3)]
        assert [len(batch) for batch in batches] == [BATCH, BATCH, 22]


@pytest.mark.parametrize("length", [0, 13, 65_551, 2**32 - 1])
async def test_a_length_out_of_bounds_ends_the_link(length: int) -> None:
    async with stream_pair() as (link, guest):
        await guest.send_all(qemu(frame_of(60)) + struct.pack(">I", length))
        assert await link.receive_batch() == [frame_of(60)]
        with pytest.raises(LinkError, match=f"{length} bytes is announced, 14 to 65550") as caught:
            await link.receive_batch()
        assert not isinstance(caught.value, LinkClosed)


async def test_an_end_between_frames_is_a_close() -> None:
    async with stream_pair() as (link, guest):
        await guest.send_all(qemu(frame_of(60)))
        await guest.aclose()
        assert await link.receive_batch() == [frame_of(60)]
        with pytest.raises(LinkClosed, match="closed the connection"):
            await link.receive_batch()


@pytest.mark.parametrize("cut", [1, 3, 4, 40])
async def test_an_end_inside_a_frame_is_an_error(cut: int) -> None:
    async with stream_pair() as (link, guest):
        await guest.send_all(qemu(frame_of(60)) + qemu(frame_of(60))[:cut])
        await guest.aclose()
        assert await link.receive_batch() == [frame_of(60)]
        with pytest.raises(LinkError, match="ended inside a frame") as caught:
            await link.receive_batch()
        assert not isinstance(caught.value, LinkClosed)


async def test_a_reset_is_a_close() -> None:
    listener = SocketListener.bind_tcp("127.0.0.1", 0, StreamLink.from_socket)
    guest = socket.create_connection(("127.0.0.1", listener.port))
    async with running(await listener.accept()) as link:
        guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        guest.close()
        with pytest.raises(LinkClosed, match="reset"):
            await link.receive_batch()
    listener.close()


async def test_partial_writes_never_interleave_frames() -> None:
    """A guest that reads little by little: the kernel cuts frames anywhere, and the rest of a frame goes first."""
    async with stream_pair() as (link, guest):
        sent: list[bytes] = []
        number = 0
        while link.backlog < 200:
            batch = [number.to_bytes(4, "big") * (4 + number % 3000) for number in range(number, number + 10)]
            number += 10
            link.send_batch(batch)
            sent += batch
        expected = qemu(*sent)
        received = bytearray()
        while len(received) < len(expected):
            received += await guest.receive_some(70_001)
            if len(received) % 3 == 0 and number < 4000:
                late = frame_of(1000 + number % 500, number)
                number += 1
                link.send_batch([late])
                expected += qemu(late)
        assert bytes(received) == expected
        await link.wait_backlog_drained()
        assert link.backlog == 0
        assert link.counters.tx_dropped == 0


async def test_a_flood_drops_whole_frames_only() -> None:
    async with stream_pair() as (link, guest):
        total = 20_000
        for start in range(0, total, BATCH):
            link.send_batch([number.to_bytes(4, "big") + bytes(1510) for number in range(start, start + BATCH)])
        assert link.counters.tx_dropped > 0
        assert link.counters.drops == {"transmit queue full": link.counters.tx_dropped}
        assert link.backlog in (4096, 4097)  # 4096 queued, perhaps with the rest of one that was begun
        received = bytearray()
        while link.backlog:
            received += await guest.receive_some(1 << 20)
        with trio.move_on_after(0.05):
            while True:
                received += await guest.receive_some(1 << 20)
        step = 4 + 1514
        assert len(received) % step == 0
        numbers = [int.from_bytes(received[at + 4 : at + 8], "big") for at in range(0, len(received), step)]
        assert numbers == sorted(numbers)
        assert len(numbers) == link.counters.tx_frames


async def test_frames_the_prefix_cannot_say_are_dropped() -> None:
    async with stream_pair() as (link, guest):
        link.send_batch([frame_of(60, 1), frame_of(65_551), frame_of(13), frame_of(60, 2)])
        link.send_batch([frame_of(65_551)])
        link.send_batch([])
        assert await read_exactly(guest, 128) == qemu(frame_of(60, 1), frame_of(60, 2))
        assert link.counters.drops == {"frame too long": 2, "frame too short": 1}


async def test_a_guest_that_left_costs_the_sender_nothing() -> None:
    async with stream_pair() as (link, guest):
        await guest.send_all(qemu(frame_of(60)))
        await guest.aclose()
        link.send_batch([frame_of(60)] * 3)
        link.send_batch([frame_of(60)] * 3)
        assert link.counters.drops == {"no guest attached": 6}
        assert await link.receive_batch() == [frame_of(60)]
        with pytest.raises(LinkClosed):
            await link.receive_batch()


async def test_a_listener_takes_the_restarted_guest(directory: Path) -> None:
    listener = SocketListener.bind_unix(directory / "net", StreamLink.from_socket)
    assert stat.S_IMODE((directory / "net").stat().st_mode) == 0o600
    for turn in range(3):
        guest = await trio.open_unix_socket(directory / "net")
        async with running(await listener.accept()) as link:
            await guest.send_all(qemu(frame_of(60, turn)))
            assert await link.receive_batch() == [frame_of(60, turn)]
            await guest.aclose()
            with pytest.raises(LinkClosed):
                await link.receive_batch()
    listener.close()
    listener.close()
    assert not (directory / "net").exists()
    with pytest.raises(LinkClosed):
        await listener.accept()


async def test_a_second_guest_has_a_link_of_its_own(directory: Path) -> None:
    listener = SocketListener.bind_unix(directory / "net", StreamLink.from_socket)
    guests = [await trio.open_unix_socket(directory / "net") for _ in range(2)]
    async with running(await listener.accept()) as first, running(await listener.accept()) as second:
        assert first.name != second.name
        for number, (guest, link) in enumerate(zip(guests, (first, second), strict=True)):
            await guest.send_all(qemu(frame_of(60, number)))
            assert await link.receive_batch() == [frame_of(60, number)]
            link.send_batch([frame_of(61, number)])
            assert await read_exactly(guest, 65) == qemu(frame_of(61, number))
    listener.close()
    for guest in guests:
        await guest.aclose()


async def test_a_listener_has_room_for_so_many_guests(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "MAX_GUESTS", 2)
    listener = SocketListener.bind_unix(directory / "net", StreamLink.from_socket)
    guests = [await trio.open_unix_socket(directory / "net") for _ in range(3)]
    links = [await listener.accept() for _ in range(2)]
    with trio.move_on_after(0.01):
        await listener.accept()
    assert listener.refused == 1
    assert await guests[2].receive_some() == b""
    links[0].close()
    guests.append(await trio.open_unix_socket(directory / "net"))
    links.append(await listener.accept())
    for link in links:
        link.close()
    for guest in guests:
        await guest.aclose()
    listener.close()


async def test_close_wakes_accept(directory: Path) -> None:
    listener = SocketListener.bind_unix(directory / "net", StreamLink.from_socket)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def accept() -> None:
            with pytest.raises(LinkClosed, match="no longer listening"):
                await listener.accept()

        await trio.testing.wait_all_tasks_blocked()
        listener.close()


async def test_a_port_or_path_that_is_taken_is_explained(directory: Path) -> None:
    tcp = SocketListener.bind_tcp("127.0.0.1", 0, StreamLink.from_socket)
    with pytest.raises(LinkError, match="cannot listen there"):
        SocketListener.bind_tcp("127.0.0.1", tcp.port, StreamLink.from_socket)
    unix = SocketListener.bind_unix(directory / "net", StreamLink.from_socket)
    with pytest.raises(LinkError, match="already in use"):
        SocketListener.bind_unix(directory / "net", StreamLink.from_socket)
    with trio.move_on_after(0.01) as probed:
        await unix.accept()
    assert probed.cancelled_caught  # finding out did not connect to it
    tcp.close()
    unix.close()


async def test_an_inherited_stream_socket() -> None:
    ours, guest = socket.socketpair()
    async with running(StreamLink.from_fd(ours.detach())) as link:
        guest.sendall(qemu(frame_of(60)))
        assert await link.receive_batch() == [frame_of(60)]
    guest.close()
    datagram, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with datagram, other, pytest.raises(LinkError, match="not a stream socket"):
        StreamLink.from_fd(datagram.fileno())
    read_fd, write_fd = os.pipe()
    with pytest.raises(LinkError, match="not a socket"):
        StreamLink.from_fd(read_fd)
    os.close(read_fd)
    os.close(write_fd)


async def test_bytes_that_came_behind_a_request_are_not_lost() -> None:
    ours, theirs = socket.socketpair()
    stream = vpn(frame_of(60, 1), frame_of(60, 2))
    async with running(
        StreamLink.from_socket(ours, "/connect", framing=LITTLE_ENDIAN_16, already_read=stream[:70])
    ) as link:
        theirs.sendall(stream[70:])
        assert await receive_frames(link, 2) == [frame_of(60, 1), frame_of(60, 2)]
    theirs.close()


async def test_stdio_carries_frames_only() -> None:
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    stderr_read, stderr_write = os.pipe()
    link = StdioLink(stdin=stdin_read, stdout=stdout_write, stderr=stderr_write)
    async with running(link):
        os.write(stdin_write, vpn(frame_of(60, 1), frame_of(1514, 2)))
        assert await receive_frames(link, 2) == [frame_of(60, 1), frame_of(1514, 2)]
        os.write(stdout_write, b"a stray print")
        link.send_batch([frame_of(60, 3)])
        assert os.read(stdout_read, 1000) == vpn(frame_of(60, 3))
        assert os.read(stderr_read, 1000) == b"a stray print"
        os.close(stdin_write)
        with pytest.raises(LinkClosed):
            await link.receive_batch()
    assert os.get_blocking(stdin_read)
    os.write(stdout_write, b"back again")
    assert os.read(stdout_read, 1000) == b"back again"
    for descriptor in (stdin_read, stdout_read, stdout_write, stderr_read, stderr_write):
        os.close(descriptor)


async def test_stdio_whose_reader_left_ends_the_link() -> None:
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    link = StdioLink(stdin=stdin_read, stdout=stdout_write)
    async with running(link), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receiver() -> None:
            with pytest.raises(LinkClosed, match="Broken pipe"):
                await link.receive_batch()

        await trio.testing.wait_all_tasks_blocked()
        os.close(stdout_read)
        link.send_batch([frame_of(60)])
    for descriptor in (stdin_read, stdin_write, stdout_write):
        os.close(descriptor)


async def test_stdio_from_files(tmp_path: Path) -> None:
    """A recorded stream on standard input and a file for the answers: files cannot be waited for, and need not be."""
    (tmp_path / "in").write_bytes(vpn(frame_of(60, 1)))
    stdin = os.open(tmp_path / "in", os.O_RDONLY)
    stdout = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    async with running(StdioLink(stdin=stdin, stdout=stdout)) as link:
        assert await link.receive_batch() == [frame_of(60, 1)]
        link.send_batch([frame_of(60, 2)])
        with pytest.raises(LinkClosed):
            await link.receive_batch()
    assert (tmp_path / "out").read_bytes() == vpn(frame_of(60, 2))
    os.close(stdin)
    os.close(stdout)


async def test_stdio_on_a_terminal_is_refused() -> None:
    ours, theirs = os.openpty()
    with pytest.raises(LinkError, match="not a terminal"):
        StdioLink(stdin=theirs, stdout=theirs)
    os.close(ours)
    os.close(theirs)


async def test_what_is_there_is_taken_without_waiting() -> None:
    async with stream_pair() as (link, guest):
        assert link.receive_now() == []
        frames = [frame_of(20, number) for number in range(70)]
        await guest.send_all(qemu(*frames)[:-1])
        # One read brings them all, and the descriptor tells of none of those that are held.
        assert link.receive_now(1) == frames[:1]
        assert link.holds_frames
        assert link.receive_now(BATCH) == frames[1 : 1 + BATCH]
        assert link.holds_frames
        assert link.receive_now(BATCH) == frames[1 + BATCH : -1]
        assert not link.holds_frames
        assert link.receive_now() == []
        await guest.send_all(qemu(*frames)[-1:])
        assert await link.receive_batch() == frames[-1:]


async def test_an_end_found_without_waiting_is_told_to_the_reader() -> None:
    async with stream_pair() as (link, guest):
        outcome: list[LinkError] = []

        async def read() -> None:
            try:
                await link.receive_batch()
            except LinkError as error:
                outcome.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await guest.send_all(struct.pack(">I", 13) + bytes(13))
            assert link.receive_now() == []
        assert "a frame of 13 bytes is announced" in str(outcome[0])
        assert link.receive_now() == []
        with pytest.raises(LinkError, match="a frame of 13 bytes is announced"):
            await link.receive_batch()
