"""Conformance class B as the guest sees it: questions in frames, answers in frames, and what leaves for upstream.

policy.md decides where it differs from the table: a name that is not allowed is answered `0.0.0.0` (not NXDOMAIN), and
what upstream cannot answer is SERVFAIL. Every variant of a question and an answer is in tests/engine/test_dns_*.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from engine.wire_guest import GATEWAY, ip, payload_of, udp
from scapy.layers.inet import UDP
from wire import hellos

from netstack.engine import wildcard_limits
from netstack.engine.effects import ResolveUpstream
from netstack.engine.events import DnsEvent
from netstack.engine.verdict import ALLOW, REFUSE
from netstack.network_spec import NetworkSpec

from .dns_client import (
    SINKHOLE,
    allowed,
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
from .packets import dropped, goes_out, refused
from .policy_wire import (
    ATTACKER,
    SITE,
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


# -- which names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "NULL", "CNAME", "MX", "SRV", "HTTPS", "SVCB", "PTR", "NS"])
def test_B1_an_unlisted_name_of_any_type(guest: Guest, kind: str) -> None:
    sunk(
        guest("example.com"),
        "aGVsbG8td29ybGQ.exfil.attacker.example",
        kind,
        shown="agvsbg8td29ybgq.exfil.attacker.example",
    )


@pytest.mark.parametrize("mode", ["nxdomain", "refused"])
def test_B1_other_ways_to_say_no(guest: Guest, mode: str) -> None:
    wire = guest(spec=NetworkSpec.enabled(["example.com"], sinkhole=mode))
    answer = ask(wire, "evil.example")
    assert (dns.rcode.to_text(answer.rcode()).lower(), answer.answer, answer.authority) == (mode, [], [])
    told(wire, "policy", REFUSE, "name-not-allowed", "evil.example")


@pytest.mark.parametrize(
    "name", ["evilexample.com", "example.com.evil.org", "examplexcom.evil.org", "com", "example.co", "xn--example.com"]
)
def test_B2_suffix_traps(guest: Guest, name: str) -> None:
    sunk(guest("example.com", "*.example.com"), name)


@pytest.mark.parametrize("name", ["EXAMPLE.com", "example.com.", "eXaMpLe.CoM"])
def test_B2_spellings_of_a_listed_name(guest: Guest, name: str) -> None:
    allowed(guest("example.com"), name, "example.com")


def test_B2_underscores_and_idna(guest: Guest) -> None:
    wire = guest("*.bücher.example")
    allowed(wire, "_dmarc.xn--bcher-kva.example", "*.bücher.example")
    sunk(wire, "xn--bcher-kva.example")


def test_B3_a_wildcard_is_any_depth_and_not_the_apex(guest: Guest) -> None:
    wire = guest("*.example.com")
    for name in ("a.example.com", "a.b.c.example.com"):
        allowed(wire, name, "*.example.com")
    sunk(wire, "example.com")


# -- other resolvers -------------------------------------------------------------------------------------------------


def test_B4_direct_resolver(guest: Guest) -> None:
    """To another resolver's address a question is a flow like any: refused under a list, by UDP and TCP."""
    wire = guest("example.com", "example.org:8443")
    refused(wire, udp("8.8.8.8", 53, dns.message.make_query("example.com", "A").to_wire()), "no-rule")
    refused_at_syn(wire, "8.8.8.8", 53, "no-rule")


def test_B4_direct_resolver_that_is_listed(guest: Guest) -> None:
    wire = guest("8.8.8.8:53")
    goes_out(wire, "8.8.8.8", 53, b"question")
    dialled_as_is(wire, "8.8.8.8", 53, "address-rule", "8.8.8.8:53")


@pytest.mark.parametrize(
    ("address", "port", "protocol", "reason"),
    [
        ("1.1.1.1", 853, "tcp", "no-rule"),
        ("1.1.1.1", 853, "udp", "no-rule"),
        ("1.1.1.1", 5353, "udp", "no-rule"),
        ("208.67.220.220", 5443, "udp", "no-rule"),
        ("192.168.127.1", 853, "tcp", "unserved-port"),
        ("192.168.127.1", 5353, "udp", "unserved-port"),
    ],
    ids=["DoT", "DoQ", "mDNS unicast", "DNSCrypt", "DoT at the gateway", "mDNS at the gateway"],
)
def test_B6_other_ways_to_ask(guest: Guest, address: str, port: int, protocol: str, reason: str) -> None:
    wire = guest("example.com")
    if protocol == "tcp":
        refused_at_syn(wire, address, port, reason)
    else:
        refused(wire, udp(address, port, b"question"), reason)


