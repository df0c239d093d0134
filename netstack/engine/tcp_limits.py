"""The bounds of a TCP connection."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

MIN_BUFFER: Final = 64 * 1024
"""What a connection may buffer in each direction before it has shown that it needs more, bytes."""
WINDOW_SHIFT: Final = 7
"""Our window scale: windows up to 8 MiB."""
MIN_MSS: Final = 48
"""A guest that asks for smaller segments gets these (Linux's tcp_min_snd_mss, after CVE-2019-11479)."""
MAX_SYN_RETRANSMISSIONS: Final = 7
"""Then the guest counts as gone: more than three minutes (RFC 9293 section 3.8.3, MUST-23)."""
CHALLENGE_INTERVAL: Final = 0.1
"""Seconds between answers to segments that do not fit the connection (RFC 5961 section 10)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpLimits:
    """What bounds every connection. Sizes in bytes, times in seconds."""

    mss: int = 1460
    """The largest segment we take: link MTU less 40."""
    max_receive_window: int = 1 << 20
    """Never more than the link can queue, else frames are lost before they are read."""
    max_send_buffer: int = 4 << 20
    max_congestion_window: int = 4 << 20
    keepalive_idle: float = inf
    """Idle time before the guest is asked whether it is still there; off by default (RFC 9293 section 3.8.4)."""
    keepalive_interval: float = 75.0
    keepalive_probes: int = 9
