"""Flows towards a guest, and services the driver has at the gateway: ARP, SYN, splice, the ends, bounds, policies.

How a connection opens towards a guest is told in test_tcp_opening.py, as transcripts.
"""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP
from scapy.packet import Raw

from netstack.engine import effects, inbound_tcp, inbound_udp
from netstack.engine.effects import (
    AbortStream,
    CloseStream,
    DeliverDatagram,
    InboundDatagramsEnded,
    InboundFailed,
    InboundOpened,
    OpenDatagrams,
    SendDatagram,
    SendStream,
    ServeStream,
    ShutdownStream,
)
from netstack.engine.events import FlowClosed, FlowOpened
from netstack.engine.policy import PolicySettings
from netstack.network_spec import NetworkSpec

from .wire_guest import (
    ENGINE_ISN,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    SERVER,
    UNUSED,
    GuestTcp,
    VirtualWire,
    ip,
    mac,
    payload_of,
    sent_bytes,
    udp,
)

WEB = (ip(GUEST), 80)
FROM_GATEWAY = (ip(GATEWAY), 0)
CLIENT = (ip("10.1.2.3"), 55_555)
NOTHING = NetworkSpec.enabled(deny_all=True).policy()


@pytest.fixture
def wire() -> VirtualWire:
    made = VirtualWire()
    made.arp(GATEWAY)  # from here on the gateway knows the guest's MAC
    return made


class Callee(GuestTcp):
    """A guest's side of a connection that is opened to it."""

    def answer(self) -> None:
        """SYN-ACK."""
        self.put("SA", seq=self.isn, options=[("MSS", 1460)])
        self.sent = self.isn + 1

    def hear_late(self) -> None:
        """The acknowledgement that was delayed."""
        self.wire.wait(0.05)
        self.hear_one("A")


def begin(wire: VirtualWire, source: tuple[bytes, int] = FROM_GATEWAY, **options: object) -> tuple[int, Callee]:
    """A flow whose SYN the guest has seen."""
    flow = wire.stack.open_inbound(source, WEB, wire.now, **options)
    packet = wire.hear_one()[IP]
    assert (packet.dst, packet.dport, str(packet[TCP].flags), packet[TCP].seq) == (GUEST, 80, "S", ENGINE_ISN)
    assert dict(packet[TCP].options)["MSS"] == 1460
    guest = Callee(wire, packet.src, packet.sport, source_port=80)
    guest.heard = ENGINE_ISN + 1
    guest.flow = flow
    return flow, guest


def opened(wire: VirtualWire, **options: object) -> Callee:
    flow, guest = begin(wire, **options)
    guest.answer()
    assert wire.asked() == [InboundOpened(flow)]
    guest.hear_one("A")
    return guest


# -- TCP ---------------------------------------------------------------------------------------------------------------


def test_a_flow_towards_the_guest_is_spliced_and_closed_both_ways(wire: VirtualWire) -> None:
    guest = opened(wire, client=CLIENT)
    wire.stack.stream_received(guest.flow, b"GET")
    assert guest.hear_bytes() == b"GET"
    guest.say(b"200 OK")
    assert sent_bytes(wire.asked()) == b"200 OK"
    wire.stack.stream_sent(guest.flow, 6)
    guest.hear_late()
    guest.close_both()
    (begun,), (closed,) = wire.told(FlowOpened), wire.told(FlowClosed)
    assert begun.guest == WEB
    assert begun.destination == (ip(GATEWAY), guest.port)
    assert (begun.dialled, begun.direction, begun.verdict.step) == (CLIENT, "in", "forward")
    assert closed[:5] == begun[:5]
    assert (closed.reason, closed.sent, closed.received, closed.direction) == ("finished", 6, 3, "in")


def test_the_guest_may_end_its_side_first_and_go_on_hearing(wire: VirtualWire) -> None:
    guest = opened(wire)
    guest.fin()
    assert wire.asked() == [ShutdownStream(guest.flow)]
    guest.hear_one("A")
    wire.stack.stream_received(guest.flow, b"late")
    assert guest.hear_bytes() == b"late"
    wire.stack.stream_ended(guest.flow)
    guest.hear_one("FA")
    guest.ack()
    assert wire.asked() == [CloseStream(guest.flow)]
    assert wire.stack.tcp.table == {}


