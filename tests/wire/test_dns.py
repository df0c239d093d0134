"""DNS messages, with dnspython on the other side."""

from __future__ import annotations

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

from netstack.wire import dns as wire

labels = st.binary(min_size=1, max_size=20)
names = st.lists(labels, max_size=6).map(lambda parts: dns.name.Name((*parts, b"")))
types = st.integers(1, 65535).filter(lambda rtype: rtype not in (wire.OPT, 249, 250))

RECORDS = [
    ("www.guest.test.", "A", ["198.51.100.1", "198.51.100.2"]),
    ("www.guest.test.", "AAAA", ["2001:db8::1"]),
    ("guest.test.", "MX", ["10 mx1.guest.test.", "20 mx2.other.test."]),
    ("guest.test.", "SOA", ["ns.guest.test. admin.guest.test. 1 3600 600 86400 77"]),
    ("text.guest.test.", "TXT", ['"one" "two"']),
    ("web.guest.test.", "HTTPS", ['1 . alpn="h2,h3" port=8443']),
    ("odd.guest.test.", "TYPE65280", ["\\# 4 01020304"]),
]
rrsets = st.lists(st.sampled_from(RECORDS), max_size=6, unique_by=str).map(
    lambda chosen: [dns.rrset.from_text_list(name, 300, "IN", rtype, texts) for name, rtype, texts in chosen]
)


def make_response(
    answer: list[dns.rrset.RRset],
    authority: list[dns.rrset.RRset],
    additional: list[dns.rrset.RRset],
    *,
    edns: bool = False,
) -> dns.message.Message:
    query = dns.message.make_query("WWW.guest.test.", "A", use_edns=0 if edns else -1, payload=1232)
    response = dns.message.make_response(query, recursion_available=True, our_payload=1232)
    response.answer, response.authority, response.additional = answer, authority, additional
    return response


def parsed_query(message: bytes) -> wire.Query:
    query = wire.parse_query(message)
    assert isinstance(query, wire.Query)
    return query


def parsed_response(message: bytes) -> wire.Response:
    response = wire.parse_response(message)
    assert isinstance(response, wire.Response)
    return response


@given(names, types, st.integers(0, 65535), st.booleans(), st.booleans(), st.integers(512, 65535))
def test_a_query_of_dnspython_is_read(
    name: dns.name.Name, rtype: int, ident: int, edns: bool, dnssec: bool, size: int
) -> None:
    made = dns.message.make_query(
        name, dns.rdatatype.RdataType.make(rtype), use_edns=0 if edns else -1, want_dnssec=edns and dnssec,
        payload=size, id=ident,
    )  # fmt: skip
    query = parsed_query(made.to_wire())
    assert (query.id, query.flags, query.name, query.qtype, query.qclass) == (
        ident, wire.RD, name.to_wire(), rtype, wire.CLASS_IN,
    )  # fmt: skip
    if not edns:
        assert query.edns is None
    else:
        assert query.edns == wire.Edns(size, 0, 0, dnssec, b"")


@given(names, types, st.booleans(), st.integers(0, 65535))
def test_our_query_is_read_by_dnspython(name: dns.name.Name, rtype: int, dnssec: bool, ident: int) -> None:
    question = wire.question_wire(name.to_wire() or b"", rtype, wire.CLASS_IN)
    message = wire.question(ident, wire.RD | wire.CD, question, wire.opt_record(1232, dnssec_ok=dnssec))
    read = dns.message.from_wire(message)
    assert read.id == ident
    assert read.question[0].name == name
    assert read.question[0].rdtype == rtype
    assert (read.edns, read.payload, bool(read.ednsflags & dns.flags.DO)) == (0, 1232, dnssec)
    assert read.flags == dns.flags.RD | dns.flags.CD
    bare = dns.message.from_wire(wire.without_opt(message))
    assert bare.edns == -1
    assert bare.question == read.question


