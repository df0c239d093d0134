"""Conformance class F under a list: floods, full tables, losses and slow guests, where a name has to be said first.

What TCP itself owes (F4 to F9, F12, F15) has its tests in tests/engine/test_tcp_*.py and tests/guest_iface; here are
the variants in which the policy takes part. A hook that fails (F14) is in test_f_hooks.py.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from engine.wire_guest import GATEWAY_MAC, GUEST, GUEST_MAC, GuestTcp, internet_sum, ip, payload_of, sent_bytes, udp
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from wire import hellos
from wire.http_requests import get

from netstack.engine import effects, tcp_admission, tcp_flows
from netstack.engine.effects import AbortStream, CloseStream, OpenNamed, OpenStream, SendStream, ShutdownStream
from netstack.engine.events import FlowClosed, FlowOpened, FlowRefused
from netstack.engine.refusals import MAX_PLACES
from netstack.network_spec import NetworkSpec

from .policy_wire import (
    ALERT,
    ATTACKER,
    NAME,
    OTHER_NAME,
    SITE,
    TRUE_SITE,
    PolicyWire,
    dialled_as_is,
    is_gone,
    opened_by_name,
    peeked,
    refusal,
    refused_at_syn,
    say,
    turned_away,
)

Guest = Callable[..., PolicyWire]
HELLO = hellos.python_ssl(NAME)
EVIL_HELLO = hellos.python_ssl(OTHER_NAME)


def syns(count: int, address: str, *, port: int = 0) -> list[bytes]:
    """SYNs in frames, from as many ports; to as many ports if none is given."""
    first = bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / IP(src=GUEST, dst=address) / TCP(flags="S"))
    head, rest = first[:34], first[46:50] + bytes(2) + first[52:]
    frames = []
    for number in range(count):
        ports = struct.pack("!HHII", 1024 + number % 64_000, port or 1 + number % 65_535, number, 0)
        segment = ports + rest
        checksum = 0xFFFF - internet_sum(head[26:34] + b"\0\6" + len(segment).to_bytes(2, "big") + segment)
        frames.append(head + segment[:16] + checksum.to_bytes(2, "big") + segment[18:])
    return frames


def flood(wire: PolicyWire, frames: list[bytes], batch: int = 64) -> list[bytes]:
    """Send them as fast as a driver takes them; what the guest heard."""
    heard = []
    for at in range(0, len(frames), batch):
        wire.send(*frames[at : at + batch])
        heard += wire.hear_raw()
    return heard


def flags_of(frame: bytes) -> int:
    return frame[47] & 0x3F


# -- F1: SYN floods --------------------------------------------------------------------------------------------------


def test_F1_a_flood_of_refused_syns(guest: Guest) -> None:
    """Each gets its reset; nothing is kept, a few hundred lines are told, and others do not notice."""
    wire = guest(f"{SITE}:443")
    live = dialled_as_is(wire, SITE, 443, "address-rule", f"{SITE}:443")
    frames = syns(5000, ATTACKER)
    heard = flood(wire, frames)
    assert len(heard) == 5000
    assert {flags_of(frame) for frame in heard} == {0x14}
    assert wire.asks_nothing()
    assert len(wire.stack.tcp.table) == 1
    told = wire.told(FlowRefused)
    assert len(told) <= MAX_PLACES + 4
    assert wire.stack.judge.refusals == {"no-rule": 5000}
    wire.stack.stream_received(live.flow, b"still here")
    assert live.hear_bytes() == b"still here"


def test_F1_a_flood_where_names_are_read(guest: Guest) -> None:
    """Peeks are bounded; those that never shook hands make room, so that who means it gets through meanwhile."""
    wire = guest(NAME, f"{SITE}:8443")
    live = dialled_as_is(wire, SITE, 8443, "address-rule", f"{SITE}:8443")
    flood(wire, syns(5000, ATTACKER, port=443))
    assert wire.asks_nothing()
    assert len(wire.stack.tcp.table) == tcp_flows.MAX_PEEKING + 1
    assert wire.dropped == {"tcp-half-open-evicted": 5000 - tcp_flows.MAX_PEEKING}
    connection = wire.connection(SITE, 443)
    connection.syn()
    reset, answer = sorted(wire.hear(), key=lambda frame: frame[TCP].dport)
    assert (str(reset[TCP].flags), str(answer[TCP].flags)) == ("RA", "SA"), "the oldest of the flood made room"
    connection.heard = answer[TCP].seq + 1
    connection.ack()
    flood(wire, syns(500, ATTACKER, port=80))
    wire.events.clear()
    say(connection, HELLO)
    opened_by_name(wire, connection, HELLO)
    wire.stack.stream_received(live.flow, b"still here")
    assert live.hear_bytes() == b"still here"
    wire.wait(60)
    wire.hear_raw()
    assert len(wire.stack.tcp.table) == 2, "all of the flood is forgotten"


def test_F1_guests_that_shake_hands_and_say_nothing(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_flows, "MAX_PEEKING", 20)
    wire = guest(NAME)
    for _ in range(20):
        peeked(wire, ATTACKER)
    refused_at_syn(wire, SITE, 443, "too-many-unnamed-flows")
    wire.wait(5.1)
    wire.hear_raw()
    assert {event.verdict.reason for event in wire.told(FlowRefused)} == {"no-name-in-time"}
    wire.wait(10)
    wire.hear_raw()
    wire.events.clear()
    connection = peeked(wire, SITE)
    say(connection, HELLO)
    opened_by_name(wire, connection, HELLO)


# -- F2: a full table ------------------------------------------------------------------------------------------------


def test_F2_a_full_table_refuses_at_once_and_recovers(guest: Guest) -> None:
    wire = guest(NAME, "93.184.216.0/24", max_tcp_flows=3)
    live = [dialled_as_is(wire, f"93.184.216.{number}", 22, "address-rule", "93.184.216.0/24") for number in (1, 2, 3)]
    refused_at_syn(wire, SITE, 22, "table-full")
    refused_at_syn(wire, ATTACKER, 443, "table-full")
    live[0].rst()
    assert wire.asked_one(AbortStream).flow == live[0].flow
    wire.events.clear()
    connection = peeked(wire, ATTACKER)
    say(connection, HELLO)
    opened_by_name(wire, connection, HELLO)


# -- F3: ends in every order -----------------------------------------------------------------------------------------


def by_name(wire: PolicyWire) -> GuestTcp:
    """A connection whose name is being dialled."""
    connection = peeked(wire)
    say(connection, HELLO)
    connection.flow = wire.asked_one(OpenNamed).flow
    return connection


def test_F3_the_guest_ends_before_the_dial_is_done(guest: Guest) -> None:
    """What it said still goes out, then its end."""
    wire = guest(NAME)
    connection = by_name(wire)
    connection.fin()
    wire.hear()
    wire.stack.stream_opened(connection.flow, wire.now, ip(TRUE_SITE))
    sent, ended = wire.asked()
    assert isinstance(sent, SendStream)
    assert sent_bytes([sent]) == HELLO
    assert ended == ShutdownStream(connection.flow)
    wire.stack.stream_received(connection.flow, b"answer")
    assert connection.hear_bytes() == b"answer"
    wire.stack.stream_ended(connection.flow)
    connection.hear()
    connection.ack()
    assert CloseStream(connection.flow) in wire.asked()
    assert [event.reason for event in wire.told(FlowClosed)] == ["finished"]


def test_F3_the_guest_resets_while_the_name_is_dialled(guest: Guest) -> None:
    wire = guest(NAME)
    connection = by_name(wire)
    connection.rst()
    assert wire.asked_one(AbortStream).flow == connection.flow
    assert is_gone(connection)
    wire.stack.stream_opened(connection.flow, wire.now, ip(TRUE_SITE))
    assert wire.asks_nothing()
    assert wire.rests(within=10)


@pytest.mark.parametrize("end", ["FA", "R"])
def test_F3_the_guest_ends_before_it_said_a_name(guest: Guest, end: str) -> None:
    wire = guest(NAME)
    connection = peeked(wire)
    connection.put(end)
    assert wire.asks_nothing()
    wire.hear()
    wire.wait(6)
    wire.hear()
    assert is_gone(connection)
    assert wire.asks_nothing()
    assert len(wire.flow_events()) == 1


def test_F3_upstream_ends_first_and_half_open_stays_half_open(guest: Guest) -> None:
    wire = guest(NAME)
    connection = by_name(wire)
    wire.stack.stream_opened(connection.flow, wire.now, ip(TRUE_SITE))
    wire.asked()
    wire.stack.stream_ended(connection.flow)
    connection.hear_one("FA")
    connection.ack()
    wire.wait(600)
    connection.say(b"later")
    assert sent_bytes(wire.asked()) == b"later"
    connection.fin()
    assert wire.asked() == [ShutdownStream(connection.flow), CloseStream(connection.flow)]


# -- F4 and F5: numbers and losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("isn", [0xFFFFFFF0, 0xFFFFFFFF - len(HELLO), 0xFFFFFFFE])
def test_F4_the_numbers_wrap_inside_the_hello(guest: Guest, isn: int) -> None:
    wire = guest(NAME)
    connection = peeked(wire, isn=isn)
    for at in range(0, len(HELLO), 100):
        connection.put("PA", HELLO[at : at + 100], seq=(isn + 1 + at) % 2**32)
    connection.sent = (isn + 1 + len(HELLO)) % 2**32
    wire.hear()
    opened_by_name(wire, connection, HELLO)


@pytest.mark.parametrize("seed", range(8))
def test_F5_a_hello_lost_doubled_and_out_of_order(guest: Guest, seed: int) -> None:
    """Whatever comes first, the same bytes are judged, and they are what goes out."""
    dice = random.Random(seed)
    wire = guest(NAME)
    for data, allowed in ((HELLO, True), (EVIL_HELLO, False)):
        connection = peeked(wire)
        pieces = [(at, data[at : at + 60]) for at in range(0, len(data), 60)]
        sending = [*pieces, *dice.sample(pieces, len(pieces) // 2)]
        dice.shuffle(sending)
        lost = dice.sample(range(len(sending)), 3)
        sending = [piece for number, piece in enumerate(sending) if number not in lost] + pieces
        for at, piece in sending:
            connection.put("PA", piece, seq=connection.isn + 1 + at)
            if wire.flow_events() or not is_waiting(wire, connection):
                break
        connection.sent = connection.isn + 1 + len(data)
        if allowed:
            wire.hear()
            opened_by_name(wire, connection, data)
        else:
            heard = b"".join(payload_of(frame[TCP]) for frame in wire.hear() if frame.haslayer(TCP))
            assert heard == ALERT
            assert wire.asks_nothing()
            (event,) = wire.told(FlowRefused)
            assert event.verdict.name == OTHER_NAME


def is_waiting(wire: PolicyWire, connection: GuestTcp) -> bool:
    """Whether the connection's name was not said yet."""
    place = (ip(connection.source), connection.source_port)
    return any(flow.question.guest == place and flow.state == 1 for flow in wire.stack.tcp.table.values())


