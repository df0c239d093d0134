"""DNS under a list: what of upstream's answers a guest is told. Tests carry the rows of conformance.md."""

from __future__ import annotations

from itertools import pairwise

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netstack.engine.addresses import kind
from netstack.engine.dns_server import Answer, Ask
from netstack.engine.effects import ResolveUpstream
from netstack.engine.verdict import ALLOW, Verdict

from .dns_guest import (
    GUEST,
    NETWORK,
    OTHER_GUEST,
    PUBLIC,
    RULES,
    Gateway,
    failing,
    make_policy,
    query,
    read,
    records,
    refusal,
    respond,
    texts,
)

# B12, B13: what upstream says is screened.


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.0.5", "private-address"),
        ("172.16.3.4", "private-address"),
        ("192.168.1.1", "private-address"),
        ("127.0.0.1", "loopback-address"),
        ("0.0.0.0", "unspecified-address"),
        ("100.64.1.1", "cgnat-address"),
        ("169.254.169.254", "metadata"),
        ("168.63.129.16", "metadata"),
        ("224.0.0.1", "multicast-address"),
        ("255.255.255.255", "reserved-address"),
        ("198.18.0.1", "reserved-address"),
        ("192.168.127.5", "own-subnet"),
    ],
)
def test_b12_rebinding_is_removed(address: str, reason: str) -> None:
    gateway = Gateway(RULES)
    only = gateway.forward(query("example.com."), records(f"example.com. 300 A {address}"))
    assert (only.rcode(), only.answer) == (dns.rcode.NOERROR, [])
    event = gateway.event()
    assert (event.source, event.rcode, event.answers) == ("upstream", "NOERROR", 0)
    assert event.verdict == refusal(reason, "example.com", "example.com")
    assert gateway.answer(query("example.com.")).answer == []
    cached = gateway.event()
    assert (cached.source, cached.verdict) == ("cache", event.verdict)
    assert len(gateway.judge.pins) == 0
    mixed = gateway.forward(
        query("a.example.org."), records(f"a.example.org. 300 A {address}", f"a.example.org. 300 A {PUBLIC}")
    )
    assert texts(mixed) == [f"a.example.org. 300 IN A {PUBLIC}"]
    event = gateway.event()
    assert event.verdict == Verdict(ALLOW, "dns", f"{reason}-removed", "*.example.org", "a.example.org", "dns")
    assert gateway.judge.pins.names(GUEST, bytes(map(int, address.split("."))), gateway.now) == []
    assert gateway.judge.refusals == {reason: 2}


@pytest.mark.parametrize(
    "address",
    [
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:10.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "ff02::1",
    ],
)
def test_b12_rebinding_is_removed_from_aaaa(address: str) -> None:
    answer = Gateway(RULES).forward(
        query("example.com.", "AAAA"), records(f"example.com. 300 AAAA {address}", "example.com. 300 AAAA 2606:4700::1")
    )
    assert texts(answer) == ["example.com. 300 IN AAAA 2606:4700::1"]


def test_b12_an_address_rule_covers_a_private_address() -> None:
    gateway = Gateway(RULES)
    fill = records("example.com. 300 A 10.9.1.2", "example.com. 300 A 10.8.1.2", "example.com. 300 A 192.168.127.254")
    assert texts(gateway.forward(query("example.com."), fill)) == ["example.com. 300 IN A 10.9.1.2"]


def test_b12_what_is_authentic_is_not_when_something_was_removed() -> None:
    def fill(response: dns.message.Message) -> None:
        records(f"example.com. 300 A {PUBLIC}", "example.com. 300 AAAA ::1", "example.com. 300 AAAA 2606:4700::1")(
            response
        )
        response.flags |= dns.flags.AD

    gateway = Gateway(RULES)
    assert gateway.forward(query("example.com.", flags=dns.flags.RD | dns.flags.AD), fill).flags & dns.flags.AD
    removed = gateway.forward(query("example.com.", "AAAA", flags=dns.flags.RD | dns.flags.AD), fill)
    assert len(removed.answer) == 1
    assert not removed.flags & dns.flags.AD


