"""DNS zones changed while the gateway runs: what gvproxy's API adds and takes away, what ours puts in place whole."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from netstack.engine.settings import Zone, ZoneRecord
from netstack.engine.zones import Zones

MAX_ZONES: Final = 1024
"""Zones at once, those of the configuration among them."""
MAX_RECORDS: Final = 4096
"""Records of one zone."""


def canonical(name: str) -> str:
    """A zone's name as the zones are kept under: no dot at its end, lower case."""
    return name.strip().rstrip(".").lower()


def parse_address(text: str) -> bytes | None:
    """An IPv4 address, or the IPv6 form of one, packed; None for an empty text. Raises ValueError in Go's words."""
    if not text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"invalid IP address: {text}") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            raise ValueError(f"invalid IP address: {text}: zones hold IPv4 addresses")
        return address.ipv4_mapped.packed
    return address.packed


def parse_record(name: str, address: str, regexp: str | None) -> list[ZoneRecord]:
    """One record as JSON has it: a name, a regular expression, or both. Raises ValueError."""
    packed = parse_address(address)
    if packed is None:
        raise ValueError(f"record {name or regexp or ''!r}: it needs an IP")
    records = []
    if name:
        records.append(ZoneRecord(name.rstrip(".").lower(), packed))
    if regexp:
        try:
            records.append(ZoneRecord("", packed, re.compile(regexp, re.IGNORECASE)))
        except re.error as error:
            raise ValueError(f"error parsing regexp: {error}: `{regexp}`") from None
    if not records:
        raise ValueError(f"record with IP {address}: it needs a Name or a Regexp")
    return records


def find(zones: Zones, name: str) -> Zone | None:
    """The zone of that name, in any case and with or without a dot at its end."""
    wanted = canonical(name)
    return next((zone for zone in zones.zones if zone.name == wanted), None)


def put(zones: Zones, zone: Zone) -> None:
    """Put a zone in place, whole. Raises ValueError, and nothing has changed."""
    if len(zone.records) > MAX_RECORDS:
        raise ValueError(f"zone {zone.name}.: {len(zone.records)} records, at most {MAX_RECORDS} are kept")
    if find(zones, zone.name) is None and len(zones.zones) >= MAX_ZONES:
        raise ValueError(f"zone {zone.name}.: there are {MAX_ZONES} zones already")
    zones.put(zone)


def add(zones: Zones, name: str, records: list[ZoneRecord], default_ip: bytes | None) -> None:
    """Add to a zone as gvproxy does: new records come first, and what the zone says of all other names is replaced.

    A record takes the place of an older one for the same name or expression, so that the last address given is the
    answer; gvproxy keeps the older ones behind it for ever. Raises ValueError.
    """
    zone_name = canonical(name)
    if not zone_name:
        raise ValueError("a zone needs a Name: one without would answer every question")
    old = find(zones, zone_name)
    given = {_subject(record) for record in records}
    kept = [record for record in old.records if _subject(record) not in given] if old is not None else []
    put(zones, Zone(zone_name, (*records, *kept), default_ip))


def remove_records(zones: Zones, name: str, records: list[tuple[str, str]]) -> bool:
    """Take the records for these names or expressions out of a zone. False when nothing of it was there."""
    zone = find(zones, name)
    if zone is None:
        return False
    gone = {(record_name.rstrip(".").lower(), regexp) for record_name, regexp in records}
    kept = tuple(record for record in zone.records if _subject(record) not in gone)
    if len(kept) == len(zone.records):
        return False
    zones.put(Zone(zone.name, kept, zone.default_ip))
    return True


def _subject(record: ZoneRecord) -> tuple[str, str]:
    return record.name, "" if record.regexp is None else record.regexp.pattern
