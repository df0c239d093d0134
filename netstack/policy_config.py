"""The YAML file, and the policy made of its `policy` section and of options: one NetworkSpec."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from netstack.config import ConfigError
from netstack.network_spec import NetworkSpec

MAX_YAML_NESTING: Final = 16
"""Lists and mappings inside each other in the configuration file."""
_KEYS: Final = ("policy", "offload")
"""What the configuration file may hold."""


class PolicyError(ConfigError):
    """A policy that cannot be used; says where it stands and what is wrong with it."""

    def __init__(self, where: str, error: Exception | str) -> None:
        ValueError.__init__(self, f"{where}: {error}")
        self.key = where
        self.value = ""
        self.expected = str(error)


def network_spec(
    *,
    network: str | None = None,
    allow_net: Sequence[str] = (),
    deny_all: bool = False,
    sinkhole: str | None = None,
    answers: str | None = None,
    strict_ech: bool = False,
    config_file: Path | None = None,
) -> NetworkSpec:
    """The policy out of the options and the `policy` section of a YAML file; an option replaces what the file says.

    `--allow-net` may hold several rules with commas between them. Raises ConfigError.
    """
    keys: dict[str, object] = dict(_policy_section(config_file)) if config_file else {}
    # An entry with nothing in it stays, and is an error: without a rule all would be allowed.
    rules = [rule.strip() for entry in allow_net for rule in entry.split(",")]
    given = {
        "network": network,
        "allow_net": rules or None,
        "deny_all": deny_all or None,
        "sinkhole": sinkhole,
        "answers": answers,
        "strict_ech": strict_ech or None,
    }
    keys.update({key: value for key, value in given.items() if value is not None})
    try:
        return NetworkSpec.parse(keys)
    except ValueError as error:
        raise PolicyError(f"{config_file}: policy" if config_file else "policy", error) from error


def _load_yaml(text: str, where: str) -> object:
    """What a YAML text says. Raises yaml.YAMLError, and PolicyError where it is nested too deeply to be composed."""
    import yaml

    # libyaml's parser, where the package has it, takes a seventh of the time: lists can be long.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):  # does not recurse, as loading does
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_YAML_NESTING:
                raise PolicyError(where, f"lists and mappings nested deeper than {MAX_YAML_NESTING}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return yaml.load(text, Loader=loader)  # noqa: S506 - a safe one


def _yaml_problem(error: Exception) -> str:
    """What the parser says, in a line; and what to do about it where a rule was taken for YAML's own signs."""
    problem = " ".join(str(error).split())
    quotes = "; a rule that begins with *, @ or [ needs quotes"
    signs = ("an alias", "cannot start any token", "flow node", "flow sequence")
    return problem + (quotes if any(sign in problem for sign in signs) else "")


def offload_wanted(option: str | None, config_file: Path | None) -> bool:
    """Whether links may use offload: what `--offload` says, else the YAML file, else yes. Raises ConfigError."""
    if option is not None:
        return option == "on"
    value = _document(config_file).get("offload", True) if config_file else True
    # YAML 1.1 reads the words on and off as booleans, unless they are quoted.
    if value not in (True, False, "on", "off"):
        raise PolicyError(f"--config {config_file}", f"offload: expected on or off, not {value!r}")
    return value in (True, "on")


def _document(path: Path) -> Mapping[str, object]:
    """The YAML file, its keys checked. Raises PolicyError."""
    import yaml

    where = f"--config {path}"
    try:
        document = _load_yaml(path.read_text(encoding="utf-8"), where)
    except OSError as error:
        raise PolicyError(where, str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise PolicyError(where, "expected UTF-8 text") from error
    except yaml.YAMLError as error:
        raise PolicyError(where, _yaml_problem(error)) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise PolicyError(where, "expected a mapping with the section 'policy'")
    for key in document:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            known = f"did you mean {near[0]!r}" if near else f"known are {' and '.join(map(repr, _KEYS))}"
            raise PolicyError(where, f"unknown key {key!r}; {known}")
    return document


def _policy_section(path: Path) -> Mapping[str, object]:
    where = f"--config {path}"
    section = _document(path).get("policy")
    if isinstance(section, str):
        return {"network": section}
    if section is not None and not isinstance(section, dict):
        raise PolicyError(where, "policy: expected a mapping, 'enabled' or 'disabled'")
    return section or {}
