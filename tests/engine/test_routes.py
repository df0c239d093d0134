"""Where each destination leads: every kind of address, both ways of the metadata switch, NAT before everything else."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.routes import FORBIDDEN, GROUP, MAX_REMEMBERED, OUT, OWN, UNUSED, Route, Routes
from netstack.engine.settings import NetworkSettings

from .wire_guest import ip, network

KINDS = {OWN: "own", OUT: "out", UNUSED: "unused", FORBIDDEN: "forbidden", GROUP: "group"}


def kind(address: str, settings: NetworkSettings | None = None) -> str:
    return KINDS[Routes(settings or network()).lookup(ip(address)).kind]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.168.127.1", "own"),
        ("192.168.127.2", "unused"),
        ("192.168.127.0", "unused"),
        ("192.168.127.77", "unused"),
        ("192.168.127.253", "unused"),
        ("192.168.127.255", "group"),
        ("255.255.255.255", "group"),
        ("224.0.0.0", "group"),
        ("239.255.255.255", "group"),
        ("223.255.255.255", "out"),
        ("240.0.0.0", "forbidden"),
        ("255.255.255.254", "forbidden"),
        ("0.0.0.0", "forbidden"),
        ("0.255.255.255", "forbidden"),
        ("1.0.0.0", "out"),
        ("127.0.0.1", "forbidden"),
        ("127.255.255.255", "forbidden"),
        ("126.255.255.255", "out"),
        ("128.0.0.0", "out"),
        ("169.254.169.254", "forbidden"),
        ("169.254.0.0", "forbidden"),
        ("169.254.255.255", "forbidden"),
        ("169.253.255.255", "out"),
        ("169.255.0.0", "out"),
        ("192.168.126.255", "out"),
        ("192.168.128.0", "out"),
        ("10.0.0.1", "out"),
        ("203.0.113.5", "out"),
    ],
)
def test_each_kind_of_address(address: str, expected: str) -> None:
    assert kind(address) == expected


def test_the_host_alias_is_dialled_at_the_loopback() -> None:
    assert Routes(network()).lookup(ip("192.168.127.254")) == Route(OUT, ip("127.0.0.1"))


def test_a_virtual_ip_without_nat_is_the_gateways_own() -> None:
    settings = network(virtual_ips=frozenset({ip("192.168.127.254"), ip("192.168.127.9")}))
    assert kind("192.168.127.9", settings) == "own"
    assert kind("192.168.127.254", settings) == "out"


def test_nat_goes_before_every_other_rule() -> None:
    """Also for addresses that are forbidden, unused or outside of the subnet."""
    wanted = {ip("169.254.1.1"): ip("10.1.1.1"), ip("192.168.127.9"): ip("10.2.2.2"), ip("8.8.8.8"): ip("9.9.9.9")}
    routes = Routes(network(nat=wanted))
    for address, dialled in wanted.items():
        assert routes.lookup(address) == Route(OUT, dialled)
    assert routes.lookup(ip("192.168.127.254")).kind == OWN  # a virtual IP, and no NAT for it any more


def test_what_nat_leads_to_is_not_judged_again() -> None:
    """127.0.0.1 is forbidden when the guest names it, and where the alias leads."""
    routes = Routes(network())
    assert routes.lookup(ip("127.0.0.1")).kind == FORBIDDEN
    assert routes.lookup(ip("192.168.127.254")).dialled == ip("127.0.0.1")


def test_metadata_access_opens_link_local_only() -> None:
    settings = network(metadata_access=True)
    assert kind("169.254.169.254", settings) == "out"
    assert kind("127.0.0.1", settings) == "forbidden"
    assert kind("240.0.0.1", settings) == "forbidden"


def test_a_larger_subnet() -> None:
    settings = network(
        subnet=ip("10.0.0.0"), prefix_length=16, gateway_ip=ip("10.0.0.1"), device_ip=ip("10.0.0.2"),
        host_ip=ip("10.0.255.254"), nat={}, virtual_ips=frozenset(),
    )  # fmt: skip
    addresses = ("10.0.0.1", "10.0.0.255", "10.0.255.254", "10.0.255.255", "10.1.0.0")
    assert [kind(address, settings) for address in addresses] == ["own", "unused", "unused", "group", "out"]


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_nothing_of_the_subnet_nor_reserved_is_ever_dialled(number: int, metadata: bool) -> None:
    """Against Python's own idea of what an address is for."""
    address = ipaddress.IPv4Address(number)
    route = Routes(network(metadata_access=metadata)).lookup(address.packed)
    inside = address in ipaddress.IPv4Network("192.168.127.0/24")
    if route.kind != OUT:
        assert route.dialled == address.packed
        return
    if inside:
        assert (str(address), route.dialled) == ("192.168.127.254", ip("127.0.0.1"))
        return
    assert route.dialled == address.packed
    assert not address.is_loopback
    assert not address.is_multicast
    assert 1 << 24 <= number < 240 << 24
    assert metadata or not address.is_link_local


def test_more_destinations_than_are_remembered() -> None:
    """Each is where it was, asked again or for the first time."""
    routes, settings = Routes(network()), network()
    places = [bytes((first, 0, low // 256, low % 256)) for first in (1, 127) for low in range(MAX_REMEMBERED)]
    for _ in range(2):
        for place in [*places, *reversed(places)]:
            assert routes.lookup(place) == Routes(settings).lookup(place)
