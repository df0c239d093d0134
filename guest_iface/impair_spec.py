"""Impairments in words: netem's vocabulary, for one direction or both of some links, and some of their frames.

    dir=to-guest delay 50ms 10ms distribution normal loss 1% seed 7
    link=tap* match host 10.0.0.5 and tcp port 443 loss gemodel 1% 10% duplicate 0.1%
    dir=from-guest rate 2mbit limit 100 reorder 25% 50% gap 5 delay 20ms

`str` of what was read reads the same again. Times are nanoseconds inside, rates bits per second, shares per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from guest_iface import units
from guest_iface.frame_filter import Filter, FilterError, parse_words, split_words

TO_GUEST: Final = "to-guest"
FROM_GUEST: Final = "from-guest"
BOTH: Final = "both"
DIRECTIONS: Final = (TO_GUEST, FROM_GUEST, BOTH)
Distribution = Literal["uniform", "normal", "pareto", "paretonormal"]
DISTRIBUTIONS: Final[tuple[Distribution, ...]] = ("uniform", "normal", "pareto", "paretonormal")
DEFAULT_LIMIT: Final = 1000
MAX_LIMIT: Final = 100_000
"""Frames that wait at once."""
MAX_SEED: Final = 2**63 - 1

_Value = TypeVar("_Value")


class ImpairmentError(ValueError):
    """Words that make no impairment; the message names the word and what was expected."""


@dataclass(frozen=True, slots=True)
class Chance:
    """A share of the frames, per cent, and how likely the last outcome is repeated, per cent."""

    percent: float
    correlation: float = 0.0

    def __str__(self) -> str:
        return _shares(self.percent, self.correlation)


@dataclass(frozen=True, slots=True)
class GilbertElliott:
    """Two states, good and bad; how likely each frame changes the state, and is lost in each, per cent."""

    to_bad: float
    to_good: float
    lost_in_bad: float = 100.0
    lost_in_good: float = 0.0

    def __str__(self) -> str:
        return " ".join(
            ["gemodel", *map(units.share_word, (self.to_bad, self.to_good, self.lost_in_bad, self.lost_in_good))]
        )


@dataclass(frozen=True, slots=True)
class StateLoss:
    """netem's chain of four states: how likely each goes to which, per cent."""

    p13: float
    p31: float
    p32: float
    p23: float
    p14: float

    def __str__(self) -> str:
        return " ".join(["state", *map(units.share_word, (self.p13, self.p31, self.p32, self.p23, self.p14))])


Loss = Chance | GilbertElliott | StateLoss


