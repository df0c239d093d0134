"""The command under test as a process: how it is started and told to stop. The only place that knows its options."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .lab import DEADLINE, LabError, Namespace, Process

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "netstack")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "PYTHONUNBUFFERED": "1",
    "PYTHONDEVMODE": "",
}


@dataclass(frozen=True, slots=True)
class Addresses:
    """The network as the guest sees it."""

    gateway: str = "192.168.127.1"
    guest: str = "192.168.127.2"
    dns: str = "192.168.127.1"
    host: str = "192.168.127.254"
    """The address that stands for the host's 127.0.0.1."""
    unused: str = "192.168.127.77"
    gateway_mac: str = "5a:94:ef:e4:0c:dd"


class Gateway:
    """A running `netstack run`, or a stand-in for it."""

    def __init__(
        self, process: Process, addresses: Addresses, *, files: Sequence[Path] = (), events: Path | None = None
    ):
        self.process = process
        self.addresses = addresses
        self.files = list(files)
        """What it made in the file system and has to remove."""
        self.status: int | None = None
        """Its exit status once a test has ended it, or has seen it end."""
        self._events = events

    def events(self, kind: str | None = None) -> list[dict[str, object]]:
        """What it has reported so far, as dictionaries; of one kind if asked."""
        text = self._events.read_text() if self._events and self._events.exists() else ""
        whole = text.rpartition("\n")[0]  # the last line may be half written
        records = [json.loads(line) for line in whole.splitlines()]
        return [record for record in records if kind in (None, record["event"])]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; its exit status."""
        self.process.signal(number)
        self.status = self.process.wait(20)
        return self.status


def wait_ready(process: Process, fd: int) -> None:
    """Wait for the line on a --ready-fd pipe."""
    try:
        readable, _, _ = select.select([fd], [], [], DEADLINE)
        if not readable or not os.read(fd, 64):
            raise LabError(f"{process.name} did not get ready:\n{process.log}")
    finally:
        os.close(fd)


def start_netstack(
    host: Namespace, name: str, *link: str, options: Sequence[str] = (), upstream: bool = True
) -> Gateway:
    """Start `netstack run` in the host namespace with these link options and wait until it is ready.

    `unixgram://PATH` and `unix://PATH` among the options are noted as files it must remove. Events go to a file.
    Without `upstream` it asks the resolvers of the host namespace's /etc/resolv.conf.
    """
    read_end, write_end = os.pipe()
    events = host.lab.directory / f"{name}-{len(host.lab.processes)}-events.jsonl"
    arguments = ["run", *link, "--events", str(events), "--ready-fd", str(write_end)]
    if upstream:
        arguments += ["--dns-upstream", "127.0.0.1:5353"]
    try:
        process = host.spawn(name, *COMMAND, *arguments, *options, pass_fds=[write_end], env=ENVIRONMENT)
    finally:
        os.close(write_end)
    wait_ready(process, read_end)
    files = [Path(word.partition("://")[2]) for word in link if word.startswith(("unixgram://", "unix://"))]
    return Gateway(process, Addresses(), files=files, events=events)


def start_slirp4netns(host: Namespace, guest: Namespace, tap: str) -> Gateway:
    """A control run of the TAP tests against somebody else's stack (GUEST_STANDIN=slirp4netns): are the tests right?"""
    read_end, write_end = os.pipe()
    arguments = ["--cidr=192.168.127.0/24", "--mtu=1500", f"--ready-fd={write_end}", str(guest.pid), tap]
    try:
        process = host.spawn("slirp4netns", "slirp4netns", *arguments, pass_fds=[write_end])
    finally:
        os.close(write_end)
    wait_ready(process, read_end)
    slirp = {"gateway": "192.168.127.2", "guest": "192.168.127.100", "dns": "192.168.127.3", "host": "192.168.127.2"}
    return Gateway(process, Addresses(**slirp, gateway_mac="52:55:c0:a8:7f:02"))
