"""The name server in virtual time: the guest and the upstream are both dnspython."""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine import dns_server
from netstack.engine.dns_server import Answer, Ask, DnsStream, Drop, Transport, Wait
from netstack.engine.events import DnsEvent
from netstack.engine.settings import Zone, ZoneRecord

from .dns_guest import GUEST, OTHER_GUEST, Gateway, failing, header, query, read, records, respond, texts

SOA_RECORD = "example.com. 900 SOA ns.example.com. admin.example.com. 1 2 3 4 600"


# What gvproxy does wrong: one test for each defect of section 7, item 6.


def test_gvproxy_defect_zones_are_case_sensitive() -> None:
    answer = Gateway().answer(query("HOST.Containers.INTERNAL."))
    assert texts(answer) == ["HOST.Containers.INTERNAL. 60 IN A 192.168.127.254"]


def test_gvproxy_defect_first_zone_instead_of_longest() -> None:
    gateway = Gateway()
    gateway.server.zones.put(Zone("sub.containers.internal", (ZoneRecord("x", b"\x0a\x00\x00\x01"),)))
    assert texts(gateway.answer(query("x.sub.containers.internal."))) == ["x.sub.containers.internal. 60 IN A 10.0.0.1"]


def test_gvproxy_defect_apex_never_matches() -> None:
    answer = Gateway().answer(query("containers.internal."))
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.authority[0].rdtype == dns.rdatatype.SOA


@pytest.mark.parametrize(
    ("rtype", "data"),
    [
        ("AAAA", "2001:db8::1"),
        ("PTR", "host.example.com."),
        ("SOA", "ns.example.com. admin.example.com. 1 2 3 4 5"),
        ("CAA", '0 issue "ca.example"'),
        ("HTTPS", '1 . alpn="h2"'),
        ("DS", "1 8 2 " + "AB" * 32),
        ("TYPE65280", "\\# 3 010203"),
    ],
)
def test_gvproxy_defect_types_answered_empty_without_asking(rtype: str, data: str) -> None:
    answer = Gateway().forward(query(rtype=rtype), records(f"www.example.com. 77 {rtype} {data}"))
    assert answer.answer[0].to_text() == dns.rrset.from_text("www.example.com.", 77, "IN", rtype, data).to_text()


def test_gvproxy_defect_any_answered_empty_without_asking() -> None:
    sets = ("www.example.com. 77 A 192.0.2.1", "www.example.com. 77 AAAA 2001:db8::1")
    assert len(Gateway().forward(query(rtype="ANY"), records(*sets)).answer) == 2


def test_gvproxy_defect_servfail_becomes_nxdomain() -> None:
    assert Gateway().forward(query(), failing(dns.rcode.SERVFAIL)).rcode() == dns.rcode.SERVFAIL


def test_gvproxy_defect_no_answer_becomes_nxdomain() -> None:
    gateway = Gateway()
    number, _ = gateway.asked(query())
    ((_, message),) = gateway.server.resolved(number, None, gateway.now)
    assert read(message).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize("rtype", ["MX", "TXT", "SRV", "NS"])
def test_gvproxy_defect_nodata_becomes_nxdomain(rtype: str) -> None:
    answer = Gateway().forward(query(rtype=rtype), records(SOA_RECORD, section="authority"))
    assert answer.rcode() == dns.rcode.NOERROR
    assert not answer.answer
    assert answer.authority[0].ttl == 900


@pytest.mark.parametrize("rtype", ["AAAA", "TXT", "MX", "ANY", "TYPE65280", "AXFR"])
def test_gvproxy_defect_internal_names_leak_upstream(rtype: str) -> None:
    for name in ("host.containers.internal.", "nobody.containers.internal.", "containers.internal."):
        assert isinstance(Gateway().send(query(name, rtype)), Answer)


def test_gvproxy_defect_each_lookup_asks_upstream_twice() -> None:
    gateway = Gateway()
    number, upstream = gateway.asked(query())
    assert [question.to_text() for question in upstream.question] == ["www.example.com. IN A"]
    assert len(gateway.server.resolved(number, respond(upstream), gateway.now)) == 1


