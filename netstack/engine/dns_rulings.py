"""What the policy makes of DNS under a list: which questions may be asked, and what a guest is told of the answers.

A question for a name that no rule allows is answered here, in the mode the policy names, and nothing goes upstream, of
whatever type it is. So are questions whose answers would hide names or reach past them: HTTPS and SVCB (unless the
policy passes them), ANY (RFC 8482), other classes than IN.

Answers are ruled on when they are given, not when they come: what the cache holds is upstream's, and a policy that was
replaced rules on it at once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from netstack.engine import dns_screen, synthetic
from netstack.engine.dns_cache import Entry
from netstack.engine.dns_names import host_name, name_text
from netstack.engine.dns_screen import Screened
from netstack.engine.judge import Judge
from netstack.engine.policy import NXDOMAIN, SYNTHETIC
from netstack.engine.policy import REFUSED as REFUSED_MODE
from netstack.engine.verdict import ALLOW, REFUSE, Verdict
from netstack.engine.wildcard_limits import TOO_MANY, shape_fault
from netstack.wire import dns as wire
from netstack.wire import dns_answers

SINKHOLE_TTL: Final = 2
"""Seconds: the policy may change."""
MAX_NOTED: Final = 64
"""Addresses in a screened answer that is kept: a cache entry never gets much larger by it."""

_QUESTION_NAME: Final = wire.pointer(wire.HEADER)
_NULL_ADDRESS: Final = wire.collect((wire.record(_QUESTION_NAME, wire.A, SINKHOLE_TTL, bytes(4)),))
# RFC 8482 section 4.2: a HINFO record that says which document to read.
_MINIMAL_ANY: Final = wire.collect((wire.record(_QUESTION_NAME, wire.HINFO, SINKHOLE_TTL, b"\x07RFC8482\x00"),))


class Ruling(NamedTuple):
    """The policy's own answer to a question; nothing goes upstream."""

    reply: wire.Reply
    verdict: Verdict


class Admission(NamedTuple):
    """A question that may be asked. `wildcard` is the suffix of the rule that allows it, empty if it has none."""

    verdict: Verdict
    wildcard: str = ""


class Told(NamedTuple):
    """What a guest is told of upstream's answer, and why."""

    reply: wire.Reply
    verdict: Verdict
    addresses: list[bytes]
    """The name's own IPv4 addresses the guest is given, for `ttl` seconds."""
    ttl: int


class _Note(NamedTuple):
    """An answer as it was screened under the policy of a generation."""

    generation: int
    screened: Screened | None


