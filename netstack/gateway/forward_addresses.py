"""Where a port forward listens and where it leads, as gvproxy's clients write it; what is wrong with it in its words.

gvproxy is written in Go, whose errors its users see: their form is kept, `listen tcp :80: bind: permission denied`.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import trio

PROTOCOLS: Final = ("tcp", "udp", "unix")
SSH_PORT: Final = 22

_NOT_UNDERSTOOD: Final = 400
_NOT_POSSIBLE: Final = 500
_NO_SUCH_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_PASSPHRASE: Final = re.compile(r"(?<=[?&]passphrase=)[^&#]*")
_SCHEME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")


class ForwardError(Exception):
    """A forward that cannot be made or ended. The message is gvproxy's where it has one; `status` is HTTP's for it."""

    def __init__(self, message: str, status: int = _NOT_POSSIBLE) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class GuestPort:
    """A port of a guest: its packed address and the number."""

    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class GuestSocket:
    """A unix socket in a guest, reached by SSH at `address:port` with the key in the file `key`."""

    address: bytes
    port: int
    user: str
    path: str
    key: str
    passphrase: str = field(default="", repr=False)


def split_host_port(text: str) -> tuple[str, str]:
    """Host and port of `host:port`, `[host]:port` or `:port`, as Go's net.SplitHostPort has it. Raises ForwardError."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and "]" not in host):
        raise ForwardError(_address_fault(text, "missing port in address"), _NOT_UNDERSTOOD)
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], port
    if ":" in host:
        raise ForwardError(_address_fault(text, "too many colons in address"), _NOT_UNDERSTOOD)
    return host, port


def _address_fault(text: str, why: str) -> str:
    return f"address {text}: {why}" if text else why


def remote_for(protocol: str, remote: str, caller: str) -> str:
    """The remote a client means: without a host it is the client itself. `caller` is its dotted address, or "".

    Raises ForwardError, status 400.
    """
    if protocol not in ("tcp", "udp"):
        return remote
    host, port = split_host_port(remote)
    if host:
        return remote
    if not caller:
        raise ForwardError("address @: missing port in address", _NOT_UNDERSTOOD)
    return f"{caller}:{port}"


def parse_guest_port(remote: str) -> GuestPort:
    """`ip:port` of a guest. Raises ForwardError; a host name is none, and nobody listens on port 0."""
    host, colon, port = remote.partition(":")
    if not colon or ":" in port:
        raise ForwardError("invalid remote addr")
    number = _parse_port(port)
    try:
        address = ipaddress.IPv4Address(host).packed
    except ValueError:
        raise ForwardError(
            f"invalid remote addr {remote!r}: expected the IPv4 address of a guest and a port", _NOT_UNDERSTOOD
        ) from None
    if not number:
        raise ForwardError(f"invalid remote addr {remote!r}: expected a port from 1 to 65535", _NOT_UNDERSTOOD)
    return GuestPort(address, number)


def _parse_port(text: str) -> int:
    """A port number, 0..65535; the errors are those of Go's strconv.ParseUint."""
    if not re.fullmatch(r"[0-9]+", text, re.ASCII):
        raise ForwardError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    number = int(text) if len(text) <= 10 else 1 << 16
    if number > 0xFFFF:
        raise ForwardError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return number


def parse_unix_remote(remote: str) -> GuestPort | GuestSocket:
    """`tcp://ip:port` or `ssh-tunnel://user@ip[:port]/socket?key=PATH[&passphrase=...]`. Raises ForwardError."""
    try:
        url = urlsplit(remote)
        host, port, query = url.hostname or "", url.port, parse_qs(url.query)
    except ValueError as error:
        raise ForwardError(f"failed to parse remote uri :{shown_remote(remote)} : {error}") from None
    if not _SCHEME.match(remote):
        raise ForwardError("remote protocol for unix forwarder is not implemented: ")
    if url.scheme == "tcp":
        return parse_guest_port(f"{host}:{'' if port is None else port}")
    if url.scheme != "ssh-tunnel":
        raise ForwardError(f"remote protocol for unix forwarder is not implemented: {url.scheme}")
    key, passphrase = (query.get(name, [""])[0] for name in ("key", "passphrase"))
    if not key:
        raise ForwardError("key not provided for unix-ssh connection")
    if url.path in ("", "/"):
        raise ForwardError("remote uri must contain a path to a socket file")
    place = parse_guest_port(f"{host}:{SSH_PORT if port is None else port}")
    return GuestSocket(place.address, place.port, unquote(url.username or ""), unquote(url.path), key, passphrase)


def shown_remote(remote: str) -> str:
    """A remote end for logs and listings, which guests may ask for: without its passphrase."""
    return _PASSPHRASE.sub("...", remote)


# -- where it listens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listening:
    """A bound socket, and its address as people write it (the port that was chosen, if it was left open)."""

    sock: socket.socket
    local: str


async def bind(protocol: str, local: str, *, backlog: int) -> Listening:
    """A non-blocking socket for `tcp` (listening) or `udp`, bound to `host:port`; an empty host is every interface.

    Raises ForwardError in Go's words.
    """
    network = f"listen {protocol}"
    try:
        host, port_text = split_host_port(local)
    except ForwardError as error:
        raise ForwardError(f"{network}: {error}") from None
    if not re.fullmatch(r"[0-9]{1,5}", port_text, re.ASCII) or int(port_text) > 0xFFFF:
        raise ForwardError(f"{network}: address {port_text}: invalid port")
    port = int(port_text)
    failure, shown = OSError(errno.EADDRNOTAVAIL, ""), ""
    for family, address in await _candidates(network, host):
        shown = _join(str(address[0]) if host else "", port)
        try:
            sock = _bind(protocol, family, (address[0], port, *address[2:]), backlog)
        except OSError as error:
            failure = error
            if error.errno not in _NO_SUCH_FAMILY:
                break
        else:
            return Listening(sock, _join(host, sock.getsockname()[1]))
    raise ForwardError(f"{network} {shown}: bind: {go_words(failure)}")


async def _candidates(network: str, host: str) -> list[tuple[int, tuple[Any, ...]]]:
    """Families and socket addresses to try in turn; another one only where the host has no such family."""
    if host in ("", "::"):
        return [(socket.AF_INET6, ("::", 0)), (socket.AF_INET, ("0.0.0.0", 0))]
    try:
        found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ForwardError(f"{network}: lookup {host}: no such host") from None
    # As Go does it: a name that has an IPv4 address is bound there.
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return [(int(family), address) for family, _, _, _, address in ordered[:1]]


def _bind(protocol: str, family: int, address: tuple[Any, ...], backlog: int) -> socket.socket:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        if protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if protocol == "tcp":
            sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def go_words(error: OSError) -> str:
    """What Go calls this error: the C library's words without a capital letter."""
    words = os.strerror(error.errno) if error.errno else str(error)
    return words[:1].lower() + words[1:]


def local_path(local: str) -> str:
    """The path of a unix socket, also where it is written as a URL."""
    return local.removeprefix("unix://")