def test_what_comes_with_the_syn_ack_follows_the_opening(wire: VirtualWire) -> None:
    """A guest that speaks first, in one batch with its SYN-ACK."""
    flow, guest = begin(wire)
    syn_ack = guest.segment("SA", seq=guest.isn)
    guest.sent = guest.isn + 1
    wire.send(syn_ack, guest.segment("PA", b"SSH-2.0"))
    first, second = wire.asked()
    assert first == InboundOpened(flow)
    assert isinstance(second, SendStream)
    assert sent_bytes([second]) == b"SSH-2.0"


def test_resets_pass_both_ways(wire: VirtualWire) -> None:
    guest = opened(wire)
    guest.rst()
    assert wire.asked() == [AbortStream(guest.flow)]
    other = opened(wire)
    wire.stack.stream_reset(other.flow, wire.now)
    other.hear_one("RA")
    assert [event.reason for event in wire.told(FlowClosed)] == ["reset by guest", "reset by client"]


def test_a_guest_that_refuses(wire: VirtualWire) -> None:
    flow, guest = begin(wire)
    guest.put("RA", seq=0)
    assert wire.asked() == [InboundFailed(flow, effects.REFUSED)]
    assert wire.stack.tcp.table == {}
    assert len(wire.stack.tcp.inbound) == 0
    assert not wire.told(FlowOpened)
    assert [event.direction for event in wire.told(FlowClosed)] == ["in"]


def test_a_guest_that_says_nothing(wire: VirtualWire) -> None:
    flow, _ = begin(wire, timeout=5.0)
    wire.wait(4.9)
    assert [str(frame[TCP].flags) for frame in wire.hear()] == ["S", "S"]  # after 1 and 3 s
    assert wire.asks_nothing()
    wire.wait(0.2)
    assert wire.asked() == [InboundFailed(flow, effects.TIMED_OUT)]
    assert wire.rests(10)
    assert wire.stack.tcp.table == {}


def test_both_sides_may_open_at_once(wire: VirtualWire) -> None:
    flow, guest = begin(wire)
    guest.put("S", seq=guest.isn)
    guest.sent = guest.isn + 1
    assert guest.hear_one("SA").ack == guest.sent
    guest.ack()
    assert wire.asked() == [InboundOpened(flow)]


def test_a_guest_whose_mac_is_not_known_is_asked_for_it() -> None:
    wire = VirtualWire()
    flow = wire.stack.open_inbound(FROM_GATEWAY, WEB, wire.now)
    other = wire.stack.open_inbound(FROM_GATEWAY, (ip(GUEST), 81), wire.now)
    question = wire.hear_one()[ARP]
    assert (question.op, question.pdst) == (1, GUEST)
    wire.send(
        ARP(op="is-at", hwsrc=GUEST_MAC, psrc=GUEST, hwdst=question.hwsrc, pdst=GATEWAY), destination=question.hwsrc
    )
    frames = wire.hear()
    assert not [frame for frame in frames if frame.dst != GUEST_MAC]
    assert [(frame[TCP].dport, str(frame[TCP].flags)) for frame in frames] == [(80, "S"), (81, "S")]
    guest = Callee(wire, GATEWAY, frames[0][TCP].sport, source_port=80)
    guest.heard = ENGINE_ISN + 1
    guest.answer()
    assert wire.asked() == [InboundOpened(flow)]
    assert other not in (flow, 0)


def test_nobody_answers_arp() -> None:
    wire = VirtualWire()
    flow = wire.stack.open_inbound(FROM_GATEWAY, (ip(UNUSED), 80), wire.now)
    wire.wait(2.9)
    assert wire.asks_nothing()
    wire.wait(0.2)
    assert wire.asked() == [InboundFailed(flow, effects.HOST_UNREACHABLE)]
    assert [frame[ARP].op for frame in wire.hear()] == [1, 1, 1]
    assert wire.rests()
    assert [(event.reason, event.direction) for event in wire.told(FlowClosed)] == [("host unreachable", "in")]


