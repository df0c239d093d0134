"""The unix datagram link against real sockets: handshake, bad datagrams, several senders, a VM that dies and comes
back.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from guest_iface import unix_socket, unixgram
from guest_iface.link import BATCH, MAX_FRAME, LinkClosed, LinkError
from guest_iface.unixgram import HANDSHAKE, UnixgramLink
from tests.guest_iface.conftest import frame_of, receive_frames, running, until

GuestSocket = Callable[..., socket.socket]


async def test_the_first_datagram_without_handshake_is_a_frame(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60, 1))
        assert await link.receive_batch() == [frame_of(60, 1)]
        link.send_batch([frame_of(14, 2), frame_of(1514, 3)])
        assert [guest.recv(2000), guest.recv(2000)] == [frame_of(14, 2), frame_of(1514, 3)]
        assert link.counters.guests == 1
        assert (link.counters.rx_frames, link.counters.rx_bytes) == (1, 60)
        assert (link.counters.tx_frames, link.counters.tx_bytes) == (2, 1528)


async def test_the_exact_handshake_is_swallowed_at_any_time(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(HANDSHAKE)
        guest.send(frame_of(60))
        assert await receive_frames(link, 1) == [frame_of(60)]
        guest.send(HANDSHAKE)
        guest.send(frame_of(61))
        assert await receive_frames(link, 1) == [frame_of(61)]
        assert link.counters.rx_dropped == 0


async def test_a_frame_that_begins_like_the_handshake_is_a_frame(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        lookalike = HANDSHAKE + frame_of(56)
        guest.send(lookalike)
        assert await link.receive_batch() == [lookalike]


@pytest.mark.parametrize("almost", [b"vfkt", b"VFKU", b"VFKTx", b"VFK"])
async def test_an_inexact_handshake_is_a_short_frame(directory: Path, guest_socket: GuestSocket, almost: bytes) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(almost)
        guest.send(frame_of(14))
        assert await receive_frames(link, 1) == [frame_of(14)]
        assert link.counters.drops == {"frame too short": 1}


async def test_datagrams_that_are_no_frames_are_counted(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        for size in (0, 1, 5, 13, 14, MAX_FRAME, MAX_FRAME + 1, 100_000):
            guest.send(frame_of(size))
        frames = await receive_frames(link, 2)
        assert [len(frame) for frame in frames] == [14, MAX_FRAME]
        guest.send(frame_of(20))
        assert await receive_frames(link, 1) == [frame_of(20)]
        assert link.counters.drops == {"frame too short": 4, "frame too long": 2}


async def test_an_unnamed_sender_is_refused_and_harms_nobody(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest_socket(None, connect="net").send(frame_of(60, 1))
        guest_socket("guest", connect="net").send(frame_of(60, 2))
        assert await receive_frames(link, 1) == [frame_of(60, 2)]
        assert link.counters.drops == {"sender has no address": 1}


async def test_a_second_live_sender_gets_nothing_in(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        first = guest_socket("first", connect="net")
        second = guest_socket("second", connect="net")
        first.send(frame_of(60, 1))
        second.send(frame_of(60, 2))
        first.send(frame_of(60, 3))
        assert await receive_frames(link, 2) == [frame_of(60, 1), frame_of(60, 3)]
        assert link.counters.drops == {"second sender": 1}
        with trio.move_on_after(0.01):
            await link.receive_batch()
        with pytest.raises(PermissionError):
            second.send(frame_of(60, 4))
        with pytest.raises(PermissionError):
            guest_socket("third", connect="net")
        link.send_batch([frame_of(60, 5)])
        assert first.recv(2000) == frame_of(60, 5)
        with pytest.raises(BlockingIOError):
            second.recv(2000)


def open_descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


async def test_descriptors_sent_along_are_not_kept(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        before = open_descriptors()
        for number in range(4):
            socket.send_fds(guest, [frame_of(60, number)], [0, 1, 2])
        await receive_frames(link, 4)
        # One descriptor watches the guest's process.
        assert len(open_descriptors() - before) <= 1


async def test_nothing_is_sent_before_there_is_a_guest(directory: Path) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        link.send_batch([frame_of(60)] * 3)
        assert link.counters.drops == {"no guest attached": 3}
        assert link.backlog == 0
        await link.wait_backlog_drained()


async def test_a_batch_has_at_most_64_frames_in_order(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        with trio.move_on_after(0.01):
            await link.receive_batch()
        for number in range(150):
            guest.send(frame_of(1514, number))
        sizes, frames = [], []
        while len(frames) < 150:
            batch = await link.receive_batch()
            sizes.append(len(batch))
            frames += batch
        assert sizes == [BATCH, BATCH, 22]
        assert frames == [frame_of(1514, number) for number in range(150)]


async def test_a_flood_overruns_the_queue_and_the_rest_arrives_in_order(
    directory: Path, guest_socket: GuestSocket
) -> None:
    """A guest that stops reading: the kernel's buffer fills, then ours, then frames are dropped; what was kept comes
    later.
    """
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        total = 40_000
        for start in range(0, total, BATCH):
            link.send_batch([number.to_bytes(4, "big") + bytes(1510) for number in range(start, start + BATCH)])
        assert link.backlog == 4096
        assert link.counters.drops == {"transmit queue full": link.counters.tx_dropped}
        assert link.counters.tx_frames + link.backlog + link.counters.tx_dropped == total
        received: list[int] = []

        def read_all() -> None:
            while True:
                try:
                    received.append(int.from_bytes(guest.recv(2000)[:4], "big"))
                except BlockingIOError:
                    return

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def reader() -> None:
                while True:
                    await trio.lowlevel.wait_readable(guest)
                    read_all()

            await link.wait_backlog_drained()
            nursery.cancel_scope.cancel()
        read_all()
        assert link.backlog == 0
        assert received == list(range(total - link.counters.tx_dropped))
        assert link.counters.tx_frames == len(received)


async def test_large_frames_overrun_the_queue_by_bytes(directory: Path, guest_socket: GuestSocket) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        for _ in range(10):
            link.send_batch([frame_of(MAX_FRAME)] * BATCH)
        assert link.backlog == (16 << 20) // MAX_FRAME
        assert link.counters.tx_dropped > 0


async def test_a_guest_that_never_connects_its_socket_gets_all_frames(
    directory: Path, guest_socket: GuestSocket
) -> None:
    """QEMU's `-netdev dgram` sends to our path without connecting: then 11 datagrams fit, and our queue takes over."""
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket()
        guest.sendto(frame_of(60), os.fspath(directory / "net"))
        await receive_frames(link, 1)
        link.send_batch([frame_of(60, number) for number in range(50)])
        assert 0 < link.backlog < 50
        received: list[bytes] = []
        while len(received) < 50:
            await trio.lowlevel.wait_readable(guest)
            received.append(guest.recv(2000))
        assert received == [frame_of(60, number) for number in range(50)]