def test_gvproxy_defect_truncated_over_tcp() -> None:
    """With EDNS 1232 in a TCP query gvproxy sets TC: a loop for clients."""
    answer = Gateway().answer(query("all.many.internal.", use_edns=0, payload=1232), "tcp")
    assert not answer.flags & dns.flags.TC
    assert len(answer.answer[0]) == 120


def test_gvproxy_defect_no_opt() -> None:
    gateway = Gateway()
    assert gateway.answer(query("host.containers.internal.", use_edns=0)).edns == 0
    assert gateway.forward(query(use_edns=0)).edns == 0


def test_gvproxy_defect_ttl_zero() -> None:
    answer = Gateway().forward(query(), records("www.example.com. 12345 A 192.0.2.1"))
    assert answer.answer[0].ttl == 12345


def test_gvproxy_defect_no_cache() -> None:
    gateway = Gateway()
    gateway.forward(query(), records("www.example.com. 300 A 192.0.2.1"))
    gateway.now += 100.25  # the answer came after 0.25
    assert texts(gateway.answer(query("WWW.Example.com."))) == ["WWW.Example.com. 200 IN A 192.0.2.1"]
    gateway.now += 200
    assert isinstance(gateway.send(query()), Ask)


# The envelope.


@pytest.mark.parametrize("message", [b"", b"\x00", header()[:11]])
def test_less_than_a_header_is_dropped(message: bytes) -> None:
    gateway = Gateway()
    assert gateway.send(message) == Drop("dns-truncated")
    assert not gateway.events


def test_a_response_is_dropped() -> None:
    assert Gateway().send(dns.message.make_response(query())) == Drop("dns-not-a-query")


@pytest.mark.parametrize("opcode", [1, 2, dns.opcode.NOTIFY, dns.opcode.UPDATE, 6, 15])
def test_other_opcodes_are_not_implemented(opcode: int) -> None:
    message = query(rtype="SOA", use_edns=0)
    message.set_opcode(dns.opcode.from_text(str(opcode)))
    answer = Gateway().answer(message)
    assert (answer.id, answer.opcode(), answer.rcode()) == (message.id, opcode, dns.rcode.NOTIMP)
    assert answer.edns == 0
    unreadable = Gateway().answer(header(opcode << 11))
    assert (unreadable.opcode(), unreadable.rcode()) == (opcode, dns.rcode.NOTIMP)


@pytest.mark.parametrize(
    "message",
    [
        header(counts=(0, 0, 0, 0)),
        header(counts=(2, 0, 0, 0)) + b"\x01a\x00\x00\x01\x00\x01" * 2,
        header(),
        header() + b"\x01a\x00\x00\x01\x00",
        header() + b"\xc0\x0c\x00\x01\x00\x01",
        header() + b"\x01a\x00\x00\x01\x00\x01trailing",
        header(counts=(1, 0, 0, 1)) + b"\x01a\x00\x00\x01\x00\x01",
        header(counts=(1, 65535, 65535, 65535)) + b"\x01a\x00\x00\x01\x00\x01" + bytes(11) * 5000,
    ],
    ids=["no question", "two", "missing", "short", "pointer", "trailing", "additional missing", "too many records"],
)
def test_malformed_messages_are_format_errors(message: bytes) -> None:
    gateway = Gateway()
    answer = gateway.answer(message)
    assert (answer.id, answer.rcode(), answer.question) == (0x1234, dns.rcode.FORMERR, [])
    assert answer.flags & ~0xF == dns.flags.QR | dns.flags.RD | dns.flags.RA
    assert gateway.events == [DnsEvent(GUEST, "", "", "udp", "refused", "FORMERR", 0, 0.0)]


def test_edns_versions_of_the_future_are_told_ours() -> None:
    message = query(use_edns=1)
    answer = Gateway().answer(message)
    assert (answer.rcode(), answer.edns, answer.question) == (dns.rcode.BADVERS, 0, message.question)


def test_badly_formatted_options_are_a_format_error_with_opt() -> None:
    """RFC 6891 section 7: so the client can tell it from a server without EDNS."""
    message = query(use_edns=0).to_wire()[:-2] + b"\x00\x03\x00\x01\x00"
    answer = Gateway().answer(message)
    assert (answer.rcode(), answer.edns, len(answer.question)) == (dns.rcode.FORMERR, 0, 1)


