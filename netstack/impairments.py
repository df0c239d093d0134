"""What `--impair`, the section `impair` of the configuration file and the API say, read alike: impairments of links,
faults of streams and of DNS.

A text holds one, or several with semicolons between them. A list holds texts or mappings; a mapping has the words as
keys: `{dir: to-guest, match: "tcp port 443", delay: 50ms 10ms, loss: 1%, seed: 7}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guest_iface.impair_spec import Impairment, ImpairmentError, parse_impairment
from netstack.fault_spec import DnsFault, StreamFault, parse_dns_fault, parse_stream_fault

MAX_IMPAIRMENTS: Final = 64
"""In force at once."""
KINDS: Final = ("stream", "dns")
_EXPECTED: Final = "a text such as 'delay 50ms loss 1%', a mapping of such words, or a list of them"

AnyImpairment = Impairment | StreamFault | DnsFault


def parse_impairments(value: object, key: str) -> tuple[AnyImpairment, ...]:
    """All that `value` says; none for None. Raises ValueError, whose message begins with `key` and names the word."""
    try:
        found = tuple(_parse(text) for text in _texts(value))
    except ImpairmentError as error:
        raise ValueError(f"{key}: {error}") from error
    if len(found) > MAX_IMPAIRMENTS:
        raise ValueError(f"{key}: {len(found)} impairments: expected at most {MAX_IMPAIRMENTS}")
    return found


def _texts(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [text for text in map(str.strip, value.split(";")) if text]
    if isinstance(value, Mapping):
        return [_mapping_text(value)]
    if isinstance(value, list | tuple):
        return [text for each in value for text in _texts(each)]
    raise ImpairmentError(f"{value!r}: expected {_EXPECTED}")


def _mapping_text(value: Mapping[object, object]) -> str:
    """The words of a mapping in its order; what says its kind, and which frames, before the others."""
    kind: list[str] = []
    which: list[str] = []
    words: list[str] = []
    for name, rest in value.items():
        if rest is False or not isinstance(rest, str | int | float | None):
            raise ImpairmentError(f"{name!s}: expected a text or a number, not {rest!r}")
        text = "" if rest is None or rest is True else str(rest)
        if name in KINDS:
            kind.append(f"{name} {text}")
        elif name == "match":
            which.append(f"match ({text})")
        else:
            words.append(f"{name}={text}" if name in ("dir", "link") else f"{name} {text}")
    return " ".join(" ".join([*kind, *which, *words]).split())


def _parse(text: str) -> AnyImpairment:
    kind = text.split(maxsplit=1)[0] if text else ""
    if kind == "stream":
        return parse_stream_fault(text)
    return parse_dns_fault(text) if kind == "dns" else parse_impairment(text)
