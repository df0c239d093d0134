"""Network namespaces from the outside: a fresh one to run a guest command in, or an existing one to open a TAP in.

The work is done by a child process (namespace_helper.py), so that this process stays in the namespace it is in. All
of it is Linux; no program such as `ip` is needed, and no root where the kernel lets users make namespaces.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, Self

import trio

from guest_iface.device import configure_device
from guest_iface.link import LinkError
from guest_iface.tap import TapLink, tap_error

__all__ = ["GuestConfiguration", "GuestNamespace", "NamespaceHelper", "configure_device", "namespace_path"]

ANSWER_DEADLINE: Final = 10.0
"""Seconds that the helper may take for one request; it needs a few milliseconds."""
NETNS_DIRECTORY: Final = "/run/netns"
"""Where `ip netns` keeps named network namespaces."""
NOT_FOUND: Final = 127
"""Exit status for a command that does not exist, as shells have it."""
NOT_EXECUTABLE: Final = 126
FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestConfiguration:
    """How a guest namespace's device is set up without DHCP. Addresses are packed, 4 bytes."""

    address: bytes
    prefix_length: int
    gateway: bytes
    dns: bytes
    search: tuple[str, ...] = ()

    def resolv_conf(self) -> str:
        """The guest's /etc/resolv.conf."""
        search = f"search {' '.join(self.search)}\n" if self.search else ""
        return f"nameserver {IPv4Address(self.dns)}\n{search}"


def namespace_path(netns: str | int) -> str:
    """The file of a network namespace that is given by name (as in `ip netns`), process number, or path."""
    if isinstance(netns, int) or netns.isdecimal():
        return f"/proc/{netns}/ns/net"
    return netns if "/" in netns else f"{NETNS_DIRECTORY}/{netns}"


class NamespaceHelper:
    """The child process that is in the namespaces. Requests block for the few milliseconds they take."""

    def __init__(self) -> None:
        """Start it; it is in our own namespaces yet. Raises LinkError if it cannot be started."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ANSWER_DEADLINE)
        project = str(Path(__file__).parent.parent)
        start = (
            f"import sys; sys.path.insert(0, {project!r}); from guest_iface.namespace_helper import main; main({{}})"
        )
        with theirs:
            try:
                # Without site and environment: it needs the standard library only, and starts in 40 ms.
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", start.format(theirs.fileno())], pass_fds=[theirs.fileno()]
                )
            except OSError as error:
                self._control.close()
                raise LinkError(f"cannot start {sys.executable} for a namespace: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """The helper's process number: /proc/PID/ns names its namespaces."""
        return self._process.pid

    def request(self, action: str, fds: Sequence[int] = (), **arguments: Any) -> tuple[dict[str, Any], list[int]]:
        """Have an action of namespace_helper.Helper carried out: its answer and the descriptors that came with it.

        Raises OSError if the action failed, LinkError if the helper is no longer there.
        """
        body = os.memfd_create("netstack-request", os.MFD_CLOEXEC)
        try:
            with os.fdopen(body, "w", encoding="ascii", closefd=False) as file:
                json.dump({"do": action, **arguments}, file)
            os.lseek(body, 0, os.SEEK_SET)
            socket.send_fds(self._control, [b"request"], [body, *fds])
            message, attached, _, _ = socket.recv_fds(self._control, 4096, 4)
        except OSError as error:
            raise LinkError(f"the namespace's process does not answer: {error.strerror or error}") from error
        finally:
            os.close(body)
        if not message:
            raise LinkError("the namespace's process has ended")
        answer = json.loads(message)
        if "error" in answer:
            raise OSError(answer["errno"], answer["error"])
        return answer, attached

    def open_tap(self, name: str, *, mtu: int, mac: bytes | None = None, offload_with: bytes | None = None) -> TapLink:
        """Open a TAP in the namespace; the options are those of TapLink.open. Raises LinkError."""
        shown_mac = None if mac is None else mac.hex()
        try:
            answer, [fd] = self.request("open_tap", name=name, mtu=mtu, mac=shown_mac, offload=offload_with is not None)
        except OSError as error:
            raise tap_error(name, error) from error
        return TapLink(
            fd,
            answer["name"],
            mtu=mtu,
            queue_frames=answer["queue"],
            offload_with=offload_with if answer["offload"] else None,
        )

    async def run_command(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        forward_signals: bool = False,
    ) -> int:
        """Run a command in there, on our terminal unless other descriptors are given, and wait for its exit status.

        A command that signal N ended gives 128+N; one that does not exist gives 127, one that cannot be executed 126,
        with a line on standard error. With `forward_signals`, SIGTERM, SIGINT and SIGHUP that come meanwhile are
        passed on to the command instead of ending this process. A cancelled call ends the command. `environment`
        replaces ours.
        """
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.setblocking(False)
        with channel:
            with theirs:
                try:
                    self.request(
                        "run",
                        [stdin, stdout, stderr, theirs.fileno()],
                        arguments=list(arguments),
                        environment=dict(os.environ if environment is None else environment),
                        directory=str(Path.cwd()),
                    )
                except OSError as error:
                    os.write(stderr, f"netstack: {arguments[0]}: {error.strerror}\n".encode())
                    return NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
            if not forward_signals:
                return await _exit_status(channel)
            with trio.open_signal_receiver(*FORWARDED) as signals:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def forward() -> None:
                        async for number in signals:
                            if not (number == signal.SIGINT and _terminal_is_ours()):
                                channel.send(bytes([number]))

                    status = await _exit_status(channel)
                    nursery.cancel_scope.cancel()
            return status

    def close(self) -> None:
        """End the helper and all that runs in it; returns when they are gone, after GRACE seconds at most."""
        self._control.close()
        self._process.wait()


