"""A running gateway's API, as the commands here use it: over its unix socket, or over HTTP."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import httpx

TIMEOUT: Final = 10.0
"""Seconds for an answer. A live capture has no end, and no timeout."""


class SourceError(Exception):
    """A capture or a gateway cannot be read; the message says which and why."""


def is_api(source: str) -> bool:
    """Whether a source is a gateway's API: `unix://PATH`, `http://HOST:PORT`, or the path of a socket."""
    if source.startswith(("unix://", "http://")):
        return True
    try:
        return stat.S_ISSOCK(Path(source).stat().st_mode)
    except OSError:
        return False


def open_client(source: str) -> httpx.Client:
    """An HTTP client of a gateway. It connects with the first request."""
    import httpx

    if source.startswith("http://"):
        return httpx.Client(base_url=source, timeout=TIMEOUT)
    path = source.removeprefix("unix://")
    return httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://gateway", timeout=TIMEOUT)


class LiveApi:
    """Requests with JSON in and out."""

    def __init__(self, source: str, client: httpx.Client | None = None) -> None:
        """`source` as `is_api` takes it; `client` in its place for tests."""
        self.source = source
        self._client = client or open_client(source)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def call(self, method: str, path: str, body: object = None, **query: object) -> Any:
        """The decoded answer, None for an empty one. Raises SourceError, which names the socket and what it said."""
        import httpx

        parameters = {key: str(value) for key, value in query.items() if value not in (None, "")}
        try:
            response = self._client.request(method, path, json=body, params=parameters)
        except httpx.HTTPError as error:
            raise SourceError(
                f"{self.source}: {str(error) or type(error).__name__}; is the gateway running?"
            ) from error
        if response.is_error:
            raise SourceError(f"{self.source}: {method} {path}: {_detail(response)}")
        return response.json() if response.content else None


def _detail(response: httpx.Response) -> str:
    """What an error's body says, in one line."""
    try:
        said = response.json()
    except ValueError:
        said = response.text
    if isinstance(said, dict):
        said = said.get("detail", said)
    return f"{response.status_code} {' '.join(str(said).split())[:300]}"
