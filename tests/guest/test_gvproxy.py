"""gvproxy's own end-to-end tests in spirit: its flags, real guests on QEMU's socket, its API as its clients call it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import wait_until
from .netstack_process import COMMAND, ENVIRONMENT, Addresses, Gateway
from .network import GUEST_MAC, PUBLIC, Network, World, start_bridge
from .vm import Machine, netdev, results

pytestmark = pytest.mark.guest("ip", "openssl", "ping", "dig", "curl")
STATISTICS = {"ARP", "BytesReceived", "BytesSent", "DroppedPackets", "ICMP", "IGMP", "IP", "NICs", "TCP", "UDP"}
SECOND_MAC, SECOND = "02:00:00:00:00:02", "192.168.127.3"


class DropIn(Network):
    """A network that `netstack gvproxy` gives, and its API."""

    api: Path

    def call(self, path: str, body: object | None = None) -> str:
        """Ask the API on the host; what it says. Fails on a status that is no success."""
        words = [] if body is None else ["-X", "POST", "-d", json.dumps(body)]
        return self.host.run(
            "curl", "-sS", "--fail-with-body", "--unix-socket", str(self.api), *words, f"http://gvproxy{path}"
        ).stdout

    def dig(self, *words: str) -> list[str]:
        """Ask the gateway from the guest; the answers."""
        said = self.guest.run("dig", "+short", "+tries=2", "+time=10", f"@{self.addresses.dns}", *words).stdout
        return sorted(said.splitlines())


def start_gvproxy(world: World, name: str, *words: str) -> tuple[Gateway, Path]:
    """`netstack gvproxy` on a QEMU socket, the first of its files, and the API's socket."""
    link, api = world.lab.directory / f"{name}.sock", world.lab.directory / f"{name}-api.sock"
    words = ("-listen", f"unix://{api}", "-listen-qemu", f"unix://{link}", *words)
    process = world.host.spawn(name, *COMMAND, "gvproxy", *words, env=ENVIRONMENT)
    wait_until(lambda: "waiting for clients..." in process.log or not process.running, name)
    return Gateway(process, Addresses(), files=[link, api]), api


@pytest.fixture(scope="module")
def network(world: World) -> Iterator[DropIn]:
    """One gateway, started with gvproxy's flags and without a file, and its first guest."""
    gateway, api = start_gvproxy(world, "gvproxy", "-debug", "-ssh-port", "2222", "-mtu=1500")
    guest = world.lab.namespace("gvproxy-guest")
    made = DropIn(world, "stream", guest, gateway)
    made.api = api
    made.bridge = start_bridge(guest, "qemu", gateway.files[0])
    made.configure()
    yield made
    made.close()


def test_pings(network: DropIn) -> None:
    for target in (network.addresses.gateway, network.addresses.host, PUBLIC):
        assert "2 received" in network.guest.run("ping", "-c", "2", "-i", "0.2", "-W", "10", target).stdout, target


def test_leases_and_the_mac_table(network: DropIn) -> None:
    leases = json.loads(network.call("/services/dhcp/leases"))
    assert leases == {"192.168.127.1": "5a:94:ef:e4:0c:dd", "192.168.127.2": GUEST_MAC}
    assert json.loads(network.call("/leases")) == leases
    network.guest.run("ping", "-c", "1", "-W", "10", network.addresses.gateway)
    assert set(json.loads(network.call("/cam"))) == {GUEST_MAC}


def test_names_of_every_kind(network: DropIn) -> None:
    assert network.dig("www.guest.test") == ["198.51.100.10"]
    assert network.dig("alias.guest.test", "CNAME") == ["www.guest.test."]
    assert network.dig("mail.guest.test", "MX") == ["10 mx1.guest.test.", "20 mx2.guest.test."]
    assert network.dig("_imaps._tcp.guest.test", "SRV") == ["0 1 993 imap.guest.test."]
    assert network.dig("text.guest.test", "TXT")[-1] == '"v=test one"'
    for zone in ("containers.internal", "docker.internal"):
        assert network.dig(f"gateway.{zone}") == ["192.168.127.1"]
        assert network.dig(f"host.{zone}") == ["192.168.127.254"]


def test_zones_that_are_added(network: DropIn) -> None:
    first = {"Name": "dynamic.testing.", "DefaultIP": "192.168.127.254"}
    network.call("/services/dns/add", first)
    network.call("/services/dns/add", {"Name": "testing.", "Records": [{"Name": "gateway", "IP": "192.168.127.1"}]})
    assert network.dig("any.dynamic.testing") == ["192.168.127.254"]
    assert network.dig("gateway.testing") == ["192.168.127.1"]
    network.call("/services/dns/add", {"Name": "testing.", "Records": [{"Name": "gateway", "IP": "192.168.127.9"}]})
    assert network.dig("gateway.testing") == ["192.168.127.9"], "the newest wins"


