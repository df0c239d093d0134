"""Verdicts as comments in the capture: beside the frame that was judged, or the first one of its flow after that.

The engine says by events what it decided, in the same flush in which its frames go out; frames are written to the
capture after that. So a frame that settled a flow (a SYN that was refused, a hello, a DNS question) has the verdict
beside it, and where something else had to come first (a dial, a hook, another policy) the flow's next frame has,
whichever way it goes. As in the event log, a refusal that repeats itself is told the 1st, 10th, 100th, ... time.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Final, TypeVar

import dns.name
import dns.rdatatype

from guest_iface.pcapng import OUTBOUND
from netstack.engine.dns_port import PORT as DNS_PORT
from netstack.engine.events import INBOUND, DnsEvent, Event, FlowClosed, FlowOpened, FlowRefused
from netstack.engine.verdict import ACTION_WORDS, Verdict
from netstack.gateway.event_log import endpoint_words
from netstack.wire import dns as wire
from netstack.wire import ethernet, icmp, ipv4, tcp, udp

MAX_WAITING: Final = 256
"""Verdicts that wait for a frame; the oldest makes room."""
MAX_MESSAGES: Final = 32
"""DNS messages looked at in one segment."""

_Key = TypeVar("_Key", bound=Hashable)

_NUMBERS: Final = {"icmp": ipv4.ICMP, "tcp": ipv4.TCP, "udp": ipv4.UDP}
_PORTS: Final = (ipv4.TCP, ipv4.UDP)


class CaptureComments:
    """One capture's. `note` takes what the engine tells, `take` gives what stands beside a frame."""

    def __init__(self) -> None:
        self._flows: dict[bytes, str] = {}
        """By protocol, addresses and ports as they are in the guest's packets."""
        self._questions: dict[tuple[bytes, bytes], str] = {}
        """By the guest's address, and the question as it is in the message."""

    def note(self, event: Event) -> None:
        """Remember what is decided, until a frame comes that it belongs to."""
        if isinstance(event, FlowOpened | FlowRefused):
            _put(self._flows, _flow_key(event), _flow_line(event))
        elif isinstance(event, FlowClosed) and event.reason != "refused":  # the refusal is still to be told
            self._flows.pop(_flow_key(event), None)
        elif isinstance(event, DnsEvent) and event.qtype:
            name = dns.name.from_text(event.name or ".").to_wire() or b""
            question = name + int(dns.rdatatype.from_text(event.qtype)).to_bytes(2, "big")
            _put(self._questions, (event.guest, question), _question_line(event))

    def knows(self) -> bool:
        """Whether anything waits for a frame."""
        return bool(self._flows or self._questions)

    def take(self, frame: bytes, direction: int) -> str:
        """What is known of a frame and was not told of another before. `direction` as guest_iface.capture has it."""
        if not (self._flows or self._questions) or frame[12:14] != ethernet.IPV4:
            return ""
        packet = frame[ethernet.HEADER :]
        if len(packet) < ipv4.HEADER or int.from_bytes(packet[6:8], "big") & ipv4.OFFSET_MASK:
            return ""  # ports are in the first fragment
        said = [self._flows.pop(_packet_key(packet, to_guest=direction == OUTBOUND), "")]
        if self._questions:
            said += self._take_questions(packet, to_guest=direction == OUTBOUND)
        return "; ".join(filter(None, said))

    def _take_questions(self, packet: bytes, *, to_guest: bool) -> list[str]:
        start = (packet[0] & 15) * 4 + (0 if to_guest else 2)
        if packet[start : start + 2] != DNS_PORT.to_bytes(2, "big"):
            return []
        guest = packet[16:20] if to_guest else packet[12:16]
        messages = _dns_messages(packet)
        found = [
            place
            for place in self._questions
            if place[0] == guest and any(message.startswith(place[1], wire.HEADER) for message in messages)
        ]
        return [self._questions.pop(place) for place in found]


def _dns_messages(packet: bytes) -> list[bytes]:
    """The DNS messages in a packet: one in a datagram, any number in a segment that begins with one (RFC 7766)."""
    start = (packet[0] & 15) * 4
    if packet[9] == ipv4.UDP:
        return [packet[start + udp.HEADER :]]
    if packet[9] != ipv4.TCP or len(packet) < start + tcp.HEADER:
        return []
    at = start + (packet[start + 12] >> 4) * 4
    messages: list[bytes] = []
    while at < len(packet) and len(messages) < MAX_MESSAGES:
        end = at + 2 + int.from_bytes(packet[at : at + 2], "big")
        messages.append(packet[at + 2 : end])
        at = end
    return messages


def _put(notes: dict[_Key, str], key: _Key, line: str) -> None:
    notes.pop(key, None)
    if len(notes) >= MAX_WAITING:
        del notes[next(iter(notes))]
    notes[key] = line


def _flow_key(event: FlowOpened | FlowRefused | FlowClosed) -> bytes:
    number = _NUMBERS.get(event.protocol)
    (guest, port), (destination, destination_port) = event.guest, event.destination
    protocol = int(event.protocol) if number is None else number
    return b"%c%b%b%b%b" % (
        protocol, guest, destination, port.to_bytes(2, "big"), destination_port.to_bytes(2, "big"),
    )  # fmt: skip


def _packet_key(packet: bytes, *, to_guest: bool) -> bytes:
    """The key of a packet's flow; of an ICMP error for the guest the one of the packet it quotes."""
    start = (packet[0] & 15) * 4
    protocol, source, destination = packet[9], packet[12:16], packet[16:20]
    ports = (bytes(2), bytes(2))
    if protocol in _PORTS:
        ports = packet[start : start + 2], packet[start + 2 : start + 4]
    elif protocol == ipv4.ICMP:
        kind = packet[start : start + 1]
        quoted = packet[start + icmp.HEADER :]
        if to_guest and kind and kind[0] in (icmp.UNREACHABLE, icmp.TIME_EXCEEDED) and len(quoted) >= ipv4.HEADER:
            return _packet_key(quoted, to_guest=False)
        identifier = packet[start + 4 : start + 6]
        ports = (bytes(2), identifier) if to_guest else (identifier, bytes(2))
    if to_guest:
        source, destination, ports = destination, source, (ports[1], ports[0])
    return b"%c%b%b%b%b" % (protocol, source, destination, *ports)


def _flow_line(event: FlowOpened | FlowRefused) -> str:
    if isinstance(event, FlowRefused):
        end = f"told {event.told}"
    elif event.direction == INBOUND:
        end = f"opened by {endpoint_words(event.dialled)}"
    else:
        end = f"dialled {endpoint_words(event.dialled)}"
    verdict = event.verdict
    name = f", {verdict.name} by {verdict.source}" if verdict.name else ""
    return _one_line(f"netstack: flow {event.flow} {_verdict_words(verdict)}{name}; {end}")


def _question_line(event: DnsEvent) -> str:
    verdict = f" {_verdict_words(event.verdict)}" if event.verdict is not None else ""
    return _one_line(
        f"netstack: question {event.name} {event.qtype}{verdict}; {event.source} says {event.rcode}, "
        f"{event.answers} answers"
    )


def _verdict_words(verdict: Verdict) -> str:
    words = f"{ACTION_WORDS[verdict.action]} at {verdict.step}: {verdict.reason}"
    if verdict.rule:
        words += f" '{verdict.rule}'"
    return words


def _one_line(text: str) -> str:
    """Printable ASCII: some of the words are a guest's."""
    return json.dumps(text)[1:-1]
