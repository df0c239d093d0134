"""What `--version` and `doctor` say of the build is what Python would import."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import netstack.wire
from netstack.build_kind import build_kind
from netstack.gateway.doctor import check_build


@pytest.mark.parametrize("name", ["wire.checksum", "wire.tcp", "engine.stack", "engine.tcp_connection"])
def test_the_kind_is_that_of_every_module(name: str) -> None:
    module = importlib.import_module(f"netstack.{name}")
    assert (build_kind() == "compiled") is str(module.__file__).endswith(tuple(EXTENSION_SUFFIXES))


def test_it_follows_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extension module wins over the source beside it; nothing of either is run."""
    monkeypatch.delitem(sys.modules, "netstack.wire.checksum", raising=False)  # what is imported is not looked for
    monkeypatch.setattr(netstack.wire, "__path__", [str(tmp_path)])
    (tmp_path / "checksum.py").write_text("this is no Python")
    assert build_kind() == "pure"
    (tmp_path / f"checksum{EXTENSION_SUFFIXES[0]}").write_bytes(b"and this no library")
    importlib.invalidate_caches()
    assert build_kind() == "compiled"


def test_the_doctor_says_it() -> None:
    assert (check_build().state, check_build().found) == ("ok", build_kind())
