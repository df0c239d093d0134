"""Local DNS zones: questions the gateway answers itself, with authority, and never asks upstream.

Which zone: the longest one the name ends with, without case (RFC 4343). Inside it, the records in the order they were
given: the first that fits decides. An exact name is answered with all addresses of that name, a regular expression
(searched unanchored, without case, in the part left of the zone) with all addresses given for that expression. Where
none fits, `default_ip` answers, for the apex too.

A name exists when one of these gave an address, when it is the apex, or when a record lies below it (RFC 8020). It
then has NODATA for other types (NOERROR and the SOA); any other name is NXDOMAIN. AAAA is such another type: zones
hold IPv4 addresses. ANY gets one of the name's record sets (RFC 8482 section 4.1).

A private address with an exact name also answers PTR, with the first name it was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from struct import Struct
from typing import Final, NamedTuple

from netstack.engine.settings import Zone
from netstack.wire import dns as wire

RECORD_TTL: Final = 60
"""Seconds a guest may keep an address of ours: short, since zones can change while it runs."""
NEGATIVE_TTL: Final = 10
"""Seconds a guest may keep "no such name": shorter still, a name about to be added is often asked for too early."""

_QUESTION_NAME: Final = wire.pointer(wire.HEADER)
# Who to write to, then refresh, retry and expire: for secondaries, of which there are none. As in RFC 6303 section 3.
_NOBODY: Final = b"\x06nobody\x07invalid\x00"
_REFRESH, _RETRY, _EXPIRE = 3600, 1200, 604800
_SOA_NUMBERS = Struct("!IIIII")
_REVERSE_SUFFIX: Final = b"\x07in-addr\x04arpa\x00"
_ROOT: Final = b"\x00"
_PLAIN_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII | re.IGNORECASE)


class _ReadyZone(NamedTuple):
    """A zone made ready for questions. Keys are what is left of the zone: lower case, wire form, no root label."""

    exact: dict[bytes, tuple[int, wire.Reply]]
    patterns: tuple[tuple[int, re.Pattern[str], wire.Reply], ...]
    default: wire.Reply | None
    ancestors: frozenset[bytes]
    reverse: dict[bytes, bytes]


class Zones:
    """The local zones, by name. Lookups cost the same however many there are."""

    def __init__(self, zones: Iterable[Zone] = ()) -> None:
        """Raises ValueError, as `put` does; a later zone replaces an earlier one of the same name."""
        self._zones: dict[bytes, Zone] = {}
        self._ready: dict[bytes, _ReadyZone] = {}
        self._reverse: dict[bytes, bytes] = {}
        self.serial = 0
        """Grows with each change."""
        for zone in zones:
            self.put(zone)

    @property
    def zones(self) -> tuple[Zone, ...]:
        """All zones in the order they came."""
        return tuple(self._zones.values())

    def put(self, zone: Zone) -> None:
        """Add a zone or replace the one of the same name. Raises ValueError for what is no domain name or address."""
        key = _domain_name(zone.name, _ROOT)
        if key == _ROOT:
            raise ValueError("a zone needs a name: the root would take every question")
        self._ready[key] = _make_ready(zone, key)
        self._zones[key] = zone
        self._changed()

    def remove(self, name: str) -> bool:
        """Forget a zone. False when there was none of that name. Raises ValueError for what is no domain name."""
        key = _domain_name(name, _ROOT)
        if self._zones.pop(key, None) is None:
            return False
        del self._ready[key]
        self._changed()
        return True

    def answer(self, name: bytes, qtype: int, qclass: int) -> wire.Reply | None:
        """What the zones say, or None when the name is in none of them and may be asked upstream.

        `name` is the question's, in wire form and lower case.
        """
        at = 0
        while (zone := self._ready.get(name[at:])) is None:
            if not name[at]:
                return self._answer_reverse(name, qtype, qclass)
            at += 1 + name[at]
        if qclass not in (wire.CLASS_IN, wire.CLASS_ANY):
            return wire.Reply(wire.REFUSED)
        left = name[:at]
        found = _addresses(zone, left)
        if found is not None and qtype in (wire.A, wire.ANY):
            return found
        if not left and qtype in (wire.SOA, wire.ANY):
            return wire.Reply(wire.NOERROR, wire.collect((self._soa(0),)), authoritative=True)
        if not left and qtype == wire.NS:
            # RFC 1034 section 4.2.1 wants one; as in RFC 6303 section 3 it is the zone itself.
            itself = wire.record(_QUESTION_NAME, wire.NS, RECORD_TTL, _QUESTION_NAME)
            return wire.Reply(wire.NOERROR, wire.collect((itself,)), authoritative=True)
        exists = found is not None or not left or left in zone.ancestors
        return self._negative(wire.NOERROR if exists else wire.NXDOMAIN, at)

    def _answer_reverse(self, name: bytes, qtype: int, qclass: int) -> wire.Reply | None:
        target = self._reverse.get(name)
        if target is None:
            return None
        if qclass not in (wire.CLASS_IN, wire.CLASS_ANY):
            return wire.Reply(wire.REFUSED)
        if qtype not in (wire.PTR, wire.ANY):
            return self._negative(wire.NOERROR, 0)
        pointer = wire.record(_QUESTION_NAME, wire.PTR, RECORD_TTL, target)
        return wire.Reply(wire.NOERROR, wire.collect((pointer,)), authoritative=True)

    def _negative(self, rcode: int, at: int) -> wire.Reply:
        return wire.Reply(rcode, wire.collect((), (self._soa(at),)), authoritative=True)

    def _soa(self, at: int) -> bytes:
        """The SOA of the zone whose name starts `at` bytes into the question's name (RFC 2308 section 3)."""
        owner = wire.pointer(wire.HEADER + at)
        numbers = _SOA_NUMBERS.pack(self.serial, _REFRESH, _RETRY, _EXPIRE, NEGATIVE_TTL)
        return wire.record(owner, wire.SOA, NEGATIVE_TTL, owner + _NOBODY + numbers)

    def _changed(self) -> None:
        self.serial += 1
        self._reverse = {}
        for zone in self._ready.values():
            self._reverse = zone.reverse | self._reverse  # the name given first stays


