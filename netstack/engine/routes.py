"""Where a destination address leads: to the gateway itself, out through a host socket, or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

from netstack.engine.settings import NetworkSettings

OWN: Final = 1
"""An address the gateway answers for itself."""
OUT: Final = 2
"""Reached through a host socket, at `dialled`."""
UNUSED: Final = 3
"""An address of the subnet that nobody has: never dialled, the host's own network may have the same numbers."""
FORBIDDEN: Final = 4
"""Addresses no flow may go to: link-local (metadata services), this network, loopback, reserved."""
GROUP: Final = 5
"""Broadcast and multicast: no flow at all."""

MAX_REMEMBERED: Final = 512
"""Destinations whose route is remembered, the latest."""

_REASONS: Final = {
    OWN: "unserved-port",
    UNUSED: "unused-address",
    FORBIDDEN: "forbidden-address",
    GROUP: "group-address",
}
_LINK_LOCAL: Final = b"\xa9\xfe"


def refusal(kind: int, address: bytes) -> str:
    """Why there is no flow to an address that leads nowhere, in a word: metadata, or what its kind says."""
    return "metadata" if kind == FORBIDDEN and address[:2] == _LINK_LOCAL else _REASONS[kind]


class Route(NamedTuple):
    """`kind` is one of the above; `dialled` the address after NAT (only for OUT)."""

    kind: int
    dialled: bytes


class Routes:
    """The routing decision for packets from the guest."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings
        self._known: Callable[[bytes], Route] = lru_cache(maxsize=MAX_REMEMBERED)(self._find)
        self._own = frozenset({settings.gateway_ip}) | settings.virtual_ips
        self._broadcasts = frozenset({settings.broadcast_ip, b"\xff\xff\xff\xff"})

    def lookup(self, address: bytes) -> Route:
        """The route of a packed destination address, judged before NAT. Guests go where they have been before."""
        return self._known(address)

    def _find(self, address: bytes) -> Route:
        settings = self._settings
        dialled = settings.nat.get(address)
        if dialled is not None:
            return Route(OUT, dialled)
        if address in self._own:
            return Route(OWN, address)
        first = address[0]
        if 224 <= first < 240 or address in self._broadcasts:
            return Route(GROUP, address)
        if settings.in_subnet(address):
            return Route(UNUSED, address)
        if address[:2] == _LINK_LOCAL:
            # Cloud metadata services live in 169.254.0.0/16: opened only on request, as gvproxy documents it.
            return Route(OUT if settings.metadata_access else FORBIDDEN, address)
        # "This network", loopback and class E never belong on a wire (RFC 1122 section 3.2.1.3, RFC 6890).
        if first in (0, 127) or first >= 240:
            return Route(FORBIDDEN, address)
        return Route(OUT, address)
