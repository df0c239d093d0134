"""The cable on virtual time: what passes when, who hears it, and changes while frames are under way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing

from guest_iface.cable import BEHIND, Cable
from guest_iface.cable_way import Way
from guest_iface.frame_matching import frame_matcher
from guest_iface.impair import Impairer
from guest_iface.impair_spec import parse_impairment
from guest_iface.link import BATCH, Link, LinkCapabilities, LinkClosed, LinkCounters
from guest_iface.pcapng import OUTBOUND
from guest_iface.shaping import QUEUE_FULL, Limit, Shaper
from tests.guest_iface.conftest import frame_of
from tests.guest_iface.test_segments import large


class TimedLink(Link):
    """A link that keeps what it was given, with the time, and whose guest is the test."""

    def __init__(self) -> None:
        self.name = "timed"
        self.capabilities = LinkCapabilities()
        self.counters = LinkCounters()
        self.sent: list[tuple[float, bytes]] = []
        self.closed = False
        self._send, self._receive = trio.open_memory_channel[bytes](10_000)
        self._over = trio.Event()

    def put(self, *frames: bytes) -> None:
        for frame in frames:
            self._send.send_nowait(frame)

    @property
    def unread(self) -> int:
        return self._receive.statistics().current_buffer_used

    async def receive_batch(self) -> list[bytes]:
        try:
            frames = [await self._receive.receive()]
        except trio.EndOfChannel:
            raise LinkClosed("gone") from None
        while len(frames) < BATCH and self.unread:
            frames.append(self._receive.receive_nowait())
        return frames

    def send_batch(self, frames: Sequence[bytes]) -> None:
        self.sent += [(trio.current_time(), frame) for frame in frames]

    @property
    def backlog(self) -> int:
        return 0

    async def wait_backlog_drained(self) -> None:
        await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await self._over.wait()

    def close(self) -> None:
        self.closed = True
        self._send.close()
        self._over.set()


class Witness:
    """Listens, and remembers in which order."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, list[bytes]]] = []

    def add_interface(self, name: str) -> int:
        self.heard.append((name, 0, []))
        return len(self.heard)

    def hold(self, interface: int, frames: Sequence[bytes]) -> None:
        self.heard.append(("hold", interface, list(frames)))

    def release(self) -> None:
        if self.heard and self.heard[-1][0] != "release":
            self.heard.append(("release", 0, []))

    def write(self, interface: int, frames: Sequence[bytes], direction: int) -> None:
        assert direction == OUTBOUND
        self.heard.append(("write", interface, list(frames)))

    def frames(self, kind: str) -> list[bytes]:
        return [frame for what, _, frames in self.heard for frame in frames if what == kind]


def way(
    *words: str, kbps: float = 0, to_guest: bool = False, burst: int = 0, counters: LinkCounters | None = None
) -> Way:
    specs = [parse_impairment(each) for each in words]
    rules = [
        (None if spec.match is None else frame_matcher(spec.match), Impairer(spec, Random(7))) for spec in specs
    ]  # fmt: skip
    limit = Limit(kbps, burst) if kbps else None
    shaper = None if limit is None else Shaper(limit, trio.current_time(), bounded=to_guest)
    return Way(shaper=shaper, rules=rules, to_guest=to_guest, mtu=1500, counters=counters or LinkCounters())


class Run:
    """A cable that runs, and what came out of it on the gateway's side."""

    def __init__(self, cable: Cable, link: TimedLink) -> None:
        self.cable, self.link = cable, link
        self.start = trio.current_time()
        self.received: list[tuple[float, bytes]] = []
        self.over = trio.Event()

    async def pump(self) -> None:
        try:
            while True:
                frames = await self.cable.receive_batch()
                assert 0 < len(frames) <= BATCH
                self.received += [(trio.current_time() - self.start, frame) for frame in frames]
        except LinkClosed:
            self.over.set()

    @property
    def sent(self) -> list[tuple[float, bytes]]:
        return [(at - self.start, frame) for at, frame in self.link.sent]


@asynccontextmanager
async def running(*listeners: Witness) -> AsyncIterator[Run]:
    link = TimedLink()
    cable = Cable(link, listeners)
    made = Run(cable, link)
    async with trio.open_nursery() as nursery:
        await nursery.start(cable.run)
        nursery.start_soon(made.pump)
        yield made
        cable.close()
        await made.over.wait()
        nursery.cancel_scope.cancel()
    assert link.closed


