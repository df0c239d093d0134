"""What a guest under a list may see of an upstream answer. Pure: records in, records out.

An answer about addresses is written anew from what belongs to the question: the chain of aliases (CNAME) that starts at
its name, and the addresses of the name at the chain's end. Records of other names, of other types, authority and
additional records are not in it: nothing can be slipped into a guest's cache. Addresses that the policy objects to are
taken out (DNS rebinding).

An answer about anything else keeps its records as they are, up to the first of a type that was not asked for, and
neither authority nor additional records, which could carry addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from netstack.wire import dns as wire
from netstack.wire import dns_answers

MAX_TTL: Final = 3600
"""Seconds: so a guest asks again, under a policy that may be another."""
MAX_ALIASES: Final = 16
"""Links in a chain; real ones have up to a handful, resolvers follow 8 to 16."""
ADDRESS_SIZES: Final = {wire.A: 4, wire.AAAA: 16}


class Screened(NamedTuple):
    """What is left. `objection`: why the first address that had to go was taken out; empty when none was."""

    records: wire.Records
    ttls: list[int]
    """Seconds, of each record, as upstream gave them."""
    addresses: list[bytes]
    objection: str


def addresses(records: wire.Records, name: bytes, rtype: int, object_to: Callable[[bytes], str]) -> Screened | None:
    """Screen an answer to a question for A or AAAA. None when its aliases lead nowhere: a loop, or too many.

    `name` is the question's, in wire form and lower case; `object_to` says what is wrong with an address, if anything.
    Raises nothing, whatever upstream sent.
    """
    answers = dns_answers.read(records, name, rtype, ADDRESS_SIZES[rtype])
    chain: list[dns_answers.Alias] = []
    owner = name
    while (alias := answers.aliases.get(owner)) is not None:
        if len(chain) == MAX_ALIASES:
            return None
        chain.append(alias)
        owner = alias.target.lower()
    kept: dict[bytes, None] = {}
    ttls: list[int] = []
    objection = ""
    for ttl, address in answers.data.get(owner, ()):
        fault = object_to(address)
        if fault:
            objection = objection or fault
        else:
            kept[address] = None
            ttls.append(_read_ttl(ttl))
    # RFC 2181 section 5.2: the records of a set have one TTL, the least if they came with several.
    shortest = min(ttls, default=0)
    left = list(kept)
    rewritten = dns_answers.build(name, chain, rtype, shortest, left)
    all_ttls = [_read_ttl(alias.ttl) for alias in chain] + [shortest] * len(left)
    return Screened(rewritten, all_ttls, left, objection)


def at_age(screened: Screened, age: int) -> tuple[wire.Records, int]:
    """The records as they are told `age` seconds later, and the shortest TTL among them."""
    ttls = [_capped(ttl, age) for ttl in screened.ttls]
    return wire.with_ttls(screened.records, ttls), min(ttls, default=0)


def others(records: wire.Records, rtype: int, age: int) -> wire.Records:
    """Screen an answer, `age` seconds old, to a question for any other type."""
    wanted = (rtype, wire.CNAME, wire.DNAME)
    count = 0
    while count < records.answers and records.types[count] in wanted:
        count += 1
    kept = wire.keep_records(records, count)
    return wire.with_ttls(kept, [_capped(_read_ttl(ttl), age) for ttl in wire.ttls(kept)])


def _read_ttl(ttl: int) -> int:
    """RFC 2181 section 8: a TTL with the top bit set is to be read as zero."""
    return 0 if ttl >> 31 else ttl


def _capped(ttl: int, age: int) -> int:
    return min(max(ttl - age, 0), MAX_TTL)