@pytest.mark.parametrize("name", ["host.containers.internal.", "nobody.containers.internal."])
@pytest.mark.parametrize("flags", [0, dns.flags.RD, dns.flags.CD, dns.flags.RD | dns.flags.CD])
def test_header_of_a_local_answer(name: str, flags: int) -> None:
    message = query(name, flags=flags)
    answer = Gateway().answer(message)
    assert answer.id == message.id
    assert answer.flags & ~0xF == dns.flags.QR | dns.flags.AA | dns.flags.RA | flags
    assert answer.question == message.question


def test_the_question_comes_back_as_the_guest_spelled_it() -> None:
    gateway = Gateway()
    fill = records("www.example.com. 300 A 192.0.2.1")
    for spelled in ("wWw.ExAmPlE.cOm.", "WWW.example.COM."):
        message = query(spelled)
        outcome = gateway.send(message)
        if isinstance(outcome, Ask):
            ((_, wire),) = gateway.server.resolved(
                outcome.effect.query, respond(dns.message.from_wire(outcome.effect.message), fill), gateway.now
            )
        else:
            assert isinstance(outcome, Answer)
            wire = outcome.message
        assert wire[12:33] == message.to_wire()[12:33]


# What goes upstream, and what comes back.


def test_what_is_asked_upstream() -> None:
    options: list[dns.edns.Option] = [dns.edns.ECSOption("192.168.127.2", 32), dns.edns.GenericOption(10, b"cookie12")]
    plain = Gateway().asked(query("WwW.example.com.", "HTTPS"))[1]
    assert (plain.edns, plain.payload, plain.ednsflags, plain.options) == (0, 1232, 0, ())
    assert plain.flags == dns.flags.RD | dns.flags.AD
    assert plain.question[0].to_text() == "WwW.example.com. IN HTTPS"
    full = Gateway().asked(query(want_dnssec=True, payload=4096, options=options, flags=dns.flags.CD))[1]
    assert (full.edns, full.payload, full.ednsflags, full.options) == (0, 1232, dns.flags.DO, ())
    assert full.flags == dns.flags.CD | dns.flags.AD


def test_other_classes_go_upstream_as_they_are() -> None:
    assert (
        Gateway().asked(query("version.bind.", "TXT", rdclass="CH"))[1].question[0].to_text() == "version.bind. CH TXT"
    )


@pytest.mark.parametrize("rtype", ["AXFR", "IXFR"])
def test_transfers_are_refused(rtype: str) -> None:
    name = dns.name.from_text("example.com").to_wire() or b""
    message = header() + name + struct.pack("!HH", dns.rdatatype.from_text(rtype), 1)
    assert Gateway().answer(message, "tcp").rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize("rcode", [0, 1, 2, 3, 4, 5, 9])
def test_response_codes_pass(rcode: int) -> None:
    answer = Gateway().forward(query(), failing(dns.rcode.Rcode.make(rcode)))
    assert answer.rcode() == rcode
    assert answer.question


def test_extended_response_codes_need_edns() -> None:
    assert Gateway().forward(query(use_edns=0), failing(dns.rcode.BADCOOKIE)).rcode() == dns.rcode.BADCOOKIE
    assert Gateway().forward(query(), failing(dns.rcode.BADCOOKIE)).rcode() == dns.rcode.SERVFAIL


def test_opt_is_only_for_guests_who_sent_one() -> None:
    gateway = Gateway()
    fill = records("www.example.com. 300 A 192.0.2.1")
    assert gateway.forward(query(), fill).edns == -1
    cached = gateway.answer(query(use_edns=0, payload=4096))
    assert (cached.edns, cached.payload, cached.ednsflags) == (0, 1232, 0)


def test_dnssec_data_passes_to_who_asked_for_it() -> None:
    gateway = Gateway()
    signature = "www.example.com. 300 RRSIG A 8 3 300 20300101000000 20200101000000 1 example.com. AAAA"

    def fill(response: dns.message.Message) -> None:
        records("www.example.com. 300 A 192.0.2.1", signature)(response)
        response.flags |= dns.flags.AD

    answer = gateway.forward(query(want_dnssec=True), fill)
    assert len(answer.answer) == 2
    assert answer.ednsflags == dns.flags.DO
    assert answer.flags & dns.flags.AD
    # Without DO it is another question, and AD is for those who ask for it (RFC 6840 section 5.8).
    assert not gateway.forward(
        query(), lambda response: setattr(response, "flags", response.flags | dns.flags.AD)
    ).flags & (dns.flags.AD)
    asking = query("ad.example.com.", flags=dns.flags.RD | dns.flags.AD)
    assert gateway.forward(asking, lambda response: setattr(response, "flags", response.flags | dns.flags.AD)).flags & (
        dns.flags.AD
    )


