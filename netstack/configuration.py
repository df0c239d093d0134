"""The configuration file: read, checked against its model, and made into RunSettings, as options are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from netstack import setting_values as values
from netstack.config import CaptureOptions, ForwardSpec, Shaping, SshForward
from netstack.configuration_errors import ConfigurationError, problems_of
from netstack.configuration_model import Api, Capture, Document, LinkRates, LinkShaping, SocketForward
from netstack.run_settings import RunSettings, read_token
from netstack.yaml_file import FileError, read_yaml

SCHEMA_ID: Final = "urn:netstack:configuration"


def read_document(path: Path) -> Document:
    """The file, checked key by key. Raises FileError, ConfigurationError with all that is wrong."""
    where = f"--config {path}"
    content = read_yaml(path, where)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise FileError(where, "expected a mapping of keys such as 'stack' and 'policy'")
    try:
        return Document.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(where, problems_of(error, Document, content)) from error


def schema() -> dict[str, Any]:
    """The JSON schema of the file."""
    described = Document.model_json_schema(by_alias=True)
    described.pop("title", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "netstack",
        **described,
    }


def warnings(document: Document) -> list[str]:
    """What the file says to no effect."""
    said = []
    if document.stack.tcpMaxInFlight is not None:
        said.append(
            "stack.tcpMaxInFlight: not needed here: dials do not wait for each other, and none is refused for it"
        )
    if document.netns and not document.tap:
        said.append("netns: only a TAP is made inside a namespace, and there is no tap")
    return said


_PLACES: Final = {
    "subnet": "stack.subnet",
    "gateway_ip": "stack.gatewayIP",
    "device_ip": "stack.deviceIP",
    "host_ip": "stack.hostIP",
    "gateway_mac": "stack.gatewayMacAddress",
    "mtu": "stack.mtu",
    "nat_table": "stack.nat",
    "virtual_ips": "stack.gatewayVirtualIPs",
    "zones": "stack.dns",
    "static_leases": "stack.dhcpStaticLeases",
    "search": "stack.dnsSearchDomains",
    "forwards": "stack.forwards",
    "ssh_forwards": "forwards",
    "tcp_connect_timeout": "stack.tcpConnectTimeout",
    "vpnkit_macs": "stack.vpnKitUUIDMacAddresses",
    "vfkit": "interfaces.vfkit",
    "qemu": "interfaces.qemu",
    "bess": "interfaces.bess",
    "vpnkit": "interfaces.vpnkit",
    "stdio": "interfaces.stdio",
    "fds": "fd",
    "taps": "tap",
    "netns": "netns",
    "pid_file": "pid-file",
    "notification": "notification",
    "dns_upstreams": "dns-upstream",
    "events": "events",
    "log_level": "log-level",
    "udp_timeout": "udp-timeout",
    "udp_unreplied_timeout": "udp-unreplied-timeout",
    "tcp_keepalive": "tcp-keepalive",
    "tcp_window": "tcp-window",
    "verify_checksums": "verify-checksums",
    "busy_poll": "busy-poll",
    "impair": "impair",
    "capture": "capture.file",
    "capture_options": "capture",
    "shaping": "shaping",
}


def _maybe_path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _maybe_tuple(entries: list[Any] | None) -> tuple[Any, ...] | None:
    return None if entries is None else tuple(entries)


def settings_of(document: Document, path: Path) -> RunSettings:
    """What the file asks for; errors name its keys. Raises ConfigError for a token file that cannot be read."""
    stack, links, capture = document.stack, document.interfaces, document.capture
    metadata = [said for said in (document.ec2_metadata_access, stack.ec2MetadataAccess) if said is not None]
    return RunSettings(
        subnet=stack.subnet,
        gateway_ip=stack.gatewayIP,
        device_ip=stack.deviceIP,
        host_ip=stack.hostIP,
        gateway_mac=stack.gatewayMacAddress,
        mtu=stack.mtu,
        nat_table=tuple(f"{used}={dialled}" for used, dialled in stack.nat.items()) if stack.nat else None,
        virtual_ips=tuple(stack.gatewayVirtualIPs) if stack.gatewayVirtualIPs else None,
        zones=None if stack.dns is None else tuple(zone.zone() for zone in stack.dns),
        static_leases=tuple(f"{mac}={address}" for address, mac in (stack.dhcpStaticLeases or {}).items()) or None,
        search=tuple(values.parse_domain(name, "") for name in stack.dnsSearchDomains)
        if stack.dnsSearchDomains is not None
        else None,
        udp_timeout=document.udp_timeout,
        udp_unreplied_timeout=document.udp_unreplied_timeout,
        tcp_keepalive=document.tcp_keepalive,
        tcp_window=document.tcp_window,
        tcp_connect_timeout=stack.tcpConnectTimeout,
        metadata_access=any(metadata) if metadata else None,
        vfkit=_maybe_tuple(links.vfkit),
        qemu=_maybe_tuple(links.qemu),
        bess=_maybe_tuple(links.bess),
        vpnkit=_maybe_tuple(links.vpnkit),
        stdio="accept" if links.stdio else None,
        fds=_maybe_tuple(document.fd),
        taps=_maybe_tuple(document.tap),
        netns=document.netns if document.tap else None,
        vpnkit_macs=stack.vpnKitUUIDMacAddresses,
        offload=document.offload,
        verify_checksums=document.verify_checksums,
        batch_calls=document.batch_calls,
        busy_poll=document.busy_poll,
        dns_upstreams=_maybe_tuple(document.dns_upstream),
        events=document.events,
        capture=_maybe_path(capture.file or stack.capture_file),
        capture_options=_capture_options(capture),
        log_level="debug" if stack.debug else document.log_level,
        log_format="json" if document.log_format == "json" else None,
        log_file=_maybe_path(document.log_file),
        pid_file=_maybe_path(document.pid_file),
        notification=_maybe_path(document.notification and document.notification.removeprefix("unix://")),
        api_listen=_maybe_tuple(document.listen),
        services=document.services,
        api_token=_token(document.api, path),
        guest_api=document.api.guests,
        forwards=tuple(_forward(*each) for each in stack.forwards.items()) if stack.forwards else None,
        ssh_forwards=tuple(_ssh_forward(each) for each in document.forwards) if document.forwards else None,
        keep_source=document.keep_source,
        shaping=None if document.shaping is None else _shaping(document.shaping),
        impair=None if document.impair is None else (document.impair,),
        names={setting: f"--config {path}: {place}" for setting, place in _PLACES.items()},
    )


def _capture_options(capture: Capture) -> CaptureOptions | None:
    if capture == Capture(file=capture.file):
        return None
    return CaptureOptions(
        snaplen=capture.snaplen,
        rotate_size=None if capture.rotate_size is None else values.parse_size(capture.rotate_size, ""),
        rotate_count=capture.rotate_count,
        filter=capture.filter,
    )


def _shaping(rates: LinkRates) -> Shaping:
    burst = None if rates.burst is None else values.parse_size(rates.burst, "")
    links = rates.links if isinstance(rates, LinkShaping) else None
    return Shaping(
        tx_kbps=rates.tx_kbps,
        rx_kbps=rates.rx_kbps,
        burst=burst,
        links=tuple((link, _shaping(each)) for link, each in (links or {}).items()),
    )


def _forward(local: str, remote: str) -> ForwardSpec:
    return ForwardSpec(*values.parse_forward_ends(local, remote, ""))


def _ssh_forward(forward: SocketForward) -> SshForward:
    return SshForward(Path(forward.socket), forward.dest, forward.user, Path(forward.identity))


def _token(api: Api, path: Path) -> str | None:
    if api.token_file is None:
        return api.token
    return read_token(Path(api.token_file), f"--config {path}: api.token-file")
