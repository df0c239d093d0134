"""IPv4 from the guests: what a packet may say of itself, fragments put together, and who takes what is in it.

A packet that nobody takes is answered as a host or a router would (RFC 1122, RFC 1812), and told of as a refusal.
"""

from __future__ import annotations

from typing import Final

from netstack.engine import routes
from netstack.engine.dhcp_server import DhcpServer
from netstack.engine.dns_port import PORT as DNS_PORT
from netstack.engine.dns_port import DnsPort
from netstack.engine.echo_flows import EchoFlows
from netstack.engine.fragments import Reassembler
from netstack.engine.icmp_errors import IcmpErrors
from netstack.engine.inbound_udp import InboundUdp
from netstack.engine.judge import Judge
from netstack.engine.neighbours import Neighbours
from netstack.engine.outbox import Outbox
from netstack.engine.routes import Route, Routes
from netstack.engine.settings import NetworkSettings
from netstack.engine.tcp_flow import Syn
from netstack.engine.tcp_flows import TcpFlows
from netstack.engine.udp_flows import UdpFlows
from netstack.engine.verdict import REFUSE, Question, Verdict
from netstack.wire import ethernet, icmp, ipv4, tcp, udp
from netstack.wire.checksum import checksum, pseudo_header_sum

_DHCP_SERVER_PORT: Final = 67

_SEGMENT: Final = ethernet.HEADER + ipv4.HEADER
"""Where the segment begins in a frame without IP options."""
_OPENING: Final = tcp.SYN | tcp.ACK | tcp.RST | tcp.FIN
"""The flags of which a segment that opens a flow has only SYN."""

# The code of the unreachable that is said of datagrams that lead nowhere; nothing is said of those for a group.
_DATAGRAM_REFUSALS: Final = {
    routes.OWN: icmp.PORT_UNREACHABLE,
    routes.UNUSED: icmp.HOST_UNREACHABLE,
    routes.FORBIDDEN: icmp.ADMINISTRATIVELY_PROHIBITED,
}

# Loose and strict source routes: a guest that says which way a packet goes (RFC 7126 section 4.3 and 4.4: drop).
_SOURCE_ROUTES: Final = frozenset((131, 137))