def test_b13_only_the_chain_from_the_question_counts() -> None:
    def fill(response: dns.message.Message) -> None:
        records(
            "unrelated.example. 300 A 8.8.4.4",
            "end.cdn.example. 120 A 8.8.8.8",
            "example.com. 900 CNAME middle.cdn.example.",
            "example.com. 300 A 8.8.4.4",
            "middle.cdn.example. 9000 CNAME end.cdn.example.",
            "end.cdn.example. 120 AAAA 2606:4700::1",
        )(response)
        records("example.com. 60 NS ns.example.com.", section="authority")(response)
        records("ns.example.com. 60 A 10.0.0.1", section="additional")(response)

    gateway = Gateway(RULES)
    answer = gateway.forward(query("example.com."), fill)
    assert texts(answer) == [
        "example.com. 900 IN CNAME middle.cdn.example.",
        "middle.cdn.example. 3600 IN CNAME end.cdn.example.",
        "end.cdn.example. 120 IN A 8.8.8.8",
    ]
    assert (answer.authority, answer.additional) == ([], [])
    assert gateway.judge.pins.names(GUEST, bytes((8, 8, 8, 8)), gateway.now) == ["example.com"]
    assert gateway.judge.pins.names(GUEST, bytes((8, 8, 4, 4)), gateway.now) == []


def test_b13_a_chain_to_a_private_address_leads_nowhere() -> None:
    fill = records("example.com. 300 CNAME inside.example.", "inside.example. 300 A 10.1.2.3")
    gateway = Gateway(RULES)
    answer = gateway.forward(query("example.com."), fill)
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
    verdict = gateway.event().verdict
    assert verdict is not None
    assert verdict.reason == "private-address"


@pytest.mark.parametrize("length", [16, 17])
def test_b13_chains_end(length: int) -> None:
    links = [f"{n}.example.org. 60 CNAME {n + 1}.example.org." for n in range(length)]
    answer = Gateway(RULES).forward(query("0.example.org."), records(*links, f"{length}.example.org. 60 A {PUBLIC}"))
    assert answer.rcode() == (dns.rcode.NOERROR if length == 16 else dns.rcode.SERVFAIL)
    loop = records(
        "example.com. 60 CNAME a.example.", "a.example. 60 CNAME example.com.", f"example.com. 60 A {PUBLIC}"
    )
    assert Gateway(RULES).forward(query("example.com."), loop).rcode() == dns.rcode.SERVFAIL


# B14: TTLs.


def test_b14_a_ttl_of_nothing_works_and_the_pin_outlives_it() -> None:
    gateway = Gateway(RULES)
    for last in range(1, 4):
        answer = gateway.forward(query("github.com."), records(f"github.com. 0 A 140.82.121.{last}"))
        assert texts(answer) == [f"github.com. 0 IN A 140.82.121.{last}"]
        gateway.now += 10
    for last in range(1, 4):
        assert gateway.judge.pins.names(GUEST, bytes((140, 82, 121, last)), gateway.now) == ["github.com"]
    assert gateway.judge.pins.names(GUEST, bytes((140, 82, 121, 1)), gateway.now + 31) == []


def test_b14_ttls_are_capped_and_count_down() -> None:
    gateway = Gateway(RULES)
    assert gateway.forward(query("example.com."), records(f"example.com. 86400 A {PUBLIC}")).answer[0].ttl == 3600
    gateway.now += 80000
    assert gateway.answer(query("example.com.")).answer[0].ttl == 3600
    gateway.now += 5000
    assert gateway.answer(query("example.com.")).answer[0].ttl == 1401  # it came a quarter of a second later


def test_b14_records_of_a_set_get_its_shortest_ttl() -> None:
    gateway = Gateway(RULES)
    number, upstream = gateway.asked(query("example.com."))
    response = respond(upstream, records("example.com. 300 A 8.8.8.8", "example.com. 300 A 8.8.4.4"))
    at = response.index(b"\x00\x00\x01\x2c")
    ((_, message),) = gateway.server.resolved(
        number, response[:at] + b"\x00\x00\x00\x3c" + response[at + 4 :], gateway.now
    )
    assert read(message).answer[0].ttl == 60
    last = message.index(b"\x00\x00\x00\x3c") + 4
    assert b"\x00\x00\x00\x3c" in message[last:]


