"""Groups of options that commands share, and the one configuration made of them and of the YAML file.

Only click is imported here; what is needed besides is imported when a command runs.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from netstack.config import CaptureOptions, RunConfig, Shaping
    from netstack.configuration_model import Document
    from netstack.hooks import HookRunner

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
Command = Callable[..., Any]

LINK_OPTIONS: Final = (
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
        metavar="unix://PATH|tcp://HOST:PORT|vsock://[CID]:PORT",
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
        metavar="unix://PATH|tcp://HOST:PORT|vsock://[CID]:PORT",
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

NETWORK_OPTIONS: Final = (
    click.option("--mtu", type=int, metavar="BYTES", help="Largest IP packet on the guest's link.  [default: 1500]"),
    click.option("--subnet", metavar="CIDR", help="The guest's network.  [default: 192.168.127.0/24]"),
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
        metavar="SECONDS",
        help="Idle time after which an answered UDP flow is forgotten.  [default: 180]",
    ),
    click.option(
        "--udp-unreplied-timeout",
        type=float,
        metavar="SECONDS",
        help="The same for one that was never answered.  [default: 30]",
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
        help="Whether guests may leave segmentation to us: a TAP's kernel if it can, others by frames beyond the MTU."
        "  [default: on]",
    ),
    click.option(
        "--verify-checksums",
        type=click.Choice(("auto", "on", "off")),
        help="Whether guests' checksums are looked at. Auto: where the link can damage bytes.  [default: auto]",
    ),
    click.option(
        "--batch-calls",
        type=click.Choice(("on", "off")),
        help="Whether many frames go with one system call, where there are such.  [default: on]",
    ),
    click.option(
        "--busy-poll",
        type=float,
        metavar="MICROSECONDS",
        help="How long the next frame is waited for awake at most, where it comes soon; 0 is off.  [default: 200]",
    ),
    click.option(
        "--tcp-window",
        metavar="BYTES",
        help="Bytes (K, M) on their way in a TCP connection, each way.  [default: what the link's queue holds]",
    ),
    click.option("--metadata-access", is_flag=True, help="Let the guest reach 169.254.0.0/16 (cloud metadata)."),
)

POLICY_OPTIONS: Final = (
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
        help="YAML file: gvproxy's keys and ours. SIGUSR1 reads its `policy` again, of `run` SIGHUP too.",
    ),
)

HOOK_OPTIONS: Final = (
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

REPORT_OPTIONS: Final = (
    click.option(
        "--capture", type=click.Path(path_type=Path), metavar="FILE", help="Write every frame to a pcapng file."
    ),
    click.option("--events", metavar="FILE|-", help="Write leases, DNS queries, flows and drops as JSON lines."),
)

WIRE_OPTIONS: Final = (
    click.option(
        "--capture-filter", metavar="FILTER", help="Capture only this, as in 'host 10.0.0.5 and tcp port 443'."
    ),
    click.option("--capture-snaplen", type=int, metavar="BYTES", help="Bytes kept of each frame.  [default: all]"),
    click.option(
        "--capture-size",
        metavar="BYTES",
        help="Begin another file when one has this size (K, M, G); FILE is the newest, FILE.1 the one before.",
    ),
    click.option("--capture-count", type=int, metavar="N", help="Files kept of such a row.  [default: 10]"),
    click.option(
        "--shape-tx-kbps",
        "shape_tx",
        multiple=True,
        metavar="[LINK=]RATE",
        help="Limit what a guest sends, kilobits per second.",
    ),
    click.option(
        "--shape-rx-kbps", "shape_rx", multiple=True, metavar="[LINK=]RATE", help="Limit what a guest receives."
    ),
    click.option(
        "--shape-burst",
        metavar="BYTES",
        help="What may go at once after a pause (K, M).  [default: 25 ms of the rate]",
    ),
    click.option(
        "--impair",
        multiple=True,
        metavar="SPEC",
        help="Make the network worse, as in 'dir=to-guest delay 50ms 10ms loss 1% seed 7'; see docs/impair.md.",
    ),
)

SERVICE_OPTIONS: Final = (
    click.option(
        "--listen",
        "api_listen",
        multiple=True,
        metavar="unix://PATH|tcp://HOST:PORT|vsock://[CID]:PORT",
        help="Serve the HTTP API there.",
    ),
    click.option(
        "--services", metavar="unix://PATH|tcp://HOST:PORT|vsock://[CID]:PORT", help="The same without /connect."
    ),
    click.option(
        "--api-token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File with a token that callers of the API have to bear.",
    ),
    click.option("--guest-api", is_flag=True, help="Guests may ask for forwards to themselves, at http://gateway."),
    click.option(
        "--forward",
        "forwards",
        multiple=True,
        metavar="[udp:|unix:]LOCAL=IP:PORT",
        help="Port of this machine that leads to one of the guest: 127.0.0.1:2222=192.168.127.2:22.",
    ),
    click.option("--keep-source", is_flag=True, help="Forwards show the guest the client's address, where possible."),
)

LOG_OPTIONS: Final = (
    click.option(
        "--log-file", type=click.Path(path_type=Path), metavar="FILE", help="Messages go there, not to standard error."
    ),
    click.option("--log-format", type=click.Choice(("text", "json")), help="How a message looks.  [default: text]"),
)

PROCESS_OPTIONS: Final = (
    click.option(
        "--pid-file", type=click.Path(path_type=Path), metavar="FILE", help="Holds the process id while it runs."
    ),
    click.option(
        "--notification",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="Listening unix socket that is told of readiness, guests and failures, a JSON line each.",
    ),
)


def log_level_option(default: str) -> Callable[[Command], Command]:
    """`--log-level`; the default is for `configuration` to apply, a file may say otherwise."""
    help_text = f"How much to say on standard error.  [default: {default}]"
    return click.option("--log-level", type=click.Choice(LOG_LEVELS), help=help_text)


COLLECT_AFTER: Final = (10_000, 10, 10)
"""Objects made and not gone that start a collection of the youngest; of those, and again of those, that start a larger
one. Python's own 700 has full collections walk over all flows a dozen times while their number grows to thousands.
"""


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """No garbage is looked for while modules are imported, nor among them later: all that they make stays.

    That is a twelfth of the time to start, and 10 ms of each full collection while frames wait. From then on it is
    looked for seldom: what a flow is made of refers to nothing that refers to it, and goes with it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)
        gc.enable()


