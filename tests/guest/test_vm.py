"""A real VM: Debian's kernel in QEMU, its virtio card on `-netdev dgram` and on `-netdev stream`."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import payload
from .lab import wait_until
from .network import FAR, PUBLIC
from .vm import Machine, netdev, results

pytestmark = pytest.mark.guest("ip", "openssl", "qemu", "kernel", "busybox", "cpio", "tc", "ldd")
SIZE = 20 << 20
LESS = 4 << 20
LINKS = ["dgram", "stream"]

SCRIPT = f"""
export LEASE_LOG=/tmp/lease
udhcpc -q -n -t 10 -T 1 -i eth0 -s /dhcp -O mtu && . /tmp/lease
echo "nameserver $dns" >/etc/resolv.conf
echo @@ lease $ip/$mask $router $dns $mtu
echo @@ name $(nslookup www.guest.test | grep -c 'Address: {PUBLIC}$')
echo @@ sha256 $(wget -q -O - http://www.guest.test/bytes/{SIZE} | sha256sum)
# Text: busybox posts a file up to its first zero byte.
head -c {LESS} /dev/urandom | base64 >/tmp/up
echo @@ sent $(sha256sum </tmp/up) $(wc -c </tmp/up)
echo @@ received $(wget -q -O - --post-file=/tmp/up http://{PUBLIC}/upload)
echo @@ gateway $(ping -c 2 -W 5 $router | grep -c 'bytes from')
echo @@ far $(ping -c 1 -s 4000 -W 5 {FAR} | grep -c 'bytes from')
nc -w 10 {PUBLIC} 9 </dev/null 2>&1 | grep -q refused && echo @@ refused yes
for damage in "loss 3%" "duplicate 2%" "delay 5ms reorder 75% 50%"; do
    /programs/tc qdisc replace dev eth0 root netem $damage || echo @@ failed netem
    echo @@ netem-${{damage%% *}} $(wget -q -O - http://{PUBLIC}/bytes/{LESS} | sha256sum)
    echo @@ netem-sent-${{damage%% *}} $(wget -q -O - --post-file=/tmp/up http://{PUBLIC}/upload)
done
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("vm"), SCRIPT, modules=["sch_netem"], programs=["tc"])


@pytest.mark.parametrize("link", LINKS)
def test_a_vm_gets_network(fresh, machine: Machine, link: str) -> None:
    """Lease, names, 20 MB down, some up, ping; then with tc netem at work on its card; then it powers off."""
    network = fresh(link, plug=False)
    told = results(machine.boot(network.host, netdev(link, network.gateway.files[0])))
    addresses = network.addresses
    assert "failed" not in told, told
    assert told["lease"] == f"{addresses.guest}/24 {addresses.gateway} {addresses.dns} 1500"
    assert told["name"] == "1"
    assert told["sha256"].split()[0] == payload.sha256(SIZE)
    digest, _, size = told["sent"].split()
    assert told["received"].split() == [digest, size]
    assert (told["gateway"], told["far"], told.get("refused")) == ("2", "1", "yes")
    for damage in ("loss", "duplicate", "delay"):
        assert told[f"netem-{damage}"].split()[0] == payload.sha256(LESS), damage
        assert told[f"netem-sent-{damage}"].split() == [digest, size], damage


@pytest.mark.parametrize("link", LINKS)
def test_l6_a_vm_comes_back(fresh, tmp_path: Path, link: str) -> None:
    """Conformance L6 with the real thing: QEMU killed, QEMU started again on the same socket."""
    network = fresh(link, plug=False)
    script = """
    export LEASE_LOG=/tmp/lease
    udhcpc -q -n -t 10 -T 1 -i eth0 -s /dhcp -O mtu && . /tmp/lease
    """
    fetch = f"echo @@ sha256 $(wget -q -O - http://{PUBLIC}/bytes/{LESS} | sha256sum)"
    at = netdev(link, network.gateway.files[0])
    endless = Machine(tmp_path / "first", f"{script}{fetch}\nwget -q -O /dev/null http://{PUBLIC}/bytes/{1 << 40}")
    running = endless.boot(network.host, at)
    wait_until(lambda: "@@ sha256" in running.log, "the first VM's download", timeout=150)
    running.kill()
    told = results(
        Machine(tmp_path / "second", script + fetch).boot(network.host, netdev(link, network.gateway.files[0]))
    )
    assert told["sha256"].split()[0] == payload.sha256(LESS)
