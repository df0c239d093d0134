"""TCP flows in virtual time: dial before accept, what each end of either side becomes on the other, bounds, time-outs.

How a connection itself behaves is told in test_tcp_connection.py. Here its two sides meet. Every test runs with and
without verified checksums, so both by the general way through the stack and by the quick one.
"""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP

from netstack.engine import effects, tcp_flows
from netstack.engine.effects import (
    AbortStream,
    CloseStream,
    OpenStream,
    ReadStream,
    SendStream,
    ShutdownStream,
)
from netstack.engine.events import FlowClosed, FlowOpened
from netstack.engine.tcp_sender import LARGE_READ
from netstack.engine.verdict import ALLOW, Verdict

from .wire_guest import (
    ENGINE_ISN,
    GATEWAY,
    GUEST,
    GUEST_ISN,
    GUEST_MAC,
    HOST_ALIAS,
    LOOPBACK,
    OTHER_MAC,
    SERVER,
    GuestTcp,
    VirtualWire,
    ip,
    mac,
    network,
    payload_of,
    sent_bytes,
)


@pytest.fixture(params=[True, False], ids=["verified", "trusted"])
def wire(request: pytest.FixtureRequest) -> VirtualWire:
    return VirtualWire(verify=request.param)


def dialling(wire: VirtualWire, destination: str = SERVER, port: int = 443, **options: object) -> GuestTcp:
    """A connection whose dial is under way."""
    connection = wire.connection(destination, port, **options)
    connection.syn()
    connection.flow = wire.asked_one(OpenStream).flow
    assert wire.hears_nothing()
    return connection


def reasons(wire: VirtualWire) -> list[str]:
    return [event.reason for event in wire.told(FlowClosed)]


# -- dial before accept ----------------------------------------------------------------------------------------------


def test_the_syn_is_answered_once_the_host_has_connected(wire: VirtualWire) -> None:
    connection = wire.connection(SERVER, 443)
    connection.syn()
    assert wire.asked() == [OpenStream(1, ip(SERVER), 443)]
    wire.wait(5)
    assert wire.hears_nothing()
    wire.stack.stream_opened(1, wire.now)
    answer = connection.hear_one("SA")
    assert (answer.seq, answer.ack) == (ENGINE_ISN, GUEST_ISN + 1)
    connection.heard = answer.seq + 1
    assert wire.told(FlowOpened) == [], "not before the handshake is complete"
    connection.ack()
    port = connection.source_port
    guest, server = (ip(GUEST), port), (ip(SERVER), 443)
    assert wire.told(FlowOpened) == [FlowOpened(1, "tcp", guest, server, server, Verdict(ALLOW, "syn", "no-list"))]


def test_the_host_alias_is_told_by_both_addresses(wire: VirtualWire) -> None:
    connection = wire.open_tcp(HOST_ALIAS, 8080)
    (opened,) = wire.told(FlowOpened)
    assert (opened.destination, opened.dialled) == ((ip(HOST_ALIAS), 8080), (ip(LOOPBACK), 8080))
    connection.rst()
    assert wire.told(FlowClosed)[0].dialled == (ip(LOOPBACK), 8080)


def test_a_syn_repeated_while_dialling_is_ignored(wire: VirtualWire) -> None:
    connection = dialling(wire)
    for _ in range(3):
        wire.wait(1)
        connection.syn()
        assert wire.asks_nothing()
        assert wire.hears_nothing()
    wire.stack.stream_opened(connection.flow, wire.now)
    connection.finish_handshake()


def test_whatever_else_comes_while_dialling_is_ignored(wire: VirtualWire) -> None:
    connection = dialling(wire)
    for flags in ("A", "PA", "FA", "SA", "SF", "", "U"):
        connection.put(flags, b"x")
    assert wire.asks_nothing()
    assert wire.hears_nothing()


FAILURES = {
    "refused": (effects.REFUSED, "RST", "refused"),
    "network": (effects.NETWORK_UNREACHABLE, 0, "network unreachable"),
    "host": (effects.HOST_UNREACHABLE, 1, "host unreachable"),
    "prohibited": (effects.PROHIBITED, 13, "prohibited by the host"),
    "timed out": (effects.TIMED_OUT, 1, "timed out"),
    "no resources": (effects.NO_RESOURCES, "RST", "host has no resources left"),
}