# -- F6 and F7: guests that do not read ------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [EVIL_HELLO, get(f"Host: {OTHER_NAME}")], ids=["tls", "http"])
def test_F6_a_guest_without_a_window_is_told_nothing_and_let_go(guest: Guest, data: bytes) -> None:
    """The farewell has nowhere to go: a reset when its time is up, and no slot is held."""
    wire = guest(NAME)
    connection = wire.connection(SITE, 443, window=0)
    connection.syn()
    connection.finish_handshake()
    say(connection, data)
    assert wire.asks_nothing()
    (event,) = wire.flow_events()
    assert isinstance(event, FlowRefused)
    wire.wait(tcp_admission.FAREWELL + 0.1)
    assert any("R" in str(frame[TCP].flags) for frame in wire.hear())
    assert is_gone(connection)
    assert wire.rests(within=1)


def test_F7_what_waits_for_a_dial_is_bounded(guest: Guest) -> None:
    """A guest that goes on sending while its name is dialled fills the window it was given, and no more."""
    wire = guest(NAME)
    connection = by_name(wire)
    taken = len(HELLO)
    for _ in range(200):
        connection.say(bytes(1400))
        taken = max([taken, *((segment.ack - connection.isn - 1) % 2**32 for segment in connection.hear())])
    assert taken <= 65_535
    assert connection.sent - connection.isn > 250_000
    wire.stack.stream_opened(connection.flow, wire.now, ip(TRUE_SITE))
    assert len(sent_bytes(wire.asked())) == taken


