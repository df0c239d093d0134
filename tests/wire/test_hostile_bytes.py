"""Conformance K3: no parser raises, whatever comes: any bytes, each truncation, each length field at its limits."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netstack.wire import arp, dhcp, icmp, ipv4, tcp, udp

from . import samples

Parser = Callable[[bytes | memoryview], object]


def _icmp(message: bytes | memoryview, *, verify_checksum: bool) -> object:
    """Parse, and read everything that a caller may ask of the result."""
    result = icmp.parse(message, verify_checksum=verify_checksum)
    if isinstance(result, icmp.IcmpError):
        assert len(result.quote.ports) == len(result.quote.echo) == 2
        assert result.quote.tcp_sequence >= 0
    return result


PARSERS: dict[str, tuple[Parser, type, dict[str, bytes]]] = {
    "arp": (arp.parse, arp.Arp, samples.ARP_MESSAGES),
    "ipv4": (lambda b: ipv4.parse(b, verify_checksum=True), ipv4.Ipv4, samples.IPV4_MESSAGES),
    "ipv4-unverified": (lambda b: ipv4.parse(b, verify_checksum=False), ipv4.Ipv4, samples.IPV4_MESSAGES),
    "udp": (
        lambda b: udp.parse(b, samples.GUEST, samples.GATEWAY, verify_checksum=True),
        udp.Udp,
        samples.UDP_MESSAGES,
    ),
    "udp-unverified": (
        lambda b: udp.parse(b, samples.GUEST, samples.GATEWAY, verify_checksum=False),
        udp.Udp,
        samples.UDP_MESSAGES,
    ),
    "icmp": (lambda b: _icmp(b, verify_checksum=True), tuple, samples.ICMP_MESSAGES),
    "icmp-unverified": (lambda b: _icmp(b, verify_checksum=False), tuple, samples.ICMP_MESSAGES),
    "dhcp": (dhcp.parse, dhcp.DhcpMessage, samples.DHCP_MESSAGES),
    "tcp-options": (lambda b: tcp.parse_options(bytes(b)), tcp.TcpOptions, samples.TCP_OPTIONS),
}

# Parser, message, offset and width of each length field, or of what acts as one.
LENGTH_FIELDS = [
    ("arp", "request", 4, 1),
    ("arp", "request", 5, 1),
    *(("ipv4-unverified", name, 2, 2) for name in samples.IPV4_MESSAGES),
    *(("ipv4-unverified", name, 0, 1) for name in samples.IPV4_MESSAGES),  # version and header length
    *(("ipv4-unverified", name, 6, 2) for name in samples.IPV4_MESSAGES),  # fragment offset
    *(("udp-unverified", name, 4, 2) for name in samples.UDP_MESSAGES),
    # The quoted header: version and length, total length, fragment offset.
    *(("icmp-unverified", name, 8, 1) for name in samples.ICMP_MESSAGES if len(samples.ICMP_MESSAGES[name]) > 16),
    *(("icmp-unverified", name, 10, 2) for name in samples.ICMP_MESSAGES if len(samples.ICMP_MESSAGES[name]) > 16),
    *(("icmp-unverified", name, 14, 2) for name in samples.ICMP_MESSAGES if len(samples.ICMP_MESSAGES[name]) > 16),
    *(("dhcp", name, 2, 1) for name in samples.DHCP_MESSAGES),  # hlen
    *(("dhcp", name, 241, 1) for name in samples.DHCP_MESSAGES),  # the first option
    *(("dhcp", name, 244, 1) for name in samples.DHCP_MESSAGES if len(samples.DHCP_MESSAGES[name]) > 244),  # the second
    ("dhcp", "overload-both", 45, 1),  # an option in sname
    ("dhcp", "overload-both", 109, 1),  # an option in file
    ("dhcp", "long-option", 247, 1),
    ("dhcp", "long-option", 504, 1),
    *(("tcp-options", name, 1, 1) for name in samples.TCP_OPTIONS),
    *(("tcp-options", name, 3, 1) for name in samples.TCP_OPTIONS),
]


def _check(name: str, data: bytes) -> object:
    """Both kinds of input give the same result, which is a value or a reason word."""
    parser, kind, _ = PARSERS[name]
    result = parser(data)
    assert isinstance(result, (kind, str))
    assert parser(memoryview(data)) == result
    if isinstance(result, str):
        assert result
        assert result == result.lower()
    return result


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.binary(max_size=600))
@example(data=b"")
def test_any_bytes(name: str, data: bytes) -> None:
    _check(name, data)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_real_messages_with_damage(name: str, data: st.DataObject) -> None:
    message = bytearray(data.draw(st.sampled_from(sorted(PARSERS[name][2].values()))))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    _check(name, bytes(message))


@pytest.mark.parametrize("name", PARSERS)
def test_each_truncation_of_each_message(name: str) -> None:
    for message in PARSERS[name][2].values():
        for length in range(len(message) + 1):
            _check(name, message[:length])


@pytest.mark.parametrize(("name", "message", "offset", "width"), LENGTH_FIELDS)
def test_each_length_field_at_its_limits(name: str, message: str, offset: int, width: int) -> None:
    data = bytearray(PARSERS[name][2][message])
    layout = "!B" if width == 1 else "!H"
    (exact,) = struct.unpack_from(layout, data, offset)
    largest = (1 << 8 * width) - 1
    for value in {0, 1, 2, exact - 1, exact, exact + 1, largest - 1, largest}:
        if 0 <= value <= largest:
            struct.pack_into(layout, data, offset, value)
            _check(name, bytes(data))


@pytest.mark.parametrize(
    ("name", "message"),
    [(name, message) for name in PARSERS for message in PARSERS[name][2] if message not in {"timestamp", "redirect"}],
)
def test_the_undamaged_messages_are_read(name: str, message: str) -> None:
    """So that the tests above do not pass because nothing is ever accepted."""
    # "padded" UDP is summed up to its own length; all others are exactly what scapy made.
    assert not isinstance(_check(name, PARSERS[name][2][message]), str)


@pytest.mark.parametrize("name", ["arp", "ipv4", "udp", "icmp", "dhcp"])
def test_short_messages_are_refused_with_a_reason(name: str) -> None:
    shortest = {"arp": 28, "ipv4": 20, "udp": 8, "icmp": 8, "dhcp": 240}[name]
    message = next(iter(PARSERS[name][2].values()))
    for length in range(shortest):
        assert _check(name, message[:length]) == {"ipv4": "ip-truncated"}.get(name, f"{name}-truncated")
