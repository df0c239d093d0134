"""DHCP messages (RFC 2131) and their options (RFC 2132): overload, long options (RFC 3396), search lists (RFC 3397)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple

BOOT_REQUEST: Final = 1
BOOT_REPLY: Final = 2
ETHERNET: Final = 1
BROADCAST_FLAG: Final = 0x8000

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68

# Message types (option 53).
DISCOVER: Final = 1
OFFER: Final = 2
REQUEST: Final = 3
DECLINE: Final = 4
ACK: Final = 5
NAK: Final = 6
RELEASE: Final = 7
INFORM: Final = 8

# Option codes.
SUBNET_MASK: Final = 1
ROUTER: Final = 3
DNS_SERVERS: Final = 6
HOST_NAME: Final = 12
INTERFACE_MTU: Final = 26
REQUESTED_ADDRESS: Final = 50
LEASE_TIME: Final = 51
OVERLOAD: Final = 52
MESSAGE_TYPE: Final = 53
SERVER_IDENTIFIER: Final = 54
MESSAGE: Final = 56
MAX_MESSAGE_SIZE: Final = 57
CLIENT_IDENTIFIER: Final = 61
RAPID_COMMIT: Final = 80
RELAY_AGENT: Final = 82
DOMAIN_SEARCH: Final = 119
_PAD: Final = 0
_END: Final = 255

MIN_MESSAGE: Final = 300
"""What a BOOTP message is padded to (RFC 951 section 3); some clients drop shorter ones."""
UNSPECIFIED: Final = bytes(4)

_FIXED = Struct("!BBBB4sHH4s4s4s4s16s64s128s4s")
HEADER: Final = _FIXED.size
"""236 bytes of BOOTP and the magic cookie."""
_COOKIE: Final = b"\x63\x82\x53\x63"


class DhcpMessage(NamedTuple):
    """One message. `chaddr` is cut to the hardware address length; `options` maps code to value, split ones joined."""

    op: int
    xid: bytes
    chaddr: bytes
    options: Mapping[int, bytes]
    htype: int = ETHERNET
    hops: int = 0
    secs: int = 0
    flags: int = 0
    ciaddr: bytes = UNSPECIFIED
    yiaddr: bytes = UNSPECIFIED
    siaddr: bytes = UNSPECIFIED
    giaddr: bytes = UNSPECIFIED


def parse(message: bytes | memoryview) -> DhcpMessage | str:
    """Read a UDP payload. Returns a reason word when it is not DHCP or an option reaches beyond its field."""
    if len(message) < HEADER:
        return "dhcp-truncated"
    (
        op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, cookie,
    ) = _FIXED.unpack_from(message)  # fmt: skip
    if cookie != _COOKIE:
        return "dhcp-cookie"
    if hlen > len(chaddr):
        return "dhcp-hlen"
    options: dict[int, bytes] = {}
    if not _read_options(bytes(message[HEADER:]), options):
        return "dhcp-options"
    overload = options.pop(OVERLOAD, b"\x00")
    if overload not in (b"\x00", b"\x01", b"\x02", b"\x03"):
        return "dhcp-overload"
    # RFC 3396 section 5: a split option continues from the options field into `file`, then `sname`. One met there that
    # says "overload" again has no meaning.
    fields = [field for bit, field in ((1, file), (2, sname)) if overload[0] & bit]
    if not all(_read_options(field, options) for field in fields):
        return "dhcp-options"
    options.pop(OVERLOAD, None)
    return DhcpMessage(op, xid, chaddr[:hlen], options, htype, hops, secs, flags, ciaddr, yiaddr, siaddr, giaddr)


def _read_options(field: bytes, options: dict[int, bytes]) -> bool:
    """Add the options of one field; False when one does not fit in it. A missing end option is forgiven."""
    position = 0
    while position < len(field):
        code = field[position]
        position += 1
        if code == _PAD:
            continue
        if code == _END:
            break
        if position == len(field):
            return False
        end = position + 1 + field[position]
        if end > len(field):
            return False
        # RFC 3396 section 7: the values of an option that comes more than once are one value.
        options[code] = options.get(code, b"") + field[position + 1 : end]
        position = end
    return True


def build(message: DhcpMessage) -> bytes:
    """A whole message, options in the order of the mapping, padded to 300 bytes. `sname` and `file` stay empty.

    Raises ValueError for a hardware address over 16 bytes.
    """
    if len(message.chaddr) > 16:
        raise ValueError(f"a DHCP hardware address has at most 16 bytes, not {len(message.chaddr)}")
    fixed = _FIXED.pack(
        message.op,
        message.htype,
        len(message.chaddr),
        message.hops,
        message.xid,
        message.secs,
        message.flags,
        message.ciaddr,
        message.yiaddr,
        message.siaddr,
        message.giaddr,
        message.chaddr,
        b"",
        b"",
        _COOKIE,
    )
    options = b"".join(_encode_option(code, value) for code, value in message.options.items())
    return (fixed + options + bytes((_END,))).ljust(MIN_MESSAGE, b"\x00")


def _encode_option(code: int, value: bytes) -> bytes:
    if len(value) <= 255:
        return bytes((code, len(value))) + value
    # RFC 3396 section 6: a longer value goes out as several options of the same code, one behind the other.
    pieces = (value[start : start + 255] for start in range(0, len(value), 255))
    return b"".join(bytes((code, len(piece))) + piece for piece in pieces)


def encode_search_list(domains: Sequence[str]) -> bytes:
    """The value of option 119 (RFC 3397): names in DNS wire form one after the other, without compression.

    Raises ValueError naming the domain when a label is empty, not ASCII or over 63 bytes, or a name over 255 bytes.
    """
    return b"".join(_encode_name(domain) for domain in domains)


def _encode_name(domain: str) -> bytes:
    try:
        labels = [label.encode("ascii") for label in domain.removesuffix(".").split(".")]
    except UnicodeEncodeError:
        raise ValueError(f"search domain {domain!r} is not ASCII: write its A-label (xn--...)") from None
    if not all(0 < len(label) <= 63 for label in labels):
        raise ValueError(f"search domain {domain!r} has an empty label or one over 63 bytes")
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\x00"
    if len(name) > 255:
        raise ValueError(f"search domain {domain!r} is longer than 255 bytes")
    return name
