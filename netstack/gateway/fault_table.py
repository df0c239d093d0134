"""Which fault is for a flow or a question: the first that fits, if its dice say so. Pure: faults come with seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from guest_iface.frame_fields import IPV4, Fields
from guest_iface.frame_filter import Known
from guest_iface.frame_matching import Matcher, fields_matcher
from guest_iface.impair_chance import chance_dice
from guest_iface.impair_spec import Chance
from netstack.engine.verdict import Question
from netstack.fault_spec import DnsFault, StreamFault
from netstack.gateway.name_table import covers


@dataclass(slots=True)
class FaultCounts:
    """Of one fault."""

    seen: int = 0
    """Flows or questions that it is for."""
    hit: int = 0
    """Those of them that its dice chose."""


class FaultTable:
    """Faults with their seeds, and their dice."""

    def __init__(self, faults: Sequence[StreamFault | DnsFault], known: Known | None = None) -> None:
        """Raises FilterError for a flow number that `known` does not know."""
        self.faults = tuple(faults)
        self.counts = [FaultCounts() for _ in faults]
        self._matchers: list[Matcher | None] = [
            fields_matcher(fault.match, known) if isinstance(fault, StreamFault) and fault.match is not None else None
            for fault in faults
        ]
        self._dice = [chance_dice(Chance(fault.chance), Random(f"{fault.seed}")) for fault in faults]  # noqa: S311

    def for_flow(self, question: Question) -> StreamFault | None:
        """What becomes of a flow that is about to be dialled. Throws the dice of the first fault that fits."""
        (guest, guest_port), (other, other_port) = question.guest, question.destination
        fields = Fields(IPV4, b"", b"", question.protocol, guest, other, guest_port, other_port)
        for number, (fault, matches) in enumerate(zip(self.faults, self._matchers, strict=True)):
            if isinstance(fault, StreamFault) and (matches is None or matches(fields)):
                return fault if self._hits(number) else None
        return None

    def may_fault(self, name: str) -> bool:
        """Whether there is a fault for questions about a name, which is in lower case."""
        return any(isinstance(fault, DnsFault) and covers(fault.name, name) for fault in self.faults)

    def for_question(self, name: str) -> DnsFault | None:
        """What becomes of a question about a name. Throws the dice of the first fault that fits."""
        for number, fault in enumerate(self.faults):
            if isinstance(fault, DnsFault) and covers(fault.name, name):
                return fault if self._hits(number) else None
        return None

    def _hits(self, number: int) -> bool:
        counts = self.counts[number]
        counts.seen += 1
        hit = self._dice[number]()
        counts.hit += hit
        return hit
