"""What a replay says: a record for each step, and what all of it came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from netstack.debug.comparison import Difference
from netstack.engine.events import Event

GUEST: Final = "guest"
HOST: Final = "host"
CLOCK: Final = "clock"


class Record(NamedTuple):
    """One step. `time` is seconds since the first frame; `number` the frame's, as Wireshark counts, 0 for CLOCK."""

    number: int
    time: float
    direction: str
    """GUEST, HOST (recorded), or CLOCK: no frame, time went by."""
    frame: bytes
    """As recorded, with an Ethernet header; empty for CLOCK."""
    flow: int
    """The engine's number of the flow it belongs to; 0 where there is none."""
    events: tuple[Event, ...]
    """What the engine told. Of frames that came in one batch, what it told of all of them is with the last."""
    answers: tuple[bytes, ...]
    """The frames we sent. Of a batch as well."""
    differences: tuple[Difference, ...]
    """Certain by now; a difference's `number` says which recorded frame it is about."""
    skipped: str = ""
    """Why a guest's frame was not given to the engine; mostly empty."""
    comment: str = ""
    """What the file says beside the frame."""


@dataclass(slots=True)
class Summary:
    """What a replay came to. Counts; `differences` of all records together."""

    frames: int = 0
    guest_frames: int = 0
    host_frames: int = 0
    cut_off: int = 0
    """Frames of which the capture holds only the beginning: the rest is replayed as zeros."""
    skipped: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    differences: int = 0
    compared: int = 0
    """Recorded frames or answers that were found equal."""
    seconds: float = 0.0
    told_until: float | None = None
    """The seconds up to which the capture's journal says what happened, if it ends before the capture does."""
    why_no_longer: str = ""
    """Why it ends there."""
    events: Counter[str] = field(default_factory=Counter)
