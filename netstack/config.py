"""What a gateway is told, checked once, as frozen values: RunConfig, and the engine's settings in it.

The values come from options, from a YAML file (`configuration`) or from gvproxy's flags; `names` says what each is
called there, so that an error names it as its author knows it. Rules and defaults for the addresses are gvproxy's:
subnet 192.168.127.0/24, gateway first, guest second, host last.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from netstack.engine.settings import LinkTraits, NetworkSettings, Zone, ZoneRecord
from netstack.network_spec import NetworkSpec
from netstack.setting_values import (
    DEFAULT_BUSY_POLL,
    DEFAULT_SUBNET,
    STREAM_SCHEMES,
    ConfigError,
    Endpoint,
    ForwardProtocol,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
    parse_address_pair,
    parse_busy_poll,
    parse_device_name,
    parse_dns_upstream,
    parse_domain,
    parse_endpoint,
    parse_fd,
    parse_ipv4,
    parse_lease,
    parse_mac,
    parse_mtu,
    parse_seconds,
    parse_subnet,
    parse_window,
    parse_zone,
)

if TYPE_CHECKING:
    from netstack.hooks import HookRunner

__all__ = [
    "DEFAULT_BUSY_POLL",
    "DEFAULT_GUEST_MAC",
    "DEFAULT_SUBNET",
    "DEFAULT_VPNKIT_MACS",
    "DEFAULT_ZONE_NAMES",
    "STREAM_SCHEMES",
    "CaptureOptions",
    "ConfigError",
    "Endpoint",
    "FdLink",
    "ForwardSpec",
    "LinkSpec",
    "ListenLink",
    "LogFormat",
    "RunConfig",
    "Shaping",
    "SshForward",
    "StdioLink",
    "TapLink",
    "TcpEndpoint",
    "UnixEndpoint",
    "VsockEndpoint",
    "default_zones",
    "link_specs",
    "network_settings",
    "parse_busy_poll",
    "parse_dns_upstream",
    "parse_domain",
    "parse_endpoint",
    "parse_fd",
    "parse_ipv4",
    "parse_lease",
    "parse_mac",
    "parse_mtu",
    "parse_seconds",
    "parse_subnet",
    "parse_zone",
    "search_domains",
]

DEFAULT_GUEST_MAC: Final = bytes.fromhex("5a94efe40cee")
"""gvproxy's users give their VM this address: it always gets the device IP."""
DEFAULT_VPNKIT_MACS: Final[Mapping[str, bytes]] = {"c3d68012-0208-11ea-9fd7-f2189899ab08": DEFAULT_GUEST_MAC}
"""The UUID that vpnkit's users start their VM with, and the address gvproxy gives it."""
DEFAULT_ZONE_NAMES: Final = ("containers.internal", "docker.internal")
MAX_SEARCH_DOMAINS: Final = 6
MAX_SEARCH_TEXT: Final = 256
"""Characters: with the count above, what every resolver takes (resolv.conf(5)); it also bounds the DHCP option."""


@dataclass(frozen=True, slots=True)
class ListenLink:
    """Wait for guests at `endpoint`, speaking `protocol` (the frame format of that virtual machine monitor)."""

    protocol: Literal["vfkit", "qemu", "bess", "vpnkit"]
    endpoint: Endpoint


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


LogFormat = Literal["plain", "logrus", "json"]
"""How a message looks: `netstack: ...`, gvproxy's `time=... level=... msg=...`, or a JSON object."""


@dataclass(frozen=True, slots=True)
class ForwardSpec:
    """A port of the host that leads to the guest: `local` and `remote` as gvproxy's API writes them."""

    protocol: ForwardProtocol
    local: str
    remote: str