def test_B6_dnscrypt_on_the_port_of_quic(guest: Guest) -> None:
    wire = guest("example.com")
    refused(wire, udp("208.67.220.220", 443, b"r6fnvWj8" + bytes(504)), "not-quic", step="quic", source="quic")


@pytest.mark.parametrize(
    ("address", "port"),
    [("224.0.0.251", 5353), ("224.0.0.252", 5355), ("192.168.127.255", 137)],
    ids=["mDNS", "LLMNR", "NetBIOS"],
)
def test_B6_names_asked_of_everybody(guest: Guest, address: str, port: int) -> None:
    refused(guest("example.com"), udp(address, port, b"who is evil.local?"), "group-address", answer=None)


def test_B7_doh_is_https(guest: Guest) -> None:
    """A resolver that is listed is asked over HTTPS as any host; others are refused by their name."""
    wire = guest("dns.google")
    connection = peeked(wire, "8.8.8.8")
    data = hellos.python_ssl("dns.google")
    say(connection, data)
    opened_by_name(wire, connection, data, "dns.google")
    other = peeked(wire, "1.1.1.1")
    say(other, hellos.python_ssl("cloudflare-dns.com"))
    verdict = refusal("name-not-allowed", "tls", name="cloudflare-dns.com", source="sni")
    turned_away(wire, other, verdict)


# -- over TCP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 5000], ids=["single bytes", "pieces", "at once"])
def test_B5_questions_in_a_row_over_tcp(guest: Guest, size: int) -> None:
    wire = guest("example.com")
    connection = over_tcp(wire)
    names = ["evil.example", "example.com", "worse.example"]
    data = framed(*(dns.message.make_query(name, "A") for name in names))
    for at in range(0, len(data), size):
        connection.say(data[at : at + size])
    asked = wire.asked_one(ResolveUpstream)
    wire.stack.dns_resolved(asked.query, respond(asked, f"example.com 60 A {SITE}"), wire.now)
    stream = connection.hear_bytes()
    found = {}
    while stream:
        length = int.from_bytes(stream[:2], "big")
        answer = dns.message.from_wire(stream[2 : 2 + length])
        found[str(answer.question[0].name).rstrip(".")] = texts(answer)
        stream = stream[2 + length :]
    assert found == {"evil.example": SINKHOLE, "example.com": [SITE], "worse.example": SINKHOLE}
    events = {event.name: (event.source, event.transport) for event in wire.told(DnsEvent)}
    assert events == {
        "evil.example": ("policy", "tcp"),
        "example.com": ("upstream", "tcp"),
        "worse.example": ("policy", "tcp"),
    }


def test_B5_a_message_without_length_and_one_that_is_not_dns(guest: Guest) -> None:
    wire = guest("example.com")
    for stream in (b"\0\0", b"\0\5hello"):
        connection = over_tcp(wire)
        connection.say(stream)
        assert "R" in str(connection.hear()[-1].flags)
        assert wire.asks_nothing()


def test_B5_the_longest_message_is_waited_for_with_bounds(guest: Guest) -> None:
    wire = guest("example.com")
    connection = over_tcp(wire)
    data = b"\xff\xff" + dns.message.make_query("evil.example", "A").to_wire().ljust(65_535, b"\0")
    for at in range(0, len(data), 1400):
        connection.say(data[at : at + 1400])
        connection.hear()
    assert wire.asks_nothing()
    wire.wait(65)
    wire.hear()
    assert wire.rests(within=120), "and a client that waits for more is let go"


# -- messages that are no questions ----------------------------------------------------------------------------------

QUESTION = dns.message.make_query("example.com", "A", id=0x1234)


def mangled(flags: int = 0x0100, counts: tuple[int, int, int, int] = (1, 0, 0, 0), rest: bytes | None = None) -> bytes:
    body = QUESTION.to_wire()[12:] if rest is None else rest
    return struct.pack("!6H", 0x1234, flags, *counts) + body


