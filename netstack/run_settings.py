"""RunSettings: what was asked for by one door (options, a file, gvproxy's flags), before it is checked together.

Doors are laid over each other with `over`, and `run_config` makes of the result the one RunConfig there is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from netstack import config
from netstack.config import CaptureOptions, ConfigError, ForwardSpec, LogFormat, Shaping, SshForward
from netstack.engine.settings import Zone
from netstack.network_spec import NetworkSpec
from netstack.setting_values import ForwardProtocol, Wrong, at_once, noted, parse_forward_ends

if TYPE_CHECKING:
    from netstack.hooks import HookRunner

LOG_LEVELS: Final = {
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "fatal": "error",
    "panic": "error",
}
"""The words for how much is said, gvproxy's among them, and what they mean here."""
MAX_FORWARDS: Final = 1024
"""Forwards and SSH forwards, each, that a start may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Values as they were written. None: nothing was said, and the default is for `run_config` to know."""

    # The guest's network: the arguments of config.network_settings.
    subnet: str | None = None
    gateway_ip: str | None = None
    device_ip: str | None = None
    host_ip: str | None = None
    gateway_mac: str | None = None
    mtu: int | None = None
    nat: tuple[str, ...] | None = None
    nat_table: tuple[str, ...] | None = None
    virtual_ips: tuple[str, ...] | None = None
    zones: tuple[str | Zone, ...] | None = None
    static_leases: tuple[str, ...] | None = None
    search: tuple[str, ...] | None = None
    udp_timeout: float | None = None
    udp_unreplied_timeout: float | None = None
    tcp_keepalive: float | None = None
    tcp_connect_timeout: float | None = None
    metadata_access: bool | None = None
    tcp_window: int | str | None = None
    # Links: those of config.link_specs.
    vfkit: tuple[str, ...] | None = None
    qemu: tuple[str, ...] | None = None
    bess: tuple[str, ...] | None = None
    vpnkit: tuple[str, ...] | None = None
    stdio: str | None = None
    fds: tuple[int, ...] | None = None
    taps: tuple[str, ...] | None = None
    netns: str | None = None
    # The rest has the names of RunConfig's fields.
    vpnkit_macs: Mapping[str, str] | None = None
    offload: bool | None = None
    verify_checksums: Literal["auto", "on", "off"] | None = None
    batch_calls: bool | None = None
    busy_poll: float | None = None
    dns_upstreams: tuple[str, ...] | None = None
    events: str | None = None
    capture: Path | None = None
    capture_options: CaptureOptions | None = None
    log_level: str | None = None
    log_format: LogFormat | None = None
    log_file: Path | None = None
    pid_file: Path | None = None
    notification: Path | None = None
    api_listen: tuple[str, ...] | None = None
    services: str | None = None
    api_token: str | None = None
    guest_api: bool | None = None
    forwards: tuple[ForwardSpec, ...] | None = None
    ssh_forwards: tuple[SshForward, ...] | None = None
    keep_source: bool | None = None
    shaping: Shaping | None = None
    impair: tuple[Any, ...] | None = None
    """Texts, or mappings of words."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What a field is called where it was given; without an entry, as the option of `netstack run`."""

    def over(self, below: RunSettings) -> RunSettings:
        """These where they say something, else those of `below`."""
        said = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}
        del said["names"]
        hidden = set(said)
        if "nat" in said:
            hidden.add("nat_table")  # an option's entries stand beside the default, not beside a file's table
            below = replace(below, nat_table=None)
        names = {key: name for key, name in below.names.items() if key not in hidden}
        names |= {key: name for key, name in self.names.items() if key in said}
        return replace(below, **said, names=names)

    def without_attachments(self) -> tuple[RunSettings, list[str]]:
        """Without links and what is for a process that stands by itself; what was left out, as it is called."""
        names = [name for name in (*_LINKS, "pid_file", "notification") if getattr(self, name) is not None]
        nothing: dict[str, Any] = dict.fromkeys(names)
        return replace(self, **nothing), [self.key(name) for name in names]

    def key(self, setting: str) -> str:
        """What a setting is called where it was given."""
        return config.key_of(setting, self.names)


_NETWORK: Final = (
    "subnet",
    "gateway_ip",
    "device_ip",
    "host_ip",
    "gateway_mac",
    "mtu",
    "nat",
    "nat_table",
    "virtual_ips",
    "zones",
    "static_leases",
    "search",
    "udp_timeout",
    "udp_unreplied_timeout",
    "tcp_keepalive",
    "tcp_connect_timeout",
    "metadata_access",
    "tcp_window",
)
_LINKS: Final = ("vfkit", "qemu", "bess", "vpnkit", "stdio", "fds", "taps", "netns")
_AS_THEY_ARE: Final = (
    "capture",
    "log_format",
    "log_file",
    "pid_file",
    "notification",
    "api_listen",
    "services",
    "api_token",
    "guest_api",
    "forwards",
    "ssh_forwards",
    "keep_source",
)


def _said(settings: RunSettings, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(settings, name)) is not None}


