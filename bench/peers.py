"""The stacks that are measured, and how each is put between the guest and the host.

The guest's address is set by the benchmark, never by DHCP, so that start-up measures the stack and not a DHCP client.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from bench.lab import FORWARD, FORWARDED_PORT, HOST_ADDRESS, ROOT, START_SECONDS, BenchError, Session, ip, run

GUEST: Final = "192.168.127.2"
GATEWAY: Final = "192.168.127.1"
SLIRP_GUEST, SLIRP_GATEWAY, SLIRP_DNS = "10.0.2.100", "10.0.2.2", "10.0.2.3"
PASST_GUEST, PASST_GATEWAY, PASST_DNS = "10.0.3.15", "10.0.3.2", "10.0.3.3"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One stack on one kind of link."""

    name: str
    link: str
    start: Callable[[Session], None]
    """Puts it between the namespaces of an entered session; returns when the guest is connected and configured."""
    version: Callable[[], str]
    """Its version in one line. Raises BenchError, with the reason, when it is not on this machine."""
    zone_server: str | None = None
    """Address of the resolver that answers names of the stack's own; None when there is none."""
    forwarding_server: str | None = None
    """Address of the resolver that asks the host's."""
    offload: bool = False
    """Whether it takes frames up to 64 KiB with partial checksums, as a card with segmentation offload sends them."""
    forwards: bool = False
    """Whether a port of the host can lead to one of the guest."""
    lossy: bool = True
    """Whether its wire can lose frames and hold them."""
    has_process: bool = True
    """Whether there is a process whose CPU time, memory and start-up can be measured."""


@dataclass(frozen=True)
class Netstack:
    """netstack out of one checkout: this one, or one that is compared with it."""

    checkout: Path = ROOT

    def unixgram(self, session: Session, *options: str) -> None:
        """Start it on a datagram socket, with more options if there are."""
        _bridge_unixgram(session, lambda path: self._run(session, "--listen-vfkit", f"unixgram://{path}", *options))

    def stream(self, session: Session) -> None:
        """Start it on a stream socket."""
        _bridge_stream(session, lambda path: self._run(session, "--listen-qemu", f"unix://{path}"))

    def tap(self, session: Session) -> None:
        """Start it on a TAP device in the guest's namespace."""
        self._run(session, "--tap", "tap0", "--netns", session.tap_namespace())
        session.connect_tap()
        session.configure_guest(GUEST, GATEWAY)

    def version(self) -> str:
        """Its version and commit. Raises BenchError when the checkout has no netstack, or one that does not start."""
        if not (self.checkout / "netstack" / "__main__.py").exists():
            raise BenchError(f"{self.checkout} has no netstack/__main__.py")
        where = run(sys.executable, "-c", "import netstack; print(netstack.__file__)", directory=self.checkout).strip()
        if not Path(where).is_relative_to(self.checkout):
            raise BenchError(f"in {self.checkout} Python imports {where}")
        said = run(sys.executable, "-m", "netstack", "--version", directory=self.checkout).strip()
        if not (self.checkout / ".git").exists():
            return said
        commit = run("git", "-C", str(self.checkout), "describe", "--always", "--dirty").strip()
        return f"{said} {commit}"

    def _run(self, session: Session, *options: str) -> None:
        _write_bytecode(self.checkout)
        if session.wire.forwarded:
            options += ("--forward", f"{FORWARD}={GUEST}:{FORWARDED_PORT}")
        # `python -m` looks into the directory it is started in before any other place.
        session.start_backend_with_ready_fd(
            sys.executable, "-m", "netstack", "run", "--mtu", str(session.mtu), "--ready-fd", "{fd}",
            "--dns-upstream", f"{HOST_ADDRESS}:53", *options, directory=self.checkout,
        )  # fmt: skip

    def peers(self, name: str) -> tuple[Peer, ...]:
        """This checkout on each kind of link: `name` for datagrams, `name-qemu` for a stream, `name-tap`."""
        starts = (
            (name, "unix datagram", self.unixgram),
            (f"{name}-qemu", "unix stream", self.stream),
            (f"{name}-tap", "TAP", self.tap),
        )
        return tuple(
            Peer(name=peer, link=link, start=start, version=self.version,
                 zone_server=GATEWAY, forwarding_server=GATEWAY, offload=link != "TAP", forwards=True)
            for peer, link, start in starts
        )  # fmt: skip