@pytest.mark.parametrize("path_of_second", ["guest", "other"])
@pytest.mark.parametrize("traffic", [True, False])
async def test_a_restarted_guest_is_taken_over(
    directory: Path, guest_socket: GuestSocket, path_of_second: str, traffic: bool
) -> None:
    """The old socket dies without a word; the next one, under the same path or another, loses none of its first
    frames.
    """
    async with running(UnixgramLink.bind(directory / "net")) as link:
        old = guest_socket("guest", connect="net")
        old.send(HANDSHAKE)
        old.send(frame_of(60, 1))
        assert await receive_frames(link, 1) == [frame_of(60, 1)]
        old.close()
        if traffic:
            # A failed send is the quickest sign.
            link.send_batch([frame_of(60), frame_of(60)])
            assert link.counters.drops == {"no guest attached": 2}
        else:
            # Nobody sends: the kernel is asked, four times a second.
            with trio.move_on_after(0.01):
                await link.receive_batch()
            await until(lambda: isinstance(link, UnixgramLink) and link.peer is None)
        new = guest_socket(path_of_second, connect="net")
        new.send(HANDSHAKE)
        for number in range(5):
            new.send(frame_of(60, number))
        assert await receive_frames(link, 5) == [frame_of(60, number) for number in range(5)]
        link.send_batch([frame_of(60, 9)])
        assert new.recv(2000) == frame_of(60, 9)
        assert link.counters.guests == 2


