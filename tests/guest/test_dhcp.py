"""Real DHCP clients take, renew and give back a lease."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from .lab import Process, wait_until
from .network import GUEST_MAC, TAP, Network

pytestmark = pytest.mark.guest("ip", "openssl", "ping")
SCRIPT = Path(__file__).with_name("dhcp_script.sh")
LINKS = ["tap", "dgram"]
STRANGER = "02:00:00:00:00:01"


class Client:
    """A DHCP client in the foreground, and what its script was told."""

    def __init__(self, network: Network, log: Path) -> None:
        self.network = network
        self._log = log

    @property
    def told(self) -> list[dict[str, str]]:
        """Each call of the script: its word as `event`, and the values."""
        if not self._log.exists():
            return []
        # The last piece is nothing, or still being written.
        calls = [call.splitlines() for call in self._log.read_text().split("\n\n")[:-1]]
        return [dict(line.split("=", 1) for line in call) for call in calls]

    def wait(self, *words: str, count: int = 1) -> dict[str, str]:
        """The values of the `count`-th call with one of these words."""
        wait_until(lambda: len(self._calls(words)) >= count, f"the DHCP client's {words[0]}, so far {self.told}")
        return self._calls(words)[count - 1]

    def _calls(self, words: tuple[str, ...]) -> list[dict[str, str]]:
        return [call for call in self.told if call["event"] in words]


class Udhcpc(Client):
    """busybox's."""

    def __init__(self, network: Network, log: Path, *options: str) -> None:
        super().__init__(network, log)
        environment = {**os.environ, "LEASE_LOG": str(log)}
        command = [*udhcpc(), "-f", "-i", TAP, "-s", str(SCRIPT), "-O", "mtu", "-O", "search", "-t", "10", "-T", "1"]
        self.process: Process = network.guest.spawn("udhcpc", *command, *options, env=environment)


def udhcpc() -> list[str]:
    """The program, by itself or as part of busybox."""
    return ["udhcpc"] if shutil.which("udhcpc") else ["busybox", "udhcpc"]


def leases(network: Network, action: str) -> list[tuple[object, object]]:
    """(MAC, address) of the lease events so far."""
    return [(event["mac"], event["address"]) for event in network.gateway.events("lease") if event["action"] == action]


@pytest.mark.guest("busybox")
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("mtu", [1500, 1280, 4000])
def test_udhcpc_gets_a_lease(fresh, tmp_path: Path, link: str, mtu: int) -> None:
    network = fresh(link, options=["--mtu", str(mtu)], configure=False)
    told = Udhcpc(network, tmp_path / "lease").wait("bound")
    addresses = network.addresses
    assert (told["ip"], told["mask"], told["router"]) == (addresses.guest, "24", addresses.gateway)
    assert (told["dns"], told["serverid"]) == (addresses.gateway, addresses.gateway)
    assert (told["mtu"], told["lease"]) == (str(mtu), "3600")
    assert f"mtu {mtu} " in network.guest.run("ip", "link", "show", TAP).stdout
    # The lease is all a guest needs.
    assert " 0% packet loss" in network.guest.run("ping", "-c1", "-W5", addresses.gateway).stdout
    wait_until(lambda: leases(network, "acknowledged"), "the lease event")
    assert leases(network, "acknowledged") == [(GUEST_MAC, addresses.guest)]


@pytest.mark.guest("busybox")
@pytest.mark.parametrize("link", LINKS)
def test_udhcpc_renews_and_releases(fresh, tmp_path: Path, link: str) -> None:
    network = fresh(link, configure=False)
    # A card without a static lease, which there is nothing to release of.
    network.guest.run("ip", "link", "set", TAP, "address", STRANGER)
    client = Udhcpc(network, tmp_path / "lease", "-R")
    address = client.wait("bound")["ip"]
    client.process.signal(signal.SIGUSR1)
    assert client.wait("renew")["ip"] == address
    client.process.signal(signal.SIGUSR2)
    client.wait("deconfig", count=2)
    wait_until(lambda: leases(network, "released"), "the release")
    assert leases(network, "released") == [(STRANGER, address)]


@pytest.mark.guest("busybox")
def test_strangers_get_addresses_that_are_free(fresh, tmp_path: Path) -> None:
    """Cards without a static lease: a free address each, and the same one when they come again."""
    network = fresh("tap", configure=False)
    given = {}
    for mac in (STRANGER, "02:00:00:00:00:02", STRANGER):
        network.guest.sh(f"ip link set {TAP} down; ip link set {TAP} address {mac}; ip link set {TAP} up")
        log = tmp_path / f"lease-{len(list(tmp_path.iterdir()))}"
        client = Udhcpc(network, log, "-q")
        told = client.wait("bound")
        assert client.process.wait() == 0
        assert given.setdefault(mac, told["ip"]) == told["ip"]
    taken = {network.addresses.gateway, network.addresses.guest, network.addresses.host}
    assert len(set(given.values())) == 2
    assert not taken & set(given.values())


@pytest.mark.guest("dhclient")
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("mac", [GUEST_MAC, STRANGER])
def test_dhclient_gets_and_releases_a_lease(fresh, tmp_path: Path, link: str, mac: str) -> None:
    network = fresh(link, configure=False)
    network.guest.run("ip", "link", "set", TAP, "address", mac)
    log = tmp_path / "lease"
    common = ["-4", "-v", "-sf", str(SCRIPT), "-lf", str(tmp_path / "leases"), "-pf", str(tmp_path / "pid")]
    common += ["-cf", "/dev/null", "-e", f"LEASE_LOG={log}", TAP]
    client = Client(network, log)
    process = network.guest.spawn("dhclient", "dhclient", "-d", "-1", *common)
    told = client.wait("BOUND", "REBOOT")
    addresses = network.addresses
    assert (told["ip_address"] == addresses.guest) == (mac == GUEST_MAC)
    assert told["subnet_mask"] == "255.255.255.0"
    assert told["routers"] == told["domain_name_servers"] == told["dhcp_server_identifier"] == addresses.gateway
    assert (told["interface_mtu"], told["dhcp_lease_time"]) == ("1500", "3600")
    # Its script runs before it has noted the lease that the second dhclient is to give back.
    wait_until(lambda: "bound to" in process.log, "dhclient to be done")
    # The release is the first unicast: were the gateway's MAC not known yet, the packet would wait for it while the
    # script takes the address away, and be lost with it.
    network.guest.run("ping", "-c1", "-W5", addresses.gateway)
    network.guest.run("dhclient", "-r", *common)
    if mac == STRANGER:
        wait_until(lambda: leases(network, "released"), "the release")
