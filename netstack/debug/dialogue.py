"""A replay in lines: each packet in a line, in tcpdump's manner but compact, and what was decided beside it.

The same lines are the trace format (docs/replay.md): nothing in them depends on when, where or how often the replay is
run. Sequence numbers count from the connection's first; what guests chose (names, host names) is escaped to printable
ASCII.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

import dns.exception
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype

from netstack.debug import packets
from netstack.debug.comparison import Difference
from netstack.debug.replay import Replay
from netstack.debug.replay_records import GUEST, Record
from netstack.engine.events import (
    DnsEvent,
    Event,
    FlowClosed,
    FlowOpened,
    FlowRefused,
    FrameDropped,
    LeaseEvent,
    PolicyReplaced,
)
from netstack.engine.settings import NetworkSettings
from netstack.engine.verdict import ACTION_WORDS, Verdict
from netstack.wire import arp, dhcp, ethernet, icmp, ipv4, tcp

TRACE_FORMAT: Final = 1
"""Counts changes of the lines that make older traces differ."""
FROM_GUEST, TO_GUEST, EVENT, DIFFERENCE, NOT_PLAYED = ">", "<", "=", "!", "-"
"""The marks between time and text."""
MAX_BASES: Final = 65_536
MAX_RECORDS: Final = 8
"""Answers of a DNS message that are shown."""

_DHCP_WORDS: Final = {
    dhcp.DISCOVER: "DISCOVER", dhcp.OFFER: "OFFER", dhcp.REQUEST: "REQUEST", dhcp.DECLINE: "DECLINE", dhcp.ACK: "ACK",
    dhcp.NAK: "NAK", dhcp.RELEASE: "RELEASE", dhcp.INFORM: "INFORM",
}  # fmt: skip
_UNREACHABLE_WORDS: Final = {
    icmp.NET_UNREACHABLE: "net unreachable",
    icmp.HOST_UNREACHABLE: "host unreachable",
    icmp.PROTOCOL_UNREACHABLE: "protocol unreachable",
    icmp.PORT_UNREACHABLE: "port unreachable",
    icmp.FRAGMENTATION_NEEDED: "fragmentation needed",
    icmp.ADMINISTRATIVELY_PROHIBITED: "prohibited",
}


class Dialogue:
    """Makes lines of records. Keeps where the numbers of each connection begin."""

    def __init__(self) -> None:
        self._bases: OrderedDict[bytes, int] = OrderedDict()

    def lines(self, record: Record) -> Iterator[str]:
        """The lines of one record: the guest's frame, what was decided, what we sent, what differs from the record."""
        if record.direction == GUEST:
            yield self._line(record.time, NOT_PLAYED if record.skipped else FROM_GUEST, record.frame, record.skipped)
        for event in record.events:
            yield f"{record.time:.6f} {EVENT} {event_words(event)}"
        for frame in record.answers:
            yield self._line(record.time, TO_GUEST, frame)
        for difference in record.differences:
            yield self.difference(difference)

    def _line(self, time: float, mark: str, frame: bytes, note: str = "") -> str:
        return f"{time:.6f} {mark} {self.packet(frame)}{f' ({note})' if note else ''}"

    def difference(self, difference: Difference) -> str:
        """One difference. Where there is a frame on one side only, the frame."""
        where = f"frame {difference.number}: " if difference.number else ""
        frame = difference.recorded or difference.ours
        shown = f": {self.packet(frame)}" if frame else ""
        return f"{difference.time:.6f} {DIFFERENCE} {where}{difference.what}{shown}"

    def packet(self, frame: bytes) -> str:
        """What is in a frame."""
        packet = packets.read(frame)
        if packet.fault:
            return f"{packet.kind} {len(frame)} bytes, {packet.fault}"
        if packet.kind == "tcp":
            return self._segment(packet)
        if packet.kind == "udp":
            return _datagram(packet)
        if packet.kind == "icmp":
            return _icmp(packet)
        if packet.kind == "arp":
            return _arp(packet)
        if packet.header is not None:
            header = packet.header
            ends = f"{ipv4.format_address(packet.source)} > {ipv4.format_address(packet.destination)}"
            what = f"protocol {header.protocol}, {len(packet.body)} bytes"
            if packet.kind == "fragment":
                more = ", more follow" if header.more_fragments else ""
                what += f" at {header.fragment_offset} of datagram {header.identification}{more}"
            return f"{packet.kind} {ends} {what}"
        kind = "ipv6" if packet.kind == "ipv6" else f"type 0x{frame[12:14].hex()}"
        macs = f"{ethernet.format_mac(frame[6:12])} > {ethernet.format_mac(frame[:6])}"
        return f"ethernet {macs} {kind}, {len(frame)} bytes"

    def _base(self, key: bytes, sequence: int, *, begins: bool) -> int:
        if begins or key not in self._bases:
            self._bases.pop(key, None)
            self._bases[key] = sequence
            if len(self._bases) > MAX_BASES:
                self._bases.popitem(last=False)
        return self._bases[key]

    def _segment(self, packet: packets.Packet) -> str:
        words = [f"tcp {packets.endpoints(packet.key)} {packets.flag_letters(packet.flags) or 'none'}"]
        begins = bool(packet.flags & tcp.SYN)
        size = len(packet.body)
        if packet.flags & tcp.RST and packet.key not in self._bases:
            sequence = 0
        else:
            sequence = (packet.sequence - self._base(packet.key, packet.sequence, begins=begins)) & 0xFFFFFFFF
        if size or packet.flags & (tcp.SYN | tcp.FIN | tcp.RST):
            words.append(f"seq {sequence}" + (f":{sequence + size} ({size})" if size else ""))
        if packet.flags & tcp.ACK:
            acknowledgement = packet.acknowledgement
            other = self._bases.get(packet.reversed_key)
            words.append(f"ack {acknowledgement if other is None else (acknowledgement - other) & 0xFFFFFFFF}")
        if not packet.flags & tcp.RST:
            words.append(f"win {packet.window}")
        options = _tcp_options(packet, self._bases.get(packet.reversed_key, 0))
        if options:
            words.append(f"<{options}>")
        return " ".join(words)


