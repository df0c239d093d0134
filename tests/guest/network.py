"""The world of a guest test: a host with servers, the Internet behind a router, a guest whose only way out is the link.

guest ns ── TAP ─┬─ netstack ── host ns (servers) ── router ns ── inet ns (198.18.0.10)
                 └─ tap_bridge ── unix socket ┘
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .lab import Lab, Namespace, Process, wait_until
from .netstack_process import Addresses, Gateway, start_netstack, start_slirp4netns

HERE = Path(__file__).parent
PUBLIC = "198.51.100.10"
"""A host with web servers, as far as the guest can tell on the Internet (RFC 5737); in truth on the host's loopback."""
PUBLIC_TOO = "203.0.113.9"
UNREACHABLE = "198.51.100.66"
PROHIBITED = "198.51.100.67"
FAR = "198.18.0.10"
"""Really elsewhere: behind a router, two hops from the host."""
FAR_PATH = ("192.168.127.1", "10.99.0.2", FAR)
"""What traceroute to FAR shows."""
NO_ROUTE = "192.0.2.1"
DNS = ("127.0.0.1", "5353", "53")
TAP = "tap0"
GUEST_MAC = "5a:94:ef:e4:0c:ee"
"""The card gvproxy's defaults hold the device address for."""


class World:
    """The host namespace with its servers, and what is behind it. Made once for all tests."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host = lab.namespace("host")
        self.router = lab.namespace("router")
        self.inet = lab.namespace("inet")
        self._cables()
        # In a user namespace only the groups mapped there may be named: group 0 stands for us.
        if not self.host.sysctl("net.ipv4.ping_group_range", "0 2147483647", check=False):
            self.host.sysctl("net.ipv4.ping_group_range", "0 0")
        self.resolv_conf = self.host.use_resolver("nameserver 127.0.0.1\n")
        self.certificate = self._certificates()
        certificate, key = lab.directory / "server.pem", lab.directory / "server.key"
        self.dns = self._server("dns_authority", *DNS)
        self.web = self._server("web_server", str(certificate), str(key), "127.0.0.1", PUBLIC, PUBLIC_TOO)
        for server in (self.dns, self.web):
            wait_until(lambda server=server: "ready" in server.log or not server.running, server.name)
            assert server.running, server.log

    def _cables(self) -> None:
        lab, host, router, inet = self.lab, self.host, self.router, self.inet
        lab.veth(host, "up0", router, "down0")
        lab.veth(router, "up1", inet, "down1")
        for address in (PUBLIC, PUBLIC_TOO):
            host.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        host.sh(
            "ip address add 10.99.0.1/30 dev up0; ip route add 198.18.0.0/24 via 10.99.0.2;"
            f"ip route add unreachable {UNREACHABLE}; ip route add prohibit {PROHIBITED}"
        )
        router.sh(
            "ip address add 10.99.0.2/30 dev down0; ip address add 10.99.1.1/30 dev up1;"
            "ip route add 198.18.0.0/24 via 10.99.1.2; sysctl -qw net.ipv4.ip_forward=1"
        )
        inet.sh(
            f"ip address add 10.99.1.2/30 dev down1; ip address add {FAR}/32 dev lo; ip route add default via 10.99.1.1"
        )

    def _certificates(self) -> Path:
        """A certificate authority of one day, and a server certificate by it for every name and address used here."""
        names = "DNS:www.guest.test,DNS:host.containers.internal," + ",".join(
            f"IP:{address}" for address in ("127.0.0.1", Addresses().host, PUBLIC, PUBLIC_TOO)
        )
        self.host.sh(
            f"""cd {self.lab.directory}
            new() {{ openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 "$@" 2>&1; }}
            new -x509 -subj '/CN=netstack test CA' -keyout ca.key -out ca.pem
            new -subj /CN=www.guest.test -keyout server.key -out server.csr
            echo 'subjectAltName={names}' >server.ext
            openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 1 -extfile server.ext -out server.pem"""
        )
        return self.lab.directory / "ca.pem"

    def _server(self, module: str, *arguments: str) -> Process:
        return self.host.spawn(module, sys.executable, str(HERE / f"{module}.py"), *arguments)

    def dns_questions(self) -> list[str]:
        """What the upstream resolver was asked so far: `udp www.guest.test. A`."""
        return [line for line in self.dns.log.splitlines() if line.startswith(("udp ", "tcp "))]


@dataclass
class Network:
    """A guest on a link of a running gateway."""

    world: World
    link: str
    guest: Namespace
    gateway: Gateway
    bridge: Process | None = None
    expected_status: int = 0

    @property
    def kind(self) -> str:
        """What tap_bridge calls this link."""
        return {"dgram": "vfkit", "stream": "qemu"}[self.link]

    @property
    def host(self) -> Namespace:
        """Where the gateway and the servers run."""
        return self.world.host

    @property
    def addresses(self) -> Addresses:
        """The guest's network."""
        return self.gateway.addresses

    def configure(self, *, mac: str = GUEST_MAC, address: str = "") -> None:
        """Give the guest its addresses by hand, quicker than DHCP; again if the card is a new one."""
        addresses = self.addresses
        self.guest.sh(
            f"ip link set {TAP} address {mac} up; ip address replace {address or addresses.guest}/24 dev {TAP};"
            f"ip route replace default via {addresses.gateway}"
        )
        self.guest.use_resolver(f"nameserver {addresses.dns}\n")

    def curl(self, *arguments: str, timeout: float = 120) -> str:
        """Run curl in the guest, trusting the test authority; its standard output."""
        ca = str(self.world.certificate)
        return self.guest.run(
            "curl", "-sS", "--fail", "--noproxy", "*", "--cacert", ca, *arguments, timeout=timeout
        ).stdout

    def discard(self) -> None:
        """End everything, whatever state it is in."""
        self.gateway.process.kill()
        if self.bridge is not None:
            self.bridge.kill()
        self.guest.close()

    def close(self) -> None:
        """End the gateway by SIGTERM, unless the test did, and hold it to its word: status 0, nothing left behind."""
        gateway = self.gateway
        try:
            if gateway.status is None and not gateway.process.running:
                raise AssertionError(f"netstack ended by itself ({gateway.process.wait()}):\n{gateway.process.log}")
            status = gateway.stop() if gateway.status is None else gateway.status
        finally:
            self.discard()
        if os.environ.get("GUEST_STANDIN"):
            return
        left = [path for path in gateway.files if path.exists()]
        assert status == self.expected_status, f"exit status {status} after SIGTERM:\n{gateway.process.log}"
        assert "Traceback" not in gateway.process.log, gateway.process.log
        assert not left, f"left behind: {left}"


