"""Pictures of a conversation by matplotlib (the extra `plots`): a sequence diagram, and what tcptrace draws: data,
ACKs, window, losses and SACKs over time, with the throughput below.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from netstack.debug.explain_text import printable
from netstack.debug.seen_flows import SeenFlow
from netstack.debug.seen_packets import endpoint_text
from netstack.debug.sequence_diagram import arrows
from netstack.debug.tcp_timeline import CLIENT, SERVER, Mark, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = (".svg", ".png", ".pdf")
MAX_ROWS: Final = 120
"""Rows of a drawn sequence diagram; more than fit one look are left out in the middle."""
BINS: Final = 80
"""Pieces the time is cut into for the throughput."""
_DATA, _AGAIN, _ACK, _WINDOW, _SACK, _INK = "#1f4e8c", "#d62728", "#2ca02c", "#e08a00", "#9467bd", "#333333"
_UNFIT: Final = "#bbbbbb"


class PlotError(Exception):
    """A picture cannot be made; the message says why and what to do."""


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("pictures need matplotlib: install netstack[plots]") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise PlotError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise PlotError(f"{path}: {error.strerror}") from error


def draw_diagram(flow: SeenFlow, path: Path) -> None:
    """The sequence diagram into a file, its kind by the name's end. Raises PlotError."""
    rows = arrows(flow)
    if len(rows) > MAX_ROWS:
        rows = [*rows[: MAX_ROWS // 2], *rows[-MAX_ROWS // 2 :]]
    figure = _figure(10, max(3.0, 1.2 + 0.27 * len(rows)))
    axes = figure.add_subplot()
    bottom = len(rows) + 0.5
    for x, words in ((0.0, endpoint_text(flow.client)), (1.0, endpoint_text(flow.server))):
        axes.plot([x, x], [0, bottom], color=_INK, linewidth=1.2)
        axes.text(x, -0.5, words, ha="center", va="bottom", fontsize=9, fontweight="bold")
    for place, row in enumerate(rows, 1):
        colour = _AGAIN if row.special else _INK
        label = printable(row.label)
        label = label if len(label) <= 90 else f"{label[:87]}..."
        axes.text(-0.03, place, f"{row.time - flow.begin:.6f}", ha="right", va="center", fontsize=7, color="#777777")
        if row.side < 0:
            axes.text(0.5, place, label, ha="center", va="center", fontsize=7.5, color=colour, style="italic")
            continue
        begin, end = (0.0, 1.0) if row.side == CLIENT else (1.0, 0.0)
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": colour, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(end, place + 0.12), xytext=(begin, place + 0.12), arrowprops=arrow)
        axes.text(0.5, place, label, ha="center", va="bottom", fontsize=7.5, color=colour)
    axes.set_xlim(-0.2, 1.15)
    axes.set_ylim(bottom, -1.6)
    axes.axis("off")
    _save(figure, path)


def draw_plot(flow: SeenFlow, path: Path) -> None:
    """Time-sequence plot of the direction with more data, and the throughput of both. Raises PlotError."""
    timeline = flow.timeline
    if timeline is None:
        raise PlotError(f"flow {flow.number} is {flow.kind}: only TCP has sequence numbers to plot")
    side = CLIENT if timeline.client.data_bytes > timeline.server.data_bytes else SERVER
    figure = _figure(10, 7.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _time_sequence(upper, flow, timeline, side)
    _throughput(lower, flow, timeline)
    _save(figure, path)


def _time_sequence(axes: Axes, flow: SeenFlow, timeline: Timeline, side: int) -> None:
    sent = [mark for mark in timeline.marks if mark.side == side and mark.end > mark.start]
    heard = [mark for mark in timeline.marks if mark.side != side and mark.acknowledged]
    for again, colour, label in ((False, _DATA, "data"), (True, _AGAIN, "retransmission")):
        these = [mark for mark in sent if (mark.note == "retransmission") == again]
        if these:
            _bars(axes, these, flow.begin, colour, label, 2.4 if again else 1.4)
    if heard:
        times = [mark.time - flow.begin for mark in heard]
        axes.step(times, [mark.acknowledged for mark in heard], where="post", color=_ACK, linewidth=1, label="ACK")
        if timeline.halves[side].scale_known:
            edges = [mark.edge for mark in heard]
            axes.step(times, edges, where="post", color=_WINDOW, linewidth=1, label="window edge")
    blocks = [(mark.time - flow.begin, left, right) for mark in heard for left, right in mark.sack]
    if blocks:
        told, lefts, rights = zip(*blocks, strict=True)
        axes.vlines(told, lefts, rights, color=_SACK, linewidth=1, alpha=0.7, label="SACK")
    _shut(axes, flow, timeline, side)
    top = max((mark.end for mark in sent), default=1)
    axes.set_ylim(-0.03 * top, top * 1.12)
    axes.set_ylabel("bytes of the stream")
    who = "client to server" if side == CLIENT else "server to client"
    axes.set_title(f"{endpoint_text(flow.client)} > {endpoint_text(flow.server)}, {who}", fontsize=10)
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    axes.grid(color="#eeeeee")


def _bars(axes: Axes, marks: list[Mark], begin: float, colour: str, label: str, width: float) -> None:
    times = [mark.time - begin for mark in marks]
    axes.vlines(
        times,
        [mark.start for mark in marks],
        [mark.end for mark in marks],
        color=colour,
        linewidth=width,
        label=label,
        zorder=3,
    )


def _shut(axes: Axes, flow: SeenFlow, timeline: Timeline, side: int) -> None:
    """Grey where the window was shut."""
    for number, (begin, end) in enumerate(timeline.halves[side].zero_windows):
        label = "window shut" if number == 0 else None
        axes.axvspan(begin - flow.begin, end - flow.begin, color=_UNFIT, alpha=0.4, linewidth=0, label=label)


def _throughput(axes: Axes, flow: SeenFlow, timeline: Timeline) -> None:
    span = max(flow.end - flow.begin, 1e-6)
    width = span / BINS
    for side, colour, label in ((CLIENT, _WINDOW, "client to server"), (SERVER, _DATA, "server to client")):
        bins = [0.0] * (BINS + 1)
        for mark in timeline.marks:
            segment = mark.packet.segment
            if mark.side == side and segment is not None and mark.note != "retransmission":
                bins[min(BINS, int((mark.time - flow.begin) / width))] += segment.length
        if any(bins):
            rates = [size * 8 / width / 1e6 for size in bins]
            axes.step([width * place for place in range(BINS + 1)], rates, where="post", color=colour, label=label)
    axes.set_ylabel("Mbit/s")
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    axes.grid(color="#eeeeee")
