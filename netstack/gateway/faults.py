"""Faults of streams and of DNS, put in force and taken out while a gateway runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import trio

from guest_iface.frame_filter import Known
from netstack.fault_spec import DnsFault, StreamFault
from netstack.gateway.fault_table import FaultTable
from netstack.gateway.faulty_dns import FaultyResolver
from netstack.gateway.faulty_streams import FaultyStreams

if TYPE_CHECKING:
    from netstack.gateway.driver import Driver
    from netstack.gateway.resolver import AnswersDns


class Faults:
    """One gateway's."""

    def __init__(self, driver: Driver, known: Known) -> None:
        self._driver = driver
        self._known = known
        self._table = FaultTable(())
        self._streams = FaultyStreams(driver)
        self._installed = False
        self._resolver: FaultyResolver | None = None

    @property
    def in_force(self) -> tuple[StreamFault | DnsFault, ...]:
        """In order."""
        return self._table.faults

    def counts(self) -> list[dict[str, int]]:
        """What each has done so far."""
        return [asdict(each) for each in self._table.counts]

    def use(self, faults: Sequence[StreamFault | DnsFault]) -> None:
        """Put these in force and no others. Raises FilterError, and then the old ones stay."""
        table = FaultTable(faults, self._known)
        of_dns = any(isinstance(fault, DnsFault) for fault in (*faults, *self._table.faults))
        of_streams = any(isinstance(fault, StreamFault) for fault in faults)
        self._table = self._streams.table = table
        if of_dns:
            if self._resolver is None:
                self._driver.go_through(resolver=self._wrap, dialer=None)
            self._driver.stack.dns.cache.clear()  # what was answered before, and what was answered wrongly
        if self._resolver is not None:
            self._resolver.table = table
        if self._installed:
            self._streams.release(trio.current_time())
        if of_streams and not self._installed:
            self._streams.install()
        elif self._installed and not of_streams:
            self._streams.remove()
        self._installed = of_streams

    def _wrap(self, resolver: AnswersDns) -> AnswersDns:
        self._resolver = FaultyResolver(resolver)
        return self._resolver
