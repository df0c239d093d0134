"""Busy polling: what is handled without a wake-up, who has his turn meanwhile, and how long it goes on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
import trio
import trio.testing

from netstack.gateway import busy_poll
from netstack.gateway.busy_poll import BusyPoll, Pollable, longer_patience


class Mailbox:
    """A source on a datagram socket: what the test posts is what is handled, one datagram at a time."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.handled: list[tuple[bytes, int]] = []
        self.deaf = False

    def post(self, *letters: bytes) -> None:
        for letter in letters:
            self.theirs.send(letter)

    def fileno(self) -> int:
        return self.ours.fileno()

    def handle_ready(self, _now: float, rounds: int) -> bool:
        if self.deaf:
            return False
        try:
            self.handled.append((self.ours.recv(100), rounds))
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Driver:
    """Flushes, and has more to do so many times."""

    def __init__(self) -> None:
        self.flushes = 0
        self.more = 0

    def flush(self, _now: float) -> bool:
        self.flushes += 1
        self.more -= self.more > 0
        return self.more > 0


def make_patient(poll: BusyPoll, source: Pollable) -> None:
    """As after many answers that came soon."""
    poll._patience[source] = poll.limit


@pytest.fixture
def box() -> Iterator[Mailbox]:
    with closing(Mailbox()) as made:
        yield made


async def test_what_is_there_is_handled_without_a_wake_up(box: Mailbox) -> None:
    driver = Driver()
    poll = BusyPoll(driver.flush)
    poll.add(box)
    box.post(b"one", b"two", b"three")
    await poll.stay_awake(None, more=False)
    # The first after a pause, then those that were there at once.
    assert box.handled == [(b"one", 0), (b"two", 1), (b"three", 2)]
    assert driver.flushes == poll.found == 3
    poll.close()


async def test_what_comes_while_it_is_awake_needs_nobody_to_be_woken(box: Mailbox) -> None:
    poll = BusyPoll(Driver().flush, limit=3600.0)
    poll.add(box)
    make_patient(poll, box)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(poll.stay_awake, box, more=False))
        # Other tasks have their turn while it waits, and a task's doing is seen.
        for letter in (b"one", b"two"):
            box.post(letter)
            while box.handled[-1:] != [(letter, 0)]:
                await trio.lowlevel.checkpoint()
        poll.close()
    assert poll.found == 2


async def test_a_source_that_is_never_empty_leaves_others_their_turn(
    box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy_poll, "_TURN", 0.0)
    driver = Driver()
    poll = BusyPoll(driver.flush)
    poll.add(box)
    box.post(b"ball")
    turns: list[int] = []

    def handle_and_post(now: float, rounds: int) -> bool:
        box.post(b"ball")
        return Mailbox.handle_ready(box, now, rounds)

    box.handle_ready = handle_and_post  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(poll.stay_awake, None, more=False))
        for _ in range(5):
            await trio.lowlevel.checkpoint()
            turns.append(len(box.handled))
        poll.close()
    assert turns == sorted(turns)
    assert turns[0] < turns[-1]


async def test_more_is_flushed_until_there_is_no_more(box: Mailbox) -> None:
    driver = Driver()
    driver.more = 5
    poll = BusyPoll(driver.flush)
    poll.add(box)
    await poll.stay_awake(None, more=True)
    assert driver.flushes == 5
    assert not box.handled
    poll.close()


async def test_more_of_somebody_else_is_flushed_by_whoever_is_awake(box: Mailbox) -> None:
    driver = Driver()
    poll = BusyPoll(driver.flush, limit=3600.0)
    poll.add(box)
    make_patient(poll, box)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(poll.stay_awake, box, more=False))
        box.post(b"it is awake when this is handled")
        while not box.handled:
            await trio.lowlevel.checkpoint()
        driver.more = 3
        await poll.stay_awake(None, more=True)  # returns at once
        while driver.more:
            await trio.lowlevel.checkpoint()
        poll.close()
    assert driver.flushes == 4


