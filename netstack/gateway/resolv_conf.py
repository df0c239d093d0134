"""Which DNS servers the host asks, and how: resolv.conf(5), and addresses as people write them."""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

TIMEOUT: Final = 2.0
"""Seconds a server has before the next is asked, doubled each round. Less than resolv.conf's 5, after which a guest
would have given up before the second server was asked."""
MAX_TIMEOUT: Final = 5.0
ATTEMPTS: Final = 2
MAX_ATTEMPTS: Final = 5

_DNS_PORT: Final = 53
_MAX_SERVERS: Final = 3  # glibc's MAXNS

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


class Server(NamedTuple):
    """A DNS server's address, ready for `connect`."""

    family: socket.AddressFamily
    address: SocketAddress


class Configuration(NamedTuple):
    """Whom to ask and how. `timeout` in seconds, `attempts` in rounds over all servers, `rotate`: they take turns."""

    servers: tuple[Server, ...]
    timeout: float = TIMEOUT
    attempts: int = ATTEMPTS
    rotate: bool = False


LOCALHOST: Final = Server(socket.AF_INET, ("127.0.0.1", _DNS_PORT))


def parse_server(text: str) -> Server:
    """Read `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `fe80::1%eth0` or `[2001:db8::1]:5353`. Raises ValueError."""
    host, port = text, str(_DNS_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is no server: an IPv6 address with a port is written [ADDRESS]:PORT")
        port = rest[1:] or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r} is no server: ports are 1 to 65535")
    try:
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        family, _, _, _, address = socket.getaddrinfo(host or "-", int(port), type=socket.SOCK_DGRAM, flags=flags)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"{text!r} is no server: {host!r} is no IP address") from error
    if family == socket.AF_INET and address[0] != host:
        raise ValueError(f"{text!r} is no server: an IPv4 address has four decimal numbers")
    return Server(family, address)  # type: ignore[arg-type]  # numeric hosts are IPv4 or IPv6, never (int, bytes)


def parse_resolv_conf(text: str) -> Configuration:
    """Read resolv.conf(5) as glibc does: at most three servers, 127.0.0.1 when it names none; nonsense is skipped."""
    servers: list[Server] = []
    timeout, attempts, rotate = TIMEOUT, ATTEMPTS, False
    for line in text.splitlines():
        word, *rest = line.split() or [""]
        if word == "nameserver" and rest and len(servers) < _MAX_SERVERS:
            try:
                server = parse_server(rest[0])
            except ValueError:
                continue
            servers.append(server)
        elif word == "options":
            for option in rest:
                name, _, value = option.partition(":")
                if name == "rotate":
                    rotate = True
                elif name == "timeout" and value.isascii() and value.isdigit():
                    timeout = min(max(float(value), 1.0), MAX_TIMEOUT)
                elif name == "attempts" and value.isascii() and value.isdigit():
                    attempts = min(max(int(value), 1), MAX_ATTEMPTS)
    return Configuration(tuple(servers) or (LOCALHOST,), timeout, attempts, rotate)


def shown(server: Server) -> str:
    """A server as `parse_server` reads it."""
    host, port = server.address[:2]
    return f"[{host}]:{port}" if server.family == socket.AF_INET6 else f"{host}:{port}"
