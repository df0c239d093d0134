"""`python -m bench.sweep`: TCP throughput over MTU x loss x flows on a wire with a delay, as text, JSON and plots.

bridge.c loses the frames, in both directions and the same ones each time, and holds them half of the delay each way.
No cell may be empty: a stack that collapses anywhere in this range has a defect.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final

import click

from bench import plots, report
from bench.command import Display, checkouts_option, choose, prepared_tools, present
from bench.lab import BenchError, Session, Tools, Wire
from bench.measure import running
from bench.peers import PEERS, Peer, with_checkouts
from bench.rows import receiving, sending

MTUS: Final = (1280, 1500, 4000, 9000, 16000, 65520)
LOSSES: Final = (0.0, 0.1, 1.0, 3.0, 5.0)
FLOWS: Final = (1, 8, 64)
QUICK: Final = ((1280, 1500, 65520), (0.0, 1.0, 5.0), (1, 64), 1.0)
"""MTUs, losses, flows and seconds of --quick."""
DEFAULT_PEERS: Final = ("netstack", "slirp4netns")
COMPARABLE: Final = 0.8
"""With loss and 20 ms delay at least so much of slirp4netns's throughput is wanted."""


@dataclass(frozen=True, order=True)
class Cell:
    """One combination. `loss` in per cent."""

    mtu: int
    loss: float
    flows: int
    up: bool


Cells = dict[Cell, dict[str, list[float]]]
"""Gbit/s by peer, a sample a round; fewer where samples failed."""


def _numbers(kind: type[int] | type[float], low: float, high: float) -> Callable[..., Sequence[float]]:
    """Reads comma-separated numbers within bounds."""

    def read(_context: click.Context, _option: click.Parameter, text: str) -> Sequence[float]:
        try:
            numbers = [kind(word) for word in text.split(",")]
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not a list of numbers, comma-separated") from error
        if any(not low <= number <= high for number in numbers):
            raise click.BadParameter(f"each has to be within {low:g} to {high:g}")
        return numbers

    return read


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _sample(session: Session, peer: Peer, cell: Cell, seconds: float) -> float:
    # A sample of nothing is a failure: it raises.
    measure = sending(cell.flows) if cell.up else receiving(cell.flows)
    return measure(session, peer, seconds).value


def sweep(
    peers: Sequence[Peer],
    tools: Tools,
    display: Display,
    cells: Cells,
    *,
    mtus: Sequence[int],
    losses: Sequence[float],
    flows: Sequence[int],
    delay: float,
    seconds: float,
    rounds: int,
) -> None:
    """Fill `cells`. For each wire the peers are started in turn; a new one each round, with other frames lost."""
    for mtu, loss, number in product(mtus, losses, range(rounds)):
        wire = Wire(mtu=mtu, loss=loss / 100, delay=delay / 1000, seed=number + 1)
        for peer in peers:
            try:
                with running(peer, tools, wire) as session:
                    for count, up in product(flows, (True, False)):
                        cell = Cell(mtu, loss, count, up)
                        display.begin(_title(cell, peer.name))
                        try:
                            taken = [_sample(session, peer, cell, seconds)]
                        except BenchError as error:
                            display.failed(f"{_title(cell, peer.name)}: {error}")
                            taken = []
                        cells.setdefault(cell, {}).setdefault(peer.name, []).extend(taken)
            except BenchError as error:
                for count, up in product(flows, (True, False)):
                    cells.setdefault(Cell(mtu, loss, count, up), {}).setdefault(peer.name, [])
                display.failed(f"MTU {mtu}, loss {loss:g} %, {peer.name}: {error}")


def _title(cell: Cell, peer: str) -> str:
    return f"MTU {cell.mtu}, loss {cell.loss:g} %, {cell.flows} flows, {plots.WAYS[cell.up]}: {peer}"


def figure(cells: Cells, cell: Cell, peer: str) -> float | None:
    """The median of a cell's samples, None where there is none."""
    samples = cells.get(cell, {}).get(peer)
    return statistics.median(samples) if samples else None