@pytest.mark.parametrize(("failure", "answer", "reason"), FAILURES.values(), ids=FAILURES)
def test_f10_the_guest_hears_what_the_host_heard(wire: VirtualWire, failure: int, answer: object, reason: str) -> None:
    """Conformance F10."""
    connection = dialling(wire)
    wire.stack.stream_failed(connection.flow, failure, wire.now)
    if answer == "RST":
        segment = connection.hear_one("RA")
        assert (segment.seq, segment.ack, segment.window) == (0, GUEST_ISN + 1, 0)
    else:
        quoted = wire.quoted(wire.hear_one(), 3, int(str(answer)))
        assert bytes(quoted) == bytes(IP(bytes(connection.segment("S", seq=GUEST_ISN, options=[("MSS", 1460)]))))
    assert wire.asks_nothing()
    assert reasons(wire) == [reason]
    assert wire.told(FlowOpened) == []
    connection.syn()
    assert wire.asked_one(OpenStream).flow != connection.flow, "the next attempt is dialled anew"


def test_when_errors_may_not_be_sent_the_dial_that_failed_is_a_reset(wire: VirtualWire) -> None:
    """The rate of ICMP errors is bounded (RFC 1812 section 4.3.2.8); the guest is told all the same."""
    outcomes = {"RST": 0, "ICMP": 0}
    for port in range(300):
        connection = dialling(wire, port=1000 + port)
        wire.stack.stream_failed(connection.flow, effects.HOST_UNREACHABLE, wire.now)
        outcomes["ICMP" if wire.hear_one()[IP].proto == 1 else "RST"] += 1
    assert outcomes == {"ICMP": 200, "RST": 100}


def test_a_syn_with_a_large_payload_is_quoted_as_far_as_an_error_goes(wire: VirtualWire) -> None:
    connection = wire.connection()
    connection.put("S", bytes(1400), seq=GUEST_ISN)
    flow = wire.asked_one(OpenStream).flow
    assert len(wire.stack.tcp._streams[flow].packet) <= 576, "thousands of dials under way do not hold 64 KiB each"
    wire.stack.stream_failed(flow, effects.HOST_UNREACHABLE, wire.now)
    frame = wire.hear_one()
    assert len(frame) == 14 + 576
    assert wire.quoted(frame, 3, 1).len == 1440


def test_a_dial_has_30_seconds(wire: VirtualWire) -> None:
    """gvproxy defects 2 and 16: there it is the kernel's two minutes, and ten of them stop everything."""
    connection = dialling(wire)
    wire.wait(29.9)
    assert wire.asks_nothing()
    wire.wait(0.2)
    assert wire.asked() == [AbortStream(connection.flow)]
    assert wire.quoted(wire.hear_one(), 3, 1).dport == 443
    assert reasons(wire) == ["timed out"]
    assert wire.rests()
    wire.stack.stream_opened(connection.flow, wire.now)  # too late
    assert wire.hears_nothing()


def test_each_dial_has_its_own_30_seconds() -> None:
    wire = VirtualWire(dial_timeout=3.0)
    first = dialling(wire)
    wire.wait(2)
    second = dialling(wire)
    wire.wait(1.5)
    assert wire.asked() == [AbortStream(first.flow)]
    wire.wait(2)
    assert wire.asked() == [AbortStream(second.flow)]


def test_l3_silent_destinations_delay_nobody(wire: VirtualWire) -> None:
    """Conformance L3, gvproxy defect 2."""
    for port in range(1000):
        wire.connection("198.18.0.1", 1 + port).syn()
    assert len(wire.asked()) == 1000
    connection = wire.open_tcp()
    connection.say(b"x")
    assert sent_bytes(wire.asked()) == b"x"


def test_a_reset_while_dialling_ends_the_dial(wire: VirtualWire) -> None:
    connection = dialling(wire)
    connection.rst()
    assert wire.asked() == [AbortStream(connection.flow)]
    assert wire.hears_nothing()
    assert reasons(wire) == ["reset by guest"]
    wire.stack.stream_opened(connection.flow, wire.now)
    wire.stack.stream_failed(connection.flow, effects.REFUSED, wire.now)
    assert wire.hears_nothing()
    assert wire.rests(within=31)


def test_a_reset_of_other_numbers_does_not_end_the_dial(wire: VirtualWire) -> None:
    connection = dialling(wire)
    connection.put("R", seq=connection.sent + 1)
    assert wire.asks_nothing()
    wire.stack.stream_opened(connection.flow, wire.now)
    connection.finish_handshake()


def test_syn_and_reset_in_one_batch(wire: VirtualWire) -> None:
    connection = wire.connection()
    wire.send(
        connection.segment("S", seq=GUEST_ISN),
        connection.segment("R", seq=GUEST_ISN + 1),
    )
    assert wire.asked() == [OpenStream(1, ip(SERVER), 443), AbortStream(1)]
    assert reasons(wire) == ["reset by guest"]


