"""One TCP connection of a capture: what the recorded host side said in it, and how its numbers map to ours."""

from __future__ import annotations

from struct import Struct
from typing import Final

from netstack.debug import packets
from netstack.wire import tcp

MAX_HELD: Final = 4 << 20
"""Bytes of the host's stream kept while something before them is missing; further ones are not replayed."""
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_WORD = Struct("!I")
_PAIR = Struct("!II")


class Conversation:
    """By the guest's four-tuple. Positions count the host's bytes from 0, and never wrap."""

    __slots__ = (
        "answered", "answered_by_us", "end_given", "end_recorded", "given", "guest_end", "guest_isn", "isn", "key",
        "last_frame", "ours_end", "ours_finished", "ours_reset", "owed", "paid", "parted", "pieces",
        "recorded_finished", "recorded_reset", "shift", "stamp_shift", "text_recorded", "took", "unread", "untaken",
    )  # fmt: skip

    def __init__(self, key: bytes, guest_isn: int) -> None:
        self.key = key
        self.guest_isn = guest_isn
        self.isn: int | None = None
        """The recorded host side's initial sequence number; None until it is known."""
        self.guest_end: int | None = None
        """Bytes of the guest's stream, once it has sent its FIN."""
        self.owed: int | None = None
        """What the guest acknowledged of the recorded host's before we sent as much; in our numbers."""
        self.paid = -1
        """Up to where we had sent when it was last said."""
        self.last_frame = b""
        """The guest's last segment, from which acknowledgements are made that it owes us."""
        self.shift = 0
        """Our initial sequence number minus the recorded one."""
        self.stamp_shift = 0
        """Our time stamps minus the recorded ones."""
        self.given = 0
        """Position of the next byte that the engine has not been given."""
        self.unread: list[bytes] = []
        """What was said and waits for room in the engine."""
        self.pieces: dict[int, bytes] = {}
        self.end_recorded: int | None = None
        """Position of the host's FIN."""
        self.end_given = False
        self.parted = False
        """We have reset what the recorded host side went on with: what the guest said after that is not for us."""
        self.answered = ""
        """How the recorded host side answered the SYN: SYN-ACK, RST, ICMP; empty if not at all."""
        self.answered_by_us = ""
        self.text_recorded = 0
        """Bytes of the guest's stream that the recorded host side acknowledged."""
        self.untaken = 0
        """Bytes that went out of the engine and that the host has not taken yet, by the recorded windows."""
        self.took = 0
        """Bytes of the guest's stream that went out of the engine to the host."""
        self.recorded_finished = self.recorded_reset = False
        self.ours_end = 0
        """Bytes of the host's stream in the engine's frames."""
        self.ours_finished = self.ours_reset = False

    # -- the recorded host side --------------------------------------------------------------------------------------

    def place(self, sequence: int) -> int:
        """The position of a sequence number of the recorded host's: near to where we are."""
        distance = (sequence - (self.isn or 0) - 1 - self.given) & _MASK
        return self.given + ((distance + _HALF) & _MASK) - _HALF

    def hear(self, packet: packets.Packet) -> None:
        """Take the text and the FIN of a segment; what is new and in order goes to `unread`."""
        position = self.place(packet.sequence)
        if packet.flags & tcp.FIN:
            self.end_recorded = position + len(packet.body)
        if packet.body and position + len(packet.body) > self.given:
            held = self.pieces.get(position, b"")
            if len(packet.body) > len(held) and sum(map(len, self.pieces.values()), len(packet.body)) <= MAX_HELD:
                self.pieces[position] = packet.body
        while True:
            ready = [start for start, piece in self.pieces.items() if start <= self.given]
            if not ready:
                return
            for start in sorted(ready):
                piece = self.pieces.pop(start)
                fresh = piece[self.given - start :]
                if fresh:
                    self.unread.append(fresh)
                    self.given += len(fresh)

    # -- the guest's numbers, as they are right for us ----------------------------------------------------------------

    def fit(self, frame: bytes, packet: packets.Packet) -> bytes:
        """A segment of the guest's with its acknowledgement, SACK blocks and echoed time stamp in our numbers."""
        if not self.shift and not self.stamp_shift:
            return frame
        header = packet.header
        if header is None:
            return frame
        start = 14 + header.header_length
        changed = bytearray(frame)
        if self.shift and packet.flags & tcp.ACK:
            _WORD.pack_into(changed, start + 8, (packet.acknowledgement + self.shift) & _MASK)
        for kind, offset, length in _option_places(packet.options):
            at = start + tcp.HEADER + offset
            if kind == 8 and length == 10 and self.stamp_shift:
                (echo,) = _WORD.unpack_from(changed, at + 6)
                if echo:
                    _WORD.pack_into(changed, at + 6, (echo + self.stamp_shift) & _MASK)
            elif kind == 5 and self.shift:
                for block in range(at + 2, at + length - 7, 8):
                    left, right = _PAIR.unpack_from(changed, block)
                    _PAIR.pack_into(changed, block, (left + self.shift) & _MASK, (right + self.shift) & _MASK)
        return bytes(changed)

    def acknowledge(self, frame: bytes, packet: packets.Packet, send_next: int) -> bytes:
        """The same frame, acknowledging no more than we have sent; what it says beyond is owed."""
        self.last_frame = frame
        header = packet.header
        if header is None or not packet.flags & tcp.ACK:
            return frame
        acknowledgement = (packet.acknowledgement + self.shift) & _MASK
        if not 0 < (acknowledgement - send_next) & _MASK < _HALF:
            self.owed = None
            return frame
        self.owed, self.paid = acknowledgement, send_next & _MASK
        changed = bytearray(frame)
        _WORD.pack_into(changed, 14 + header.header_length + 8, send_next & _MASK)
        return bytes(changed)

    def pay(self, send_next: int) -> bytes:
        """An acknowledgement that was owed, as far as we have sent by now; empty when it has been said."""
        packet = packets.read(self.last_frame)
        header = packet.header
        if self.owed is None or header is None:
            return b""
        upto = self.owed
        if 0 < (upto - send_next) & _MASK < _HALF:
            upto = send_next & _MASK
        else:
            self.owed = None
        start = 14 + header.header_length
        end = start + tcp.HEADER + len(packet.options)
        changed = bytearray(self.last_frame[:end])
        changed[16:18] = (end - 14).to_bytes(2, "big")
        follows = packet.sequence + len(packet.body) + bool(packet.flags & (tcp.SYN | tcp.FIN))
        _PAIR.pack_into(changed, start + 4, follows & _MASK, upto)
        changed[start + 13] = tcp.ACK
        return bytes(changed)


def bounded_syn(frame: bytes, packet: packets.Packet, agreed: tcp.TcpOptions) -> bytes:
    """The guest's SYN with only those options that the recorded SYN-ACK agreed to: ours agrees to no others then."""
    header = packet.header
    if header is None:
        return frame
    start = 14 + header.header_length + tcp.HEADER
    changed = bytearray(frame)
    for kind, at, length in _option_places(packet.options):
        refused = (
            (kind == 3 and agreed.window_scale is None)
            or (kind == 4 and not agreed.sack_permitted)
            or (kind == 8 and agreed.timestamps is None)
        )
        if refused:
            changed[start + at : start + at + length] = b"\x01" * length
    return bytes(changed)


def _option_places(options: bytes) -> list[tuple[int, int, int]]:
    """Kind, offset and length of each whole option."""
    found = []
    at = 0
    while at < len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            break
        found.append((options[at], at, length))
        at += length
    return found
