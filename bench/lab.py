"""Namespaces, processes and devices of one measurement: made here, bounded here, removed here whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
HOST_ADDRESS: Final = "198.51.100.10"
FORWARD: Final = "127.0.0.1:2222"
FORWARDED_PORT: Final = 22
"""The forward that gvproxy has unless it is told otherwise."""
"""Where the services are, the same for every peer: an address of the host namespace itself (RFC 5737 section 3)."""
SILENT_ADDRESS: Final = "198.51.100.66"
"""Nobody is there, and nobody says so."""
HOST_GATEWAY: Final = "198.51.100.1"
"""The host namespace's default route. It leads to a device nobody reads; passt configures itself from such a route."""
GUEST_MAC: Final = "5a:94:ef:e4:0c:ee"
"""The one gvproxy and netstack keep the guest's default address for."""
START_SECONDS: Final = 20.0
FIRST_ECHO_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0
LOAD_GRACE: Final = 30.0
"""Seconds beyond its own time after which a load generator is given up. It gives up itself after 20."""

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_DIRECTORY: Final = "netstack-bench-"
_NAMESPACE: Final = re.compile(r"nsb(\d+)-\d+[ghm]")


class BenchError(Exception):
    """A measurement could not be made; the message says which step failed and what was said about it."""


def _die_with_parent() -> None:
    """In a child, before exec: be killed when the benchmark is, however it ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run(*argv: str, seconds: float = START_SECONDS, directory: Path = ROOT) -> str:
    """Run a short command and return its output. Raises BenchError when it fails or takes longer than `seconds`."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False, cwd=directory)
    except FileNotFoundError as error:
        raise BenchError(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"`{' '.join(argv)}` took longer than {seconds:.0f} s") from error
    if done.returncode:
        raise BenchError(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def ip(commands: str, netns: str | None = None) -> None:
    """Run several `ip` commands, one a line, in one process, in a namespace if given.

    Raises BenchError on the first failure.
    """
    argv = ["ip", *(["-n", netns] if netns else []), "-batch", "-"]
    done = subprocess.run(argv, input=commands, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    if done.returncode:
        oneline = "; ".join(commands.splitlines())
        raise BenchError(f"ip: {' '.join(done.stderr.split())} in: {oneline}")


class Child:
    """A process of the benchmark's, with its output at hand and a certain end."""

    def __init__(self, argv: Sequence[str], log: Path, *, pass_fds: Sequence[int] = (), directory: Path = ROOT) -> None:
        """Start `argv` in `directory`. Standard error goes to `log`; standard output is read with `expect`."""
        self.argv = list(argv)
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=directory,
                pass_fds=pass_fds,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # the benchmark has no threads
            )
        self.pid = self._process.pid
        self._output = b""

    @property
    def _stdout(self) -> IO[bytes]:
        if self._process.stdout is None:
            raise BenchError("a child without standard output")
        return self._process.stdout

    def expect(self, word: str, seconds: float = START_SECONDS) -> None:
        """Wait until the process has written the line `word`. Raises BenchError when it ends or is late."""
        deadline = time.monotonic() + seconds
        wanted = word.encode() + b"\n"
        while wanted not in self._output:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._stdout], [], [], left)[0]:
                raise BenchError(f"{self.title} did not say {word!r} within {seconds:.0f} s{self.last_words()}")
            piece = os.read(self._stdout.fileno(), 65536)
            if not piece:
                raise BenchError(f"{self.title} ended before it said {word!r}{self.last_words()}")
            self._output += piece

    def tell(self, line: str) -> None:
        """Write a line to the process's standard input."""
        if self._process.stdin is not None:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    @property
    def title(self) -> str:
        """The program's name, without the wrapping that puts it in its namespace."""
        own = (Path(word).name for word in self.argv if word not in _WRAPPING and not _NAMESPACE.fullmatch(word))
        return next((name for name in own if name != "resolv.conf"), "?")

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def last_words(self) -> str:
        """The end of what the process wrote to standard error, for an error message."""
        text = self._log.read_text(errors="replace").strip()
        return f"; it wrote: {text[-800:]}" if text else ""

    def wait(self, seconds: float) -> None:
        """Wait for the process's own end. Raises BenchError when it failed, or goes on for longer than `seconds`."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{self.title} did not end within {seconds:.0f} s{self.last_words()}") from error
        if status:
            raise BenchError(f"{self.title} failed{self.last_words()}")

    def stop(self) -> None:
        """End the process: end of input and SIGTERM, then SIGKILL."""
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if self.alive:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()


_RESOLVER_SHELL: Final = 'mount --bind "$1" /etc/resolv.conf; shift; exec "$@"'
_WRAPPING: Final = frozenset({"ip", "netns", "exec", "sh", "-c", _RESOLVER_SHELL})


class Tools:
    """The C programs, compiled once a run, in a directory that is removed with everything in it."""

    def __init__(self) -> None:
        """Compile. Raises BenchError when there is no C compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise BenchError(
                "the load generator is written in C and there is no compiler: apt-get install gcc libc6-dev"
            )
        self.directory = Path(tempfile.mkdtemp(prefix=f"{_DIRECTORY}{os.getpid()}-"))
        # passt drops to nobody before it binds its socket.
        self.directory.chmod(0o755)
        for name in ("load", "serve", "bridge"):
            run(
                compiler,
                "-O2",
                "-Wall",
                "-Wextra",
                "-Wno-unused-function",
                "-o",
                self.path(name),
                str(HERE / f"{name}.c"),
            )

    def path(self, name: str) -> str:
        """Where a compiled program is."""
        return str(self.directory / name)

    def close(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove what a benchmark left behind that was killed with SIGKILL: namespaces and its directory."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY}*-*"):
        owner = directory.name.removeprefix(_DIRECTORY).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(directory, ignore_errors=True)
    for line in run("ip", "netns", "list").splitlines():
        match = _NAMESPACE.match(line)
        if match and not Path(f"/proc/{match[1]}").exists():
            run("ip", "netns", "delete", match[0])


