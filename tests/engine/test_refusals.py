"""Refusals counted: which are told of, that one guest's flood hides no other's, and that no table grows without end."""

from __future__ import annotations

from netstack.engine.refusals import FORGET, MAX_GUESTS, MAX_PLACES, MAX_REASONS, OTHER_REASONS, Refusals, is_told

GUEST, OTHER = b"\xc0\xa8\x7f\x02", b"\xc0\xa8\x7f\x03"


def test_told_are_powers_of_ten() -> None:
    assert [count for count in range(1, 200_000) if is_told(count)] == [1, 10, 100, 1000, 10_000, 100_000]


def test_f13_each_place_is_counted_by_itself() -> None:
    counted = Refusals()
    assert [counted.repetition(GUEST, place, 0.0) for place in ("a", "b", "a", "a", "b")] == [1, 1, 2, 3, 2]


def test_f13_places_beyond_the_bound_are_counted_together() -> None:
    counted = Refusals()
    assert {counted.repetition(GUEST, place, 0.0) for place in range(MAX_PLACES)} == {1}
    assert [counted.repetition(GUEST, place, 0.0) for place in range(1000, 1005)] == [1, 2, 3, 4, 5]
    assert counted.repetition(GUEST, 0, 0.0) == 2, "those known before go on"


def test_f13_a_flood_by_one_guest_hides_no_refusal_of_another() -> None:
    counted = Refusals()
    for place in range(10_000):
        counted.repetition(GUEST, place, 0.0)
    assert counted.repetition(OTHER, "a", 0.0) == 1


def test_counting_begins_again_after_a_while_and_with_another_policy() -> None:
    counted = Refusals()
    assert counted.repetition(GUEST, "a", 0.0) == 1
    assert counted.repetition(GUEST, "a", FORGET) == 2
    assert counted.repetition(GUEST, "a", FORGET + 1) == 1
    counted.begin_again()
    assert counted.repetition(GUEST, "a", FORGET + 1) == 1


def test_guests_beyond_the_bound_are_as_one_until_others_are_forgotten() -> None:
    counted = Refusals()
    for number in range(MAX_GUESTS):
        counted.repetition(number.to_bytes(4, "big"), "a", 0.0)
    assert [counted.repetition(guest, "a", 0.0) for guest in (GUEST, OTHER)] == [1, 2]
    assert [counted.repetition(guest, "a", FORGET + 1) for guest in (GUEST, OTHER)] == [1, 1]
    assert counted.repetition((0).to_bytes(4, "big"), "a", FORGET + 1) == 1


def test_every_reason_is_counted_and_those_a_hook_makes_up_are_bounded() -> None:
    counted = Refusals()
    for number in range(MAX_REASONS + 50):
        counted.count(f"reason {number}")
    counted.count("reason 0")
    assert counted.by_reason["reason 0"] == 2
    assert counted.by_reason[OTHER_REASONS] == 50
    assert len(counted.by_reason) == MAX_REASONS + 1
    assert sum(counted.by_reason.values()) == MAX_REASONS + 51