@pytest.mark.parametrize("address", [GATEWAY, "192.168.127.0", "192.168.127.255", "192.168.127.254", SERVER])
def test_only_guests_are_dialled(wire: VirtualWire, address: str) -> None:
    flow = wire.stack.open_inbound(FROM_GATEWAY, (ip(address), 80), wire.now)
    assert wire.asked() == [InboundFailed(flow, effects.HOST_UNREACHABLE)]
    assert wire.hears_nothing()


def test_the_guest_sees_the_client_where_it_is_told_so(wire: VirtualWire) -> None:
    _, guest = begin(wire, source=CLIENT, client=CLIENT)
    assert (guest.destination, guest.port) == ("10.1.2.3", 55_555)
    guest.answer()
    assert isinstance(wire.asked()[0], InboundOpened)
    guest.hear_one("A")
    # The same client once more, while the first lives: two connections cannot have the same four numbers.
    again = wire.stack.open_inbound(CLIENT, WEB, wire.now)
    assert wire.asked() == [InboundFailed(again, effects.NO_RESOURCES)]


def test_a_client_that_comes_back_from_the_same_port(wire: VirtualWire) -> None:
    guest = opened(wire, source=CLIENT)
    wire.stack.stream_ended(guest.flow)
    guest.hear_one("FA")
    guest.ack()
    guest.fin()
    guest.hear_one("A")
    assert wire.asked() == [ShutdownStream(guest.flow), CloseStream(guest.flow)]
    assert len(wire.stack.tcp.time_wait) == 1
    flow = wire.stack.open_inbound(CLIENT, WEB, wire.now)
    syn = wire.hear_one()[TCP]
    assert str(syn.flags) == "S"
    assert 0 < (syn.seq - (ENGINE_ISN + 2)) % 2**32 < 2**31, "beyond the numbers of the old one"
    assert flow in wire.stack.tcp.inbound._opening


def test_source_ports_differ_and_are_not_the_systems(wire: VirtualWire) -> None:
    ports = set()
    for _ in range(300):
        wire.stack.open_inbound(FROM_GATEWAY, WEB, wire.now)
        ports.add(wire.hear_one()[TCP].sport)
    assert len(ports) == 300
    assert min(ports) >= inbound_tcp.FIRST_PORT


def test_a_firewall_that_rejects_by_icmp(wire: VirtualWire) -> None:
    flow, guest = begin(wire)
    syn = IP(src=GATEWAY, dst=GUEST) / TCP(sport=guest.port, dport=80, seq=ENGINE_ISN, flags="S")
    wrong = IP(src=GATEWAY, dst=GUEST) / TCP(sport=guest.port, dport=80, seq=ENGINE_ISN + 1, flags="S")
    for quoted, code in ((wrong, 3), (syn, 4)):
        wire.send(IP(src=GUEST, dst=GATEWAY) / ICMP(type=3, code=code) / Raw(bytes(quoted)))
        assert wire.asks_nothing()
    assert wire.dropped == {"icmp-error-from-guest": 2}
    wire.send(IP(src=GUEST, dst=GATEWAY) / ICMP(type=3, code=3) / Raw(bytes(syn)))
    assert wire.asked() == [InboundFailed(flow, effects.REFUSED)]
    assert wire.rests(10)


def test_e5_no_icmp_error_touches_an_open_connection(wire: VirtualWire) -> None:
    guest = opened(wire)
    quoted = IP(src=GATEWAY, dst=GUEST) / TCP(sport=guest.port, dport=80, seq=ENGINE_ISN, flags="S")
    wire.send(IP(src=GUEST, dst=GATEWAY) / ICMP(type=3, code=3) / Raw(bytes(quoted)))
    assert wire.asks_nothing()
    assert wire.dropped == {"icmp-error-from-guest": 1}


