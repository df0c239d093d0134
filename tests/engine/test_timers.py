"""The heap of deadlines: nobody is forgotten, nobody is woken too early, and it does not grow with what is over."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netstack.engine.timers import NOT_SCHEDULED, Timers


class Owner:
    def __init__(self, deadline: float = inf) -> None:
        self.deadline = deadline
        self.scheduled = NOT_SCHEDULED


def scheduled(*deadlines: float) -> tuple[Timers[Owner], list[Owner]]:
    heap: Timers[Owner] = Timers()
    owners = [Owner(deadline) for deadline in deadlines]
    for owner in owners:
        heap.schedule(owner)
    return heap, owners


def test_nothing_waits_at_first() -> None:
    heap: Timers[Owner] = Timers()
    assert heap.first == inf
    assert heap.due(1e9) == []


def test_in_the_order_of_their_deadlines() -> None:
    heap, (late, early, never) = scheduled(3.0, 1.0, inf)
    assert heap.first == 1.0
    assert heap.due(0.999) == []
    assert heap.due(3.0) == [early, late]
    assert heap.first == inf
    assert never.scheduled is NOT_SCHEDULED


def test_equal_deadlines_in_the_order_they_were_scheduled() -> None:
    heap, owners = scheduled(*[2.0] * 50)
    assert heap.due(2.0) == owners


def test_a_deadline_that_moved_later_is_asked_again() -> None:
    heap, (owner,) = scheduled(1.0)
    owner.deadline = 5.0
    heap.schedule(owner)
    assert heap.first == 1.0, "moving later costs nothing, so the old entry stands"
    assert heap.due(1.0) == []
    assert heap.first == 5.0
    assert heap.due(5.0) == [owner]


def test_a_deadline_that_moved_earlier_counts_at_once_and_only_once() -> None:
    heap, (owner,) = scheduled(5.0)
    owner.deadline = 1.0
    heap.schedule(owner)
    assert heap.first == 1.0
    assert heap.due(1.0) == [owner]
    owner.deadline = inf
    assert heap.due(10.0) == []


def test_an_owner_without_a_deadline_any_more_is_left_alone() -> None:
    heap, (owner,) = scheduled(1.0)
    owner.deadline = inf
    assert heap.due(1.0) == []
    assert heap.first == inf


def test_the_heap_lets_go_of_owners_that_are_gone() -> None:
    """Flows that end long before their time-out leave no more than the bound behind, however many they are."""
    heap: Timers[Owner] = Timers()
    for number in range(10_000):
        owner = Owner(1e6 + number)
        heap.schedule(owner)
        owner.deadline = inf
        assert len(heap) <= 1024


def test_who_is_forgotten_is_held_no_more_and_can_come_back() -> None:
    heap, (owner, other) = scheduled(1.0, 2.0)
    heap.forget(owner)
    heap.forget(owner)
    assert not [entry for entry in heap._heap if owner in entry]
    assert heap.due(1.0) == []
    assert heap.first == 2.0
    heap.schedule(owner)
    assert heap.due(2.0) == [owner, other]


def test_whoever_was_let_go_of_can_come_back() -> None:
    """An owner that had no deadline when the heap was tidied up, and gets a later one than it had."""
    heap: Timers[Owner] = Timers()
    idle = Owner(1.0)
    heap.schedule(idle)
    idle.deadline = inf
    for number in range(2000):  # enough to have the heap tidied up
        heap.schedule(Owner(100.0 + number))
    idle.deadline = 50.0
    heap.schedule(idle)
    assert heap.due(50.0) == [idle]


def test_tidying_up_while_owners_are_due_loses_nobody() -> None:
    heap: Timers[Owner] = Timers()
    owners = [Owner(1.0) for _ in range(1024)]
    for owner in owners:
        heap.schedule(owner)
        owner.deadline = 2.0
    assert heap.due(1.0) == []
    assert heap.first == 2.0
    assert heap.due(2.0) == owners
    assert heap.first == inf


class Comparison(RuleBasedStateMachine):
    """Against a list that is looked through."""

    def __init__(self) -> None:
        super().__init__()
        self.heap: Timers[Owner] = Timers()
        self.heap._compact_at = 8  # tidied up all the time
        self.owners = [Owner() for _ in range(12)]
        self.now = 0.0

    @rule(which=st.integers(0, 11), delay=st.sampled_from([0.5, 1.0, 2.0, 10.0, inf]))
    def change(self, which: int, delay: float) -> None:
        owner = self.owners[which]
        owner.deadline = self.now + delay
        self.heap.schedule(owner)

    @rule(which=st.integers(0, 11))
    def end(self, which: int) -> None:
        self.owners[which].deadline = inf

    @rule(which=st.integers(0, 11))
    def forget(self, which: int) -> None:
        self.owners[which].deadline = inf
        self.heap.forget(self.owners[which])

    @rule(step=st.sampled_from([0.1, 0.5, 1.0, 3.0]))
    def wait(self, step: float) -> None:
        self.now += step
        due = self.heap.due(self.now)
        assert sorted(map(id, due)) == sorted(id(owner) for owner in self.owners if owner.deadline <= self.now)
        for owner in due:
            owner.deadline = inf

    @invariant()
    def nobody_is_forgotten(self) -> None:
        assert self.heap.first <= min(owner.deadline for owner in self.owners)
        self.heap._compact_at = 8


TestComparison = Comparison.TestCase


@given(st.lists(st.floats(0, 100), max_size=200))
def test_any_deadlines_come_out_sorted(deadlines: list[float]) -> None:
    heap, owners = scheduled(*deadlines)
    assert [owner.deadline for owner in heap.due(100.0)] == sorted(deadlines)
    assert all(owner.scheduled is NOT_SCHEDULED for owner in owners)
