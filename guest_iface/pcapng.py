"""The blocks of a pcapng file (draft-ietf-opsawg-pcapng): values to bytes, little-endian. No state, no I/O."""

from __future__ import annotations

from struct import Struct
from typing import Final

SECTION_HEADER: Final = 0x0A0D0D0A
INTERFACE_DESCRIPTION: Final = 1
INTERFACE_STATISTICS: Final = 5
ENHANCED_PACKET: Final = 6
CUSTOM: Final = 0x00000BAD
"""A block of a program's own, which others skip, and which tools copy with the file (section 4.9)."""

ENTERPRISE: Final = 32473
"""The private enterprise number of a custom block: that of examples (RFC 5612), so JOURNAL says whose it is."""
JOURNAL: Final = b"netstack:journal"
"""What a custom block of ours begins with, before the length of its data and the data."""

INBOUND: Final = 1
"""epb_flags of a frame from the guest."""
OUTBOUND: Final = 2
"""epb_flags of a frame to the guest."""
MAX_COMMENT: Final = 4096
"""Characters of a comment; an option holds 65,535 bytes."""

_ETHERNET: Final = 1
_MAGIC: Final = 0x1A2B3C4D
_END: Final = b"\0\0\0\0"
_COMMENT: Final = 1
_USER_APPLICATION: Final = 4
_NAME: Final = 2
_RESOLUTION: Final = 9
_NANOSECONDS: Final = b"\x09"
_START_TIME: Final = 2
_END_TIME: Final = 3
_RECEIVED: Final = 4
_DROPPED: Final = 5
_PACKET_FLAGS: Final = 2

_CUSTOM: Final = Struct(f"<III{len(JOURNAL)}sI")
_BLOCK: Final = Struct("<II")
_LENGTH: Final = Struct("<I")
_OPTION: Final = Struct("<HH")
_SECTION: Final = Struct("<IHHq")
_INTERFACE: Final = Struct("<HHI")
_STATISTICS: Final = Struct("<III")
_TIME: Final = Struct("<II")
_COUNT: Final = Struct("<Q")

HEAD: Final = Struct("<IIIIIII")
"""Before a frame: type, length, interface, time (high, low), captured length, original length (section 4.3)."""
TAILS: Final = tuple(Struct(f"<{padding}xHHIHHI") for padding in range(4))
"""Behind a frame, by its padding: epb_flags, its length, value, end of options, 0, the block's length again."""
TAIL_WORDS: Final = (_PACKET_FLAGS, 4)
PACKET_OVERHEAD: Final = HEAD.size + TAILS[0].size


def section_header(application: str, remark: str = "") -> bytes:
    """What a file begins with; of any length. `remark` is its comment, of 65,535 bytes at most."""
    said = _option(_COMMENT, remark.encode()) if remark else b""
    options = _option(_USER_APPLICATION, application.encode()) + said
    return _block(SECTION_HEADER, _SECTION.pack(_MAGIC, 1, 0, -1) + options)


def interface_description(name: str, snaplen: int) -> bytes:
    """An Ethernet interface with times in nanoseconds. `snaplen`: bytes kept of a frame."""
    options = _option(_NAME, name.encode()) + _option(_RESOLUTION, _NANOSECONDS)
    return _block(INTERFACE_DESCRIPTION, _INTERFACE.pack(_ETHERNET, 0, snaplen) + options)


def interface_statistics(interface: int, started: int, ended: int, received: int, dropped: int) -> bytes:
    """What was seen on an interface, and lost of it. Times in nanoseconds of the wall clock."""
    options = (
        _option(_START_TIME, _time(started))
        + _option(_END_TIME, _time(ended))
        + _option(_RECEIVED, _COUNT.pack(received))
        + _option(_DROPPED, _COUNT.pack(dropped))
    )
    return _block(INTERFACE_STATISTICS, _STATISTICS.pack(interface, ended >> 32, ended & 0xFFFFFFFF) + options)


def journal(data: bytes) -> bytes:
    """A custom block with bytes that are no frame and that whoever replays the file wants."""
    padding = -len(data) & 3
    length = _CUSTOM.size + len(data) + padding + _LENGTH.size
    return _CUSTOM.pack(CUSTOM, length, ENTERPRISE, JOURNAL, len(data)) + data + bytes(padding) + _LENGTH.pack(length)


def block_length(blocks: bytes, start: int) -> int:
    """Bytes of the block that begins at `start`."""
    length: int = _LENGTH.unpack_from(blocks, start + _LENGTH.size)[0]
    return length


def comment_option(text: str) -> bytes:
    """opt_comment, for what is between a padded frame and its tail. Cut where it is longer than MAX_COMMENT."""
    return _option(_COMMENT, text[:MAX_COMMENT].encode(errors="replace"))


def _time(stamp: int) -> bytes:
    return _TIME.pack(stamp >> 32, stamp & 0xFFFFFFFF)


def _option(code: int, data: bytes) -> bytes:
    return _OPTION.pack(code, len(data)) + data + bytes(-len(data) & 3)


def _block(kind: int, body_and_options: bytes) -> bytes:
    length = _BLOCK.size + len(body_and_options) + len(_END) + _LENGTH.size
    return _BLOCK.pack(kind, length) + body_and_options + _END + _LENGTH.pack(length)
