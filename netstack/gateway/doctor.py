"""`netstack doctor`: what this host allows, which part of netstack needs it, and what to do where it is missing.

Each check tries the thing itself where that is harmless (open the device, make the namespace, make the socket), because
permissions, sysctls and security modules all have a say; only then does it look for the reason.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from guest_iface.batch_calls import available
from guest_iface.device import tap_offload_known
from guest_iface.link import MAX_FRAME
from guest_iface.unixgram import BUFFER_BYTES, UnixgramLink
from netstack.build_kind import build_kind
from netstack.engine.settings import LinkTraits, NetworkSettings
from netstack.setting_values import DEFAULT_BUSY_POLL, MAX_MTU

RUN: Final = "run"
SPARE_FDS: Final = 64
"""Descriptors besides those of flows."""
DNS_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at. `needed_for` names commands and options; advice is empty where nothing is to be done."""

    name: str
    state: Literal["ok", "limited", "missing"]
    found: str
    needed_for: str
    advice: str = ""


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", *name.split(".")).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def check_python() -> Check:
    """The interpreter in use; an older one than 3.11 does not get this far."""
    found = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    return Check(name="Python", state="ok", found=found, needed_for=RUN)


def check_build() -> Check:
    """Whether the hot path is compiled; pure Python does the same at more CPU time."""
    return Check(name="build", state="ok", found=build_kind(), needed_for=RUN)


def check_sockets() -> Check:
    """Host sockets: IPv4 for flows, unix for links."""
    try:
        for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)):
            socket.socket(family, kind).close()
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
            end.close()
    except OSError as error:
        advice = "allow IPv4 and unix sockets in the sandbox that this runs in"
        return Check(name="sockets", state="missing", found=str(error.strerror), needed_for=RUN, advice=advice)
    return Check(name="sockets", state="ok", found="IPv4 and unix sockets can be made", needed_for=RUN)


def check_open_files() -> Check:
    """Descriptors: each flow takes one. `run` raises the soft limit to the hard one itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = NetworkSettings()
    wanted = limits.max_tcp_flows + limits.max_udp_flows + limits.max_echo_flows + SPARE_FDS
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        shown = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        return Check(name="open files", state="ok", found=f"hard limit {shown}", needed_for=RUN)
    return Check(
        name="open files",
        state="limited",
        found=f"hard limit {hard}; all flows at once take {wanted}",
        needed_for=RUN,
        advice=f"raise it (ulimit -Hn {wanted}, LimitNOFILE= of a systemd unit), or flows beyond it are refused",
    )


def check_resolver(resolv_conf: Path = Path("/etc/resolv.conf")) -> Check:
    """The host's resolvers: listed, and the first one answers."""
    name, needed_for = "resolver", f"{RUN} (names outside the local zones)"
    advice = "name resolvers in /etc/resolv.conf, or give --dns-upstream IP[:PORT]"
    try:
        lines = resolv_conf.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return Check(
            name=name, state="missing", found=f"{resolv_conf}: {error.strerror}", needed_for=needed_for, advice=advice
        )
    words = [line.split() for line in lines]
    servers = [fields[1] for fields in words if len(fields) > 1 and fields[0] == "nameserver"]
    if not servers:
        return Check(
            name=name, state="missing", found=f"no nameserver in {resolv_conf}", needed_for=needed_for, advice=advice
        )
    silent = _ask_resolver(servers[0])
    if silent:
        return Check(name=name, state="limited", found=silent, needed_for=needed_for, advice=advice)
    return Check(name=name, state="ok", found=f"{', '.join(servers)}; the first one answers", needed_for=needed_for)


def _ask_resolver(server: str) -> str:
    """Ask a resolver for the root's name servers; what went wrong, or nothing."""
    import dns.exception
    import dns.message
    import dns.query

    try:
        dns.query.udp(dns.message.make_query(".", "NS"), server, timeout=DNS_SECONDS)
    except dns.exception.Timeout:
        return f"{server} did not answer within {DNS_SECONDS:.0f} s"
    except (OSError, ValueError, dns.exception.DNSException) as error:
        return f"{server}: {error}"
    return ""


def check_ping() -> Check:
    """Ping sockets (ICMP datagram sockets), which the kernel gives to the groups of net.ipv4.ping_group_range."""
    name, needed_for = "ping sockets", f"{RUN} (pings that leave this machine)"
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
    except OSError as error:
        allowed = _sysctl("net.ipv4.ping_group_range")
        found = f"{error.strerror}; net.ipv4.ping_group_range is {allowed and ' '.join(allowed.split())}"
        advice = 'sysctl -w net.ipv4.ping_group_range="0 2147483647" (as root); until then they are prohibited'
        return Check(name=name, state="limited", found=found, needed_for=needed_for, advice=advice)
    return Check(name=name, state="ok", found="allowed for this user", needed_for=needed_for)


