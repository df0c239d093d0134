"""What `netstack config check` says of a file: every error, or what it says to no effect."""

from __future__ import annotations

from pathlib import Path

from netstack.config import ConfigError
from netstack.configuration import read_document, settings_of, warnings
from netstack.configuration_errors import MAX_TOLD, ConfigurationError
from netstack.configuration_model import Document
from netstack.network_spec import NetworkSpec
from netstack.run_settings import run_config


def check_file(path: Path) -> tuple[list[str], list[str]]:
    """Errors and warnings about a file, a line each, with the paths of its keys. Links may come from options.

    What is wrong with single keys comes first, and alone; then all contradictions between them. Where the subnet or an
    address in it cannot be, what depends on them is not judged.
    """
    where = f"--config {path}: "
    try:
        document = read_document(path)
    except ConfigurationError as error:
        return list(error.problems), []
    except ConfigError as error:
        return [str(error).removeprefix(where)], []
    policy, problems = _policy(document)

    def note(error: ConfigError) -> None:
        problems.append(str(error).removeprefix(where))

    try:
        settings = settings_of(document, path)
    except ConfigError as error:
        note(error)
        return problems[:MAX_TOLD], []
    made = run_config(settings, links=False, policy=policy, wrong=note)
    if problems:
        return problems[:MAX_TOLD], []
    told = [said.removeprefix(where) for said in made.notes]
    return [], [*warnings(document), *told, *policy.warnings(metadata_access=made.network.metadata_access)]


def _policy(document: Document) -> tuple[NetworkSpec, list[str]]:
    """The policy of those rules that can be used, and what is wrong: each of the others, and what contradicts them."""
    keys = {} if document.policy is None else document.policy.model_dump(exclude_none=True)
    problems = []
    usable = []
    for rule in keys.get("allow_net", ()):
        try:
            NetworkSpec.enabled([rule])
        except ValueError as error:
            problems.append(f"policy: {error}")
        else:
            usable.append(rule)
    try:
        return NetworkSpec.parse({**keys, "allow_net": usable}), problems
    except ValueError as error:
        return NetworkSpec(), [f"policy: {error}", *problems]