# -- F10: upstreams that cannot be reached ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [effects.REFUSED, effects.NETWORK_UNREACHABLE, effects.HOST_UNREACHABLE, effects.TIMED_OUT]
)
def test_F10_a_name_that_cannot_be_dialled(guest: Guest, failure: int) -> None:
    """The handshake is past: a reset is all that is left to say. It is no refusal of ours, and not told as one."""
    wire = guest(NAME)
    connection = by_name(wire)
    wire.stack.stream_failed(connection.flow, failure, wire.now)
    assert "R" in str(connection.hear()[-1].flags)
    (event,) = wire.flow_events()
    assert isinstance(event, FlowClosed)
    assert (event.reason, event.verdict.name) == (effects.FAILURE_WORDS[failure], NAME)
    assert is_gone(connection)


def test_F10_a_dial_that_never_ends(guest: Guest) -> None:
    wire = guest(NAME)
    connection = by_name(wire)
    wire.wait(wire.settings.dial_timeout + 0.1)
    assert wire.asked_one(AbortStream).flow == connection.flow
    assert "R" in str(connection.hear()[-1].flags)
    (event,) = wire.flow_events()
    assert isinstance(event, FlowClosed)
    assert event.reason == "timed out"
    assert is_gone(connection)


def test_F10_black_holes_do_not_hold_up_the_next(guest: Guest) -> None:
    """L3: a thousand dials that hang, and one that does not."""
    wire = guest("*.example.com")
    for number in range(1000):
        connection = peeked(wire, ATTACKER, 80)
        connection.say(get(f"Host: n{number}.example.com"))
        assert wire.asked_one(OpenNamed).name == f"n{number}.example.com"
        wire.hear_raw()
    connection = peeked(wire)
    say(connection, HELLO)
    opened_by_name(wire, connection, HELLO, rule="*.example.com")


