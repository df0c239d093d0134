"""netstack: a userspace network stack behind a VM's network card.

Ethernet frames of a guest come in, ordinary host sockets go out, and the answers come back. From the floor up:

- `netstack.wire` turns bytes into values and values into bytes, one file per protocol, without state.
- `netstack.engine` is the machine: TCP, NAT, DHCP, DNS zones. It is given bytes and the time, and gives frames,
  effects and the next deadline; it opens no socket and reads no clock, so the same inputs give the same bytes.
- `netstack.gateway` is the host side in trio: it moves frames and bytes, carries out effects, arms one timer.
- `guest_iface` (a package of its own) is how a guest attaches: unix datagrams, streams, TAP devices.
- `netstack.NetworkSpec` says what a guest may reach, `netstack.hooks` asks your own code about it.
- `netstack.run_settings` is what was asked for by options, a YAML file or gvproxy's flags, `netstack.config` what all
  of it is told; `netstack.cli` is the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netstack.network_spec import NetworkSpec as NetworkSpec
    from netstack.network_spec import SpecError as SpecError

__version__ = "0.1.0.dev0"
__all__ = ["NetworkSpec", "SpecError", "__version__"]


def __getattr__(name: str) -> object:
    """The public names, imported when they are asked for: the command's start must not pay for them (PEP 562)."""
    if name in ("NetworkSpec", "SpecError"):
        from netstack import network_spec

        return getattr(network_spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
