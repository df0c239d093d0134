"""gvproxy's flags and file made into the one RunConfig: its defaults, its precedence, and its words for errors.

Without a file there are two DNS zones, the host's search domains, a lease for the usual MAC and port 2222 for SSH; with
one, only what it says. Flags for addresses give way to the file, `-forward-*` add to it, all others replace what it
says.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from guest_iface.unix_socket import is_taken
from netstack.config import (
    DEFAULT_SUBNET,
    ConfigError,
    ForwardSpec,
    LinkSpec,
    ListenLink,
    RunConfig,
    SshForward,
    UnixEndpoint,
)
from netstack.gvproxy_flags import DEFAULT_SSH_PORT, GvproxyFlags
from netstack.network_spec import NetworkSpec
from netstack.run_settings import LOG_LEVELS, RunSettings, run_config
from netstack.yaml_file import FileError

_ADDRESSES: Final = {
    "subnet": "subnet",
    "gateway_ip": "gatewayIP",
    "device_ip": "deviceIP",
    "host_ip": "hostIP",
}
"""Settings whose flags give way to the file, and the flags."""
_FLAG_NAMES: Final = {
    **{setting: f"-{flag}" for setting, flag in _ADDRESSES.items()},
    "mtu": "-mtu",
    "vfkit": "-listen-vfkit",
    "qemu": "-listen-qemu",
    "bess": "-listen-bess",
    "vpnkit": "-listen-vpnkit",
    "stdio": "-listen-stdio",
    "api_listen": "-listen",
    "services": "-services",
    "forwards": "-ssh-port",
    "ssh_forwards": "-forward-sock",
}
_INCOMPATIBLE: Final = (("qemu", "vpnkit"), ("bess", "vpnkit"), ("qemu", "bess"))


class GvproxyError(ConfigError):
    """A configuration that cannot be used, in gvproxy's words."""

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)
        self.key = self.value = ""
        self.expected = message


def gvproxy_config(flags: GvproxyFlags) -> RunConfig:
    """The checked whole. Raises ConfigError."""
    notes: list[str] = []
    policy = NetworkSpec()
    read_policy = None
    settings = RunSettings()
    if flags.config:
        settings, policy, file_notes = _read_file(Path(flags.config))
        notes += file_notes

        def read_policy() -> NetworkSpec:
            return _read_file(Path(flags.config))[1]

    addresses = _address_flags(flags)
    for setting, flag in _ADDRESSES.items():
        said, wanted = getattr(settings, setting), getattr(addresses, setting)
        if said and wanted and said != wanted:
            notes.append(f"-{flag} {wanted}: the configuration file says {said}, which is used")
    settings = _other_flags(flags, settings).over(settings.over(addresses))
    level = settings.log_level or "info"
    if level.lower() not in LOG_LEVELS:
        notes.append(f'bad log level "{level}", falling back to "info"')
        settings = replace(settings, log_level="info")
    _check_addresses(settings)
    settings = _with_ssh_port(flags, settings)
    _check_endpoints(settings)
    settings = RunSettings(guest_api=True).over(settings)
    if settings.log_format is None:
        settings = replace(settings, log_format="logrus")
    made = run_config(
        settings, links=False, defaults=not flags.config, policy=policy, reload_policy=read_policy, notes=notes
    )
    _check_free(made.links)
    if not made.links and not made.api_listen:
        raise GvproxyError("nothing to attach a guest to: give -listen-qemu, -listen-vfkit, -listen or another of them")
    return made


def _read_file(path: Path) -> tuple[RunSettings, NetworkSpec, list[str]]:
    from netstack.configuration import read_document, settings_of, warnings
    from netstack.policy_config import network_spec

    where = f"--config {path}: "
    try:
        path.open("rb").close()
    except OSError as error:
        raise GvproxyError(f"failed to read config file: open {path}: {_reason(error)}") from error
    try:
        document = read_document(path)
        return settings_of(document, path), network_spec(config_file=path, document=document), warnings(document)
    except FileError as error:
        raise GvproxyError(f"failed to parse configuration: {str(error).removeprefix(where)}") from error


def _reason(error: OSError) -> str:
    words = error.strerror or str(error)
    return words[:1].lower() + words[1:]


def _address_flags(flags: GvproxyFlags) -> RunSettings:
    given = {setting: getattr(flags, flag) or None for setting, flag in _ADDRESSES.items()}
    return RunSettings(**given, names={setting: f"-{flag}" for setting, flag in _ADDRESSES.items()})


def _other_flags(flags: GvproxyFlags, file: RunSettings) -> RunSettings:
    notification = None
    if flags.notification:
        if not flags.notification.startswith("unix://"):
            raise GvproxyError("notification listen address must be unix:// address")
        notification = Path(flags.notification.removeprefix("unix://"))
    return RunSettings(
        mtu=flags.mtu or None,
        vfkit=_alone(flags.listen_vfkit),
        qemu=_alone(flags.listen_qemu),
        bess=_alone(flags.listen_bess),
        vpnkit=_alone(flags.listen_vpnkit),
        stdio="accept" if flags.listen_stdio else None,
        api_listen=tuple(flags.listen) or None,
        services=flags.services or None,
        capture=Path(flags.pcap) if flags.pcap else None,
        log_level="debug" if flags.debug else None,
        log_file=Path(flags.log_file) if flags.log_file else None,
        pid_file=Path(flags.pid_file) if flags.pid_file else None,
        notification=notification,
        metadata_access=flags.ec2_metadata_access or None,
        ssh_forwards=(*(file.ssh_forwards or ()), *_ssh_forwards(flags)) or None,
        names=_FLAG_NAMES,
    )


