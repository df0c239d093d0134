"""ICMP errors: about what one may be sent, how many, and what scapy reads in them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.packet import Raw

from netstack.engine import icmp_errors
from netstack.engine.icmp_errors import IcmpErrors
from netstack.engine.settings import LinkTraits, NetworkSettings
from netstack.wire import icmp

GATEWAY = b"\xc0\xa8\x7f\x01"
TARGET = b"\x01\x02\x03\x04"


class Maker:
    """IcmpErrors and the drops it counted."""

    def __init__(self, mtu: int = 1500) -> None:
        self.drops: Counter[str] = Counter()
        self.errors = IcmpErrors(
            NetworkSettings(link=LinkTraits(mtu=mtu)), drop=lambda reason: self.drops.update([reason])
        )

    def make(
        self,
        packet: IP | bytes,
        kind: int = icmp.UNREACHABLE,
        code: int = icmp.PORT_UNREACHABLE,
        now: float = 0.0,
        **fields: int,
    ) -> bytes | None:
        return self.errors.make(kind, code, bytes(packet), TARGET, now, **fields)


def packet(source: str = "192.168.127.2", destination: str = "1.2.3.4", **fields: object) -> IP:
    return IP(src=source, dst=destination, **fields) / UDP(sport=4000, dport=53)


def test_the_whole_packet_as_scapy_reads_it() -> None:
    offending = packet() / b"question"
    error = Maker().make(offending)
    assert error is not None
    read = IP(error)
    assert (read.src, read.dst, read.proto, read.ttl) == ("1.2.3.4", "192.168.127.2", 1, 64)
    assert (read.tos, int(read.flags), read.id, read.len) == (0xC0, 2, 0, len(error))
    assert (read[ICMP].type, read[ICMP].code) == (3, 3)
    assert bytes(read[ICMP].payload) == bytes(offending)
    sums = (read.chksum, read[ICMP].chksum)
    del read.chksum
    del read[ICMP].chksum
    redone = IP(bytes(read))
    assert (redone.chksum, redone[ICMP].chksum) == sums


@pytest.mark.parametrize(
    ("kind", "code", "fields", "seen"),
    [
        (icmp.TIME_EXCEEDED, icmp.TTL_EXCEEDED, {}, {}),
        (icmp.TIME_EXCEEDED, icmp.REASSEMBLY_EXPIRED, {}, {}),
        (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, {"next_hop_mtu": 1400}, {"nexthopmtu": 1400}),
        (icmp.UNREACHABLE, icmp.ADMINISTRATIVELY_PROHIBITED, {}, {}),
        (icmp.PARAMETER_PROBLEM, 0, {"pointer": 20}, {"ptr": 20}),
    ],
)
def test_kinds_and_their_fields(kind: int, code: int, fields: dict[str, int], seen: dict[str, int]) -> None:
    error = Maker().make(packet(), kind, code, **fields)
    assert error is not None
    read = IP(error)[ICMP]
    assert (read.type, read.code) == (kind, code)
    assert {name: read.getfieldval(name) for name in seen} == seen


@pytest.mark.parametrize(("mtu", "size"), [(1500, 576), (576, 576), (300, 300), (68, 68)])
def test_the_quote_fills_576_bytes_or_the_link(mtu: int, size: int) -> None:
    error = Maker(mtu).make(packet() / bytes(1400))
    assert error is not None
    assert len(error) == size


def test_a_long_header_and_eight_bytes_are_quoted_on_any_link() -> None:
    offending = packet(options=[IPOption_RR(routers=["0.0.0.0"] * 9)]) / bytes(100)
    error = Maker(68).make(offending)
    assert error is not None
    quote = icmp.parse(error[20:], verify_checksum=True)
    assert isinstance(quote, icmp.IcmpError)
    assert quote.quote.ports == (4000, 53)
    assert len(quote.quote.transport) == 8


def test_padding_is_not_quoted() -> None:
    offending = bytes(packet())
    error = Maker().make(offending + bytes(18))
    assert error is not None
    assert len(error) == 28 + len(offending)


# -- RFC 1122 section 3.2.2: never about these


@pytest.mark.parametrize(
    "offending",
    [
        *(IP(src="192.168.127.2", dst="1.2.3.4") / ICMP(type=kind) / bytes(28) for kind in (3, 4, 5, 11, 12)),
        IP(src="192.168.127.2", dst="1.2.3.4", proto=1),
        packet(destination="255.255.255.255"),
        packet(destination="192.168.127.255"),
        packet(destination="192.168.127.0"),
        packet(destination="224.0.0.1"),
        packet(destination="239.255.255.250"),
        packet(source="0.0.0.0"),
        packet(source="0.1.2.3"),
        packet(source="127.0.0.1"),
        packet(source="224.0.0.1"),
        packet(source="240.0.0.1"),
        packet(source="255.255.255.255"),
        packet(source="192.168.127.255"),
        packet(source="192.168.127.0"),
        IP(src="192.168.127.2", dst="1.2.3.4", proto=17, frag=1) / Raw(bytes(16)),
        IP(src="192.168.127.2", dst="1.2.3.4", proto=17, frag=1, flags="MF") / Raw(bytes(16)),
        Raw(b""),
        Raw(b"\x45" + bytes(18)),
        Raw(b"\x65" + bytes(27)),
    ],
)
def test_no_error_is_sent(offending: IP) -> None:
    maker = Maker()
    for kind, code in ((icmp.UNREACHABLE, icmp.PORT_UNREACHABLE), (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED)):
        assert maker.make(offending, kind, code) is None
    assert maker.drops == {"icmp-error-not-allowed": 2}


@pytest.mark.parametrize(
    "offending",
    [
        IP(src="192.168.127.2", dst="1.2.3.4") / ICMP(type=8),
        IP(src="192.168.127.2", dst="1.2.3.4") / ICMP(type=13),
        IP(src="192.168.127.2", dst="1.2.3.4") / TCP(),
        IP(src="192.168.127.2", dst="1.2.3.4", proto=17, flags="MF") / Raw(bytes(16)),
        IP(src="192.168.127.2", dst="1.2.3.4", proto=47) / Raw(b""),
        packet(destination="192.168.127.1"),
        packet(destination="240.0.0.1"),
    ],
)
def test_an_error_is_sent(offending: IP) -> None:
    assert Maker().make(offending) is not None


@given(data=st.binary(max_size=120), kind=st.integers(0, 255), code=st.integers(0, 255))
def test_any_bytes(data: bytes, kind: int, code: int) -> None:
    Maker().make(data, kind, code)
    Maker().make(b"\x45\x00" + len(data).to_bytes(2, "big") + data, kind, code)


# -- RFC 1812 section 4.3.2.8: how many


def test_a_guest_has_a_burst_and_then_a_rate() -> None:
    maker = Maker()
    made = sum(maker.make(packet(), now=100.0) is not None for _ in range(1000))
    assert made == icmp_errors.GUEST_BURST
    assert maker.drops == {"icmp-error-rate": 1000 - made}
    # One second later as many as the rate allows, however they are spread over it.
    later = sum(maker.make(packet(), now=100.0 + step / 1000) is not None for step in range(1, 1001))
    assert later == pytest.approx(icmp_errors.GUEST_RATE, abs=1)


def test_one_guest_does_not_use_up_anothers() -> None:
    maker = Maker()
    for _ in range(5000):
        maker.make(packet(), now=1.0)
    assert maker.make(packet(source="192.168.127.3"), now=1.0) is not None


def test_all_guests_together_have_a_bound() -> None:
    """Spoofed sources do not help."""
    maker = Maker()
    made = sum(
        maker.make(packet(source=f"192.168.{high}.{low}"), now=1.0) is not None
        for high in range(100, 120)
        for low in range(1, 250)
    )
    assert made == icmp_errors.TOTAL_BURST
    assert len(maker.errors._guests) == icmp_errors.MAX_GUESTS


def test_path_mtu_discovery_is_never_starved() -> None:
    maker = Maker()
    for _ in range(1000):
        maker.make(packet(), now=1.0)
    error = maker.make(packet(), icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, now=1.0, next_hop_mtu=1400)
    assert error is not None


def test_a_clock_that_stands_still_or_leaps() -> None:
    maker = Maker()
    for now in (0.0, 0.0, 1e9, 1e9, 1e9 + 1):
        assert maker.make(packet(), now=now) is not None
