"""The `netstack` command: options in, one line on standard error and a non-zero status when something fails.

Only click is imported here; what a command needs it imports when it runs, so that `--help` and completion stay quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from netstack import __version__, cli_replay

if TYPE_CHECKING:
    from netstack.config import LinkSpec, RunConfig
    from netstack.hooks import HookRunner

COMPLETION_VARIABLE: Final = "_NETSTACK_COMPLETE"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
Command = Callable[..., Any]

_LINK_OPTIONS: Final = (
    click.option(
        "--listen-vfkit",
        "vfkit",
        multiple=True,
        metavar="unixgram://PATH",
        help="Datagram socket for vfkit, libkrun, QEMU -netdev dgram.",
    ),
    click.option(
        "--listen-qemu",
        "qemu",
        multiple=True,
        metavar="unix://PATH|tcp://HOST:PORT",
        help="Stream socket for QEMU -netdev stream, libkrun.",
    ),
    click.option(
        "--listen-bess",
        "bess",
        multiple=True,
        metavar="unixpacket://PATH",
        help="Sequenced-packet socket (BESS, User Mode Linux).",
    ),
    click.option(
        "--listen-vpnkit",
        "vpnkit",
        multiple=True,
        metavar="unix://PATH|tcp://HOST:PORT",
        help="Stream socket with vpnkit's handshake (HyperKit).",
    ),
    click.option(
        "--listen-stdio",
        "stdio",
        is_flag=False,
        flag_value="accept",
        metavar="[accept]",
        help="The guest is on standard input and output.",
    ),
    click.option(
        "--fd", "fds", multiple=True, type=int, metavar="N", help="An inherited socket; its type decides the framing."
    ),
    click.option("--tap", "taps", multiple=True, metavar="NAME", help="A TAP device, created if it is not there."),
    click.option("--netns", metavar="NAME|PID|PATH", help="Network namespace of the TAP."),
)

_NETWORK_OPTIONS: Final = (
    click.option(
        "--mtu",
        type=int,
        default=1500,
        show_default=True,
        metavar="BYTES",
        help="Largest IP packet on the guest's link.",
    ),
    click.option(
        "--subnet", default="192.168.127.0/24", show_default=True, metavar="CIDR", help="The guest's network."
    ),
    click.option("--gateway-ip", metavar="IP", help="Ours: router, DNS, DHCP.  [default: the subnet's first]"),
    click.option("--device-ip", metavar="IP", help="The guest's.  [default: the subnet's second]"),
    click.option("--host-ip", metavar="IP", help="Stands for this machine.  [default: the subnet's last]"),
    click.option(
        "--dns-upstream",
        "dns_upstreams",
        multiple=True,
        metavar="IP[:PORT]",
        help="Resolver to ask, in this order.  [default: those of /etc/resolv.conf]",
    ),
    click.option(
        "--nat",
        multiple=True,
        metavar="IP=IP",
        help="What the guest dials = what we dial.  [default: host IP=127.0.0.1]",
    ),
    click.option(
        "--zone",
        "zones",
        multiple=True,
        metavar="NAME:WHAT=IP,...",
        help="DNS zone answered here. WHAT: a name, @, *, /REGEXP/.  [default: containers.internal, docker.internal]",
    ),
    click.option(
        "--static-lease",
        "static_leases",
        multiple=True,
        metavar="MAC=IP",
        help="DHCP address of this guest.  [default: 5a:94:ef:e4:0c:ee=device IP]",
    ),
    click.option(
        "--udp-timeout",
        type=float,
        default=180.0,
        show_default=True,
        metavar="SECONDS",
        help="Idle time after which an answered UDP flow is forgotten.",
    ),
    click.option(
        "--udp-unreplied-timeout",
        type=float,
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="The same for one that was never answered.",
    ),
    click.option(
        "--tcp-keepalive",
        type=float,
        metavar="SECONDS",
        help="Idle time after which a guest is asked whether its connection still lives.  [default: never]",
    ),
    click.option(
        "--offload",
        type=click.Choice(("on", "off")),
        help="Whether a TAP's kernel does checksums and segmentation, if it can.  [default: on]",
    ),
    click.option("--metadata-access", is_flag=True, help="Let the guest reach 169.254.0.0/16 (cloud metadata)."),
)

_POLICY_OPTIONS: Final = (
    click.option(
        "--network",
        metavar="enabled|disabled",
        help="Disabled: the guest's card never carries a frame.  [default: enabled]",
    ),
    click.option(
        "--allow-net",
        "allow_net",
        multiple=True,
        metavar="RULE[,RULE...]",
        help="Allow only this: host, *.suffix, IP, CIDR, @public, @host, each with :PORT.  [default: everything]",
    ),
    click.option("--deny-all", is_flag=True, help="Allow nothing; DHCP and the gateway's own answers stay."),
    click.option(
        "--dns-sinkhole",
        "sinkhole",
        type=click.Choice(("null", "nxdomain", "refused")),
        help="What a name that is not allowed resolves to.  [default: null, that is 0.0.0.0]",
    ),
    click.option(
        "--dns-answers",
        "answers",
        type=click.Choice(("real", "synthetic")),
        help="Synthetic: each allowed name has an address of its own, whatever the protocol.  [default: real]",
    ),
    click.option("--strict-ech", is_flag=True, help="Refuse TLS hellos that hide their name (ECH), GREASE included."),
    click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="YAML file: `policy`, which SIGUSR1 reads again, of `run` SIGHUP too, and `offload`.",
    ),
)

_HOOK_OPTIONS: Final = (
    click.option(
        "--hook",
        metavar="FILE.py[:CLASS]|MODULE:CLASS",
        help="Python class (netstack.hooks.Hooks) asked about every flow and DNS question.",
    ),
    click.option("--hook-may-allow", is_flag=True, help="Let the hook allow what the policy refuses."),
    click.option(
        "--hook-deadline",
        type=float,
        default=5.0,
        show_default=True,
        metavar="SECONDS",
        help="A hook that takes longer refuses that flow.",
    ),
)

_REPORT_OPTIONS: Final = (
    click.option(
        "--capture", type=click.Path(path_type=Path), metavar="FILE", help="Write every frame to a pcapng file."
    ),
    click.option("--events", metavar="FILE|-", help="Write leases, DNS queries, flows and drops as JSON lines."),
)


def _log_level(default: str) -> Callable[[Command], Command]:
    help_text = "How much to say on standard error."
    return click.option(
        "--log-level", type=click.Choice(LOG_LEVELS), default=default, show_default=True, help=help_text
    )


def _with(*groups: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Put groups of options on a command, in the order they are listed."""

    def decorate(command: Command) -> Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