@pytest.mark.parametrize(
    ("message", "rcode"),
    [
        (mangled(counts=(2, 0, 0, 0), rest=QUESTION.to_wire()[12:] * 2), "FORMERR"),
        (mangled(counts=(0, 0, 0, 0), rest=b""), "FORMERR"),
        (mangled(flags=0x2100), "NOTIMP"),
        (mangled(flags=0x2900), "NOTIMP"),
        (mangled(flags=0x1100), "NOTIMP"),
        (mangled(rest=b"\xc0\x0c\0\1\0\1"), "FORMERR"),
        (mangled(rest=b"\1a\xc0\x0c\0\1\0\1"), "FORMERR"),
        (mangled(rest=b"\x40" + b"a" * 64 + b"\0\0\1\0\1"), "FORMERR"),
        (mangled(rest=(b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1"), "FORMERR"),
        (mangled(rest=b"\1a" * 128 + b"\0\0\1\0\1"), "FORMERR"),
        (mangled(rest=b"\7example"), "FORMERR"),
        (mangled(rest=b""), "FORMERR"),
    ],
    ids=["two questions", "none", "notify", "update", "status", "loop", "loop later", "long label", "long name",
         "129 labels", "cut", "empty"],
)  # fmt: skip
def test_B8_B9_messages_that_are_no_question(guest: Guest, message: bytes, rcode: str) -> None:
    wire = guest("example.com")
    send(wire, message)
    assert wire.asks_nothing()
    answer = payload_of(wire.hear_one()[UDP])
    assert answer[:2] == b"\x12\x34"
    assert dns.rcode.to_text(dns.rcode.Rcode(answer[3] & 15)) == rcode
    (event,) = wire.told(DnsEvent)
    assert (event.source, event.rcode) == ("refused", rcode)


def test_B8_an_answer_from_the_guest_is_met_with_silence(guest: Guest) -> None:
    wire = guest("example.com")
    dropped(wire, "dns-not-a-query", udp(GATEWAY, 53, mangled(flags=0x8180)))
    assert not wire.told(DnsEvent)


def test_B8_records_in_a_question_go_nowhere(guest: Guest) -> None:
    wire = guest("example.com")
    question = dns.message.make_query("example.com", "A")
    question.answer.append(dns.rrset.from_text("example.com.", 60, "IN", "A", ATTACKER))
    send(wire, question)
    for effect in wire.asked():
        assert isinstance(effect, ResolveUpstream)
        assert ip(ATTACKER) not in effect.message
        assert not dns.message.from_wire(effect.message).answer


# -- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data"), [("TXT", '"v=spf1 -all"'), ("MX", "10 mx.example.com."), ("SRV", "0 0 443 a.example.com.")]
)
def test_B10_types_of_an_allowed_name_are_asked(guest: Guest, kind: str, data: str) -> None:
    wire = guest("example.com")
    assert texts(ask(wire, "example.com", kind, f"example.com 60 {kind} {data}")) == [data]
    told(wire, "upstream", ALLOW, "name-rule", "example.com", "example.com")


@pytest.mark.parametrize("kind", ["HTTPS", "SVCB"])
def test_B10_what_would_hide_a_name_is_withheld(guest: Guest, kind: str) -> None:
    """ECH keys and address hints: NOERROR, empty, and nothing asked."""
    wire = guest("example.com")
    send(wire, dns.message.make_query("example.com", kind))
    assert wire.asks_nothing()
    answer = heard(wire)
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
    told(wire, "policy", ALLOW, "service-binding-withheld", "example.com", "example.com")


def test_B10_any_is_answered_as_rfc_8482_says(guest: Guest) -> None:
    wire = guest("example.com")
    send(wire, dns.message.make_query("example.com", "ANY"))
    assert wire.asks_nothing()
    assert [rrset.rdtype for rrset in heard(wire).answer] == [dns.rdatatype.HINFO]


def test_B11_a_tunnel_below_a_wildcard(guest: Guest) -> None:
    wire = guest("*.example.com")
    long = ".".join(["x" * 60] * 3) + ".example.com"
    send(wire, dns.message.make_query(long, "TXT"))
    assert wire.asks_nothing()
    heard(wire)
    told(wire, "policy", REFUSE, "name-too-long-for-wildcard", long, "*.example.com")
    left = 0
    for number in range(wildcard_limits.BURST + 20):
        send(wire, dns.message.make_query(f"{number:040x}.example.com", "TXT"))
        for effect in wire.asked():
            assert isinstance(effect, ResolveUpstream)
            left += 1
            wire.stack.dns_resolved(effect.query, respond(effect), wire.now)
        answer = heard(wire)
    assert left == wildcard_limits.BURST
    assert answer.rcode() == dns.rcode.REFUSED
    (event,) = wire.told(DnsEvent)
    assert event.verdict is not None
    assert event.verdict.reason == "too-many-new-names"
    wire.wait(10)
    send(wire, dns.message.make_query("later.example.com", "TXT"))
    assert wire.asked_one(ResolveUpstream), "a rate, not an end"


def test_B11_the_same_tunnel_by_sni(guest: Guest) -> None:
    """A name in a hello is looked up by the gateway: it costs what a question does."""
    wire = guest("*.example.com")
    name = ".".join(["x" * 60] * 3) + ".example.com"
    connection = peeked(wire, SITE)
    say(connection, hellos.python_ssl(name))
    verdict = refusal("name-too-long-for-wildcard", "tls", rule="*.example.com", name=name, source="sni")
    turned_away(wire, connection, verdict)