async def test_a_bare_cable_is_the_link(autojump_clock: trio.testing.MockClock) -> None:
    witness = Witness()
    async with running(witness) as run:
        assert (run.cable.name, run.cable.capabilities, run.cable.counters, run.cable.backlog) == (
            "timed", run.link.capabilities, run.link.counters, 0,
        )  # fmt: skip
        run.link.put(frame_of(60, 1), frame_of(61, 2))
        await trio.sleep(1)
        run.cable.send_batch([frame_of(62, 3)])
        await run.cable.wait_backlog_drained()
    assert run.received == [(0.0, frame_of(60, 1)), (0.0, frame_of(61, 2))]
    assert run.sent == [(1.0, frame_of(62, 3))]
    assert witness.frames("hold") == [frame_of(60, 1), frame_of(61, 2)]
    assert witness.frames("write") == [frame_of(62, 3)]
    kinds = [what for what, _, _ in witness.heard]
    assert kinds.index("hold") < kinds.index("release", kinds.index("hold")), (
        "released when the next batch is asked for"
    )


async def test_delays_both_ways_and_listeners_are_on_the_guests_side(autojump_clock: trio.testing.MockClock) -> None:
    witness = Witness()
    async with running(witness) as run:
        run.cable.put_on(way("delay 50ms"), way("delay 20ms", to_guest=True))
        for number in range(3):
            run.link.put(frame_of(60, number))
            run.cable.send_batch([frame_of(70, number)])
            assert len(witness.frames("write")) == 0 or number
            await trio.sleep(0.005)
        await trio.sleep(1)
        assert [frame for _, frame in run.received] == [frame_of(60, number) for number in range(3)]
        assert [at for at, _ in run.received] == pytest.approx([0.05, 0.055, 0.06])
        assert [at for at, _ in run.sent] == pytest.approx([0.02, 0.025, 0.03])
        # While the first were under way, later ones were taken, and nobody waited for a frame that was not due.
        assert witness.frames("hold") == [frame_of(60, number) for number in range(3)]
        assert witness.frames("write") == [frame_of(70, number) for number in range(3)]


async def test_only_what_is_meant_and_the_first_that_fits(autojump_clock: trio.testing.MockClock) -> None:
    first = "match ether host 01:01:01:01:01:01 loss 100%"
    async with running() as run:
        run.cable.put_on(None, way(first, "match ether host 02:02:02:02:02:02 delay 1s", to_guest=True))
        run.cable.send_batch([frame_of(60, 1), frame_of(60, 2), frame_of(60, 3)])
        assert run.sent == [(0.0, frame_of(60, 3))]
        await trio.sleep(5)
        assert run.sent[1:] == [(pytest.approx(1.0), frame_of(60, 2))]


