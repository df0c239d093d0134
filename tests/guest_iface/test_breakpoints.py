"""Breakpoints: what they hold, let go, drop, and what passes them by."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from guest_iface.breakpoints import (
    DROPPED,
    FROM_GUEST,
    MAX_BREAKPOINTS,
    MAX_HELD,
    OVERFLOW,
    TO_GUEST,
    Breakpoints,
    TooManyError,
)
from guest_iface.link import Link, LinkCapabilities, LinkClosed, LinkCounters


class QueueLink(Link):
    """A link whose guest is the test."""

    def __init__(self) -> None:
        self.name = "test"
        self.capabilities = LinkCapabilities()
        self.counters = LinkCounters()
        self.sent: list[bytes] = []
        self.closed = False
        self.put, self._said = trio.open_memory_channel[list[bytes]](16)

    async def receive_batch(self) -> list[bytes]:
        try:
            return await self._said.receive()
        except trio.EndOfChannel:
            raise LinkClosed(self.name) from None

    def send_batch(self, frames: Sequence[bytes]) -> None:
        self.sent += frames

    @property
    def backlog(self) -> int:
        return 0

    async def wait_backlog_drained(self) -> None:
        await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    def close(self) -> None:
        self.closed = True


class Reader:
    """Takes what comes out of a wrapped link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.got: list[bytes] = []

    async def run(self) -> None:
        while True:
            frames = await self.link.receive_batch()
            self.got += frames

    async def now(self) -> list[bytes]:
        """What came since the last look."""
        await trio.testing.wait_all_tasks_blocked()
        got, self.got = self.got, []
        return got


def has(text: bytes):  # type: ignore[no-untyped-def]  # a predicate
    return lambda frame: text in frame


async def test_without_a_breakpoint_everything_passes(nursery: trio.Nursery) -> None:
    link, points = QueueLink(), Breakpoints()
    wrapped = points.wrap(link)
    reader = Reader(wrapped)
    nursery.start_soon(reader.run)
    link.put.send_nowait([b"a", b"b"])
    assert await reader.now() == [b"a", b"b"]
    wrapped.send_batch([b"c"])
    assert link.sent == [b"c"]
    assert not points.active


async def test_what_is_held_waits_in_order_and_the_rest_passes(nursery: trio.Nursery) -> None:
    link, points = QueueLink(), Breakpoints()
    wrapped = points.wrap(link)
    reader = Reader(wrapped)
    nursery.start_soon(reader.run)
    await reader.now()
    point = points.add("x", has(b"x"))  # while the reader waits in the link
    link.put.send_nowait([b"x1", b"other", b"x2"])
    assert await reader.now() == [b"other"]
    wrapped.send_batch([b"x3", b"y"])
    assert link.sent == [b"y"]
    assert [(held.number, held.direction, held.frame) for held in point.held] == [
        (1, FROM_GUEST, b"x1"),
        (2, FROM_GUEST, b"x2"),
        (3, TO_GUEST, b"x3"),
    ]
    link.put.send_nowait([b"x4"])
    assert await reader.now() == [], "nothing passes what waits"
    assert point.step() == 1
    assert await reader.now() == [b"x1"], "a waiting reader is woken"
    assert point.step(2) == 2
    assert await reader.now() == [b"x2"]
    assert link.sent == [b"y", b"x3"]
    assert points.remove(point.number) == 1
    assert await reader.now() == [b"x4"]
    link.put.send_nowait([b"x5"])
    assert await reader.now() == [b"x5"]
    assert not points.active


async def test_dropped_frames_are_counted(nursery: trio.Nursery) -> None:
    link, points = QueueLink(), Breakpoints()
    wrapped = points.wrap(link)
    reader = Reader(wrapped)
    nursery.start_soon(reader.run)
    point = points.add("all", has(b""))
    link.put.send_nowait([b"a", b"b"])
    wrapped.send_batch([b"c", b"d"])
    await reader.now()
    assert point.drop(1) == 1
    assert point.drop() == 3
    assert await reader.now() == []
    assert link.sent == []
    assert (point.hits, point.dropped, len(point.held)) == (4, 4, 0)
    assert link.counters.drops == {DROPPED: 4}


async def test_what_is_held_is_bounded() -> None:
    link, points = QueueLink(), Breakpoints()
    wrapped = points.wrap(link)
    point = points.add("all", has(b""))
    wrapped.send_batch([b"x"] * (MAX_HELD + 5))
    assert (len(point.held), point.dropped) == (MAX_HELD, 5)
    assert link.counters.drops == {OVERFLOW: 5}
    for _ in range(MAX_BREAKPOINTS - 1):
        points.add("all", has(b""))
    with pytest.raises(TooManyError, match="16 breakpoints already"):
        points.add("all", has(b""))


async def test_the_oldest_breakpoint_has_the_frame_and_a_closed_link_nothing() -> None:
    link, points = QueueLink(), Breakpoints()
    wrapped = points.wrap(link)
    first, second = points.add("x", has(b"x")), points.add("all", has(b""))
    wrapped.send_batch([b"x", b"y"])
    assert [held.frame for held in first.held] == [b"x"]
    assert [held.frame for held in second.held] == [b"y"]
    wrapped.close()
    assert link.closed
    assert not first.held
    assert not second.held
    with pytest.raises(KeyError):
        points.remove(99)


async def test_watchers_see_what_passes_when_it_does() -> None:
    link, points = QueueLink(), Breakpoints()
    wrapped = points.wrap(link)
    seen: list[tuple[str, str, bytes]] = []

    def watch(name: str, direction: str, frame: bytes) -> None:
        seen.append((name, direction, frame))

    points.watch(watch)
    point = points.add("x", has(b"x"))
    link.put.send_nowait([b"x", b"a"])
    assert await wrapped.receive_batch() == [b"a"]
    wrapped.send_batch([b"b"])
    point.step()
    assert seen == [("test", FROM_GUEST, b"a"), ("test", TO_GUEST, b"b"), ("test", FROM_GUEST, b"x")]
    points.unwatch(watch)
    points.remove(point.number)
    wrapped.send_batch([b"c"])
    assert len(seen) == 3


async def test_frames_are_taken_without_waiting_while_there_is_no_breakpoint(nursery: trio.Nursery) -> None:
    class Polled(QueueLink):
        descriptor = 7
        holds_frames = True

        def receive_now(self, _limit: int = 64) -> list[bytes]:
            return self._said.receive_nowait()

    link, points = Polled(), Breakpoints()
    wrapped = points.wrap(link)
    assert (wrapped.descriptor, wrapped.holds_frames) == (7, True)
    link.put.send_nowait([b"a", b"b"])
    assert wrapped.receive_now() == [b"a", b"b"]
    point = points.add("x", has(b"x"))
    reader = Reader(wrapped)
    nursery.start_soon(reader.run)
    link.put.send_nowait([b"x1"])
    assert wrapped.receive_now() == []
    assert await reader.now() == []
    assert points.remove(point.number) == 1
    assert await reader.now() == [b"x1"]
