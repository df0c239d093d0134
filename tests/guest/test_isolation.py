"""What is in the guest's subnet and nobody's is never dialled on the host's own network (conformance A8)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from .network import PUBLIC, TAP, Network
from .test_tcp import outcome
from .test_udp import echo

pytestmark = pytest.mark.guest("ip", "openssl")
REFUSALS = {"ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH"}


@pytest.fixture(params=["gateway", "unused"])
def trap(request: pytest.FixtureRequest, network: Network) -> Iterator[str]:
    """An address of the guest's subnet that the host really has, as it may on a LAN that is numbered alike."""
    address = getattr(network.addresses, request.param)
    network.host.run("ip", "address", "add", f"{address}/32", "dev", "lo")
    if request.param == "unused":
        # The gateway does not answer for it: a guest that sends all the same knows the gateway's MAC.
        mac = network.addresses.gateway_mac
        network.guest.run("ip", "neighbour", "replace", address, "lladdr", mac, "dev", TAP)
    yield address
    network.host.run("ip", "address", "delete", f"{address}/32", "dev", "lo")
    if request.param == "unused":
        network.guest.run("ip", "neighbour", "delete", address, "dev", TAP)


def test_tcp_is_refused_here(network: Network, trap: str) -> None:
    with network.host.listen("0.0.0.0") as listener:
        listener.setblocking(False)
        assert outcome(network.guest, trap, listener.getsockname()[1]) in REFUSALS
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_udp_goes_nowhere(network: Network, trap: str) -> None:
    with (
        network.host.socket(socket.SOCK_DGRAM) as server,
        network.guest.socket(socket.SOCK_DGRAM) as guest,
        echo(network.host, PUBLIC) as barrier,
    ):
        server.bind(("0.0.0.0", 0))
        server.setblocking(False)
        with contextlib.suppress(ConnectionRefusedError):
            guest.sendto(b"leak?", (trap, server.getsockname()[1]))
            guest.sendto(b"past it", barrier)
        # What was sent later has arrived and come back: the first datagram is not still under way.
        guest.sendto(b"past it", barrier)
        assert guest.recv(100) == b"past it"
        with pytest.raises(BlockingIOError):
            server.recvfrom(100)


def test_address_nobody_has_is_unreachable(network: Network) -> None:
    """Nobody answers ARP for it, so the guest's own kernel gives up."""
    assert outcome(network.guest, network.addresses.unused, 80) == "EHOSTUNREACH"


@pytest.mark.guest("ping")
def test_ping_of_an_unused_address_goes_nowhere(network: Network, trap: str) -> None:
    answered = network.guest.run("ping", "-c1", "-W2", trap, check=False).returncode == 0
    assert answered == (trap == network.addresses.gateway)


def test_metadata_block_is_closed(network: Network) -> None:
    with network.host.listen("0.0.0.0") as listener:
        network.host.run("ip", "address", "add", "169.254.169.254/32", "dev", "lo")
        try:
            listener.setblocking(False)
            assert outcome(network.guest, "169.254.169.254", listener.getsockname()[1]) in REFUSALS
            with pytest.raises(BlockingIOError):
                listener.accept()
        finally:
            network.host.run("ip", "address", "delete", "169.254.169.254/32", "dev", "lo")
