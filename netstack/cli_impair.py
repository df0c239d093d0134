"""`netstack impair`: what a running network's impairments are, and others in their place. Imports click only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import httpx

ACTIONS = ("show", "set", "clear")


@click.command(options_metavar="[OPTIONS]")
@click.option("--token-file", type=click.Path(dir_okay=False), metavar="FILE", help="File with the API's token.")
@click.option("--json", "as_json", is_flag=True, help="Print what the API says.")
@click.argument("socket", metavar="SOCKET")
@click.argument("action", default="show", type=click.Choice(ACTIONS), metavar="[show|set|clear]")
@click.argument("specs", nargs=-1, metavar="[SPEC]...")
def impair(*, socket: str, action: str, specs: Sequence[str], token_file: str | None, as_json: bool) -> int:
    """Show or change the impairments of a running network, by the SOCKET of its API (`--listen unix:///run/api.sock`).

    `set` puts every SPEC in force, and no others: 'dir=to-guest delay 50ms 10ms loss 1% seed 7', 'stream match port 443
    reset after 100k', 'dns pypi.org servfail'. Semicolons separate several in one. What `show` prints can be set again.
    """
    if (action == "set") != bool(specs):
        raise click.UsageError("set expects SPEC...; show and clear expect nothing behind them")
    from netstack.impairments import parse_impairments

    body = None
    if action == "set":
        try:
            body = {"impairments": [str(each) for each in parse_impairments(list(specs), "SPEC")]}
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    method = {"show": "GET", "set": "PUT", "clear": "DELETE"}[action]
    answer = _ask(socket, method, body, token_file)
    if as_json:
        click.echo(answer.text)
        return 0
    for each in answer.json()["impairments"]:
        counts = ", ".join(f"{word} {number}" for word, number in each["counts"].items() if number)
        click.echo(f"{each['spec']}" + (f"    # {counts}" if counts else ""))
    return 0


def _ask(socket: str, method: str, body: dict[str, Any] | None, token_file: str | None) -> httpx.Response:
    """Raises ClickException with what went wrong."""
    from pathlib import Path

    import httpx

    headers = {}
    if token_file is not None:
        try:
            headers["Authorization"] = f"Bearer {Path(token_file).read_text(encoding='utf-8').strip()}"
        except OSError as error:
            raise click.ClickException(f"--token-file {token_file}: {error.strerror}") from error
    path = socket.removeprefix("unix://")
    over_tcp = socket.startswith("tcp://")
    if not over_tcp and not Path(path).is_socket():
        raise click.ClickException(
            f"{socket}: no API there: expected the unix socket of `--listen`, or tcp://HOST:PORT"
        )
    transport = None if over_tcp else httpx.HTTPTransport(uds=path)
    base = f"http://{socket.removeprefix('tcp://')}" if over_tcp else "http://netstack"
    try:
        with httpx.Client(transport=transport, base_url=base, headers=headers, timeout=10) as client:
            answer = client.request(method, "/v1/impair", json=body)
    except httpx.TransportError as error:
        raise click.ClickException(f"{socket}: no API there: {error}") from error
    if answer.status_code != httpx.codes.OK:
        raise click.ClickException(f"{socket}: {_reason(answer)}")
    return answer


def _reason(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.text.strip()
    return f"{detail} (status {answer.status_code})"
