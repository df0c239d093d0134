"""What happened, as records for people and programs: a lease, a DNS question, a flow's start and end, a drop.

The engine makes them, the gateway writes them out (JSON lines). Strings that a guest chose are carried as they came and
escaped by the writer.
"""

from __future__ import annotations

from typing import NamedTuple


class LeaseEvent(NamedTuple):
    """A DHCP exchange that changed or refused something.

    `action`: offered, acknowledged, refused, released, declined.
    """

    action: str
    mac: bytes
    address: bytes
    hostname: str


class DnsEvent(NamedTuple):
    """One answered DNS question.

    `source`: zone, cache, upstream, refused. `rcode` in words (NOERROR, NXDOMAIN, ...).
    """

    guest: bytes
    name: str
    qtype: str
    transport: str
    source: str
    rcode: str
    answers: int
    seconds: float


class FlowOpened(NamedTuple):
    """A flow that reached its destination. `dialled` is the address after NAT; `protocol`: tcp, udp, icmp."""

    flow: int
    protocol: str
    guest: tuple[bytes, int]
    destination: tuple[bytes, int]
    dialled: tuple[bytes, int]


class FlowClosed(NamedTuple):
    """A flow's end, also of one that never opened. Bytes are payload; `sent` is guest -> host."""

    flow: int
    protocol: str
    guest: tuple[bytes, int]
    destination: tuple[bytes, int]
    dialled: tuple[bytes, int]
    reason: str
    sent: int
    received: int
    seconds: float


class FrameDropped(NamedTuple):
    """Frames were dropped for `reason`; made for the 1st, 10th, 100th, ... drop of a reason. `total` so far."""

    reason: str
    total: int


Event = LeaseEvent | DnsEvent | FlowOpened | FlowClosed | FrameDropped
