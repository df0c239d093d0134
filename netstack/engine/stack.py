"""The whole engine: joins the parts, decides nothing itself.

Frames of the guest go in by `receive_frames`, what happens on the host side by the `stream_*`, `datagram_*`, `echo_*`
and `dns_*` methods, time by `advance`. Then `take_effects` says what is asked of the driver, `take_frames` what goes to
the guest, and `next_deadline` when `advance` is wanted. No call blocks, and no frame makes one raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from struct import Struct
from typing import Final

from netstack.engine.acknowledgements import MIN_BATCH, without_superseded
from netstack.engine.counters import Counters
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
from netstack.engine.inbound_udp import InboundUdp
from netstack.engine.ipv4_input import Ipv4Input
from netstack.engine.judge import Judge
from netstack.engine.neighbours import Neighbours
from netstack.engine.outbox import Outbox
from netstack.engine.policy import FULL_ACCESS, Policy, PolicySettings
from netstack.engine.routes import Routes
from netstack.engine.settings import NetworkSettings
from netstack.engine.tcp_flow import Session
from netstack.engine.tcp_flows import TcpFlows
from netstack.engine.udp_flows import UdpFlows
from netstack.engine.verdict import Question, Verdict
from netstack.engine.zones import Zones
from netstack.wire import ethernet, ipv4, tcp

# What the hot path needs: both MACs, type, version and length, TOS, total length, identification, fragment, TTL,
# protocol, checksum, and the key of the flow: addresses and ports.
_GUARD = Struct("!12sHBBHHHBBH12s")
_SEGMENT = Struct("!IIHHHH")
_NO_PORT: Final = bytes(2)
_DNS_PORT: Final = DNS_PORT.to_bytes(2, "big")
_FRAGMENT_BITS: Final = ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK


class Stack:
    """One gateway and its guests."""

    def __init__(
        self,
        settings: NetworkSettings,
        *,
        initial_sequence: Callable[[bytes, float], int],
        policy: PolicySettings = FULL_ACCESS,
        segment_offload: Callable[[bytes], int] = lambda _mac: 0,
    ) -> None:
        """`initial_sequence(key, now)` gives TCP's initial sequence numbers, 0..2**32-1 (RFC 6528).

        `segment_offload(mac)` says, when a flow begins, what the link of the guest with that MAC does for us: how many
        bytes of text a TCP frame may hold, which then needs only part of its checksum; 0 where it does nothing.

        Raises ValueError when the settings contradict themselves.
        """
        mtu = settings.link.mtu
        if not MIN_MTU <= mtu <= ipv4.MAX_PACKET:
            raise ValueError(f"an MTU of {mtu} is outside {MIN_MTU}..{ipv4.MAX_PACKET}")
        self.settings = settings
        self._outbox = outbox = Outbox()
        self._counters = outbox.counters
        self.judge = Judge(Policy(policy, settings), settings, outbox)
        self._disabled = policy.disabled
        self._mac = settings.gateway_mac
        self._verify = settings.link.verify_checksums
        self.dhcp = DhcpServer(settings, report=outbox.report, drop=outbox.drop)
        self.neighbours = Neighbours(settings, drop=outbox.drop, holder=self.dhcp.holder)
        self.dns = DnsServer(Zones(settings.zones), outbox.report, judge=self.judge, mtu=mtu)
        self.names = HostNames(self.dns.zones, self.dns.cache)
        routes = Routes(settings)
        errors = IcmpErrors(settings, drop=outbox.drop, counters=outbox.counters)
        self._reassembler = Reassembler(drop=outbox.drop)
        self._dns_port = DnsPort(self.dns, outbox, settings.gateway_ip, self._wake_session)
        self.tcp = TcpFlows(
            settings,
            outbox,
            errors,
            self.judge,
            self.neighbours,
            initial_sequence=initial_sequence,
            segment_offload=segment_offload,
            services={(settings.gateway_ip, DNS_PORT): self._dns_port.session},
        )
        host_errors = HostErrors(settings, outbox, errors)
        self.udp = UdpFlows(settings, outbox, host_errors, self.judge)
        self.echo = EchoFlows(settings, outbox, host_errors, self.judge)
        self.inbound_udp = InboundUdp(settings, outbox, initial_sequence, self.udp.table.__contains__)
        self._ipv4 = Ipv4Input(
            settings,
            outbox,
            self.judge,
            routing=routes,
            errors=errors,
            neighbours=self.neighbours,
            reassembler=self._reassembler,
            dhcp=self.dhcp,
            dns_port=self._dns_port,
            tcp_flows=self.tcp,
            udp_flows=self.udp,
            echo_flows=self.echo,
            inbound_udp=self.inbound_udp,
        )
        self._timers = (*self.tcp.timers, *self.udp.timers, *self.echo.timers, *self.inbound_udp.timers)
        self._tcp_table = self.tcp.table
        self._udp_table = self.udp.table
        self._inbound_udp_table = self.inbound_udp.table
        self._close_ways_in(policy.disabled, "", 0.0)

    @property
    def dropped(self) -> dict[str, int]:
        """Frames, packets and flows refused so far, by reason word."""
        return self._outbox.dropped

    @property
    def counters(self) -> Counters:
        """What was received and sent so far. Whoever calls `receive_frames` adds its frames, once a batch."""
        return self._counters

    def note_drop(self, reason: str) -> None:
        """Count a frame that was dropped before it came here, and tell people of it as of any other."""
        self._outbox.drop(reason)

    # -- frames from the guest -------------------------------------------------------------------------------

    def receive_frames(self, frames: Sequence[bytes], now: float) -> None:
        """Process a batch of frames, as `receive_frame` does each, but for acknowledgements that are out of date."""
        for frame in without_superseded(frames) if len(frames) >= MIN_BATCH else frames:
            self.receive_frame(frame, now)

    def receive_frame(self, frame: bytes, now: float) -> None:
        """Process one Ethernet frame from the guest. Never raises, whatever the bytes."""
        # The plain cases: a segment or a datagram of a flow we know, or a question for our name server; whole, without
        # IP options. Everything else goes the long way.
        size = len(frame)
        if size >= 42:
            macs, ethertype, version, _, total, _, fragmented, ttl, protocol, _, key = _GUARD.unpack_from(frame)
            if (
                version == 0x45
                and ethertype == 0x0800
                and ttl > 1
                and not fragmented & _FRAGMENT_BITS
                and not self._verify
            ):
                end = 14 + total
                if protocol == ipv4.TCP:
                    flow = self._tcp_table.get(key)
                    if flow is not None and size >= 54 and macs == flow.macs:
                        sequence, acknowledgement, flags, window, _, _ = _SEGMENT.unpack_from(frame, 38)
                        text = 34 + (flags >> 12) * 4
                        if 54 <= text <= end <= size and not flags & tcp.SYN:
                            flow.connection.receive(
                                sequence, acknowledgement, flags & 0x3F, window, frame[54:text], frame[text:end], now
                            )
                            if not flow.touched:
                                self.tcp.touch(flow)
                            return
                elif (
                    protocol == ipv4.UDP
                    and 42 <= end <= size
                    and frame[38] << 8 | frame[39] == total - 20
                    and macs.startswith(self._mac)
                ):
                    known = self._udp_table.get(key)
                    asks = known is None and self._asks(key)
                    if (known is not None or asks) and self.neighbours.confirms(key[:4], macs[6:], now):
                        self._counters.datagrams_quick += 1
                        if known is not None:
                            self.udp.send_on(known, frame[42:end], ttl - 1, quotable(frame[14:end]), now)
                        else:
                            self._dns_port.datagram(key[:4], frame[34] << 8 | frame[35], frame[42:end], now)
                        return
        self._receive_any(frame, now)

    def _asks(self, key: bytes) -> bool:
        """Whether a datagram with these addresses and ports is a question to our name server, and no answer to us."""
        return (
            key.endswith(_DNS_PORT)
            and key[4:8] == self.settings.gateway_ip
            and key[8:10] != _NO_PORT
            and key not in self._inbound_udp_table
            and not self._disabled
        )

    def _receive_any(self, frame: bytes, now: float) -> None:
        self._counters.long_way += 1
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
            self._ipv4.receive(frame[ethernet.HEADER :], source, to_group=bool(destination[0] & 1), now=now)
        elif ethertype == ethernet.ARP:
            self.neighbours.receive(frame[ethernet.HEADER :], source, now)
        elif ethertype == ethernet.IPV6:
            drop("frame-ipv6")
        elif ethertype == ethernet.VLAN:
            drop("frame-vlan")
        else:
            drop("frame-type")

    def guest_left(self, mac: bytes, now: float) -> None:
        """The guest with this MAC is gone (its link ended): its flows end, its lease stays for when it comes back."""
        self.tcp.guest_left(mac, now)
        addresses = frozenset(address for address, owner in self.neighbours.entries().items() if owner == mac)
        self.udp.guest_left(addresses, now)
        self.inbound_udp.guest_left(addresses, now)
        self.echo.guest_left(addresses, now)
        for address in addresses:
            self.judge.pins.forget(address)

    def replace_policy(self, policy: PolicySettings, why: str, now: float, *, final: bool = False) -> None:
        """Put another policy in force, whole: flows it would refuse are reset, the rest live on.

        `why` is for the record: reload, api, kill-switch. A disabled network ends every flow without a word: its guest
        has a network card that carries no frame. No list speaks of flows towards guests and of the driver's services
        at the gateway; a `final` policy ends them, and lets none begin.
        """
        self.judge.replace(Policy(policy, self.settings), why)
        self._disabled = policy.disabled
        self._close_ways_in(policy.disabled or final, "network disabled" if policy.disabled else "kill switch", now)
        self.tcp.admission.judge_again(now, final=final)
        self.udp.judge_again(now)
        self.echo.judge_again(now)

    def _close_ways_in(self, closed: bool, reason: str, now: float) -> None:
        self.tcp.inbound.close(closed, now)
        self.inbound_udp.close_all(closed, reason, now)

    # -- towards the guest -----------------------------------------------------------------------------------

    def open_inbound(
        self,
        source: tuple[bytes, int],
        guest: tuple[bytes, int],
        now: float,
        *,
        client: tuple[bytes, int] | None = None,
        timeout: float = 10.0,
    ) -> int:
        """Open a TCP flow to a guest's address and port; its number.

        `source` is who the guest sees, with port 0 for any; `client`, for the record, who it really is (4 or 16 bytes
        and a port). Effects tell what comes of it: InboundOpened, and it is a stream as any other, or InboundFailed,
        after `timeout` seconds at the latest (three when nobody answers ARP).
        """
        return self.tcp.inbound.open(source, guest, client, now, timeout)

    def call_off_inbound(self, flow: int, now: float) -> None:
        """A flow of `open_inbound` that has not opened is wanted no more; nothing more is told of it."""
        self.tcp.inbound.call_off(flow, now)

    def open_inbound_datagrams(
        self,
        source: tuple[bytes, int],
        guest: tuple[bytes, int],
        now: float,
        *,
        client: tuple[bytes, int] | None = None,
        timeout: float = 90.0,
    ) -> int:
        """A flow for one client's datagrams to a guest's port; its number. Arguments are those of `open_inbound`.

        What the guest answers are DeliverDatagram effects. It ends by InboundDatagramsEnded: after `timeout` seconds
        of silence, when the guest says that nobody is there, or by `close_inbound_datagrams`.
        """
        return self.inbound_udp.open(source, guest, client, timeout, now)

    def send_inbound_datagram(self, flow: int, payload: bytes, now: float) -> None:
        """A datagram of the client's, an empty one too; more than 65,507 bytes are none."""
        self.inbound_udp.send(flow, payload, now)

    def close_inbound_datagrams(self, flow: int, now: float) -> None:
        """The flow is wanted no more."""
        self.inbound_udp.close(flow, now)

    def host_service(self, port: int) -> None:
        """Guests' connections to this port of the gateway are ServeStream effects from now on."""
        self.tcp.hosted.add(port)

    def unhost_service(self, port: int) -> None:
        """They are reset again. Those that are open go on."""
        self.tcp.hosted.discard(port)

    def dns_session(self, asker: bytes, woken: Callable[[int], None]) -> Session:
        """The gateway's name server for a stream that is no flow of a guest's; `asker` is who asks, for the record.

        `woken` is called when an answer has come from upstream. Its `closed` has to be called at the end.
        """
        return self._dns_port.session(asker, self._outbox.next_flow(), woken)

    def end_flow(self, number: int, now: float) -> bool:
        """End a flow because somebody on the host wants it: both sides are reset. False when there is none of it."""
        flow = self.tcp.tables.streams.get(number)
        if flow is not None:
            flow.connection.abort()
            self.tcp.tables.abandon(flow, "closed by hand", now)
            return True
        return self.udp.end(number, now) or self.echo.end(number, now) or self.inbound_udp.end(number, now)

    # -- what may leave --------------------------------------------------------------------------------------

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
            self.tcp.admission.consulted(question.flow, verdict, now)
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
        self.tcp.admission.objected(flow, fault, now)

    def stream_sent(self, flow: int, count: int) -> None:
        """The host socket took `count` bytes of what SendStream gave."""
        self.tcp.taken(flow, count)

    def stream_room(self, flow: int) -> int:
        """Bytes that may be read from the host socket at once, 512 KiB at most. 0: stop reading it until ReadStream."""
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

    def compact(self) -> None:
        """Let the tables of flows give back the room that is empty by now. For when many have gone, and time allows."""
        self.tcp.tables.compact()
        self.udp.compact()

    # -- time, and what is to be done ------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `advance` wants to be called, infinity while nothing waits for time to pass."""
        due = self.neighbours.next_deadline()
        for timers in self._timers:
            first = timers.first
            if first < due:
                due = first
        return min(due, self._reassembler.next_deadline())

    def advance(self, now: float) -> None:
        """Let everything whose time has come happen."""
        self.tcp.advance(now)
        self.udp.advance(now)
        self.echo.advance(now)
        self.inbound_udp.advance(now)
        self.neighbours.advance(now)
        for first in self._reassembler.advance(now):
            self._ipv4.reassembly_expired(first, now)

    def take_effects(self, now: float) -> list[Effect]:
        """What is asked of the driver since the last call, in order. Carry it out, then ask again until nothing is."""
        self.tcp.settle(now)
        outbox = self._outbox
        effects, outbox.effects = outbox.effects, []
        return effects

    @property
    def answers(self) -> Sequence[bytes]:
        """Frames that were made at once while this batch was received, and wait for `take_frames`."""
        return self._outbox.frames

    def take_frames(self, now: float, room: int = 1 << 30, held: Set[bytes] = frozenset()) -> list[bytes]:
        """The frames for the guests: answers first, then about `room` segments of data; see `frames_wait`.

        Guests whose MAC is in `held` get no data this time: their link is behind with what it has.
        """
        frames = self.take_batch(now, room, held)
        return [frame if isinstance(frame, bytes) else b"".join(frame) for frame in frames]

    def take_batch(self, now: float, room: int = 1 << 30, held: Set[bytes] = frozenset()) -> list[tcp.Frame]:
        """The same for whoever can send frames that are in pieces."""
        outbox = self._outbox
        frames: list[tcp.Frame] = []
        if outbox.frames:
            frames += outbox.frames
            if not self._disabled:
                self._counters.went_out(outbox.frames)
            outbox.frames.clear()  # the list itself stays: every connection appends to it
        if outbox.packets:
            packets, outbox.packets = outbox.packets, []
            self._counters.packets_sent += len(packets)
            mtu = self.settings.link.mtu
            for destination, packet in packets:
                for piece in fragment(packet, mtu) if len(packet) > mtu else (packet,):
                    self.neighbours.send(destination, piece, now)
        if self.neighbours.has_news:
            frames += self.neighbours.take_frames()
            for _ in self.neighbours.take_unreachable():
                outbox.drop("guest-does-not-answer-arp")
        answers = len(frames)
        self.tcp.output(frames, room, now, held)
        if self._disabled:
            frames.clear()
        else:
            self._counters.segments_sent += len(frames) - answers
        return frames

    @property
    def frames_wait(self) -> bool:
        """Whether data waits for another `take_frames` because `room` was too small, not because its guest was held."""
        return self.tcp.waiting
