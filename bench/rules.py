"""The cost of a list: rows of the table again, with 10, 1,000 and 100,000 rules next to none, each in turn.

Every list has rules of all kinds that do not fit, and two that do. Flows to the services' address are allowed at the
SYN, by an address rule; flows to SITE by the name in their first bytes, which the gateway then dials. New names cannot
be asked for below a wildcard without end (its bound would be measured): DNS has lists of its own, with `@public`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from typing import Final

from bench.lab import Session, ip
from bench.peers import GATEWAY, PEERS, Netstack, Peer
from bench.rows import ROWS, Needs, Row, Sample, rate

SIZES: Final = {"10": 10, "1k": 1_000, "100k": 100_000}
SITE: Final = "93.184.216.34"
"""A public address, as a name on a list needs. It is on the host namespace's loopback."""
NAME: Final = "www.bench.example"
SERVICES: Final = "198.51.100.0/24"
"""The services' network, and the answers of their DNS server."""
CACHED: Final = "again.bench.test"


@dataclass(frozen=True)
class Group:
    """Rows that are measured on peers of their own; the first peer is compared with the others."""

    rows: dict[str, Row]
    peers: tuple[Peer, ...]

    @property
    def names(self) -> list[str]:
        """Of the peers."""
        return [peer.name for peer in self.peers]


def filler(count: int) -> list[str]:
    """Rules of every kind and of many prefix lengths, for names and addresses that nothing here has."""
    kinds = (
        lambda number: f"h{number}.example.org",
        lambda number: f"*.w{number}.example.net",
        lambda number: f"{_address('20.0.0.0', number << 12)}/{20 + number % 13}",
        lambda number: f"p{number}.example.com:{1000 + number % 5000}",
        lambda number: f"tcp/{_address('60.0.0.0', number)}:8443",
    )
    return [kinds[number % len(kinds)](number) for number in range(count)]


def _address(first: str, number: int) -> IPv4Address:
    return IPv4Address(first) + number


def _start(session: Session, fitting: Sequence[str], count: int) -> None:
    """netstack on its datagram socket, with SITE behind it and a list of `count` rules; with none if that is 0."""
    ip(f"address add {SITE}/32 dev lo\n", session.host)
    session.spawn_host(session.tools.path("serve"), SITE, str(session.directory / "site")).expect("ready")
    options = ["--zone", f"bench.example:www={SITE}"]
    if count:
        rules = filler(count - len(fitting)) + list(fitting)
        path = session.directory / "policy.yaml"
        path.write_text("policy:\n  allow_net:\n" + "".join(f'  - "{rule}"\n' for rule in rules))
        options += ["--config", str(path)]
    Netstack().unixgram(session, *options)


def _peers(*fitting: str) -> tuple[Peer, ...]:
    counts = {"no-list": 0} | {f"list-{word}": count for word, count in SIZES.items()}
    return tuple(
        Peer(
            name=name,
            link="unix datagram",
            start=partial(_start, fitting=fitting, count=count),
            version=PEERS["netstack"].version,
            zone_server=GATEWAY,
            forwarding_server=GATEWAY,
        )
        for name, count in counts.items()
    )


def _web(session: Session, _peer: Peer, seconds: float, *, clients: int) -> Sample:
    return rate(session.load("web", seconds, clients, NAME, address=SITE))


def _cached(session: Session, _peer: Peer, seconds: float) -> Sample:
    return rate(session.load("dns", seconds, 1, CACHED, address=GATEWAY))


def again(name: str, row: str) -> Row:
    """A row of the table under another name, for peers that all have what it needs."""
    return replace(ROWS[row], name=name, needs=Needs.NOTHING)


def _named(*rows: Row) -> dict[str, Row]:
    return {row.name: row for row in rows}


_ONE = ROWS["tcp-crr"]
_SIXTEEN = ROWS["tcp-crr-16"]

GROUPS: Final = (
    Group(
        _named(
            again("rules-crr", "tcp-crr"),
            again("rules-crr-16", "tcp-crr-16"),
            replace(_ONE, name="rules-web", title="the same, by name (HTTP)", measure=partial(_web, clients=1)),
            replace(_SIXTEEN, name="rules-web-16", title="by name, 16 clients", measure=partial(_web, clients=16)),
            again("rules-rr", "tcp-rr"),
            again("rules-up", "tcp-up"),
            again("rules-down", "tcp-down"),
            again("rules-udp-new-flow", "udp-new-flow"),
        ),
        _peers(SERVICES, NAME),
    ),
    Group(
        _named(
            again("rules-dns-zone", "dns-zone"),
            replace(
                ROWS["dns-zone"], name="rules-dns-cached", title="DNS, cached", needs=Needs.NOTHING, measure=_cached
            ),
            again("rules-dns-forward", "dns-forward"),
            again("rules-dns-forward-50", "dns-forward-50"),
        ),
        _peers(SERVICES, "@public"),
    ),
)
"""What is measured by itself, after the table of the peers."""
