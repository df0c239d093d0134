"""A guest that sends whatever it likes, in every state: nothing raises, nothing grows without end."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netstack.engine import tcp_states
from netstack.engine.tcp_buffers import MAX_PIECES
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.tcp_limits import TcpLimits
from netstack.wire.tcp import SegmentWriter, TcpOptions, build_timestamps, parse_options

MASK = 0xFFFF_FFFF
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
LIMITS = TcpLimits(max_receive_window=1 << 17)
numbers = st.integers(0, MASK)
# Mostly near what is expected, where it matters; now and then anywhere.
near = st.one_of(
    st.integers(-3, 3), st.integers(-3000, 3000), st.integers(-70_000, 70_000), st.integers(-(1 << 31), 1 << 31)
)
flag_bytes = st.one_of(
    st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | FIN | PSH, RST, RST | ACK, SYN, SYN | ACK, ACK | URG, 0, FIN]),
    st.integers(0, 63),
)
sack_blocks = st.lists(st.tuples(near, near), min_size=1, max_size=4)


class Hostage:
    """A connection in the hands of such a guest, and what must hold after everything that happens to it."""

    def __init__(
        self, isn: int, guest_isn: int, options: TcpOptions, *, active: bool, limits: TcpLimits = LIMITS
    ) -> None:
        self.urgent: list[bytes] = []
        writer = SegmentWriter(
            destination_mac=bytes(6),
            source_mac=bytes(6),
            source=b"\x0a\0\0\1",
            destination=b"\x0a\0\0\2",
            source_port=80,
            destination_port=4000,
        )
        self.connection = TcpConnection(writer, limits, isn, self.urgent)
        self.limits = limits
        self.isn, self.guest_isn = isn, guest_isn
        self.now = 1000.0
        self.edge = -1
        self.frames = 0
        self.taken = 0
        self.reach = 0
        if active:
            self.connection.connect(self.now)
        else:
            self.connection.syn_came(guest_isn, 1000, options, self.now)
        self.stamped = options.timestamps is not None
        self.stamp = 10
        self.settle()

    @property
    def expected(self) -> int:
        return self.connection.receive_buffer.next or self.guest_isn + 1

    def segment(
        self, position: int, acknowledgement: int, flags: int, window: int, options: bytes, payload: bytes
    ) -> None:
        """One segment, its numbers relative to what is expected."""
        sequence = (self.expected + position) & MASK
        self.connection.receive(
            sequence,
            (self.connection.send_next + acknowledgement) & MASK,
            flags,
            window,
            options,
            payload,
            self.now,
        )
        buffer = self.connection.receive_buffer
        assert buffer.next <= max(buffer.edge, self.guest_isn + 1)
        assert buffer.highest <= max(buffer.edge, buffer.next)

    def settle(self, *, take: bool = True) -> None:
        connection = self.connection
        buffer = connection.receive_buffer
        chunks, buffer.ready = buffer.ready, []
        count = sum(map(len, chunks))
        buffer.unsent += count
        self.taken += count
        if take:
            buffer.unsent = 0
        frames: list[bytes] = []
        connection.output(frames, 1000, self.now)
        for frame in self.urgent + frames:
            self.check_frame(frame)
        self.urgent.clear()
        assert connection.deadline > self.now or connection.deadline == inf
        sender = connection._sender
        if connection.state in tcp_states.SYNCHRONIZED and sender.una < max(sender.next, sender.buffer.end):
            assert connection.deadline < inf, "something is to be sent or repeated, and no timer runs"
        buffer = connection.receive_buffer
        assert buffer.edge >= self.edge or self.edge == -1
        if buffer.next and connection.state != tcp_states.LISTEN:  # a SYN said anew replaces the one that waits
            self.edge = buffer.edge
        assert buffer._pieces <= 2 * MAX_PIECES
        assert sum(len(piece) for run in buffer._runs for piece in run) <= self.limits.max_receive_window + 128
        assert buffer.unsent <= self.limits.max_receive_window * 5 // 4 + 128

    def check_frame(self, frame: bytes) -> None:
        self.frames += 1
        ip = dpkt.ip.IP(frame[14:])
        assert dpkt.in_cksum(frame[14:34]) == 0
        assert dpkt.in_cksum(frame[26:34] + b"\0\6" + (ip.len - 20).to_bytes(2, "big") + frame[34:]) == 0
        assert len(frame) <= 54 + self.limits.mss
        dpkt.tcp.parse_opts(ip.data.opts)

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(200):
            if self.connection.deadline > until:
                break
            self.now = max(self.now, self.connection.deadline)
            self.connection.advance(self.now)
            self.settle()
        self.now = until


def stamps(hostage: Hostage, *, fit: bool) -> bytes:
    hostage.stamp += 1
    return build_timestamps(hostage.stamp if fit else hostage.stamp - 1000 & MASK, 0) if hostage.stamped else b""


def act(hostage: Hostage, step: tuple[str, tuple[int, ...], bytes, list[tuple[int, int]]]) -> None:
    what, (position, acknowledgement, flags, window, extra), options, blocks = step
    connection = hostage.connection
    if what in ("segment", "fitting", "sack"):
        if what == "fitting":
            position, acknowledgement, flags = 0, min(0, acknowledgement), flags & (PSH | FIN) | ACK
        if what == "sack":
            base = connection.send_next
            raw = b"".join(((base + number) & MASK).to_bytes(4, "big") for block in blocks for number in block)
            options = stamps(hostage, fit=True) + bytes((1, 1, 5, 2 + len(raw))) + raw
            options = options[:40]
            flags |= ACK
        elif extra % 4:
            options = stamps(hostage, fit=extra % 8 != 1)
        payload = bytes(extra % 4096) if extra % 3 else b""
        hostage.segment(position, acknowledgement, flags, window, options, payload)
    elif what == "accept" and connection.state == tcp_states.LISTEN:
        connection.accept(hostage.now)
    elif what == "write":
        connection.write(bytes(min(extra, connection.room)))
    elif what == "finish":
        connection.finish()
    elif what == "abort":
        connection.abort()
    elif what == "wait":
        hostage.wait((0.001, 0.05, 0.5, 5.0, 70.0)[extra % 5])
    if what != "more":
        hostage.settle(take=extra % 5 != 0)


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["segment"] * 6 + ["fitting"] * 8 + ["sack"] * 3 + ["accept", "write", "write", "finish", "wait", "abort"]
        ),
        st.tuples(near, near, flag_bytes, st.integers(0, 0xFFFF), st.integers(0, 70_000)),
        st.binary(max_size=40).map(lambda data: data[: len(data) // 4 * 4]),
        sack_blocks,
    ),
    max_size=40,
)
offers = st.builds(
    TcpOptions,
    mss=st.none() | st.integers(0, 0xFFFF),
    window_scale=st.none() | st.integers(0, 14),
    sack_permitted=st.booleans(),
    timestamps=st.none() | st.just((10, 0)),
)


@settings(max_examples=400)
@given(isn=numbers, guest_isn=numbers, offer=offers, active=st.booleans(), quick=st.booleans(), script=steps)
def test_whatever_the_guest_sends(
    isn: int,
    guest_isn: int,
    offer: TcpOptions,
    active: bool,
    quick: bool,
    script: list[tuple[str, tuple[int, ...], bytes, list[tuple[int, int]]]],
) -> None:
    hostage = Hostage(isn, guest_isn, offer, active=active)
    if quick and not active:
        hostage.connection.accept(hostage.now)
        hostage.segment(0, 0, ACK, 60_000, stamps(hostage, fit=True), b"")
        hostage.settle()
        assert hostage.connection.state == tcp_states.ESTABLISHED
    for step in script:
        act(hostage, step)
    hostage.wait(1000.0)
    if hostage.connection.state == tcp_states.CLOSED:
        assert hostage.connection.deadline == inf


@pytest.mark.parametrize("seed", range(30))
def test_long_random_walks(seed: int) -> None:
    """The same with thousands of steps, where hypothesis would be slow: states deep in a transfer."""
    random = Random(seed)
    offer = TcpOptions(
        random.choice((None, 100, 1460)),
        random.choice((None, 0, 7)),
        random.random() < 0.7,
        random.choice((None, (10, 0))),
    )
    hostage = Hostage(random.getrandbits(32), random.getrandbits(32), offer, active=False)
    hostage.connection.accept(hostage.now)
    hostage.segment(0, 0, ACK, 60_000, stamps(hostage, fit=True), b"")
    hostage.settle()
    for _ in range(1500):
        what = random.choices(("segment", "fitting", "sack", "write", "wait", "finish"), (10, 30, 15, 15, 5, 0.01))[0]
        spread = random.choice((2, 3000, 70_000))
        step = (
            what,
            (
                random.randint(-spread, spread),
                random.randint(-spread, 2),
                random.choice((ACK, ACK, ACK | PSH, ACK | URG, ACK | SYN)),
                random.choice((0, 1, 1000, 0xFFFF)),
                random.randint(0, 70_000),
            ),
            b"",
            [(random.randint(-70_000, 0), random.randint(-70_000, 3)) for _ in range(random.randint(1, 4))],
        )
        act(hostage, step)
        if hostage.connection.state == tcp_states.CLOSED:
            break
    assert hostage.frames


def opened(limits: TcpLimits = LIMITS, *, sack: bool = True) -> Hostage:
    hostage = Hostage(0xFFFF_FF00, 0xFFFF_FF00, TcpOptions(1460, 7, sack), active=False, limits=limits)
    hostage.connection.accept(hostage.now)
    hostage.segment(0, 0, ACK, 0xFFFF, b"", b"")
    hostage.settle()
    return hostage


def test_f12_100_kb_in_single_bytes_each_costs_one_look() -> None:
    hostage = opened()
    for number in range(100_000):
        hostage.segment(0, 0, ACK | PSH, 0xFFFF, b"", b"x")
        if number % 64 == 63:
            hostage.settle()
    hostage.settle()
    assert hostage.taken == 100_000
    assert hostage.frames <= 100_000 // 64 + 3  # an acknowledgement a batch, not a byte


def test_f12_an_acknowledgement_storm_is_not_answered() -> None:
    hostage = opened()
    before = hostage.frames
    for _ in range(10_000):
        hostage.segment(0, 0, ACK, 0xFFFF, b"", b"")
    hostage.settle()
    assert hostage.frames == before


def test_f12_a_storm_of_duplicates_repeats_a_segment_once() -> None:
    hostage = opened(sack=False)
    hostage.connection.write(bytes(1460))
    hostage.settle()
    before = hostage.frames
    for _ in range(10_000):
        hostage.segment(0, -1460, ACK, 0xFFFF, b"", b"")
    hostage.settle()
    assert hostage.frames == before + 1


def test_f12_a_sack_bomb() -> None:
    """Blocks for every other byte, in every order: bounded, and the connection goes on."""
    hostage = opened()
    hostage.connection.write(bytes(14_600))
    hostage.settle()
    base = hostage.connection.send_next - 14_600
    for start in range(2, 14_600, 8):
        blocks = [((base + n) & MASK, (base + n + 1) & MASK) for n in range(start, start + 8, 2)]
        raw = b"".join(number.to_bytes(4, "big") for block in blocks for number in block)
        hostage.segment(0, -14_600, ACK, 0xFFFF, b"\x01\x01\x05\x22" + raw, b"")
    hostage.settle()
    hostage.segment(0, 0, ACK, 0xFFFF, b"", b"")
    hostage.settle()
    assert hostage.connection.state == tcp_states.ESTABLISHED
    assert hostage.connection.deadline == inf


def test_f12_a_comb_of_single_bytes_out_of_order_is_bounded() -> None:
    hostage = opened(replace(LIMITS, max_receive_window=1 << 20))
    for number in range(1, 20_000):
        hostage.segment(2 * number, 0, ACK, 0xFFFF, b"", b"x")
        if number % 64 == 63:
            hostage.settle()
    buffer = hostage.connection.receive_buffer
    assert buffer._pieces <= MAX_PIECES
    hostage.segment(0, 0, ACK, 0xFFFF, b"", bytes(1000))
    hostage.settle()
    assert hostage.taken == 1001


def test_k6_every_state_but_listen_and_half_closed_ones_has_an_end() -> None:
    """A guest that vanishes leaves nothing behind, unless nobody has anything to say to it."""
    for what in (["write"], ["finish"], ["write", "finish"]):
        hostage = opened()
        for action in what:
            act(hostage, (action, (0, 0, 0, 0, 1000), b"", []))
        hostage.wait(1000.0)
        assert hostage.connection.state == tcp_states.CLOSED
        assert hostage.connection.signals & tcp_states.GAVE_UP


def test_f4_more_than_4_gib_on_one_connection() -> None:
    """Both directions pass 2**32 several times: the streams are moved on by hand, the engine wraps by itself."""
    hostage = opened()
    connection = hostage.connection
    step = 60_000
    for _ in range(200):
        hostage.segment(0, 0, ACK, 0xFFFF, b"", bytes(step))
        connection.write(bytes(step))
        hostage.settle()
        while connection.send_next < connection._sender.buffer.end:
            hostage.segment(0, 0, ACK, 0xFFFF, b"", b"")
            hostage.settle()
        hostage.segment(0, 0, ACK, 0xFFFF, b"", b"")
        hostage.settle()
    assert hostage.taken == 200 * step
    assert connection.send_next > 1 << 32
    assert connection.receive_buffer.next > 1 << 32
    assert parse_options(b"") == TcpOptions()
