"""Frames in pieces: every link sends them as one, and whoever looks at frames on the way gets them whole."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from guest_iface import link as module
from guest_iface.breakpoints import TO_GUEST, BreakpointLink, Breakpoints
from guest_iface.cable import Cable
from guest_iface.link import BATCH, Frame, Link, all_whole, frame_size, whole
from guest_iface.seqpacket import SeqpacketLink
from guest_iface.stream import StreamLink
from guest_iface.switch import Switch
from guest_iface.unixgram import UnixgramLink
from tests.guest_iface.conftest import frame_of, qemu, read_exactly, running
from tests.guest_iface.test_cable import TimedLink, Witness, way
from tests.guest_iface.test_switch import A, B, RecordingLink

HEADERS = bytes(range(66))
TEXT = bytes(range(256)) * 250
IN_TWO: Frame = (HEADERS, memoryview(TEXT)[:60_000])
IN_THREE: Frame = (HEADERS, memoryview(TEXT)[100:101], TEXT[:30_000])
MIXED: list[Frame] = [frame_of(60, 1), IN_TWO, frame_of(1514, 2), IN_THREE]
GATEWAY = bytes.fromhex("5a94efe40cdd")


def test_sizes() -> None:
    assert [frame_size(frame) for frame in MIXED] == [60, 60_066, 1514, 30_067]
    assert all_whole(MIXED) == [
        frame_of(60, 1),
        HEADERS + TEXT[:60_000],
        frame_of(1514, 2),
        HEADERS + b"d" + TEXT[:30_000],
    ]
    assert max(len(frame) for frame in MIXED if isinstance(frame, tuple)) == module.FRAME_PIECES


@contextlib.asynccontextmanager
async def packets(make: Callable[[socket.socket], Link], kind: int) -> AsyncIterator[tuple[Link, socket.socket]]:
    """A link on one end of a pair of sockets that keep frames apart, and the guest's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.setblocking(False)
    theirs.setblocking(False)
    with theirs:
        async with running(make(ours)) as link:
            yield link, theirs


LINKS = pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda sock: UnixgramLink(sock, "test"), socket.SOCK_DGRAM),
        (lambda sock: UnixgramLink(sock, "test", batch_calls=False), socket.SOCK_DGRAM),
        (lambda sock: SeqpacketLink(sock, "test"), socket.SOCK_SEQPACKET),
    ],
    ids=["unixgram", "unixgram-plain-calls", "seqpacket"],
)


@LINKS
@pytest.mark.parametrize("times", [1, BATCH], ids=["few", "many"])
async def test_one_datagram_each(make: Callable[[socket.socket], Link], kind: int, times: int) -> None:
    async with packets(make, kind) as (link, guest):
        few, expected = MIXED * times, all_whole(MIXED) * times
        arrived: list[bytes] = []
        link.send_batch(few)
        while len(arrived) < len(expected):
            try:
                arrived.append(guest.recv(1 << 17))
            except BlockingIOError:
                await trio.lowlevel.checkpoint()
        assert arrived == expected
        assert link.counters.tx_frames == len(expected)
        assert link.counters.tx_bytes == sum(map(len, expected))
        assert link.counters.tx_dropped == 0


@LINKS
async def test_what_has_to_wait_and_what_finds_no_room(make: Callable[[socket.socket], Link], kind: int) -> None:
    async with packets(make, kind) as (link, guest):
        sent = 0
        while not link.counters.tx_dropped:
            link.send_batch([IN_TWO] * BATCH)
            sent += BATCH
        arrived = 0
        while link.backlog or arrived + link.counters.tx_dropped < sent:
            try:
                assert guest.recv(1 << 17) == whole(IN_TWO)
                arrived += 1
            except BlockingIOError:
                await trio.lowlevel.checkpoint()
        assert link.counters.drops == {"transmit queue full": sent - arrived}
        assert (link.counters.tx_frames, link.counters.tx_bytes) == (arrived, arrived * frame_size(IN_TWO))


async def test_on_a_stream_one_behind_the_other_whatever_the_kernel_takes() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
    guest = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    async with running(StreamLink.from_socket(ours, "test")) as link, guest:
        frames = MIXED * 20
        link.send_batch(frames)
        expected = qemu(*all_whole(frames))
        assert await read_exactly(guest, len(expected)) == expected
        assert (link.counters.tx_frames, link.counters.tx_bytes) == (80, len(expected) - 4 * 80)


async def test_on_a_stream_the_prefix_says_the_whole_length() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        async with running(StreamLink.from_socket(ours, "test")) as link:
            link.send_batch([(HEADERS, TEXT, TEXT[:1_484]), (HEADERS, TEXT, TEXT[:1_485]), (b"short", b"")])
            assert link.counters.drops == {"frame too long": 1, "frame too short": 1}
            assert os.read(theirs.fileno(), 70) == (65_550).to_bytes(4, "big") + HEADERS


async def test_the_switch_finds_the_port_of_frames_in_pieces() -> None:
    switch = Switch(GATEWAY)
    links = [RecordingLink(), RecordingLink()]
    ports = [switch.attach(link) for link in links]
    for port, mac in zip(ports, (A, B), strict=True):
        switch.ingress(port, [GATEWAY + mac + bytes(50)], 0.0)
    switch.egress([(B + HEADERS, TEXT), (A + HEADERS, TEXT[:20_000]), (b"\xff" * 6 + HEADERS, TEXT)])
    assert links[0].taken() == [(A + HEADERS, TEXT[:20_000]), (b"\xff" * 6 + HEADERS, TEXT)]
    assert links[1].taken() == [(B + HEADERS, TEXT), (b"\xff" * 6 + HEADERS, TEXT)]


async def test_a_cable_passes_them_on_and_its_listeners_get_them_whole(autojump_clock: trio.testing.MockClock) -> None:
    link, witness = TimedLink(), Witness()
    cable = Cable(link)
    cable.send_batch([IN_TWO])
    assert [frame for _, frame in link.sent] == [IN_TWO]
    cable.add_listener(witness)
    cable.send_batch([IN_THREE])
    assert witness.frames("write") == [whole(IN_THREE)]
    assert whole(link.sent[-1][1]) == whole(IN_THREE)
    cable.put_on(None, way("delay 5ms", to_guest=True))
    cable.send_batch([IN_TWO])
    cable.put_on(None, None)
    assert b"".join(frame[54:] for _, frame in link.sent[2:]).endswith(TEXT[59_000:60_000]), (
        "what waited has gone, whole"
    )


async def test_a_breakpoint_holds_them_whole() -> None:
    link, breakpoints = TimedLink(), Breakpoints()
    stop = BreakpointLink(link, breakpoints)
    stop.send_batch([IN_TWO])
    assert [frame for _, frame in link.sent] == [IN_TWO]
    seen: list[tuple[str, bytes]] = []
    breakpoints.watch(lambda _name, direction, frame: seen.append((direction, frame)))
    stop.send_batch([IN_THREE])
    assert seen == [(TO_GUEST, whole(IN_THREE))]
