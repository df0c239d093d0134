"""`python -m bench`: measure rows on peers, print the tables, write the JSON and the plots."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import click

from bench import plots, report, targets
from bench.command import Display, checkouts_option, choose, prepared_tools, present
from bench.lab import Tools
from bench.measure import measure, rounds_of
from bench.peers import PEERS, with_checkouts
from bench.rows import ROWS
from bench.rules import GROUPS, Group
from bench.seen import SEEN

OWN_GROUPS: Final = (*GROUPS, SEEN)
KNOWN_ROWS: Final = (*ROWS, *(name for group in OWN_GROUPS for name in group.rows))
QUICK: Final = (0.3, 1)
"""Seconds and rounds of --quick."""
QUICK_PEERS: Final = ("netstack", "netstack-tap", "gvproxy", "slirp4netns", "passt")
"""Where no others are asked for."""
PREFERRED_BASES: Final = ("gvproxy", "slirp4netns")
"""What the targets are about, where it is measured and nothing else is asked for."""


@dataclass
class Outcome:
    """What a group's rows gave so far."""

    group: Group
    base: str
    versions: dict[str, str]
    rows: dict[str, report.RowResult] = field(default_factory=dict)
    targets: list[targets.Outcome] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How much is measured."""

    seconds: float
    rounds: int
    mtu: int

    def samples(self, groups: Sequence[Group]) -> int:
        """How many samples that makes."""
        return sum(
            rounds_of(row, self.rounds) * sum(row.applies_to(peer) for peer in group.peers)
            for group in groups
            for row in group.rows.values()
        )

    def measure(self, outcomes: Sequence[Outcome], tools: Tools) -> None:
        """Fill the outcomes, row by row, so that those before an interruption are there."""
        with Display(self.samples([outcome.group for outcome in outcomes])) as display:
            for outcome in outcomes:
                for row in outcome.group.rows.values():
                    turns = measure(
                        row,
                        outcome.group.peers,
                        tools,
                        wire=row.wire(self.mtu),
                        seconds=self.seconds,
                        rounds=rounds_of(row, self.rounds),
                        begin=display.begin,
                        failed=display.failed,
                    )
                    outcome.rows[row.name] = report.summarise(row, turns, outcome.base)
                    outcome.targets += targets.judge(row, turns)


def _tell(outcomes: Sequence[Outcome], host: dict[str, str], options: dict[str, Any]) -> None:
    """Print what has been measured."""
    for outcome in outcomes:
        if not outcome.rows:
            continue
        console = report.output_console(len(outcome.group.peers))
        for shown in report.tables(outcome.rows, outcome.group.peers, host, options, outcome.base, console.width):
            console.print(shown)
        if outcome.targets:
            console.print(targets.table(outcome.targets, outcome.rows))
        for line in report.notes(outcome.rows, outcome.versions):
            console.print(line, style="dim", highlight=False, soft_wrap=True)


def _document(outcomes: Sequence[Outcome], host: dict[str, str], options: dict[str, Any]) -> dict[str, Any]:
    """Everything of a run as plain values."""
    groups = [
        report.as_json(outcome.rows, outcome.group.peers, outcome.versions, outcome.base)
        | {"targets": [asdict(target) for target in outcome.targets]}
        for outcome in outcomes
        if outcome.rows
    ]
    return {"format": report.FORMAT, "machine": host, "options": options, "groups": groups}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rows",
    help=f"Comma-separated, with * for several, or all: {', '.join(KNOWN_ROWS)}. Default: all; where peers are named, "
    "without rules-* and seen-*, which have peers of their own.",
)
@click.option(
    "--peers",
    help=f"Comma-separated, with * for several, or all: {', '.join(PEERS)}. Default: those that are on this machine; "
    "gvproxy is the program that GVPROXY names.",
)
@checkouts_option
@click.option(
    "--against",
    metavar="PEER",
    help="The peer the others are compared with. Default: the first of --peers or --netstack, else gvproxy, else "
    "slirp4netns.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds a sample lasts."
)
@click.option(
    "--repeat",
    "--rounds",
    "rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="Samples per row and peer.",
)
@click.option(
    "--mtu",
    type=click.IntRange(576, 65521),
    default=1500,
    show_default=True,
    help="Of the guest's network card, in rows that do not say another.",
)
@click.option(
    "--quick", is_flag=True, help="One round of 0.3 s; unless asked for, without rules-*, seen-* and some peers."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all samples to this file."
)
@click.option(
    "--plots",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write throughput-flows.svg into this directory (needs the extra `plots`).",
)
def main(
    rows: str | None,
    peers: str | None,
    checkouts: dict[str, Path],
    against: str | None,
    seconds: float,
    rounds: int,
    mtu: int,
    quick: bool,
    json_file: Path | None,
    directory: Path | None,
) -> None:
    """Measure what a guest gets out of netstack, next to other user-mode network stacks.

    For each row every peer is measured in turn, round after round; ratios are medians of the ratios within each round.
    Everything takes some 20 minutes on a quiet machine, --quick four. Ctrl-C ends with the rows measured so far.
    """
    if directory is not None:
        plots.require()
    if quick:
        seconds, rounds = QUICK
    known = with_checkouts(checkouts)
    narrowed = peers is not None or bool(checkouts)
    wanted = choose("--rows", rows, KNOWN_ROWS, list(ROWS) if narrowed or quick else KNOWN_ROWS)
    names = choose("--peers", peers, list(known), list(checkouts) or (QUICK_PEERS if quick else list(PEERS)))
    versions: dict[str, str] = {}
    if set(wanted) & set(ROWS):
        versions = present(names, known, asked_for=narrowed and peers != "all")
    if against is not None and against not in versions:
        raise click.BadParameter(f"{against!r} is none of: {', '.join(versions)}", param_hint="--against")
    groups = [Group(ROWS, tuple(known[name] for name in versions)), *OWN_GROUPS]
    groups = [
        replace(group, rows={name: group.rows[name] for name in wanted if name in group.rows}) for group in groups
    ]
    preferred = [against] if against else [] if narrowed else PREFERRED_BASES
    host = report.machine()
    options = {"seconds": seconds, "rounds": rounds, "mtu": mtu}
    with prepared_tools() as tools:
        outcomes = [
            Outcome(
                group,
                next((name for name in preferred if name in group.names), group.names[0]),
                {peer.name: versions.get(peer.name) or peer.version() for peer in group.peers},
            )
            for group in groups
            if group.rows
        ]
        try:
            Run(seconds=seconds, rounds=rounds, mtu=mtu).measure(outcomes, tools)
        finally:
            _tell(outcomes, host, options)
            if json_file is not None:
                json_file.write_text(json.dumps(_document(outcomes, host, options), indent=1) + "\n")
    if directory is not None:
        plots.plot_flows(_document(outcomes, host, options), directory)
    if any(result.failures for outcome in outcomes for result in outcome.rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