def test_upstream_authority_is_not_ours() -> None:
    assert (
        not Gateway().forward(query(), lambda response: setattr(response, "flags", response.flags | dns.flags.AA)).flags
        & dns.flags.AA
    )


def test_extended_errors_pass_and_other_options_do_not() -> None:
    def fill(response: dns.message.Message) -> None:
        response.set_rcode(dns.rcode.SERVFAIL)
        response.use_edns(0, options=[dns.edns.GenericOption(3, b"me"), dns.edns.EDEOption(6, "bogus")])

    gateway = Gateway()
    assert gateway.forward(query(use_edns=0), fill).options == (dns.edns.EDEOption(6, "bogus"),)
    assert gateway.answer(query(use_edns=0)).options == (dns.edns.EDEOption(6, "bogus"),)
    assert gateway.answer(query()).edns == -1


def test_long_extended_errors_give_way_to_records() -> None:
    def fill(response: dns.message.Message) -> None:
        records("www.example.com. 300 A 192.0.2.1")(response)
        response.use_edns(0, options=[dns.edns.EDEOption(6, "x" * 5000)])

    answer = Gateway().forward(query(use_edns=0), fill)
    assert not answer.flags & dns.flags.TC
    assert (len(answer.answer), answer.options) == (1, ())


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"short",
        header(),
        header(0x8180, (1, 1, 0, 0)) + b"\x03www\x07example\x03com\x00\x00\x01\x00\x01",
        dns.message.make_response(query("other.example.com.")).to_wire(),
        dns.message.make_response(query(rtype="AAAA")).to_wire(),
        query().to_wire(),
        header(0x8180, (0, 0, 0, 0)),
    ],
    ids=[
        "empty",
        "short",
        "other id",
        "count of answers without an answer",
        "other name",
        "other type",
        "a question",
        "no question",
    ],
)
def test_upstream_nonsense_is_servfail(message: bytes) -> None:
    gateway = Gateway()
    number, _ = gateway.asked(query())
    ((_, answer),) = gateway.server.resolved(number, message, gateway.now)
    assert read(answer).rcode() == dns.rcode.SERVFAIL
    assert read(answer).question == query().question


def test_an_error_without_question_passes() -> None:
    gateway = Gateway()
    number, _ = gateway.asked(query())
    ((_, answer),) = gateway.server.resolved(number, header(0x8185, (0, 0, 0, 0)), gateway.now)
    assert read(answer).rcode() == dns.rcode.REFUSED


# Sizes.


@pytest.mark.parametrize(
    ("mtu", "offered", "limit"),
    [
        (1500, None, 512),
        (1500, 100, 512),
        (1500, 512, 512),
        (1500, 1232, 1232),
        (1500, 4096, 1472),
        (1500, 65535, 1472),
        (65520, 65535, 4096),
        (576, 4096, 548),
        (68, 4096, 512),
    ],
)
def test_udp_answers_fit_the_guest_and_one_packet(mtu: int, offered: int | None, limit: int) -> None:
    gateway = Gateway(mtu=mtu)
    edns = {} if offered is None else {"use_edns": 0, "payload": offered}
    fill = records(*(f"www.example.com. 300 TXT {'x' * 90}{number}" for number in range(60)))
    outcome = gateway.send(query(rtype="TXT", **edns))
    assert isinstance(outcome, Ask)
    upstream = dns.message.from_wire(outcome.effect.message)
    ((_, wire),) = gateway.server.resolved(outcome.effect.query, respond(upstream, fill), gateway.now)
    answer = read(wire)
    assert answer.flags & dns.flags.TC
    # As many as fit: one more record would be too much.
    assert limit - 104 < len(wire) <= limit
    assert answer.answer
    assert answer.edns == (-1 if offered is None else 0)
    assert len(gateway.answer(query(rtype="TXT", **edns), "tcp").answer[0]) == 60


