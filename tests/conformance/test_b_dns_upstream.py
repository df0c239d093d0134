"""Conformance class B, B12 to B22: what upstream says, and what becomes of it on the way to the guest."""

from __future__ import annotations

from collections.abc import Callable

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from engine.wire_guest import GATEWAY, GUEST, OTHER_MAC, ip, payload_of, udp
from scapy.layers.inet import UDP
from wire import hellos

from netstack.engine import dns_server, synthetic
from netstack.engine.effects import OpenNamed, OpenStream, ResolveUpstream
from netstack.engine.events import DnsEvent, FlowOpened, FlowRefused
from netstack.engine.verdict import ALLOW, REFUSE
from netstack.network_spec import NetworkSpec

from .dns_client import (
    ask,
    framed,
    heard,
    over_tcp,
    respond,
    send,
    sunk,
    texts,
    told,
)
from .packets import dropped, hello, quic_by_name
from .policy_wire import (
    ATTACKER,
    NAME,
    OTHER_NAME,
    SITE,
    TRUE_SITE,
    PolicyWire,
    dialled_as_is,
    opened_by_name,
    peeked,
    refusal,
    refused_at_syn,
    say,
    turned_away,
)

Guest = Callable[..., PolicyWire]


# -- what upstream says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.0.5", "private-address"),
        ("127.0.0.1", "loopback-address"),
        ("169.254.169.254", "metadata"),
        ("0.0.0.0", "unspecified-address"),
        ("192.168.127.254", "own-subnet"),
        ("100.64.0.1", "cgnat-address"),
        ("224.0.0.1", "multicast-address"),
    ],
)
def test_B12_rebinding(guest: Guest, address: str, reason: str) -> None:
    wire = guest("example.com", "example.com:22")
    answer = ask(wire, "example.com", "A", f"example.com 60 A {address}")
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
    told(wire, "upstream", REFUSE, reason, "example.com", "example.com")
    mixed = ask(wire, "example.com", "A")
    assert texts(mixed) == [], "out of the cache too"
    wire.hear()
    if reason in {"private-address", "cgnat-address"}:
        refused_at_syn_after(wire, address, 22, reason)


def refused_at_syn_after(wire: PolicyWire, address: str, port: int, reason: str) -> None:
    """No pin was made: the address opens nothing."""
    wire.events.clear()
    refused_at_syn(wire, address, port, reason)


def test_B12_of_a_mixed_answer_the_public_part_stays(guest: Guest) -> None:
    wire = guest("example.com:22")
    answer = ask(wire, "example.com", "A", "example.com 60 A 10.0.0.5", f"example.com 60 A {SITE}")
    assert texts(answer) == [SITE]
    told(wire, "upstream", ALLOW, "private-address-removed", "example.com", "example.com:22")
    wire.events.clear()
    refused_at_syn(wire, "10.0.0.5", 22, "private-address")
    dialled_as_is(wire, SITE, 22, "answered-name", "example.com:22", "example.com")


def test_B13_only_the_chain_from_the_question_counts(guest: Guest) -> None:
    wire = guest("example.com:22")
    answer = ask(
        wire, "example.com", "A",
        "example.com 60 CNAME cdn.example.net.", f"cdn.example.net 60 A {SITE}",
        f"other.example.org 60 A {ATTACKER}",
    )  # fmt: skip
    assert texts(answer) == ["cdn.example.net.", SITE]
    assert not answer.additional
    wire.events.clear()
    refused_at_syn(wire, ATTACKER, 22, "no-rule")
    dialled_as_is(wire, SITE, 22, "answered-name", "example.com:22", "example.com")


def test_B14_answers_that_change_and_live_for_no_time(guest: Guest) -> None:
    """Both addresses work for a while; by name there is nothing to go stale."""
    wire = guest("example.com:22", "example.com")
    for address in (SITE, TRUE_SITE):
        assert texts(ask(wire, "example.com", "A", f"example.com 0 A {address}")) == [address]
        wire.wait(1)
    wire.events.clear()
    for address in (SITE, TRUE_SITE):
        dialled_as_is(wire, address, 22, "answered-name", "example.com:22", "example.com")
    connection = peeked(wire, SITE)
    data = hellos.python_ssl("example.com")
    say(connection, data)
    opened_by_name(wire, connection, data, "example.com", note="")


