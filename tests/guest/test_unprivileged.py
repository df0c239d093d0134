"""`netstack guest -- COMMAND`: a command in a namespace of its own, our stack its only network; root not needed."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from .lab import LabError
from .netstack_process import COMMAND, ROOT
from .network import PUBLIC, World

pytestmark = pytest.mark.guest("ip", "openssl", "curl", "ping", "userns")
NOBODY = "65534"
UPSTREAM = ["--dns-upstream", "127.0.0.1:5353"]


def anybody_may_enter(path: Path) -> bool:
    """Whether a user without rights gets as far as `path`, and can read it."""
    return all(directory.stat().st_mode & 0o001 for directory in path.parents) and bool(path.stat().st_mode & 0o004)


def readable_python() -> str:
    """A Python that any user may start: the one that runs us, or the system's of the same version."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (Path(sys.executable).resolve(), Path("/usr/bin", version)):
        if candidate.exists() and anybody_may_enter(candidate):
            return str(candidate)
    return pytest.skip(f"no {version} that other users can start: {sys.executable} is out of their reach")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH of the project and what it needs: where they are, or copied to where any user can read them."""
    library = Path(sysconfig.get_path("purelib"))
    if anybody_may_enter(library) and anybody_may_enter(ROOT):
        return f"{ROOT}:{library}"
    directory = tmp_path_factory.mktemp("installed")
    site = directory / "site"
    shutil.copytree(sysconfig.get_path("purelib"), site, ignore=shutil.ignore_patterns("__pycache__", "scapy", "mypy*"))
    for package in ("netstack", "guest_iface"):
        shutil.copytree(ROOT / package, site / package, dirs_exist_ok=True)
    for path in (directory, *directory.parents[:2]):
        path.chmod(0o755)
    return str(site)


@pytest.fixture(params=["root", "nobody"])
def guest(request: pytest.FixtureRequest, world: World, installed: str):
    """`guest(COMMAND...)`: run `netstack guest -- COMMAND` in the host namespace, as root or as nobody."""
    prefix, command = [], list(COMMAND)
    if request.param == "nobody":
        if world.lab.rootless:
            pytest.skip("already without root")
        prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all", "--"]
        command = [readable_python(), "-m", "netstack"]
    prefix += ["env", f"PYTHONPATH={installed}", "PYTHONDONTWRITEBYTECODE=1", "HOME=/nonexistent"]
    # Root's own directories on PATH would make an unknown command a forbidden one.
    prefix += ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]

    def run(*words: str, check: bool = True):
        return world.host.run(*prefix, *command, "guest", *UPSTREAM, "--", *words, check=check)

    return run


def test_command_has_a_network(guest, world: World) -> None:
    """Address, resolver and route are there when the command starts; names, HTTP and ping work."""
    script = f"""
    ip -4 -o address show dev eth0
    curl -sSf http://{PUBLIC}/peer
    curl -sSf http://www.guest.test/bytes/3000000 | wc -c
    ping -c1 -W5 192.168.127.1
    """
    out = guest("sh", "-euc", script).stdout
    assert "192.168.127.2/24" in out
    assert f"{PUBLIC} " in out
    assert "3000000" in out
    assert " 0% packet loss" in out


def test_exit_status_is_the_commands(guest) -> None:
    assert guest("true").returncode == 0
    assert guest("sh", "-c", "exit 42", check=False).returncode == 42
    assert guest("sh", "-c", "kill -TERM $$", check=False).returncode == 128 + 15


def test_there_is_no_other_way_out(guest, world: World) -> None:
    """The host's interfaces and its loopback are not the guest's."""
    out = guest("sh", "-c", "ls /sys/class/net 2>/dev/null; ip -o link | cut -d: -f2").stdout
    assert "up0" not in out.split()
    with world.host.listen("127.0.0.1") as listener, pytest.raises(LabError):
        guest("curl", "-sSf", "-m", "5", f"http://127.0.0.1:{listener.getsockname()[1]}/")


def test_unknown_command_is_one_clear_line(guest) -> None:
    done = guest("no-such-command-anywhere", check=False)
    assert done.returncode == 127
    assert len(done.stderr.splitlines()) == 1, done.stderr