def _domain_name(text: str, origin: bytes) -> bytes:
    """`text` below `origin`, both in wire form and lower case. Raises ValueError."""
    if _PLAIN_NAME.fullmatch(text):
        labels = text.lower().encode().split(b".")
        plain = b"".join([bytes([len(label)]) + label for label in labels]) + origin
        if len(plain) <= wire.MAX_NAME:
            return plain
    # Imported for what is not plain only: with what it needs itself it is 15 ms of the time to start.
    import dns.exception
    import dns.name

    above, _ = dns.name.from_wire(origin, 0)
    try:
        name = dns.name.from_text(text, above)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ValueError(f"{text!r} is no domain name below {above}: {error}") from error
    if not name.is_subdomain(above):
        raise ValueError(f"{text!r} is no domain name below {above}")
    return name.canonicalize().to_wire() or b""


def _make_ready(zone: Zone, suffix: bytes) -> _ReadyZone:
    exact: dict[bytes, tuple[int, list[bytes]]] = {}
    patterns: dict[tuple[str, int], tuple[int, re.Pattern[str], list[bytes]]] = {}
    ancestors: set[bytes] = set()
    reverse: dict[bytes, bytes] = {}
    for position, record in enumerate(zone.records):
        _check_address(zone, record.address)
        if record.regexp is not None:
            flags = record.regexp.flags | re.IGNORECASE
            pattern = re.compile(record.regexp.pattern, flags)
            patterns.setdefault((pattern.pattern, flags), (position, pattern, []))[2].append(record.address)
            continue
        full = _domain_name(record.name, suffix)
        left = full[: -len(suffix)]
        exact.setdefault(left, (position, []))[1].append(record.address)
        if _is_private(record.address):
            reverse.setdefault(_reverse_name(record.address), full)
        while left:
            left = left[1 + left[0] :]
            ancestors.add(left)
    if zone.default_ip is not None:
        _check_address(zone, zone.default_ip)
    return _ReadyZone(
        {left: (position, _address_reply(found)) for left, (position, found) in exact.items()},
        tuple((position, pattern, _address_reply(found)) for position, pattern, found in patterns.values()),
        None if zone.default_ip is None else _address_reply([zone.default_ip]),
        frozenset(ancestors),
        reverse,
    )


def _addresses(zone: _ReadyZone, left: bytes) -> wire.Reply | None:
    """The addresses of a name: those of the first record that fits, else the zone's default."""
    exact = zone.exact.get(left)
    if zone.patterns:
        text = b".".join(wire.labels(left + b"\x00")).decode("latin-1")
        for position, pattern, reply in zone.patterns:
            if exact is not None and exact[0] < position:
                break
            if pattern.search(text):
                return reply
    return zone.default if exact is None else exact[1]


def _address_reply(addresses: list[bytes]) -> wire.Reply:
    """A records owned by the question's name; an address given twice is one record (RFC 2181 section 5)."""
    once = dict.fromkeys(addresses)
    records = tuple(wire.record(_QUESTION_NAME, wire.A, RECORD_TTL, address) for address in once)
    return wire.Reply(wire.NOERROR, wire.collect(records), authoritative=True)


def _check_address(zone: Zone, address: bytes) -> None:
    if len(address) != 4:
        raise ValueError(f"zone {zone.name}: {address!r} is no packed IPv4 address")


def _is_private(address: bytes) -> bool:
    """RFC 1918: only such a reverse name can be ours to answer."""
    return (
        address[0] == 10 or (address[0] == 172 and address[1] & 0xF0 == 16) or (address[0] == 192 and address[1] == 168)
    )


def _reverse_name(address: bytes) -> bytes:
    """The in-addr.arpa name of a packed address, in wire form (RFC 1035 section 3.5)."""
    octets = [b"%d" % octet for octet in reversed(address)]
    return b"".join(bytes([len(octet)]) + octet for octet in octets) + _REVERSE_SUFFIX