class Ipv4Input:
    """Takes every packet but those that the stack's hot path takes itself."""

    def __init__(
        self,
        settings: NetworkSettings,
        outbox: Outbox,
        judge: Judge,
        *,
        routing: Routes,
        errors: IcmpErrors,
        neighbours: Neighbours,
        reassembler: Reassembler,
        dhcp: DhcpServer,
        dns_port: DnsPort,
        tcp_flows: TcpFlows,
        udp_flows: UdpFlows,
        echo_flows: EchoFlows,
        inbound_udp: InboundUdp,
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._counters = outbox.counters
        self._judge = judge
        self._routes = routing
        self._errors = errors
        self._neighbours = neighbours
        self._reassembler = reassembler
        self._dhcp = dhcp
        self._dns_port = dns_port
        self._tcp = tcp_flows
        self._tcp_table = tcp_flows.table
        self._time_wait = tcp_flows.time_wait
        self._udp = udp_flows
        self._echo = echo_flows
        self._inbound_udp = inbound_udp
        self._broadcasts = (settings.broadcast_ip, b"\xff\xff\xff\xff")
        self._verify = settings.link.verify_checksums

    def opens(self, frame: bytes, end: int, macs: bytes, key: bytes, now: float) -> bool:
        """Whether a frame opens a TCP flow, in the way that needs no long one; then it is done with.

        What the stack says of it: a whole segment up to `end`, without IP options, of no flow with this `key`. It has
        to be a SYN from a MAC that has the address, and nothing that was on these ports before may be in its way.
        """
        _, _, sequence, _, flags, window, _, _ = tcp.FIELDS.unpack_from(frame, _SEGMENT)
        text = _SEGMENT + (flags >> 12) * 4
        if (
            flags & _OPENING != tcp.SYN
            or not _SEGMENT + tcp.HEADER <= text <= end
            or key in self._time_wait
            or not macs.startswith(self._settings.gateway_mac)
            or self._judge.policy.settings.disabled
            or not self._neighbours.confirms(key[:4], macs[6:], now)
        ):
            return False
        source_port, destination_port = key[8] << 8 | key[9], key[10] << 8 | key[11]
        source, destination, options = key[:4], key[4:8], frame[_SEGMENT + tcp.HEADER : text]
        packet = frame[ethernet.HEADER : end]
        syn = Syn(key, macs[6:], source, source_port, destination, destination_port, sequence, window, options, packet)
        self._tcp.open(syn, self._routes.lookup(destination), now)
        return True

    def receive(self, packet: bytes, mac: bytes, *, to_group: bool, now: float) -> None:
        """A packet from the guest with this MAC; `to_group` when its frame was a broadcast or a multicast."""
        self._counters.packets_long_way += 1
        header = ipv4.parse(packet, verify_checksum=self._verify)
        if isinstance(header, str):
            self._outbox.drop(header)
            return
        fault = self._source_fault(packet, header, mac, now)
        if fault is not None:
            self._outbox.drop(fault)
            return
        packet = packet[: header.total_length]
        if header.more_fragments or header.fragment_offset:
            whole = self._reassembler.receive(packet, header, mac, now)
            if whole is None:
                return
            header = ipv4.parse(whole, verify_checksum=False)
            if isinstance(header, str):
                self._outbox.drop(header)
                return
            packet = whole
        route = self._routes.lookup(header.destination)
        if to_group and route.kind != routes.GROUP:
            self._outbox.drop("ip-unicast-in-group-frame")  # RFC 1122 section 3.3.6
            return
        if header.ttl <= 1 and self._passes_through(header, route):
            self._outbox.drop("ip-ttl-exceeded")
            self._error(icmp.TIME_EXCEEDED, icmp.TTL_EXCEEDED, packet, now)
            return
        if header.protocol == ipv4.TCP:
            self._receive_tcp(packet, header, mac, route, now)
        elif header.protocol == ipv4.UDP:
            self._receive_udp(packet, header, mac, route, now)
        elif header.protocol == ipv4.ICMP:
            self._receive_icmp(packet, header, route, now)
        else:
            told = self._error(icmp.UNREACHABLE, icmp.PROTOCOL_UNREACHABLE, packet, now)
            self._tell_refusal(self._question(header, 0, 0), Verdict(REFUSE, "datagram", "ip-protocol"), told, now)

    def _source_fault(self, packet: bytes, header: ipv4.Ipv4, mac: bytes, now: float) -> str | None:
        """Why a packet may not come from where it says it does; None when it may."""
        source, settings = header.source, self._settings
        if header.options and _SOURCE_ROUTES & _option_kinds(header.options):
            return "ip-source-route"
        if source == settings.gateway_ip or source in settings.virtual_ips:
            return "ip-source-is-gateway"
        if not settings.in_subnet(source) or source == settings.subnet or source in self._broadcasts:
            # DHCP clients have no address yet (RFC 2131 section 4.1), a link-local one, or one of a network they left.
            return None if self._is_for_dhcp(packet, header) else "ip-source-off-subnet"
        self._neighbours.learn(source, mac, now)
        if self._neighbours.lookup(source) != mac:
            return "ip-source-of-another"
        return None

    def _is_for_dhcp(self, packet: bytes, header: ipv4.Ipv4) -> bool:
        """Whether this is a whole datagram to our DHCP server."""
        port = packet[header.header_length + 2 : header.header_length + 4]
        return (
            header.protocol == ipv4.UDP
            and not (header.more_fragments or header.fragment_offset)
            and port == _DHCP_SERVER_PORT.to_bytes(2, "big")
            and (header.destination == self._settings.gateway_ip or header.destination in self._broadcasts)
        )

    def _passes_through(self, header: ipv4.Ipv4, route: Route) -> bool:
        """Whether the gateway is a hop on this packet's way, not its end. The host's alias is no hop further."""
        own = header.destination == self._settings.gateway_ip or header.destination in self._settings.virtual_ips
        return not own and route.kind not in (routes.GROUP, routes.FORBIDDEN)

    def _receive_tcp(self, packet: bytes, header: ipv4.Ipv4, mac: bytes, route: Route, now: float) -> None:
        start = header.header_length
        if len(packet) < start + tcp.HEADER:
            self._outbox.drop("tcp-truncated")
            return
        fields = tcp.FIELDS.unpack_from(packet, start)
        source_port, destination_port, sequence, acknowledgement, flags, window, _, _ = fields
        text = start + (flags >> 12) * 4
        if not start + tcp.HEADER <= text <= len(packet):
            self._outbox.drop("tcp-data-offset")
            return
        if self._verify and checksum(
            packet[start:],
            pseudo_header_sum(header.source, header.destination, ipv4.TCP, len(packet) - start),
        ):
            self._outbox.drop("tcp-checksum")
            return
        self._counters.segments_long_way += 1
        flags &= 0x3F
        options = packet[start + tcp.HEADER : text]
        key = header.source + header.destination + packet[start : start + 4]
        flow = self._tcp_table.get(key)
        opens = flags & _OPENING == tcp.SYN
        if flow is not None and not (opens and self._tcp.reopens(flow, sequence)):
            if flow.mac != mac:
                self._outbox.drop("tcp-flow-of-another")
                return
            flow.connection.receive(sequence, acknowledgement, flags, window, options, packet[text:], now)
            self._tcp.touch(flow)
            return
        if flow is None and self._time_wait.receive(
            key, mac, sequence, acknowledgement, flags, options, len(packet) - text, now
        ):
            return
        segment = Syn(
            key,
            mac,
            header.source,
            source_port,
            header.destination,
            destination_port,
            sequence,
            window,
            options,
            packet,
        )
        if opens:
            self._tcp.open(segment, route, now)
        else:
            self._outbox.drop("tcp-no-connection")
            # Nobody speaks for a group, nor for an address that nobody has.
            if route.kind not in (routes.GROUP, routes.UNUSED):
                self._tcp.answer_stray(segment, flags, acknowledgement, len(packet) - text)

    def _receive_udp(self, packet: bytes, header: ipv4.Ipv4, mac: bytes, route: Route, now: float) -> None:
        start = header.header_length
        datagram = udp.parse(packet[start:], header.source, header.destination, verify_checksum=self._verify)
        if isinstance(datagram, str):
            self._outbox.drop(datagram)
            return
        self._counters.datagrams_long_way += 1
        to_gateway = header.destination == self._settings.gateway_ip
        key = header.source + header.destination + packet[start : start + 4]
        if self._is_for_dhcp(packet, header):
            self._answer_dhcp(datagram.payload, header.source, mac, now)
        elif not datagram.destination_port or not datagram.source_port:
            self._outbox.drop("udp-port-zero")
        elif (inbound := self._inbound_udp.table.get(key)) is not None:
            self._inbound_udp.answer(inbound, datagram.payload, now)
        elif route.kind == routes.OUT:
            self._udp.send(key, packet, header, datagram, route.dialled, now)
        elif to_gateway and datagram.destination_port == DNS_PORT:
            self._dns_port.datagram(header.source, datagram.source_port, datagram.payload, now)
        else:
            question = self._question(header, datagram.source_port, datagram.destination_port)
            self._refuse_datagram(question, packet, route.kind, now)

    def _question(self, header: ipv4.Ipv4, source_port: int, destination_port: int) -> Question:
        guest, destination = (header.source, source_port), (header.destination, destination_port)
        return Question(self._outbox.next_flow(), header.protocol, guest, destination)

    def _refuse_datagram(self, question: Question, packet: bytes, kind: int, now: float) -> None:
        """What is no flow and no service: say so as a host or a router would."""
        destination = question.destination[0]
        self._counters.unserved_datagrams += kind == routes.OWN and question.protocol == ipv4.UDP
        step = "echo" if question.protocol == ipv4.ICMP else "datagram"
        reason, code = routes.refusal(kind, destination), _DATAGRAM_REFUSALS.get(kind)
        told = False
        if code is not None:
            source = destination if code == icmp.PORT_UNREACHABLE else None
            told = self._error(icmp.UNREACHABLE, code, packet, now, source=source)
        self._tell_refusal(question, Verdict(REFUSE, step, reason), told, now)

    def _tell_refusal(self, question: Question, verdict: Verdict, told: bool, now: float) -> None:
        self._judge.refused(question, verdict, "unreachable" if told else "nothing", now)

    def _answer_dhcp(self, message: bytes, source: bytes, mac: bytes, now: float) -> None:
        reply = self._dhcp.receive(message, source, mac, now)
        if reply is None:
            return
        gateway = self._settings.gateway_ip
        datagram = udp.build(gateway, _DHCP_SERVER_PORT, reply.destination_ip, reply.destination_port, reply.payload)
        packet = ipv4.build(gateway, reply.destination_ip, ipv4.UDP, datagram)
        # Framed here: whoever asks for an address has none that ARP could find (RFC 2131 section 4.1).
        self._outbox.frames.append(
            ethernet.frame(reply.destination_mac, self._settings.gateway_mac, ethernet.IPV4, packet)
        )

    def _receive_icmp(self, packet: bytes, header: ipv4.Ipv4, route: Route, now: float) -> None:
        message = icmp.parse(packet[header.header_length :], verify_checksum=self._verify)
        if message not in ("icmp-truncated", "icmp-checksum"):
            self._counters.icmp_received[packet[header.header_length]] += 1
        if isinstance(message, str):
            self._outbox.drop(message)
        elif not isinstance(message, icmp.Echo):
            self._receive_icmp_error(message, header.source, now)
        elif not message.request:
            self._outbox.drop("icmp-unasked-reply")
        elif route.kind == routes.OWN:
            reply = icmp.build_echo(
                request=False, identifier=message.identifier, sequence=message.sequence, payload=message.payload
            )
            self._outbox.send(header.destination, header.source, ipv4.ICMP, reply)
        elif route.kind == routes.OUT:
            self._echo.request(packet, header, message, route.dialled, now)
        else:
            self._refuse_datagram(self._question(header, message.identifier, 0), packet, route.kind, now)

    def _receive_icmp_error(self, error: icmp.IcmpError, guest: bytes, now: float) -> None:
        """An error speaks of what we have sent to this very guest to open a flow, or is applied to nothing (E5)."""
        protocol = error.quote.protocol
        if protocol == ipv4.UDP:
            applied = self._inbound_udp.refused_by_icmp(error, guest, now)
        else:
            applied = protocol == ipv4.TCP and self._tcp.inbound.refused_by_icmp(error, guest, now)
        if not applied:
            self._outbox.drop("icmp-error-from-guest")

    def reassembly_expired(self, first: bytes, now: float) -> None:
        """The other fragments of a datagram did not come in time; `first` is the one it begins with."""
        self._error(icmp.TIME_EXCEEDED, icmp.REASSEMBLY_EXPIRED, first, now)

    def _error(self, kind: int, code: int, packet: bytes, now: float, *, source: bytes | None = None) -> bool:
        """Tell the guest of an error in its packet; whether that could be done."""
        error = self._errors.make(kind, code, packet, source or self._settings.gateway_ip, now)
        if error is None:
            return False
        self._outbox.packets.append((packet[12:16], error))
        return True


def _option_kinds(options: bytes) -> set[int]:
    """The option types in an IP header (RFC 791 section 3.1); a malformed option ends the reading."""
    kinds: set[int] = set()
    position = 0
    while position < len(options) and options[position] != 0:
        kind = options[position]
        kinds.add(kind)
        length = 1 if kind == 1 else options[position + 1] if position + 1 < len(options) else 0
        if length < 1 or (kind != 1 and length < 2):
            break
        position += length
    return kinds
