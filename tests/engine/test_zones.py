"""Local zones: which name is answered with what, and that none of them leaks upstream. dnspython reads the answers."""

from __future__ import annotations

import re

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.settings import Zone, ZoneRecord
from netstack.engine.zones import NEGATIVE_TTL, RECORD_TTL, Zones
from netstack.wire import dns as wire

GATEWAY = b"\xc0\xa8\x7f\x01"
HOST = b"\xc0\xa8\x7f\xfe"
OTHER = b"\x0a\x00\x00\x07"
DEFAULT = b"\x0a\x00\x00\x63"

CONTAINERS = Zone("containers.internal", (ZoneRecord("gateway", GATEWAY), ZoneRecord("host", HOST)))


def ask(zones: Zones, name: str, rtype: str = "A", rclass: int = wire.CLASS_IN) -> dns.message.Message | None:
    """The zones' answer as dnspython reads it, None for "ask upstream"."""
    asked = dns.name.from_text(name).to_wire() or b""
    qtype = int(dns.rdatatype.from_text(rtype))
    reply = zones.answer(asked.lower(), qtype, rclass)
    if reply is None:
        return None
    flags = wire.QR | reply.rcode | (wire.AA if reply.authoritative else 0)
    return dns.message.from_wire(wire.response(1, flags, wire.question_wire(asked, qtype, rclass), reply.records))


def addresses(zones: Zones, name: str) -> list[str]:
    message = ask(zones, name)
    assert message is not None
    assert message.rcode() == dns.rcode.NOERROR
    assert [rrset.name for rrset in message.answer] == [dns.name.from_text(name)]
    assert message.answer[0].ttl == RECORD_TTL
    return [record.to_text() for record in message.answer[0]]


def is_negative(zones: Zones, name: str, rtype: str, rcode: dns.rcode.Rcode, zone: str) -> bool:
    """An answer without records, with the SOA of `zone` and authority (RFC 2308 sections 2.1 and 2.2)."""
    message = ask(zones, name, rtype)
    assert message is not None
    (soa,) = message.authority
    assert soa.rdtype == dns.rdatatype.SOA
    assert soa.ttl == soa[0].minimum == NEGATIVE_TTL
    return (
        message.rcode() == rcode
        and not message.answer
        and soa.name == dns.name.from_text(zone)
        and bool(message.flags & dns.flags.AA)
    )


def is_no_data(zones: Zones, name: str, rtype: str, zone: str) -> bool:
    return is_negative(zones, name, rtype, dns.rcode.NOERROR, zone)


def is_no_such_name(zones: Zones, name: str, rtype: str, zone: str) -> bool:
    return is_negative(zones, name, rtype, dns.rcode.NXDOMAIN, zone)


def test_a_name_has_its_address() -> None:
    zones = Zones([CONTAINERS])
    assert addresses(zones, "gateway.containers.internal") == ["192.168.127.1"]
    assert addresses(zones, "host.containers.internal") == ["192.168.127.254"]


def test_names_are_compared_without_case() -> None:
    zones = Zones([Zone("Dyn.Test", (ZoneRecord("WWW", OTHER),))])
    assert addresses(zones, "wWw.dYN.tEST") == ["10.0.0.7"]


def test_all_addresses_of_a_name_are_the_answer() -> None:
    records = (
        ZoneRecord("many", GATEWAY),
        ZoneRecord("other", OTHER),
        ZoneRecord("Many", HOST),
        ZoneRecord("many", GATEWAY),
    )
    assert addresses(Zones([Zone("test", records)]), "many.test") == ["192.168.127.1", "192.168.127.254"]


def test_names_in_no_zone_are_for_upstream() -> None:
    zones = Zones([CONTAINERS])
    for name in (".", "internal", "example.com", "xcontainers.internal", "containers.internal.example.com"):
        assert ask(zones, name) is None
    assert ask(Zones(), "containers.internal") is None


def test_the_longest_zone_wins_whatever_the_order() -> None:
    wide = Zone("dyn.test", (ZoneRecord("x.sub", GATEWAY),), default_ip=HOST)
    narrow = Zone("sub.dyn.test", (ZoneRecord("x", OTHER),))
    for order in ([wide, narrow], [narrow, wide]):
        zones = Zones(order)
        assert addresses(zones, "x.sub.dyn.test") == ["10.0.0.7"]
        assert is_no_such_name(zones, "y.sub.dyn.test", "A", "sub.dyn.test")
        assert addresses(zones, "y.dyn.test") == ["192.168.127.254"]


