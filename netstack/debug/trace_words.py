"""What one packet says, in a few words, and what it refers to: the question it answers, the segment it repeats.

The words are tcpdump's where tcpdump has some. A reference names a packet by its number in the capture.
"""

from __future__ import annotations

from typing import NamedTuple

from netstack.debug.cause import count_text, seconds_text, size_text
from netstack.debug.seen_flows import DnsMessage, SeenFlow
from netstack.debug.seen_packets import Packet, address_text, flags_text
from netstack.debug.story_steps import first_words
from netstack.debug.tcp_causes import unreachable_words
from netstack.debug.tcp_timeline import CLIENT, SERVER, Mark, Timeline
from netstack.wire import arp, dhcp, icmp, tcp

_DHCP_WORDS = ("", "DISCOVER", "OFFER", "REQUEST", "DECLINE", "ACK", "NAK", "RELEASE", "INFORM")


class Words(NamedTuple):
    """`text` is what the packet says itself, `references` what it has to do with others."""

    text: str
    references: tuple[str, ...] = ()


def words(packet: Packet, flow: SeenFlow | None) -> Words:
    """A packet's words. `flow`, which has taken it already, is None for one that belongs to none."""
    if packet.fault:
        return Words(packet.fault)
    if packet.kind == "tcp" and packet.segment is not None:
        return _tcp(packet, flow)
    if packet.kind == "udp":
        return _udp(packet, flow)
    if packet.kind == "icmp":
        return _icmp(packet, flow)
    if packet.kind == "arp" and packet.arp is not None:
        return _arp(packet, flow)
    what = "later fragment" if packet.fragment else f"IP protocol {packet.protocol}"
    return Words(f"{what}, {count_text(len(packet.payload), 'byte')}" if packet.kind == "ip" else packet.kind)


def _tcp(packet: Packet, flow: SeenFlow | None) -> Words:
    segment, timeline = packet.segment, flow.timeline if flow is not None else None
    if segment is None:
        return Words("")
    mark = timeline.marks[-1] if timeline is not None and timeline.marks else None
    start = mark.start if mark is not None else segment.sequence
    parts = [f"[{flags_text(segment.flags)}]"]
    if segment.length or segment.flags & (tcp.SYN | tcp.FIN | tcp.RST):
        parts.append(f"seq {start}:{start + segment.length}" if segment.length else f"seq {start}")
    if segment.flags & tcp.ACK:
        parts.append(f"ack {mark.acknowledged if mark is not None else segment.acknowledgement}")
    scale = 0
    if timeline is not None and mark is not None and not segment.flags & tcp.SYN:
        scale = timeline.halves[mark.side].scale
    parts.append(f"win {segment.window << scale}")
    parts += _options(packet, mark)
    parts.append(f"length {segment.length}")
    text = ", ".join(parts)
    if flow is None or timeline is None or mark is None:
        return Words(text)
    if mark.side == CLIENT and mark.start <= 1 and segment.length:
        _, _, said = first_words(flow)
        text += f": {said}" if said else ""
    return Words(text, tuple(_tcp_references(segment.flags, flow, timeline, mark)))


def _options(packet: Packet, mark: Mark | None) -> list[str]:
    segment = packet.segment
    if segment is None:
        return []
    options, parts = segment.options, []
    if options.mss is not None:
        parts.append(f"mss {options.mss}")
    if options.window_scale is not None:
        parts.append(f"wscale {options.window_scale}")
    if options.sack_permitted:
        parts.append("sackOK")
    if mark is not None and mark.sack:
        parts.append("sack " + " ".join(f"{left}:{right}" for left, right in mark.sack))
    return parts


def _tcp_references(flags: int, flow: SeenFlow, timeline: Timeline, mark: Mark) -> list[str]:
    found = []
    other = flow.last_numbers[1 - mark.side]
    if flags & tcp.SYN and not flags & tcp.ACK and flow.learned is not None and mark.side == CLIENT:
        found.append(f"{flow.name} by DNS #{flow.learned.last_numbers[SERVER]}")
    if flags & (tcp.SYN | tcp.ACK) == tcp.SYN | tcp.ACK and timeline.syn_at and timeline.syn_acks == 1:
        found.append(f"answers #{other} after {seconds_text(mark.time - timeline.syn_at)}")
    if flags & tcp.RST and timeline.refused_at == mark.time:
        found.append(f"refuses #{other}")
    elif flags & tcp.RST and timeline.stray_reset:
        found.append(f"knows nothing of #{other}")
    if mark.note == "retransmission":
        repeats = timeline.halves[mark.side].repeats
        found.append(f"repeats #{repeats}" if repeats else "repeats what was sent before")
    elif mark.note:
        found.append(mark.note)
    if timeline.established_by == mark.packet.number:
        found.append(f"established, client {seconds_text(mark.time - timeline.syn_ack_at)} away")
    if mark.side == SERVER and mark.start == 1 < mark.end and not mark.note and timeline.client.first_data:
        found.append(f"first answer, after {seconds_text(mark.time - timeline.client.last_data)}")
    if timeline.closed_by == mark.packet.number:
        moved = f"{size_text(timeline.client.data_bytes)} out, {size_text(timeline.server.data_bytes)} back"
        found.append(f"over after {seconds_text(mark.time - flow.begin)}: {moved}")
    return found


