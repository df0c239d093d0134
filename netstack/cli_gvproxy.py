"""`netstack gvproxy`: gvproxy's own command line, read as gvproxy reads it."""

from __future__ import annotations

import sys
from typing import Final

import click
from click.shell_completion import CompletionItem

from netstack.cli_options import starting

PROGRAM: Final = "netstack gvproxy"


class _GoFlags(click.Command):
    """Leaves every word to the command but `--help`, which Go's flags would not need."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args == ["--help"]:
            return super().parse_args(ctx, args)
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, [])

    def shell_complete(self, _ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Flags, with as many dashes as were written; what follows one is a file for most."""
        if not incomplete.startswith("-"):
            return [CompletionItem(incomplete, type="file")]
        from netstack.gvproxy_flags import FLAGS

        dashes = "--" if incomplete.startswith("--") else "-"
        flags = [(f"{dashes}{name}", meaning) for name, (_, meaning) in FLAGS.items()]
        return [CompletionItem(flag, help=meaning) for flag, meaning in flags if flag.startswith(incomplete)]


@click.command(cls=_GoFlags, options_metavar="[gvproxy's flags]")
@click.pass_context
def gvproxy(ctx: click.Context) -> int:
    """Take gvproxy's place: the same flags, the same YAML file, the same API.

    `-h` lists the flags, in Go's syntax (-x v, -x=v, --x). The exit status is 0 when a signal ends it, 1 when something
    failed or the configuration cannot be used, 2 for flags that cannot be read.
    """
    from netstack.gvproxy_flags import FlagError, HelpWanted, parse_flags, usage

    try:
        flags = parse_flags(ctx.meta.get("arguments", []))
    except HelpWanted:
        click.echo(usage(PROGRAM), err=True, nl=False)
        return 0
    except FlagError as error:
        click.echo(f"{error}\n{usage(PROGRAM)}", err=True, nl=False)
        return 2
    if flags.version:
        from netstack import __version__

        click.echo(f"gvproxy version netstack-{__version__}")
        return 0
    from netstack.config import ConfigError
    from netstack.gateway import RunFailed
    from netstack.gateway.process_log import logrus_line
    from netstack.gvproxy_config import gvproxy_config

    try:
        with starting():
            config = gvproxy_config(flags)
            from netstack.gateway.run_command import run_gateway
    except ConfigError as error:
        sys.stderr.write(logrus_line("fatal", " ".join(str(error).split())))
        return 1
    try:
        run_gateway(config)
    except RunFailed as error:
        sys.stderr.write(logrus_line("error", f"gvproxy exiting: {error}"))
        return 1
    return 0