async def test_a_source_may_hold_what_its_descriptor_does_not_tell_of(box: Mailbox) -> None:
    poll = BusyPoll(Driver().flush)
    held = [b"two", b"three"]

    class Holds:
        def fileno(self) -> int:
            return -1

        def handle_ready(self, _now: float, _rounds: int) -> bool:
            box.handled.append((held.pop(0), 0))
            if held:
                poll.look_again(self)
            return True

    source = Holds()
    poll.add(source)
    poll.look_again(source)
    await poll.stay_awake(None, more=False)
    assert [letter for letter, _ in box.handled] == [b"two", b"three"]
    poll.close()


async def test_one_that_is_ready_and_does_nothing_keeps_nobody_awake(box: Mailbox) -> None:
    driver = Driver()
    poll = BusyPoll(driver.flush, limit=0.0)
    box.deaf = True
    box.post(b"unheard")
    poll.add(box)
    await poll.stay_awake(None, more=False)
    assert (driver.flushes, poll.found) == (0, 0)
    poll.close()


async def test_a_source_is_attended_until_cancelled(box: Mailbox) -> None:
    poll = BusyPoll(Driver().flush, limit=0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll.attend, box)
        for count in (1, 2):
            await trio.testing.wait_all_tasks_blocked()
            box.post(b"letter")
            while len(box.handled) < count:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    box.post(b"too late")
    await poll.stay_awake(None, more=False)
    assert len(box.handled) == 2
    poll.close()


async def test_what_was_removed_or_closed_is_not_looked_at(box: Mailbox) -> None:
    poll = BusyPoll(Driver().flush)
    poll.remove(box)  # does nothing: it was never there
    poll.add(box)
    box.post(b"unread")
    poll.look_again(box)
    poll.remove(box)
    await poll.stay_awake(None, more=False)
    poll.add(box)
    poll.close()
    poll.close()
    await poll.stay_awake(None, more=True)
    poll.add(box)
    assert not box.handled


async def test_a_descriptor_that_cannot_be_polled_is_left_to_its_reader(box: Mailbox) -> None:
    poll = BusyPoll(Driver().flush)
    with open(__file__, "rb") as file:  # noqa: ASYNC230, PTH123 - epoll refuses files
        poll.add(file)  # type: ignore[arg-type]
        poll.remove(file)  # type: ignore[arg-type]
    poll.add(box)
    box.post(b"one")
    await poll.stay_awake(None, more=False)
    assert poll.found == 1
    poll.close()


async def test_each_source_is_waited_for_as_what_comes_after_it_usually_does(box: Mailbox) -> None:
    """The host answers at once, the guest thinks before it asks again: only the former is waited for."""
    with closing(Mailbox()) as other:
        poll = BusyPoll(Driver().flush, limit=3600.0)
        poll.add(box)
        poll.add(other)
        make_patient(poll, box)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def stay() -> None:
                await poll.stay_awake(box, more=False)
                nursery.cancel_scope.cancel()

            for _ in range(10):
                await trio.lowlevel.checkpoint()
            other.post(b"the answer")
            await trio.sleep_forever()
        assert other.handled == [(b"the answer", 0)]
        assert poll.patience == 3600.0
        poll.remove(box)
        assert poll.patience == 0.0
        poll.close()


def test_patience_grows_with_pauses_that_were_a_little_too_long_and_ends_with_a_long_one() -> None:
    limit = 200e-6
    patience = 0.0
    grown = []
    for _ in range(7):
        patience = longer_patience(patience, 50e-6, limit)
        grown.append(round(patience * 1e6))
    # 80 us cover the pause: no more is needed.
    assert grown == [10, 20, 40, 80, 80, 80, 80]
    assert longer_patience(patience, 180e-6, limit) == 160e-6
    assert longer_patience(160e-6, 180e-6, limit) == limit
    assert longer_patience(limit, 201e-6, limit) == 0.0


def test_without_a_limit_there_is_no_patience() -> None:
    assert longer_patience(0.0, 1e-9, 0.0) == 0.0
    assert longer_patience(0.0, 0.0, 0.0) == 0.0
