"""Reading a YAML file into lists, mappings and plain values, with errors that say where.

Plain words mean what YAML 1.2's core schema says, as Go's reader (gvproxy's) takes them for text too: `on`, `no`, a MAC
address of digits and a date are text. Which words a setting takes as true or false is the setting's affair.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from netstack.setting_values import ConfigError

MAX_NESTING: Final = 16
"""Lists and mappings inside each other."""


class FileError(ConfigError):
    """A file that cannot be used; says which, and where in it and what is wrong."""

    def __init__(self, where: str, problem: Exception | str) -> None:
        ValueError.__init__(self, f"{where}: {problem}")
        self.key = where
        self.value = ""
        self.expected = str(problem)


def read_yaml(path: Path, where: str) -> object:
    """What a YAML file says; None for an empty one. Raises FileError."""
    import yaml

    try:
        return _load(path.read_text(encoding="utf-8"), where)
    except OSError as error:
        raise FileError(where, str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise FileError(where, "expected UTF-8 text") from error
    except yaml.YAMLError as error:
        raise FileError(where, _problem(error)) from error
    except RecursionError as error:  # an alias inside its own anchor
        raise FileError(where, "a list or mapping that contains itself") from error


def _load(text: str, where: str) -> object:
    import yaml

    loader = _loader()
    depth = 0
    for event in yaml.parse(text, Loader=loader):  # does not recurse, as loading does
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_NESTING:
                raise FileError(where, f"lists and mappings nested deeper than {MAX_NESTING}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return yaml.load(text, Loader=loader)  # noqa: S506 - derived from a safe one


@lru_cache(maxsize=1)
def _loader() -> Any:
    import yaml

    # libyaml's parser, where the package has it, takes a seventh of the time: lists can be long.
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]  # which of the two it is, is known when it runs
        """YAML 1.2's core schema, and every key once."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - yaml's own way to say it

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"the key {key.value!r} twice"
                        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                    seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    # YAML 1.2.2 section 10.3.2, with the merge key of YAML 1.1 that Go's reader knows as well.
    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
        ("null", r"~|null|Null|NULL|", "~nN\0"),
        ("merge", r"<<", "<"),
    ):
        letters = ["" if letter == "\0" else letter for letter in first]
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), letters)
    Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
    return Loader


def _whole_number(loader: Any, node: Any) -> int:
    text: str = loader.construct_scalar(node)
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
    return sign * int(digits if base == 10 else digits[2:], base)


def _problem(error: Exception) -> str:
    """What the parser says, in a line; and what to do about it where a rule was taken for YAML's own signs."""
    problem = " ".join(str(error).replace(' in "<unicode string>",', " at").split())
    quotes = "; a rule that begins with *, @ or [ needs quotes"
    signs = ("an alias", "cannot start any token", "flow node", "flow sequence")
    return problem + (quotes if any(sign in problem for sign in signs) else "")
