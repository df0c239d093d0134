"""The demonstration: every step succeeds, with a kernel and with the scripted guest; the capture is sound."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dpkt
import pytest

from guest_iface.link import LinkError
from netstack.gateway import demo, demo_services
from netstack.network_spec import NetworkSpec

ROOT = Path(__file__).parents[2]
STEPS = ["lease", "local name", "forwarded name", "no such name", "web page", "ping, gateway", "refused port"]
WHY = {
    "listed name": "allowed: name-rule 'www.demo.test'",
    "name not listed": "refused: name-not-allowed; from policy",
    "DNS tunnel": "refused: name-not-allowed; from policy",
    "HTTPS, listed name": "allowed: name-rule 'www.demo.test' by sni",
    "its SNI, elsewhere": "allowed: name-rule 'www.demo.test' by sni",
    "SNI not listed": "refused: name-not-allowed by sni",
    "Host not listed": "refused: name-not-allowed by host",
    "QUIC, not listed": "refused: name-not-allowed by quic",
    "listed network": "allowed: address-rule '198.51.100.0/24'",
    "address not listed": "refused: no-rule",
    "another resolver": "refused: no-rule",
    "ping, not listed": "refused: no-rule",
}
"""The second act: what the gateway's record says of each step."""


def rows_of(told: str) -> dict[str, list[str]]:
    """The tables' rows by their first cell: the other cells, put together again where they were folded."""
    rows: dict[str, list[str]] = {}
    last: list[str] = []
    for line in told.splitlines():
        if line.startswith("\u2502"):
            name, *cells = (cell.strip() for cell in line.strip("\u2502").split("\u2502"))
            if name:
                last = rows[name] = cells
            else:
                last[:] = [f"{cell} {more}".strip() for cell, more in zip(last, cells, strict=True)]
    return rows


def forbid_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> None:
        raise LinkError("cannot make a network namespace: Operation not permitted")

    monkeypatch.setattr(demo, "NamespaceHelper", forbidden)
    monkeypatch.setattr(demo, "_namespace_guest", forbidden)
    monkeypatch.setattr(demo, "prepare_process", lambda _level: None)


def frames_of(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [frame for _, frame in dpkt.pcapng.Reader(file)]


@pytest.mark.parametrize("web_ports", [True, False])
def test_the_scripted_guest_goes_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], web_ports: bool
):
    """Also where the ports of the web are not to be had: then nothing can be reached by its name, and that is said."""
    forbid_namespaces(monkeypatch)
    listen = demo_services._web_server
    if not web_ports:
        monkeypatch.setattr(demo_services, "_web_server", lambda loopback, _port: listen(loopback, 0))
    with listen(demo_services._loopback(), 443) as probe:
        web_ports = web_ports and probe.server_port == 443
    capture = tmp_path / "demo.pcapng"
    assert demo.run_demo(capture) == 0
    told = capsys.readouterr().out
    assert "a script that speaks raw frames" in told
    assert "Operation not permitted" in told
    rows = rows_of(told)
    assert set(STEPS) < set(rows)
    for step, why in WHY.items():
        left_out = not web_ports and step in ("HTTPS, listed name", "its SNI, elsewhere")
        assert rows[step][1].startswith("left out") is left_out
        assert rows[step][2].startswith("" if left_out else why), step
    left = next(line for line in told.splitlines() if line.startswith("Questions that left")).partition(": ")[2]
    assert left in ("none", "www.demo.test AAAA"), "where this host has IPv6 the dialer asks for it"
    assert str(capture) in told.replace("\n", "")
    assert len(frames_of(capture)) > 100


@pytest.mark.guest("tshark")
def test_the_kernel_as_guest_goes_all_the_way_and_tshark_finds_nothing_wrong(tmp_path: Path):
    capture = tmp_path / "demo.pcapng"
    command = [sys.executable, "-m", "netstack", "demo", "--capture", str(capture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "a Linux kernel in a network namespace" in done.stdout
    rows = rows_of(done.stdout)
    assert set(STEPS) < set(rows)
    assert "left out" not in done.stdout
    assert {step: rows[step][2].startswith(why) for step, why in WHY.items()} == dict.fromkeys(WHY, True)
    for step in ("web page, TLS", "HTTPS, listed name", "its SNI, elsewhere"):
        assert "certificate verified" in rows[step][1]
    assert rows["name not listed"][1].startswith("NOERROR, 0.0.0.0")
    assert rows["SNI not listed"][1] == "TLS alert: unrecognized name (112)"
    assert rows["Host not listed"][1].startswith("403, netstack: evil.demo.test is refused")
    assert rows["QUIC, not listed"][1] == "ICMP port unreachable"
    wrong = "_ws.malformed || tcp.analysis.flags || ip.checksum.status == 0 || tcp.checksum.status == 0"
    checks = ["-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]
    # The guest's own segments leave its kernel without a finished checksum only where offload is on; the TAP has none.
    found = subprocess.run(["tshark", "-r", capture, *checks, "-Y", wrong], capture_output=True, text=True, check=True)
    assert found.stdout == ""


def test_a_step_that_fails_is_told_and_fails_the_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    forbid_namespaces(monkeypatch)
    monkeypatch.setattr(demo, "PAGE", b"another page than the one that is served")
    assert demo.run_demo(tmp_path / "demo.pcapng") == 1
    assert "ValueError: 200, 203690 bytes" in capsys.readouterr().out


def test_a_question_that_leaves_under_the_list_fails_the_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What the table cannot show: that nothing of the tunnel came to the resolver."""
    forbid_namespaces(monkeypatch)
    monkeypatch.setattr(demo, "LISTED", NetworkSpec.enabled([*demo.LISTED.allow_net, "*.evil.demo.test"]))
    assert demo.run_demo(tmp_path / "demo.pcapng") == 1
    told = capsys.readouterr().out
    assert "meanwhile: c2vjcmv0lwrhdge.evil.demo.test TXT" in told
    assert rows_of(told)["DNS tunnel"][1].startswith("ValueError: NXDOMAIN")


@pytest.mark.guest("netns")
def test_a_capture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "demo.pcapng"
    command = [sys.executable, "-m", "netstack", "demo", "--capture", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"netstack: {path}: cannot write the capture there: No such file or directory\n"


@pytest.mark.guest("netns")
def test_a_reader_that_leaves_is_one_line(tmp_path: Path) -> None:
    """`netstack demo | head -1`: no traceback."""
    command = [sys.executable, "-m", "netstack", "demo", "--capture", str(tmp_path / "demo.pcapng")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("The guest: ")
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1
    assert said == "netstack: standard output: nobody reads it any more\n"
