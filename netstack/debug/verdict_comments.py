"""The verdicts that a capture of ours carries as comments (gateway/capture_comments), read back as values."""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple

_LEAD: Final = "netstack: "
_VERDICT: Final = r"(?P<action>allowed|refused|peek) at (?P<step>[a-z]+): (?P<reason>.+?)(?: '(?P<rule>[^']*)')?"
_FLOW = re.compile(
    rf"flow (?P<flow>\d+) {_VERDICT}(?:, (?P<name>[^ ;]*) by (?P<source>[a-z]+))?; "
    r"(?P<end>dialled|told) (?P<what>[^;]*)"
)
_QUESTION = re.compile(
    rf"question (?P<name>.*?) (?P<qtype>[A-Z0-9-]+)(?: {_VERDICT})?; (?P<who>\w+) says (?P<rcode>\w+), "
    r"(?P<answers>\d+) answers"
)


class FlowVerdict(NamedTuple):
    """What was decided of a flow. `told` is empty when it was allowed, `dialled` when it was refused."""

    flow: int
    action: str
    step: str
    reason: str
    rule: str
    name: str
    source: str
    dialled: str
    told: str

    @property
    def words(self) -> str:
        """One clause: `refused at syn: no-rule`."""
        rule = f" '{self.rule}'" if self.rule else ""
        return f"{self.action} at {self.step}: {self.reason}{rule}"


class QuestionVerdict(NamedTuple):
    """What was decided of a DNS question, and who answered it: zone, cache, upstream, policy, refused."""

    name: str
    qtype: str
    action: str
    step: str
    reason: str
    rule: str
    who: str
    rcode: str
    answers: int


def parse(comment: str) -> list[FlowVerdict | QuestionVerdict]:
    """All verdicts in a frame's comment; what is not ours is left out."""
    found: list[FlowVerdict | QuestionVerdict] = []
    for part in comment.split(_LEAD)[1:]:
        line = part.removesuffix("; ")
        flow = _FLOW.fullmatch(line)
        if flow is not None:
            found.append(_flow(flow))
            continue
        question = _QUESTION.fullmatch(line)
        if question is not None:
            said = question.groupdict(default="")
            found.append(
                QuestionVerdict(
                    _plain(said["name"]), said["qtype"], said["action"], said["step"], said["reason"], said["rule"],
                    said["who"], said["rcode"], int(said["answers"]),
                )
            )  # fmt: skip
    return found


def _flow(match: re.Match[str]) -> FlowVerdict:
    said = match.groupdict(default="")
    dialled = said["what"].strip() if said["end"] == "dialled" else ""
    told = said["what"].strip() if said["end"] == "told" else ""
    return FlowVerdict(
        int(said["flow"]), said["action"], said["step"], _plain(said["reason"]), _plain(said["rule"]),
        _plain(said["name"]), said["source"], dialled, told,
    )  # fmt: skip


def _plain(text: str) -> str:
    """Undo the escapes of a comment; what is no escape stays as it is."""
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text
