"""Upstream's DNS answers, kept as long as their TTLs allow, least recently used out first.

Kept is the reply as it lay on the wire; a hit costs one copy and one number per record. TTLs in answers are what is
left of them. How long: the shortest TTL of the reply, at most a day; "no such name" and "no such type" as RFC 2308
says; a failure for one second.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from netstack.wire import dns as wire

MAX_ENTRIES: Final = 8192
MAX_BYTES: Final = 8 << 20
MAX_TTL: Final = 86400
"""Seconds: one day."""
MAX_NEGATIVE_TTL: Final = 10800
"""Seconds: "one to three hours have been found to work well" (RFC 2308 section 5)."""
FAILURE_TTL: Final = 1.0
"""Seconds a SERVFAIL is kept: the least that RFC 9520 section 3.2 allows, so that a host back on the net is noticed."""

_ENTRY_COST: Final = 900
"""Bytes of Python objects around an entry, measured on CPython 3.11."""
_RECORD_COST: Final = 90
"""The same for each record: three numbers in tuples."""


class Key(NamedTuple):
    """What must be equal for one answer to serve two questions. `name` in wire form, lower case.

    DO and CD belong to it: with them, the same question gets other records (RFC 4035 sections 3.2.1 and 3.2.2).
    """

    name: bytes
    qtype: int
    qclass: int
    dnssec_ok: bool
    checking_disabled: bool


class Entry:
    """One reply as it was kept. `ttls` of its records then, in seconds; `cost` in bytes."""

    __slots__ = ("cost", "expires", "note", "reply", "stored", "ttls")

    def __init__(self, reply: wire.Reply, ttls: list[int], stored: float, expires: float, cost: int) -> None:
        self.reply = reply
        self.ttls = ttls
        self.stored = stored
        self.expires = expires
        self.cost = cost
        self.note: object = None
        """What a reader made of the reply, to be found again; it should not be larger than the reply."""


class DnsCache:
    """Replies by question. `hits` and `misses` count lookups, `evicted` what had to go for lack of room."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        """Both bounds are above 0; `max_bytes` counts Python's overhead as well as the records."""
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.bytes_used = 0
        self.hits = 0
        self.misses = 0
        self.evicted = 0
        self._entries: OrderedDict[Key, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, now: float) -> wire.Reply | None:
        """The reply kept for a question, its TTLs reduced by its age, or None."""
        found = self.find(key, now)
        if found is None:
            return None
        age = int(now - found.stored)
        if not age or not found.ttls:
            return found.reply
        records = wire.with_ttls(found.reply.records, [ttl - age for ttl in found.ttls])
        return found.reply._replace(records=records)

    def find(self, key: Key, now: float) -> Entry | None:
        """What is kept for a question, as it was when it was stored; counts as a lookup like `get`."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        if now >= entry.expires:
            self._drop(key)
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry

    def put(self, key: Key, reply: wire.Reply, now: float) -> None:
        """Keep a reply if it may be kept; it replaces what was kept for that question."""
        if key in self._entries:
            self._drop(key)
        kept, ttls = _to_keep(reply)
        lifetime = _lifetime(key.qtype, kept, ttls)
        if lifetime <= 0:
            return
        cost = _ENTRY_COST + len(key.name) + len(kept.errors) + len(kept.records.data) + _RECORD_COST * len(ttls)
        if cost > self.max_bytes:
            return
        while len(self._entries) >= self.max_entries or self.bytes_used + cost > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evicted += 1
        self._entries[key] = Entry(kept, ttls, now, now + lifetime, cost)
        self.bytes_used += cost

    def clear(self) -> None:
        """Forget everything: the host asks other servers now, which may know other names."""
        self._entries.clear()
        self.bytes_used = 0

    def _drop(self, key: Key) -> None:
        self.bytes_used -= self._entries.pop(key).cost


def _to_keep(reply: wire.Reply) -> tuple[wire.Reply, list[int]]:
    """The reply as it is kept, and its TTLs. We are no authority for it, and an SOA's TTL is at most its minimum."""
    records = reply.records
    ttls = wire.ttls(records)
    if wire.SOA not in records.types and not reply.authoritative:
        return reply, ttls
    for index in range(records.answers, records.answers + records.authority):
        if records.types[index] == wire.SOA:
            # RFC 2308 section 5: so the next cache keeps "no such name" no longer than this one.
            ttls[index] = min(ttls[index], wire.soa_minimum(records, index))
    return reply._replace(records=wire.with_ttls(records, ttls), authoritative=False), ttls


def _lifetime(qtype: int, reply: wire.Reply, ttls: list[int]) -> float:
    """Seconds a reply may be kept, 0 for not at all."""
    if reply.truncated:
        return 0  # RFC 2181 section 9
    if reply.rcode == wire.SERVFAIL:
        return FAILURE_TTL
    if reply.rcode not in (wire.NOERROR, wire.NXDOMAIN):
        return 0
    records = reply.records
    # RFC 2181 section 8: a TTL with the top bit set is to be read as zero.
    shortest = min((0 if ttl >> 31 else ttl for ttl in ttls), default=0)
    if reply.rcode == wire.NOERROR and (
        qtype in records.types[: records.answers] or (qtype == wire.ANY and records.answers)
    ):
        return min(shortest, MAX_TTL)
    if wire.SOA in records.types[records.answers : records.answers + records.authority]:
        return min(shortest, MAX_NEGATIVE_TTL)
    return 0  # RFC 2308 section 5: without an SOA nothing says for how long the name is missing
