"""The allocator's thresholds."""

from __future__ import annotations

import ctypes

import pytest

from guest_iface.heap import keep_freed_frames


def test_the_thresholds_are_taken() -> None:
    assert keep_freed_frames() is hasattr(ctypes.CDLL(None), "mallopt")


def test_a_c_library_without_them_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert keep_freed_frames() is False
