"""What `netstack doctor` says of a host that allows much, little or nothing. Sysctls and tools are stood in for."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import dns.flags
import dns.message
import pytest

from guest_iface.unixgram import UnixgramLink
from netstack.gateway import doctor
from netstack.gateway.doctor import Check

OK = Check(name="sockets", state="ok", found="fine", needed_for="run")
LIMITED = Check(name="QEMU", state="limited", found="none", needed_for="a VM", advice="install it")
MISSING = Check(name="/dev/net/tun", state="missing", found="none", needed_for="run --tap", advice="modprobe tun")
FATAL = Check(name="sockets", state="missing", found="forbidden", needed_for="run", advice="allow them")


def refuse(number: int) -> Callable[..., int]:
    def call(*_args: object, **_options: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("checks", "status"), [([OK], 0), ([OK, LIMITED, MISSING], 0), ([OK, FATAL], 1), ([FATAL, LIMITED], 1)]
)
def test_only_what_run_cannot_do_without_makes_it_fail(
    checks: list[Check], status: int, capsys: pytest.CaptureFixture[str]
):
    assert doctor.run_doctor(as_json=False, checks=[lambda each=each: each for each in checks]) == status
    shown = capsys.readouterr().out
    for check in checks:
        assert check.name in shown
        assert check.advice in shown
    assert ("does not have" in shown) is bool(status)


def test_json_holds_every_check_and_the_verdict(capsys: pytest.CaptureFixture[str]):
    assert doctor.run_doctor(as_json=True, checks=[lambda: OK, lambda: MISSING]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] is True
    assert told["checks"][1] == {
        "name": "/dev/net/tun",
        "state": "missing",
        "found": "none",
        "needed_for": "run --tap",
        "advice": "modprobe tun",
    }


def test_this_machine_has_python_and_sockets():
    assert doctor.check_python().state == "ok"
    assert doctor.check_sockets().state == "ok"


def test_forbidden_sockets_are_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "socketpair", refuse(errno.EPERM))
    check = doctor.check_sockets()
    assert (check.state, check.found, check.needed_for) == ("missing", "Operation not permitted", "run")


@pytest.mark.parametrize(("hard", "state"), [(1024, "limited"), (1 << 20, "ok"), (resource.RLIM_INFINITY, "ok")])
def test_open_files(monkeypatch: pytest.MonkeyPatch, hard: int, state: str):
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, hard))
    assert doctor.check_open_files().state == state


def test_a_resolver_that_is_not_listed(tmp_path: Path):
    path = tmp_path / "resolv.conf"
    assert doctor.check_resolver(path).state == "missing"
    path.write_text("search example.org\nnameserver\n")
    check = doctor.check_resolver(path)
    assert check.state == "missing"
    assert "--dns-upstream" in check.advice


def test_a_resolver_that_answers_and_one_that_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\nnameserver 127.0.0.2\n")
    monkeypatch.setattr(doctor, "_ask_resolver", lambda server: "" if server == "127.0.0.1" else "wrong one asked")
    assert doctor.check_resolver(path).state == "ok"
    monkeypatch.setattr(doctor, "_ask_resolver", lambda server: f"{server} did not answer")
    check = doctor.check_resolver(path)
    assert (check.state, check.found) == ("limited", "127.0.0.1 did not answer")


def test_asking_a_resolver_that_refuses_the_port(monkeypatch: pytest.MonkeyPatch):
    import dns.query

    asked = []

    def answer(query: dns.message.Message, server: str, timeout: float) -> dns.message.Message:
        asked.append((query.question[0].to_text(), server, timeout))
        if server == "127.0.0.2":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        if server == "127.0.0.3":
            raise dns.exception.Timeout
        return dns.message.make_response(query)

    monkeypatch.setattr(dns.query, "udp", answer)
    assert doctor._ask_resolver("127.0.0.1") == ""
    assert "Connection refused" in doctor._ask_resolver("127.0.0.2")
    assert "did not answer within 2 s" in doctor._ask_resolver("127.0.0.3")
    assert asked[0] == (". IN NS", "127.0.0.1", 2.0)


def test_ping_sockets_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "socket", refuse(errno.EACCES))
    monkeypatch.setattr(doctor, "_sysctl", {"net.ipv4.ping_group_range": "1\t0"}.get)
    check = doctor.check_ping()
    assert check.state == "limited"
    assert "net.ipv4.ping_group_range is 1 0" in check.found
    assert check.advice.startswith("sysctl -w net.ipv4.ping_group_range=")


def test_socket_buffers_that_are_too_small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "BUFFER_BYTES", 4096)
    assert doctor.check_socket_buffers().state == "ok"
    monkeypatch.setattr(doctor, "BUFFER_BYTES", 1 << 30)
    check = doctor.check_socket_buffers()
    assert check.state == "limited"
    assert "net.core.wmem_max=" in check.advice


@pytest.mark.parametrize(
    ("number", "found", "advice"),
    [(errno.ENOENT, "there is no such device", "modprobe tun"), (errno.EACCES, "Permission denied", "chmod 0666")],
)
def test_tun(monkeypatch: pytest.MonkeyPatch, number: int, found: str, advice: str):
    monkeypatch.setattr(os, "open", refuse(number))
    check = doctor.check_tun()
    assert (check.state, check.found) == ("missing", found)
    assert check.advice.startswith(advice)


def test_offload(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    opened = tmp_path / "tun"
    opened.touch()
    real = os.open
    monkeypatch.setattr(os, "open", lambda _path, flags: real(opened, flags))
    assert doctor.check_offload().state == "limited", "a file answers no TUNGETFEATURES"
    monkeypatch.setattr(doctor, "tap_offload_known", lambda _fd: True)
    assert doctor.check_offload().state == "ok"
    monkeypatch.setattr(os, "open", refuse(errno.ENOENT))
    assert doctor.check_offload().found == "see /dev/net/tun"


@pytest.mark.parametrize(
    ("sysctls", "advice"),
    [
        ({}, "run as root"),
        ({"kernel.unprivileged_userns_clone": "0"}, "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            {"kernel.apparmor_restrict_unprivileged_userns": "1"},
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"user.max_user_namespaces": "0"}, "sysctl -w user.max_user_namespaces=15000"),
    ],
)
def test_namespaces_refused(monkeypatch: pytest.MonkeyPatch, sysctls: dict[str, str], advice: str):
    monkeypatch.setattr(doctor, "_try_namespaces", lambda: "unshare failed: Operation not permitted")
    monkeypatch.setattr(doctor, "_sysctl", sysctls.get)
    check = doctor.check_namespaces()
    assert (check.state, check.found) == ("missing", "unshare failed: Operation not permitted")
    assert check.advice.startswith(advice)


def test_namespaces_allowed_and_hanging(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_try_namespaces", lambda: None)
    assert doctor.check_namespaces().state == "ok"

    def hang() -> str | None:
        raise subprocess.TimeoutExpired("unshare", 20)

    monkeypatch.setattr(doctor, "_try_namespaces", hang)
    assert doctor.check_namespaces().state == "missing"


def test_qemu_is_told_by_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    check = doctor.check_qemu()
    assert (check.state, check.found) == ("limited", "no qemu-system-aarch64 on PATH")
    assert "qemu-system-arm" in check.advice


@pytest.mark.parametrize("there", [True, False])
def test_what_makes_frames_cheap(monkeypatch: pytest.MonkeyPatch, there: bool):
    monkeypatch.setattr(doctor, "available", lambda: there)
    monkeypatch.setattr(doctor, "find_spec", lambda name: object() if there and name == "numpy" else None)
    calls, sums = doctor.check_batch_calls(), doctor.check_large_sums()
    assert [calls.state, sums.state] == ["ok" if there else "limited"] * 2
    assert ("sendmmsg, used" in calls.found) is there
    assert ("netstack[jumbo]" in sums.advice) is not there
    assert doctor.check_batch_calls in doctor.CHECKS
    assert doctor.check_large_sums in doctor.CHECKS


def test_everything_that_makes_it_fast_is_told_with_its_switch():
    found = {check().name: check().found for check in doctor.CHECKS if check is not doctor.check_resolver}
    for name, switch in (
        ("batch calls", "--batch-calls off"),
        ("busy polling", "--busy-poll"),
        ("TCP window", "--tcp-window"),
        ("large frames", "--offload off"),
        ("checksums", "--verify-checksums on"),
        ("TAP offload", "--offload off"),
    ):
        assert switch in found[name] or found[name].startswith(("see ", "no recvmmsg", "this kernel")), name
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs:
        link = UnixgramLink.from_fd(ours.detach())
        assert f"{link.capabilities.queue_frames} frames at MTU 1500" in found["TCP window"]
        link.close()
