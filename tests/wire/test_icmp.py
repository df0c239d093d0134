"""ICMP, with scapy and dpkt on the other side."""

from __future__ import annotations

import dpkt.icmp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from netstack.wire import icmp, ipv4

from . import samples

words = st.integers(0, 65535)


@given(request=st.booleans(), identifier=words, sequence=words, payload=st.binary(max_size=300))
def test_echo_against_scapy_dpkt_and_parse(request: bool, identifier: int, sequence: int, payload: bytes) -> None:
    ours = icmp.build_echo(request=request, identifier=identifier, sequence=sequence, payload=payload)
    assert ours == samples.transport(ICMP(type=8 if request else 0, id=identifier, seq=sequence) / payload)
    theirs = dpkt.icmp.ICMP(ours)
    assert (theirs.type, theirs.data.id, theirs.data.seq) == (8 if request else 0, identifier, sequence)
    assert icmp.parse(ours, verify_checksum=True) == icmp.Echo(request, identifier, sequence, payload)


@given(
    kind=st.sampled_from([icmp.UNREACHABLE, icmp.TIME_EXCEEDED, icmp.PARAMETER_PROBLEM]),
    code=st.integers(0, 15),
    payload=st.binary(min_size=8, max_size=1400),
    pointer=st.integers(0, 255),
    next_hop_mtu=words,
)
def test_errors_against_scapy_and_parse(kind: int, code: int, payload: bytes, pointer: int, next_hop_mtu: int) -> None:
    packet = samples.ip(UDP(sport=4000, dport=53) / payload)
    ours = icmp.build_error(kind, code, packet, pointer=pointer, next_hop_mtu=next_hop_mtu)
    # RFC 1812 section 4.3.2.3: as much as fits 576 bytes, the IP header in front of it included.
    assert len(ours) == min(576 - 20, 8 + len(packet))
    theirs = IP(ipv4.build(samples.GATEWAY, samples.GUEST, ipv4.ICMP, ours))[ICMP]
    assert (theirs.type, theirs.code) == (kind, code)
    written = theirs.chksum
    del theirs.chksum
    assert ICMP(bytes(theirs)).chksum == written
    read = icmp.parse(ours, verify_checksum=True)
    assert isinstance(read, icmp.IcmpError)
    assert (read.type, read.code, read.pointer, read.next_hop_mtu) == (kind, code, pointer, next_hop_mtu)
    assert read.quote == icmp.Quote(samples.GUEST, samples.GATEWAY, ipv4.UDP, len(packet), packet[20:548])
    assert read.quote.ports == (4000, 53)


@pytest.mark.parametrize("largest", [0, 28, 68, 576, 1500])
def test_the_quote_has_a_bound(largest: int) -> None:
    packet = samples.ip(Raw(bytes(2000)))
    assert len(icmp.build_error(3, 3, packet, largest=largest)) == 8 + max(0, largest - 28)


def test_next_hop_mtu_as_scapy_places_it() -> None:
    error = icmp.parse(samples.ICMP_MESSAGES["fragmentation-needed"], verify_checksum=True)
    assert isinstance(error, icmp.IcmpError)
    assert (error.type, error.code, error.next_hop_mtu) == (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, 1400)
    assert error.quote.protocol == ipv4.TCP
    assert error.quote.tcp_sequence == 5
    assert error.quote.ports == (80, 80)
    ours = icmp.build_error(3, 4, samples.ip(TCP(sport=80, seq=5)), next_hop_mtu=1400)
    assert ours == samples.ICMP_MESSAGES["fragmentation-needed"]


def test_pointer_as_scapy_places_it() -> None:
    error = icmp.parse(samples.ICMP_MESSAGES["parameter-problem"], verify_checksum=True)
    assert isinstance(error, icmp.IcmpError)
    assert error.pointer == 20
    ours = icmp.build_error(12, 0, samples.IPV4_MESSAGES["source-route"], pointer=20)
    assert ours == samples.ICMP_MESSAGES["parameter-problem"]


def test_a_quoted_echo() -> None:
    quoted = samples.ip(ICMP(type=8, id=77, seq=3) / b"abc")
    error = icmp.parse(icmp.build_error(11, 0, quoted), verify_checksum=True)
    assert isinstance(error, icmp.IcmpError)
    assert error.quote.protocol == ipv4.ICMP
    assert error.quote.echo == (77, 3)


def test_options_of_the_quoted_packet_are_passed_over() -> None:
    error = icmp.parse(samples.ICMP_MESSAGES["time-exceeded"], verify_checksum=True)
    assert isinstance(error, icmp.IcmpError)
    assert error.quote.ports == (1, 2)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x08\x00\x00\x00\x00\x00\x00", "icmp-truncated"),
        (samples.ICMP_MESSAGES["echo"][:-1] + b"!", "icmp-checksum"),
        (samples.transport(ICMP(type=8, code=1)), "icmp-code"),
        (samples.ICMP_MESSAGES["timestamp"], "icmp-type"),
        (samples.ICMP_MESSAGES["redirect"], "icmp-type"),
        (samples.transport(ICMP(type=3, code=3)), "icmp-quote"),
        (samples.transport(ICMP(type=3, code=3) / Raw(samples.IPV4_MESSAGES["plain"][:27])), "icmp-quote"),
        (samples.transport(ICMP(type=3, code=3) / Raw(b"\x60" + bytes(39))), "icmp-quote"),
        (samples.transport(ICMP(type=3, code=3) / Raw(b"\x44" + bytes(39))), "icmp-quote"),
        (samples.transport(ICMP(type=3, code=3) / Raw(samples.IPV4_MESSAGES["fragment"])), "icmp-quote"),
    ],
    ids=[
        "seven bytes",
        "damaged",
        "echo with a code",
        "timestamp",
        "redirect",
        "no quote",
        "short quote",
        "quote of version 6",
        "quote with a short header",
        "quote of a fragment",
    ],
)
def test_faults_have_reasons(message: bytes, reason: str) -> None:
    assert icmp.parse(message, verify_checksum=True) == reason
