"""What many flows leave behind is given back once they are over and nothing happens, and not before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from netstack.engine.events import FlowClosed, LeaseEvent
from netstack.engine.inbound_tcp import FORWARD
from netstack.engine.settings import NetworkSettings
from netstack.engine.stack import Stack
from netstack.gateway import idle_memory
from netstack.gateway.host_sockets import HostSockets
from netstack.gateway.idle_memory import GROWN, MANY, QUIET_FRAMES, QUIET_SECONDS, IdleMemory, resident_bytes

CLOSED = FlowClosed(1, "tcp", (b"", 1), (b"", 2), (b"", 2), "finished", 0, 0, 1.0, FORWARD)


class Process:
    """A gateway's stack and sockets, and what was given back of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stack = Stack(NetworkSettings(), initial_sequence=lambda _key, _now: 0)
        self.sockets = HostSockets(self.stack)
        self.resident = 40 << 20
        self.given_back: list[float] = []
        monkeypatch.setattr(idle_memory, "resident_bytes", lambda: self.resident)
        monkeypatch.setattr(idle_memory, "give_back_freed", lambda: self.given_back.append(trio.current_time()))
        self.memory = IdleMemory(self.stack, self.sockets)

    def flows(self, count: int) -> None:
        """So many there are now; tables need to know no more of them."""
        table = self.stack.tcp.tables.streams
        table.clear()
        table.update(dict.fromkeys(range(count)))  # type: ignore[arg-type] - nobody looks at them


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    process = Process(monkeypatch)
    yield process
    process.sockets.close()


async def test_many_flows_that_are_over(process: Process, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.memory.run)
        process.flows(MANY)
        process.memory.note(CLOSED)
        await trio.sleep(100)
        assert not process.given_back, "most are there yet"
        process.flows(MANY // 2)
        process.memory.note(CLOSED)
        await trio.sleep(100)
        assert len(process.given_back) == 1
        process.flows(0)
        process.memory.note(CLOSED)
        await trio.sleep(1000)
        assert len(process.given_back) == 1, "the others were not many"
        nursery.cancel_scope.cancel()


async def test_few_flows_are_not_worth_it_unless_memory_has_grown(
    process: Process, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.memory.run)
        for number in range(20):
            process.flows(number % 2)
            process.memory.note(CLOSED)
            await trio.sleep(2 * QUIET_SECONDS)
        assert not process.given_back
        process.resident += GROWN + 1
        await trio.sleep(1000)
        assert not process.given_back, "nothing has ended: nobody looks"
        process.memory.note(CLOSED)
        await trio.sleep(2 * QUIET_SECONDS)
        process.memory.note(CLOSED)
        await trio.sleep(2 * QUIET_SECONDS)
        assert len(process.given_back) == 1, "what stays after it counts as needed"
        nursery.cancel_scope.cancel()


async def test_it_waits_for_quiet(process: Process, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.memory.run)
        process.flows(MANY)
        process.memory.note(CLOSED)
        process.flows(0)
        for _ in range(50):
            process.stack.counters.frames += QUIET_FRAMES + 1
            await trio.sleep(0.9 * QUIET_SECONDS)
        assert not process.given_back
        since = trio.current_time()
        await trio.sleep(10)
        assert [at - since < 3 * QUIET_SECONDS for at in process.given_back] == [True]
        nursery.cancel_scope.cancel()


def test_other_events_are_none_of_its_business(process: Process) -> None:
    process.memory.note(LeaseEvent("offered", bytes(6), bytes(4), "vm"))
    assert not process.memory._over.is_set()


def test_tables_that_are_nearly_empty_give_back_their_room(process: Process) -> None:
    """In place: the stack's hot path and others hold them too."""
    stack, sockets = process.stack, process.sockets
    by_flow = sockets._table.by_flow
    tables: list[Any] = [stack.tcp.table, stack.tcp.tables.streams, stack.udp.table, stack.udp._mappings, by_flow]
    small = [sys.getsizeof(table) for table in tables]
    for table in tables:
        for number in range(5000):
            table[number] = number
        for number in range(4998):
            del table[number]
    assert all(sys.getsizeof(table) > 100_000 for table in tables)
    stack.compact()
    sockets.compact()
    assert all(list(table.items()) == [(4998, 4998), (4999, 4999)] for table in tables)
    assert all(sys.getsizeof(table) < size + 1000 for table, size in zip(tables, small, strict=True))
    assert stack.tcp.table is stack._tcp_table
    assert isinstance(by_flow, dict)
    by_flow.clear()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known")
def test_memory_that_is_used_is_resident() -> None:
    before = resident_bytes()
    block = bytearray(b"x") * (64 << 20)
    assert resident_bytes() > before + (32 << 20)
    del block
