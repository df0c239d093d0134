"""What is left of a connection in TIME-WAIT answers as the connection would, and is little."""

from __future__ import annotations

import gc
import tracemalloc
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP

from netstack.engine import tcp_states
from netstack.engine.effects import CloseStream, OpenStream, ShutdownStream
from netstack.engine.outbox import Outbox
from netstack.engine.snapshot import gauges
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.tcp_limits import TcpLimits
from netstack.engine.tcp_time_wait import SWEEP_SECONDS, TimeWait
from netstack.gateway.name_table import NameTable
from netstack.wire import tcp

from .wire_guest import GUEST_MAC, GuestTcp, VirtualWire, ip, mac, network

GATEWAY_MAC = bytes.fromhex("5a94efe40cdd")
KEY = ip("192.168.127.2") + ip("203.0.113.5") + (40_000).to_bytes(2, "big") + (443).to_bytes(2, "big")
GUEST_ISN = 0xFFFF_FFF0
ISN = 0x7FFF_FFFA
START = 1000.0


def writer() -> tcp.SegmentWriter:
    return tcp.SegmentWriter(
        destination_mac=mac(GUEST_MAC), source_mac=GATEWAY_MAC, source=KEY[4:8], destination=KEY[:4],
        source_port=443, destination_port=40_000,
    )  # fmt: skip


def stamps(value: int) -> bytes:
    return tcp.build_timestamps(value % 2**32, 0)


def in_time_wait(urgent: list[bytes], *, stamped: bool, sack: bool, window: int) -> TcpConnection:
    """A connection that we have closed first, with its last acknowledgement said."""
    connection = TcpConnection(writer(), TcpLimits(max_receive_window=window), ISN, urgent)
    options = tcp.TcpOptions(1460, 7, sack, (5000, 0) if stamped else None)
    connection.syn_came(GUEST_ISN, 64_000, options, START)
    connection.accept(START)
    said = stamps(5000) if stamped else b""
    first = GUEST_ISN + 1 & 0xFFFFFFFF
    connection.receive(first, ISN + 1, tcp.ACK, 501, said, b"", START)
    connection.receive(first, ISN + 1, tcp.ACK | tcp.PSH, 501, said, b"x" * 100, START)
    connection.receive_buffer.ready.clear()
    connection.write(b"y" * 50)
    connection.finish()
    connection.output([], 10, START)
    connection.receive(first + 100 & 0xFFFFFFFF, ISN + 52, tcp.ACK | tcp.FIN, 501, said, b"", START)
    connection.output([], 10, START)
    assert connection.state == tcp_states.TIME_WAIT
    urgent.clear()
    return connection


segments = st.lists(
    st.tuples(
        st.sampled_from((0.0, 0.01, 0.2, 20.0)) | st.floats(0, 70),
        st.integers(-1600, 200) | st.sampled_from((-1, 0, 1, 65_535, 65_536, 2**31 - 1)),  # from RCV.NXT
        st.integers(-100, 3) | st.sampled_from((0, 0, 2**31, -(2**20))),  # from SND.NXT
        st.sampled_from((tcp.ACK, tcp.ACK | tcp.FIN, tcp.RST, tcp.RST | tcp.ACK, tcp.SYN, tcp.SYN | tcp.ACK, tcp.FIN))
        | st.integers(0, 63),
        st.none() | st.integers(4990, 5010) | st.sampled_from((0, 2**31 + 5000)),
        st.sampled_from((0, 0, 1, 100, 1460)),
    ),
    max_size=8,
)


@settings(max_examples=200)
@given(segments, st.booleans(), st.booleans(), st.sampled_from((200, 1460, 65_536, 1 << 20)))
def test_it_answers_as_the_connection_would(
    script: list[tuple[float, int, int, int, int | None, int]], stamped: bool, sack: bool, window: int
) -> None:
    urgent: list[bytes] = []
    connection = in_time_wait(urgent, stamped=stamped, sack=sack, window=window)
    outbox = Outbox()
    table = TimeWait(outbox, GATEWAY_MAC)
    table.enter(KEY, mac(GUEST_MAC), 7, connection)
    now, offered = START, connection.sender.max_window
    for pause, place, acknowledged, flags, stamp, length in script:
        now += pause
        sequence = (connection.receive_buffer.next + place) % 2**32
        acknowledgement = (connection.send_next + acknowledged) % 2**32
        options = b"" if stamp is None else stamps(stamp)
        if connection.deadline <= now:
            connection.advance(now)
            assert not table.receive(KEY, mac(GUEST_MAC), sequence, acknowledgement, flags, options, length, now)
            return
        text = bytes(length)
        knows = table.receive(KEY, mac(GUEST_MAC), sequence, acknowledgement, flags, options, length, now)
        opens = flags & (tcp.SYN | tcp.ACK | tcp.RST | tcp.FIN) == tcp.SYN and 0 <= place < 2**31
        assert knows is not opens
        if not opens:
            connection.receive(sequence, acknowledgement, flags, 400, options, text, now)
            frames: list[bytes] = []
            connection.output(frames, 10, now)
            assert outbox.frames == urgent + frames
        assert connection.sender.max_window == offered
        assert table.deadline == connection.deadline + SWEEP_SECONDS
        urgent.clear()
        outbox.frames.clear()
    table.advance(connection.deadline + SWEEP_SECONDS)
    assert len(table) == 0
    assert table.deadline == inf


