"""The allocator's thresholds, and what it gives back."""

from __future__ import annotations

import ctypes

import pytest

from guest_iface.heap import give_back_freed, keep_freed_frames


def test_the_thresholds_are_taken() -> None:
    assert keep_freed_frames() is hasattr(ctypes.CDLL(None), "mallopt")


def test_a_c_library_without_them_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert keep_freed_frames() is False
    assert give_back_freed() is False


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_what_is_free_between_blocks_in_use_is_given_back() -> None:
    blocks = [bytes(64 * 1024) for _ in range(200)]
    del blocks[::2]
    assert give_back_freed() is True
