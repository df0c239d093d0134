"""What may leave the guest: rules in, verdicts out, each with its reason.

A Policy never changes: it is replaced. So what it has said of a place or a name it will always say, and the answers
are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from netstack.engine import addresses
from netstack.engine.rules import TCP, Rule, RuleSet
from netstack.engine.settings import NetworkSettings
from netstack.engine.verdict import ALLOW, PEEK, REFUSE, Verdict

# How a DNS question for a name that is not allowed is answered.
NULL: Final = "null"
NXDOMAIN: Final = "nxdomain"
REFUSED: Final = "refused"
SINKHOLE_MODES: Final = (NULL, NXDOMAIN, REFUSED)

REAL: Final = "real"
SYNTHETIC: Final = "synthetic"
ANSWER_MODES: Final = (REAL, SYNTHETIC)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """Everything the policy is told.

    `rules` None: no list, full access. An empty tuple allows nothing (deny_all). `disabled`: no network at all.
    """

    rules: tuple[Rule, ...] | None = None
    disabled: bool = False
    sinkhole: str = NULL
    answers: str = REAL
    pass_service_bindings: bool = False
    """Answer HTTPS and SVCB questions for allowed names: they may hide a name (ECH) or carry addresses."""
    strict_ech: bool = False
    """Refuse any TLS hello that carries Encrypted ClientHello, GREASE included."""


FULL_ACCESS: Final = PolicySettings()
MAX_REMEMBERED: Final = 1024
"""Answers of each kind that are kept, the latest. Names are at most 253 characters."""

_NOWHERE: Final = frozenset(("loopback", "unspecified", "multicast"))


class Policy:
    """Every decision about a guest's traffic."""

    def __init__(self, settings: PolicySettings, network: NetworkSettings) -> None:
        self.settings = settings
        self.rules = RuleSet(settings.rules or ())
        self._network = network
        remember = lru_cache(maxsize=MAX_REMEMBERED)
        self._known_connect: Callable[[int, bytes, int, str], Verdict] = remember(self._connect)
        self._known_name: Callable[[int, str, int, str, str], Verdict] = remember(self._name)
        self._known_candidate: Callable[[int, bytes, int], str] = remember(self._candidate)

    @property
    def access(self) -> str:
        """What it opens, in a word: full, listed (what rules allow), nothing, or disabled."""
        if self.settings.disabled:
            return "disabled"
        if self.settings.rules is None:
            return "full"
        return "listed" if self.settings.rules else "nothing"

    @property
    def unrestricted(self) -> bool:
        """Whether there is no list: everything but the places that are never reached is allowed."""
        return self.settings.rules is None and not self.settings.disabled

    def connect(self, protocol: int, address: bytes, port: int, *, step: str, answered: Iterable[str] = ()) -> Verdict:
        """A flow to `address:port`, judged before NAT. `answered`: names our DNS gave this guest the address for."""
        if answered:
            return self._connect(protocol, address, port, step, answered)
        return self._known_connect(protocol, address, port, step)

    def _connect(self, protocol: int, address: bytes, port: int, step: str, answered: Iterable[str] = ()) -> Verdict:
        place = addresses.kind(address)
        fault = self._never(place) or (f"{place}-address" if _is_nowhere(place, address) else "")
        if fault:
            return Verdict(REFUSE, step, fault)
        if self.unrestricted:
            return _no_list(step)
        rules = self.rules
        by_address = rules.for_address(address, host_alias=address == self._network.host_ip)
        for rule in by_address:
            if rule.covers(protocol, port):
                return Verdict(ALLOW, step, "address-rule", rule.text)
        if place == "public":  # a name opens nothing else, whatever its servers say
            if rules.peeks(protocol, port):
                return Verdict(PEEK, step, "name-decides")
            # Not for UDP: nothing in a datagram says whom it is for, and the address may be many names' (policy.md).
            for name in answered if protocol == TCP else ():
                for rule in rules.for_name(name):
                    if rule.first_port and rule.covers(protocol, port):
                        return Verdict(ALLOW, step, "answered-name", rule.text, name, "dns")
        if by_address:
            return Verdict(REFUSE, step, "port-not-covered", by_address[0].text)
        return Verdict(REFUSE, step, "no-rule" if place == "public" else f"{place}-address")

    def echo(self, address: bytes) -> Verdict:
        """An ICMP echo request: only to places that a rule lists by address, whatever its port."""
        fault = self._never(addresses.kind(address))
        if fault:
            return Verdict(REFUSE, "echo", fault)
        if self.unrestricted:
            return _no_list("echo")
        for rule in self.rules.for_address(address, host_alias=address == self._network.host_ip):
            if not rule.protocol and not rule.first_port:
                return Verdict(ALLOW, "echo", "address-rule", rule.text)
        return Verdict(REFUSE, "echo", "no-rule")

    def name(self, protocol: int, name: str, port: int, *, step: str, source: str) -> Verdict:
        """A flow whose first bytes say `name` (canonical)."""
        return self._known_name(protocol, name, port, step, source)

    def _name(self, protocol: int, name: str, port: int, step: str, source: str) -> Verdict:
        if self.settings.disabled:
            return Verdict(REFUSE, step, "disabled", name=name, source=source)
        if self.unrestricted:
            return Verdict(ALLOW, step, "no-list", name=name, source=source)
        found = self.rules.for_name(name)
        for rule in found:
            if rule.covers(protocol, port):
                return Verdict(ALLOW, step, "name-rule", rule.text, name, source)
        if found:
            return Verdict(REFUSE, step, "port-not-covered", found[0].text, name, source)
        return Verdict(REFUSE, step, "name-not-allowed", "", name, source)

    def question(self, name: str | None, shown: str = "") -> Verdict:
        """A DNS question for `name` (canonical; None when it is no host name, `shown` is how it was spelled)."""
        if self.settings.disabled:
            return Verdict(REFUSE, "dns", "disabled", name=name or shown, source="dns")
        if self.unrestricted:
            return Verdict(ALLOW, "dns", "no-list", name=name or shown, source="dns")
        if name is None:
            return Verdict(REFUSE, "dns", "not-a-host-name", name=shown, source="dns")
        found = self.rules.for_name(name)
        if found:
            return Verdict(ALLOW, "dns", "name-rule", found[0].text, name, "dns")
        if self.rules.public:  # every public address is open: a list of names would only hide them
            return Verdict(ALLOW, "dns", "public-rule", self.rules.public[0].text, name, "dns")
        return Verdict(REFUSE, "dns", "name-not-allowed", "", name, "dns")

    def candidate(self, protocol: int, address: bytes, port: int) -> str:
        """Why an address that a name stands for must not be dialled; empty when it may.

        A public name that points at private places is DNS rebinding; only an address rule makes that right, and nothing
        does for metadata services, the guest's own subnet and the host's loopback.
        """
        return self._known_candidate(protocol, address, port)

    def _candidate(self, protocol: int, address: bytes, port: int) -> str:
        place = addresses.kind(address)
        fault = self._never_by_name(address, place)
        if fault:
            return fault
        if _is_nowhere(place, address):  # to the host they mean the host itself, and no guest could have dialled them
            return f"{place}-address"
        if self.unrestricted or place == "public":
            return ""
        if any(rule.covers(protocol, port) for rule in self.rules.for_address(address)):
            return ""
        return f"{place}-address"

    def answerable(self, address: bytes) -> str:
        """Why an address must be taken out of an upstream answer (DNS rebinding); empty when it may stay."""
        if self.unrestricted:
            return ""
        place = addresses.kind(address)
        fault = self._never_by_name(address, place)
        if fault:
            return fault
        return "" if place == "public" or self.rules.for_address(address) else f"{place}-address"

    def _never_by_name(self, address: bytes, place: str) -> str:
        """The same as `_never` of an address that a name stands for: not a guest's of this network either."""
        fault = self._never(place)
        if not fault and len(address) == 4 and self._network.in_subnet(address):
            return "own-subnet"
        return fault

    def _never(self, place: str) -> str:
        """Why no rule opens a kind of place: there is no network, or a cloud's metadata service may live there."""
        if self.settings.disabled:
            return "disabled"
        if place in addresses.METADATA and not self._network.metadata_access:
            return "metadata"
        return ""


@lru_cache(maxsize=8)
def _no_list(step: str) -> Verdict:
    """The verdict on everything where there is no list: the same one each time, at a step."""
    return Verdict(ALLOW, step, "no-list")


def _is_nowhere(place: str, address: bytes) -> bool:
    """Whether no flow goes to an address of this kind, by whatever rule: those of IPv4 have no route either."""
    return place in _NOWHERE or (len(address) == 4 and address[0] >= 240)
