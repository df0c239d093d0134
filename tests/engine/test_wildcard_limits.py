"""What a wildcard lets out by DNS (conformance B11): it is a tunnel, and a narrow one."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from netstack.engine import wildcard_limits
from netstack.engine.dns_server import Answer, Ask, Outcome
from netstack.engine.effects import ResolveUpstream
from netstack.engine.rules import RuleSet
from netstack.engine.wildcard_limits import WildcardLimits

from .dns_guest import (
    GUEST,
    OTHER_GUEST,
    PUBLIC,
    RULES,
    Gateway,
    make_policy,
    query,
    read,
    records,
    refusal,
)


def ask_below(gateway: Gateway, name: str, rtype: str = "A", guest: bytes = GUEST) -> Outcome:
    outcome = gateway.send(query(name, rtype), token=name, guest=guest)
    if isinstance(outcome, Ask) and isinstance(outcome.effect, ResolveUpstream):
        gateway.server.resolved(outcome.effect.query, None, gateway.now)
    return outcome


@pytest.mark.parametrize(
    ("below", "reason"),
    [
        (".".join(["a" * 63, "a" * 63]), ""),
        (".".join(["a" * 63, "a" * 63, "a"]), "name-too-long-for-wildcard"),
        (".".join(["a" * 63] * 3), "name-too-long-for-wildcard"),
        ("1.2.3.4.5.6.7.8", ""),
        ("1.2.3.4.5.6.7.8.9", "too-many-labels-for-wildcard"),
        (".".join("f" * 32), "too-many-labels-for-wildcard"),
    ],
)
@pytest.mark.parametrize("rtype", ["A", "TXT"])
def test_b11_names_below_a_wildcard_are_no_longer_than_real_ones(below: str, reason: str, rtype: str) -> None:
    gateway = Gateway(RULES)
    name = f"{below}.example.org"
    outcome = gateway.send(query(name, rtype))
    assert isinstance(outcome, Answer if reason else Ask)
    if reason:
        event = gateway.event()
        assert event.verdict == refusal(reason, name, "*.example.org")
        assert (event.source, event.rcode) == ("policy", "NOERROR")


def test_b11_a_listed_name_may_have_any_length() -> None:
    name = ".".join("abcdefghijkl") + "." + "a" * 63 + "." + "b" * 63 + ".example.org"
    assert isinstance(Gateway([name, "*.example.org"]).send(query(name)), Ask)


def test_b11_new_names_below_a_wildcard_come_at_a_rate() -> None:
    gateway = Gateway(RULES)
    for number in range(wildcard_limits.BURST):
        assert isinstance(ask_below(gateway, f"{number}.example.org.", "TXT"), Ask)
    gateway.events.clear()
    refused = ask_below(gateway, "one-more.example.org.", "TXT")
    assert isinstance(refused, Answer)
    assert read(refused.message).rcode() == dns.rcode.REFUSED
    event = gateway.event()
    assert (event.source, event.rcode) == ("policy", "REFUSED")
    assert event.verdict == refusal("too-many-new-names", "one-more.example.org", "*.example.org")
    # Known ones, names that are listed themselves and other guests are not concerned.
    assert isinstance(ask_below(gateway, "1023.example.org.", "TXT"), Answer)  # the failure is in the cache
    gateway.now += 1
    assert isinstance(ask_below(gateway, "1023.example.org.", "TXT"), Ask)
    assert isinstance(ask_below(gateway, "example.com."), Ask)
    assert isinstance(ask_below(gateway, "x.example.org.", guest=OTHER_GUEST), Ask)
    # Tokens come back. One second: two.
    for outcome in (Ask, Ask, Answer):
        assert isinstance(ask_below(gateway, f"{gateway.server.cache.misses}.new.example.org."), outcome)


def test_b11_each_type_is_a_new_question() -> None:
    """16 bits of the guest's choice, repeated with a name that is known."""
    gateway = Gateway(RULES)
    gateway.judge.wildcards.admit(GUEST, "example.org", "x", 0, gateway.now)
    for number in range(wildcard_limits.BURST - 1):
        assert isinstance(ask_below(gateway, "a.example.org.", f"TYPE{number + 1000}"), Ask)
    assert isinstance(ask_below(gateway, "a.example.org.", "TYPE3000"), Answer)


