"""Namespaces made for one test run, and the processes in them. Everything made here goes when the lab is closed.

Works as root, and without root where the kernel lets anybody make a user namespace (the whole lab then lives in one).
Namespaces have no name in the file system: they live as long as their holder process, and the holder ends with us.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

HOLDER = Path(__file__).with_name("ns_holder.py")
DEADLINE = 60.0
"""Seconds after which something is taken to hang. Never a measure of speed."""


class LabError(AssertionError):
    """A command of the lab failed or hung; the message holds its output."""


def wait_until(condition: Callable[[], object], what: str, *, timeout: float = DEADLINE) -> None:
    """Poll `condition` until it is true; raises LabError naming `what` after `timeout` seconds."""
    limit = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > limit:
            raise LabError(f"gave up waiting for {what} after {timeout:.0f} s")
        time.sleep(0.01)


class Process:
    """A background process with its output in a file. The kernel ends it should the test run be killed."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, **popen: object) -> None:
        self.name = name
        self.argv = list(argv)
        self.log_path = log
        with log.open("wb") as sink:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=popen.pop("stdin", subprocess.DEVNULL),
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **popen,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self.log_path.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to the process alone; one that has ended already is no error."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Its exit status (negative: the signal that ended it). Raises LabError when it does not end."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} still runs after {timeout:.0f} s:\n{self.log}") from None

    def kill(self) -> None:
        """End it and what it started, for certain."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def rss_bytes(self) -> int:
        """Resident memory now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


class Namespace:
    """A network namespace (with a mount namespace of its own), and what runs in it."""

    def __init__(self, lab: Lab, name: str, prefix: Sequence[str]) -> None:
        self.lab = lab
        self.name = name
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            unshare = [*prefix, "unshare", "--net", "--mount", "--propagation", "private", "--"]
            command = [*unshare, sys.executable, "-I", str(HOLDER), str(theirs.fileno())]
            self._holder = Process(
                f"{name} holder", command, lab.directory / f"{name}-ns.log", pass_fds=[theirs.fileno()]
            )
        ours.settimeout(DEADLINE)
        self._channel = ours
        if ours.recv(64) != b"ready":
            raise LabError(f"cannot make namespace {name}: {self._holder.log}")
        user = ["--user", "--preserve-credentials"] if lab.rootless else []
        self._enter = ["nsenter", f"--target={self.pid}", *user, "--net", "--mount", "--wdns=/", "--"]
        self._enter += ["setpriv", "--pdeathsig", "KILL", "--"]
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        """The process that holds the namespaces; usable with `ip link set ... netns PID`."""
        return self._holder.pid

    @property
    def path(self) -> str:
        """The network namespace as a file."""
        return f"/proc/{self.pid}/ns/net"

    def run(
        self, *argv: str, check: bool = True, timeout: float = DEADLINE, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return its output. Raises LabError when it fails (if `check`) or hangs."""
        with subprocess.Popen(
            [*self._enter, *argv],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(stdin, timeout)
            except BaseException as problem:
                # The whole session: killing only a shell would leave its pipeline behind.
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                if isinstance(problem, subprocess.TimeoutExpired):
                    raise LabError(f"in {self.name}: {shlex.join(argv)} hung:\n{out}{err}") from None
                raise
        done = subprocess.CompletedProcess(argv, process.returncode, out, err)
        if check and done.returncode:
            raise LabError(
                f"in {self.name}: {shlex.join(argv)} failed with {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def sh(self, script: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a shell script that stops at the first error."""
        return self.run("sh", "-euc", script, **options)

    def spawn(self, name: str, *argv: str, **popen: object) -> Process:
        """Start a background process here. It is killed when the lab closes."""
        return self.lab.spawn(name, [*self._enter, *argv], **popen)

    def socket(self, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
        """A socket that lives in this namespace, for use here. Has a hang deadline; `settimeout` to change it."""
        self._channel.send(b"%d %d %d" % (family, kind, protocol))
        answer, fds, _, _ = socket.recv_fds(self._channel, 64, 1)
        if not fds:
            raise LabError(f"cannot make a socket in {self.name}: {answer!r}")
        made = socket.socket(fileno=fds[0])
        made.settimeout(DEADLINE)
        return made

    def connect(self, address: str, port: int) -> socket.socket:
        """A TCP connection from here; raises what connect(2) gives."""
        made = self.socket()
        try:
            made.connect((address, port))
        except OSError:
            made.close()
            raise
        return made

    def listen(self, address: str, port: int = 0, *, backlog: int = 1024) -> socket.socket:
        """A TCP listener here."""
        made = self.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(backlog)
        return made

    def sysctl(self, key: str, value: str, *, check: bool = True) -> bool:
        """Set a network sysctl of this namespace; says whether the kernel took it."""
        return self.run("sysctl", "-qw", f"{key}={value}", check=check).returncode == 0

    def use_resolver(self, text: str) -> Path:
        """Give processes started here from now on an /etc/resolv.conf of their own; the file may be rewritten."""
        path = self.lab.directory / f"{self.name}-resolv.conf"
        path.write_text(text)
        self.run("mount", "--bind", str(path), str(Path("/etc/resolv.conf").resolve()))
        return path

    def close(self) -> None:
        """Let go of the namespaces. They end with the last process in them."""
        self._channel.close()
        self._holder.kill()


class Lab:
    """All that a run has made. Use as a context manager."""

    def __init__(self, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.rootless = os.geteuid() != 0
        self.processes: list[Process] = []
        self._environment = dict(environment or {})
        self._namespaces: list[Namespace] = []
        self._user_prefix: list[str] = []

    def namespace(self, name: str) -> Namespace:
        """Make a namespace. Without root the first also makes the user namespace the others live in."""
        prefix = self._user_prefix or (["unshare", "--user", "--map-root-user", "--"] if self.rootless else [])
        made = Namespace(self, name, prefix)
        self._namespaces.append(made)
        if self.rootless and not self._user_prefix:
            self._user_prefix = ["nsenter", f"--target={made.pid}", "--user", "--preserve-credentials", "--"]
        return made

    def spawn(self, name: str, argv: Sequence[str], **popen: object) -> Process:
        """Start a background process; it is killed when the lab closes."""
        log = self.directory / f"{len(self.processes):03d}-{name}.log"
        popen.setdefault("env", {**os.environ, **self._environment})
        process = Process(name, argv, log, **popen)
        self.processes.append(process)
        return process

    def veth(self, left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
        """Join two namespaces by a cable; both ends are brought up."""
        left.run("ip", "link", "add", left_name, "type", "veth", "peer", "name", right_name, "netns", str(right.pid))
        left.run("ip", "link", "set", left_name, "up")
        right.run("ip", "link", "set", right_name, "up")

    def close(self) -> None:
        """Kill every process, newest first, and let the namespaces go."""
        for process in reversed(self.processes):
            process.kill()
        for namespace in reversed(self._namespaces):
            namespace.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def closing_all(*sockets: socket.socket) -> Iterator[None]:
    """Close several sockets at the end of a block."""
    try:
        yield
    finally:
        for one in sockets:
            one.close()
