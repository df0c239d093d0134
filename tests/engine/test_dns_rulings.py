"""DNS under a list: which questions may be asked. Tests carry the rows of conformance.md and of policy.md's table.

Each refusal is seen from three sides: what the guest is told, that nothing goes upstream, and that there is one event.
"""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine import dns_server
from netstack.engine.dns_server import Answer, Ask, Drop
from netstack.engine.effects import ResolveUpstream
from netstack.engine.verdict import ALLOW, Verdict

from .dns_guest import (
    PUBLIC,
    REFUSED_NAME,
    RULES,
    Gateway,
    header,
    query,
    read,
    records,
    refusal,
    respond,
    texts,
)

TYPES = [
    "A", "AAAA", "TXT", "MX", "NS", "SRV", "CNAME", "PTR", "NULL", "ANY", "HTTPS", "SVCB", "SOA", "CAA", "DS",
    "TYPE65280", "AXFR", "IXFR", "OPT", "TYPE0",
]  # fmt: skip
MINIMAL_ANY = '"RFC8482" ""'


def ask_raw(name: str, rtype: str, *, rdclass: int = 1, edns: bool = False) -> bytes:
    """A question dnspython would not make: of meta types."""
    wire = dns.name.from_text(name).to_wire() or b""
    number = dns.rdatatype.from_text(rtype)
    opt = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00" if edns else b""
    return header(counts=(1, 0, 0, int(edns))) + wire + struct.pack("!HH", number, rdclass) + opt


# B1 and the first rows of the table: names that are not allowed.


@pytest.mark.parametrize("rtype", TYPES)
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_b1_an_unlisted_name_is_answered_here_whatever_the_type(rtype: str, transport: dns_server.Transport) -> None:
    gateway = Gateway(RULES)
    answer = gateway.answer(ask_raw(REFUSED_NAME, rtype), transport)
    assert answer.rcode() == dns.rcode.NOERROR
    found = [(rrset.rdtype, rrset.ttl, [rdata.to_text() for rdata in rrset]) for rrset in answer.answer]
    assert found == {
        "A": [(dns.rdatatype.A, 2, ["0.0.0.0"])],
        "ANY": [(dns.rdatatype.HINFO, 2, [MINIMAL_ANY])],
    }.get(rtype, [])
    assert (answer.authority, answer.additional) == ([], [])
    event = gateway.event()
    assert (event.source, event.rcode, event.answers) == ("policy", "NOERROR", len(found))
    assert event.verdict == refusal("name-not-allowed", REFUSED_NAME.lower()[:-1])
    assert event.name == REFUSED_NAME[:-1]
    assert gateway.judge.refusals == {"name-not-allowed": 1}
    assert gateway.server.waiting == 0


@pytest.mark.parametrize(("mode", "rcode"), [("nxdomain", dns.rcode.NXDOMAIN), ("refused", dns.rcode.REFUSED)])
@pytest.mark.parametrize("rtype", TYPES)
def test_b1_other_modes_have_one_answer_for_every_type(mode: str, rcode: int, rtype: str) -> None:
    gateway = Gateway(RULES, sinkhole=mode)
    answer = gateway.answer(ask_raw(REFUSED_NAME, rtype))
    assert (answer.rcode(), answer.answer) == (rcode, [])
    event = gateway.event()
    assert (event.source, event.rcode) == ("policy", dns.rcode.to_text(dns.rcode.Rcode.make(rcode)))


def test_deny_all_refuses_every_name_and_disabled_too() -> None:
    assert texts(Gateway([]).answer(query())) == ["www.example.com. 2 IN A 0.0.0.0"]
    gateway = Gateway(None, disabled=True)
    assert texts(gateway.answer(query())) == ["www.example.com. 2 IN A 0.0.0.0"]
    event = gateway.event()
    assert event.verdict is not None
    assert event.verdict.reason == "disabled"


def test_null_mode_is_one_record_and_nothing_else_without_edns() -> None:
    outcome = Gateway(RULES).send(query(REFUSED_NAME))
    assert isinstance(outcome, Answer)
    question = query(REFUSED_NAME).to_wire()[12:]
    assert outcome.message[2:] == (
        struct.pack("!5H", 0x8180, 1, 1, 0, 0) + question + b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 2, 4) + bytes(4)
    )


