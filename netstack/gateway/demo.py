"""`netstack demo`: a guest on this machine, first with full access, then under a list that it tries to get around.

The guest is a Linux kernel in a namespace of its own. Where namespaces or TAPs are forbidden, a scripted guest that
speaks raw frames takes its place, and the output says so. Its Internet are servers on the loopback of this machine, or
of another namespace: there the ports of the web are free, whoever runs this.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from guest_iface.link import Link, LinkError
from guest_iface.namespaces import GuestNamespace, NamespaceHelper
from guest_iface.unixgram import UnixgramLink
from netstack.config import DEFAULT_GUEST_MAC, RunConfig, network_settings
from netstack.engine.events import DnsEvent, Event, FlowClosed, FlowOpened, FlowRefused, LeaseEvent
from netstack.engine.verdict import Verdict
from netstack.gateway import RunFailed
from netstack.gateway.attachments import Attachments
from netstack.gateway.demo_guest import Plan
from netstack.gateway.demo_services import (
    DOMAIN,
    OFFICE_ADDRESS,
    PAGE,
    WEB_ADDRESS,
    WEB_NAME,
    Services,
    demo_services,
)
from netstack.gateway.event_log import endpoint_words
from netstack.gateway.guest_command import DEVICE
from netstack.gateway.host_datagrams import open_ping_socket
from netstack.gateway.run_command import Gateway, prepare_process, run_trio
from netstack.network_spec import NetworkSpec

log = logging.getLogger(__name__)

LISTED: Final = NetworkSpec.enabled([WEB_NAME, "198.51.100.0/24"])
"""What the second act allows: the web server by its name, an office network by its addresses."""
OTHER_NAME: Final = f"evil.{DOMAIN}"
OTHER_ADDRESS: Final = "45.33.32.156"
"""A public address that no rule allows. Nothing is sent there: every step that tries is refused."""

STYLES: Final = {"ok": "green", "skipped": "yellow", "failed": "bold red"}
PLAIN_WIDTH: Final = 130
"""Columns where there is no terminal to ask for them."""
PROGRAM: Final = (sys.executable, "-m", "netstack.gateway.demo_guest")
PING_GROUPS: Final = Path("/proc/sys/net/ipv4/ping_group_range")


@dataclass(frozen=True, slots=True)
class _Guest:
    """A guest that is ready to be told what to do."""

    title: str
    link: Link
    run: Callable[[str, int, int], Awaitable[int]]
    """Carry out a plan (JSON) with standard input and output at descriptors; gives the exit status."""
    close: Callable[[], None]


def run_demo(capture: Path) -> int:
    """Show it, with the frames in `capture`. Returns 1 if a step failed. Raises RunFailed."""
    prepare_process("warning")
    return run_trio(_demo_apart, capture.resolve())


async def _demo_apart(capture: Path) -> int:
    """Run the demonstration in a network namespace of its own if that can be had, else here."""
    with contextlib.ExitStack() as stack:
        try:
            helper = NamespaceHelper()
            stack.callback(helper.close)
            helper.request("create")
        except (LinkError, OSError):
            return await _demo(capture)
        return await helper.run_command([sys.executable, "-m", "netstack.gateway.demo", str(capture)])


def _namespace_guest() -> _Guest:
    namespace = GuestNamespace.create(mac=DEFAULT_GUEST_MAC, device=DEVICE)

    async def run(plan: str, stdin: int, stdout: int) -> int:
        return await namespace.run_command([*PROGRAM, "--device", DEVICE, plan], stdin=stdin, stdout=stdout)

    title = "The guest: a Linux kernel in a network namespace of its own, behind a TAP"
    return _Guest(title, namespace.open_tap(), run, namespace.close)


def _scripted_guest(reason: str) -> _Guest:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def run(plan: str, stdin: int, stdout: int) -> int:
        card = theirs.fileno()
        command = [*PROGRAM, "--fd", str(card), plan]
        done = await trio.run_process(command, stdin=stdin, stdout=stdout, pass_fds=[card], check=False)
        return done.returncode

    title = f"The guest: a script that speaks raw frames, because a namespace is not to be had here ({reason})"
    return _Guest(title, UnixgramLink.from_fd(ours.detach()), run, theirs.close)


def _plan(services: Services) -> Plan:
    try:
        open_ping_socket().close()
        pings_leave = True
    except OSError:
        pings_leave = False
    return Plan(
        web_name=WEB_NAME,
        missing_name=f"nowhere.{DOMAIN}",
        local_name="gateway.containers.internal",
        http_port=services.http_port,
        https_port=services.https_port,
        closed_port=services.closed_port,
        certificate=str(services.certificate),
        page_sha256=hashlib.sha256(PAGE).hexdigest(),
        pings_leave=pings_leave,
        listed_address=OFFICE_ADDRESS,
        other_name=OTHER_NAME,
        other_address=OTHER_ADDRESS,
    )


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich ends the program, which from within a nursery would be a group of errors and their traceback."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise RunFailed("standard output: nobody reads it any more") from None


async def _demo(capture: Path) -> int:
    console = _Console() if sys.stdout.isatty() else _Console(width=PLAIN_WIDTH)
    with tempfile.TemporaryDirectory(prefix="netstack-demo-") as name, demo_services(Path(name)) as services:
        try:
            guest = _namespace_guest()
        except LinkError as error:
            guest = _scripted_guest(str(error))
        config = RunConfig(
            network=network_settings(
                nat=[f"{address}={services.loopback}" for address in (WEB_ADDRESS, OFFICE_ADDRESS)]
            ),
            links=(),
            dns_upstreams=(f"127.0.0.1:{services.dns_port}",),
            capture=capture,
        )
        try:
            show = _Show(console, guest, config, services)
            console.print(Text(guest.title), soft_wrap=True)
            to = f"which the NAT table leads to {services.loopback}"
            console.print(Text(f"Its Internet: {WEB_NAME} is {WEB_ADDRESS}, {to}"))
            console.print()
            complete = await show.play()
        finally:
            guest.close()
    console.print(Text(f"Every frame: {capture} (Wireshark and tshark open it)"), soft_wrap=True)
    return 0 if complete else 1


class _Show:
    """Gateway and guest, and a row of a table for each step as it comes, with what the gateway's record says of it."""

    def __init__(self, console: Console, guest: _Guest, config: RunConfig, services: Services) -> None:
        self._console = console
        self._guest = guest
        self._services = services
        self._plan = _plan(services)
        self._events: list[Event] = []
        self._gateway = Gateway(config, Attachments(links=[guest.link]), watch=self._events.append)
        self._steps: list[dict[str, Any]] = []

    async def play(self) -> bool:
        """Both acts; whether all went as it should."""
        step_read, step_write = os.pipe()
        word_read, word_write = os.pipe()
        complete = False
        with os.fdopen(word_write, "wb", buffering=0) as go_on:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._gateway.run)
                nursery.start_soon(self._run_guest, word_read, step_write)
                lines = _lines(step_read)
                if await self._act("First act: full access", lines, go_on):
                    complete = await self._second_act(lines, go_on)
                await lines.aclose()
                self._gateway.stop()
        return complete and all(step["state"] != "failed" for step in self._steps)

    async def _second_act(self, lines: AsyncGenerator[dict[str, Any], None], go_on: Any) -> bool:
        asked_before = len(self._services.asked)
        self._gateway.driver.replace_policy(LISTED.policy(), "demo")
        self._events.clear()
        self._console.print(Text(f"Now the policy is replaced, the guest stays: {LISTED}"))
        self._console.print()
        go_on.write(b"\n")
        await self._act("Second act: what a list allows, and what it refuses", lines, go_on)
        left = sorted(set(self._services.asked[asked_before:]))
        self._console.print(Text(f"Questions that left for the resolver meanwhile: {', '.join(left) or 'none'}"))
        return bool(self._steps) and all(question.startswith(f"{WEB_NAME} ") for question in left)

    async def _act(self, title: str, lines: AsyncGenerator[dict[str, Any], None], go_on: Any) -> bool:
        """Show steps until there are no more (False) or another act begins; its line is not answered yet."""
        table = Table(title=title, title_justify="left")
        for heading in ("step", "asked", "answer", "why, as recorded"):
            table.add_column(heading, overflow="fold")
        table.add_column("ms", justify="right")
        more = False
        with Live(table, console=self._console, auto_refresh=False) as live:
            async for line in lines:
                if "act" in line:
                    more = True
                    break
                self._steps.append(line)
                took = "" if line["milliseconds"] is None else f"{line['milliseconds']:.1f}"
                answer = Text(line["answer"], style=STYLES[line["state"]])
                table.add_row(Text(line["name"]), Text(line["asked"]), answer, Text(_why(self._events)), took)
                live.update(table, refresh=True)
                self._events.clear()
                go_on.write(b"\n")
        if not self._console.is_terminal:
            self._console.print()  # ends the table's last line
        self._console.print()
        return more

    async def _run_guest(self, stdin: int, stdout: int) -> None:
        try:
            status = await self._guest.run(json.dumps(asdict(self._plan)), stdin, stdout)
        finally:
            os.close(stdin)
            os.close(stdout)
        if status:
            log.error("the guest's program ended with status %d", status)