def test_a_syn_right_behind_the_end_of_its_predecessor(wire: VirtualWire) -> None:
    """Reset and SYN of the same ports in one batch: the host hears of both ends in order."""
    connection = wire.open_tcp()
    wire.send(connection.segment("R"), connection.segment("S", seq=90_000))
    assert wire.asked() == [AbortStream(connection.flow), OpenStream(2, ip(SERVER), 443)]
    connection.sent = 90_001
    wire.stack.stream_opened(2, wire.now)
    connection.finish_handshake()
    assert reasons(wire) == ["reset by guest"]


# -- the handshake ---------------------------------------------------------------------------------------------------


def test_a_guest_that_never_completes_the_handshake(wire: VirtualWire) -> None:
    connection = dialling(wire)
    wire.stack.stream_opened(connection.flow, wire.now)
    assert str(connection.hear_one("SA").flags) == "SA"
    wire.wait(600)
    flags = [str(segment.flags) for segment in connection.hear()]
    assert flags[-1] == "RA"
    assert set(flags[:-1]) == {"SA"}
    assert wire.asked() == [AbortStream(connection.flow)]
    assert wire.told(FlowOpened) == []
    assert reasons(wire) == ["guest silent"]


def test_a_reset_instead_of_the_last_ack(wire: VirtualWire) -> None:
    connection = dialling(wire)
    wire.stack.stream_opened(connection.flow, wire.now)
    connection.heard = connection.hear_one("SA").seq + 1
    connection.rst()
    assert wire.asked() == [AbortStream(connection.flow)]
    assert reasons(wire) == ["reset by guest"]


def test_d6_data_and_fin_with_the_last_ack(wire: VirtualWire) -> None:
    """Conformance D6."""
    connection = dialling(wire)
    wire.stack.stream_opened(connection.flow, wire.now)
    connection.heard = connection.hear_one("SA").seq + 1
    connection.put("FPA", b"all at once")
    assert wire.asked() == [SendStream(connection.flow, [b"all at once"]), ShutdownStream(connection.flow)]


def test_the_host_may_speak_and_end_before_the_handshake_is_complete(wire: VirtualWire) -> None:
    connection = dialling(wire)
    wire.stack.stream_opened(connection.flow, wire.now)
    connection.heard = connection.hear_one("SA").seq + 1
    assert wire.stack.stream_room(connection.flow) > 0
    wire.stack.stream_received(connection.flow, b"220 hello")
    wire.stack.stream_ended(connection.flow)
    assert wire.hears_nothing()
    connection.ack()
    segments = connection.hear()
    assert b"".join(map(payload_of, segments)) == b"220 hello"
    assert "F" in segments[-1].flags


# -- the splice ------------------------------------------------------------------------------------------------------


def test_bytes_go_both_ways(wire: VirtualWire) -> None:
    connection = wire.open_tcp()
    connection.say(b"GET / HTTP/1.0\r\n\r\n")
    effect = wire.asked_one(SendStream)
    assert (effect.flow, [bytes(chunk) for chunk in effect.chunks]) == (connection.flow, [b"GET / HTTP/1.0\r\n\r\n"])
    wire.stack.stream_sent(connection.flow, 18)
    wire.stack.stream_received(connection.flow, b"HTTP/1.0 200 OK\r\n")
    assert connection.hear_bytes() == b"HTTP/1.0 200 OK\r\n"


def test_segments_of_one_batch_are_one_effect(wire: VirtualWire) -> None:
    """The hot path: one upstream send, one acknowledgement, a flow a batch."""
    connection = wire.open_tcp()
    segments = []
    for number in range(10):
        segments.append(connection.segment("A", bytes([number]) * 1460))
        connection.sent += 1460
    wire.send(*segments)
    (effect,) = wire.asked()
    assert [chunk[:1] for chunk in effect.chunks] == [bytes([number]) for number in range(10)]
    assert connection.hear_one("A").ack == connection.sent


def test_the_guest_ends_first(wire: VirtualWire) -> None:
    """Half-close: the guest has said everything, the host's answer comes later."""
    connection = wire.open_tcp()
    connection.put("FPA", b"question")
    connection.sent += 9
    assert wire.asked() == [SendStream(connection.flow, [b"question"]), ShutdownStream(connection.flow)]
    assert connection.hear_one("A").ack == connection.sent
    wire.wait(3600)
    assert wire.hears_nothing()
    wire.stack.stream_received(connection.flow, b"answer")
    assert connection.hear_bytes() == b"answer"
    assert wire.asks_nothing()
    wire.stack.stream_ended(connection.flow)
    connection.hear_one("FA")
    connection.ack()
    assert wire.asked() == [CloseStream(connection.flow)]
    assert reasons(wire) == ["finished"]
    assert len(wire.stack.tcp.table) == 0, "the guest has the TIME-WAIT"


