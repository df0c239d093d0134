"""Connections in TIME-WAIT (RFC 9293 section 3.6.1): of a flow that is over, no more is kept than its last words need.

A flow is some forty objects. Whoever closes first waits for a minute, which is us for most that comes in by a port
forward: of them there may be thousands a second. What is left of each is one string of bytes, which the garbage
collector has no need to look at.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from struct import Struct
from typing import Any, Final

from netstack.engine.compaction import compact
from netstack.engine.outbox import Outbox
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.tcp_limits import CHALLENGE_INTERVAL
from netstack.engine.tcp_states import TIME_WAIT_SECONDS
from netstack.engine.tcp_timestamps import Timestamps
from netstack.engine.timers import NOT_SCHEDULED, Timers
from netstack.wire import tcp

SWEEP_SECONDS: Final = 1.0
"""So much later than a record's time is over it goes, with others: nobody is answered out of it meanwhile."""

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_SACK: Final = 1
_STAMPS: Final = 2
# The guest's MAC, the flow's number; RCV.NXT, what of the window was offered beyond it, and how a segment says so;
# SND.NXT (all is acknowledged), the largest window of the guest's; whether SACK and time stamps are used; what the link
# takes off us; our clock's offset, TS.Recent and when it came; when the next challenge may go out; the end.
_RECORD = Struct("!6sQIIHIIBIIIddd")
_NUMBER: Final = 1
_SENT: Final = 5
_END: Final = 13
"""Which of them are the flow's number, SND.NXT and the end."""


