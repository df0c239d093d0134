"""gvproxy's paths: what podman, Lima, crc and Rancher Desktop ask for, answered with its status codes and texts."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import trio
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from netstack.engine.settings import Zone
from netstack.gateway.api import go_json, live_zones
from netstack.gateway.api.go_stats import statistics
from netstack.gateway.api.go_texts import split_host_port
from netstack.gateway.forward_addresses import ForwardError

if TYPE_CHECKING:
    from netstack.gateway.run_command import Gateway

MAX_GUEST_FORWARDS: Final = 256
"""Forwards that lead to one guest and were asked for by itself."""

_EXPOSE: Final = {
    "local": (str, "string"),
    "remote": (str, "string"),
    "protocol": (str, "types.TransportProtocol"),
}
_UNEXPOSE: Final = {"local": (str, "string"), "protocol": (str, "types.TransportProtocol")}
_ZONE: Final = {"Name": (str, "string"), "Records": (list, "[]types.Record"), "DefaultIP": (str, "net.IP")}
_RECORD: Final = {"Name": (str, "string"), "IP": (str, "net.IP"), "Regexp": (str, "*regexp.Regexp")}

Handler = Callable[[Request], Awaitable[Response]]


class _Wrong(Exception):  # noqa: N818 - it is an answer
    """A request that gets this answer instead of the one it wants."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _AnyMethod:
    """An endpoint that, as gvproxy's, does not care how it is asked."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._handler(Request(scope, receive))
        except _Wrong as wrong:
            response = error(wrong.status, str(wrong))
        except ClientDisconnect:
            return  # guests could fill the log with the tracebacks of bodies that they cut short
        await response(scope, receive, send)


def error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as Go's http.Error writes it."""
    return Response(
        f"{text}\n", status, {"X-Content-Type-Options": "nosniff", **(headers or {})}, media_type="text/plain"
    )


def _answer(value: Any) -> Response:
    return Response(go_json.encode(value), media_type="text/plain")


def _done() -> Response:
    return Response(b"")


async def _body(request: Request) -> Any:
    if request.method != "POST":
        raise _Wrong(400, "post only")
    try:
        return go_json.decode(await request.body())
    except ValueError as problem:
        raise _Wrong(400, str(problem)) from None


async def _fields(request: Request, struct: str, kinds: Mapping[str, tuple[type, str]]) -> dict[str, Any]:
    value = await _body(request)
    try:
        return go_json.fields(value, struct, kinds)
    except ValueError as problem:
        raise _Wrong(400, str(problem)) from None


def router(gateway: Gateway) -> APIRouter:
    """What is served to programs on the host."""
    forwards, zones, state = _Forwards(gateway), _Zones(gateway), _State(gateway)
    return _routes(
        {
            "/services": _redirect,
            "/services/forwarder/all": forwards.all,
            "/services/forwarder/expose": forwards.expose,
            "/services/forwarder/unexpose": forwards.unexpose,
            "/services/dns/all": zones.all,
            "/services/dns/add": zones.add,
            "/services/dns/remove": zones.remove,
            "/services/dns/remove/record": zones.remove_record,
            "/services/dhcp/leases": state.leases,
            "/leases": state.leases,
            "/cam": state.cam,
            "/stats": state.stats,
        }
    )


def guest_router(gateway: Gateway) -> APIRouter:
    """What is served to guests: forwards from this machine's loopback to the guest that asks."""
    forwards = _GuestForwards(gateway)
    return _routes(
        {
            "/services": _redirect,
            "/services/forwarder/all": forwards.all,
            "/services/forwarder/expose": forwards.expose,
            "/services/forwarder/unexpose": forwards.unexpose,
        }
    )


def _routes(handlers: Mapping[str, Handler]) -> APIRouter:
    made = APIRouter()
    for path, handler in handlers.items():
        endpoint: Any = _AnyMethod(handler)  # an ASGI application, which Starlette takes too
        made.add_route(path, endpoint, include_in_schema=False)
    return made


async def _redirect(request: Request) -> Response:
    """What Go's mux does for a path that it knows with a slash at its end."""
    where = "/services/" + (f"?{request.url.query}" if request.url.query else "")
    if request.method not in ("GET", "HEAD"):
        return Response(b"", 307, {"Location": where})
    body = f'<a href="{where}">Temporary Redirect</a>.\n\n'.replace("&", "&amp;")
    return Response(body, 307, {"Location": where}, media_type="text/html")


