"""`netstack policy check`: what a policy would do with a question, and why, without a network.

The engine's own parts answer: the routes, the name server's rulings, the judge. Nothing of the policy is said twice.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import dns.exception
import dns.name
import dns.rdatatype

from netstack.engine import addresses, dns_screen, routes
from netstack.engine.dns_port import PORT as DNS_PORT
from netstack.engine.dns_rulings import DnsRulings
from netstack.engine.judge import Judge
from netstack.engine.names import canonical
from netstack.engine.outbox import Outbox
from netstack.engine.policy import SYNTHETIC, Policy
from netstack.engine.rules import ADDRESS, QUIC_PORT, TCP, UDP, WEB_PORTS
from netstack.engine.settings import NetworkSettings
from netstack.engine.verdict import ALLOW, PEEK, REFUSE, Question, Verdict
from netstack.engine.zones import Zones
from netstack.network_spec import NetworkSpec
from netstack.wire import dns as wire
from netstack.wire import ipv4

EXPECTED: Final = (
    "HOST:PORT, udp://HOST:PORT, IP:PORT, icmp://IP, http(s)://HOST/, quic://HOST, dns://NAME[/TYPE] or a bare NAME"
)
_SCHEME_PORTS: Final = {
    "http": (TCP, 80),
    "https": (TCP, 443),
    "quic": (UDP, QUIC_PORT),
    "tcp": (TCP, 0),
    "udp": (UDP, 0),
}
_NO_ADVICE: Final = frozenset(
    ("unused-address", "forbidden-address", "group-address", "unserved-port", "not-a-host-name", "no-such-name")
)
"""Refusals that no rule changes."""
_BY_ADDRESS: Final = "under a list UDP has no names but those in QUIC: add its address, or use synthetic DNS answers"


class QuestionError(ValueError):
    """A question that cannot be read; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What would happen: each step with its verdict, the last one decides."""

    question: str
    steps: tuple[tuple[str, Verdict], ...]
    hint: str

    @property
    def allowed(self) -> bool:
        """Whether the traffic would get through."""
        return all(verdict.allowed or verdict.action == PEEK for _, verdict in self.steps) and self.steps[-1][1].allowed


def check(spec: NetworkSpec, question: str, settings: NetworkSettings | None = None) -> Answer:
    """Answer one question under a spec; `settings` are the guest's network. Raises QuestionError."""
    checker = _Checker(spec, settings or NetworkSettings(), question)
    text = question.strip()
    if "://" not in text:
        text = f"tcp://{text}" if _has_port(text) else f"dns://{text}"
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme == "dns":
        return checker.dns(rest)
    if scheme == "icmp":
        return checker.echo(rest.strip("[]/"))
    if scheme not in _SCHEME_PORTS:
        raise checker.unread()
    protocol, port = _SCHEME_PORTS[scheme]
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, port if parts.port is None else parts.port
    except ValueError:
        raise checker.unread() from None
    if not host or not port:
        raise checker.unread()
    address = _address(host)
    if address is not None:
        shown = f"[{host}]:{port}" if len(address) == 16 else f"{host}:{port}"
        return checker.answer([checker.first(protocol, address, port)], shown)
    return checker.named(host, protocol, port)


