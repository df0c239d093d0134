"""Port 53, UDP and TCP: datagrams and streams in, datagrams and streams out."""

from __future__ import annotations

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.dns_port import PORT, DnsPort, DnsSession
from netstack.engine.dns_server import DnsServer, DnsStream
from netstack.engine.effects import ConsultDns, Report, ResolveUpstream
from netstack.engine.events import DnsEvent
from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.verdict import REFUSE
from netstack.engine.zones import Zones
from netstack.wire import udp
from netstack.wire.udp import Udp

from .dns_guest import (
    GUEST,
    NETWORK,
    PUBLIC,
    REFUSED_NAME,
    RULES,
    ZONES,
    make_policy,
    query,
    read,
    records,
    respond,
    texts,
)  # fmt: skip

GATEWAY = NETWORK.gateway_ip
FLOW = 7


class Port:
    """A port under test, and what comes out of it."""

    def __init__(self, rules: list[str] | None = RULES) -> None:  # type: ignore[assignment]  # never changed
        self.outbox = Outbox()
        self.judge = Judge(make_policy(rules), NETWORK, self.outbox)
        self.server = DnsServer(Zones(ZONES), self.outbox.report, judge=self.judge)
        self.woken: list[int] = []
        self.port = DnsPort(self.server, self.outbox, GATEWAY, self.woken.append)

    def send(self, message: bytes, port: int = 5000) -> None:
        self.port.datagram(GUEST, port, message, 0.0)

    def heard(self) -> list[tuple[int, dns.message.Message]]:
        """The datagrams sent since the last call, with the port each went to."""
        found = []
        for destination, packet in self.outbox.packets:
            assert destination == packet[16:20] == GUEST
            assert packet[12:16] == GATEWAY
            datagram = udp.parse(packet[20:], GATEWAY, GUEST, verify_checksum=True)
            assert isinstance(datagram, Udp)
            assert datagram.source_port == PORT
            found.append((datagram.destination_port, read(datagram.payload)))
        self.outbox.packets.clear()
        return found

    def asked(self) -> list[ResolveUpstream | ConsultDns]:
        """What the driver was asked for since the last call."""
        effects = [each for each in self.outbox.effects if isinstance(each, ResolveUpstream | ConsultDns)]
        self.outbox.effects = [each for each in self.outbox.effects if isinstance(each, Report)]
        return effects

    def events(self) -> list[DnsEvent]:
        found = [each.event for each in self.outbox.effects if isinstance(each, Report)]
        return [event for event in found if isinstance(event, DnsEvent)]

    def resolve(self, effect: ResolveUpstream | ConsultDns, *texts: str) -> None:
        assert isinstance(effect, ResolveUpstream)
        answer = respond(dns.message.from_wire(effect.message), records(*texts))
        self.port.resolved(effect.query, answer, 1.0)


def answers(session: DnsSession) -> list[dns.message.Message]:
    """What the session has for the guest, taken as the flow takes it."""
    taken, session.out = session.out, []
    return [read(message) for message in DnsStream().receive(b"".join(taken))]


def framed(*messages: dns.message.Message) -> bytes:
    return b"".join(DnsStream.frame(message.to_wire()) for message in messages)


def test_b1_a_refused_datagram_is_answered_to_its_port_and_nothing_is_asked() -> None:
    port = Port()
    port.send(query(REFUSED_NAME).to_wire(), 1234)
    ((to, answer),) = port.heard()
    assert to == 1234
    assert texts(answer) == [f"{REFUSED_NAME} 2 IN A 0.0.0.0"]
    assert port.asked() == []
    assert len(port.events()) == 1


def test_an_allowed_datagram_is_answered_when_upstream_has() -> None:
    port = Port()
    port.send(query("example.com.").to_wire(), 1234)
    assert port.heard() == []
    (effect,) = port.asked()
    port.resolve(effect, f"example.com. 60 A {PUBLIC}")
    ((to, answer),) = port.heard()
    assert to == 1234
    assert texts(answer) == [f"example.com. 60 IN A {PUBLIC}"]


def test_what_is_no_question_is_dropped_and_counted() -> None:
    port = Port()
    port.send(b"short")
    port.send(dns.message.make_response(query()).to_wire())
    assert (port.heard(), port.asked()) == ([], [])
    assert port.outbox.dropped == {"dns-truncated": 1, "dns-not-a-query": 1}


