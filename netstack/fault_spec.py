"""Faults beyond the link, in words: what becomes of a guest's TCP flows, and of its DNS questions.

    stream match host 10.0.0.5 and port 443 reset after 100k
    stream match name pypi.org dial-delay 2s slow-close 5s
    stream match port 25 black-hole after 1k chance 10% seed 7
    stream match net 10.0.0.0/8 dial timed-out
    dns pypi.org servfail            dns *.example.com timeout
    dns mirror.example answer 10.0.0.9            dns * delay 800ms chance 5% seed 1

`str` of what was read reads the same again. Times are nanoseconds inside, sizes bytes, shares per cent.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from guest_iface import units
from guest_iface.frame_filter import Filter, FilterError, parse_words, split_words
from guest_iface.impair_spec import MAX_SEED, ImpairmentError, Words, whole_number
from netstack.engine.effects import HOST_UNREACHABLE, NETWORK_UNREACHABLE, REFUSED, TIMED_OUT

DIAL_FAILURES: Final = {
    "refused": REFUSED,
    "timed-out": TIMED_OUT,
    "host-unreachable": HOST_UNREACHABLE,
    "network-unreachable": NETWORK_UNREACHABLE,
}
DNS_CODES: Final = {"formerr": 1, "servfail": 2, "nxdomain": 3, "notimp": 4, "refused": 5}
"""RFC 1035 section 4.1.1."""
TIMEOUT: Final = "timeout"
ANSWER: Final = "answer"
MAX_ANSWERS: Final = 16

_NAME: Final = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*", re.ASCII)
_Fault = TypeVar("_Fault")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFault:
    """What becomes of some TCP flows. The order of the fields is the order of the words."""

    match: Filter | None = None
    """Which flows, by the addresses and ports the guest uses; None: all."""
    dial_delay: int = 0
    """Time before the host is dialled."""
    dial: str = ""
    """How the dial fails, a key of DIAL_FAILURES; empty: as it does."""
    reset_after: int | None = None
    """Bytes, both directions together, after which both ends are reset."""
    black_hole_after: int | None = None
    """Bytes, both directions together, after which nothing passes any more, without a word."""
    slow_close: int = 0
    """Time by which the guest hears late that the host has finished."""
    chance: float = 100.0
    seed: int | None = None

    def __str__(self) -> str:
        words = ["stream"]
        if self.match is not None:
            words.append(f"match ({self.match})")
        if self.dial_delay:
            words.append(f"dial-delay {units.time_word(self.dial_delay)}")
        if self.dial:
            words.append(f"dial {self.dial}")
        if self.reset_after is not None:
            words.append(f"reset after {units.size_word(self.reset_after)}")
        if self.black_hole_after is not None:
            words.append(f"black-hole after {units.size_word(self.black_hole_after)}")
        if self.slow_close:
            words.append(f"slow-close {units.time_word(self.slow_close)}")
        return " ".join([*words, *_chance_words(self.chance, self.seed)])


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsFault:
    """What becomes of questions that would go upstream."""

    name: str
    """Lower case without its final dot; `*.` before it: every name below; `*`: every name."""
    outcome: str = ""
    """A key of DNS_CODES, TIMEOUT or ANSWER; empty: upstream's answer, late."""
    addresses: tuple[bytes, ...] = ()
    """With ANSWER: 4 bytes each, what A questions are told; other types have no record then."""
    delay: int = 0
    """Time by which the answer comes late."""
    chance: float = 100.0
    seed: int | None = None

    def __str__(self) -> str:
        words = ["dns", self.name]
        if self.outcome:
            words.append(self.outcome)
        if self.addresses:
            words.append(",".join(str(ipaddress.IPv4Address(each)) for each in self.addresses))
        if self.delay:
            words.append(f"delay {units.time_word(self.delay)}")
        return " ".join([*words, *_chance_words(self.chance, self.seed)])


def _chance_words(chance: float, seed: int | None) -> list[str]:
    words = [] if chance == 100 else [f"chance {units.share_word(chance)}"]
    return words if seed is None else [*words, f"seed {seed}"]


