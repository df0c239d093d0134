"""The rules of an allowlist: how one is written, and which of many applies to a name or an address.

    [tcp/|udp/]target[:port|:port-port]

where target is a host, `*.suffix`, an IPv4 address or CIDR, `[IPv6]` or `[IPv6]/length`, `@public` or `@host`.
Every rule allows; what no rule allows is refused, so their order means nothing.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import idna

from netstack.engine import addresses
from netstack.engine.names import canonical, suffixes

TCP: Final = 6
UDP: Final = 17
_PROTOCOLS: Final = {"tcp": TCP, "udp": UDP}

HOST: Final = "host"
SUFFIX: Final = "suffix"
ADDRESS: Final = "address"
PUBLIC: Final = "@public"
HOST_ALIAS: Final = "@host"
_GROUPS: Final = (PUBLIC, HOST_ALIAS)
_SERVICES: Final = {"http": 80, "https": 443, "ssh": 22, "git": 9418, "domain": 53, "ntp": 123, "smtp": 25}
"""Names of ports that people write; told in the suggestion only, a rule has numbers."""

WEB_PORTS: Final = frozenset((80, 443))
"""Where a name is read from the first bytes (TLS or HTTP): what a host rule without a port means."""
QUIC_PORT: Final = 443

_SHAPE = re.compile(
    r"(?:(?P<protocol>[a-z]+)/)?"
    r"(?P<target>\[[^\]]*\](?:/\d+)?|@[\w-]*|[^\[\]:@]+)"
    r"(?::(?P<ports>.*))?",
    re.IGNORECASE | re.DOTALL,
)


class RuleError(ValueError):
    """A rule that cannot be used. The message names the rule, what is wrong with it and what would be right."""

    def __init__(self, rule: str, problem: str, suggestion: str = "") -> None:
        hint = f"; did you mean {suggestion!r}?" if suggestion else ""
        super().__init__(f"allow_net rule {rule!r}: {problem}{hint}")
        self.rule = rule
        self.problem = problem
        self.suggestion = suggestion


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `protocol` 0 means both; `first_port` 0 means that the rule has no port."""

    text: str
    kind: str
    protocol: int = 0
    first_port: int = 0
    last_port: int = 0
    name: str = ""
    network: bytes = b""
    prefix_length: int = 0

    def covers(self, protocol: int, port: int) -> bool:
        """Whether the rule speaks of this protocol and port."""
        if self.protocol and self.protocol != protocol:
            return False
        if self.first_port:
            return self.first_port <= port <= self.last_port
        if self.kind in (HOST, SUFFIX):
            return port in WEB_PORTS if protocol == TCP else port == QUIC_PORT
        return True


def parse_rule(text: str, is_public_suffix: Callable[[str], bool]) -> Rule:
    """Read a rule. `is_public_suffix` says of a canonical name whether anybody can register below it.

    Raises RuleError, whose suggestion is a rule that can be used.
    """
    try:
        return _read(text, is_public_suffix)
    except RuleError as error:
        if error.suggestion:
            try:
                _read(error.suggestion, is_public_suffix)
            except RuleError:
                raise RuleError(text, error.problem) from None
        raise


