"""The same flags, file and requests for gvproxy itself and for `netstack gvproxy`: both have to say the same.

Runs where GVPROXY names gvproxy's program, as `make bench` wants it: GVPROXY=/path/to/gvproxy make test.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
GVPROXY = os.environ.get("GVPROXY", "")
pytestmark = pytest.mark.skipif(not GVPROXY, reason="GVPROXY does not name gvproxy's program")
COMMANDS = {"gvproxy": [GVPROXY], "netstack": [sys.executable, "-m", "netstack", "gvproxy"]}
DEADLINE = 60

REFUSED = [
    "-subnet 192.168.127.0/30",
    "-subnet nonsense",
    "-subnet 10.0.0.0/33",
    "-subnet 10.0.0.0/x",
    "-subnet /24",
    "-gatewayIP here",
    "-gatewayIP 10.0.0.1",
    "-deviceIP 192.168.127.0",
    "-hostIP 192.168.127.255",
    "-hostIP 192.168.127.1",
    "-ssh-port 80",
    "-listen-vpnkit unix:///none/a -listen-qemu unix:///none/b",
    "-listen-vpnkit unix:///none/a -listen-bess unixpacket:///none/b",
    "-listen-qemu unix:///none/a -listen-bess unixpacket:///none/b",
    "-listen-bess unix:///none/a",
    "-listen-vfkit unix:///none/a",
    "-listen-vfkit unixgram:///dev/null",
    "-notification /none/a",
    "-forward-sock /a -forward-dest /b",
    "-forward-sock /a -forward-dest /b -forward-user c -forward-identity /none/key",
    "-config /none/file",
]
FILE = """
listen: [unix://{api}]
stack:
  subnet: 10.7.0.0/24
  dns:
    - {{name: crc.testing., records: [{{name: api, ip: 10.7.0.9}}, {{regexp: "^n[0-9]+$", ip: 10.7.0.8}}]}}
    - {{name: apps-crc.testing., defaultIP: 10.7.0.2}}
  forwards: {{"127.0.0.1:23232": "10.7.0.2:22", "udp:127.0.0.1:23233": "10.7.0.2:53"}}
  nat: {{10.7.0.254: 127.0.0.1}}
  dhcpStaticLeases: {{10.7.0.2: 5a:94:ef:e4:0c:ee}}
"""
REQUESTS = [
    ("GET", "/services/forwarder/all", None),
    ("GET", "/services/dns/all", None),
    ("GET", "/services/dhcp/leases", None),
    ("GET", "/cam", None),
    ("GET", "/nothing/here", None),
    ("GET", "/services/forwarder/expose", None),
    ("POST", "/services/forwarder/expose", "nonsense"),
    ("POST", "/services/forwarder/expose", json.dumps({"local": "127.0.0.1:23234", "remote": "10.7.0.2:80"})),
    ("POST", "/services/forwarder/expose", json.dumps({"local": "127.0.0.1:23234", "remote": "10.7.0.2:80"})),
    ("POST", "/services/forwarder/unexpose", json.dumps({"local": "127.0.0.1:23234"})),
    ("POST", "/services/forwarder/unexpose", json.dumps({"local": "127.0.0.1:23234"})),
    ("POST", "/services/dns/add", json.dumps({"Name": "crc.testing.", "Records": [{"Name": "new", "IP": "10.7.0.1"}]})),
    ("GET", "/services/dns/all", None),
]


def refusal(command: list[str], line: str, api: Path) -> tuple[int, str]:
    words = [*command, "-listen", f"unix://{api}", *line.split()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    [message] = re.findall(r'level=fatal msg=("(?:[^"\\]|\\.)*")', done.stderr)
    return done.returncode, json.loads(message)


@pytest.mark.parametrize("line", REFUSED)
def test_refusals_are_word_for_word_alike(line: str, tmp_path: Path):
    said = {name: refusal(command, line, tmp_path / f"{name}.sock") for name, command in COMMANDS.items()}
    assert said["netstack"] == said["gvproxy"]


def answers(command: list[str], words: list[str], api: Path) -> list[tuple[int, str, str]]:
    process = subprocess.Popen([*command, *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + DEADLINE
        while not api.exists():
            assert process.poll() is None
            assert time.monotonic() < limit
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(api)), base_url="http://gvproxy") as client:
            said = [client.request(method, path, content=body) for method, path, body in REQUESTS]
        return [(each.status_code, each.headers.get("content-type", ""), each.text) for each in said]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)


@pytest.mark.parametrize("with_file", [True, False])
def test_the_api_answers_alike(with_file: bool, tmp_path: Path):
    said = {}
    for name, command in COMMANDS.items():
        api = tmp_path / f"{name}.sock"
        words = ["-listen", f"unix://{api}", "-ssh-port", "23235"]
        if with_file:
            file = tmp_path / f"{name}.yaml"
            file.write_text(FILE.format(api=api))
            words = ["-config", str(file)]
        said[name] = answers(command, words, api)
    for request, ours, theirs in zip(REQUESTS, said["netstack"], said["gvproxy"], strict=True):
        assert ours == theirs, request
