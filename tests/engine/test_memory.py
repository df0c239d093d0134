"""What flows cost in memory: little while they are idle, whatever went through them before, and nothing once over."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

from netstack.build_kind import build_kind
from netstack.engine.effects import SendStream

from .wire_guest import GuestTcp, VirtualWire, network, sent_bytes

FLOWS = 20
IDLE_FLOW = 8 * 1024
"""Bytes of Python objects an idle flow may cost (issue 4)."""
DATA = bytes(30_000)


def held_by(make: Callable[[], object]) -> int:
    """Bytes that netstack's own code allocated meanwhile and still holds."""
    # Compiled code has no frames: what it allocates counts as its caller's, who holds a little of its own.
    callers = ["*/engine/wire_guest.py"] if build_kind() == "compiled" else []
    ours = [tracemalloc.Filter(inclusive=True, filename_pattern=each) for each in ("*/netstack/*", *callers)]
    gc.collect()
    tracemalloc.start()
    try:
        make()
        gc.collect()
        taken = tracemalloc.take_snapshot().filter_traces(ours)
    finally:
        tracemalloc.stop()
    return sum(statistic.size for statistic in taken.statistics("filename"))


def open_flows(wire: VirtualWire) -> list[GuestTcp]:
    flows = [wire.open_tcp("203.0.113.5", 443) for _ in range(FLOWS)]
    wire.events.clear()
    wire.hear_raw()
    return flows


def test_an_idle_flow() -> None:
    wire = VirtualWire(network(verify=False))
    open_flows(wire)  # tables, caches and free lists have grown by then
    kept: list[GuestTcp] = []
    assert 0 < held_by(lambda: kept.extend(open_flows(wire))) / FLOWS < IDLE_FLOW


def test_an_idle_flow_that_was_busy() -> None:
    """Buffers are given back once what was in them has gone."""
    wire = VirtualWire(network(verify=False))
    flows = open_flows(wire)

    def be_busy() -> None:
        for flow in flows:
            for at in range(0, len(DATA), 1400):
                flow.say(DATA[at : at + 1400])
                went = wire.asked()
                wire.stack.stream_sent(
                    flow.flow, len(sent_bytes(each for each in went if isinstance(each, SendStream)))
                )
            wire.stack.stream_received(flow.flow, DATA[: wire.stack.stream_room(flow.flow)])
            wire.flush()
            while flow.hear_bytes():
                flow.ack()
            wire.asked()
            wire.hear_raw()
        wire.events.clear()

    assert held_by(be_busy) / FLOWS < IDLE_FLOW


def test_flows_that_are_over() -> None:
    wire = VirtualWire(network(verify=False))

    def open_and_close() -> None:
        for flow in open_flows(wire):
            flow.rst()
        wire.wait(120)  # for the entries in heaps
        wire.asked()
        wire.hear_raw()
        wire.events.clear()

    open_and_close()
    assert held_by(open_and_close) < FLOWS * 100