def _read(text: str, is_public_suffix: Callable[[str], bool]) -> Rule:
    written = text.strip()
    if not written:
        raise RuleError(text, "it is empty")
    if "://" in written:
        scheme, _, rest = written.partition("://")
        host = re.split(r"[/?#]", rest, maxsplit=1)[0]
        scope = f"{scheme.lower()}/" if scheme.lower() in _PROTOCOLS else ""
        raise RuleError(text, "a rule names a host, not a URL", scope + host)
    if written.count(":") > 1 and _is_ipv6(written):
        raise RuleError(text, "an IPv6 address needs brackets", f"[{written}]")
    shape = _SHAPE.fullmatch(written)
    if shape is None:
        raise RuleError(text, "expected [tcp/|udp/]target[:port|:port-port]")
    word = (shape["protocol"] or "").lower()
    if word and word not in _PROTOCOLS:
        nearest = difflib.get_close_matches(word, _PROTOCOLS, 1)
        suggestion = f"{nearest[0]}/{written.split('/', 1)[1]}" if nearest else ""
        raise RuleError(text, f"unknown protocol {word!r}; known are tcp and udp", suggestion)
    protocol = _PROTOCOLS.get(word, 0)
    target = shape["target"]
    first, last = _parse_ports(text, target, shape["ports"])
    if target.startswith("@"):
        group = target.lower()
        if group not in _GROUPS:
            near = difflib.get_close_matches(group, _GROUPS, 1, 0.5)
            suggestion = written.replace(target, near[0]) if near else ""
            raise RuleError(text, f"unknown group; known are {' and '.join(_GROUPS)}", suggestion)
        return Rule(written, group, protocol, first, last)
    network = _parse_network(text, target)
    if network is not None:
        return Rule(
            written, ADDRESS, protocol, first, last, network=network.network_address.packed,
            prefix_length=network.prefixlen,
        )  # fmt: skip
    return _parse_name(text, written, target, is_public_suffix, (protocol, first, last))


def _parse_name(
    text: str, written: str, target: str, is_public_suffix: Callable[[str], bool], scope: tuple[int, int, int]
) -> Rule:
    wild = target.startswith("*")
    host = target.removeprefix("*.") if wild else target
    if host == "*":
        raise RuleError(text, "a wildcard needs a domain behind it; without a list everything is allowed", PUBLIC)
    if "*" in host:
        apex = host.rsplit("*", 1)[1].strip(".")
        raise RuleError(text, "a wildcard stands alone, as the first label", written.replace(target, f"*.{apex}"))
    name = _to_ascii(host)
    if name is None:
        suggestion = written.replace(target, _mended(target))
        problem = f"{target!r} is neither a host name nor an IP address"
        raise RuleError(text, problem, suggestion if suggestion != written else "")
    if wild and is_public_suffix(name):
        if "." in name:
            problem = f"anybody can register a name below {name!r}: name the domain"
        else:
            problem = f"a wildcard needs a domain of two labels or more, and {name!r} is one"
        raise RuleError(text, problem, written.replace(target, f"*.example.{name}"))
    return Rule(written, SUFFIX if wild else HOST, *scope, name=name)


def _mended(target: str) -> str:
    """What people write when they mean a host: a path behind it, a blank before the port, a dot for a wildcard."""
    host = re.sub(r"\s+(\d+)$", r":\1", target.split("/", 1)[0])
    host = re.sub(r"\.{2,}", ".", host)
    return f"*{host}" if host.startswith(".") else host


def _to_ascii(host: str) -> str | None:
    """A host as people write it in A-labels (IDNA 2008 with UTS 46 mapping), canonical."""
    if not host.isascii():
        try:
            host = idna.encode(host.strip(), uts46=True).decode("ascii")
        except idna.IDNAError:
            return None
    return canonical(host)


def _parse_ports(text: str, target: str, ports: str | None) -> tuple[int, int]:
    if ports is None:
        return 0, 0
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", ports, re.ASCII)
    first = int(match[1]) if match else 0
    last = int(match[2] or match[1]) if match else 0
    if not 1 <= first <= 65535 or not 1 <= last <= 65535:
        suggestion = ""
        leading = re.match(r"(\d{1,5})(?:/(tcp|udp)$|,|$)", ports, re.ASCII | re.IGNORECASE)
        if target.lower() in _PROTOCOLS:
            suggestion = f"{target.lower()}/{ports}"
        elif ports.lower() in _SERVICES:
            suggestion = f"{target}:{_SERVICES[ports.lower()]}"
        elif leading is not None:
            suggestion = f"{leading[2]}/" if leading[2] else ""
            suggestion += f"{target}:{leading[1]}"
        raise RuleError(text, f"{ports!r} is no port or range of ports, 1 to 65535", suggestion)
    if first > last:
        raise RuleError(text, f"the range {ports} runs backwards", text.replace(ports, f"{last}-{first}"))
    return first, last


