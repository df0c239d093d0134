"""The policy by itself: rules in, verdicts out. Flows through a whole stack are in tests/conformance."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.policy import FULL_ACCESS, MAX_REMEMBERED, Policy, PolicySettings
from netstack.engine.rules import TCP, UDP, parse_rule
from netstack.engine.settings import NetworkSettings
from netstack.engine.verdict import ALLOW, PEEK, REFUSE, Verdict
from netstack.network_spec import NetworkSpec, is_public_suffix

SITE, HOST_ALIAS = "93.184.216.34", "192.168.127.254"
ACTIONS = {ALLOW: "allow", REFUSE: "refuse", PEEK: "peek"}


def policy(*rules: str, metadata_access: bool = False, **settings: object) -> Policy:
    """A policy with a list."""
    read = tuple(parse_rule(rule, is_public_suffix) for rule in rules)
    return Policy(
        PolicySettings(rules=read, **settings),  # type: ignore[arg-type]  # by name, as the tests write them
        NetworkSettings(metadata_access=metadata_access),
    )


FULL = Policy(FULL_ACCESS, NetworkSettings())
DISABLED = Policy(NetworkSpec.disabled().policy(), NetworkSettings())
NOTHING = Policy(NetworkSpec.enabled(deny_all=True).policy(), NetworkSettings())


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def to(held: Policy, protocol: int, address: str, port: int, *answered: str) -> tuple[str, str, str]:
    """Action, reason and rule for a flow to an address."""
    verdict = held.connect(protocol, packed(address), port, step="syn", answered=answered)
    assert verdict.step == "syn"
    return ACTIONS[verdict.action], verdict.reason, verdict.rule


def test_what_is_remembered_of_a_place_is_said_of_no_other() -> None:
    """More places than are remembered, each asked again: the verdict is that of a policy that was never asked."""
    rules = ("10.0.0.0/8:80", "tcp/192.0.2.1", "*.example.com:443", "example.com:7000")
    held = policy(*rules)
    places = [
        (protocol, address, port, step)
        for address in ("10.1.2.3", "192.0.2.1", SITE)
        for port in (80, 443, *range(1, MAX_REMEMBERED // 4))
        for protocol, step in ((TCP, "syn"), (UDP, "datagram"))
    ]
    fresh = [policy(*rules).connect(TCP, packed(SITE), 7000, step="syn", answered=["example.com"])]
    for _ in range(2):
        for protocol, address, port, step in places:
            verdict = held.connect(protocol, packed(address), port, step=step)
            allowed = (address == "10.1.2.3" and port == 80) or (address == "192.0.2.1" and protocol == TCP)
            assert (verdict.step, verdict.allowed) == (step, allowed)
        # Who was given an address for a name is judged by that, and nobody else.
        assert held.connect(TCP, packed(SITE), 7000, step="syn", answered=["example.com"]) == fresh[0]
        assert not held.connect(TCP, packed(SITE), 7000, step="syn").allowed
    assert fresh[0].allowed


# -- flows by address ------------------------------------------------------------------------------------------------


def test_without_a_list_all_that_can_be_reached_is_allowed() -> None:
    for address in (SITE, "10.0.0.1", "100.64.0.1", HOST_ALIAS, "198.51.100.1"):
        for protocol in (TCP, UDP):
            assert to(FULL, protocol, address, 1) == ("allow", "no-list", "")


@pytest.mark.parametrize("held", [FULL, policy("0.0.0.0/0", "[::]/0", "@public")], ids=["no list", "all"])
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("169.254.169.254", "metadata"),
        ("168.63.129.16", "metadata"),
        ("100.100.100.200", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("fe80::1", "metadata"),
        ("127.0.0.1", "loopback-address"),
        ("::1", "loopback-address"),
        ("::ffff:127.0.0.1", "loopback-address"),
        ("0.0.0.0", "unspecified-address"),
        ("224.0.0.1", "multicast-address"),
        ("255.255.255.255", "reserved-address"),
    ],
)
def test_places_that_no_rule_and_no_freedom_opens(held: Policy, address: str, reason: str) -> None:
    assert to(held, TCP, address, 80) == ("refuse", reason, "")
    assert to(held, UDP, address, 80) == ("refuse", reason, "")


def test_metadata_services_open_by_setting_and_then_need_a_rule_like_any_place() -> None:
    assert to(policy("169.254.169.254:80", metadata_access=True), TCP, "169.254.169.254", 80)[0] == "allow"
    assert to(policy(metadata_access=True), TCP, "169.254.169.254", 80) == ("refuse", "link-local-address", "")


def test_address_rules() -> None:
    held = policy("93.184.216.0/24:443", "tcp/10.0.0.0/8:5432", "udp/10.1.0.0/16", "@host:8080")
    assert to(held, TCP, SITE, 443) == ("allow", "address-rule", "93.184.216.0/24:443")
    assert to(held, TCP, SITE, 80) == ("refuse", "port-not-covered", "93.184.216.0/24:443")
    assert to(held, TCP, "10.1.2.3", 5432) == ("allow", "address-rule", "tcp/10.0.0.0/8:5432")
    assert to(held, UDP, "10.1.2.3", 5432) == ("allow", "address-rule", "udp/10.1.0.0/16")
    assert to(held, UDP, "10.2.2.3", 5432)[1] == "port-not-covered"
    assert to(held, TCP, "11.0.0.1", 5432) == ("refuse", "no-rule", "")
    assert to(held, TCP, "172.16.0.1", 5432) == ("refuse", "private-address", "")
    assert to(held, TCP, HOST_ALIAS, 8080) == ("allow", "address-rule", "@host:8080")
    assert to(held, TCP, HOST_ALIAS, 22) == ("refuse", "port-not-covered", "@host:8080")


def test_a9_the_host_is_no_place_a_list_opens_by_itself() -> None:
    for rules in ((), ("@public",), ("example.com",), ("192.168.0.0/16",), ("0.0.0.0/0",)):
        assert to(policy(*rules), TCP, HOST_ALIAS, 443) == ("refuse", "private-address", "")
    for rule in ("@host", HOST_ALIAS, f"{HOST_ALIAS}/32:443"):
        assert to(policy(rule), TCP, HOST_ALIAS, 443) == ("allow", "address-rule", rule)


def test_nothing_and_no_network() -> None:
    for address in (SITE, "10.0.0.1", HOST_ALIAS):
        assert to(NOTHING, TCP, address, 443)[0] == "refuse"
        assert to(DISABLED, TCP, address, 443) == ("refuse", "disabled", "")


# -- flows by name ---------------------------------------------------------------------------------------------------


def test_where_a_name_is_read_from_the_first_bytes() -> None:
    held = policy("example.com")
    for protocol, port in ((TCP, 80), (TCP, 443), (UDP, 443)):
        assert to(held, protocol, SITE, port) == ("peek", "name-decides", "")
    for protocol, port in ((TCP, 22), (TCP, 8443), (UDP, 80), (UDP, 53)):
        assert to(held, protocol, SITE, port) == ("refuse", "no-rule", "")


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "192.0.2.1", "::ffff:8.8.8.8"]
)
def test_a1_a_name_opens_no_place_that_is_not_public(address: str) -> None:
    held = policy("example.com", "example.org:22")
    assert to(held, TCP, address, 443)[0] == "refuse"
    assert to(held, TCP, address, 22, "example.org")[0] == "refuse"


def test_a_rule_with_a_port_opens_the_addresses_its_name_was_answered_with() -> None:
    held = policy("github.com:22", "*.example.com:8000-8999")
    assert to(held, TCP, SITE, 22, "other.example", "github.com") == ("allow", "answered-name", "github.com:22")
    assert to(held, TCP, SITE, 8443, "a.b.example.com")[0] == "allow"
    assert to(held, TCP, SITE, 22) == ("refuse", "no-rule", "")
    assert to(held, TCP, SITE, 23, "github.com") == ("refuse", "no-rule", "")
    assert to(held, TCP, SITE, 443, "github.com") == ("refuse", "no-rule", "")


def test_c17_a_name_without_a_port_opens_no_other_port() -> None:
    held = policy("example.com", "github.com:22")
    assert to(held, TCP, SITE, 22, "example.com") == ("refuse", "no-rule", "")


def test_e2_answered_names_open_nothing_by_udp() -> None:
    """policy.md: under a list UDP goes to listed addresses, and by name only where QUIC says it."""
    held = policy("example.com:5000", "udp/example.com:5001", "*.example.com:1-65535")
    for port in (5000, 5001, 53):
        assert to(held, UDP, SITE, port, "example.com", "a.example.com") == ("refuse", "no-rule", "")
    assert to(held, UDP, SITE, 443, "a.example.com") == ("peek", "name-decides", "")


def test_on_a_port_where_names_are_read_an_answer_is_not_enough() -> None:
    assert to(policy("example.com:443"), TCP, SITE, 443, "example.com") == ("peek", "name-decides", "")


def named(held: Policy, protocol: int, name: str, port: int) -> Verdict:
    verdict = held.name(protocol, name, port, step="tls", source="sni")
    assert (verdict.step, verdict.name, verdict.source) == ("tls", name, "sni")
    return verdict


def test_names() -> None:
    held = policy("example.com", "*.example.org:8443", "udp/quic.example.com")
    assert named(held, TCP, "example.com", 443)[:4] == (ALLOW, "tls", "name-rule", "example.com")
    assert named(held, UDP, "example.com", 443).allowed
    assert named(held, TCP, "example.com", 22)[:4] == (REFUSE, "tls", "port-not-covered", "example.com")
    assert named(held, TCP, "a.example.org", 8443).rule == "*.example.org:8443"
    assert named(held, TCP, "example.org", 8443)[2:4] == ("name-not-allowed", "")
    assert named(held, UDP, "quic.example.com", 443).allowed
    assert named(held, TCP, "quic.example.com", 443).reason == "port-not-covered"
    assert named(NOTHING, TCP, "example.com", 443).reason == "name-not-allowed"
    assert named(DISABLED, TCP, "example.com", 443).reason == "disabled"
    assert named(FULL, TCP, "example.com", 443).reason == "no-list"


# -- echo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "address", "action", "reason"),
    [
        (FULL, SITE, ALLOW, "no-list"),
        (FULL, "169.254.169.254", REFUSE, "metadata"),
        (policy("93.184.216.0/24"), SITE, ALLOW, "address-rule"),
        (policy("@public"), SITE, ALLOW, "address-rule"),
        (policy("@public"), "10.0.0.1", REFUSE, "no-rule"),
        (policy("@host"), HOST_ALIAS, ALLOW, "address-rule"),
        (policy("93.184.216.0/24:443"), SITE, REFUSE, "no-rule"),
        (policy("tcp/93.184.216.0/24"), SITE, REFUSE, "no-rule"),
        (policy("example.com"), SITE, REFUSE, "no-rule"),
        (policy("0.0.0.0/0"), "168.63.129.16", REFUSE, "metadata"),
        (NOTHING, SITE, REFUSE, "no-rule"),
        (DISABLED, SITE, REFUSE, "disabled"),
    ],
)
def test_e4_echo_goes_where_a_rule_lists_the_address_for_everything(
    held: Policy, address: str, action: int, reason: str
) -> None:
    verdict = held.echo(packed(address))
    assert (verdict.action, verdict.step, verdict.reason) == (action, "echo", reason)


# -- DNS -------------------------------------------------------------------------------------------------------------


def test_questions() -> None:
    held = policy("example.com:22", "*.example.org")
    assert held.question("example.com")[:4] == (ALLOW, "dns", "name-rule", "example.com:22")
    assert held.question("a.example.org").allowed
    assert held.question("example.org")[:5] == (REFUSE, "dns", "name-not-allowed", "", "example.org")
    assert held.question(None, "a b")[:5] == (REFUSE, "dns", "not-a-host-name", "", "a b")
    assert FULL.question(None, "a b").allowed
    assert NOTHING.question("example.com").reason == "name-not-allowed"
    assert DISABLED.question("example.com").reason == "disabled"
    assert policy("10.0.0.0/8").question("example.com").reason == "name-not-allowed"


def test_where_every_public_address_is_open_so_is_every_name() -> None:
    assert policy("@public").question("example.com")[:4] == (ALLOW, "dns", "public-rule", "@public")


# -- what a name may stand for (B12, C15) ----------------------------------------------------------------------------

PLACES = [
    ("10.0.0.5", "private-address"),
    ("100.64.0.1", "cgnat-address"),
    ("198.18.0.1", "reserved-address"),
    ("192.168.127.7", "own-subnet"),
    ("192.168.127.254", "own-subnet"),
    ("169.254.169.254", "metadata"),
    ("168.63.129.16", "metadata"),
    ("127.0.0.1", "loopback-address"),
    ("0.0.0.0", "unspecified-address"),
    ("224.0.0.1", "multicast-address"),
    ("::1", "loopback-address"),
    ("fc00::1", "private-address"),
    ("::ffff:10.0.0.1", "private-address"),
    ("64:ff9b::808:808", "embedded-address"),
    ("2002:0a00:1::", "private-address"),
]


@pytest.mark.parametrize(("address", "reason"), PLACES)
def test_b12_c15_a_name_must_not_stand_for_other_places(address: str, reason: str) -> None:
    held = policy("example.com")
    assert held.candidate(TCP, packed(address), 443) == reason
    assert held.answerable(packed(address)) == reason


def test_b12_c15_public_places_it_may_and_those_an_address_rule_covers() -> None:
    held = policy("example.com", "10.0.0.5:443", "[fc00::]/7")
    for address in (SITE, "2606:4700::1"):
        assert held.candidate(TCP, packed(address), 443) == held.answerable(packed(address)) == ""
    assert held.candidate(TCP, packed("10.0.0.5"), 443) == ""
    assert held.candidate(TCP, packed("10.0.0.5"), 80) == "private-address", "the rule has a port"
    assert held.answerable(packed("10.0.0.5")) == ""
    assert held.candidate(TCP, packed("10.0.0.6"), 443) == "private-address"
    assert held.candidate(TCP, packed("fc00::1"), 443) == ""


@pytest.mark.parametrize("rule", ["0.0.0.0/0", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "@host", "[::]/0"])
@pytest.mark.parametrize("address", ["192.168.127.7", "127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1"])
def test_c15_no_rule_makes_a_name_mean_the_host_or_the_guests_own_network(rule: str, address: str) -> None:
    held = policy("example.com", rule)
    assert held.candidate(TCP, packed(address), 443)
    if address in {"192.168.127.7", "169.254.169.254"}:
        assert held.answerable(packed(address))


# -- all of it -------------------------------------------------------------------------------------------------------


@given(st.ip_addresses(), st.sampled_from([TCP, UDP]), st.integers(1, 65535), st.booleans())
def test_what_nothing_lists_is_refused(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, protocol: int, port: int, named_too: bool
) -> None:
    held = policy("example.com", "github.com:22") if named_too else NOTHING
    verdict = held.connect(protocol, address.packed, port, step="syn")
    assert not verdict.allowed
    assert verdict.reason
    if verdict.action == PEEK:
        assert named_too
        assert (protocol, port) in {(TCP, 80), (TCP, 443), (UDP, 443)}


@given(st.ip_addresses(), st.integers(1, 65535))
def test_no_list_and_all_rules_differ_in_nothing_but_the_reason(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    everything = policy("0.0.0.0/0", "[::]/0", "@host")  # no network opens the host's alias
    free, listed = (held.connect(TCP, address.packed, port, step="syn") for held in (FULL, everything))
    assert free.action == listed.action
    if not free.allowed:
        assert free == listed


# -- what was said once ----------------------------------------------------------------------------------------------

_ASKED = st.tuples(
    st.sampled_from((TCP, UDP)),
    st.sampled_from(("93.184.216.34", "10.1.0.9", "192.168.127.254", "127.0.0.1", "169.254.169.254", "2001:db8::1")),
    st.sampled_from(("pypi.org", "a.example.com", "evil.example")),
    st.sampled_from((22, 80, 443)),
    st.sampled_from(("syn", "tls")),
    st.sampled_from(((), ("github.com",))),
)


@given(st.lists(_ASKED, max_size=20))
def test_an_answer_is_the_same_each_time(asked: list[tuple[int, str, str, int, str, tuple[str, ...]]]) -> None:
    """Policies that remember three answers, and one that has never been asked, say the same, in any order."""

    def made() -> Policy:
        return policy("pypi.org", "*.example.com:22", "github.com:22", "10.1.0.0/16", "tcp/10.1.0.9:22", "@host:80")

    def answers(held: Policy, protocol: int, address: str, name: str, port: int, step: str, told: tuple[str, ...]):
        return (
            held.connect(protocol, packed(address), port, step=step, answered=told),
            held.name(protocol, name, port, step=step, source="sni"),
            held.candidate(protocol, packed(address), port),
        )

    held = made()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("netstack.engine.policy.MAX_REMEMBERED", 3)
        for each in asked:
            assert answers(held, *each) == answers(made(), *each) == answers(held, *each)
