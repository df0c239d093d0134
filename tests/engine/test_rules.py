"""The rule grammar: what each rule means, what is wrong with the others, what is suggested, and how rules are found."""

from __future__ import annotations

import ipaddress
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.rules import (
    ADDRESS,
    HOST,
    HOST_ALIAS,
    PUBLIC,
    SUFFIX,
    TCP,
    UDP,
    Rule,
    RuleError,
    RuleSet,
    parse_rule,
)
from netstack.network_spec import is_public_suffix


def rule(text: str) -> Rule:
    return parse_rule(text, is_public_suffix)


def rules(*texts: str) -> RuleSet:
    return RuleSet(map(rule, texts))


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


# -- good rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("example.com", HOST, "example.com"),
        ("  EXAMPLE.com. ", HOST, "example.com"),
        ("localhost", HOST, "localhost"),
        ("com", HOST, "com"),
        ("_sip._tcp.example.com", HOST, "_sip._tcp.example.com"),
        ("bücher.example", HOST, "xn--bcher-kva.example"),
        ("BÜCHER.example", HOST, "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", HOST, "xn--bcher-kva.example"),
        ("例え.jp", HOST, "xn--r8jz45g.jp"),
        ("example。com", HOST, "example.com"),
        ("*.example.com", SUFFIX, "example.com"),
        ("*.Example.CO.uk", SUFFIX, "example.co.uk"),
        ("*.bücher.example", SUFFIX, "xn--bcher-kva.example"),
        ("*.github.io", SUFFIX, "github.io"),
    ],
)
def test_names(text: str, kind: str, name: str) -> None:
    read = rule(text)
    assert (read.kind, read.name, read.protocol, read.first_port) == (kind, name, 0, 0)
    assert read.text == text.strip(), "a verdict names the rule as it was written"


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("93.184.215.14", "93.184.215.14/32"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("[2606:4700::1111]", "2606:4700::1111/128"),
        ("[2606:4700::]/32", "2606:4700::/32"),
        ("[2606:4700::/32]", "2606:4700::/32"),
        ("[::]/0", "::/0"),
    ],
)
def test_addresses(text: str, network: str) -> None:
    read = rule(text)
    expected = ipaddress.ip_network(network)
    assert (read.kind, read.network, read.prefix_length) == (
        ADDRESS,
        expected.network_address.packed,
        expected.prefixlen,
    )


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("example.com:22", (0, 22, 22)),
        ("tcp/example.com:22", (TCP, 22, 22)),
        ("UDP/example.com:8000-8999", (UDP, 8000, 8999)),
        ("example.com:1-65535", (0, 1, 65535)),
        ("tcp/*.example.com:443", (TCP, 443, 443)),
        ("udp/10.0.0.0/8:53", (UDP, 53, 53)),
        ("tcp/[2606:4700::]/32:443", (TCP, 443, 443)),
        ("[::1]:80", (0, 80, 80)),
        ("@public:443", (0, 443, 443)),
        ("tcp/@HOST:5432", (TCP, 5432, 5432)),
        ("@host", (0, 0, 0)),
        ("tcp/@public", (TCP, 0, 0)),
    ],
)
def test_protocols_ports_and_groups(text: str, scope: tuple[int, int, int]) -> None:
    read = rule(text)
    assert (read.protocol, read.first_port, read.last_port) == scope
    if "@" in text:
        assert read.kind in {PUBLIC, HOST_ALIAS}


@pytest.mark.parametrize(
    ("text", "covered", "not_covered"),
    [
        ("example.com", [(TCP, 80), (TCP, 443), (UDP, 443)], [(TCP, 22), (TCP, 8443), (UDP, 80), (UDP, 53)]),
        ("tcp/example.com", [(TCP, 80), (TCP, 443)], [(UDP, 443), (TCP, 22)]),
        ("udp/example.com", [(UDP, 443)], [(TCP, 443), (TCP, 80), (UDP, 80)]),
        ("example.com:8443", [(TCP, 8443), (UDP, 8443)], [(TCP, 443), (TCP, 80), (UDP, 443)]),
        ("10.0.0.0/8", [(TCP, 1), (TCP, 65535), (UDP, 53)], []),
        ("udp/10.0.0.0/8", [(UDP, 1), (UDP, 53)], [(TCP, 53)]),
        ("10.0.0.0/8:80-90", [(TCP, 80), (UDP, 90)], [(TCP, 79), (TCP, 91)]),
        ("@public", [(TCP, 22), (UDP, 123)], []),
    ],
)
def test_what_a_rule_covers(text: str, covered: list[tuple[int, int]], not_covered: list[tuple[int, int]]) -> None:
    read = rule(text)
    assert all(read.covers(*place) for place in covered)
    assert not any(read.covers(*place) for place in not_covered)


# -- bad rules (conformance I1) --------------------------------------------------------------------------------------

