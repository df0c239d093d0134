"""`netstack guest` around the namespace: which card the guest has, and what is said where there can be no namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guest_iface.link import LinkError
from netstack.config import DEFAULT_GUEST_MAC, RunConfig, network_settings
from netstack.gateway import RunFailed, guest_command

ROOT = Path(__file__).parents[2]


def test_the_card_has_the_mac_that_the_device_ip_is_kept_for():
    assert guest_command.guest_mac(network_settings()) == DEFAULT_GUEST_MAC
    other = network_settings(static_leases=["02:00:00:00:00:07=192.168.127.2"])
    assert guest_command.guest_mac(other).hex(":") == "02:00:00:00:00:07"
    moved = network_settings(static_leases=["5a:94:ef:e4:0c:ee=192.168.127.9"])
    assert guest_command.guest_mac(moved) == DEFAULT_GUEST_MAC


def test_no_namespace_is_one_line_that_names_doctor(monkeypatch: pytest.MonkeyPatch):
    def create(**_options: object) -> None:
        raise LinkError("cannot make a network namespace: Operation not permitted")

    monkeypatch.setattr(guest_command.GuestNamespace, "create", create)
    monkeypatch.setattr(guest_command, "prepare_process", lambda *_: None)
    with pytest.raises(RunFailed, match=r"Operation not permitted \(netstack doctor says"):
        guest_command.run_guest(RunConfig(network=network_settings(), links=()), ["true"])


@pytest.mark.guest
def test_address_route_resolver_and_status_are_the_commands(tmp_path: Path):
    script = """
import socket, sys
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect(("192.0.2.1", 9))
print(probe.getsockname()[0], open("/etc/resolv.conf").read().split()[:2], socket.gethostbyname("host.docker.internal"))
sys.exit(7)
"""
    options = ["--subnet", "10.9.0.0/16", "--mtu", "9000", "--capture", str(tmp_path / "guest.pcapng")]
    command = [sys.executable, "-m", "netstack", "guest", *options, "--", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "10.9.0.2 ['nameserver', '10.9.0.1'] 10.9.255.254\n"
    assert (tmp_path / "guest.pcapng").stat().st_size > 500