def test_calling_off(wire: VirtualWire) -> None:
    flow, guest = begin(wire)
    wire.stack.call_off_inbound(flow, wire.now)
    assert wire.asks_nothing()
    guest.answer()
    guest.hear_one("R")
    unresolved = wire.stack.open_inbound(FROM_GATEWAY, (ip(UNUSED), 80), wire.now)
    wire.stack.call_off_inbound(unresolved, wire.now)
    wire.wait(5)
    assert wire.asks_nothing()
    assert [event.reason for event in wire.told(FlowClosed)] == ["called off", "called off"]
    assert len(wire.stack.tcp.inbound) == 0


def test_flows_that_do_not_open_are_bounded(wire: VirtualWire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_tcp, "MAX_OPENING", 5)
    for _ in range(5):
        wire.stack.open_inbound(FROM_GATEWAY, WEB, wire.now)
    assert len(wire.hear()) == 5
    flow = wire.stack.open_inbound(FROM_GATEWAY, WEB, wire.now)
    assert wire.asked() == [InboundFailed(flow, effects.NO_RESOURCES)]
    assert wire.dropped == {"tcp-too-many-inbound-opening": 1}


def test_they_count_among_the_flows_there_may_be() -> None:
    wire = VirtualWire(max_tcp_flows=2)
    wire.arp(GATEWAY)
    first = opened(wire)
    opened(wire)
    flow = wire.stack.open_inbound(FROM_GATEWAY, WEB, wire.now)
    assert wire.asked() == [InboundFailed(flow, effects.NO_RESOURCES)]
    # One in TIME-WAIT gives way.
    wire.stack.stream_ended(first.flow)
    first.hear_one("FA")
    first.ack()
    first.fin()
    first.hear_one("A")
    wire.asked()
    begin(wire)


def test_a_guest_that_leaves(wire: VirtualWire) -> None:
    guest = opened(wire)
    flow, _ = begin(wire)
    wire.stack.guest_left(mac(GUEST_MAC), wire.now)
    assert set(wire.asked()) == {AbortStream(guest.flow), InboundFailed(flow, effects.HOST_UNREACHABLE)}
    assert wire.stack.tcp.table == {}


# -- policies ----------------------------------------------------------------------------------------------------------


def test_a_list_does_not_speak_of_forwards(wire: VirtualWire) -> None:
    guest = opened(wire)
    wire.stack.replace_policy(NOTHING, "reload", wire.now)
    guest.say(b"still here")
    assert sent_bytes(wire.asked()) == b"still here"
    wire.stack.stream_sent(guest.flow, 10)
    guest.hear_late()
    opened(wire)
    assert wire.refused() == []


@pytest.mark.parametrize("kill", [True, False], ids=["kill-switch", "disabled"])
def test_the_kill_switch_and_a_disabled_network_end_them(wire: VirtualWire, kill: bool) -> None:
    guest = opened(wire)
    opening, _ = begin(wire)
    datagrams = wire.stack.open_inbound_datagrams(FROM_GATEWAY, WEB, wire.now)
    resolving = wire.stack.open_inbound(FROM_GATEWAY, (ip(UNUSED), 80), wire.now)
    wire.hear()
    if kill:
        wire.stack.replace_policy(NOTHING, "kill-switch", wire.now, final=True)
        guest.hear_one("RA")  # of the one that is only opening there is nothing to reset
    else:
        wire.stack.replace_policy(PolicySettings(disabled=True), "reload", wire.now)
        assert wire.hears_nothing()
    assert set(wire.asked()) == {
        AbortStream(guest.flow),
        InboundFailed(opening, effects.PROHIBITED),
        InboundFailed(resolving, effects.PROHIBITED),
        InboundDatagramsEnded(datagrams, "kill switch" if kill else "network disabled"),
    }
    refused = wire.stack.open_inbound(FROM_GATEWAY, WEB, wire.now)
    nor_that = wire.stack.open_inbound_datagrams(FROM_GATEWAY, WEB, wire.now)
    assert wire.asked() == [
        InboundFailed(refused, effects.PROHIBITED),
        InboundDatagramsEnded(nor_that, inbound_udp.CLOSED),
    ]
    wire.stack.replace_policy(NetworkSpec.enabled().policy(), "reload", wire.now)
    opened(wire)


