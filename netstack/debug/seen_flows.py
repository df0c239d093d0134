"""Packets sorted into flows: TCP connections, UDP exchanges, DNS questions, DHCP exchanges, pings, ARP questions.

One pass, in the order of the capture. Payload is kept as far as a story needs it: the first bytes of each direction.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

import dns.rdatatype

from netstack.debug import verdict_comments
from netstack.debug.seen_packets import FROM_GUEST, TO_GUEST, Endpoint, Packet
from netstack.debug.tcp_timeline import CLIENT, MAX_MARKS, SERVER, Timeline
from netstack.debug.verdict_comments import FlowVerdict, QuestionVerdict
from netstack.engine.dns_names import name_text
from netstack.wire import arp, dhcp, dns_answers, icmp, ipv4, tcp
from netstack.wire import dns as dns_wire

KEPT_BYTES: Final = 70_000
"""Payload kept of each direction of a conversation: a TLS hello may have 64 KiB."""
MAX_MESSAGES: Final = 200
"""DNS or DHCP messages kept of one conversation, the last ones."""
MAX_CONVERSATIONS: Final = 100_000
"""SeenFlows of one capture; what comes beyond is counted and not told."""
LIVE_CONVERSATIONS: Final = 5_000
"""SeenFlows known at a time where nothing is to be told afterwards; the one that began first makes room."""
_LIVE_PACKETS: Final = 64
MAX_NAMES: Final = 10_000
"""Addresses of which it is remembered by what name they were learned."""
DNS_PORT: Final = 53
_DHCP_PORTS: Final = frozenset((dhcp.SERVER_PORT, dhcp.CLIENT_PORT))

Key = tuple[object, ...]


class DnsMessage:
    """A DNS message as a story needs it."""

    def __init__(self, message: bytes) -> None:
        self.name = self.qtype = self.rcode = ""
        self.id = -1
        self.response = self.truncated = False
        self.addresses: list[bytes] = []
        self.answers = 0
        self.fault = ""
        head = dns_wire.header(message)
        parsed: dns_wire.Response | str = "dns-truncated"
        if head is not None:
            self.id, flags = head
            self.response = bool(flags & dns_wire.QR)
            self.truncated = bool(flags & dns_wire.TC)
            parsed = dns_wire.parse_response(message)
        if isinstance(parsed, str):
            self.fault = parsed
            return
        self.name = name_text(parsed.name) if parsed.name else ""
        self.qtype = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(parsed.qtype)) if parsed.qtype else ""
        self.rcode = _rcode_word(parsed.rcode)
        self.answers = parsed.records.answers
        size = {dns_wire.A: 4, dns_wire.AAAA: 16}.get(parsed.qtype)
        if size is not None and self.response:
            found = dns_answers.read(parsed.records, parsed.name.lower(), parsed.qtype, size)
            self.addresses = [data for each in found.data.values() for _, data in each]


def _rcode_word(rcode: int) -> str:
    import dns.rcode

    return dns.rcode.to_text(dns.rcode.Rcode.make(rcode))


class SeenFlow:
    """Everything two ends said to each other. `client` began."""

    def __init__(self, number: int, kind: str, client: Endpoint, server: Endpoint, *, keep: int) -> None:
        """`keep`: packets of it that are kept."""
        self.number = number
        """From 1, in the order of the capture."""
        self.kind = kind
        """tcp, udp, icmp, dns, dhcp, arp, ip."""
        self.client = client
        self.server = server
        self.packets: deque[tuple[int, Packet]] = deque(maxlen=keep)
        """CLIENT or SERVER, and the packet; of TCP the timeline has them."""
        self.begin = self.end = 0.0
        self.counts = [0, 0]
        self.payload_bytes = [0, 0]
        self.heads = (bytearray(), bytearray())
        """The first bytes of each direction: in TCP the stream's, in order as they were sent."""
        self.errors: list[Packet] = []
        """ICMP errors about it."""
        self.verdicts: list[tuple[Packet, FlowVerdict]] = []
        self.questions: list[tuple[Packet, QuestionVerdict]] = []
        self.timeline: Timeline | None = Timeline(keep) if kind == "tcp" else None
        self.last_numbers = [0, 0]
        """Of the last packet of each side."""
        self.learned: SeenFlow | None = None
        """The DNS question whose answer gave the address."""
        self.messages: deque[tuple[int, Packet, DnsMessage | dhcp.DhcpMessage]] = deque(maxlen=MAX_MESSAGES)
        self.name = ""
        """The name of a DNS question; of a flow the one its address was learned by."""
        self.qtype = ""

    def take(self, packet: Packet, side: int) -> None:
        """The next packet."""
        if not self.counts[CLIENT] and not self.counts[SERVER]:
            self.begin = packet.time
        self.end = packet.time
        self.counts[side] += 1
        length = packet.segment.length if packet.segment is not None else len(packet.payload)
        self.payload_bytes[side] += length
        if self.timeline is not None:
            self.timeline.take(packet._replace(payload=b""), side)
            self._keep_stream(packet, side)
        else:
            self.packets.append((side, packet))
            head = self.heads[side]
            if not head:
                head += packet.payload[:KEPT_BYTES]
        self.note(packet)
        self.last_numbers[side] = packet.number

    def note(self, packet: Packet) -> None:
        """Take what stands beside a packet."""
        if packet.comment:
            for said in verdict_comments.parse(packet.comment):
                if isinstance(said, FlowVerdict):
                    self.verdicts.append((packet, said))
                else:
                    self.questions.append((packet, said))

    def _keep_stream(self, packet: Packet, side: int) -> None:
        """Add what continues the first bytes of a side's stream."""
        timeline, segment, head = self.timeline, packet.segment, self.heads[side]
        if timeline is None or segment is None or not packet.payload or len(head) >= KEPT_BYTES:
            return
        first = int(timeline.halves[side].base is not None and timeline.saw_syn)
        start = timeline.halves[side].relative(segment.sequence) + bool(segment.flags & tcp.SYN) - first
        if start <= len(head) < start + len(packet.payload):
            head += packet.payload[len(head) - start :][: KEPT_BYTES - len(head)]