def test_the_host_ends_first(wire: VirtualWire) -> None:
    connection = wire.open_tcp()
    wire.stack.stream_received(connection.flow, b"greeting")
    wire.stack.stream_ended(connection.flow)
    assert connection.hear_bytes() == b"greeting"
    assert wire.asks_nothing()
    wire.wait(3600)
    connection.say(b"late upload")
    assert sent_bytes(wire.asked()) == b"late upload"
    wire.stack.stream_sent(connection.flow, 11)
    wire.hear()
    connection.fin()
    assert wire.asked() == [ShutdownStream(connection.flow), CloseStream(connection.flow)]
    assert reasons(wire) == ["finished"]
    assert len(wire.stack.tcp.time_wait) == 1, "TIME-WAIT is ours"
    wire.wait(61)
    assert len(wire.stack.tcp.tables) == 0


def test_both_end_at_once(wire: VirtualWire) -> None:
    connection = wire.open_tcp()
    wire.stack.stream_ended(connection.flow)
    connection.put("FA")  # the two FINs cross
    connection.sent += 1
    assert wire.asked() == [ShutdownStream(connection.flow)]
    connection.hear()
    connection.ack()
    assert wire.asked() == [CloseStream(connection.flow)]


def test_the_last_bytes_go_before_the_end(wire: VirtualWire) -> None:
    """Data, FIN and the host's end in one batch: bytes, then shutdown, then close."""
    connection = wire.open_tcp()
    wire.stack.stream_ended(connection.flow)
    connection.hear_one("FA")
    connection.put("FPA", b"last words")
    assert wire.asked() == [
        SendStream(connection.flow, [b"last words"]),
        ShutdownStream(connection.flow),
        CloseStream(connection.flow),
    ]


def test_a_reset_by_the_guest_resets_the_host(wire: VirtualWire) -> None:
    """gvproxy defect 3: there it is a clean end."""
    connection = wire.open_tcp()
    connection.say(b"half of it")
    wire.asked()
    wire.hear()
    connection.rst()
    assert wire.asked() == [AbortStream(connection.flow)]
    assert wire.hears_nothing()
    assert reasons(wire) == ["reset by guest"]
    assert wire.rests(within=31)


def test_bytes_before_a_reset_in_one_batch_go_first(wire: VirtualWire) -> None:
    connection = wire.open_tcp()
    wire.send(connection.segment("PA", b"x"), connection.segment("R", seq=connection.sent + 1))
    assert wire.asked() == [SendStream(connection.flow, [b"x"]), AbortStream(connection.flow)]


def test_a_reset_by_the_host_resets_the_guest(wire: VirtualWire) -> None:
    """gvproxy defect 3."""
    connection = wire.open_tcp()
    wire.stack.stream_received(connection.flow, b"half of it")
    connection.hear_bytes()
    wire.stack.stream_reset(connection.flow, wire.now)
    segment = connection.hear_one("RA")
    assert (segment.seq, segment.ack) == (connection.heard, connection.sent)
    assert wire.asks_nothing()
    assert reasons(wire) == ["reset by destination"]
    assert wire.rests(within=31)
    connection.say(b"x")
    assert str(connection.hear_one("R").flags) == "R"


def test_a_reset_by_the_host_after_the_guest_has_ended(wire: VirtualWire) -> None:
    connection = wire.open_tcp()
    connection.fin()
    wire.asked()
    wire.hear()
    wire.stack.stream_reset(connection.flow, wire.now)
    connection.hear_one("RA")
    assert wire.asks_nothing()


def test_a_guest_that_has_gone_silent(wire: VirtualWire) -> None:
    """What was sent is sent again and again, then both sides are reset."""
    connection = wire.open_tcp()
    wire.stack.stream_received(connection.flow, b"are you there?")
    wire.wait(3600)
    assert wire.asked() == [AbortStream(connection.flow)]
    assert str(connection.hear()[-1].flags) == "RA"
    assert reasons(wire) == ["guest silent"]
    assert wire.rests(within=100)
    assert len(wire.stack.tcp.table) == 0


def test_flows_are_told_once_with_their_bytes_and_their_seconds(wire: VirtualWire) -> None:
    connection = wire.open_tcp()
    connection.say(b"12345")
    connection.say(b"678")
    wire.stack.stream_sent(connection.flow, 8)
    wire.stack.stream_received(connection.flow, b"abcdefghijk")
    connection.hear_bytes()
    wire.wait(12.5)
    wire.asked()
    connection.close_both()
    wire.wait(120)
    (closed,) = wire.told(FlowClosed)
    assert (closed.flow, closed.protocol, closed.reason) == (connection.flow, "tcp", "finished")
    assert (closed.sent, closed.received, closed.seconds) == (8, 11, 12.5)
    assert len(wire.told(FlowOpened)) == 1