@pytest.mark.parametrize(
    ("mode", "rtype", "code"),
    [("null", "A", 4), ("null", "TXT", 15), ("nxdomain", "A", 15), ("refused", "A", 15)],
)
def test_a_guest_with_edns_is_told_why(mode: str, rtype: str, code: int) -> None:
    """RFC 8914: "forged answer" or "blocked"."""
    answer = Gateway(RULES, sinkhole=mode).answer(query(REFUSED_NAME, rtype, use_edns=0))
    assert answer.options == (dns.edns.EDEOption(code, "name-not-allowed"),)


def test_no_list_is_forwarded_as_it_is() -> None:
    """Spelling, types, TTLs, glue and private addresses: the real thing. And no verdict."""
    gateway = Gateway(None)
    outcome = gateway.send(query("WwW.Example.Com.", "TXT"))
    assert isinstance(outcome, Ask)
    assert isinstance(outcome.effect, ResolveUpstream)
    assert b"\x03WwW\x07Example\x03Com\x00" in outcome.effect.message
    fill = records("a.example.com. 86400 A 10.0.0.5", "other.example. 9 A 127.0.0.1")
    answer = gateway.forward(query("a.example.com."), fill)
    assert texts(answer) == ["a.example.com. 86400 IN A 10.0.0.5", "other.example. 9 IN A 127.0.0.1"]
    assert gateway.events[-1].verdict is None
    for rtype in ("HTTPS", "ANY", "AAAA"):
        assert isinstance(gateway.send(query("b.example.com.", rtype)), Ask)
    assert isinstance(gateway.send(query("version.bind.", "TXT", rdclass="CH")), Ask)
    assert len(gateway.judge.pins) == 0


def test_local_zones_come_before_the_list() -> None:
    gateway = Gateway([])
    assert texts(gateway.answer(query("HOST.Containers.internal."))) == [
        "HOST.Containers.internal. 60 IN A 192.168.127.254"
    ]
    event = gateway.event()
    assert (event.source, event.verdict) == ("zone", None)
    assert gateway.answer(query("nobody.containers.internal.")).rcode() == dns.rcode.NXDOMAIN


# B2, B3: which names a rule means.


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("example.com.", True),
        ("EXAMPLE.com.", True),
        ("eXaMpLe.CoM.", True),
        ("evilexample.com.", False),
        ("example.com.evil.org.", False),
        ("www.example.com.", False),
        ("example.comx.", False),
        ("com.", False),
        (".", False),
        ("_dmarc.example.org.", True),
        ("xn--bcher-kva.example.org.", True),
        ("a_b.example.org.", True),
        ("example\\.com.", False),
        ("example\\032.com.", False),
        ("\\032example.com.", False),
        ("example.com\\009.", False),
        ("example.com\\000.", False),
        ("www\\.example.com.example.com.", False),
        ("b\\195\\188cher.example.org.", False),
        ("-a.example.org.", False),
        ("a\\000b.example.org.", False),
        ("1.2.3.4.", False),
        ("4.3.2.1.in-addr.arpa.", False),
    ],
)
def test_b2_only_whole_labels_without_case_match(name: str, allowed: bool) -> None:
    gateway = Gateway(RULES)
    outcome = gateway.send(query(name))
    assert isinstance(outcome, Ask if allowed else Answer)
    if not allowed:
        event = gateway.event()
        assert event.source == "policy"
        assert event.verdict is not None
        assert event.verdict.reason in ("name-not-allowed", "not-a-host-name")


@pytest.mark.parametrize("name", ["a.b\\.c.", "\\255.", ".", "x\\032y.example.org.", "1.2.3.4."])
def test_b2_what_is_no_host_name_says_so(name: str) -> None:
    gateway = Gateway(RULES)
    gateway.answer(query(name))
    verdict = gateway.event().verdict
    assert verdict is not None
    assert verdict.reason == "not-a-host-name"
    assert verdict.name == (name[:-1] or ".")


@pytest.mark.parametrize(
    ("name", "allowed"), [("a.example.org.", True), ("a.b.c.example.org.", True), ("example.org.", False)]
)
def test_b3_a_wildcard_is_any_depth_and_never_the_apex(name: str, allowed: bool) -> None:
    assert isinstance(Gateway(RULES).send(query(name)), Ask if allowed else Answer)


