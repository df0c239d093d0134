"""What netstack wants to reach, and whether it has: ratios to a peer of the same run, and a few absolute figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table
from rich.text import Text

from bench.report import Round, RowResult, figure, number, ratio_of
from bench.rows import BULK, CPU, P99, ROWS, Row

_PLAIN: Final = tuple(name for name, bulk in BULK.items() if bulk.mtu is None and not bulk.offload)
_JUMBO_UP: Final = tuple(name for name, bulk in BULK.items() if bulk.up and (bulk.mtu or bulk.offload))
_JUMBO_DOWN: Final = tuple(name for name, bulk in BULK.items() if not bulk.up and bulk.mtu)
_UP: Final = tuple(name for name in _PLAIN if BULK[name].up)
_DOWN: Final = tuple(name for name in _PLAIN if not BULK[name].up)
_RATES: Final = ("tcp-rr", "udp-rr", "udp-new-flow", "udp-flood-up", "udp-flood-down")
_DNS: Final = ("dns-zone", "dns-zone-50", "dns-forward", "dns-forward-50")
_RULES: Final = tuple(
    f"rules-{name}"
    for name in ("crr", "crr-16", "web", "web-16", "rr", "up", "down", "udp-new-flow", "dns-zone", "dns-cached",
                 "dns-forward", "dns-forward-50")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is wanted of some rows: to be `least` times as good as a peer, or below a figure."""

    rows: Sequence[str]
    key: str = "value"
    """The row's value, or one of its details."""
    ours: str = "netstack"
    against: str | None = None
    """The peer of a ratio; None for a figure."""
    least: float = 0.0
    most: float = 0.0
    moonshot: bool = False
    """Wanted, and not promised."""


@dataclass(frozen=True)
class Outcome:
    """A target next to what was measured. `figure` is a ratio where there is a peer, a median otherwise."""

    row: str
    key: str
    ours: str
    against: str | None
    figure: float
    wanted: float
    met: bool
    moonshot: bool


def _same_link() -> Iterator[Target]:
    for ours, against in (("netstack", "gvproxy"), ("netstack-qemu", "gvproxy-qemu")):
        for rows, least in (
            (_UP, 1.2), (_DOWN, 1.5), (_JUMBO_UP, 1.3), (_JUMBO_DOWN, 2.5), (_RATES, 1.0), (_DNS, 1.0),
            (("tcp-crr", "tcp-crr-16"), 1.2), (("tcp-crr-64",), 5.0), (("hang",), 1.0),
            (("forward-crr", "forward-crr-16"), 1.0),
        ):  # fmt: skip
            yield Target(rows=rows, ours=ours, against=against, least=least)
        yield Target(rows=("tcp-up", "tcp-down"), key=CPU, ours=ours, against=against, least=1.0)


def _observed(slower: float, peer: str) -> Target:
    rows = tuple(f"seen-{name}" for name in ("crr", "crr-16", "rr", "up", "down", "udp-new-flow", "dns-zone"))
    return Target(rows=rows, ours=peer, against="unseen", least=slower)


TARGETS: Final = (
    *_same_link(),
    *(Target(rows=_JUMBO_UP + _JUMBO_DOWN, against=peer, least=1.0) for peer in ("slirp4netns", "passt")),
    Target(rows=_UP, ours="netstack-tap", against="slirp4netns", least=5.0),
    Target(rows=_DOWN, ours="netstack-tap", against="slirp4netns", least=2.0),
    Target(rows=("tcp-crr-64",), key=P99, most=50_000),
    Target(rows=("start",), most=250),
    Target(rows=("memory",), most=60),
    Target(rows=("memory",), key="flows_5000_mb", most=110),
    # Given back: no more than what is allowed at rest.
    Target(rows=("memory",), key="closed_mb", most=60),
    Target(rows=_RULES, ours="list-1k", against="no-list", least=0.95),
    _observed(0.75, "capture"),
    _observed(0.95, "events"),
    Target(rows=("tcp-rr", "tcp-crr", "tcp-crr-16", "tcp-crr-64"), against="slirp4netns", least=1.0, moonshot=True),
    Target(rows=_UP + _DOWN, against="bridge", least=1.0, moonshot=True),
    Target(rows=tuple(ROWS), against="passt", least=1.0, moonshot=True),
)


def judge(row: Row, turns: Sequence[Round]) -> list[Outcome]:
    """The targets of a row for which there are figures, met or missed."""
    outcomes: dict[tuple[str, str, str | None], Outcome] = {}
    for target in TARGETS:
        if row.name not in target.rows:
            continue
        higher = row.higher_is_better and target.key == "value"
        if target.against is None:
            measured = figure(turns, target.ours, target.key)
            wanted, met = target.most, measured is not None and measured <= target.most
        else:
            measured = ratio_of(turns, target.ours, target.against, target.key, higher_is_better=higher)
            wanted, met = target.least, measured is not None and measured >= target.least
        if measured is not None:
            outcome = Outcome(row.name, target.key, target.ours, target.against, measured, wanted, met, target.moonshot)
            outcomes.setdefault((target.key, target.ours, target.against), outcome)
    return list(outcomes.values())


def table(outcomes: Sequence[Outcome], results: Mapping[str, RowResult]) -> Table:
    """Every target next to its figure; what is only hoped for comes last."""
    missed = sum(not outcome.met for outcome in outcomes if not outcome.moonshot)
    promised = sum(not outcome.moonshot for outcome in outcomes)
    hopes = "; moonshots below the line" if promised < len(outcomes) else ""
    shown = Table(title=f"Targets: {promised - missed} of {promised} met{hopes}")
    for heading in ("", "figure", "", "against", "measured", "wanted", ""):
        shown.add_column(heading, no_wrap=True)
    for moonshot in (False, True):
        shown.add_section()
        for outcome in (outcome for outcome in outcomes if outcome.moonshot is moonshot):
            lines = results[outcome.row].lines
            line, ratio = lines[outcome.key], outcome.against is not None
            shown.add_row(
                lines["value"].title,
                "" if outcome.key == "value" else line.title,
                outcome.ours,
                outcome.against or "",
                f"x{number(outcome.figure)}" if ratio else f"{number(outcome.figure)} {line.unit}",
                f"x{number(outcome.wanted)}" if ratio else f"below {number(outcome.wanted)}",
                Text("met", style="green") if outcome.met else Text("missed", style="red"),
            )
    return shown
