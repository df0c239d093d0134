"""What holds whatever happens: no frame raises, no table outgrows its bound, time always moves on, the engine asks only
what may be asked of flows that are alive, and the same inputs give the same outputs.
"""

from __future__ import annotations

import gc
import hashlib
import math
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random
from struct import Struct, pack_into

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR, fragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from netstack.engine import effects, inbound_tcp, inbound_udp, tcp_flows
from netstack.engine.events import FlowClosed
from netstack.engine.policy import FULL_ACCESS
from netstack.engine.settings import NetworkSettings
from netstack.engine.stack import Stack
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.tcp_flow import TcpFlow

from .host_model import HostModel
from .wire_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    GUEST_MAC,
    HOST_ALIAS,
    SERVER,
    START,
    UNUSED,
    check_frame,
    ip,
    mac,
    network,
    ping,
    udp,
)

SMALL = {"max_tcp_flows": 6, "max_udp_flows": 5, "max_echo_flows": 3}


def make_stack(config: NetworkSettings) -> Stack:
    return Stack(config, initial_sequence=lambda key, now: hash_of(key) + int(now))


def hash_of(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") & 0x7FFF_FFFF


def check_bounds(stack: Stack) -> None:
    """Every table a guest can make grow, against its bound."""
    config = stack.settings
    tcp, udp_flows, echo = stack.tcp, stack.udp, stack.echo
    assert len(tcp.tables) <= config.max_tcp_flows
    assert len(tcp._streams) <= len(tcp.table)
    assert len(tcp._half_open) <= min(len(tcp._streams), tcp_flows.MAX_HALF_OPEN)
    assert not set(tcp.table) & set(tcp.time_wait._records)
    assert len(tcp.time_wait.timers) <= 2
    assert set(tcp.inbound._opening) <= set(tcp._streams)
    assert len(tcp.inbound) <= inbound_tcp.MAX_OPENING
    assert len(stack.inbound_udp.table) == len(stack.inbound_udp._by_number) <= inbound_udp.MAX_FLOWS
    assert len(stack._dns_port._sessions) <= len(tcp._streams)
    assert len(udp_flows.table) <= config.max_udp_flows
    assert len(udp_flows._unreplied) <= len(udp_flows.table)
    assert len(udp_flows._mappings) == len(udp_flows._by_number) <= len(udp_flows.table)
    assert sum(peer.flows for each in udp_flows._mappings.values() for peer in each.peers.values()) == len(
        udp_flows.table
    )
    assert len(echo._table) == len(echo._by_number) <= config.max_echo_flows
    for timers, living in ((tcp._timers, len(tcp.table)), (udp_flows._timers, len(udp_flows.table))):
        assert len(timers) <= max(1024, 8 * living)
    assert len(stack._reassembler) <= 256
    assert len(stack.neighbours.entries()) <= 4096
    assert len(stack.dropped) < 80, "reasons are words of a fixed set"


# -- any frame ---------------------------------------------------------------------------------------------------------


def samples() -> list[bytes]:
    """A frame of each kind there is."""
    tcp_packets = [
        IP(src=GUEST, dst=destination) / TCP(sport=40_000, dport=port, flags=flags, seq=1000, options=options)
        for destination, port in ((SERVER, 80), (GATEWAY, 53), (HOST_ALIAS, 22))
        for flags, options in (
            ("S", [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]),
            ("A", [("NOP", None), ("NOP", None), ("SAck", (5, 10, 20, 30))]),
            ("FPA", [("Timestamp", (2, 1))]),
            ("R", []),
        )
    ]
    packets: list[Packet] = [
        *tcp_packets,
        tcp_packets[1] / Raw(b"some text"),
        udp(SERVER, 7, b"abc"),
        udp(GATEWAY, 53, bytes.fromhex("00010100000100000000000003777777036f72670000010001")),
        udp(GATEWAY, 67, bytes(240), source_port=68),
        ping(SERVER),
        ping(GATEWAY),
        udp(SERVER, 7, options=[IPOption_RR(routers=["0.0.0.0"])]),
        IP(src=GUEST, dst=SERVER) / ICMP(type=3, code=3) / Raw(bytes(udp(SERVER, 7))),
        *fragment(udp(SERVER, 7, bytes(100)), fragsize=64),
        IP(src=GUEST, dst="224.0.0.1", proto=2) / Raw(bytes(8)),
        IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / Raw(bytes(300)),
    ]
    frames = [bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / packet) for packet in packets]
    frames.append(bytes(Ether(src=GUEST_MAC, dst=BROADCAST_MAC) / ARP(hwsrc=GUEST_MAC, psrc=GUEST, pdst=GATEWAY)))
    return frames


