"""`netstack ctl SOCKET ...`: a running network from the command line, by its API. Imports click only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import BaseModel

    from netstack.client import Client

Command = Callable[..., Any]


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="What the API says, for programs.")(command)


@click.group(options_metavar="[OPTIONS]", subcommand_metavar="COMMAND [ARGS]...")
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE", help="File with the token that the API wants."
)
@click.argument("socket", metavar="SOCKET")
@click.pass_context
def ctl(ctx: click.Context, /, *, socket: str, token_file: Path | None) -> None:
    """Look at a running network, and change it.

    SOCKET is where its API listens (--listen): the path of a unix socket, unix://PATH or tcp://HOST:PORT.
    """
    ctx.obj = (socket, token_file)


class _Failed(click.ClickException):
    """What the API, or nobody, answered."""


def _run(ctx: click.Context, work: Callable[[Client], int | None]) -> int:
    """Do something with a client. Raises ClickException."""
    socket, token_file = ctx.obj
    token = ""
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise _Failed(f"--token-file {token_file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise _Failed(f"--token-file {token_file}: expected text") from error
    from netstack.client import ApiError, Client

    try:
        with Client(socket, token=token) as client:
            return work(client) or 0
    except ApiError as error:
        raise _Failed(str(error)) from error
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0  # whoever read the output has enough


def _print_json(value: BaseModel | Sequence[BaseModel] | dict[str, Any] | list[dict[str, Any]]) -> None:
    if isinstance(value, dict):
        said: Any = value
    elif isinstance(value, Sequence):
        said = [each if isinstance(each, dict) else each.model_dump() for each in value]
    else:
        said = value.model_dump()
    click.echo(json.dumps(said, indent=2))


@ctl.command()
@click.argument("number", type=int, required=False, metavar="[FLOW]")
@click.option(
    "--state",
    type=click.Choice(("open", "closed", "refused", "all")),
    default="all",
    show_default=True,
    help="Which of them.",
)
@click.option("--name", default="", metavar="NAME", help="Only flows for this name.")
@click.option("--guest", default="", metavar="IP", help="Only those of this guest.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="At most.")
@_json_option
@click.pass_context
def flows(
    ctx: click.Context, /, *, number: int | None, state: str, name: str, guest: str, limit: int, as_json: bool
) -> int:
    """List flows with their verdicts, the open ones first; or tell everything of one."""

    def work(client: Client) -> None:
        if number is not None:
            flow = client.flow(number)
            if as_json:
                _print_json(flow)
            else:
                from netstack.ctl_report import show_flow

                show_flow(flow)
            return
        found = client.flows(state, name=name, guest=guest, limit=limit)
        if as_json:
            _print_json(found)
        else:
            from netstack.ctl_report import show_flows

            show_flows(found)

    return _run(ctx, work)


@ctl.command()
@click.argument("name", default="", metavar="[NAME]")
@click.option("--guest", default="", metavar="IP", help="Only questions of this guest.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="At most.")
@_json_option
@click.pass_context
def dns(ctx: click.Context, /, *, name: str, guest: str, limit: int, as_json: bool) -> int:
    """List DNS questions and who answered them, the latest first."""

    def work(client: Client) -> None:
        questions = client.questions(name=name, guest=guest, limit=limit)
        if as_json:
            _print_json(questions)
        else:
            from netstack.ctl_report import show_questions

            show_questions(questions)

    return _run(ctx, work)


_PROTOCOL = click.option(
    "--protocol", type=click.Choice(("tcp", "udp", "unix")), default="tcp", show_default=True, help="Of the listener."
)


@ctl.command()
@click.argument("local")
@click.argument("remote")
@_PROTOCOL
@_json_option
@click.pass_context
def expose(ctx: click.Context, /, *, local: str, remote: str, protocol: str, as_json: bool) -> int:
    """Forward LOCAL (HOST:PORT of this machine, port 0 for any; a path for unix) to REMOTE (IP:PORT of a guest)."""

    def work(client: Client) -> None:
        made = client.expose(local, remote, protocol)
        if as_json:
            _print_json(made)
        else:
            click.echo(f"{made.protocol} {made.local} -> {made.remote}")

    return _run(ctx, work)


@ctl.command()
@click.argument("local")
@_PROTOCOL
@click.option("--close-flows", is_flag=True, help="Reset what came that way, too.")
@click.pass_context
def unexpose(ctx: click.Context, /, *, local: str, protocol: str, close_flows: bool) -> int:
    """End the forward that listens at LOCAL."""
    return _run(ctx, lambda client: client.unexpose(local, protocol, close_flows=close_flows))


@ctl.command()
@_json_option
@click.pass_context
def forwards(ctx: click.Context, /, *, as_json: bool) -> int:
    """List port forwards."""

    def work(client: Client) -> None:
        found = client.forwards()
        if as_json:
            _print_json(found)
        else:
            for each in found:
                click.echo(f"{each.protocol} {each.local} -> {each.remote}")

    return _run(ctx, work)


@ctl.command()
@_json_option
@click.pass_context
def leases(ctx: click.Context, /, *, as_json: bool) -> int:
    """List DHCP leases."""

    def work(client: Client) -> None:
        found = client.leases()
        if as_json:
            _print_json(found)
        else:
            for each in found:
                click.echo(f"{each.address}\t{each.mac}{'  static' if each.static else ''}")

    return _run(ctx, work)


@ctl.command()
@_json_option
@click.pass_context
def links(ctx: click.Context, /, *, as_json: bool) -> int:
    """List the guests' links: what each can do and is used for, and what it has carried."""

    def work(client: Client) -> None:
        found = client.links()
        if as_json:
            _print_json(found)
        else:
            from netstack.ctl_report import show_links

            show_links(found)

    return _run(ctx, work)


