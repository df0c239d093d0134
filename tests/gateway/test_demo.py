"""The demonstration: every step succeeds, with a kernel and with the scripted guest; the capture is sound."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dpkt
import pytest

from guest_iface.link import LinkError
from netstack.gateway import demo

ROOT = Path(__file__).parents[2]
STEPS = ["lease", "local name", "forwarded name", "no such name", "web page", "ping, gateway", "refused port"]


def frames_of(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [frame for _, frame in dpkt.pcapng.Reader(file)]


def test_the_scripted_guest_goes_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def forbidden() -> None:
        raise LinkError("cannot make a network namespace: Operation not permitted")

    monkeypatch.setattr(demo, "_namespace_guest", forbidden)
    monkeypatch.setattr(demo, "prepare_process", lambda _level: None)
    capture = tmp_path / "demo.pcapng"
    assert demo.run_demo(capture) == 0
    told = capsys.readouterr().out
    assert "a script that speaks raw frames" in told
    assert "Operation not permitted" in told
    for step in STEPS:
        assert step in told
    assert str(capture) in told.replace("\n", "")
    assert len(frames_of(capture)) > 100


@pytest.mark.guest("openssl", "tshark")
def test_the_kernel_as_guest_goes_all_the_way_and_tshark_finds_nothing_wrong(tmp_path: Path):
    capture = tmp_path / "demo.pcapng"
    command = [sys.executable, "-m", "netstack", "demo", "--capture", str(capture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "a Linux kernel in a network namespace" in done.stdout
    assert "certificate verified" in done.stdout
    for step in STEPS:
        assert step in done.stdout
    wrong = "_ws.malformed || tcp.analysis.flags || ip.checksum.status == 0 || tcp.checksum.status == 0"
    checks = ["-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]
    # The guest's own segments leave its kernel without a finished checksum only where offload is on; the TAP has none.
    found = subprocess.run(["tshark", "-r", capture, *checks, "-Y", wrong], capture_output=True, text=True, check=True)
    assert found.stdout == ""


def test_a_step_that_fails_is_told_and_fails_the_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def forbidden() -> None:
        raise LinkError("forbidden")

    monkeypatch.setattr(demo, "_namespace_guest", forbidden)
    monkeypatch.setattr(demo, "prepare_process", lambda _level: None)
    monkeypatch.setattr(demo, "PAGE", b"another page than the one that is served")
    assert demo.run_demo(tmp_path / "demo.pcapng") == 1
    assert "ValueError: 200, 203690 bytes" in capsys.readouterr().out