def _udp(packet: Packet, flow: SeenFlow | None) -> Words:
    if flow is None or not flow.messages or flow.messages[-1][1] is not packet:
        cut = ", first fragment" if packet.fragment else ""
        text = f"length {len(packet.payload)}{cut}"
        if flow is None:
            return Words(text)
        _, _, said = first_words(flow) if flow.counts == [1, 0] else ("", "", "")
        named = (f"{flow.name} by DNS #{flow.learned.last_numbers[SERVER]}",) if flow.learned is not None else ()
        first = flow.counts in ([1, 0], [0, 1])
        answered = flow.counts[SERVER] == 1 and packet.source == flow.server
        after = (f"first answer, after {seconds_text(packet.time - flow.begin)}",) if answered else ()
        return Words(f"{text}: {said}" if said else text, (*(named if first else ()), *after))
    side, _, message = flow.messages[-1]
    asked = next((seen for before, seen, _ in reversed(flow.messages) if before == CLIENT), None)
    answers: tuple[str, ...] = ()
    if side == SERVER and asked is not None:
        answers = (f"answers #{asked.number} after {seconds_text(packet.time - asked.time)}",)
    elif side == CLIENT and flow.counts[CLIENT] > 1:
        answers = (f"asks the {flow.counts[CLIENT]}. time",) if isinstance(message, DnsMessage) else ()
    if isinstance(message, DnsMessage):
        return Words(_dns_text(message), answers)
    return Words(_dhcp_text(message), answers)


def _dns_text(message: DnsMessage) -> str:
    if message.fault:
        return f"DNS {message.fault}"
    if not message.response:
        return f"DNS {message.id} {message.qtype}? {message.name or '.'}"
    found = ", ".join(map(address_text, message.addresses[:4])) or count_text(message.answers, "record")
    cut = ", truncated" if message.truncated else ""
    return f"DNS {message.id} {message.name or '.'} {message.qtype}: {message.rcode}, {found}{cut}"


def _dhcp_text(message: dhcp.DhcpMessage) -> str:
    kind = (message.options.get(dhcp.MESSAGE_TYPE) or b"\0")[0]
    word = _DHCP_WORDS[kind] if kind < len(_DHCP_WORDS) else str(kind)
    text = f"DHCP {word or 'BOOTP'} {message.chaddr.hex(':')}"
    wanted = message.options.get(dhcp.REQUESTED_ADDRESS)
    if message.op == dhcp.BOOT_REQUEST:
        return text + (f" wants {address_text(wanted)}" if wanted else "")
    return text + (f" {address_text(message.yiaddr)}" if any(message.yiaddr) else "")


def _icmp(packet: Packet, flow: SeenFlow | None) -> Words:
    message = packet.icmp
    if isinstance(message, icmp.Echo):
        word = "echo request" if message.request else "echo reply"
        text = f"{word}, id {message.identifier}, seq {message.sequence}, length {len(message.payload)}"
        if message.request or flow is None:
            return Words(text)
        for side, seen in reversed(flow.packets):
            if side == CLIENT and isinstance(seen.icmp, icmp.Echo) and seen.icmp.sequence == message.sequence:
                return Words(text, (f"answers #{seen.number} after {seconds_text(packet.time - seen.time)}",))
        return Words(text, ("answers nothing that was asked",))
    if isinstance(message, icmp.IcmpError):
        needed = message.type == icmp.UNREACHABLE and message.code == icmp.FRAGMENTATION_NEEDED
        said = f"fragmentation needed, MTU {message.next_hop_mtu}" if needed else unreachable_words(message)
        about = (f"about #{flow.last_numbers[CLIENT] or flow.last_numbers[SERVER]}",) if flow is not None else ()
        return Words(f"ICMP {said}", about)
    return Words("ICMP")


def _arp(packet: Packet, flow: SeenFlow | None) -> Words:
    message = packet.arp
    if message is None:
        return Words("")
    if message.operation == arp.REQUEST:
        return Words(f"who has {address_text(message.target_ip)}? tell {address_text(message.sender_ip)}")
    text = f"{address_text(message.sender_ip)} is at {message.sender_mac.hex(':')}"
    if flow is None or not flow.last_numbers[CLIENT]:
        return Words(text)
    asked = next((seen for side, seen in reversed(flow.packets) if side == CLIENT), None)
    took = f" after {seconds_text(packet.time - asked.time)}" if asked is not None else ""
    return Words(text, (f"answers #{flow.last_numbers[CLIENT]}{took}",))
