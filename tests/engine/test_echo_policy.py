"""ICMP echo under a policy and a hook: listed addresses only, asked once a while, refused by ICMP, never faked (E4)."""

from __future__ import annotations

import pytest

from netstack.engine import echo_flows
from netstack.engine.effects import CloseEcho, ConsultFlow, OpenEcho, SendEcho
from netstack.engine.events import FlowClosed, FlowOpened, FlowRefused
from netstack.engine.verdict import ALLOW, REFUSE
from netstack.network_spec import NetworkSpec

from .wire_guest import GUEST, VirtualWire, ip, ping

SITE, OTHER_SITE = "93.184.216.34", "151.101.1.6"
PROHIBITED = (3, 13)


def listed(*rules: str, consults: bool = False, loosens: bool = False) -> VirtualWire:
    wire = VirtualWire(policy=NetworkSpec.enabled(rules).policy())
    wire.stack.judge.consults = consults
    wire.stack.judge.loosens = loosens
    return wire


def asked_hook(wire: VirtualWire) -> ConsultFlow:
    return wire.asked_one(ConsultFlow)


def says(wire: VirtualWire, effect: ConsultFlow, action: int, reason: str) -> None:
    verdict = effect.verdict._replace(action=action, step="hook", reason=reason, rule="")
    wire.stack.flow_consulted(effect.question, verdict, wire.now)


def test_a_hook_is_asked_about_a_destination_once_in_a_while() -> None:
    wire = listed(SITE, consults=True)
    wire.send(ping(SITE))
    effect = asked_hook(wire)
    assert wire.hears_nothing()
    wire.stack.flow_consulted(effect.question, effect.verdict, wire.now)
    assert [type(each) for each in wire.asked()] == [OpenEcho, SendEcho]
    wire.send(ping(SITE, sequence=2), ping(SITE, sequence=1, identifier=78))
    assert [type(each) for each in wire.asked()] == [SendEcho, OpenEcho, SendEcho]
    wire.wait(echo_flows.IDLE + 0.01)
    assert {type(each) for each in wire.asked()} == {CloseEcho}
    wire.send(ping(SITE, sequence=3))
    assert asked_hook(wire).question.destination == (ip(SITE), 0)


def test_what_a_hook_allowed_is_told_as_what_it_allowed() -> None:
    """Also of a flow that begins later, when the hook is not asked again."""
    wire = listed(OTHER_SITE, consults=True, loosens=True)
    wire.send(ping(SITE))
    effect = asked_hook(wire)
    assert effect.verdict[:3] == (REFUSE, "echo", "no-rule")
    says(wire, effect, ALLOW, "trusted")
    wire.send(ping(SITE, identifier=78))
    assert [event.verdict[:3] for event in wire.told(FlowOpened)] == [(ALLOW, "hook", "trusted")] * 2
    assert not wire.told(FlowRefused)


def test_a_hook_refuses_and_is_asked_again() -> None:
    wire = listed(SITE, consults=True)
    for _ in range(2):
        wire.send(ping(SITE))
        says(wire, asked_hook(wire), REFUSE, "closed")
        assert wire.asks_nothing()
        wire.quoted(wire.hear_one(), *PROHIBITED)
    (event,) = wire.told(FlowRefused)
    assert event[1:4] == ("icmp", (ip(GUEST), 77), (ip(SITE), 0))
    assert (event.verdict[:3], event.told) == ((REFUSE, "hook", "closed"), "unreachable")
    assert wire.stack.judge.refusals == {"closed": 2}


def test_requests_that_wait_for_the_hook_are_bounded_and_counted() -> None:
    wire = listed("0.0.0.0/0", consults=True)
    wire.send(*(ping(f"45.33.{number // 250}.{number % 250 + 1}") for number in range(echo_flows.MAX_ASKING + 5)))
    asked = wire.asked()
    assert len(asked) == echo_flows.MAX_ASKING
    assert wire.dropped == {"icmp-waits-for-hook": 5}
    for effect in asked:
        wire.stack.flow_consulted(effect.question, effect.verdict, wire.now)
    wire.asked()
    wire.send(ping(SITE))
    assert asked_hook(wire).question.destination == (ip(SITE), 0)


@pytest.mark.parametrize("action", [ALLOW, REFUSE])
def test_an_answer_for_a_request_nobody_waits_for(action: int) -> None:
    wire = listed(SITE, consults=True)
    wire.send(ping(SITE))
    effect = asked_hook(wire)
    wire.stack.replace_policy(NetworkSpec.enabled(deny_all=True).policy(), "reload", wire.now)
    wire.quoted(wire.hear_one(), *PROHIBITED)
    says(wire, effect, action, "late")
    assert wire.asks_nothing()
    assert wire.hears_nothing()


def test_i5_a_mapping_whose_destination_is_no_longer_listed_ends() -> None:
    wire = listed(SITE)
    wire.send(ping(SITE))
    flow = wire.asked()[0].flow
    wire.stack.replace_policy(NetworkSpec.enabled([OTHER_SITE]).policy(), "reload", wire.now)
    assert wire.asked_one(CloseEcho).flow == flow
    assert [event.reason for event in wire.told(FlowClosed)] == ["refused"]
    wire.stack.echo_received(flow, ip(SITE), 1, b"abc", wire.now)
    assert wire.hears_nothing()