def test_B15_an_old_address(guest: Guest) -> None:
    """By its name it is looked up anew; where nothing says a name the answer's time is over. What is open goes on."""
    wire = guest("example.com:22", "example.com")
    ask(wire, "example.com", "A", f"example.com 60 A {SITE}")
    wire.events.clear()
    live = dialled_as_is(wire, SITE, 22, "answered-name", "example.com:22", "example.com")
    wire.wait(61)
    refused_at_syn(wire, SITE, 22, "no-rule")
    connection = peeked(wire, SITE)
    data = hellos.python_ssl("example.com")
    say(connection, data)
    opened_by_name(wire, connection, data, "example.com")
    wire.stack.stream_received(live.flow, b"still here")
    assert live.hear_bytes() == b"still here"


def test_B16_ipv6_addresses_of_a_name(guest: Guest) -> None:
    """NOERROR and empty for a name that is not allowed, never NXDOMAIN: clients would believe it for A too."""
    sunk(guest("example.com"), "evil.example", "AAAA")


@pytest.mark.parametrize("address", ["0.0.0.0", "0.0.0.1"])
def test_B17_the_sinkholes_address_is_refused_at_once(guest: Guest, address: str) -> None:
    """All refused names have the one address, so the record cannot tell which was meant; the question's record does."""
    wire = guest("example.com")
    sunk(wire, "evil.example")
    wire.events.clear()
    refused_at_syn(wire, address, 443, "forbidden-address")


