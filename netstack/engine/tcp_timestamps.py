"""The time stamps option of one TCP connection (RFC 7323): our clock, the guest's last stamp, and what is too old."""

from __future__ import annotations

from typing import Final

from netstack.wire import tcp

PAWS_IDLE: Final = 24 * 86400.0
"""Seconds after which a kept time stamp says nothing any more (RFC 7323 section 5.5)."""
MAX_ROUND_TRIP: Final = 300.0
"""Seconds; an echo that claims more is not one of ours."""

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_NONE: Final = b"?"  # no options field: they are multiples of four bytes


class Timestamps:
    """`used` once both sides offered the option."""

    __slots__ = ("last_options", "last_value", "offset", "recent", "recent_at", "used")

    def __init__(self, offset: int) -> None:
        """`offset`: where our clock starts, so that nobody learns this host's uptime (section 5.4)."""
        self.used = True
        self.offset = offset
        self.recent = 0
        """The guest's stamp to be echoed (TS.Recent)."""
        self.recent_at = 0.0
        self.last_options = _NONE
        """The options field `fit` accepted last: a burst of segments carries the same one, and needs no second look."""
        self.last_value = 0

    def fit(self, options: bytes) -> bool:
        """Whether an options field holds nothing but a stamp no older than `recent`."""
        pair = tcp.plain_timestamps(options)
        if pair is None or (pair[0] - self.recent) & _MASK >= _HALF:
            return False
        self.last_options, self.last_value = options, pair[0]
        return True

    def clock(self, now: float) -> int:
        """Our time stamp: milliseconds (section 5.4)."""
        return (int(now * 1000) + self.offset) & _MASK

    def option(self, now: float) -> bytes:
        """The option for a segment of now; empty when time stamps are not used."""
        return tcp.build_timestamps(self.clock(now), self.recent) if self.used else b""

    def note(self, value: int, now: float) -> None:
        """Keep the guest's stamp, from a segment at the left edge of the window (section 4.3)."""
        self.recent, self.recent_at = value, now
        self.last_options = _NONE

    def is_old(self, value: int, now: float) -> bool:
        """Whether a segment with this stamp is a duplicate from long ago (PAWS, section 5.3)."""
        return (value - self.recent) & _MASK >= _HALF and now - self.recent_at <= PAWS_IDLE

    def round_trip(self, echo: int, now: float) -> float | None:
        """Seconds since we sent the segment this echo answers; None for an echo that makes no sense (section 4.1)."""
        seconds = ((self.clock(now) - echo) & _MASK) / 1000
        return seconds if seconds <= MAX_ROUND_TRIP else None
