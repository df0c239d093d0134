"""A flood of events fills no disk (F13): each kind has its budget, and what is left out is counted and told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.events import DnsEvent, FrameDropped, LeaseEvent
from netstack.engine.verdict import REFUSE, Verdict
from netstack.gateway import event_log
from netstack.gateway.event_budget import BURST, RATE, EventBudget
from netstack.gateway.event_log import EventLog

GUEST = bytes([192, 168, 127, 2])
ASKED = DnsEvent(GUEST, "example.org", "A", "udp", "cache", "NOERROR", 1, 0.0)
REFUSED = ASKED._replace(source="policy", verdict=Verdict(REFUSE, "dns", "name-not-allowed", "", "example.org", "dns"))
LEASE = LeaseEvent("offered", bytes(6), GUEST, "vm")


def test_a_burst_then_a_rate() -> None:
    budget = EventBudget()
    assert [budget.admit("dns", 10.0) for _ in range(BURST + 5)] == [True] * BURST + [False] * 5
    assert budget.take_suppressed() == {"dns": 5}
    assert budget.take_suppressed() == {}
    assert sum(budget.admit("dns", 11.0) for _ in range(1000)) == RATE
    assert sum(budget.admit("dns", 10_000.0) for _ in range(2 * BURST)) == BURST, "never more than a burst"


def test_kinds_do_not_take_from_each_other() -> None:
    budget = EventBudget()
    for _ in range(3 * BURST):
        budget.admit("lease", 0.0)
    assert all(budget.admit("dns", 0.0) for _ in range(BURST))
    assert budget.suppressed == {"lease": 2 * BURST}


def test_a_clock_that_is_set_back_costs_nothing_and_gives_nothing() -> None:
    budget = EventBudget()
    for _ in range(BURST):
        budget.admit("dns", 1000.0)
    assert not budget.admit("dns", 0.0)
    assert budget.admit("dns", 1.0)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_what_is_admitted_and_what_is_counted_is_all_there_was(pauses: list[float]) -> None:
    budget, now, admitted = EventBudget(), 0.0, 0
    for pause in pauses:
        now += pause
        admitted += sum(budget.admit("x", now) for _ in range(300))
    assert admitted + budget.suppressed["x"] == 300 * len(pauses)
    assert admitted <= BURST + now * RATE + 1


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def wait_for(path: Path, text: str) -> None:
    """A worker thread writes: real time, virtual clock."""
    while not any(text in str(line["event"]) for line in lines(path)):
        await trio.lowlevel.checkpoint()


async def writer_rests() -> None:
    """The thread is back, and time may pass: what comes now is gathered."""
    while trio.to_thread.current_default_thread_limiter().borrowed_tokens:
        await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def budget_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netstack.gateway.event_budget.BURST", 3)
    monkeypatch.setattr("netstack.gateway.event_budget.RATE", 1.0)


@pytest.mark.usefixtures("budget_of_three")
async def test_f13_a_flood_is_cut_and_told_of_once_a_second(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, clock=mock_clock.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        for _ in range(50):
            log.write(ASKED)
            log.write(LEASE)
        log.write(FrameDropped("too short", 1))
        await wait_for(path, "frame_dropped")
        await writer_rests()
        assert [line["event"] for line in lines(path)] == ["dns", "lease"] * 3 + ["frame_dropped"]
        mock_clock.jump(event_log.TELL_SUPPRESSED)
        await wait_for(path, "events_suppressed")
        assert lines(path)[-1]["suppressed"] == {"dns": 47, "lease": 47}
        await writer_rests()
        log.write(ASKED)
        log.write(ASKED)
        nursery.cancel_scope.cancel()
    *_, asked, told = lines(path)
    assert asked["event"] == "dns"
    assert (told["event"], told["suppressed"]) == ("events_suppressed", {"dns": 1}), "also at the end"


@pytest.mark.usefixtures("budget_of_three")
async def test_f13_a_refused_question_is_not_pushed_out_by_others(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for _ in range(50):
        log.write(ASKED)
    log.write(REFUSED)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        nursery.cancel_scope.cancel()
    assert [line.get("verdict", "") for line in lines(path)] == ["", "", "", "refused", ""]
    assert lines(path)[-1]["suppressed"] == {"dns": 47}


@pytest.mark.usefixtures("budget_of_three")
async def test_counts_that_could_not_be_written_are_told_later(tmp_path: Path) -> None:
    log = EventLog(Path("/dev/full"))
    for _ in range(5):
        log.write(ASKED)
    await log._flush(tell=True)
    log._target = tmp_path / "events.jsonl"
    log.reopen()
    await log._flush(tell=True)
    assert [(line["event"], line.get("lost"), line.get("suppressed")) for line in lines(tmp_path / "events.jsonl")] == [
        ("events_lost", 3, None),
        ("events_suppressed", None, {"dns": 2}),
    ]