# B19: sizes.


@pytest.mark.parametrize("size", [None, 512, 1232, 4096])
def test_b19_a_big_answer_is_cut_over_udp_and_whole_over_tcp(size: int | None) -> None:
    gateway = Gateway(RULES)
    fill = records(*(f"example.com. 300 A 8.8.{n // 200}.{n % 200}" for n in range(250)))
    edns = {} if size is None else {"use_edns": 0, "payload": size}
    cut = gateway.forward(query("example.com.", **edns), fill)
    assert cut.flags & dns.flags.TC
    assert 512 - 100 < len(cut.to_wire()) <= max(512, min(size or 0, 1472))
    whole = gateway.answer(query("example.com.", **edns), "tcp")
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 250


# The rest of the table, and what changes while a guest asks.


def test_allowed_names_are_asked_once_they_are_wanted() -> None:
    gateway = Gateway(RULES)
    assert gateway.server.waiting == 0
    answer = gateway.forward(
        query("example.com."), records(f"example.com. 300 A {PUBLIC}", "example.com. 300 A 8.8.8.8")
    )
    assert len(answer.answer[0]) == 2
    event = gateway.event()
    assert (event.source, event.answers, event.seconds) == ("upstream", 2, 0.25)
    assert event.verdict == Verdict(ALLOW, "dns", "name-rule", "example.com", "example.com", "dns")
    assert isinstance(gateway.send(query("example.com.")), Answer)
    assert gateway.event().source == "cache"


@pytest.mark.parametrize("rcode", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("rtype", ["A", "TXT"])
def test_failure_is_servfail_never_a_sinkhole(rcode: int, rtype: str) -> None:
    answer = Gateway(RULES).forward(query("example.com.", rtype), failing(dns.rcode.Rcode.make(rcode)))
    assert (answer.rcode(), answer.answer) == (dns.rcode.SERVFAIL, [])
    gateway = Gateway(RULES)
    number, _ = gateway.asked(query("example.com.", rtype))
    ((_, message),) = gateway.server.resolved(number, None, gateway.now)
    assert read(message).rcode() == dns.rcode.SERVFAIL


def test_nxdomain_of_an_allowed_name_passes() -> None:
    def fill(response: dns.message.Message) -> None:
        response.set_rcode(dns.rcode.NXDOMAIN)
        records("example.com. 60 A 10.0.0.1")(response)
        records("com. 900 SOA ns.com. admin.com. 1 2 3 4 600", section="authority")(response)

    answer = Gateway(RULES).forward(query("example.com."), fill)
    assert (answer.rcode(), answer.answer, answer.authority) == (dns.rcode.NXDOMAIN, [], [])


def test_a_replaced_policy_rules_on_what_is_cached() -> None:
    gateway = Gateway(None)
    fill = records("example.com. 9000 A 10.0.0.1", f"example.com. 9000 A {PUBLIC}")
    assert len(gateway.forward(query("example.com."), fill).answer[0]) == 2
    gateway.replace(["example.com"])
    assert texts(gateway.answer(query("example.com."))) == [f"example.com. 3600 IN A {PUBLIC}"]
    gateway.replace(["example.com", "10.0.0.0/8"])
    assert len(gateway.answer(query("example.com.")).answer[0]) == 2
    gateway.replace(["example.com"], answers="synthetic")
    assert texts(gateway.answer(query("example.com."))) == ["example.com. 300 IN A 198.18.0.1"]
    gateway.replace(["example.net"])
    assert texts(gateway.answer(query("example.com."))) == ["example.com. 2 IN A 0.0.0.0"]
    gateway.replace(None)
    assert len(gateway.answer(query("example.com.")).answer[0]) == 2


def test_a_replaced_policy_rules_on_what_is_under_way() -> None:
    gateway = Gateway(None)
    number, upstream = gateway.asked(query("example.com."))
    gateway.replace(["example.net"])
    answers = gateway.server.resolved(number, respond(upstream, records(f"example.com. 60 A {PUBLIC}")), gateway.now)
    assert texts(read(answers[0][1])) == ["example.com. 2 IN A 0.0.0.0"]
    assert gateway.event().source == "policy"
    gateway.replace(["example.com"])
    number, upstream = gateway.asked(query("example.com.", "AAAA"))
    gateway.replace(None)
    answers = gateway.server.resolved(number, respond(upstream, records("example.com. 60 AAAA ::1")), gateway.now)
    assert texts(read(answers[0][1])) == ["example.com. 60 IN AAAA ::1"]


def test_pins_are_kept_for_who_was_told() -> None:
    gateway = Gateway(RULES)
    gateway.forward(query("github.com."), records("github.com. 300 A 140.82.121.4"))
    address = bytes((140, 82, 121, 4))
    pins = gateway.judge.pins
    assert pins.names(GUEST, address, gateway.now + 299) == ["github.com"]
    assert pins.names(OTHER_GUEST, address, gateway.now) == []
    gateway.now += 200
    gateway.send(query("github.com."), guest=OTHER_GUEST)
    assert pins.names(OTHER_GUEST, address, gateway.now + 99) == ["github.com"]
    # The guest has no IPv6 address to open a flow from.
    gateway.forward(query("github.com.", "AAAA"), records("github.com. 300 AAAA 2606:50c0::1"))
    assert len(pins) == 2
    assert pins.names(OTHER_GUEST, address, gateway.now + 101) == []


# Whatever upstream sends.

addresses = st.binary(min_size=4, max_size=4) | st.sampled_from(
    [b"\x0a\x00\x00\x01", b"\x7f\x00\x00\x01", b"\xa9\xfe\xa9\xfe", b"\xc0\xa8\x7f\x05", b"\x08\x08\x08\x08"]
)
changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6)


