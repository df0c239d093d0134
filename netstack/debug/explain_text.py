"""Stories for people and for programs: a table of flows, one flow told in full, and the same as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from netstack.debug.cause import count_text, seconds_text, size_text
from netstack.debug.flow_analysis import FlowReport

MAX_TITLE: Final = 64
"""Characters of a flow in the table before it is cut in the middle."""
_BAR: Final = 30
"""Characters of a bar that stands for the whole of the time."""


def table(reports: Sequence[FlowReport]) -> Iterator[str]:
    """A line for each conversation: its number, what it is, whether all is well, and why not."""
    shown = [(report, _shortened(report.title)) for report in reports]
    width = max((len(title) for _, title in shown), default=0)
    digits = max((len(str(report.number)) for report in reports), default=1)
    for report, title in shown:
        mark = "ok" if report.cause.fine else "!!"
        number = report.number if report.number > 0 else "-"
        yield f"{number:>{digits}}  {title:<{width}}  {mark}  {printable(report.cause.says)}"


def summary(reports: Sequence[FlowReport], packets: int, others: dict[str, int]) -> str:
    """One line about the whole capture."""
    bad = sum(not report.cause.fine for report in reports)
    said = f"{count_text(packets, 'packet')}, {count_text(len(reports), 'flow')}, {bad} with something wrong"
    if others:
        named = ", ".join(f"{number} {word}" for word, number in sorted(others.items(), key=lambda each: -each[1])[:4])
        said += f"; in no flow: {named}"
    return said


def story(report: FlowReport) -> Iterator[str]:
    """One conversation in full."""
    yield f"flow {report.number}: {printable(report.title)}" if report.number > 0 else printable(report.title)
    began = datetime.fromtimestamp(report.begin, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
    sizes = " and ".join(
        f"{count_text(packets, 'packet')} ({size_text(size)}) {word}" if packets else f"{size_text(size)} {word}"
        for packets, size, word in zip(report.packets, report.payload_bytes, ("out", "back"), strict=True)
    )
    yield f"  {began}, {seconds_text(report.end - report.begin)}; {sizes}"
    if report.gateway_flow:
        yield f"  the gateway's flow {report.gateway_flow}"
    yield ""
    yield f"  {'All is well' if report.cause.fine else 'Cause'}: {printable(report.cause.says)}"
    if report.cause.advice:
        yield f"  Change: {printable(report.cause.advice)}"
    yield f"  ({report.cause.word})"
    yield ""
    for step in report.steps:
        yield f"  {step.time - report.begin:>+12.6f}  {printable(step.text)}"
    if report.shares:
        yield ""
        yield "  Where the time went:"
        for word, share in sorted(report.shares.items(), key=lambda each: -each[1]):
            if share >= 0.005:
                bar = "#" * max(1, round(share * _BAR))
                yield f"    {word:<16} {share:>4.0%}  {bar}"
    if report.figures:
        yield ""
        for key, value in report.figures.items():
            yield f"    {key:<30} {_figure(key, value)}"


def _figure(key: str, value: float) -> str:
    if key.endswith("_bytes_per_second"):
        return f"{size_text(value)}/s"
    return seconds_text(value) if key.endswith("_seconds") else f"{value:,}"


def as_values(report: FlowReport) -> dict[str, object]:
    """A report as JSON has it: times in seconds since 1970, shares as parts of 1."""
    values = asdict(report)
    values["cause"] = report.cause._asdict()
    values["steps"] = [step._asdict() for step in report.steps]
    values["shares"] = {word: round(share, 4) for word, share in report.shares.items()}
    return values


def _shortened(title: str) -> str:
    title = printable(title)
    if len(title) <= MAX_TITLE:
        return title
    half = (MAX_TITLE - 3) // 2
    return f"{title[:half]}...{title[-half:]}"


def printable(text: str) -> str:
    """One line of visible characters: some of the words are a guest's."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
