"""The choke point: every verdict is made here, each refusal counted and told once in a while, policies replaced."""

from __future__ import annotations

import ipaddress

import pytest

from netstack.engine.effects import Report
from netstack.engine.events import Event, FlowRefused, PolicyReplaced
from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.policy import Policy
from netstack.engine.refusals import MAX_PLACES
from netstack.engine.settings import NetworkSettings
from netstack.engine.verdict import ALLOW, PEEK, REFUSE, Question, Verdict
from netstack.network_spec import NetworkSpec

TCP, UDP, ICMP = 6, 17, 1
GUEST, OTHER = bytes([192, 168, 127, 2]), bytes([192, 168, 127, 3])
SITE = "93.184.216.34"
NETWORK = NetworkSettings()
NO_RULE = Verdict(REFUSE, "syn", "no-rule")


class Bench:
    """A judge with its outbox."""

    def __init__(self, *rules: str, spec: NetworkSpec | None = None, **options: object) -> None:
        self.outbox = Outbox()
        spec = spec or NetworkSpec.enabled(rules, **options)
        self.judge = Judge(Policy(spec.policy(), NETWORK), NETWORK, self.outbox)
        self.now = 0.0

    def replace(self, *rules: str, **options: object) -> None:
        self.judge.replace(Policy(NetworkSpec.enabled(rules, **options).policy(), NETWORK), "reload")

    def first(self, protocol: int, address: str, port: int) -> Verdict:
        return self.judge.first(question(protocol, address, port), self.now)

    def events(self) -> list[Event]:
        effects, self.outbox.effects = self.outbox.effects, []
        assert all(isinstance(effect, Report) for effect in effects)
        return [effect.event for effect in effects]

    def refuse(self, times: int = 1, verdict: Verdict = NO_RULE, guest: bytes = GUEST, port: int = 22) -> None:
        for _ in range(times):
            self.judge.refused(question(TCP, SITE, port, guest), verdict, "reset", self.now)


def question(protocol: int, address: str, port: int, guest: bytes = GUEST) -> Question:
    return Question(7, protocol, (guest, 40000), (ipaddress.ip_address(address).packed, port))


def totals(events: list[Event]) -> list[int]:
    assert all(isinstance(event, FlowRefused) for event in events)
    return [event.total for event in events]


# -- the first packet ------------------------------------------------------------------------------------------------


def test_the_step_says_what_the_first_packet_was() -> None:
    bench = Bench("10.0.0.0/8")
    assert bench.first(TCP, "10.0.0.1", 80) == Verdict(ALLOW, "syn", "address-rule", "10.0.0.0/8")
    assert bench.first(UDP, "10.0.0.1", 80) == Verdict(ALLOW, "datagram", "address-rule", "10.0.0.0/8")
    assert bench.judge.echo(question(ICMP, "10.0.0.1", 0)) == Verdict(ALLOW, "echo", "address-rule", "10.0.0.0/8")


def test_answers_given_to_this_guest_count_and_no_others() -> None:
    bench = Bench("github.com:22")
    site = ipaddress.ip_address(SITE).packed
    bench.judge.pins.answered(OTHER, "github.com", [site], 60, 0.0)
    assert bench.first(TCP, SITE, 22) == NO_RULE
    bench.judge.pins.answered(GUEST, "github.com", [site], 60, 0.0)
    assert bench.first(TCP, SITE, 22) == Verdict(ALLOW, "syn", "answered-name", "github.com:22", "github.com", "dns")
    bench.now = 60.0
    assert bench.first(TCP, SITE, 22) == NO_RULE


def synthetic(bench: Bench, name: str) -> str:
    return str(ipaddress.ip_address(bench.judge.synthetic.address_for(name) or b""))


