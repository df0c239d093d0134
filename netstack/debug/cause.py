"""What a conversation came to: the word for the cause, a sentence that says it, and what to change."""

from __future__ import annotations

from typing import NamedTuple


class Cause(NamedTuple):
    """`word` is stable, for programs; docs/explain.md lists them. `fine`: nothing is wrong.

    `says` is one line for people, `advice` what to change: empty where nothing needs changing or nothing helps.
    """

    word: str
    says: str
    advice: str = ""
    fine: bool = False


def seconds_text(seconds: float) -> str:
    """`2.5 s`, `340 ms`, `80 us`: two or three figures."""
    if seconds >= 100:
        return f"{seconds:.0f} s"
    if seconds >= 0.9995:
        return f"{seconds:.3g} s"
    if seconds >= 0.0009995:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.0f} us"


def size_text(count: float) -> str:
    """`512 B`, `12.3 kB`, `4.5 MB`."""
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.3g} kB" if count < 999_500 else f"{count / 1e6:.3g} MB"


def count_text(number: int, noun: str) -> str:
    """`1 byte`, `3 bytes`; nouns that end in s, y or ch are none of ours."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