@example([b"\0\0\0\0", b"\0\0\0\0"], 2, [(34985, 0)], 0, "TXT")
@given(st.lists(addresses, max_size=6), st.integers(0, 3), changes, st.integers(0, 60), st.sampled_from(["A", "TXT"]))
def test_no_upstream_bytes_raise_or_let_a_private_address_through(
    given_addresses: list[bytes], links: int, what: list[tuple[int, int]], cut: int, rtype: str
) -> None:
    gateway = Gateway(RULES)
    message = query("example.com.", rtype)
    number, upstream = gateway.asked(message)
    owners = ["example.com.", *(f"{n}.example.com." for n in range(links))]
    chain = [f"{a} 60 CNAME {b}" for a, b in pairwise(owners)]
    last = [f"{owners[-1]} 60 A {'.'.join(map(str, address))}" for address in given_addresses]
    response = bytearray(respond(upstream, records(*chain, *last)))
    for at, value in what:
        response[at % len(response)] = value
    policy = make_policy(RULES)
    for _ in range(2):
        answers = gateway.server.resolved(number, bytes(response[: len(response) - cut]), gateway.now)
        outcome = gateway.send(message)
        told = [wire for _, wire in answers] + ([outcome.message] if isinstance(outcome, Answer) else [])
        for wire in told:
            # What is not about addresses keeps its records as they came, data that means nothing among them.
            parsed = read(wire) if rtype == "A" else dns.message.from_wire(wire, continue_on_error=True)
            for rrset in parsed.answer:
                if rrset.rdtype == dns.rdatatype.A:
                    for rdata in rrset:
                        packed = bytes(map(int, rdata.address.split(".")))
                        assert not policy.answerable(packed)
                        assert kind(packed) == "public" or packed[:2] == b"\x0a\x09"
                        assert not NETWORK.in_subnet(packed)
        gateway.now += 30
        if isinstance(outcome, Ask) and isinstance(outcome.effect, ResolveUpstream):
            number = outcome.effect.query