def parse_stream_fault(text: str) -> StreamFault:
    """One that begins with `stream`. Raises ImpairmentError."""
    try:
        words = split_words(text)
        values: dict[str, Any] = {}
        position = 1
        if words[position : position + 1] == ["match"]:
            values["match"], position = parse_words(words, position + 1)
        _read(Words(words, position), _STREAM_READERS, values)
    except FilterError as error:
        raise ImpairmentError(f"impairment {text!r}: {error}") from error
    if not values.keys() - {"match", "chance", "seed"}:
        raise ImpairmentError(f"impairment {text!r}: expected a fault, as in reset after 100k")
    return StreamFault(**values)


def parse_dns_fault(text: str) -> DnsFault:
    """One that begins with `dns`. Raises ImpairmentError."""
    words = Words(text.split(), 1)
    name = words.wanted(_read_name, "a DNS name, *.NAME or *", "dns")
    values: dict[str, Any] = {"name": name}
    _read(words, _DNS_READERS, values)
    addresses = values.get("outcome")
    if isinstance(addresses, tuple):
        values["outcome"], values["addresses"] = ANSWER, addresses
    if not values.keys() & {"outcome", "delay"}:
        raise ImpairmentError(f"impairment {text!r}: expected a fault, as in servfail or delay 1s")
    return DnsFault(**values)


def _read_name(word: str) -> str | None:
    name = word.lower().removesuffix(".")
    return name if _NAME.fullmatch(name) and len(name) <= 253 else None


def _read(words: Words, readers: dict[str, tuple[str, Callable[[Words], Any]]], values: dict[str, Any]) -> None:
    while word := words.next:
        if word not in readers:
            raise ImpairmentError(f"{word!r}: expected one of {', '.join(readers)}")
        key, reader = readers[word]
        if key in values:
            raise ImpairmentError(f"{word!r}: expected nothing of its kind before it")
        words.position += 1
        values[key] = reader(words)


def _after(behind: str) -> Callable[[Words], int]:
    def read(words: Words) -> int:
        if words.next != "after":
            return 0
        words.position += 1
        return words.wanted(units.read_size, "a size such as 100k", f"{behind} after")

    return read


def _time(behind: str) -> Callable[[Words], int]:
    return lambda words: words.wanted(lambda word: units.read_time(word) or None, "a time such as 500ms", behind)


def _read_dial(words: Words) -> str:
    word = words.wanted(
        lambda word: word if word in DIAL_FAILURES else None, f"one of {', '.join(DIAL_FAILURES)}", "dial"
    )
    return str(word)


def _read_answer(words: Words) -> tuple[bytes, ...]:
    return words.wanted(_read_addresses, "IPv4 addresses with commas between them", "answer")


def _read_addresses(word: str) -> tuple[bytes, ...] | None:
    try:
        found = tuple(ipaddress.IPv4Address(each).packed for each in word.split(","))
    except ValueError:
        return None
    return found if len(found) <= MAX_ANSWERS else None


def _constant(word: str) -> Callable[[Words], str]:
    return lambda _words: word


_ODDS: Final[dict[str, tuple[str, Callable[[Words], Any]]]] = {
    "chance": ("chance", lambda words: words.wanted(units.read_share, "a share such as 10%", "chance")),
    "seed": ("seed", lambda words: words.wanted(whole_number(MAX_SEED, 0), f"a number from 0 to {MAX_SEED}", "seed")),
}
_STREAM_READERS: Final[dict[str, tuple[str, Callable[[Words], Any]]]] = {
    "dial-delay": ("dial_delay", _time("dial-delay")),
    "dial": ("dial", _read_dial),
    "reset": ("reset_after", _after("reset")),
    "black-hole": ("black_hole_after", _after("black-hole")),
    "slow-close": ("slow_close", _time("slow-close")),
    **_ODDS,
}
_DNS_READERS: Final[dict[str, tuple[str, Callable[[Words], Any]]]] = {
    **{word: ("outcome", _constant(word)) for word in (*DNS_CODES, TIMEOUT)},
    ANSWER: ("outcome", _read_answer),
    "delay": ("delay", _time("delay")),
    **_ODDS,
}
