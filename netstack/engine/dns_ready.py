"""Answers of local zones, kept whole: a question that came before, byte for byte, is answered without being read.

What a zone says to a datagram follows from the zones and from the question's bytes behind its id, and from nothing
else: no TTL counts down, no policy is asked. That is worth it for names that are asked for over and over.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from netstack.engine.zones import Zones

MAX_ANSWERS: int = 512
"""Answers kept; then all of them go."""
MAX_QUESTION: Final = 512
"""Bytes of a question that is kept, and with MAX_ANSWER what one costs at most. More has options nobody repeats."""
MAX_ANSWER: Final = 1500
_ID: Final = 2


class ReadyAnswer(NamedTuple):
    """A message behind its id, and what is told of it."""

    rest: bytes
    name: str
    qtype: str
    rcode: str
    answers: int


class ReadyAnswers:
    """One server's. Every key is the guest's spelling, header flags and EDNS included."""

    def __init__(self) -> None:
        self._answers: dict[bytes, ReadyAnswer] = {}
        self._zones: Zones | None = None
        self._serial = 0
        """Whose answers they are, and of which state."""

    def __len__(self) -> int:
        """Answers held."""
        return len(self._answers)

    def find(self, question: bytes, zones: Zones) -> ReadyAnswer | None:
        """What these zones, as they are, have answered to this message, whatever its id."""
        if zones is not self._zones or zones.serial != self._serial:
            return None
        return self._answers.get(question[_ID:])

    def keep(self, question: bytes, zones: Zones, answer: bytes, told: tuple[str, str, str, int]) -> None:
        """What these zones answer; `told` is name, type, response code, and how many records."""
        if len(question) > MAX_QUESTION or len(answer) > MAX_ANSWER:
            return
        if zones is not self._zones or zones.serial != self._serial or len(self._answers) >= MAX_ANSWERS:
            self._answers.clear()
            self._zones, self._serial = zones, zones.serial
        self._answers[question[_ID:]] = ReadyAnswer(answer[_ID:], *told)