# -- UDP ---------------------------------------------------------------------------------------------------------------


def datagrams(wire: VirtualWire, source: tuple[bytes, int] = FROM_GATEWAY, **options: object) -> tuple[int, IP]:
    """A flow, and its first datagram as the guest gets it."""
    flow = wire.stack.open_inbound_datagrams(source, (ip(GUEST), 53), wire.now, **options)
    wire.stack.send_inbound_datagram(flow, b"question", wire.now)
    packet = wire.hear_one()[IP]
    assert (packet.dst, packet.dport, payload_of(packet[UDP])) == (GUEST, 53, b"question")
    return flow, packet


def test_datagrams_both_ways_empty_ones_too(wire: VirtualWire) -> None:
    flow, packet = datagrams(wire, client=CLIENT)
    assert packet.src == GATEWAY
    for payload in (b"answer", b""):
        wire.send(udp(GATEWAY, packet.sport, payload, source_port=53))
        assert wire.asked() == [DeliverDatagram(flow, payload)]
    wire.stack.send_inbound_datagram(flow, b"", wire.now)
    assert payload_of(wire.hear_one()[UDP]) == b""
    wire.send(udp(GATEWAY, packet.sport, b"x", source_port=54))  # not the port that was addressed
    assert wire.asks_nothing()
    wire.wait(89.9)
    assert wire.asks_nothing()
    wire.wait(0.2)
    assert wire.asked() == [InboundDatagramsEnded(flow, "idle")]
    (begun,), (closed,) = wire.told(FlowOpened), wire.told(FlowClosed)
    assert (begun.protocol, begun.dialled, begun.direction) == ("udp", CLIENT, "in")
    assert (closed.reason, closed.sent, closed.received, closed.direction) == ("idle", 6, 8, "in")
    wire.stack.send_inbound_datagram(flow, b"late", wire.now)
    wire.send(udp(GATEWAY, packet.sport, b"late", source_port=53))
    assert wire.asks_nothing()


def test_the_guest_sees_the_client_of_datagrams_too(wire: VirtualWire) -> None:
    flow, packet = datagrams(wire, source=CLIENT)
    assert (packet.src, packet.sport) == CLIENT_WORDS
    wire.send(udp(CLIENT_WORDS[0], CLIENT_WORDS[1], b"answer", source_port=53))
    assert wire.asked() == [DeliverDatagram(flow, b"answer")]
    # What the guest begins itself is another matter.
    wire.send(udp(CLIENT_WORDS[0], CLIENT_WORDS[1], b"mine", source_port=99))
    asked = wire.asked()
    assert [type(effect) for effect in asked] == [OpenDatagrams, SendDatagram]
    taken = wire.stack.open_inbound_datagrams(CLIENT, (ip(GUEST), 99), wire.now)
    assert wire.asked() == [InboundDatagramsEnded(taken, inbound_udp.CLOSED)]


CLIENT_WORDS = ("10.1.2.3", 55_555)


def test_nobody_is_at_the_guests_port(wire: VirtualWire) -> None:
    flow, packet = datagrams(wire)
    stranger = IP(src=GATEWAY, dst=GUEST) / UDP(sport=packet.sport, dport=54)
    wire.send(IP(src=GUEST, dst=GATEWAY) / ICMP(type=3, code=3) / Raw(bytes(stranger)))
    assert wire.asks_nothing()
    wire.send(IP(src=GUEST, dst=GATEWAY) / ICMP(type=3, code=3) / Raw(bytes(packet)))
    assert wire.asked() == [InboundDatagramsEnded(flow, "refused")]
    assert wire.dropped == {"icmp-error-from-guest": 1, "udp-inbound-refused": 1}