class GuestNamespace:
    """A fresh network namespace whose only way out is a TAP of ours, for commands to run in as a guest."""

    def __init__(self, helper: NamespaceHelper, tap: TapLink) -> None:
        """Made by `create`."""
        self._helper = helper
        self._tap: TapLink | None = tap
        self.device = tap.device
        """The network device's name, as the guest sees it."""

    @classmethod
    def create(
        cls,
        *,
        mac: bytes,
        mtu: int = 1500,
        device: str = "eth0",
        configuration: GuestConfiguration | None = None,
        offload_with: bytes | None = None,
    ) -> Self:
        """Make it: network and mount namespace, around them a user namespace unless we are root, and a TAP with that
        MAC (6 bytes) and MTU (bytes). Without a configuration the device is up but has no address: a DHCP client's
        work. `offload_with` is TapLink.open's.

        Takes some 50 ms, blocking. Raises LinkError with what the kernel refused.
        """
        helper = NamespaceHelper()
        try:
            helper.request("create")
            tap = helper.open_tap(device, mtu=mtu, mac=mac, offload_with=offload_with)
            try:
                if configuration is not None:
                    helper.request(
                        "configure",
                        name=tap.device,
                        address=configuration.address.hex(),
                        prefix_length=configuration.prefix_length,
                        gateway=configuration.gateway.hex(),
                    )
                    helper.request("resolve_by", resolv_conf=configuration.resolv_conf())
            except BaseException:
                tap.close()
                raise
        except BaseException as error:
            helper.close()
            if isinstance(error, OSError):
                raise LinkError(f"cannot make a network namespace: {error.strerror}{_hint(error)}") from error
            raise
        return cls(helper, tap)

    @property
    def pid(self) -> int:
        """A process that is in the namespace for as long as it lives, as for `nsenter --target`."""
        return self._helper.pid

    def open_tap(self) -> TapLink:
        """The link to the guest; the caller owns it. Raises LinkError when called twice."""
        tap, self._tap = self._tap, None
        if tap is None:
            raise LinkError(f"{self.device}: already opened")
        return tap

    async def run_command(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        forward_signals: bool = False,
    ) -> int:
        """Run a command as the guest: see NamespaceHelper.run_command."""
        return await self._helper.run_command(
            arguments, environment, stdin=stdin, stdout=stdout, stderr=stderr, forward_signals=forward_signals
        )

    def close(self) -> None:
        """End whatever still runs in the namespace, and the namespace. Safe to call twice."""
        if self._tap is not None:
            self._tap.close()
            self._tap = None
        self._helper.close()


def _hint(error: OSError) -> str:
    """What an administrator can do about it."""
    if error.errno in (errno.EPERM, errno.EACCES):
        limits = "user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns, a container's seccomp filter"
        return f" (this host does not let us: see {limits})"
    if error.errno in (errno.ENOSPC, errno.EUSERS):
        return " (the host's limit is reached: user.max_net_namespaces, user.max_user_namespaces)"
    return ""


async def _exit_status(channel: socket.socket) -> int:
    await trio.lowlevel.wait_readable(channel)
    message = channel.recv(64)
    if not message:
        raise LinkError("the namespace's process has ended")
    status = int(message)
    return status if status >= 0 else 128 - status


def _terminal_is_ours() -> bool:
    """Whether we are in our terminal's foreground group: then it has sent its SIGINT to the command as well."""
    try:
        with Path("/dev/tty").open("rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