BAD = [
    ("", "it is empty", ""),
    (" \t", "it is empty", ""),
    ("*", "a wildcard needs a domain behind it", "@public"),
    ("*.", "neither a host name nor an IP address", ""),
    ("*.com", "a wildcard needs a domain of two labels or more", "*.example.com"),
    ("*.lan", "a wildcard needs a domain of two labels or more", "*.example.lan"),
    ("*.co.uk", "anybody can register a name below 'co.uk'", "*.example.co.uk"),
    ("*.co.uk:8443", "anybody can register", "*.example.co.uk:8443"),
    ("*com", "a wildcard stands alone", ""),
    ("*example.com:22", "a wildcard stands alone", "*.example.com:22"),
    ("tcp/api.*.example.com", "a wildcard stands alone", "tcp/*.example.com"),
    ("*.*.example.com", "a wildcard stands alone", "*.example.com"),
    (".example.com", "neither a host name nor an IP address", "*.example.com"),
    ("https://example.com:8443/path?x=1", "a rule names a host, not a URL", "example.com:8443"),
    ("udp://example.com:53", "a rule names a host, not a URL", "udp/example.com:53"),
    ("http://user:password@example.com/", "a rule names a host, not a URL", ""),
    ("example.com/path", "neither a host name nor an IP address", "example.com"),
    ("exam ple.com", "neither a host name nor an IP address", ""),
    ("example.com 443", "neither a host name nor an IP address", "example.com:443"),
    ("exmaple..com:80", "neither a host name nor an IP address", "exmaple.com:80"),
    ("-a.com", "neither a host name nor an IP address", ""),
    ("☃.net", "neither a host name nor an IP address", ""),
    ("a" * 64 + ".com", "neither a host name nor an IP address", ""),
    ("user@example.com", "expected [tcp/|udp/]target[:port|:port-port]", ""),
    ("example.com:", "'' is no port or range of ports", ""),
    ("example.com:0", "'0' is no port", ""),
    ("example.com:65536", "'65536' is no port", ""),
    ("example.com:٤٤٣", "is no port", ""),
    ("example.com:-1", "'-1' is no port", ""),
    ("example.com:443,8443", "'443,8443' is no port", "example.com:443"),
    ("example.com:443/tcp", "'443/tcp' is no port", "tcp/example.com:443"),
    ("example.com:https", "'https' is no port", "example.com:443"),
    ("tcp:example.com", "is no port", "tcp/example.com"),
    ("example.com:90-80", "the range 90-80 runs backwards", "example.com:80-90"),
    ("tpc/example.com", "unknown protocol 'tpc'", "tcp/example.com"),
    ("icmp/10.0.0.1", "unknown protocol 'icmp'", ""),
    ("@pubic:443", "unknown group", "@public:443"),
    ("@", "unknown group", ""),
    ("10.0.0.1/8", "has bits set beyond its prefix", "10.0.0.0/8"),
    ("udp/10.0.0.1/8:53", "has bits set beyond its prefix", "udp/10.0.0.0/8:53"),
    ("10.0.0.0/33", "is no IP address or network", ""),
    ("10.0.0", "is no IP address or network", ""),
    ("010.0.0.1", "is no IP address or network", ""),
    ("2130706433", "is no IP address or network", ""),
    ("0x7f000001", "neither a host name nor an IP address", ""),
    ("10.0.0.256", "is no IP address or network", ""),
    ("2606:4700::1111", "an IPv6 address needs brackets", "[2606:4700::1111]"),
    ("2606:4700::/32", "an IPv6 address needs brackets", "[2606:4700::/32]"),
    ("[2606:4700::1]/32", "has bits set beyond its prefix", "[2606:4700::]/32"),
    ("[10.0.0.1]:80", "brackets are for IPv6 addresses", "10.0.0.1:80"),
    ("[example.com]", "is no IP address or network", ""),
    ("[fe80::1%eth0]", "an address has no zone here", "[fe80::1]"),
    ("[]", "is no IP address or network", ""),
    ("[::1", "expected", ""),
]


@pytest.mark.parametrize(("text", "problem", "suggestion"), BAD, ids=[text[:24] for text, _, _ in BAD])
def test_i1_a_bad_rule_is_named_with_what_is_wrong_and_what_is_near(text: str, problem: str, suggestion: str) -> None:
    with pytest.raises(RuleError) as caught:
        rule(text)
    error = caught.value
    assert repr(text) in str(error)
    assert problem in str(error)
    assert error.suggestion == suggestion
    assert (f"did you mean {suggestion!r}?" in str(error)) == bool(suggestion)


@given(st.one_of(st.text(), st.from_regex(r"\A(tcp/|udp/|x/)?[\[\]@*a-z0-9./%:-]{0,30}(:[0-9-]{0,12})?\Z")))
def test_no_text_makes_parse_rule_raise_anything_but_a_rule_error(text: str) -> None:
    try:
        read = rule(text)
    except RuleError as error:
        if error.suggestion:
            rule(error.suggestion)  # what is suggested can be used
        return
    assert read == rule(read.text)
    assert not (read.kind == SUFFIX and is_public_suffix(read.name))


