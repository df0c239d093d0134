"""The pytest plugin in somebody else's project: captures are tests, traces are compared and written anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PCAPS = Path(__file__).parents[2] / "fixtures" / "pcaps"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """One capture, one test that uses the fixture."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nnetstack_captures = captures\naddopts = -p no:cacheprovider\n")
    (tmp_path / "captures").mkdir()
    shutil.copy(PCAPS / "dns-a.pcapng", tmp_path / "captures" / "question.pcapng")
    (tmp_path / "test_one.py").write_text(
        "def test_one(replay_capture):\n    assert replay_capture('captures/question.pcapng').differences == ()\n"
    )
    return tmp_path


def run(project: Path, *arguments: str) -> tuple[int, str]:
    """Without the other plugins that are installed here, which take seconds to come up."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "netstack.testing.pytest_plugin", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout


def test_captures_are_tests_by_being_there(project: Path):
    status, out = run(project)
    assert status == 1
    assert "question.trace is not there; --update-traces makes it" in out
    assert run(project, "--update-traces")[0] == 0
    trace = project / "captures" / "question.trace"
    assert trace.read_text() == (PCAPS / "dns-a.trace").read_text()
    trace.write_text(trace.read_text().replace("NOERROR", "NXDOMAIN"))
    status, out = run(project)
    assert (status, "1 failed, 1 passed" in out) == (1, True)
    assert "question.pcapng replays otherwise than question.trace says" in out
    (project / "captures" / "question.yaml").write_text("policy: {allow_net: [pypi.org]}\n")
    assert run(project, "--update-traces")[0] == 0
    assert "refused at dns: name-not-allowed" in trace.read_text()


def test_pytest_finds_the_plugin_where_netstack_is_installed(pytestconfig: pytest.Config):
    assert pytestconfig.pluginmanager.get_plugin("netstack") is not None
    assert pytestconfig.getini("netstack_captures") == ["fixtures/pcaps"]


def test_the_plugin_imports_nothing_before_it_is_used():
    code = "import sys, netstack.testing.pytest_plugin as p; print([n for n in sys.argv[1:] if n in sys.modules])"
    heavy = ["trio", "dns", "dpkt", "netstack.engine.stack", "netstack.debug.replay", "fastapi", "scapy"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
