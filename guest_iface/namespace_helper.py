"""The process that enters or makes namespaces for us: opens TAPs there, sets the network up, and runs commands in it.

Started by namespaces.py in a bare interpreter, as the namespaces' first process; nothing else may import it. A
process that has threads cannot enter a user namespace, and the gateway has to stay where it is.

It speaks over one SOCK_SEQPACKET descriptor. A request is an attached memory file with a JSON object (its `do` names
a function below, the rest are arguments) and perhaps more descriptors; the answer is a JSON object, `{"error": ...}`
if it failed. Each command has a channel of its own: the helper writes one status, the other side writes signal
numbers, and when either channel ends what runs behind it is ended as well. The helper adopts what its commands leave
behind (PR_SET_CHILD_SUBREAPER), so nothing outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from guest_iface import device

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_NS_GET_USERNS: Final = 0xB701
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18
_PR_SET_CHILD_SUBREAPER: Final = 36

GRACE: Final = 1.0
"""Seconds that a process gets between SIGTERM and SIGKILL."""
MESSAGE_BYTES: Final = 4096
NAME_SERVICES: Final = ("/run/systemd/resolve", "/run/nscd")
"""Where the C library finds name services of the host's over unix sockets, which no network namespace keeps out."""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any, what: str) -> None:
    """Call the C library. Raises OSError that says what was tried."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    _call(
        "mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None, what=f"mount on {target}"
    )


class Helper:
    """Serves one control channel."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._commands: dict[int, socket.socket] = {}
        """Process number of each running command -> its channel."""
        self._doomed: dict[int, float] = {}
        """Process number -> when it is to be killed."""

    # Requests. Each gives the answer and the descriptors that go with it (closed after they were sent).

    def create(self) -> tuple[dict[str, Any], list[int]]:
        """Fresh network and mount namespaces; a user namespace around them where we may not do that directly."""
        privileged = False
        if os.geteuid() == 0:
            try:
                _call("unshare", _CLONE_NEWNET | _CLONE_NEWNS, what="new network namespace")
                privileged = True
            except PermissionError:
                privileged = False  # root of a container: try as anybody else does
        if not privileged:
            user, group = os.geteuid(), os.getegid()
            _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS, what="new user and network namespace")
            # user_namespaces(7): without setgroups denied, an unprivileged process may not map its group.
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")
        _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
        device.set_up("lo")
        return {}, []

    def join(self, path: str) -> tuple[dict[str, Any], list[int]]:
        """Enter a network namespace that exists, through the user namespace that owns it if need be."""
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", namespace, _CLONE_NEWNET, what=f"enter {path}")
        except PermissionError:
            owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
            _call("setns", owner, _CLONE_NEWUSER, what=f"enter the user namespace of {path}")
            _call("setns", namespace, _CLONE_NEWNET, what=f"enter {path}")
            os.close(owner)
        os.close(namespace)
        return {}, []

    def open_tap(self, name: str, mtu: int, mac: str | None, *, offload: bool) -> tuple[dict[str, Any], list[int]]:
        """Open a TAP and set it up; its descriptor comes with the answer."""
        fd, name, offload = device.open_tap_device(name, offload=offload)
        if mac is not None:
            device.set_mac(name, bytes.fromhex(mac))
        device.set_mtu(name, mtu)
        device.set_up(name)
        return {"name": name, "queue": device.device_queue(name), "offload": offload}, [fd]

    def configure(
        self, name: str, address: str, prefix_length: int, gateway: str | None
    ) -> tuple[dict[str, Any], list[int]]:
        """Give a device its address and the default route; addresses in hexadecimal."""
        device.configure_device(
            name, bytes.fromhex(address), prefix_length, None if gateway is None else bytes.fromhex(gateway)
        )
        return {}, []

    def resolve_by(self, resolv_conf: str) -> tuple[dict[str, Any], list[int]]:
        """Put another /etc/resolv.conf in place for what runs here, and shut the host's own name services out."""
        for directory in NAME_SERVICES:
            if Path(directory).is_dir():
                _mount("tmpfs", directory, "tmpfs", 0)
        target = Path("/etc/resolv.conf").resolve()
        if str(target.parent) in NAME_SERVICES:
            # It is a link into a directory that is empty now, and only ours.
            target.touch()
        with tempfile.NamedTemporaryFile("w", prefix="netstack-resolv-", encoding="utf-8") as source:
            source.write(resolv_conf)
            source.flush()
            os.fchmod(source.fileno(), 0o644)
            _mount(source.name, str(target), "", _MS_BIND)
        # The file's name is gone again; the mount keeps what is in it.
        return {}, []

    def run(
        self, fds: Sequence[int], arguments: Sequence[str], environment: Mapping[str, str], directory: str
    ) -> tuple[dict[str, Any], list[int]]:
        """Start a command with the descriptors given as input, output, errors and channel."""
        stdin, stdout, stderr, channel_fd = fds
        channel = socket.socket(fileno=channel_fd)
        try:
            process = subprocess.Popen(
                arguments, env=environment, cwd=directory, stdin=stdin, stdout=stdout, stderr=stderr
            )
        except OSError:
            channel.close()
            raise
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)
        # From here on the process is reaped by us, not by the object.
        process.returncode = 0
        self._commands[process.pid] = channel
        self._selector.register(channel, selectors.EVENT_READ, process.pid)
        return {"pid": process.pid}, []

    # The loop.

    def serve(self) -> None:
        """Serve until the control channel ends, then end everything that runs here."""
        wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        # Handlers that do nothing, not SIG_IGN, which commands would inherit. The terminal's signals reach the
        # commands by themselves; what they make of it decides.
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(wakeup_read, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select(self._next_deadline()):
                if key.fileobj is self._control:
                    if not self._answer():
                        self._end_everything()
                        return
                elif key.data is not None:
                    self._hear(key.data)
                else:
                    os.read(wakeup_read, 4096)
            self._reap()
            self._kill_the_doomed()

    def _next_deadline(self) -> float | None:
        return max(0.0, min(self._doomed.values()) - time.monotonic()) if self._doomed else None

    def _answer(self) -> bool:
        """One request; False when there will be no more."""
        request, fds, _, _ = socket.recv_fds(self._control, 16, 8)
        if not request:
            return False
        body, *others = fds
        with os.fdopen(body, "rb") as file:
            arguments: dict[str, Any] = json.load(file)
        action = getattr(self, arguments.pop("do"))
        if others:
            arguments["fds"] = others
        try:
            answer, attached = action(**arguments)
        except OSError as error:
            answer, attached = {"error": error.strerror or str(error), "errno": error.errno}, []
        socket.send_fds(self._control, [json.dumps(answer).encode()], attached)
        for fd in attached:
            os.close(fd)
        return True

    def _hear(self, pid: int) -> None:
        """A signal number for a command, or the end of its channel: nobody waits for it any more."""
        channel = self._commands.get(pid)
        if channel is None:
            return
        message = channel.recv(1)
        if message:
            os.kill(pid, message[0])
            return
        self._selector.unregister(channel)
        os.kill(pid, signal.SIGTERM)
        self._doomed[pid] = time.monotonic() + GRACE

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            doomed = self._doomed.pop(pid, None)
            channel = self._commands.pop(pid, None)
            if channel is not None:
                if doomed is None:
                    self._selector.unregister(channel)
                    with contextlib.suppress(BrokenPipeError):
                        channel.send(str(os.waitstatus_to_exitcode(status)).encode())
                channel.close()

    def _kill_the_doomed(self) -> None:
        now = time.monotonic()
        for pid, deadline in list(self._doomed.items()):
            if deadline <= now:
                os.kill(pid, signal.SIGKILL)
                del self._doomed[pid]

    def _end_everything(self) -> None:
        """SIGTERM for all children, and after a while SIGKILL for them and for what they leave to us, until there are
        none.
        """
        self._signal_children(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while _children():
            self._reap()
            if time.monotonic() > deadline:
                self._signal_children(signal.SIGKILL)
            time.sleep(0.005)
        self._reap()

    def _signal_children(self, number: signal.Signals) -> None:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _children() -> list[int]:
    """Our children that still run: those we started, and those whose own parents have gone."""
    ours = str(os.getpid())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # proc(5): the fields behind the command's name, which may hold anything, are state and parent.
                _, parent = (
                    (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
                )
                if parent == ours:
                    found.append(int(entry.name))
    return found


def main(fd: int) -> None:
    """Serve the control channel on a descriptor."""
    control = socket.socket(fileno=fd)
    try:
        Helper(control).serve()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