def test_only_lost_additional_records_are_no_truncation() -> None:
    """RFC 2181 section 9."""

    def fill(response: dns.message.Message) -> None:
        records("www.example.com. 300 A 192.0.2.1")(response)
        records(*(f"www.example.com. 300 TXT {'x' * 90}{number}" for number in range(9)), section="additional")(
            response
        )

    answer = Gateway().forward(query(), fill)
    assert not answer.flags & dns.flags.TC
    assert len(answer.answer) == 1
    assert 0 < len(answer.additional[0]) < 9


def test_what_upstream_cut_off_stays_marked_over_udp_and_fails_over_tcp() -> None:
    def cut(response: dns.message.Message) -> None:
        response.flags |= dns.flags.TC

    assert Gateway().forward(query(), cut).flags & dns.flags.TC
    answer = Gateway().forward(query(), cut, "tcp")
    assert (answer.rcode(), answer.flags & dns.flags.TC) == (dns.rcode.SERVFAIL, 0)


def test_an_opt_that_no_longer_fits_64_kib_costs_records_not_the_connection() -> None:
    gateway = Gateway()
    number, upstream = gateway.asked(query(use_edns=0), transport="tcp")
    response = dns.message.make_response(upstream)
    response.use_edns(-1)
    full = response.to_wire()
    room = 65535 - len(full)
    big = b"\xc0\x0c\x00\x10\x00\x01\x00\x00\x01\x2c" + (room - 12).to_bytes(2, "big") + bytes(room - 12)
    message = full[:6] + b"\x00\x01" + full[8:] + big
    assert len(message) == 65535
    ((_, answer),) = gateway.server.resolved(number, message, gateway.now)
    assert read(answer).rcode() == dns.rcode.SERVFAIL


# Who waits.


def test_identical_questions_are_asked_once() -> None:
    gateway = Gateway()
    first = query()
    number, upstream = gateway.asked(first, token="a")
    others = [("b", query("WWW.EXAMPLE.com.")), ("c", query(use_edns=0)), ("d", query())]
    for token, other in others:
        assert gateway.send(other, token=token) == Wait()
    answers = gateway.server.resolved(
        number, respond(upstream, records("www.example.com. 300 A 192.0.2.1")), gateway.now + 1
    )
    assert [token for token, _ in answers] == ["a", "b", "c", "d"]
    for (_, wire), (_, asked) in zip(answers, [("a", first), *others], strict=True):
        answer = read(wire)
        assert (answer.id, answer.question, answer.edns) == (asked.id, asked.question, asked.edns)
        assert len(answer.answer) == 1
    assert gateway.server.waiting == 0
    assert [event.seconds for event in gateway.events] == [1.0] * 4


def test_different_questions_are_asked_apart() -> None:
    gateway = Gateway()
    for number, other in enumerate(
        (query(), query(rtype="AAAA"), query(want_dnssec=True), query(flags=dns.flags.CD), query(flags=0)), 1
    ):
        assert gateway.asked(other)[0] == number


def test_a_repeated_question_is_answered_once() -> None:
    gateway = Gateway()
    message = query()
    number, upstream = gateway.asked(message)
    assert gateway.send(message) == Wait()
    assert len(gateway.server.resolved(number, respond(upstream), gateway.now)) == 1


def test_results_nobody_waits_for_are_ignored() -> None:
    gateway = Gateway()
    number, upstream = gateway.asked(query())
    assert gateway.server.resolved(number + 1, respond(upstream), gateway.now) == []
    assert len(gateway.server.resolved(number, respond(upstream), gateway.now)) == 1
    assert gateway.server.resolved(number, respond(upstream), gateway.now) == []


def test_what_was_asked_without_recursion_is_not_kept() -> None:
    gateway = Gateway()
    gateway.forward(query(flags=0), records("www.example.com. 300 A 192.0.2.1"))
    assert isinstance(gateway.send(query()), Ask)