def _tcp_options(packet: packets.Packet, acknowledged_base: int) -> str:
    options = tcp.parse_options(packet.options)
    words = []
    if packet.flags & tcp.SYN:
        words += [f"mss {options.mss}"] if options.mss is not None else []
        words += ["sack"] if options.sack_permitted else []
        words += ["ts"] if options.timestamps is not None else []
        words += [f"scale {options.window_scale}"] if options.window_scale is not None else []
    for left, right in options.sack:
        start, end = (left - acknowledged_base) & 0xFFFFFFFF, (right - acknowledged_base) & 0xFFFFFFFF
        words.append(f"has {start}:{end}")
    return ", ".join(words)


def _datagram(packet: packets.Packet) -> str:
    ends = packets.endpoints(packet.key)
    message = packets.dhcp_message(packet)
    if message is not None:
        kind = (message.options.get(dhcp.MESSAGE_TYPE) or b"\0")[0]
        mac = ethernet.format_mac(message.chaddr[:6].ljust(6, b"\0"))
        address = message.yiaddr if any(message.yiaddr) else message.options.get(dhcp.REQUESTED_ADDRESS, bytes(4))
        offered = f" {ipv4.format_address(address)}" if len(address) == 4 and any(address) else ""
        return f"dhcp {ends} {_DHCP_WORDS.get(kind, kind)}{offered} {mac}"
    if 53 in (packet.source_port, packet.destination_port):
        return f"dns {ends} {dns_words(packet.body)}"
    return f"udp {ends} {len(packet.body)} bytes"


