"""How the command starts, ends, and outlives its guests."""

from __future__ import annotations

import itertools
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from . import payload
from .lab import Process, wait_until
from .netstack_process import COMMAND, ENVIRONMENT
from .network import PUBLIC, TAP, Network, start_bridge

pytestmark = pytest.mark.guest("ip", "openssl", "curl")
LINKS = ["tap", "dgram", "stream"]
MEDIUM = 20 << 20


def busy(network: Network) -> Process:
    """A transfer under way: returns when the first bytes of an endless download have come."""
    sink = network.world.lab.directory / f"sink-{len(network.world.lab.processes)}"
    transfer = network.guest.spawn(
        "curl", "curl", "-sS", "-m", "120", "--limit-rate", "30M", "-o", str(sink), f"http://{PUBLIC}/bytes/{1 << 30}"
    )
    wait_until(lambda: sink.exists() and sink.stat().st_size > 1 << 20, "the transfer to get going")
    return transfer


def check_transfer(network: Network) -> None:
    """A download that has to be whole."""
    done = network.guest.sh(f"curl -sSf -m 60 http://{PUBLIC}/bytes/{MEDIUM} | sha256sum")
    assert not done.stderr, done.stderr
    assert done.stdout.split()[0] == payload.sha256(MEDIUM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("link", LINKS)
def test_signals_end_it_at_once(fresh, link: str, number: int) -> None:
    """Status 0, sockets removed, also in the middle of a transfer. That nothing is left behind `fresh` checks."""
    network = fresh(link)
    transfer = busy(network)
    assert network.gateway.stop(number) == 0
    assert not any(path.exists() for path in network.gateway.files)
    transfer.kill()


@pytest.mark.parametrize("link", ["dgram", "stream"])
def test_signals_end_it_before_a_guest_came(fresh, link: str) -> None:
    network = fresh(link, plug=False)
    assert network.gateway.stop() == 0


@pytest.mark.parametrize("link", ["dgram", "stream"])
def test_sockets_are_the_owners_alone(fresh, link: str) -> None:
    network = fresh(link, plug=False)
    for path in network.gateway.files:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("link", ["dgram", "stream"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_l6_vm_restarts_on_the_same_socket(fresh, link: str, number: int) -> None:
    """Conformance L6: the guest goes in the middle of a transfer, another comes on the same socket; three times."""
    network = fresh(link)
    for _ in range(3):
        transfer = busy(network)
        network.bridge.signal(number)
        network.bridge.wait()
        transfer.kill()
        network.bridge = start_bridge(network.guest, network.kind, network.gateway.files[0])
        network.configure()
        check_transfer(network)
    assert network.gateway.process.running


@pytest.mark.parametrize("link", ["dgram", "stream"])
def test_another_vm_takes_over(fresh, link: str) -> None:
    """A new guest with another card on the same socket, while nobody said goodbye for the old one."""
    network = fresh(link)
    check_transfer(network)
    network.bridge.signal(signal.SIGKILL)
    network.bridge.wait()
    network.bridge = start_bridge(network.guest, network.kind, network.gateway.files[0])
    network.configure(mac="02:00:00:00:00:77", address="192.168.127.9")
    check_transfer(network)


def test_tap_that_goes_away_ends_it_with_a_word(fresh) -> None:
    network = fresh("tap")
    transfer = busy(network)
    network.guest.run("ip", "link", "delete", TAP)
    network.gateway.status = network.expected_status = network.gateway.process.wait()
    transfer.kill()
    assert network.gateway.status == 1
    assert TAP in network.gateway.process.log


def test_interface_down_and_up_again(fresh) -> None:
    network = fresh("tap")
    check_transfer(network)
    network.guest.run("ip", "link", "set", TAP, "down")
    network.configure()
    check_transfer(network)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--listen-vfkit", "unix:///tmp/x"],
        ["run", "--listen-vfkit", "unixgram:///nonexistent/directory/x"],
        ["run", "--listen-qemu", "unix:///nonexistent/directory/x"],
        ["run", "--tap", "name-longer-than-fifteen"],
        ["run", "--tap", "t0", "--netns", "no-such-namespace"],
        ["run", "--tap", "t0", "--subnet", "192.168.127.0/31"],
        ["run", "--tap", "t0", "--mtu", "67"],
        ["run", "--tap", "t0", "--dns-upstream", "not-an-address"],
        ["run", "--tap", "t0", "--nat", "1.2.3.4"],
        ["run", "--tap", "t0", "--capture", "/nonexistent/directory/x"],
        ["run", "--tap", "t0", "--events", "/nonexistent/directory/x"],
        ["run", "--fd", "77"],
        ["run", "--no-such-option"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_bad_options_fail_with_one_clear_line(world, arguments: list[str]) -> None:
    done = world.host.run("env", f"PYTHONPATH={ENVIRONMENT['PYTHONPATH']}", *COMMAND, *arguments, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("netstack")
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_tap_without_privileges_fails_with_one_clear_line(world, tmp_path: Path) -> None:
    """A user who may not make a TAP is told so."""
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    done = world.host.run(
        *bare, "env", f"PYTHONPATH={ENVIRONMENT['PYTHONPATH']}", *COMMAND, "run", "--tap", "t0", check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_needs_nothing(flag: str) -> None:
    done = subprocess.run([*COMMAND, flag], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "netstack" in done.stdout


def test_resolv_conf_is_read_again_when_it_changes(fresh) -> None:
    """Without --dns-upstream the host's resolvers are asked; they may change while we run."""
    network = fresh("tap", upstream=False)
    names = (f"any-{number}.guest.test" for number in itertools.count())  # a fresh one each time: answers are kept

    def resolves() -> bool:
        return network.guest.run("getent", "ahostsv4", next(names), check=False).returncode == 0

    assert resolves()
    before = network.world.resolv_conf.read_text()
    try:
        network.world.resolv_conf.write_text("# nobody answers there\nnameserver 127.0.0.99\n")
        wait_until(lambda: not resolves(), "the change")
    finally:
        network.world.resolv_conf.write_text(before)
    wait_until(resolves, "the way back")
