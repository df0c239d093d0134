"""For tests, here and in other people's projects: a guest and a network in memory, and captures that are tests.

    from netstack.testing import VirtualGuest, VirtualNetwork

Nothing is imported before it is asked for: pytest loads the plugin of this package wherever netstack is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netstack.testing.replayed import Replayed as Replayed
    from netstack.testing.replayed import replay_capture as replay_capture
    from netstack.testing.virtual_guest import VirtualConnection as VirtualConnection
    from netstack.testing.virtual_guest import VirtualDatagrams as VirtualDatagrams
    from netstack.testing.virtual_guest import VirtualGuest as VirtualGuest
    from netstack.testing.virtual_network import ServerStream as ServerStream
    from netstack.testing.virtual_network import VirtualNetwork as VirtualNetwork

_PLACES = {
    "Replayed": "replayed",
    "ServerStream": "virtual_network",
    "VirtualConnection": "virtual_guest",
    "VirtualDatagrams": "virtual_guest",
    "VirtualGuest": "virtual_guest",
    "VirtualNetwork": "virtual_network",
    "replay_capture": "replayed",
}
__all__ = [
    "Replayed", "ServerStream", "VirtualConnection", "VirtualDatagrams", "VirtualGuest", "VirtualNetwork",
    "replay_capture",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """The public names, imported when they are asked for (PEP 562)."""
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