def test_the_host_by_its_names(network: DropIn) -> None:
    for name in ("host.containers.internal", "host.docker.internal"):
        assert network.curl(f"http://{name}/peer").startswith("127.0.0.1 ")


def test_ports_of_the_guest_are_exposed_by_host_and_guest(network: DropIn) -> None:
    network.guest.spawn("web", "python3", "-m", "http.server", "8080", "--directory", str(network.world.lab.directory))
    forward = {"local": "127.0.0.1:9090", "remote": f"{network.addresses.guest}:8080"}
    network.call("/services/forwarder/expose", forward)
    entry = {**forward, "protocol": "tcp"}
    assert entry in json.loads(network.call("/services/forwarder/all"))

    def reachable(port: int) -> bool:
        return network.host.run("curl", "-sf", f"http://127.0.0.1:{port}/", check=False).returncode == 0

    wait_until(lambda: reachable(9090), "the guest's web server")
    network.call("/services/forwarder/unexpose", {"local": "127.0.0.1:9090"})
    assert network.host.run("curl", "-s", "http://127.0.0.1:9090/", check=False).returncode == 7, "refused"
    inside = ["curl", "-sS", "--fail", "-d", json.dumps({"local": ":9091", "remote": ":8080"})]
    api = "http://gateway.containers.internal/services/forwarder"
    network.guest.run(*inside, f"{api}/expose")
    assert reachable(9091)
    network.guest.run("curl", "-sS", "--fail", "-d", json.dumps({"local": ":9091"}), f"{api}/unexpose")
    assert not reachable(9091)


def test_a_second_guest_is_reached_by_the_first(network: DropIn, world: World) -> None:
    guest = world.lab.namespace("gvproxy-second")
    bridge = start_bridge(guest, "qemu", network.gateway.files[0])
    try:
        second = Network(world, "stream", guest, network.gateway, bridge)
        second.configure(mac=SECOND_MAC, address=SECOND)
        assert "1 received" in network.guest.run("ping", "-c", "1", "-W", "10", SECOND).stdout
        assert "1 received" in guest.run("ping", "-c", "1", "-W", "10", network.addresses.guest).stdout
        assert set(json.loads(network.call("/cam"))) == {GUEST_MAC, SECOND_MAC}
    finally:
        bridge.kill()
        guest.close()
    wait_until(lambda: set(json.loads(network.call("/cam"))) == {GUEST_MAC}, "the second guest to be gone")


def test_statistics_count(network: DropIn) -> None:
    stats = json.loads(network.call("/stats"))
    assert set(stats) == STATISTICS | {"Links"}, "and one key of ours"
    assert stats["BytesReceived"] > 0
    assert stats["BytesSent"] > 0


@pytest.mark.guest("qemu", "kernel", "busybox", "cpio", "ldd")
def test_a_virtual_machine(world: World, tmp_path: Path) -> None:
    """QEMU as podman starts it: lease, names, the web, and a forward that the machine asks for itself."""
    gateway, _ = start_gvproxy(world, "gvproxy-vm", "-ssh-port=-1")
    script = """
    export LEASE_LOG=/tmp/lease
    udhcpc -q -n -t 10 -T 1 -i eth0 -s /dhcp -O mtu && . /tmp/lease
    echo "nameserver $dns" >/etc/resolv.conf
    echo @@ lease $ip/$mask $router $dns $mtu
    for name in gateway host; do echo @@ $name $(nslookup $name.containers.internal | grep -c 192.168.127); done
    echo @@ peer $(wget -q -O - http://host.containers.internal/peer)
    api=http://gateway.containers.internal/services/forwarder
    wget -q -O - --post-data '{"local": ":9092", "remote": ":80"}' $api/expose
    echo @@ forwards $(wget -q -O - $api/all)
    """
    told = results(Machine(tmp_path, script).boot(world.host, netdev("stream", gateway.files[0])))
    assert told["lease"] == "192.168.127.2/24 192.168.127.1 192.168.127.1 1500"
    assert (int(told["gateway"]) > 1, int(told["host"]) > 0) == (True, True)
    assert told["peer"].startswith("127.0.0.1 ")
    forward = {"local": "127.0.0.1:9092", "remote": "192.168.127.2:80", "protocol": "tcp"}
    assert json.loads(told["forwards"]) == [forward]
    assert gateway.stop() == 0
    assert not any(path.exists() for path in gateway.files)