@given(rrsets, rrsets, rrsets, st.booleans())
def test_a_response_passes_byte_for_byte_but_for_its_opt(
    answer: list[dns.rrset.RRset], authority: list[dns.rrset.RRset], additional: list[dns.rrset.RRset], edns: bool
) -> None:
    made = make_response(answer, authority, additional, edns=edns).to_wire()
    response = parsed_response(made)
    assert (response.edns is not None) == edns
    question = wire.question_wire(response.name, response.qtype, response.qclass)
    opt = wire.opt_record(1232) if edns else b""
    assert wire.response(response.id, response.flags, question, response.records, opt) == made
    assert wire.ttls(response.records) == [300] * sum(len(rrset) for rrset in answer + authority + additional)


@given(rrsets, rrsets, rrsets)
def test_cutting_anywhere_between_records_leaves_a_message(
    answer: list[dns.rrset.RRset], authority: list[dns.rrset.RRset], additional: list[dns.rrset.RRset]
) -> None:
    response = parsed_response(make_response(answer, authority, additional).to_wire())
    question = wire.question_wire(response.name, response.qtype, response.qclass)
    total = len(response.records.ends)
    for kept in range(total + 1):
        cut = wire.keep_records(response.records, kept)
        message = wire.response(1, wire.QR, question, cut)
        read = dns.message.from_wire(message, one_rr_per_rrset=True)
        assert len(read.answer) + len(read.authority) + len(read.additional) == kept
        assert len(cut.types) == len(cut.ends) == len(cut.ttl_offsets) == kept
    assert wire.keep_records(response.records, total) == response.records


def test_ttls_are_changed_and_nothing_else() -> None:
    made = make_response(
        [dns.rrset.from_text_list(*_rrset(RECORDS[0]))], [dns.rrset.from_text_list(*_rrset(RECORDS[3]))], []
    )
    response = parsed_response(made.to_wire())
    changed = wire.with_ttls(response.records, [1, 2, 3])
    question = wire.question_wire(response.name, response.qtype, response.qclass)
    read = dns.message.from_wire(wire.response(made.id, response.flags, question, changed), one_rr_per_rrset=True)
    assert [rrset.ttl for rrset in read.answer + read.authority] == [1, 2, 3]
    assert wire.soa_minimum(response.records, 2) == 77
    assert wire.soa_minimum(wire.collect((wire.record(b"\xc0\x0c", wire.SOA, 1, b"\x00\x00"),)), 0) == 0


def _rrset(record: tuple[str, str, list[str]]) -> tuple[str, int, str, str, list[str]]:
    return record[0], 300, "IN", record[1], record[2]


def test_additional_records_behind_an_opt_are_left_out() -> None:
    """OPT may stand anywhere among them (RFC 6891 section 6.1.1); pointers behind it could lead across the gap."""
    made = make_response([], [], [dns.rrset.from_text_list(*_rrset(RECORDS[0]))], edns=True).to_wire()
    opt = wire.opt_record(1232)
    start = made.index(b"\xc0\x0c\x00\x01", 12)
    swapped = made[:start] + opt + made[start : -len(opt)]
    response = parsed_response(swapped)
    assert response.edns == wire.Edns(1232, 0, 0, False, b"")
    assert response.records.additional == 0
    kept_one = made[: start + 16] + opt + made[start + 16 : -len(opt)]
    assert parsed_response(kept_one).records.additional == 1


def test_extended_rcode_and_errors_are_read() -> None:
    made = make_response([], [], [])
    made.use_edns(0, payload=1232, options=[dns.edns.GenericOption(3, b"nsid"), dns.edns.EDEOption(22, "no reach")])
    made.set_rcode(dns.rcode.BADCOOKIE)
    response = parsed_response(made.to_wire())
    assert response.rcode == dns.rcode.BADCOOKIE
    assert response.edns is not None
    assert wire.extended_errors(response.edns) == b"\x00\x0f\x00\x0a\x00\x16no reach"


