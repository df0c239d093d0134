"""What a configuration wants around a running gateway: port forwards, and sockets that lead into guests by SSH."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netstack.config import RunConfig
from netstack.gateway import RunFailed
from netstack.gateway.forward_addresses import ForwardError

if TYPE_CHECKING:
    from netstack.gateway.run_command import Gateway


async def open_forwards(gateway: Gateway, config: RunConfig) -> None:
    """Bind all of them. `gateway` must be running, and ends them. Raises RunFailed for the first that cannot be."""
    try:
        for forward in config.forwards:
            await gateway.forwards.expose(forward.protocol, forward.local, forward.remote)
        for each in config.ssh_forwards:
            await gateway.forwards.expose_ssh(each.socket, each.dest, each.user, each.identity)
    except ForwardError as error:
        raise RunFailed(f"cannot add network services: {error}") from error
