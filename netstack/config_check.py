"""What `netstack config check` says of a file: every error, or what it says to no effect."""

from __future__ import annotations

from pathlib import Path

from netstack.config import ConfigError
from netstack.configuration import read_document, settings_of, warnings
from netstack.configuration_errors import ConfigurationError
from netstack.policy_config import network_spec
from netstack.run_settings import run_config


def check_file(path: Path) -> tuple[list[str], list[str]]:
    """Errors and warnings about a file, a line each, with the paths of its keys. Links may come from options."""
    where = f"--config {path}: "
    try:
        document = read_document(path)
    except ConfigurationError as error:
        return list(error.problems), []
    except ConfigError as error:
        return [str(error).removeprefix(where)], []
    try:
        policy = network_spec(config_file=path, document=document)
    except ConfigError as error:
        return [str(error).removeprefix(f"{path}: ")], []
    try:
        made = run_config(settings_of(document, path), links=False, policy=policy)
    except ConfigError as error:
        return [str(error).removeprefix(where)], []
    return [], [*warnings(document), *policy.warnings(metadata_access=made.network.metadata_access)]
