"""The recorded host side as the upstream's script: what it said to the guest is what host sockets say to the engine.

A SYN-ACK says that a dial succeeded, a reset that it was refused; payload is what the server said, a FIN its end; a DNS
answer is what the resolver found; datagrams, echo replies and ICMP errors are what came to a socket. A frame that the
engine makes by itself (an answer of its own DHCP server, a refusal) has nothing to say to it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from typing import Any, Final

from netstack.debug import packets
from netstack.debug.conversation import Conversation
from netstack.debug.lookahead import Lookahead
from netstack.engine import effects
from netstack.engine.events import Event, FlowOpened
from netstack.engine.fragments import Reassembler
from netstack.engine.stack import Stack
from netstack.engine.tcp_flow import TcpFlow
from netstack.engine.tcp_flows import READ_AT_ONCE
from netstack.wire import dns, dns_answers, icmp, ipv4, tcp

MAX_NAMES: Final = 65_536
"""Names whose addresses are remembered, out of DNS answers of the capture; the oldest makes room."""
MAX_ECHO_FLOWS: Final = 1024
MAX_QUESTIONS: Final = 4096

_FAILURES: Final = {
    icmp.NET_UNREACHABLE: effects.NETWORK_UNREACHABLE,
    icmp.HOST_UNREACHABLE: effects.HOST_UNREACHABLE,
    icmp.PORT_UNREACHABLE: effects.REFUSED,
    icmp.FRAGMENTATION_NEEDED: effects.TOO_BIG,
    icmp.NET_PROHIBITED: effects.PROHIBITED,
    icmp.HOST_PROHIBITED: effects.PROHIBITED,
    icmp.ADMINISTRATIVELY_PROHIBITED: effects.PROHIBITED,
}
_DIALLED = re.compile(r"; dialled ([0-9.]+):\d+")
_OBJECTED = re.compile(r" refused at dial: ([a-z0-9-]+)")


class HostScript:
    """Plays the host's side of one replay into a stack."""

    def __init__(
        self,
        stack: Stack,
        conversations: OrderedDict[bytes, Conversation],
        ahead: Lookahead,
        report: Callable[[Event], None],
        *,
        own: bool,
    ) -> None:
        """`own`: the capture is one of ours, made under the policy that is replayed. `report` is told every event."""
        self._stack = stack
        self._conversations = conversations
        self._ahead = ahead
        self._report = report
        self._own = own
        self._gateway = stack.settings.gateway_ip
        self._dials: dict[int, effects.OpenStream | effects.ServeStream | effects.OpenNamed] = {}
        self._questions: OrderedDict[int, bytes] = OrderedDict()
        self._names: OrderedDict[str, list[bytes]] = OrderedDict()
        self._echoes: OrderedDict[tuple[bytes, int], int] = OrderedDict()
        self._dns_streams: dict[bytes, bytes] = {}
        self._fragments = Reassembler(drop=lambda _reason: None)
        self.sent: Callable[[bytes, bytes], None] = lambda _key, _data: None
        """Told what goes out to the host: the flow's key, the bytes."""

    # -- what the engine asks ----------------------------------------------------------------------------------------

    def carry_out(self, effect: effects.Effect, now: float) -> None:
        """Do what a driver would do, as far as there is something to be done."""
        stack = self._stack
        if isinstance(effect, effects.Report):
            event = effect.event
            if isinstance(event, FlowOpened) and event.protocol == "icmp":
                self._echoes[event.guest] = event.flow
                if len(self._echoes) > MAX_ECHO_FLOWS:
                    self._echoes.popitem(last=False)
            self._report(event)
        elif isinstance(effect, effects.SendStream):
            size = sum(map(len, effect.chunks))
            flow = self._flow_of(effect.flow)
            if flow is not None and (conversation := self._conversations.get(flow.key)) is not None:
                conversation.took += size
                self.sent(flow.key, b"".join(effect.chunks))
                if self._own:
                    conversation.untaken += size
                    self._take(flow, conversation)
                    return
            stack.stream_sent(effect.flow, size)
        elif isinstance(effect, effects.OpenStream | effects.ServeStream):
            self._dials[effect.flow] = effect
        elif isinstance(effect, effects.OpenNamed):
            self._dials[effect.flow] = effect
            if not self._own:
                self._open(effect.flow, now)
        elif isinstance(effect, effects.ResolveName):
            stack.name_resolved(effect.flow, self._address_for(effect), now)
        elif isinstance(effect, effects.ResolveUpstream):
            question = packets.dns_question(effect.message)
            if question is not None:
                self._questions[effect.query] = question
                if len(self._questions) > MAX_QUESTIONS:
                    stack.dns_resolved(self._questions.popitem(last=False)[0], None, now)
        elif isinstance(effect, effects.ReadStream):
            flow = self._flow_of(effect.flow)
            if flow is not None and (conversation := self._conversations.get(flow.key)) is not None:
                self._say(flow, conversation, now)
        elif isinstance(effect, effects.CloseStream | effects.AbortStream):
            self._dials.pop(effect.flow, None)

    def _take(self, flow: TcpFlow, conversation: Conversation, packet: packets.Packet | None = None) -> None:
        """The host takes what the engine gave it: all of it, unless the window in the recorded answer says otherwise.

        `packet` is that answer; without one it is looked for ahead.
        """
        buffer = flow.connection.receive_buffer
        if packet is None:
            # What was answered at once, out of order, says nothing yet of what the host took of this batch.
            key, position = flow.key, buffer.next & 0xFFFFFFFF
            at_once = [each for each in map(packets.read, self._stack.answers) if each.kind == "tcp"]
            besides = sum(each.reversed_key == key and each.acknowledgement == position for each in at_once)
            packet = self._ahead.acknowledging(key, position, besides)
        count = conversation.untaken
        if packet is not None and packet.acknowledgement == buffer.next & 0xFFFFFFFF:
            offered = packet.window << buffer.shift
            grown = min(2 * buffer.limit, buffer.limit_max)
            # All of it, or so much that the window is the recorded one, which may have grown on the way, or nothing.
            for left in (0, buffer.limit - offered, grown - offered, conversation.untaken):
                trial = copy(buffer)
                trial.unsent += left - conversation.untaken
                if 0 <= left <= conversation.untaken and trial.advertise() == packet.window:
                    count = conversation.untaken - left
                    break
        if count:
            conversation.untaken -= count
            self._stack.stream_sent(flow.id, count)

    def _flow_of(self, number: int) -> TcpFlow | None:
        return self._stack.tcp.flow(number)

    def _address_for(self, effect: effects.ResolveName) -> bytes | None:
        """An address of a datagram flow's name, out of the capture's DNS answers."""
        known = self._names.get(effect.name, [])
        return next((each for each in known if not self._stack.candidate_fault(ipv4.UDP, each, effect.port)), None)

    def _open(self, number: int, now: float, address: bytes | None = None) -> None:
        """A dial succeeds, if the policy has nothing against the addresses of the name."""
        effect = self._dials.pop(number, None)
        if isinstance(effect, effects.OpenStream | effects.ServeStream):
            self._stack.stream_opened(number, now)
        elif effect is not None:
            flow = self._flow_of(number)
            known = [address] if address else self._names.get(effect.name, [])
            # Its addresses may not be in the capture; the one that the guest used is.
            candidates = known or ([flow.question.destination[0]] if flow is not None else [])
            faults = [self._stack.candidate_fault(ipv4.TCP, each, effect.port) for each in candidates]
            if candidates and all(faults):
                self._stack.stream_objected(number, faults[0], now)
            else:
                chosen = next(each for each, fault in zip(candidates, faults, strict=True) if not fault)
                self._stack.stream_opened(number, now, chosen)

    # -- what the host side said -------------------------------------------------------------------------------------

    def comment(self, packet: packets.Packet, comment: str, *, from_guest: bool, now: float) -> None:
        """What our own capture says of a dial beside a frame: it had come to an end by then."""
        flow = self._stack.tcp.table.get(packet.key if from_guest else packet.reversed_key)
        if flow is None or flow.id not in self._dials or not isinstance(self._dials[flow.id], effects.OpenNamed):
            return
        if objected := _OBJECTED.search(comment):
            del self._dials[flow.id]
            self._stack.stream_objected(flow.id, objected[1], now)
        elif dialled := _DIALLED.search(comment):
            self._open(flow.id, now, bytes(map(int, dialled[1].split("."))))

    def hear(self, frame: bytes, packet: packets.Packet, now: float, *, last: bool = True) -> None:
        """A frame of the recorded host side. `last`: no more text of its connection follows at the same moment."""
        if packet.kind == "fragment" and packet.header is not None:
            whole = self._fragments.receive(frame[14:], packet.header, frame[6:12], now)
            if whole is None:
                return
            packet = packets.read_ip(whole)
        if packet.kind == "tcp":
            self._hear_segment(packet, now, last=last)
        elif packet.kind == "udp":
            self._hear_datagram(packet, now)
        elif packet.kind == "icmp":
            self._hear_icmp(packet, now)

    def had_said(self, time: int, now: float, *, besides: set[bytes]) -> bool:
        """What goes out in the very flush in which a batch of the guest's was received (at `time` of the file) was
        there before: the host's sockets are read in flushes of their own. Returns whether there is anything of it.

        `besides`: flows that were refused then; what goes out on them is a farewell of the engine's own.
        """
        ends: dict[bytes, tuple[TcpFlow, Conversation, int]] = {}
        for packet in self._ahead.answers_at(time):
            key = packet.reversed_key
            conversation, flow = self._conversations.get(key), self._stack.tcp.table.get(key)
            if conversation is None or flow is None or not flow.upstream or flow.session is not None or key in besides:
                continue
            before = conversation.given
            conversation.hear(packet)
            if conversation.given > before or packet.flags & tcp.FIN:
                ends[key] = flow, conversation, packet.flags
        for key, (flow, conversation, flags) in ends.items():
            if not flags & tcp.PSH:
                self._read_on(conversation, key)
            self._say(flow, conversation, now)
        return bool(ends)

    def expire(self, now: float) -> None:
        """Let go of fragments whose time is over."""
        if self._fragments.next_deadline() <= now:
            self._fragments.advance(now)

    # TCP

    def _hear_segment(self, packet: packets.Packet, now: float, *, last: bool) -> None:
        key = packet.reversed_key
        conversation = self._conversations.get(key)
        flow = self._stack.tcp.table.get(key)
        if conversation is None:
            return
        if packet.flags & tcp.RST:
            conversation.recorded_reset = True
            conversation.answered = conversation.answered or "RST"
            if flow is not None:
                self._reset(flow, conversation, now)
            return
        if packet.flags & tcp.SYN:
            conversation.answered = "SYN-ACK"
            if conversation.isn is None:
                conversation.isn = packet.sequence
        elif packet.flags & tcp.ACK:
            acknowledged = (packet.acknowledgement - conversation.guest_isn - 1) & 0xFFFFFFFF
            if acknowledged < 0x80000000:
                conversation.text_recorded = max(conversation.text_recorded, acknowledged)
        if packet.flags & tcp.FIN:
            conversation.recorded_finished = True
        if conversation.untaken and flow is not None:
            self._take(flow, conversation, packet)
        if flow is not None and flow.id in self._dials and (packet.flags & tcp.SYN or packet.body):
            self._open(flow.id, now)
        if packet.body or packet.flags & tcp.FIN:
            conversation.hear(packet)
            if self._own and last and conversation.unread and not packet.flags & tcp.PSH:
                self._read_on(conversation, key)
            if flow is not None:
                self._say(flow, conversation, now)

    def _read_on(self, conversation: Conversation, key: bytes) -> None:
        """The engine had more of the stream than this segment holds: PSH is where what it had was at its end."""
        for packet in self._ahead.texts(key):
            before = conversation.given
            if packet.flags & tcp.SYN or conversation.place(packet.sequence) > before:
                return  # something was dropped before it was recorded
            conversation.hear(packet)  # a FIN on it was known when it was cut
            # What is sent once more has PSH wherever it was cut.
            if packet.flags & tcp.PSH and conversation.given > before:
                return

    def _say(self, flow: TcpFlow, conversation: Conversation, now: float) -> None:
        """Give the engine what the host side said, as far as it has room for it."""
        stack = self._stack
        if flow.session is not None:
            self._answer_stream(conversation, now)
            return
        if not flow.upstream:
            return
        while conversation.unread:
            room = READ_AT_ONCE if self._own else stack.stream_room(flow.id)
            if not room:
                return
            data = conversation.unread.pop(0)
            if len(data) > room:
                conversation.unread.insert(0, data[room:])
                data = data[:room]
            elif self._own and conversation.unread:
                data = b"".join((data, *conversation.unread))
                conversation.unread.clear()
            stack.stream_received(flow.id, data)
        if conversation.end_recorded == conversation.given and not conversation.end_given:
            conversation.end_given = True
            stack.stream_ended(flow.id)

    def _reset(self, flow: TcpFlow, conversation: Conversation, now: float) -> None:
        """The recorded host side reset a connection that ours still has."""
        if flow.id in self._dials:
            del self._dials[flow.id]
            self._stack.stream_failed(flow.id, effects.REFUSED, now)
        elif flow.upstream and not conversation.parted:
            self._stack.stream_reset(flow.id, now)

    # DNS

    def _answer_stream(self, conversation: Conversation, now: float) -> None:
        key = conversation.key
        stream = self._dns_streams.pop(key, b"") + b"".join(conversation.unread)
        conversation.unread.clear()
        for message in packets.dns_messages(stream):
            stream = stream[2 + len(message) :]
            self._resolved(message, now)
        if stream and len(stream) <= 65_537:
            self._dns_streams[key] = stream

    def _resolved(self, message: bytes, now: float) -> None:
        question = packets.dns_question(message)
        if question is None:
            return
        self._learn(message, question)
        for query, asked in self._questions.items():
            if asked == question:
                del self._questions[query]
                self._stack.dns_resolved(query, message, now)
                return

    def _learn(self, message: bytes, question: bytes) -> None:
        """Addresses of names, for flows that are opened by name."""
        if question[-4:] != b"\0\1\0\1":
            return
        response = dns.parse_response(message)
        if isinstance(response, str):
            return
        found = dns_answers.read(response.records, question[:-4], 1, 4)
        addresses = [data for each in found.data.values() for _, data in each]
        name = b".".join(dns.labels(question[:-4])).decode("ascii", "replace")
        if addresses:
            self._names.pop(name, None)
            self._names[name] = addresses
            if len(self._names) > MAX_NAMES:
                self._names.popitem(last=False)

    # Datagrams

    def _hear_datagram(self, packet: packets.Packet, now: float) -> None:
        if packet.source_port == 53:
            message: bytes | None = packet.body
            if len(packet.body) > 2 and packet.body[2] & 2:  # TC: the whole answer follows, over TCP
                question = packets.dns_question(packet.body)
                whole = self._ahead.dns_over_tcp(packet.destination, question) if question else None
                message = whole or packet.body
            if message is not None and packet.source == self._gateway and self._gateway not in self._stack.settings.nat:
                self._resolved(message, now)
                return
            if message is not None and (question := packets.dns_question(message)):
                self._learn(message, question)
        flow = self._stack.udp.table.get(packet.reversed_key)
        if flow is not None:
            self._stack.datagram_received(flow.mapping.id, flow.dialled[0], packet.source_port, packet.body, now)
            return
        # From another port of an address the guest has sent to (RFC 4787 section 5).
        for other in self._stack.udp.table.values():
            guest = (packet.destination, packet.destination_port)
            if other.question.guest == guest and other.question.destination[0] == packet.source:
                self._stack.datagram_received(other.mapping.id, other.dialled[0], packet.source_port, packet.body, now)
                return

    def _hear_icmp(self, packet: packets.Packet, now: float) -> None:
        stack = self._stack
        if packet.flags >> 8 == icmp.ECHO_REPLY:
            number = self._echoes.get((packet.destination, packet.source_port))
            if number is not None:
                address = stack.dialled(packet.source)
                stack.echo_received(number, address, packet.destination_port, packet.body, now)
            return
        quoted = packets.quoted(packet)
        if quoted is None:
            return
        kind, code = packet.flags >> 8, packet.flags & 0xFF
        failure = effects.TTL_EXCEEDED if kind == icmp.TIME_EXCEEDED else _FAILURES.get(code, effects.HOST_UNREACHABLE)
        if kind == icmp.TIME_EXCEEDED and code == icmp.REASSEMBLY_EXPIRED:
            return
        said: dict[str, Any] = {"mtu": packet.destination_port if failure == effects.TOO_BIG else 0}
        said["offender"] = self._offender(packet.source, quoted.destination)
        if quoted.kind == "tcp":
            flow = stack.tcp.table.get(quoted.key)
            if flow is not None and flow.id in self._dials:
                del self._dials[flow.id]
                if (conversation := self._conversations.get(quoted.key)) is not None:
                    conversation.answered = conversation.answered or "ICMP"
                stack.stream_failed(flow.id, failure, now)
        elif quoted.kind == "udp":
            known = stack.udp.table.get(quoted.key)
            if known is not None:
                stack.datagram_failed(known.mapping.id, *known.dialled, failure, now, **said)
        elif quoted.kind == "icmp":
            number = self._echoes.get((quoted.source, quoted.source_port))
            if number is not None:
                address = stack.dialled(quoted.destination)
                stack.echo_failed(number, address, failure, now, sequence=quoted.destination_port, **said)

    def _offender(self, source: bytes, destination: bytes) -> bytes:
        """Who is to be said to have sent an error: nobody where it was the gateway itself."""
        if source == self._gateway:
            return b""
        return self._stack.dialled(destination) if source == destination else source
