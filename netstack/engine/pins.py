"""Which names the gateway's DNS gave a guest an address for: what makes `host:port` rules work on any port.

A guest that was told that `github.com` is 140.82.121.4 may open the ports of its rule to that address, for as long as
the answer lives. Nothing else pins: an address the guest knows from elsewhere is just an address.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MIN_LIFETIME: Final = 60.0
"""Seconds a pin lives at least: programs connect later than a TTL of 0 says."""
MAX_LIFETIME: Final = 3600.0
MAX_PINS: Final = 16_384
"""Pairs of guest and address, in all; the one longest unused makes room."""
MAX_ADDRESSES_PER_NAME: Final = 64
MAX_NAMES_PER_ADDRESS: Final = 16
"""Names behind one address of a shared host; the oldest makes room."""


class Pins:
    """Answers given, by guest and address."""

    def __init__(self) -> None:
        self._names: OrderedDict[tuple[bytes, bytes], dict[str, float]] = OrderedDict()

    def __len__(self) -> int:
        """Pairs of guest and address kept, expired ones included until they are asked for."""
        return len(self._names)

    def answered(self, guest: bytes, name: str, addresses: list[bytes], ttl: float, now: float) -> None:
        """The guest was told that `name` (canonical) has these addresses, for `ttl` seconds."""
        expires = now + min(max(ttl, MIN_LIFETIME), MAX_LIFETIME)
        for address in addresses[:MAX_ADDRESSES_PER_NAME]:
            names = self._names.get((guest, address))
            if names is None:
                if len(self._names) >= MAX_PINS:
                    self._names.popitem(last=False)
                names = self._names[guest, address] = {}
            names.pop(name, None)
            if len(names) >= MAX_NAMES_PER_ADDRESS:
                del names[next(iter(names))]
            names[name] = expires
            self._names.move_to_end((guest, address))

    def names(self, guest: bytes, address: bytes, now: float) -> list[str]:
        """The names this guest was told the address for, those that still live, the latest first."""
        found = self._names.get((guest, address))
        if found is None:
            return []
        for name in [name for name, expires in found.items() if expires <= now]:
            del found[name]
        if not found:
            del self._names[guest, address]
        return list(reversed(found))

    def forget(self, guest: bytes) -> None:
        """The guest is gone."""
        for pair in [pair for pair in self._names if pair[0] == guest]:
            del self._names[pair]
