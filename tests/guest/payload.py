"""Bodies of any size whose SHA-256 both ends can work out. No block occurs twice: lost, doubled, swapped data shows."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator

BLOCK = 1 << 20


@functools.lru_cache(maxsize=512)
def block(number: int) -> bytes:
    """The block at that place of every body."""
    return random.Random(number).randbytes(BLOCK)


def body(size: int) -> Iterator[bytes]:
    """A body of `size` bytes, in blocks."""
    for number in range(-(-size // BLOCK)):
        yield block(number)[: size - number * BLOCK]


@functools.cache
def sha256(size: int) -> str:
    """The digest of the body of that size, in hex."""
    digest = hashlib.sha256()
    for part in body(size):
        digest.update(part)
    return digest.hexdigest()