def test_badly_formatted_options_are_told_from_a_bad_message() -> None:
    question = wire.question_wire(b"\x01a\x00", wire.A, wire.CLASS_IN)
    for options in (b"\x00", b"\x00\x0f\x00\x01", b"\x00\x0f\x00\x00\x01"):
        query = parsed_query(wire.question(1, wire.RD, question, wire.opt_record(1232, options=options)))
        assert query.edns is not None
        assert query.edns.options is None
        assert wire.extended_errors(query.edns) == b""


A_QUERY = wire.question(7, wire.RD, wire.question_wire(b"\x03www\x04test\x00", wire.A, wire.CLASS_IN))
OPT = wire.opt_record(1232)


def counts(message: bytes, *numbers: int) -> bytes:
    return message[:4] + b"".join(number.to_bytes(2, "big") for number in numbers) + message[12:]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (A_QUERY[:11], "dns-truncated"),
        (A_QUERY[:12], "dns-truncated"),
        (A_QUERY[:16], "dns-truncated"),
        (A_QUERY[:-1], "dns-truncated"),
        (A_QUERY + b"\x00", "dns-trailing-bytes"),
        (counts(A_QUERY, 0, 0, 0, 0), "dns-question-count"),
        (counts(A_QUERY, 2, 0, 0, 0), "dns-question-count"),
        (counts(A_QUERY, 1, 0, 0, 1), "dns-truncated"),
        (counts(A_QUERY, 1, 65535, 65535, 65535), "dns-record-count"),
        (counts(A_QUERY + OPT + OPT, 1, 0, 0, 2), "dns-opt"),
        (counts(A_QUERY + OPT, 1, 1, 0, 0), "dns-opt"),
        (counts(A_QUERY + b"\x01a" + OPT, 1, 0, 0, 1), "dns-opt"),
        (counts(A_QUERY + b"\xc0\x17" + OPT[1:], 1, 0, 0, 1), "dns-opt"),
        (counts(A_QUERY + b"\xc0\xff" + OPT[1:], 1, 0, 0, 1), "dns-pointer"),
        (counts(A_QUERY + b"\x80\x00" + OPT[1:], 1, 0, 0, 1), "dns-label"),
        (counts(A_QUERY + b"\x3f" + OPT[1:], 1, 0, 0, 1), "dns-truncated"),
        (counts(A_QUERY + b"\xc0", 1, 0, 0, 1), "dns-truncated"),
        (counts(A_QUERY + OPT[:-1] + b"\x01", 1, 0, 0, 1), "dns-truncated"),
        (counts(A_QUERY + b"\x01a" * 127 + OPT, 1, 0, 0, 1), "dns-opt"),
        (counts(A_QUERY + b"\x01a" * 128 + OPT, 1, 0, 0, 1), "dns-name-too-long"),
        (A_QUERY[:12] + b"\xc0\x0c\x00\x01\x00\x01", "dns-label"),
        (A_QUERY[:12] + b"\x40a\x00\x00\x01\x00\x01", "dns-label"),
        (A_QUERY[:12] + b"\x01a" * 128 + b"\x00\x00\x01\x00\x01", "dns-name-too-long"),
    ],
)
def test_malformed_queries_have_a_reason(message: bytes, reason: str) -> None:
    assert wire.parse_query(message) == reason


def test_malformed_responses_have_a_reason() -> None:
    assert wire.parse_response(A_QUERY[:5]) == "dns-truncated"
    assert wire.parse_response(counts(A_QUERY, 2, 0, 0, 0)) == "dns-question-count"
    assert wire.parse_response(counts(A_QUERY, 1, 1, 0, 0)) == "dns-truncated"
    assert parsed_response(counts(A_QUERY[:12], 0, 0, 0, 0)).name == b""
    assert parsed_response(A_QUERY + b"junk").records == wire.NO_RECORDS


@given(st.binary(max_size=200))
def test_any_bytes_never_raise(message: bytes) -> None:
    wire.header(message)
    wire.parse_query(message)
    wire.parse_response(message)
    wire.answers_question(message, A_QUERY)