class DnsRulings:
    """One gateway's. Asked only while there is a list."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def question(self, name: bytes, qtype: int, qclass: int, hook: Verdict | None = None) -> Ruling | Admission:
        """Whether a question may be asked. `name` in wire form and lower case; `hook` is what a hook said before."""
        policy = self._judge.policy
        host = host_name(name)
        verdict = policy.question(host, "" if host is not None else name_text(name))
        if policy.unrestricted:
            return Admission(verdict)
        if host is None:
            return self.refused(verdict, qtype, qclass)
        if not verdict.allowed:
            if hook is None or hook.step != "hook" or not self.overrulable(verdict):
                return self.refused(verdict, qtype, qclass)
            verdict = hook
        wildcard = policy.rules.wildcard(host)
        fault = shape_fault(host, wildcard) if wildcard else ""
        if fault:
            return self.refused(_instead(verdict, REFUSE, fault), qtype, qclass)
        if qclass != wire.CLASS_IN:
            verdict = _instead(verdict, REFUSE, "class-not-forwarded")
            return Ruling(wire.Reply(wire.REFUSED, errors=_blocked(verdict.reason)), verdict)
        if qtype == wire.ANY:
            return Ruling(wire.Reply(wire.NOERROR, _MINIMAL_ANY), _instead(verdict, ALLOW, "any-not-forwarded"))
        if qtype in (wire.HTTPS, wire.SVCB) and not policy.settings.pass_service_bindings:
            return Ruling(wire.Reply(wire.NOERROR), _instead(verdict, ALLOW, "service-binding-withheld"))
        if qtype == wire.AAAA and policy.settings.answers == SYNTHETIC:
            return Ruling(wire.Reply(wire.NOERROR), _instead(verdict, ALLOW, "synthetic-is-ipv4"))
        return Admission(verdict, wildcard)

    def overrulable(self, verdict: Verdict) -> bool:
        """Whether a hook is asked about a refusal: about names only, not about what is none."""
        return verdict.reason == "name-not-allowed" and self._judge.overrulable(verdict)

    def refused(self, verdict: Verdict, qtype: int, qclass: int) -> Ruling:
        """The answer to a question for a name that is not allowed, by the policy or by a hook."""
        return Ruling(self._sinkhole(verdict, qtype, qclass), verdict)

    def leaves(self, admission: Admission, guest: bytes, qtype: int, now: float) -> Ruling | None:
        """Whether an admitted question may go upstream now: None, or what the guest is told instead."""
        verdict, wildcard = admission
        if not wildcard or self._judge.wildcards.admit(guest, wildcard, verdict.name, qtype, now):
            return None
        verdict = _instead(verdict, REFUSE, TOO_MANY)
        # Not a sinkhole: the name is allowed, and may be asked for again later.
        return Ruling(wire.Reply(wire.REFUSED, errors=_blocked(verdict.reason)), verdict)

    def screen(self, name: bytes, qtype: int, reply: wire.Reply) -> Screened | None:
        """What may be seen of an answer about addresses. None for others, and when its aliases lead nowhere."""
        if qtype not in dns_screen.ADDRESS_SIZES:
            return None
        return dns_screen.addresses(reply.records, name, qtype, self._judge.policy.answerable)

    def told_again(self, admission: Admission, name: bytes, qtype: int, entry: Entry, now: float) -> Told:
        """What a guest is told out of the cache. What screening made of it is noted there, for this policy."""
        generation = self._judge.generation
        note = entry.note
        if not isinstance(note, _Note) or note.generation != generation:
            note = _Note(generation, self.screen(name, qtype, entry.reply))
            if note.screened is None or len(note.screened.addresses) <= MAX_NOTED:
                entry.note = note
        return self.told(admission, name, qtype, entry.reply, note.screened, int(now - entry.stored))

    def told(
        self, admission: Admission, name: bytes, qtype: int, reply: wire.Reply, screened: Screened | None, age: int = 0
    ) -> Told:
        """What a guest is told of `reply`, upstream's answer to an admitted question, `age` seconds old."""
        verdict = admission.verdict
        if reply.rcode not in (wire.NOERROR, wire.NXDOMAIN):
            return Told(wire.Reply(wire.SERVFAIL, errors=reply.errors), verdict, [], 0)
        if reply.rcode == wire.NXDOMAIN:
            return Told(reply._replace(records=wire.NO_RECORDS), verdict, [], 0)
        if qtype not in dns_screen.ADDRESS_SIZES:
            return Told(reply._replace(records=dns_screen.others(reply.records, qtype, age)), verdict, [], 0)
        if screened is None:
            return Told(wire.Reply(wire.SERVFAIL), verdict, [], 0)
        objection = screened.objection
        if objection and not screened.addresses:
            verdict = _instead(verdict, REFUSE, objection)
            return Told(wire.Reply(wire.NOERROR, errors=_blocked(objection)), verdict, [], 0)
        if objection:
            verdict = _instead(verdict, ALLOW, f"{objection}-removed")
        records, ttl = dns_screen.at_age(screened, age)
        if screened.addresses and self._judge.policy.settings.answers == SYNTHETIC:
            return self._told_synthetic(name, ttl, verdict)
        reply = reply._replace(records=records, authentic=reply.authentic and not objection)
        return Told(reply, verdict, screened.addresses if qtype == wire.A else [], ttl)

    def _told_synthetic(self, name: bytes, ttl: int, verdict: Verdict) -> Told:
        address = self._judge.synthetic.address_for(verdict.name)
        if address is None:
            return Told(wire.Reply(wire.SERVFAIL), _instead(verdict, REFUSE, "synthetic-pool-exhausted"), [], 0)
        records = dns_answers.build(name, (), wire.A, min(ttl, synthetic.MAX_TTL), [address])
        return Told(wire.Reply(wire.NOERROR, records), verdict, [], 0)

    def _sinkhole(self, verdict: Verdict, qtype: int, qclass: int) -> wire.Reply:
        """The answer to a question for a name that is not allowed, whatever its type."""
        mode = self._judge.policy.settings.sinkhole
        if mode in (NXDOMAIN, REFUSED_MODE):
            rcode = wire.NXDOMAIN if mode == NXDOMAIN else wire.REFUSED
            return wire.Reply(rcode, errors=_blocked(verdict.reason))
        if qtype == wire.A and qclass in (wire.CLASS_IN, wire.CLASS_ANY):
            return wire.Reply(wire.NOERROR, _NULL_ADDRESS, errors=_forged(verdict.reason))
        return wire.Reply(
            wire.NOERROR, _MINIMAL_ANY if qtype == wire.ANY else wire.NO_RECORDS, errors=_blocked(verdict.reason)
        )


def _instead(verdict: Verdict, action: int, reason: str) -> Verdict:
    return verdict._replace(action=action, reason=reason)


# Extended errors (RFC 8914) tell whoever debugs in the guest why; they reach only those who sent EDNS.


@lru_cache(maxsize=64)
def _blocked(reason: str) -> bytes:
    return wire.extended_error(wire.BLOCKED, reason)


@lru_cache(maxsize=64)
def _forged(reason: str) -> bytes:
    return wire.extended_error(wire.FORGED_ANSWER, reason)
