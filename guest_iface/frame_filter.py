"""Which frames are meant: a small language of tcpdump's words, for captures and impairments.

    host 10.0.0.5 and port 443          not arp               tcp port 22 or icmp
    src net 10.0.0.0/8                  udp dst port 5000-5100
    flow 17                             flow tcp 192.168.127.2:40000 93.184.216.34:443
    name pypi.org                       (name *.pythonhosted.org or ether host 5a:94:ef:e4:0c:ee) and not port 22

A term means both directions unless it says `src` or `dst`. `flow N` and `name X` mean what the gateway knows by that
number or name, so they take a gateway (`Known`). `and` binds closer than `or`, `not` closest. Libpcap, where the two
bind alike, has words for every byte; those of them that are in use and mean something here are read too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, Protocol

from guest_iface import frame_fields
from guest_iface.libpcap_words import (
    BYTE_TEST,
    TcpFlags,
    byte_test,
    instead_of,
    port_named,
    protocol_word,
    short_network,
)

MAX_TEXT: Final = 4096
"""Characters of an expression."""
MAX_DEPTH: Final = 32
"""Parentheses and `not` within each other."""

PROTOCOLS: Final = {
    "tcp": frame_fields.TCP,
    "udp": frame_fields.UDP,
    "icmp": frame_fields.ICMP,
    "icmp6": frame_fields.ICMP6,
}
ETHERTYPES: Final = {"arp": frame_fields.ARP, "ip": frame_fields.IPV4, "ip6": frame_fields.IPV6}
_TOKEN: Final = re.compile(BYTE_TEST + r"|\(|\)|&&|\|\||!|[^\s()!&|]+")
_MAC: Final = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_NAME: Final = re.compile(r"(?:\*\.)?[a-zA-Z0-9_-]{1,63}(?:\.[a-zA-Z0-9_-]{1,63})*\.?")
_PORT_RANGE: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_END: Final = re.compile(r"\[([^\]]+)\]:([0-9]{1,5})|([^:\[\]]+):([0-9]{1,5})", re.ASCII)

Side = Literal["", "src", "dst"]
_AND: Final = ("and", "&&")
_OR: Final = ("or", "||")
_NOT: Final = ("not", "!")
_KINDS: Final = ("host", "net", "port", "portrange")
_QUALIFIED: Final = ("src", "dst", *_KINDS)
_EITHER_SIDE: Final = (("or", "src"), ("or", "dst"))
_BOTH_SIDES: Final = (*_EITHER_SIDE, ("and", "src"), ("and", "dst"))
"""What may stand behind `src` or `dst`: `src or dst port 80` is what no side means, too."""
_WHAT: Final = "host, net, port, ether, flow, name, tcp, udp, icmp, icmp6, ip, ip6, arp, not or '('"


class FilterError(ValueError):
    """An expression that cannot be read; the message names the word and what was expected in its place."""


class LibpcapOnlyError(FilterError):
    """The word is one of libpcap's that has no meaning here."""


class FlowEnds(NamedTuple):
    """A flow by its five values; `guest` and `other` are address (4 or 16 bytes) and port."""

    protocol: int
    guest: tuple[bytes, int]
    other: tuple[bytes, int]


class Known(Protocol):
    """What only a gateway can say."""

    def flow(self, number: int) -> FlowEnds | None:
        """The flow of that number, None if there is none (any more)."""

    def addresses(self, name: str) -> Collection[bytes]:
        """The addresses that guests were told `name` has; may grow after the call. `name` in lower case, `*.` before
        it for every name below.
        """


@dataclass(frozen=True, slots=True)
class Protocols:
    """A word for a protocol: tcp, udp, icmp, icmp6, ip, ip6, arp."""

    word: str

    def __str__(self) -> str:
        return self.word


@dataclass(frozen=True, slots=True)
class Host:
    """An IP address, or a range of them (`net`)."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    side: Side = ""

    def __str__(self) -> str:
        whole = self.network.prefixlen == self.network.max_prefixlen
        words = f"host {self.network.network_address}" if whole else f"net {self.network}"
        return _sided(self.side, words)


@dataclass(frozen=True, slots=True)
class Port:
    """A port of TCP or UDP, or a range of them, ends included."""

    first: int
    last: int
    side: Side = ""

    def __str__(self) -> str:
        return _sided(self.side, f"port {self.first}" if self.first == self.last else f"port {self.first}-{self.last}")


@dataclass(frozen=True, slots=True)
class EtherHost:
    """A MAC address, 6 bytes."""

    mac: bytes
    side: Side = ""

    def __str__(self) -> str:
        return f"ether {_sided(self.side, 'host')} {self.mac.hex(':')}"


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow by its ends."""

    ends: FlowEnds

    def __str__(self) -> str:
        word = next(word for word, number in PROTOCOLS.items() if number == self.ends.protocol)
        return f"flow {word} {_end_text(self.ends.guest)} {_end_text(self.ends.other)}"


