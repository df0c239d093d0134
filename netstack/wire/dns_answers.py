"""Aliases and addresses in DNS answers: read out of the records as they lie on the wire, and written anew.

Names here are in wire form and uncompressed. Owners are in lower case, for comparison (RFC 4343).
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from netstack.wire import dns

MAX_READ: Final = 512
"""Answer records that are read; the rest is left out. A message holds 4,000, and real names have a few dozen."""

_RECORD = Struct("!HHIH")  # type, class, TTL, length of the data
_POINTER: Final = 0xC0
_MAX_LABEL: Final = 63
_MAX_NAME: Final = 255
_TYPE_AND_CLASS: Final = 4
_TO_QUESTION: Final = dns.pointer(dns.HEADER)


class Alias(NamedTuple):
    """A CNAME record. `target` as the server spelled it."""

    target: bytes
    ttl: int


class Answers(NamedTuple):
    """What was found, by owner. An alias given twice is the first of both."""

    aliases: dict[bytes, Alias]
    data: dict[bytes, list[tuple[int, bytes]]]
    """TTL and data of the records of the type asked for, those of the right length."""


def read(records: dns.Records, name: bytes, rtype: int, length: int) -> Answers:
    """The CNAMEs of an answer section and its records of `rtype` with `length` bytes of data, class IN.

    `name` is the question's, lower case. Records whose names cannot be read are left out. Raises nothing.
    """
    behind = dns.HEADER + len(name) + _TYPE_AND_CLASS
    data = records.data
    message = b""
    owners: dict[bytes, bytes | None] = {_TO_QUESTION: name}
    aliases: dict[bytes, Alias] = {}
    found: dict[bytes, list[tuple[int, bytes]]] = {}
    start = 0
    for index in range(min(records.answers, MAX_READ)):
        at = records.ttl_offsets[index]
        end = records.ends[index]
        kind, rclass, ttl, size = _RECORD.unpack_from(data, at - _TYPE_AND_CLASS)
        if rclass == dns.CLASS_IN and (kind == dns.CNAME or (kind == rtype and size == length)):
            spelled = data[start : at - _TYPE_AND_CLASS]
            if spelled not in owners:
                message = message or bytes(dns.HEADER) + name + bytes(_TYPE_AND_CLASS) + data
                owner = read_name(message, behind + start, behind + at - _TYPE_AND_CLASS)
                owners[spelled] = None if owner is None else owner.lower()
            owner = owners[spelled]
            if owner is not None and kind == rtype:
                found.setdefault(owner, []).append((ttl, data[end - size : end]))
            elif owner is not None and owner not in aliases:
                message = message or bytes(dns.HEADER) + name + bytes(_TYPE_AND_CLASS) + data
                target = read_name(message, behind + end - size, behind + end)
                if target is not None:
                    aliases[owner] = Alias(target, ttl)
        start = end
    return Answers(aliases, found)


def read_name(message: bytes, start: int, end: int) -> bytes | None:
    """The name between `start` and `end`, uncompressed; None when it is malformed.

    Each pointer must lead to before where the piece it ends began (RFC 1035 section 4.1.4: "a prior occurrence"), so
    there are no loops.
    """
    pieces: list[bytes] = []
    room = _MAX_NAME - 1
    at = begin = start
    limit = min(end, len(message))
    while at < limit:
        length = message[at]
        if not length:
            pieces.append(b"\x00")
            return b"".join(pieces)
        if length >= _POINTER:
            if at + 1 >= limit:
                return None
            at = (length & ~_POINTER) << 8 | message[at + 1]
            if not dns.HEADER <= at < begin:
                return None
            begin, limit = at, len(message)
            continue
        behind = at + 1 + length
        room -= behind - at
        if length > _MAX_LABEL or room < 0:
            return None
        pieces.append(message[at:behind])
        at = behind
    return None


def build(name: bytes, aliases: Iterable[Alias], rtype: int, ttl: int, data: list[bytes]) -> dns.Records:
    """An answer section: the question's name, through its aliases in order, has these records. `ttl` is of the latter.

    All of `data` is equally long; 50 aliases are not too many for pointers to reach.
    """
    behind = dns.HEADER + len(name) + _TYPE_AND_CLASS
    owner = _TO_QUESTION
    pieces: list[bytes] = []
    ends: list[int] = []
    offsets: list[int] = []
    types: list[int] = []
    size = 0
    for alias in aliases:
        piece = dns.record(owner, dns.CNAME, alias.ttl, alias.target)
        owner = dns.pointer(behind + size + len(piece) - len(alias.target))
        pieces.append(piece)
        types.append(dns.CNAME)
        offsets.append(size + len(owner) + _TYPE_AND_CLASS)
        size += len(piece)
        ends.append(size)
    if data:
        head = owner + _RECORD.pack(rtype, dns.CLASS_IN, ttl, len(data[0]))
        each = len(head) + len(data[0])
        pieces += [head + one for one in data]
        first = size + len(owner) + _TYPE_AND_CLASS
        last = size + each * len(data)
        types += [rtype] * len(data)
        offsets += range(first, last, each)
        ends += range(size + each, last + 1, each)
    return dns.Records(b"".join(pieces), len(types), 0, 0, tuple(types), tuple(offsets), tuple(ends))
