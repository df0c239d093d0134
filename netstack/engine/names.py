"""Host names in one canonical form, for the rules and for every name that is seen: DNS question, SNI, Host, QUIC."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

MAX_NAME: Final = 253
"""Characters without the final dot (RFC 1035 section 2.3.4)."""

# Letters, digits, hyphen (RFC 952, RFC 1123 section 2.1), and the underscore of service names (RFC 8552).
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


def canonical(name: str | bytes) -> str | None:
    """`name` trimmed, in lower case, without its one final dot; None when it is no host name.

    A name whose last label is a number is an IP address to every URL parser, in whatever base (WHATWG URL, "ends in a
    number"): an address is never a host name. Names beyond ASCII are None too: rules are turned to A-labels before
    they come here, and on the wire nothing else is a name (RFC 5890 section 2.3.2.1).
    """
    # The same names are seen again and again: by DNS, in hellos and requests, and by the dialer.
    return _known_form(name) if len(name) <= MAX_NAME else _form(name)


def _form(name: str | bytes) -> str | None:
    if not name.isascii():
        return None  # before anything else: lower() would make the letter k of the Kelvin sign
    if isinstance(name, bytes):
        name = name.decode("ascii")
    name = name.strip(" \t\r\n").lower().removesuffix(".")
    if not name or len(name) > MAX_NAME:
        return None
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]) or not all(_LABEL.fullmatch(label) for label in labels):
        return None
    return name


_known_form = lru_cache(maxsize=2048)(_form)


def suffixes(name: str) -> list[str]:
    """The domains a canonical name lies below, the longest first: `b.c` and `c` for `a.b.c`."""
    found = []
    position = name.find(".")
    while position >= 0:
        found.append(name[position + 1 :])
        position = name.find(".", position + 1)
    return found
