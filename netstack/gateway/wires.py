"""The cables of all links, and what is put on them: captures, limits, impairments. All of it may change at any time."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from random import Random
from typing import TYPE_CHECKING, Final

import trio

from guest_iface.cable import Cable, Listener
from guest_iface.link import Link
from netstack.config import RunConfig, Shaping
from netstack.gateway.name_table import NameTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_iface.cable_way import Way
    from guest_iface.impair import ImpairmentCounts
    from guest_iface.impair_spec import Impairment
    from guest_iface.shaping import Limit
    from netstack.gateway.driver import Driver
    from netstack.gateway.faults import Faults
    from netstack.impairments import AnyImpairment

_SEEDS: Final = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one link, as its guest sees them; None: none."""

    tx: Limit | None = None
    """What it sends."""
    rx: Limit | None = None
    """What it receives."""


NO_LIMITS: Final = Limits()


def limits_of(shaping: Shaping) -> Limits:
    """Out of a configuration. Raises ValueError for a rate or a burst that cannot be."""
    from guest_iface.shaping import Limit

    tx, rx = (None if rate is None else Limit(rate, shaping.burst or 0) for rate in (shaping.tx_kbps, shaping.rx_kbps))
    return Limits(tx=tx, rx=rx)


@dataclass(slots=True, eq=False)
class _InForce:
    """An impairment of links. The same only as itself: put in force again, its dice are thrown anew."""

    spec: Impairment
    matches: Callable[[bytes], bool] | None
    counts: ImpairmentCounts


class Wires:
    """One gateway's. `lay` and `take_up` are called for each link that comes and goes."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.names = NameTable(driver.stack)
        self.on_touch: Callable[[], None] = lambda: None
        """Called when something is about to be put on that holds, changes or loses frames."""
        self.cables: list[Cable] = []
        self._listeners: list[Listener] = []
        self._limits: dict[str, Limits] = {}
        self._in_force: list[_InForce] = []
        self._faults: Faults | None = None

    def begin(self, config: RunConfig) -> None:
        """Put in force what a configuration asks for. Raises FilterError for a flow number: there are no flows yet."""
        if config.shaping is not None:
            for link, shaping in (("*", config.shaping), *config.shaping.links):
                self.limit(limits_of(shaping), link)
        if config.impair:
            from netstack.impairments import parse_impairments

            self.impair(parse_impairments(config.impair, "impair"))

    def lay(self, link: Link) -> Cable:
        """The cable of a link, with everything that is in force."""
        cable = Cable(link, self._listeners)
        self.cables.append(cable)
        self._put_on(cable)
        return cable

    def take_up(self, cable: Cable) -> None:
        """The link is gone."""
        self.cables.remove(cable)

    # Who listens.

    def listen(self, listener: Listener) -> None:
        """Have all frames of all links, from now on, told to a listener: a capture, say."""
        self._listeners.append(listener)
        for cable in self.cables:
            cable.add_listener(listener)

    def stop_listening(self, listener: Listener) -> None:
        """Tell it nothing any more."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        for cable in self.cables:
            cable.remove_listener(listener)

    def learn_names(self) -> None:
        """Read answers from now on, so that filters may say `name`."""
        if self.names not in self._listeners:
            self.listen(self.names)

    # Limits.

    @property
    def limits(self) -> dict[str, Limits]:
        """By link; `*` is all others."""
        return dict(self._limits)

    def limit(self, limits: Limits, link: str = "*") -> None:
        """Hold links to a rate, or let them go with NO_LIMITS. `link` is a name, or a pattern as in a shell."""
        self._limits.pop(link, None)
        if limits != NO_LIMITS:
            self._limits[link] = limits
            self.on_touch()
        for cable in self.cables:
            self._put_on(cable)

    def _limits_of(self, name: str) -> Limits:
        """The latest that fits, those with a name or pattern of their own before `*`."""
        fitting = [link for link in self._limits if link != "*" and (link == name or fnmatchcase(name, link))]
        return self._limits.get(fitting[-1] if fitting else "*", NO_LIMITS)

    # Impairments.

    @property
    def untouched(self) -> bool:
        """Whether frames pass all cables as they are: no limit and no impairment of links is in force."""
        return not self._limits and not self._in_force

    @property
    def impairments(self) -> tuple[AnyImpairment, ...]:
        """What is in force, in order, with the seeds that were drawn."""
        faults = () if self._faults is None else self._faults.in_force
        return (*(each.spec for each in self._in_force), *faults)

    def counts(self) -> list[dict[str, int]]:
        """What each of `impairments` has done so far, by word."""
        from dataclasses import asdict

        return [asdict(each.counts) for each in self._in_force] + (
            [] if self._faults is None else self._faults.counts()
        )

    def impair(self, impairments: Sequence[AnyImpairment]) -> None:
        """Put these in force and no others: all of them, or with a FilterError none.

        One without a seed is given one. Frames that wait on the old ones go on at once.
        """
        from guest_iface.frame_matching import frame_matcher, uses_names
        from guest_iface.impair import ImpairmentCounts
        from guest_iface.impair_spec import Impairment

        seeded = [
            each if each.seed is not None else replace(each, seed=secrets.randbelow(_SEEDS)) for each in impairments
        ]
        if any(uses_names(getattr(each, "match", None)) for each in seeded):
            self.learn_names()
        in_force = [
            _InForce(each, None if each.match is None else frame_matcher(each.match, self.names), ImpairmentCounts())
            for each in seeded
            if isinstance(each, Impairment)
        ]
        beyond = [each for each in seeded if not isinstance(each, Impairment)]
        if beyond or self._faults is not None:
            from netstack.gateway.faults import Faults

            if self._faults is None:
                self._faults = Faults(self._driver, self.names)
            self._faults.use(beyond)
        self._in_force = in_force
        if in_force:
            self.on_touch()
        for cable in self.cables:
            self._put_on(cable)

    def _put_on(self, cable: Cable) -> None:
        limits = self._limits_of(cable.name)
        ways = [
            self._way(cable, limit, to_guest=to_guest) for to_guest, limit in ((False, limits.tx), (True, limits.rx))
        ]
        cable.put_on(*ways)

    def _way(self, cable: Cable, limit: Limit | None, *, to_guest: bool) -> Way | None:
        """One direction of a cable; the old one if nothing is different on it."""
        direction = "to-guest" if to_guest else "from-guest"
        rules = [
            each
            for each in self._in_force
            if each.spec.direction in (direction, "both")
            and (not each.spec.link or fnmatchcase(cable.name, each.spec.link))
        ]
        if limit is None and not rules:
            return None
        from guest_iface.cable_way import Way
        from guest_iface.impair import Impairer
        from guest_iface.shaping import Shaper

        plan = (limit, *rules)
        old = cable.way(to_guest=to_guest)
        if old is not None and old.plan == plan:
            return old
        shaper = None
        if limit is not None:
            shaper = Shaper(limit, trio.current_time(), bounded=to_guest)
        # A card that takes partial checksums sums nothing, and we sum what comes from a guest if we are told to.
        receiver_sums = (
            not cable.capabilities.segment_offload if to_guest else self._driver.stack.settings.link.verify_checksums
        )
        return Way(
            shaper=shaper,
            rules=[
                (
                    each.matches,
                    Impairer(
                        each.spec,
                        Random(f"{each.spec.seed} {direction}"),  # noqa: S311 - dice that can be thrown again
                        counts=each.counts,
                        receiver_sums=receiver_sums,
                    ),
                )
                for each in rules
            ],
            to_guest=to_guest,
            mtu=cable.capabilities.mtu,
            counters=cable.counters,
            plan=plan,
        )
