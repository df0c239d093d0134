"""NetworkSpec: what a guest may reach, as people say it: the way to a policy from Python, options and YAML alike.

NetworkSpec.enabled()                                   full access
NetworkSpec.enabled(["pypi.org", "10.1.0.0/16:5432"])   only that
NetworkSpec.enabled(deny_all=True)                      a network card, DHCP and DNS, and nothing behind them
NetworkSpec.disabled()                                  a network card that never carries a frame
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final

from netstack.engine import addresses
from netstack.engine.policy import ANSWER_MODES, NULL, REAL, SINKHOLE_MODES, SYNTHETIC, PolicySettings
from netstack.engine.rules import ADDRESS, HOST, QUIC_PORT, SUFFIX, TCP, UDP, Rule, RuleSet, parse_rule

ENABLED: Final = "enabled"
DISABLED: Final = "disabled"
_SHOWN_RULES: Final = 8
_NO_UDP_NAMES: Final = f"UDP has no names but QUIC's, on port {QUIC_PORT}; list the address, or use synthetic answers"


class SpecError(ValueError):
    """A specification that contradicts itself or cannot be read; the message names the key and what was expected."""


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What a guest may reach. Made by `enabled`, `disabled` or `parse`; checked when it is made.

    Raises SpecError for a contradiction, and RuleError (both are ValueErrors) for a rule that cannot be used.
    """

    network: str = ENABLED
    allow_net: tuple[str, ...] = ()
    deny_all: bool = False
    sinkhole: str = NULL
    answers: str = REAL
    pass_service_bindings: bool = False
    strict_ech: bool = False

    def __post_init__(self) -> None:
        if self.network not in (ENABLED, DISABLED):
            raise SpecError(f"network {self.network!r}: expected {ENABLED!r} or {DISABLED!r}")
        if self.network == DISABLED and (self.allow_net or self.deny_all):
            what = "allow_net" if self.allow_net else "deny_all"
            raise SpecError(f"{what}: a disabled network has nothing to allow or deny: leave one of them out")
        if self.deny_all and self.allow_net:
            raise SpecError("deny_all: contradicts the entries of allow_net; leave one of them out")
        if self.sinkhole not in SINKHOLE_MODES:
            raise SpecError(f"sinkhole {self.sinkhole!r}: expected one of {', '.join(SINKHOLE_MODES)}")
        if self.answers not in ANSWER_MODES:
            raise SpecError(f"answers {self.answers!r}: expected one of {', '.join(ANSWER_MODES)}")
        self.rules()

    @classmethod
    def enabled(cls, allow_net: Iterable[str] = (), *, deny_all: bool = False, **options: Any) -> NetworkSpec:
        """A network: all of it, or only what `allow_net` lists, or (`deny_all`) nothing of it."""
        if isinstance(allow_net, str):
            raise SpecError(f"allow_net {allow_net!r}: expected a list of rules, not one string")
        return cls(ENABLED, tuple(allow_net), deny_all, **options)

    @classmethod
    def disabled(cls) -> NetworkSpec:
        """No network: the guest has a card, and no frame ever comes or goes."""
        return cls(DISABLED)

    @classmethod
    def parse(cls, value: NetworkSpec | str | Mapping[str, Any]) -> NetworkSpec:
        """A spec, one of the words (any case), or a mapping with the keys of this class.

        Raises SpecError, RuleError.
        """
        if isinstance(value, NetworkSpec):
            return value
        if isinstance(value, str):
            return cls(value.strip().lower())
        if not isinstance(value, Mapping):
            raise SpecError(f"{value!r}: expected {ENABLED!r}, {DISABLED!r} or a mapping")
        known = [field.name for field in fields(cls)]
        options: dict[str, Any] = {}
        for key, given in value.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
                raise SpecError(f"unknown key {key!r}{hint}")
            options[key] = _checked(key, given)
        if isinstance(options.get("network"), str):
            options["network"] = options["network"].strip().lower()
        return cls(**options)

    def __str__(self) -> str:
        """What it opens, for people; of a long list the beginning."""
        if self.network == DISABLED:
            return "no network"
        if self.deny_all:
            return "nothing is allowed"
        if not self.allow_net:
            return "full access"
        shown = ", ".join(self.allow_net[:_SHOWN_RULES])
        more = len(self.allow_net) - _SHOWN_RULES
        return f"only {shown}{f' and {more} more' if more > 0 else ''}"

    def rules(self) -> tuple[Rule, ...]:
        """The rules, read. Raises RuleError for the first that cannot be used."""
        return _parse_rules(self.allow_net)

    def policy(self) -> PolicySettings:
        """What the engine is told."""
        restricted = self.deny_all or bool(self.allow_net)
        return PolicySettings(
            rules=self.rules() if restricted else None,
            disabled=self.network == DISABLED,
            sinkhole=self.sinkhole,
            answers=self.answers,
            pass_service_bindings=self.pass_service_bindings,
            strict_ech=self.strict_ech,
        )

    def warnings(self, *, metadata_access: bool = False) -> list[str]:
        """Rules that can never match, or say what another says already.

        `metadata_access`: the network settings open the clouds' metadata services.
        """
        rules = self.rules()
        every = RuleSet(rules)
        places = {id(rule): place for place, rule in enumerate(rules)}
        found = []
        for rule in rules:
            never = self._never_matches(rule, metadata_access=metadata_access)
            if never:
                found.append(f"allow_net rule {rule.text!r} never matches: {never}")
                continue
            if rule.kind == SUFFIX and is_shared_suffix(rule.name):
                found.append(f"allow_net rule {rule.text!r}: anybody can get a name below {rule.name!r}")
            wider = _wider(rule, every, places)
            if wider is not None:
                found.append(f"allow_net rule {rule.text!r} says nothing that {wider.text!r} does not say already")
        return found

    def _never_matches(self, rule: Rule, *, metadata_access: bool) -> str:
        """Why nothing a guest does is allowed by a rule; empty when something is."""
        if rule.kind in (HOST, SUFFIX):
            quic = rule.covers(UDP, QUIC_PORT)
            return "" if rule.protocol != UDP or quic or self.answers == SYNTHETIC else _NO_UDP_NAMES
        if rule.kind != ADDRESS:
            return ""
        network = ipaddress.ip_network((rule.network, rule.prefix_length))
        first, last = network.network_address.packed, network.broadcast_address.packed
        if not metadata_access and addresses.is_metadata(first) and addresses.is_metadata(last):
            return "metadata services need metadata access"
        word = addresses.kind(first)
        is_nowhere = word in ("loopback", "unspecified", "multicast") or (len(first) == 4 and first[0] >= 240)
        return "no flow goes there, whatever the rules" if is_nowhere and addresses.kind(last) == word else ""