async def test_what_waits_goes_at_once_when_the_way_is_taken_off(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as run:
        ways = way("delay 10s"), way("delay 10s", to_guest=True)
        run.cable.put_on(*ways)
        run.link.put(*[frame_of(60, number) for number in range(100)])
        run.cable.send_batch([frame_of(70)])
        await trio.sleep(1)
        run.cable.put_on(*ways)
        await trio.sleep(1)
        assert run.received == run.sent == [], "the same again changes nothing"
        run.cable.put_on(None, None)
        await trio.sleep(1)
        run.link.put(frame_of(61))
        await trio.sleep(1)
        assert [at for at, _ in run.received] == pytest.approx([2.0] * 100 + [3.0])
        assert [frame for _, frame in run.received] == [*(frame_of(60, number) for number in range(100)), frame_of(61)]
        assert run.sent == [(pytest.approx(2.0), frame_of(70))]


async def test_a_way_is_put_on_while_the_guest_is_silent(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as run:
        await trio.sleep(1)
        run.cable.put_on(way("delay 100ms"), None)
        run.link.put(frame_of(60))
        await trio.sleep(1)
        assert run.received == [(pytest.approx(1.1), frame_of(60))]


async def test_a_limit_makes_the_guest_wait(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as run:
        run.cable.put_on(way(kbps=800), None)
        run.link.put(*[frame_of(1000, number) for number in range(300)])
        await trio.sleep(1)
        assert run.link.unread > 100, "the rest is still in the guest's queue"
        await trio.sleep(2)
        assert run.link.unread == 0
        assert [frame for _, frame in run.received] == [frame_of(1000, number) for number in range(300)]
        taken = run.received[-1][0]
        assert taken == pytest.approx((300_000 - Limit(800).burst_bytes) / 100_000, rel=0.02)


async def test_a_limit_to_the_guest_holds_back_and_drops_at_its_bound(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as run:
        run.cable.put_on(None, way(kbps=800, to_guest=True, counters=run.link.counters))
        run.cable.send_batch([frame_of(1000, number) for number in range(100)])
        assert run.cable.backlog == BEHIND
        kept = Limit(800).queue_bytes // 1000
        assert run.link.counters.drops == {QUEUE_FULL: 100 - kept}
        await run.cable.wait_backlog_drained()
        assert run.cable.backlog == 0
        assert 0 < len(run.sent) < kept
        await trio.sleep(1)
        assert [frame for _, frame in run.sent] == [frame_of(1000, number) for number in range(kept)]
        assert run.sent[-1][0] == pytest.approx((kept * 1000 - Limit(800).burst_bytes) / 100_000, rel=0.1)


async def test_waiting_for_a_drained_link_ends_with_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as run:
        run.cable.put_on(None, way(kbps=8, to_guest=True))
        run.cable.send_batch([frame_of(1000)] * 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.cable.wait_backlog_drained)
            await trio.testing.wait_all_tasks_blocked()
            run.cable.put_on(None, None)
        assert len(run.sent) == 20
        assert run.sent[-1][0] == 0.0


async def test_large_frames_are_cut_before_chances_are_taken(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as run:
        run.cable.put_on(way("delay 1ms"), way(kbps=100_000, to_guest=True, burst=64 << 10))
        run.link.put(large(20_000))
        run.cable.send_batch([large(20_000)])
        await trio.sleep(1)
        assert len(run.received) == 14
        assert len(run.sent) == 1, "the burst carries it whole"
        run.cable.put_on(None, way(kbps=1000, to_guest=True))
        run.cable.send_batch([large(20_000)])
        await trio.sleep(1)
        assert max(len(frame) for _, frame in run.sent[1:]) <= Limit(1000).burst_bytes


async def test_a_limit_comes_before_impairments_from_the_guest_and_behind_them_to_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        run.cable.put_on(way("loss 50%", kbps=800), way("loss 50%", kbps=800, to_guest=True))
        run.link.put(*[frame_of(1000)] * 100)
        run.cable.send_batch([frame_of(1000)] * 40)
        await trio.sleep(10)
        # All hundred take their time, and half of the forty.
        assert run.received[-1][0] == pytest.approx(1.0, rel=0.15)
        assert len(run.sent) == pytest.approx(20, abs=8)
        assert run.sent[-1][0] == pytest.approx((len(run.sent) * 1000 - 4542) / 100_000, abs=0.03)


async def test_the_end_of_the_link_is_the_end_of_the_cable(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as run:
        run.cable.put_on(way("delay 10s"), way("delay 10s", to_guest=True))
        run.link.put(frame_of(60))
        run.cable.send_batch([frame_of(60)])
        await trio.testing.wait_all_tasks_blocked()
        run.link.close()
        with trio.fail_after(1):
            await run.over.wait()
    assert run.received == run.sent == []


async def test_listeners_come_and_go(autojump_clock: trio.testing.MockClock) -> None:
    early, late = Witness(), Witness()
    async with running(early) as run:
        run.link.put(frame_of(60, 1))
        await trio.testing.wait_all_tasks_blocked()
        run.cable.add_listener(late)
        run.link.put(frame_of(60, 2))
        await trio.testing.wait_all_tasks_blocked()
        run.cable.remove_listener(early)
        run.cable.remove_listener(early)
        run.link.put(frame_of(60, 3))
        await trio.testing.wait_all_tasks_blocked()
    assert early.frames("hold") == [frame_of(60, 1), frame_of(60, 2)]
    assert late.frames("hold") == [frame_of(60, 2), frame_of(60, 3)]


def test_a_way_says_when_it_has_something() -> None:
    async def main() -> None:
        made = way("delay 1s", "loss 1%")
        made.admit([frame_of(60)] * 3, 5.0)
        assert (made.next_due, made.is_full, made.is_behind) == (6.0, False, False)
        assert made.due(6.0, most=2) == [frame_of(60)] * 2
        assert made.next_due < 6.0, "the third is due already"
        assert made.clear() == [frame_of(60)]

    trio.run(main)


class PolledLink(TimedLink):
    """One whose frames can be taken without waiting."""

    descriptor = 7
    holds_frames = True

    def receive_now(self, limit: int = BATCH) -> list[bytes]:
        return [self._receive.receive_nowait() for _ in range(min(limit, self.unread))]


async def test_frames_are_taken_without_waiting_where_nothing_is_on_the_way() -> None:
    witness, link = Witness(), PolledLink()
    cable = Cable(link, [witness])
    assert (cable.descriptor, cable.holds_frames) == (7, True)
    link.put(*(frames := [frame_of(60, number) for number in range(4)]))
    assert cable.receive_now(1) == frames[:1]
    assert cable.receive_now() == frames[1:]
    assert witness.heard[2:] == [("hold", 1, frames[:1]), ("release", 0, []), ("hold", 1, frames[1:])]
    link.put(late := frame_of(60, 5))
    cable.put_on(way("delay 10ms"), None)
    assert cable.receive_now() == []
    assert link.unread == 1
    cable.put_on(None, None)
    assert cable.receive_now() == [late]
    cable.close()