GUEST_PROCESS = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.bind(sys.argv[1])
sock.connect(sys.argv[2])
sock.send(b"VFKT")
sock.send(sys.argv[3].encode() * 60)
sys.stdin.read()
"""


async def test_a_killed_process_is_noticed_without_the_timer(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the timer out of the way, the end of the guest's process alone lets its successor in."""
    monkeypatch.setattr(unixgram, "PROBE_INTERVAL", 1e6)
    async with running(UnixgramLink.bind(directory / "net")) as link:
        assert isinstance(link, UnixgramLink)
        for letter in "ab":
            path = directory / f"guest-{letter}"
            with subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time worth another task
                [sys.executable, "-I", "-S", "-c", GUEST_PROCESS, path, directory / "net", letter],
                stdin=subprocess.PIPE,
            ) as process:
                assert await receive_frames(link, 1) == [letter.encode() * 60]
                assert link.peer == os.fspath(path)
                process.kill()
                process.wait()
                await until(lambda: link.peer is None)
        assert link.counters.guests == 2


async def test_a_death_told_by_a_write_and_by_the_process_at_once(directory: Path) -> None:
    """Both are ready in one tick of the run loop; whichever task runs first, the other finds the work done."""
    for _ in range(12):  # trio shuffles what became ready together
        program = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(sys.argv[1] + '.peer')\n"
            "s.connect(sys.argv[1]); s.send(bytes(60)); sys.stdin.read()"
        )
        path = directory / "net"
        async with running(UnixgramLink.bind(path)) as link:
            arguments = [sys.executable, "-c", program, str(path)]
            with subprocess.Popen(arguments, stdin=subprocess.PIPE) as process:  # noqa: ASYNC220 - takes no time
                assert len(await receive_frames(link, 1)) == 1
                await trio.testing.wait_all_tasks_blocked()
                read_end, write_end = os.pipe()

                async def write_when_told(link: UnixgramLink = link, told: int = read_end) -> None:
                    await trio.lowlevel.wait_readable(told)
                    link.send_batch([frame_of(60)])

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write_when_told)
                    await trio.testing.wait_all_tasks_blocked()
                    process.kill()
                    process.wait()  # trio does not run before all is ready
                    os.write(write_end, b"x")
                await until(lambda link=link: link.peer is None)
            os.close(read_end)
            os.close(write_end)
        (directory / "net.peer").unlink()


async def test_a_live_silent_guest_is_left_alone(
    directory: Path, guest_socket: GuestSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unixgram, "PROBE_INTERVAL", 0.001)
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        (directory / "guest").unlink()  # its path may vanish: the sockets know each other
        with trio.move_on_after(0.02):
            await link.receive_batch()
        guest.send(frame_of(61))
        assert await receive_frames(link, 1) == [frame_of(61)]
        link.send_batch([frame_of(62)])
        assert guest.recv(2000) == frame_of(62)
        assert link.counters.guests == 1


async def test_the_last_words_of_a_dead_guest_are_delivered(
    directory: Path, guest_socket: GuestSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unixgram, "PROBE_INTERVAL", 0.001)
    async with running(UnixgramLink.bind(directory / "net")) as link:
        assert isinstance(link, UnixgramLink)
        guest = guest_socket(connect="net")
        guest.send(frame_of(60, 1))
        await receive_frames(link, 1)
        with trio.move_on_after(0.01):
            await link.receive_batch()
        guest.send(frame_of(60, 2))
        guest.send(frame_of(60, 3))
        guest.close()
        await until(lambda: link.peer is None)
        assert await receive_frames(link, 2) == [frame_of(60, 2), frame_of(60, 3)]


async def test_a_dead_guest_is_noticed_where_the_kernel_may_not_be_asked(
    directory: Path, guest_socket: GuestSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_socket, "_NETLINK_SOCK_DIAG", 9999)
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        guest.close()
        link.send_batch([frame_of(60)])
        new = guest_socket(connect="net")
        new.send(frame_of(61))
        assert await receive_frames(link, 1) == [frame_of(61)]


async def test_a_guest_that_shuts_its_reading_side_costs_frames_only(
    directory: Path, guest_socket: GuestSocket
) -> None:
    async with running(UnixgramLink.bind(directory / "net")) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60))
        await receive_frames(link, 1)
        guest.shutdown(socket.SHUT_RD)
        link.send_batch([frame_of(60)] * 2)
        assert link.counters.drops == {"not accepted by the guest's socket": 2}
        guest.send(frame_of(61))
        assert await receive_frames(link, 1) == [frame_of(61)]


