"""A running gateway's API, as the commands here use it: its client, with answers as they are in JSON."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from netstack.client import ApiError, Client
from netstack.client_requests import Request

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS: Final = 5.0
"""For a stream to begin. It has no end, and waits for ever once it has begun."""
_SCHEMES: Final = ("unix://", "tcp://", "http://", "https://")


class SourceError(Exception):
    """A capture or a gateway cannot be read; the message says which and why."""


def is_api(source: str) -> bool:
    """Whether a source is a gateway's API: `unix://PATH`, `tcp://HOST:PORT`, an URL, or the path of a socket."""
    if source.startswith(_SCHEMES):
        return True
    try:
        return stat.S_ISSOCK(Path(source).stat().st_mode)
    except OSError:
        return False


class LiveApi(Client):
    """Requests with JSON in and out. Raises SourceError where its parent raises ApiError."""

    def __init__(self, source: str, token_file: Path | None = None, *, http: httpx.Client | None = None) -> None:
        """`source` as `is_api` takes it; `token_file` holds what the API wants to be shown. `http` takes the place of
        a connection, for tests. Raises SourceError for a file that cannot be read, and for a socket that is not there.
        """
        token = ""
        if token_file is not None:
            try:
                token = token_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SourceError(f"--token-file {token_file}: {error}") from error
        super().__init__(source, token=token)
        self._http = http
        if self._path and not Path(self._path).exists():
            # httpx, asked to connect there, leaves a socket open behind its exception.
            raise SourceError(str(self._unreachable(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))))

    def call(self, method: str, path: str, body: object = None, *, answers: bool = True) -> Any:
        """What the gateway answers, decoded; nothing for a request that has no answer."""
        try:
            return self._ask(Request(method, path, "dict" if answers else "", None, body))
        except ApiError as error:
            raise SourceError(str(error)) from error

    def stream(self, path: str) -> httpx.Response:
        """The beginning of an answer without an end. Whoever has it closes it, and this client."""
        client = self._client()
        import httpx

        try:
            request = client.build_request("GET", path, timeout=httpx.Timeout(CONNECT_SECONDS, read=None))
            response = client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise SourceError(str(self._unreachable(error))) from error
        if response.is_error:
            response.read()
            raise SourceError(str(self._refusal(response.status_code, response.text)))
        return response
