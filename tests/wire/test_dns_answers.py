"""Aliases and addresses in DNS answers, against dnspython."""

from __future__ import annotations

import dns.message
import dns.name
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.wire import dns as wire
from netstack.wire import dns_answers
from netstack.wire.dns_answers import Alias, Answers, build, read, read_name

QUESTION = dns.message.make_query("www.example.com.", "A")
NAME = b"\x03www\x07example\x03com\x00"


def name(text: str) -> bytes:
    return dns.name.from_text(text).to_wire() or b""


def records(*texts: str) -> wire.Records:
    """The answer section as dnspython compresses it."""
    response = dns.message.make_response(QUESTION)
    for text in texts:
        owner, rdclass, rtype, data = text.split(" ", 3)
        response.answer.append(dns.rrset.from_text(owner, 300, rdclass, rtype, data))
    parsed = wire.parse_response(response.to_wire())
    assert isinstance(parsed, wire.Response)
    return parsed.records


def raw(*pieces: bytes) -> wire.Records:
    """Records as they stand there, behind the question for NAME."""
    header = b"\x00\x00\x81\x80\x00\x01" + len(pieces).to_bytes(2, "big") + bytes(4)
    parsed = wire.parse_response(header + wire.question_wire(NAME, wire.A, wire.CLASS_IN) + b"".join(pieces))
    assert isinstance(parsed, wire.Response)
    return parsed.records


def test_aliases_and_addresses_by_owner() -> None:
    found = read(
        records(
            "www.example.com. IN CNAME Edge.cdn.example.",
            "edge.cdn.example. IN A 192.0.2.1",
            "EDGE.cdn.example. IN A 192.0.2.2",
            "edge.cdn.example. IN AAAA 2001:db8::1",
            "www.example.com. IN CNAME second.example.",
            "edge.cdn.example. CH A edge.cdn.example. 1",
            "example.com. IN TXT text",
        ),
        NAME,
        wire.A,
        4,
    )
    edge = name("edge.cdn.example.")
    assert found == Answers(
        {NAME: Alias(name("Edge.cdn.example."), 300)}, {edge: [(300, b"\xc0\x00\x02\x01"), (300, b"\xc0\x00\x02\x02")]}
    )


@pytest.mark.parametrize(
    "record",
    [
        wire.record(b"\xc0\x0c", wire.A, 60, b"\x08\x08\x08"),
        wire.record(b"\xc0\x0c", wire.A, 60, bytes(16)),
        wire.record(b"\xc0\x0c", wire.A, 60, b""),
        wire.record(b"\xc0\x0c", wire.CNAME, 60, b""),
        wire.record(b"\xc0\x0c", wire.CNAME, 60, b"\x03cut"),
        wire.record(b"\xc0\x0c", wire.CNAME, 60, b"\xc0\xff"),
        wire.record(b"\xc0\x0c", wire.CNAME, 60, b"\x40" + b"a" * 64 + b"\x00"),
        wire.record(b"\xc0\x0c", wire.CNAME, 60, b"\x80\x00"),
        wire.record(b"\xc0\x0c", wire.CNAME, 60, b"\x01a" * 128 + b"\x00"),
    ],
)
def test_what_cannot_be_read_is_left_out(record: bytes) -> None:
    sound = wire.record(b"\xc0\x0c", wire.A, 60, b"\x08\x08\x08\x08")
    assert read(raw(record, sound), NAME, wire.A, 4) == Answers({}, {NAME: [(60, b"\x08\x08\x08\x08")]})


def test_only_so_many_records_are_read() -> None:
    sound = wire.record(b"\xc0\x0c", wire.A, 60, b"\x08\x08\x08\x08")
    found = read(raw(*[sound] * 1000), NAME, wire.A, 4)
    assert len(found.data[NAME]) == dns_answers.MAX_READ


