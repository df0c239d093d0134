"""Limits on time that is a number: rates, bursts, the queue's bound."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_iface.shaping import MIN_BURST, MIN_QUEUE, Limit, Shaper, TokenBucket
from tests.guest_iface.conftest import frame_of


@given(st.integers(8, 1_000_000), st.lists(st.integers(14, 65_562), min_size=20, max_size=200))
def test_the_rate_is_kept_whatever_the_frames(kbps: int, sizes: list[int]) -> None:
    limit = Limit(kbps)
    shaper = Shaper(limit, 100.0, bounded=False)
    assert shaper.admit([bytes(size) for size in sizes]) == 0
    now, passed = 100.0, 0
    while (due := shaper.next_due) < inf:
        now = max(now, due)
        out = shaper.due(now)
        assert out, "it said that there would be something"
        passed += sum(map(len, out))
        # Never more than the rate and the burst, and one frame that overdraws.
        assert passed <= (now - 100) * limit.bytes_per_second + limit.burst_bytes + 65_562
    assert passed == sum(sizes)
    assert now - 100 <= max(0, passed - limit.burst_bytes) / limit.bytes_per_second + 1e-6
    assert shaper.waiting == 0


def test_a_late_look_costs_nothing_up_to_the_burst() -> None:
    limit = Limit(8000)
    bucket = TokenBucket(limit, 0.0)
    passed = 0
    for tick in range(1, 101):
        while bucket.take(1000, tick * 0.02):
            passed += 1000
    assert passed == pytest.approx(2.0 * limit.bytes_per_second, rel=0.02)


def test_a_bounded_queue_drops_the_newest_and_says_when_it_is_behind() -> None:
    limit = Limit(1000)
    shaper = Shaper(limit, 0.0, bounded=True)
    assert limit.queue_bytes == 25_000
    assert not shaper.is_behind
    assert shaper.admit([frame_of(1000, number) for number in range(40)]) == 15
    assert (shaper.waiting, shaper.dropped, shaper.is_behind) == (25_000, 15, True)
    first = shaper.due(0.0)
    assert first == [frame_of(1000, number) for number in range(5)], "the burst: 4542 bytes, and what overdraws it"
    assert shaper.due(0.001) == []
    assert shaper.due(shaper.next_due) == [frame_of(1000, 5)]
    assert shaper.clear() == [frame_of(1000, number) for number in range(6, 25)]
    assert shaper.next_due == inf
    assert shaper.admit([bytes(65_562)]) == 0, "an empty queue takes any frame"


def test_bounds_of_a_limit() -> None:
    assert (Limit(8).burst_bytes, Limit(8).queue_bytes) == (MIN_BURST, MIN_QUEUE)
    assert Limit(100_000).burst_bytes == 312_500
    assert Limit(100_000, burst=10_000).burst_bytes == 10_000
    for kbps, burst in ((7.9, 0), (100_000_001, 0), (float("nan"), 0)):
        with pytest.raises(ValueError, match="expected a rate from 8 to 100000000"):
            Limit(kbps, burst)
    with pytest.raises(ValueError, match="a burst of -1 bytes"):
        Limit(100, -1)
