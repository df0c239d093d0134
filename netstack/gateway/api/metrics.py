"""`/metrics` for Prometheus. Nothing is kept for it: the numbers are read when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import trio
from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from netstack import __version__
from netstack.gateway.api.v1 import totals

if TYPE_CHECKING:
    from guest_iface.link import Link, LinkCounters
    from netstack.api_models import LinkCounts
    from netstack.gateway.run_command import Gateway

MAX_LINKS: Final = 64
"""Links with series of their own."""
OTHERS: Final = "others"
"""The name of those beyond."""


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
        yield from _all_links(counts.links)
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
        """Of the links that are there now; of those beyond MAX_LINKS only what they have carried, together."""
        by_name: dict[str, list[Link]] = {}
        for link in self._gateway.driver.links.values():
            has_own = link.name in by_name or len(by_name) < MAX_LINKS
            by_name.setdefault(link.name if has_own else OTHERS, []).append(link)
        verified = self._gateway.driver.stack.settings.link.verify_checksums
        what = InfoMetricFamily("netstack_link", "What a link can do, 0 and false where it cannot.", labels=["link"])
        queue = GaugeMetricFamily("netstack_link_queue_frames", "Frames a link can have waiting.", labels=["link"])
        backlog = GaugeMetricFamily("netstack_link_backlog_frames", "Frames it has waiting now.", labels=["link"])
        guests = CounterMetricFamily("netstack_link_guests", "Guests that have come to a link.", labels=["link"])
        for name, (link, *_) in by_name.items():
            if name == OTHERS:
                continue
            can = link.capabilities
            words = {
                "mtu": str(can.mtu),
                "largest_frame": str(can.largest_frame),
                "segment_offload": str(can.segment_offload),
                "batch_calls": str(can.batch_calls).lower(),
                "verified_checksums": str(verified).lower(),
            }
            what.add_metric([name], words)
            queue.add_metric([name], can.queue_frames)
            backlog.add_metric([name], link.backlog)
            guests.add_metric([name], link.counters.guests)
        yield from (what, queue, backlog, guests)
        yield from _carried({name: [link.counters for link in links] for name, links in by_name.items()})


def _carried(links: dict[str, list[LinkCounters]]) -> Iterator[Metric]:
    """By name: the counters that belong to it."""
    labels = ["link", "direction"]
    frames = CounterMetricFamily("netstack_link_frames", "Frames of links that are there now.", labels=labels)
    size = CounterMetricFamily("netstack_link_bytes", "Bytes of these.", labels=labels)
    dropped = CounterMetricFamily("netstack_link_dropped", "Frames that a link dropped.", labels=labels)
    why = CounterMetricFamily("netstack_link_drop_reasons", "The same by reason.", labels=["link", "reason"])
    for name, counters in links.items():
        for direction, received in (("from_guest", True), ("to_guest", False)):
            place = [name, direction]
            frames.add_metric(place, sum(each.rx_frames if received else each.tx_frames for each in counters))
            size.add_metric(place, sum(each.rx_bytes if received else each.tx_bytes for each in counters))
            dropped.add_metric(place, sum(each.rx_dropped if received else each.tx_dropped for each in counters))
        reasons: Counter[str] = Counter()
        for each in counters:
            reasons.update(each.drops)
        for reason, count in sorted(reasons.items()):
            why.add_metric([name, reason], count)
    yield from (frames, size, dropped, why)


def _all_links(carried: LinkCounts) -> Iterator[Metric]:
    """Since the start, links that are gone among them: these never fall."""
    for name, text, from_guest, to_guest in (
        ("frames", "Frames of all links that there ever were.", carried.rx_frames, carried.tx_frames),
        ("frame_bytes", "Bytes of these.", carried.rx_bytes, carried.tx_bytes),
        ("frames_dropped", "Frames that links dropped.", carried.rx_dropped, carried.tx_dropped),
    ):
        family = CounterMetricFamily(f"netstack_{name}", text, labels=["direction"])
        family.add_metric(["from_guest"], from_guest)
        family.add_metric(["to_guest"], to_guest)
        yield family


def _gauge(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels or {}))
    family.add_metric(list((labels or {}).values()), value)
    return family


def _by_reason(name: str, text: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["reason"])
    for reason, count in sorted(counts.items()):
        family.add_metric([reason], count)
    return family