@given(
    rrsets, rrsets, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8), st.integers(0, 400)
)
def test_mutated_messages_never_raise(
    answer: list[dns.rrset.RRset], additional: list[dns.rrset.RRset], changes: list[tuple[int, int]], cut: int
) -> None:
    message = bytearray(make_response(answer, [], additional, edns=True).to_wire())
    for at, value in changes:
        message[at % len(message)] = value
    for hostile in (bytes(message), bytes(message[: max(0, len(message) - cut)])):
        wire.parse_query(hostile)
        response = wire.parse_response(hostile)
        wire.answers_question(hostile, A_QUERY)
        if isinstance(response, wire.Response):
            for kept in range(len(response.records.ends) + 1):
                wire.keep_records(response.records, kept)
            for index in range(len(response.records.ends)):
                wire.soa_minimum(response.records, index)
            wire.with_ttls(response.records, wire.ttls(response.records))


def test_what_answers_a_question() -> None:
    def response(ident: int, name: bytes, qtype: int, flags: int = wire.QR, qclass: int = wire.CLASS_IN) -> bytes:
        return wire.response(ident, flags, wire.question_wire(name, qtype, qclass))

    name = b"\x03www\x04test\x00"
    assert wire.answers_question(response(7, name, wire.A), A_QUERY)
    assert wire.answers_question(response(7, name.upper(), wire.A), A_QUERY)
    assert not wire.answers_question(response(8, name, wire.A), A_QUERY)
    assert not wire.answers_question(response(7, b"\x03wwx\x04test\x00", wire.A), A_QUERY)
    assert not wire.answers_question(response(7, b"\x02ww\x05xtest\x00", wire.A), A_QUERY)
    assert not wire.answers_question(response(7, name, wire.PTR), A_QUERY)
    assert not wire.answers_question(response(7, name, wire.A, qclass=3), A_QUERY)
    assert not wire.answers_question(response(7, name, wire.A, flags=0), A_QUERY)
    assert not wire.answers_question(response(7, name, wire.A, flags=wire.QR | 0x2000), A_QUERY)
    assert not wire.answers_question(A_QUERY[:11], A_QUERY)
    # HTTPS is type 65, "A" as a letter: it must not be taken for type 97.
    https = wire.question(7, 0, wire.question_wire(name, 65, wire.CLASS_IN))
    assert not wire.answers_question(response(7, name, 97), https)
    # Without a question only a bare error counts.
    assert wire.answers_question(wire.response(7, wire.QR | wire.FORMERR, b""), A_QUERY)
    assert not wire.answers_question(wire.response(7, wire.QR, b""), A_QUERY)
    # We only compare with questions that we made.
    assert not wire.answers_question(response(7, name, wire.A), A_QUERY[:14])


def test_labels() -> None:
    assert wire.labels(b"\x00") == []
    assert wire.labels(b"\x01a\x03b.c\x00") == [b"a", b"b.c"]


def test_collected_records_are_read_by_dnspython() -> None:
    name = b"\x03www\x04test\x00"
    pointer = wire.pointer(wire.HEADER)
    records = wire.collect(
        (wire.record(pointer, wire.A, 60, b"\x01\x02\x03\x04"), wire.record(pointer, wire.A, 61, b"\x05\x06\x07\x08")),
        (wire.record(wire.pointer(wire.HEADER + 4), wire.NS, 62, pointer),),
    )
    assert wire.ttls(records) == [60, 61, 62]
    question = wire.question_wire(name, wire.A, wire.CLASS_IN)
    read = dns.message.from_wire(wire.response(1, wire.QR | wire.AA, question, records))
    assert read.answer[0].to_text() == "www.test. 60 IN A 1.2.3.4\nwww.test. 60 IN A 5.6.7.8"
    assert read.authority[0].to_text() == "test. 62 IN NS www.test."
    assert parsed_response(wire.response(1, wire.QR, question, records)).records == records
