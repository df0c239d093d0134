"""Whose a frame of a capture is, and whose business: the guest's, ours, or none of the engine's."""

from __future__ import annotations

from netstack.debug import packets
from netstack.debug.capture_reader import OUTBOUND, CapturedFrame
from netstack.debug.lookahead import Seen
from netstack.debug.parties import Parties, from_packet


class Sight:
    """Of one file, whose frames it is shown in order."""

    def __init__(self, parties: Parties, *, own: bool, copies_counted: bool) -> None:
        """`own`: the capture is one of ours. `copies_counted`: its journal knows on how many links a frame went out."""
        self.cut_off = 0
        """Frames of which the capture holds only the beginning."""
        self._parties = parties
        self._own = own
        self._copies_counted = copies_counted
        self._moment = -1
        self._first_on: dict[bytes, int] = {}
        """Frames of ours at that moment of the file, by the interface they were first on."""

    def see(self, captured: CapturedFrame) -> Seen:
        """The frame, with an Ethernet header; what a capture cut off is zeros."""
        parties = self._parties
        frame = from_packet(captured, parties.guest_ip)
        if len(captured.data) < captured.length:
            self.cut_off += 1
            frame = frame.ljust(len(frame) + captured.length - len(captured.data), b"\0")
        if self._own:
            from_guest = captured.direction != OUTBOUND
            passes_by = self._is_for_another(frame) if from_guest else self._is_not_ours(captured, frame)
            return Seen(captured, from_guest, frame, packets.read(frame), passes_by)
        from_guest = frame[6:12] == parties.guest_mac
        if from_guest and not frame[0] & 1:
            # Whatever neighbour it was for is behind our one gateway now.
            frame = parties.gateway_mac + frame[6:]
        return Seen(captured, from_guest, frame, packets.read(frame))

    def _is_for_another(self, frame: bytes) -> bool:
        return frame[:6] != self._parties.gateway_mac and frame[:1] != b"" and not frame[0] & 1

    def _is_not_ours(self, captured: CapturedFrame, frame: bytes) -> bool:
        """From one guest to another; or, where copies are not counted, there for another link already."""
        if frame[6:12] != self._parties.gateway_mac:
            return True
        if self._copies_counted:
            return False
        if captured.time != self._moment:
            self._moment, self._first_on = captured.time, {}
        return self._first_on.setdefault(frame, captured.interface) != captured.interface
