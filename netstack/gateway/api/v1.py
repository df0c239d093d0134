"""`/v1/`: flows, names, leases, links and counters, to be looked at; and zones and forwards, to be changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import trio
from fastapi import APIRouter, HTTPException, Query, Response

from guest_iface.link import LinkCounters
from netstack import __version__
from netstack import api_models as models
from netstack.engine import snapshot
from netstack.engine.events import DnsEvent
from netstack.engine.settings import Zone as EngineZone
from netstack.gateway.api import live_zones
from netstack.gateway.api.v1_words import dotted, ended_flow, open_flow, question_model
from netstack.gateway.forward_addresses import ForwardError

if TYPE_CHECKING:
    from netstack.gateway.records import Records
    from netstack.gateway.run_command import Gateway

MAX_LISTED = 10_000
"""Flows or questions in one answer."""
_Limit = Annotated[int, Query(ge=1, le=MAX_LISTED, description="How many at most.")]


def records_of(gateway: Gateway) -> Records:
    """What has happened lately. A gateway that serves an API keeps it."""
    if gateway.records is None:
        raise HTTPException(503, "this gateway keeps no records")
    return gateway.records


def router(gateway: Gateway) -> APIRouter:
    """All of it."""
    made = APIRouter(prefix="/v1")
    _add_flows(made, gateway)
    _add_state(made, gateway)
    _add_zones(made, gateway)
    _add_forwards(made, gateway)
    return made


# -- flows and questions ----------------------------------------------------------------------------------------------


def _add_flows(made: APIRouter, gateway: Gateway) -> None:
    def living() -> Iterator[models.Flow]:
        records = records_of(gateway)
        for flow in snapshot.flows(gateway.driver.engine, trio.current_time()):
            yield open_flow(flow, records.note_of(flow.flow))

    def over() -> Iterator[models.Flow]:
        for recorded in records_of(gateway).all_over():
            flow = ended_flow(recorded)
            if flow is not None:
                yield flow

    @made.get("/flows", tags=["flows"])
    async def list_flows(
        state: Literal["open", "closed", "refused", "all"] = "all",
        protocol: str = "",
        guest: str = "",
        name: str = "",
        limit: _Limit = 1000,
    ) -> models.Flows:
        """Flows that are open, and what became of the latest that are not. `guest` is an address, `name` the name."""

        def wanted(flow: models.Flow) -> bool:
            return (
                (not protocol or flow.protocol == protocol)
                and (not guest or flow.guest.rpartition(":")[0] == guest)
                and (not name or flow.verdict.name == name)
            )

        opened = [flow for flow in living() if wanted(flow)]
        shown = opened if state in ("open", "all") else []
        if state != "open":
            shown = shown + [flow for flow in over() if wanted(flow) and state in ("all", flow.state)]
        return models.Flows(flows=shown[:limit], open=len(opened))

    @made.get("/flows/{number}", tags=["flows"])
    async def show_flow(number: int) -> models.Flow:
        """One flow, open or over."""
        records = records_of(gateway)
        flow = snapshot.find(gateway.driver.engine, number, trio.current_time())
        if flow is not None:
            return open_flow(flow, records.note_of(number))
        recorded = records.over(number)
        ended = None if recorded is None else ended_flow(recorded)
        if ended is None:
            raise HTTPException(404, f"flow {number}: there is none, or it ended too long ago")
        return ended

    @made.delete("/flows/{number}", tags=["flows"], status_code=204)
    async def end_flow(number: int) -> Response:
        """End an open flow: both sides are reset."""
        if not gateway.driver.end_flow(number):
            raise HTTPException(404, f"flow {number}: no such flow is open")
        return Response(status_code=204)

    @made.get("/dns", tags=["names"])
    async def list_questions(name: str = "", guest: str = "", limit: _Limit = 1000) -> list[models.Question]:
        """DNS questions, the latest first."""
        shown: list[models.Question] = []
        for recorded in reversed(records_of(gateway).questions):
            if isinstance(recorded.event, DnsEvent):
                question = question_model(recorded, recorded.event)
                if (not name or question.name == name) and (not guest or question.guest == guest):
                    shown.append(question)
            if len(shown) >= limit:
                break
        return shown


# -- what there is ----------------------------------------------------------------------------------------------------


def _counts(counters: LinkCounters) -> models.LinkCounts:
    return models.LinkCounts(
        rx_frames=counters.rx_frames,
        rx_bytes=counters.rx_bytes,
        rx_dropped=counters.rx_dropped,
        tx_frames=counters.tx_frames,
        tx_bytes=counters.tx_bytes,
        tx_dropped=counters.tx_dropped,
        drops=dict(counters.drops),
    )


def totals(gateway: Gateway) -> models.Counters:
    """Every counter, for `/v1/counters` and `/metrics`."""
    stack = gateway.driver.engine
    counters, gauges = stack.counters, snapshot.gauges(stack)
    polled = gateway.driver.busy_poll
    return models.Counters(
        links=_counts(gateway.driver.link_totals()),
        packets_received=counters.packets_received,
        packets_sent=counters.packets_sent + counters.segments_sent,
        segments_received=counters.segments_received,
        segments_sent=counters.segments_sent,
        segments_repeated=gauges.losses.repeats,
        datagrams_received=counters.datagrams_received,
        datagrams_sent=counters.datagrams_sent,
        connections_opened=counters.connections_opened + counters.connections_called,
        connections_failed=counters.connections_failed,
        connections_reset=counters.connections_reset,
        connections_established=gauges.established,
        flows_open=snapshot.open_flows(stack),
        dropped=dict(stack.dropped),
        refused=dict(stack.judge.refusals),
        busy_poll=models.BusyPoll(limit_us=polled.limit * 1e6, patience_us=polled.patience * 1e6, batches=polled.found),
    )


def _add_state(made: APIRouter, gateway: Gateway) -> None:
    driver = gateway.driver

    @made.get("/info", tags=["state"])
    async def show_info() -> models.Info:
        """What is running, and with which addresses."""
        network = driver.stack.settings
        config = gateway.config
        return models.Info(
            version=__version__,
            gateway=dotted(network.gateway_ip),
            subnet=f"{dotted(network.subnet)}/{network.prefix_length}",
            guest=dotted(network.device_ip),
            host=dotted(network.host_ip),
            mtu=network.link.mtu,
            api=[*config.api_listen, *([config.services] if config.services else [])],
        )

    @made.get("/leases", tags=["state"])
    async def list_leases() -> list[models.Lease]:
        """DHCP leases in force, and those kept for a MAC; the gateway's own address is not among them."""
        network = driver.stack.settings
        leases = driver.stack.dhcp.leases(trio.current_time())
        return [
            models.Lease(address=dotted(address), mac=mac.hex(":"), static=mac in network.static_leases)
            for address, mac in sorted(leases.items())
            if address != network.gateway_ip
        ]

    @made.get("/neighbours", tags=["state"])
    async def list_neighbours() -> list[models.Neighbour]:
        """Which MAC has which address, and where it is."""
        places = {entry.mac: entry for entry in driver.switch.table(trio.current_time())}
        found = []
        for address, mac in sorted(driver.stack.neighbours.entries().items()):
            place = places.get(mac)
            found.append(
                models.Neighbour(
                    address=dotted(address),
                    mac=mac.hex(":"),
                    port=None if place is None else place.port,
                    link="" if place is None else place.link,
                )
            )
        return found

    @made.get("/links", tags=["state"])
    async def list_links() -> list[models.Link]:
        """The links that guests are on, what they can carry and what they have carried."""
        table = driver.switch.table(trio.current_time())
        traits = driver.stack.settings.link
        return [
            models.Link(
                port=port,
                name=link.name,
                mtu=link.capabilities.mtu,
                largest_frame=link.capabilities.largest_frame,
                queue_frames=link.capabilities.queue_frames,
                segment_offload=link.capabilities.segment_offload,
                segment=traits.mss,
                window=traits.window,
                verified_checksums=traits.verify_checksums,
                batch_calls=link.capabilities.batch_calls,
                guests=link.counters.guests,
                backlog=link.backlog,
                macs=[entry.mac.hex(":") for entry in table if entry.port == port],
                counters=_counts(link.counters),
            )
            for port, link in driver.links.items()
        ]

    @made.get("/counters", tags=["state"])
    async def show_counters() -> models.Counters:
        """Totals since the start."""
        return totals(gateway)


