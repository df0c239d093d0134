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
MAX_PINS: int = 16_384
"""Pairs of guest and address, in all. Whoever has its share or more makes room itself: none can push out another's."""
MAX_ADDRESSES_PER_NAME: Final = 64
"""Addresses of one answer that are kept."""
MAX_NAMES_PER_ADDRESS: Final = 16
"""Names behind one address of a shared host; the oldest makes room."""


class Pins:
    """Answers given, by guest and address."""

    def __init__(self) -> None:
        self._guests: dict[bytes, OrderedDict[bytes, dict[str, float]]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Pairs of guest and address kept, expired ones included until they are asked for."""
        return self._count

    def answered(self, guest: bytes, name: str, addresses: list[bytes], ttl: float, now: float) -> None:
        """The guest was told that `name` (canonical) has these addresses, for `ttl` seconds."""
        expires = now + min(max(ttl, MIN_LIFETIME), MAX_LIFETIME)
        pinned = self._guests.setdefault(guest, OrderedDict())
        for address in addresses[:MAX_ADDRESSES_PER_NAME]:
            names = pinned.get(address)
            if names is None:
                if self._count >= MAX_PINS:
                    self._make_room(guest)
                names = pinned[address] = {}
                self._count += 1
            names.pop(name, None)
            if len(names) >= MAX_NAMES_PER_ADDRESS:
                del names[next(iter(names))]
            names[name] = expires
            pinned.move_to_end(address)

    def names(self, guest: bytes, address: bytes, now: float) -> list[str]:
        """The names this guest was told the address for, those that still live, the latest first."""
        pinned = self._guests.get(guest)
        found = None if pinned is None else pinned.get(address)
        if pinned is None or found is None:
            return []
        for name in [name for name, expires in found.items() if expires <= now]:
            del found[name]
        if not found:
            del pinned[address]
            self._count -= 1
            if not pinned:
                del self._guests[guest]
        return list(reversed(found))

    def known(self, guest: bytes, name: str, address: bytes, now: float) -> bool:
        """Whether the guest was told that `name` (canonical) has this address, and may still believe it."""
        pinned = self._guests.get(guest)
        expires = None if pinned is None else pinned.get(address, {}).get(name)
        return expires is not None and now < expires

    def forget(self, guest: bytes) -> None:
        """The guest is gone."""
        self._count -= len(self._guests.pop(guest, ()))

    def _make_room(self, guest: bytes) -> None:
        """Forget the address longest unused of the guest that wants more, or of the one with most if it has few."""
        if len(self._guests[guest]) * len(self._guests) < MAX_PINS:
            largest = max(self._guests, key=lambda each: len(self._guests[each]))
        else:
            largest = guest
        pinned = self._guests[largest]
        pinned.popitem(last=False)
        self._count -= 1
        if not pinned and largest != guest:
            del self._guests[largest]