def test_a_synthetic_address_is_its_name() -> None:
    bench = Bench("example.com:22", "udp/example.com:443", answers="synthetic")
    address = synthetic(bench, "example.com")
    assert bench.first(TCP, address, 22) == Verdict(
        ALLOW, "syn", "name-rule", "example.com:22", "example.com", "synthetic"
    )
    assert bench.first(TCP, address, 80)[:3] == (REFUSE, "syn", "port-not-covered")
    assert bench.first(UDP, address, 443).action == PEEK, "its hello has to agree"
    assert bench.first(TCP, "198.18.200.1", 22)[:3] == (REFUSE, "syn", "reserved-address"), "nobody's"


def test_what_is_said_has_to_agree_with_a_synthetic_address() -> None:
    bench = Bench("example.com", "example.org", answers="synthetic")
    asked = question(TCP, synthetic(bench, "example.com"), 443)
    assert bench.judge.named(asked, "example.com", "tls", "sni", 0.0).allowed
    assert bench.judge.named(asked, "example.org", "tls", "sni", 0.0) == Verdict(
        REFUSE, "tls", "name-disagrees-with-address", "", "example.org", "sni"
    )


# -- again -----------------------------------------------------------------------------------------------------------

BY_ADDRESS = Verdict(ALLOW, "syn", "no-list")
BY_NAME = Verdict(ALLOW, "tls", "name-rule", "example.com", "example.com", "sni")
BY_ANSWER = Verdict(ALLOW, "syn", "answered-name", "github.com:22", "github.com", "dns")


@pytest.mark.parametrize(
    ("old", "port", "rules", "reason"),
    [
        (BY_ADDRESS, 443, [SITE], ""),
        (BY_ADDRESS, 443, ["10.0.0.0/8"], "no-rule"),
        (BY_ADDRESS, 443, ["93.184.216.34:80"], "port-not-covered"),
        (BY_ADDRESS, 443, ["example.com"], "no-name"),
        (BY_ADDRESS, 443, [], ""),
        (BY_NAME, 443, ["*.com.example", "example.com"], ""),
        (BY_NAME, 443, ["example.org"], "name-not-allowed"),
        (BY_NAME, 443, [SITE], "name-not-allowed"),
        (BY_NAME, 443, ["example.com:80"], "port-not-covered"),
        (BY_NAME, 443, [], ""),
        (BY_ANSWER, 22, ["github.com:1-100"], ""),
        (BY_ANSWER, 22, ["github.com:443"], "no-rule"),
        (BY_ANSWER, 22, [SITE], ""),
        (BY_ANSWER, 22, [], ""),
    ],
)
def test_i5_a_live_flow_under_another_policy(old: Verdict, port: int, rules: list[str], reason: str) -> None:
    """No pin is asked: a live flow keeps the address its name had."""
    bench = Bench("replaced.example")
    bench.replace(*rules)
    verdict = bench.judge.again(question(TCP, SITE, port), old, 0.0)
    assert verdict.allowed == (not reason)
    if reason:
        assert (verdict.step, verdict.reason, verdict.name) == ("replaced", reason, old.name)


@pytest.mark.parametrize("old", [BY_ADDRESS, BY_NAME, BY_ANSWER])
@pytest.mark.parametrize("spec", [NetworkSpec.disabled(), NetworkSpec.enabled(deny_all=True)], ids=str)
def test_i5_nothing_lives_on_under_nothing(old: Verdict, spec: NetworkSpec) -> None:
    bench = Bench(spec=spec)
    for protocol in (TCP, UDP, ICMP):
        assert bench.judge.again(question(protocol, SITE, 22), old, 0.0).action == REFUSE


# -- hooks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("consults", "loosens", "reason", "overrulable"),
    [
        (True, True, "no-rule", True),
        (True, True, "name-not-allowed", True),
        (True, True, "metadata", False),
        (True, True, "disabled", False),
        (True, False, "no-rule", False),
        (False, True, "no-rule", False),
    ],
)
def test_f14_what_a_hook_may_overrule(consults: bool, loosens: bool, reason: str, overrulable: bool) -> None:
    judge = Bench().judge
    judge.consults, judge.loosens = consults, loosens
    assert judge.overrulable(Verdict(REFUSE, "syn", reason)) == overrulable