def test_one_guest_cannot_take_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_server, "MAX_WAITING", 6)
    monkeypatch.setattr(dns_server, "MAX_WAITING_PER_GUEST", 4)
    gateway = Gateway()
    asks = [gateway.asked(query(f"{number}.example.com."))[0] for number in range(3)]
    assert gateway.send(query("0.example.com."), token="other") == Wait()
    assert gateway.answer(query("4.example.com.")).rcode() == dns.rcode.SERVFAIL
    # Joining a question under way takes a place as well.
    assert gateway.answer(query("1.example.com.", id=1)).rcode() == dns.rcode.SERVFAIL
    assert texts(gateway.answer(query("host.containers.internal."))) != []
    for number in range(2):
        assert isinstance(gateway.send(query(f"{number}.example.org."), guest=OTHER_GUEST), Ask)
    full = gateway.send(query("3.example.org."), guest=OTHER_GUEST)
    assert isinstance(full, Answer)
    assert read(full.message).rcode() == dns.rcode.SERVFAIL
    assert gateway.events[-1].source == "refused"
    assert gateway.server.waiting == 6
    gateway.server.resolved(asks[0], None, gateway.now)
    assert gateway.server.waiting == 4
    assert isinstance(gateway.send(query("5.example.com.")), Ask)


def test_the_limits() -> None:
    gateway = Gateway()
    for number in range(dns_server.MAX_WAITING_PER_GUEST):
        assert isinstance(gateway.send(query(f"{number}.example.com.")), Ask)
    assert isinstance(gateway.send(query("more.example.com.")), Answer)
    assert gateway.server.waiting == 1024


# Reports.


def test_reports() -> None:
    gateway = Gateway()
    gateway.send(query("Host.containers.internal."))
    gateway.forward(
        query("many.example.com.", "AAAA"), records("many.example.com. 9 AAAA ::1", "many.example.com. 9 AAAA ::2")
    )
    gateway.send(query("many.example.com.", "AAAA"), "tcp")
    gateway.forward(query("gone.example.com.", "TYPE65280"), failing(dns.rcode.NXDOMAIN))
    assert gateway.events == [
        DnsEvent(GUEST, "Host.containers.internal", "A", "udp", "zone", "NOERROR", 1, 0.0),
        DnsEvent(GUEST, "many.example.com", "AAAA", "udp", "upstream", "NOERROR", 2, 0.25),
        DnsEvent(GUEST, "many.example.com", "AAAA", "tcp", "cache", "NOERROR", 2, 0.0),
        DnsEvent(GUEST, "gone.example.com", "TYPE65280", "udp", "upstream", "NXDOMAIN", 0, 0.25),
    ]
    assert (gateway.server.cache.hits, gateway.server.cache.misses) == (1, 2)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([], "."),
        ([b"a", b"b-c_d"], "a.b-c_d"),
        ([b"a.b", b"c"], "a\\.b.c"),
        ([b"\xff\x00 \n", b"\x1b[31m"], "\\255\\000\\032\\010.\\027[31m"),
    ],
)
def test_reported_names_are_printable(labels: list[bytes], text: str) -> None:
    gateway = Gateway()
    gateway.send(dns.message.make_query(dns.name.Name((*labels, b"")), "A"))
    number = 1
    gateway.server.resolved(number, None, gateway.now)
    assert gateway.events[-1].name == text


# Hostile bytes.


def read_any(message: bytes) -> None:
    """Read an answer as one to a QUERY: in an UPDATE dnspython wants a question for SOA, which hostile bytes lack."""
    read(message[:2] + bytes([message[2] & 0x87]) + message[3:])


@given(st.binary(max_size=300), st.sampled_from(["udp", "tcp"]))
def test_any_bytes_never_raise(message: bytes, transport: Transport) -> None:
    outcome = Gateway().send(message, transport)
    assert isinstance(outcome, Answer | Ask | Drop)
    if isinstance(outcome, Answer):
        read_any(outcome.message)


QUERIES = [
    query("host.containers.internal.", use_edns=0),
    query("all.many.internal.", want_dnssec=True, payload=600),
    query("www.example.com.", options=[dns.edns.ECSOption("192.0.2.0", 24)]),
    query(".", "NS"),
]
changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6)


def mutate(message: bytes, what: list[tuple[int, int]]) -> bytes:
    mutated = bytearray(message)
    for at, value in what:
        mutated[at % len(mutated)] = value
    return bytes(mutated)


