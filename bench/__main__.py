"""`python -m bench`: measure rows on peers, print the table, write the JSON."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

import click

from bench import report
from bench.lab import BenchError, Session, Tools, remove_leftovers
from bench.peers import DEFAULT_PEERS, PEERS, Peer, with_checkouts
from bench.rows import ROWS, Row, Sample
from bench.rules import GROUPS, Group

DESCRIPTORS: Final = 65_536
"""Open files allowed to the load and to the stacks: 1,000 flows are as many host sockets."""
KNOWN_ROWS: Final = (*ROWS, *(name for group in GROUPS for name in group.rows))
QUICK: Final = (1.0, 1)
"""Seconds and rounds of --quick."""


def measure(
    row: Row, peers: Sequence[Peer], tools: Tools, *, mtu: int, seconds: float, rounds: int
) -> list[report.Round]:
    """Measure one row on every peer that has it, in turn, `rounds` times."""
    turns: list[report.Round] = []
    with contextlib.ExitStack() as stack:
        sessions: dict[str, tuple[Session, contextlib.ExitStack]] = {}
        for number in range(rounds):
            turn: dict[str, Sample | str] = {}
            for peer in peers:
                if not row.applies_to(peer):
                    continue
                click.echo(f"{row.name}: {peer.name}, round {number + 1} of {rounds}", err=True)
                try:
                    if peer.name not in sessions:
                        sessions[peer.name] = _open(peer, tools, mtu, stack)
                    session, ending = sessions[peer.name]
                    turn[peer.name] = row.measure(session, peer, seconds)
                except BenchError as error:
                    click.echo(f"  {error}", err=True)
                    turn[peer.name] = str(error)
                failed = isinstance(turn[peer.name], str)
                if peer.name in sessions and (row.fresh or failed):
                    _, ending = sessions.pop(peer.name)
                    ending.close()
            turns.append(turn)
    return turns


def _open(peer: Peer, tools: Tools, mtu: int, stack: contextlib.ExitStack) -> tuple[Session, contextlib.ExitStack]:
    """A session with the peer running in it and the guest connected; it ends with what is returned or with `stack`."""
    ending = stack.enter_context(contextlib.ExitStack())
    session = ending.enter_context(Session(tools, mtu))
    try:
        peer.start(session)
        session.await_first_echo()
    except BenchError:
        ending.close()
        raise
    return session, ending


def _choose(option: str, text: str | None, known: Sequence[str], default: Sequence[str]) -> list[str]:
    if text is None:
        return list(default)
    if text == "all":
        return list(known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of: {', '.join(known)}", param_hint=option)
    return names


def _checkouts(_context: click.Context, _option: click.Parameter, values: Sequence[str]) -> dict[str, Path]:
    """The checkouts of `--netstack NAME=PATH`, by name."""
    checkouts: dict[str, Path] = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not (separator and name.replace("-", "").isalnum() and path):
            raise click.BadParameter(f"{value!r} is not NAME=PATH")
        if name in checkouts or (name in PEERS and name != "netstack"):
            raise click.BadParameter(f"two peers called {name!r}")
        checkouts[name] = Path(path).resolve()
    return checkouts


def _present(names: Sequence[str], known: Mapping[str, Peer], asked_for: bool) -> dict[str, str]:
    """The versions of those peers that are on this machine. Says which are not; one asked for by name must be."""
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = known[name].version()
        except BenchError as error:
            if asked_for:
                raise click.ClickException(f"{name}: {error}") from error
            click.echo(f"without {name}: {error}", err=True)
    if not versions:
        raise click.ClickException("nothing to measure")
    return versions


def _stop(number: int, _frame: FrameType | None) -> None:
    """End through every `finally`. A second signal does not cut the cleaning up short: it is bounded."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(128 + number)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rows",
    help=f"Comma-separated, or all: {', '.join(KNOWN_ROWS)}. Default: all, without rules-* where peers are named.",
)
@click.option(
    "--peers",
    help=f"Comma-separated, or all: {', '.join(PEERS)}. Default: those of {', '.join(DEFAULT_PEERS)} that are "
    "installed; gvproxy is the program that GVPROXY names.",
)
@click.option(
    "--netstack",
    "checkouts",
    multiple=True,
    metavar="NAME=PATH",
    callback=_checkouts,
    help="A checkout of netstack as the peers NAME, NAME-qemu and NAME-tap (datagrams, stream, TAP), run with "
    "this Python. Given twice: before and after. Without --peers every NAME is measured and nothing else.",
)
@click.option("--against", metavar="PEER", help="The peer the others are compared with. Default: the first of --peers.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="Seconds a sample lasts."
)
@click.option(
    "--rounds", "--repeat", type=click.IntRange(1, 100), default=3, show_default=True, help="Samples per row and peer."
)
@click.option(
    "--mtu", type=click.IntRange(576, 65521), default=1500, show_default=True, help="Of the guest's network card."
)
@click.option("--quick", is_flag=True, help="One round of one second: does it work, roughly how fast.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all samples to this file."
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
) -> None:
    """Measure what a guest gets out of netstack, next to other user-mode network stacks."""
    if quick:
        seconds, rounds = QUICK
    known = with_checkouts(checkouts)
    narrowed = peers is not None or bool(checkouts)
    wanted = _choose("--rows", rows, KNOWN_ROWS, list(ROWS) if narrowed else KNOWN_ROWS)
    names = _choose("--peers", peers, list(known), list(checkouts) or DEFAULT_PEERS)
    versions = {}
    if set(wanted) & set(ROWS):
        versions = _present(names, known, asked_for=narrowed and peers != "all")
    if against is not None and against not in versions:
        raise click.BadParameter(f"{against!r} is none of: {', '.join(versions)}", param_hint="--against")
    groups = [Group(ROWS, tuple(known[name] for name in versions)), *GROUPS]
    groups = [
        replace(group, rows={name: group.rows[name] for name in wanted if name in group.rows}) for group in groups
    ]
    if os.geteuid() != 0:
        raise click.ClickException("network namespaces and TAP devices need root: sudo make bench")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard), hard)
    )
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    options = {"seconds": seconds, "rounds": rounds, "mtu": mtu}
    host = report.machine()
    documents = []
    failed = False
    try:
        remove_leftovers()
        with contextlib.closing(Tools()) as tools:
            for group in groups:
                if not group.rows:
                    continue
                base = next((peer.name for peer in group.peers if peer.name == against), group.peers[0].name)
                results: dict[str, report.RowResult] = {}
                for row in group.rows.values():
                    turns = measure(row, group.peers, tools, mtu=mtu, seconds=seconds, rounds=rounds)
                    results[row.name] = report.summarise(row, turns, base)
                versions = {peer.name: versions.get(peer.name) or peer.version() for peer in group.peers}
                console = report.output_console(len(group.peers))
                console.print(report.table(results, group.peers, host, options, base))
                for line in report.notes(results, versions):
                    console.print(line, style="dim", highlight=False, soft_wrap=True)
                documents.append(report.as_json(results, group.peers, versions, options, host, base))
                failed = failed or any(result.failures for result in results.values())
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    if json_file is not None:
        first, *others = documents
        json_file.write_text(json.dumps(first | ({"groups": others} if others else {}), indent=1) + "\n")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