def test_flows_do_not_mix(wire: VirtualWire) -> None:
    connections = [wire.open_tcp(port=1000 + number) for number in range(20)]
    for number, connection in enumerate(connections):
        connection.say(b"%d" % number)
    for number, connection in enumerate(connections):
        wire.stack.stream_received(connection.flow, b"to %d" % number)
    data = {effect.flow: bytes(effect.chunks[0]) for effect in wire.asked() if isinstance(effect, SendStream)}
    assert data == {connection.flow: b"%d" % number for number, connection in enumerate(connections)}
    texts = {frame[TCP].sport: payload_of(frame[TCP]) for frame in wire.hear() if payload_of(frame[TCP])}
    assert texts == {1000 + number: b"to %d" % number for number in range(20)}


# -- back-pressure ---------------------------------------------------------------------------------------------------


def test_l5_what_the_host_does_not_take_closes_the_guests_window(wire: VirtualWire) -> None:
    """Conformance L5: a host that never reads."""
    connection = wire.open_tcp()
    window = 65_535
    while window:
        size = min(1460, window)
        connection.say(bytes(size), "A")
        answers = connection.hear()
        if answers:
            window = answers[-1].window
        else:
            window -= size
    taken = len(sent_bytes(wire.asked()))
    assert taken == connection.sent - GUEST_ISN - 1 == 65_535
    connection.put("A", b"x")
    assert connection.hear_one("A").window == 0
    assert wire.asks_nothing()
    wire.stack.stream_sent(connection.flow, 1000)
    assert wire.hears_nothing(), "no silly windows (RFC 9293 section 3.8.6.2.2)"
    wire.stack.stream_sent(connection.flow, 20_000)
    assert connection.hear_one("A").window >= 20_000
    connection.say(bytes(1460), "A")
    assert len(sent_bytes(wire.asked())) == 1460


def test_f7_l5_what_the_guest_does_not_read_pauses_the_host(wire: VirtualWire) -> None:
    """Conformance F7, L5: bounded memory, and the host's socket is not read."""
    connection = wire.open_tcp()
    given = 0
    while room := wire.stack.stream_room(connection.flow):
        wire.stack.stream_received(connection.flow, bytes(min(room, 65_536)))
        given += min(room, 65_536)
    assert given <= 128 * 1024
    received = sum(len(payload_of(segment)) for segment in connection.hear())
    assert received < given
    assert wire.stack.stream_room(connection.flow) == 0
    assert wire.asks_nothing()
    reads = 0
    while received < given:
        connection.ack()
        received += sum(len(payload_of(segment)) for segment in connection.hear())
        reads += sum(isinstance(effect, ReadStream) for effect in wire.asked())
    connection.ack()
    reads += sum(isinstance(effect, ReadStream) for effect in wire.asked())
    assert reads == 1, "asked to go on once, when there is room worth it"
    assert wire.stack.stream_room(connection.flow) >= LARGE_READ * 1448


@pytest.mark.parametrize("mtu", [1500, 9000, 65_520])
def test_a_host_is_read_in_whole_segments(mtu: int) -> None:
    """In the middle of a stream every segment is full; a buffer that is full but for less is not read into."""
    wire = VirtualWire(mtu=mtu)
    connection = wire.connection(SERVER, 443)
    connection.syn(options=[("MSS", mtu - 40)])
    connection.flow = wire.asked_one(OpenStream).flow
    wire.stack.stream_opened(connection.flow, wire.now)
    connection.finish_handshake()
    sizes = set()
    for _ in range(20):
        while room := wire.stack.stream_room(connection.flow):
            assert room <= tcp_flows.READ_AT_ONCE
            wire.stack.stream_received(connection.flow, bytes(room))
        sizes |= {len(payload_of(segment)) for segment in connection.hear()}
        connection.ack()
    assert sizes == {mtu - 40}


def test_a_host_that_was_never_paused_is_not_asked_to_go_on(wire: VirtualWire) -> None:
    connection = wire.open_tcp()
    for _ in range(10):
        assert wire.stack.stream_room(connection.flow)
        wire.stack.stream_received(connection.flow, bytes(1000))
        connection.hear_bytes()
    assert wire.asks_nothing()