@lru_cache
def _write_bytecode(checkout: Path) -> None:
    """What pip does when it installs: without, each start would compile every module (PYTHONDONTWRITEBYTECODE)."""
    for package in ("netstack", "guest_iface"):
        compileall.compile_dir(checkout / package, quiet=1)


def _bridge_unixgram(session: Session, start: Callable[[Path], None]) -> None:
    path = session.directory / "link"
    bridge = session.start_bridge("vfkit", f"{path}-guest", str(path))
    session.configure_guest(GUEST, GATEWAY)
    start(path)
    bridge.expect("up")


def _bridge_stream(session: Session, start: Callable[[Path], None]) -> None:
    path = session.directory / "link"
    bridge = session.start_bridge("qemu", str(path))
    session.configure_guest(GUEST, GATEWAY)
    start(path)
    bridge.expect("up")


def _gvproxy(session: Session, *options: str) -> None:
    # Port 2222 of the loopback, its default forward, is FORWARD: the host namespace's own, and in nobody's way.
    session.start_backend(os.environ["GVPROXY"], "-mtu", str(session.mtu), *options)
    if session.bridge is not None:
        session.bridge.expect("up")
    session.mark_ready()


def _gvproxy_unixgram(session: Session) -> None:
    _bridge_unixgram(session, lambda path: _gvproxy(session, "-listen-vfkit", f"unixgram://{path}"))


def _gvproxy_stream(session: Session) -> None:
    _bridge_stream(session, lambda path: _gvproxy(session, "-listen-qemu", f"unix://{path}"))


def _slirp4netns(session: Session) -> None:
    session.start_backend_with_ready_fd(
        "slirp4netns",
        "--netns-type=path",
        f"--mtu={session.mtu}",
        "--ready-fd={fd}",
        f"/run/netns/{session.tap_namespace()}",
        "tap0",
    )
    session.connect_tap()
    session.configure_guest(SLIRP_GUEST, SLIRP_GATEWAY)


_PASST_OPTIONS: Final = (
    "--foreground", "--quiet", "--stderr", "--ipv4-only", "--address", PASST_GUEST, "--netmask", "24",
    "--gateway", PASST_GATEWAY, "--dns-forward", PASST_DNS, "--udp-ports", "none",
)  # fmt: skip


def _passt(session: Session) -> None:
    path = session.directory / "link"
    bridge = session.start_bridge("qemu", str(path))
    session.configure_guest(PASST_GUEST, PASST_GATEWAY)
    ports = FORWARD.replace(":", "/") + f":{FORWARDED_PORT}" if session.wire.forwarded else "none"
    session.start_backend(
        "passt", *_PASST_OPTIONS, "--tcp-ports", ports, "--mtu", str(session.mtu), "--socket", str(path)
    )
    bridge.expect("up")
    session.mark_ready()


def _pasta(session: Session) -> None:
    netns = session.tap_namespace()
    session.start_backend(
        "pasta", *_PASST_OPTIONS, "--tcp-ports", "none", "--mtu", str(session.mtu), "--tcp-ns", "none",
        "--udp-ns", "none", "--runas", "0", "--ns-ifname", "tap0", "--netns", f"/run/netns/{netns}",
    )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while "tap0" not in run("ip", "-n", netns, "-brief", "link"):
        if time.monotonic() > deadline or session.backend is None or not session.backend.alive:
            raise BenchError(f"pasta made no device{session.backend.last_words() if session.backend else ''}")
        time.sleep(0.001)
    session.mark_ready()
    session.connect_tap()
    session.configure_guest(PASST_GUEST, PASST_GATEWAY)


