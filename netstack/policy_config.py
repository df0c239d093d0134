"""The policy out of options and of the `policy` section of the YAML file: one NetworkSpec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from netstack.network_spec import NetworkSpec
from netstack.yaml_file import FileError

if TYPE_CHECKING:
    from netstack.configuration_model import Document


class PolicyError(FileError):
    """A policy that cannot be used; says where it stands and what is wrong with it."""


def network_spec(
    *,
    network: str | None = None,
    allow_net: Sequence[str] = (),
    deny_all: bool = False,
    sinkhole: str | None = None,
    answers: str | None = None,
    strict_ech: bool = False,
    config_file: Path | None = None,
    document: Document | None = None,
) -> NetworkSpec:
    """The policy out of the options and the `policy` section of a YAML file; an option replaces what the file says.

    `--allow-net` may hold several rules with commas between them. `document` is the file where it has been read
    already. Raises ConfigError.
    """
    keys: dict[str, object] = dict(_policy_section(config_file, document)) if config_file else {}
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


def _policy_section(path: Path, document: Document | None) -> Mapping[str, object]:
    if document is None:
        from netstack.configuration import read_document  # with pydantic, which a run without a file does not need

        document = read_document(path)
    return {} if document.policy is None else document.policy.model_dump(exclude_none=True)
