"""Whether what runs is the compiled hot path or the pure Python it is made of; both behave alike."""

from __future__ import annotations

from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec
from typing import Final, Literal

_HOT: Final = "netstack.wire.checksum"
"""A module of the hot path: all of them are compiled or none is (hatch_build.py)."""


def build_kind() -> Literal["compiled", "pure"]:
    """Found without importing anything but empty packages."""
    spec = find_spec(_HOT)
    return "compiled" if spec is not None and isinstance(spec.loader, ExtensionFileLoader) else "pure"
