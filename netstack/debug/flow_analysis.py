"""From packets to stories: for each conversation what happened when, where the time went, and what the cause was.

A pure function over packets: of a capture of ours, with verdicts beside the frames, or of anybody else's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from netstack.debug import story_steps
from netstack.debug.cause import Cause
from netstack.debug.exchange_causes import exchange_cause
from netstack.debug.seen_flows import SeenFlow, SeenFlows
from netstack.debug.seen_packets import Recorded, address_text, decode, endpoint_text
from netstack.debug.story_steps import Step
from netstack.debug.tcp_causes import tcp_cause
from netstack.debug.tcp_timeline import CLIENT, SERVER, SHARES, Half, median


@dataclass(frozen=True, slots=True)
class FlowReport:
    """One conversation's story. Times in seconds since 1970, `shares` sum to 1 or are empty."""

    number: int
    """By which the command line names it."""
    kind: str
    client: str
    server: str
    name: str
    """What it is for: the name that TLS, HTTP or QUIC said, or the one that DNS gave the address for. May be empty."""
    name_source: str
    """sni, host, quic, dns, or empty."""
    gateway_flow: int
    """The number the gateway gave it, where the capture has verdicts; else 0."""
    verdict: str
    begin: float
    end: float
    packets: tuple[int, int]
    """From the client, from the server."""
    payload_bytes: tuple[int, int]
    cause: Cause
    steps: tuple[Step, ...]
    shares: dict[str, float]
    figures: dict[str, float | int] = field(default_factory=dict)
    """What was measured: rtt_seconds, retransmissions, duplicate_acks, ... (docs/explain.md)."""

    @property
    def peer(self) -> str:
        """The server as people know it."""
        return f"{self.name} ({self.server})" if self.name and self.kind not in ("dns", "dhcp") else self.server

    @property
    def title(self) -> str:
        """`tcp 192.168.127.2:40001 > pypi.org (151.101.0.223:443)`."""
        if self.kind == "dns":
            return f"dns {self.client} asks {self.server} for {self.name or 'something unreadable'}"
        if self.kind == "dhcp":
            return f"dhcp {self.name}"
        return f"{self.kind} {self.client} > {self.peer}"


class Analysis:
    """A capture's stories, and the conversations they were made of, for diagrams and plots."""

    def __init__(self, seen: SeenFlows) -> None:
        self.flows = seen.finish()
        self.others = seen.others
        """Frames of no conversation, by what they are."""
        self.packets = seen.packets
        self.reports = [_report(each) for each in self.flows]


def select(reports: Sequence[FlowReport], wanted: str) -> list[int]:
    """The places in `reports` of the flows that `wanted` names: a number, an address, a port (`:443` where a flow has
    that number), both, or a name. Empty when there is none.
    """
    text = wanted.strip().lower().removeprefix("#")
    numbered = [place for place, report in enumerate(reports) if str(report.number) == text]
    return numbered or [place for place, report in enumerate(reports) if text.removeprefix(":") in _handles(report)]


def _handles(report: FlowReport) -> set[str]:
    """What a conversation is found by."""
    found = {report.name.lower(), report.kind}
    for end in (report.client, report.server):
        host, _, port = end.rpartition(":")
        found |= {end, host.strip("[]"), port} if host else {end}
    found.discard("")
    return found


def analyse(frames: Iterable[Recorded]) -> Analysis:
    """Read frames, sort them and tell their stories. Raises what `frames` does."""
    seen = SeenFlows()
    for frame in frames:
        seen.add(decode(frame))
    return Analysis(seen)


def _report(flow: SeenFlow) -> FlowReport:
    cause = tcp_cause(flow) if flow.kind == "tcp" else exchange_cause(flow)
    name, source = story_steps.name_of(flow)
    shares: dict[str, float] = {}
    if flow.timeline is not None:
        total = sum(flow.timeline.shares.values())
        shares = {word: flow.timeline.shares[word] / total for word in SHARES if total and flow.timeline.shares[word]}
    ends = (endpoint_text(flow.client), endpoint_text(flow.server))
    if flow.kind == "icmp":
        ends = (address_text(flow.client[0]), address_text(flow.server[0]))
    last = flow.verdicts[-1][1] if flow.verdicts else None
    return FlowReport(
        number=flow.number,
        kind=flow.kind,
        client=ends[0],
        server=ends[1],
        name=name,
        name_source=source,
        gateway_flow=last.flow if last is not None else 0,
        verdict=last.words if last is not None else _question_verdict(flow),
        begin=flow.begin,
        end=flow.end,
        packets=(flow.counts[CLIENT], flow.counts[SERVER]),
        payload_bytes=_payload(flow),
        cause=cause,
        steps=tuple(story_steps.steps(flow)),
        shares=shares,
        figures=_figures(flow),
    )


def _payload(flow: SeenFlow) -> tuple[int, int]:
    """Bytes each way, of TCP each once."""
    if flow.timeline is not None:
        return flow.timeline.client.data_bytes, flow.timeline.server.data_bytes
    return flow.payload_bytes[CLIENT], flow.payload_bytes[SERVER]


def _question_verdict(flow: SeenFlow) -> str:
    if not flow.questions:
        return ""
    said = flow.questions[-1][1]
    if not said.action:
        return f"answered by {said.who}"
    rule = f" '{said.rule}'" if said.rule else ""
    return f"{said.action} at {said.step}: {said.reason}{rule}"


_COUNTED: Final = ("retransmissions", "duplicate_acks", "reordered", "sacks", "probes", "keepalives")


def _figures(flow: SeenFlow) -> dict[str, float | int]:
    """What was measured of a TCP conversation; what is 0 is left out."""
    timeline = flow.timeline
    if timeline is None:
        return {}
    found: dict[str, float | int] = {}
    if timeline.syn_at and timeline.syn_ack_at:
        found["connect_seconds"] = timeline.syn_ack_at - timeline.syn_at
    if timeline.syn_ack_at and timeline.established_at:
        found["client_rtt_seconds"] = timeline.established_at - timeline.syn_ack_at
    for word, half in (("client", timeline.client), ("server", timeline.server)):
        found |= _half_figures(word, half)
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in found.items() if value}


def _half_figures(word: str, half: Half) -> dict[str, float | int]:
    shut = sum(end - begin for begin, end in half.zero_windows)
    span = half.last_data - half.first_data
    found: dict[str, float | int] = {f"{word}_{each}": getattr(half, each) for each in _COUNTED}
    found[f"{word}_ack_seconds"] = median(half.rtts)
    found[f"{word}_window_shut_seconds"] = shut
    found[f"{word}_bytes_per_second"] = half.data_bytes / span if span > 0 else 0.0
    return found