class _Checker:
    """What one question is asked of."""

    def __init__(self, spec: NetworkSpec, settings: NetworkSettings, question: str) -> None:
        self._policy = Policy(spec.policy(), settings)
        self._judge = Judge(self._policy, settings, Outbox())
        self._rulings = DnsRulings(self._judge)
        self._routes = routes.Routes(settings)
        self._zones = Zones(settings.zones)
        self._guest = (settings.device_ip, 0)
        self._question = question

    def unread(self) -> QuestionError:
        return QuestionError(f"question {self._question!r}: expected {EXPECTED}")

    def dns(self, rest: str) -> Answer:
        """A DNS question, `NAME` or `NAME/TYPE`."""
        shown, _, qtype = rest.strip("/").partition("/")
        if not shown or _address(shown.strip("[]")) is not None:
            raise self.unread()
        try:
            name = dns.name.from_text(shown.rstrip(".") + ".").to_wire()
            number = int(dns.rdatatype.from_text(qtype or "A"))
        except (dns.exception.DNSException, UnicodeError):
            raise self.unread() from None
        step, _ = self._ask((name or b"").lower(), number, shown)
        return self.answer([step], shown.rstrip("."))

    def echo(self, host: str) -> Answer:
        """An ICMP echo request."""
        address = _address(host)
        if address is None:
            raise QuestionError(f"question {self._question!r}: icmp:// takes an IP address")
        asked = Question(0, ipv4.ICMP, self._guest, (address, 0))
        return self.answer([("echo request", self._routed(asked, "echo", self._judge.echo))], host)

    def first(self, protocol: int, address: bytes, port: int) -> tuple[str, Verdict]:
        """The first packet of a flow to an address."""
        asked = Question(0, protocol, self._guest, (address, port))
        word = "SYN" if protocol == TCP else "first datagram"
        step = "syn" if protocol == TCP else "datagram"
        return word, self._routed(asked, step, lambda each: self._judge.first(each, 0.0))

    def _routed(self, asked: Question, step: str, judge: Callable[[Question], Verdict]) -> Verdict:
        address, port = asked.destination
        route = routes.OUT if len(address) != 4 else self._routes.lookup(address).kind
        if route == routes.OUT or self._policy.settings.disabled:
            return judge(asked)
        if route == routes.OWN and (asked.protocol == ipv4.ICMP or port == DNS_PORT):
            return Verdict(ALLOW, step, "gateway-service")
        return Verdict(REFUSE, step, routes.refusal(route, address))

    def named(self, host: str, protocol: int, port: int) -> Answer:
        """A flow to a name: its DNS question, the first packet to the address it gave, what the flow then says."""
        name = canonical(host)
        if name is None:
            raise QuestionError(f"question {self._question!r}: {host!r} is neither a host name nor an IP address")
        asked, address = self._ask(dns.name.from_text(name).to_wire() or b"", wire.A, name)
        steps = [asked]
        if address is not None:
            word, verdict = self.first(protocol, address, port)
            steps.append((f"{word} to the address our DNS gave", verdict))
            if verdict.action == PEEK:
                flow = Question(0, protocol, self._guest, (address, port))
                said, step, source = _said(protocol, port)
                steps.append((f"{said} {name}", self._judge.named(flow, name, step, source, 0.0)))
        addition = name if port in (WEB_PORTS if protocol == TCP else (QUIC_PORT,)) else f"{name}:{port}"
        if protocol == UDP and port != QUIC_PORT and self._policy.settings.answers != SYNTHETIC:
            return self.answer(steps, "", _BY_ADDRESS)
        return self.answer(steps, addition)

    def _ask(self, name: bytes, qtype: int, shown: str) -> tuple[tuple[str, Verdict], bytes | None]:
        """A DNS question, and the IPv4 address it gives: one of a zone, or some public one."""
        word = f"DNS question {shown} {dns.rdatatype.to_text(dns.rdatatype.RdataType.make(qtype))}"
        zone = self._zones.answer(name, qtype, wire.CLASS_IN)
        if zone is not None:
            if zone.rcode != wire.NOERROR:
                return (word, Verdict(REFUSE, "dns", "no-such-name", "", shown, "dns")), None
            found = dns_screen.addresses(zone.records, name, wire.A, lambda _: "") if qtype == wire.A else None
            known = found.addresses[0] if found and found.addresses else None
            return (word, Verdict(ALLOW, "dns", "local-zone", "", shown, "dns")), known
        verdict = self._rulings.question(name, qtype, wire.CLASS_IN).verdict
        if not verdict.allowed:
            return (word, verdict), None
        synthetic = self._policy.settings.answers == SYNTHETIC and not self._policy.unrestricted
        address = self._judge.synthetic.address_for(verdict.name) if synthetic else self._unlisted()
        if address is not None and not synthetic:
            self._judge.pins.answered(self._guest[0], verdict.name, [address], 0, 0.0)
        return (word, verdict), address

    def _unlisted(self) -> bytes:
        """A public address that no address rule speaks of, if there is one: what a name is taken to stand for."""
        public = [address for address in (bytes((first, 4, 4, 4)) for first in range(1, 224)) if _is_public(address)]
        rules = self._policy.rules
        free = (each for each in public if all(rule.kind != ADDRESS for rule in rules.for_address(each)))
        return next(free, public[0])

    def answer(self, steps: list[tuple[str, Verdict]], addition: str, hint: str = "") -> Answer:
        """The answer with its steps, and a hint if it is a refusal that the rule `addition` would end."""
        last = steps[-1][1]
        if last.allowed or last.reason in _NO_ADVICE:
            hint = ""
        elif last.reason == "metadata":
            hint = "start with --metadata-access; no rule opens it"
        elif last.reason == "disabled":
            hint = "enable the network"
        elif addition:
            hint = f"add {addition!r} to allow_net"
        return Answer(self._question, tuple(steps), hint)


def _said(protocol: int, port: int) -> tuple[str, str, str]:
    """What a flow says its name in: for people, as step and as source."""
    if protocol == UDP:
        return "SNI in the QUIC hello", "quic", "quic"
    return ("HTTP Host", "http", "host") if port == 80 else ("TLS SNI or HTTP Host", "tls", "sni")


def _is_public(address: bytes) -> bool:
    return addresses.kind(address) == "public"


def _has_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and (":" not in host or host.endswith("]"))


def _address(text: str) -> bytes | None:
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        return None
