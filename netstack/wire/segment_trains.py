"""Many full segments of one connection at once: what one read of a host socket becomes.

Their frames differ in three fields, so numpy sums all texts in one pass, writes all headers in one and copies all texts
in one: 0.5 us a segment of 1,448 bytes, against 4 us one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeAlias

MIN_SEGMENTS: Final = 4
"""Segments from which on a train costs less than as many single ones."""
SINGLE_AT_FIRST: Final = 2048
"""Segments that a process makes one by one before numpy is worth importing (0.13 s and 22 MB, once): some 3 MB."""

_DESK: Final = 128 * 1024
"""Bytes of text that are laid out at once: two reads of a host socket."""
_MULTIPLE: Final = 0xFFFF << 42
"""Of 65,535; larger than any sum of that much, and below 2**63."""
_SEQUENCE: Final = 38
_CHECKSUM: Final = 50
"""Where the fields are in a frame with IPv4 and without options in its header."""

Cutter: TypeAlias = "Callable[[bytes, int, int, bytes, int, int, int], list[bytes]]"

_cutter: Cutter | None = None
_without_numpy = False
_made = 0


def cutter(count: int) -> Cutter | None:
    """What makes `count` frames of (headers, sequence, total, text, start, count, size); None: make them one by one.

    `headers` are those of one frame with neither sequence number nor checksum, `total` what the checksum covers beside
    the sequence number and the text, which is `size` bytes, an even number, for each segment, from `start` on.
    """
    global _made  # noqa: PLW0603  # of a process: what numpy costs is paid once in it
    if _cutter is not None:
        return _cutter
    _made += count
    return None if _without_numpy or _made <= SINGLE_AT_FIRST else _choose_cutter()


def _choose_cutter() -> Cutter | None:
    """numpy's, or none without it."""
    global _cutter, _without_numpy  # noqa: PLW0603  # chosen once a process
    try:
        import numpy as np
    except ImportError:
        _without_numpy = True
        return None
    add, arange, frombuffer, subtract = np.add.reduce, np.arange, np.frombuffer, np.subtract
    wide = np.dtype("u8")

    @lru_cache(maxsize=8)
    def desk(head: int, size: int) -> tuple[Any, ...]:
        """Where frames of this shape are laid out, used again and again: how many fit, their parts, and they whole."""
        fields = np.dtype(
            {
                "names": ["head", "sequence", "checksum", "text"],
                "formats": [f"V{head}", ">u4", ">u2", f"V{size}"],
                "offsets": [0, _SEQUENCE, _CHECKSUM, head],
                "itemsize": head + size,
            }
        )
        room = _DESK // size
        laid = np.zeros(room, fields)
        parts = [laid[name] for name in fields.names or ()]
        word = np.dtype("<u2" if size & 2 else "<u4")
        return room, *parts, laid.view(f"V{head + size}"), word, size // word.itemsize

    def cut_by_numpy(
        headers: bytes, sequence: int, total: int, text: bytes, start: int, count: int, size: int
    ) -> list[bytes]:
        room, heads, numbers, checksums, texts, whole, word, words = desk(len(headers), size)
        if count > room:
            rest = sequence + room * size & 0xFFFFFFFF, total, text, start + room * size, count - room, size
            return cut_by_numpy(headers, sequence, total, text, start, room, size) + cut_by_numpy(headers, *rest)
        end = sequence + count * size
        sequences = arange(sequence, end, size, dtype=wide)
        if end > 0xFFFFFFFF:
            sequences &= 0xFFFFFFFF
        sums = add(frombuffer(text, word, count * words, start).reshape(count, words), axis=1, dtype=wide)
        # Little-endian, as the machine is: a swap of the bytes in each word is a multiplication by 256, modulo 65,535.
        sums <<= 8
        sums += sequences
        # Complemented, modulo 65,535: of the two zeros it gives the one that `fold` gives.
        subtract(_MULTIPLE - total, sums, sums)
        sums %= 0xFFFF
        heads[:count] = frombuffer(headers, heads.dtype)
        numbers[:count] = sequences
        checksums[:count] = sums
        texts[:count] = frombuffer(text, texts.dtype, count, start)
        made: list[bytes] = whole[:count].tolist()
        return made

    _cutter = cut_by_numpy
    return cut_by_numpy
