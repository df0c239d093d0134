"""Shows what `netstack policy check` found, for people and for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from netstack.engine.verdict import ACTION_WORDS
from netstack.policy_check import Answer


def show(answers: Sequence[Answer], warnings: Sequence[str], *, as_json: bool) -> None:
    """Print the answers to standard output and the warnings to standard error."""
    for warning in warnings:
        print(f"netstack: warning: {warning}", file=sys.stderr)
    if as_json:
        for answer in answers:
            print(json.dumps(_fields(answer)))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for answer in answers:
        word, style = ("allowed", "green") if answer.allowed else ("refused", "red")
        console.print(Text.assemble((f"{word}  ", f"bold {style}"), (answer.question, "bold")))
        for step, verdict in answer.steps:
            because = f"{verdict.reason} {verdict.rule!r}" if verdict.rule else verdict.reason
            console.print(Text(f"         {step}: {ACTION_WORDS[verdict.action]} ({because})"))
        if answer.hint:
            console.print(Text(f"         {answer.hint}", "dim"))


def _fields(answer: Answer) -> dict[str, object]:
    return {
        "question": answer.question,
        "allowed": answer.allowed,
        "steps": [
            {"step": step, "verdict": ACTION_WORDS[verdict.action], "reason": verdict.reason, "rule": verdict.rule}
            for step, verdict in answer.steps
        ],
        "hint": answer.hint,
    }
