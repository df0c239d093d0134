"""`netstack guest -- COMMAND`: a command in a fresh namespace, our stack its only network, its exit status ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from guest_iface.link import LinkError
from guest_iface.namespaces import GuestConfiguration, GuestNamespace
from netstack.config import DEFAULT_GUEST_MAC, RunConfig
from netstack.engine.settings import NetworkSettings
from netstack.gateway import RunFailed
from netstack.gateway.assembly import open_forwards
from netstack.gateway.attachments import Attachments
from netstack.gateway.run_command import Gateway, prepare_process, run_trio
from netstack.gateway.signals import POLICY_SIGNALS, obey_policy_signals

DEVICE: Final = "eth0"
"""What the guest's network card is called."""


def run_guest(config: RunConfig, command: Sequence[str]) -> int:
    """Run a command as the guest and return its exit status (128+N for signal N, 127 if there is no such command).

    The guest has its address, route and resolver when the command starts. Raises RunFailed.
    """
    prepare_process(config.log_level, config.log_format, config.log_file)
    return run_trio(_run, config, command)


def guest_mac(network: NetworkSettings) -> bytes:
    """The MAC address that the device IP is kept for."""
    for mac, address in network.static_leases.items():
        if address == network.device_ip:
            return mac
    return DEFAULT_GUEST_MAC


async def _run(config: RunConfig, command: Sequence[str]) -> int:
    network = config.network
    try:
        namespace = GuestNamespace.create(
            mac=guest_mac(network),
            mtu=network.link.mtu,
            device=DEVICE,
            offload_with=network.gateway_mac if config.offload else None,
            configuration=GuestConfiguration(
                address=network.device_ip,
                prefix_length=network.prefix_length,
                gateway=network.gateway_ip,
                dns=network.gateway_ip,
                search=network.search_domains,
            ),
        )
    except LinkError as error:
        raise RunFailed(f"{error} (netstack doctor says what this host allows)") from error
    try:
        gateway = Gateway(config, Attachments(links=[namespace.open_tap()]))
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run)
            await open_forwards(gateway, config)
            with trio.open_signal_receiver(*POLICY_SIGNALS) as signals:
                async with trio.open_nursery() as obeying:
                    obeying.start_soon(obey_policy_signals, signals, gateway)
                    status = await namespace.run_command(command, forward_signals=True)
                    obeying.cancel_scope.cancel()
            gateway.stop()
        return status
    finally:
        namespace.close()