def test_room_on_the_link_is_shared_in_turn() -> None:
    """Data that finds no room waits, and whoever had to wait is next."""
    wire = VirtualWire()
    connections = [wire.open_tcp(port=1000 + number) for number in range(4)]
    for connection in connections:
        wire.stack.stream_received(connection.flow, bytes(8 * 1460))
    order = []
    while True:
        assert not wire.stack.take_effects(wire.now)
        frames = wire.stack.take_frames(wire.now, 4)
        order += [int.from_bytes(frame[34:36], "big") - 1000 for frame in frames]
        if not wire.stack.frames_wait:
            break
        assert len(frames) == 4
    assert order == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_without_room_answers_go_out_all_the_same() -> None:
    wire = VirtualWire()
    connection = wire.open_tcp()
    wire.stack.stream_received(connection.flow, bytes(1460))
    wire.stack.take_effects(wire.now)
    assert wire.stack.take_frames(wire.now, 0) == []
    assert wire.stack.frames_wait
    frame = bytes.fromhex(GATEWAY_AND_GUEST) + bytes(connection.segment("PA", b"x" * 3000)[IP])
    wire.stack.receive_frame(frame, wire.now)
    wire.stack.take_effects(wire.now)
    frames = wire.stack.take_frames(wire.now, -5)
    assert [len(frame) for frame in frames] == [54], "the acknowledgement, without the data"
    assert len(wire.stack.take_frames(wire.now, 10)) == 1
    assert not wire.stack.frames_wait


GATEWAY_AND_GUEST = "5a94ef e40cdd 020000 000002 0800".replace(" ", "")


