"""What a gateway is told, checked once, as frozen values: RunConfig, and the engine's settings in it.

The values come from options, from a YAML file (`configuration`) or from gvproxy's flags; `names` says what each is
called there, so that an error names it as its author knows it. Rules and defaults for the addresses are gvproxy's:
subnet 192.168.127.0/24, gateway first, guest second, host last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from netstack.engine.settings import NetworkSettings
from netstack.guest_network import (
    DEFAULT_GUEST_MAC,
    DEFAULT_ZONE_NAMES,
    default_zones,
    network_settings,
    search_domains,
)
from netstack.network_spec import NetworkSpec
from netstack.setting_values import (
    DEFAULT_BUSY_POLL,
    DEFAULT_SUBNET,
    NO_NAMES,
    STREAM_SCHEMES,
    ConfigError,
    Endpoint,
    ForwardProtocol,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
    Wrong,
    at_once,
    key_of,
    noted,
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
    "key_of",
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

DEFAULT_VPNKIT_MACS: Final[Mapping[str, bytes]] = {"c3d68012-0208-11ea-9fd7-f2189899ab08": DEFAULT_GUEST_MAC}
"""The UUID that vpnkit's users start their VM with, and the address gvproxy gives it."""


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
    wrong: Wrong = at_once,
) -> tuple[LinkSpec, ...]:
    """The links that the link options ask for, one guest or listener each.

    What cannot be is told to `wrong`, also if there is none at all: by default it is raised.
    """
    specs: list[LinkSpec] = []
    listeners: tuple[tuple[Literal["vfkit", "qemu", "bess", "vpnkit"], Sequence[str], Sequence[str]], ...] = (
        ("vfkit", vfkit, ["unixgram"]),
        ("qemu", qemu, STREAM_SCHEMES),
        ("bess", bess, ["unixpacket"]),
        ("vpnkit", vpnkit, STREAM_SCHEMES),
    )
    for protocol, texts, schemes in listeners:
        for text in texts:
            with noted(wrong):
                specs.append(ListenLink(protocol, parse_endpoint(text, key_of(protocol, names), schemes)))
    endpoints = [spec.endpoint for spec in specs if isinstance(spec, ListenLink)]
    for position, endpoint in enumerate(endpoints):
        if endpoint in endpoints[:position]:
            wrong(ConfigError("--listen-*", _written(endpoint), "an endpoint of its own for each listener"))
    if stdio is not None:
        if stdio != "accept":
            wrong(ConfigError(key_of("stdio", names), stdio, "no value, or 'accept'"))
        specs.append(StdioLink())
    for fd in dict.fromkeys(fds):
        with noted(wrong):
            specs.append(FdLink(parse_fd(fd, key_of("fds", names))))
    if netns is not None and not taps:
        wrong(ConfigError(key_of("netns", names), netns, "--tap with it: only a TAP is made inside a namespace"))
    for name in dict.fromkeys(taps):
        with noted(wrong):
            specs.append(TapLink(parse_device_name(name, key_of("taps", names)), netns))
    if not specs and not any((vfkit, qemu, bess, vpnkit, fds, taps)):
        known = "one of --listen-vfkit, --listen-qemu, --listen-bess, --listen-vpnkit, --listen-stdio, --fd or --tap"
        wrong(ConfigError("link", "none", known))
    return tuple(specs)
