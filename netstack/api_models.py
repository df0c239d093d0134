"""What `/v1/` of the HTTP API says and takes: one model for the gateway that answers and the client that asks.

Addresses are text, endpoints `address:port` ([address]:port for IPv6), times seconds, sizes bytes. Names are what a
guest sent: JSON escapes them. Importing this imports pydantic, so whoever needs it imports it late.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Verdict(_Model):
    """What was decided of a flow or a question, and what it rests on."""

    verdict: str
    """allowed, refused or peek (the first bytes will say)."""
    step: str
    """Where it fell: syn, datagram, tls, http, quic, echo, dns, dial, hook, replaced, forward."""
    reason: str
    rule: str = ""
    name: str = ""
    name_source: str = ""


class Losses(_Model):
    """Segments lost on the way to the guest, and how that was repaired."""

    timeouts: int
    recoveries: int
    repeats: int
    duplicates: int
    """Segments the guest said it got twice."""


class Connection(_Model):
    """The guest's TCP connection with the gateway, as the gateway sees it."""

    state: str
    round_trip: float
    """Smoothed, seconds; 0 while nothing was measured."""
    timeout: float
    segment: int
    congestion_window: int
    recovering: bool
    guest_window: int
    own_window: int
    in_flight: int
    queued: int
    unread: int
    losses: Losses


class Flow(_Model):
    """A flow: one that is open, or one that has ended or was refused lately."""

    id: int
    protocol: str
    direction: str
    """out: the guest began it; in: it came by a port forward."""
    state: str
    """peeking, consulting, connecting, spliced, draining; answered, unanswered; closed, refused."""
    guest: str
    destination: str
    """Where the guest wants to go, before NAT; of an inbound flow whom the guest takes the client for."""
    dialled: str = ""
    """What was dialled for it; of an inbound flow the client."""
    verdict: Verdict
    sent: int = 0
    """Bytes from the guest."""
    received: int = 0
    """Bytes to the guest."""
    seconds: float = 0.0
    """How long it has lived."""
    note: str = ""
    told: str = ""
    """Of a refused one: what the guest was told (reset, alert, forbidden, unreachable, nothing)."""
    total: int = 0
    """Of a refused one: how many refusals like this there were by then."""
    ended: str = ""
    """How it ended: finished, reset by guest, idle, ..."""
    ended_at: str = ""
    connection: Connection | None = None


class Flows(_Model):
    """Open flows first, then those that are over, the latest first."""

    flows: list[Flow]
    open: int
    """How many are open, shown or not."""


class Question(_Model):
    """A DNS question that was answered."""

    time: str
    guest: str
    name: str
    qtype: str
    transport: str
    source: str
    """Who answered: zone, cache, upstream, policy, refused."""
    rcode: str
    answers: int
    seconds: float
    verdict: Verdict | None = None


class PolicySpec(_Model):
    """NetworkSpec: what guests may reach."""

    network: Literal["enabled", "disabled"] = "enabled"
    allow_net: list[str] = []
    """Rules; none is full access (unless deny_all)."""
    deny_all: bool = False
    sinkhole: Literal["null", "nxdomain", "refused"] = "null"
    answers: Literal["real", "synthetic"] = "real"
    pass_service_bindings: bool = False
    strict_ech: bool = False


class Policy(_Model):
    """The policy, and whether it is what is enforced."""

    generation: int
    """Counts policies; events carry it."""
    access: str
    """full, listed, nothing, disabled: what is enforced now."""
    killed: bool
    """The kill switch is on: nothing is allowed, and `spec` is in force again when it is lifted."""
    spec: PolicySpec
    warnings: list[str] = []


class Lease(_Model):
    """A DHCP lease in force, or one kept for a MAC."""

    address: str
    mac: str
    static: bool


class Neighbour(_Model):
    """An address of the subnet and the MAC it was seen at."""

    address: str
    mac: str
    port: int | None = None
    """The switch's port that the MAC is on."""
    link: str = ""


class LinkCounts(_Model):
    """Frames since the link was made. rx: from the guest; tx: to the guest."""

    rx_frames: int
    rx_bytes: int
    rx_dropped: int
    tx_frames: int
    tx_bytes: int
    tx_dropped: int
    drops: dict[str, int] = {}
    """Why frames were dropped."""


class Link(_Model):
    """A guest's attachment."""

    port: int
    name: str
    mtu: int
    """DHCP tells guests of it."""
    largest_frame: int
    """What a guest may send, bytes: more than the MTU where it may leave segmentation to us."""
    queue_frames: int
    segment_offload: int
    """Bytes of text that a TCP frame to the guest may hold, with a partial checksum; 0: it gets ordinary frames."""
    segment: int
    """The largest TCP segment that guests are offered, bytes (MSS)."""
    window: int
    """The largest TCP window, bytes. It follows from the smallest queue of all links, unless `--tcp-window` says it."""
    verified_checksums: bool
    """Whether the guests' checksums are looked at."""
    batch_calls: bool
    """Whether many frames go with one system call, under load."""
    guests: int
    """How many have come to it so far."""
    backlog: int
    macs: list[str]
    counters: LinkCounts


class BusyPoll(_Model):
    """What waiting awake for the next frame comes to."""

    limit_us: float
    """Microseconds at most; 0 is off."""
    patience_us: float
    """Microseconds at present: 0 while what comes next does not come soon."""
    batches: int
    """Batches of frames or host data that nobody had to be woken for."""


class Counters(_Model):
    """Totals since the start."""

    links: LinkCounts
    packets_received: int
    packets_sent: int
    segments_received: int
    segments_sent: int
    segments_repeated: int
    datagrams_received: int
    datagrams_sent: int
    connections_opened: int
    connections_failed: int
    connections_reset: int
    connections_established: int
    flows_open: dict[str, int]
    """By protocol."""
    dropped: dict[str, int]
    """Frames, packets and flows that went no further, by reason."""
    refused: dict[str, int]
    """What the policy refused, by reason."""
    busy_poll: BusyPoll


class ForwardSpec(_Model):
    """A port forward from the host to a guest."""

    local: str
    """`host:port` (an empty host: every interface; port 0: any), or a path for unix."""
    remote: str
    """`ip:port` of a guest; for unix `tcp://ip:port` or `ssh-tunnel://user@ip/socket?key=PATH`."""
    protocol: Literal["tcp", "udp", "unix"] = "tcp"


class ZoneRecord(_Model):
    """An A record: of a name left of the zone's (`@` is the zone's own), or of all that an expression matches."""

    name: str = ""
    regexp: str | None = None
    ip: str


class ZoneSpec(_Model):
    """What a zone holds."""

    records: Annotated[list[ZoneRecord], Field(max_length=4096)] = []
    default_ip: str = ""


class Zone(ZoneSpec):
    """A zone that the gateway answers for itself."""

    name: str


class Info(_Model):
    """What is running."""

    version: str
    gateway: str
    subnet: str
    guest: str
    """The address that the default guest gets."""
    host: str
    mtu: int
    api: list[str]
