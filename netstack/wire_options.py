"""Captures, limits and impairments as options and files ask for them: checked before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from netstack.config import CaptureOptions, ConfigError, Shaping
from netstack.setting_values import Wrong, at_once

DEFAULT_FILES: Final = 10
"""Files of a row, if nobody says how many."""


def check_capture(options: CaptureOptions, keys: dict[str, str], wrong: Wrong = at_once) -> None:
    """Tell `wrong` of what cannot be; `keys` has what each field is called where it was given."""
    from guest_iface.capture_file import MAX_FILES, MIN_FILE_BYTES
    from guest_iface.frame_filter import FilterError, parse_filter
    from guest_iface.link import MAX_FRAME, MIN_FRAME

    if options.snaplen is not None and not MIN_FRAME <= options.snaplen <= MAX_FRAME:
        wrong(ConfigError(keys["snaplen"], options.snaplen, f"bytes from {MIN_FRAME} to {MAX_FRAME}"))
    if options.rotate_size is not None and options.rotate_size < MIN_FILE_BYTES:
        wrong(ConfigError(keys["rotate_size"], options.rotate_size, f"{MIN_FILE_BYTES} bytes or more"))
    if options.rotate_count is not None:
        if options.rotate_size is None:
            beside = keys["rotate_size"].rpartition(" ")[2]
            wrong(ConfigError(keys["rotate_count"], options.rotate_count, f"{beside} with it"))
        elif not 1 <= options.rotate_count <= MAX_FILES:
            wrong(ConfigError(keys["rotate_count"], options.rotate_count, f"a number of files from 1 to {MAX_FILES}"))
    if options.filter is not None:
        try:
            parse_filter(options.filter)
        except FilterError as error:
            wrong(ConfigError(keys["filter"], options.filter, f"a filter such as 'host 10.0.0.5' ({error})"))


def capture_keys(section: str | None) -> dict[str, str]:
    """What the fields are called: in a section of a file, or None as options."""
    if section is None:
        return {
            "snaplen": "--capture-snaplen",
            "rotate_size": "--capture-size",
            "rotate_count": "--capture-count",
            "filter": "--capture-filter",
        }
    return {
        name: f"{section}.{name.replace('_', '-')}" for name in ("snaplen", "rotate_size", "rotate_count", "filter")
    }


def check_shaping(shaping: Shaping, section: str | None, wrong: Wrong = at_once) -> None:
    """Tell `wrong` of a rate or a burst that cannot be. `section` is the file's, None for options."""
    from guest_iface.shaping import Limit

    for link, limits in (("", shaping), *shaping.links):
        for word, rate in (("tx_kbps", limits.tx_kbps), ("rx_kbps", limits.rx_kbps)):
            if rate is not None:
                try:
                    Limit(rate, limits.burst or 0)
                except ValueError as error:
                    wrong(ConfigError(_rate_key(section, link, word), rate, _expected(error)))


def _rate_key(section: str | None, link: str, word: str) -> str:
    if section is None:
        return f"--shape-{word.replace('_', '-')}" + (f" {link}=" if link else "")
    return f"{section}.links.{link}.{word}" if link else f"{section}.{word}"


def _expected(error: ValueError) -> str:
    return str(error).partition("expected ")[2]


def shaping_of(tx: Sequence[str], rx: Sequence[str], burst: int | None, keys: tuple[str, str]) -> Shaping | None:
    """Out of options: RATE, or LINK=RATE for links of that name or pattern. None for none. Raises ConfigError."""
    rates: dict[str, dict[str, float]] = {}
    for word, key, texts in (("tx_kbps", keys[0], tx), ("rx_kbps", keys[1], rx)):
        for text in texts:
            link, _, rate = text.rpartition("=")
            try:
                rates.setdefault(link, {})[word] = float(rate)
            except ValueError:
                raise ConfigError(key, text, "kilobits per second such as 10000, or LINK=10000") from None
    if not rates:
        return None
    made = {
        link: Shaping(tx_kbps=limits.get("tx_kbps"), rx_kbps=limits.get("rx_kbps"), burst=burst)
        for link, limits in rates.items()
    }
    return replace(made.pop("", Shaping()), links=tuple(made.items()))


def checked_impairments(value: object, key: str) -> tuple[str, ...]:
    """Each in its own words. Raises ConfigError."""
    from netstack.impairments import parse_impairments

    try:
        return tuple(map(str, parse_impairments(value, key)))
    except ValueError as error:
        raise ImpairError(key, value, str(error)) from None


class ImpairError(ConfigError):
    """An impairment that cannot be read; the message says the word and what was expected in its place."""

    def __init__(self, key: str, value: object, message: str) -> None:
        super().__init__(key, value, message)
        self.args = (message,)