def _bridges(session: Session) -> None:
    """Two bridges back to back: what the TAPs, the bridge and the datagram sockets allow at most."""
    here, there = f"{session.directory}/here", f"{session.directory}/there"
    near = session.start_bridge("pair", here, there)
    offload = replace(session.wire, loss=0.0, delay=0.0).bridge_options()
    far = session.spawn_host(session.tools.path("bridge"), *offload, "tap0", "pair", there, here)
    far.expect("tap")
    near.expect("up")
    far.expect("up")
    ip(f"link set tap0 mtu {session.mtu} up\naddress add {GATEWAY}/24 dev tap0\n", session.host)
    session.configure_guest(GUEST, GATEWAY)


def _veth(session: Session) -> None:
    ip(f"link add tap0 netns {session.guest} type veth peer name tap0 netns {session.host}\n")
    ip(f"link set tap0 mtu {session.mtu} up\naddress add {GATEWAY}/24 dev tap0\n", session.host)
    session.configure_guest(GUEST, GATEWAY)


def _package_version(program: str) -> Callable[[], str]:
    package = {"pasta": "passt"}.get(program, program)

    def version() -> str:
        if shutil.which(program) is None:
            raise BenchError(f"{program} is not installed (Debian: apt-get install {package})")
        lines = run(program, "--version").splitlines()
        said = next((line for line in lines if "version" in line or re.search(r"\d", line)), "")
        if "unknown" not in said:
            return said.strip()
        # Debian's passt does not know its own version.
        return f"{program} {run('dpkg-query', '--showformat', '${Version}', '--show', package)}"

    return version


def _gvproxy_version() -> str:
    path = os.environ.get("GVPROXY", "")
    if not path:
        raise BenchError("GVPROXY=/path/to/gvproxy is not given")
    if not os.access(path, os.X_OK):
        raise BenchError(f"GVPROXY={path} is not a program")
    return run(path, "-version").strip()


def _kernel_version() -> str:
    return f"Linux {os.uname().release}"


_OTHERS: Final = (
    Peer(name="gvproxy", link="unix datagram", start=_gvproxy_unixgram, version=_gvproxy_version,
         zone_server=GATEWAY, forwarding_server=GATEWAY, offload=True, forwards=True),
    Peer(name="gvproxy-qemu", link="unix stream", start=_gvproxy_stream, version=_gvproxy_version,
         zone_server=GATEWAY, forwarding_server=GATEWAY, offload=True, forwards=True),
    Peer(name="slirp4netns", link="TAP", start=_slirp4netns, version=_package_version("slirp4netns"),
         forwarding_server=SLIRP_DNS),
    Peer(name="passt", link="unix stream", start=_passt, version=_package_version("passt"),
         forwarding_server=PASST_DNS, forwards=True),
    Peer(name="pasta", link="TAP", start=_pasta, version=_package_version("pasta"), forwarding_server=PASST_DNS),
    Peer(name="bridge", link="the bridge, twice", start=_bridges, version=_kernel_version, has_process=False,
         offload=True),
    Peer(name="veth", link="kernel", start=_veth, version=_kernel_version, has_process=False, lossy=False),
)  # fmt: skip

PEERS: Final = {peer.name: peer for peer in (*Netstack().peers("netstack"), *_OTHERS)}
"""Every peer by name; netstack is the one of this checkout."""


def netstack_peers(checkouts: Mapping[str, Path]) -> list[Peer]:
    """netstack on every link: of the named checkouts, then of this one, unless one has taken its name."""
    places = dict(checkouts) | ({} if "netstack" in checkouts else {"netstack": ROOT})
    return [peer for name, checkout in places.items() for peer in Netstack(checkout).peers(name)]


def with_checkouts(checkouts: Mapping[str, Path]) -> dict[str, Peer]:
    """All peers: netstack's, then the others."""
    return {peer.name: peer for peer in (*netstack_peers(checkouts), *_OTHERS)}
