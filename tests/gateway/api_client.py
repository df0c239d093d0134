"""A gateway that serves its API on a unix socket, with a guest by scapy, and a client that says what came back."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import trio
from callee import Called, called


class Said(NamedTuple):
    status: int
    body: str
    content_type: str
    nosniff: bool


class Served:
    def __init__(self, net: Called, path: Path, http: httpx.AsyncClient) -> None:
        self.net, self.path, self.http = net, path, http
        self.gateway = net.gateway

    async def ask(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> Said:
        content = body.encode() if isinstance(body, str) else body
        answer = await self.http.request(method, path, content=content, headers=headers)
        nosniff = answer.headers.get("x-content-type-options") == "nosniff"
        return Said(answer.status_code, answer.text, answer.headers.get("content-type", ""), nosniff)

    async def connect(self) -> trio.SocketStream:
        """A connection of its own, for bytes as they are."""
        return await trio.open_unix_socket(str(self.path))


@asynccontextmanager
async def served(tmp_path: Path, **options: object) -> AsyncIterator[Served]:
    path = tmp_path / "api.sock"
    async with called(api_listen=(f"unix://{path}",), **options) as net:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=20) as http:
            yield Served(net, path, http)
    assert not path.exists(), "the socket's file is removed"


@asynccontextmanager
async def asked_by_guest(served: Served, guest: str = "192.168.127.2") -> AsyncIterator[httpx.AsyncClient]:
    """A client whose connections are those of a guest to the gateway's port 80."""
    handler = served.gateway._api.serve_guest
    async with trio.open_nursery() as nursery:
        listener, address = trio.socket.socket(socket.AF_UNIX), f"{served.path}.{guest}"
        await listener.bind(address)
        listener.listen(8)

        async def accept() -> None:
            while True:
                connection, _ = await listener.accept()
                nursery.start_soon(handler, trio.SocketStream(connection), (guest, 40_000))

        nursery.start_soon(accept)
        try:
            transport = httpx.AsyncHTTPTransport(uds=address)
            async with httpx.AsyncClient(transport=transport, base_url="http://192.168.127.1", timeout=20) as http:
                yield http
        finally:
            nursery.cancel_scope.cancel()
            listener.close()
            Path(address).unlink()  # noqa: ASYNC240 - a name in a directory of the test's
