"""The guest's network out of its settings: addresses, zones, leases and NAT, checked together.

Rules and defaults are gvproxy's: subnet 192.168.127.0/24, gateway first, guest second, host last.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Final, TypeVar

from netstack.engine.settings import LinkTraits, NetworkSettings, Zone, ZoneRecord
from netstack.setting_values import (
    DEFAULT_SUBNET,
    NO_NAMES,
    ConfigError,
    Wrong,
    at_once,
    key_of,
    noted,
    parse_address_pair,
    parse_domain,
    parse_ipv4,
    parse_lease,
    parse_mac,
    parse_mtu,
    parse_seconds,
    parse_subnet,
    parse_window,
    parse_zone,
)

_Out = TypeVar("_Out")
_Rest = TypeVar("_Rest")

DEFAULT_GUEST_MAC: Final = bytes.fromhex("5a94efe40cee")
"""gvproxy's users give their VM this address: it always gets the device IP."""
DEFAULT_ZONE_NAMES: Final = ("containers.internal", "docker.internal")
MAX_SEARCH_DOMAINS: Final = 6
MAX_SEARCH_TEXT: Final = 256
"""Characters: with the count above, what every resolver takes (resolv.conf(5)); it also bounds the DHCP option."""


def search_domains(resolv_conf: str) -> tuple[str, ...]:
    """The host's search list out of the text of its resolv.conf(5), where the last `search` or `domain` line counts.

    What is not a DNS name is left out; at most MAX_SEARCH_DOMAINS and MAX_SEARCH_TEXT characters are kept.
    """
    words: list[str] = []
    for line in resolv_conf.splitlines():
        keyword, *rest = line.split() or [""]
        if keyword in ("search", "domain"):
            words = rest if keyword == "search" else rest[:1]
    names: list[str] = []
    for word in words:
        try:
            name = parse_domain(word, "search")
        except ConfigError:
            continue
        if len(names) == MAX_SEARCH_DOMAINS or sum(map(len, names)) + len(names) + len(name) > MAX_SEARCH_TEXT:
            break
        names.append(name)
    return tuple(names)


def default_zones(gateway_ip: bytes, host_ip: bytes) -> tuple[Zone, ...]:
    """containers.internal and docker.internal, each with `gateway` and `host`, as gvproxy answers them."""
    records = (ZoneRecord("gateway", gateway_ip), ZoneRecord("host", host_ip))
    return tuple(Zone(name, records) for name in DEFAULT_ZONE_NAMES)


def _dotted(address: bytes) -> str:
    return str(ipaddress.IPv4Address(address))


def _own_address(
    network: ipaddress.IPv4Network, text: str | None, default: int, *, key: str, role: str, taken: dict[bytes, str]
) -> bytes:
    """One of the three addresses with a role in the subnet: usable there, and not `taken` by another role before."""
    address = network[default].packed if text is None else parse_ipv4(text, key)
    shown = _dotted(address)
    if ipaddress.IPv4Address(address) not in network or address in (network[0].packed, network[-1].packed):
        raise ConfigError(key, shown, f"a usable address of {network}: {network[1]} to {network[-2]}")
    if address in taken:
        raise ConfigError(key, shown, f"an address of the {role}'s own; this one is the {taken[address]}'s")
    taken[address] = role
    return address