def run_config(
    settings: RunSettings,
    *,
    links: bool = True,
    defaults: bool = True,
    policy: NetworkSpec | None = None,
    reload_policy: Callable[[], NetworkSpec] | None = None,
    hooks: HookRunner | None = None,
    ready_fd: int | None = None,
    notes: Sequence[str] = (),
    wrong: Wrong = at_once,
) -> config.RunConfig:
    """The checked whole. What cannot be is told to `wrong`, which raises it by default; else the whole is of no use.

    `links`: one is needed, unless the API is served, where guests can attach. `defaults`: default zones, the default
    lease and vpnkit's default UUID are there besides what the settings say, and the search domains are the host's
    unless they say others; gvproxy with a file has none of these. `notes` are warnings to be said at the start.
    """
    names = settings.names
    search = settings.search
    if search is None:
        search = _host_search_domains() if defaults else ()
    network = config.network_settings(
        **{**_said(settings, _NETWORK), "search": search}, defaults=defaults, names=names, wrong=wrong
    )
    asked_links = _said(settings, _LINKS)
    specs: tuple[config.LinkSpec, ...] = ()
    if asked_links or (links and not settings.api_listen):
        specs = config.link_specs(**asked_links, names=names, wrong=wrong)
    if settings.events == "-" and config.StdioLink() in specs:
        wrong(ConfigError(settings.key("events"), "-", "a file: standard output carries the guest's frames"))
    for setting in ("forwards", "ssh_forwards"):
        if len(getattr(settings, setting) or ()) > MAX_FORWARDS:
            wrong(ConfigError(settings.key(setting), "more", f"at most {MAX_FORWARDS}"))
    for setting, urls in (("api_listen", settings.api_listen or ()), ("services", (settings.services,))):
        for url in filter(None, urls):
            with noted(wrong):
                config.parse_endpoint(url, settings.key(setting), config.STREAM_SCHEMES)
    for each in settings.ssh_forwards or ():
        if not os.access(each.identity, os.R_OK):
            key = settings.key("ssh_forwards")
            wrong(ConfigError(key, each.identity, "a readable file with the private key of the identity"))
    macs = dict(config.DEFAULT_VPNKIT_MACS) if defaults else {}
    for uuid, mac in (settings.vpnkit_macs or {}).items():
        with noted(wrong):
            macs[uuid.lower()] = config.parse_mac(mac, settings.key("vpnkit_macs"))
    upstreams: list[str] = []
    for text in settings.dns_upstreams or ():
        with noted(wrong):
            upstreams.append(config.parse_dns_upstream(text, settings.key("dns_upstreams")))
    busy_poll: float = config.DEFAULT_BUSY_POLL
    if settings.busy_poll is not None:
        with noted(wrong):
            busy_poll = config.parse_busy_poll(settings.busy_poll, settings.key("busy_poll"))
    level = "info"
    with noted(wrong):
        level = log_level(settings.log_level or "info", settings.key("log_level"))
    return config.RunConfig(
        network=network,
        links=specs,
        offload=settings.offload is not False,
        verify_checksums={"on": True, "off": False}.get(settings.verify_checksums or "auto"),
        batch_calls=settings.batch_calls is not False,
        busy_poll=busy_poll,
        dns_upstreams=tuple(upstreams),
        events=_events(settings.events),
        log_level=level,
        vpnkit_macs=macs,
        policy=policy or NetworkSpec(),
        reload_policy=reload_policy,
        hooks=hooks,
        notes=(*notes, *_partial_checksums(settings, specs)),
        ready_fd=None if ready_fd is None else config.parse_fd(ready_fd, "--ready-fd", least=1),
        **_said(settings, _AS_THEY_ARE),
        **_wires(settings, wrong),
    )


def _partial_checksums(settings: RunSettings, specs: Sequence[config.LinkSpec]) -> list[str]:
    """What to say where checksums are verified that may be partial, unsaid: a TAP's header says it, sockets do not."""
    if settings.verify_checksums != "on" or all(isinstance(spec, config.TapLink) for spec in specs):
        return []
    return [
        f"{settings.key('verify_checksums')} on: a guest on a socket has to complete its checksums itself; of one that"
        " leaves that to its card (libkrun with CSUM) every packet is dropped, counted as tcp-checksum or udp-checksum"
    ]


def _wires(settings: RunSettings, wrong: Wrong) -> dict[str, Any]:
    """Captures, limits and impairments, checked. Their modules are imported where there are any."""
    found: dict[str, Any] = {}
    if settings.capture_options is not None:
        from netstack.wire_options import capture_keys, check_capture

        check_capture(settings.capture_options, capture_keys(settings.names.get("capture_options")), wrong)
        if settings.capture is None:
            wrong(ConfigError(settings.key("capture"), "none", "a file, with what is to be kept of the frames"))
        found["capture_options"] = settings.capture_options
    if settings.shaping is not None:
        from netstack.wire_options import check_shaping

        check_shaping(settings.shaping, settings.names.get("shaping"), wrong)
        found["shaping"] = settings.shaping
    if settings.impair is not None:
        from netstack.wire_options import checked_impairments

        with noted(wrong):
            found["impair"] = checked_impairments(settings.impair, settings.key("impair"))
    return found


def _events(target: str | None) -> Path | Literal["-"] | None:
    if target == "-":
        return "-"
    return Path(target) if target else None


def log_level(text: str, key: str) -> str:
    """One of debug, info, warning and error, for a word of LOG_LEVELS in any case. Raises ConfigError."""
    level = LOG_LEVELS.get(text.strip().lower())
    if level is None:
        raise ConfigError(key, text, f"one of {', '.join(LOG_LEVELS)}")
    return level


def _host_search_domains() -> tuple[str, ...]:
    try:
        resolv_conf = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return config.search_domains(resolv_conf)


def read_token(path: Path, key: str) -> str:
    """The bearer token in a file, without the blanks around it. Raises ConfigError."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(key, path, f"a readable file that holds the token ({error})") from error
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(key, path, "a file that holds one token of printable characters without blanks")
    return token


def parse_forward_option(text: str, key: str) -> tuple[ForwardProtocol, str, str]:
    """`[udp:|unix:]LOCAL=REMOTE`: protocol, local and remote end. Raises ConfigError."""
    local, separator, remote = text.partition("=")
    if not separator:
        raise ConfigError(key, text, "LOCAL=IP:PORT as in 127.0.0.1:2222=192.168.127.2:22")
    return parse_forward_ends(local, remote, key)
