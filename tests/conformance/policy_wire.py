"""A guest under a policy on the virtual wire, and what each row of conformance.md is held to.

Three oracles: what the guest sees (G), what the engine asks to be dialled (D), which events it makes (E). The functions
below assert all three at once, so that a test is little more than its row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import dns.message
import dns.rrset
from engine.wire_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    GuestTcp,
    VirtualWire,
    ip,
    payload_of,
    sent_bytes,
    udp,
)
from scapy.layers.inet import UDP

from netstack.engine.effects import OpenNamed, OpenStream, ResolveUpstream
from netstack.engine.events import Event, FlowClosed, FlowOpened, FlowRefused
from netstack.engine.settings import Zone, ZoneRecord
from netstack.engine.verdict import ALLOW, REFUSE, Verdict
from netstack.network_spec import NetworkSpec

SITE, CDN, ATTACKER = "93.184.216.34", "151.101.1.6", "45.33.32.156"
"""Public addresses, as far as the registries say. Nothing is ever sent to them."""
TRUE_SITE = "104.16.132.229"
"""What the gateway's own resolver finds for a name."""
NAME, OTHER_NAME = "api.example.com", "evil.example.net"
HOST_NAME = "host.containers.internal"

ALERT = bytes.fromhex("15030300020270")
"""Fatal, unrecognized_name (RFC 8446 section 6, RFC 6066 section 3)."""
SEGMENT = 1400


class PolicyWire(VirtualWire):
    """A VirtualWire whose stack has a policy, written as people write it."""

    def __init__(self, *rules: str, spec: NetworkSpec | None = None, **changes: object) -> None:
        """`rules`: the list; or `spec` whole. `changes` are of the network."""
        zones = (Zone("containers.internal", (ZoneRecord("host", ip("192.168.127.254")),)),)
        self.spec = NetworkSpec.enabled(rules) if spec is None else spec
        super().__init__(policy=self.spec.policy(), **({"zones": zones} | changes))

    def replace(self, spec: NetworkSpec, why: str = "reload") -> None:
        """Put another policy in force."""
        self.stack.replace_policy(spec.policy(), why, self.now)
        self.flush()

    def resolve(
        self, name: str, *addresses: str, ttl: int = 300, guest: str = GUEST, mac: str = GUEST_MAC
    ) -> list[str]:
        """The guest asks for a name's A records, and upstream (if it is asked) has these. What the guest is told."""
        question = dns.message.make_query(name, "A")
        self.send(udp(GATEWAY, 53, question.to_wire(), src=guest), source=mac)
        for effect in self.asked():
            assert isinstance(effect, ResolveUpstream), effect
            answer = dns.message.make_response(dns.message.from_wire(effect.message), recursion_available=True)
            answer.answer.append(dns.rrset.from_text_list(answer.question[0].name, ttl, "IN", "A", addresses))
            self.stack.dns_resolved(effect.query, answer.to_wire(), self.now)
        reply = dns.message.from_wire(payload_of(self.hear_one()[UDP]))
        assert reply.id == question.id
        return [str(record) for rrset in reply.answer for record in rrset]

    def flow_events(self) -> list[Event]:
        """What was told of flows so far."""
        self.flush()
        return [event for event in self.events if isinstance(event, FlowOpened | FlowRefused | FlowClosed)]

    def one_flow_event(self) -> Event:
        """The one thing told of flows since the last look."""
        events = self.flow_events()
        self.events.clear()
        assert len(events) == 1, events
        return events[0]


def refusal(reason: str, step: str = "syn", *, rule: str = "", name: str = "", source: str = "") -> Verdict:
    """A refusing verdict."""
    return Verdict(REFUSE, step, reason, rule, name, source)


def assert_told(wire: PolicyWire, connection: GuestTcp, verdict: Verdict, told: str, generation: int = 1) -> None:
    """(E) Exactly one event about flows, and it is this refusal of this connection."""
    event = wire.one_flow_event()
    guest = (ip(connection.source), connection.source_port)
    destination = (ip(connection.destination), connection.port)
    assert isinstance(event, FlowRefused), event
    assert event == FlowRefused(event.flow, "tcp", guest, destination, verdict, told, 1, generation)


def is_gone(connection: GuestTcp) -> bool:
    """Whether nothing is left of a connection."""
    place = (ip(connection.source), connection.source_port)
    return all(flow.question.guest != place for flow in connection.wire.stack.tcp.table.values())