SAMPLES = samples()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid frame with some bytes changed, cut off, or added."""
    frame = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(frame) - 1))
        frame[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, frame[at] ^ 1]) | st.integers(0, 255))
    size = draw(st.none() | st.integers(0, len(frame)))
    return bytes(frame[:size]) + draw(st.sampled_from([b"", b"", bytes(20)]))


FRAMES = st.binary(max_size=200) | st.builds(lambda rest: SAMPLES[0][:14] + rest, st.binary(max_size=80)) | mutated()


@given(st.lists(FRAMES, max_size=12), st.booleans(), st.booleans())
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_k3_l7_no_frame_raises(frames: list[bytes], verify: bool, in_one_batch: bool) -> None:
    """Conformance K3, L7; gvproxy defect 1."""
    stack = make_stack(network(verify=verify, **SMALL))
    host = HostModel(stack)
    for frame in frames:
        stack.receive_frame(frame, START)
        if not in_one_batch:
            for said in host.flush(START):
                check_frame(said, 1500)
    for said in host.flush(START):
        check_frame(said, 1500)
    check_bounds(stack)
    assert stack.next_deadline() > START


@pytest.mark.parametrize("verify", [True, False])
def test_k3_every_truncation_of_every_frame(verify: bool) -> None:
    """Conformance K3."""
    for sample in SAMPLES:
        stack = make_stack(network(verify=verify))
        host = HostModel(stack)
        for size in range(len(sample) + 1):
            stack.receive_frame(sample[:size], START)
        host.flush(START)
        check_bounds(stack)


# -- anything at all, in any order -------------------------------------------------------------------------------------

NUMBERS = st.integers(-2, 60)
ADDRESSES = st.sampled_from([ip(SERVER), ip(GUEST), ip("127.0.0.1"), bytes(4), b"\xff" * 4])


class Anything(RuleBasedStateMachine):
    """A guest that sends what it likes, a host that says what it may, and more about flows there are none of."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = tcp_flows.MAX_HALF_OPEN
        tcp_flows.MAX_HALF_OPEN = 4  # a bound that is reached by a few steps
        self.stack = make_stack(network(verify=False, **SMALL))
        self.host = HostModel(self.stack)
        self.now = START
        self.last: dict[bytes, tuple[int, int]] = {}

    def teardown(self) -> None:
        tcp_flows.MAX_HALF_OPEN = self.bound

    def flush(self) -> None:
        for frame in self.host.flush(self.now):
            check_frame(frame, 1500)
            if frame[23] == 6 and frame[12:14] == b"\x08\x00":
                segment = Ether(frame)[TCP]
                length = len(segment.payload) + ("S" in segment.flags) + ("F" in segment.flags)
                self.last[frame[30:34] + frame[26:30] + frame[36:38] + frame[34:36]] = (
                    segment.seq + length,
                    segment.ack,
                )

    @rule(frames=st.lists(FRAMES, min_size=1, max_size=4))
    def the_guest_sends_anything(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.stack.receive_frame(frame, self.now)
        self.flush()

    @rule(
        port=st.integers(1, 3),
        destination=st.sampled_from([SERVER, SERVER, GATEWAY, UNUSED]),
        flags=st.sampled_from(["S", "S", "A", "A", "PA", "PA", "FA", "R", "SA", "FPA"]),
        skew=st.sampled_from([0, 0, 0, 0, 1, -1, 1000, 70_000, 2**31]),
        window=st.sampled_from([0, 1, 100, 65_535, 65_535]),
        data=st.sampled_from([b"", b"x", bytes(1460), bytes(4000)]),
    )
    def the_guest_speaks_tcp(
        self, port: int, destination: str, flags: str, skew: int, window: int, data: bytes
    ) -> None:
        dport = 53 if destination == GATEWAY else 80
        key = ip(GUEST) + ip(destination) + port.to_bytes(2, "big") + dport.to_bytes(2, "big")
        acknowledgement, sequence = self.last.get(key, (0, 1000))
        segment = TCP(
            sport=port, dport=dport, flags=flags, seq=(sequence + skew) % 2**32, ack=acknowledgement % 2**32,
            window=window,
        )  # fmt: skip
        packet = IP(src=GUEST, dst=destination) / segment / Raw(b"" if "S" in flags else data)
        self.stack.receive_frame(bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / packet), self.now)
        self.flush()

    @rule(seed=st.integers(0, 2**32))
    def the_host_says_something(self, seed: int) -> None:
        for _ in range(4):
            self.host.say_anything(Random(seed), self.now)
            self.flush()

    @rule(
        flow=NUMBERS, address=ADDRESSES, data=st.binary(max_size=50), failure=st.sampled_from([*effects.FAILURE_WORDS])
    )
    def the_host_speaks_of_flows_there_are_none_of(self, flow: int, address: bytes, data: bytes, failure: int) -> None:
        stack, now = self.stack, self.now
        if flow not in self.host.streams and flow not in self.host.opening:
            stack.stream_opened(flow, now)
            stack.stream_failed(flow, failure, now)
            stack.stream_sent(flow, 10)
            assert stack.stream_room(flow) == 0 or flow in stack.tcp._streams
            stack.stream_received(flow, data)
            stack.stream_ended(flow)
            stack.stream_reset(flow, now)
        stack.datagram_received(flow, address, 7, data, now)
        stack.datagram_failed(flow, address, 7, failure, now, offender=address, mtu=100_000)
        stack.echo_received(flow, address, 1, data, now)
        stack.echo_failed(flow, address, failure, now, offender=address)
        if flow not in self.host.queries:
            stack.dns_resolved(flow, data, now)
        self.flush()

    @rule(
        port=st.integers(1, 3),
        source=st.sampled_from([(SERVER, 80), (SERVER, 80), (GATEWAY, 0), (GATEWAY, 53)]),
        guest=st.sampled_from([GUEST, GUEST, GUEST, UNUSED, GATEWAY]),
        data=st.sampled_from([b"", bytes(3000)]),
        seed=st.integers(0, 9),
    )
    def somebody_calls_the_guest(self, port: int, source: tuple[str, int], guest: str, data: bytes, seed: int) -> None:
        """From the very places that the guest talks to as well."""
        client, place = (ip(source[0]), source[1]), (ip(guest), port)
        if seed:
            self.host.call(client, place, self.now)
        else:
            self.host.call_off(Random(seed), self.now)
        self.host.send_to_guest(client, place, data, self.now)
        self.flush()

    @rule(flags=st.sampled_from(["SA", "SA", "SA", "S", "RA"]))
    def the_guest_answers_calls(self, flags: str) -> None:
        for key in [flow.key for flow in self.stack.tcp.inbound._opening.values()]:
            acknowledgement, _ = self.last[key]
            ports = [int.from_bytes(key[at : at + 2], "big") for at in (8, 10)]
            segment = TCP(sport=ports[0], dport=ports[1], flags=flags, seq=1000, ack=acknowledgement % 2**32)
            packet = IP(src=GUEST, dst=".".join(map(str, key[4:8]))) / segment
            self.stack.receive_frame(bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / packet), self.now)
        self.flush()

    @rule(calls=st.booleans())
    def the_kill_switch_is_pulled_for_a_moment(self, calls: bool) -> None:
        self.stack.replace_policy(FULL_ACCESS, "test", self.now, final=True)
        if calls:
            self.host.call((ip(SERVER), 80), (ip(GUEST), 1), self.now)
            self.flush()
        self.stack.replace_policy(FULL_ACCESS, "test", self.now)
        self.flush()

    @rule(seconds=st.sampled_from([0.001, 0.05, 1.0, 10.0, 31.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        moment, visits = self.now, 0
        while (deadline := self.stack.next_deadline()) <= end:
            visits = visits + 1 if deadline <= moment else 0
            assert visits < 5, "time does not move on"
            moment = self.now = max(moment, deadline)
            self.stack.advance(moment)
            self.flush()
        self.now = end

    @rule()
    def the_guest_leaves(self) -> None:
        self.stack.guest_left(mac(GUEST_MAC), self.now)
        self.flush()
        # Frames are of anybody: a flow that another MAC opened lives on.
        assert mac(GUEST_MAC) not in {flow.mac for flow in self.stack.tcp.table.values()}

    @invariant()
    def tables_are_bounded(self) -> None:
        check_bounds(self.stack)

    @invariant()
    def both_sides_agree_on_what_lives(self) -> None:
        tcp = self.stack.tcp
        sessions = {number for number, flow in tcp._streams.items() if flow.session is not None}
        assert set(self.host.streams) == set(tcp._streams) - sessions - set(tcp.inbound._opening)
        assert self.host.opening == set(tcp.inbound._opening) | set(tcp.inbound._resolving)
        assert self.host.inbound_datagrams == set(self.stack.inbound_udp._by_number)
        assert set(self.host.mappings) == set(self.stack.udp._by_number)
        assert set(self.host.echoes) == set(self.stack.echo._by_number)


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=100, stateful_step_count=50, suppress_health_check=[HealthCheck.too_slow], deadline=None
)


# -- a quick guest -----------------------------------------------------------------------------------------------------

_TCP = Struct("!HHIIBBHHH")


class QuickGuest:
    """Many frames in little time: one made by scapy, the rest by changing its numbers. Checksums are not looked at."""

    SEGMENT = bytearray(
        bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / IP(src=GUEST, dst=SERVER) / TCP(dport=80, window=65_535))
    )
    DATAGRAM = bytearray(bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / udp(SERVER, 7, b"0123456789")))

    @classmethod
    def segment(cls, port: int, flags: int, sequence: int, acknowledgement: int = 0, data: bytes = b"") -> bytes:
        frame = cls.SEGMENT.copy()
        pack_into("!H", frame, 16, 40 + len(data))
        pack_into("!H", frame, 34, port)
        pack_into("!IIBB", frame, 38, sequence, acknowledgement, 0x50, flags)
        return bytes(frame) + data

    @classmethod
    def datagram(cls, port: int, destination_port: int) -> bytes:
        frame = cls.DATAGRAM.copy()
        pack_into("!HH", frame, 34, port, destination_port)
        return bytes(frame)


FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def numbers(frame: bytes) -> tuple[int, int, int]:
    """Sequence, acknowledgement and flags of a segment of the engine."""
    _, _, sequence, acknowledgement, _, flags, _, _, _ = _TCP.unpack_from(frame, 34)
    return sequence, acknowledgement, flags


def short_flow(stack: Stack, host: HostModel, port: int, number: int, now: float) -> None:
    """Connect, ask, be answered, end in one of the ways there are."""
    isn = number * 100 & 0xFFFF_FFFF
    stack.receive_frame(QuickGuest.segment(port, SYN, isn), now)
    host.flush(now)
    flow = max(host.streams)
    if number % 7 == 6:
        host.fail_stream(flow, effects.REFUSED, now)
        host.flush(now)
        return
    host.open_stream(flow, now)
    (answer,) = host.flush(now)
    ours, theirs = isn + 1, (numbers(answer)[0] + 1) & 0xFFFF_FFFF
    stack.receive_frame(QuickGuest.segment(port, ACK, ours, theirs), now)
    stack.receive_frame(QuickGuest.segment(port, ACK | PSH, ours, theirs, b"question"), now)
    host.flush(now)
    ours += 8
    host.take_bytes(flow, 8)
    host.give_bytes(flow, b"answer")
    host.flush(now)
    theirs = (theirs + 6) & 0xFFFF_FFFF
    if number % 7 == 5:
        stack.receive_frame(QuickGuest.segment(port, RST, ours), now)
        host.flush(now)
    elif number % 2:
        host.end_stream(flow)
        host.flush(now)
        stack.receive_frame(QuickGuest.segment(port, ACK | FIN, ours, (theirs + 1) & 0xFFFF_FFFF), now)
        host.flush(now)
    else:
        stack.receive_frame(QuickGuest.segment(port, ACK | FIN, ours, theirs), now)
        host.flush(now)
        host.end_stream(flow)
        host.flush(now)
        stack.receive_frame(QuickGuest.segment(port, ACK, ours + 1, (theirs + 1) & 0xFFFF_FFFF), now)
        host.flush(now)
    assert flow not in host.streams