# -- zones ------------------------------------------------------------------------------------------------------------


def _zone(zone: EngineZone) -> models.Zone:
    return models.Zone(
        name=zone.name,
        records=[
            models.ZoneRecord(
                name=record.name,
                ip=dotted(record.address),
                regexp=None if record.regexp is None else record.regexp.pattern,
            )
            for record in zone.records
        ],
        default_ip="" if zone.default_ip is None else dotted(zone.default_ip),
    )


def _add_zones(made: APIRouter, gateway: Gateway) -> None:
    zones = gateway.driver.stack.dns.zones

    @made.get("/zones", tags=["names"])
    async def list_zones() -> list[models.Zone]:
        """The zones that the gateway answers for itself."""
        return [_zone(zone) for zone in zones.zones]

    @made.put("/zones/{name}", tags=["names"])
    async def put_zone(name: str, spec: models.ZoneSpec) -> models.Zone:
        """Put a zone in place, whole; one of the same name is replaced."""
        try:
            records = [
                record
                for given in spec.records
                for record in live_zones.parse_record(given.name, given.ip, given.regexp)
            ]
            zone = EngineZone(live_zones.canonical(name), tuple(records), live_zones.parse_address(spec.default_ip))
            live_zones.put(zones, zone)
        except ValueError as problem:
            raise HTTPException(422, str(problem)) from None
        return _zone(zone)

    @made.delete("/zones/{name}", tags=["names"], status_code=204)
    async def remove_zone(name: str) -> Response:
        """Forget a zone: its names are asked upstream again."""
        if live_zones.find(zones, name) is None:
            raise HTTPException(404, f"zone {name}: there is none")
        zones.remove(live_zones.canonical(name))
        return Response(status_code=204)


