"""The one configuration model: what `netstack run` is told, checked once, as frozen values.

Every function that reads a value takes the `key` it came under (a command-line option today), so that an error can name
it. Rules and defaults for the addresses are gvproxy's: subnet 192.168.127.0/24, gateway first, guest second, host last.
The policy is read by `policy_config`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import unquote

from netstack.engine.settings import LinkTraits, NetworkSettings, Zone, ZoneRecord
from netstack.network_spec import NetworkSpec

if TYPE_CHECKING:
    from netstack.hooks import HookRunner

MIN_MTU: Final = 576
"""Bytes. Every IPv4 host takes such packets (RFC 791 section 3.1); DHCP messages grow to it (RFC 2131 section 2)."""
MAX_MTU: Final = 65_521
"""Bytes. With an Ethernet header this fills the 2-byte length of vpnkit and stdio; a Linux TAP takes no more either."""
DEFAULT_SUBNET: Final = "192.168.127.0/24"
DEFAULT_GUEST_MAC: Final = bytes.fromhex("5a94efe40cee")
"""gvproxy's users give their VM this address: it always gets the device IP."""
DEFAULT_ZONE_NAMES: Final = ("containers.internal", "docker.internal")
MAX_SOCKET_PATH: Final = 107
"""Bytes of a unix socket's path (sun_path holds 108, one is the end mark)."""
MAX_SEARCH_DOMAINS: Final = 6
MAX_SEARCH_TEXT: Final = 256
"""Characters: with the count above, what every resolver takes (resolv.conf(5)); it also bounds the DHCP option."""

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}", re.ASCII | re.IGNORECASE)
_ZONE_ITEM = re.compile(r"(?:/(?P<regexp>(?:[^/\\]|\\.)+)/|(?P<name>[^=,/]+))=(?P<address>[^,=]*)(?:,|$)")


class ConfigError(ValueError):
    """A setting that cannot be used. The message names the key, the value and what was expected instead."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key} {str(value)!r}: expected {expected}")
        self.key = key
        self.value = value
        self.expected = expected


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A socket bound in the file system."""

    path: Path


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A TCP listener on the host."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ListenLink:
    """Wait for guests at `endpoint`, speaking `protocol` (the frame format of that virtual machine monitor)."""

    protocol: Literal["vfkit", "qemu", "bess", "vpnkit"]
    endpoint: UnixEndpoint | TcpEndpoint


@dataclass(frozen=True, slots=True)
class StdioLink:
    """The guest is on standard input and output (2-byte little-endian lengths)."""


@dataclass(frozen=True, slots=True)
class FdLink:
    """The guest is on a socket inherited as this file descriptor; its type decides the frame format."""

    fd: int


@dataclass(frozen=True, slots=True)
class TapLink:
    """The guest is behind this TAP device, in network namespace `netns` (a name, a process id or a path) if given."""

    name: str
    netns: str | None = None


LinkSpec = ListenLink | StdioLink | FdLink | TapLink


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything `netstack run` needs to know."""

    network: NetworkSettings
    links: tuple[LinkSpec, ...]
    offload: bool = True
    """TAPs leave checksums and segmentation to the guest's kernel where it can do that."""
    dns_upstreams: tuple[str, ...] = ()
    """Resolvers to ask, in order, as ADDRESS:PORT ([ADDRESS]:PORT for IPv6); none: those of the host's resolv.conf."""
    capture: Path | None = None
    """pcapng file that every frame of every link is written to."""
    events: Path | Literal["-"] | None = None
    """File for one JSON object a line and event; "-" is standard output."""
    policy: NetworkSpec = field(default_factory=NetworkSpec)
    """What the guests may reach."""
    reload_policy: Callable[[], NetworkSpec] | None = None
    """Reads the policy's YAML file again; raises ConfigError. None where there is no file."""
    hooks: HookRunner | None = None
    """Code to be asked about flows and DNS questions."""
    ready_fd: int | None = None
    """File descriptor that gets a line once guests can attach; then it is closed."""
    log_level: str = "info"
    keep_source: bool = False
    """Guests see who a port forward's clients are, where that can be, and not the gateway."""