@dataclass(frozen=True, slots=True)
class NumberedFlow:
    """One flow by the number the gateway gave it, as in its events."""

    number: int

    def __str__(self) -> str:
        return f"flow {self.number}"


@dataclass(frozen=True, slots=True)
class Name:
    """The addresses that guests were told a DNS name has; `*.` before it: every name below."""

    name: str

    def __str__(self) -> str:
        return f"name {self.name}"


@dataclass(frozen=True, slots=True)
class Not:
    """Everything else."""

    term: Filter

    def __str__(self) -> str:
        return f"not {_grouped(self.term, And, Or)}"


@dataclass(frozen=True, slots=True)
class And:
    """What both mean."""

    left: Filter
    right: Filter

    def __str__(self) -> str:
        return f"{_grouped(self.left, Or)} and {_grouped(self.right, And, Or)}"


@dataclass(frozen=True, slots=True)
class Or:
    """What either means."""

    left: Filter
    right: Filter

    def __str__(self) -> str:
        return f"{self.left} or {_grouped(self.right, Or)}"


Filter = Protocols | Host | Port | TcpFlags | EtherHost | Flow | NumberedFlow | Name | Not | And | Or


def _sided(side: Side, words: str) -> str:
    return f"{side} {words}" if side else words


def _grouped(term: Filter, *kinds: type) -> str:
    return f"({term})" if isinstance(term, kinds) else str(term)


def _end_text(end: tuple[bytes, int]) -> str:
    address = ipaddress.ip_address(end[0])
    return f"[{address}]:{end[1]}" if address.version == 6 else f"{address}:{end[1]}"


# -- reading ---------------------------------------------------------------------------------------------------------


def parse_filter(text: str) -> Filter:
    """The whole of a text. Raises FilterError."""
    words = split_words(text)
    found, position = parse_words(words, 0)
    if position < len(words):
        raise FilterError(f"filter {text!r}: expected 'and', 'or' or the end at {words[position]!r}")
    return found


def split_words(text: str) -> list[str]:
    """Words, parentheses and signs. Raises FilterError for a text that is too long."""
    if len(text) > MAX_TEXT:
        raise FilterError(f"a filter of {len(text)} characters: expected at most {MAX_TEXT}")
    return _TOKEN.findall(text)


def parse_words(words: Sequence[str], position: int) -> tuple[Filter, int]:
    """The filter that begins at `position`, as far as it goes, and where what follows it begins. Raises FilterError."""
    parser = _Parser(words, position)
    return parser.either(), parser.position


