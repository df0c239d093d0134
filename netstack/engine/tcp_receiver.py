"""The receiving half of a TCP connection: which bytes are taken, and when the guest is told so."""

from __future__ import annotations

from math import inf
from typing import Final

from netstack.engine.tcp_buffers import ReceiveBuffer
from netstack.wire import tcp

DELAYED_ACK: Final = 0.04
"""Seconds; RFC 9293 section 3.8.6.3 allows up to 0.5."""

_MASK: Final = 0xFFFFFFFF


class Receiver:
    """What came from the guest, and what it has to hear about it."""

    __slots__ = (
        "_duplicate", "_finish_at", "buffer", "delayed_ack_at", "finished", "full_segment", "last_ack_sent", "must_ack",
        "sack", "unacknowledged",
    )  # fmt: skip

    def __init__(self, buffer: ReceiveBuffer, full_segment: int, *, sack: bool) -> None:
        """`full_segment`: the payload of the guest's full-sized segments, bytes."""
        self.buffer = buffer
        self.full_segment = full_segment
        self.sack = sack
        self.must_ack = False
        """Whether an acknowledgement is due at the end of the batch."""
        self.unacknowledged = 0
        """Bytes in order that no acknowledgement has covered yet."""
        self.delayed_ack_at = inf
        self.last_ack_sent = buffer.next
        """The acknowledgement the guest last heard (Last.ACK.sent of RFC 7323)."""
        self.finished = False
        """The guest's FIN has been reached."""
        self._finish_at: int | None = None
        self._duplicate: tuple[int, int] | None = None

    def begin(self, full_segment: int, *, sack: bool) -> None:
        """The guest's SYN has come: `buffer` begins behind it."""
        self.full_segment = full_segment
        self.sack = sack
        self.last_ack_sent = self.buffer.next

    def acceptable(self, position: int, length: int) -> bool:
        """The four cases of RFC 9293 section 3.10.7.4, with the right edge we have offered.

        Two segments more: one without text at the very edge, which is where a guest stands that has filled our window
        and lost a segment of it, and one with text at a closed window, whose acknowledgement counts.
        """
        expected, edge = self.buffer.next, self.buffer.edge
        if not length:
            return expected <= position <= edge
        if edge == expected:
            return position == expected
        return position < edge and position + length > expected

    def take(self, position: int, payload: bytes, *, fin: bool) -> bool:
        """Take the text of an acceptable segment; returns whether it is answered at once and on its own."""
        buffer = self.buffer
        before = buffer.next
        end = position + len(payload)
        if end > buffer.edge:  # what does not fit the window is cut off, and the FIN with it
            payload = payload[: max(0, buffer.edge - position)]
            self.must_ack = True
            fin = False
        elif fin:
            self.must_ack = True
            if self._finish_at is None and end >= buffer.highest:
                self._finish_at = end
        if self._finish_at is not None and end > self._finish_at:
            payload = payload[: max(0, self._finish_at - position)]  # there is nothing beyond a FIN
        end = position + len(payload)
        out_of_order = False
        if payload:
            if end <= before or (position > before and buffer.holds(position, end)):
                self._duplicate = (position, end)
            had_gaps = bool(buffer.gaps)
            if end <= before:
                self.must_ack = True
            elif buffer.insert(max(position, before), payload[before - position :] if position < before else payload):
                self.unacknowledged += buffer.next - before
                # RFC 5681 section 4.2: a segment that fills a gap is acknowledged at once.
                self.must_ack |= had_gaps
            else:
                # And one out of order too, each on its own: the sender counts them.
                out_of_order = True
        if fin and end == self._finish_at:
            buffer.mark(end)
        if buffer.next == self._finish_at and not self.finished:
            self.finished = self.must_ack = True
            buffer.next += 1
            buffer.edge = max(buffer.edge, buffer.next)
        return out_of_order

    def repeated(self, position: int, end: int) -> None:
        """[position, end) came again: our acknowledgement was lost, or the guest repeats too early."""
        self._duplicate = (position, end)
        self.must_ack = True

    def is_due(self) -> bool:
        """Whether an acknowledgement goes out now.

        RFC 9293 section 3.8.6.3: for every second full segment at once, else within DELAYED_ACK; and when the window
        opens that a guest may be waiting for.
        """
        return (
            self.must_ack
            or self.unacknowledged >= 2 * self.full_segment
            or (not self.finished and self.buffer.window_opened())
        )

    def wait(self, now: float) -> None:
        """Some bytes are not acknowledged yet: something to say, or more bytes, may come within the time allowed."""
        if self.delayed_ack_at == inf:
            self.delayed_ack_at = now + DELAYED_ACK

    @property
    def has_blocks(self) -> bool:
        """Whether an acknowledgement without SACK would say less than the guest should know (RFC 2018 section 4)."""
        return self.sack and (self._duplicate is not None or bool(self.buffer.gaps))

    def sack_option(self, limit: int) -> bytes:
        """The SACK option, of up to `limit` blocks: first what came twice (RFC 2883). Empty when there is nothing."""
        blocks = [self._duplicate] if self._duplicate is not None else []
        for left, right in self.buffer.sack_blocks(limit - len(blocks)):
            blocks.append((left, right + (right == self._finish_at)))  # a FIN behind a gap counts as the last byte
        return tcp.build_sack([(left & _MASK, right & _MASK) for left, right in blocks]) if blocks else b""

    def acknowledgement_went_out(self) -> None:
        """The guest was told of everything up to `buffer.next`."""
        self.must_ack = False
        self._duplicate = None
        self.unacknowledged = 0
        self.delayed_ack_at = inf
        self.last_ack_sent = self.buffer.next

    def stop(self) -> None:
        """The connection is over: nothing is acknowledged any more, and no gap will be filled."""
        self.must_ack = False
        self.unacknowledged = 0
        self.delayed_ack_at = inf
        self.buffer.clear()