# -- single values ---------------------------------------------------------------------------------------------------


def parse_ipv4(text: str, key: str) -> bytes:
    """A dotted IPv4 address, packed. Raises ConfigError."""
    try:
        return ipaddress.IPv4Address(text.strip()).packed
    except ValueError:
        raise ConfigError(key, text, "an IPv4 address such as 192.168.127.1") from None


def parse_mac(text: str, key: str) -> bytes:
    """Six pairs of hexadecimal digits in any case, with colons or dashes; not a group address. Raises ConfigError."""
    stripped = text.strip()
    if not _MAC.fullmatch(stripped):
        raise ConfigError(key, text, "a MAC address such as 5a:94:ef:e4:0c:ee")
    mac = bytes.fromhex(stripped.replace(":", "").replace("-", ""))
    # IEEE 802-2014 section 8.2: the lowest bit of the first octet marks a group address, which no station has.
    if mac[0] & 1 or not any(mac):
        raise ConfigError(key, text, "the MAC address of one station, not a multicast, broadcast or all-zero address")
    return mac


def parse_mtu(value: int, key: str) -> int:
    """The largest IP packet on the guest's link, bytes. Raises ConfigError outside MIN_MTU..MAX_MTU."""
    if not MIN_MTU <= value <= MAX_MTU:
        raise ConfigError(key, value, f"a number of bytes from {MIN_MTU} to {MAX_MTU}")
    return value


def parse_seconds(value: float, key: str) -> float:
    """An idle time, 1 second to a day. Raises ConfigError."""
    if not 1 <= value <= 86_400:
        raise ConfigError(key, value, "seconds from 1 to 86400")
    return value


