"""What is measured: each row takes one sample from a running session."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from bench.lab import (
    FORWARD,
    HOST_ADDRESS,
    SILENT_ADDRESS,
    BenchError,
    Child,
    Session,
    Wire,
    cpu_seconds,
    resident_megabytes,
)
from bench.peers import Peer

SETTLE_SECONDS: Final = 0.5
"""Between an action and reading the memory it took."""
CLOSED_SECONDS: Final = 5.0
"""After closing flows, until the memory that is left is read."""
OPEN_SECONDS: Final = 60.0
"""For flows to be opened one after the other."""
NEW_FLOWS: Final = 4000
"""UDP flows a sample may make: below every stack's bound, so that making flows is measured, not refusing them."""
HANGING: Final = 10
"""Dials that nobody answers, while a connection is made that somebody does answer."""
HANG_SECONDS: Final = 5.0
"""After which that connection is given up; a second is what TCP waits before it says its first SYN again."""
JUMBO: Final = 65520
"""The largest MTU the targets speak of."""
MANY_FLOWS: Final = (1, 8, 32)
ZONE_NAME: Final = "host.containers.internal"
"""A name gvproxy and netstack both answer from a zone of their own."""


class Needs(Enum):
    """What a peer must have for a row to mean anything."""

    NOTHING = "nothing"
    PROCESS = "a process of its own"
    ZONE_SERVER = "a resolver with names of its own"
    FORWARDING_SERVER = "a resolver that asks the host's"
    OFFLOAD = "frames beyond the MTU with partial checksums"
    FORWARD = "a port of the host that leads to one of the guest"


@dataclass(frozen=True)
class Sample:
    """One measurement. `details` by the keys of the row's details; `errors` counts operations that failed."""

    value: float
    errors: int = 0
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Detail:
    """Something measured along with a row's value; always better when lower."""

    title: str
    unit: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    title: str
    unit: str
    measure: Callable[[Session, Peer, float], Sample]
    """Takes the sample; the number is the seconds a load may last."""
    higher_is_better: bool = True
    details: dict[str, Detail] = field(default_factory=dict)
    needs: Needs = Needs.NOTHING
    fresh: bool = False
    """Every sample needs a stack that has just been started."""
    rounds: int | None = None
    """No more rounds than this: it takes long, and hardly varies."""
    mtu: int | None = None
    """Of the guest's network card; None for that of the run."""

    def wire(self, mtu: int) -> Wire:
        """The guest's network card in a run with this MTU."""
        return Wire(mtu=self.mtu or mtu, offload=self.needs is Needs.OFFLOAD, forwarded=self.needs is Needs.FORWARD)

    def applies_to(self, peer: Peer) -> bool:
        """Whether this row can be measured on that peer."""
        return {
            Needs.NOTHING: True,
            Needs.PROCESS: peer.has_process,
            Needs.ZONE_SERVER: peer.zone_server is not None,
            Needs.FORWARDING_SERVER: peer.forwarding_server is not None,
            Needs.OFFLOAD: peer.offload,
            Needs.FORWARD: peer.forwards,
        }[self.needs]


CPU: Final = "cpu_s_per_gb"
P50: Final = "p50_us"
P99: Final = "p99_us"
LONGEST: Final = "max_us"
_CPU: Final = {CPU: Detail("CPU of the stack", "s/GB")}
_LATENCY: Final = {P50: Detail("p50", "us"), P99: Detail("p99", "us")}
_WITH_LONGEST: Final = {**_LATENCY, LONGEST: Detail("longest", "us")}


def sending(flows: int) -> Callable[[Session, Peer, float], Sample]:
    """Guest to host over so many connections, until the time is over; what the server's application has got counts."""
    return _throughput(lambda session, seconds: session.load("tcp-send", seconds, flows, str(session.counter)))


def receiving(flows: int) -> Callable[[Session, Peer, float], Sample]:
    """Host to guest over so many connections, until the time is over."""
    return _throughput(lambda session, seconds: session.load("tcp-recv", seconds, flows))


def _flood_up(session: Session, seconds: float) -> dict[str, float]:
    return session.load("udp-flood-up", seconds, 1, str(session.counter))


def _flood_down(session: Session, seconds: float) -> dict[str, float]:
    return session.load("udp-flood-down", seconds)