def test_B18_every_name_its_own_address_and_no_more_than_there_are(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = NetworkSpec.enabled(["*.example.com", "example.com:22"], answers="synthetic")
    wire = guest(spec=spec)
    wire.stack.judge.synthetic._max_names = 50
    given = [
        texts(ask(wire, f"n{number}.example.com", "A", f"n{number}.example.com 60 A {SITE}")) for number in range(50)
    ]
    assert len({address for (address,) in given}) == 50
    assert all(address.startswith(("198.18.", "198.19.")) for (address,) in given)
    answer = ask(wire, "one-more.example.com", "A", f"one-more.example.com 60 A {SITE}")
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert wire.stack.judge.synthetic.exhausted == 1
    assert texts(ask(wire, "n7.example.com")) == given[7], "and for good"
    assert len(wire.stack.judge.synthetic) == 50
    assert synthetic.MAX_NAMES == 65_536


def test_B18_a_synthetic_address_is_dialled_by_its_name(guest: Guest) -> None:
    wire = guest(spec=NetworkSpec.enabled(["example.com:22"], answers="synthetic"))
    (address,) = texts(ask(wire, "example.com", "A", f"example.com 60 A {SITE}"))
    wire.events.clear()
    connection = wire.connection(address, 22)
    connection.syn()
    opened = wire.asked_one(OpenNamed)
    assert (opened.name, opened.port) == ("example.com", 22)
    wire.stack.stream_opened(opened.flow, wire.now, ip(TRUE_SITE))
    connection.finish_handshake()
    event = wire.one_flow_event()
    assert isinstance(event, FlowOpened)
    assert (event.dialled, event.verdict.source) == ((ip(TRUE_SITE), 22), "synthetic")


@pytest.mark.parametrize("size", [None, 512, 1232, 4096])
def test_B19_a_big_answer_is_cut_and_whole_by_tcp(guest: Guest, size: int | None) -> None:
    wire = guest("example.com")
    records = [f'example.com 60 TXT "{number:04d}{"x" * 200}"' for number in range(30)]
    question = dns.message.make_query("example.com", "TXT", use_edns=0 if size else False, payload=size or 512)
    send(wire, question)
    effect = wire.asked_one(ResolveUpstream)
    wire.stack.dns_resolved(effect.query, respond(effect, *records), wire.now)
    raw = payload_of(wire.hear_one()[UDP])
    assert len(raw) <= min(size or 512, 1472)
    assert dns.message.from_wire(raw).flags & dns.flags.TC
    connection = over_tcp(wire)
    connection.say(framed(question))
    stream = connection.hear_bytes()
    whole = dns.message.from_wire(stream[2:])
    assert len(texts(whole)) == 30
    assert not whole.flags & dns.flags.TC


def test_B20_forged_answers_reach_nobody(guest: Guest) -> None:
    """In the gateway's name, as an answer to the gateway, to a question nobody asked, to another one."""
    wire = guest("example.com")
    question = dns.message.make_query("example.com", "A")
    send(wire, question)
    effect = wire.asked_one(ResolveUpstream)
    forged = dns.message.make_response(question)
    forged.answer.append(dns.rrset.from_text("example.com.", 60, "IN", "A", ATTACKER))
    dropped(wire, "ip-source-is-gateway", udp(GUEST, 5300, forged.to_wire(), 53, src=GATEWAY))
    dropped(wire, "dns-not-a-query", udp(GATEWAY, 53, forged.to_wire()))
    wire.stack.dns_resolved(effect.query + 1, forged.to_wire(), wire.now)
    assert wire.hears_nothing()
    other = dns.message.make_response(dns.message.make_query("other.example", "A", id=forged.id))
    other.answer.append(dns.rrset.from_text("other.example.", 60, "IN", "A", ATTACKER))
    wire.stack.dns_resolved(effect.query, other.to_wire(), wire.now)
    assert heard(wire).rcode() == dns.rcode.SERVFAIL
    wire.stack.dns_resolved(effect.query, forged.to_wire(), wire.now)
    assert wire.hears_nothing()


def test_B21_a_thousand_questions_and_an_upstream_that_is_slow(guest: Guest) -> None:
    wire = guest("*.example.com", "example.org")
    most = dns_server.MAX_WAITING_PER_GUEST
    frames = [
        udp(GATEWAY, 53, dns.message.make_query(f"n{number}.example.com", "A").to_wire(), 10_000 + number)
        for number in range(most)
    ]
    wire.send(*frames)
    waiting = wire.asked()
    assert len(waiting) == wire.stack.dns.waiting == most
    wire.events.clear()
    send(wire, dns.message.make_query("example.org", "A"))
    assert wire.asks_nothing()
    assert heard(wire).rcode() == dns.rcode.SERVFAIL
    (event,) = wire.told(DnsEvent)
    assert (event.source, event.rcode) == ("refused", "SERVFAIL")
    sunk(wire, "evil.example")
    # Another guest is not kept waiting for this one's.
    question = dns.message.make_query("example.org", "A").to_wire()
    wire.send(udp(GATEWAY, 53, question, src="192.168.127.3"), source=OTHER_MAC)
    asked = wire.asked_one(ResolveUpstream)
    wire.stack.dns_resolved(asked.query, respond(asked, f"example.org 60 A {SITE}"), wire.now)
    assert wire.hear_one().dst == OTHER_MAC
    for effect in waiting:
        assert isinstance(effect, ResolveUpstream)
        wire.stack.dns_resolved(effect.query, None, wire.now)
    wire.hear_raw()
    assert wire.stack.dns.waiting == 0


def test_B22_no_upstream_answers(guest: Guest) -> None:
    """Failover is the resolver's (tests/gateway/test_resolver.py). When all are dead: SERVFAIL, no sinkhole (I3)."""
    wire = guest("example.com:22")
    send(wire, dns.message.make_query("example.com", "A"))
    effect = wire.asked_one(ResolveUpstream)
    wire.stack.dns_resolved(effect.query, None, wire.now)
    answer = heard(wire)
    assert (answer.rcode(), answer.answer) == (dns.rcode.SERVFAIL, [])
    told(wire, "upstream", ALLOW, "name-rule", "example.com", "example.com:22")
    wire.events.clear()
    refused_at_syn(wire, SITE, 22, "no-rule")


# -- the whole way ---------------------------------------------------------------------------------------------------


def test_B_a_listed_name_and_what_follows(guest: Guest) -> None:
    """DNS, then QUIC by that name, to what the gateway itself finds; another name at that address: nothing."""
    wire = guest(NAME)
    assert texts(ask(wire, NAME, "A", f"{NAME} 60 A {SITE}")) == [SITE]
    wire.events.clear()
    quic_by_name(wire, SITE, NAME, NAME, hello(wire, SITE, NAME), note="")
    connection = peeked(wire, SITE)
    say(connection, hellos.python_ssl(OTHER_NAME))
    turned_away(wire, connection, refusal("name-not-allowed", "tls", name=OTHER_NAME, source="sni"))
    assert not [event for event in wire.told(FlowRefused) if event.told == "nothing"]
    assert not any(isinstance(effect, OpenStream) for effect in wire.asked())
