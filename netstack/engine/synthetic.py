"""Synthetic answers: each name gets an address of its own, and what a guest opens to it is dialled by that name.

The addresses are of 198.18.0.0/15 (RFC 2544: for benchmarks, never routed). One stands for the same name as long as
the gateway lives and never for another, so an address a guest has kept cannot come to mean something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

NETWORK: Final = b"\xc6\x12\x00\x00"
PREFIX_LENGTH: Final = 15
MAX_NAMES: Final = 65_536
MAX_TTL: Final = 300
"""Seconds a guest may keep such an address."""

_BASE: Final = int.from_bytes(NETWORK, "big")
_PER_BLOCK: Final = 254
_BLOCKS: Final = 1 << (24 - PREFIX_LENGTH)


class SyntheticPool:
    """One gateway's addresses for names. `exhausted` counts the requests for which there was none left."""

    def __init__(self, *, max_names: int = MAX_NAMES, avoid: Callable[[bytes], bool] | None = None) -> None:
        """`avoid` says of a packed address that it is in use otherwise, as in the guest's own subnet."""
        self.exhausted = 0
        self._max_names = max_names
        self._avoid = avoid
        self._next = 0
        self._addresses: dict[str, bytes] = {}
        self._names: dict[bytes, str] = {}

    def __len__(self) -> int:
        """Names that have an address."""
        return len(self._addresses)

    def address_for(self, name: str) -> bytes | None:
        """The packed address of a canonical name, the same each time; None when there is none left for it."""
        address = self._addresses.get(name)
        if address is not None:
            return address
        address = self._take() if len(self._addresses) < self._max_names else None
        if address is None:
            self.exhausted += 1
            return None
        self._addresses[name] = address
        self._names[address] = name
        return address

    def name_of(self, address: bytes) -> str | None:
        """The name a packed address stands for, None when it stands for none."""
        return self._names.get(address)

    def _take(self) -> bytes | None:
        """The next address. None ends in 0 or 255: some systems still take those for a network or a broadcast."""
        while self._next < _BLOCKS * _PER_BLOCK:
            block, place = divmod(self._next, _PER_BLOCK)
            self._next += 1
            address = (_BASE + (block << 8) + place + 1).to_bytes(4, "big")
            if self._avoid is None or not self._avoid(address):
                return address
        return None