@dataclass(frozen=True, slots=True)
class SshForward:
    """A unix socket on the host that leads to one in the guest (`dest`, a path there), over SSH to the device IP."""

    socket: Path
    dest: str
    user: str
    identity: Path
    """File of the private key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """What of the frames is kept in the capture, and in how many files."""

    snaplen: int | None = None
    """Bytes of each frame that are written; None: all."""
    rotate_size: int | None = None
    """Bytes after which the next file begins; None: one file."""
    rotate_count: int | None = None
    """Files that are kept, the oldest goes; None: 10."""
    filter: str | None = None
    """Which frames, as an expression of `guest_iface.frame_filter`; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """Rates in kbit/s as the guest sees them, each link's own; None: not limited."""

    tx_kbps: float | None = None
    """What the guest sends."""
    rx_kbps: float | None = None
    """What the guest receives."""
    burst: int | None = None
    """Bytes that may go at once after a pause; None: what the rate carries in 25 ms."""
    links: tuple[tuple[str, Shaping], ...] = ()
    """Links with rates of their own: a name, or a pattern as in a shell, and its rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything `netstack run` needs to know."""

    network: NetworkSettings
    links: tuple[LinkSpec, ...]
    offload: bool = True
    """Guests may leave segmentation to us: a TAP's kernel where it can, others by frames beyond the MTU."""
    verify_checksums: bool | None = None
    """Whether the guests' checksums are looked at; None: where a link can damage bytes."""
    batch_calls: bool = True
    """Many frames go with one system call, where the platform has such calls and the link can use them."""
    busy_poll: float = DEFAULT_BUSY_POLL
    """Microseconds for which the next frame is waited for awake, at most: 0 to MAX_BUSY_POLL."""
    dns_upstreams: tuple[str, ...] = ()
    """Resolvers to ask, in order, as ADDRESS:PORT ([ADDRESS]:PORT for IPv6); none: those of the host's resolv.conf."""
    capture: Path | None = None
    """pcapng file that every frame of every link is written to."""
    capture_options: CaptureOptions = CaptureOptions()
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
    """debug, info, warning or error."""
    log_format: LogFormat = "plain"
    log_file: Path | None = None
    """Where messages go, emptied at the start; None is standard error."""
    pid_file: Path | None = None
    notification: Path | None = None
    """Listening unix socket that is told what happens: ready, guests that come and leave, links that fail."""
    api_listen: tuple[str, ...] = ()
    """Endpoints of the HTTP API, as URLs."""
    services: str | None = None
    """One more endpoint of it, without /connect."""
    api_token: str | None = None
    """What a caller of the API has to bear; None: whoever reaches the socket may call."""
    guest_api: bool = False
    """Guests may ask for forwards to themselves, at http://gateway:80."""
    forwards: tuple[ForwardSpec, ...] = ()
    ssh_forwards: tuple[SshForward, ...] = ()
    keep_source: bool = False
    """Forwards show the guest the client's own address where that can be kept."""
    vpnkit_macs: Mapping[str, bytes] = field(default_factory=lambda: DEFAULT_VPNKIT_MACS)
    """UUID of a virtual machine on vpnkit's link -> the MAC it is told."""
    shaping: Shaping | None = None
    """Rates of links; None: as fast as it goes."""
    notes: tuple[str, ...] = ()
    """What is to be said of the settings at the start, as warnings."""
    linger: float | None = None
    """Seconds after which it ends when the last guest has left a listener and none has come; None: it never does."""
    impair: tuple[str, ...] = ()
    """Impairments and faults to begin with, in the words of `netstack.impairments`."""

    @property
    def has_api(self) -> bool:
        """Whether the API is served to anybody."""
        return bool(self.api_listen or self.services or self.guest_api)


# -- links -------------------------------------------------------------------------------------------------------------


NO_NAMES: Final[Mapping[str, str]] = {}
_OPTION_NAMES: Final = {
    **{name: f"--listen-{name}" for name in ("vfkit", "qemu", "bess", "vpnkit", "stdio")},
    "fds": "--fd",
    "taps": "--tap",
    "zones": "--zone",
    "static_leases": "--static-lease",
    "dns_upstreams": "--dns-upstream",
}


def key_of(setting: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """What a setting is called where it was given: what `names` says, else its option."""
    return names.get(setting) or _OPTION_NAMES.get(setting) or "--" + setting.replace("_", "-")


def _written(endpoint: Endpoint) -> str:
    if isinstance(endpoint, UnixEndpoint):
        return str(endpoint.path)
    if isinstance(endpoint, VsockEndpoint):
        return f"{'' if endpoint.cid is None else endpoint.cid}:{endpoint.port}"
    return f"{endpoint.host}:{endpoint.port}"


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
    names: Mapping[str, str] = NO_NAMES,
) -> tuple[LinkSpec, ...]:
    """The links that the link options ask for, one guest or listener each. Raises ConfigError, also for none at all."""
    specs: list[LinkSpec] = []
    for text in vfkit:
        specs.append(ListenLink("vfkit", parse_endpoint(text, key_of("vfkit", names), ["unixgram"])))
    for text in qemu:
        specs.append(ListenLink("qemu", parse_endpoint(text, key_of("qemu", names), STREAM_SCHEMES)))
    for text in bess:
        specs.append(ListenLink("bess", parse_endpoint(text, key_of("bess", names), ["unixpacket"])))
    for text in vpnkit:
        specs.append(ListenLink("vpnkit", parse_endpoint(text, key_of("vpnkit", names), STREAM_SCHEMES)))
    endpoints = [spec.endpoint for spec in specs if isinstance(spec, ListenLink)]
    for position, endpoint in enumerate(endpoints):
        if endpoint in endpoints[:position]:
            raise ConfigError("--listen-*", _written(endpoint), "an endpoint of its own for each listener")
    if stdio is not None:
        if stdio != "accept":
            raise ConfigError(key_of("stdio", names), stdio, "no value, or 'accept'")
        specs.append(StdioLink())
    specs.extend(FdLink(parse_fd(fd, key_of("fds", names))) for fd in dict.fromkeys(fds))
    if netns is not None and not taps:
        raise ConfigError(key_of("netns", names), netns, "--tap with it: only a TAP is made inside a namespace")
    specs.extend(TapLink(parse_device_name(name, key_of("taps", names)), netns) for name in dict.fromkeys(taps))
    if not specs:
        raise ConfigError(
            "link",
            "none",
            "one of --listen-vfkit, --listen-qemu, --listen-bess, --listen-vpnkit, --listen-stdio, --fd or --tap",
        )
    return tuple(specs)