class SeenFlows:
    """A capture's. `add` each packet, then `finish`."""

    def __init__(self, *, live: bool = False) -> None:
        """`live`: the packets never end and no story is told afterwards, so old conversations are forgotten."""
        self._live = live
        self._begun = 0
        self.all: list[SeenFlow] = []
        """In the order they began; none where they are live."""
        self.untold = 0
        """Packets of conversations beyond MAX_CONVERSATIONS."""
        self.others: dict[str, int] = {}
        """Frames that belong to no conversation, by what they are."""
        self.packets = 0
        self._open: dict[Key, SeenFlow] = {}
        self._names: OrderedDict[tuple[bytes, bytes], SeenFlow] = OrderedDict()
        """By guest's and learned address: the question that was answered with it last."""

    def add(self, packet: Packet) -> SeenFlow | None:
        """The conversation a packet belongs to; None for one that belongs to none."""
        self.packets += 1
        if packet.kind == "icmp" and isinstance(packet.icmp, icmp.IcmpError):
            return self._add_error(packet)
        found = self._find(packet)
        if found is None:
            word = packet.fault or packet.kind
            self.others[word] = self.others.get(word, 0) + 1
            return None
        conversation, side = found
        conversation.take(packet, side)
        return conversation

    def addresses(self, name: str) -> set[bytes]:
        """The addresses that DNS answers gave for a name, or with `*.` before it for every name below."""
        below = name[1:] if name.startswith("*.") else ""
        return {
            address
            for (_, address), asked in self._names.items()
            if asked.name.lower() == name or (below and asked.name.lower().endswith(below))
        }

    def finish(self) -> list[SeenFlow]:
        """There are no more packets: all conversations, in the order they began."""
        for each in self.all:
            if each.timeline is not None:
                each.timeline.finish()
        return self.all

    def _find(self, packet: Packet) -> tuple[SeenFlow, int] | None:
        if packet.kind == "tcp":
            return self._tcp(packet)
        if packet.kind == "udp":
            ports = packet.source[1], packet.destination[1]
            if DNS_PORT in ports:
                return self._dns(packet)
            if _DHCP_PORTS.issuperset(ports):
                return self._dhcp(packet)
            return self._pair(packet, "udp")
        if packet.kind == "icmp" and isinstance(packet.icmp, icmp.Echo):
            return self._pair(packet, "icmp", request=packet.icmp.request)
        if packet.kind == "arp":
            return self._arp(packet)
        if packet.kind == "ip" and not packet.fault:
            return self._pair(packet, "ip")
        return None

    def _begin(self, key: Key, kind: str, client: Endpoint, server: Endpoint) -> SeenFlow | None:
        if self._live:
            while len(self._open) >= LIVE_CONVERSATIONS:
                del self._open[next(iter(self._open))]
        elif len(self.all) >= MAX_CONVERSATIONS:
            self.untold += 1
            return None
        self._begun += 1
        made = SeenFlow(self._begun, kind, client, server, keep=_LIVE_PACKETS if self._live else MAX_MARKS)
        if not self._live:
            self.all.append(made)
        self._open.pop(key, None)
        self._open[key] = made
        learned = self._names.get((client[0], server[0]))
        if learned is not None and kind != "dns":
            made.learned, made.name = learned, learned.name
        return made

    def _pair(self, packet: Packet, kind: str, *, request: bool = True) -> tuple[SeenFlow, int] | None:
        ends = packet.source, packet.destination
        key: Key = (kind, packet.protocol, frozenset(ends))
        known = self._open.get(key)
        if known is None:
            client, server = ends if request else ends[::-1]
            known = self._begin(key, kind, client, server)
            if known is None:
                return None
        if kind == "icmp":
            return known, CLIENT if request else SERVER
        return known, CLIENT if packet.source == known.client else SERVER

    def _tcp(self, packet: Packet) -> tuple[SeenFlow, int] | None:
        segment = packet.segment
        if segment is None:
            return None
        key: Key = ("tcp", frozenset((packet.source, packet.destination)))
        known = self._open.get(key)
        opens = segment.flags & (tcp.SYN | tcp.ACK) == tcp.SYN
        if known is not None and opens and known.timeline is not None:
            base = known.timeline.halves[CLIENT].base
            again = base == segment.sequence and packet.source == known.client
            if not again and (known.timeline.closed or known.timeline.saw_syn):
                known = None  # the ports are used again
        if known is None:
            answers = segment.flags & (tcp.SYN | tcp.ACK) == tcp.SYN | tcp.ACK
            # Without a SYN: the guest began, as guests do; else the side with the higher port.
            began = opens or packet.direction == FROM_GUEST
            began = began or (packet.direction != TO_GUEST and packet.source[1] >= packet.destination[1])
            client, server = packet.source, packet.destination
            if answers or not began:
                client, server = server, client
            known = self._begin(key, "tcp", client, server)
            if known is None:
                return None
        return known, CLIENT if packet.source == known.client else SERVER

    def _dns(self, packet: Packet) -> tuple[SeenFlow, int] | None:
        message = DnsMessage(packet.payload)
        ends = packet.source, packet.destination
        asks = packet.destination[1] == DNS_PORT and (not message.response or packet.source[1] != DNS_PORT)
        client, server = ends if asks else ends[::-1]
        key: Key = ("dns", client, server, message.id, message.name.lower(), message.qtype)
        known = self._open.get(key)
        if known is None or (asks and any(side == SERVER for side, _, _ in known.messages)):
            known = self._begin(key, "dns", client, server)
            if known is None:
                return None
            known.name, known.qtype = message.name, message.qtype
        side = CLIENT if asks else SERVER
        known.messages.append((side, packet, message))
        if side == SERVER:
            for address in message.addresses:
                self._names[client[0], address] = known
                self._names.move_to_end((client[0], address))
                if len(self._names) > MAX_NAMES:
                    self._names.popitem(last=False)
        return known, side

    def _dhcp(self, packet: Packet) -> tuple[SeenFlow, int] | None:
        message = dhcp.parse(packet.payload)
        if isinstance(message, str):
            return self._pair(packet, "udp")
        side = CLIENT if message.op == dhcp.BOOT_REQUEST else SERVER
        key: Key = ("dhcp", message.chaddr, message.xid)
        known = self._open.get(key)
        if known is None:
            ends = packet.source, packet.destination
            client, server = ends if side == CLIENT else ends[::-1]
            known = self._begin(key, "dhcp", client, server)
            if known is None:
                return None
            known.name = message.chaddr.hex(":")
        known.messages.append((side, packet, message))
        return known, side

    def _arp(self, packet: Packet) -> tuple[SeenFlow, int] | None:
        message = packet.arp
        if message is None or message.sender_ip == message.target_ip or not any(message.sender_ip):
            return None  # an announcement or a probe: nobody is to answer (RFC 5227 section 2.1.1)
        asks = message.operation == arp.REQUEST
        client, server = (message.sender_ip, 0), (message.target_ip, 0)
        if not asks:
            client, server = server, client
        key: Key = ("arp", client, server)
        known = self._open.get(key) or self._begin(key, "arp", client, server)
        return None if known is None else (known, CLIENT if asks else SERVER)

    def _add_error(self, packet: Packet) -> SeenFlow | None:
        """An ICMP error belongs to what it quotes."""
        error = packet.icmp
        if not isinstance(error, icmp.IcmpError):
            return None
        quote = error.quote
        ports = (0, 0)
        key: Key
        if quote.protocol in (ipv4.TCP, ipv4.UDP):
            ports = quote.ports
        elif quote.protocol == ipv4.ICMP:
            ports = (quote.echo[0],) * 2
        source, destination = (quote.source, ports[0]), (quote.destination, ports[1])
        ends = frozenset((source, destination))
        if quote.protocol == ipv4.TCP:
            key = ("tcp", ends)
        elif quote.protocol == ipv4.UDP and ports[1] == DNS_PORT:
            asked = [each for each in self._open.values() if each.kind == "dns" and each.client == source]
            known = next((each for each in reversed(asked) if each.server == destination), None)
            if known is not None:
                known.errors.append(packet)
            return known
        else:
            kind = {ipv4.UDP: "udp", ipv4.ICMP: "icmp"}.get(quote.protocol, "ip")
            key = (kind, quote.protocol, ends)
        found = self._open.get(key)
        if found is not None:
            found.errors.append(packet)
            found.end = packet.time
            found.note(packet)
        else:
            self.others["icmp error about nothing seen"] = self.others.get("icmp error about nothing seen", 0) + 1
        return found
