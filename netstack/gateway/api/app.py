"""Puts the API together, and serves it: on the host's endpoints and, to guests, at http://gateway:80.

Connections are accepted here. What takes a connection over (`/connect`, `/tunnel`) is served at once; all else goes to
Hypercorn, and through it to the FastAPI application, both of which are imported when the first request comes.
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from netstack.config import Endpoint, RunConfig
from netstack.gateway.api.endpoints import ApiListener
from netstack.gateway.api.raw_paths import RawPaths
from netstack.gateway.api.request_head import BadRequest
from netstack.gateway.api.streams import TIMEOUT, RequestStream
from netstack.setting_values import STREAM_SCHEMES, parse_endpoint

if TYPE_CHECKING:
    from fastapi import FastAPI

    from netstack.gateway.run_command import Gateway

log = logging.getLogger(__name__)

FULL: Final = frozenset(("/connect", "/tunnel"))
"""What a `listen` endpoint has besides requests."""
SERVICES: Final = frozenset(("/tunnel",))
"""The same of a `services` endpoint: nobody gets a network card there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiOptions:
    """Where the API is served on the host, and to whom."""

    listen: tuple[Endpoint, ...] = ()
    """Endpoints of the whole API."""
    services: Endpoint | None = None
    """An endpoint of all but `/connect`."""
    token: str = ""
    """What a client on the host has to show (Authorization: Bearer TOKEN); empty: who reaches the endpoint may ask."""

    @classmethod
    def of(cls, config: RunConfig) -> ApiOptions:
        """What a configuration says. Raises ConfigError for an endpoint that is none."""
        return cls(
            listen=tuple(parse_endpoint(url, "listen", STREAM_SCHEMES) for url in config.api_listen),
            services=parse_endpoint(config.services, "services", STREAM_SCHEMES) if config.services else None,
            token=config.api_token or "",
        )


def authorized(said: str, token: str) -> bool:
    """Whether an Authorization header shows the token (RFC 6750 section 2.1), in a time that says nothing of it."""
    scheme, _, shown = said.partition(" ")
    return not token or (
        scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(errors="replace"), token.encode())
    )


