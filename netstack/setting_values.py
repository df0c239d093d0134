"""Single settings: a value as people write it, and what it means; every error names the key it came under.

Each function is given the `key` (an option, or a path in a file), so that the message can say which value it is about.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

from netstack.engine.settings import MAX_WINDOW, Zone, ZoneRecord

MIN_MTU: Final = 576
"""Bytes. Every IPv4 host takes such packets (RFC 791 section 3.1); DHCP messages grow to it (RFC 2131 section 2)."""
MAX_MTU: Final = 65_521
"""Bytes. With an Ethernet header this fills the 2-byte length of vpnkit and stdio; a Linux TAP takes no more either."""
MIN_WINDOW: Final = 4096
"""Bytes: less makes every segment wait for the answer to the one before."""
DEFAULT_BUSY_POLL: Final = 200
"""Microseconds; KVM's own halt_poll_ns."""
MAX_BUSY_POLL: Final = 1000
"""Microseconds: beyond, whoever answers is too far away for a saved wake-up to show."""
DEFAULT_SUBNET: Final = "192.168.127.0/24"
MAX_SOCKET_PATH: Final = 107
"""Bytes of a unix socket's path (sun_path holds 108, one is the end mark)."""

MAX_VSOCK: Final = 2**32 - 2
"""The largest number of a context or a port of vsock(7); the one above it means any."""
_FORMS: Final = {"tcp": "tcp://HOST:PORT", "vsock": "vsock://[CID]:PORT"}
STREAM_SCHEMES: Final = ("unix", "tcp", "vsock")
"""What a stream of bytes can come by."""

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


Wrong = Callable[[ConfigError], None]
"""Who is told what is wrong: raises it, or keeps it and has the rest looked at."""


def at_once(error: ConfigError) -> None:
    """A Wrong for those who want to know of the first only."""
    raise error


@contextmanager
def noted(wrong: Wrong) -> Iterator[None]:
    """Have a ConfigError in the block told to `wrong`. If that does not raise, what follows the block goes on."""
    try:
        yield
    except ConfigError as error:
        wrong(error)


ForwardProtocol = Literal["tcp", "udp", "unix"]


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
class VsockEndpoint:
    """A port for virtual machines of this host, without a network between (vsock(7))."""

    cid: int | None
    """The context that is listened on; None: any."""
    port: int


Endpoint = UnixEndpoint | TcpEndpoint | VsockEndpoint


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


def parse_endpoint(text: str, key: str, schemes: Sequence[str]) -> Endpoint:
    """A URL as gvproxy writes them: `unixgram://PATH`, `unix://PATH`, `unixpacket://PATH`, `tcp://HOST:PORT`,
    `vsock://[CID]:PORT`.

    Raises ConfigError for a scheme not among `schemes`, an empty or too long path, a port out of range.
    """
    forms = {scheme: _FORMS.get(scheme, f"{scheme}://PATH") for scheme in schemes}
    expected = " or ".join(forms.values())
    scheme, _, rest = text.strip().partition(":")
    # A URL without an authority has one slash (RFC 3986 section 3): libkrun's tests write unixgram:/PATH.
    if scheme not in forms or not rest.startswith("/") or rest == "//":
        raise ConfigError(key, text, expected)
    rest = rest.removeprefix("//")
    if scheme == "tcp":
        host, separator, port = rest.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not separator or not host:
            raise ConfigError(key, text, f"{expected} (0.0.0.0 as HOST means every address of this machine)")
        return TcpEndpoint(host, _port(port, text, key))
    if scheme == "vsock":
        found = re.fullmatch(r"([0-9]{0,10}):([0-9]{1,10})", rest, re.ASCII)
        if not found or int(found[2]) > MAX_VSOCK or int(found[1] or 0) > MAX_VSOCK:
            raise ConfigError(key, text, f"{expected} (both are numbers; without CID any context)")
        return VsockEndpoint(int(found[1]) if found[1] else None, int(found[2]))
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


def parse_size(value: int | str, key: str) -> int:
    """Bytes: a number, with K, M or G for 1024, 1024 squared and cubed behind it. Raises ConfigError."""
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)(?:i?B)?", str(value).strip(), re.ASCII | re.IGNORECASE)
    size = int(match[1]) * 1024 ** " KMG".index(match[2].upper() or " ") if match else 0
    if not size:
        raise ConfigError(key, value, "a number of bytes above 0 such as 100000000 or 100M")
    return size


def parse_window(value: int | str, key: str) -> int:
    """Bytes of a TCP window, MIN_WINDOW to MAX_WINDOW, written as parse_size reads them. Raises ConfigError."""
    size = parse_size(value, key)
    if not MIN_WINDOW <= size <= MAX_WINDOW:
        raise ConfigError(key, value, f"bytes from {MIN_WINDOW >> 10}K to {MAX_WINDOW >> 20}M")
    return size


def parse_busy_poll(value: float, key: str) -> float:
    """Microseconds from 0 to MAX_BUSY_POLL. Raises ConfigError."""
    if not 0 <= value <= MAX_BUSY_POLL:
        raise ConfigError(key, value, f"microseconds from 0 to {MAX_BUSY_POLL}")
    return float(value)


def parse_forward_ends(local: str, remote: str, key: str) -> tuple[ForwardProtocol, str, str]:
    """A forward as gvproxy's file writes it: protocol, local and remote end.

    `udp:` before the local end makes it UDP, `unix:` a socket in the file system; else it is TCP. Raises ConfigError.
    """
    protocol: ForwardProtocol = "tcp"
    end = local.strip()
    if end.startswith("udp:"):
        protocol, end = "udp", end[4:]
    elif end.startswith("unix:"):
        protocol, end = "unix", end[5:]
        if not end.startswith("/"):
            raise ConfigError(key, local, "an absolute path behind 'unix:'")
        return protocol, end, remote.strip()
    _host_and_port(end, local, key, "an address to listen on such as 127.0.0.1:2222 or udp::53", least=0)
    host = _host_and_port(remote.strip(), remote, key, "the guest's address and port such as 192.168.127.2:22", least=1)
    parse_ipv4(host, key)
    return protocol, end, remote.strip()


def _host_and_port(text: str, value: str, key: str, expected: str, *, least: int) -> str:
    host, separator, port = text.rpartition(":")
    if not separator or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not least <= int(port) <= 65_535:
        raise ConfigError(key, value, expected)
    return host
