"""Host sockets on the real loopback, with a recorder in the engine's place.

Nothing sleeps: a test waits for the selector, as the driver does, or for its own end of a connection.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import trio

from netstack.engine import effects
from netstack.engine.effects import (
    AbortStream,
    CloseDatagrams,
    CloseEcho,
    CloseStream,
    OpenDatagrams,
    OpenEcho,
    OpenStream,
    ReadStream,
    SendDatagram,
    SendEcho,
    SendStream,
    ShutdownStream,
)
from netstack.engine.stack import Stack
from netstack.engine.tcp_flows import READ_AT_ONCE
from netstack.gateway import host_datagrams, host_sockets, host_streams, socket_errors
from netstack.gateway.host_sockets import HostSockets
from netstack.gateway.poller import READ, WRITE
from netstack.gateway.socket_errors import failure_of

LOOPBACK = b"\x7f\0\0\1"
IP_RECVTTL = 12  # ip(7)
NOW = 5.0
LIMIT = 10.0
"""Seconds a test may wait for the kernel before it fails; nothing here is expected to take a tenth of it."""


class Recorder:
    """What the engine is told, in order; it has the room it is given."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []
        self.room = 1 << 30
        self.taken: dict[int, int] = {}
        self.received: dict[int, bytes] = {}

    def stream_opened(self, flow: int, now: float, address: bytes) -> None:
        assert now == NOW
        assert address == bytes((127, 0, 0, 1)), "what was dialled"
        self.said.append(("opened", flow))

    def stream_failed(self, flow: int, failure: int, now: float) -> None:
        assert now == NOW
        self.said.append(("failed", flow, failure))

    def stream_sent(self, flow: int, count: int) -> None:
        assert count > 0
        self.taken[flow] = self.taken.get(flow, 0) + count

    def stream_room(self, flow: int) -> int:
        return min(self.room, READ_AT_ONCE)

    def stream_received(self, flow: int, data: bytes) -> None:
        assert 0 < len(data) <= self.room
        self.room -= len(data)
        self.received[flow] = self.received.get(flow, b"") + data

    def stream_ended(self, flow: int) -> None:
        self.said.append(("ended", flow))

    def stream_reset(self, flow: int, now: float) -> None:
        assert now == NOW
        self.said.append(("reset", flow))

    def datagram_received(self, flow: int, address: bytes, port: int, payload: bytes, now: float) -> None:
        assert now == NOW
        self.said.append(("datagram", flow, address, port, payload))

    def datagram_failed(
        self, flow: int, address: bytes, port: int, failure: int, now: float, *, offender: bytes = b"", mtu: int = 0
    ) -> None:
        assert now == NOW
        self.said.append(("lost", flow, address, port, failure))

    def echo_received(self, flow: int, address: bytes, sequence: int, payload: bytes, now: float) -> None:
        assert now == NOW
        self.said.append(("echo", flow, address, sequence, payload))

    def echo_failed(
        self,
        flow: int,
        address: bytes,
        failure: int,
        now: float,
        *,
        sequence: int | None = None,
        offender: bytes = b"",
        mtu: int = 0,
    ) -> None:
        assert now == NOW
        self.said.append(("no echo", flow, address, failure, sequence))


class Side:
    """HostSockets and the recorder, driven as the driver does."""

    def __init__(self) -> None:
        self.engine = Recorder()
        self.sockets = HostSockets(cast(Stack, self.engine))

    def do(self, *asked: object) -> None:
        for effect in asked:
            self.sockets.perform[type(effect)](effect, NOW)

    async def until(self, condition: Callable[[], object]) -> None:
        """Handle what is ready until something has become true."""
        with trio.fail_after(LIMIT):
            while not condition():
                await trio.lowlevel.wait_readable(self.sockets)
                self.sockets.handle_ready(NOW)

    async def says(self, *expected: tuple[object, ...]) -> None:
        """Wait until something is said, compare it, forget it."""
        await self.until(lambda: len(self.engine.said) >= len(expected))
        assert self.engine.said == list(expected)
        self.engine.said.clear()

    async def connect(self, flow: int = 1) -> trio.socket.SocketType:
        """An open stream; the peer's end of it."""
        with trio.socket.socket() as listener:
            await listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            self.do(OpenStream(flow, LOOPBACK, listener.getsockname()[1]))
            await self.says(("opened", flow))
            peer, _ = await listener.accept()
        return peer


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    side.sockets.close()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dial to this host goes on for a while, as one to another host does."""
    connect = socket.socket.connect_ex
    asked: set[socket.socket] = set()

    def connect_ex(sock: socket.socket, address: tuple[str, int]) -> int:
        if sock in asked:
            return errno.EALREADY
        asked.add(sock)
        return connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect_ex", connect_ex)


async def read_all(peer: trio.socket.SocketType, size: int | None = None) -> bytes:
    """What the peer gets up to the end of the stream, or up to a number of bytes."""
    data = bytearray()
    with trio.fail_after(LIMIT):
        while size is None or len(data) < size:
            piece = await peer.recv(1 << 20)
            if not piece:
                break
            data += piece
    return bytes(data)


async def is_reset(peer: trio.socket.SocketType) -> bool:
    """Whether the peer's connection ends with a reset, whatever came before."""
    try:
        await read_all(peer)
    except ConnectionResetError:
        return True
    return False


