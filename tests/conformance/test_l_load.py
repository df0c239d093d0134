"""Conformance class L: load. Memory is bounded, other flows go on, and the counters say what happened.

The rows that need a kernel, a VM or a link that ends are in tests/guest (L3, L4, L6, L9), those of one part in
tests/engine: test_tcp_flows.py (L3, L5), test_stack_invariants.py (L1, L4, L8; a million flows of it by `make soak`).
"""

from __future__ import annotations

import gc
import sys
from random import Random

from engine.host_model import HostModel
from engine.test_stack_invariants import (
    ACK,
    PSH,
    SAMPLES,
    SYN,
    QuickGuest,
    check_bounds,
    make_stack,
    numbers,
    quick,
    wake,
)
from engine.wire_guest import START, ip, network

from netstack.engine import tcp_flows
from netstack.engine.events import FlowClosed, FrameDropped
from netstack.engine.refusals import is_told
from netstack.engine.stack import Stack

SYNS = 100_000


class Live:
    """One connection that goes on whatever else happens: each question is answered, in the flush it was asked in."""

    def __init__(self, stack: Stack, host: HostModel, port: int = 999) -> None:
        self.stack, self.host, self.port = stack, host, port
        stack.receive_frame(QuickGuest.segment(port, SYN, 0), START)
        host.flush(START)
        self.flow = max(host.streams)
        host.open_stream(self.flow, START)
        (answer,) = [frame for frame in host.flush(START) if self._is_mine(frame)]
        self.sent, self.heard = 1, numbers(answer)[0] + 1
        stack.receive_frame(QuickGuest.segment(port, ACK, self.sent, self.heard), START)
        host.flush(START)

    def _is_mine(self, frame: bytes) -> bool:
        return frame[36:38] == self.port.to_bytes(2, "big") and frame[23] == 6

    def goes_on(self, now: float) -> bool:
        """Eight bytes to the host, eight back."""
        before = len(self.host.streams[self.flow].sent)
        self.stack.receive_frame(QuickGuest.segment(self.port, ACK | PSH, self.sent, self.heard, b"question"), now)
        self.host.flush(now)
        assert bytes(self.host.streams[self.flow].sent[before:]) == b"question"
        self.sent += 8
        self.host.take_bytes(self.flow, 8)
        self.host.give_bytes(self.flow, b"answered")
        heard = [frame for frame in self.host.flush(now) if self._is_mine(frame)]
        assert heard[-1].endswith(b"answered")
        self.heard += 8
        return True


def test_l1_a_syn_flood_from_many_sources() -> None:
    """25,000 addresses, 4 ports each, one MAC: half-open flows and neighbours are bounded, the oldest go, one lives."""
    stack = make_stack(network(verify=False, subnet=ip("192.168.0.0"), prefix_length=16))
    host = HostModel(stack)
    live = Live(stack, host)
    for number in range(SYNS):
        frame = bytearray(QuickGuest.segment(1024 + number % 4, SYN, number))
        frame[28:30] = (0x0300 + number // 4).to_bytes(2, "big")
        stack.receive_frame(bytes(frame), START)
        if number % 64 == 63:
            host.flush(START)
        if number % 20_000 == 0:
            assert live.goes_on(START)
            check_bounds(stack)
    host.flush(START)
    assert live.goes_on(START)
    check_bounds(stack)
    assert len(host.streams) == tcp_flows.MAX_HALF_OPEN + 1
    assert stack.dropped["tcp-half-open-evicted"] == SYNS - tcp_flows.MAX_HALF_OPEN
    evicted = [event for event in host.events if isinstance(event, FlowClosed)]
    assert len(evicted) == SYNS - tcp_flows.MAX_HALF_OPEN
    assert {event.reason for event in evicted} == {"evicted"}


def calls_of_a_question(idle: int) -> int:
    """What one question and its answer cost, in calls, beside so many idle flows."""
    stack, host = quick(max_tcp_flows=idle + 1)
    for number in range(idle):
        Live(stack, host, 1024 + number)
    live = Live(stack, host)
    assert len(stack.tcp.table) == idle + 1
    wake(stack, host, START + 3600)  # an hour: nobody is asked, nobody is given up
    assert len(stack.tcp.table) == len(host.streams) == idle + 1
    assert live.goes_on(START + 3600)
    total = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal total
        total += event in ("call", "c_call")

    sys.setprofile(note)
    live.goes_on(START + 3601)
    sys.setprofile(None)
    check_bounds(stack)
    return total


def test_l2_ten_thousand_idle_flows() -> None:
    """They live, want no waking, and make nothing dearer for who speaks."""
    assert abs(calls_of_a_question(10_000) - calls_of_a_question(10)) <= 20


def test_l7_garbage_at_line_rate() -> None:
    """Bytes at random and broken frames, batch after batch: each is dropped and counted, few are told of, one flow
    goes on, and nothing is kept."""
    random = Random(7)
    garbage = [random.randbytes(random.choice((0, 5, 13, 14, 60, 200))) for _ in range(2_000)]
    for sample in SAMPLES:
        header, rest = sample[:14], bytearray(sample[14:])
        garbage += [header + random.randbytes(len(rest)) for _ in range(20)]
        garbage += [header + rest[: random.randrange(len(rest))] for _ in range(20)]
    stack, host = quick()
    live = Live(stack, host)
    objects = []
    sent = told = 0
    for turn in range(6):
        for at in range(0, len(garbage), 64):
            for frame in garbage[at : at + 64]:
                stack.receive_frame(frame, START + turn)
            sent += len(garbage[at : at + 64])
            host.flush(START + turn)
            if at % 1024 == 0:
                assert live.goes_on(START + turn)
        check_bounds(stack)
        told += sum(isinstance(event, FrameDropped) for event in host.events)
        host.events.clear()
        host.finished.clear()
        gc.collect()
        objects.append(len(gc.get_objects()))
    assert sum(stack.dropped.values()) > sent // 2
    assert told == sum(sum(map(is_told, range(1, count + 1))) for count in stack.dropped.values()) < 200
    assert max(objects[2:]) < 1.05 * min(objects[2:]), objects