class Api:
    """The API of one gateway."""

    def __init__(self, gateway: Gateway, options: ApiOptions) -> None:
        """Bind every endpoint, or none. Raises RunFailed."""
        self._gateway = gateway
        self._token = options.token
        self._raw = RawPaths(gateway)
        self._apps: dict[bool, Any] = {}
        self._building = trio.Lock()
        self._open: set[trio.SocketStream] = set()
        self._listeners: list[tuple[ApiListener, frozenset[str]]] = []
        wanted = [(endpoint, FULL) for endpoint in options.listen]
        if options.services is not None:
            wanted.append((options.services, SERVICES))
        try:
            for endpoint, raw_paths in wanted:
                self._listeners.append((ApiListener(endpoint), raw_paths))
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """The endpoints, as people write them."""
        return [listener.name for listener, _ in self._listeners]

    def close(self) -> None:
        """Stop listening and remove the sockets' files. Safe to call twice."""
        for listener, _ in self._listeners:
            listener.close()

    async def run(self) -> None:
        """Serve until cancelled; then every connection is closed."""
        try:
            async with trio.open_nursery() as nursery:
                for listener, raw_paths in self._listeners:
                    nursery.start_soon(listener.run, partial(self._serve, raw_paths=raw_paths))
                try:
                    await trio.sleep_forever()
                finally:
                    # Hypercorn shields what it sends: a client that does not read must not hold up the end.
                    for stream in list(self._open):
                        stream.socket.close()
        finally:
            self.close()

    async def serve_guest(self, stream: trio.SocketStream, client: tuple[str, int]) -> None:
        """A guest's connection to the gateway's port 80."""
        await self._serve(stream, raw_paths=frozenset(), guest=client)

    async def _serve(
        self, stream: trio.SocketStream, *, raw_paths: frozenset[str], guest: tuple[str, int] | None = None
    ) -> None:
        requests = RequestStream(stream, guest=guest, raw_paths=raw_paths)
        self._open.add(stream)
        try:
            await self._answer(requests, guest)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("API: a client has gone")
        finally:
            self._open.discard(stream)
            await trio.aclose_forcefully(stream)

    async def _answer(self, requests: RequestStream, guest: tuple[str, int] | None) -> None:
        try:
            head = await requests.next_request()
        except BadRequest as error:
            await requests.refuse(str(error), str(error))
            return
        if head is None:
            return
        if requests.taken_over is None:
            await self._converse(requests, from_guest=guest is not None)
        if requests.taken_over is not None:
            if authorized(requests.taken_over.authorization, self._token):
                await self._raw.serve(requests, requests.taken_over)
            else:
                await requests.refuse("401 Unauthorized", "unauthorized", "WWW-Authenticate: Bearer")

    async def _converse(self, requests: RequestStream, *, from_guest: bool) -> None:
        """Requests and answers, until the client has no more."""
        app = await self._app(from_guest=from_guest)
        from hypercorn.config import Config
        from hypercorn.trio.tcp_server import TCPServer
        from hypercorn.trio.worker_context import WorkerContext

        config = Config()
        config.keep_alive_timeout = TIMEOUT
        config.include_server_header = False
        config.errorlog = log
        try:
            stream: Any = requests  # what of a stream Hypercorn uses
            context = WorkerContext(None)
            requests.at_end(context.terminated.set)
            await TCPServer(app, config, context, {}, stream).run()
        except* Exception as errors:
            # What goes wrong with one client is that client's, and never the network's.
            log.warning("API: a connection has failed", exc_info=errors)

    async def _app(self, *, from_guest: bool) -> Any:
        async with self._building:
            if from_guest not in self._apps:
                # In a thread: half a second of imports, in which frames do not wait.
                self._apps[from_guest] = await trio.to_thread.run_sync(self._build, from_guest)
            return self._apps[from_guest]

    def _build(self, from_guest: bool) -> Any:
        import hypercorn.trio.tcp_server  # noqa: F401  # imported here, used by `_converse`
        from hypercorn.app_wrappers import ASGIWrapper

        app: Any = guest_app(self._gateway) if from_guest else host_app(self._gateway, token=self._token)
        return ASGIWrapper(app)


def host_app(gateway: Gateway, *, token: str = "") -> FastAPI:
    """The application for programs on the host: all there is."""
    from netstack.gateway.api import debug, gvproxy, impair, metrics, v1, v1_events, v1_policy, wires

    app = _bare_app()
    for area in (gvproxy, v1, v1_policy, v1_events, wires, impair, metrics, debug):
        app.include_router(area.router(gateway))
    if token:
        app.add_middleware(_TokenRequired, token=token)
    return app


def guest_app(gateway: Gateway) -> FastAPI:
    """The application for guests: forwards to themselves, as podman asks for them from inside its machine."""
    from netstack.gateway.api import gvproxy

    app = _bare_app(describes_itself=False)
    app.include_router(gvproxy.guest_router(gateway))
    return app


def _bare_app(*, describes_itself: bool = True) -> FastAPI:
    """An application that has nothing yet, and says so as gvproxy does."""
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    from netstack import __version__
    from netstack.gateway.api.gvproxy import error

    async def say(request: Request, problem: Exception) -> Response:
        if not isinstance(problem, HTTPException):
            raise problem
        if describes_itself and request.url.path.startswith("/v1/"):
            return JSONResponse({"detail": problem.detail}, problem.status_code, problem.headers)
        return error(problem.status_code, "404 page not found" if problem.status_code == 404 else problem.detail)

    return FastAPI(
        title="netstack",
        version=__version__,
        summary="A running gateway: its flows, names, policy, links and forwards.",
        openapi_url="/v1/openapi.json" if describes_itself else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: say},
    )


class _TokenRequired:
    """ASGI middleware: 401 for requests that do not show the token."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        said = next((value for name, value in scope.get("headers", ()) if name == b"authorization"), b"")
        if scope["type"] != "http" or authorized(said.decode("latin-1"), self._token):
            await self._app(scope, receive, send)
            return
        from netstack.gateway.api.gvproxy import error

        response = error(401, "unauthorized", {"WWW-Authenticate": "Bearer"})
        await response(scope, receive, send)
