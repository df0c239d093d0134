"""DNS messages (RFC 1035 section 4) with EDNS (RFC 6891), as far as a forwarder must look into them.

A question is read by value. The records behind it stay the bytes they came as, with the offsets at which one may be
cut off or its TTL changed: so every type, known or not, passes unchanged. Names are in wire form, ended by the root
label.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

HEADER: Final = 12
MAX_MESSAGE: Final = 65535
MIN_UDP_SIZE: Final = 512
"""What every client takes over UDP without EDNS (RFC 1035 section 4.2.1)."""
SAFE_UDP_SIZE: Final = 1232
"""Fits IPv6's least MTU and so any path (1280 - 48, DNS flag day 2020); what we say we take over UDP."""

# Header flags.
QR: Final = 0x8000
OPCODE: Final = 0x7800
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020
CD: Final = 0x0010
RCODE: Final = 0x000F

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16

A: Final = 1
NS: Final = 2
CNAME: Final = 5
SOA: Final = 6
PTR: Final = 12
HINFO: Final = 13
AAAA: Final = 28
DNAME: Final = 39
OPT: Final = 41
SVCB: Final = 64
HTTPS: Final = 65
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255

CLASS_IN: Final = 1
CLASS_ANY: Final = 255

EXTENDED_ERROR: Final = 15
"""EDNS option code of RFC 8914."""
FORGED_ANSWER: Final = 4
BLOCKED: Final = 15

_HEADER = Struct("!HHHHHH")
_TYPE_CLASS = Struct("!HH")
_RECORD = Struct("!HHIH")  # type, class, TTL, length of the data: what follows a record's name
_OPT = Struct("!BHHBBHH")  # root name, OPT, payload size, extended rcode, version, flags, length of the options
_DNSSEC_OK: Final = 0x8000
_NO_COUNTS: Final = (0, 0, 0)

OPT_SIZE: Final = _OPT.size
"""An OPT record without options, bytes."""
MAX_NAME: Final = 255
"""Bytes of a name in wire form (RFC 1035 section 2.3.4)."""
_POINTER: Final = 0xC0
_MAX_LABEL: Final = 63
_MAX_QUERY_RECORDS: Final = 8
"""Real queries carry an OPT, at most a signature and an IXFR's SOA besides; thousands only cost time to read."""


class Edns(NamedTuple):
    """What an OPT record says. `udp_size` as sent, may be < 512; `options` is None when they are badly formatted."""

    udp_size: int
    extended_rcode: int
    version: int
    dnssec_ok: bool
    options: bytes | None


class Records(NamedTuple):
    """The three sections behind a question as they lie on the wire, OPT left out.

    Offsets count from the start of `data`. `answers`, `authority` and `additional` are numbers of records; `types`,
    `ttl_offsets` and `ends` have one entry for each. Compression pointers in `data` count from the start of the
    message: it stays valid behind any question whose name is equally long.
    """

    data: bytes
    answers: int
    authority: int
    additional: int
    types: tuple[int, ...]
    ttl_offsets: tuple[int, ...]
    ends: tuple[int, ...]


NO_RECORDS: Final = Records(b"", 0, 0, 0, (), (), ())


class Query(NamedTuple):
    """One question as a client sent it; `flags` is the header's second word, `name` in the client's case."""

    id: int
    flags: int
    name: bytes
    qtype: int
    qclass: int
    edns: Edns | None


class Response(NamedTuple):
    """An answer as a server sent it. `name` is empty when the server left the question out, as some do with errors."""

    id: int
    flags: int
    name: bytes
    qtype: int
    qclass: int
    edns: Edns | None
    records: Records

    @property
    def rcode(self) -> int:
        """All 12 bits of it (RFC 6891 section 6.1.3)."""
        return self.flags & RCODE | (self.edns.extended_rcode << 4 if self.edns else 0)