@pytest.mark.parametrize("allowed", [True, False])
def test_a_hook_decides_about_a_datagram(allowed: bool) -> None:
    port = Port()
    port.judge.consults = True
    port.send(query("example.com.").to_wire())
    (effect,) = port.asked()
    assert isinstance(effect, ConsultDns)
    verdict = effect.verdict if allowed else effect.verdict._replace(action=REFUSE, step="hook", reason="no")
    port.port.consulted(effect.number, verdict, 1.0)
    port.port.consulted(effect.number, verdict, 1.0)
    asked = port.asked()
    assert len(asked) == int(allowed)
    if allowed:
        port.resolve(asked[0], f"example.com. 60 A {PUBLIC}")
    ((_, answer),) = port.heard()
    assert texts(answer) == [f"example.com. {60 if allowed else 2} IN A {PUBLIC if allowed else '0.0.0.0'}"]
    assert len(port.events()) == 1


def test_a_hook_decides_about_a_session() -> None:
    port = Port()
    port.judge.consults = True
    session = port.port.session(GUEST, FLOW)
    session.receive(framed(query("example.com.")), 0.0)
    (effect,) = port.asked()
    assert isinstance(effect, ConsultDns)
    assert not session.idle
    port.port.consulted(effect.number, effect.verdict._replace(action=REFUSE), 0.0)
    assert [texts(answer) for answer in answers(session)] == [["example.com. 2 IN A 0.0.0.0"]]
    assert session.idle
    assert port.woken == [FLOW]


def test_b5_pipelined_questions_are_answered_one_after_the_other() -> None:
    """A guest that does not read is not answered further: one answer waits, not sixty-four."""
    port = Port()
    session = port.port.session(GUEST, FLOW)
    names = (REFUSED_NAME, "example.com.", "host.containers.internal.", REFUSED_NAME)
    questions = [query(name) for name in names]
    session.receive(framed(*questions), 0.0)
    heard: list[dns.message.Message] = []
    for _ in questions:
        assert len(session.out) <= 1
        heard += answers(session)
        session.more(0.0)
    assert [answer.id for answer in heard] == [questions[n].id for n in (0, 2, 3)]
    assert not session.idle
    (effect,) = port.asked()
    port.resolve(effect, f"example.com. 60 A {PUBLIC}")
    assert [answer.id for answer in answers(session)] == [questions[1].id]
    assert session.idle
    assert port.woken == [FLOW]


def test_b5_a_question_in_single_bytes() -> None:
    session = Port().port.session(GUEST, FLOW)
    data = framed(query(REFUSED_NAME))
    for at in range(len(data)):
        assert session.out == []
        session.receive(data[at : at + 1], 0.0)
    assert len(answers(session)) == 1


@pytest.mark.parametrize("data", [b"\x00\x00", b"\x00\x05short", b"\x00\x0c" + b"\x00\x00\x80" + bytes(9)])
def test_b5_a_session_that_does_not_speak_dns_fails(data: bytes) -> None:
    port = Port()
    session = port.port.session(GUEST, FLOW)
    session.receive(data + framed(query(REFUSED_NAME)), 0.0)
    assert session.failed
    assert session.out == []
    assert sum(port.outbox.dropped.values()) == 1


def test_b5_the_longest_message_is_waited_for_and_judged() -> None:
    session = Port().port.session(GUEST, FLOW)
    session.receive(b"\xff\xff" + query(REFUSED_NAME).to_wire() + bytes(60000), 0.0)
    assert session.out == []
    session.receive(bytes(65535), 0.0)
    assert answers(session)[0].rcode() == 1


def test_answers_for_a_session_that_is_gone_go_nowhere() -> None:
    port = Port()
    session = port.port.session(GUEST, FLOW)
    session.receive(framed(query("example.com.")), 0.0)
    (effect,) = port.asked()
    session.closed()
    port.resolve(effect, f"example.com. 60 A {PUBLIC}")
    assert (session.out, port.woken, port.heard()) == ([], [], [])
    port.port.resolved(99, None, 1.0)


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_no_bytes_raise(chunks: list[bytes]) -> None:
    port = Port()
    session = port.port.session(GUEST, FLOW)
    for chunk in chunks:
        port.send(chunk)
        session.receive(chunk, 0.0)
        session.out.clear()
        session.more(0.0)
