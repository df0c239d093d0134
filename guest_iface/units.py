"""Times, rates, sizes and shares in words, as `tc` has them: `50ms`, `10mbit`, `15k`, `1%`. What is written reads back
the same.
"""

from __future__ import annotations

import math
import re
from typing import Final

NANOSECONDS: Final = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_LONG_TIMES: Final = {"sec": "s", "secs": "s", "msec": "ms", "msecs": "ms", "usec": "us", "usecs": "us"}
RATES: Final = {"tbit": 10**12, "gbit": 10**9, "mbit": 10**6, "kbit": 10**3, "bit": 1}
"""Bits per second."""
_BYTE_RATES: Final = {"tbps": 8 * 10**12, "gbps": 8 * 10**9, "mbps": 8 * 10**6, "kbps": 8 * 10**3, "bps": 8}
SIZES: Final = {"m": 1 << 20, "k": 1 << 10, "": 1}
MAX_TIME: Final = 3600 * 10**9
MAX_RATE: Final = 10**12
MAX_SIZE: Final = 1 << 30

_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-z]*)", re.ASCII)
_SHARE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)%", re.ASCII)


def read_time(word: str) -> int | None:
    """Nanoseconds, 0 to an hour; a number without a unit is microseconds, as in tc. None for what is no time."""
    found = _QUANTITY.fullmatch(word.lower())
    if found is None:
        return None
    unit = _LONG_TIMES.get(found[2], found[2] or "us")
    return _scaled(found[1], NANOSECONDS.get(unit), MAX_TIME)


def read_rate(word: str) -> int | None:
    """Bits per second, 1 to a terabit; `bit` units are bits, `bps` units are bytes, as in tc. None for no rate."""
    found = _QUANTITY.fullmatch(word.lower())
    if found is None:
        return None
    unit = found[2] or "bit"
    return _scaled(found[1], RATES.get(unit) or _BYTE_RATES.get(unit), MAX_RATE) or None


def read_size(word: str) -> int | None:
    """Bytes, up to a gibibyte; `k` and `m` are 1024 and its square. None for what is no size."""
    found = _QUANTITY.fullmatch(word.lower())
    return None if found is None else _scaled(found[1], SIZES.get(found[2].removesuffix("b")), MAX_SIZE)


def read_share(word: str) -> float | None:
    """Percent, 0 to 100. None for what is no share."""
    found = _SHARE.fullmatch(word.lower())
    share = float(found[1]) if found else math.nan
    return share if 0 <= share <= 100 else None


def time_word(nanoseconds: int) -> str:
    """A time as `read_time` reads it."""
    return _worded(nanoseconds, NANOSECONDS)


def rate_word(bits: int) -> str:
    """A rate as `read_rate` reads it."""
    return _worded(bits, RATES)


def size_word(size: int) -> str:
    """A size as `read_size` reads it."""
    return _worded(size, SIZES)


def share_word(percent: float) -> str:
    """A share as `read_share` reads it."""
    return f"{int(percent) if percent == int(percent) else repr(percent)}%"


def _scaled(digits: str, unit: int | None, most: int) -> int | None:
    if unit is None or len(digits) > 20:
        return None
    value = round(float(digits) * unit) if "." in digits else int(digits) * unit
    return value if 0 <= value <= most else None


def _worded(value: int, units: dict[str, int]) -> str:
    for unit, size in units.items():
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return f"{value}{list(units)[-1]}"
