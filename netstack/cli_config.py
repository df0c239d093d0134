"""`netstack config`: the schema of the configuration file, and whether a file can be used."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def config() -> None:
    """Look at configuration files: their schema, and what is wrong with one."""


@config.command()
def schema() -> None:
    """Print the JSON schema of the configuration file, for editors and programs."""
    import json

    from netstack.configuration import schema as described

    click.echo(json.dumps(described(), indent=2))


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(*, file: Path) -> int:
    """Say whether FILE can be used, with all that is wrong with it and what it says to no effect.

    The exit status is 0 if it can be used, with warnings too, else 2.
    """
    from netstack.config_check import check_file

    errors, warnings = check_file(file)
    for line in errors:
        click.echo(f"{file}: {line}", err=True)
    for line in warnings:
        click.echo(f"{file}: warning: {line}", err=True)
    if not errors:
        click.echo(f"{file}: ok")
    return 2 if errors else 0
