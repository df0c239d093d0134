"""A resolver with faults: an error, another answer, a late one or none, for names that a table says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from netstack.fault_spec import ANSWER, DNS_CODES, TIMEOUT, DnsFault
from netstack.gateway.fault_table import FaultTable
from netstack.gateway.resolver import DEADLINE, AnswersDns, Attend
from netstack.wire import dns

_TTL: Final = 0
"""A fault is not remembered: the next question has a fate of its own."""


class FaultyResolver(AnswersDns):
    """Asks another resolver where there is no fault."""

    def __init__(self, resolver: AnswersDns) -> None:
        self.table = FaultTable(())
        self._resolver = resolver

    def begin(self, message: bytes, done: Callable[[bytes | None], None]) -> bool:
        """See AnswersDns."""
        if self.table.faults and self.table.may_fault(_name(message)):
            return False
        return self._resolver.begin(message, done)

    async def ask(self, message: bytes) -> bytes | None:
        """See AnswersDns."""
        fault = self.table.for_question(_name(message)) if self.table.faults else None
        if fault is None:
            return await self._resolver.ask(message)
        await trio.sleep(fault.delay / 1e9)
        if not fault.outcome:
            return await self._resolver.ask(message)
        if fault.outcome == TIMEOUT:
            await trio.sleep(DEADLINE)
            return None
        return _response(message, fault)

    async def run(self, told: Callable[[], None], attend: Attend) -> None:
        """See AnswersDns."""
        await self._resolver.run(told, attend)


def _name(message: bytes) -> str:
    query = dns.parse_query(message)
    if isinstance(query, str):
        return ""
    return b".".join(dns.labels(query.name)).decode("latin-1").lower()


def _response(message: bytes, fault: DnsFault) -> bytes:
    query = dns.parse_query(message)
    if isinstance(query, str):
        return b""
    question = dns.question_wire(query.name, query.qtype, query.qclass)
    records = dns.NO_RECORDS
    if fault.outcome == ANSWER and query.qtype == dns.A:
        records = dns.collect(
            tuple(dns.record(dns.pointer(dns.HEADER), dns.A, _TTL, address) for address in fault.addresses)
        )
    flags = dns.QR | dns.RA | query.flags & dns.RD | DNS_CODES.get(fault.outcome, dns.NOERROR)
    return dns.response(query.id, flags, question, records)