def dns_words(message: bytes) -> str:
    """A DNS message: id, question, and of an answer its code and records."""
    try:
        parsed = dns.message.from_wire(message, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return f"{len(message)} bytes, not understood"
    asked = " ".join(f"{dns.rdatatype.to_text(each.rdtype)}? {_ascii(str(each.name))}" for each in parsed.question)
    words = [str(parsed.id), asked or "no question"]
    if parsed.opcode() != dns.opcode.QUERY:
        words.insert(1, dns.opcode.to_text(parsed.opcode()))
    if parsed.flags & 0x8000:
        records = [
            f"{dns.rdatatype.to_text(each.rdtype)} {_ascii(str(item))}" for each in parsed.answer for item in each
        ]
        more = f" and {len(records) - MAX_RECORDS} more" if records[MAX_RECORDS:] else ""
        shown = ", ".join(records[:MAX_RECORDS]) + more
        words.append(f"-> {dns.rcode.to_text(parsed.rcode())}{' truncated' if parsed.flags & 0x200 else ''}")
        words += [shown] if shown else []
    return " ".join(words)


def _icmp(packet: packets.Packet) -> str:
    ends = f"{ipv4.format_address(packet.source)} > {ipv4.format_address(packet.destination)}"
    kind, code = packet.flags >> 8, packet.flags & 0xFF
    if kind in (icmp.ECHO_REQUEST, icmp.ECHO_REPLY):
        word = "request" if kind == icmp.ECHO_REQUEST else "reply"
        number = f"id {packet.source_port} seq {packet.destination_port}"
        return f"icmp {ends} echo {word} {number}, {len(packet.body)} bytes"
    word = f"type {kind} code {code}"
    if kind == icmp.UNREACHABLE:
        word = _UNREACHABLE_WORDS.get(code, f"unreachable, code {code}")
        word += f", MTU {packet.destination_port}" if code == icmp.FRAGMENTATION_NEEDED else ""
    elif kind == icmp.TIME_EXCEEDED:
        word = "reassembly expired" if code == icmp.REASSEMBLY_EXPIRED else "time to live exceeded"
    quoted = packets.quoted(packet)
    about = f" about {quoted.kind} {packets.endpoints(quoted.key)}" if quoted is not None else ""
    return f"icmp {ends} {word}{about}"


def _arp(packet: packets.Packet) -> str:
    sender, target = ipv4.format_address(packet.source), ipv4.format_address(packet.destination)
    if packet.flags == arp.REQUEST:
        return f"arp who has {target}, tell {sender}"
    return f"arp {sender} is at {ethernet.format_mac(packet.body[8:14])}"


# -- events ----------------------------------------------------------------------------------------------------------


def event_words(event: Event) -> str:
    """What the engine told, in a line."""
    if isinstance(event, FlowOpened):
        note = f" ({event.note})" if event.note else ""
        ends = _ends(event.guest, event.destination)
        dialled = f"; dialled {endpoint(event.dialled)}" if event.dialled != event.destination else ""
        return f"flow {event.flow} {event.protocol} {ends} opened: {verdict_words(event.verdict)}{dialled}{note}"
    if isinstance(event, FlowClosed):
        counts = f"{event.sent} bytes out, {event.received} in"
        return f"flow {event.flow} {event.protocol} closed: {event.reason}; {counts}"
    if isinstance(event, FlowRefused):
        ends = _ends(event.guest, event.destination)
        times = f" ({event.total} times)" if event.total > 1 else ""
        return f"flow {event.flow} {event.protocol} {ends} {verdict_words(event.verdict)}; told {event.told}{times}"
    if isinstance(event, DnsEvent):
        verdict = f" ({verdict_words(event.verdict)})" if event.verdict is not None else ""
        asked = f"question {_ascii(event.name)} {event.qtype}" if event.qtype else "question that cannot be read"
        return f"{asked}: {event.source} says {event.rcode}, {event.answers} answers{verdict}"
    if isinstance(event, LeaseEvent):
        named = f" {_ascii(event.hostname)}" if event.hostname else ""
        return f"lease {event.action}: {ipv4.format_address(event.address)} {ethernet.format_mac(event.mac)}{named}"
    if isinstance(event, PolicyReplaced):
        return f"policy {event.generation}: {event.access}, {event.rules} rules ({event.why})"
    return _dropped(event)


def _dropped(event: FrameDropped) -> str:
    return f"dropped: {event.reason}" + (f" ({event.total} times)" if event.total > 1 else "")


def verdict_words(verdict: Verdict) -> str:
    """`allowed at tls: name-rule 'pypi.org', pypi.org by sni`."""
    rule = f" '{_ascii(verdict.rule)}'" if verdict.rule else ""
    name = f", {_ascii(verdict.name)} by {verdict.source}" if verdict.name else ""
    return f"{ACTION_WORDS[verdict.action]} at {verdict.step}: {verdict.reason}{rule}{name}"


def endpoint(place: tuple[bytes, int]) -> str:
    """`address:port`, or an address alone where there is no port; IPv6 in brackets."""
    address, port = place
    if len(address) == 4:
        return f"{ipv4.format_address(address)}:{port}" if port else ipv4.format_address(address)
    groups = ":".join(f"{int.from_bytes(address[at : at + 2], 'big'):x}" for at in range(0, 16, 2))
    return f"[{groups}]:{port}"


def _ends(guest: tuple[bytes, int], destination: tuple[bytes, int]) -> str:
    return f"{endpoint(guest)} > {endpoint(destination)}"


def _ascii(text: str) -> str:
    """Printable ASCII without quotes around it: some of the words are a guest's."""
    return json.dumps(text)[1:-1]


# -- a whole trace ---------------------------------------------------------------------------------------------------


def header_lines(replay: Replay) -> list[str]:
    """What a trace begins with: its format, and what the lines rest on."""
    network: NetworkSettings = replay.parties.network
    prefix = f"{ipv4.format_address(network.subnet)}/{network.prefix_length}"
    compared = "byte by byte" if replay.exact else "by meaning"
    rules = replay.policy.rules
    access = "no network" if replay.policy.disabled else "full access"
    if rules is not None and not replay.policy.disabled:
        access = "only " + ", ".join(rule.text for rule in rules) if rules else "nothing is allowed"
    return [
        f"# netstack trace {TRACE_FORMAT}",
        f"# network {prefix} gateway {ipv4.format_address(network.gateway_ip)} MTU {network.link.mtu}",
        f"# policy {_ascii(access)}",
        f"# compared {compared}",
    ]


def summary_line(replay: Replay) -> str:
    """What it came to, in a line: the last one of a trace."""
    summary = replay.summary
    words = [
        f"{summary.frames} frames ({summary.guest_frames} of guests)",
        f"{summary.sent} sent",
        f"{summary.compared} as recorded",
        f"{summary.differences} differences",
    ]
    words += [f"{count} not played: {reason}" for reason, count in sorted(summary.skipped.items())]
    words += [f"{summary.cut_off} cut off by the capture"] if summary.cut_off else []
    if summary.told_until is not None:
        words.append(f"not compared after {summary.told_until:.6f} s: {summary.why_no_longer}")
    elif replay.reckons and summary.differences:
        words.append("no journal, so what no frame shows was reckoned: host reads, hooks, frames put in by hand")
    return "# " + ", ".join(words)


def trace(replay: Replay) -> Iterator[str]:
    """All lines of a trace, without line ends. Raises CaptureError where the file cannot be read any further."""
    dialogue = Dialogue()
    yield from header_lines(replay)
    for record in replay:
        yield from dialogue.lines(record)
    yield summary_line(replay)