def _throughput(load: Callable[[Session, float], dict[str, float]]) -> Callable[[Session, Peer, float], Sample]:
    def measure(session: Session, peer: Peer, seconds: float) -> Sample:
        pids = session.backend_pids()
        before = cpu_seconds(pids)
        result = load(session, seconds)
        details = {}
        if peer.has_process and result["bytes"]:
            details[CPU] = (cpu_seconds(pids) - before) / (result["moved"] / 1e9)
        if not result["bytes"]:
            raise BenchError("no byte arrived")
        return Sample(result["bytes"] * 8 / result["seconds"] / 1e9, int(result["errors"]), details)

    return measure


def rate(result: dict[str, float]) -> Sample:
    """What a load of operations has measured. Raises BenchError when not one of them succeeded."""
    if not result["operations"]:
        raise BenchError(f"not one operation succeeded, {result['errors']:.0f} failed")
    details = {key: result[key] for key in _WITH_LONGEST}
    return Sample(result["operations"] / result["seconds"], int(result["errors"]), details)


def _operations(command: str, *arguments: int) -> Callable[[Session, Peer, float], Sample]:
    def measure(session: Session, _peer: Peer, seconds: float) -> Sample:
        return rate(session.load(command, seconds, *arguments))

    return measure


def _forwarded(clients: int) -> Callable[[Session, Peer, float], Sample]:
    def measure(session: Session, _peer: Peer, seconds: float) -> Sample:
        session.serve_in_guest()
        return rate(session.load("crr", seconds, clients, address=FORWARD, from_host=True))

    return measure


def _dns_zone(in_flight: int) -> Callable[[Session, Peer, float], Sample]:
    def measure(session: Session, peer: Peer, seconds: float) -> Sample:
        return rate(session.load("dns", seconds, in_flight, ZONE_NAME, address=peer.zone_server or ""))

    return measure


def _dns_forwarded(in_flight: int) -> Callable[[Session, Peer, float], Sample]:
    def measure(session: Session, peer: Peer, seconds: float) -> Sample:
        return rate(session.load("dns", seconds, in_flight, "-", address=peer.forwarding_server or ""))

    return measure


def _hold(session: Session, command: str, flows: int) -> Child:
    client = session.spawn_guest(session.tools.path("load"), command, HOST_ADDRESS, str(flows))
    client.expect("open", OPEN_SECONDS)
    time.sleep(SETTLE_SECONDS)
    return client


def _memory(session: Session, _peer: Peer, _seconds: float) -> Sample:
    pids = session.backend_pids()
    time.sleep(SETTLE_SECONDS)
    at_rest = resident_megabytes(pids)
    clients = []
    held = {}
    for key, flows in (("flows_mb", 1000), ("flows_5000_mb", 4000)):
        clients.append(_hold(session, "idle", flows))
        held[key] = resident_megabytes(pids)
    for client in clients:
        client.tell("close")
        client.expect("closed")
    time.sleep(CLOSED_SECONDS)
    return Sample(at_rest, 0, held | {"closed_mb": resident_megabytes(pids)})


def _memory_udp(session: Session, _peer: Peer, _seconds: float) -> Sample:
    _hold(session, "idle-udp", 1000)
    return Sample(resident_megabytes(session.backend_pids()))


def _hang(session: Session, _peer: Peer, _seconds: float) -> Sample:
    result = session.load("hang", HANG_SECONDS, HANGING, SILENT_ADDRESS)
    return Sample(result["seconds"] * 1e3, int(result["errors"]))


def _start_up(session: Session, peer: Peer, _seconds: float) -> Sample:
    if session.ready_seconds is None or session.first_echo_seconds is None:
        raise BenchError(f"{peer.name} never said it was ready")
    return Sample(session.ready_seconds * 1e3, 0, {"echo_ms": session.first_echo_seconds * 1e3})


@dataclass(frozen=True)
class Bulk:
    """A row of TCP throughput, by what is varied."""

    up: bool
    flows: int
    mtu: int | None
    offload: bool = False

    @property
    def name(self) -> str:
        """Such as tcp-up, tcp-down-jumbo-8, tso-up."""
        words = ["tso" if self.offload else "tcp", "up" if self.up else "down"]
        words += ["jumbo"] if self.mtu else []
        return "-".join(words + ([str(self.flows)] if self.flows > 1 else []))

    @property
    def row(self) -> Row:
        """The row itself."""
        way = "guest -> host" if self.up else "host -> guest"
        wire = ", TSO frames" if self.offload else f", MTU {self.mtu}" if self.mtu else ""
        title = f"TCP {way}, {self.flows} flow{'s' if self.flows > 1 else ''}{wire}"
        needs = Needs.OFFLOAD if self.offload else Needs.NOTHING
        measure = sending(self.flows) if self.up else receiving(self.flows)
        return Row(name=self.name, title=title, unit="Gbit/s", details=_CPU, needs=needs, mtu=self.mtu, measure=measure)


