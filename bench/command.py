"""What the commands of the benchmark share: their options, their start, their end, and how far they are."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.lab import BenchError, Tools, remove_leftovers
from bench.peers import PEERS, Peer

DESCRIPTORS: Final = 65_536
"""Open files allowed to the load and to the stacks: 5,000 flows are as many host sockets."""


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


def checkouts_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--netstack NAME=PATH`, as the parameter `checkouts`."""
    return click.option(
        "--netstack",
        "checkouts",
        multiple=True,
        metavar="NAME=PATH",
        callback=_checkouts,
        help="A checkout of netstack as the peers NAME, NAME-qemu and NAME-tap (datagrams, stream, TAP), run with "
        "this Python. Given twice: before and after. Without --peers every NAME is measured and nothing else.",
    )(command)


def choose(option: str, text: str | None, known: Sequence[str], default: Sequence[str]) -> list[str]:
    """The names in a comma-separated option; a name with a * stands for all it fits."""
    if text is None:
        return list(default)
    if text == "all":
        return list(known)
    chosen: list[str] = []
    for name in (name.strip() for name in text.split(",")):
        fitting = [word for word in known if word == name or ("*" in name and Path(word).match(name))]
        if not fitting:
            raise click.BadParameter(f"{name!r} is none of: {', '.join(known)}", param_hint=option)
        chosen += [word for word in fitting if word not in chosen]
    return chosen


def present(names: Sequence[str], known: Mapping[str, Peer], *, asked_for: bool) -> dict[str, str]:
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


@contextlib.contextmanager
def prepared_tools() -> Iterator[Tools]:
    """Compiled programs, room for descriptors, and signals that end through every `finally`. Needs root."""
    if os.geteuid() != 0:
        raise click.ClickException("network namespaces and TAP devices need root: sudo make bench")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard), hard)
    )
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        remove_leftovers()
        with contextlib.closing(Tools()) as tools:
            yield tools
    except BenchError as error:
        raise click.ClickException(str(error)) from error


class Display:
    """How far the run is, on standard error: a bar on a terminal, a line a sample elsewhere."""

    def __init__(self, samples: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("", total=samples)
        self._begun = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, sample: str) -> None:
        """The next sample is being taken."""
        self._progress.update(self._task, description=sample, completed=self._begun)
        self._begun += 1
        if self._progress.disable:
            click.echo(sample, err=True)

    def failed(self, reason: str) -> None:
        """The sample could not be taken."""
        self._progress.console.print(reason, style="red", markup=False, highlight=False, soft_wrap=True)
