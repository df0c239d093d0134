"""One grammar for three doors: texts, lists, mappings; faults of streams and DNS read back the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_iface import units
from guest_iface.impair_spec import MAX_SEED, Impairment
from netstack.fault_spec import ANSWER, DIAL_FAILURES, DNS_CODES, TIMEOUT, DnsFault, StreamFault
from netstack.impairments import MAX_IMPAIRMENTS, parse_impairments
from tests.guest_iface.test_frame_filter import filters
from tests.guest_iface.test_impair_spec import impairments

times = st.integers(1, units.MAX_TIME)
odds = {"chance": st.floats(0, 100), "seed": st.none() | st.integers(0, MAX_SEED)}
sizes = st.none() | st.integers(0, units.MAX_SIZE)
stream_faults = st.builds(
    StreamFault,
    match=st.none() | filters,
    dial_delay=times,
    dial=st.sampled_from(["", *DIAL_FAILURES]),
    reset_after=sizes,
    black_hole_after=sizes,
    slow_close=st.just(0) | times,
    **odds,
)
names = st.sampled_from(["*", "pypi.org", "*.example.com", "a"])
outcomes = st.one_of(
    st.tuples(st.sampled_from([*DNS_CODES, TIMEOUT]), st.just(())),
    st.tuples(st.just(ANSWER), st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=16).map(tuple)),
)
dns_faults = st.builds(
    lambda name, outcome, delay, chance, seed: DnsFault(
        name=name, outcome=outcome[0], addresses=outcome[1], delay=delay, chance=chance, seed=seed
    ),
    names, outcomes, st.just(0) | times, odds["chance"], odds["seed"],
)  # fmt: skip


@given(st.lists(st.one_of(impairments(), stream_faults, dns_faults), max_size=4))
def test_what_is_printed_reads_back_the_same(made: list[Impairment | StreamFault | DnsFault]) -> None:
    texts = [str(each) for each in made]
    assert parse_impairments(texts, "impair") == tuple(made)
    assert parse_impairments("; ".join(texts), "impair") == tuple(made)


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (None, []),
        ("", []),
        ("delay 5ms; loss 1% ;", ["delay 5ms", "loss 1%"]),
        (["delay 5ms", {"loss": "1% 25%", "dir": "to-guest"}], ["delay 5ms", "dir=to-guest loss 1% 25%"]),
        (
            {"delay": "50ms 10ms", "distribution": "normal", "seed": 7, "match": "tcp port 443 or arp", "link": "tap*"},
            ["link=tap* match (tcp and port 443 or arp) delay 50ms 10ms distribution normal seed 7"],
        ),
        ({"stream": None, "match": "port 25", "reset": "after 1k"}, ["stream match (port 25) reset after 1k"]),
        ({"stream": True, "black-hole": None, "chance": "5%"}, ["stream black-hole after 0 chance 5%"]),
        ({"dns": "Pypi.org.", "servfail": None, "delay": "1s"}, ["dns pypi.org servfail delay 1s"]),
        ({"answer": "10.0.0.9", "dns": "*.a.example"}, ["dns *.a.example answer 10.0.0.9"]),
    ],
)
def test_values_of_every_door(value: object, texts: list[str]) -> None:
    assert [str(each) for each in parse_impairments(value, "impair")] == texts


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "^impair: 5: expected a text such as 'delay 50ms loss 1%', a mapping"),
        (["delay 5ms", ["lose 1%"]], "^impair: 'lose': expected one of dir="),
        ({"delay": ["5ms"]}, r"^impair: delay: expected a text or a number, not \['5ms'\]"),
        ("stream", "impairment 'stream': expected a fault, as in reset after 100k"),
        ("stream chance 5%", "expected a fault"),
        ("stream reset after", "'reset after' expects a size such as 100k$"),
        ("stream dial slowly", "'dial' expects one of refused, timed-out, host-unreachable, network-unreachable"),
        ("stream slow-close 0ms", "'slow-close' expects a time such as 500ms, not '0ms'"),
        ("stream reset reset", "'reset': expected nothing of its kind before it"),
        ("stream match tcp or reset", "expected host, net"),
        ("stream loss 1%", "'loss': expected one of dial-delay, dial, reset, black-hole, slow-close, chance, seed"),
        ("dns", r"'dns' expects a DNS name, \*.NAME or \*$"),
        ("dns a..b servfail", "not 'a..b'"),
        ("dns a.example", "expected a fault, as in servfail or delay 1s"),
        ("dns a.example servfail nxdomain", "'nxdomain': expected nothing of its kind"),
        ("dns a.example answer ::1", "'answer' expects IPv4 addresses with commas between them, not '::1'"),
        ("; ".join(["loss 1%"] * (MAX_IMPAIRMENTS + 1)), "65 impairments: expected at most 64"),
    ],
)
def test_what_makes_no_sense_is_named(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_impairments(value, "impair")
