"""What it costs to be looked at: rows again with a capture or the events on, next to neither, each in turn."""

from __future__ import annotations

from functools import partial
from typing import Final

from bench.lab import Session
from bench.peers import GATEWAY, PEERS, Netstack, Peer
from bench.rules import Group, again

_ROWS: Final = {
    "seen-crr": "tcp-crr",
    "seen-crr-16": "tcp-crr-16",
    "seen-rr": "tcp-rr",
    "seen-up": "tcp-up",
    "seen-down": "tcp-down",
    "seen-udp-new-flow": "udp-new-flow",
    "seen-dns-zone": "dns-zone",
}


def _start(session: Session, option: str | None) -> None:
    Netstack().unixgram(session, *([option, str(session.directory / "seen")] if option else []))


SEEN: Final = Group(
    {name: again(name, row) for name, row in _ROWS.items()},
    tuple(
        Peer(
            name=name,
            link="unix datagram",
            start=partial(_start, option=option),
            version=PEERS["netstack"].version,
            zone_server=GATEWAY,
            forwarding_server=GATEWAY,
        )
        for name, option in (("unseen", None), ("capture", "--capture"), ("events", "--events"))
    ),
)
"""Measured by itself, after the table of the peers."""
