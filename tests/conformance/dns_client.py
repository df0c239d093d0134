"""A guest that asks the gateway by DNS, made with dnspython, and what each row of class B is held to."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
from engine.wire_guest import GATEWAY, GUEST, GuestTcp, ip, payload_of, udp
from scapy.layers.inet import IP, UDP

from netstack.engine.effects import ResolveUpstream
from netstack.engine.events import DnsEvent
from netstack.engine.verdict import ALLOW, REFUSE, Verdict

from .policy_wire import SITE, PolicyWire

Answer = dns.message.Message
SINKHOLE = ["0.0.0.0"]


def send(wire: PolicyWire, question: Answer | bytes, **fields: object) -> None:
    """The guest sends a question to the gateway."""
    wire.events.clear()
    data = question if isinstance(question, bytes) else question.to_wire()
    wire.send(udp(GATEWAY, 53, data, source_port=5300, **fields))


def heard(wire: PolicyWire) -> Answer:
    """The one answer that came, from port 53 to the port that asked."""
    packet = wire.hear_one()[IP]
    assert (packet.src, packet.sport, packet.dst, packet.dport) == (GATEWAY, 53, GUEST, 5300)
    return dns.message.from_wire(payload_of(packet[UDP]))


def respond(effect: ResolveUpstream, *records: str, rcode: int = 0) -> bytes:
    """An upstream's answer with records as `NAME TTL TYPE DATA`."""
    response = dns.message.make_response(dns.message.from_wire(effect.message), recursion_available=True)
    response.set_rcode(dns.rcode.Rcode(rcode))
    for record in records:
        name, ttl, kind, data = record.split(" ", 3)
        response.answer.append(dns.rrset.from_text(dns.name.from_text(name), int(ttl), "IN", kind, data))
    return response.to_wire(max_size=65_535)


def ask(wire: PolicyWire, name: str, kind: str = "A", *records: str) -> Answer:
    """Ask, let upstream (where it is asked) answer with `records`; the answer."""
    question = dns.message.make_query(name, kind)
    send(wire, question)
    for effect in wire.asked():
        assert isinstance(effect, ResolveUpstream)
        wire.stack.dns_resolved(effect.query, respond(effect, *records), wire.now)
    answer = heard(wire)
    assert answer.id == question.id
    assert answer.question == question.question, "spelled as it was"
    return answer


def texts(answer: Answer) -> list[str]:
    return [str(record) for rrset in answer.answer for record in rrset]


def told(wire: PolicyWire, source: str, action: int, reason: str, name: str, rule: str = "") -> DnsEvent:
    """(E) Exactly one event, of the question, with its verdict."""
    (event,) = wire.told(DnsEvent)
    assert (event.guest, event.source) == (ip(GUEST), source)
    assert event.verdict == Verdict(action, "dns", reason, rule, name, "dns")
    assert not wire.flow_events()
    return event


def sunk(wire: PolicyWire, name: str, kind: str = "A", reason: str = "name-not-allowed", shown: str = "") -> None:
    """(G) The sinkhole, (D) nothing upstream, (E) one event."""
    question = dns.message.make_query(name, kind)
    send(wire, question)
    assert wire.asks_nothing()
    answer = heard(wire)
    assert (answer.rcode(), texts(answer)) == (dns.rcode.NOERROR, SINKHOLE if kind == "A" else [])
    assert answer.authority == []
    if kind == "A":
        assert answer.answer[0].ttl == 2
    event = told(wire, "policy", REFUSE, reason, shown or name.lower().rstrip("."))
    assert event.rcode == "NOERROR"


def allowed(wire: PolicyWire, name: str, rule: str) -> None:
    """(G) Its address, (D) one question upstream, (E) one event with the rule."""
    assert texts(ask(wire, name, "A", f"{name} 60 A {SITE}")) == [SITE]
    told(wire, "upstream", ALLOW, "name-rule", name.lower().rstrip("."), rule)


def framed(*questions: Answer) -> bytes:
    return b"".join(len(data).to_bytes(2, "big") + data for data in (each.to_wire() for each in questions))


def over_tcp(wire: PolicyWire) -> GuestTcp:
    connection = wire.connection(GATEWAY, 53)
    connection.syn()
    connection.finish_handshake()
    assert wire.asks_nothing()
    return connection
