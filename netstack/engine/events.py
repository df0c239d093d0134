"""What happened, as records for people and programs: a lease, a DNS question, a flow's start and end, a drop.

The engine makes them, the gateway writes them out (JSON lines). Strings that a guest chose are carried as they came and
escaped by the writer.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from netstack.engine.verdict import Verdict

OUTBOUND: Final = "out"
"""The guest opened the flow: to somewhere, or to a service of the gateway's."""
INBOUND: Final = "in"
"""Somebody outside opened it, through a port forward. `destination` is then who the guest takes them for, `dialled` who
they are."""


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

    `source` says who answered: zone, cache, upstream, refused (could not be asked), or policy. That is the policy
    itself, without a look into the cache or upstream: of a name that is not allowed, and as well of one that is, where
    the type is not for the guest (`service-binding-withheld`, `any-not-forwarded`, `synthetic-is-ipv4`; the verdict
    allows the name then). `verdict` says why. `rcode` in words (NOERROR, NXDOMAIN, ...).
    """

    guest: bytes
    name: str
    qtype: str
    transport: str
    source: str
    rcode: str
    answers: int
    seconds: float
    verdict: Verdict | None = None


class FlowOpened(NamedTuple):
    """A flow that reached its destination, and why it might. `protocol`: tcp, udp, icmp. `direction`: out or in.

    `dialled` is the address after NAT, or the one the name of the verdict stands for. `note`, where there is one:
    address-not-answered, the name is allowed and was dialled, and the guest's address is none our DNS gave it for it.
    """

    flow: int
    protocol: str
    guest: tuple[bytes, int]
    destination: tuple[bytes, int]
    dialled: tuple[bytes, int]
    verdict: Verdict
    note: str = ""
    direction: str = OUTBOUND


class FlowClosed(NamedTuple):
    """A flow's end, also of one that never opened.

    Bytes are payload: `sent` what was handed to the host's socket (of UDP and ICMP: sent), and nothing that was held
    back; `received` what came from it.
    """

    flow: int
    protocol: str
    guest: tuple[bytes, int]
    destination: tuple[bytes, int]
    dialled: tuple[bytes, int]
    reason: str
    sent: int
    received: int
    seconds: float
    verdict: Verdict
    direction: str = OUTBOUND


class FlowRefused(NamedTuple):
    """A flow that the policy did not allow.

    `told` is what the guest was told: reset, alert (TLS), forbidden (HTTP 403), unreachable (ICMP), nothing.
    `total`: how many refusals like this there were; told for the 1st, 10th, 100th, ... `generation` counts policies.
    """

    flow: int
    protocol: str
    guest: tuple[bytes, int]
    destination: tuple[bytes, int]
    verdict: Verdict
    told: str
    total: int
    generation: int


class PolicyReplaced(NamedTuple):
    """Another policy is in force. `why`: reload, api, kill-switch. `access`: full, listed, nothing or disabled."""

    generation: int
    why: str
    access: str
    rules: int


class FrameDropped(NamedTuple):
    """Frames were dropped for `reason`; made for the 1st, 10th, 100th, ... drop of a reason. `total` so far."""

    reason: str
    total: int


Event = LeaseEvent | DnsEvent | FlowOpened | FlowClosed | FlowRefused | PolicyReplaced | FrameDropped