def wake(stack: Stack, host: HostModel, now: float) -> None:
    """Let what is due up to now happen."""
    while stack.next_deadline() <= now:
        stack.advance(now)
        host.flush(now)


def quick(**changes: object) -> tuple[Stack, HostModel]:
    stack = make_stack(network(verify=False, **changes))
    host = HostModel(stack)
    stack.receive_frame(QuickGuest.datagram(1, 1), START)
    host.flush(START)
    return stack, host


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_l8_f11_short_flows_leave_nothing_behind(count: int) -> None:
    """Conformance L8 and F11: ten milliseconds apart, so that 2,000 and more are in TIME-WAIT at any time."""
    stack, host = quick()
    now = START
    sizes = []
    for number in range(count):
        now += 0.01
        wake(stack, host, now)
        short_flow(stack, host, 1024 + number % 60_000, number, now)
        host.events.clear()
        host.finished.clear()
        host.opened -= host.closed
        host.closed.clear()
        if number + 1 in (count // 2, count * 3 // 4, count):
            check_bounds(stack)
            sizes.append((len(stack.tcp.tables), len(stack.tcp._timers), living(TcpFlow), living(TcpConnection)))
    tables, heaps, flows, connections = zip(*sizes, strict=True)
    assert max(tables) < 1.1 * min(tables), tables
    assert max(heaps) <= 2 * max(tables), heaps
    assert max(flows) == max(connections) <= 50, (flows, connections)
    for _ in range(5):
        now += 100
        wake(stack, host, now)
    assert (len(stack.tcp.table), len(stack.tcp._streams), len(stack.tcp._half_open), len(stack.tcp.time_wait)) == (
        0,
        0,
        0,
        0,
    )
    assert stack.next_deadline() == math.inf
    assert len(stack.tcp._timers) == 0
    assert living(TcpFlow) == living(TcpConnection) == 0


def living(kind: type) -> int:
    """How many objects of a class there are."""
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


def test_l8_memory_is_flat() -> None:
    """Conformance L8: nothing is kept of a flow that is over, in bytes."""
    stack, host = quick()
    now = START
    sizes = []
    tracemalloc.start()
    for number in range(3_000):
        now += 0.25
        wake(stack, host, now)
        short_flow(stack, host, 1024 + number, number, now)
        host.events.clear()
        host.finished.clear()
        host.opened -= host.closed
        host.closed.clear()
        if number % 1000 == 999:
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(sizes) < 1.25 * min(sizes), sizes


def test_f11_the_same_ports_again_and_again() -> None:
    """Conformance F11: a client that uses few ports, so each SYN finds its predecessor in TIME-WAIT."""
    stack, host = quick()
    now = START
    for number in range(3_000):
        now += 0.01
        wake(stack, host, now)
        short_flow(stack, host, 2000 + number % 10, number, now)
    assert len(stack.tcp.tables) <= 10
    assert stack.dropped == {}
    assert Counter(event.reason for event in host.events if isinstance(event, FlowClosed)).keys() == {
        "finished",
        "refused",
        "reset by guest",
        "idle",
    }


def test_f1_l1_a_flood_of_syns_leaves_other_flows_alone() -> None:
    """Conformance F1, L1: 60,000 ports, at once. Half of the dials are answered, none of the handshakes completed."""
    stack, host = quick()
    stack.receive_frame(QuickGuest.segment(999, SYN, 1), START)
    host.flush(START)
    alive = max(host.streams)
    host.open_stream(alive, START)
    (answer,) = host.flush(START)
    acknowledgement = numbers(answer)[0] + 1
    stack.receive_frame(QuickGuest.segment(999, ACK, 2, acknowledgement), START)
    host.flush(START)
    for number in range(60_000):
        stack.receive_frame(QuickGuest.segment(1024 + number, SYN, number), START)
        if number % 64 == 63:
            host.flush(START)
            for flow in list(islice(reversed(host.streams), 32)):
                if not host.streams[flow].connected:
                    host.open_stream(flow, START)
    host.flush(START)
    check_bounds(stack)
    assert len(stack.tcp._half_open) == tcp_flows.MAX_HALF_OPEN
    assert len(host.streams) == tcp_flows.MAX_HALF_OPEN + 1
    assert stack.dropped == {"tcp-half-open-evicted": 60_000 - tcp_flows.MAX_HALF_OPEN}
    stack.receive_frame(QuickGuest.segment(999, ACK | PSH, 2, acknowledgement, b"alive"), START)
    host.flush(START)
    assert bytes(host.streams[alive].sent) == b"alive"
    now = START
    for _ in range(1000):
        now += 1
        wake(stack, host, now)
    assert set(host.streams) == {alive}
    assert len(stack.tcp._timers) <= 1024


def test_l4_datagrams_to_every_port() -> None:
    """Conformance L4: all 65,535. From one port, whose socket has to serve all, and each from another."""
    for spread in (False, True):
        stack, host = quick()
        for number in range(65_535):
            stack.receive_frame(QuickGuest.datagram(65_535 - number if spread else 5000, 1 + number), START + 1)
            if number % 64 == 63:
                host.flush(START + 1)
        host.flush(START + 1)
        check_bounds(stack)
        limit = stack.settings.max_udp_flows
        assert len(stack.udp.table) == limit
        assert len(host.mappings) == (limit if spread else 1)
        assert stack.dropped == {"udp-table-full": 65_536 - limit}
        wake(stack, host, START + 32)
        assert host.mappings == {}
        assert stack.next_deadline() == math.inf
        assert len(stack.udp._timers) == 0


def test_a_datagram_costs_no_more_from_a_port_that_talks_to_everybody() -> None:
    """What is done for each datagram, counted in calls: the same for the 20,000th new destination as for the 10th."""

    def calls(count: int) -> int:
        stack, host = quick(max_udp_flows=count)
        for number in range(count):
            stack.receive_frame(QuickGuest.datagram(5000, 1 + number), START)
            host.flush(START)
        total = 0

        def note(_frame: object, event: str, _argument: object) -> None:
            nonlocal total
            total += event in ("call", "c_call")

        sys.setprofile(note)
        for number in range(10):
            stack.receive_frame(QuickGuest.datagram(5000, 60_000 + number), START)
        sys.setprofile(None)
        return total

    few, many = calls(20), calls(8_000)
    assert abs(many - few) <= 20


# -- the same again ----------------------------------------------------------------------------------------------------


def session(seed: int, steps: int = 1500) -> str:
    """A digest of all frames and effects of a session made of pseudo-random guests and hosts."""
    random = Random(seed)
    stack = make_stack(network(verify=False, max_tcp_flows=20, max_udp_flows=20))
    host = HostModel(stack)
    digest = hashlib.sha256()
    now = START
    last: dict[int, tuple[int, int]] = {}
    for _ in range(steps):
        choice = random.random()
        if choice < 0.5:
            for _ in range(random.randrange(1, 5)):
                port = 1000 + random.randrange(12)
                acknowledgement, sequence = last.get(port, (0, 1))
                flags = random.choice((SYN, ACK, ACK | PSH, ACK | PSH, ACK | FIN, RST))
                data = b"" if flags & (SYN | RST) else random.randbytes(random.choice((0, 10, 1460)))
                stack.receive_frame(QuickGuest.segment(port, flags, sequence, acknowledgement, data), now)
        elif choice < 0.6:
            stack.receive_frame(random.choice(SAMPLES), now)
            stack.receive_frame(QuickGuest.datagram(random.randrange(1, 40), 9), now)
        elif choice < 0.9:
            host.say_anything(random, now)
        else:
            now += random.choice((0.001, 0.3, 2, 40))
            stack.advance(now)
        for effect in stack.take_effects(now):
            digest.update(repr(effect).encode())
            host._take(effect)
        for frame in host.flush(now):
            digest.update(frame)
            if frame[23] == 6:
                sequence, acknowledgement, flags = numbers(frame)
                moved = len(frame) - 34 - (frame[46] >> 4) * 4 + bool(flags & SYN) + bool(flags & FIN)
                last[int.from_bytes(frame[36:38], "big")] = ((sequence + moved) & 0xFFFF_FFFF, acknowledgement)
        digest.update(repr(stack.next_deadline()).encode())
    assert stack.tcp.table or stack.udp.table
    return digest.hexdigest()


@pytest.mark.parametrize("seed", range(3))
def test_the_same_inputs_give_the_same_outputs(seed: int) -> None:
    assert session(seed) == session(seed)


def test_the_same_outputs_in_any_process() -> None:
    """The order of nothing depends on how Python hashes bytes in this run."""
    code = "from engine.test_stack_invariants import session; print(session(7, 600))"
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(os.fspath, (tests, tests.parent)))
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([b"", b"a", b"bcd", bytes(1460)])), min_size=1, max_size=30),
    st.lists(st.integers(0, 2), max_size=3, unique=True),
    st.data(),
)
@settings(max_examples=60)
def test_batches_make_no_difference_to_the_streams(
    said: list[tuple[int, bytes]], ends: list[int], data: st.DataObject
) -> None:
    """One frame a batch, all in one, or anything between: the host gets the same bytes, and the same ends."""
    frames = []
    positions = [101, 101, 101]
    for which, text in said:
        frames.append((which, ACK | PSH, positions[which], text))
        positions[which] += len(text)
    frames += [(which, ACK | FIN, positions[which], b"") for which in ends]
    cuts = data.draw(st.lists(st.booleans(), min_size=len(frames), max_size=len(frames)))
    outcomes = set()
    for pattern in (cuts, [True] * len(frames), [False] * len(frames)):
        stack, host = quick()
        acknowledgements = []
        for which in range(3):
            stack.receive_frame(QuickGuest.segment(3000 + which, SYN, 100), START)
            host.flush(START)
            host.open_stream(max(host.streams), START)
            (answer,) = host.flush(START)
            acknowledgements.append(numbers(answer)[0] + 1)
            stack.receive_frame(QuickGuest.segment(3000 + which, ACK, 101, acknowledgements[which]), START)
            host.flush(START)
        for (which, flags, position, text), cut in zip(frames, pattern, strict=True):
            stack.receive_frame(QuickGuest.segment(3000 + which, flags, position, acknowledgements[which], text), START)
            if cut:
                host.flush(START)
        host.flush(START)
        outcomes.add(tuple((bytes(stream.sent), stream.shut) for stream in host.streams.values()))
    assert len(outcomes) == 1