def test_the_spelling_of_the_guest_is_echoed_and_never_leaves() -> None:
    """A choice of upper and lower case is a channel too: 128 bits in a name that the cache has forgotten."""
    gateway = Gateway(RULES)
    number, upstream = gateway.asked(query("DaTa.eXample.ORG."))
    assert upstream.question[0].to_text() == "data.example.org. IN A"
    ((_, message),) = gateway.server.resolved(
        number, respond(upstream, records(f"data.example.org. 60 A {PUBLIC}")), gateway.now
    )
    assert texts(read(message)) == [f"DaTa.eXample.ORG. 60 IN A {PUBLIC}"]
    assert texts(gateway.answer(query("DATA.example.org."))) == [f"DATA.example.org. 60 IN A {PUBLIC}"]


def test_what_goes_upstream_under_a_list() -> None:
    options: list[dns.edns.Option] = [dns.edns.ECSOption("192.168.127.2", 32)]
    _, upstream = Gateway(RULES).asked(query("example.com.", want_dnssec=True, options=options))
    assert (upstream.ednsflags, upstream.options, upstream.payload) == (0, (), 1232)


# B8, B9: malformed questions are no more welcome under a list.


@pytest.mark.parametrize(
    ("message", "rcode"),
    [
        (header(counts=(0, 0, 0, 0)), dns.rcode.FORMERR),
        (header(counts=(2, 0, 0, 0)) + b"\x07example\x03com\x00\x00\x01\x00\x01" * 2, dns.rcode.FORMERR),
        (header(4 << 11) + b"\x07example\x03com\x00\x00\x01\x00\x01", dns.rcode.NOTIMP),
        (header(5 << 11) + b"\x07example\x03com\x00\x00\x01\x00\x01", dns.rcode.NOTIMP),
        (header() + b"\x07example\xc0\x0c\x00\x01\x00\x01", dns.rcode.FORMERR),
        (header() + b"\xc0\x0c\x00\x01\x00\x01", dns.rcode.FORMERR),
        (header() + b"\xc0\x0e\xc0\x0c\x00\x01\x00\x01", dns.rcode.FORMERR),
        (header() + b"\x3fa" * 100, dns.rcode.FORMERR),
        (header() + b"\x01a" * 128 + b"\x00\x00\x01\x00\x01", dns.rcode.FORMERR),
        (header() + b"\x40" + b"a" * 64 + b"\x00\x00\x01\x00\x01", dns.rcode.FORMERR),
    ],
)
def test_b8_b9_what_is_no_question_is_never_forwarded(message: bytes, rcode: int) -> None:
    gateway = Gateway(RULES)
    outcome = gateway.send(message)
    assert isinstance(outcome, Answer)
    assert outcome.message[3] & 0xF == rcode
    assert gateway.event().source == "refused"


def test_b8_answers_from_the_guest_are_dropped() -> None:
    gateway = Gateway(RULES)
    assert isinstance(gateway.send(dns.message.make_response(query("example.com."))), Drop)
    assert not gateway.events


def test_b8_records_in_a_question_do_not_leave() -> None:
    message = query("example.com.")
    records("example.com. 60 TXT secret")(message)
    _, upstream = Gateway(RULES).asked(message)
    assert upstream.answer == []


# B10: the other types of an allowed name.


@pytest.mark.parametrize("rtype", ["HTTPS", "SVCB"])
def test_b10_service_bindings_of_an_allowed_name_are_withheld(rtype: str) -> None:
    gateway = Gateway(RULES)
    answer = gateway.answer(query("example.com.", rtype))
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
    event = gateway.event()
    assert (event.source, event.verdict) == (
        "policy",
        Verdict(ALLOW, "dns", "service-binding-withheld", "example.com", "example.com", "dns"),
    )


def test_b10_service_bindings_pass_by_option() -> None:
    gateway = Gateway(RULES, pass_service_bindings=True)
    answer = gateway.forward(
        query("example.com.", "HTTPS"), records(f"example.com. 99999 HTTPS 1 . alpn=h2 ipv4hint={PUBLIC}")
    )
    assert texts(answer) == [f'example.com. 3600 IN HTTPS 1 . alpn="h2" ipv4hint="{PUBLIC}"']
    assert gateway.answer(query(REFUSED_NAME, "HTTPS")).answer == []