def check_socket_buffers() -> Check:
    """How large a unix datagram socket's buffers get without privilege: the guest's side of a link rarely has any."""
    name, needed_for = "socket buffers", "run --listen-vfkit, --fd (throughput)"
    reached = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            probe.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            # The kernel keeps twice what was asked for, for its own bookkeeping (socket(7)).
            reached.append(probe.getsockopt(socket.SOL_SOCKET, option) // 2)
    shown = f"net.core.wmem_max {_sysctl('net.core.wmem_max')}, net.core.rmem_max {_sysctl('net.core.rmem_max')}"
    if min(reached) >= BUFFER_BYTES:
        return Check(name=name, state="ok", found=f"{BUFFER_BYTES >> 20} MiB each way", needed_for=needed_for)
    advice = f"sysctl -w net.core.wmem_max={BUFFER_BYTES} net.core.rmem_max={BUFFER_BYTES} (as root)"
    found = f"{min(reached) >> 10} KiB instead of {BUFFER_BYTES >> 10} ({shown})"
    return Check(name=name, state="limited", found=found, needed_for=needed_for, advice=advice)


def check_batch_calls() -> Check:
    """Many frames in one system call, on sockets that keep them apart."""
    name, needed_for = "batch calls", "run --listen-vfkit, --fd (throughput)"
    if available():
        found = "recvmmsg and sendmmsg, used under load (--batch-calls off does without)"
        return Check(name=name, state="ok", found=found, needed_for=needed_for)
    found = "no recvmmsg and sendmmsg here: one call a frame"
    return Check(name=name, state="limited", found=found, needed_for=needed_for)


def check_busy_poll() -> Check:
    """Whether a process that waits awake can let others in: it does so where it cannot, for shorter."""
    name, needed_for = "busy polling", "answers without a wake-up (latency)"
    switch = "(--busy-poll MICROSECONDS; 0 is off)"
    if hasattr(os, "sched_yield"):
        found = f"for {DEFAULT_BUSY_POLL} us at most, others go first {switch}"
        return Check(name=name, state="ok", found=found, needed_for=needed_for)
    found = f"for {DEFAULT_BUSY_POLL} us at most; this system cannot let others go first {switch}"
    return Check(name=name, state="limited", found=found, needed_for=needed_for)


def check_window() -> Check:
    """What a TCP window follows from: how many frames the kernel lets wait on a unix datagram link."""
    name, needed_for = "TCP window", "run --listen-vfkit, --fd (throughput)"
    queues = []
    for mtu in (LinkTraits().mtu, MAX_MTU):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs:
            link = UnixgramLink.from_fd(ours.detach(), mtu=mtu)
            traits = LinkTraits(mtu=mtu, queue_frames=link.capabilities.queue_frames)
            link.close()
        queues.append(f"{traits.queue_frames} frames at MTU {mtu}, so {traits.window >> 10} KiB")
    found = f"follows the link's queue: {'; '.join(queues)} (--tcp-window BYTES is another)"
    return Check(name=name, state="ok", found=found, needed_for=needed_for)


def check_frame_sizes() -> Check:
    """How large packets and frames may be: no kernel has a say, so that this says what is there and switches it."""
    found = (
        f"--mtu up to {MAX_MTU}, which DHCP tells guests (option 26); guests may send frames of {MAX_FRAME >> 10} KiB"
        " at any MTU, on any link (--offload off drops them)"
    )
    return Check(name="large frames", state="ok", found=found, needed_for="--mtu, guests that leave segmentation to us")


def check_checksums() -> Check:
    """No link of ours damages bytes, so that those of guests are not verified."""
    found = "of guests' frames not looked at: no link damages bytes, they may be partial (--verify-checksums on does)"
    return Check(name="checksums", state="ok", found=found, needed_for=RUN)


def check_large_sums() -> Check:
    """Checksums of frames beyond 4 KB, and of the many segments of a download."""
    name, needed_for = "numpy", "downloads, --mtu beyond 4000 (throughput)"
    if find_spec("numpy") is not None:
        found = "sums large frames towards guests, makes the segments of downloads"
        return Check(name=name, state="ok", found=found, needed_for=needed_for)
    advice = "pip install 'netstack[jumbo]'; without, large frames cost ten times as much, downloads five times"
    return Check(name=name, state="limited", found="not installed", needed_for=needed_for, advice=advice)


def check_tun() -> Check:
    """The device that TAPs are made with."""
    name, needed_for = "/dev/net/tun", "run --tap, guest, demo"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        advice = "modprobe tun; in a container: give it the device (--device /dev/net/tun)"
        return Check(name=name, state="missing", found="there is no such device", needed_for=needed_for, advice=advice)
    except OSError as error:
        advice = "chmod 0666 /dev/net/tun (as root; it gives no rights by itself), or allow it in the container"
        return Check(name=name, state="missing", found=str(error.strerror), needed_for=needed_for, advice=advice)
    return Check(name=name, state="ok", found="can be opened", needed_for=needed_for)


def check_offload() -> Check:
    """Whether TAPs can leave checksums and segmentation to the guest's kernel."""
    name, needed_for = "TAP offload", "run --tap, guest (throughput)"
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return Check(name=name, state="limited", found="see /dev/net/tun", needed_for=needed_for)
    try:
        known = tap_offload_known(fd)
    finally:
        os.close(fd)
    if known:
        found = "frames of 64 KiB without checksums (--offload off does without)"
        return Check(name=name, state="ok", found=found, needed_for=needed_for)
    found = "this kernel's TAPs have no virtio header: plain frames are used"
    return Check(name=name, state="limited", found=found, needed_for=needed_for)


def _try_namespaces() -> str | None:
    """Make a user, a network and a mount namespace in a child process; why not, if so."""
    if shutil.which("unshare") is None:
        return "unshare (util-linux) is not installed"
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", *user, "--net", "--mount", "true"], capture_output=True, text=True, check=False, timeout=20
    )
    return None if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"