BULK: Final = {
    bulk.name: bulk
    for bulk in (
        *(Bulk(up, flows, mtu) for mtu in (None, JUMBO) for flows in MANY_FLOWS for up in (True, False)),
        Bulk(up=True, flows=1, mtu=None, offload=True),
        Bulk(up=True, flows=8, mtu=None, offload=True),
    )
}
"""The rows of TCP throughput."""

ROWS: Final = {
    row.name: row
    for row in (
        *(bulk.row for bulk in BULK.values()),
        Row(name="tcp-rr", title="TCP request/response", unit="/s", details=_LATENCY, measure=_operations("rr")),
        Row(name="tcp-crr", title="TCP connect/request/response", unit="/s", details=_LATENCY,
            measure=_operations("crr", 1)),
        Row(name="tcp-crr-16", title="TCP connect/request/response, 16 clients", unit="/s", details=_WITH_LONGEST,
            measure=_operations("crr", 16)),
        Row(name="tcp-crr-64", title="TCP connect/request/response, 64 clients", unit="/s", details=_WITH_LONGEST,
            measure=_operations("crr", 64)),
        Row(name="forward-crr", title="TCP connect/request/response by a port forward", unit="/s", details=_LATENCY,
            needs=Needs.FORWARD, measure=_forwarded(1)),
        Row(name="forward-crr-16", title="TCP connect/request/response by a port forward, 16 clients", unit="/s",
            details=_WITH_LONGEST, needs=Needs.FORWARD, measure=_forwarded(16)),
        Row(name="udp-rr", title="UDP request/response", unit="/s", details=_LATENCY, measure=_operations("udp-rr")),
        Row(name="udp-new-flow", title="UDP, a new flow each", unit="/s", details=_LATENCY, fresh=True,
            measure=_operations("udp-new-flow", NEW_FLOWS)),
        Row(name="udp-flood-up", title="UDP flood guest -> host, 1,400 bytes, delivered", unit="Gbit/s", details=_CPU,
            measure=_throughput(_flood_up)),
        Row(name="udp-flood-down", title="UDP flood host -> guest, 1,400 bytes, delivered", unit="Gbit/s",
            details=_CPU, measure=_throughput(_flood_down)),
        Row(name="dns-zone", title="DNS, local zone", unit="/s", details=_LATENCY, needs=Needs.ZONE_SERVER,
            measure=_dns_zone(1)),
        Row(name="dns-zone-50", title="DNS, local zone, 50 in flight", unit="/s", needs=Needs.ZONE_SERVER,
            measure=_dns_zone(50)),
        Row(name="dns-forward", title="DNS, forwarded", unit="/s", details=_LATENCY, needs=Needs.FORWARDING_SERVER,
            measure=_dns_forwarded(1)),
        Row(name="dns-forward-50", title="DNS, forwarded, 50 in flight", unit="/s", needs=Needs.FORWARDING_SERVER,
            measure=_dns_forwarded(50)),
        Row(name="hang", title="a new connection while 10 dials hang", unit="ms", higher_is_better=False, fresh=True,
            rounds=1, measure=_hang),
        Row(name="memory", title="memory at rest (RSS)", unit="MB", higher_is_better=False, fresh=True, rounds=1,
            needs=Needs.PROCESS, measure=_memory,
            details={"flows_mb": Detail("with 1,000 TCP flows", "MB"),
                     "flows_5000_mb": Detail("with 5,000 TCP flows", "MB"),
                     "closed_mb": Detail("5 s after closing them", "MB")}),
        Row(name="memory-udp", title="memory with 1,000 UDP flows", unit="MB", higher_is_better=False, fresh=True,
            rounds=1, needs=Needs.PROCESS, measure=_memory_udp),
        Row(name="start", title="start to ready", unit="ms", higher_is_better=False, fresh=True,
            needs=Needs.PROCESS, measure=_start_up, details={"echo_ms": Detail("start to first echo", "ms")}),
    )
}  # fmt: skip
"""Every row by name, in the order they are measured and shown."""
