"""A capture replayed to its end, for tests: its lines, what was told, what differs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from netstack.debug.comparison import Difference
from netstack.debug.dialogue import Dialogue, header_lines, summary_line
from netstack.debug.parties import parse_guest
from netstack.debug.replay import Replay
from netstack.debug.replay_records import Summary
from netstack.engine.events import Event
from netstack.network_spec import NetworkSpec

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a capture. `lines` is its trace; `exact` says that it was compared byte by byte."""

    lines: tuple[str, ...]
    events: tuple[Event, ...]
    differences: tuple[Difference, ...]
    frames: tuple[bytes, ...]
    """All that the stack sent, in order."""
    streams: dict[bytes, bytes]
    """What went out to hosts, by the four-tuple of the guest's segments."""
    summary: Summary
    exact: bool

    def told(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


def replay_capture(
    path: str | os.PathLike[str],
    *,
    spec: NetworkSpec | None = None,
    guest: str | None = None,
    batches: int | None = None,
) -> Replayed:
    """Replay a capture file (pcap, pcapng).

    `spec` is the policy it is replayed under (None: the capture's own, or full access); `guest` the IPv4 address or MAC
    of the guest, where the capture does not show it; `batches` see Replay. Raises CaptureError, and ValueError for a
    `guest` that is neither.
    """
    known = parse_guest(guest) if guest is not None else None
    policy = spec.policy() if spec is not None else None
    opened = Replay.open(Path(path), policy=policy, guest=known, batches=batches)
    with opened as replay:
        streams = replay.streams = {}
        dialogue = Dialogue()
        lines = header_lines(replay)
        events: list[Event] = []
        differences: list[Difference] = []
        frames: list[bytes] = []
        for record in replay:
            lines += dialogue.lines(record)
            events += record.events
            differences += record.differences
            frames += record.answers
        lines.append(summary_line(replay))
        collected = {key: bytes(data) for key, data in streams.items()}
        return Replayed(
            tuple(lines), tuple(events), tuple(differences), tuple(frames), collected, replay.summary, replay.exact
        )
