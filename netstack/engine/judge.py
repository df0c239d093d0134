"""The one place where verdicts are made: every flow, name and question passes here; every refusal is told from here."""

from __future__ import annotations

from typing import Final

from netstack.engine.events import FlowRefused, PolicyReplaced
from netstack.engine.outbox import Outbox
from netstack.engine.pins import Pins
from netstack.engine.policy import Policy
from netstack.engine.refusals import Refusals, is_told
from netstack.engine.rules import QUIC_PORT, TCP, UDP
from netstack.engine.settings import NetworkSettings
from netstack.engine.synthetic import SyntheticPool
from netstack.engine.verdict import ALLOW, PEEK, REFUSE, Question, Verdict
from netstack.engine.wildcard_limits import WildcardLimits

_A: Final = 1
"""The DNS type of IPv4 addresses (RFC 1035 section 3.2.2)."""
_WORDS: Final = {1: "icmp", 6: "tcp", 17: "udp"}


class Judge:
    """Holds the policy in force and what it needs to remember."""

    def __init__(self, policy: Policy, network: NetworkSettings, outbox: Outbox) -> None:
        self.policy = policy
        self.generation = 1
        """Counts policies: every record says under which one it was judged."""
        self.consults = False
        """A hook is asked about every flow and DNS question before it goes anywhere."""
        self.loosens = False
        """The hook may allow what the policy refuses."""
        self.pins = Pins()
        self.wildcards = WildcardLimits()
        self.synthetic = SyntheticPool(avoid=network.in_subnet)
        """Which name each synthetic address stands for, also after the mode has changed: guests keep addresses."""
        self._network = network
        self._outbox = outbox
        self._refusals = Refusals()

    @property
    def refusals(self) -> dict[str, int]:
        """Refusals so far, by reason."""
        return self._refusals.by_reason

    def replace(self, policy: Policy, why: str) -> None:
        """Put another policy in force, whole. Flows already open are judged again by their owners."""
        self.policy = policy
        self.generation += 1
        self._refusals.begin_again()
        self._outbox.report(PolicyReplaced(self.generation, why, policy.access, len(policy.rules.rules)))

    def first(self, question: Question, now: float) -> Verdict:
        """A TCP SYN, or the first datagram to a destination: what its address and port alone say."""
        address, port = question.destination
        step = "syn" if question.protocol == TCP else "datagram"
        name = self.synthetic.name_of(address)
        if name is not None:
            verdict = self.policy.name(question.protocol, name, port, step=step, source="synthetic")
            reads = question.protocol == UDP and port == QUIC_PORT  # its hello has to agree with the name
            return verdict._replace(action=PEEK) if verdict.allowed and reads else verdict
        answered: list[str] = []
        if self.policy.rules.has_named_ports:
            answered = self.pins.names(question.guest[0], address, now)
        return self.policy.connect(question.protocol, address, port, step=step, answered=answered)

    def named(self, question: Question, name: str, step: str, source: str, now: float) -> Verdict:
        """The first bytes of the flow say `name` (canonical)."""
        expected = self.synthetic.name_of(question.destination[0])
        if expected is not None and expected != name:
            return Verdict(REFUSE, step, "name-disagrees-with-address", "", name, source)
        verdict = self.policy.name(question.protocol, name, question.destination[1], step=step, source=source)
        if verdict.allowed:
            # The dialer is going to ask for it: a name below a wildcard carries data out as a DNS question would.
            fault = self.wildcards.fault(self.policy.rules, question.guest[0], name, _A, now)
            if fault:
                return Verdict(REFUSE, step, fault, verdict.rule, name, source)
        return verdict

    def note(self, question: Question, verdict: Verdict, now: float) -> str:
        """What is to be told of a flow besides that it is allowed; mostly nothing."""
        if verdict.source not in ("sni", "host", "quic"):
            return ""
        guest, address = question.guest[0], question.destination[0]
        expected = self.pins.known(guest, verdict.name, address, now) or self.synthetic.name_of(address) == verdict.name
        return "" if expected else "address-not-answered"

    def echo(self, question: Question) -> Verdict:
        """An ICMP echo request."""
        return self.policy.echo(question.destination[0])

    def again(self, question: Question, old: Verdict, now: float) -> Verdict:
        """A flow that is open, under the policy that is in force now."""
        if old.name and old.source != "dns":
            return self.policy.name(
                question.protocol, old.name, question.destination[1], step="replaced", source=old.source
            )
        verdict = self.policy.echo(question.destination[0]) if question.protocol == 1 else self.first(question, now)
        if verdict.action == ALLOW:
            return verdict
        if (
            old.source == "dns"
            and self.policy.name(
                question.protocol, old.name, question.destination[1], step="replaced", source="dns"
            ).allowed
        ):
            return old  # a live flow keeps the address its name had
        # What had been allowed by its address, and would now have to show a name, has shown none.
        reason = "no-name" if verdict.action == PEEK else verdict.reason
        return Verdict(REFUSE, "replaced", reason, verdict.rule, old.name, old.source)

    def overrulable(self, verdict: Verdict) -> bool:
        """Whether a refusal is put before the hook. Metadata services and a disabled network stay closed to it."""
        return self.consults and self.loosens and verdict.reason not in ("metadata", "disabled")

    def candidate(self, protocol: int, address: bytes, port: int) -> str:
        """Why the dialer must not use an address that a name stands for; empty when it may."""
        return self.policy.candidate(protocol, address, port)

    def count(self, verdict: Verdict) -> None:
        """Count a refusal that is told of elsewhere."""
        self._refusals.count(verdict.reason)

    def refused(self, question: Question, verdict: Verdict, told: str, now: float) -> None:
        """Count a refusal and tell people: the 1st, 10th, 100th, ... of one guest for one destination and name.

        `told` is what the guest was told: reset, alert, forbidden (403), unreachable, sinkhole, nothing.
        """
        self.count(verdict)
        place = (question.protocol, question.destination, verdict.name, verdict.reason)
        count = self._refusals.repetition(question.guest[0], place, now)
        if is_told(count):
            self._outbox.report(
                FlowRefused(
                    question.flow,
                    _WORDS.get(question.protocol, str(question.protocol)),
                    question.guest,
                    question.destination,
                    verdict,
                    told,
                    count,
                    self.generation,
                )
            )
