"""ICMP (RFC 792): echo, and the four errors that matter to a gateway, with what they quote."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from netstack.wire import ipv4
from netstack.wire.checksum import checksum

HEADER: Final = 8

ECHO_REPLY: Final = 0
UNREACHABLE: Final = 3
SOURCE_QUENCH: Final = 4
REDIRECT: Final = 5
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12

ERROR_TYPES: Final = frozenset({UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM})
"""Messages that report on another packet, and about which nothing may be reported (RFC 1122 section 3.2.2)."""

# Codes of UNREACHABLE: RFC 792, RFC 1122 section 3.2.2.1, RFC 1812 section 5.2.7.1.
NET_UNREACHABLE: Final = 0
HOST_UNREACHABLE: Final = 1
PROTOCOL_UNREACHABLE: Final = 2
PORT_UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4
SOURCE_ROUTE_FAILED: Final = 5
NET_PROHIBITED: Final = 9
HOST_PROHIBITED: Final = 10
ADMINISTRATIVELY_PROHIBITED: Final = 13

# Codes of TIME_EXCEEDED.
TTL_EXCEEDED: Final = 0
REASSEMBLY_EXPIRED: Final = 1

MAX_ERROR: Final = 576
"""The largest packet that carries an error, its IP header included (RFC 1812 section 4.3.2.3)."""
MIN_QUOTED_PAYLOAD: Final = 8
"""What an error quotes at least beyond the IP header (RFC 792): enough for ports, and a sequence number."""

_ECHO = Struct("!BBHHH")
_ERROR = Struct("!BBHBBH")
_QUOTED_HEADER = Struct("!BxHxxHxBxx4s4s")
_PORTS = Struct("!HH")
_WORD = Struct("!I")


class Echo(NamedTuple):
    """An echo request, or the reply to one."""

    request: bool
    identifier: int
    sequence: int
    payload: bytes


class Quote(NamedTuple):
    """The packet an error speaks of, as far as it is quoted: its header, and at least 8 bytes of `transport`."""

    source: bytes
    destination: bytes
    protocol: int
    total_length: int
    transport: bytes

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port, when `protocol` is TCP or UDP."""
        source, destination = _PORTS.unpack_from(self.transport)
        return source, destination

    @property
    def echo(self) -> tuple[int, int]:
        """Identifier and sequence number, when `protocol` is ICMP and the quoted message an echo."""
        identifier, sequence = _PORTS.unpack_from(self.transport, 4)
        return identifier, sequence

    @property
    def tcp_sequence(self) -> int:
        """The sequence number, when `protocol` is TCP."""
        (sequence,) = _WORD.unpack_from(self.transport, 4)
        return int(sequence)


class IcmpError(NamedTuple):
    """A received error. `next_hop_mtu` means something for FRAGMENTATION_NEEDED, `pointer` for PARAMETER_PROBLEM."""

    type: int
    code: int
    pointer: int
    next_hop_mtu: int
    quote: Quote


def parse(message: bytes | memoryview, *, verify_checksum: bool) -> Echo | IcmpError | str:
    """Read an IP payload.

    Returns a reason word instead for what is malformed, and `icmp-type` for messages no gateway acts on.
    """
    if len(message) < HEADER:
        return "icmp-truncated"
    if verify_checksum and checksum(message):
        return "icmp-checksum"
    kind, code, _, high, low = _ECHO.unpack_from(message)
    if kind in (ECHO_REQUEST, ECHO_REPLY):
        # RFC 792 knows code 0 only.
        return Echo(kind == ECHO_REQUEST, high, low, bytes(message[HEADER:])) if code == 0 else "icmp-code"
    if kind not in (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM):
        return "icmp-type"
    quote = _parse_quote(message[HEADER:])
    if quote is None:
        return "icmp-quote"
    # RFC 792: the pointer is the fifth byte; RFC 1191 section 4: the next-hop MTU is the last two.
    return IcmpError(kind, code, high >> 8, low, quote)


def _parse_quote(quoted: bytes | memoryview) -> Quote | None:
    # The quoted packet is cut off, so its total length says more than is there: ipv4.parse would refuse it.
    if len(quoted) < ipv4.HEADER:
        return None
    first, total_length, offset, protocol, source, destination = _QUOTED_HEADER.unpack_from(quoted)
    header_length = (first & 0xF) * 4
    if first >> 4 != 4 or header_length < ipv4.HEADER or len(quoted) < header_length + MIN_QUOTED_PAYLOAD:
        return None
    # RFC 1122 section 3.2.2: nobody reports on a fragment other than the first, whose bytes are not a transport header.
    if offset & ipv4.OFFSET_MASK:
        return None
    return Quote(source, destination, protocol, total_length, bytes(quoted[header_length:]))


def build_echo(*, request: bool, identifier: int, sequence: int, payload: bytes) -> bytes:
    """A whole echo message, checksum included."""
    kind = ECHO_REQUEST if request else ECHO_REPLY
    value = checksum(_ECHO.pack(kind, 0, 0, identifier, sequence) + payload)
    return _ECHO.pack(kind, 0, value, identifier, sequence) + payload


def build_error(
    kind: int, code: int, packet: bytes, *, pointer: int = 0, next_hop_mtu: int = 0, largest: int = MAX_ERROR
) -> bytes:
    """A whole error message that quotes as much of `packet` as an IP packet of `largest` bytes can carry."""
    quoted = packet[: max(0, largest - ipv4.HEADER - HEADER)]
    value = checksum(_ERROR.pack(kind, code, 0, pointer, 0, next_hop_mtu) + quoted)
    return _ERROR.pack(kind, code, value, pointer, 0, next_hop_mtu) + quoted