def _checked(key: str, value: Any) -> Any:
    """A value of the YAML or JSON kind for a key. `null` is also how YAML reads the sinkhole mode of that name."""
    if key == "sinkhole" and value is None:
        return NULL
    if key == "allow_net":
        if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
            raise SpecError(f"allow_net {value!r}: expected a list of rules, each a string (in YAML: in quotes)")
        return tuple(value)
    if key in ("deny_all", "pass_service_bindings", "strict_ech"):
        if not isinstance(value, bool):
            raise SpecError(f"{key} {value!r}: expected true or false")
        return value
    if not isinstance(value, str):
        raise SpecError(f"{key} {value!r}: expected a word")
    return value


def _wider(rule: Rule, every: RuleSet, places: Mapping[int, int]) -> Rule | None:
    """Another rule that covers all of what this one does. `places` has the positions of rules by their identity."""
    if rule.kind == HOST:
        candidates = every.for_name(rule.name)
    elif rule.kind == SUFFIX:
        candidates = [other for other in every.for_name(f"x.{rule.name}") if other.kind == SUFFIX]
    elif rule.kind == ADDRESS:
        candidates = [other for other in every.for_address(rule.network) if other.kind == ADDRESS]
        candidates = [other for other in candidates if other.prefix_length <= rule.prefix_length]
    else:
        return None
    for other in candidates:
        if other is not rule and _covers_all(other, rule):
            alike = _place(rule) == _place(other) and _covers_all(rule, other)
            if alike and places[id(other)] > places[id(rule)]:
                continue  # of two that say the same, the later is the superfluous one
            return other
    return None


def _place(rule: Rule) -> tuple[str, str, bytes, int]:
    return rule.kind, rule.name, rule.network, rule.prefix_length


def _sample_ports(rule: Rule) -> list[int]:
    return [rule.first_port, rule.last_port] if rule.first_port else [1, 22, 80, 443, 8443, 65535]


def _covers_all(one: Rule, other: Rule) -> bool:
    """Whether a rule covers every protocol and port that another does."""
    ports = [(protocol, port) for protocol in (TCP, UDP) for port in _sample_ports(other)]
    return all(one.covers(*place) for place in ports if other.covers(*place))


@lru_cache(maxsize=8)
def _parse_rules(texts: tuple[str, ...]) -> tuple[Rule, ...]:
    return tuple(parse_rule(text, is_public_suffix) for text in texts)


def is_public_suffix(name: str) -> bool:
    """Whether a registry sells names below `name` (the ICANN part of Mozilla's Public Suffix List)."""
    return bool(_suffix_list(only_icann=True).is_public(name))


def is_shared_suffix(name: str) -> bool:
    """Whether a company gives names below `name` to its customers (the private part of the same list)."""
    return bool(_suffix_list(only_icann=False).is_public(name))


@lru_cache(maxsize=2)
def _suffix_list(*, only_icann: bool) -> Any:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(only_icann=only_icann)