def parse_domain(text: str, key: str) -> str:
    """A DNS name, lower case and without its final dot. Raises ConfigError.

    Labels hold letters, digits, hyphens and underscores, 63 at most; 253 characters in all (RFC 1035 section 2.3.4).
    Other alphabets are written as A-labels (RFC 5890 section 2.3.2.1).
    """
    name = text.strip().lower().removesuffix(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ConfigError(key, text, "a DNS name such as containers.internal (other alphabets in xn-- form)")
    return name


def parse_dns_upstream(text: str, key: str) -> str:
    """A resolver: IPv4, IPv4:PORT, IPv6 or [IPv6]:PORT; the port is 53 unless given. Given back with its port.

    Raises ConfigError.
    """
    host, port_text = text.strip(), "53"
    bracketed = re.fullmatch(r"\[([^]]*)\](?::(\d+))?", host, re.ASCII)
    if bracketed:
        host, port_text = bracketed[1], bracketed[2] or port_text
    elif host.count(":") == 1:
        host, _, port_text = host.partition(":")
    expected = "the address of a resolver such as 9.9.9.9, 127.0.0.1:5353 or [::1]:53"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(key, text, expected) from None
    if address.is_multicast or address.is_unspecified:
        raise ConfigError(key, text, expected)
    shown = f"[{address}]" if address.version == 6 else str(address)
    return f"{shown}:{_port(port_text, text, key)}"


def _port(digits: str, value: str, key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", digits, re.ASCII) or not 1 <= int(digits) <= 65_535:
        raise ConfigError(key, value, "a port from 1 to 65535 at its end")
    return int(digits)


def parse_endpoint(text: str, key: str, schemes: Sequence[str]) -> UnixEndpoint | TcpEndpoint:
    """A URL as gvproxy writes them: `unixgram://PATH`, `unix://PATH`, `unixpacket://PATH`, `tcp://HOST:PORT`.

    Raises ConfigError for a scheme not among `schemes`, an empty or too long path, a port out of range.
    """
    forms = {scheme: "tcp://HOST:PORT" if scheme == "tcp" else f"{scheme}://PATH" for scheme in schemes}
    expected = " or ".join(forms.values())
    scheme, separator, rest = text.strip().partition("://")
    if not separator or scheme not in forms or not rest:
        raise ConfigError(key, text, expected)
    if scheme == "tcp":
        host, separator, port = rest.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not separator or not host:
            raise ConfigError(key, text, f"{expected} (0.0.0.0 as HOST means every address of this machine)")
        return TcpEndpoint(host, _port(port, text, key))
    path = unquote(rest)
    if len(path.encode("utf-8", "surrogateescape")) > MAX_SOCKET_PATH or "\0" in path:
        raise ConfigError(key, text, f"a socket path of at most {MAX_SOCKET_PATH} bytes")
    return UnixEndpoint(Path(path))


def parse_fd(value: int, key: str, *, least: int = 3) -> int:
    """A file descriptor number inherited from the parent process. Raises ConfigError below `least`."""
    if value < least:
        raise ConfigError(key, value, f"the number of an open file descriptor, {least} or more")
    return value


def parse_device_name(text: str, key: str) -> str:
    """A Linux network device's name: 1..15 bytes, no blank, slash or colon (dev_valid_name()). Raises ConfigError."""
    if not re.fullmatch(r"[^\s/:\0]{1,15}", text) or text in (".", "..") or len(text.encode()) > 15:
        raise ConfigError(key, text, "a network device's name of at most 15 characters such as tap0")
    return text


def link_specs(
    *,
    vfkit: Sequence[str] = (),
    qemu: Sequence[str] = (),
    bess: Sequence[str] = (),
    vpnkit: Sequence[str] = (),
    stdio: str | None = None,
    fds: Sequence[int] = (),
    taps: Sequence[str] = (),
    netns: str | None = None,
) -> tuple[LinkSpec, ...]:
    """The links that the link options ask for, one guest or listener each. Raises ConfigError, also for none at all."""
    specs: list[LinkSpec] = []
    for text in vfkit:
        specs.append(ListenLink("vfkit", parse_endpoint(text, "--listen-vfkit", ["unixgram"])))
    for text in qemu:
        specs.append(ListenLink("qemu", parse_endpoint(text, "--listen-qemu", ["unix", "tcp"])))
    for text in bess:
        specs.append(ListenLink("bess", parse_endpoint(text, "--listen-bess", ["unixpacket"])))
    for text in vpnkit:
        specs.append(ListenLink("vpnkit", parse_endpoint(text, "--listen-vpnkit", ["unix", "tcp"])))
    endpoints = [spec.endpoint for spec in specs if isinstance(spec, ListenLink)]
    for position, endpoint in enumerate(endpoints):
        if endpoint in endpoints[:position]:
            where = str(endpoint.path) if isinstance(endpoint, UnixEndpoint) else f"{endpoint.host}:{endpoint.port}"
            raise ConfigError("--listen-*", where, "an endpoint of its own for each listener")
    if stdio is not None:
        if stdio != "accept":
            raise ConfigError("--listen-stdio", stdio, "no value, or 'accept'")
        specs.append(StdioLink())
    specs.extend(FdLink(parse_fd(fd, "--fd")) for fd in dict.fromkeys(fds))
    if netns is not None and not taps:
        raise ConfigError("--netns", netns, "--tap with it: only a TAP is made inside a namespace")
    specs.extend(TapLink(parse_device_name(name, "--tap"), netns) for name in dict.fromkeys(taps))
    if not specs:
        raise ConfigError(
            "link",
            "none",
            "one of --listen-vfkit, --listen-qemu, --listen-bess, --listen-vpnkit, --listen-stdio, --fd or --tap",
        )
    return tuple(specs)


# -- the guest's network ---------------------------------------------------------------------------------------------


def parse_zone(text: str, key: str) -> Zone:
    """A local zone: `NAME:WHAT=IP,WHAT=IP,...`. Raises ConfigError.

    WHAT is the labels left of the zone (`host`, `a.b`), `@` for the zone's own name, `/REGEXP/` searched in those
    labels, or `*` for every name that nothing else matches. A WHAT that comes twice gives two addresses. Without any,
    no name of the zone exists.
    """
    expected = "NAME:WHAT=IP,... as in 'containers.internal:gateway=192.168.127.1,/^node-[0-9]+$/=10.0.0.9,*=10.0.0.1'"
    name, separator, items = text.partition(":")
    if not separator:
        raise ConfigError(key, text, expected)
    zone = parse_domain(name, key)
    records: list[ZoneRecord] = []
    default_ip: bytes | None = None
    position = 0
    while position < len(items):
        item = _ZONE_ITEM.match(items, position)
        if item is None:
            raise ConfigError(key, text, expected)
        position = item.end()
        address = parse_ipv4(item["address"], key)
        what = item["name"].strip() if item["name"] is not None else None
        if what is None:
            try:
                # DNS names are compared without case (RFC 4343).
                pattern = re.compile(item["regexp"].replace("\\/", "/"), re.IGNORECASE)
            except re.error as error:
                raise ConfigError(key, item["regexp"], f"a regular expression ({error})") from None
            records.append(ZoneRecord("", address, pattern))
        elif what == "*":
            if default_ip is not None:
                raise ConfigError(key, text, "'*' once in a zone")
            default_ip = address
        else:
            records.append(ZoneRecord("" if what == "@" else parse_domain(what, key), address))
    return Zone(zone, tuple(records), default_ip)


def parse_address_pair(text: str, key: str) -> tuple[bytes, bytes]:
    """A NAT entry, `IP=IP`: what the guest uses, and what is dialled. Raises ConfigError."""
    left, separator, right = text.partition("=")
    if not separator:
        raise ConfigError(key, text, "IP=IP as in 192.168.127.254=127.0.0.1")
    return parse_ipv4(left, key), parse_ipv4(right, key)


def parse_lease(text: str, key: str) -> tuple[bytes, bytes]:
    """A static lease, `MAC=IP`. Raises ConfigError."""
    left, separator, right = text.partition("=")
    if not separator:
        raise ConfigError(key, text, "MAC=IP as in 5a:94:ef:e4:0c:ee=192.168.127.2")
    return parse_mac(left, key), parse_ipv4(right, key)


def parse_subnet(text: str, key: str) -> ipaddress.IPv4Network:
    """The guest's subnet, /8 to /29; bits right of the prefix are masked off. Raises ConfigError."""
    try:
        network = ipaddress.IPv4Network(text.strip(), strict=False)
    except ValueError:
        raise ConfigError(key, text, f"an IPv4 network such as {DEFAULT_SUBNET}") from None
    if not 8 <= network.prefixlen <= 29:
        raise ConfigError(key, text, "a network from /8 to /29: gateway, guest and host need an address each")
    if (
        network.is_loopback
        or network.is_multicast
        or network.is_link_local
        or network.is_reserved
        or not network.network_address.packed[0]
    ):
        raise ConfigError(key, text, "a network of ordinary addresses, not loopback, link-local, multicast or reserved")
    return network


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
    network: ipaddress.IPv4Network, text: str | None, *, default: int, key: str, role: str, taken: dict[bytes, str]
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


def _nat_table(entries: Iterable[str], settings: NetworkSettings) -> dict[bytes, bytes]:
    key = "--nat"
    table = {settings.host_ip: bytes((127, 0, 0, 1))}
    given: set[bytes] = set()
    for text in entries:
        used, dialled = parse_address_pair(text, key)
        address = ipaddress.IPv4Address(used)
        if used in given:
            raise ConfigError(key, text, f"each address once; {address} has an entry already")
        if address.is_multicast or address.is_loopback or not used[0] or used in (settings.broadcast_ip, b"\xff" * 4):
            raise ConfigError(key, text, "an address on its left that a guest can send to: unicast, not loopback")
        if used in (settings.gateway_ip, settings.device_ip, settings.subnet):
            raise ConfigError(key, text, "on its left not the gateway, the guest or the subnet itself")
        target = ipaddress.IPv4Address(dialled)
        if target.is_multicast or target.is_unspecified or dialled == b"\xff" * 4:
            raise ConfigError(key, text, "an address on its right that this machine can dial")
        if settings.in_subnet(dialled):
            raise ConfigError(key, text, "an address on its right outside the guest's subnet: that is never dialled")
        given.add(used)
        table[used] = dialled
    return table


def _static_leases(entries: Iterable[str], settings: NetworkSettings) -> dict[bytes, bytes]:
    key = "--static-lease"
    leases: dict[bytes, bytes] = {}
    for text in entries:
        mac, address = parse_lease(text, key)
        if mac in leases or address in leases.values():
            raise ConfigError(key, text, "each MAC address and each IP address once")
        if not settings.in_subnet(address) or address in (settings.subnet, settings.broadcast_ip):
            raise ConfigError(key, text, "a usable address of the guest's subnet")
        if address == settings.gateway_ip or address in settings.virtual_ips:
            raise ConfigError(key, text, "an address that the gateway does not answer for itself")
        leases[mac] = address
    if DEFAULT_GUEST_MAC not in leases and settings.device_ip not in leases.values():
        leases[DEFAULT_GUEST_MAC] = settings.device_ip
    return leases


def network_settings(
    *,
    subnet: str = DEFAULT_SUBNET,
    gateway_ip: str | None = None,
    device_ip: str | None = None,
    host_ip: str | None = None,
    mtu: int = 1500,
    nat: Sequence[str] = (),
    zones: Sequence[str] = (),
    static_leases: Sequence[str] = (),
    search: Sequence[str] = (),
    udp_timeout: float = 180.0,
    udp_unreplied_timeout: float = 30.0,
    tcp_keepalive: float | None = None,
    metadata_access: bool = False,
) -> NetworkSettings:
    """The guest's network from the values of the options of the same names. Raises ConfigError.

    `nat` adds to the default entry (host IP -> 127.0.0.1) or replaces it; `zones` add to the default zones, a zone of
    the same name replaces the default one; `static_leases` add to the default one (DEFAULT_GUEST_MAC -> device IP),
    which gives way when its MAC or its address is named. NAT entries for addresses of the subnet become virtual IPs of
    the gateway.
    """
    network = parse_subnet(subnet, "--subnet")
    taken: dict[bytes, str] = {}
    gateway = _own_address(network, gateway_ip, default=1, key="--gateway-ip", role="gateway", taken=taken)
    device = _own_address(network, device_ip, default=2, key="--device-ip", role="guest", taken=taken)
    host = _own_address(network, host_ip, default=-2, key="--host-ip", role="host", taken=taken)
    own = {zone.name: zone for zone in default_zones(gateway, host)}
    given: set[str] = set()
    for text in zones:
        zone = parse_zone(text, "--zone")
        if zone.name in given:
            raise ConfigError("--zone", text, f"each zone once; {zone.name} was given before")
        given.add(zone.name)
        own[zone.name] = zone
    base = NetworkSettings(
        subnet=network.network_address.packed,
        prefix_length=network.prefixlen,
        gateway_ip=gateway,
        device_ip=device,
        host_ip=host,
        link=LinkTraits(mtu=parse_mtu(mtu, "--mtu")),
        search_domains=tuple(search),
        zones=tuple(own.values()),
        metadata_access=metadata_access,
        tcp_keepalive=inf if tcp_keepalive is None else parse_seconds(tcp_keepalive, "--tcp-keepalive"),
        udp_replied_timeout=parse_seconds(udp_timeout, "--udp-timeout"),
        udp_unreplied_timeout=parse_seconds(udp_unreplied_timeout, "--udp-unreplied-timeout"),
    )
    table = _nat_table(nat, base)
    base = replace(base, nat=table, virtual_ips=frozenset({host, *(used for used in table if base.in_subnet(used))}))
    return replace(base, static_leases=_static_leases(static_leases, base))
