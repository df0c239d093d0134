"""IPv4 headers, with scapy and dpkt on the other side."""

from __future__ import annotations

import dpkt.ip
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP

from netstack.wire import ipv4

from . import samples

addresses = st.binary(min_size=4, max_size=4)


@given(
    source=addresses,
    destination=addresses,
    protocol=st.integers(0, 255),
    payload=st.binary(max_size=200),
    ttl=st.integers(0, 255),
    tos=st.integers(0, 255),
    identification=st.integers(0, 65535),
    offset=st.integers(0, 0x1FFF),
    flags=st.integers(0, 3),
    options=st.integers(0, 10).map(lambda words: b"\x01" * 4 * words),
)
def test_build_against_scapy_dpkt_and_parse(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    ttl: int,
    tos: int,
    identification: int,
    offset: int,
    flags: int,
    options: bytes,
) -> None:
    packet = ipv4.build(
        source,
        destination,
        protocol,
        payload,
        ttl=ttl,
        tos=tos,
        identification=identification,
        flags_offset=flags << 13 | offset,
        options=options,
    )
    theirs = dpkt.ip.IP(packet)
    assert (theirs.src, theirs.dst, theirs.p, theirs.ttl, theirs.tos) == (source, destination, protocol, ttl, tos)
    assert (theirs.id, theirs.opts, theirs.len) == (identification, options, 20 + len(options) + len(payload))
    read = IP(packet)
    assert (read.frag, int(read.flags), read.ihl, read.len) == (offset, flags, 5 + len(options) // 4, len(packet))
    written = read.chksum
    del read.chksum
    assert IP(bytes(read)).chksum == written
    # Padding behind the packet does not belong to it.
    assert ipv4.parse(packet + b"\xaa" * 6, verify_checksum=True) == ipv4.Ipv4(
        20 + len(options),
        tos,
        len(packet),
        identification,
        bool(flags & 2),
        bool(flags & 1),
        offset * 8,
        ttl,
        protocol,
        source,
        destination,
        options,
    )


def test_scapys_packets_are_read() -> None:
    header = ipv4.parse(samples.IPV4_MESSAGES["fragment"], verify_checksum=True)
    assert isinstance(header, ipv4.Ipv4)
    assert (header.identification, header.more_fragments, header.fragment_offset) == (77, True, 40)
    header = ipv4.parse(samples.IPV4_MESSAGES["record-route"], verify_checksum=True)
    assert isinstance(header, ipv4.Ipv4)
    assert header.options[0] == 7
    assert header.header_length == 60


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p[:19], "ip-truncated"),
        (lambda p: b"\x65" + p[1:], "ip-version"),
        (lambda p: b"\x44" + p[1:], "ip-header-length"),
        (lambda p: b"\x4f" + p[1:], "ip-header-length"),  # 60 bytes of header in 29 of packet
        (lambda p: p[:2] + b"\x00\x13" + p[4:], "ip-header-length"),
        (lambda p: p[:-1], "ip-total-length"),
        (lambda p: p[:8] + b"\x01" + p[9:], "ip-checksum"),
    ],
)
def test_faults_have_reasons(damage: object, reason: str) -> None:
    assert callable(damage)
    assert ipv4.parse(damage(samples.IPV4_MESSAGES["plain"]), verify_checksum=True) == reason


def test_too_long_a_packet_is_not_built() -> None:
    assert len(ipv4.build(samples.GUEST, samples.GATEWAY, 17, bytes(65_515))) == 65_535
    with pytest.raises(ValueError, match="65536"):
        ipv4.build(samples.GUEST, samples.GATEWAY, 17, bytes(65_516))


def test_addresses_in_words() -> None:
    assert ipv4.format_address(samples.GUEST) == samples.GUEST_TEXT