async def _lines(fd: int) -> AsyncGenerator[dict[str, Any], None]:
    """JSON objects, one a line, until the other end is closed."""
    rest = b""
    async with trio.lowlevel.FdStream(fd) as stream:
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield json.loads(line)


def _why(events: list[Event]) -> str:
    """What the records of one step say, the one that decided it first of all."""
    for kind in (FlowRefused, FlowOpened, FlowClosed, DnsEvent, LeaseEvent):
        for event in reversed(events):
            if isinstance(event, kind) and not (isinstance(event, FlowClosed) and event.reason == "finished"):
                return _words(event)
    return ""


def _words(event: Event) -> str:
    match event:
        case FlowRefused():
            return f"refused: {_verdict_words(event.verdict)}"
        case FlowOpened():
            dialled = event.dialled if event.dialled[1] else event.dialled[0]  # pings have no port
            return f"allowed: {_verdict_words(event.verdict)}; dialled {endpoint_words(dialled)}"
        case FlowClosed():
            return f"allowed: {_verdict_words(event.verdict)}; then {event.reason}"
        case DnsEvent() if event.verdict is not None:
            said = "allowed" if event.verdict.allowed else "refused"
            return f"{said}: {_verdict_words(event.verdict)}; from {event.source}"
        case DnsEvent():
            return f"{event.rcode}, from {event.source}"
        case LeaseEvent():
            return event.action
    return ""


def _verdict_words(verdict: Verdict) -> str:
    by = f" by {verdict.source}" if verdict.name and verdict.source != "dns" else ""
    rule = f" {verdict.rule!r}" if verdict.rule else ""
    return f"{verdict.reason}{rule}{by}"


def main() -> None:
    """The demonstration in a network namespace that was made for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("capture", type=Path)
    capture = parser.parse_args().capture
    prepare_process("warning")
    for everybody in ("0 2147483647", "0 0"):  # in a user namespace only groups that are mapped may be named
        with contextlib.suppress(OSError):
            PING_GROUPS.write_text(everybody, encoding="ascii")
            break
    try:
        sys.exit(run_trio(_demo, capture))
    except RunFailed as error:
        sys.exit(f"netstack: {error}")


if __name__ == "__main__":
    main()
