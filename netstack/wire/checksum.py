"""The Internet checksum (RFC 1071), over anything that is bytes.

2**16 is congruent to 1 modulo 65,535, so the ones' complement sum of 16-bit words equals the whole message read as one
big number, modulo 65,535. That turns a loop over words into two C calls: 2.5 us for 1,460 bytes. A division of numbers
that large costs more than its parts (111 us for 64 KiB), so from LARGE bytes on the sum is taken in pieces (80 us), or
by numpy where that is installed (7 us).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

LARGE: Final = 4096
"""Bytes from which on numpy is worth importing (0.13 s and 22 MB, once). At an MTU of 1,500 only datagrams in fragments
are that large."""
_PIECE: Final = 2048

_large_sum: Callable[[bytes | bytearray | memoryview], int] | None = None
"""How large payloads are summed; found out with the first one."""


def ones_sum(data: bytes | bytearray | memoryview) -> int:
    """A number congruent to the ones' complement sum of `data` (an odd last byte is padded with zero); not folded."""
    if len(data) >= LARGE:
        return (_large_sum or _choose_large_sum())(data)
    total = int.from_bytes(data, "big")
    return total << 8 if len(data) & 1 else total


def sum_in_pieces(data: bytes | bytearray | memoryview) -> int:
    """What `ones_sum` gives, without a number as long as `data`."""
    whole = len(data) - len(data) % _PIECE
    total = sum([int.from_bytes(data[at : at + _PIECE], "big") for at in range(0, whole, _PIECE)])
    rest = int.from_bytes(data[whole:], "big")
    return total + (rest << 8 if len(data) & 1 else rest)


def _choose_large_sum() -> Callable[[bytes | bytearray | memoryview], int]:
    """numpy's sum, or ours without it."""
    global _large_sum  # noqa: PLW0603  # chosen once a process
    try:
        import numpy as np
    except ImportError:
        _large_sum = sum_in_pieces
        return sum_in_pieces
    frombuffer, add, word, wide = np.frombuffer, np.add.reduce, np.dtype("<u4"), np.dtype("u8")

    def sum_by_numpy(data: bytes | bytearray | memoryview) -> int:
        # Little-endian, as the machine is: a swap of the bytes in each word is a multiplication by 256, modulo 65,535.
        words = len(data) // 4
        total = int(add(frombuffer(data, word, words), dtype=wide)) << 8
        rest = int.from_bytes(data[4 * words :], "big")
        return total + (rest << 8 if len(data) & 1 else rest)

    _large_sum = sum_by_numpy
    return sum_by_numpy


def fold(total: int) -> int:
    """The checksum field for an unfolded sum: its 16-bit ones' complement.

    A sum of nothing but zeros gives 0xFFFF, any other multiple of 65,535 gives 0, as adding word by word would.
    """
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))


def checksum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """The checksum of `data`, with `initial` (an unfolded sum, a pseudo-header's say) added.

    It is 0 where the checksum in `data` is right.
    """
    return fold(ones_sum(data) + initial)


def pseudo_header_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """The unfolded sum of an IPv4 pseudo-header (RFC 9293 section 3.1, RFC 768)."""
    return int.from_bytes(source, "big") + int.from_bytes(destination, "big") + protocol + length