def unused_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pattern(size: int) -> bytes:
    return bytes(number * 31 & 0xFF for number in range(251)) * (size // 251 + 1)


# -- dialling --------------------------------------------------------------------------------------------------------


async def test_a_dial_that_succeeds(side: Side) -> None:
    with await side.connect(7) as peer:
        assert len(side.sockets) == 1
        assert peer.getpeername()[0] == "127.0.0.1"


async def test_a_dial_to_this_host_needs_no_waiting(side: Side) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        side.do(OpenStream(1, LOOPBACK, listener.getsockname()[1]))
        assert side.engine.said == [("opened", 1)]
        assert side.sockets._table.by_flow[1].interest == READ


@pytest.mark.usefixtures("far")
async def test_a_dial_that_succeeds_later(side: Side) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        side.do(OpenStream(1, LOOPBACK, listener.getsockname()[1]))
        assert side.engine.said == []
        await side.says(("opened", 1))
        assert side.sockets._table.by_flow[1].interest == READ


async def test_a_dial_that_is_refused(side: Side) -> None:
    side.do(OpenStream(1, LOOPBACK, unused_port()))
    assert side.engine.said == [("failed", 1, effects.REFUSED)]
    assert len(side.sockets) == 0


@pytest.mark.usefixtures("far")
async def test_a_dial_that_is_refused_later(side: Side) -> None:
    side.do(OpenStream(1, LOOPBACK, unused_port()))
    await side.says(("failed", 1, effects.REFUSED))
    assert len(side.sockets) == 0


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (errno.ENETUNREACH, effects.NETWORK_UNREACHABLE),
        (errno.EHOSTUNREACH, effects.HOST_UNREACHABLE),
        (errno.EACCES, effects.PROHIBITED),
        (errno.EPERM, effects.PROHIBITED),
        (errno.EADDRNOTAVAIL, effects.NO_RESOURCES),
        (errno.EAGAIN, effects.NO_RESOURCES),
    ],
)
async def test_a_dial_that_fails_at_once(
    side: Side, monkeypatch: pytest.MonkeyPatch, number: int, failure: int
) -> None:
    monkeypatch.setattr(socket.socket, "connect_ex", lambda _sock, _address: number)
    side.do(OpenStream(1, LOOPBACK, 80))
    assert side.engine.said == [("failed", 1, failure)]
    assert len(side.sockets) == 0


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (errno.ETIMEDOUT, effects.TIMED_OUT),
        (errno.EHOSTUNREACH, effects.HOST_UNREACHABLE),
        (errno.ECONNRESET, effects.REFUSED),
    ],
)
@pytest.mark.usefixtures("far")
async def test_a_dial_that_fails_later(side: Side, monkeypatch: pytest.MonkeyPatch, number: int, failure: int) -> None:
    monkeypatch.setattr(socket.socket, "getsockopt", lambda _sock, _level, _option: number)
    side.do(OpenStream(1, LOOPBACK, unused_port()))
    await side.says(("failed", 1, failure))


@pytest.mark.parametrize("what", ["socket", "setsockopt", "connect_ex"])
async def test_no_error_of_a_dial_is_raised(side: Side, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOBUFS, "no room")

    monkeypatch.setattr(socket if what == "socket" else socket.socket, what, fail)
    side.do(OpenStream(1, LOOPBACK, 80))
    assert side.engine.said == [("failed", 1, effects.NO_RESOURCES)]
    assert len(side.sockets) == 0


