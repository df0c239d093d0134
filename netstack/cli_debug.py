"""`netstack explain`, `trace` and `console`: what a capture or a running gateway has to say.

Only click is imported here; what a command needs it imports when it runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from netstack.debug.flow_analysis import Analysis, FlowReport
    from netstack.debug.live_api import SourceError
    from netstack.debug.seen_packets import Recorded

_SOURCE = "FILE|SOCKET|-"
_TOKEN = click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE", help="File with the token that the API wants."
)


@click.command()
@click.argument("source", metavar=_SOURCE)
@click.argument("flow", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON: a list of flows, or the one that is asked for.")
@click.option("--problems", is_flag=True, help="Only flows with something wrong.")
@click.option("--diagram", metavar="text|FILE", help="The flow as a sequence diagram: as text, or drawn (.svg, .png).")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw sequence numbers over time.")
@click.option(
    "--allow-net", multiple=True, metavar="RULE[,RULE...]", help="Say what this list would have refused of a capture."
)
@_TOKEN
def explain(
    *,
    source: str,
    flow: str | None,
    as_json: bool,
    problems: bool,
    diagram: str | None,
    plot: Path | None,
    allow_net: tuple[str, ...],
    token_file: Path | None,
) -> int:
    """Say why a flow was refused or slow, from a capture (pcap, pcapng) or from a running gateway.

    FLOW is a number of the list, an address, a port, ADDRESS:PORT or a name; without it all flows are listed.
    SOCKET is the API of a running gateway. The exit status is 1 if something is wrong with the flow that is asked for,
    2 if that cannot be said: the source cannot be read, has no such flow, or ends in the middle.
    """
    from netstack.debug.live_api import LiveApi, SourceError, is_api

    try:
        if is_api(source):
            if diagram or plot or allow_net:
                raise click.UsageError("--diagram, --plot and --allow-net are for captures: give a file")
            from netstack.debug.flow_analysis import select
            from netstack.debug.live_stories import live_reports

            with LiveApi(source, token_file) as api:
                reports = live_reports(api)
            chosen = [reports[place] for place in select(reports, flow)] if flow is not None else reports
            return _show(reports, chosen, flow, as_json=as_json, problems=problems, tail="")
        return _explain_capture(
            source, flow, as_json=as_json, problems=problems, diagram=diagram, plot=plot, allow_net=allow_net
        )
    except SourceError as error:
        raise _Unsaid(str(error)) from error


class _Unsaid(click.ClickException):
    """What was asked cannot be answered: another status than that of an answer."""

    exit_code = 2


def _explain_capture(
    source: str,
    flow: str | None,
    *,
    as_json: bool,
    problems: bool,
    diagram: str | None,
    plot: Path | None,
    allow_net: tuple[str, ...],
) -> int:
    from netstack.debug.capture_source import frames
    from netstack.debug.explain_text import summary
    from netstack.debug.flow_analysis import analyse, select
    from netstack.policy_config import network_spec

    spec = network_spec(allow_net=allow_net)  # before the file is read: a rule that is wrong is told at once
    damage: list[SourceError] = []
    analysis = analyse(_until_damaged(frames(source), damage))
    if damage and not analysis.packets:
        raise damage[0]
    chosen = list(range(len(analysis.reports))) if flow is None else select(analysis.reports, flow)
    if diagram or plot is not None:
        _draw(analysis, chosen, flow, diagram, plot)
        if diagram == "text":
            return 0
    reports = analysis.reports
    if allow_net:
        from netstack.debug.policy_opinion import judged

        reports = judged(reports, spec)
    tail = summary(reports, analysis.packets, analysis.others)
    status = _show(reports, [reports[place] for place in chosen], flow, as_json=as_json, problems=problems, tail=tail)
    if damage:
        raise damage[0]
    return status


def _until_damaged(frames: Iterator[Recorded], damage: list[SourceError]) -> Iterator[Recorded]:
    """What there is of a file: one that is still written, or whose writer was killed, ends in the middle."""
    from netstack.debug.live_api import SourceError

    try:
        yield from frames
    except SourceError as error:
        damage.append(error)


def _show(
    everything: list[FlowReport],
    chosen: list[FlowReport],
    flow: str | None,
    *,
    as_json: bool,
    problems: bool,
    tail: str,
) -> int:
    from netstack.debug import explain_text

    if flow is not None and not chosen:
        raise _Unsaid(f"no flow {flow!r}: there are {len(everything)}, which the command lists without FLOW")
    if problems:
        chosen = [report for report in chosen if not report.cause.fine]
    if as_json:
        values = [explain_text.as_values(report) for report in chosen]
        click.echo(json.dumps(values[0] if flow is not None and len(values) == 1 else values, indent=2))
    elif flow is None:
        _echo(explain_text.table(chosen))
        if tail:
            click.echo(tail)
    else:
        for place, report in enumerate(chosen):
            if place:
                click.echo()
            _echo(explain_text.story(report))
    return int(flow is not None and any(not report.cause.fine for report in chosen))


def _draw(analysis: Analysis, chosen: list[int], flow: str | None, diagram: str | None, plot: Path | None) -> None:
    from netstack.debug import plots, sequence_diagram

    if len(chosen) != 1:
        found = f"{len(chosen)} flows are {flow!r}" if flow is not None else "name a flow"
        raise click.UsageError(f"--diagram and --plot draw one flow: {found}")
    seen = analysis.flows[chosen[0]]
    try:
        if diagram == "text":
            _echo(sequence_diagram.text(seen))
        elif diagram:
            plots.draw_diagram(seen, Path(diagram))
        if plot is not None:
            plots.draw_plot(seen, plot)
    except plots.PlotError as error:
        raise _Unsaid(str(error)) from error


@click.command()
@click.argument("source", metavar=_SOURCE)
@click.argument("words", metavar="[FILTER]...", nargs=-1)
@click.option("--name", default="", metavar="NAME", help="Only flows for this name (SNI, Host, DNS); *.NAME below it.")
@click.option("--flow", type=click.IntRange(1), default=None, metavar="N", help="Only this flow of the trace.")
@click.option(
    "--verdict", type=click.Choice(("allowed", "refused", "any")), help="Only flows that were judged so, or at all."
)
@click.option("--absolute", is_flag=True, help="Times of the clock (UTC) instead of seconds since the first packet.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a packet.")
@_TOKEN
def trace(*, source: str, words: tuple[str, ...], token_file: Path | None, **options: Any) -> int:
    """Show packets, a line each, with our verdicts and what refers to what: of a capture, live from a gateway's SOCKET,
    or from standard input (pcap or pcapng), as in: tcpdump -w - | netstack trace -

    FILTER is in tcpdump's words: host 10.0.0.5 and tcp port 443, not arp, tcp[tcpflags] & tcp-syn != 0. It is read
    here, not by libpcap, which knows no names (name pypi.org): `and` binds closer than `or`, and of the bytes of
    headers only TCP's flags can be compared. docs/captures.md has all words.
    """
    from netstack.debug.capture_source import frames
    from netstack.debug.live_api import SourceError
    from netstack.debug.trace import TraceError, TraceOptions, lines

    wanted = TraceOptions(
        filter=" ".join(words),
        name=options["name"],
        flow=options["flow"] or 0,
        verdict=options["verdict"] or "",
        absolute=options["absolute"],
        as_json=options["as_json"],
    )
    try:
        _echo(lines(frames(source, token_file), wanted))
    except TraceError as error:
        raise click.UsageError(str(error)) from error
    except SourceError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        return 130
    return 0


@click.command()
@click.argument("socket", metavar="SOCKET")
@click.option("-c", "--command", metavar="CODE", help="Run this and print its value instead of a prompt.")
@_TOKEN
def console(*, socket: str, command: str | None, token_file: Path | None) -> int:
    """A Python prompt on a running network: `net.flows`, `net.leases`, `net.inject(packet)`, `net.break_on(filter)`.

    SOCKET is the gateway's API. IPython is used where it is installed.
    """
    from netstack.debug.console import run_console
    from netstack.debug.live_api import LiveApi, SourceError

    try:
        with LiveApi(socket, token_file) as api:
            return run_console(api, command)
    except SourceError as error:
        raise click.ClickException(str(error)) from error


def _echo(lines: Iterable[str] | Iterator[str]) -> None:
    """Print lines, each at once, so that a reader of a pipe sees it. A reader that has left ends it."""
    try:
        for line in lines:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer cannot be written either: Python would complain of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
