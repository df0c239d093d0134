"""The `netstack` command: options in, one line on standard error and a non-zero status when something fails.

Only click is imported here; what a command needs it imports when it runs, so that `--help` and completion stay quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from netstack import __version__, cli_debug
from netstack.cli_config import config
from netstack.cli_ctl import ctl
from netstack.cli_gvproxy import gvproxy
from netstack.cli_impair import impair
from netstack.cli_options import (
    HOOK_OPTIONS,
    LINK_OPTIONS,
    LOG_OPTIONS,
    NETWORK_OPTIONS,
    POLICY_OPTIONS,
    PROCESS_OPTIONS,
    REPORT_OPTIONS,
    SERVICE_OPTIONS,
    WIRE_OPTIONS,
    configuration,
    log_level_option,
    starting,
    with_options,
)
from netstack.cli_replay import replay

COMPLETION_VARIABLE: Final = "_NETSTACK_COMPLETE"


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from netstack.build_kind import build_kind

        click.echo(f"netstack {__version__} ({build_kind()})")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, and whether the hot path is compiled or pure Python; exit.",
)
def cli() -> None:
    """A userspace network stack for virtual machines: Ethernet frames in, host sockets out."""


@cli.command()
@with_options(
    LINK_OPTIONS,
    NETWORK_OPTIONS,
    POLICY_OPTIONS,
    HOOK_OPTIONS,
    SERVICE_OPTIONS,
    REPORT_OPTIONS,
    WIRE_OPTIONS,
    LOG_OPTIONS,
    PROCESS_OPTIONS,
)
@log_level_option("info")
@click.option("--ready-fd", type=int, metavar="N", help="Write a line to this descriptor once guests can attach.")
def run(**options: Any) -> int:
    """Give guests a network: one gateway, and as many links as there are link options.

    Runs until SIGTERM or SIGINT. A guest that leaves a listening socket may come back; the end of an inherited
    socket, of standard input or of a TAP ends the program.
    """
    with starting():
        made = configuration(links=True, default_log_level="info", **options)
        from netstack.gateway.run_command import run_gateway

    run_gateway(made)
    return 0


@cli.command(context_settings={"allow_interspersed_args": False})
@with_options(NETWORK_OPTIONS, POLICY_OPTIONS, HOOK_OPTIONS, SERVICE_OPTIONS, REPORT_OPTIONS, WIRE_OPTIONS, LOG_OPTIONS)
@log_level_option("warning")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def guest(*, command: Sequence[str], **options: Any) -> int:
    """Run COMMAND in a fresh network namespace whose only way out is this stack.

    Needs no root where the kernel allows user namespaces. The exit status is COMMAND's, 128+N if signal N ended it.
    """
    with starting():
        made = configuration(links=False, default_log_level="warning", **options)
        from netstack.gateway.guest_command import run_guest

    return run_guest(made, command)


@cli.command()
@click.option(
    "--capture",
    type=click.Path(path_type=Path),
    default=Path("netstack-demo.pcapng"),
    show_default=True,
    metavar="FILE",
    help="Where the frames of the demonstration go.",
)
def demo(*, capture: Path) -> int:
    """Show the stack at work on this machine: a lease, names, pages, pings; then a list, and what it refuses and why.

    No Internet needed: servers and guest are local.
    """
    from netstack.gateway.demo import run_demo

    return run_demo(capture)


@cli.group()
def policy() -> None:
    """Look at policies: what a list of rules would do."""


class _QuestionsAfterDashes(click.Command):
    """Splits the arguments at `--`, which click itself only takes away."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        split = args.index("--") if "--" in args else len(args)
        ctx.meta["questions"] = args[split + 1 :]
        return super().parse_args(ctx, args[:split])


@policy.command(cls=_QuestionsAfterDashes, options_metavar="[OPTIONS] [RULES]... -- QUESTIONS...")
@with_options(POLICY_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a question instead of a table.")
@click.argument("rules", nargs=-1, metavar="")
@click.pass_context
def check(
    ctx: click.Context, /, *, rules: Sequence[str], allow_net: Sequence[str], as_json: bool, **options: Any
) -> int:
    """Say what would happen under RULES, and why, without sending anything.

    A question is HOST:PORT, udp://HOST:PORT, IP:PORT, icmp://IP, http(s)://HOST/, quic://HOST, or a name: dns://NAME/TYPE.
    The exit status is 0 if all of it is allowed, 1 if something is refused, 2 for what cannot be read.
    """
    from netstack.config import network_settings
    from netstack.policy_check import QuestionError
    from netstack.policy_check import check as check_question
    from netstack.policy_config import network_spec

    questions = ctx.meta["questions"]
    if not questions:
        raise click.UsageError("no question: write RULES... -- QUESTION...")
    spec = network_spec(allow_net=[*allow_net, *rules], **options)
    network = network_settings()
    try:
        answers = [check_question(spec, question, network) for question in questions]
    except QuestionError as error:
        raise click.UsageError(str(error)) from error
    from netstack.policy_report import show

    show(answers, spec.warnings(), as_json=as_json)
    return 0 if all(answer.allowed for answer in answers) else 1


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def doctor(*, as_json: bool) -> int:
    """Say what this host allows and what to do about the rest. Status 0 if `netstack run` has what it needs."""
    from netstack.gateway.doctor import run_doctor

    return run_doctor(as_json=as_json)


cli.add_command(cli_debug.explain)
cli.add_command(cli_debug.trace)
cli.add_command(cli_debug.console)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> int:
    """Print the completion script of a shell, as in: eval "$(netstack completion bash)"."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:
        raise click.ClickException(f"click knows no completion for {shell}")
    click.echo(made(cli, {}, "netstack", COMPLETION_VARIABLE).source())
    return 0


cli.add_command(config)
cli.add_command(ctl)
cli.add_command(gvproxy)
cli.add_command(impair)
cli.add_command(replay)


def _fail(message: str, status: int, context: click.Context | None = None) -> NoReturn:
    name = context.command_path if context else "netstack"
    click.echo(f"{name}: {' '.join(message.split())}", err=True)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, the command's own status, 1 for a failure, 2 for options that make no sense."""
    from netstack.config import ConfigError
    from netstack.gateway import RunFailed

    try:
        status = cli.main(args=arguments, prog_name="netstack", complete_var=COMPLETION_VARIABLE, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "netstack"
        _fail(f"{error.format_message()} ({path} --help lists what there is)", 2, error.ctx)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except ConfigError as error:
        _fail(str(error), 2)
    except RunFailed as error:
        _fail(str(error), 1)
    except click.Abort:
        _fail("interrupted", 130)
    sys.exit(status if isinstance(status, int) else 0)
