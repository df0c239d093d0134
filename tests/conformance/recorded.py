"""A capture file read back, and fed again to an engine in virtual time.

What the guest sent is sent again at its time. The host's side is read out of the frames the guest was sent: a SYN-ACK
says that a dial succeeded, its sequence number is the engine's, payload is what the server said, a FIN is its end.
Names have the addresses the test gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import dns.message
import dns.rdatatype
import dns.rrset
from dpkt import pcapng
from engine.wire_guest import ip

from guest_iface.capture import CaptureWriter
from guest_iface.pcapng import INBOUND, OUTBOUND
from netstack.engine import effects
from netstack.engine.events import Event
from netstack.engine.settings import NetworkSettings
from netstack.engine.stack import Stack
from netstack.gateway.capture_comments import CaptureComments
from netstack.network_spec import NetworkSpec
from netstack.wire import tcp

SYN_ACK = tcp.SYN | tcp.ACK


class Recorded(NamedTuple):
    """One frame of a file: seconds, direction, bytes, and what stands beside it."""

    time: float
    direction: int
    frame: bytes
    comment: str


def read(path: Path) -> list[Recorded]:
    """The frames of a file, by a walk over its blocks: dpkt's own reader hides the options."""
    data, found = memoryview(path.read_bytes()), []
    while data:
        kind, length = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
        if kind == pcapng.PCAPNG_BT_EPB:
            block = pcapng.EnhancedPacketBlockLE(bytes(data[:length]))
            options = {option.code: option for option in block.opts}
            comment = options.get(pcapng.PCAPNG_OPT_COMMENT)
            flags = options[2].data
            time = (block.ts_high << 32 | block.ts_low) / 1e9
            found.append(Recorded(time, flags[0], block.pkt_data, "" if comment is None else str(comment.text)))
        data = data[length:]
    return found


def comments(frames: Sequence[Recorded]) -> list[str]:
    """All that stands beside frames, in order."""
    return [each.comment for each in frames if each.comment]


class Replay:
    """Feeds a file's frames to an engine, as the driver would; writes a capture of its own."""

    def __init__(
        self,
        frames: Sequence[Recorded],
        spec: NetworkSpec,
        settings: NetworkSettings,
        names: Mapping[str, str],
        to: Path,
    ) -> None:
        self.events: list[Event] = []
        self._names = names
        self._now = frames[0].time
        self._initial = {
            _key(each.frame, reverse=True): int.from_bytes(each.frame[38:42], "big")
            for each in frames
            if each.direction == OUTBOUND and _tcp_flags(each.frame) == SYN_ACK
        }
        self._stack = Stack(
            settings, initial_sequence=lambda key, _now: self._initial.get(key, 0), policy=spec.policy()
        )
        self._comments = CaptureComments()
        self._writer = CaptureWriter(to, clock=lambda: self._now, comment=self._comments.take)
        interface = self._writer.add_interface("replay")
        for each in frames:
            self._wait_until(each.time, interface)
            if each.direction == INBOUND:
                self._writer.hold(interface, [each.frame])
                self._stack.receive_frame(each.frame, self._now)
            else:
                self._host_said(each.frame)
            self._flush(interface)
        self._wait_until(self._now + 60, interface)
        self._writer.close()

    def _wait_until(self, when: float, interface: int) -> None:
        while (deadline := self._stack.next_deadline()) <= when:
            self._now = max(self._now, deadline)
            self._stack.advance(self._now)
            self._flush(interface)
        self._now = when

    def _host_said(self, frame: bytes) -> None:
        flags = _tcp_flags(frame)
        flow = self._stack.tcp.table.get(_key(frame, reverse=True)) if flags is not None else None
        if flags is None or flow is None or not flow.upstream:
            return
        start = 34 + (frame[46] >> 4) * 4
        payload = frame[start : 14 + int.from_bytes(frame[16:18], "big")]
        place = (int.from_bytes(frame[38:42], "big") - self._initial[_key(frame, reverse=True)] - 1) & 0xFFFFFFFF
        fresh = payload[max(0, flow.received - place) :]
        if fresh:
            self._stack.stream_received(flow.id, fresh)
        if flags & tcp.FIN:
            self._stack.stream_ended(flow.id)

    def _flush(self, interface: int) -> None:
        stack, now = self._stack, self._now
        while asked := stack.take_effects(now):
            for effect in asked:
                self._carry_out(effect)
        self._writer.write(interface, stack.take_frames(now), OUTBOUND)

    def _carry_out(self, effect: effects.Effect) -> None:
        stack, now = self._stack, self._now
        if isinstance(effect, effects.Report):
            self.events.append(effect.event)
            self._comments.note(effect.event)
        elif isinstance(effect, effects.OpenStream):
            stack.stream_opened(effect.flow, now)
        elif isinstance(effect, effects.SendStream):
            stack.stream_sent(effect.flow, sum(map(len, effect.chunks)))
        elif isinstance(effect, effects.OpenNamed):
            address = ip(self._names[effect.name])
            fault = stack.candidate_fault(6, address, effect.port)
            if fault:
                stack.stream_objected(effect.flow, fault, now)
            else:
                stack.stream_opened(effect.flow, now, address)
        elif isinstance(effect, effects.ResolveName):
            stack.name_resolved(effect.flow, ip(self._names[effect.name]), now)
        elif isinstance(effect, effects.ResolveUpstream):
            stack.dns_resolved(effect.query, answer(effect.message, self._names), now)


def answer(message: bytes, names: Mapping[str, str]) -> bytes:
    """What a resolver says that knows these names, one address each."""
    response = dns.message.make_response(dns.message.from_wire(message), recursion_available=True)
    question = response.question[0]
    address = names.get(question.name.to_text(omit_final_dot=True).lower())
    if address is None:
        response.set_rcode(3)
    elif question.rdtype == dns.rdatatype.A:
        response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", address))
    return response.to_wire()


def _tcp_flags(frame: bytes) -> int | None:
    """The flags of a whole TCP segment without IP options; None for other frames."""
    if frame[12:15] != b"\x08\x00\x45" or frame[23] != 6 or len(frame) < 54:
        return None
    return frame[47] & 0x3F


def _key(frame: bytes, *, reverse: bool) -> bytes:
    """A flow's addresses and ports as the guest's segments have them."""
    if reverse:
        return frame[30:34] + frame[26:30] + frame[36:38] + frame[34:36]
    return frame[26:38]
