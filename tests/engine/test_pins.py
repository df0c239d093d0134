"""Pins: which names a guest was given an address for, and for how long it may make use of that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine import pins as module
from netstack.engine.pins import Pins

GUEST, OTHER_GUEST = b"\xc0\xa8\x7f\x02", b"\xc0\xa8\x7f\x03"
FIRST, SECOND = b"\x8c\x52\x79\x03", b"\x8c\x52\x79\x04"


def address(number: int) -> bytes:
    return (0x08000000 + number).to_bytes(4, "big")


def test_what_was_answered_is_known_to_that_guest_and_no_other() -> None:
    pins = Pins()
    pins.answered(GUEST, "github.com", [FIRST, SECOND], 300, 0.0)
    assert pins.names(GUEST, FIRST, 299.9) == ["github.com"]
    assert pins.names(GUEST, SECOND, 1.0) == ["github.com"]
    assert pins.names(OTHER_GUEST, FIRST, 1.0) == []
    assert pins.names(GUEST, b"\x08\x08\x08\x08", 1.0) == []
    assert pins.known(GUEST, "github.com", FIRST, 1.0)
    assert not pins.known(GUEST, "gitlab.com", FIRST, 1.0)
    assert not pins.known(GUEST, "github.com", b"\x08\x08\x08\x08", 1.0)
    assert not pins.known(OTHER_GUEST, "github.com", FIRST, 1.0)


@pytest.mark.parametrize(("ttl", "lives"), [(0, 60), (1, 60), (60, 60), (61, 61), (3600, 3600), (86400, 3600)])
def test_b14_a_pin_lives_as_long_as_the_answer_within_bounds(ttl: int, lives: float) -> None:
    pins = Pins()
    pins.answered(GUEST, "github.com", [FIRST], ttl, 1000.0)
    assert pins.known(GUEST, "github.com", FIRST, 1000.0 + lives - 0.001)
    assert not pins.known(GUEST, "github.com", FIRST, 1000.0 + lives)
    assert pins.names(GUEST, FIRST, 1000.0 + lives - 0.001) == ["github.com"]
    assert pins.names(GUEST, FIRST, 1000.0 + lives) == []
    assert len(pins) == 0


def test_a_new_answer_prolongs_a_pin() -> None:
    pins = Pins()
    pins.answered(GUEST, "github.com", [FIRST], 60, 0.0)
    pins.answered(GUEST, "github.com", [FIRST], 60, 50.0)
    assert pins.names(GUEST, FIRST, 100.0) == ["github.com"]
    assert len(pins) == 1


def test_names_behind_one_address_the_latest_first() -> None:
    pins = Pins()
    for name, ttl in (("a.example", 60), ("b.example", 3600), ("c.example", 3600)):
        pins.answered(GUEST, name, [FIRST], ttl, 0.0)
    pins.answered(GUEST, "b.example", [FIRST], 3600, 1.0)
    assert pins.names(GUEST, FIRST, 2.0) == ["b.example", "c.example", "a.example"]
    assert pins.names(GUEST, FIRST, 60.0) == ["b.example", "c.example"]


def test_bounds_of_one_answer_and_of_one_address() -> None:
    pins = Pins()
    pins.answered(GUEST, "many.example", [address(n) for n in range(100)], 60, 0.0)
    assert len(pins) == module.MAX_ADDRESSES_PER_NAME
    for number in range(20):
        pins.answered(GUEST, f"{number}.example", [FIRST], 60, 0.0)
    assert pins.names(GUEST, FIRST, 1.0) == [f"{number}.example" for number in range(19, 3, -1)]


def test_who_asks_for_much_pushes_out_its_own() -> None:
    pins = Pins()
    pins.answered(OTHER_GUEST, "github.com", [FIRST, SECOND], 3600, 0.0)
    for number in range(0, module.MAX_PINS + 640, 64):
        pins.answered(GUEST, f"{number}.example", [address(number + n) for n in range(64)], 3600, 0.0)
    assert len(pins) == module.MAX_PINS
    assert pins.names(OTHER_GUEST, FIRST, 1.0) == ["github.com"]
    assert pins.names(GUEST, address(0), 1.0) == []
    assert pins.names(GUEST, address(module.MAX_PINS), 1.0) != []
    # A guest that has little gets its place from the one that has most.
    pins.answered(b"\xc0\xa8\x7f\x04", "github.com", [FIRST], 3600, 0.0)
    assert len(pins) == module.MAX_PINS
    assert pins.names(b"\xc0\xa8\x7f\x04", FIRST, 1.0) == ["github.com"]
    assert pins.names(OTHER_GUEST, SECOND, 1.0) == ["github.com"]


def test_what_is_longest_unused_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PINS", 2)
    pins = Pins()
    pins.answered(GUEST, "a.example", [address(1)], 60, 0.0)
    pins.answered(GUEST, "b.example", [address(2)], 60, 0.0)
    pins.answered(GUEST, "a.example", [address(1)], 60, 1.0)
    pins.answered(GUEST, "c.example", [address(3)], 60, 2.0)
    assert [pins.names(GUEST, address(n), 3.0) for n in (1, 2, 3)] == [["a.example"], [], ["c.example"]]


def test_a_guest_that_is_gone_is_forgotten() -> None:
    pins = Pins()
    pins.answered(GUEST, "github.com", [FIRST, SECOND], 60, 0.0)
    pins.answered(OTHER_GUEST, "github.com", [FIRST], 60, 0.0)
    pins.forget(GUEST)
    pins.forget(GUEST)
    assert len(pins) == 1
    assert pins.names(GUEST, FIRST, 1.0) == []
    assert pins.names(OTHER_GUEST, FIRST, 1.0) == ["github.com"]


steps = st.tuples(
    st.sampled_from(["answered", "names", "forget"]), st.integers(0, 3), st.integers(0, 5), st.integers(0, 200)
)


@given(st.lists(steps, max_size=60))
def test_the_count_is_right_and_the_bound_holds(what: list[tuple[str, int, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_PINS", 4)
        pins = Pins()
        now = 0.0
        for step, guest_number, number, pause in what:
            guest = bytes((10, 0, 0, guest_number))
            now += pause
            if step == "answered":
                pins.answered(guest, "a.example", [address(number), address(number + 1)], 0, now)
                assert pins.known(guest, "a.example", address(number + 1), now)
            elif step == "names":
                pins.names(guest, address(number), now)
            else:
                pins.forget(guest)
            assert len(pins) == sum(map(len, pins._guests.values())) <= 4
            assert all(pins._guests.values())