def test_a_guest_whose_link_is_behind_holds_back_nobody_else() -> None:
    wire = VirtualWire()
    slow = wire.open_tcp()
    quick = wire.open_tcp(source="192.168.127.3", source_mac=OTHER_MAC)
    held = frozenset({mac(GUEST_MAC)})
    wire.stack.stream_received(slow.flow, bytes(20 * 1460))
    for _ in range(5):
        wire.stack.stream_received(quick.flow, bytes(1460))
        wire.stack.take_effects(wire.now)
        frames = wire.stack.take_frames(wire.now, 8, held)
        assert [frame[:6] for frame in frames] == [mac(OTHER_MAC)]
        assert not wire.stack.frames_wait, "nothing is left that more room would help"
    frames = wire.stack.take_frames(wire.now, 8)
    assert [frame[:6] for frame in frames] == [mac(GUEST_MAC)] * 8
    assert wire.stack.frames_wait
    wire.stack.guest_left(mac(GUEST_MAC), wire.now)
    wire.stack.take_effects(wire.now)
    assert wire.stack.take_frames(wire.now, 8) == []
    assert not wire.stack.frames_wait


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_f1_half_open_flows_are_bounded(wire: VirtualWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conformance F1: the oldest that is not complete makes room, others do not notice."""
    monkeypatch.setattr(tcp_flows, "MAX_HALF_OPEN", 5)
    alive = wire.open_tcp()
    waiting = [dialling(wire, port=1000 + number) for number in range(5)]
    wire.stack.stream_opened(waiting[0].flow, wire.now)
    waiting[0].hear_one("SA")
    newest = wire.connection(port=2000)
    newest.syn()
    aborted, opened = wire.asked()
    assert aborted == AbortStream(waiting[0].flow)
    assert isinstance(opened, OpenStream)
    waiting[0].hear_one("RA")
    assert reasons(wire) == ["evicted"]
    assert wire.dropped == {"tcp-half-open-evicted": 1}
    alive.say(b"still here")
    assert sent_bytes(wire.asked()) == b"still here"


def test_f2_a_full_table_refuses_at_once_and_recovers(wire_options: dict[str, object]) -> None:
    """Conformance F2."""
    wire = VirtualWire(max_tcp_flows=3, **wire_options)
    connections = [wire.open_tcp(port=1000 + number) for number in range(3)]
    extra = wire.connection()
    extra.syn()
    extra.hear_one("RA")
    assert wire.asks_nothing()
    assert wire.refused() == [("tcp", (ip(SERVER), 443), "syn", "table-full", "reset")]
    assert wire.dropped == {}
    connections[1].rst()
    assert wire.asked() == [AbortStream(connections[1].flow)]
    wire.open_tcp()


def test_in_a_full_table_a_half_open_flow_makes_room(wire_options: dict[str, object]) -> None:
    wire = VirtualWire(max_tcp_flows=3, **wire_options)
    wire.open_tcp(port=1000)
    half = [dialling(wire, port=1001 + number) for number in range(2)]
    wire.connection().syn()
    aborted, opened = wire.asked()
    assert aborted == AbortStream(half[0].flow)
    assert isinstance(opened, OpenStream)
    half[0].hear_one("RA")


def test_in_a_full_table_time_wait_goes_first(wire_options: dict[str, object]) -> None:
    wire = VirtualWire(max_tcp_flows=3, **wire_options)
    over = wire.open_tcp(port=1000)
    over.close_both()
    half = dialling(wire, port=1001)
    wire.open_tcp(port=1002)
    assert len(wire.stack.tcp.tables) == 3
    wire.open_tcp(port=1003)
    wire.stack.stream_opened(half.flow, wire.now)
    half.finish_handshake()
    over.put("A")
    over.hear_one("R")
    assert wire.dropped == {"tcp-no-connection": 1}


@pytest.fixture(params=[True, False], ids=["verified", "trusted"])
def wire_options(request: pytest.FixtureRequest) -> dict[str, object]:
    return {"verify": request.param}


# -- TIME-WAIT -------------------------------------------------------------------------------------------------------


def in_time_wait(wire: VirtualWire) -> GuestTcp:
    connection = wire.open_tcp()
    connection.close_both()
    return connection


def test_time_wait_is_left_for_a_syn_with_higher_numbers(wire: VirtualWire) -> None:
    """RFC 9293 section 3.6.1. The new numbers of ours lie beyond the old ones, though the generator says otherwise."""
    old = in_time_wait(wire)
    new = wire.connection(source_port=old.source_port, isn=old.sent + 1000)
    new.syn()
    new.flow = wire.asked_one(OpenStream).flow
    assert new.flow != old.flow
    wire.stack.stream_opened(new.flow, wire.now)
    answer = new.finish_handshake()
    assert 0 < (answer.seq - old.heard) % 2**32 < 2**31
    new.say(b"again")
    assert sent_bytes(wire.asked()) == b"again"


def test_time_wait_is_not_left_for_a_syn_of_old(wire: VirtualWire) -> None:
    old = in_time_wait(wire)
    old.put("S", seq=old.isn)
    assert wire.asks_nothing()
    assert old.hear_one("A").ack == old.sent


def test_time_wait_ends_after_a_minute(wire: VirtualWire) -> None:
    old = in_time_wait(wire)
    wire.wait(59)
    assert len(wire.stack.tcp.tables) == 1
    wire.wait(2)
    assert len(wire.stack.tcp.tables) == 0
    assert wire.rests()
    assert reasons(wire) == ["finished"], "told when the host's side was done, not again"
    old.put("A")
    old.hear_one("R")


def test_the_last_ack_is_repeated_in_time_wait(wire: VirtualWire) -> None:
    old = in_time_wait(wire)
    old.put("FA", seq=old.sent - 1)
    assert old.hear_one("A").ack == old.sent
    assert wire.asks_nothing()


def test_a_syn_in_the_very_batch_that_leads_to_time_wait(wire: VirtualWire) -> None:
    """The host hears of the old flow's end before the new one's beginning, and no socket is left behind."""
    old = wire.open_tcp()
    wire.stack.stream_ended(old.flow)
    old.hear_one("FA")
    fin = old.segment("FA")
    wire.send(fin, old.segment("S", seq=old.sent + 5000))
    assert wire.asked() == [ShutdownStream(old.flow), CloseStream(old.flow), OpenStream(2, ip(SERVER), 443)]
    assert reasons(wire) == ["finished"]
    assert set(wire.stack.tcp._streams) == {2}


# -- strays ----------------------------------------------------------------------------------------------------------

STRAYS = {
    "A": ("R", 0x1234, 0),
    "FA": ("R", 0x1234, 0),
    "SA": ("R", 0x1234, 0),
    "PA": ("R", 0x1234, 0),
    "F": ("RA", 0, 5 + 4 + 1),
    "SF": ("RA", 0, 5 + 4 + 2),
    "": ("RA", 0, 5 + 4),
    "U": ("RA", 0, 5 + 4),
}


@pytest.mark.parametrize("flags", STRAYS)
def test_a_segment_of_no_connection_is_reset(wire: VirtualWire, flags: str) -> None:
    """RFC 9293 section 3.10.7.1."""
    connection = wire.connection()
    connection.put(flags, b"abcd", seq=5, ack=0x1234)
    expected, sequence, acknowledgement = STRAYS[flags]
    segment = connection.hear_one(expected)
    assert (segment.seq, segment.ack, segment.window) == (sequence, acknowledgement, 0)
    assert wire.asks_nothing()
    assert wire.dropped == {"tcp-no-connection": 1}


@pytest.mark.parametrize("flags", ["R", "RA", "SR", "FRA"])
def test_a_stray_reset_is_met_with_silence(wire: VirtualWire, flags: str) -> None:
    connection = wire.connection()
    connection.put(flags)
    assert wire.hears_nothing()
    assert wire.asks_nothing()


def test_a_syn_with_strange_flags_beside_it_is_a_syn(wire: VirtualWire) -> None:
    """ECN setup (RFC 3168 section 6.1.1): the flags are not answered, so the guest does without."""
    connection = wire.connection()
    connection.put("SEC", seq=GUEST_ISN)
    connection.sent = GUEST_ISN + 1
    wire.stack.stream_opened(wire.asked_one(OpenStream).flow, wire.now)
    connection.hear_one("SA")


def test_e9_the_same_ports_from_another_mac(wire: VirtualWire) -> None:
    """Conformance E9: an address that moves takes no connection with it."""
    connection = wire.open_tcp()
    wire.stack.neighbours._store(ip(GUEST), mac(OTHER_MAC), wire.now)
    for flags in ("PA", "R", "FA", "S"):
        wire.send(connection.segment(flags, b"x"), source=OTHER_MAC)
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert wire.dropped == {"tcp-flow-of-another": 4}


def test_f9_k3_segments_that_lie_about_their_header(wire: VirtualWire) -> None:
    """Conformance F9, K3; with and without a flow they could belong to."""
    known = wire.open_tcp()
    for connection in (known, wire.connection()):
        for offset in (0, 4, 15):
            connection.put("A", dataofs=offset)
        whole = connection.segment("A")
        for size in range(20):
            cut = bytes(IP(src=GUEST, dst=SERVER, proto=6)) + bytes(whole[TCP])[:size]
            wire.send(bytes.fromhex(GATEWAY_AND_GUEST) + bytes(IP(cut, len=20 + size)))
    assert wire.asks_nothing()
    assert wire.hears_nothing()
    assert set(wire.dropped) <= {"tcp-data-offset", "tcp-truncated", "ip-checksum", "ip-total-length"}


# -- a guest that leaves ---------------------------------------------------------------------------------------------


def test_a_guest_that_left_takes_its_flows_with_it(wire: VirtualWire) -> None:
    spliced, half, over = wire.open_tcp(), dialling(wire, port=80), wire.open_tcp(port=81)
    wire.stack.stream_received(spliced.flow, b"never acknowledged")
    wire.hear()
    over.close_both()
    other = wire.open_tcp(source="192.168.127.3", source_mac=OTHER_MAC)
    wire.stack.guest_left(mac(GUEST_MAC), wire.now)
    assert wire.asked() == [AbortStream(spliced.flow), AbortStream(half.flow)]
    assert reasons(wire) == ["finished", "guest left", "guest left"]
    assert set(wire.stack.tcp.table.values()) == {wire.stack.tcp._streams[other.flow]}
    wire.wait(600)
    assert wire.hears_nothing(), "nobody is there who could hear a retransmission or a reset"
    other.say(b"x")
    assert sent_bytes(wire.asked()) == b"x"


def test_a_guest_that_comes_back_begins_anew(wire: VirtualWire) -> None:
    connection = wire.open_tcp()
    wire.stack.guest_left(mac(GUEST_MAC), wire.now)
    wire.asked()
    connection.put("A")
    connection.hear_one("R")
    wire.open_tcp(source_port=connection.source_port)


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mtu", "queue_frames"), [(1500, 1000), (1500, 10), (9000, 65_536), (65_520, 1000), (68, 1000)]
)
def test_the_window_never_exceeds_what_the_link_queues(mtu: int, queue_frames: int) -> None:
    """Frames beyond the queue are lost before they are read."""
    settings = network(mtu=mtu, queue_frames=queue_frames)
    wire = VirtualWire(settings)
    mss = mtu - 40
    connection = wire.connection(window=65_535)
    connection.syn(options=[("MSS", mss), ("WScale", 7)])
    connection.flow = wire.asked_one(OpenStream).flow
    wire.stack.stream_opened(connection.flow, wire.now)
    answer = connection.finish_handshake()
    assert dict(option for option in answer.options if len(option) == 2)["MSS"] == mss
    limit = max(mss, min(4 << 20, queue_frames * mss))
    windows = [answer.window]
    for _ in range(200):
        data = bytes(min(1460, mss))
        connection.say(data, "A")
        for effect in wire.asked():
            wire.stack.stream_sent(effect.flow, len(data))
        windows += [segment.window << 7 for segment in connection.hear()]
    assert max(windows) <= limit


def test_nothing_is_dialled_for_the_gateway_itself(wire: VirtualWire) -> None:
    connection = wire.connection(GATEWAY, 80)
    connection.syn()
    connection.hear_one("RA")
    assert wire.asks_nothing()
    assert wire.refused() == [("tcp", (ip(GATEWAY), 80), "syn", "unserved-port", "reset")]