class Reply(NamedTuple):
    """A response without its envelope (id, question, OPT): what a zone, the cache or a server has to say to a question.

    `rcode` has 12 bits. `errors` are the extended errors as EDNS options. `truncated`: the server left records out.
    """

    rcode: int
    records: Records = NO_RECORDS
    authoritative: bool = False
    authentic: bool = False
    truncated: bool = False
    errors: bytes = b""


class _MalformedError(Exception):
    """Carries the reason word out of the readers below; never leaves this file."""


def header(message: bytes) -> tuple[int, int] | None:
    """The id and the flags, or None when there are less than 12 bytes."""
    if len(message) < HEADER:
        return None
    first, second = _TYPE_CLASS.unpack_from(message)
    return first, second


def parse_query(message: bytes) -> Query | str:
    """Read a client's message. Returns a reason word when it is malformed or does not hold exactly one question."""
    if len(message) < HEADER:
        return "dns-truncated"
    ident, flags, questions, *counts = _HEADER.unpack_from(message)
    if questions != 1:  # RFC 9619: there is no other number in a QUERY
        return "dns-question-count"
    if sum(counts) > _MAX_QUERY_RECORDS:
        return "dns-record-count"
    try:
        end = _question_name(message)
        qtype, qclass = _TYPE_CLASS.unpack_from(message, end - _TYPE_CLASS.size)
        edns = None
        if len(message) > end or any(counts):
            _, edns, last = _sections(message, end, (counts[0], counts[1], counts[2]))
            if last != len(message):
                return "dns-trailing-bytes"
    except _MalformedError as malformed:
        return malformed.args[0]  # type: ignore[no-any-return]  # always the reason word, a str
    return Query(ident, flags, message[HEADER : end - _TYPE_CLASS.size], qtype, qclass, edns)


def parse_response(message: bytes) -> Response | str:
    """Read a server's message. Returns a reason word when it is malformed. Bytes after the last record are ignored."""
    if len(message) < HEADER:
        return "dns-truncated"
    ident, flags, questions, answers, authority, additional = _HEADER.unpack_from(message)
    if questions > 1:
        return "dns-question-count"
    name, qtype, qclass, end = b"", 0, 0, HEADER
    try:
        if questions:
            end = _question_name(message)
            name = message[HEADER : end - _TYPE_CLASS.size]
            qtype, qclass = _TYPE_CLASS.unpack_from(message, end - _TYPE_CLASS.size)
        records, edns, _ = _sections(message, end, (answers, authority, additional))
    except _MalformedError as malformed:
        return malformed.args[0]  # type: ignore[no-any-return]  # always the reason word, a str
    return Response(ident, flags, name, qtype, qclass, edns, records)


def answers_question(response: bytes, query: bytes) -> bool:
    """Whether `response` may answer `query`: same id, and the same question but for the case of its name.

    A server that understood nothing may leave the question out; that counts when it reports an error and no record.
    """
    if len(response) < HEADER:
        return False
    ident, flags, questions, *counts = _HEADER.unpack_from(response)
    if ident != int.from_bytes(query[:2], "big") or not flags & QR or flags & OPCODE:
        return False
    if questions == 0:
        return bool(flags & RCODE) and counts[0] == counts[1] == 0
    try:
        end = _question_name(query)
    except _MalformedError:
        return False
    split = end - _TYPE_CLASS.size
    return (
        questions == 1
        and response[split:end] == query[split:end]
        and response[HEADER:split].lower() == query[HEADER:split].lower()
    )


def without_opt(query: bytes) -> bytes:
    """A query of ours (one question, then nothing but an OPT record) without its OPT: for servers older than EDNS."""
    ident, flags, *_ = _HEADER.unpack_from(query)
    return question(ident, flags, query[HEADER : _question_name(query)])


def question(ident: int, flags: int, wire: bytes, opt: bytes = b"") -> bytes:
    """A query: `wire` is the question itself (name, type, class), `opt` an OPT record or nothing."""
    return _HEADER.pack(ident, flags, 1, 0, 0, 1 if opt else 0) + wire + opt