def as_text(cells: Cells, peers: Sequence[str], host: Mapping[str, str], options: Mapping[str, Any]) -> str:
    """A table for each way and number of flows: a line for each MTU and peer, a column for each loss."""
    losses = sorted({cell.loss for cell in cells})
    lines = [
        f"TCP throughput in Mbit/s, {host['cpu']}, Linux {host['kernel']}, {host['python']}, {host['date']}",
        f"round trip {options['delay']:g} ms longer, loss in each direction, medians of {options['rounds']} x "
        f"{options['seconds']:g} s; load average before: {host['load before']}",
    ]
    for up, flows in sorted({(not cell.up, cell.flows) for cell in cells}):
        lines += ["", f"{plots.WAYS[not up]}, {flows} flow{'s' if flows > 1 else ''}"]
        lines.append(f"{'MTU':>6} {'':15}" + "".join(f"{f'{loss:g} %':>10}" for loss in losses))
        for mtu, peer in product(sorted({cell.mtu for cell in cells}), peers):
            shown = "".join(f"{_shown(cells, Cell(mtu, loss, flows, not up), peer):>10}" for loss in losses)
            lines.append(f"{mtu:>6} {peer:15}{shown}")
    return "\n".join([*lines, "", *_remarks(cells, peers)]) + "\n"


def _shown(cells: Cells, cell: Cell, peer: str) -> str:
    if peer not in cells.get(cell, {}):
        return "-"
    value = figure(cells, cell, peer)
    return "failed" if value is None else _megabits(value)


def _megabits(gigabits: float) -> str:
    return report.number(gigabits * 1000)


def _remarks(cells: Cells, peers: Sequence[str]) -> Iterator[str]:
    """Whether every cell has a figure; where more MTU gives less; how the first peer compares with the others."""
    empty = [(cell, peer) for cell in sorted(cells) for peer, samples in cells[cell].items() if not samples]
    yield f"cells without a figure: {len(empty)} of {sum(len(of_peers) for of_peers in cells.values())}"
    for cell, peer in empty:
        yield f"  {_title(cell, peer)}"
    for dip in dips(cells, peers[0]):
        yield f"dip: {dip}"
    for other in peers[1:]:
        ratios = sorted(
            (mine / theirs, cell)
            for cell in cells
            if (mine := figure(cells, cell, peers[0])) and (theirs := figure(cells, cell, other))
        )
        if ratios:
            low = [(ratio, cell) for ratio, cell in ratios if cell.loss and ratio < COMPARABLE]
            yield (
                f"{peers[0]} / {other}: median {statistics.median(ratio for ratio, _ in ratios):.2f}, lowest "
                f"{ratios[0][0]:.2f}; below {COMPARABLE:g} with loss in {len(low)} cells"
            )
            for ratio, cell in low:
                yield f"  {ratio:.2f}: {_title(cell, peers[0])}"


def dips(cells: Cells, peer: str) -> list[str]:
    """Where a larger MTU gives less than half of what the next smaller one does: to be explained."""
    found = []
    mtus = sorted({cell.mtu for cell in cells})
    for smaller, larger in pairwise(mtus):
        for cell in sorted(cell for cell in cells if cell.mtu == larger):
            below, here = (
                figure(cells, Cell(smaller, cell.loss, cell.flows, cell.up), peer),
                figure(cells, cell, peer),
            )
            if below and here and here < below / 2:
                found.append(f"{_title(cell, peer)}: {_megabits(here)} after {_megabits(below)} at MTU {smaller}")
    return found


def as_json(cells: Cells, versions: Mapping[str, str], host: Mapping[str, str], options: Mapping[str, Any]) -> str:
    """Everything as JSON."""
    plain = [
        {"mtu": cell.mtu, "loss_percent": cell.loss, "flows": cell.flows, "up": cell.up, "gbit_per_s": samples}
        for cell, samples in cells.items()
    ]
    document = {"format": report.FORMAT, "machine": host, "options": options, "peers": versions, "cells": plain}
    return json.dumps(document, indent=1) + "\n"


