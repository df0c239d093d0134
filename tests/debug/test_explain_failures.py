"""Issue 6: `explain` on prepared failures names the true cause each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from netstack.debug.flow_analysis import analyse, select

from .failures import PREPARED, Failure


def test_there_are_enough() -> None:
    assert len({each.cause for each in PREPARED}) >= 30
    assert len({each.name for each in PREPARED}) == len(PREPARED)


@pytest.mark.parametrize("failure", PREPARED, ids=lambda failure: failure.name)
def test_the_true_cause_is_named(failure: Failure) -> None:
    analysis = analyse(failure.capture())
    chosen = [analysis.reports[place] for place in select(analysis.reports, failure.flow)]
    assert chosen, [report.title for report in analysis.reports]
    story = chosen[-1]
    assert story.cause.word == failure.cause, (story.cause, story.steps, story.shares)
    assert failure.says in story.cause.says
    assert failure.advice in story.cause.advice
    assert story.cause.fine == (failure.cause == "fine")
    times = [step.time for step in story.steps]
    assert times == sorted(times)
    assert story.steps
    if story.shares:
        assert sum(story.shares.values()) == pytest.approx(1)


def test_the_documentation_has_every_cause() -> None:
    told = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    for failure in PREPARED:
        assert f"| {failure.name.replace('-', ' ')} | `{failure.cause}` |" in told