@dataclass(frozen=True, slots=True)
class Delay:
    """How long a frame is held, and how far that strays."""

    time: int
    jitter: int = 0
    correlation: float = 0.0
    distribution: Distribution = "uniform"

    def __str__(self) -> str:
        words = [units.time_word(self.time)]
        if self.jitter:
            words.append(units.time_word(self.jitter))
            if self.correlation:
                words.append(units.share_word(self.correlation))
            words.append(f"distribution {self.distribution}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Slot:
    """Frames go in slots that open `least` to `most` nanoseconds apart; 0 packets or bytes: as many as there are."""

    least: int
    most: int
    packets: int = 0
    size: int = 0

    def __str__(self) -> str:
        words = f"{units.time_word(self.least)} {units.time_word(self.most)}"
        if self.packets:
            words += f" packets {self.packets}"
        return f"{words} bytes {units.size_word(self.size)}" if self.size else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What happens to some frames. The order of the fields is the order of the words."""

    direction: str = BOTH
    link: str = ""
    """Which links, by their names: `*` and `?` as in a shell. Empty: all."""
    match: Filter | None = None
    """Which frames; None: all."""
    delay: Delay | None = None
    loss: Loss | None = None
    duplicate: Chance | None = None
    corrupt: Chance | None = None
    reorder: Chance | None = None
    gap: int = 0
    """With reorder: every so manieth frame may be early. 0: no reordering."""
    rate: int = 0
    """0: as fast as can be."""
    slot: Slot | None = None
    limit: int = DEFAULT_LIMIT
    seed: int | None = None
    """None: any. The same seed has the same fate for the same frames."""

    def __str__(self) -> str:
        words = [] if self.direction == BOTH else [f"dir={self.direction}"]
        if self.link:
            words.append(f"link={self.link}")
        if self.match is not None:
            words.append(f"match ({self.match})")
        for each in ("delay", "loss", "duplicate", "corrupt", "reorder"):
            if (value := getattr(self, each)) is not None:
                words.append(f"{each} {value}")
        if self.gap:
            words.append(f"gap {self.gap}")
        if self.rate:
            words.append(f"rate {units.rate_word(self.rate)}")
        if self.slot is not None:
            words.append(f"slot {self.slot}")
        if self.limit != DEFAULT_LIMIT:
            words.append(f"limit {self.limit}")
        if self.seed is not None:
            words.append(f"seed {self.seed}")
        return " ".join(words)


def _shares(percent: float, correlation: float) -> str:
    return units.share_word(percent) + (f" {units.share_word(correlation)}" if correlation else "")


# -- reading ---------------------------------------------------------------------------------------------------------


def parse_impairment(text: str) -> Impairment:
    """One impairment. Raises ImpairmentError."""
    try:
        words = split_words(text)
        values: dict[str, Any] = {}
        position = 0
        while position < len(words):
            position = _read_one(words, position, values)
        return _checked(values, text)
    except FilterError as error:
        raise ImpairmentError(f"impairment {text!r}: {error}") from error


def _checked(values: dict[str, Any], text: str) -> Impairment:
    if "distribution" in values:
        delay = values.get("delay")
        if delay is None or not delay.jitter:
            raise ImpairmentError(
                f"impairment {text!r}: 'distribution' expects a delay with a jitter, as in delay 50ms 10ms"
            )
        values["delay"] = Delay(delay.time, delay.jitter, delay.correlation, values.pop("distribution"))
    if "reorder" in values:
        if "delay" not in values and "rate" not in values:
            raise ImpairmentError(f"impairment {text!r}: 'reorder' expects a delay that frames can be earlier than")
        values.setdefault("gap", 1)
    elif "gap" in values:
        raise ImpairmentError(f"impairment {text!r}: 'gap' expects reorder PERCENT")
    acts = {"delay", "loss", "duplicate", "corrupt", "rate", "slot"}
    if not acts & values.keys():
        raise ImpairmentError(f"impairment {text!r}: expected something to happen, as in delay 50ms or loss 1%")
    return Impairment(**values)


class Words:
    """Words that are read one after the other."""

    def __init__(self, words: Sequence[str], position: int) -> None:
        self._words = words
        self.position = position

    @property
    def next(self) -> str:
        """The next word, empty at the end."""
        return self._words[self.position] if self.position < len(self._words) else ""

    def wanted(self, read: Callable[[str], _Value | None], expected: str, behind: str) -> _Value:
        """The next word's value. Raises ImpairmentError, which names what was `expected` and `behind` which word."""
        value = read(self.next)
        if value is None:
            raise ImpairmentError(
                f"{behind!r} expects {expected}, not {self.next!r}" if self.next else f"{behind!r} expects {expected}"
            )
        self.position += 1
        return value

    def maybe(self, read: Callable[[str], _Value | None]) -> _Value | None:
        """The next word's value if it has one; else it is left."""
        value = read(self.next)
        if value is not None:
            self.position += 1
        return value

    def shares(self, behind: str, *, least: int, most: int) -> list[float]:
        """So many shares in a row."""
        found = [self.wanted(units.read_share, "a share such as 1%", behind) for _ in range(least)]
        while len(found) < most and (share := self.maybe(units.read_share)) is not None:
            found.append(share)
        return found


def whole_number(most: int, least: int = 1) -> Callable[[str], int | None]:
    """Reads numbers within bounds."""

    def read(word: str) -> int | None:
        return (
            int(word) if word.isascii() and word.isdigit() and len(word) < 20 and least <= int(word) <= most else None
        )

    return read


def _read_one(words: Sequence[str], position: int, values: dict[str, Any]) -> int:
    """Read one word and what belongs to it into `values`; where the next begins."""
    word = words[position]
    name, equals, value = word.partition("=")
    if equals:
        name = {"dir": "direction"}.get(name, name)
    _once(name, values, word)
    if equals and name in ("direction", "link"):
        if name == "direction" and value not in DIRECTIONS:
            raise ImpairmentError(f"{word!r}: expected dir= with one of {', '.join(DIRECTIONS)}")
        if not value:
            raise ImpairmentError(f"{word!r}: expected a link's name, or a pattern such as tap*")
        values[name] = value
        return position + 1
    if word == "match":
        values["match"], position = parse_words(words, position + 1)
        return position
    if word not in _READERS:
        known = ", ".join(("dir=", "link=", "match", *_READERS))
        raise ImpairmentError(f"{word!r}: expected one of {known}")
    reader = Words(words, position + 1)
    values[word] = _READERS[word](reader)
    return reader.position


def _once(name: str, values: dict[str, Any], word: str) -> None:
    if name in values:
        raise ImpairmentError(f"{word!r}: expected once")


def _read_delay(words: Words) -> Delay:
    time = words.wanted(units.read_time, "a time such as 50ms", "delay")
    jitter = words.maybe(units.read_time) or 0
    return Delay(time, jitter, (words.maybe(units.read_share) or 0.0) if jitter else 0.0)


def _read_loss(words: Words) -> Loss:
    model = words.maybe(lambda word: word if word in ("random", "state", "gemodel") else None)
    if model == "state":
        p13, *rest = words.shares("loss state", least=1, most=5)
        p31, p32, p23, p14 = (*rest, *(100 - p13, 0.0, 100.0, 0.0)[len(rest) :])
        if max(p13 + p14, p31 + p32) > 100:
            raise ImpairmentError("'loss state' expects P13 and P14, and P31 and P32, of 100% together at most")
        return StateLoss(p13, p31, p32, p23, p14)
    if model == "gemodel":
        to_bad, *rest = words.shares("loss gemodel", least=1, most=4)
        return GilbertElliott(to_bad, *(*rest, *(100 - to_bad, 100.0, 0.0)[len(rest) :]))
    return Chance(*words.shares("loss", least=1, most=2))


def _read_slot(words: Words) -> Slot:
    least = words.wanted(units.read_time, "a time such as 10ms", "slot")
    most = words.maybe(units.read_time)
    most = least if most is None else most
    if not 0 < least <= most:
        raise ImpairmentError("'slot' expects MIN [MAX], above 0 and MIN no more than MAX")
    packets = size = 0
    while words.next in ("packets", "bytes"):
        word = words.next
        words.position += 1
        if word == "packets":
            packets = words.wanted(whole_number(MAX_LIMIT), f"a number from 1 to {MAX_LIMIT}", word)
        else:
            size = words.wanted(units.read_size, "a size such as 10k", word)
    return Slot(least, most, packets, size)


def _read_distribution(words: Words) -> str:
    return words.wanted(
        lambda word: word if word in DISTRIBUTIONS else None, f"one of {', '.join(DISTRIBUTIONS)}", "distribution"
    )


def _read_chance(behind: str) -> Callable[[Words], Chance]:
    return lambda words: Chance(*words.shares(behind, least=1, most=2))


_READERS: Final[dict[str, Callable[[Words], object]]] = {
    "delay": _read_delay,
    "distribution": _read_distribution,
    "loss": _read_loss,
    "duplicate": _read_chance("duplicate"),
    "corrupt": _read_chance("corrupt"),
    "reorder": _read_chance("reorder"),
    "gap": lambda words: words.wanted(whole_number(MAX_LIMIT), f"a number from 1 to {MAX_LIMIT}", "gap"),
    "rate": lambda words: words.wanted(units.read_rate, "a rate such as 10mbit", "rate"),
    "slot": _read_slot,
    "limit": lambda words: words.wanted(whole_number(MAX_LIMIT), f"a number from 1 to {MAX_LIMIT}", "limit"),
    "seed": lambda words: words.wanted(whole_number(MAX_SEED, 0), f"a number from 0 to {MAX_SEED}", "seed"),
}
