"""A guest and an upstream made of dnspython, with a DnsServer between them in virtual time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from netstack.engine.dns_server import Answer, Ask, DnsServer, Outcome, Transport
from netstack.engine.events import DnsEvent, Event
from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.policy import Policy, PolicySettings
from netstack.engine.rules import parse_rule
from netstack.engine.settings import NetworkSettings, Zone, ZoneRecord
from netstack.engine.verdict import REFUSE, Verdict
from netstack.engine.zones import Zones

GUEST = b"\xc0\xa8\x7f\x02"
OTHER_GUEST = b"\xc0\xa8\x7f\x03"
ZONES = (
    Zone("containers.internal", (ZoneRecord("gateway", b"\xc0\xa8\x7f\x01"), ZoneRecord("host", b"\xc0\xa8\x7f\xfe"))),
    Zone("many.internal", tuple(ZoneRecord("all", bytes([10, 0, 1, last])) for last in range(120))),
)
NETWORK = NetworkSettings()
RULES = ["example.com", "*.example.org", "github.com:22", "10.9.0.0/16"]
REFUSED_NAME = "aGVsbG8.exfil.example.net."
PUBLIC = "93.184.216.34"

Fill = Callable[[dns.message.Message], None]


class Gateway:
    """A server under test, its reports, and an upstream that says what a test tells it to."""

    def __init__(self, rules: list[str] | None = None, *, mtu: int = 1500, **settings: object) -> None:
        """`rules` as people write them, None for no list; `settings` of the policy."""
        self.events: list[DnsEvent] = []
        self.judge = Judge(make_policy(rules, **settings), NETWORK, Outbox())
        self.server = DnsServer(Zones(ZONES), self._note, judge=self.judge, mtu=mtu)
        self.now = 100.0

    def replace(self, rules: list[str] | None, **settings: object) -> None:
        """Put another policy in force."""
        self.judge.replace(make_policy(rules, **settings), "test")

    def event(self) -> DnsEvent:
        """The one event since the last call."""
        (event,) = self.events
        self.events.clear()
        return event

    def _note(self, event: Event) -> None:
        assert isinstance(event, DnsEvent)
        self.events.append(event)

    def send(
        self,
        query: dns.message.Message | bytes,
        transport: Transport = "udp",
        token: Hashable = "t",
        guest: bytes = GUEST,
    ) -> Outcome:
        message = query if isinstance(query, bytes) else query.to_wire()
        return self.server.ask(message, guest, transport, token, self.now)

    def answer(self, query: dns.message.Message | bytes, transport: Transport = "udp") -> dns.message.Message:
        """The answer given at once."""
        outcome = self.send(query, transport)
        assert isinstance(outcome, Answer)
        return read(outcome.message)

    def asked(self, query: dns.message.Message, **how: object) -> tuple[int, dns.message.Message]:
        """The number and the message that goes upstream for a query."""
        outcome = self.send(query, **how)  # type: ignore[arg-type]  # the keywords of send
        assert isinstance(outcome, Ask)
        return outcome.effect.query, dns.message.from_wire(outcome.effect.message)

    def forward(
        self, query: dns.message.Message, fill: Fill | None = None, transport: Transport = "udp", token: Hashable = "t"
    ) -> dns.message.Message:
        """The answer to a query that goes upstream, where `fill` completes an empty response."""
        number, upstream = self.asked(query, transport=transport, token=token)
        ((back, message),) = self.server.resolved(number, respond(upstream, fill), self.now + 0.25)
        assert back == token
        return read(message)


def make_policy(rules: list[str] | None, **settings: object) -> Policy:
    read_rules = None if rules is None else tuple(parse_rule(rule, lambda name: "." not in name) for rule in rules)
    return Policy(PolicySettings(rules=read_rules, **settings), NETWORK)  # type: ignore[arg-type]  # by name


def read(message: bytes) -> dns.message.Message:
    return dns.message.from_wire(message, ignore_trailing=False)


def respond(upstream: dns.message.Message, fill: Fill | None = None) -> bytes:
    response = dns.message.make_response(upstream, recursion_available=True, our_payload=1232)
    if fill is not None:
        fill(response)
    return response.to_wire(max_size=65535)


def records(*texts: str, section: str = "answer") -> Fill:
    """Puts records in a section, each as `NAME TTL TYPE DATA`."""

    def fill(response: dns.message.Message) -> None:
        for text in texts:
            name, ttl, rtype, data = text.split(" ", 3)
            getattr(response, section).append(dns.rrset.from_text(name, int(ttl), "IN", rtype, data))

    return fill


def failing(rcode: dns.rcode.Rcode) -> Fill:
    return lambda response: response.set_rcode(rcode)


def query(name: str = "www.example.com.", rtype: str = "A", **how: object) -> dns.message.Message:
    return dns.message.make_query(name, rtype, **how)  # type: ignore[arg-type]  # the keywords of make_query


def header(flags: int = 0x0100, counts: tuple[int, int, int, int] = (1, 0, 0, 0)) -> bytes:
    return struct.pack("!6H", 0x1234, flags, *counts)


def texts(message: dns.message.Message) -> list[str]:
    return [rrset.to_text() for rrset in message.answer]


def refusal(reason: str, name: str, rule: str = "") -> Verdict:
    """The verdict on a question that is refused."""
    return Verdict(REFUSE, "dns", reason, rule, name, "dns")