def _hooks(where: str, *, may_allow: bool, deadline: float) -> HookRunner:
    from netstack.hooks import MAX_DEADLINE, HookError, HookRunner, load_hooks

    if not 0 < deadline <= MAX_DEADLINE:
        raise click.UsageError(f"--hook-deadline {deadline:g}: expected seconds, above 0 and at most {MAX_DEADLINE:g}")
    try:
        return HookRunner(load_hooks(where), may_allow=may_allow, deadline=deadline)
    except HookError as error:
        raise click.UsageError(f"--hook {where!r}: {error}") from error


def _configuration(
    links: tuple[LinkSpec, ...],
    *,
    dns_upstreams: Sequence[str],
    capture: Path | None,
    events: str | None,
    log_level: str,
    network: str | None,
    allow_net: Sequence[str],
    deny_all: bool,
    sinkhole: str | None,
    answers: str | None,
    strict_ech: bool,
    config_file: Path | None,
    offload: str | None,
    hook: str | None,
    hook_may_allow: bool,
    hook_deadline: float,
    ready_fd: int | None = None,
    **addresses: Any,
) -> RunConfig:
    """The one configuration out of the options' values. Raises ConfigError."""
    from netstack import config
    from netstack.policy_config import network_spec, offload_wanted

    if events == "-" and config.StdioLink() in links:
        raise config.ConfigError("--events", events, "a file: standard output carries the guest's frames")
    try:
        resolv_conf = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        resolv_conf = ""
    read_policy = partial(
        network_spec,
        network=network,
        allow_net=allow_net,
        deny_all=deny_all,
        sinkhole=sinkhole,
        answers=answers,
        strict_ech=strict_ech,
        config_file=config_file,
    )
    return config.RunConfig(
        network=config.network_settings(search=config.search_domains(resolv_conf), **addresses),
        links=links,
        offload=offload_wanted(offload, config_file),
        dns_upstreams=tuple(config.parse_dns_upstream(text, "--dns-upstream") for text in dns_upstreams),
        capture=capture,
        events="-" if events == "-" else Path(events) if events else None,
        policy=read_policy(),
        reload_policy=read_policy if config_file else None,
        hooks=_hooks(hook, may_allow=hook_may_allow, deadline=hook_deadline) if hook else None,
        ready_fd=None if ready_fd is None else config.parse_fd(ready_fd, "--ready-fd", least=1),
        log_level=log_level,
    )


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
@_with(_LINK_OPTIONS, _NETWORK_OPTIONS, _POLICY_OPTIONS, _HOOK_OPTIONS, _REPORT_OPTIONS)
@_log_level("info")
@click.option("--ready-fd", type=int, metavar="N", help="Write a line to this descriptor once guests can attach.")
def run(
    *,
    vfkit: Sequence[str],
    qemu: Sequence[str],
    bess: Sequence[str],
    vpnkit: Sequence[str],
    stdio: str | None,
    fds: Sequence[int],
    taps: Sequence[str],
    netns: str | None,
    **options: Any,
) -> int:
    """Give guests a network: one gateway, and as many links as there are link options.

    Runs until SIGTERM or SIGINT. A guest that leaves a listening socket may come back; the end of an inherited
    socket, of standard input or of a TAP ends the program.
    """
    from netstack.config import link_specs

    links = link_specs(vfkit=vfkit, qemu=qemu, bess=bess, vpnkit=vpnkit, stdio=stdio, fds=fds, taps=taps, netns=netns)
    config = _configuration(links, **options)
    from netstack.gateway.run_command import run_gateway

    run_gateway(config)
    return 0


@cli.command(context_settings={"allow_interspersed_args": False})
@_with(_NETWORK_OPTIONS, _POLICY_OPTIONS, _HOOK_OPTIONS, _REPORT_OPTIONS)
@_log_level("warning")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def guest(*, command: Sequence[str], **options: Any) -> int:
    """Run COMMAND in a fresh network namespace whose only way out is this stack.

    Needs no root where the kernel allows user namespaces. The exit status is COMMAND's, 128+N if signal N ended it.
    """
    config = _configuration((), **options)
    from netstack.gateway.guest_command import run_guest

    return run_guest(config, command)


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
@_with(_POLICY_OPTIONS)
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


# What would this policy have done? Without any of them the capture's own holds.
for _option in _POLICY_OPTIONS:
    _option(cli_replay.replay)
cli.add_command(cli_replay.replay)


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
        _fail(error.format_message(), 1)
    except ConfigError as error:
        _fail(str(error), 2)
    except RunFailed as error:
        _fail(str(error), 1)
    except click.Abort:
        _fail("interrupted", 130)
    sys.exit(status if isinstance(status, int) else 0)
