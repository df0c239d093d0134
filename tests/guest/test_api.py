"""The API inside the network, from a real guest: what it may ask for, and what it must not get (gvproxy's defect 9)."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

URL = "http://gateway.containers.internal/services/forwarder"


@pytest.mark.guest("curl", "python3")
def test_a_guest_forwards_to_itself_and_to_nobody_else(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    asked = [
        {"local": "127.0.0.1:0", "remote": ":8000"},
        {"local": str(precious), "remote": "tcp://192.168.127.2:8000", "protocol": "unix"},
        {"local": "192.0.2.1:80", "remote": ":8000"},
        {"local": "127.0.0.1:0", "remote": "192.168.127.254:22"},
        {"local": "127.0.0.1:0", "remote": "guest:22"},
    ]
    lines = [f"curl -s -w '%{{http_code}}\\n' {URL}/expose -d {shlex.quote(json.dumps(each))}" for each in asked]
    lines += [
        f"curl -s {URL}/all",
        "curl -s -o /dev/null -w '%{http_code}\\n' http://gateway.containers.internal/leases",
    ]
    command = [sys.executable, "-m", "netstack", "guest", "--guest-api", "--", "sh", "-c", "\n".join(lines)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    made = json.loads(said[0])
    assert (made["local"].startswith("127.0.0.1:"), made["remote"]) == (True, "192.168.127.2:8000")
    assert said[1:] == [
        "200",
        "from inside the network only tcp and udp can be exposed, not unix",
        "403",
        "from inside the network only loopback addresses of the host can be exposed, not 192.0.2.1",
        "403",
        "a guest can only forward to itself (192.168.127.2), not to 192.168.127.254",
        "403",
        "a guest can only forward to itself (192.168.127.2), not to guest",
        "403",
        json.dumps([made], separators=(",", ":")),
        "404",
    ]
    assert precious.read_text() == "kept"
