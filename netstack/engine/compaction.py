"""Tables that have become nearly empty: a dict keeps the room of its largest size, however much is deleted from it."""

from __future__ import annotations

from typing import Any


def compact(*tables: dict[Any, Any]) -> None:
    """Give back the room that is empty. In place, and in the same order: others hold these tables too."""
    for table in tables:
        kept = dict(table)
        table.clear()
        table.update(kept)