# -- telling (F13, J1) -----------------------------------------------------------------------------------------------


def test_j1_a_refusal_is_one_event_with_all_that_is_known() -> None:
    bench = Bench("example.com")
    verdict = Verdict(REFUSE, "tls", "name-not-allowed", "", "evil.example", "sni")
    bench.judge.refused(question(TCP, SITE, 443), verdict, "alert", 0.0)
    asked = question(TCP, SITE, 443)
    assert bench.events() == [FlowRefused(7, "tcp", asked.guest, asked.destination, verdict, "alert", 1, 1)]
    assert bench.judge.refusals == {"name-not-allowed": 1}


@pytest.mark.parametrize(("protocol", "word"), [(1, "icmp"), (6, "tcp"), (17, "udp"), (47, "47")])
def test_j2_protocols_have_words(protocol: int, word: str) -> None:
    bench = Bench()
    bench.judge.refused(question(protocol, SITE, 0), NO_RULE, "nothing", 0.0)
    (event,) = bench.events()
    assert isinstance(event, FlowRefused)
    assert event.protocol == word


def test_f13_the_same_refusal_again_is_told_by_orders_of_magnitude() -> None:
    bench = Bench()
    bench.refuse(12_345)
    assert totals(bench.events()) == [1, 10, 100, 1000, 10_000]
    assert bench.judge.refusals == {"no-rule": 12_345}


def test_f13_other_places_names_reasons_and_guests_are_other_refusals() -> None:
    bench = Bench()
    bench.refuse()
    bench.refuse(port=23)
    bench.refuse(guest=OTHER)
    bench.refuse(verdict=NO_RULE._replace(reason="port-not-covered"))
    bench.refuse(verdict=NO_RULE._replace(name="a.example"))
    assert totals(bench.events()) == [1] * 5
    bench.refuse()
    assert bench.events() == []


def test_f13_a_scan_of_all_ports_is_a_few_hundred_lines() -> None:
    bench = Bench()
    for port in range(1, 60_001):
        bench.refuse(port=port)
    told = totals(bench.events())
    assert told[:MAX_PLACES] == [1] * MAX_PLACES
    assert told[MAX_PLACES:] == [1, 10, 100, 1000, 10_000]
    assert bench.judge.refusals == {"no-rule": 60_000}


# -- another policy --------------------------------------------------------------------------------------------------


def test_i5_each_policy_has_a_number_and_its_refusals_are_told_anew() -> None:
    bench = Bench("example.com")
    bench.refuse(2)
    bench.replace("10.0.0.0/8", "example.org")
    bench.refuse()
    first, replaced, again = bench.events()
    assert isinstance(first, FlowRefused)
    assert isinstance(again, FlowRefused)
    assert replaced == PolicyReplaced(2, "reload", "listed", 2)
    assert (first.generation, again.generation, again.total) == (1, 2, 1)


@pytest.mark.parametrize(
    ("spec", "access"),
    [
        (NetworkSpec.enabled(), "full"),
        (NetworkSpec.enabled(["example.com"]), "listed"),
        (NetworkSpec.enabled(deny_all=True), "nothing"),
        (NetworkSpec.disabled(), "disabled"),
    ],
)
def test_i6_what_is_told_of_a_policy_is_what_is_enforced(spec: NetworkSpec, access: str) -> None:
    bench = Bench("other.example")
    bench.judge.replace(Policy(spec.policy(), NETWORK), "api")
    (event,) = bench.events()
    assert event == PolicyReplaced(2, "api", access, len(spec.rules()))
    assert bench.judge.policy.settings.rules == (spec.rules() if access in {"listed", "nothing"} else None)
    expected = {"full": ALLOW, "listed": PEEK}.get(access, REFUSE)
    assert bench.first(TCP, SITE, 443).action == expected
