"""Throughput drawn: against flows from a run of the rows, against MTU, flows and loss from a sweep.

matplotlib is the extra `plots`, imported when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bench.rows import BULK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Mapping[str, Sequence[tuple[float, float]]]
"""By peer: what is varied, and Gbit/s."""
WAYS: Final = {True: "guest to host", False: "host to guest"}


def require() -> None:
    """Raises ClickException where there is no matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise click.ClickException("plots need matplotlib: pip install 'netstack[plots]'") from error
    mpl.use("svg")


def draw(panels: Sequence[tuple[str, str, Points]], path: Path, *, logarithmic: bool) -> None:
    """Draw panels (title, what is varied, points) side by side into an SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    every: list[Axes] = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for axes, (title, varied, points) in zip(every, panels, strict=True):
        for peer, line in points.items():
            axes.plot([at for at, _ in line], [value for _, value in line], marker="o", markersize=4, label=peer)
        ticks = sorted({at for line in points.values() for at, _ in line})
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.set(title=title, xlabel=varied, ylabel="Gbit/s")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    every[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def plot_flows(document: Mapping[str, Any], directory: Path) -> None:
    """Throughput against flows, a panel for each way and MTU, of a run's document; nothing without such rows."""
    group = document["groups"][0]
    panels = []
    for up, mtu in ((up, mtu) for mtu in (None, 65520) for up in WAYS):
        points: dict[str, list[tuple[float, float]]] = {}
        for name, bulk in BULK.items():
            if name not in group["rows"] or (bulk.up, bulk.mtu, bulk.offload) != (up, mtu, False):
                continue
            for peer, summary in group["rows"][name]["lines"]["value"]["peers"].items():
                points.setdefault(peer, []).append((bulk.flows, summary["median"]))
        if points:
            panels.append((f"{WAYS[up]}, MTU {mtu or document['options']['mtu']}", "flows", points))
    if panels:
        draw(panels, directory / "throughput-flows.svg", logarithmic=True)
