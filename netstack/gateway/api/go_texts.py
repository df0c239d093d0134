"""Errors in the words of Go's standard library: gvproxy's clients show them to people, and some compare them."""

from __future__ import annotations

import re
from typing import Final

_DIGITS: Final = re.compile(r"[0-9]+", re.ASCII)


def quote(text: str) -> str:
    """A string in quotation marks as Go's %q prints it: what is not printable is escaped."""
    pieces = []
    for letter in text:
        if letter in '"\\':
            pieces.append("\\" + letter)
        elif letter in _ESCAPES:
            pieces.append(_ESCAPES[letter])
        elif letter.isprintable():
            pieces.append(letter)
        else:
            pieces.append(f"\\x{ord(letter):02x}" if ord(letter) < 0x80 else f"\\u{ord(letter):04x}")
    return '"' + "".join(pieces) + '"'


_ESCAPES: Final = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}


def parse_uint(text: str, bits: int) -> int:
    """strconv.ParseUint in base 10. Raises ValueError in its words."""
    if not _DIGITS.fullmatch(text):
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: invalid syntax")
    # More digits than any such number has need not be converted (int() of a million digits takes a while).
    digits = text.lstrip("0")
    if len(digits) > 20 or int(digits or "0") >= 1 << bits:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: value out of range")
    return int(digits or "0")


def split_host_port(text: str) -> tuple[str, str]:
    """net.SplitHostPort: `host:port`, `[host]:port`, `:port`. Raises ValueError in its words."""
    colon = text.rfind(":")
    if colon < 0:
        raise _address_error(text, "missing port in address")
    if text.startswith("["):
        end = text.find("]")
        if end < 0:
            raise _address_error(text, "missing ']' in address")
        if end + 1 == len(text):
            raise _address_error(text, "missing port in address")
        if end + 1 != colon:
            problem = "too many colons in address" if text[end + 1] == ":" else "missing port in address"
            raise _address_error(text, problem)
        host = text[1:end]
    else:
        host = text[:colon]
        if ":" in host:
            raise _address_error(text, "too many colons in address")
        if "[" in host or "]" in host:
            mark = "[" if "[" in host else "]"
            raise _address_error(text, f"unexpected {mark!r} in address")
    return host, text[colon + 1 :]


def _address_error(address: str, problem: str) -> ValueError:
    return ValueError(f"address {address}: {problem}" if address else problem)
