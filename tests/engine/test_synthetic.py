"""Synthetic answers: the addresses, and the answers made with them (conformance B18)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.synthetic import MAX_NAMES, SyntheticPool
from netstack.engine.verdict import ALLOW, Verdict

from .dns_guest import (
    NETWORK,
    PUBLIC,
    RULES,
    Gateway,
    failing,
    make_policy,
    query,
    records,
    refusal,
    texts,
)


def test_b18_synthetic_answers() -> None:
    gateway = Gateway(RULES, answers="synthetic")
    fill = records(
        "example.com. 9000 CNAME a.cdn.example.", "a.cdn.example. 60 A 8.8.8.8", "a.cdn.example. 60 A 8.8.4.4"
    )
    assert texts(gateway.forward(query("EXAMPLE.com."), fill)) == ["EXAMPLE.com. 60 IN A 198.18.0.1"]
    event = gateway.event()
    assert (event.source, event.answers) == ("upstream", 1)
    assert event.verdict == Verdict(ALLOW, "dns", "name-rule", "example.com", "example.com", "dns")
    assert texts(gateway.answer(query("example.com."))) == ["example.com. 60 IN A 198.18.0.1"]
    assert gateway.server.synthetic.name_of(bytes((198, 18, 0, 1))) == "example.com"
    long = gateway.forward(query("a.example.org."), records(f"a.example.org. 3600 A {PUBLIC}"))
    assert texts(long) == ["a.example.org. 300 IN A 198.18.0.2"]
    assert len(gateway.judge.pins) == 0, "the address says the name already"


def test_b18_synthetic_answers_pass_what_has_no_address() -> None:
    gateway = Gateway(RULES, answers="synthetic")
    for rcode in (dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL):
        assert gateway.forward(query(f"{rcode}.example.org."), failing(rcode)).rcode() == rcode
    nodata = gateway.forward(query("nodata.example.org."))
    assert (nodata.rcode(), nodata.answer) == (dns.rcode.NOERROR, [])
    rebinding = gateway.forward(query("r.example.org."), records("r.example.org. 60 A 10.0.0.1"))
    assert (rebinding.rcode(), rebinding.answer) == (dns.rcode.NOERROR, [])
    aaaa = gateway.answer(query("example.com.", "AAAA"))
    assert (aaaa.rcode(), aaaa.answer) == (dns.rcode.NOERROR, [])
    assert len(gateway.server.synthetic) == 0


def test_b18_an_exhausted_pool_is_servfail_and_counted() -> None:
    gateway = Gateway(RULES, answers="synthetic")
    pool = gateway.server.synthetic
    for number in range(65_536):
        assert pool.address_for(f"{number}.example") is not None
    answer = gateway.forward(query("example.com."), records(f"example.com. 60 A {PUBLIC}"))
    assert (answer.rcode(), answer.answer) == (dns.rcode.SERVFAIL, [])
    assert gateway.event().verdict == refusal("synthetic-pool-exhausted", "example.com", "example.com")
    assert (pool.exhausted, len(pool)) == (1, 65_536)


# The addresses themselves.


def test_each_name_has_its_own_address_for_ever() -> None:
    pool = SyntheticPool()
    given: dict[bytes, str] = {}
    for number in range(MAX_NAMES):
        address = pool.address_for(f"{number}.example")
        assert address is not None
        assert address not in given
        given[address] = f"{number}.example"
    network = ip_network("198.18.0.0/15")
    assert all(ip_address(address) in network and address[3] not in (0, 255) for address in given)
    assert all(pool.name_of(address) == name for address, name in given.items())
    assert all(pool.address_for(name) == address for address, name in given.items())
    assert len(pool) == MAX_NAMES
    assert pool.exhausted == 0


def test_b18_a_full_pool_has_nothing_for_new_names_and_keeps_the_old_ones() -> None:
    pool = SyntheticPool(max_names=2)
    first, second = pool.address_for("a.example"), pool.address_for("b.example")
    assert pool.address_for("c.example") is None
    assert pool.address_for("c.example") is None
    assert (pool.exhausted, len(pool)) == (2, 2)
    assert (pool.address_for("a.example"), pool.address_for("b.example")) == (first, second)


def test_addresses_in_use_otherwise_are_left_out() -> None:
    pool = SyntheticPool(avoid=lambda address: address[:2] == b"\xc6\x12")
    assert pool.address_for("a.example") == bytes((198, 19, 0, 1))
    nothing_left = SyntheticPool(avoid=lambda _: True)
    assert nothing_left.address_for("a.example") is None
    assert nothing_left.exhausted == 1


def test_other_addresses_stand_for_nothing() -> None:
    pool = SyntheticPool()
    pool.address_for("a.example")
    for address in (b"\xc6\x12\x00\x00", b"\xc6\x12\x00\x02", b"\x08\x08\x08\x08", bytes(16), b""):
        assert pool.name_of(address) is None


def test_the_guests_own_network_is_never_used() -> None:
    inside = replace(NETWORK, subnet=bytes((198, 18, 0, 0)), gateway_ip=bytes((198, 18, 0, 1)))
    judge = Judge(make_policy(RULES), inside, Outbox())
    assert judge.synthetic.address_for("a.example") == bytes((198, 18, 1, 1))
