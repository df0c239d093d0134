"""The DNS cache in virtual time: how long what is kept, and that it stays within its bounds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.dns_cache import FAILURE_TTL, MAX_NEGATIVE_TTL, MAX_TTL, DnsCache, Key
from netstack.wire import dns as wire

NAME = b"\x03www\x04test\x00"
KEY = Key(NAME, wire.A, wire.CLASS_IN, dnssec_ok=False, checking_disabled=False)
CNAME = 5
POINTER = wire.pointer(wire.HEADER)
NOW = 1000.0


def soa(ttl: int, minimum: int) -> bytes:
    return wire.record(POINTER, wire.SOA, ttl, b"\x00\x00" + bytes(16) + minimum.to_bytes(4, "big"))


def a(ttl: int) -> bytes:
    return wire.record(POINTER, wire.A, ttl, b"\x01\x02\x03\x04")


def reply(
    answers: Sequence[bytes] = (),
    authority: Sequence[bytes] = (),
    rcode: int = wire.NOERROR,
    *,
    truncated: bool = False,
) -> wire.Reply:
    return wire.Reply(rcode, wire.collect(tuple(answers), tuple(authority)), truncated=truncated)


def kept_for(what: wire.Reply, key: Key = KEY) -> float:
    """Seconds that a reply is kept, to the second."""
    cache = DnsCache()
    cache.put(key, what, NOW)
    seconds = 0
    step = 1 << 18
    while step:
        if cache.get(key, NOW + seconds + step - 0.5) is not None:
            seconds += step
        else:
            cache.put(key, what, NOW)  # the look-up dropped it
        step >>= 1
    return seconds


@pytest.mark.parametrize(
    ("what", "seconds"),
    [
        (reply([a(300)]), 300),
        (reply([a(300), a(20)]), 20),
        (reply([a(300)], [wire.record(POINTER, wire.NS, 30, POINTER)]), 30),
        (reply([a(0)]), 0),
        (reply([a(1 << 20)]), MAX_TTL),
        (reply([a(1 << 31)]), 0),  # RFC 2181 section 8
        (reply([wire.record(POINTER, CNAME, 50, POINTER), a(60)]), 50),
        # RFC 2308 section 5: no such name, no such type, each for the smaller of the SOA's TTL and minimum.
        (reply([], [soa(100, 60)], wire.NXDOMAIN), 60),
        (reply([], [soa(40, 60)], wire.NXDOMAIN), 40),
        (reply([], [soa(100, 60)]), 60),
        (reply([], [soa(1 << 20, 1 << 20)]), MAX_NEGATIVE_TTL),
        (reply([wire.record(POINTER, CNAME, 50, POINTER)], [soa(100, 60)]), 50),
        (reply([wire.record(POINTER, CNAME, 50, POINTER)], [soa(100, 60)], wire.NXDOMAIN), 50),
        (reply([], [], wire.NXDOMAIN), 0),
        (reply([], [wire.record(POINTER, wire.NS, 30, POINTER)]), 0),
        (reply([wire.record(POINTER, CNAME, 50, POINTER)]), 0),
        (reply([], [wire.record(POINTER, wire.SOA, 100, b"\x00\x00")], wire.NXDOMAIN), 0),
        # RFC 9520 section 3.2.
        (reply([], [], wire.SERVFAIL), FAILURE_TTL),
        (reply([], [], wire.REFUSED), 0),
        (reply([], [], wire.BADVERS), 0),
        (reply([a(300)], truncated=True), 0),
    ],
)
def test_how_long_a_reply_is_kept(what: wire.Reply, seconds: float) -> None:
    assert kept_for(what) == seconds


def test_any_keeps_whatever_came() -> None:
    assert kept_for(reply([a(30)]), KEY._replace(qtype=wire.ANY)) == 30
    assert kept_for(reply([a(30)]), KEY._replace(qtype=wire.NS)) == 0


def test_ttls_count_down() -> None:
    cache = DnsCache()
    cache.put(KEY, reply([a(300), a(100)], [wire.record(POINTER, wire.NS, 7 * MAX_TTL, POINTER)]), NOW)
    for age, shown in (
        (0.0, [300, 100, 7 * MAX_TTL]),
        (0.9, [300, 100, 7 * MAX_TTL]),
        (99.9, [201, 1, 7 * MAX_TTL - 99]),
    ):
        kept = cache.get(KEY, NOW + age)
        assert kept is not None
        assert wire.ttls(kept.records) == shown
    assert cache.get(KEY, NOW + 100) is None
    assert (cache.hits, cache.misses, len(cache), cache.bytes_used) == (3, 1, 0, 0)


def test_the_soa_of_a_kept_reply_says_how_long_it_may_be_kept() -> None:
    cache = DnsCache()
    cache.put(KEY, reply([], [soa(100, 60)], wire.NXDOMAIN), NOW)
    kept = cache.get(KEY, NOW + 10)
    assert kept is not None
    assert wire.ttls(kept.records) == [50]


def test_we_are_no_authority_for_what_is_kept() -> None:
    cache = DnsCache()
    cache.put(KEY, reply([a(300)])._replace(authoritative=True, authentic=True), NOW)
    kept = cache.get(KEY, NOW)
    assert kept is not None
    assert (kept.authoritative, kept.authentic) == (False, True)


def test_do_and_cd_are_questions_of_their_own() -> None:
    cache = DnsCache()
    cache.put(KEY, reply([a(300)]), NOW)
    assert cache.get(KEY._replace(dnssec_ok=True), NOW) is None
    assert cache.get(KEY._replace(checking_disabled=True), NOW) is None
    assert cache.get(KEY._replace(qtype=28), NOW) is None
    assert cache.get(KEY._replace(qclass=3), NOW) is None


def test_a_new_reply_replaces_the_old_one_even_when_it_is_not_kept() -> None:
    cache = DnsCache()
    cache.put(KEY, reply([a(300)]), NOW)
    cache.put(KEY, reply([a(300), a(300)]), NOW)
    assert len(cache) == 1
    cache.put(KEY, reply([a(0)]), NOW)
    assert (len(cache), cache.bytes_used) == (0, 0)


def numbered(number: int) -> Key:
    return KEY._replace(name=b"\x04%04d\x00" % number)


def test_the_least_recently_used_goes_first() -> None:
    cache = DnsCache(max_entries=3)
    for number in range(3):
        cache.put(numbered(number), reply([a(300)]), NOW)
    assert cache.get(numbered(0), NOW) is not None
    cache.put(numbered(3), reply([a(300)]), NOW)
    assert [cache.get(numbered(number), NOW) is not None for number in range(4)] == [True, False, True, True]
    assert (len(cache), cache.evicted) == (3, 1)


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = DnsCache(max_bytes=20_000)
    cache.put(numbered(1), reply([a(300)]), NOW)
    cache.put(KEY, reply([wire.record(POINTER, wire.A, 300, bytes(30_000))]), NOW)
    assert cache.get(numbered(1), NOW) is not None
    assert len(cache) == 1


def test_clear() -> None:
    cache = DnsCache()
    cache.put(KEY, reply([a(300)]), NOW)
    cache.clear()
    assert (cache.get(KEY, NOW), len(cache), cache.bytes_used) == (None, 0, 0)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40), st.integers(0, 400), st.integers(0, 3)), max_size=80))
def test_the_bounds_hold(steps: list[tuple[int, int, int, int]]) -> None:
    cache = DnsCache(max_entries=10, max_bytes=12_000)
    now = NOW
    for number, ttl, size, pause in steps:
        now += pause
        cache.put(numbered(number), reply([wire.record(POINTER, wire.A, ttl, bytes(size))] * (size % 7)), now)
        cache.get(numbered(ttl), now)
        assert len(cache) <= 10
        assert 0 <= cache.bytes_used <= 12_000
        assert bool(cache.bytes_used) == bool(len(cache))