def test_b11_what_the_cache_has_costs_nothing() -> None:
    gateway = Gateway(RULES)
    gateway.forward(query("a.example.org."), records(f"a.example.org. 3600 A {PUBLIC}"))
    for number in range(wildcard_limits.BURST):
        ask_below(gateway, f"{number}.example.org.", guest=OTHER_GUEST)
    assert isinstance(ask_below(gateway, "b.example.org.", guest=OTHER_GUEST), Answer)
    cached = gateway.send(query("a.example.org."), guest=OTHER_GUEST)
    assert isinstance(cached, Answer)
    assert len(read(cached.message).answer) == 1


# The limits themselves, as flows ask them too: a name in a TLS hello is looked up like one in a question.


def rule_set(*rules: str) -> RuleSet:
    return make_policy(list(rules)).rules


@pytest.mark.parametrize(
    ("rules", "name", "suffix"),
    [
        (["*.example.org"], "a.b.example.org", "example.org"),
        (["*.example.org", "*.b.example.org"], "a.b.example.org", "b.example.org"),
        (["*.example.org", "a.b.example.org"], "a.b.example.org", ""),
        (["*.example.org"], "example.net", ""),
        (["10.0.0.0/8"], "example.net", ""),
    ],
)
def test_which_wildcard_counts(rules: list[str], name: str, suffix: str) -> None:
    assert rule_set(*rules).wildcard(name) == suffix


def test_b11_faults() -> None:
    limits = WildcardLimits()
    rules = rule_set("*.example.org", "*.example.net", "example.com")
    assert limits.fault(rules, GUEST, "x" * 63 + ".example.org", 1, 0.0) == ""
    assert limits.fault(rules, GUEST, ".".join(["x" * 63] * 3) + ".example.org", 1, 0.0) == "name-too-long-for-wildcard"
    for number in range(wildcard_limits.BURST - 1):
        assert limits.fault(rules, GUEST, f"{number}.example.org", 1, 0.0) == ""
    for _ in range(3):
        assert limits.fault(rules, GUEST, "new.example.org", 1, 0.0) == "too-many-new-names"
    assert limits.refused == 3
    assert limits.fault(rules, GUEST, "7.example.org", 1, 0.0) == ""
    assert limits.fault(rules, GUEST, "new.example.net", 1, 0.0) == "", "each wildcard has its own"
    assert limits.fault(rules, OTHER_GUEST, "new.example.org", 1, 0.0) == "", "and each guest"
    assert limits.fault(rules, GUEST, "example.com", 1, 0.0) == ""
    # A bucket is never fuller than full.
    admitted = sum(not limits.fault(rules, GUEST, f"later{n}.example.org", 1, 1e6) for n in range(3000))
    assert admitted == wildcard_limits.BURST


def test_b11_the_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wildcard_limits, "MAX_SEEN", 3)
    monkeypatch.setattr(wildcard_limits, "MAX_BUCKETS", 2)
    monkeypatch.setattr(wildcard_limits, "BURST", 5)
    limits = WildcardLimits()
    for name in "abc":
        assert limits.admit(GUEST, "example.org", name, 1, 0.0)
    assert limits.admit(GUEST, "example.org", "a", 1, 0.0)  # seen, and now the one last used
    for name in "de":
        assert limits.admit(GUEST, "example.org", name, 1, 0.0)
    assert limits.admit(GUEST, "example.org", "a", 1, 0.0)
    assert not limits.admit(GUEST, "example.org", "b", 1, 0.0), "forgotten, so new again"
    for suffix in ("example.net", "example.com"):
        limits.admit(GUEST, suffix, f"x.{suffix}", 1, 0.0)
    assert (len(limits._buckets), len(limits._seen)) == (2, 3)