@given(st.sampled_from(QUERIES), changes, st.sampled_from(["udp", "tcp"]))
def test_mutated_queries_never_raise(
    message: dns.message.Message, what: list[tuple[int, int]], transport: Transport
) -> None:
    gateway = Gateway()
    outcome = gateway.send(mutate(message.to_wire(), what), transport)
    if isinstance(outcome, Ask):
        dns.message.from_wire(outcome.effect.message)
        ((_, answer),) = gateway.server.resolved(outcome.effect.query, None, gateway.now)
        assert read(answer).rcode() == dns.rcode.SERVFAIL
    elif isinstance(outcome, Answer):
        read_any(outcome.message)


@given(changes, st.integers(0, 200), st.sampled_from(["udp", "tcp"]))
def test_mutated_upstream_answers_never_raise(what: list[tuple[int, int]], cut: int, transport: Transport) -> None:
    gateway = Gateway()
    number, upstream = gateway.asked(query(use_edns=0, payload=512), transport=transport)
    texts = (f"www.example.com. 300 A 192.0.2.{last}" for last in range(40))
    message = mutate(respond(upstream, records(*texts, SOA_RECORD)), what)
    ((_, answer),) = gateway.server.resolved(number, message[: len(message) - cut], gateway.now)
    assert len(answer) <= (65535 if transport == "tcp" else 512)
    gateway.now += 50
    gateway.send(query(use_edns=0, payload=512), transport)


@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 2000) | st.none(),
    st.integers(68, 1500),
)
def test_whatever_is_cut_off_what_is_left_is_a_message(
    answers: int, authority: int, additional: int, offered: int | None, mtu: int
) -> None:
    def fill(response: dns.message.Message) -> None:
        records(*(f"www.example.com. 300 A 192.0.2.{last}" for last in range(answers)))(response)
        records(*(f"com. 300 NS ns{number}.example.com." for number in range(authority)), section="authority")(response)
        records(*(f"ns{n}.example.com. 300 A 192.0.2.1" for n in range(additional)), section="additional")(response)

    gateway = Gateway(mtu=mtu)
    message = query() if offered is None else query(use_edns=0, payload=offered)
    number, upstream = gateway.asked(message)
    ((_, wire),) = gateway.server.resolved(number, respond(upstream, fill), gateway.now)
    assert len(wire) <= max(512, min(mtu - 28, offered or 0))
    answer = read(wire)
    kept = sum(map(len, answer.answer)), sum(map(len, answer.authority))
    assert bool(answer.flags & dns.flags.TC) == (kept != (answers, authority))


# Over TCP.


def test_a_stream_gives_messages_however_they_are_cut() -> None:
    messages = [b"one", b"", b"x" * 65535, b"four"]
    stream = b"".join(map(DnsStream.frame, messages))
    whole = DnsStream()
    assert whole.receive(stream) == messages
    single = DnsStream()
    assert [message for byte in stream for message in single.receive(bytes([byte]))] == messages
    assert single.receive(b"") == []


def test_a_stream_with_nothing_but_empty_messages() -> None:
    assert DnsStream().receive(bytes(8)) == [b""] * 4
    assert DnsStream().receive(bytes(9)) == [b""] * 4


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 50), max_size=20))
def test_any_cut_of_a_stream(messages: list[bytes], sizes: list[int]) -> None:
    rest = b"".join(map(DnsStream.frame, messages))
    stream = DnsStream()
    received: list[bytes] = []
    for size in [*sizes, len(rest)]:
        received += stream.receive(rest[:size])
        rest = rest[size:]
    assert received == messages


def test_pipelined_questions_on_one_connection() -> None:
    gateway = Gateway()
    asked = [query(f"{number}.example.com.") for number in range(3)] + [query("host.containers.internal.")]
    stream = DnsStream()
    data = b"".join(DnsStream.frame(message.to_wire()) for message in asked)
    outcomes = [gateway.send(message, "tcp") for message in stream.receive(data)]
    assert [type(outcome) for outcome in outcomes] == [Ask, Ask, Ask, Answer]
    # Answered as upstream answers, not in the order of the questions (RFC 7766 section 6.2.1.1).
    for number in (3, 1, 2):
        ((_, message),) = gateway.server.resolved(number, None, gateway.now)
        assert read(message).id == asked[number - 1].id