def response(ident: int, flags: int, wire: bytes, records: Records = NO_RECORDS, opt: bytes = b"") -> bytes:
    """A response. `wire` is the question to echo; empty when there was none to read."""
    return b"%b%b%b%b" % (
        _HEADER.pack(
            ident,
            flags,
            1 if wire else 0,
            records.answers,
            records.authority,
            records.additional + (1 if opt else 0),
        ),
        wire,
        records.data,
        opt,
    )


def question_wire(name: bytes, qtype: int, qclass: int) -> bytes:
    """A question section's one entry."""
    return name + _TYPE_CLASS.pack(qtype, qclass)


def opt_record(udp_size: int, *, extended_rcode: int = 0, dnssec_ok: bool = False, options: bytes = b"") -> bytes:
    """An OPT record of version 0. `extended_rcode` is the upper 8 of an rcode's 12 bits."""
    flags = _DNSSEC_OK if dnssec_ok else 0
    return _OPT.pack(0, OPT, udp_size, extended_rcode, 0, flags, len(options)) + options


def extended_errors(edns: Edns) -> bytes:
    """The extended errors (RFC 8914) among the options, as options."""
    return b"".join(option for code, option in _split_options(edns.options or b"") or () if code == EXTENDED_ERROR)


def extended_error(code: int, text: str) -> bytes:
    """An extended error as an EDNS option (RFC 8914 section 2)."""
    data = code.to_bytes(2, "big") + text.encode()
    return _TYPE_CLASS.pack(EXTENDED_ERROR, len(data)) + data


def record(name: bytes, rtype: int, ttl: int, data: bytes) -> bytes:
    """One record of class IN. `name` may be a compression pointer."""
    return name + _RECORD.pack(rtype, CLASS_IN, ttl, len(data)) + data


def pointer(offset: int) -> bytes:
    """A compression pointer to `offset` (12..16383) of the message (RFC 1035 section 4.1.4)."""
    return (_POINTER << 8 | offset).to_bytes(2, "big")


def collect(answers: tuple[bytes, ...], authority: tuple[bytes, ...] = ()) -> Records:
    """Records made here, as the sections of a message. Their names must be compression pointers."""
    all_records = answers + authority
    ends: list[int] = []
    size = 0
    for one in all_records:
        size += len(one)
        ends.append(size)
    starts = [0, *ends][: len(ends)]
    return Records(
        b"".join(all_records),
        len(answers),
        len(authority),
        0,
        tuple(_TYPE_CLASS.unpack_from(one, 2)[0] for one in all_records),
        tuple(start + 2 + _TYPE_CLASS.size for start in starts),
        tuple(ends),
    )


def keep_records(records: Records, kept: int) -> Records:
    """The first `kept` records. Pointers only lead back, so what is left stays valid."""
    answers = min(records.answers, kept)
    authority = min(records.authority, kept - answers)
    return Records(
        records.data[: records.ends[kept - 1]] if kept else b"",
        answers,
        authority,
        min(records.additional, kept - answers - authority),
        records.types[:kept],
        records.ttl_offsets[:kept],
        records.ends[:kept],
    )


def ttls(records: Records) -> list[int]:
    """The TTL of each record, seconds, as it stands there (32 bits)."""
    return [int.from_bytes(records.data[at : at + 4], "big") for at in records.ttl_offsets]


def with_ttls(records: Records, values: list[int]) -> Records:
    """The same records with other TTLs, seconds."""
    data = bytearray(records.data)
    for at, value in zip(records.ttl_offsets, values, strict=True):
        data[at : at + 4] = value.to_bytes(4, "big")
    return records._replace(data=bytes(data))


def soa_minimum(records: Records, index: int) -> int:
    """The last field of the SOA that is record number `index`, seconds (RFC 1035 section 3.3.13); 0 if it has none."""
    start, end = records.ttl_offsets[index] + 6, records.ends[index]
    # Two names of at least one byte, then five numbers of four.
    return int.from_bytes(records.data[end - 4 : end], "big") if end - start >= 22 else 0


