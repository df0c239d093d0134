"""`netstack gvproxy` as a process: exit codes that tell the truth, and a prompt end by SIGTERM on every link."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEADLINE = 60
"""Seconds anything may take on a machine that is busy."""
ARP = bytes.fromhex("ffffffffffff5a94efe40cee08060001080006040001" + "5a94efe40ceec0a87f02000000000000c0a87f01")


def start(*words: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "netstack", "gvproxy", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]  # of Popen
    )


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Who waits for notifications."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "notify.sock"))
        listening.listen(16)
        listening.settimeout(DEADLINE)
        yield listening


def told(manager: socket.socket) -> str:
    connection, _ = manager.accept()
    with connection, connection.makefile("rb") as lines:
        return str(json.loads(lines.read())["notification_type"])


LINKS = {
    "qemu": ("unix", socket.SOCK_STREAM),
    "vpnkit": ("unix", socket.SOCK_STREAM),
    "bess": ("unixpacket", socket.SOCK_SEQPACKET),
    "vfkit": ("unixgram", socket.SOCK_DGRAM),
}


@pytest.mark.parametrize("kind", LINKS)
def test_sigterm_ends_it_at_once_with_a_guest_that_says_nothing(kind: str, tmp_path: Path, manager: socket.socket):
    """gvproxy waits for the next frame (qemu, bess) or the next client (vpnkit). Files and sockets go with it."""
    scheme, socket_kind = LINKS[kind]
    path, pid, log = tmp_path / "link.sock", tmp_path / "pid", tmp_path / "log"
    words = ["-listen-" + kind, f"{scheme}://{path}", "-notification", f"unix://{tmp_path}/notify.sock", "-ssh-port=-1"]
    process = start(*words, "-pid-file", str(pid), "-log-file", str(log), umask=0)
    with process, socket.socket(socket.AF_UNIX, socket_kind) as guest:
        assert told(manager) == "ready"
        assert path.stat().st_mode & 0o777 == 0o600, "whatever the umask"
        assert pid.read_text() == str(process.pid)
        guest.connect(str(path))
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "notify.sock"]
    said = log.read_text()
    assert 'level=info msg="waiting for clients..."' in said
    assert 'level=info msg="SIGTERM: ending"' in said


def test_the_api_alone_is_enough_and_ends_as_promptly(tmp_path: Path, manager: socket.socket):
    """Guests come by /connect: that is how gvforwarder attaches."""
    paths = [tmp_path / "api.sock", tmp_path / "services.sock"]
    words = ["-listen", f"unix://{paths[0]}", "-services", f"unix://{paths[1]}", "-ssh-port=-1"]
    with start(*words, "-notification", f"unix://{tmp_path}/notify.sock", umask=0) as process:
        assert told(manager) == "ready"
        assert [path.stat().st_mode & 0o777 for path in paths] == [0o600, 0o600]
        with socket.socket(socket.AF_UNIX) as guest:
            guest.settimeout(DEADLINE)
            guest.connect(str(paths[0]))
            guest.sendall(b"POST /connect HTTP/1.1\r\nHost: x\r\n\r\n" + len(ARP).to_bytes(2, "little") + ARP)
            assert told(manager) == "connection_established"
            assert guest.recv(2, socket.MSG_WAITALL) == (42).to_bytes(2, "little")
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["notify.sock"]


def test_stdio_carries_frames_and_its_end_is_no_failure(tmp_path: Path, manager: socket.socket):
    words = ["-listen-stdio=accept", "-ssh-port=-1", "-notification", f"unix://{tmp_path}/notify.sock"]
    words += [
        "-listen",
        f"unix://{tmp_path}/api.sock",
    ]  # which could bring other guests, but nobody is left to mind them
    process = start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert told(manager) == "ready"
        process.stdin.write(len(ARP).to_bytes(2, "little") + ARP)
        process.stdin.flush()
        size = int.from_bytes(process.stdout.read(2), "little")
        assert process.stdout.read(size)[6:12].hex(":") == "5a:94:ef:e4:0c:dd"
        process.stdin.close()
        assert process.wait(DEADLINE) == 0
        assert [told(manager) for _ in range(3)] == ["connection_established", "connection_closed", "hypervisor_error"]


def test_sigterm_ends_it_at_once_with_a_silent_guest_on_standard_input(tmp_path: Path, manager: socket.socket):
    words = ["-listen-stdio=accept", "-ssh-port=-1", "-notification", f"unix://{tmp_path}/notify.sock"]
    with start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert told(manager) == "ready"
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0


def test_a_vm_that_leaves_may_come_back(tmp_path: Path, manager: socket.socket):
    """gvproxy ends with its VM; here a manager that restarts it finds the same socket."""
    path = tmp_path / "q.sock"
    words = ["-listen-qemu", f"unix://{path}", "-notification", f"unix://{tmp_path}/notify.sock", "-ssh-port=-1"]
    forward = ["-forward-sock", f"{tmp_path}/ssh.sock", "-forward-dest", "/d", "-forward-user", "core"]
    with start(*words, *forward, "-forward-identity", "/dev/null") as process:
        assert told(manager) == "ready"
        assert (tmp_path / "ssh.sock").stat().st_mode & 0o777 == 0o600
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as guest:
                guest.connect(str(path))
                guest.sendall(len(ARP).to_bytes(4, "big") + ARP)
                assert told(manager) == "connection_established"
            assert told(manager) == "connection_closed"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["notify.sock"]


def test_a_run_that_fails_says_so_with_status_1(tmp_path: Path):
    """gvproxy ends with 0 for these."""
    missing = tmp_path / "missing"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            f"-listen-qemu unix://{missing}/q": b"cannot bind a unix socket there",
            f"-listen-qemu tcp://127.0.0.1:{port}": b"cannot listen there",
            f"-listen-qemu unix://{tmp_path}/q1 -pid-file {missing}/pid": b"failed to create pidfile: open ",
            f"-listen-qemu unix://{tmp_path}/q3 -log-file {missing}/log": b"unable to open log file",
            f"-listen-qemu unix://{tmp_path}/q2 -ssh-port {port}": (
                b"cannot add network services: listen tcp 127.0.0.1:%d: bind: address already in use" % port
            ),
            f"-listen-qemu unix://{tmp_path}/q4 -pcap {missing}/pcap": b"cannot write the capture there",
        }
        running = {said: start("-ssh-port=-1", *line.split()) for line, said in cases.items()}
        for said, process in running.items():
            _, err = process.communicate(timeout=DEADLINE)
            assert process.returncode == 1, said
            assert said in err
            assert b'level=error msg="gvproxy exiting: ' in err
            assert b"Traceback" not in err
    assert not os.listdir(tmp_path)  # noqa: PTH208 - as a list
