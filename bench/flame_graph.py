"""`python -m bench.flame_graph`: where netstack's time goes while a row is measured, as a flame graph (SVG).

py-spy (the extra `profile`) looks at the stack of the running process from outside, so many times a second. Time that
the process waits is left out. `--native` shows C too: the interpreter's own functions, numpy, compiled modules.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path
from typing import Final

import click

from bench.command import checkouts_option, prepared_tools
from bench.lab import BenchError
from bench.measure import running
from bench.peers import netstack_peers
from bench.report import number
from bench.rows import ROWS

WRITE_SECONDS: Final = 60.0
"""For py-spy to find its way into the process before the samples, and to write its file after them."""
PROFILED: Final = tuple(name for name in ROWS if name != "start")
"""What `start` measures is over before a profiler can look."""


def _py_spy() -> str:
    beside_python = str(Path(sys.executable).parent)
    program = shutil.which("py-spy", path=os.pathsep.join([beside_python, os.environ.get("PATH", os.defpath)]))
    if program is None:
        raise click.ClickException("flame graphs need py-spy: pip install 'netstack[profile]'")
    return program


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--row", default="tcp-up", show_default=True, help=f"One of: {', '.join(PROFILED)}.")
@click.option(
    "--peer",
    "peer_name",
    help="netstack, netstack-qemu, netstack-tap, or one of --netstack. Default: the first of those.",
)
@checkouts_option
@click.option("--seconds", type=click.FloatRange(1, 60), default=5.0, show_default=True, help="How long to look.")
@click.option("--rate", type=click.IntRange(10, 2000), default=400, show_default=True, help="Looks a second.")
@click.option(
    "--mtu",
    type=click.IntRange(576, 65521),
    default=1500,
    show_default=True,
    help="Of the guest's network card, in rows that do not say another.",
)
@click.option("--native", is_flag=True, help="Show functions written in C too.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The SVG file. Default: flame-ROW-PEER.svg in this directory.",
)
def main(
    row: str,
    peer_name: str | None,
    checkouts: dict[str, Path],
    seconds: float,
    rate: int,
    mtu: int,
    native: bool,
    output: Path | None,
) -> None:
    """Draw where netstack's time goes while a row is measured."""
    if row not in PROFILED:
        raise click.BadParameter(f"{row!r} is none of: {', '.join(PROFILED)}", param_hint="--row")
    peers = {peer.name: peer for peer in netstack_peers(checkouts)}
    name = peer_name or next(iter(peers))
    if name not in peers:
        raise click.BadParameter(f"{name!r} is none of: {', '.join(peers)}", param_hint="--peer")
    if not ROWS[row].applies_to(peers[name]):
        raise click.BadParameter(f"{name} does not have the row {row}", param_hint="--peer")
    path = (output or Path(f"flame-{row}-{name}.svg")).absolute()
    program = _py_spy()
    with prepared_tools() as tools, running(peers[name], tools, ROWS[row].wire(mtu)) as session:
        if session.backend is None:
            raise BenchError("no process to look at")
        # A second more: py-spy begins a little later than it is started, and waiting does not show.
        looking = session.spawn_host(
            program, "record", "--pid", str(session.backend.pid), "--output", str(path), "--rate", str(rate),
            "--duration", str(math.ceil(seconds) + 1), *(["--native"] if native else []),
        )  # fmt: skip
        sample = ROWS[row].measure(session, peers[name], seconds)
        looking.wait(seconds + WRITE_SECONDS)
    click.echo(f"{path}: {ROWS[row].title}, {number(sample.value)} {ROWS[row].unit} while looked at")


if __name__ == "__main__":
    main()