def _parse_network(text: str, target: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The network of an address target; None for a name."""
    bracketed = target.startswith("[")
    inner = target.replace("[", "").replace("]", "")
    looks_like_address = bracketed or re.fullmatch(r"[0-9./]+", inner) is not None
    if not looks_like_address:
        return None
    if "%" in inner:
        raise RuleError(text, "an address has no zone here", text.replace(target, re.sub(r"%[^\]/]*", "", target)))
    try:
        network = ipaddress.ip_network(inner, strict=True)
    except ValueError:
        suggestion = ""
        try:
            loose = ipaddress.ip_network(inner, strict=False)
        except ValueError:
            problem = f"{target!r} is no IP address or network"
        else:
            problem = f"{target!r} has bits set beyond its prefix"
            base = f"[{loose.network_address}]" if loose.version == 6 else str(loose.network_address)
            suggestion = text.replace(target, f"{base}/{loose.prefixlen}")
        raise RuleError(text, problem, suggestion) from None
    if bracketed != (network.version == 6):
        raise RuleError(text, "brackets are for IPv6 addresses", text.replace(target, inner))
    return network


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Network(text)
    except ValueError:
        return False
    return True


class RuleSet:
    """Many rules, found by name or address: what a lookup costs does not grow with their number."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._hosts: dict[str, list[Rule]] = {}
        self._suffixes: dict[str, list[Rule]] = {}
        self._networks: dict[int, dict[int, dict[int, list[Rule]]]] = {4: {}, 16: {}}
        """By the bytes of an address, the bits behind the prefix, and the prefix."""
        self._groups: dict[str, list[Rule]] = {PUBLIC: [], HOST_ALIAS: []}
        for rule in self.rules:
            if rule.kind == HOST:
                self._hosts.setdefault(rule.name, []).append(rule)
            elif rule.kind == SUFFIX:
                self._suffixes.setdefault(rule.name, []).append(rule)
            elif rule.kind == ADDRESS:
                shift = 8 * len(rule.network) - rule.prefix_length
                table = self._networks[len(rule.network)].setdefault(shift, {})
                table.setdefault(int.from_bytes(rule.network, "big") >> shift, []).append(rule)
            else:
                self._groups[rule.kind].append(rule)
        names = [rule for rule in self.rules if rule.kind in (HOST, SUFFIX)]
        readable = [(TCP, port) for port in WEB_PORTS] + [(UDP, QUIC_PORT)]
        self._peeked = {place for place in readable if any(rule.covers(*place) for rule in names)}
        self._pinned = any(rule.first_port for rule in names)

    def for_name(self, name: str) -> list[Rule]:
        """The rules that speak of a canonical name: its own, then those of its suffixes, the longest first."""
        found = list(self._hosts.get(name, ()))
        if self._suffixes:
            for suffix in suffixes(name):
                found += self._suffixes.get(suffix, ())
        return found

    def wildcard(self, name: str) -> str:
        """The suffix of the longest wildcard that allows a canonical name; empty when a rule names it, or none does."""
        if self._suffixes and name not in self._hosts:
            for suffix in suffixes(name):
                if suffix in self._suffixes:
                    return suffix
        return ""

    def for_address(self, address: bytes, *, host_alias: bool = False) -> list[Rule]:
        """The rules that speak of a packed address.

        `host_alias`: it stands for the host, whose own services have to be meant: a network around it does not.
        """
        found: list[Rule] = []
        number = int.from_bytes(address, "big")
        for shift, table in self._networks[len(address)].items():
            rules = table.get(number >> shift)
            if rules is not None and not (shift and host_alias):
                found += rules
        if host_alias:
            found += self._groups[HOST_ALIAS]
        elif self._groups[PUBLIC] and addresses.kind(address) == "public":
            found += self._groups[PUBLIC]
        return found

    def peeks(self, protocol: int, port: int) -> bool:
        """Whether some name rule covers a port on which names can be read from the first bytes."""
        return (protocol, port) in self._peeked

    @property
    def public(self) -> list[Rule]:
        """The rules that open every public address."""
        return self._groups[PUBLIC]

    @property
    def has_named_ports(self) -> bool:
        """Whether some name rule has a port of its own: then answers of our DNS are worth remembering."""
        return self._pinned
