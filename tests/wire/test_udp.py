"""UDP, with scapy and dpkt on the other side."""

from __future__ import annotations

import dpkt.udp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP

from netstack.wire import udp

from . import samples

ports = st.integers(0, 65535)


def read(datagram: bytes, *, verify_checksum: bool = True) -> udp.Udp | str:
    return udp.parse(datagram, samples.GUEST, samples.GATEWAY, verify_checksum=verify_checksum)


@given(source_port=ports, destination_port=ports, payload=st.binary(max_size=300))
def test_build_against_scapy_dpkt_and_parse(source_port: int, destination_port: int, payload: bytes) -> None:
    ours = udp.build(samples.GUEST, source_port, samples.GATEWAY, destination_port, payload)
    # chksum=None by scapy: computed over its own pseudo-header.
    theirs = samples.transport(UDP(sport=source_port, dport=destination_port) / payload)
    assert ours == theirs
    unpacked = dpkt.udp.UDP(ours)
    assert (unpacked.sport, unpacked.dport, unpacked.ulen) == (source_port, destination_port, len(ours))
    assert bytes(unpacked.data) == payload
    assert read(ours) == udp.Udp(source_port, destination_port, payload)


@given(source_port=ports, destination_port=ports, payload=st.binary(max_size=300), identification=st.integers(0, 65535))
def test_packets_against_scapy(source_port: int, destination_port: int, payload: bytes, identification: int) -> None:
    ours = udp.packet(samples.GUEST, source_port, samples.GATEWAY, destination_port, payload, identification)
    guest, gateway = (".".join(map(str, address)) for address in (samples.GUEST, samples.GATEWAY))
    header = IP(src=guest, dst=gateway, id=identification)
    assert ours == bytes(header / UDP(sport=source_port, dport=destination_port) / payload)


def test_packets_have_the_bounds_of_datagrams() -> None:
    field = udp.packet(samples.GUEST, 1, samples.GATEWAY, 2, b"\0\0", 0)[26:28]
    assert udp.packet(samples.GUEST, 1, samples.GATEWAY, 2, field, 0)[26:28] == b"\xff\xff"
    assert len(udp.packet(samples.GUEST, 1, samples.GATEWAY, 2, bytes(65_507), 0)) == 65_535
    with pytest.raises(ValueError, match="65508"):
        udp.packet(samples.GUEST, 1, samples.GATEWAY, 2, bytes(65_508), 0)


def test_a_computed_zero_goes_out_as_all_ones() -> None:
    """RFC 768. The payload is chosen so that the sum is 65,535."""
    payload = b"\x00\x00"
    field = int.from_bytes(udp.build(samples.GUEST, 1, samples.GATEWAY, 2, payload)[6:8], "big")
    payload = field.to_bytes(2, "big")
    datagram = udp.build(samples.GUEST, 1, samples.GATEWAY, 2, payload)
    assert datagram[6:8] == b"\xff\xff"
    assert read(datagram) == udp.Udp(1, 2, payload)


def test_no_checksum_is_no_fault() -> None:
    assert read(samples.UDP_MESSAGES["without-checksum"]) == udp.Udp(5000, 53, b"abc")


def test_bytes_behind_the_datagram_are_ignored() -> None:
    assert read(samples.UDP_MESSAGES["padded"]) == udp.Udp(5000, 53, b"abc")


def test_the_largest_and_the_empty() -> None:
    largest = udp.build(samples.GUEST, 1, samples.GATEWAY, 2, bytes(range(256)) * 255 + bytes(227))
    assert len(largest) == 65_515
    parsed = read(largest)
    assert isinstance(parsed, udp.Udp)
    assert len(parsed.payload) == udp.MAX_PAYLOAD == 65_507
    assert read(udp.build(samples.GUEST, 1, samples.GATEWAY, 2, b"")) == udp.Udp(1, 2, b"")
    with pytest.raises(ValueError, match="65508"):
        udp.build(samples.GUEST, 1, samples.GATEWAY, 2, bytes(65_508))


@pytest.mark.parametrize(
    ("length", "reason"), [(0, "udp-length"), (7, "udp-length"), (8, None), (9, None), (10, "udp-length")]
)
def test_lying_lengths(length: int, reason: str | None) -> None:
    """One byte of payload: 9 is exact, 8 cuts it off, 10 is beyond the packet."""
    datagram = bytearray(samples.UDP_MESSAGES["one"])
    datagram[4:6] = length.to_bytes(2, "big")
    result = read(bytes(datagram), verify_checksum=False)
    if reason is None:
        assert isinstance(result, udp.Udp)
        assert len(result.payload) == length - 8
    else:
        assert result == reason


def test_damage_is_found_only_where_it_is_looked_for() -> None:
    datagram = bytearray(samples.UDP_MESSAGES["one"])
    datagram[-1] ^= 1
    assert read(bytes(datagram)) == "udp-checksum"
    assert read(bytes(datagram), verify_checksum=False) == udp.Udp(5000, 53, b"y")
