"""`netstack demo`: a guest on this machine gets a lease, names, web pages, pings and a refused port; all is local.

The guest is a Linux kernel in a namespace of its own. Where namespaces or TAPs are forbidden, a scripted guest that
speaks raw frames takes its place, and the output says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from guest_iface.link import Link, LinkError
from guest_iface.namespaces import GuestNamespace
from guest_iface.unixgram import UnixgramLink
from netstack.config import DEFAULT_GUEST_MAC, RunConfig, network_settings
from netstack.gateway.demo_guest import Plan
from netstack.gateway.demo_services import DOMAIN, PAGE, WEB_ADDRESS, WEB_NAME, Services, demo_services
from netstack.gateway.guest_command import DEVICE
from netstack.gateway.host_sockets import open_ping_socket
from netstack.gateway.run_command import Attachments, Gateway, prepare_process, run_trio

log = logging.getLogger(__name__)

STYLES: Final = {"ok": "green", "skipped": "yellow", "failed": "bold red"}
PLAIN_WIDTH: Final = 110
"""Columns where there is no terminal to ask for them."""
PROGRAM: Final = (sys.executable, "-m", "netstack.gateway.demo_guest")


@dataclass(frozen=True, slots=True)
class _Guest:
    """A guest that is ready to be told what to do."""

    title: str
    link: Link
    run: Callable[[str, int], Awaitable[int]]
    """Carry out a plan (JSON) with standard output at a descriptor; gives the exit status."""
    close: Callable[[], None]


def run_demo(capture: Path) -> int:
    """Show it, with the frames in `capture`. Returns 1 if a step failed. Raises RunFailed."""
    prepare_process("warning")
    return run_trio(_demo, capture.resolve())


def _namespace_guest() -> _Guest:
    namespace = GuestNamespace.create(mac=DEFAULT_GUEST_MAC, device=DEVICE)

    async def run(plan: str, stdout: int) -> int:
        return await namespace.run_command([*PROGRAM, "--device", DEVICE, plan], stdout=stdout)

    title = "The guest: a Linux kernel in a network namespace of its own, behind a TAP"
    return _Guest(title, namespace.open_tap(), run, namespace.close)


def _scripted_guest(reason: str) -> _Guest:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def run(plan: str, stdout: int) -> int:
        card = theirs.fileno()
        done = await trio.run_process([*PROGRAM, "--fd", str(card), plan], stdout=stdout, pass_fds=[card], check=False)
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
        certificate=str(services.certificate or ""),
        page_sha256=hashlib.sha256(PAGE).hexdigest(),
        pings_leave=pings_leave,
    )


async def _demo(capture: Path) -> int:
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    with tempfile.TemporaryDirectory(prefix="netstack-demo-") as name:
        directory = Path(name)
        with demo_services(directory) as services:
            try:
                guest = _namespace_guest()
            except LinkError as error:
                guest = _scripted_guest(str(error))
            events = directory / "events.jsonl"
            config = RunConfig(
                network=network_settings(nat=[f"{WEB_ADDRESS}=127.0.0.1"]),
                links=(),
                dns_upstreams=(f"127.0.0.1:{services.dns_port}",),
                capture=capture,
                events=events,
            )
            console.print(Text(guest.title))
            console.print(Text(f"Its Internet: {WEB_NAME} is {WEB_ADDRESS}, which the NAT table leads to 127.0.0.1"))
            console.print()
            try:
                steps = await _show(console, guest, config, _plan(services))
            finally:
                guest.close()
        _tell_events(console, events)
    console.print(Text(f"Every frame: {capture} (Wireshark and tshark open it)"), soft_wrap=True)
    complete = bool(steps) and all(step["state"] != "failed" for step in steps)
    return 0 if complete else 1


async def _show(console: Console, guest: _Guest, config: RunConfig, plan: Plan) -> list[dict[str, Any]]:
    """Run gateway and guest; a row of the table for each step as it comes."""
    table = Table(title="What the guest asked, and what it got", title_justify="left")
    for heading in ("step", "asked", "answer"):
        table.add_column(heading, overflow="fold")
    table.add_column("ms", justify="right")
    gateway = Gateway(config, Attachments(links=[guest.link]))
    steps: list[dict[str, Any]] = []
    read_end, write_end = os.pipe()
    with Live(table, console=console, auto_refresh=False) as live:
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run)
            nursery.start_soon(_run_guest, guest, plan, write_end)
            async for step in _lines(read_end):
                steps.append(step)
                took = "" if step["milliseconds"] is None else f"{step['milliseconds']:.1f}"
                answer = Text(step["answer"], style=STYLES[step["state"]])
                table.add_row(Text(step["name"]), Text(step["asked"]), answer, took)
                live.update(table, refresh=True)
            gateway.stop()
    console.print()
    return steps


async def _run_guest(guest: _Guest, plan: Plan, stdout: int) -> None:
    try:
        status = await guest.run(json.dumps(asdict(plan)), stdout)
    finally:
        os.close(stdout)
    if status:
        log.error("the guest's program ended with status %d", status)


async def _lines(fd: int) -> AsyncIterator[dict[str, Any]]:
    """JSON objects, one a line, until the other end is closed."""
    rest = b""
    async with trio.lowlevel.FdStream(fd) as stream:
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield json.loads(line)


def _tell_events(console: Console, path: Path) -> None:
    table = Table(title="What the gateway reported (--events)", title_justify="left")
    for heading in ("event", "what"):
        table.add_column(heading, overflow="fold")
    for line in path.read_text(encoding="ascii").splitlines():
        event = json.loads(line)
        words = _event_words(event)
        if words:
            table.add_row(event["event"], Text(words))
    console.print(table)
    console.print()


def _event_words(event: dict[str, Any]) -> str:
    match event["event"]:
        case "lease":
            return f"{event['action']}: {event['address']} for {event['mac']}"
        case "dns":
            return f"{event['qtype']} {event['name']}: {event['rcode']}, from {event['source']}"
        case "flow_opened":
            return f"{event['protocol']} {event['guest']} to {event['destination']}, dialled as {event['dialled']}"
        case "flow_closed":
            traffic = f"{event['sent']} bytes sent, {event['received']} received"
            return f"{event['protocol']} {event['guest']} to {event['destination']}: {event['reason']}, {traffic}"
    return ""