@ctl.group(invoke_without_command=True)
@_json_option
@click.pass_context
def policy(ctx: click.Context, /, *, as_json: bool) -> int:
    """Show the policy that is enforced; or put another in its place."""
    if ctx.invoked_subcommand is not None:
        return 0
    return _run(ctx, lambda client: _show_policy(client.policy(), as_json=as_json))


def _show_policy(state: Any, *, as_json: bool) -> None:
    if as_json:
        _print_json(state)
        return
    from netstack.network_spec import NetworkSpec

    click.echo(f"{NetworkSpec.parse(state.spec.model_dump())} (generation {state.generation}: {state.access})")
    if state.killed:
        click.echo("the kill switch is on: nothing is allowed until `policy lift`")
    for warning in state.warnings:
        click.echo(f"warning: {warning}", err=True)


@policy.command("set")
@click.argument("rules", nargs=-1, metavar="[RULE[,RULE...]]...")
@click.option("--deny-all", is_flag=True, help="Allow nothing.")
@click.option("--full-access", is_flag=True, help="Allow everything.")
@_json_option
@click.pass_context
def set_policy(ctx: click.Context, /, *, rules: Sequence[str], deny_all: bool, full_access: bool, as_json: bool) -> int:
    """Allow what RULES say and nothing else, from now on: other flows are reset. It lifts the kill switch.

    What the policy in force says besides (sinkhole, answers, ECH) stays.
    """
    listed = [rule.strip() for text in rules for rule in text.split(",") if rule.strip()]
    if sum((bool(listed), deny_all, full_access)) != 1:
        raise click.UsageError("expected RULES, --deny-all or --full-access, and one of them only")
    from netstack.network_spec import NetworkSpec

    def work(client: Client) -> None:
        known = client.policy().spec.model_dump()
        known |= {"network": "enabled", "allow_net": listed, "deny_all": deny_all}
        try:
            spec = NetworkSpec.parse(known)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        _show_policy(client.replace_policy(spec), as_json=as_json)

    return _run(ctx, work)


@policy.command("lift")
@_json_option
@click.pass_context
def lift_policy(ctx: click.Context, /, *, as_json: bool) -> int:
    """End the kill switch: the policy before it is in force again."""
    return _run(ctx, lambda client: _show_policy(client.lift(), as_json=as_json))


@ctl.command()
@click.argument("numbers", nargs=-1, type=int, metavar="[FLOW]...")
@click.pass_context
def kill(ctx: click.Context, /, *, numbers: Sequence[int]) -> int:
    """End these flows; without any the KILL SWITCH: all flows end, and nothing is allowed until `policy lift`."""

    def work(client: Client) -> None:
        for number in numbers:
            client.end_flow(number)
        if not numbers:
            _show_policy(client.kill(), as_json=False)

    return _run(ctx, work)