def plot(cells: Cells, peers: Sequence[str], directory: Path) -> None:
    """Throughput against MTU (no loss), flows (no loss, MTU 1500 or the next) and loss (the same MTU); the rest at its
    least.
    """
    mtus, losses, flows = (sorted({getattr(cell, key) for cell in cells}) for key in ("mtu", "loss", "flows"))
    usual = min(mtus, key=lambda mtu: abs(mtu - 1500))
    axes: dict[str, list[tuple[float, Cell]]] = {
        "MTU": [(mtu, Cell(mtu, losses[0], flows[0], up=True)) for mtu in mtus],
        "flows": [(count, Cell(usual, losses[0], count, up=True)) for count in flows],
        "loss, per cent": [(loss, Cell(usual, loss, flows[0], up=True)) for loss in losses],
    }
    for varied, places in axes.items():
        panels = []
        for up, way in plots.WAYS.items():
            points = {
                peer: [
                    (at, value)
                    for at, cell in places
                    if (value := figure(cells, replace(cell, up=up), peer)) is not None
                ]
                for peer in peers
            }
            panels.append((way, varied, points))
        name = varied.partition(",")[0].lower()
        plots.draw(panels, directory / f"throughput-{name}.svg", logarithmic=varied in ("MTU", "flows"))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--peers", help=f"Comma-separated: {', '.join(PEERS)}. Default: {', '.join(DEFAULT_PEERS)}.")
@checkouts_option
@click.option("--mtus", callback=_numbers(int, 576, 65521), default=_listed(MTUS), show_default=True)
@click.option(
    "--losses",
    callback=_numbers(float, 0, 50),
    default=_listed(LOSSES),
    show_default=True,
    help="Per cent of the frames, in each direction.",
)
@click.option("--flows", callback=_numbers(int, 1, 1000), default=_listed(FLOWS), show_default=True)
@click.option(
    "--delay",
    type=click.FloatRange(0, 1000),
    default=20.0,
    show_default=True,
    help="Milliseconds that the wire adds to a round trip.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="Seconds a sample lasts."
)
@click.option(
    "--repeat", "rounds", type=click.IntRange(1, 100), default=1, show_default=True, help="Samples per cell and peer."
)
@click.option("--quick", is_flag=True, help="The corners, a second each.")
@click.option("--text", "text_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the text here too.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all samples here.")
@click.option(
    "--plots",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write throughput-mtu.svg, -flows.svg and -loss.svg into this directory (needs the extra `plots`).",
)
def main(
    peers: str | None,
    checkouts: dict[str, Path],
    mtus: Sequence[int],
    losses: Sequence[float],
    flows: Sequence[int],
    delay: float,
    seconds: float,
    rounds: int,
    quick: bool,
    text_file: Path | None,
    json_file: Path | None,
    directory: Path | None,
) -> None:
    """Measure TCP throughput over MTU, loss and flows on a wire with a delay, the first peer next to the others.

    The status is 1 when a cell has no figure.
    """
    if directory is not None:
        plots.require()
    if quick:
        mtus, losses, flows, seconds = QUICK
    known = {name: peer for name, peer in with_checkouts(checkouts).items() if peer.lossy}
    names = choose("--peers", peers, list(known), list(checkouts) or DEFAULT_PEERS)
    versions = present(names, known, asked_for=peers not in (None, "all"))
    measured = [known[name] for name in versions]
    host = report.machine()
    options = {"delay": delay, "seconds": seconds, "rounds": rounds}
    cells: Cells = {}
    samples = len(mtus) * len(losses) * len(flows) * 2 * rounds * len(measured)
    with prepared_tools() as tools:
        try:
            with Display(samples) as display:
                sweep(
                    measured,
                    tools,
                    display,
                    cells,
                    mtus=mtus,
                    losses=losses,
                    flows=flows,
                    delay=delay,
                    seconds=seconds,
                    rounds=rounds,
                )
        finally:
            text = as_text(cells, list(versions), host, options) if cells else ""
            click.echo(text)
            if text_file is not None:
                text_file.write_text(text)
            if json_file is not None:
                json_file.write_text(as_json(cells, versions, host, options))
    if directory is not None:
        plot(cells, list(versions), directory)
    if not all(samples for of_peers in cells.values() for samples in of_peers.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
