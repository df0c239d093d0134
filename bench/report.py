"""From samples to medians, spreads and ratios; as a table for people and as JSON for programs."""

from __future__ import annotations

import platform
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.peers import Peer
from bench.rows import Row, Sample

FORMAT: Final = 2
"""Version of the JSON this writes."""
NARROWEST: Final = 68
"""Characters of the table without its peers."""
PER_PEER: Final = 26
"""Characters that each peer adds."""


@dataclass(frozen=True)
class Summary:
    """One figure of one peer: the median of its rounds, and how far it is ahead of the base.

    `ratio` is the median of the ratios taken within each round, above 1 where this peer is better than the base (higher
    or lower, whichever is better), None for the base itself and where one of the two has no sample.
    """

    median: float
    low: float
    high: float
    samples: list[float]
    ratio: float | None


@dataclass(frozen=True)
class Line:
    """One line of the table: a row's value, or one of its details."""

    title: str
    unit: str
    higher_is_better: bool
    peers: dict[str, Summary] = field(default_factory=dict)


@dataclass(frozen=True)
class RowResult:
    """What a row gave: its lines by key ("value" and the details), failed operations and failed samples by peer."""

    lines: dict[str, Line]
    errors: dict[str, int]
    failures: dict[str, list[str]]


Round = Mapping[str, Sample | str]
"""One turn through the peers: a sample each, or why there is none."""


def summarise(row: Row, rounds: Sequence[Round], base: str) -> RowResult:
    """Turn a row's rounds into medians and ratios against the peer `base`."""
    names = list(dict.fromkeys(name for turn in rounds for name in turn))
    lines = {"value": Line(row.title, row.unit, row.higher_is_better)}
    lines |= {key: Line(detail.title, detail.unit, False) for key, detail in row.details.items()}
    for key, line in lines.items():
        for name in names:
            samples = _samples(rounds, name, key)
            if not samples:
                continue
            ratio = None
            if name != base:
                ratio = ratio_of(rounds, name, base, key, higher_is_better=line.higher_is_better)
            line.peers[name] = Summary(statistics.median(samples), min(samples), max(samples), samples, ratio)
    errors: dict[str, int] = {}
    failures: dict[str, list[str]] = {}
    for turn in rounds:
        for name, outcome in turn.items():
            if isinstance(outcome, str):
                failures.setdefault(name, []).append(outcome)
            elif outcome.errors:
                errors[name] = errors.get(name, 0) + outcome.errors
    return RowResult({key: line for key, line in lines.items() if line.peers or key == "value"}, errors, failures)


def _figure(outcome: Sample | str | None, key: str) -> float | None:
    if not isinstance(outcome, Sample):
        return None
    return outcome.value if key == "value" else outcome.details.get(key)


def _samples(rounds: Sequence[Round], name: str, key: str) -> list[float]:
    return [sample for turn in rounds if (sample := _figure(turn.get(name), key)) is not None]


def figure(rounds: Sequence[Round], name: str, key: str) -> float | None:
    """The median of a peer's samples; None where it has none."""
    samples = _samples(rounds, name, key)
    return statistics.median(samples) if samples else None


def ratio_of(rounds: Sequence[Round], ours: str, theirs: str, key: str, *, higher_is_better: bool) -> float | None:
    """The median of the ratios within each round, above 1 where `ours` is better; None where there is no such round."""
    ratios = []
    for turn in rounds:
        mine, other = _figure(turn.get(ours), key), _figure(turn.get(theirs), key)
        if mine and other:
            ratios.append(mine / other if higher_is_better else other / mine)
    return statistics.median(ratios) if ratios else None


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": f"{len(_cpus())} x {cpu[1] if cpu else platform.machine()}",
        "memory": f"{int(memory[1]) / 1e6:.0f} GB" if memory else "unknown",
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load before": Path("/proc/loadavg").read_text().split()[0],
    }


def _cpus() -> list[str]:
    return re.findall(r"^processor\s*:", Path("/proc/cpuinfo").read_text(), re.MULTILINE)


def as_json(
    results: Mapping[str, RowResult], peers: Sequence[Peer], versions: Mapping[str, str], base: str
) -> dict[str, Any]:
    """Everything of a group of rows as plain values."""
    return {
        "base": base,
        "peers": {peer.name: {"link": peer.link, "version": versions[peer.name]} for peer in peers},
        "rows": {name: asdict(result) for name, result in results.items()},
    }


def number(value: float) -> str:
    """Three significant digits, thousands separated: 0.234, 1.75, 23.4, 5,330."""
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def tables(
    results: Mapping[str, RowResult],
    peers: Sequence[Peer],
    host: Mapping[str, str],
    options: Mapping[str, Any],
    base: str,
    width: int,
) -> list[Table]:
    """The results: a line for each row and detail, a column for each peer; as many tables as `width` makes of that."""
    columns = max(1, (width - NARROWEST) // PER_PEER)
    parts = [peers[at : at + columns] for at in range(0, len(peers), columns)]
    shown = [_table(results, part, base) for part in parts]
    shown[0].title = (
        f"{host['cpu']}, Linux {host['kernel']}, {host['python']}, {host['date']}\n"
        f"MTU {options['mtu']}, {options['rounds']} x {options['seconds']:g} s, every peer in turn; "
        f"load average before: {host['load before']}"
    )
    shown[-1].caption = (
        "Medians of the rounds, ± half the distance from lowest to highest. "
        f"x1.50: 1.5 times as good as {base}, x0.50: half as good; medians over the rounds."
    )
    shown[-1].caption_justify = "left"
    return shown


def _table(results: Mapping[str, RowResult], peers: Sequence[Peer], base: str) -> Table:
    shown = Table()
    shown.add_column("", no_wrap=True)
    shown.add_column("unit")
    for peer in peers:
        shown.add_column(f"{peer.name}\n{peer.link}{', base' if peer.name == base else ''}", no_wrap=True)
    for result in results.values():
        for key, line in result.lines.items():
            cells = [_cell(line.peers.get(peer.name), result, peer.name, key) for peer in peers]
            title = line.title if key == "value" else f"  {line.title}"
            shown.add_row(Text(title, style="" if key == "value" else "dim"), line.unit, *cells)
    return shown


def _cell(summary: Summary | None, result: RowResult, peer: str, key: str) -> Text:
    failed = len(result.failures.get(peer, ())) if key == "value" else 0
    if summary is None:
        return Text("failed" if failed else "-", style="red" if failed else "dim")
    half_spread = (summary.high - summary.low) / 2 / summary.median * 100 if summary.median else 0.0
    cell = Text(f"{number(summary.median):>7}")
    if len(summary.samples) > 1:
        cell.append(f" {f'±{half_spread:.0f}%':>5}", style="dim")
    if summary.ratio is not None:
        cell.append(f" {'x' + number(summary.ratio):>6}", style="green" if summary.ratio >= 1 else "red")
    if failed:
        cell.append(f" {failed} failed", style="red")
    return cell


def notes(results: Mapping[str, RowResult], versions: Mapping[str, str]) -> list[str]:
    """What the table has no room for: versions, failed operations, reasons of failed samples."""
    lines = [f"{name}: {version}" for name, version in versions.items()]
    for row, result in results.items():
        lines += [f"{row}, {peer}: {count} operations failed" for peer, count in result.errors.items()]
        for peer, reasons in result.failures.items():
            lines += [f"{row}, {peer}: {reason}" for reason in dict.fromkeys(reasons)]
    return lines


def output_console(peers: int) -> Console:
    """Standard output, wide enough for a table of so many peers where it is a file or a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=NARROWEST + PER_PEER * peers)
