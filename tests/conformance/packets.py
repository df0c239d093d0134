"""What the rows about other protocols and layers are held to: datagrams, pings, raw frames, each by three oracles."""

from __future__ import annotations

from engine.wire_guest import GATEWAY, GUEST, GUEST_MAC, ip, udp
from scapy.layers.inet import ICMP, IP
from scapy.packet import Packet
from wire import quic_packets as quic

from netstack.engine.effects import OpenDatagrams, ResolveName, SendDatagram
from netstack.engine.events import FlowOpened, FlowRefused, FrameDropped
from netstack.engine.verdict import ALLOW

from .policy_wire import TRUE_SITE, PolicyWire, refusal

PORT_UNREACHABLE, HOST_UNREACHABLE, PROTOCOL_UNREACHABLE, PROHIBITED = (3, 3), (3, 1), (3, 2), (3, 13)


def refused(
    wire: PolicyWire,
    packet: Packet,
    reason: str,
    *,
    step: str = "datagram",
    rule: str = "",
    name: str = "",
    source: str = "",
    answer: tuple[int, int] | None = PORT_UNREACHABLE,
    by: str = "",
    mac: str = GUEST_MAC,
) -> FlowRefused:
    """The guest sends a packet: (G) an ICMP error at once, or silence, (D) nothing, (E) one refusal that says why.

    `by` is who says so: the destination where a host would refuse a port, else the gateway.
    """
    wire.send(packet, source=mac)
    return was_refused(wire, packet, reason, step=step, rule=rule, name=name, source=source, answer=answer, by=by)


def was_refused(
    wire: PolicyWire,
    packet: Packet,
    reason: str,
    *,
    step: str = "datagram",
    rule: str = "",
    name: str = "",
    source: str = "",
    answer: tuple[int, int] | None = PORT_UNREACHABLE,
    by: str = "",
) -> FlowRefused:
    """The same for a packet that was sent already."""
    sent = packet[IP]
    assert wire.asks_nothing()
    if answer is None:
        assert wire.hears_nothing()
    else:
        speaker = by or (sent.dst if answer == PORT_UNREACHABLE else GATEWAY)
        frame = wire.hear_one()
        assert (frame[IP].src, frame[IP].dst) == (speaker, sent.src)
        assert (frame[ICMP].type, frame[ICMP].code) == answer
        quoted = IP(bytes(frame[ICMP].payload))
        assert (quoted.src, quoted.dst, quoted.proto) == (sent.src, sent.dst, sent.proto)
    event = wire.one_flow_event()
    assert isinstance(event, FlowRefused), event
    assert (event.guest[0], event.destination[0]) == (ip(sent.src), ip(sent.dst))
    if sent.proto in {6, 17} and not sent.frag:
        assert (event.guest[1], event.destination[1]) == (sent.sport, sent.dport)
    assert event.protocol == {1: "icmp", 6: "tcp", 17: "udp"}.get(sent.proto, str(sent.proto))
    assert event.verdict == refusal(reason, step, rule=rule, name=name, source=source)
    assert (event.told, event.total) == ("nothing" if answer is None else "unreachable", 1)
    return event


def dropped(wire: PolicyWire, reason: str, *frames: Packet | bytes, source: str = GUEST_MAC, to: str = "") -> None:
    """The guest sends frames: (G) silence, (D) nothing, (E) each counted, the first told of, and no flow."""
    before = wire.dropped.get(reason, 0)
    wire.events.clear()
    wire.send(*frames, source=source, **({"destination": to} if to else {}))
    assert wire.hears_nothing()
    assert wire.asks_nothing()
    assert wire.dropped.get(reason, 0) == before + len(frames), wire.dropped
    assert wire.flow_events() == []
    told = [event for event in wire.told(FrameDropped) if event.reason == reason]
    assert [event.total for event in told] == [
        total for total in (1, 10, 100) if before < total <= before + len(frames)
    ]


def ignored(wire: PolicyWire, *frames: Packet | bytes, source: str = GUEST_MAC) -> None:
    """The guest sends frames: nothing is heard, asked or told."""
    wire.events.clear()
    wire.send(*frames, source=source)
    assert wire.hears_nothing()
    assert wire.asks_nothing()
    assert wire.flow_events() == []


def goes_out(wire: PolicyWire, address: str, port: int, data: bytes, source_port: int = 5000) -> None:
    """(D) A datagram of the guest is sent on to that very address; (E) one opened flow."""
    wire.send(udp(address, port, data, source_port=source_port))
    opened, datagram = wire.asked()
    assert isinstance(opened, OpenDatagrams)
    assert datagram == SendDatagram(opened.flow, ip(address), port, data, 63)
    assert wire.hears_nothing()
    event = wire.one_flow_event()
    assert isinstance(event, FlowOpened)
    assert event.destination == event.dialled == (ip(address), port)
    assert event.verdict.allowed


def hello(
    wire: PolicyWire, address: str, name: str | None, *, source_port: int = 5000, **options: object
) -> list[bytes]:
    """A QUIC client's first flight; its datagrams."""
    datagrams = quic.client(name, **options)  # type: ignore[arg-type]  # by name, as the tests write them
    for datagram in datagrams:
        wire.send(udp(address, 443, datagram, source_port=source_port))
    return datagrams


def quic_by_name(
    wire: PolicyWire, address: str, name: str, rule: str, datagrams: list[bytes], note: str = "address-not-answered"
) -> int:
    """(D) The name was looked up, and the flight sent where it is; (E) one opened flow. The mapping's number."""
    assert wire.hears_nothing()
    asked = wire.asked_one(ResolveName)
    assert (asked.name, asked.port) == (name, 443)
    assert wire.flow_events() == []
    wire.stack.name_resolved(asked.flow, ip(TRUE_SITE), wire.now)
    opened, *sent = wire.asked()
    assert isinstance(opened, OpenDatagrams)
    assert [(each.address, each.port, each.payload) for each in sent] == [
        (ip(TRUE_SITE), 443, datagram) for datagram in datagrams
    ]
    event = wire.one_flow_event()
    assert isinstance(event, FlowOpened)
    assert (event.destination, event.dialled) == ((ip(address), 443), (ip(TRUE_SITE), 443))
    assert event.verdict[:6] == (ALLOW, "quic", "name-rule", rule, name, "quic")
    assert event.guest[0] == ip(GUEST)
    assert event.note == note
    return opened.flow
