"""What every test may count on: hypothesis without wall-clock deadlines, and guest tests that run or say why not.

A guest test says what it needs beyond namespaces and TUN: `@pytest.mark.guest("dig", "qemu")`. Each word is one of
the capabilities below or a program on PATH. What is missing makes the test a skip with that reason; with
`--require-guest` a skip of a guest test is a failure, also one from inside the test. With `--require-compiled` nothing
runs unless netstack's hot path is the compiled one, here and in the processes that tests start.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import settings

from netstack.build_kind import build_kind

ROOT = Path(__file__).parents[1]

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-guest",
        action="store_true",
        help="a guest test whose needs this machine does not meet fails instead of being skipped",
    )
    parser.addoption(
        "--soak",
        action="store_true",
        help="run the rows of the load that take minutes at their full scale as well",
    )
    parser.addoption(
        "--require-compiled",
        action="store_true",
        help="run only if what is imported, here and by the processes of tests, is netstack's compiled build",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """With --require-compiled: no test may pass because it met the sources of a checkout instead."""
    if not session.config.getoption("--require-compiled"):
        return
    command = [sys.executable, "-m", "netstack", "--version"]
    for environment in (None, {}):
        said = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        if "(compiled)" not in said:
            raise pytest.UsageError(f"--require-compiled: {ROOT} gives {said.strip()}")
    if build_kind() != "compiled":
        raise pytest.UsageError("--require-compiled: the tests' own process imports the pure build")


def _probe(command: list[str]) -> str | None:
    """Run a command that shows a capability; what went wrong, in a line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    if done.returncode == 0:
        return None
    said = (done.stderr or done.stdout).strip().splitlines()
    return f"{' '.join(command)}: {said[-1] if said else f'exit status {done.returncode}'}"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "not root"


def _netns() -> str | None:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return _probe(["unshare", *user, "--net", "--mount", "true"])


def _userns() -> str | None:
    return _probe(["unshare", "--user", "--map-root-user", "--net", "true"])


def _tun() -> str | None:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    return None


def _qemu() -> str | None:
    if platform.machine() != "x86_64":
        return f"the test VM is x86_64, this machine is {platform.machine()}"
    return None if shutil.which("qemu-system-x86_64") else "qemu-system-x86_64 is not installed"


def _kernel() -> str | None:
    if any(
        Path("/lib/modules", image.name.removeprefix("vmlinuz-")).is_dir() for image in Path("/boot").glob("vmlinuz-*")
    ):
        return None
    return "no Debian kernel with its modules (/boot/vmlinuz-*, /lib/modules/*) to boot"


CAPABILITIES: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "netns": _netns,
    "userns": _userns,
    "tun": _tun,
    "qemu": _qemu,
    "kernel": _kernel,
}


@functools.cache
def missing_capability(name: str) -> str | None:
    """Why a guest test cannot have `name` (a key of CAPABILITIES or a program), None when it can. Asked once a run."""
    probe = CAPABILITIES.get(name)
    if probe is not None:
        return probe()
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return None if shutil.which(name, path=path) else f"{name} is not installed"


def _needs(item: pytest.Item) -> list[str]:
    needs = ["netns", "tun"]
    for marker in item.iter_markers("guest"):
        needs.extend(str(word) for word in marker.args)
    return list(dict.fromkeys(needs))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Guest tests run last, so that a broken unit is told first; what takes minutes only when it is asked for."""
    if not config.getoption("--soak"):
        soak = [item for item in items if item.get_closest_marker("soak") is not None]
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item.get_closest_marker("soak") is None]
    items.sort(key=lambda item: item.get_closest_marker("guest") is not None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("guest") is None:
        return
    reasons = [reason for reason in map(missing_capability, _needs(item)) if reason]
    if reasons:
        pytest.skip("; ".join(reasons))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With --require-guest, no guest test may be skipped, whoever asked for it."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and item.config.getoption("--require-guest") and item.get_closest_marker("guest"):
        reason = call.excinfo.value if call.excinfo else "skipped"
        report.outcome = "failed"
        report.longrepr = f"--require-guest: {item.nodeid} was skipped: {reason}"
    return report