def test_the_apex_is_answered() -> None:
    zones = Zones(
        [Zone("with.test", (ZoneRecord("", OTHER),)), Zone("default.test", default_ip=DEFAULT), Zone("bare.test")]
    )
    assert addresses(zones, "with.test") == ["10.0.0.7"]
    assert addresses(zones, "default.test") == ["10.0.0.99"]
    assert is_no_data(zones, "bare.test", "A", "bare.test")


def test_the_apex_has_soa_and_ns() -> None:
    zones = Zones([CONTAINERS])
    for rtype in ("SOA", "NS"):
        message = ask(zones, "Containers.internal", rtype)
        assert message is not None
        (rrset,) = message.answer
        assert (rrset.name, rrset.rdtype) == (dns.name.from_text("containers.internal"), dns.rdatatype.from_text(rtype))
        assert message.flags & dns.flags.AA
    assert is_no_data(zones, "gateway.containers.internal", "SOA", "containers.internal")


@pytest.mark.parametrize("rtype", ["AAAA", "TXT", "MX", "PTR", "CNAME", "CAA", "HTTPS", "DS", "SRV", "TYPE65280"])
def test_other_types_of_a_name_are_no_data_and_never_leak(rtype: str) -> None:
    zones = Zones([CONTAINERS, Zone("default.test", default_ip=DEFAULT)])
    assert is_no_data(zones, "host.containers.internal", rtype, "containers.internal")
    assert is_no_data(zones, "containers.internal", rtype, "containers.internal")
    assert is_no_data(zones, "anything.default.test", rtype, "default.test")
    assert is_no_such_name(zones, "nobody.containers.internal", rtype, "containers.internal")


def test_a_name_above_a_record_exists() -> None:
    """An empty non-terminal is NODATA, not NXDOMAIN: that would deny what is below it (RFC 8020 section 2)."""
    zones = Zones([Zone("test", (ZoneRecord("a.b.c", OTHER),))])
    assert addresses(zones, "a.b.c.test") == ["10.0.0.7"]
    assert is_no_data(zones, "b.c.test", "A", "test")
    assert is_no_data(zones, "c.test", "A", "test")
    assert is_no_such_name(zones, "x.c.test", "A", "test")
    assert is_no_such_name(zones, "x.a.b.c.test", "A", "test")


def test_the_default_address_answers_every_other_name() -> None:
    zones = Zones([Zone("test", (ZoneRecord("a", OTHER),), default_ip=DEFAULT)])
    assert addresses(zones, "a.test") == ["10.0.0.7"]
    assert addresses(zones, "deep.below.a.test") == ["10.0.0.99"]


def test_regular_expressions_search_left_of_the_zone_without_case() -> None:
    zones = Zones(
        [Zone("crc.test", (ZoneRecord("", OTHER, re.compile("^api-[0-9]+$")), ZoneRecord("", HOST, re.compile("Web"))))]
    )
    assert addresses(zones, "API-17.crc.test") == ["10.0.0.7"]
    assert addresses(zones, "my.website.here.crc.test") == ["192.168.127.254"]
    assert is_no_such_name(zones, "api-x.crc.test", "A", "crc.test")
    # The zone itself is not searched in.
    assert is_no_such_name(
        Zones([Zone("crc.test", (ZoneRecord("", OTHER, re.compile("crc")),))]), "a.crc.test", "A", "crc.test"
    )
    everything = Zones([Zone("crc.test", (ZoneRecord("", OTHER, re.compile(".*")),))])
    assert addresses(everything, "a.b.crc.test") == addresses(everything, "crc.test") == ["10.0.0.7"]


def test_the_first_record_that_fits_decides() -> None:
    exact, pattern = ZoneRecord("www", OTHER), ZoneRecord("", HOST, re.compile("w"))
    assert addresses(Zones([Zone("test", (exact, pattern))]), "www.test") == ["10.0.0.7"]
    assert addresses(Zones([Zone("test", (pattern, exact))]), "www.test") == ["192.168.127.254"]
    assert addresses(Zones([Zone("test", (exact, pattern))]), "ww.test") == ["192.168.127.254"]


def test_all_addresses_of_an_expression_are_the_answer() -> None:
    records = (
        ZoneRecord("", OTHER, re.compile("w")),
        ZoneRecord("", GATEWAY, re.compile("ww")),
        ZoneRecord("", HOST, re.compile("w")),
    )
    assert addresses(Zones([Zone("test", records)]), "www.test") == ["10.0.0.7", "192.168.127.254"]