def test_another_guest_cannot_refuse_for_it(wire: VirtualWire) -> None:
    _, packet = datagrams(wire)
    wire.send(
        IP(src="192.168.127.3", dst=GATEWAY) / ICMP(type=3, code=3) / Raw(bytes(packet)), source="02:00:00:00:00:99"
    )
    assert wire.asks_nothing()


def test_flows_of_datagrams_are_bounded_and_closed(wire: VirtualWire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_udp, "MAX_FLOWS", 2)
    first, _ = datagrams(wire)
    second, _ = datagrams(wire)
    wire.wait(1)
    wire.stack.send_inbound_datagram(first, b"x", wire.now)
    wire.hear()
    third, _ = datagrams(wire)
    assert wire.asked() == [InboundDatagramsEnded(second, "evicted")]
    wire.stack.close_inbound_datagrams(third, wire.now)
    wire.stack.close_inbound_datagrams(third, wire.now)
    assert wire.asked() == [InboundDatagramsEnded(third, "closed")]
    wire.stack.guest_left(mac(GUEST_MAC), wire.now)
    assert wire.asked() == [InboundDatagramsEnded(first, "guest left")]


# -- services of the driver's ------------------------------------------------------------------------------------------


class Caller(GuestTcp):
    """A guest that opens a connection itself."""

    def call(self) -> None:
        self.put("S", seq=self.isn, options=[("MSS", 1460)])
        self.sent = self.isn + 1


def test_a_service_at_the_gateway(wire: VirtualWire) -> None:
    caller = Caller(wire, GATEWAY, 80)
    caller.call()
    caller.hear_one("RA")
    assert [reason for *_, reason, _ in wire.refused()] == ["unserved-port"]
    wire.stack.host_service(80)
    caller = Caller(wire, GATEWAY, 80)
    caller.call()
    asked = wire.asked_one(ServeStream)
    assert (asked.port, asked.guest) == (80, (ip(GUEST), caller.source_port))
    assert wire.hears_nothing(), "answered once it is served"
    wire.stack.stream_opened(asked.flow, wire.now)
    caller.finish_handshake()
    wire.stack.replace_policy(NOTHING, "reload", wire.now)
    caller.say(b"GET /")
    assert sent_bytes(wire.asked()) == b"GET /"
    wire.stack.stream_sent(asked.flow, 5)
    wire.wait(0.05)
    caller.hear_one("A")
    assert [(event.verdict.reason, event.direction) for event in wire.told(FlowOpened)] == [("gateway-service", "out")]
    wire.stack.replace_policy(NOTHING, "kill-switch", wire.now, final=True)
    assert wire.asked() == [AbortStream(asked.flow)]
    caller.hear_one("RA")
    caller = Caller(wire, GATEWAY, 80)
    caller.call()
    caller.hear_one("RA")


def test_a_service_that_has_no_room_or_is_gone(wire: VirtualWire) -> None:
    wire.stack.host_service(80)
    caller = Caller(wire, GATEWAY, 80)
    caller.call()
    wire.stack.stream_failed(wire.asked_one(ServeStream).flow, effects.REFUSED, wire.now)
    caller.hear_one("RA")
    wire.stack.unhost_service(80)
    caller = Caller(wire, GATEWAY, 80)
    caller.call()
    caller.hear_one("RA")
    caller = Caller(wire, "192.168.127.254", 80)  # the host's alias leads to the host, as ever
    wire.stack.host_service(80)
    caller.call()
    assert wire.asked()[0].address == ip("127.0.0.1")


def test_h6_a_guest_cannot_open_ports_of_the_host_itself(wire: VirtualWire) -> None:
    """NAT-PMP and PCP (5351), and UPnP's discovery: nobody is there."""
    for destination, port in ((GATEWAY, 5351), (GATEWAY, 1900), ("239.255.255.250", 1900)):
        wire.send(udp(destination, port, bytes(24)))
        assert wire.asks_nothing()
    assert [(reason, told) for *_, reason, told in wire.refused()] == [
        ("unserved-port", "unreachable"),
        ("unserved-port", "unreachable"),
        ("group-address", "nothing"),
    ]
