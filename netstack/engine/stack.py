"""The whole engine: joins the parts, decides nothing itself.

Frames of the guest go in by `receive_frame`, what happens on the host side by the `stream_*`, `datagram_*`, `echo_*`
and `dns_*` methods, time by `advance`. Then `take_effects` says what is asked of the driver, `take_frames` what goes to
the guest, and `next_deadline` when `advance` is wanted. No call blocks, and no frame makes one raise.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from struct import Struct
from typing import Final

from netstack.engine import routes
from netstack.engine.dhcp_server import DhcpServer
from netstack.engine.dns_port import PORT as DNS_PORT
from netstack.engine.dns_port import DnsPort
from netstack.engine.dns_server import DnsServer
from netstack.engine.echo_flows import EchoFlows
from netstack.engine.effects import Effect
from netstack.engine.fragments import MIN_MTU, Reassembler, fragment
from netstack.engine.host_errors import HostErrors, quotable
from netstack.engine.host_names import HostNames
from netstack.engine.icmp_errors import IcmpErrors
from netstack.engine.judge import Judge
from netstack.engine.neighbours import Neighbours
from netstack.engine.outbox import Outbox
from netstack.engine.policy import FULL_ACCESS, Policy, PolicySettings
from netstack.engine.routes import Route, Routes
from netstack.engine.settings import NetworkSettings
from netstack.engine.tcp_flow import Syn
from netstack.engine.tcp_flows import TcpFlows
from netstack.engine.udp_flows import UdpFlows
from netstack.engine.verdict import REFUSE, Question, Verdict
from netstack.engine.zones import Zones
from netstack.wire import ethernet, icmp, ipv4, tcp, udp
from netstack.wire.checksum import checksum, pseudo_header_sum

_DHCP_SERVER_PORT: Final = 67

# What the hot path needs: type, version and length, TOS, total length, identification, fragment, TTL, protocol.
_GUARD = Struct("!HBBHHHBB")
_SEGMENT = Struct("!IIHHHH")
# The code of the unreachable that is said of datagrams that lead nowhere; nothing is said of those for a group.
_DATAGRAM_REFUSALS: Final = {
    routes.OWN: icmp.PORT_UNREACHABLE,
    routes.UNUSED: icmp.HOST_UNREACHABLE,
    routes.FORBIDDEN: icmp.ADMINISTRATIVELY_PROHIBITED,
}
_FRAGMENT_BITS: Final = ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK

# Loose and strict source routes: a guest that says which way a packet goes (RFC 7126 section 4.3 and 4.4: drop).
_SOURCE_ROUTES: Final = frozenset((131, 137))


class Stack:
    """One gateway and its guests."""

    def __init__(
        self,
        settings: NetworkSettings,
        *,
        initial_sequence: Callable[[bytes, float], int],
        policy: PolicySettings = FULL_ACCESS,
    ) -> None:
        """`initial_sequence(key, now)` gives TCP's initial sequence numbers, 0..2**32-1 (RFC 6528).

        Raises ValueError when the settings contradict themselves.
        """
        mtu = settings.link.mtu
        if not MIN_MTU <= mtu <= ipv4.MAX_PACKET:
            raise ValueError(f"an MTU of {mtu} is outside {MIN_MTU}..{ipv4.MAX_PACKET}")
        self.settings = settings
        self._outbox = outbox = Outbox()
        self.judge = Judge(Policy(policy, settings), settings, outbox)
        self._disabled = policy.disabled
        self._mac = settings.gateway_mac
        self._broadcasts = (settings.broadcast_ip, b"\xff\xff\xff\xff")
        self._verify = settings.link.verify_checksums
        self.dhcp = DhcpServer(settings, report=outbox.report, drop=outbox.drop)
        self.neighbours = Neighbours(settings, drop=outbox.drop, holder=self.dhcp.holder)
        self.dns = DnsServer(Zones(settings.zones), outbox.report, judge=self.judge, mtu=mtu)
        self.names = HostNames(self.dns.zones, self.dns.cache)
        self._routes = Routes(settings)
        self._errors = IcmpErrors(settings, drop=outbox.drop)
        self._reassembler = Reassembler(drop=outbox.drop)
        self._dns_port = DnsPort(self.dns, outbox, self._wake_session)
        self.tcp = TcpFlows(
            settings,
            self._routes,
            outbox,
            self._errors,
            self.judge,
            initial_sequence=initial_sequence,
            services={(settings.gateway_ip, DNS_PORT): self._dns_port.session},
        )
        host_errors = HostErrors(settings, outbox, self._errors)
        self.udp = UdpFlows(settings, outbox, host_errors, self.judge)
        self.echo = EchoFlows(settings, outbox, host_errors, self.judge)
        self._tcp_table = self.tcp.table
        self._udp_table = self.udp.table

    @property
    def dropped(self) -> dict[str, int]:
        """Frames, packets and flows refused so far, by reason word."""
        return self._outbox.dropped

    def note_drop(self, reason: str) -> None:
        """Count a frame that was dropped before it came here, and tell people of it as of any other."""
        self._outbox.drop(reason)

    # -- frames from the guest -------------------------------------------------------------------------------

    def receive_frame(self, frame: bytes, now: float) -> None:
        """Process one Ethernet frame from the guest. Never raises, whatever the bytes."""
        # The plain cases: a segment or a datagram of a flow we know, whole, without IP options. Everything else goes
        # the long way.
        size = len(frame)
        if size >= 42:
            ethertype, version, _, total, _, fragmented, ttl, protocol = _GUARD.unpack_from(frame, 12)
            if (
                version == 0x45
                and ethertype == 0x0800
                and ttl > 1
                and not fragmented & _FRAGMENT_BITS
                and not self._verify
                and frame[:6] == self._mac
            ):
                end = 14 + total
                if protocol == ipv4.TCP:
                    flow = self._tcp_table.get(frame[26:38])
                    if flow is not None and size >= 54 and frame[6:12] == flow.mac:
                        sequence, acknowledgement, flags, window, _, _ = _SEGMENT.unpack_from(frame, 38)
                        text = 34 + (flags >> 12) * 4
                        if 54 <= text <= end <= size and not flags & tcp.SYN:
                            flow.connection.receive(
                                sequence, acknowledgement, flags & 0x3F, window, frame[54:text], frame[text:end], now
                            )
                            if not flow.touched:
                                self.tcp.touch(flow)
                            return
                elif protocol == ipv4.UDP:
                    known = self._udp_table.get(frame[26:38])
                    if (
                        known is not None
                        and 42 <= end <= size
                        and frame[38] << 8 | frame[39] == total - 20
                        and self.neighbours.confirms(frame[26:30], frame[6:12], now)
                    ):
                        self.udp.send_on(known, frame[42:end], ttl - 1, quotable(frame[14:end]), now)
                        return
        self._receive_any(frame, now)

    def _receive_any(self, frame: bytes, now: float) -> None:
        drop = self._outbox.drop
        if self._disabled:
            drop("network-disabled")
            return
        if len(frame) < ethernet.HEADER:
            drop("frame-truncated")
            return
        destination, source, ethertype = frame[:6], frame[6:12], frame[12:14]
        if not ethernet.is_unicast(source) or source == self._mac:
            drop("frame-bad-source")
        elif destination != self._mac and not destination[0] & 1:
            drop("frame-for-another")
        elif ethertype == ethernet.IPV4:
            self._receive_ipv4(frame[ethernet.HEADER :], source, to_group=bool(destination[0] & 1), now=now)
        elif ethertype == ethernet.ARP:
            self.neighbours.receive(frame[ethernet.HEADER :], source, now)
        elif ethertype == ethernet.IPV6:
            drop("frame-ipv6")
        elif ethertype == ethernet.VLAN:
            drop("frame-vlan")
        else:
            drop("frame-type")

    def _receive_ipv4(self, packet: bytes, mac: bytes, *, to_group: bool, now: float) -> None:
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
            self._receive_tcp(packet, header, mac, now)
        elif header.protocol == ipv4.UDP:
            self._receive_udp(packet, header, mac, route, now)
        elif header.protocol == ipv4.ICMP:
            self._receive_icmp(packet, header, route, now)
        else:
            told = self._error(icmp.UNREACHABLE, icmp.PROTOCOL_UNREACHABLE, packet, now)
            self._tell_refusal(self._question(header, 0, 0), Verdict(REFUSE, "datagram", "ip-protocol"), told, now)

    def _source_fault(self, packet: bytes, header: ipv4.Ipv4, mac: bytes, now: float) -> str | None:
        """Why a packet may not come from where it says it does; None when it may."""
        source, settings = header.source, self.settings
        if header.options and _SOURCE_ROUTES & _option_kinds(header.options):
            return "ip-source-route"
        if source == settings.gateway_ip or source in settings.virtual_ips:
            return "ip-source-is-gateway"
        if not settings.in_subnet(source) or source == settings.subnet or source in self._broadcasts:
            # DHCP clients have no address yet (RFC 2131 section 4.1), a link-local one, or one of a network they left.
            return None if self._is_for_dhcp(packet, header) else "ip-source-off-subnet"
        self.neighbours.learn(source, mac, now)
        if self.neighbours.lookup(source) != mac:
            return "ip-source-of-another"
        return None

    def _is_for_dhcp(self, packet: bytes, header: ipv4.Ipv4) -> bool:
        """Whether this is a whole datagram to our DHCP server."""
        port = packet[header.header_length + 2 : header.header_length + 4]
        return (
            header.protocol == ipv4.UDP
            and not (header.more_fragments or header.fragment_offset)
            and port == _DHCP_SERVER_PORT.to_bytes(2, "big")
            and (header.destination == self.settings.gateway_ip or header.destination in self._broadcasts)
        )

    def _passes_through(self, header: ipv4.Ipv4, route: Route) -> bool:
        """Whether the gateway is a hop on this packet's way, not its end. The host's alias is no hop further."""
        own = header.destination == self.settings.gateway_ip or header.destination in self.settings.virtual_ips
        return not own and route.kind not in (routes.GROUP, routes.FORBIDDEN)

    def _receive_tcp(self, packet: bytes, header: ipv4.Ipv4, mac: bytes, now: float) -> None:
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
        flags &= 0x3F
        options = packet[start + tcp.HEADER : text]
        key = header.source + header.destination + packet[start : start + 4]
        flow = self._tcp_table.get(key)
        opens = flags & (tcp.SYN | tcp.ACK | tcp.RST | tcp.FIN) == tcp.SYN
        if flow is not None and not (opens and self.tcp.reopens(flow, sequence)):
            if flow.mac != mac:
                self._outbox.drop("tcp-flow-of-another")
                return
            flow.connection.receive(sequence, acknowledgement, flags, window, options, packet[text:], now)
            self.tcp.touch(flow)
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
            self.tcp.open(segment, now)
        else:
            self._outbox.drop("tcp-no-connection")
            # Nobody speaks for a group, nor for an address that nobody has.
            if self._routes.lookup(header.destination).kind not in (routes.GROUP, routes.UNUSED):
                self.tcp.answer_stray(segment, flags, acknowledgement, len(packet) - text)

    def _receive_udp(self, packet: bytes, header: ipv4.Ipv4, mac: bytes, route: Route, now: float) -> None:
        start = header.header_length
        datagram = udp.parse(packet[start:], header.source, header.destination, verify_checksum=self._verify)
        if isinstance(datagram, str):
            self._outbox.drop(datagram)
            return
        gateway = self.settings.gateway_ip
        to_gateway = header.destination == gateway
        if self._is_for_dhcp(packet, header):
            self._answer_dhcp(datagram.payload, header.source, mac, now)
        elif not datagram.destination_port or not datagram.source_port:
            self._outbox.drop("udp-port-zero")
        elif route.kind == routes.OUT:
            key = header.source + header.destination + packet[start : start + 4]
            self.udp.send(key, packet, header, datagram, route.dialled, now)
        elif to_gateway and datagram.destination_port == DNS_PORT:
            self._dns_port.datagram(header.source, gateway, datagram, now)
        else:
            question = self._question(header, datagram.source_port, datagram.destination_port)
            self._refuse_datagram(question, packet, route.kind, now)

    def _question(self, header: ipv4.Ipv4, source_port: int, destination_port: int) -> Question:
        guest, destination = (header.source, source_port), (header.destination, destination_port)
        return Question(self._outbox.next_flow(), header.protocol, guest, destination)

    def _refuse_datagram(self, question: Question, packet: bytes, kind: int, now: float) -> None:
        """What is no flow and no service: say so as a host or a router would."""
        destination = question.destination[0]
        step = "echo" if question.protocol == ipv4.ICMP else "datagram"
        reason, code = routes.refusal(kind, destination), _DATAGRAM_REFUSALS.get(kind)
        told = False
        if code is not None:
            source = destination if code == icmp.PORT_UNREACHABLE else None
            told = self._error(icmp.UNREACHABLE, code, packet, now, source=source)
        self._tell_refusal(question, Verdict(REFUSE, step, reason), told, now)

    def _tell_refusal(self, question: Question, verdict: Verdict, told: bool, now: float) -> None:
        self.judge.refused(question, verdict, "unreachable" if told else "nothing", now)

    def _answer_dhcp(self, message: bytes, source: bytes, mac: bytes, now: float) -> None:
        reply = self.dhcp.receive(message, source, mac, now)
        if reply is None:
            return
        gateway = self.settings.gateway_ip
        datagram = udp.build(gateway, _DHCP_SERVER_PORT, reply.destination_ip, reply.destination_port, reply.payload)
        packet = ipv4.build(gateway, reply.destination_ip, ipv4.UDP, datagram)
        # Framed here: whoever asks for an address has none that ARP could find (RFC 2131 section 4.1).
        self._outbox.frames.append(ethernet.frame(reply.destination_mac, self._mac, ethernet.IPV4, packet))

    def _receive_icmp(self, packet: bytes, header: ipv4.Ipv4, route: Route, now: float) -> None:
        message = icmp.parse(packet[header.header_length :], verify_checksum=self._verify)
        if isinstance(message, str):
            self._outbox.drop(message)
        elif not isinstance(message, icmp.Echo):
            self._outbox.drop("icmp-error-from-guest")  # never applied to anything (conformance E5)
        elif not message.request:
            self._outbox.drop("icmp-unasked-reply")
        elif route.kind == routes.OWN:
            reply = icmp.build_echo(
                request=False, identifier=message.identifier, sequence=message.sequence, payload=message.payload
            )
            self._outbox.send(header.destination, header.source, ipv4.ICMP, reply)
        elif route.kind == routes.OUT:
            self.echo.request(packet, header, message, route.dialled, now)
        else:
            self._refuse_datagram(self._question(header, message.identifier, 0), packet, route.kind, now)

    def _error(self, kind: int, code: int, packet: bytes, now: float, *, source: bytes | None = None) -> bool:
        """Tell the guest of an error in its packet; whether that could be done."""
        error = self._errors.make(kind, code, packet, source or self.settings.gateway_ip, now)
        if error is None:
            return False
        self._outbox.packets.append((packet[12:16], error))
        return True

    def guest_left(self, mac: bytes, now: float) -> None:
        """The guest with this MAC is gone (its link ended): its flows end, its lease stays for when it comes back."""
        self.tcp.guest_left(mac, now)
        addresses = frozenset(address for address, owner in self.neighbours.entries().items() if owner == mac)
        self.udp.guest_left(addresses, now)
        self.echo.guest_left(addresses, now)
        for address in addresses:
            self.judge.pins.forget(address)

    def replace_policy(self, policy: PolicySettings, why: str, now: float) -> None:
        """Put another policy in force, whole: flows it would refuse are reset, the rest live on.

        `why` is for the record: reload, api, kill-switch. A disabled network ends every flow without a word: its guest
        has a network card that carries no frame.
        """
        self.judge.replace(Policy(policy, self.settings), why)
        self._disabled = policy.disabled
        self.tcp.judge_again(now)
        self.udp.judge_again(now)
        self.echo.judge_again(now)

    def candidate_fault(self, protocol: int, address: bytes, port: int) -> str:
        """Why an address (4 or 16 bytes) that a name stands for must not be dialled; empty when it may."""
        return self.judge.candidate(protocol, address, port)

    def dialled(self, address: bytes) -> bytes:
        """Where an address is dialled that a guest has, or that its name stands for: the NAT table knows."""
        return self.settings.nat.get(address, address)

    # -- what happened on the host side ----------------------------------------------------------------------

    def stream_opened(self, flow: int, now: float, address: bytes | None = None) -> None:
        """OpenStream or OpenNamed succeeded; `address` is the one of the name's addresses that answered."""
        self.tcp.opened(flow, now, address)

    def dns_consulted(self, number: int, verdict: Verdict, now: float) -> None:
        """What the hook says to ConsultDns: a verdict that allows or refuses."""
        self._dns_port.consulted(number, verdict, now)

    def flow_consulted(self, question: Question, verdict: Verdict, now: float) -> None:
        """What the hook says to ConsultFlow: a verdict that allows or refuses."""
        if question.protocol == ipv4.TCP:
            self.tcp.consulted(question.flow, verdict, now)
        elif question.protocol == ipv4.UDP:
            self.udp.consulted(question.flow, verdict, now)
        else:
            self.echo.consulted(question.flow, verdict, now)

    def name_resolved(self, flow: int, address: bytes | None, now: float) -> None:
        """ResolveName found an address that may be used (4 bytes), or none."""
        self.udp.name_resolved(flow, address, now)

    def stream_failed(self, flow: int, failure: int, now: float) -> None:
        """OpenStream failed; `failure` is one of the effects module's words (REFUSED, ...)."""
        self.tcp.failed(flow, failure, now)

    def stream_objected(self, flow: int, fault: str, now: float) -> None:
        """OpenNamed found only addresses that `candidate_fault` objects to; `fault` is what it said of the first."""
        self.tcp.objected(flow, fault, now)

    def stream_sent(self, flow: int, count: int) -> None:
        """The host socket took `count` bytes of what SendStream gave."""
        self.tcp.taken(flow, count)

    def stream_room(self, flow: int) -> int:
        """Bytes that may be read from the host socket now. 0: stop reading it until ReadStream."""
        return self.tcp.room(flow)

    def stream_received(self, flow: int, data: bytes) -> None:
        """Bytes read from the host socket, no more than `stream_room` allowed."""
        self.tcp.received(flow, data)

    def stream_ended(self, flow: int) -> None:
        """The host socket is at its end (FIN)."""
        self.tcp.finished(flow)

    def stream_reset(self, flow: int, now: float) -> None:
        """The host socket was reset, or writing to it failed; the driver has closed it."""
        self.tcp.reset(flow, now)

    def datagram_received(self, flow: int, address: bytes, port: int, payload: bytes, now: float) -> None:
        """A datagram came to the socket of OpenDatagrams."""
        self.udp.received(flow, address, port, payload, now)

    def datagram_failed(
        self, flow: int, address: bytes, port: int, failure: int, now: float, *, offender: bytes = b"", mtu: int = 0
    ) -> None:
        """A datagram to `address:port` did not arrive.

        `offender` is who said so (empty: the host itself), `mtu` goes with TOO_BIG.
        """
        self.udp.failed(flow, address, port, failure, now, offender=offender, mtu=mtu)

    def echo_received(self, flow: int, address: bytes, sequence: int, payload: bytes, now: float) -> None:
        """An echo reply came to the socket of OpenEcho."""
        self.echo.received(flow, address, sequence, payload, now)

    def echo_failed(
        self,
        flow: int,
        address: bytes,
        failure: int,
        now: float,
        *,
        sequence: int | None = None,
        offender: bytes = b"",
        mtu: int = 0,
    ) -> None:
        """An echo request to `address` did not arrive, or could not be sent: the latest if `sequence` is not known."""
        self.echo.failed(flow, address, failure, now, sequence=sequence, offender=offender, mtu=mtu)

    def dns_resolved(self, query: int, message: bytes | None, now: float) -> None:
        """What upstream answered to ResolveUpstream; None when nobody did."""
        self._dns_port.resolved(query, message, now)

    def _wake_session(self, flow: int) -> None:
        self.tcp.wake(flow)

    # -- time, and what is to be done ------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `advance` wants to be called, infinity while nothing waits for time to pass."""
        return min(
            self.tcp.next_deadline(),
            self.udp.next_deadline(),
            self.echo.next_deadline(),
            self.neighbours.next_deadline(),
            self._reassembler.next_deadline(),
        )

    def advance(self, now: float) -> None:
        """Let everything whose time has come happen."""
        self.tcp.advance(now)
        self.udp.advance(now)
        self.echo.advance(now)
        self.neighbours.advance(now)
        for first in self._reassembler.advance(now):
            self._error(icmp.TIME_EXCEEDED, icmp.REASSEMBLY_EXPIRED, first, now)

    def take_effects(self, now: float) -> list[Effect]:
        """What is asked of the driver since the last call, in order. Carry it out, then ask again until nothing is."""
        self.tcp.settle(now)
        outbox = self._outbox
        effects, outbox.effects = outbox.effects, []
        return effects

    def take_frames(self, now: float, room: int = 1 << 30, held: Set[bytes] = frozenset()) -> list[bytes]:
        """The frames for the guests: answers first, then about `room` segments of data; see `frames_wait`.

        Guests whose MAC is in `held` get no data this time: their link is behind with what it has.
        """
        outbox = self._outbox
        frames = outbox.frames.copy()
        outbox.frames.clear()  # the list itself stays: every connection appends to it
        if outbox.packets:
            packets, outbox.packets = outbox.packets, []
            mtu = self.settings.link.mtu
            for destination, packet in packets:
                for piece in fragment(packet, mtu) if len(packet) > mtu else (packet,):
                    self.neighbours.send(destination, piece, now)
        frames += self.neighbours.take_frames()
        for _ in self.neighbours.take_unreachable():
            outbox.drop("guest-does-not-answer-arp")
        self.tcp.output(frames, room, now, held)
        if self._disabled:
            frames.clear()
        return frames

    @property
    def frames_wait(self) -> bool:
        """Whether data waits for another `take_frames` because `room` was too small, not because its guest was held."""
        return self.tcp.waiting


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
