"""Impairments in words: what is printed reads back the same, what makes no sense is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_iface import units
from guest_iface.impair_spec import (
    DIRECTIONS,
    DISTRIBUTIONS,
    MAX_LIMIT,
    MAX_SEED,
    Chance,
    Delay,
    GilbertElliott,
    Impairment,
    ImpairmentError,
    Slot,
    StateLoss,
    parse_impairment,
)
from tests.guest_iface.test_frame_filter import filters

shares = st.floats(0, 100)
times = st.integers(0, units.MAX_TIME)
some_time = st.integers(1, units.MAX_TIME)
chances = st.builds(Chance, shares, shares)


@st.composite
def delays(draw: st.DrawFn) -> Delay:
    jitter = draw(times)
    if not jitter:
        return Delay(draw(times))
    return Delay(draw(times), jitter, draw(shares), draw(st.sampled_from(DISTRIBUTIONS)))


@st.composite
def states(draw: st.DrawFn) -> StateLoss:
    half = st.floats(0, 50)
    return StateLoss(draw(half), draw(half), draw(half), draw(shares), draw(half))


losses = st.one_of(chances, states(), st.builds(GilbertElliott, shares, shares, shares, shares))
sizes = st.integers(0, units.MAX_SIZE)


@st.composite
def slots(draw: st.DrawFn) -> Slot:
    ends = sorted((draw(some_time), draw(some_time)))
    return Slot(*ends, draw(st.integers(0, MAX_LIMIT)), draw(sizes))


@st.composite
def impairments(draw: st.DrawFn) -> Impairment:
    maybe = {
        name: draw(st.none() | each)
        for name, each in (
            ("match", filters), ("loss", losses), ("duplicate", chances), ("corrupt", chances), ("slot", slots()),
            ("seed", st.integers(0, MAX_SEED)),
        )
    }  # fmt: skip
    reorder = draw(st.none() | chances)
    return Impairment(
        direction=draw(st.sampled_from(DIRECTIONS)),
        link=draw(st.sampled_from(["", "tap*", "unix:///run/a.sock?guest=1"])),
        delay=draw(delays()),
        reorder=reorder,
        gap=draw(st.integers(1, MAX_LIMIT)) if reorder is not None else 0,
        rate=draw(st.integers(0, units.MAX_RATE)),
        limit=draw(st.integers(1, MAX_LIMIT)),
        **maybe,
    )


@given(impairments())
def test_what_is_printed_reads_back_the_same(made: Impairment) -> None:
    assert parse_impairment(str(made)) == made


@given(times, st.integers(1, units.MAX_RATE), sizes, shares)
def test_quantities_read_back_the_same(time: int, rate: int, size: int, share: float) -> None:
    assert units.read_time(units.time_word(time)) == time
    assert units.read_rate(units.rate_word(rate)) == rate
    assert units.read_size(units.size_word(size)) == size
    assert units.read_share(units.share_word(share)) == share


def test_words_mean_what_tc_means() -> None:
    read = parse_impairment(
        "dir=to-guest delay 100ms 10ms 25% distribution normal loss 0.3% 25% duplicate 1% corrupt 0.1% "
        "reorder 25% 50% gap 5 rate 1mbit slot 800us 1ms packets 32 bytes 64k limit 500 seed 42"
    )
    assert read == Impairment(
        direction="to-guest",
        delay=Delay(100_000_000, 10_000_000, 25.0, "normal"),
        loss=Chance(0.3, 25.0),
        duplicate=Chance(1.0),
        corrupt=Chance(0.1),
        reorder=Chance(25.0, 50.0),
        gap=5,
        rate=1_000_000,
        slot=Slot(800_000, 1_000_000, 32, 65_536),
        limit=500,
        seed=42,
    )
    assert parse_impairment("loss random 1%").loss == parse_impairment("loss 1%").loss == Chance(1.0)
    assert parse_impairment("loss state 2%").loss == StateLoss(2.0, 98.0, 0.0, 100.0, 0.0)
    assert parse_impairment("loss gemodel 1%").loss == GilbertElliott(1.0, 99.0, 100.0, 0.0)
    assert parse_impairment("delay 10 rate 100kbps").delay == Delay(10_000)
    assert parse_impairment("rate 100kbps").rate == 800_000
    assert parse_impairment("delay 1s reorder 1%").gap == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected something to happen"),
        ("seed 1 limit 5", "expected something to happen"),
        ("dir=sideways loss 1%", "'dir=sideways': expected dir= with one of to-guest, from-guest, both"),
        ("link= loss 1%", "'link=': expected a link's name"),
        ("lose 1%", "'lose': expected one of dir=, link=, match, delay"),
        ("delay", "'delay' expects a time such as 50ms$"),
        ("delay soon", "'delay' expects a time such as 50ms, not 'soon'"),
        ("delay 2h", "not '2h'"),
        ("delay 3601s", "not '3601s'"),
        ("loss 101%", "'loss' expects a share such as 1%, not '101%'"),
        ("loss 5", "not '5'"),
        ("loss state 60% 10% 10% 10% 50%", "100% together at most"),
        ("delay 5ms distribution normal", "'distribution' expects a delay with a jitter"),
        ("delay 5ms 1ms distribution odd", "one of uniform, normal, pareto, paretonormal, not 'odd'"),
        ("reorder 5%", "'reorder' expects a delay"),
        ("delay 5ms gap 5", "'gap' expects reorder"),
        ("loss 1% loss 2%", "'loss': expected once"),
        ("dir=both dir=both loss 1%", "expected once"),
        ("rate 0bit", "'rate' expects a rate such as 10mbit, not '0bit'"),
        ("slot 10ms 5ms", "MIN no more than MAX"),
        ("slot 0ms", "above 0"),
        ("slot 1ms packets 0", "a number from 1 to 100000, not '0'"),
        ("loss 1% limit 100001", "a number from 1 to 100000"),
        ("loss 1% seed -1", "not '-1'"),
        ("match host x loss 1%", r"impairment 'match host x loss 1%': filter: expected an IP address"),
    ],
)
def test_what_makes_no_sense_is_named(text: str, said: str) -> None:
    with pytest.raises(ImpairmentError, match=said):
        parse_impairment(text)