def _alone(text: str) -> tuple[str, ...] | None:
    return (text,) if text else None


def _ssh_forwards(flags: GvproxyFlags) -> tuple[SshForward, ...]:
    lists = (flags.forward_sock, flags.forward_dest, flags.forward_user, flags.forward_identity)
    if len({len(each) for each in lists}) != 1:
        raise GvproxyError(
            "--forward-sock, --forward-dest, --forward-user, and --forward-identity must all be specified together,"
            " the same number of times, or not at all"
        )
    return tuple(
        SshForward(Path(socket), dest, user, Path(identity))
        for socket, dest, user, identity in zip(*lists, strict=True)
    )


def _check_addresses(settings: RunSettings) -> None:
    text = settings.subnet or DEFAULT_SUBNET
    failed = f'failed to parse subnet: netip.ParsePrefix("{text}")'
    address, separator, bits = text.partition("/")
    if not separator:
        raise GvproxyError(f"{failed}: no '/'")
    if not re.fullmatch(r"[0-9]{1,3}", bits, re.ASCII):
        raise GvproxyError(f'{failed}: bad bits after slash: "{bits}"')
    try:
        own = ipaddress.ip_address(address)
    except ValueError:
        raise GvproxyError(f'{failed}: ParseAddr("{address}"): unable to parse IP') from None
    if int(bits) > own.max_prefixlen:
        raise GvproxyError(f"{failed}: prefix length out of range")
    subnet = ipaddress.ip_network(f"{own}/{bits}", strict=False)
    if subnet.max_prefixlen - subnet.prefixlen < 3:
        raise GvproxyError("failed to identify usable gateway IP address in subnet: subnet too small")
    chosen = [
        (settings.gateway_ip, subnet[1]),
        (settings.device_ip, subnet[2]),
        (settings.host_ip, subnet[-2]),
    ]
    try:
        addresses = [_own_address(given or str(default), subnet) for given, default in chosen]
    except GvproxyError as error:
        raise GvproxyError(f"failed to validate configuration IPs: {error}") from None
    if len(set(addresses)) != len(addresses):
        raise GvproxyError("failed to validate configuration IPs: IP addresses need to be distinct")


def _own_address(
    text: str, subnet: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        raise GvproxyError(f"invalid IP address: {text}") from None
    if address not in subnet:
        raise GvproxyError(f"IP ({address}) not in subnet ({subnet})")
    if address == subnet[0]:
        raise GvproxyError(f"IP must not be address of subnet: {address}")
    if address == subnet[-1]:
        raise GvproxyError(f"IP must not be broadcast address: {address}")
    return address


def _with_ssh_port(flags: GvproxyFlags, settings: RunSettings) -> RunSettings:
    """The forward to the guest's SSH: by default without a file, and where the flag is given."""
    port = flags.ssh_port
    if port is None:
        if flags.config:
            return settings
        port = DEFAULT_SSH_PORT
    if port == -1:
        return settings
    if not 1024 <= port <= 65_535:
        raise GvproxyError("ssh-port value must be between 1024 and 65535")
    device = settings.device_ip or str(ipaddress.ip_network(settings.subnet or DEFAULT_SUBNET, strict=False)[2])
    wanted = ForwardSpec("tcp", f"127.0.0.1:{port}", f"{device}:22")
    forwards = settings.forwards or ()
    return replace(settings, forwards=(*(each for each in forwards if each.local != wanted.local), wanted))


def _check_endpoints(settings: RunSettings) -> None:
    for one, other in _INCOMPATIBLE:
        if getattr(settings, one) and getattr(settings, other):
            raise GvproxyError(f"cannot use {one} and {other} protocol at the same time")
    for protocol, scheme in (("bess", "unixpacket"), ("vfkit", "unixgram")):
        for text in getattr(settings, protocol) or ():
            if not text.startswith(f"{scheme}://"):
                raise GvproxyError(f"{protocol} listen address must be {scheme}:// address")
    for forward in settings.ssh_forwards or ():
        try:
            forward.identity.open("rb").close()
        except OSError as error:
            reason = f"stat {forward.identity}: {_reason(error)}"
            raise GvproxyError(f'identity file "{forward.identity}" can\'t be loaded: {reason}') from error


def _check_free(specs: tuple[LinkSpec, ...]) -> None:
    """What another process has bound is not taken away from it."""
    for spec in specs:
        if isinstance(spec, ListenLink) and isinstance(spec.endpoint, UnixEndpoint) and is_taken(spec.endpoint.path):
            raise GvproxyError(f'"{spec.endpoint.path}" already exists')