def start_bridge(guest: Namespace, kind: str, path: Path, *options: str, tap: str = TAP) -> Process:
    """Plug a guest's card into a socket of netstack (`kind`: vfkit or qemu)."""
    bridge = guest.spawn("bridge", sys.executable, str(HERE / "tap_bridge.py"), tap, kind, str(path), *options)
    wait_until(lambda: "ready" in bridge.log or not bridge.running, "the bridge")
    assert bridge.running, bridge.log
    return bridge


def start_network(
    world: World,
    link: str,
    *,
    options: Sequence[str] = (),
    bridge: Sequence[str] = (),
    upstream: bool = True,
    plug: bool = True,
    configure: bool = True,
    ipv6: bool = True,
) -> Network:
    """A fresh guest on a fresh gateway. `link`: tap, dgram or stream; `bridge`: options of tap_bridge for the latter.

    `upstream` as for start_netstack. Without `plug` nobody is on the socket yet; without `configure` the guest has no
    address. Without `ipv6` its kernel says nothing of its own accord.
    """
    lab = world.lab
    number = len(lab.processes)
    name = f"netstack-{number}"
    guest = lab.namespace(f"guest-{number}")
    # Debian's default, whatever the machine running the tests prefers.
    guest.sysctl("net.ipv4.tcp_congestion_control", "cubic", check=False)
    if not ipv6:
        guest.sysctl("net.ipv6.conf.default.disable_ipv6", "1", check=False)
    if link == "tap" and os.environ.get("GUEST_STANDIN") == "slirp4netns":
        network = Network(world, link, guest, start_slirp4netns(world.host, guest, TAP))
    elif link == "tap":
        arguments = ["--tap", TAP, "--netns", guest.path]
        gateway = start_netstack(world.host, name, *arguments, options=options, upstream=upstream)
        network = Network(world, link, guest, gateway)
    else:
        path = lab.directory / f"link-{number}.sock"
        where = {"dgram": ["--listen-vfkit", f"unixgram://{path}"], "stream": ["--listen-qemu", f"unix://{path}"]}[link]
        gateway = start_netstack(world.host, name, *where, options=options, upstream=upstream)
        network = Network(world, link, guest, gateway)
        if not plug:
            return network
        network.bridge = start_bridge(guest, network.kind, path, *bridge)
    guest.run("ip", "link", "set", TAP, "address", GUEST_MAC)
    if configure:
        network.configure()
    return network
