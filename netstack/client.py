"""A running gateway from Python: `Client` for ordinary programs, `AsyncClient` for trio and asyncio, over httpx.

    with Client("/run/netstack.sock") as network:
        for flow in network.flows().flows:
            print(flow.destination, flow.verdict.name, flow.verdict.reason)
        network.expose("127.0.0.1:8080", "192.168.127.2:80")

Answers are models of `netstack.api_models`. pydantic and httpx are imported with the first request.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from netstack.client_requests import Answer, Request, Requests
from netstack.network_spec import NetworkSpec

if TYPE_CHECKING:
    import httpx

    from netstack import api_models as models

TIMEOUT: Final = 15.0
"""Seconds for an answer; streams have no end, and wait as long as it takes."""


class ApiError(Exception):
    """A request that failed; the message says where, and what the gateway or the system said."""

    def __init__(self, message: str, status: int = 0) -> None:
        """`status` is HTTP's; 0 when there was no answer."""
        super().__init__(message)
        self.status = status


def split_endpoint(where: str) -> tuple[str, str]:
    """A base URL, and the path of a unix socket or nothing: of `unix://PATH`, PATH, `tcp://HOST:PORT` or an URL."""
    if where.startswith("tcp://"):
        return f"http://{where.removeprefix('tcp://')}", ""
    if where.startswith(("http://", "https://")):
        return where, ""
    return "http://netstack", where.removeprefix("unix://")


class _Endpoint:
    """Where a gateway is, and what is the same for both clients."""

    def __init__(self, where: str, *, token: str = "") -> None:
        """`where`: the path of a unix socket, `unix://PATH`, `tcp://HOST:PORT` or an URL. `token` if it wants one."""
        self.where = where
        self._base, self._path = split_endpoint(where)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def _read(self, request: Request[Answer], response: httpx.Response) -> Answer:
        """The answer's value. Raises ApiError."""
        if response.is_error:
            raise self._refusal(response.status_code, response.text)
        answer: Answer = _value(request.answer, response.content)
        return answer

    def _refusal(self, status: int, text: str) -> ApiError:
        if status == 401:
            return ApiError(f"{self.where}: this API wants a token, and not this one (401)", status)
        return ApiError(f"{_said(text) or 'no reason given'} ({status})", status)

    def _unreachable(self, error: Exception) -> ApiError:
        """What went wrong before there was an answer, by its cause: httpx wraps the system's word."""
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno):
            cause = cause.__cause__ or cause.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error) or type(error).__name__
        hints = {2: "is the gateway running?", 13: "the socket is its owner's only", 111: "is the gateway running?"}
        hint = hints.get(cause.errno or 0, "") if isinstance(cause, OSError) else ""
        return ApiError(f"{self.where}: {reason}{f'; {hint}' if hint else ''}")


def _said(text: str) -> str:
    """What an error's body says, in one line: our JSON's `detail`, pydantic's list of faults, or gvproxy's text."""
    try:
        said = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:500]
    if isinstance(said, list):
        faults = [f"{'.'.join(str(step) for step in each['loc'][1:])}: {each['msg']}" for each in said]
        return "; ".join(faults)
    return str(said)


def _value(annotation: str, content: bytes) -> Any:
    if not annotation:
        return None
    from pydantic import TypeAdapter

    from netstack import api_models

    if annotation.startswith(("dict", "list[dict")):
        return json.loads(content)
    name = annotation.removeprefix("list[").removesuffix("]")
    model: Any = getattr(api_models, name)
    return TypeAdapter(list[model] if annotation != name else model).validate_json(content)


def _given(query: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in query.items() if value}


def _capture_query(filter_text: str, snaplen: int | None) -> dict[str, str]:
    return {"filter": filter_text, "snaplen": "" if snaplen is None else str(snaplen)}


class _EventReader:
    """Server-sent events, out of the lines of a stream."""

    def __init__(self) -> None:
        self._data = ""

    def read(self, line: str) -> dict[str, Any] | None:
        """The object of the event that a line ends, which an empty one does; None for the others, and for comments."""
        if line:
            if line.startswith("data:"):
                self._data += line.removeprefix("data:").strip()
            return None
        data, self._data = self._data, ""
        event: dict[str, Any] | None = json.loads(data) if data else None
        return event