def _nat_table(
    entries: Iterable[str], settings: NetworkSettings, table: dict[bytes, bytes], key: str, wrong: Wrong
) -> dict[bytes, bytes]:
    """`table` with the entries added."""
    given: set[bytes] = set()
    for text in entries:
        with noted(wrong):
            used, dialled = parse_address_pair(text, key)
            address = ipaddress.IPv4Address(used)
            if used in given:
                raise ConfigError(key, text, f"each address once; {address} has an entry already")
            if (
                address.is_multicast
                or address.is_loopback
                or not used[0]
                or used in (settings.broadcast_ip, b"\xff" * 4)
            ):
                raise ConfigError(key, text, "an address on its left that a guest can send to: unicast, not loopback")
            if used in (settings.gateway_ip, settings.device_ip, settings.subnet):
                raise ConfigError(key, text, "on its left not the gateway, the guest or the subnet itself")
            target = ipaddress.IPv4Address(dialled)
            if target.is_multicast or target.is_unspecified or dialled == b"\xff" * 4:
                raise ConfigError(key, text, "an address on its right that this machine can dial")
            if settings.in_subnet(dialled):
                raise ConfigError(
                    key, text, "an address on its right outside the guest's subnet: that is never dialled"
                )
            given.add(used)
            table[used] = dialled
    return table


def _static_leases(entries: Iterable[str], settings: NetworkSettings, key: str, wrong: Wrong) -> dict[bytes, bytes]:
    leases: dict[bytes, bytes] = {}
    for text in entries:
        with noted(wrong):
            mac, address = parse_lease(text, key)
            if mac in leases or address in leases.values():
                raise ConfigError(key, text, "each MAC address and each IP address once")
            if not settings.in_subnet(address) or address in (settings.subnet, settings.broadcast_ip):
                raise ConfigError(key, text, "a usable address of the guest's subnet")
            if address == settings.gateway_ip or address in settings.virtual_ips:
                raise ConfigError(key, text, "an address that the gateway does not answer for itself")
            leases[mac] = address
    return leases


def _virtual_ips(addresses: Iterable[str], settings: NetworkSettings, key: str, wrong: Wrong) -> set[bytes]:
    found = set()
    for text in addresses:
        with noted(wrong):
            address = parse_ipv4(text, key)
            if not settings.in_subnet(address) or address in (settings.subnet, settings.broadcast_ip):
                raise ConfigError(key, text, "a usable address of the guest's subnet: ARP is only heard there")
            if address == settings.device_ip:
                raise ConfigError(key, text, "an address other than the guest's own")
            found.add(address)
    return found


def _own_zones(zones: Iterable[str | Zone], default: tuple[Zone, ...], key: str, wrong: Wrong) -> tuple[Zone, ...]:
    """The default zones and these; one of the same name takes a default one's place."""
    own = {zone.name: zone for zone in default}
    given: set[str] = set()
    for each in zones:
        with noted(wrong):
            zone = parse_zone(each, key) if isinstance(each, str) else each
            if zone.name in given:
                shown = each if isinstance(each, str) else zone.name
                raise ConfigError(key, shown, f"each zone once; {zone.name} was given before")
            given.add(zone.name)
            own[zone.name] = zone
    return tuple(own.values())


def _addresses(
    subnet: str,
    gateway_ip: str | None,
    device_ip: str | None,
    host_ip: str | None,
    names: Mapping[str, str],
    wrong: Wrong,
) -> tuple[NetworkSettings, bool]:
    """The subnet and the three addresses with a role in it, and whether they can be."""
    base = NetworkSettings()
    try:
        network = parse_subnet(subnet, key_of("subnet", names))
    except ConfigError as error:
        wrong(error)
        return base, False
    taken: dict[bytes, str] = {}
    found: dict[str, bytes] = {}
    for setting, text, default, role in (
        ("gateway_ip", gateway_ip, 1, "gateway"),
        ("device_ip", device_ip, 2, "guest"),
        ("host_ip", host_ip, -2, "host"),
    ):
        with noted(wrong):
            found[setting] = _own_address(network, text, default, key=key_of(setting, names), role=role, taken=taken)
    if len(found) < 3:
        return base, False
    made = replace(
        base,
        subnet=network.network_address.packed,
        prefix_length=network.prefixlen,
        gateway_ip=found["gateway_ip"],
        device_ip=found["device_ip"],
        host_ip=found["host_ip"],
    )
    return made, True