@ctl.group(invoke_without_command=True)
@_json_option
@click.pass_context
def capture(ctx: click.Context, /, *, as_json: bool) -> int:
    """List the captures that are running; start and stop them, or read one here."""
    if ctx.invoked_subcommand is not None:
        return 0

    def work(client: Client) -> None:
        found = client.captures()
        if as_json:
            _print_json(found)
            return
        for each in found:
            what = f", {each['filter']}" if each["filter"] else ""
            trouble = f": {each['failure']}" if each["failure"] else ""
            lost = f", {each['lost']} lost" if each["lost"] else ""
            click.echo(f"{each['id']}  {each['file'] or 'a reader'}  {each['frames']} frames{lost}{what}{trouble}")

    return _run(ctx, work)


_FILTER = click.option("--filter", "filter_text", default="", metavar="FILTER", help="Which frames: 'host 10.0.0.5'.")
_SNAPLEN = click.option("--snaplen", type=int, metavar="BYTES", help="How much of each frame.  [default: all]")


@capture.command("start")
@click.argument("file", type=click.Path(path_type=Path))
@_FILTER
@_SNAPLEN
@click.pass_context
def start_capture(ctx: click.Context, /, *, file: Path, filter_text: str, snaplen: int | None) -> int:
    """Write frames to FILE (pcapng) from now on; its number is printed."""

    def work(client: Client) -> None:
        click.echo(client.start_capture(str(file.absolute()), filter_text=filter_text, snaplen=snaplen))

    return _run(ctx, work)


@capture.command("stop")
@click.argument("number", type=int)
@click.pass_context
def stop_capture(ctx: click.Context, /, *, number: int) -> int:
    """End the capture of that NUMBER: its file is complete then."""
    return _run(ctx, lambda client: client.stop_capture(number))


@capture.command("read")
@_FILTER
@_SNAPLEN
@click.pass_context
def read_capture(ctx: click.Context, /, *, filter_text: str, snaplen: int | None) -> int:
    """Write frames to standard output as they pass: ... capture read | tshark -r -"""
    out = sys.stdout.buffer
    if out.isatty():
        raise click.UsageError("standard output is a terminal: a pcapng file goes into a pipe or a file")

    def work(client: Client) -> None:
        for piece in client.read_capture(filter_text=filter_text, snaplen=snaplen):
            out.write(piece)
            out.flush()

    return _run(ctx, work)


@ctl.command()
@click.argument("kinds", nargs=-1, metavar="[KIND]...")
@click.pass_context
def events(ctx: click.Context, /, *, kinds: Sequence[str]) -> int:
    """Print what happens as JSON lines, as it happens: all of it, or KINDs such as flow_refused and dns."""

    def work(client: Client) -> None:
        for event in client.events(*kinds):
            click.echo(json.dumps(event, separators=(",", ":")))

    return _run(ctx, work)


@ctl.command()
@click.option("--gvproxy", "as_gvproxy", is_flag=True, help="gvproxy's structure, as /stats has it.")
@_json_option
@click.pass_context
def stats(ctx: click.Context, /, *, as_gvproxy: bool, as_json: bool) -> int:
    """Show counters, and what each link can do: MTU, offload, checksums, batch calls, queue and window."""

    def work(client: Client) -> None:
        if as_gvproxy:
            _print_json(client.statistics())
            return
        counters = client.counters()
        if as_json:
            _print_json(counters)
        else:
            from netstack.ctl_report import show_counters

            show_counters(counters, client.links())

    return _run(ctx, work)


@ctl.command()
@click.option(
    "--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, metavar="SECONDS", help="How often."
)
@click.pass_context
def watch(ctx: click.Context, /, *, interval: float) -> int:
    """Watch flows, names, verdicts and rates. Ctrl-C ends it; in a pipe it is one look."""

    def work(client: Client) -> None:
        from netstack.ctl_watch import watch_network

        watch_network(client, interval=interval)

    return _run(ctx, work)
