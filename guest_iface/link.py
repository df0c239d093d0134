"""How a guest attaches: the Link interface that every transport implements, its capabilities and its counters.

A link carries whole Ethernet frames (no preamble, no FCS). It knows nothing of what is in them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

MIN_FRAME = 14
"""An Ethernet header; anything shorter is not a frame."""
MAX_FRAME = 65_562
"""14 bytes of Ethernet, a 65,535-byte IP packet and what virtio may add; every receive buffer holds this much."""
BATCH = 64
"""Frames taken from a link in one wake-up, at most."""
FRAME_PIECES = 3
"""Pieces a frame may be in."""
Pieces = tuple[bytes, *tuple[bytes | memoryview, ...]]
Frame = bytes | Pieces
"""A frame to the guest. A large one may be in pieces, FRAME_PIECES at most, the first of which holds all headers: the
kernel gathers them as it copies (writev(2)), and nobody has to before. Measured at 64 KiB: 21 us for a sum and a write,
33-42 us with a copy or two, which push what is needed next out of the cache.
"""


def frame_size(frame: Frame) -> int:
    """Bytes of it."""
    return len(frame) if isinstance(frame, bytes) else sum(map(len, frame))


def whole(frame: Frame) -> bytes:
    """The frame in one piece."""
    return frame if isinstance(frame, bytes) else b"".join(frame)


def all_whole(frames: Sequence[Frame]) -> list[bytes]:
    """These frames, each in one piece."""
    return [frame if isinstance(frame, bytes) else b"".join(frame) for frame in frames]


class LinkError(Exception):
    """The link cannot go on; the message names the endpoint, what came and what was expected."""


class LinkClosed(LinkError):  # noqa: N818 - it says how the link ended, which is no error of anybody's
    """The guest's side has gone: end of stream, connection reset, or a datagram peer that no longer exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCapabilities:
    """What a link can carry. Sizes in bytes."""

    mtu: int = 1500
    """Largest IP packet towards the guest."""
    largest_frame: int = MAX_FRAME
    """Largest frame accepted from the guest (a TSO frame may be larger than the MTU)."""
    queue_frames: int = 1000
    """Frames that fit between the guest and us before some are dropped; 65,536 where the guest has to wait instead."""
    reliable_bytes: bool = True
    """Bytes cannot be damaged on the way, so received checksums need no verification (and may be partial)."""
    segment_offload: int = 0
    """Above 0, TCP segments of the gateway's go with partial checksums, and may hold this many bytes of text: the
    guest's side cuts them. The IPv4 header has no options then. 0: frames go as they are to arrive."""
    batch_calls: bool = False
    """Many frames go with one system call, under load."""


@dataclass(slots=True)
class LinkCounters:
    """Totals since the link was made. `rx` is from the guest, `tx` is to the guest."""

    rx_frames: int = 0
    rx_bytes: int = 0
    rx_dropped: int = 0
    """Datagrams that are not frames (too short, too long), refused senders."""
    tx_frames: int = 0
    tx_bytes: int = 0
    tx_dropped: int = 0
    """Frames that did not fit the bounded transmit queue, or had no peer to go to."""
    guests: int = 0
    """Guests that have attached: grows by one each time a restarted VM is taken over."""
    drops: dict[str, int] = field(default_factory=dict)
    """Why frames were dropped, both directions: reason -> frames. The reasons are a fixed set of words per link."""

    def drop_received(self, reason: str, frames: int = 1) -> None:
        """Count frames from the guest that go no further."""
        self.rx_dropped += frames
        self.drops[reason] = self.drops.get(reason, 0) + frames

    def drop_sent(self, reason: str, frames: int = 1) -> None:
        """Count frames to the guest that go no further."""
        self.tx_dropped += frames
        self.drops[reason] = self.drops.get(reason, 0) + frames


class Link(ABC):
    """One guest's attachment.

    Used by one task that calls `receive_batch` in a loop, while `send_batch` is called from anywhere in the same
    thread. `run` must be running while the link is used: it writes out what the kernel would not take at once.
    """

    name: str
    capabilities: LinkCapabilities
    counters: LinkCounters

    @abstractmethod
    async def receive_batch(self) -> list[bytes]:
        """Wait for the guest, then drain at most BATCH frames without waiting again.

        Raises LinkClosed when the guest's side is gone for good, LinkError when what it sends cannot be understood.
        """

    @property
    def descriptor(self) -> int:
        """What becomes readable when `receive_now` may have something; -1 for nothing."""
        return -1

    @property
    def holds_frames(self) -> bool:
        """Whether `receive_now` has frames of which `descriptor` does not tell, because they were read with others."""
        return False

    def receive_now(self, _limit: int = BATCH) -> list[bytes]:
        """At most so many frames that are there already, without waiting: the plain case of `receive_batch`.

        None while only `receive_batch` can say what comes next. Never raises: what it finds to be the link's end, that
        one tells.
        """
        return []

    @abstractmethod
    def send_batch(self, frames: Sequence[Frame]) -> None:
        """Send frames in order without waiting. What the kernel does not take now is queued up to a bound, then
        dropped and counted.

        Never raises for the guest's doing: a peer that is gone shows in `receive_batch`.
        """

    @property
    @abstractmethod
    def backlog(self) -> int:
        """Frames waiting in the transmit queue: the sender of bulk data holds back while this is not small."""

    @abstractmethod
    async def wait_backlog_drained(self) -> None:
        """Return when the transmit queue is empty (at once if it is), or the link was closed."""

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write out the transmit queue for as long as the link lives. Returns when the link is closed."""

    @abstractmethod
    def close(self) -> None:
        """Close sockets and remove what was bound in the file system. Safe to call twice."""


class Listener(ABC):
    """An endpoint that guests connect to, one link each. After a guest has left, the next `accept` takes the
    restarted VM.
    """

    name: str
    """The endpoint as people write it, for messages: `qemu unix:///run/net.sock`."""

    @abstractmethod
    async def accept(self) -> Link:
        """Wait for a guest to connect. Raises LinkClosed once the listener is closed."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening and remove what was bound in the file system. Links already accepted live on. Safe to call
        twice.
        """