class _Parser:
    def __init__(self, words: Sequence[str], position: int) -> None:
        self.words = words
        self.position = position
        self._depth = 0
        self._last: tuple[str, Side, str] = "", "", "host"
        """Protocol, side and kind of the last value, which one without words of its own has too: `port 80 or 443`."""

    def _next(self, *wanted: str) -> bool:
        """Take the next word if it is one of `wanted`."""
        if self.position < len(self.words) and self.words[self.position] in wanted:
            self.position += 1
            return True
        return False

    def _take(self, expected: str) -> str:
        if self.position >= len(self.words):
            raise FilterError(f"filter: expected {expected} at the end")
        self.position += 1
        return self.words[self.position - 1]

    def _fault(self, expected: str) -> FilterError:
        return FilterError(f"filter: expected {expected} instead of {self.words[self.position - 1]!r}")

    def either(self) -> Filter:
        left = self._both()
        while self._next(*_OR):
            left = Or(left, self._both())
        return left

    def _both(self) -> Filter:
        left = self._term()
        while self._next(*_AND):
            left = And(left, self._term())
        return left

    def _term(self) -> Filter:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FilterError(f"filter: expected at most {MAX_DEPTH} parentheses and 'not' within each other")
        if self._next(*_NOT):
            found: Filter = Not(self._term())
        elif self._next("("):
            found = self.either()
            if self._take("')'") != ")":
                raise self._fault("'and', 'or' or ')'")
        else:
            found = self._primitive()
        self._depth -= 1
        return found

    def _primitive(self) -> Filter:
        word = self._take(_WHAT)
        if "[" in word and word[0] != "[":
            test = byte_test(word)
            if isinstance(test, str):
                raise LibpcapOnlyError(f"filter: {word!r}: {test}")
            return test
        if word in PROTOCOLS or word in ETHERTYPES:
            protocol = Protocols(word)
            if word in ("ip", "ip6") and self._next("proto"):
                return And(protocol, self._protocol(word))
            # tcpdump's short form: `tcp port 80`.
            if self.position < len(self.words) and self.words[self.position] in _QUALIFIED:
                return self._addressed(word)
            return protocol
        if word == "proto":
            return self._protocol("ip")
        if word == "flow":
            return self._flow()
        if word == "name":
            name = self._take("a DNS name")
            if not _NAME.fullmatch(name):
                raise self._fault("a DNS name such as pypi.org or *.pypi.org")
            return Name(name.lower().removesuffix("."))
        if word == "ether":
            if self._next("proto"):
                return self._protocol("ether")
            side = self._side()
            self._next("host")
            mac = self._take("a MAC address")
            if not _MAC.fullmatch(mac):
                raise self._fault("a MAC address such as 5a:94:ef:e4:0c:ee")
            return EtherHost(bytes.fromhex(mac.replace(":", "")), side)
        self.position -= 1
        return self._addressed()

    def _protocol(self, kind: str) -> Filter:
        word = protocol_word(kind, self._take("a protocol"))
        if word is None:
            known = "ip, ip6, arp or its number" if kind == "ether" else "tcp, udp, icmp, icmp6 or its number"
            raise LibpcapOnlyError(str(self._fault(known)))
        return Protocols(word)

    def _side(self) -> Side:
        if self._next("src"):
            return "src"
        return "dst" if self._next("dst") else ""

    def _addressed(self, protocol: str = "") -> Filter:
        """`src host 10.0.0.5` and the like; what a value has not got before it, the last one's words say."""
        side = self._side()
        joined = tuple(self.words[self.position : self.position + 2]) if side else ()
        if joined in _BOTH_SIDES:
            self.position += 2
        word = self._take(_WHAT if not side else "host, net or port")
        if word in _KINDS:
            self._last = protocol, "" if joined in _EITHER_SIDE else side, word
        elif self._is_value(word):
            self.position -= 1
            if side:
                self._last = protocol, "" if joined in _EITHER_SIDE else side, self._last[2]
        else:
            raise self._unknown(word, "host, net or port" if side else _WHAT)
        protocol, side, kind = self._last
        found: Filter = self._value(kind, side)
        if joined in _BOTH_SIDES and joined not in _EITHER_SIDE and isinstance(found, Host | Port):
            found = And(found, replace(found, side="dst" if side == "src" else "src"))
        return And(Protocols(protocol), found) if protocol else found

    def _is_value(self, word: str) -> bool:
        """Whether this can stand by itself: an address anywhere, a number or a port's name behind another port."""
        try:
            ipaddress.ip_network(word)
        except ValueError:
            is_port = _PORT_RANGE.fullmatch(word) or port_named(word) is not None
            return bool(is_port) and self._last[2] in ("port", "portrange")
        return bool(re.search(r"[.:]", word))

    def _unknown(self, word: str, expected: str) -> FilterError:
        hint = instead_of(word)
        if hint:
            return LibpcapOnlyError(f"filter: {word!r} is one of libpcap's words that are not read here: {hint}")
        return self._fault(expected)

    def _value(self, word: str, side: Side) -> Host | Port:
        if word == "host":
            text = self._take("an IP address")
            try:
                return Host(ipaddress.ip_network(ipaddress.ip_address(text)), side)
            except ValueError:
                raise self._fault("an IP address such as 10.0.0.5 (a DNS name is written: name pypi.org)") from None
        if word == "net":
            text = self._take("a network")
            try:
                return Host(short_network(text, self._take("a netmask") if self._next("mask") else None), side)
            except ValueError as error:
                raise self._fault(f"a network such as 10.0.0.0/8 ({error})") from None
        text = self._take("a port")
        found = _PORT_RANGE.fullmatch(text)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (port_named(text) or -1,) * 2
        if not 0 <= first <= last <= 65_535:
            raise self._fault("a port such as 443, or a range of them such as 8000-8999")
        return Port(first, last, side)

    def _flow(self) -> Filter:
        word = self._take("a flow's number, or its protocol and two ends")
        if re.fullmatch(r"[0-9]{1,18}", word, re.ASCII):
            return NumberedFlow(int(word))
        if word not in PROTOCOLS:
            raise self._fault("a flow's number, or tcp, udp, icmp or icmp6 and its two ends")
        return Flow(FlowEnds(PROTOCOLS[word], self._end(), self._end()))

    def _end(self) -> tuple[bytes, int]:
        expected = "an end of the flow such as 10.0.0.5:443 or [2001:db8::1]:443"
        found = _END.fullmatch(self._take(expected))
        if found:
            try:
                address = ipaddress.ip_address(found[1] or found[3])
                port = int(found[2] or found[4])
            except ValueError:
                raise self._fault(expected) from None
            if port <= 65_535:
                return address.packed, port
        raise self._fault(expected)
