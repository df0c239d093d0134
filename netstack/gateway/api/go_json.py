"""Request bodies as Go's encoding/json reads them: keys in any case, unknown keys and what follows ignored.

Errors are in its words: clients show them, and gvproxy's users search for them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

_LITERALS: Final = {"t": "true", "f": "false", "n": "null"}
_BLANK: Final = " \t\r\n"
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
MAX_DEPTH: Final = 100
"""Brackets within brackets. Go stops at 10,000; nothing that is asked for here has more than three."""


def decode(body: bytes) -> Any:
    """The first JSON value of a body. Raises ValueError with what Go's decoder says."""
    text = body.decode("utf-8", "replace")
    start = len(text) - len(text.lstrip(_BLANK))
    if start == len(text):
        raise ValueError("EOF")
    _check(text, start)
    value, _ = json.JSONDecoder(strict=True).raw_decode(text, start)
    return value


def _fail(text: str, at: int, where: str) -> NoReturn:
    if at >= len(text):
        raise ValueError("unexpected EOF")
    letter = {"'": r"'\''", '"': "'\"'"}.get(text[at]) or repr(text[at])
    raise ValueError(f"invalid character {letter} {where}")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _check(text: str, at: int) -> int:
    """Walk over one value as Go's scanner does: it has its own words for what is wrong, and stops where it ends."""
    closers: list[str] = []
    while True:
        at = _skip(text, at)
        letter = text[at : at + 1]
        if letter in ("{", "["):
            if len(closers) >= MAX_DEPTH:
                raise ValueError("exceeded max depth")
            at = _skip(text, at + 1)
            if letter == "{":
                if text[at : at + 1] != "}":
                    at = _check_key(text, at)
                    closers.append("}")
                    continue
            elif text[at : at + 1] != "]":
                closers.append("]")
                continue
            at += 1
        else:
            at = _check_scalar(text, at, letter)
        while closers:
            at = _skip(text, at)
            letter = text[at : at + 1]
            if letter == ",":
                at = _skip(text, at + 1)
                if closers[-1] == "}":
                    at = _check_key(text, at)
                break
            if letter != closers[-1]:
                _fail(text, at, "after object key:value pair" if closers[-1] == "}" else "after array element")
            closers.pop()
            at += 1
        else:
            return at


def _check_key(text: str, at: int) -> int:
    if text[at : at + 1] != '"':
        _fail(text, at, "looking for beginning of object key string")
    at = _skip(text, _check_string(text, at))
    if text[at : at + 1] != ":":
        _fail(text, at, "after object key")
    return at + 1


def _check_scalar(text: str, at: int, letter: str) -> int:
    if letter == '"':
        return _check_string(text, at)
    if letter in _LITERALS and letter:
        word = _LITERALS[letter]
        for offset, expected in enumerate(word):
            if text[at + offset : at + offset + 1] != expected:
                _fail(text, at + offset, f"in literal {word} (expecting {expected!r})")
        return at + len(word)
    if letter and letter in "-0123456789":
        matched = _NUMBER.match(text, at)
        if matched is None:
            _fail(text, at + 1, "in numeric literal")
        return matched.end()
    _fail(text, at, "looking for beginning of value")


def _check_string(text: str, at: int) -> int:
    at += 1
    while text[at : at + 1] != '"':
        if at >= len(text) or text[at] < " ":
            _fail(text, at, "in string literal")
        if text[at] == "\\":
            at += 1
            if text[at : at + 1] == "u":
                for digit in range(1, 5):
                    if text[at + digit : at + digit + 1] not in set("0123456789abcdefABCDEF"):
                        _fail(text, at + digit, r"in \u hexadecimal character escape")
                at += 4
            elif text[at : at + 1] not in set('"\\/bfnrt'):
                _fail(text, at, "in string escape code")
        at += 1
    return at + 1


_KINDS: Final = {bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def fields(value: Any, struct: str, kinds: Mapping[str, tuple[type, str]]) -> dict[str, Any]:
    """The fields of a decoded object, by the keys of `kinds`: a Python type, and what Go calls it. Null is no value.

    `struct` is Go's name of the object's type. Raises ValueError for a value of another type.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"json: cannot unmarshal {_KINDS[type(value)]} into Go value of type types.{struct}")  # noqa: TRY004 - of JSON
    exact = {key.lower(): key for key in kinds}
    found: dict[str, Any] = {}
    for said, given in value.items():
        key = exact.get(said.lower())
        if key is None or given is None:
            continue
        kind, word = kinds[key]
        if not isinstance(given, kind):
            number = f" {_shown(given)}" if isinstance(given, int | float) and not isinstance(given, bool) else ""
            what = f"{_KINDS[type(given)]}{number if kind is int else ''}"
            raise ValueError(f"json: cannot unmarshal {what} into Go struct field {struct}.{key} of type {word}")  # noqa: TRY004
        found[key] = given
    return found


def _shown(number: float) -> str:
    return str(number) if math.isfinite(number) else "1e999"


def encode(value: Any) -> bytes:
    """A value as Go's encoder writes it: compact, maps in order of their keys, HTML's characters escaped, a newline.

    Structs keep their order: pass them as pairs already ordered, and maps through `ordered`.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode("utf-8", "backslashreplace") + b"\n"


def ordered(table: Mapping[str, Any]) -> dict[str, Any]:
    """A Go map: its keys sorted."""
    return dict(sorted(table.items()))
