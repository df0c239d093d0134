"""`netstack replay`: a capture played again, in lines.

Only click is imported here; what the command needs it imports when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from netstack.cli_options import POLICY_OPTIONS, with_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netstack.debug.dialogue import Dialogue
    from netstack.debug.replay import Replay
    from netstack.debug.replay_records import Record

LARGE: Final = 8 << 20
"""Bytes of a file from which on a terminal is shown how far it is."""
_COLOURS: Final = {">": "cyan", "<": "green", "=": "yellow", "!": "red", "-": "bright_black"}


@click.command()
@with_options(POLICY_OPTIONS)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--guest", metavar="IP|MAC", help="Who is the guest, if the capture does not show it.")
@click.option(
    "--trace", "trace_file", type=click.Path(path_type=Path), metavar="OUT", help="Write the lines to a file as well."
)
@click.option(
    "--expect",
    type=click.Path(path_type=Path),
    metavar="TRACE",
    help="Compare the lines with a trace written before: status 1 and the difference, if there is one.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a step instead of lines.")
@click.option("-q", "--quiet", is_flag=True, help="Only what differs, and the summary.")
def replay(
    *,
    file: Path,
    guest: str | None,
    trace_file: Path | None,
    expect: Path | None,
    as_json: bool,
    quiet: bool,
    **policy: Any,
) -> int:
    """Play the guests' frames of FILE (pcap, pcapng) into the stack again, and show what it does with them.

    The recorded answers are the script of the host's side, and what the stack answers is compared with them. With
    --allow-net and the other policy options: what would this policy have done to this capture?

    The exit status is 0 if our answers are the recorded ones, and the trace the expected one; 1 if something differs;
    2 for a file or an option that cannot be used.
    """
    from netstack.debug.parties import parse_guest
    from netstack.debug.replay import Replay

    try:
        known = parse_guest(guest) if guest is not None else None
    except ValueError:
        raise click.UsageError(f"--guest {guest!r}: expected an IPv4 address or a MAC address") from None
    wanted = [line for line in _read(expect) if line] if expect is not None else None
    with Replay.open(file, policy=_policy(policy), guest=known) as played, _maybe(trace_file) as keep:
        lines = _Lines(keep, wanted, "" if as_json else "!" if quiet else "#><=!-")
        with _progress(played, quiet=quiet):
            _play(played, lines, as_json=as_json, quiet=quiet)
        return 1 if played.summary.differences or lines.ends_otherwise() else 0


def _policy(options: dict[str, Any]) -> Any:
    """The policy that the options name; None where they name none, and the capture's own holds."""
    if not any(options.values()):
        return None
    from netstack.policy_config import network_spec

    return network_spec(**options).policy()


def _read(path: Path) -> list[str]:
    from netstack.policy_config import PolicyError

    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"--expect {path}", getattr(error, "strerror", None) or "not a trace (ASCII)") from error


@contextmanager
def _maybe(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Keeps lines in a file, or nowhere."""
    if path is None:
        yield lambda _line: None
        return
    from netstack.policy_config import PolicyError

    try:
        out = path.open("w", encoding="ascii")
    except OSError as error:
        raise PolicyError(f"--trace {path}", str(error.strerror)) from error
    with out:
        yield lambda line: print(line, file=out)


class _Lines:
    """Where the lines of the dialogue go. `shown` says which of them a person sees, by their mark."""

    def __init__(self, keep: Callable[[str], None], wanted: Sequence[str] | None, shown: str) -> None:
        self._keep = keep
        self._wanted = wanted
        self._shown = shown
        self._got: list[str] = []

    def put(self, line: str) -> None:
        """One more line of the trace."""
        self._keep(line)
        if self._wanted is not None:
            self._got.append(line)
        mark = "#" if line.startswith("#") else line.split(" ", 2)[1]
        if mark in self._shown:
            click.secho(line, fg=_COLOURS.get(mark), dim=mark == "#")

    def ends_otherwise(self) -> bool:
        """Whether the trace is not the expected one; shows how."""
        if self._wanted is None or self._wanted == self._got:
            return False
        import difflib

        for line in difflib.unified_diff(self._wanted, self._got, "expected", "replayed", lineterm="", n=2):
            click.secho(line, fg={"-": "red", "+": "green"}.get(line[:1]), err=not self._shown)
        return True


def _play(played: Replay, lines: _Lines, *, as_json: bool, quiet: bool) -> None:
    from netstack.debug.dialogue import Dialogue, header_lines, summary_line

    dialogue = Dialogue()
    for line in header_lines(played):
        lines.put(line)
    for record in played:
        for line in dialogue.lines(record):
            lines.put(line)
        if as_json and (record.differences or not quiet):
            click.echo(_json_line(record, dialogue))
    last = summary_line(played)
    lines.put(last)
    if quiet and not as_json:
        click.echo(last)


def _json_line(record: Record, words: Dialogue) -> str:
    import json

    from netstack.gateway.event_log import event_fields

    fields = {
        "number": record.number,
        "time": round(record.time, 9),
        "direction": record.direction,
        "flow": record.flow,
        "frame": record.frame.hex(),
        "summary": words.packet(record.frame) if record.frame else "",
        "skipped": record.skipped,
        "comment": record.comment,
        "events": [event_fields(event) for event in record.events],
        "answers": [frame.hex() for frame in record.answers],
        "differences": [
            {**each._asdict(), "ours": each.ours.hex(), "recorded": each.recorded.hex()} for each in record.differences
        ],
    }
    return json.dumps(fields, separators=(",", ":"))


def _progress(played: Replay, *, quiet: bool) -> Any:
    """How far it is, for somebody who waits before a terminal on which nothing else appears."""
    silent = quiet or not sys.stdout.isatty()
    if not silent or not sys.stderr.isatty() or played.reader.size < LARGE:
        return nullcontext()
    return _bar(played)


@contextmanager
def _bar(played: Replay) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("replaying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replaying", total=played.reader.size)
        played.on_progress = lambda position: progress.update(task, completed=position)
        yield
