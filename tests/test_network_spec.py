"""NetworkSpec: words, contradictions, what comes out of YAML, what the engine is told, warnings (I1, I4, I9)."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.policy import NULL, NXDOMAIN, REFUSED, SYNTHETIC, Policy
from netstack.engine.rules import RuleError
from netstack.engine.settings import NetworkSettings
from netstack.network_spec import NetworkSpec, SpecError, is_public_suffix, is_shared_suffix


def access(spec: NetworkSpec) -> str:
    return Policy(spec.policy(), NetworkSettings()).access


# -- making one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["enabled", "ENABLED", "Enabled", " enabled\n"])
def test_enabled_in_any_case_is_full_access(word: str) -> None:
    assert NetworkSpec.parse(word) == NetworkSpec.parse({"network": word}) == NetworkSpec.enabled() == NetworkSpec()
    assert access(NetworkSpec.parse(word)) == "full"


@pytest.mark.parametrize("word", ["disabled", "DISABLED", "Disabled", "\tdisabled "])
def test_disabled_in_any_case(word: str) -> None:
    assert NetworkSpec.parse(word) == NetworkSpec.parse({"network": word}) == NetworkSpec.disabled()
    assert access(NetworkSpec.parse(word)) == "disabled"
    assert NetworkSpec.disabled().policy().disabled


def test_i4_an_empty_list_is_full_access_and_deny_all_is_nothing() -> None:
    """policy.md: an empty list must never be the only way to say "nothing"."""
    assert access(NetworkSpec.enabled([])) == access(NetworkSpec.parse({"allow_net": []})) == "full"
    assert NetworkSpec.enabled([]).policy().rules is None
    assert access(NetworkSpec.enabled(deny_all=True)) == access(NetworkSpec.parse({"deny_all": True})) == "nothing"
    assert NetworkSpec.enabled(deny_all=True).policy().rules == ()
    assert access(NetworkSpec.enabled(["example.com"])) == "listed"


def test_what_the_engine_is_told_is_what_was_written() -> None:
    spec = NetworkSpec.parse(
        {
            "network": "Enabled",
            "allow_net": ["example.com", "tcp/10.0.0.0/8:5432"],
            "sinkhole": "nxdomain",
            "answers": "synthetic",
            "pass_service_bindings": True,
            "strict_ech": True,
        }
    )
    settings = spec.policy()
    assert [rule.text for rule in settings.rules or ()] == ["example.com", "tcp/10.0.0.0/8:5432"]
    assert (settings.disabled, settings.sinkhole, settings.answers) == (False, NXDOMAIN, SYNTHETIC)
    assert settings.pass_service_bindings
    assert settings.strict_ech
    assert NetworkSpec.parse(spec) is spec


def test_any_iterable_of_rules_will_do() -> None:
    assert NetworkSpec.enabled(rule for rule in ["a.example", "b.example"]).allow_net == ("a.example", "b.example")


# -- what contradicts itself or cannot be read -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"network": "disabled", "allow_net": ["example.com"]}, "allow_net: a disabled network has nothing to allow"),
        ({"network": "DISABLED", "deny_all": True}, "deny_all: a disabled network has nothing to allow or deny"),
        ({"allow_net": ["example.com"], "deny_all": True}, "deny_all: contradicts the entries of allow_net"),
        ({"network": "on"}, "network 'on': expected 'enabled' or 'disabled'"),
        ({"network": ""}, "network '': expected 'enabled' or 'disabled'"),
        ({"network": True}, "network True: expected a word"),
        ({"network": None}, "network None: expected a word"),
        ({"sinkhole": "zero"}, "sinkhole 'zero': expected one of null, nxdomain, refused"),
        ({"answers": "fake"}, "answers 'fake': expected one of real, synthetic"),
        ({"answers": None}, "answers None: expected a word"),
        ({"allow_net": "example.com"}, "allow_net 'example.com': expected a list of rules"),
        ({"allow_net": None}, "allow_net None: expected a list of rules"),
        ({"allow_net": [443]}, "allow_net [443]: expected a list of rules, each a string"),
        ({"allow_net": {"example.com": 443}}, "expected a list of rules"),
        ({"deny_all": "yes"}, "deny_all 'yes': expected true or false"),
        ({"deny_all": 1}, "deny_all 1: expected true or false"),
        ({"strict_ech": None}, "strict_ech None: expected true or false"),
        ("on", "network 'on': expected 'enabled' or 'disabled'"),
        (None, "None: expected 'enabled', 'disabled' or a mapping"),
        (False, "False: expected 'enabled', 'disabled' or a mapping"),
        (["example.com"], "expected 'enabled', 'disabled' or a mapping"),
    ],
)
def test_contradictions_and_values_of_the_wrong_kind(value: object, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        NetworkSpec.parse(value)  # type: ignore[arg-type]  # what YAML may hold
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("allow-net", "did you mean 'allow_net'?"),
        ("allownet", "did you mean 'allow_net'?"),
        ("denyall", "did you mean 'deny_all'?"),
        ("Network", "did you mean 'network'?"),
        ("sinkhole_mode", "did you mean 'sinkhole'?"),
        ("strict-ech", "did you mean 'strict_ech'?"),
        ("firewall", "known are network, allow_net, deny_all, sinkhole, answers, pass_service_bindings, strict_ech"),
        (7, "known are network"),
        (None, "known are network"),
    ],
)
def test_i1_an_unknown_key_is_named_with_the_nearest_one(key: object, near: str) -> None:
    with pytest.raises(SpecError) as caught:
        NetworkSpec.parse({key: "x"})  # type: ignore[dict-item]  # what YAML may hold
    assert f"unknown key {key!r}" in str(caught.value)
    assert near in str(caught.value)


def test_a_string_for_a_list_is_not_taken_apart() -> None:
    """Letter by letter it would be rules: each letter is a host name."""
    with pytest.raises(SpecError, match="expected a list of rules, not one string"):
        NetworkSpec.enabled("localhost")


def test_i1_a_bad_rule_leaves_no_spec_at_all() -> None:
    """A list is never partly applied."""
    with pytest.raises(RuleError) as caught:
        NetworkSpec.enabled(["example.com", "*.co.uk", "also bad"])
    assert (caught.value.rule, caught.value.suggestion) == ("*.co.uk", "*.example.co.uk")


KEYS = st.sampled_from(["network", "allow_net", "deny_all", "sinkhole", "answers", "strict_ech", "x"])
PLAIN = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)))
def test_whatever_a_file_holds_is_a_spec_or_a_value_error(value: object) -> None:
    try:
        spec = NetworkSpec.parse(value)  # type: ignore[arg-type]  # what YAML may hold
    except ValueError:
        return
    spec.policy()
    spec.warnings()
    str(spec)


# -- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode"), [("null", NULL), ("~", NULL), ("'null'", NULL), ("nxdomain", NXDOMAIN), ("refused", REFUSED)]
)
def test_yaml_reads_the_word_null_as_nothing(text: str, mode: str) -> None:
    section = yaml.safe_load(f"sinkhole: {text}")
    assert NetworkSpec.parse(section).policy().sinkhole == mode


def test_yaml_reads_the_word_off_as_false() -> None:
    with pytest.raises(SpecError, match="network False: expected a word"):
        NetworkSpec.parse(yaml.safe_load("network: off"))


# -- for people ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (NetworkSpec.enabled(), "full access"),
        (NetworkSpec.disabled(), "no network"),
        (NetworkSpec.enabled(deny_all=True), "nothing is allowed"),
        (NetworkSpec.enabled(["a.example", "b.example"]), "only a.example, b.example"),
        (NetworkSpec.enabled(f"{n}a.example" for n in range(1000)), "and 992 more"),
    ],
)
def test_a_spec_in_a_line(spec: NetworkSpec, text: str) -> None:
    assert text in str(spec)
    assert len(str(spec)) < 200


# -- I9: rules that can never match ----------------------------------------------------------------------------------


def warnings(*rules: str, **options: bool) -> list[str]:
    return NetworkSpec.enabled(rules).warnings(**options)


@pytest.mark.parametrize(
    "rule",
    ["169.254.0.0/16", "169.254.169.254:80", "168.63.129.16", "192.0.0.192/32", "[fe80::]/10", "[fd00:ec2::254]"],
)
def test_i9_metadata_services_need_more_than_a_rule(rule: str) -> None:
    assert warnings(rule) == [f"allow_net rule {rule!r} never matches: metadata services need metadata access"]
    assert warnings(rule, metadata_access=True) == []


@pytest.mark.parametrize(
    "rule",
    ["127.0.0.1", "127.0.0.0/8", "0.0.0.0", "0.0.0.0/8:80", "224.0.0.1", "224.0.0.0/4", "240.0.0.0/4",
     "255.255.255.255", "[::1]", "[::]", "[ff02::1]:5353"],
)  # fmt: skip
def test_i9_places_no_flow_goes_to(rule: str) -> None:
    assert warnings(rule) == [f"allow_net rule {rule!r} never matches: no flow goes there, whatever the rules"]


@pytest.mark.parametrize(
    "rule",
    ["0.0.0.0/0", "[::]/0", "0.0.0.0/1", "128.0.0.0/1", "168.63.129.0/24", "10.0.0.0/8", "100.64.0.0/10", "@public",
     "@host", "example.com", "*.example.com"],
)  # fmt: skip
def test_i9_a_rule_that_matches_something_has_no_warning(rule: str) -> None:
    assert warnings(rule) == []


@pytest.mark.parametrize("rule", ["udp/example.com:123", "udp/*.example.com:5000-5999"])
def test_i9_udp_by_name_is_quic_or_a_synthetic_address(rule: str) -> None:
    (warning,) = warnings(rule)
    assert warning.startswith(f"allow_net rule {rule!r} never matches: UDP has no names but QUIC's")
    assert NetworkSpec.enabled([rule], answers="synthetic").warnings() == []


@pytest.mark.parametrize(
    "rule", ["udp/example.com", "udp/example.com:443", "udp/example.com:1-65535", "example.com:123"]
)
def test_i9_udp_rules_that_match_something(rule: str) -> None:
    assert warnings(rule) == []


@pytest.mark.parametrize(
    ("rules", "superfluous", "wider"),
    [
        (["example.com", "example.com"], "example.com", "example.com"),
        (["example.com", "tcp/EXAMPLE.com:443"], "tcp/EXAMPLE.com:443", "example.com"),
        (["a.example.com", "*.example.com"], "a.example.com", "*.example.com"),
        (["*.b.example.com", "*.example.com"], "*.b.example.com", "*.example.com"),
        (["10.1.0.0/16", "10.0.0.0/8"], "10.1.0.0/16", "10.0.0.0/8"),
        (["10.0.0.0/8", "10.1.2.3:80"], "10.1.2.3:80", "10.0.0.0/8"),
        (["10.0.0.0/8", "10.0.0.0/8:1-65535"], "10.0.0.0/8:1-65535", "10.0.0.0/8"),
        (["example.com:8000", "example.com:8000-8999"], "example.com:8000", "example.com:8000-8999"),
        (["0.0.0.0/0", "@public", "10.0.0.1"], "10.0.0.1", "0.0.0.0/0"),
    ],
)
def test_i9_what_another_rule_says_already(rules: list[str], superfluous: str, wider: str) -> None:
    assert warnings(*rules) == [f"allow_net rule {superfluous!r} says nothing that {wider!r} does not say already"]


@pytest.mark.parametrize(
    "rules",
    [
        ["*.example.com", "x.example.com:22"],
        ["*.example.com", "example.com"],
        ["x.example.com:22", "*.example.com"],
        ["example.com", "example.com:22"],
        ["example.com:443", "example.com:80"],
        ["tcp/10.0.0.1", "udp/10.0.0.1"],
        ["10.0.0.0/8:80", "10.1.0.0/16"],
        ["example.com:80-90", "example.com:85-95"],
    ],
)
def test_i9_rules_that_say_something_of_their_own(rules: list[str]) -> None:
    assert warnings(*rules) == []


def test_a_wildcard_below_a_company_that_gives_names_away_is_a_warning() -> None:
    assert not is_public_suffix("github.io")
    assert is_shared_suffix("github.io")
    assert warnings("*.github.io") == ["allow_net rule '*.github.io': anybody can get a name below 'github.io'"]
    assert warnings("octocat.github.io", "*.octocat.github.io") == []


def test_a_long_list_is_read_and_looked_through() -> None:
    """A hundred thousand rules, with the warnings: seconds. A scan for each would take hours."""
    rules = [f"host-{number}.example.com" for number in range(40_000)]
    rules += [f"*.zone-{number}.example.net" for number in range(30_000)]
    rules += [f"100.{128 + number // 65_536}.{number // 256 % 256}.{number % 256}:443" for number in range(30_000)]
    spec = NetworkSpec.enabled(rules)
    assert len(spec.policy().rules or ()) == 100_000
    assert spec.warnings() == []
    assert (
        NetworkSpec.enabled([*rules, "*.example.com"]).warnings()[0].startswith("allow_net rule 'host-0.example.com'")
    )