def check_namespaces() -> Check:
    """Network namespaces for guests on this machine: as root, or in a user namespace of one's own."""
    name, needed_for = "namespaces", "guest, demo (a scripted guest stands in)"
    try:
        reason = _try_namespaces()
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason is None:
        kind = "network and mount namespaces" if os.geteuid() == 0 else "user, network and mount namespaces"
        return Check(name=name, state="ok", found=f"{kind} can be made", needed_for=needed_for)
    advice = "run as root, or allow them in the container"
    for sysctl, closed, opened in (
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user.max_user_namespaces", "0", "15000"),
    ):
        if _sysctl(sysctl) == closed:
            advice = f"sysctl -w {sysctl}={opened} (as root), or run as root"
    return Check(name=name, state="missing", found=reason, needed_for=needed_for, advice=advice)


def check_qemu() -> Check:
    """A virtual machine monitor that speaks our links."""
    name, needed_for = "QEMU", "a VM as guest (-netdev stream or dgram)"
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine(), platform.machine())
    binary = shutil.which(f"qemu-system-{machine}")
    if binary is None:
        package = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}.get(machine, "qemu-system")
        found, advice = f"no qemu-system-{machine} on PATH", f"apt-get install {package} (7.2 or newer)"
        return Check(name=name, state="limited", found=found, needed_for=needed_for, advice=advice)
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False, timeout=20)
    kvm = "KVM can be used" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "no KVM: software emulation"
    lines = done.stdout.splitlines()
    return Check(name=name, state="ok", found=f"{lines[0] if lines else binary}; {kvm}", needed_for=needed_for)


CHECKS: Final[Sequence[Callable[[], Check]]] = (
    check_python,
    check_build,
    check_sockets,
    check_open_files,
    check_resolver,
    check_ping,
    check_socket_buffers,
    check_batch_calls,
    check_busy_poll,
    check_window,
    check_frame_sizes,
    check_checksums,
    check_large_sums,
    check_tun,
    check_offload,
    check_namespaces,
    check_qemu,
)


def run_doctor(*, as_json: bool, checks: Sequence[Callable[[], Check]] = CHECKS) -> int:
    """Carry out the checks and print them. Returns 1 if something that `netstack run` cannot do without is missing."""
    results = [check() for check in checks]
    ready = not any(result.state == "missing" and result.needed_for == RUN for result in results)
    if as_json:
        print(json.dumps({"ready": ready, "checks": [asdict(result) for result in results]}, indent=2))
    else:
        _print_table(results, ready=ready)
    return 0 if ready else 1


def _print_table(results: Sequence[Check], *, ready: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "limited": "yellow", "missing": "red"}
    table = Table(title="netstack doctor", title_justify="left", show_lines=False)
    for heading in ("check", "state", "found", "needed for"):
        table.add_column(heading, overflow="fold")
    for result in results:
        state = Text(result.state, style=colours[result.state])
        table.add_row(Text(result.name), state, Text(result.found), Text(result.needed_for))
    console = Console()
    console.print(table)
    for result in results:
        if result.advice:
            console.print(Text(f"{result.name}: {result.advice}"), soft_wrap=True)
    console.print("netstack run has what it needs." if ready else "netstack run does not have what it needs.")