@pytest.mark.parametrize(
    "name", ["com", "uk", "co.uk", "de", "com.ck", "internal", "local", "localhost", "github", "xn--p1ai"]
)
def test_i1_wildcards_on_public_suffixes_are_refused(name: str) -> None:
    with pytest.raises(RuleError):
        rule(f"*.{name}")
    assert rule(f"*.example.{name}").name == f"example.{name}"


# -- finding them ----------------------------------------------------------------------------------------------------


def texts(found: list[Rule]) -> list[str]:
    return [each.text for each in found]


def test_b2_b3_a_wildcard_is_any_depth_below_and_never_the_apex() -> None:
    held = rules("*.example.com")
    assert texts(held.for_name("a.example.com")) == ["*.example.com"]
    assert texts(held.for_name("a.b.c.d.example.com")) == ["*.example.com"]
    for trap in ("example.com", "evilexample.com", "example.com.evil.org", "com", "xexample.com", "example.co"):
        assert held.for_name(trap) == []


def test_the_rules_of_a_name_its_own_first_then_the_longest_suffix() -> None:
    held = rules("*.com.example", "*.b.com.example:22", "a.b.com.example:80", "a.b.com.example", "c.com.example")
    assert texts(held.for_name("a.b.com.example")) == [
        "a.b.com.example:80",
        "a.b.com.example",
        "*.b.com.example:22",
        "*.com.example",
    ]


def test_addresses_are_found_by_every_prefix_length() -> None:
    held = rules("10.0.0.0/8:80", "10.1.0.0/16:443", "10.1.2.3", "0.0.0.0/0:53", "[::]/0", "[2606:4700::]/32:443")
    found = held.for_address(packed("10.1.2.3"))
    assert sorted(texts(found)) == ["0.0.0.0/0:53", "10.0.0.0/8:80", "10.1.0.0/16:443", "10.1.2.3"]
    assert texts(held.for_address(packed("11.0.0.0"))) == ["0.0.0.0/0:53"]
    assert sorted(texts(held.for_address(packed("2606:4700::1")))) == ["[2606:4700::]/32:443", "[::]/0"]


@pytest.mark.parametrize("order", [1, -1])
def test_a12_order_means_nothing(order: int) -> None:
    """Every rule allows, so none can take back what another gives."""
    held = rules(*["10.0.0.0/8:443", "10.0.0.7/32:80"][::order])
    for port in (80, 443):
        assert any(each.covers(TCP, port) for each in held.for_address(packed("10.0.0.7")))
    assert not any(each.covers(TCP, 80) for each in held.for_address(packed("10.0.0.8")))


def test_the_public_group_is_public_addresses_and_the_host_group_the_alias() -> None:
    held = rules("@public:443", "@host:5432")
    assert texts(held.for_address(packed("8.8.8.8"))) == ["@public:443"]
    assert texts(held.for_address(packed("2606:4700::1"))) == ["@public:443"]
    for address in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "168.63.129.16", "100.64.0.1", "240.0.0.1", "::1"):
        assert held.for_address(packed(address)) == []
    assert texts(held.for_address(packed("192.168.127.254"), host_alias=True)) == ["@host:5432"]
    assert texts(held.for_address(packed("8.8.8.8"), host_alias=True)) == ["@host:5432"]


def test_where_names_are_read_and_where_answers_are_worth_keeping() -> None:
    plain, ported = rules("example.com"), rules("tcp/example.com:22", "*.example.com:8443")
    assert [plain.peeks(*place) for place in ((TCP, 80), (TCP, 443), (UDP, 443), (TCP, 22), (UDP, 80))] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert not any(ported.peeks(*place) for place in ((TCP, 80), (TCP, 443), (UDP, 443), (TCP, 22)))
    assert (plain.has_named_ports, ported.has_named_ports) == (False, True)
    assert rules("example.com:1-100").peeks(TCP, 80)
    assert not rules("10.0.0.0/8").has_named_ports


def calls(held: RuleSet, name: str, address: bytes) -> int:
    """Function calls, those of the interpreter included, that looking up a name and an address takes."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(note)
    try:
        held.for_name(name)
        held.for_address(address)
    finally:
        sys.setprofile(None)
    return count


def test_what_a_lookup_costs_does_not_grow_with_the_number_of_rules() -> None:
    few = rules("host-7.example.com:7", "*.zone-7.example.net", "100.128.1.1")
    many = [f"host-{number}.example.com:{max(1, number)}" for number in range(40_000)]
    many += [f"*.zone-{number}.example.net" for number in range(30_000)]
    many += [f"100.{128 + number // 65_536}.{number // 256 % 256}.{number % 256}" for number in range(30_000)]
    large = rules(*many)
    assert len(large.rules) == 100_000
    for name in ("a.b.zone-7.example.net", "host-7.example.com", "nothing.example.org"):
        assert texts(few.for_name(name)) == texts(large.for_name(name))
        assert calls(few, name, packed("100.128.1.1")) == calls(large, name, packed("100.128.1.1"))
    assert texts(large.for_address(packed("100.128.1.1"))) == ["100.128.1.1"]