# -- the guest's network ---------------------------------------------------------------------------------------------


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
    entries: Iterable[str], settings: NetworkSettings, table: dict[bytes, bytes], key: str
) -> dict[bytes, bytes]:
    """`table` with the entries added."""
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


def _static_leases(entries: Iterable[str], settings: NetworkSettings, key: str) -> dict[bytes, bytes]:
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
    return leases


def _virtual_ips(addresses: Iterable[str], settings: NetworkSettings, key: str) -> set[bytes]:
    found = set()
    for text in addresses:
        address = parse_ipv4(text, key)
        if not settings.in_subnet(address) or address in (settings.subnet, settings.broadcast_ip):
            raise ConfigError(key, text, "a usable address of the guest's subnet: ARP is only heard there")
        if address == settings.device_ip:
            raise ConfigError(key, text, "an address other than the guest's own")
        found.add(address)
    return found


def _own_zones(zones: Iterable[str | Zone], default: tuple[Zone, ...], key: str) -> tuple[Zone, ...]:
    """The default zones and these; one of the same name takes a default one's place."""
    own = {zone.name: zone for zone in default}
    given: set[str] = set()
    for each in zones:
        zone = parse_zone(each, key) if isinstance(each, str) else each
        if zone.name in given:
            shown = each if isinstance(each, str) else zone.name
            raise ConfigError(key, shown, f"each zone once; {zone.name} was given before")
        given.add(zone.name)
        own[zone.name] = zone
    return tuple(own.values())


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
) -> NetworkSettings:
    """The guest's network from the values of the settings of these names. Raises ConfigError.

    `nat` adds to the table, or replaces an entry of it, which is `nat_table`, or host IP -> 127.0.0.1. NAT entries for
    addresses of the subnet are virtual IPs of the gateway, besides those of `virtual_ips` (the host IP). `zones` add to
    the default zones, a zone of the same name replaces the default one; `static_leases` add to the default one
    (DEFAULT_GUEST_MAC -> device IP), which gives way when its MAC or its address is named. Without `defaults` there are
    no default zones and no default lease.
    """
    network = parse_subnet(subnet, key_of("subnet", names))
    taken: dict[bytes, str] = {}
    gateway = _own_address(network, gateway_ip, 1, key=key_of("gateway_ip", names), role="gateway", taken=taken)
    device = _own_address(network, device_ip, 2, key=key_of("device_ip", names), role="guest", taken=taken)
    host = _own_address(network, host_ip, -2, key=key_of("host_ip", names), role="host", taken=taken)
    own_zones = _own_zones(zones, default_zones(gateway, host) if defaults else (), key_of("zones", names))
    base = NetworkSettings(
        subnet=network.network_address.packed,
        prefix_length=network.prefixlen,
        gateway_ip=gateway,
        device_ip=device,
        host_ip=host,
        link=LinkTraits(
            mtu=parse_mtu(mtu, key_of("mtu", names)),
            tcp_window=None if tcp_window is None else parse_window(tcp_window, key_of("tcp_window", names)),
        ),
        search_domains=tuple(search),
        zones=own_zones,
        metadata_access=metadata_access,
        tcp_keepalive=inf if tcp_keepalive is None else parse_seconds(tcp_keepalive, key_of("tcp_keepalive", names)),
        dial_timeout=parse_seconds(tcp_connect_timeout, key_of("tcp_connect_timeout", names)),
        udp_replied_timeout=parse_seconds(udp_timeout, key_of("udp_timeout", names)),
        udp_unreplied_timeout=parse_seconds(udp_unreplied_timeout, key_of("udp_unreplied_timeout", names)),
    )
    if gateway_mac is not None:
        base = replace(base, gateway_mac=parse_mac(gateway_mac, key_of("gateway_mac", names)))
    table = {host: bytes((127, 0, 0, 1))}
    if nat_table is not None:
        table = _nat_table(nat_table, base, {}, key_of("nat_table", names))
    table = _nat_table(nat, base, table, key_of("nat", names))
    own = {host} if virtual_ips is None else _virtual_ips(virtual_ips, base, key_of("virtual_ips", names))
    base = replace(base, nat=table, virtual_ips=frozenset({*own, *(used for used in table if base.in_subnet(used))}))
    leases = _static_leases(static_leases, base, key_of("static_leases", names))
    if defaults and DEFAULT_GUEST_MAC not in leases and device not in leases.values():
        leases[DEFAULT_GUEST_MAC] = device
    return replace(base, static_leases=leases)