@dataclass(frozen=True, kw_only=True)
class Wire:
    """The guest's network card and what lies between it and the stack."""

    mtu: int = 1500
    """Of the guest's network card, bytes."""
    offload: bool = False
    """The card segments for the guest: frames up to 64 KiB with partial checksums (libkrun's CSUM and HOST_TSO4)."""
    forwarded: bool = False
    """FORWARD of the host's namespace leads to FORWARDED_PORT of the guest."""
    loss: float = 0.0
    """Share of the frames lost in each direction, 0..1."""
    delay: float = 0.0
    """Seconds added to each round trip, half of it in each direction."""
    seed: int = 1
    """Which frames are lost."""

    @property
    def impaired(self) -> bool:
        """Whether frames are lost or late."""
        return bool(self.loss or self.delay)

    def bridge_options(self) -> list[str]:
        """What bridge.c is told."""
        options = ["--offload", str(self.mtu + 14)] if self.offload else []
        if self.impaired:
            options += ["--loss", str(self.loss), "--delay", str(self.delay / 2), "--seed", str(self.seed)]
        return options


class Session:
    """One guest, one host and the stack between them, from start to removal. Use as a context manager."""

    _count = 0

    def __init__(self, tools: Tools, wire: Wire) -> None:
        """Prepare; nothing is made before entry."""
        Session._count += 1
        self.wire = wire
        self.mtu = wire.mtu
        self.tools = tools
        self.guest = f"nsb{os.getpid()}-{Session._count}g"
        self.host = f"nsb{os.getpid()}-{Session._count}h"
        self.middle = f"nsb{os.getpid()}-{Session._count}m"
        """Between guest and stack where the stack brings a TAP of its own and the wire loses frames or holds them."""
        self.directory = tools.directory / self.guest
        self.counter = self.directory / "received"
        """The file serve.c counts the received bytes in."""
        self.children: list[Child] = []
        self.backend: Child | None = None
        self.bridge: Child | None = None
        self.ready_seconds: float | None = None
        """From the start of the backend's process until it said it was ready, or took the guest's connection."""
        self.first_echo_seconds: float | None = None
        """From there until the first answer to the guest, over a new TCP connection."""
        self._started = 0.0
        self._guest_serves = False

    def __enter__(self) -> Session:
        """Make both namespaces and start the services."""
        self.directory.mkdir()
        self.directory.chmod(0o777)
        (self.directory / "resolv.conf").write_text(f"nameserver {HOST_ADDRESS}\n")
        try:
            ip(f"netns add {self.guest}\nnetns add {self.host}\n")
            for netns in (self.guest, self.host):
                self._set_limits(netns)
            ip(
                "link set lo up\ntuntap add dev uplink0 mode tap\nlink set uplink0 up\n"
                f"address add {HOST_ADDRESS}/24 dev uplink0\nroute add default via {HOST_GATEWAY}\n"
                f"neighbour add {SILENT_ADDRESS} lladdr 02:00:00:00:00:66 nud permanent dev uplink0\n",
                self.host,
            )
            ip("link set lo up\n", self.guest)
            self.spawn_host(self.tools.path("serve"), HOST_ADDRESS, str(self.counter)).expect("ready")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _set_limits(self, netns: str) -> None:
        """The same congestion control everywhere, ports for minutes of short connections, no IPv6 chatter."""
        settings = {
            "net.ipv4.ip_local_port_range": "1024 65535",
            "net.ipv4.tcp_tw_reuse": "1",
            "net.ipv6.conf.all.disable_ipv6": "1",
            "net.ipv6.conf.default.disable_ipv6": "1",
        }
        # For the stacks' own sockets. A namespace is allowed cubic only where the machine's list of algorithms for
        # everybody has it; the load sets it for itself.
        allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
        settings["net.ipv4.tcp_congestion_control"] = "cubic" if "cubic" in allowed else "reno"
        present = [f"{key}={value}" for key, value in settings.items() if Path("/proc/sys", *key.split(".")).exists()]
        run("ip", "netns", "exec", netns, "sysctl", "-q", "-w", *present)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process, last started first, and remove both namespaces."""
        for child in reversed(self.children):
            child.stop()
        self.children.clear()
        for netns in (self.guest, self.middle, self.host):
            if Path("/run/netns", netns).exists():
                run("ip", "netns", "delete", netns)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _spawn(self, argv: Sequence[str], pass_fds: Sequence[int] = (), directory: Path = ROOT) -> Child:
        child = Child(argv, self.directory / f"log-{len(self.children)}", pass_fds=pass_fds, directory=directory)
        self.children.append(child)
        return child

    def spawn_guest(self, *argv: str) -> Child:
        """Start a process in the guest's namespace."""
        return self._spawn(["ip", "netns", "exec", self.guest, *argv])

    def spawn_host(self, *argv: str) -> Child:
        """Start a process in the host's namespace."""
        return self._spawn(["ip", "netns", "exec", self.host, *argv])

    def start_backend(self, *argv: str, pass_fds: Sequence[int] = (), directory: Path = ROOT) -> Child:
        """Start the stack under test in the host's namespace, with serve.c as its resolver; the clock starts here.

        `directory` is where it starts: with `python -m`, the checkout whose packages it imports.
        """
        # `ip netns exec` has made a mount namespace of its own; the binding is seen nowhere else.
        resolver = str(self.directory / "resolv.conf")
        wrapped = ["ip", "netns", "exec", self.host, "sh", "-c", _RESOLVER_SHELL, "resolv.conf", resolver, *argv]
        self._started = time.monotonic()
        self.backend = self._spawn(wrapped, pass_fds, directory)
        return self.backend

    def mark_ready(self) -> None:
        """The backend is ready: note how long it took."""
        self.ready_seconds = time.monotonic() - self._started

    def await_first_echo(self) -> None:
        """Wait until the guest has reached the services once. Raises BenchError when it cannot."""
        self.load("first-echo", FIRST_ECHO_SECONDS)
        self.first_echo_seconds = time.monotonic() - self._started

    def start_backend_with_ready_fd(self, *argv: str, directory: Path = ROOT) -> None:
        """Start a stack that writes to, or closes, a file descriptor when it is ready; its number replaces `{fd}`."""
        reader, writer = os.pipe()
        try:
            filled = [word.replace("{fd}", str(writer)) for word in argv]
            backend = self.start_backend(*filled, pass_fds=[writer], directory=directory)
        finally:
            os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            if not select.select([pipe], [], [], START_SECONDS)[0]:
                raise BenchError(f"{backend.title} was not ready within {START_SECONDS:.0f} s{backend.last_words()}")
            if not pipe.read(1) and not backend.alive:
                raise BenchError(f"{backend.title} ended at once{backend.last_words()}")
        self.mark_ready()

    def start_bridge(self, *mode: str) -> Child:
        """Make the guest's `tap0` and carry its frames; the bridge connects when the other side is there."""
        self.bridge = self.spawn_guest(self.tools.path("bridge"), *self.wire.bridge_options(), "tap0", *mode)
        self.bridge.expect("tap")
        return self.bridge

    def tap_namespace(self) -> str:
        """Where a stack that makes its own TAP makes it: with the guest, or with the far end of an impaired wire."""
        if not self.wire.impaired:
            return self.guest
        ip(f"netns add {self.middle}\n")
        self._set_limits(self.middle)
        return self.middle

    def connect_tap(self) -> None:
        """The stack has made `tap0` in the `tap_namespace`: lead it to the guest, if it is not there already."""
        if not self.wire.impaired:
            return
        self.start_bridge("tap", f"/run/netns/{self.middle}", "tap1").expect("up")
        ports = "".join(f"link set {port} mtu {self.mtu} master br0 up\n" for port in ("tap0", "tap1"))
        ip(f"link add br0 type bridge\n{ports}link set br0 mtu {self.mtu} up\n", self.middle)

    def configure_guest(self, address: str, gateway: str, interface: str = "tap0") -> None:
        """Give the guest its address (of a /24), its MTU and its default route."""
        ip(
            f"link set {interface} address {GUEST_MAC} mtu {self.mtu} up\naddress add {address}/24 dev {interface}\n"
            f"route replace default via {gateway}\n",
            self.guest,
        )

    def serve_in_guest(self) -> None:
        """Start the services in the guest, the echo at FORWARDED_PORT, unless they are there."""
        if not self._guest_serves:
            self._guest_serves = True
            counter = str(self.directory / "guest-received")
            self.spawn_guest(self.tools.path("serve"), "0.0.0.0", counter, str(FORWARDED_PORT)).expect("ready")

    def load(
        self, command: str, *arguments: str | int | float, address: str = HOST_ADDRESS, from_host: bool = False
    ) -> dict[str, float]:
        """Run one load generator and return what it measured. Raises BenchError when it fails.

        In the guest, or in the host's namespace with `from_host`.
        """
        seconds = float(arguments[0]) if arguments else 0.0
        netns = self.host if from_host else self.guest
        words = ["ip", "netns", "exec", netns, self.tools.path("load"), command, address]
        output = run(*words, *(str(argument) for argument in arguments), seconds=seconds + LOAD_GRACE)
        result: dict[str, float] = json.loads(output)
        return result

    def backend_pids(self) -> list[int]:
        """The backend's process and its descendants."""
        return process_tree(self.backend.pid) if self.backend is not None else []


def process_tree(root: int) -> list[int]:
    """A process and all its descendants, by process id."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of all threads of these processes so far, in the kernel's ticks of 10 ms."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_megabytes(pids: Sequence[int]) -> float:
    """Resident set of these processes together, in MB of 1,000,000 bytes."""
    kilobytes = 0
    for pid in pids:
        match = re.search(r"^Rss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        kilobytes += int(match[1]) if match else 0
    return kilobytes * 1024 / 1e6
