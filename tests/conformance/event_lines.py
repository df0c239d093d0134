"""The event log's lines of what a guest on the virtual wire did, each held to be a line."""

from __future__ import annotations

import json

from netstack.gateway.event_log import event_line

from .policy_wire import PolicyWire

WHEN = 1_764_000_000.0


def lines(wire: PolicyWire) -> list[dict[str, object]]:
    """The event log's lines of what was told so far, each held to be one line of printable JSON."""
    wire.flush()
    found = []
    for event in wire.events:
        line = event_line(event, WHEN)
        assert line.isascii()
        assert line.endswith("}\n")
        assert line[:-1].isprintable()
        found.append(json.loads(line))
    return found
