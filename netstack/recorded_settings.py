"""What a gateway was told, as a line of text in its captures, and back: with it a capture replays by itself.

The line is the comment of the file's section: `netstack: ` and a JSON object. It holds what decides about frames: the
addresses, the link, zones and leases, the policy. `clock` is what lies between the file's times (nanoseconds since
1970) and the engine's (seconds of a monotonic clock), because time stamps of TCP are made of the latter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final

from netstack.engine.policy import PolicySettings
from netstack.engine.rules import Rule
from netstack.engine.settings import LinkTraits, NetworkSettings, Zone, ZoneRecord

LEAD: Final = "netstack: "
FORMAT: Final = 1
"""Counts changes of the line that older programs cannot read."""
MAX_LINE: Final = 60_000
"""Bytes; an option of pcapng holds 65,535. A policy that makes it longer is left out, and said to be."""


class RecordedSettingsError(ValueError):
    """A line that this version cannot read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSettings:
    """`policy` is None where it was too long to be recorded. `clock`: nanoseconds to be taken off the file's times."""

    network: NetworkSettings
    policy: PolicySettings | None
    clock: int
    services: frozenset[int] = frozenset()
    """Ports of the gateway that this program served."""
    faithful: bool = True
    """The frames are those that the gateway had, when it had them: nothing damaged, lost or delayed them on the way."""
    journal: int = 0
    """The format of the journal between the frames; 0 where there is none."""


def recorder(
    network: NetworkSettings,
    policy: PolicySettings,
    services: Iterable[int] = (),
    *,
    faithful: bool = True,
    journal: int = 0,
) -> Callable[[int], str]:
    """What `CaptureWriter` wants as its `remark`: the line, once the clock's offset is known."""

    def line(clock: int) -> str:
        content: dict[str, Any] = {"format": FORMAT, "clock": clock, "network": _plain(network)}
        content["services"] = sorted(services)
        if not faithful:
            content["faithful"] = False
        if journal:
            content["journal"] = journal
        short = LEAD + json.dumps({**content, "policy": None}, separators=(",", ":"))
        whole = LEAD + json.dumps({**content, "policy": _plain(policy)}, separators=(",", ":"))
        return whole if len(whole) <= MAX_LINE else short

    return line


def read(comment: str) -> RecordedSettings | None:
    """The settings in a section's comment; None when there is no such line. Raises RecordedSettingsError."""
    line = next((each for each in comment.splitlines() if each.startswith(LEAD + "{")), None)
    if line is None:
        return None
    try:
        return _settings(json.loads(line[len(LEAD) :]))
    except (ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise RecordedSettingsError(f"its settings cannot be read ({type(error).__name__}: {error})") from error


def _settings(content: Mapping[str, Any]) -> RecordedSettings:
    if content["format"] != FORMAT:
        raise ValueError(f"they are of format {content['format']}, this program knows {FORMAT}")
    policy = content["policy"]
    return RecordedSettings(
        network=_network(content["network"]),
        policy=None if policy is None else _policy(policy),
        clock=int(content["clock"]),
        services=frozenset(map(int, content.get("services", ()))),
        faithful=bool(content.get("faithful", True)),
        journal=int(content.get("journal", 0)),
    )


def text(value: PolicySettings | Zone) -> str:
    """A policy or a zone by itself, as `policy` and `zone` read it."""
    return json.dumps(_plain(value), separators=(",", ":"))


def policy(line: str) -> PolicySettings:
    """What `text` made of a policy. Raises ValueError, KeyError, TypeError or re.error."""
    return _policy(json.loads(line))


def zone(line: str) -> Zone:
    """What `text` made of a zone. Raises as `policy` does."""
    return _zone(json.loads(line))


def _plain(value: Any) -> Any:
    """A value of the settings as JSON has it: bytes in hexadecimal, patterns as text, infinity as null."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, re.Pattern):
        return value.pattern
    if isinstance(value, float) and math.isinf(value):
        return None
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, frozenset):
        return sorted(_plain(entry) for entry in value)
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _record(value: Mapping[str, Any]) -> ZoneRecord:
    pattern = value["regexp"]
    compiled = None if pattern is None else re.compile(pattern, re.IGNORECASE)
    return ZoneRecord(value["name"], bytes.fromhex(value["address"]), compiled)


def _zone(value: Mapping[str, Any]) -> Zone:
    default = value["default_ip"]
    records = tuple(_record(each) for each in value["records"])
    return Zone(value["name"], records, None if default is None else bytes.fromhex(default))


def _addresses(value: Mapping[str, str]) -> dict[bytes, bytes]:
    return {bytes.fromhex(key): bytes.fromhex(entry) for key, entry in value.items()}


_LINK_VALUES: Final = frozenset(field.name for field in fields(LinkTraits))
_NETWORK_VALUES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "subnet": bytes.fromhex,
    "gateway_ip": bytes.fromhex,
    "device_ip": bytes.fromhex,
    "host_ip": bytes.fromhex,
    "gateway_mac": bytes.fromhex,
    "link": lambda value: LinkTraits(**{key: entry for key, entry in value.items() if key in _LINK_VALUES}),
    "nat": _addresses,
    "static_leases": _addresses,
    "virtual_ips": lambda value: frozenset(bytes.fromhex(each) for each in value),
    "search_domains": tuple,
    "zones": lambda value: tuple(_zone(each) for each in value),
    "tcp_keepalive": lambda value: math.inf if value is None else float(value),
}


def _network(value: Mapping[str, Any]) -> NetworkSettings:
    known = {field.name for field in fields(NetworkSettings)}
    given = {key: _NETWORK_VALUES.get(key, _same)(entry) for key, entry in value.items() if key in known}
    return replace(NetworkSettings(), **given)


def _policy(value: Mapping[str, Any]) -> PolicySettings:
    known = {field.name for field in fields(PolicySettings)}
    given = {key: entry for key, entry in value.items() if key in known}
    if given.get("rules") is not None:
        given["rules"] = tuple(Rule(**{**rule, "network": bytes.fromhex(rule["network"])}) for rule in given["rules"])
    return PolicySettings(**given)


def _same(value: Any) -> Any:
    return value