def test_pointers_lead_back_or_nowhere() -> None:
    message = bytes(12) + b"\x01a\x00" + b"\x01b\xc0\x0c" + b"\x01c\xc0\x0f" + b"\xc0\x17" + b"\xc0\x18\xc0\x16"
    assert read_name(message, 12, len(message)) == b"\x01a\x00"
    assert read_name(message, 15, len(message)) == b"\x01b\x01a\x00"
    assert read_name(message, 19, len(message)) == b"\x01c\x01b\x01a\x00"
    assert read_name(message, 23, len(message)) is None, "to itself"
    assert read_name(message, 25, len(message)) is None, "forward"
    assert read_name(message, 27, len(message)) is None, "into the middle of a pointer, which leads to itself"
    assert read_name(message, len(message), len(message) + 9) is None
    assert read_name(message, 12, 14) is None, "beyond its end"
    assert read_name(message, 15, 18) is None, "beyond its end, by half a pointer"
    assert read_name(b"\xc0\x00" * 10, 4, 20) is None, "into the header"


def test_the_longest_name() -> None:
    label = b"\x3f" + b"a" * 63
    longest = label * 3 + b"\x3d" + b"b" * 61 + b"\x00"
    assert len(longest) == 255
    assert read_name(bytes(12) + longest, 12, 500) == longest
    assert read_name(bytes(12) + label * 3 + b"\x3e" + b"b" * 62 + b"\x00", 12, 500) is None
    tail = bytes(12) + label * 3 + b"\x00"
    assert read_name(tail + b"\x3e" + b"b" * 62 + b"\xc0\x0c", len(tail), 500) is None


@given(st.binary(max_size=80), st.integers(0, 90))
def test_names_are_read_as_dnspython_reads_them(message: bytes, start: int) -> None:
    found = read_name(message, start, len(message))
    if found is not None:
        expected, _ = dns.name.from_wire(message, start)
        assert expected.to_wire() == found


@given(st.binary(max_size=200), st.integers(0, 12), st.sampled_from([(wire.A, 4), (wire.AAAA, 16)]))
def test_no_records_raise(data: bytes, count: int, kind: tuple[int, int]) -> None:
    message = b"\x00\x00\x81\x80\x00\x01" + count.to_bytes(2, "big") + bytes(4)
    parsed = wire.parse_response(message + wire.question_wire(NAME, wire.A, wire.CLASS_IN) + data)
    if isinstance(parsed, wire.Response):
        read(parsed.records, NAME, *kind)


hosts = st.lists(st.text("abcXYZ019-", min_size=1, max_size=63), min_size=1, max_size=3).map(
    lambda p: name(".".join(p))
)


@given(
    st.lists(hosts, max_size=16, unique_by=bytes.lower),
    st.lists(st.binary(min_size=4, max_size=4), max_size=20),
    st.integers(0, 2**32 - 1),
)
def test_what_is_built_is_read_again_by_dnspython_and_here(targets: list[bytes], data: list[bytes], ttl: int) -> None:
    aliases = [Alias(target, 60 + number) for number, target in enumerate(targets) if target.lower() != NAME]
    built = build(NAME, aliases, wire.A, ttl, data)
    message = wire.response(1, wire.QR, wire.question_wire(NAME, wire.A, wire.CLASS_IN), built)
    response = dns.message.from_wire(message, one_rr_per_rrset=True)
    owners = [NAME, *(alias.target for alias in aliases)]
    seen = [(rrset.name.to_wire(), rrset.rdtype) for rrset in response.answer]
    assert seen == [(owner, wire.CNAME) for owner in owners[:-1]] + [(owners[-1], wire.A)] * len(data)
    parsed = wire.parse_response(message)
    assert isinstance(parsed, wire.Response)
    assert parsed.records == built
    found = read(built, NAME, wire.A, 4)
    assert found.aliases == {owner.lower(): alias for owner, alias in zip(owners[:-1], aliases, strict=True)}
    assert found.data.get(owners[-1].lower(), []) == [(ttl, one) for one in data]
