"""Which names a guest was told an address for: how long it is believed, for whom, and how many are kept."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine import pins
from netstack.engine.pins import (
    MAX_ADDRESSES_PER_NAME,
    MAX_LIFETIME,
    MAX_NAMES_PER_ADDRESS,
    MIN_LIFETIME,
    Pins,
)

GUEST, OTHER = b"\xc0\xa8\x7f\x02", b"\xc0\xa8\x7f\x03"
SITE, CDN = b"\x5d\xb8\xd8\x22", b"\x97\x65\x01\x06"


def address(number: int) -> bytes:
    return (0x2D000000 + number).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("ttl", "lives"), [(0, MIN_LIFETIME), (1, MIN_LIFETIME), (300, 300), (3600, 3600), (86_400, MAX_LIFETIME)]
)
def test_b15_an_answer_is_believed_for_its_ttl_within_bounds(ttl: int, lives: float) -> None:
    """policy.md: floor 60 s, ceiling 1 h."""
    held = Pins()
    held.answered(GUEST, "github.com", [SITE], ttl, 1000.0)
    assert held.names(GUEST, SITE, 1000.0 + lives - 0.001) == ["github.com"]
    assert held.known(GUEST, "github.com", SITE, 1000.0 + lives - 0.001)
    assert not held.known(GUEST, "github.com", SITE, 1000.0 + lives)
    assert held.names(GUEST, SITE, 1000.0 + lives) == []
    assert len(held) == 0


def test_an_answer_is_for_the_guest_that_asked() -> None:
    held = Pins()
    held.answered(GUEST, "github.com", [SITE], 300, 0.0)
    assert held.names(OTHER, SITE, 1.0) == []
    assert not held.known(OTHER, "github.com", SITE, 1.0)
    assert held.names(GUEST, CDN, 1.0) == []
    assert not held.known(GUEST, "gitlab.com", SITE, 1.0)


def test_several_names_of_one_address_the_latest_first() -> None:
    held = Pins()
    held.answered(GUEST, "a.example", [CDN], 100, 0.0)
    held.answered(GUEST, "b.example", [CDN, SITE], 200, 1.0)
    assert held.names(GUEST, CDN, 2.0) == ["b.example", "a.example"]
    held.answered(GUEST, "a.example", [CDN], 100, 3.0)
    assert held.names(GUEST, CDN, 4.0) == ["a.example", "b.example"]
    assert held.names(GUEST, CDN, 110.0) == ["b.example"]
    assert held.names(GUEST, SITE, 110.0) == ["b.example"]


def test_b14_a_later_answer_adds_addresses_and_renews_what_it_repeats() -> None:
    held = Pins()
    held.answered(GUEST, "a.example", [SITE], 60, 0.0)
    held.answered(GUEST, "a.example", [CDN], 60, 50.0)
    assert held.names(GUEST, SITE, 55.0) == held.names(GUEST, CDN, 55.0) == ["a.example"]
    held.answered(GUEST, "a.example", [SITE], 60, 55.0)
    assert held.names(GUEST, SITE, 100.0) == ["a.example"]


def test_the_bounds_of_a_name_and_of_an_address() -> None:
    held = Pins()
    held.answered(GUEST, "many.example", [address(number) for number in range(MAX_ADDRESSES_PER_NAME + 9)], 60, 0.0)
    assert len(held) == MAX_ADDRESSES_PER_NAME
    for number in range(MAX_NAMES_PER_ADDRESS + 4):
        held.answered(GUEST, f"{number}.example", [SITE], 60, 0.0)
    expected = [f"{number}.example" for number in range(4, MAX_NAMES_PER_ADDRESS + 4)]
    assert held.names(GUEST, SITE, 1.0) == expected[::-1], "the oldest made room"


def test_a_guest_that_asks_for_everything_pushes_out_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "MAX_PINS", 10)
    held = Pins()
    held.answered(OTHER, "mine.example", [SITE], 60, 0.0)
    for number in range(100):
        held.answered(GUEST, f"{number}.example", [address(number)], 60, 0.0)
    assert len(held) == 10
    assert held.names(OTHER, SITE, 1.0) == ["mine.example"]
    assert held.names(GUEST, address(99), 1.0) == ["99.example"]
    assert held.names(GUEST, address(0), 1.0) == []


def test_a_guest_with_little_makes_the_one_with_most_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "MAX_PINS", 10)
    held = Pins()
    for number in range(10):
        held.answered(GUEST, f"{number}.example", [address(number)], 60, 0.0)
    held.answered(OTHER, "mine.example", [SITE], 60, 0.0)
    assert held.names(OTHER, SITE, 1.0) == ["mine.example"]
    assert len(held) == 10


def test_a_guest_that_is_gone_leaves_nothing() -> None:
    held = Pins()
    held.answered(GUEST, "a.example", [SITE, CDN], 60, 0.0)
    held.answered(OTHER, "a.example", [SITE], 60, 0.0)
    held.forget(GUEST)
    held.forget(b"\xc0\xa8\x7f\x09")
    assert len(held) == 1
    assert held.names(GUEST, SITE, 1.0) == []
    assert held.names(OTHER, SITE, 1.0) == ["a.example"]


GUESTS = st.sampled_from([GUEST, OTHER, b"\xc0\xa8\x7f\x04"])
NAMES = st.sampled_from([f"{letter}.example" for letter in "abcdefghijklmnopqrstuvw"])
STEPS = st.one_of(
    st.tuples(st.just("answered"), GUESTS, NAMES, st.lists(st.integers(0, 30), max_size=5), st.integers(0, 5000)),
    st.tuples(st.just("names"), GUESTS, st.integers(0, 30)),
    st.tuples(st.just("forget"), GUESTS),
    st.tuples(st.just("wait"), st.floats(0, 2000)),
)


@given(st.lists(STEPS, max_size=60), st.integers(1, 12))
def test_what_is_known_was_answered_and_still_lives(steps: list[tuple[object, ...]], bound: int) -> None:
    """Against a plain list of answers: nothing is ever believed that was not said, and the bound holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pins, "MAX_PINS", bound)
        held, now = Pins(), 0.0
        said: defaultdict[tuple[object, object], dict[object, float]] = defaultdict(dict)
        for kind, *values in steps:
            if kind == "answered":
                guest, name, numbers, ttl = values
                held.answered(guest, name, [address(number) for number in numbers], ttl, now)
                for number in numbers:
                    said[guest, number][name] = now + min(max(float(ttl), MIN_LIFETIME), MAX_LIFETIME)
            elif kind == "names":
                guest, number = values
                known = held.names(guest, address(number), now)
                assert len(known) == len(set(known)) <= MAX_NAMES_PER_ADDRESS
                assert all(said[guest, number][name] > now for name in known)
            elif kind == "forget":
                held.forget(values[0])
                for pair in [pair for pair in said if pair[0] == values[0]]:
                    del said[pair]
            else:
                now += values[0]
            assert len(held) <= bound
            assert len(held) == sum(len(pinned) for pinned in held._guests.values())
