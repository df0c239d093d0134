"""What a policy would say to the flows of a capture: the judgement of `netstack policy check`, flow by flow.

Nothing is replayed: rules and names decide. `netstack replay --allow-net` puts the packets through the stack itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from netstack.config import network_settings
from netstack.debug.cause import Cause
from netstack.debug.flow_analysis import FlowReport
from netstack.debug.refusal_words import refusal, verdict_words
from netstack.debug.story_steps import Step
from netstack.engine.settings import NetworkSettings
from netstack.engine.verdict import Verdict
from netstack.network_spec import NetworkSpec
from netstack.policy_check import Answer, QuestionError, check


def judged(reports: Sequence[FlowReport], spec: NetworkSpec) -> list[FlowReport]:
    """The reports with what the policy would say: those it would refuse have that as their cause."""
    network = network_settings()
    return [_judged(report, spec, network) for report in reports]


def _judged(report: FlowReport, spec: NetworkSpec, network: NetworkSettings) -> FlowReport:
    answers = [answer for asked in _questions(report) if (answer := _asked(spec, asked, network)) is not None]
    if not answers:
        return report
    # Whatever lets it through counts: its address, or its name.
    answer = next((each for each in answers if each.allowed), answers[-1])
    said = "; ".join(f"{at}: {verdict_words(verdict)}" for at, verdict in answer.steps)
    steps = sorted((*report.steps, Step(report.begin, f"under this policy: {said}")), key=lambda step: step.time)
    last = answer.steps[-1][1]
    cause = report.cause
    if not answer.allowed:
        cause = _cause(report, answer, last)
    elif cause.word == "sinkholed" or cause.word.startswith("refused-"):
        cause = Cause("would-allow", "refused then, this policy would allow it", fine=True)
    return replace(report, steps=tuple(steps), verdict=f"would be {verdict_words(last)}", cause=cause)


def _cause(report: FlowReport, answer: Answer, verdict: Verdict) -> Cause:
    host, _, port = report.server.rpartition(":")
    words = refusal(verdict, report.kind, host.strip("[]") or report.server, int(port) if host else 0)
    says = words.says.replace("the policy refused it", "this policy would refuse it", 1)
    return Cause(f"would-refuse-{verdict.reason}", says, answer.hint or words.advice)


def _questions(report: FlowReport) -> list[str]:
    """How `policy check` would be asked about a flow, by its address and by its name."""
    if report.kind == "dns":
        return [f"dns://{report.name}"] if report.name else []
    if report.kind == "icmp":
        return [f"icmp://{report.server}"]
    if report.kind not in ("tcp", "udp"):
        return []
    found = [f"{report.kind}://{report.server}"]
    if report.name:
        port = report.server.rpartition(":")[2]
        found.append(f"{report.kind}://{report.name}:{port}")
    return found


def _asked(spec: NetworkSpec, question: str, network: NetworkSettings) -> Answer | None:
    try:
        return check(spec, question, network)
    except QuestionError:
        return None  # what a guest called a name may be none
