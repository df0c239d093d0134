"""One line a packet, as it comes: tcpdump's manner, with verdicts, names, and what a packet refers to.

Whatever the number of packets, what is kept is bounded: flows that began long ago are forgotten, and a packet of one
begins a new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from guest_iface.frame_filter import FilterError, FlowEnds, LibpcapOnlyError, parse_filter
from guest_iface.frame_matching import frame_matcher
from netstack.debug import verdict_comments
from netstack.debug.explain_text import printable
from netstack.debug.seen_flows import SeenFlow, SeenFlows
from netstack.debug.seen_packets import FROM_GUEST, TO_GUEST, Packet, Recorded, decode, endpoint_text
from netstack.debug.story_steps import name_of
from netstack.debug.trace_words import Words, words
from netstack.debug.verdict_comments import FlowVerdict

_DIRECTIONS = {FROM_GUEST: "from-guest", TO_GUEST: "to-guest"}


class TraceError(Exception):
    """A filter that makes no sense; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """What is shown, and how."""

    filter: str = ""
    """tcpdump's words, as guest_iface.frame_filter has them."""
    name: str = ""
    """Only flows for this name, from SNI, Host, DNS; `*.` before it: every name below."""
    flow: int = 0
    """Only this flow, by its number in the trace."""
    verdict: str = ""
    """Only flows judged so: allowed, refused; or any, for all that carry a verdict."""
    absolute: bool = False
    """Times of the clock (UTC) in place of seconds since the first packet."""
    as_json: bool = False


class Trace:
    """Packets in, lines out."""

    def __init__(self, options: TraceOptions) -> None:
        """Raises TraceError for a filter that cannot be read."""
        self._options = options
        self._flows = SeenFlows(live=True)
        self._begin: float | None = None
        self._matches: Callable[[bytes], bool] | None = None
        if options.filter:
            try:
                self._matches = frame_matcher(parse_filter(options.filter), self)
            except LibpcapOnlyError as error:
                # What only libpcap can choose, it can choose before.
                there = "libpcap itself chooses by: tcpdump -r FILE -w - EXPRESSION | netstack trace -"
                raise TraceError(f"{error}; {there}") from error
            except FilterError as error:
                raise TraceError(str(error)) from error
        self._name = options.name.lower().removesuffix(".")

    # What a filter may ask (guest_iface.frame_filter.Known).

    def flow(self, _number: int) -> FlowEnds | None:
        """A filter cannot name a flow before there is one: that is what `--flow` is for."""
        return None

    def addresses(self, name: str) -> set[bytes]:
        """The addresses that answers gave for a name so far."""
        return self._flows.addresses(name)

    def line(self, frame: Recorded) -> str | None:
        """The line of the next frame; None for one that is not to be shown. Raises nothing."""
        packet = decode(frame)
        if self._begin is None:
            self._begin = packet.time
        flow = self._flows.add(packet)
        if not self._shows(frame, packet, flow):
            return None
        said = words(packet, flow)
        return self._as_json(packet, flow, said) if self._options.as_json else self._as_text(packet, flow, said)

    def _shows(self, frame: Recorded, packet: Packet, flow: SeenFlow | None) -> bool:
        options = self._options
        if options.flow and (flow is None or flow.number != options.flow):
            return False
        if options.verdict and not _judged(flow, packet, options.verdict):
            return False
        if self._name:
            name = name_of(flow)[0].lower() if flow is not None else ""
            below = self._name.startswith("*.") and name.endswith(self._name[1:])
            if name != self._name and not below:
                return False
        if self._matches is None:
            return True
        # Filters read Ethernet frames; a bare IP packet is given a header of zeros.
        data = frame.data
        if not frame.ethernet:
            data = bytes(12) + (b"\x86\xdd" if data[:1] and data[0] >> 4 == 6 else b"\x08\x00") + data
        return self._matches(data)

    def _as_text(self, packet: Packet, flow: SeenFlow | None, said: Words) -> str:
        if self._options.absolute:
            when = datetime.fromtimestamp(packet.time, UTC).strftime("%H:%M:%S.%f")
        else:
            when = f"{packet.time - (self._begin or 0.0):.6f}"
        number = f"#{packet.number}"
        flow_number = f"f{flow.number}" if flow is not None else "-"
        ends = ""
        if packet.kind != "arp" and packet.source[0]:
            ends = f"{_shown_end(packet, packet.source)} > {_shown_end(packet, packet.destination)} "
        line = f"{when:>15} {number:>6} {flow_number:>5} {packet.kind:<4} {ends}{said.text}"
        if said.references:
            line += f" ({'; '.join(said.references)})"
        for verdict in _verdicts(packet):
            line += f"  <{verdict}>"
        return printable(line)

    def _as_json(self, packet: Packet, flow: SeenFlow | None, said: Words) -> str:
        name, source = name_of(flow) if flow is not None else ("", "")
        values: dict[str, object] = {
            "number": packet.number,
            "time": packet.time,
            "direction": _DIRECTIONS.get(packet.direction, ""),
            "kind": packet.kind,
            "source": endpoint_text(packet.source) if packet.source[0] else "",
            "destination": endpoint_text(packet.destination) if packet.destination[0] else "",
            "size": packet.size,
            "flow": flow.number if flow is not None else 0,
            "name": name,
            "name_source": source,
            "text": said.text,
            "references": list(said.references),
            "verdicts": [each._asdict() for each in verdict_comments.parse(packet.comment)],
        }
        return json.dumps({key: value for key, value in values.items() if value or key == "number"})


def _shown_end(packet: Packet, end: tuple[bytes, int]) -> str:
    return endpoint_text((end[0], 0)) if packet.kind == "icmp" else endpoint_text(end)


def _verdicts(packet: Packet) -> Iterator[str]:
    for said in verdict_comments.parse(packet.comment):
        if isinstance(said, FlowVerdict):
            name = f", {said.name}" if said.name else ""
            end = f"dialled {said.dialled}" if said.dialled else f"told {said.told}"
            yield f"{said.words}{name}; {end}"
        elif said.action:
            rule = f" '{said.rule}'" if said.rule else ""
            yield f"{said.action} at {said.step}: {said.reason}{rule}; by {said.who}"
        else:
            yield f"answered by {said.who}"


def _judged(flow: SeenFlow | None, packet: Packet, wanted: str) -> bool:
    """Whether a packet, or its flow so far, was judged as wanted."""
    actions = [said.action for said in verdict_comments.parse(packet.comment)]
    if flow is not None:
        actions += [said.action for _, said in flow.verdicts] + [said.action for _, said in flow.questions]
    return bool(actions) if wanted == "any" else wanted in actions


def lines(frames: Iterable[Recorded], options: TraceOptions) -> Iterator[str]:
    """The lines of frames. Raises TraceError for a filter, and what `frames` raises."""
    trace = Trace(options)
    for frame in frames:
        line = trace.line(frame)
        if line is not None:
            yield line