class Client(_Endpoint):
    """Blocking. Use it in a `with` block, or call `close`."""

    def __init__(self, where: str, *, token: str = "") -> None:
        """See the module. Connects with the first request."""
        super().__init__(where, token=token)
        self._http: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            self._http.close()

    def _client(self) -> httpx.Client:
        if self._http is None:
            import httpx

            transport = httpx.HTTPTransport(uds=self._path) if self._path else None
            self._http = httpx.Client(
                transport=transport, base_url=self._base, headers=self._headers, timeout=TIMEOUT, trust_env=False
            )
        return self._http

    def _ask(self, request: Request[Answer]) -> Answer:
        client = self._client()
        import httpx

        try:
            response = client.request(request.method, request.path, params=request.query, json=request.body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return self._read(request, response)

    @contextmanager
    def _stream(self, path: str, query: dict[str, str]) -> Iterator[httpx.Response]:
        """An answer without an end. The block ends, too, where the gateway does in the middle of it."""
        client = self._client()
        import httpx

        try:
            with client.stream("GET", path, params=_given(query), timeout=None) as response:
                if response.is_error:
                    raise self._refusal(response.status_code, response.read().decode(errors="replace"))
                try:
                    yield response
                except httpx.RemoteProtocolError:
                    return
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def info(self) -> models.Info:
        """What is running."""
        return self._ask(Requests.info())

    def flows(
        self, state: str = "all", *, protocol: str = "", guest: str = "", name: str = "", limit: int = 1000
    ) -> models.Flows:
        """Flows, the open ones first; `state` is open, closed, refused or all."""
        return self._ask(Requests.flows(state, protocol, guest, name, limit))

    def flow(self, number: int) -> models.Flow:
        """One flow."""
        return self._ask(Requests.flow(number))

    def end_flow(self, number: int) -> None:
        """End an open flow."""
        self._ask(Requests.end_flow(number))

    def questions(self, *, name: str = "", guest: str = "", limit: int = 1000) -> list[models.Question]:
        """DNS questions, the latest first."""
        return self._ask(Requests.questions(name, guest, limit))

    def policy(self) -> models.Policy:
        """The policy in force."""
        return self._ask(Requests.policy())

    def replace_policy(self, spec: NetworkSpec) -> models.Policy:
        """Put another in force, whole."""
        return self._ask(Requests.replace_policy(spec))

    def kill(self) -> models.Policy:
        """The kill switch."""
        return self._ask(Requests.kill())

    def lift(self) -> models.Policy:
        """End it."""
        return self._ask(Requests.lift())

    def leases(self) -> list[models.Lease]:
        """DHCP leases."""
        return self._ask(Requests.leases())

    def neighbours(self) -> list[models.Neighbour]:
        """Addresses and the MACs they were seen at."""
        return self._ask(Requests.neighbours())

    def links(self) -> list[models.Link]:
        """The guests' links."""
        return self._ask(Requests.links())

    def counters(self) -> models.Counters:
        """Totals since the start."""
        return self._ask(Requests.counters())

    def statistics(self) -> dict[str, Any]:
        """gvproxy's `/stats`."""
        return self._ask(Requests.statistics())

    def zones(self) -> list[models.Zone]:
        """The local DNS zones."""
        return self._ask(Requests.zones())

    def put_zone(self, name: str, addresses: dict[str, str], default_ip: str = "") -> models.Zone:
        """Put a zone in place, whole: names left of it and their addresses."""
        return self._ask(Requests.put_zone(name, addresses, default_ip))

    def remove_zone(self, name: str) -> None:
        """Forget one."""
        self._ask(Requests.remove_zone(name))

    def forwards(self) -> list[models.ForwardSpec]:
        """Port forwards."""
        return self._ask(Requests.forwards())

    def expose(self, local: str, remote: str, protocol: str = "tcp") -> models.ForwardSpec:
        """Add one; what was made, with the port that was chosen for 0."""
        return self._ask(Requests.expose(local, remote, protocol))

    def unexpose(self, local: str, protocol: str = "tcp", *, close_flows: bool = False) -> None:
        """Remove one, and with `close_flows` reset what came that way."""
        self._ask(Requests.unexpose(local, protocol, close_flows))

    def captures(self) -> list[dict[str, Any]]:
        """The captures that are running."""
        return self._ask(Requests.captures())

    def start_capture(self, file: str, *, filter_text: str = "", snaplen: int | None = None) -> int:
        """Capture into a file on the gateway's machine (an absolute path); the capture's number."""
        return self._ask(Requests.start_capture(file, filter_text, snaplen))["id"]

    def stop_capture(self, number: int) -> None:
        """End one."""
        self._ask(Requests.stop_capture(number))

    def events(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """What happens from now on, of these kinds or all, until the gateway ends."""
        reader = _EventReader()
        with self._stream("/v1/events", {"kinds": ",".join(kinds)}) as response:
            for line in response.iter_lines():
                event = reader.read(line)
                if event is not None:
                    yield event

    def read_capture(self, *, filter_text: str = "", snaplen: int | None = None) -> Iterator[bytes]:
        """Frames from now on, as the pieces of a pcapng file, until the gateway ends."""
        with self._stream("/v1/capture/stream", _capture_query(filter_text, snaplen)) as response:
            yield from response.iter_raw()


class AsyncClient(_Endpoint):
    """The same for tasks of trio and asyncio. Use it in an `async with` block, or await `aclose`."""

    def __init__(self, where: str, *, token: str = "") -> None:
        """See the module. Connects with the first request."""
        super().__init__(where, token=token)
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.aclose()

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            import httpx

            transport = httpx.AsyncHTTPTransport(uds=self._path) if self._path else None
            self._http = httpx.AsyncClient(
                transport=transport, base_url=self._base, headers=self._headers, timeout=TIMEOUT, trust_env=False
            )
        return self._http

    async def _ask(self, request: Request[Answer]) -> Answer:
        client = self._client()
        import httpx

        try:
            response = await client.request(request.method, request.path, params=request.query, json=request.body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return self._read(request, response)

    @asynccontextmanager
    async def _stream(self, path: str, query: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """An answer without an end. The block ends, too, where the gateway does in the middle of it."""
        client = self._client()
        import httpx

        try:
            async with client.stream("GET", path, params=_given(query), timeout=None) as response:
                if response.is_error:
                    raise self._refusal(response.status_code, (await response.aread()).decode(errors="replace"))
                try:
                    yield response
                except httpx.RemoteProtocolError:
                    return
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def info(self) -> models.Info:
        """What is running."""
        return await self._ask(Requests.info())

    async def flows(
        self, state: str = "all", *, protocol: str = "", guest: str = "", name: str = "", limit: int = 1000
    ) -> models.Flows:
        """Flows, the open ones first; `state` is open, closed, refused or all."""
        return await self._ask(Requests.flows(state, protocol, guest, name, limit))

    async def flow(self, number: int) -> models.Flow:
        """One flow."""
        return await self._ask(Requests.flow(number))

    async def end_flow(self, number: int) -> None:
        """End an open flow."""
        await self._ask(Requests.end_flow(number))

    async def questions(self, *, name: str = "", guest: str = "", limit: int = 1000) -> list[models.Question]:
        """DNS questions, the latest first."""
        return await self._ask(Requests.questions(name, guest, limit))

    async def policy(self) -> models.Policy:
        """The policy in force."""
        return await self._ask(Requests.policy())

    async def replace_policy(self, spec: NetworkSpec) -> models.Policy:
        """Put another in force, whole."""
        return await self._ask(Requests.replace_policy(spec))

    async def kill(self) -> models.Policy:
        """The kill switch."""
        return await self._ask(Requests.kill())

    async def lift(self) -> models.Policy:
        """End it."""
        return await self._ask(Requests.lift())

    async def leases(self) -> list[models.Lease]:
        """DHCP leases."""
        return await self._ask(Requests.leases())

    async def neighbours(self) -> list[models.Neighbour]:
        """Addresses and the MACs they were seen at."""
        return await self._ask(Requests.neighbours())

    async def links(self) -> list[models.Link]:
        """The guests' links."""
        return await self._ask(Requests.links())

    async def counters(self) -> models.Counters:
        """Totals since the start."""
        return await self._ask(Requests.counters())

    async def statistics(self) -> dict[str, Any]:
        """gvproxy's `/stats`."""
        return await self._ask(Requests.statistics())

    async def zones(self) -> list[models.Zone]:
        """The local DNS zones."""
        return await self._ask(Requests.zones())

    async def put_zone(self, name: str, addresses: dict[str, str], default_ip: str = "") -> models.Zone:
        """Put a zone in place, whole: names left of it and their addresses."""
        return await self._ask(Requests.put_zone(name, addresses, default_ip))

    async def remove_zone(self, name: str) -> None:
        """Forget one."""
        await self._ask(Requests.remove_zone(name))

    async def forwards(self) -> list[models.ForwardSpec]:
        """Port forwards."""
        return await self._ask(Requests.forwards())

    async def expose(self, local: str, remote: str, protocol: str = "tcp") -> models.ForwardSpec:
        """Add one; what was made, with the port that was chosen for 0."""
        return await self._ask(Requests.expose(local, remote, protocol))

    async def unexpose(self, local: str, protocol: str = "tcp", *, close_flows: bool = False) -> None:
        """Remove one, and with `close_flows` reset what came that way."""
        await self._ask(Requests.unexpose(local, protocol, close_flows))

    async def captures(self) -> list[dict[str, Any]]:
        """The captures that are running."""
        return await self._ask(Requests.captures())

    async def start_capture(self, file: str, *, filter_text: str = "", snaplen: int | None = None) -> int:
        """Capture into a file on the gateway's machine (an absolute path); the capture's number."""
        return (await self._ask(Requests.start_capture(file, filter_text, snaplen)))["id"]

    async def stop_capture(self, number: int) -> None:
        """End one."""
        await self._ask(Requests.stop_capture(number))

    async def events(self, *kinds: str) -> AsyncIterator[dict[str, Any]]:
        """What happens from now on, of these kinds or all, until the gateway ends."""
        reader = _EventReader()
        async with self._stream("/v1/events", {"kinds": ",".join(kinds)}) as response:
            async for line in response.aiter_lines():
                event = reader.read(line)
                if event is not None:
                    yield event

    async def read_capture(self, *, filter_text: str = "", snaplen: int | None = None) -> AsyncIterator[bytes]:
        """Frames from now on, as the pieces of a pcapng file, until the gateway ends."""
        async with self._stream("/v1/capture/stream", _capture_query(filter_text, snaplen)) as response:
            async for piece in response.aiter_raw():
                yield piece