async def test_an_inherited_socket_pair_ends_with_its_guest() -> None:
    ours, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    async with running(UnixgramLink.from_fd(ours.detach())) as link:
        guest.send(HANDSHAKE)
        guest.send(frame_of(60, 1))
        assert await receive_frames(link, 1) == [frame_of(60, 1)]
        link.send_batch([frame_of(60, 2)])
        assert guest.recv(2000) == frame_of(60, 2)
        guest.send(frame_of(60, 3))
        guest.close()
        assert await receive_frames(link, 1) == [frame_of(60, 3)]
        with pytest.raises(LinkClosed, match="the guest has gone"):
            await link.receive_batch()
        link.send_batch([frame_of(60, 4)])
        assert link.counters.drops == {"no guest attached": 1}


async def test_an_inherited_bound_socket_learns_its_guest(directory: Path, guest_socket: GuestSocket) -> None:
    ours = guest_socket("net")
    async with running(UnixgramLink.from_fd(os.dup(ours.fileno()))) as link:
        guest = guest_socket(connect="net")
        guest.send(frame_of(60, 1))
        assert await receive_frames(link, 1) == [frame_of(60, 1)]
    assert (directory / "net").exists()  # not ours to remove


async def test_other_descriptors_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(LinkError, match="not a socket"):
        UnixgramLink.from_fd(file.fileno())
    with socket.socket() as tcp, pytest.raises(LinkError, match="not a unix datagram socket"):
        UnixgramLink.from_fd(tcp.fileno())


async def test_the_socket_is_private_and_removed_at_close(directory: Path) -> None:
    umask = os.umask(0)
    try:
        link = UnixgramLink.bind(directory / "net")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((directory / "net").stat().st_mode) == 0o600
    link.close()
    link.close()
    assert not (directory / "net").exists()
    with pytest.raises(LinkClosed):
        await link.receive_batch()
    link.send_batch([frame_of(60)])


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(directory: Path, guest_socket: GuestSocket) -> None:
    guest_socket("net").close()
    link = UnixgramLink.bind(directory / "net")
    with pytest.raises(LinkError, match="already in use by another process"):
        UnixgramLink.bind(directory / "net")
    guest = guest_socket(connect="net")
    guest.send(frame_of(60))
    await receive_frames(link, 1)
    with pytest.raises(LinkError, match="already in use by another process"):
        UnixgramLink.bind(directory / "net")
    link.close()


async def test_a_file_in_the_way_is_not_touched(directory: Path) -> None:
    (directory / "net").write_text("precious")
    with pytest.raises(LinkError, match="exists and is not a socket"):
        UnixgramLink.bind(directory / "net")
    assert (directory / "net").read_text() == "precious"


async def test_a_successors_socket_is_not_removed(directory: Path, guest_socket: GuestSocket) -> None:
    link = UnixgramLink.bind(directory / "net")
    guest_socket("net")  # unlinks and binds anew
    link.close()
    assert (directory / "net").exists()


@pytest.mark.parametrize("path", ["x" * 120, "missing/directory/net"])
async def test_an_unusable_path_is_explained(directory: Path, path: str) -> None:
    with pytest.raises(LinkError, match=r"at most 107 bytes|No such file"):
        UnixgramLink.bind(directory / path)


async def test_close_wakes_the_receiver(directory: Path) -> None:
    link = UnixgramLink.bind(directory / "net")
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)

        @nursery.start_soon
        async def receiver() -> None:
            with pytest.raises(LinkClosed):
                await link.receive_batch()

        await trio.testing.wait_all_tasks_blocked()
        link.close()


async def test_granted_buffers_are_known(directory: Path) -> None:
    link = UnixgramLink.bind(directory / "net")
    send_buffer, receive_buffer = link.buffers
    assert send_buffer >= 100_000
    assert receive_buffer >= 100_000
    link.close()


async def test_frames_are_taken_without_waiting_and_a_death_does_not_raise() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    link = UnixgramLink.from_fd(ours.detach())
    frames = [frame_of(60, number) for number in range(3)]
    for frame in frames:
        theirs.send(frame)
    assert link.receive_now(1) == frames[:1]
    assert link.receive_now() == frames[1:]
    assert link.receive_now() == []
    theirs.close()
    link.send_batch(frames)
    assert link.receive_now() == []
    with pytest.raises(LinkClosed):
        await link.receive_batch()
    link.close()
    assert link.receive_now() == []