def with_options(*groups: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
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


def _capture_options(
    chosen: str | None, snaplen: int | None, size: str | None, count: int | None
) -> CaptureOptions | None:
    if (chosen, snaplen, size, count) == (None, None, None, None):
        return None
    from netstack.config import CaptureOptions
    from netstack.setting_values import parse_size

    rotate = None if size is None else parse_size(size, "--capture-size")
    return CaptureOptions(snaplen=snaplen, rotate_size=rotate, rotate_count=count, filter=chosen)


def _shaping(tx: Sequence[str], rx: Sequence[str], burst: str | None) -> Shaping | None:
    if not tx and not rx and burst is None:
        return None
    from netstack.setting_values import parse_size
    from netstack.wire_options import shaping_of

    size = None if burst is None else parse_size(burst, "--shape-burst")
    return shaping_of(tx, rx, size, ("--shape-tx-kbps", "--shape-rx-kbps"))


def configuration(
    *,
    links: bool,
    default_log_level: str,
    network: str | None,
    allow_net: Sequence[str],
    deny_all: bool,
    sinkhole: str | None,
    answers: str | None,
    strict_ech: bool,
    config_file: Path | None,
    hook: str | None,
    hook_may_allow: bool,
    hook_deadline: float,
    ready_fd: int | None = None,
    forwards: Sequence[str] = (),
    api_token_file: Path | None = None,
    offload: str | None = None,
    batch_calls: str | None = None,
    log_format: str | None = None,
    capture_filter: str | None = None,
    capture_snaplen: int | None = None,
    capture_size: str | None = None,
    capture_count: int | None = None,
    shape_tx: Sequence[str] = (),
    shape_rx: Sequence[str] = (),
    shape_burst: str | None = None,
    impair: Sequence[str] = (),
    **values: Any,
) -> RunConfig:
    """The one configuration out of the options' values and the file; options replace what the file says.

    `links`: one is needed. Raises ConfigError.
    """
    from netstack.config import ForwardSpec
    from netstack.policy_config import network_spec
    from netstack.run_settings import RunSettings, parse_forward_option, read_token, run_config

    said = {key: value for key, value in values.items() if not (value is None or value is False or value == ())}
    settings = RunSettings(
        forwards=tuple(ForwardSpec(*parse_forward_option(text, "--forward")) for text in forwards) or None,
        api_token=None if api_token_file is None else read_token(api_token_file, "--api-token-file"),
        offload=None if offload is None else offload == "on",
        batch_calls=None if batch_calls is None else batch_calls == "on",
        log_format="json" if log_format == "json" else None,
        capture_options=_capture_options(capture_filter, capture_snaplen, capture_size, capture_count),
        shaping=_shaping(shape_tx, shape_rx, shape_burst),
        impair=tuple(impair) or None,
        names={"api_listen": "--listen", "forwards": "--forward"},
        **said,
    )
    document: Document | None = None
    notes: list[str] = []
    if config_file is not None:
        from netstack.configuration import read_document, settings_of, warnings

        document = read_document(config_file)
        notes = warnings(document)
        settings = settings.over(settings_of(document, config_file))
    settings = settings.over(RunSettings(log_level=default_log_level))
    if not links:
        settings, left_out = settings.without_attachments()
        notes += [f"{key}: is for `netstack run`, and does nothing here" for key in left_out]
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
    return run_config(
        settings,
        links=links,
        policy=read_policy(document=document),
        reload_policy=read_policy if config_file else None,
        hooks=_hooks(hook, may_allow=hook_may_allow, deadline=hook_deadline) if hook else None,
        ready_fd=ready_fd,
        notes=notes,
    )