def refused_at_syn(
    wire: PolicyWire, address: str, port: int, reason: str, *, rule: str = "", name: str = "", source: str = ""
) -> None:
    """(G) A reset instead of a handshake, (D) nothing, (E) one refusal at the SYN."""
    connection = wire.connection(address, port)
    connection.syn()
    reset = connection.hear_one("RA")
    assert (reset.seq, reset.ack) == (0, connection.isn + 1)
    assert wire.asks_nothing()
    assert_told(wire, connection, refusal(reason, rule=rule, name=name, source=source), "reset")
    assert is_gone(connection)


def dialled_as_is(wire: PolicyWire, address: str, port: int, reason: str, rule: str = "", name: str = "") -> GuestTcp:
    """(G) No SYN-ACK before (D) that address was dialled; (E) the opened flow with its reason."""
    connection = wire.connection(address, port)
    connection.syn()
    connection.flow = wire.asked_one(OpenStream).flow
    assert wire.hears_nothing()
    wire.stack.stream_opened(connection.flow, wire.now)
    connection.finish_handshake()
    event = wire.one_flow_event()
    assert isinstance(event, FlowOpened)
    assert event.destination == event.dialled == (ip(address), port)
    assert (event.verdict.action, event.verdict.reason, event.verdict.rule) == (ALLOW, reason, rule)
    assert event.verdict.name == name
    return connection


def peeked(wire: PolicyWire, address: str = SITE, port: int = 443, **options: object) -> GuestTcp:
    """(G) The handshake is complete and (D) nothing was asked: the name decides. (E) Nothing yet."""
    connection = wire.connection(address, port, **options)
    connection.syn()
    connection.finish_handshake()
    assert wire.asks_nothing()
    assert not wire.flow_events()
    return connection


def say(connection: GuestTcp, data: bytes, size: int = SEGMENT) -> None:
    """The guest sends bytes in segments."""
    for at in range(0, len(data), size):
        connection.say(data[at : at + size])


def turned_away(
    wire: PolicyWire, connection: GuestTcp, verdict: Verdict, *, told: str = "", generation: int = 1
) -> bytes:
    """(G) Told in the protocol it spoke, then closed; (D) nothing was dialled; (E) one refusal. What the guest read."""
    if not told:
        told = {"tls": "alert", "http": "forbidden"}.get(verdict.step, "reset")
    heard = connection.hear()
    assert wire.asks_nothing()
    assert_told(wire, connection, verdict, told, generation)
    said = b"".join(payload_of(segment) for segment in heard)
    last = str(heard[-1].flags)
    if told == "reset":
        assert said == b""
        assert "R" in last
    else:
        assert "F" in last
        if told == "alert":
            assert said == ALERT
        else:
            head, _, line = said.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 403 ")
            assert b"Connection: close" in head
            assert line.count(b"\n") == 1
            assert verdict.reason.encode() in line
            assert verdict.name.encode() in line
        connection.fin()
    wire.wait(6)
    wire.hear()
    assert wire.asks_nothing()
    assert is_gone(connection)
    return said


def opened_by_name(
    wire: PolicyWire,
    connection: GuestTcp,
    data: bytes,
    name: str = NAME,
    *,
    rule: str = "",
    source: str = "sni",
    note: str = "address-not-answered",
) -> None:
    """(D) The name is dialled, not the guest's address, and gets exactly `data`; (E) one event that says so."""
    opened = wire.asked_one(OpenNamed)
    assert opened == OpenNamed(opened.flow, name, connection.port)
    connection.flow = opened.flow
    assert not wire.flow_events()
    wire.stack.stream_opened(opened.flow, wire.now, ip(TRUE_SITE))
    assert sent_bytes(wire.asked()) == data
    wire.stack.stream_sent(opened.flow, len(data))
    event = wire.one_flow_event()
    assert isinstance(event, FlowOpened), event
    assert event.destination == (ip(connection.destination), connection.port)
    assert event.dialled == (ip(TRUE_SITE), connection.port)
    step = {"sni": "tls", "host": "http"}[source]
    assert event.verdict == Verdict(ALLOW, step, "name-rule", rule or name, name, source)
    assert event.note == note


def cut(data: bytes, sizes: Iterable[int]) -> Sequence[bytes]:
    """`data` in pieces of these sizes, what is left over as the last one."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [piece for piece in (*pieces, data) if piece]
