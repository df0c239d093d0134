"""The transcripts together go through every transition of the table, and through no other."""

from __future__ import annotations

import pytest

from netstack.engine import tcp_states as st

from . import (
    test_tcp_closing,
    test_tcp_losses,
    test_tcp_opening,
    test_tcp_receiving,
    test_tcp_sending,
    test_tcp_timer,
    test_tcp_window,
    transcript,
)

SCRIPTS = (
    test_tcp_opening, test_tcp_receiving, test_tcp_window, test_tcp_sending, test_tcp_timer, test_tcp_losses,
    test_tcp_closing,
)  # fmt: skip


class NotingTable(dict[tuple[int, int], int]):
    """A table that notes what is looked up in it."""

    def __init__(self, table: dict[tuple[int, int], int]) -> None:
        super().__init__(table)
        self.asked: set[tuple[int, int]] = set()

    def __getitem__(self, key: tuple[int, int]) -> int:
        self.asked.add(key)
        return super().__getitem__(key)


def test_the_transcripts_cover_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = NotingTable(st.TRANSITIONS)
    monkeypatch.setattr(st, "TRANSITIONS", table)
    for script, limits in transcript.REGISTRY:
        transcript.Player(limits).play(script)
    for state in test_tcp_closing.LATER_STATES.keys() - {"TIME-WAIT"}:
        transcript.Player().play(test_tcp_closing.reset_script(state))
    missing = table.keys() - table.asked
    assert not missing, [(st.STATE_NAMES[state], event) for state, event in sorted(missing)]
    assert table.keys() >= table.asked
    assert len(transcript.REGISTRY) > 100, f"{len(SCRIPTS)} modules of scripts are expected to be imported"


def test_the_table_knows_every_state() -> None:
    states = set(range(len(st.STATE_NAMES)))
    assert {state for state, _ in st.TRANSITIONS} == states
    assert all((state, st.OVER) in st.TRANSITIONS for state in states - {st.CLOSED})