# -- forwards ---------------------------------------------------------------------------------------------------------


def _add_forwards(made: APIRouter, gateway: Gateway) -> None:
    @made.get("/forwards", tags=["forwards"])
    async def list_forwards() -> list[models.ForwardSpec]:
        """What is exposed on the host."""
        return [
            models.ForwardSpec.model_construct(local=each.local, remote=each.remote, protocol=each.protocol)
            for each in gateway.forwards.listing()
        ]

    @made.post("/forwards", tags=["forwards"], status_code=201)
    async def add_forward(spec: models.ForwardSpec) -> models.ForwardSpec:
        """Expose a guest's port; the answer has the port that was chosen for 0."""
        try:
            made_forward = await gateway.forwards.expose(spec.protocol, spec.local, spec.remote)
        except ForwardError as problem:
            status = 409 if str(problem).startswith("proxy already running") else 422
            raise HTTPException(status, str(problem)) from None
        return models.ForwardSpec.model_construct(
            local=made_forward.local, remote=made_forward.remote, protocol=made_forward.protocol
        )

    @made.delete("/forwards", tags=["forwards"], status_code=204)
    async def remove_forward(local: str, protocol: str = "tcp", close_flows: bool = False) -> Response:
        """Listen there no more; with `close_flows` what came that way is reset too."""
        try:
            await gateway.forwards.unexpose(protocol, local, close_flows=close_flows)
        except ForwardError as problem:
            raise HTTPException(404, str(problem)) from None
        return Response(status_code=204)
