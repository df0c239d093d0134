"""The TCP connections of a replay: how the guest's segments are made to fit our numbers, and what became of them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from netstack.debug import packets
from netstack.debug.comparison import connection_difference
from netstack.debug.conversation import Conversation, bounded_syn
from netstack.debug.lookahead import Lookahead
from netstack.engine.stack import Stack
from netstack.wire import tcp

MAX_CONNECTIONS: Final = 65_536
"""Followed at once; the one that began first is judged and forgotten."""
_MASK: Final = 0xFFFFFFFF


class Connections:
    """`table` has them by the guest's four-tuple."""

    def __init__(self, stack: Stack, ahead: Lookahead, *, exact: bool) -> None:
        """`exact`: our numbers are the recorded ones, and nothing is mapped."""
        self.table: OrderedDict[bytes, Conversation] = OrderedDict()
        self._stack = stack
        self._ahead = ahead
        self._exact = exact
        self._isn: dict[bytes, int] = {}
        self._owing: dict[bytes, Conversation] = {}
        self._differences: list[str] = []
        self._strange: OrderedDict[bytes, str] = OrderedDict()
        self.offloads: set[bytes] = set()
        """MACs of guests whose links take unfinished frames, as a recorded SYN-ACK's checksum shows."""

    def initial_sequence(self, key: bytes) -> int:
        """The recorded initial sequence number of the host side; 0 where it is not in sight."""
        return self._isn.get(key, 0)

    # -- from the guest ------------------------------------------------------------------------------------------------

    def segment(self, frame: bytes, packet: packets.Packet) -> tuple[str, bytes]:
        """A segment of the guest's: why it is not for the engine (mostly empty), and the frame in our numbers."""
        key = packet.key
        conversation = self.table.get(key)
        if packet.flags & (tcp.SYN | tcp.ACK | tcp.RST) == tcp.SYN:
            frame = self._syn(frame, packet, conversation)
        elif key in self._strange:
            return self._strange[key], frame
        elif conversation is None and not packet.flags & tcp.RST and self._ahead.goes_on(key):
            return self._leave_out(key, "begins before the capture"), frame
        elif not self._exact:
            if conversation is None:
                return "begins before the capture", frame
            if conversation.parted:
                return "its flow has ended here", frame
            frame = conversation.fit(frame, packet)
            sent = self._sent_up_to(key)
            if sent is not None:
                frame = conversation.acknowledge(frame, packet, sent)
                if conversation.owed is not None:
                    self._owing[key] = conversation
            if packet.flags & tcp.FIN:
                end = packet.sequence + len(packet.body) - conversation.guest_isn - 1
                conversation.guest_end = end & _MASK
        return "", frame

    def _syn(self, frame: bytes, packet: packets.Packet, old: Conversation | None) -> bytes:
        """A new connection, or its SYN once more: note what the recorded host side is going to agree to."""
        key = packet.key
        self._strange.pop(key, None)
        if old is None or old.guest_isn != packet.sequence:
            if old is not None:
                self._judge(old)
            self.table[key] = old = Conversation(key, packet.sequence)
            if len(self.table) > MAX_CONNECTIONS:
                self._judge(self.table.popitem(last=False)[1])
        answer = self._ahead.answer(key)
        if answer is not None:
            old.isn = answer.sequence
            self._isn[key] = answer.sequence
            if self._exact and answer.is_unfinished and len(self.offloads) < MAX_CONNECTIONS:
                self.offloads.add(frame[6:12])
            if not self._exact:
                frame = bounded_syn(frame, packet, tcp.parse_options(answer.options))
        return frame

    def sent(self, frame: bytes) -> None:
        """Follow what we do to a connection."""
        packet = packets.read(frame)
        if packet.kind != "tcp":
            quoted = packets.quoted(packet)
            conversation = self.table.get(quoted.key) if quoted is not None else None
            if conversation is not None:
                conversation.answered_by_us = conversation.answered_by_us or "ICMP"
            return
        conversation = self.table.get(packet.reversed_key)
        if conversation is None:
            return
        if packet.flags & tcp.RST:
            conversation.answered_by_us = conversation.answered_by_us or "RST"
            conversation.ours_reset = conversation.parted = True
            return
        if packet.flags & tcp.SYN:
            self._opened_by_us(conversation, packet)
        flow = self._stack.tcp.table.get(packet.reversed_key)
        if flow is not None and (packet.body or packet.flags & tcp.FIN) and conversation.isn is not None:
            place = (packet.sequence - conversation.isn - conversation.shift - 1) & _MASK
            conversation.ours_end = max(conversation.ours_end, place + len(packet.body))
            conversation.ours_finished |= bool(packet.flags & tcp.FIN)

    def _opened_by_us(self, conversation: Conversation, packet: packets.Packet) -> None:
        conversation.answered_by_us = "SYN-ACK"
        if conversation.isn is None or self._exact:
            return
        conversation.shift = (packet.sequence - conversation.isn) & _MASK
        answer = self._ahead.answer(conversation.key)
        theirs = tcp.parse_options(answer.options).timestamps if answer is not None else None
        ours = tcp.parse_options(packet.options).timestamps
        if ours is not None and theirs is not None:
            conversation.stamp_shift = (ours[0] - theirs[0]) & _MASK

    def _judge(self, conversation: Conversation) -> None:
        """A connection is over, or replaced: was it as recorded?"""
        self._isn.pop(conversation.key, None)
        if self._exact:
            return
        what = connection_difference(conversation)
        if what:
            self._differences.append(f"{packets.endpoints(conversation.key)}: {what}")

    def is_strange(self, packet: packets.Packet) -> bool:
        """Whether a segment of the host side's is of a connection that is not replayed; notes those it opens itself."""
        key = packet.reversed_key
        if packet.flags & (tcp.SYN | tcp.ACK) == tcp.SYN:
            self._leave_out(key, "opened by a port forward")
        return key in self._strange

    def _leave_out(self, key: bytes, why: str) -> str:
        self._strange[key] = why
        if len(self._strange) > MAX_CONNECTIONS:
            self._strange.popitem(last=False)
        return why

    def pay(self) -> list[bytes]:
        """Acknowledgements that the guest owes us for what we have sent meanwhile, and that it gave long ago."""
        frames = []
        for key, conversation in list(self._owing.items()):
            sent = self._sent_up_to(key)
            if sent is None or conversation.owed is None:
                del self._owing[key]
            elif sent & _MASK != conversation.paid:
                conversation.paid = sent & _MASK
                frames.append(conversation.pay(conversation.paid))
        return frames

    def _sent_up_to(self, key: bytes) -> int | None:
        flow = self._stack.tcp.table.get(key)
        return self._stack.tcp.time_wait.sent_up_to(key) if flow is None else flow.connection.send_next

    def end(self) -> None:
        """The file has ended: all connections are judged."""
        for conversation in self.table.values():
            self._judge(conversation)

    def take_differences(self) -> list[str]:
        """What became certain of connections since the last call."""
        found, self._differences = self._differences, []
        return found
