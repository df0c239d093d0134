"""Hooks are asked about DNS questions before anything leaves."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from netstack.engine import dns_server
from netstack.engine.dns_server import Answer, Ask, Wait
from netstack.engine.effects import ConsultDns, ResolveUpstream
from netstack.engine.verdict import ALLOW, REFUSE, Verdict

from .dns_guest import (
    GUEST,
    PUBLIC,
    RULES,
    Gateway,
    query,
    read,
    records,
    refusal,
    respond,
    texts,
)


def consult(gateway: Gateway, message: dns.message.Message) -> ConsultDns:
    outcome = gateway.send(message)
    assert isinstance(outcome, Ask)
    assert isinstance(outcome.effect, ConsultDns)
    return outcome.effect


@pytest.mark.parametrize("rules", [None, RULES])
def test_a_hook_is_asked_before_anything_leaves(rules: list[str] | None) -> None:
    gateway = Gateway(rules)
    gateway.judge.consults = True
    message = query("Example.com.")
    effect = consult(gateway, message)
    assert (effect.guest, effect.name, effect.qtype) == (GUEST, "Example.com", "A")
    assert effect.verdict.allowed
    assert gateway.send(message) == Wait()
    assert gateway.server.waiting == 1
    result = gateway.server.consulted(effect.number, effect.verdict, gateway.now)
    assert result is not None
    token, outcome = result
    assert token == "t"
    assert isinstance(outcome, Ask)
    assert isinstance(outcome.effect, ResolveUpstream)
    assert gateway.server.consulted(effect.number, effect.verdict, gateway.now) is None
    upstream = dns.message.from_wire(outcome.effect.message)
    ((_, answer),) = gateway.server.resolved(
        outcome.effect.query, respond(upstream, records(f"example.com. 60 A {PUBLIC}")), gateway.now
    )
    assert texts(read(answer)) == [f"Example.com. 60 IN A {PUBLIC}"]
    assert gateway.event().verdict == effect.verdict
    # The cache does not spare the next one.
    effect = consult(gateway, message)
    result = gateway.server.consulted(effect.number, effect.verdict, gateway.now)
    assert result is not None
    assert isinstance(result[1], Answer)
    assert gateway.server.waiting == 0


@pytest.mark.parametrize("rules", [None, RULES])
def test_a_hook_refuses(rules: list[str] | None) -> None:
    gateway = Gateway(rules)
    gateway.judge.consults = True
    effect = consult(gateway, query("example.com."))
    verdict = effect.verdict._replace(action=REFUSE, step="hook", reason="closed", rule="")
    result = gateway.server.consulted(effect.number, verdict, gateway.now)
    assert result is not None
    assert isinstance(result[1], Answer)
    assert texts(read(result[1].message)) == ["example.com. 2 IN A 0.0.0.0"]
    event = gateway.event()
    assert (event.source, event.verdict) == ("policy", verdict)
    assert gateway.judge.refusals == {"closed": 1}


def test_a_hook_may_overrule_where_it_is_let() -> None:
    gateway = Gateway(RULES)
    gateway.judge.consults = True
    assert isinstance(gateway.send(query("other.example.net.")), Answer)
    gateway.judge.loosens = True
    effect = consult(gateway, query("other.example.net."))
    assert effect.verdict == refusal("name-not-allowed", "other.example.net")
    verdict = effect.verdict._replace(action=ALLOW, step="hook", reason="hook-allows")
    result = gateway.server.consulted(effect.number, verdict, gateway.now)
    assert result is not None
    assert isinstance(result[1], Ask)
    assert isinstance(result[1].effect, ResolveUpstream)
    upstream = dns.message.from_wire(result[1].effect.message)
    fill = records(f"other.example.net. 60 A {PUBLIC}", "other.example.net. 60 A 10.0.0.1")
    gateway.events.clear()
    ((_, answer),) = gateway.server.resolved(result[1].effect.query, respond(upstream, fill), gateway.now)
    assert texts(read(answer)) == [f"other.example.net. 60 IN A {PUBLIC}"]
    event_verdict = gateway.event().verdict
    assert event_verdict is not None
    assert (event_verdict.step, event_verdict.reason) == ("hook", "private-address-removed")
    # What is no host name is never put before it, and an opinion from before does not outlive a policy.
    assert isinstance(gateway.send(query("a\\.b.example.net.")), Answer)
    effect = consult(gateway, query("example.com.", "AAAA"))
    gateway.replace(["example.net"])
    result = gateway.server.consulted(effect.number, effect.verdict, gateway.now)
    assert result is not None
    assert isinstance(result[1], Answer)


def test_guests_that_wait_for_a_hook_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_server, "MAX_WAITING_PER_GUEST", 2)
    gateway = Gateway(None)
    gateway.judge.consults = True
    numbers = [consult(gateway, query(f"{n}.example.com.")).number for n in range(2)]
    assert gateway.answer(query("2.example.com.")).rcode() == dns.rcode.SERVFAIL
    gateway.server.consulted(numbers[0], Verdict(REFUSE, "hook", "no"), gateway.now)
    assert gateway.server.waiting == 1