# -- F11: many short connections -------------------------------------------------------------------------------------


def test_F11_short_connections_one_after_the_other_leave_nothing(guest: Guest) -> None:
    wire = guest(NAME)
    request = get(f"Host: {NAME}")
    for number in range(300):
        connection = peeked(wire, port=80, source_port=20_000 + number % 50, isn=1000 + number * 100_000)
        say(connection, request)
        connection.flow = wire.asked_one(OpenNamed).flow
        wire.stack.stream_opened(connection.flow, wire.now, ip(TRUE_SITE))
        assert sent_bytes(wire.asked()) == request
        wire.stack.stream_sent(connection.flow, len(request))
        wire.stack.stream_received(connection.flow, b"HTTP/1.1 204 No Content\r\n\r\n")
        connection.hear_bytes()
        connection.close_both()
        wire.events.clear()
        wire.wait(0.01)
    assert len(wire.stack.tcp.tables) <= 50, "what is left is in TIME-WAIT"
    wire.wait(130)
    assert len(wire.stack.tcp.tables) == 0
    assert wire.rests()


# -- F13: floods of what is told -------------------------------------------------------------------------------------


def test_F13_a_flood_of_refusals_of_every_kind_is_told_in_a_few_lines(guest: Guest) -> None:
    wire = guest(NAME)
    flood(wire, syns(2000, ATTACKER))
    wire.send(*(udp(ATTACKER, 1 + number, b"x") for number in range(2000)))
    wire.hear_raw()
    assert wire.asks_nothing()
    # 80 and 443 were peeks; the rest was refused at once.
    assert sum(wire.stack.judge.refusals.values()) >= 3997
    told = wire.told(FlowRefused)
    assert len(told) <= MAX_PLACES + 10
    assert {event.total for event in told} == {1, 10, 100, 1000}


def test_F13_names_a_guest_makes_up_are_bounded_too(guest: Guest) -> None:
    """Each refused name is a place of its own, but there are only so many."""
    wire = guest(NAME)
    for number in range(MAX_PLACES + 50):
        connection = peeked_quietly(wire)
        say(connection, get(f"Host: n{number}.example.net"))
        connection.hear()
        connection.rst()
    assert wire.stack.judge.refusals == {"name-not-allowed": MAX_PLACES + 50}
    assert len(wire.told(FlowRefused)) == MAX_PLACES + 2, "one each, then the 1st and the 10th of the rest"


def peeked_quietly(wire: PolicyWire) -> GuestTcp:
    connection = wire.connection(ATTACKER, 80)
    connection.syn()
    connection.finish_handshake()
    return connection


# -- and with nothing allowed ----------------------------------------------------------------------------------------


def test_F_under_deny_all_a_flood_costs_no_state(guest: Guest) -> None:
    wire = guest(spec=NetworkSpec.enabled(deny_all=True))
    flood(wire, syns(3000, SITE, port=443))
    assert len(wire.stack.tcp.tables) == 0
    assert wire.asks_nothing()
    assert not wire.told(FlowOpened)
    assert [event.total for event in wire.told(FlowRefused)] == [1, 10, 100, 1000]


def test_F_a_refused_connection_is_refused_again_for_as_often_as_it_is_tried(guest: Guest) -> None:
    wire = guest(NAME)
    connection = wire.connection(ATTACKER, 22, source_port=5555)
    for _ in range(5):
        connection.put("S", seq=connection.isn)
        assert [str(frame[TCP].flags) for frame in wire.hear()] == ["RA"]
    assert wire.asks_nothing()
    assert not any(isinstance(effect, OpenStream) for effect in wire.asked())
    verdict = refusal("no-rule")
    assert [event.verdict for event in wire.told(FlowRefused)] == [verdict]
    wire.events.clear()
    turned = peeked(wire, port=443)
    say(turned, EVIL_HELLO)
    turned_away(wire, turned, refusal("name-not-allowed", "tls", name=OTHER_NAME, source="sni"))