# -- forwards ---------------------------------------------------------------------------------------------------------


class _Forwards:
    """The forwards of the gateway, for those who may have any."""

    def __init__(self, gateway: Gateway) -> None:
        self._forwards = gateway.forwards

    async def all(self, _request: Request) -> Response:
        return _answer(self._listing(_request))

    def _listing(self, _request: Request) -> list[dict[str, str]]:
        return [
            {"local": each.local, "remote": each.remote, "protocol": each.protocol} for each in self._forwards.listing()
        ]

    async def expose(self, request: Request) -> Response:
        wanted = await _fields(request, "ExposeRequest", _EXPOSE)
        protocol = wanted.get("protocol") or "tcp"
        remote = wanted.get("remote", "")
        if protocol in ("tcp", "udp"):
            remote = _remote(remote, request)
        local = self._permitted(request, protocol, wanted.get("local", ""), remote)
        try:
            forward = await self._forwards.expose(protocol, local, remote, asked_by=self._guest(request))
        except ForwardError as problem:
            raise _Wrong(problem.status, str(problem)) from None
        if protocol in ("tcp", "udp") and local.endswith(":0"):
            # Whoever asks for port 0 wants to know which one it is. gvproxy does not say.
            return _answer({"local": forward.local, "remote": forward.remote, "protocol": forward.protocol})
        return _done()

    def _guest(self, _request: Request) -> str:
        """The guest who asks, if it is one."""
        return ""

    def _permitted(self, _request: Request, _protocol: str, local: str, _remote: str) -> str:
        """The local end as it may be opened. Raises _Wrong."""
        return local

    async def unexpose(self, request: Request) -> Response:
        wanted = await _fields(request, "UnexposeRequest", _UNEXPOSE)
        protocol = wanted.get("protocol") or "tcp"
        local = self._own(request, protocol, wanted.get("local", ""))
        try:
            await self._forwards.unexpose(protocol, local)
        except ForwardError as problem:
            raise _Wrong(500, str(problem)) from None
        return _done()

    def _own(self, _request: Request, _protocol: str, local: str) -> str:
        """The local end of a forward that the asker may end. Raises _Wrong."""
        return local


class _GuestForwards(_Forwards):
    """The same for a guest: from loopback addresses of the host, by TCP and UDP, to itself.

    It sees what leads to it, and ends what it has asked for itself.
    """

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway)
        self._asking = trio.Lock()

    def _listing(self, request: Request) -> list[dict[str, str]]:
        asker = _asker(request)
        return [each for each in super()._listing(request) if _leads_to(each["protocol"], each["remote"], asker)]

    async def expose(self, request: Request) -> Response:
        async with self._asking:  # one after the other, or the bound below would be none
            return await super().expose(request)

    def _permitted(self, request: Request, protocol: str, local: str, remote: str) -> str:
        if protocol not in ("tcp", "udp"):
            raise _Wrong(403, f"from inside the network only tcp and udp can be exposed, not {protocol}")
        asker = _asker(request)
        host = split_host_port(remote)[0]
        if host != asker:
            raise _Wrong(403, f"a guest can only forward to itself ({asker}), not to {host}")
        local = _on_loopback(local)
        if sum(each.asked_by == asker for each in self._forwards.listing()) >= MAX_GUEST_FORWARDS:
            raise _Wrong(500, f"there are {MAX_GUEST_FORWARDS} forwards to {asker} already")
        return local

    def _guest(self, request: Request) -> str:
        return _asker(request)

    def _own(self, request: Request, protocol: str, local: str) -> str:
        local = _on_loopback(local)
        asker = _asker(request)
        for each in self._forwards.listing():
            if (each.protocol, each.local) == (protocol, local):
                if each.asked_by == asker:
                    return local
                if not each.asked_by and _leads_to(protocol, each.remote, asker):
                    raise _Wrong(403, "a guest can only end forwards that it asked for itself")
        raise _Wrong(500, "proxy not found")