class TimeWait:
    """All of one engine's, the first to go first. Who opens flows keeps the bound, as it counts them too."""

    def __init__(self, outbox: Outbox, gateway_mac: bytes) -> None:
        self._outbox = outbox
        self._gateway_mac = gateway_mac
        self._records: OrderedDict[bytes, bytes] = OrderedDict()
        self.timers: Timers[TimeWait] = Timers()
        """One entry for all of them, which have the same time."""
        self.scheduled: list[Any] = NOT_SCHEDULED

    def __len__(self) -> int:
        """Connections that wait."""
        return len(self._records)

    def __contains__(self, key: bytes) -> bool:
        """Whether the connection with these addresses and ports waits."""
        return key in self._records

    @property
    def deadline(self) -> float:
        """When the first have to go."""
        for record in self._records.values():
            return _end(record) + SWEEP_SECONDS
        return inf

    def enter(self, key: bytes, mac: bytes, number: int, connection: TcpConnection) -> None:
        """Keep what is needed of a connection that is in TIME-WAIT and has said what it had to; it may go."""
        buffer, sender, stamps = connection.receive_buffer, connection.sender, connection.stamps
        extent = buffer.edge - buffer.next
        self._records[key] = _RECORD.pack(
            mac, number,
            buffer.next & _MASK, extent, min(extent >> buffer.shift, 0xFFFF),
            sender.next & _MASK, sender.max_window,
            _SACK * connection.receiver.sack | _STAMPS * stamps.used,
            sender.writer.offload,
            stamps.offset, stamps.recent, stamps.recent_at,
            connection.challenge_at, connection.deadline,
        )  # fmt: skip
        if self.scheduled is NOT_SCHEDULED:
            self.timers.schedule(self)

    def leave(self, key: bytes) -> int | None:
        """Another connection takes this one's place: the position after everything it sent. None when there is none."""
        record = self._records.pop(key, None)
        return None if record is None else int(_RECORD.unpack(record)[_SENT])

    def evict(self) -> None:
        """Make room: whoever has waited longest goes."""
        self._records.popitem(last=False)

    def compact(self) -> None:
        """Give back the room of those that are gone."""
        compact(self._records)

    def guest_left(self, mac: bytes) -> None:
        """Nobody is there any more who could say a word again."""
        for key in [key for key, record in self._records.items() if record.startswith(mac)]:
            del self._records[key]

    def key_of(self, number: int) -> bytes | None:
        """The addresses and ports of the connection that was this flow's. Looks at all of them."""
        return next((key for key, record in self._records.items() if _RECORD.unpack(record)[_NUMBER] == number), None)

    def sent_up_to(self, key: bytes) -> int | None:
        """The position after everything the connection sent, modulo 2**32; None when there is none."""
        record = self._records.get(key)
        return None if record is None else int(_RECORD.unpack(record)[_SENT])

    def advance(self, now: float) -> None:
        """Let go of those whose time is over."""
        if not self.timers.due(now):
            return
        records = self._records
        while records:
            key = next(iter(records))
            if _end(records[key]) > now:
                break
            del records[key]
        self.timers.schedule(self)

    def receive(
        self, key: bytes, mac: bytes, sequence: int, acknowledgement: int, flags: int, options: bytes, length: int,
        now: float,
    ) -> bool:  # fmt: skip
        """A segment with `length` bytes of text; whether it is of a connection that waits.

        It is not, where it is a SYN that may take its place (RFC 9293 section 3.6.1, RFC 6191): that opens a flow.
        """
        record = self._records.get(key)
        if record is None:
            return False
        (
            owner, number, expected, extent, window, position, max_window, has, offload, offset, recent, recent_at,
            challenge_at, end,
        ) = _RECORD.unpack(record)  # fmt: skip
        if now >= end:
            del self._records[key]
            return False
        distance = ((sequence - expected + _HALF) & _MASK) - _HALF
        if flags & (tcp.SYN | tcp.ACK | tcp.RST | tcp.FIN) == tcp.SYN and distance >= 0:
            return False
        if owner != mac:
            self._outbox.drop("tcp-flow-of-another")
            return True
        stamps = Timestamps(offset)
        stamps.used, stamps.recent, stamps.recent_at = bool(has & _STAMPS), recent, recent_at
        parsed = tcp.parse_options(options) if options else tcp.NO_OPTIONS
        stamp = parsed.timestamps
        length += flags & tcp.FIN
        again: list[tuple[int, int]] = []
        answer = challenge = restart = False
        # In the order of RFC 9293 section 3.10.7.4, as TcpConnection has it: PAWS, the sequence number, a reset, which
        # changes nothing (RFC 1337 section 3), a SYN, the acknowledgement, and text that cannot be.
        if stamps.used and not flags & tcp.RST and (stamp is None or stamps.is_old(stamp[0], now)):
            challenge = stamp is not None or bool(flags & tcp.SYN)
        elif not _acceptable(distance, length, extent):
            if flags & tcp.RST:
                pass
            elif length and not flags & tcp.SYN and distance + length <= 0:
                answer, restart = True, bool(flags & tcp.FIN)
                again = [(sequence, (sequence + length) & _MASK)]
            else:
                challenge = True
        elif flags & tcp.RST:
            challenge = distance != 0
        elif flags & tcp.SYN:
            challenge = True
        elif flags & tcp.ACK:
            if stamp is not None and distance <= 0:
                stamps.note(stamp[0], now)
            acknowledged = ((acknowledgement - position + _HALF) & _MASK) - _HALF
            challenge = acknowledged > 0 or acknowledged < -max_window
            answer = length > 0 and not challenge
        if challenge and now >= challenge_at:
            challenge_at = now + CHALLENGE_INTERVAL
            answer = True
        if answer:
            said = stamps.option(now)
            if again and has & _SACK:
                said += tcp.build_sack(again)  # RFC 2883
            self._outbox.frames.append(self._writer(key, mac, offload).frame(position, expected, tcp.ACK, window, said))
        self._records[key] = _RECORD.pack(
            owner, number, expected, extent, window, position, max_window, has, offload, offset, stamps.recent,
            stamps.recent_at, challenge_at, now + TIME_WAIT_SECONDS if restart else end,
        )  # fmt: skip
        if restart:
            self._records.move_to_end(key)
        return True

    def _writer(self, key: bytes, mac: bytes, offload: int) -> tcp.SegmentWriter:
        return tcp.SegmentWriter(
            destination_mac=mac,
            source_mac=self._gateway_mac,
            source=key[4:8],
            destination=key[:4],
            source_port=key[10] << 8 | key[11],
            destination_port=key[8] << 8 | key[9],
            offload=offload,
        )


def _acceptable(distance: int, length: int, extent: int) -> bool:
    """See Receiver.acceptable; the FIN was the last that could come."""
    if not length:
        return 0 <= distance <= extent
    if not extent:
        return distance == 0
    return distance < extent and distance + length > 0


def _end(record: bytes) -> float:
    return float(_RECORD.unpack(record)[_END])