def test_b10_any_gets_the_answer_of_rfc_8482() -> None:
    gateway = Gateway(RULES)
    answer = gateway.answer(query("example.com.", "ANY"))
    assert texts(answer) == [f"example.com. 2 IN HINFO {MINIMAL_ANY}"]
    verdict = gateway.event().verdict
    assert verdict is not None
    assert verdict.reason == "any-not-forwarded"


@pytest.mark.parametrize(
    ("rtype", "data"),
    [
        ("TXT", '"v=spf1 -all"'),
        ("MX", "10 mail.example.com."),
        ("SRV", "1 2 443 host.example.com."),
        ("NS", "ns.example.com."),
        ("PTR", "host.example.com."),
        ("SOA", "ns.example.com. admin.example.com. 1 2 3 4 5"),
        ("CAA", '0 issue "ca.example"'),
        ("CNAME", "other.example.net."),
        ("TYPE65280", "\\# 3 010203"),
    ],
)
def test_b10_other_types_of_an_allowed_name_come_without_anything_else(rtype: str, data: str) -> None:
    def fill(response: dns.message.Message) -> None:
        records(f"example.com. 86400 {rtype} {data}", f"host.example.com. 86400 A {PUBLIC}")(response)
        records("example.com. 86400 NS ns.example.com.", section="authority")(response)
        records("host.example.com. 86400 A 10.0.0.1", section="additional")(response)

    gateway = Gateway(RULES)
    answer = gateway.forward(query("example.com.", rtype), fill)
    assert texts(answer) == [dns.rrset.from_text("example.com.", 3600, "IN", rtype, data).to_text()]
    assert (answer.authority, answer.additional) == ([], [])
    gateway.now += 86000.5
    cached = gateway.answer(query("example.com.", rtype))
    assert cached.answer[0].ttl == 400
    assert (cached.authority, cached.additional) == ([], [])


def test_b10_an_alias_of_another_type_is_followed() -> None:
    fill = records("example.com. 60 CNAME other.example.net.", 'other.example.net. 60 TXT "text"')
    assert len(Gateway(RULES).forward(query("example.com.", "TXT"), fill).answer) == 2


@pytest.mark.parametrize("rdclass", ["CH", "HS", "ANY", "NONE", "CLASS7"])
def test_b10_other_classes_are_not_forwarded(rdclass: str) -> None:
    gateway = Gateway(RULES)
    answer = gateway.answer(query("example.com.", "TXT", rdclass=rdclass))
    assert answer.rcode() == dns.rcode.REFUSED
    verdict = gateway.event().verdict
    assert verdict is not None
    assert verdict.reason == "class-not-forwarded"
    unlisted = gateway.answer(query(REFUSED_NAME, "A", rdclass=rdclass))
    assert bool(unlisted.answer) == (rdclass == "ANY")


@pytest.mark.parametrize("rtype", ["AXFR", "IXFR"])
def test_b10_transfers_of_an_allowed_name_are_refused_as_ever(rtype: str) -> None:
    assert Gateway(RULES).answer(ask_raw("example.com.", rtype), "tcp").rcode() == dns.rcode.REFUSED


# B16: AAAA where there is no IPv6.


@pytest.mark.parametrize("mode", ["real", "synthetic"])
def test_b16_aaaa_of_a_name_not_allowed_is_nodata(mode: str) -> None:
    answer = Gateway(RULES, answers=mode).answer(query(REFUSED_NAME, "AAAA"))
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])


# Whatever comes, from either side.

names = st.lists(st.binary(min_size=1, max_size=20), max_size=6).map(lambda labels: dns.name.Name((*labels, b"")))


@given(names, st.integers(0, 65535), st.integers(0, 65535), st.sampled_from(["null", "nxdomain", "refused"]))
def test_nothing_but_allowed_names_goes_upstream(name: dns.name.Name, rtype: int, rclass: int, mode: str) -> None:
    gateway = Gateway(RULES, sinkhole=mode)
    wire = name.to_wire() or b""
    outcome = gateway.send(header() + wire + struct.pack("!HH", rtype, rclass))
    assert isinstance(outcome, Answer)  # made of these bytes, no name is an allowed one
    (event,) = gateway.events
    assert event.source in ("policy", "zone", "refused")