async def test_the_kernel_has_no_place_to_watch_another_socket(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """epoll_ctl(2): ENOSPC beyond fs.epoll.max_user_watches."""
    with await side.connect(1) as peer:
        side.engine.room = 0
        await peer.send(b"x")
        await side.until(lambda: not side.sockets._table.by_flow[1].interest)

        def fail(*_arguments: object) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr(side.sockets._table.poller, "register", fail)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            side.do(OpenStream(2, LOOPBACK, listener.getsockname()[1]))
        side.engine.room = 10
        side.do(OpenDatagrams(3), SendDatagram(3, LOOPBACK, 9, b"x", 63), ReadStream(1))
        assert side.engine.said == [
            ("failed", 2, effects.NO_RESOURCES),
            ("lost", 3, LOOPBACK, 9, effects.NETWORK_UNREACHABLE),
            ("reset", 1),
        ]
        assert len(side.sockets) == 0


@pytest.fixture
def meets_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may give a dial to a local port that very port as its own: the guest would talk to itself."""
    connect = socket.socket.connect_ex

    def connect_from_there(sock: socket.socket, address: tuple[str, int]) -> int:
        if not sock.getsockname()[1]:
            sock.bind(address)
        return connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect_ex", connect_from_there)


@pytest.mark.usefixtures("meets_itself")
async def test_a_dial_that_meets_itself_is_refused(side: Side) -> None:
    side.do(OpenStream(1, LOOPBACK, unused_port()))
    assert side.engine.said == [("failed", 1, effects.REFUSED)]
    assert len(side.sockets) == 0


@pytest.mark.usefixtures("far", "meets_itself")
async def test_a_dial_that_meets_itself_later_is_refused(side: Side) -> None:
    side.do(OpenStream(1, LOOPBACK, unused_port()))
    await side.says(("failed", 1, effects.REFUSED))
    assert len(side.sockets) == 0


@pytest.mark.usefixtures("far")
async def test_a_dial_can_be_given_up(side: Side) -> None:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        side.do(OpenStream(1, LOOPBACK, listener.getsockname()[1]), AbortStream(1))
        assert len(side.sockets) == 0
        peer, _ = await listener.accept()
        with peer:
            assert await is_reset(peer)
    assert side.engine.said == []


# -- streams ---------------------------------------------------------------------------------------------------------


async def test_bytes_both_ways(side: Side) -> None:
    with await side.connect() as peer:
        side.do(SendStream(1, [b"one ", memoryview(b"two "), b"three"]))
        assert side.engine.taken == {1: 13}
        assert await read_all(peer, 13) == b"one two three"
        await peer.send(b"answer")
        await side.until(lambda: side.engine.received)
        assert side.engine.received == {1: b"answer"}


async def test_what_the_peer_does_not_read_waits_and_is_reported_as_it_goes(side: Side) -> None:
    with await side.connect() as peer:
        data = pattern(16 << 20)
        pieces = [data[at : at + 60_000] for at in range(0, len(data), 60_000)]
        side.do(SendStream(1, pieces[:100]))
        taken = side.engine.taken[1]
        assert 0 < taken < 6_000_000
        side.do(SendStream(1, pieces[100:]))
        assert side.engine.taken[1] == taken, "behind what waits already"
        received = bytearray()

        async def read() -> None:
            received.extend(await read_all(peer, len(data)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await side.until(lambda: side.engine.taken[1] == len(data))
        assert received == data
        assert side.sockets._table.by_flow[1].interest == READ


async def test_more_pieces_than_one_call_takes(side: Side) -> None:
    with await side.connect() as peer:
        count = host_streams.MAX_PIECES * 2 + 100
        pieces = [b"%05d" % number for number in range(count)]
        side.do(SendStream(1, pieces))
        await side.until(lambda: side.engine.taken[1] == 5 * count)
        assert await read_all(peer, 5 * count) == b"".join(pieces)


async def test_the_end_comes_after_the_last_byte(side: Side) -> None:
    with await side.connect() as peer:
        data = pattern(8 << 20)
        side.do(SendStream(1, [data]), ShutdownStream(1))
        assert side.engine.taken[1] < len(data)
        received: list[bytes] = []

        async def read() -> None:
            received.append(await read_all(peer))
            await peer.send(b"got it")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await side.until(lambda: side.engine.received)
        assert received == [data]
        assert side.engine.received == {1: b"got it"}, "half-close: the other direction goes on"


async def test_the_end_at_once_when_nothing_waits(side: Side) -> None:
    with await side.connect() as peer:
        side.do(SendStream(1, [b"x"]), ShutdownStream(1))
        assert await read_all(peer) == b"x"


async def test_the_peers_end_is_told_once_and_writing_goes_on(side: Side) -> None:
    with await side.connect() as peer:
        await peer.send(b"last words")
        peer.shutdown(socket.SHUT_WR)
        await side.says(("ended", 1))
        assert side.engine.received == {1: b"last words"}
        assert side.sockets._table.by_flow[1].interest == 0
        side.do(ReadStream(1))  # too late to matter
        side.do(SendStream(1, [b"reply"]), ShutdownStream(1), CloseStream(1))
        assert await read_all(peer) == b"reply"
        assert len(side.sockets) == 0
        assert side.engine.said == []


async def test_close_comes_after_the_last_byte(side: Side) -> None:
    with await side.connect() as peer:
        peer.shutdown(socket.SHUT_WR)
        await side.says(("ended", 1))
        data = pattern(8 << 20)
        side.do(SendStream(1, [data]), ShutdownStream(1), CloseStream(1))
        assert len(side.sockets) == 1
        received: list[bytes] = []

        async def read() -> None:
            received.append(await read_all(peer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await side.until(lambda: len(side.sockets) == 0)
        assert received == [data]


async def test_k6_l5_streams_that_linger_are_bounded(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conformance K6, L5: a peer that never reads holds a descriptor of a flow that the engine has forgotten."""
    monkeypatch.setattr(host_streams, "MAX_LINGERING", 2)
    peers = [await side.connect(flow) for flow in (1, 2, 3)]
    with peers[0], peers[1], peers[2]:
        for flow in (1, 2, 3):
            side.do(SendStream(flow, [bytes(8 << 20)]), ShutdownStream(flow), CloseStream(flow))
        assert len(side.sockets) == 2
        assert await is_reset(peers[0])
        side.do(AbortStream(2))
        assert len(side.sockets.streams._lingering) == 1


async def test_abort_is_a_reset(side: Side) -> None:
    """gvproxy defect 3: there the peer sees an end, and its writes go on succeeding."""
    with await side.connect() as peer:
        side.do(SendStream(1, [b"half of it"]), AbortStream(1))
        assert len(side.sockets) == 0
        assert await is_reset(peer)


async def test_a_reset_by_the_peer_is_told(side: Side) -> None:
    with await side.connect() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await side.says(("reset", 1))
    assert len(side.sockets) == 0
    side.do(SendStream(1, [b"x"]), ReadStream(1), ShutdownStream(1), AbortStream(1), CloseStream(1))
    assert side.engine.said == []


async def test_a_reset_by_the_peer_while_bytes_wait_for_it(side: Side) -> None:
    side.engine.room = 0
    with await side.connect() as peer:
        side.do(SendStream(1, [bytes(8 << 20)]))
        await peer.send(b"x")
        await side.until(lambda: side.sockets._table.by_flow[1].interest == WRITE)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await side.says(("reset", 1))


async def test_writing_to_a_peer_that_has_reset_is_a_reset(side: Side) -> None:
    """Found by the write, before the selector is looked at."""
    with await side.connect() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.do(SendStream(1, [b"x"]))
    assert side.engine.said == [("reset", 1)]


async def test_ending_a_stream_that_was_reset_is_a_reset(side: Side) -> None:
    with await side.connect() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.do(ShutdownStream(1))
    assert side.engine.said == [("reset", 1)]


async def test_no_more_is_read_than_there_is_room_for(side: Side) -> None:
    with await side.connect() as peer:
        side.engine.room = 10
        await peer.send(b"0123456789abcdef")
        await side.until(lambda: side.engine.received)
        assert side.engine.received == {1: b"0123456789"}
        await side.until(lambda: side.sockets._table.by_flow[1].interest == 0)
        assert side.engine.received == {1: b"0123456789"}
        side.engine.room = 100
        side.do(ReadStream(1))
        await side.until(lambda: len(side.engine.received[1]) == 16)


async def test_a_host_that_has_much_to_say_is_read_several_times_in_one_go(side: Side) -> None:
    """A full read may not be all there is; how often it is repeated is bounded, for all streams together."""
    peers = []
    for flow in (1, 2):
        ours, peer = socket.socketpair()  # what is sent has come as soon as it is sent
        ours.setblocking(False)
        peer.setblocking(False)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        assert peer.send(pattern(1 << 20)) > 2 * READ_AT_ONCE
        side.sockets.streams.adopt(flow, ours)
        peers.append(peer)
    sizes: list[int] = []

    def note(flow: int, data: bytes) -> None:
        sizes.append(len(data))

    side.engine.stream_received = note  # type: ignore[method-assign]  # each read, not what it adds up to
    side.sockets.handle_ready(NOW)
    assert len(sizes) > 2
    assert max(sizes) == READ_AT_ONCE
    assert len(sizes) <= 2 + host_sockets.MORE_READS
    for peer in peers:
        peer.close()


async def test_a_read_that_is_not_full_is_the_last(side: Side) -> None:
    with await side.connect() as peer:
        await peer.send(b"answer")
        await side.until(lambda: side.engine.received)
        assert side.engine.received == {1: b"answer"}
        assert side.sockets.streams.more_reads == host_sockets.MORE_READS


async def test_a_paused_stream_keeps_writing(side: Side) -> None:
    with await side.connect() as peer:
        side.engine.room = 0
        await peer.send(b"x")
        await side.until(lambda: side.sockets._table.by_flow[1].interest == 0)
        data = pattern(8 << 20)
        side.do(SendStream(1, [data]))
        received: list[bytes] = []

        async def read() -> None:
            received.append(await read_all(peer, len(data)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await side.until(lambda: side.engine.taken[1] == len(data))
        assert received == [data]


# -- datagrams -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def receiver() -> Iterator[tuple[trio.socket.SocketType, int]]:
    """A UDP socket on the loopback, and its port."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    with trio.socket.from_stdlib_socket(sock) as peer:
        yield peer, peer.getsockname()[1]


@pytest.mark.parametrize("size", [0, 1, 1472, 65_507])
async def test_datagrams_both_ways(side: Side, size: int) -> None:
    """gvproxy defect 4: empty ones too."""
    data = pattern(size)[:size]
    with receiver() as (peer, port):
        side.do(OpenDatagrams(1), SendDatagram(1, LOOPBACK, port, data, 63))
        with trio.fail_after(LIMIT):
            got, source = await peer.recvfrom(70_000)
        assert got == data
        await peer.sendto(data, source)
        await side.says(("datagram", 1, LOOPBACK, port, data))


async def test_one_socket_for_all_destinations(side: Side) -> None:
    """RFC 4787 section 4.1: both see the same source."""
    with receiver() as (first, first_port), receiver() as (second, second_port):
        side.do(
            OpenDatagrams(1),
            SendDatagram(1, LOOPBACK, first_port, b"x", 63),
            SendDatagram(1, LOOPBACK, second_port, b"x", 63),
        )
        assert (await first.recvfrom(10))[1] == (await second.recvfrom(10))[1]


async def test_a_refusal_is_told_of_the_peer_that_refused(side: Side) -> None:
    """One unconnected socket talks to two: only the kernel's error queue says which of them is not there."""
    closed = unused_port(socket.SOCK_DGRAM)
    with receiver() as (peer, port):
        side.do(
            OpenDatagrams(1),
            SendDatagram(1, LOOPBACK, port, b"one", 63),
            SendDatagram(1, LOOPBACK, closed, b"two", 63),
        )
        await side.says(("lost", 1, LOOPBACK, closed, effects.REFUSED))
        await peer.sendto(b"answer", (await peer.recvfrom(10))[1])
        await side.says(("datagram", 1, LOOPBACK, port, b"answer"))


async def test_an_error_of_before_is_not_charged_to_the_next(side: Side) -> None:
    closed = [unused_port(socket.SOCK_DGRAM) for _ in range(3)]
    with receiver() as (peer, port):
        side.do(OpenDatagrams(1))
        for number in range(3):
            side.do(SendDatagram(1, LOOPBACK, closed[number], b"x", 63))
            side.do(SendDatagram(1, LOOPBACK, port, b"%d" % number, 63))
        assert side.engine.said == [("lost", 1, LOOPBACK, each, effects.REFUSED) for each in closed]
        assert [await peer.recv(10) for _ in range(3)] == [b"0", b"1", b"2"]


async def test_errors_are_reported_without_a_next_datagram_and_then_the_socket_is_silent(side: Side) -> None:
    closed = unused_port(socket.SOCK_DGRAM)
    side.do(OpenDatagrams(1), SendDatagram(1, LOOPBACK, closed, b"x", 63))
    await side.says(("lost", 1, LOOPBACK, closed, effects.REFUSED))
    assert side.sockets._table.poller.poll() == [], "an error that stays would wake the driver for ever"


async def test_an_error_that_only_the_queue_knows_of_is_read(side: Side) -> None:
    """The socket's pending error was taken by somebody; the queue alone keeps the selector awake."""
    closed = unused_port(socket.SOCK_DGRAM)
    side.do(OpenDatagrams(1), SendDatagram(1, LOOPBACK, closed, b"x", 63))
    assert side.sockets._table.by_flow[1].sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    await side.says(("lost", 1, LOOPBACK, closed, effects.REFUSED))
    assert side.sockets._table.poller.poll() == []


async def test_time_to_live_is_kept_where_it_is_a_probe(side: Side) -> None:
    with receiver() as (peer, port):
        peer.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        side.do(OpenDatagrams(1))
        seen = []
        for ttl in (5, 63, 1, 31, 32, 0, 254, 31):
            side.do(SendDatagram(1, LOOPBACK, port, b"x", ttl))
            _, ancillary, _, _ = await peer.recvmsg(10, 100)
            seen.append(struct.unpack("i", ancillary[0][2])[0])
        assert seen == [5, 64, 1, 31, 64, 64, 64, 31]


async def test_a_broadcast_address_is_prohibited(side: Side) -> None:
    side.do(OpenDatagrams(1), SendDatagram(1, b"\x7f\xff\xff\xff", 9, b"x", 63))
    assert side.engine.said == [("lost", 1, b"\x7f\xff\xff\xff", 9, effects.PROHIBITED)]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
async def test_a_full_queue_of_the_host_loses_datagrams_in_silence(
    side: Side, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(number, "not now")

    side.do(OpenDatagrams(1))
    monkeypatch.setattr(socket.socket, "sendto", fail)
    side.do(SendDatagram(1, LOOPBACK, 9, b"x", 63))
    assert side.engine.said == []


async def test_a_datagram_that_cannot_be_sent_is_told_once(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def fail(*_arguments: object) -> None:
        tries.append(1)
        raise OSError(errno.ENETUNREACH, "no route")

    side.do(OpenDatagrams(1))
    monkeypatch.setattr(socket.socket, "sendto", fail)
    side.do(SendDatagram(1, LOOPBACK, 9, b"x", 63))
    assert side.engine.said == [("lost", 1, LOOPBACK, 9, effects.NETWORK_UNREACHABLE)]
    assert len(tries) == host_datagrams.SEND_TRIES


async def test_a_flood_of_datagrams_is_taken_in_turns(side: Side) -> None:
    with receiver() as (peer, port):
        side.do(OpenDatagrams(1), SendDatagram(1, LOOPBACK, port, b"x", 63))
        source = (await peer.recvfrom(10))[1]
        for number in range(100):
            await peer.sendto(b"%d" % number, source)
        side.sockets.handle_ready(NOW)
        assert len(side.engine.said) == host_datagrams.DATAGRAMS_PER_WAKE
        await side.until(lambda: len(side.engine.said) == 100)
        assert [said[-1] for said in side.engine.said] == [b"%d" % number for number in range(100)]


async def test_a_socket_that_could_not_be_made_is_tried_again(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with receiver() as (peer, port):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", fail)
            side.do(OpenDatagrams(1), SendDatagram(1, LOOPBACK, port, b"one", 63))
            assert side.engine.said == [("lost", 1, LOOPBACK, port, effects.NETWORK_UNREACHABLE)]
        side.do(SendDatagram(1, LOOPBACK, port, b"two", 63))
        assert await peer.recv(10) == b"two"
        side.do(CloseDatagrams(1))
        assert len(side.sockets) == 0


async def test_closing_a_mapping_closes_its_socket(side: Side) -> None:
    side.do(OpenDatagrams(1), CloseDatagrams(1), CloseDatagrams(1), CloseEcho(1))
    assert len(side.sockets) == 0


# -- echo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (errno.EACCES, effects.PROHIBITED),
        (errno.EPROTONOSUPPORT, effects.PROHIBITED),
        (errno.EMFILE, effects.NETWORK_UNREACHABLE),
    ],
)
async def test_without_ping_sockets_each_request_fails(
    side: Side, monkeypatch: pytest.MonkeyPatch, number: int, failure: int
) -> None:
    """Nothing is faked."""

    def fail() -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(host_datagrams, "open_ping_socket", fail)
    side.do(OpenEcho(1), SendEcho(1, LOOPBACK, 1, b"abc", 63), SendEcho(1, LOOPBACK, 2, b"abc", 63), CloseEcho(1))
    assert side.engine.said == [("no echo", 1, LOOPBACK, failure, sequence) for sequence in (1, 2)]


async def test_what_is_no_reply_is_passed_over(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """A datagram socket in a ping socket's place: requests, errors and rubbish are no answers."""
    with receiver() as (peer, port):
        monkeypatch.setattr(
            host_datagrams,
            "open_ping_socket",
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK),
        )
        side.do(OpenEcho(1))
        sock = side.sockets._table.by_flow[1].sock
        sock.bind(("127.0.0.1", 0))
        for message in (b"", b"\x00", b"\x08\x00\x00\x00\x00\x01\x00\x02x", b"\x00\x00\x00\x00\x00\x01\x00\x02answer"):
            await peer.sendto(message, sock.getsockname())
        await side.says(("echo", 1, LOOPBACK, 2, b"answer"))
        assert port


IN_A_NAMESPACE = """
import sys, trio
sys.path[:0] = [{tests!r}, {root!r}]
from test_host_sockets import Side, OpenEcho, SendEcho, CloseEcho, LOOPBACK
async def main():
    side = Side()
    side.do(OpenEcho(1), SendEcho(1, LOOPBACK, 7, b"payload", 63), SendEcho(1, LOOPBACK, 8, b"", 5))
    await side.says(("echo", 1, LOOPBACK, 7, b"payload"), ("echo", 1, LOOPBACK, 8, b""))
    side.do(SendEcho(1, bytes([10, 9, 9, 9]), 9, b"x", 63))
    print(side.engine.said)
    side.do(CloseEcho(1))
    assert len(side.sockets) == 0
    side.sockets.close()
trio.run(main)
"""


@pytest.mark.guest("ip", "unshare")
def test_ping_sockets_where_they_are_allowed() -> None:
    """In a network namespace of its own, where everybody may ping."""
    here = Path(__file__)
    code = IN_A_NAMESPACE.format(tests=os.fspath(here.parent), root=os.fspath(here.parents[2]))
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    shell = 'ip link set lo up && echo "0 2147483647" > /proc/sys/net/ipv4/ping_group_range && exec "$@"'
    done = subprocess.run(
        ["unshare", *user, "--net", "sh", "-c", shell, "sh", sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([("no echo", 1, bytes([10, 9, 9, 9]), effects.NETWORK_UNREACHABLE, 9)])


# -- errors in words -------------------------------------------------------------------------------------------------


def test_every_errno_has_a_word() -> None:
    for number in [None, 0, *errno.errorcode]:
        assert failure_of(number) in effects.FAILURE_WORDS
    assert failure_of(errno.EMFILE) == failure_of(None) == effects.NO_RESOURCES


def extended(
    number: int, origin: int, kind: int, code: int, info: int = 0, offender: bytes = b"\xc6\x33\x64\x01"
) -> bytes:
    """struct sock_extended_err and the offender's sockaddr_in, as ip(7) has them."""
    return struct.pack("=IBBBBII", number, origin, kind, code, 0, info, 0) + b"\x02\0\0\0" + offender + bytes(8)


@pytest.mark.parametrize(
    ("data", "failure", "mtu"),
    [
        (extended(errno.ECONNREFUSED, 2, 3, 3), effects.REFUSED, 0),
        (extended(errno.ENOPROTOOPT, 2, 3, 2), effects.REFUSED, 0),
        (extended(errno.EHOSTUNREACH, 2, 3, 1), effects.HOST_UNREACHABLE, 0),
        (extended(errno.ENETUNREACH, 2, 3, 0), effects.NETWORK_UNREACHABLE, 0),
        (extended(errno.EHOSTUNREACH, 2, 3, 13), effects.PROHIBITED, 0),
        (extended(errno.ENETUNREACH, 2, 3, 9), effects.PROHIBITED, 0),
        (extended(errno.EHOSTUNREACH, 2, 3, 10), effects.PROHIBITED, 0),
        (extended(errno.EHOSTUNREACH, 2, 11, 0), effects.TTL_EXCEEDED, 0),
        (extended(errno.EHOSTUNREACH, 2, 11, 1), effects.NO_RESOURCES, 0),
        (extended(errno.EMSGSIZE, 2, 3, 4, 1280), effects.TOO_BIG, 1280),
    ],
)
def test_icmp_errors_in_words(data: bytes, failure: int, mtu: int) -> None:
    error = socket_errors._error(data, LOOPBACK, 9, b"quoted")
    assert error == (failure, LOOPBACK, 9, b"\xc6\x33\x64\x01", mtu, b"quoted")


def test_what_the_kernel_found_out_itself_is_no_icmp_error() -> None:
    """`sendto` has failed with it already."""
    assert socket_errors._error(extended(errno.EMSGSIZE, 1, 0, 0, 1280), LOOPBACK, 9, b"") is None


# -- many, and the end -----------------------------------------------------------------------------------------------


async def test_sockets_are_handled_in_turns(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came of some goes to the guest before the next ones are looked at; nobody is forgotten."""
    monkeypatch.setattr(host_sockets, "SOCKETS_PER_WAKE", 2)
    with receiver() as (peer, port):
        sources = []
        for flow in range(1, 8):
            side.do(OpenDatagrams(flow), SendDatagram(flow, LOOPBACK, port, b"x", 63))
            sources.append((await peer.recvfrom(10))[1])
        for source in sources:
            await peer.sendto(b"answer", source)
        side.sockets.handle_ready(NOW)
        assert len(side.engine.said) == 2
        side.do(CloseDatagrams(7), CloseDatagrams(3))
        await side.until(lambda: len(side.engine.said) >= 5)
        assert len({said[1] for said in side.engine.said}) == 5


async def test_descriptors_run_out() -> None:
    """In a process of its own: the limit is the process's."""
    here = Path(__file__)
    code = f"""
import resource, sys, trio
sys.path[:0] = [{os.fspath(here.parent)!r}, {os.fspath(here.parents[2])!r}]
from test_host_sockets import *
async def main():
    side = Side()
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        port = listener.getsockname()[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        for flow in range(1, 60):
            side.do(OpenStream(flow, LOOPBACK, port))
        failed = [said for said in side.engine.said if said[0] == "failed"]
        assert failed and all(said[2] == effects.NO_RESOURCES for said in failed), failed
        side.do(OpenDatagrams(100), SendDatagram(100, LOOPBACK, 9, b"x", 63))
        assert side.engine.said[-1] == ("lost", 100, LOOPBACK, 9, effects.NETWORK_UNREACHABLE)
        side.do(AbortStream(1), SendDatagram(100, LOOPBACK, port, b"x", 63))
        assert len(side.sockets) == 60 - len(failed) - 1
        assert side.engine.said[-1] == ("lost", 100, LOOPBACK, 9, effects.NETWORK_UNREACHABLE)
    side.sockets.close()
trio.run(main)
"""
    done = await trio.run_process(
        [sys.executable, "-W", "error", "-c", code], capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


async def test_closing_ends_everything(side: Side) -> None:
    with await side.connect(1) as established, await side.connect(2) as lingering:
        lingering.shutdown(socket.SHUT_WR)
        await side.says(("ended", 2))
        side.do(OpenDatagrams(3), SendStream(2, [bytes(8 << 20)]), ShutdownStream(2), CloseStream(2))
        side.do(OpenStream(4, b"\x7f\0\0\2", unused_port()))
        side.sockets.close()
        assert len(side.sockets) == 0
        assert await is_reset(established)
        assert await is_reset(lingering)
        side.sockets.close()


async def test_what_is_asked_after_the_end_fails_quietly(side: Side) -> None:
    """Links that end after the driver still flush what their guests left."""
    side.sockets.close()
    side.do(
        OpenStream(1, LOOPBACK, unused_port()),
        SendStream(1, [b"x"]),
        ReadStream(1),
        ShutdownStream(1),
        CloseStream(1),
        AbortStream(1),
        OpenDatagrams(2),
        SendDatagram(2, LOOPBACK, 9, b"x", 63),
        CloseDatagrams(2),
        OpenEcho(3),
        SendEcho(3, LOOPBACK, 1, b"x", 63),
        CloseEcho(3),
    )
    assert [said[0] for said in side.engine.said] == ["failed", "lost", "no echo"]
    assert len(side.sockets) == 0