def labels(name: bytes) -> list[bytes]:
    """The labels of an uncompressed name in wire form, without the root."""
    found: list[bytes] = []
    at = 0
    while length := name[at]:
        found.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return found


def _question_name(message: bytes) -> int:
    """Where the first question ends (behind its class). A pointer could only lead into the header: refused."""
    at = HEADER
    try:
        while length := message[at]:
            if length > _MAX_LABEL:
                raise _MalformedError("dns-label")
            at += 1 + length
    except IndexError:
        raise _MalformedError("dns-truncated") from None
    at += 1
    if at - HEADER > MAX_NAME:
        raise _MalformedError("dns-name-too-long")
    if at + _TYPE_CLASS.size > len(message):
        raise _MalformedError("dns-truncated")
    return at + _TYPE_CLASS.size


def _record_name(message: bytes, start: int) -> int:
    """Where a record's name ends. Pointers are not followed, so nothing can loop; they must lead back."""
    at = start
    try:
        while length := message[at]:
            if length >= _POINTER:
                if (length & ~_POINTER) << 8 | message[at + 1] >= start:
                    raise _MalformedError("dns-pointer")
                return at + 2
            if length > _MAX_LABEL:
                raise _MalformedError("dns-label")
            at += 1 + length
    except IndexError:
        raise _MalformedError("dns-truncated") from None
    if at + 1 - start > MAX_NAME:
        raise _MalformedError("dns-name-too-long")
    return at + 1


def _sections(message: bytes, start: int, counts: tuple[int, int, int]) -> tuple[Records, Edns | None, int]:
    """Read all records. Returns them without OPT, what OPT said, and where the last one ends.

    Additional records behind an OPT are left out: pointers in them could lead across the gap. They are hints, which
    a server may leave out as well (RFC 2181 section 9).
    """
    if counts == _NO_COUNTS:
        return NO_RECORDS, None, start
    answers, authority, additional = counts
    types: list[int] = []
    ttl_offsets: list[int] = []
    ends: list[int] = []
    edns: Edns | None = None
    at = start
    size = len(message)
    for index in range(answers + authority + additional):
        body = _record_name(message, at)
        if body + _RECORD.size > size:
            raise _MalformedError("dns-truncated")
        rtype, rclass, ttl, length = _RECORD.unpack_from(message, body)
        data = body + _RECORD.size
        end = data + length
        if end > size:
            raise _MalformedError("dns-truncated")
        if rtype == OPT:
            # RFC 6891 section 6.1.1: one at most, of the root, among the additional records.
            if edns is not None or index < answers + authority or message[at]:
                raise _MalformedError("dns-opt")
            edns = _edns(rclass, ttl, message[data:end])
        elif edns is None:
            types.append(rtype)
            ttl_offsets.append(body + _TYPE_CLASS.size - start)
            ends.append(end - start)
        at = end
    kept = len(types)
    records = Records(
        message[start : start + ends[-1]] if ends else b"",
        answers,
        authority,
        kept - answers - authority,
        tuple(types),
        tuple(ttl_offsets),
        tuple(ends),
    )
    return records, edns, at


def _edns(rclass: int, ttl: int, options: bytes) -> Edns:
    well_formed = not options or _split_options(options) is not None
    return Edns(rclass, ttl >> 24, ttl >> 16 & 0xFF, bool(ttl & _DNSSEC_OK), options if well_formed else None)


def _split_options(options: bytes) -> list[tuple[int, bytes]] | None:
    """Each option's code and all its bytes, code and length included. None when one reaches beyond the end."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(options):
        if at + _TYPE_CLASS.size > len(options):
            return None
        code, length = _TYPE_CLASS.unpack_from(options, at)
        end = at + _TYPE_CLASS.size + length
        if end > len(options):
            return None
        found.append((code, options[at:end]))
        at = end
    return found