# -- in the stack ------------------------------------------------------------------------------------------------------


def over(wire: VirtualWire, port: int = 443) -> GuestTcp:
    """A flow that the host has closed first."""
    guest = wire.open_tcp(port=port)
    wire.stack.stream_ended(guest.flow)
    guest.hear_one("FA")
    guest.ack()
    guest.fin()
    guest.hear_one("A")
    assert wire.asked() == [ShutdownStream(guest.flow), CloseStream(guest.flow)]
    return guest


def test_little_is_left_of_a_flow() -> None:
    wire = VirtualWire(network(verify=False))
    over(wire)
    wire.events.clear()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(50):
            over(wire)
        wire.events.clear()
        wire.hear_raw()
        gc.collect()
        held = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/engine/tcp_time_wait*")])
    finally:
        tracemalloc.stop()
    assert len(wire.stack.tcp.time_wait) == 51
    assert not wire.stack.tcp.table
    assert sum(each.size for each in held.statistics("filename")) < 50 * 400


def test_a_fin_that_comes_again_starts_the_minute_over() -> None:
    wire = VirtualWire(network(verify=False))
    first, second = over(wire), over(wire)
    wire.wait(50)
    first.put("FA", seq=first.sent - 1)
    assert first.hear_one("A").ack == first.sent
    wire.wait(12)
    second.put("A")
    second.hear_one("R")
    assert len(wire.stack.tcp.time_wait) == 1
    first.put("FA", seq=first.sent - 1)
    assert first.hear_one("A").ack == first.sent
    wire.wait(62)
    assert len(wire.stack.tcp.time_wait) == 0
    assert wire.stack.next_deadline() == inf


def test_nobody_is_answered_whose_minute_is_over() -> None:
    """Also before they are swept, all of a second together."""
    wire = VirtualWire(network(verify=False))
    guest = over(wire)
    wire.wait(60.5)
    assert len(wire.stack.tcp.time_wait) == 1
    guest.put("FA", seq=guest.sent - 1)
    guest.hear_one("R")
    assert len(wire.stack.tcp.time_wait) == 0


def test_those_that_have_waited_longest_make_room() -> None:
    wire = VirtualWire(network(verify=False, max_tcp_flows=4))
    flows = [over(wire) for _ in range(10)]
    assert len(wire.stack.tcp.time_wait) == len(wire.stack.tcp.tables) == 4
    for guest, kept in zip(flows, [False] * 6 + [True] * 4, strict=True):
        guest.put("FA", seq=guest.sent - 1)
        guest.hear_one("A" if kept else "R")
    for _ in range(4):
        wire.open_tcp()
    assert len(wire.stack.tcp.time_wait) == 0, "none of them keeps out who is alive"
    assert wire.dropped == {"tcp-no-connection": 6}


def test_it_counts_until_its_guest_has_left() -> None:
    wire = VirtualWire(network(verify=False))
    guest = over(wire)
    assert gauges(wire.stack).connected == 1
    assert NameTable(wire.stack).flow(guest.flow) is not None, "filters may still name it"
    assert NameTable(wire.stack).flow(guest.flow + 1) is None
    wire.stack.guest_left(mac("02:00:00:00:00:77"), wire.now)
    assert len(wire.stack.tcp.time_wait) == 1
    wire.stack.guest_left(mac(GUEST_MAC), wire.now)
    assert gauges(wire.stack).connected == len(wire.stack.tcp.time_wait) == 0


def test_another_guest_is_not_heard_and_takes_no_place() -> None:
    wire = VirtualWire(network(verify=False))
    guest = over(wire)
    wire.send(guest.segment("FA", seq=guest.sent - 1), source="02:00:00:00:00:77")
    assert wire.hears_nothing()
    assert sum(wire.dropped.values()) == 1
    new = wire.connection(source_port=guest.source_port, isn=guest.sent + 1000)
    new.syn()
    flow = wire.asked_one(OpenStream).flow
    assert len(wire.stack.tcp.time_wait) == 0
    wire.stack.stream_opened(flow, wire.now)
    assert TCP in wire.hear_one()
