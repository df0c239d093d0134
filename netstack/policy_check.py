"""`netstack policy check`: what a policy would do with a question, and why, without a network."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from netstack.engine.names import canonical
from netstack.engine.policy import Policy
from netstack.engine.rules import QUIC_PORT, TCP, UDP
from netstack.engine.settings import NetworkSettings
from netstack.engine.verdict import PEEK, Verdict
from netstack.network_spec import NetworkSpec

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
_PUBLIC: Final = b"\x5d\xb8\xd8\x22"
"""Some public address: what a name is taken to stand for."""


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
    """Answer one question under a spec. Raises QuestionError."""
    policy = Policy(spec.policy(), settings or NetworkSettings())
    text = question.strip()
    if "://" not in text:
        text = f"tcp://{text}" if _has_port(text) else f"dns://{text}"
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme == "dns":
        return _check_dns(policy, question, rest)
    if scheme == "icmp":
        address = _address(rest.strip("[]/"))
        if address is None:
            raise QuestionError(f"question {question!r}: icmp:// takes an IP address")
        return _answer(question, [("echo request", policy.echo(address))], rest)
    if scheme not in _SCHEME_PORTS:
        raise QuestionError(f"question {question!r}: expected {EXPECTED}")
    protocol, port = _SCHEME_PORTS[scheme]
    parts = urlsplit(f"//{rest}")
    try:
        port = parts.port or port
    except ValueError:
        port = 0
    if not parts.hostname or not port:
        raise QuestionError(f"question {question!r}: expected {EXPECTED}")
    address = _address(parts.hostname)
    if address is not None:
        step = "SYN" if protocol == TCP else "first datagram"
        verdict = policy.connect(protocol, address, port, step="syn" if protocol == TCP else "datagram")
        return _answer(question, [(step, verdict)], f"{parts.hostname}:{port}")
    return _check_named(policy, question, parts.hostname, protocol, port)


def _check_dns(policy: Policy, question: str, rest: str) -> Answer:
    shown, _, qtype = rest.strip("/").partition("/")
    name = canonical(shown)
    return _answer(question, [(f"DNS question {shown} {(qtype or 'A').upper()}", policy.question(name, shown))], shown)


def _check_named(policy: Policy, question: str, host: str, protocol: int, port: int) -> Answer:
    name = canonical(host)
    if name is None:
        raise QuestionError(f"question {question!r}: {host!r} is neither a host name nor an IP address")
    steps = [(f"DNS question {name} A", policy.question(name))]
    if steps[0][1].allowed:
        step = "SYN" if protocol == TCP else "first datagram"
        first = policy.connect(protocol, _PUBLIC, port, step="syn" if protocol == TCP else "datagram", answered=[name])
        steps.append((f"{step} to the address our DNS gave", first))
        if first.action == PEEK:
            said = "TLS SNI or HTTP Host" if protocol == TCP else "SNI in the QUIC hello"
            source = "sni" if protocol == UDP or port != 80 else "host"
            steps.append((f"{said} {name}", policy.name(protocol, name, port, step="name", source=source)))
    return _answer(question, steps, name if port in (80, 443) and protocol == TCP else f"{name}:{port}")


def _answer(question: str, steps: list[tuple[str, Verdict]], addition: str) -> Answer:
    last = steps[-1][1]
    hint = ""
    if not last.allowed and last.reason not in ("metadata", "disabled", "own-subnet"):
        hint = f"add {addition!r} to allow_net"
    elif last.reason == "metadata":
        hint = "start with --metadata-access; no rule opens it"
    elif last.reason == "disabled":
        hint = "enable the network"
    return Answer(question, tuple(steps), hint)


def _has_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and (":" not in host or host.endswith("]"))


def _address(text: str) -> bytes | None:
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        return None
