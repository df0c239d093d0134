"""ping and traceroute of the guest's own tools."""

from __future__ import annotations

import re

import pytest

from .network import FAR, FAR_PATH, PUBLIC, UNREACHABLE, Network

pytestmark = pytest.mark.guest("ip", "openssl", "ping")


def ping(network: Network, address: str, *options: str, check: bool = True) -> str:
    """Three pings, a tenth of a second apart."""
    return network.guest.run("ping", "-n", "-c3", "-i0.1", "-W5", *options, address, check=check).stdout


@pytest.mark.parametrize("target", ["gateway", "host", PUBLIC, FAR])
@pytest.mark.parametrize("size", [0, 56, 1472, 1473, 4000, 60_000])
def test_ping(network: Network, target: str, size: int) -> None:
    """From an empty one to one of 42 fragments; the replies come from the address that was pinged."""
    address = getattr(network.addresses, target, target)
    out = ping(network, address, f"-s{size}")
    assert " 0% packet loss" in out
    assert out.count(f"bytes from {address}: icmp_seq=") == 3


def test_ping_shows_contents_unchanged(network: Network) -> None:
    """ping compares what comes back with what it sent, and would say so."""
    out = ping(network, PUBLIC, "-p", "00ff55aa", "-s1000")
    assert " 0% packet loss" in out
    assert "wrong data" not in out


def test_ping_unreachable_is_told(network: Network) -> None:
    out = ping(network, UNREACHABLE, check=False)
    assert "100% packet loss" in out
    assert "Destination Host Unreachable" in out


def test_ping_that_lives_one_hop_is_told_by_the_gateway(network: Network) -> None:
    out = ping(network, PUBLIC, "-t1", check=False)
    assert f"From {network.addresses.gateway} icmp_seq=1 Time to live exceeded" in out


@pytest.mark.guest("traceroute")
@pytest.mark.parametrize("method", ["--udp", "--icmp", "--tcp"])
def test_traceroute_shows_the_gateway_first(network: Network, method: str) -> None:
    options = ["--udp", "-p", "33434"] if method == "--udp" else [method]
    if method == "--tcp":
        options += ["-p", "80"]
    out = network.guest.run("traceroute", "-n", "-q1", "-w5", "-m4", *options, PUBLIC).stdout
    assert hops(out) == [network.addresses.gateway, PUBLIC]


@pytest.mark.guest("traceroute")
@pytest.mark.parametrize("method", ["-U", "-I"])
def test_traceroute_shows_the_routers_beyond(network: Network, method: str) -> None:
    """What lies behind the host answers with its own address: its time-exceeded is passed on as it came."""
    out = network.guest.run("traceroute", "-n", "-q1", "-w5", "-m6", method, FAR).stdout
    assert tuple(hops(out)) == FAR_PATH


def hops(out: str) -> list[str]:
    """The addresses traceroute printed, a hop each; `*` where nobody answered."""
    return re.findall(r"^ *\d+ +(\S+)", out, flags=re.MULTILINE)