def _asker(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _leads_to(protocol: str, remote: str, guest: str) -> bool:
    return protocol in ("tcp", "udp") and remote.rpartition(":")[0] == guest


def _remote(remote: str, request: Request) -> str:
    """Where a forward leads: `:PORT` is a port of whoever asks. Raises _Wrong."""
    try:
        host, port = split_host_port(remote)
        if host:
            return remote
        # A client on a unix socket has no address; Go calls it "@".
        asker = request.client
        return f"{asker.host}:{port}" if asker is not None else split_host_port("@")[0]
    except ValueError as problem:
        raise _Wrong(400, str(problem)) from None


def _on_loopback(local: str) -> str:
    """The address a guest's forward listens on: any address means a loopback one here, and others are refused."""
    try:
        host, port = split_host_port(local)
    except ValueError as problem:
        raise _Wrong(500, f"listen tcp: {problem}") from None
    if host in ("", "0.0.0.0", "localhost"):
        return f"127.0.0.1:{port}"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is not None and address.is_unspecified:
        return f"[::1]:{port}"
    # An address with a zone (::1%eth0) would be for the host's resolver to read, and that is not a guest's to ask.
    if address is None or not address.is_loopback or "%" in host:
        raise _Wrong(403, f"from inside the network only loopback addresses of the host can be exposed, not {host}")
    return f"{f'[{address}]' if address.version == 6 else address}:{port}"


# -- names ------------------------------------------------------------------------------------------------------------


class _Zones:
    def __init__(self, gateway: Gateway) -> None:
        self._zones = gateway.driver.stack.dns.zones

    async def all(self, _request: Request) -> Response:
        return _answer([_zone_words(zone) for zone in self._zones.zones] or None)

    async def add(self, request: Request) -> Response:
        wanted = await _fields(request, "Zone", _ZONE)
        try:
            records = [
                record
                for given in wanted.get("Records", [])
                for record in _records(go_json.fields(given, "Record", _RECORD))
            ]
            default_ip = live_zones.parse_address(wanted.get("DefaultIP", ""))
            live_zones.add(self._zones, wanted.get("Name", ""), records, default_ip)
        except ValueError as problem:
            raise _Wrong(400, str(problem)) from None
        return _done()

    async def remove(self, request: Request) -> Response:
        wanted = await _fields(request, "Zone", _ZONE)
        name = wanted.get("Name", "")
        if live_zones.find(self._zones, name) is None:
            raise _Wrong(500, "zone not found")
        self._zones.remove(live_zones.canonical(name))
        return _done()

    async def remove_record(self, request: Request) -> Response:
        wanted = await _fields(request, "Zone", _ZONE)
        try:
            given = [go_json.fields(each, "Record", _RECORD) for each in wanted.get("Records", [])]
        except ValueError as problem:
            raise _Wrong(400, str(problem)) from None
        records = [(each.get("Name", ""), each.get("Regexp", "")) for each in given]
        if not live_zones.remove_records(self._zones, wanted.get("Name", ""), records):
            raise _Wrong(500, "record not found")
        return _done()


def _records(fields: Mapping[str, str]) -> list[Any]:
    return live_zones.parse_record(fields.get("Name", ""), fields.get("IP", ""), fields.get("Regexp"))


def _zone_words(zone: Zone) -> dict[str, Any]:
    records = []
    for record in zone.records:
        words = {"Name": record.name, "IP": socket.inet_ntoa(record.address)}
        if record.regexp is not None:
            words["Regexp"] = record.regexp.pattern
        records.append(words)
    default = "" if zone.default_ip is None else socket.inet_ntoa(zone.default_ip)
    return {"Name": f"{zone.name}.", "Records": records or None, "DefaultIP": default}


# -- what there is ----------------------------------------------------------------------------------------------------


class _State:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def leases(self, _request: Request) -> Response:
        leases = self._gateway.driver.stack.dhcp.leases(trio.current_time())
        return _answer(go_json.ordered({socket.inet_ntoa(address): mac.hex(":") for address, mac in leases.items()}))

    async def cam(self, _request: Request) -> Response:
        table = self._gateway.driver.switch.table(trio.current_time())
        return _answer(go_json.ordered({entry.mac.hex(":"): entry.port for entry in table}))

    async def stats(self, _request: Request) -> Response:
        return _answer(statistics(self._gateway))