def network_settings(
    *,
    subnet: str = DEFAULT_SUBNET,
    gateway_ip: str | None = None,
    device_ip: str | None = None,
    host_ip: str | None = None,
    gateway_mac: str | None = None,
    mtu: int = 1500,
    nat: Sequence[str] = (),
    nat_table: Sequence[str] | None = None,
    virtual_ips: Sequence[str] | None = None,
    zones: Sequence[str | Zone] = (),
    static_leases: Sequence[str] = (),
    search: Sequence[str] = (),
    udp_timeout: float = 180.0,
    udp_unreplied_timeout: float = 30.0,
    tcp_keepalive: float | None = None,
    tcp_connect_timeout: float = 30.0,
    metadata_access: bool = False,
    tcp_window: int | str | None = None,
    defaults: bool = True,
    names: Mapping[str, str] = NO_NAMES,
    wrong: Wrong = at_once,
) -> NetworkSettings:
    """The guest's network from the values of the settings of these names.

    What cannot be is told to `wrong`, which raises it by default; else what is given back is of no use.

    `nat` adds to the table, or replaces an entry of it, which is `nat_table`, or host IP -> 127.0.0.1. NAT entries for
    addresses of the subnet are virtual IPs of the gateway, besides those of `virtual_ips` (the host IP). `zones` add to
    the default zones, a zone of the same name replaces the default one; `static_leases` add to the default one
    (DEFAULT_GUEST_MAC -> device IP), which gives way when its MAC or its address is named. Without `defaults` there are
    no default zones and no default lease.
    """
    base, sound = _addresses(subnet, gateway_ip, device_ip, host_ip, names, wrong)
    gateway, device, host = base.gateway_ip, base.device_ip, base.host_ip

    def checked(parse: Callable[[Any, str], _Out], value: object, setting: str, default: _Rest) -> _Out | _Rest:
        if value is not None:
            try:
                return parse(value, key_of(setting, names))
            except ConfigError as error:
                wrong(error)
        return default

    own_zones = _own_zones(zones, default_zones(gateway, host) if defaults else (), key_of("zones", names), wrong)
    base = replace(
        base,
        link=LinkTraits(
            mtu=checked(parse_mtu, mtu, "mtu", 1500), tcp_window=checked(parse_window, tcp_window, "tcp_window", None)
        ),
        gateway_mac=checked(parse_mac, gateway_mac, "gateway_mac", base.gateway_mac),
        search_domains=tuple(search),
        zones=own_zones,
        metadata_access=metadata_access,
        tcp_keepalive=checked(parse_seconds, tcp_keepalive, "tcp_keepalive", inf),
        dial_timeout=checked(parse_seconds, tcp_connect_timeout, "tcp_connect_timeout", base.dial_timeout),
        udp_replied_timeout=checked(parse_seconds, udp_timeout, "udp_timeout", base.udp_replied_timeout),
        udp_unreplied_timeout=checked(
            parse_seconds, udp_unreplied_timeout, "udp_unreplied_timeout", base.udp_unreplied_timeout
        ),
    )
    if not sound:
        return base  # what lies in the subnet cannot be judged
    table = {host: bytes((127, 0, 0, 1))}
    if nat_table is not None:
        table = _nat_table(nat_table, base, {}, key_of("nat_table", names), wrong)
    table = _nat_table(nat, base, table, key_of("nat", names), wrong)
    own = {host} if virtual_ips is None else _virtual_ips(virtual_ips, base, key_of("virtual_ips", names), wrong)
    base = replace(base, nat=table, virtual_ips=frozenset({*own, *(used for used in table if base.in_subnet(used))}))
    leases = _static_leases(static_leases, base, key_of("static_leases", names), wrong)
    if defaults and DEFAULT_GUEST_MAC not in leases and device not in leases.values():
        leases[DEFAULT_GUEST_MAC] = device
    return replace(base, static_leases=leases)
