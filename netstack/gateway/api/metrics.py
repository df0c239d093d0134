"""`/metrics` for Prometheus. Nothing is kept for it: the numbers are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import trio
from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from netstack import __version__
from netstack.gateway.api.v1 import totals

if TYPE_CHECKING:
    from netstack.gateway.run_command import Gateway


def router(gateway: Gateway) -> APIRouter:
    """One path."""
    made = APIRouter()
    registry = CollectorRegistry()
    registry.register(_Collector(gateway))

    @made.get("/metrics", tags=["state"], response_class=Response)
    async def show_metrics() -> Response:
        """Every counter in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return made


class _Collector(Collector):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is shows when it is collected."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families."""
        gateway, counts = self._gateway, totals(self._gateway)
        yield _gauge("netstack_build_info", "The version that runs.", 1, {"version": __version__})
        yield from self._links()
        for name, text, value in (
            ("segments_received", "TCP segments from guests.", counts.segments_received),
            ("segments_sent", "TCP segments to guests.", counts.segments_sent),
            ("segments_repeated", "TCP segments sent again.", counts.segments_repeated),
            ("datagrams_received", "UDP datagrams from guests.", counts.datagrams_received),
            ("datagrams_sent", "UDP datagrams to guests.", counts.datagrams_sent),
            ("connections_opened", "TCP handshakes completed.", counts.connections_opened),
            ("connections_failed", "TCP connections that ended before that.", counts.connections_failed),
            ("connections_reset", "TCP connections reset after it.", counts.connections_reset),
        ):
            yield CounterMetricFamily(f"netstack_{name}", text, value=value)
        flows = GaugeMetricFamily("netstack_flows", "Flows that are open.", labels=["protocol"])
        for protocol in ("tcp", "udp", "icmp"):
            flows.add_metric([protocol], counts.flows_open.get(protocol, 0))
        yield flows
        yield _by_reason("netstack_dropped", "Frames, packets and flows that went no further.", counts.dropped)
        yield _by_reason("netstack_refused", "Flows and questions the policy refused.", counts.refused)
        yield _gauge("netstack_policy_generation", "Counts policies.", gateway.driver.stack.judge.generation)
        yield _gauge("netstack_killed", "1 while the kill switch is on.", int(gateway.killed))
        leases = len(gateway.driver.stack.dhcp.leases(trio.current_time()))
        yield _gauge("netstack_leases", "DHCP leases in force, static ones and the gateway's too.", leases)
        yield _gauge("netstack_forwards", "Port forwards.", len(gateway.forwards.listing()))

    def _links(self) -> Iterator[Metric]:
        labels = ["link", "direction"]
        frames = CounterMetricFamily("netstack_link_frames", "Frames of links that are there now.", labels=labels)
        size = CounterMetricFamily("netstack_link_bytes", "Bytes of these.", labels=labels)
        dropped = CounterMetricFamily("netstack_link_dropped", "Frames that a link dropped.", labels=labels)
        for link in self._gateway.driver.links.values():
            counters = link.counters
            frames.add_metric([link.name, "from_guest"], counters.rx_frames)
            frames.add_metric([link.name, "to_guest"], counters.tx_frames)
            size.add_metric([link.name, "from_guest"], counters.rx_bytes)
            size.add_metric([link.name, "to_guest"], counters.tx_bytes)
            dropped.add_metric([link.name, "from_guest"], counters.rx_dropped)
            dropped.add_metric([link.name, "to_guest"], counters.tx_dropped)
        yield from (frames, size, dropped)


def _gauge(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels or {}))
    family.add_metric(list((labels or {}).values()), value)
    return family


def _by_reason(name: str, text: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["reason"])
    for reason, count in sorted(counts.items()):
        family.add_metric([reason], count)
    return family