def test_any_gets_one_record_set() -> None:
    """RFC 8482 section 4.1."""
    zones = Zones([CONTAINERS])
    for name, rtype in (("host.containers.internal", "A"), ("containers.internal", "SOA")):
        message = ask(zones, name, "ANY")
        assert message is not None
        assert [rrset.rdtype for rrset in message.answer] == [dns.rdatatype.from_text(rtype)]
    assert is_no_such_name(zones, "x.containers.internal", "ANY", "containers.internal")


def test_other_classes_are_refused_not_leaked() -> None:
    zones = Zones([CONTAINERS])
    chaos, everything = 3, wire.CLASS_ANY
    for name in ("host.containers.internal", "1.127.168.192.in-addr.arpa"):
        message = ask(zones, name, "TXT", chaos)
        assert message is not None
        assert message.rcode() == dns.rcode.REFUSED
        assert ask(zones, name, "A", everything) is not None


def test_private_addresses_have_their_first_name() -> None:
    public = ZoneRecord("public", b"\x08\x08\x08\x08")
    zones = Zones(
        [CONTAINERS, Zone("docker.internal", (ZoneRecord("host", HOST), public, ZoneRecord("b", b"\xac\x10\x00\x01")))]
    )
    for address, name in (("192.168.127.254", "host.containers.internal"), ("172.16.0.1", "b.docker.internal")):
        reverse = dns.reversename.from_address(address).to_text()
        message = ask(zones, reverse, "PTR")
        assert message is not None
        assert message.answer[0][0].to_text() == name + "."
        any_type = ask(zones, reverse, "ANY")
        assert any_type is not None
        assert any_type.answer == message.answer
        assert is_no_data(zones, reverse, "TXT", reverse)
    for unknown in ("192.168.127.77", "8.8.8.8"):
        assert ask(zones, dns.reversename.from_address(unknown).to_text(), "PTR") is None


def test_zones_are_added_replaced_and_removed() -> None:
    zones = Zones([CONTAINERS])
    zones.put(Zone("api.test", (ZoneRecord("a", OTHER),)))
    assert addresses(zones, "a.api.test") == ["10.0.0.7"]
    before = ask(zones, "api.test", "SOA")
    zones.put(Zone("API.test", (ZoneRecord("b", HOST),)))
    after = ask(zones, "api.test", "SOA")
    assert before is not None
    assert after is not None
    assert after.answer[0][0].serial > before.answer[0][0].serial
    assert is_no_such_name(zones, "a.api.test", "A", "api.test")
    assert ask(zones, "7.0.0.10.in-addr.arpa", "PTR") is None
    assert [zone.name for zone in zones.zones] == ["containers.internal", "API.test"]
    assert zones.remove("Api.Test")
    assert not zones.remove("api.test")
    assert ask(zones, "b.api.test") is None
    # The reverse name falls back to the zone that still has the address.
    assert ask(zones, "254.127.168.192.in-addr.arpa", "PTR") is not None


@pytest.mark.parametrize(
    "zone",
    [
        Zone(""),
        Zone("."),
        Zone("a..b"),
        Zone("x" * 64),
        Zone("test", (ZoneRecord("x" * 64, OTHER),)),
        Zone("test", (ZoneRecord("x.", OTHER),)),
        Zone("test", (ZoneRecord("a", b"\x01\x02\x03"),)),
        Zone("test", (), default_ip=bytes(16)),
        Zone(".".join(["x" * 60] * 4), (ZoneRecord("x" * 60, OTHER),)),
    ],
)
def test_what_is_no_name_or_address_is_refused_when_a_zone_is_made(zone: Zone) -> None:
    with pytest.raises(ValueError, match=r"zone|domain name"):
        Zones([zone])


def test_a_zone_with_a_name_in_another_alphabet() -> None:
    zones = Zones([Zone("bücher.test", (ZoneRecord("größe", OTHER),))])
    assert addresses(zones, "größe.bücher.test") == ["10.0.0.7"]


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=3), st.integers(0, 65535), st.integers(0, 65535))
def test_any_name_in_a_zone_is_answered_and_never_raises(labels: list[bytes], qtype: int, qclass: int) -> None:
    zones = Zones([Zone("t", (ZoneRecord("a.b", OTHER), ZoneRecord("", HOST, re.compile(r"\w.\d"))))])
    name = b"".join(bytes([len(label)]) + label for label in labels).lower() + b"\x01t\x00"
    reply = zones.answer(name, qtype, qclass)
    assert reply is not None
    dns.message.from_wire(wire.response(1, wire.QR | reply.rcode, wire.question_wire(name, qtype, 1), reply.records))
