"""The stories of a running gateway: what it remembers of its flows, told in the words that a capture is told in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from netstack.debug.cause import Cause, count_text, seconds_text, size_text
from netstack.debug.flow_analysis import FlowReport
from netstack.debug.live_api import LiveApi
from netstack.debug.refusal_words import STEP_WORDS, Words, question, refusal
from netstack.debug.story_steps import Step
from netstack.debug.tcp_causes import SLOW_SECONDS, SLOW_SHARE
from netstack.engine.verdict import ACTION_WORDS, ALLOW, Verdict

_ACTIONS: Final = {word: number for number, word in ACTION_WORDS.items()}
_SOURCES: Final = {"sni": "TLS SNI", "host": "HTTP Host", "quic": "QUIC SNI", "dns": "DNS"}

_ENDS: Final[dict[str, tuple[str, str, str]]] = {
    "refused": (
        "port-refused",
        "the destination refused the connection: nobody listens there",
        "start the server, or correct the port",
    ),
    "timed out": ("no-answer", "the destination did not answer", "the host is down, or a firewall drops the packets"),
    "host unreachable": ("unreachable", "the host cannot be reached", "check route and host"),
    "network unreachable": ("unreachable", "this machine has no route to its network", "check this machine's routes"),
    "prohibited by the host": ("unreachable", "this machine's firewall prohibits it", "check this machine's firewall"),
    "name has no address": ("no-such-name", "the name has no address", "check the name, and --dns-upstream"),
    "host has no resources left": ("no-resources", "this machine has no socket left", "raise the limit of open files"),
    "reset by destination": ("reset-by-server", "the server reset the connection", "look at the server's log"),
    "reset by guest": ("reset-by-client", "the guest reset the connection", "look at the guest's application"),
    "guest silent": ("peer-silent", "the guest fell silent", "look whether the guest lives"),
    "evicted": ("evicted", "it never completed, and had to make room for others", "look for a SYN flood"),
    "guest left": ("guest-left", "the guest left", ""),
}
_SLOW: Final[dict[str, tuple[str, str, str]]] = {
    "receiver window": (
        "slow-receiver",
        "one side had no room: its application reads too slowly",
        "look at the reading application",
    ),
    "loss": ("loss", "losses on the way to the guest were being repaired", "look for a lossy link to the guest"),
    "upstream": ("slow-upstream", "the server had nothing to send while the guest waited", "look at the server"),
    "connecting": ("slow-connect", "the connection was being opened", "look at the way to the server"),
}


def live_reports(api: LiveApi) -> list[FlowReport]:
    """What a gateway tells of its flows and DNS questions, as reports. Raises SourceError."""
    told = api.call("GET", "/v1/stories")
    made = [report_of(each) for each in told["flows"]]
    made += [question_report(each, -number) for number, each in enumerate(told["questions"], 1)]
    return sorted(made, key=lambda report: report.begin)


def report_of(story: Mapping[str, Any]) -> FlowReport:
    """One flow's."""
    verdict = _verdict(story.get("verdict"))
    steps = tuple(_steps(story))
    begin = steps[0].time if steps else 0.0
    spent = {word: seconds for word, seconds in story.get("seconds_by_cause", {}).items() if seconds}
    total = sum(spent.values())
    source = verdict.source if verdict.name else ""
    return FlowReport(
        number=int(story["flow"]),
        kind=str(story["protocol"]),
        client=str(story["guest"]),
        server=str(story["destination"]),
        name=verdict.name,
        name_source=source,
        gateway_flow=int(story["flow"]),
        verdict=_verdict_words(verdict),
        begin=begin,
        end=max((step.time for step in steps), default=begin),
        packets=(0, 0),
        payload_bytes=(int(story.get("sent", 0)), int(story.get("received", 0))),
        cause=_cause(story, verdict, spent, total),
        steps=steps,
        shares={word: seconds / total for word, seconds in spent.items()},
    )


def _verdict(said: Mapping[str, str] | None) -> Verdict:
    if not said:
        return Verdict(ALLOW, "", "")
    return Verdict(
        _ACTIONS[said["action"]], said["step"], said["reason"], said.get("rule", ""), said.get("name", ""),
        said.get("source", ""),
    )  # fmt: skip


def _verdict_words(verdict: Verdict) -> str:
    rule = f" '{verdict.rule}'" if verdict.rule else ""
    return f"{ACTION_WORDS[verdict.action]} at {verdict.step}: {verdict.reason}{rule}" if verdict.step else ""


def _cause(story: Mapping[str, Any], verdict: Verdict, spent: Mapping[str, float], total: float) -> Cause:
    if any(step["what"] == "refused" for step in story["steps"]):
        host, _, port = str(story["destination"]).rpartition(":")
        address = (host or str(story["destination"])).strip("[]")
        words = refusal(verdict, str(story["protocol"]), address, int(port) if host else 0)
        return Cause(f"refused-{verdict.reason}", words.says, words.advice)
    moved = f"{size_text(story.get('sent', 0))} sent, {size_text(story.get('received', 0))} received"
    ended = _ENDS.get(str(story.get("reason", "")))
    if ended is not None:
        word, says, advice = ended
        failed = [step for step in story["steps"] if step["what"] == "dial-failed"]
        tried = f" ({'; '.join(_dial_words(step) for step in failed[-3:])})" if failed else ""
        return Cause(word, f"{says}{tried}; {moved}", advice, fine=word == "guest-left")
    worst = max(_SLOW, key=lambda word: spent.get(word, 0.0))
    if total and spent.get(worst, 0.0) >= max(SLOW_SECONDS, SLOW_SHARE * total):
        word, says, advice = _SLOW[worst]
        return Cause(word, f"{spent[worst] / total:.0%} of the time ({seconds_text(spent[worst])}) {says}", advice)
    end = "" if story["closed"] else ", and it is open"
    return Cause("fine", f"nothing wrong: {moved}{end}" if story["closed"] else f"nothing wrong{end}", fine=True)


def question_report(asked: Mapping[str, Any], number: int) -> FlowReport:
    """A DNS question's. `number` is negative: flows have the others."""
    name, qtype, rcode = str(asked["name"]), str(asked["qtype"]), str(asked["rcode"])
    when, took = float(asked["time"]), float(asked["seconds"])
    action = str(asked.get("verdict", ""))
    reason = str(asked.get("reason_code", ""))
    verdict = Verdict(_ACTIONS.get(action, ALLOW), "dns", reason, str(asked.get("rule", "")), name, "dns")
    if action == "refused":
        words: Words = question(verdict, name, qtype)
        cause = Cause("sinkholed", words.says, words.advice)
    elif rcode == "SERVFAIL":
        cause = Cause("dns-failed", f"{name} {qtype}: no resolver answered", "try --dns-upstream with another resolver")
    elif rcode == "NXDOMAIN":
        cause = Cause("no-such-name", f"{name} {qtype}: the name does not exist", "check the spelling")
    else:
        records = count_text(int(asked["answers"]), "record")
        cause = Cause("fine", f"{name} {qtype}: {records} by {asked['source']}", fine=True)
    said = f"{rcode}, {asked['answers']} answers by {asked['source']}, after {seconds_text(took)}"
    steps = (Step(when - took, f"the guest asked for {name} {qtype}"), Step(when, f"answered {said}"))
    return FlowReport(
        number=number, kind="dns", client=str(asked["guest"]), server="the gateway", name=name, name_source="",
        gateway_flow=0, verdict=_verdict_words(verdict) if action else "", begin=when - took, end=when, packets=(1, 1),
        payload_bytes=(0, 0), cause=cause, steps=steps, shares={},
    )  # fmt: skip


def _steps(story: Mapping[str, Any]) -> Iterator[Step]:
    for step in story["steps"]:
        words = _STEPS.get(str(step["what"]))
        yield Step(float(step["time"]), words(step) if words is not None else str(step["what"]))
    if story.get("steps_left_out"):
        yield Step(float(story["steps"][-1]["time"]), f"{story['steps_left_out']} steps before this one are not kept")


def _dial_words(step: Mapping[str, Any]) -> str:
    return f"{step['address']}: {step['message']}"


def _looked_up(step: Mapping[str, Any]) -> str:
    objections = step["objections"]
    found = [
        f"{each} (not to be dialled: {objections[each]})" if each in objections else each for each in step["addresses"]
    ]
    return f"the gateway looked {step['name']} up: {', '.join(found) or 'no address'}"


def _judged(step: Mapping[str, Any]) -> str:
    verdict = _verdict(step["verdict"])
    where = STEP_WORDS.get(verdict.step, f"at {verdict.step}")
    rule = f", rule '{verdict.rule}'" if verdict.rule else ""
    name = f" for {verdict.name} ({_SOURCES.get(verdict.source, verdict.source)})" if verdict.name else ""
    if "told" in step:
        return f"the policy refused it {where}{name}: {verdict.reason}{rule}; the guest was told: {step['told']}"
    note = f" ({step['note']})" if step.get("note") else ""
    return f"opened to {step['dialled']}: allowed {where}{name}, {verdict.reason}{rule}{note}"


_STEPS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "asked": lambda step: (
        f"the guest asked for {step['name']} {step['qtype']}: {step['rcode']}, {step['answers']} answers "
        f"by {step['source']}, after {seconds_text(float(step['seconds']))}"
    ),
    "looked-up": _looked_up,
    "dialling": lambda step: f"dialling {step['address']}",
    "dial-failed": lambda step: f"dialling failed, {_dial_words(step)} ({step['error']})",
    "connected": lambda step: f"connected to {step['address']}",
    "opened": _judged,
    "refused": _judged,
    "closed": lambda step: (
        f"over: {step['reason']}; {size_text(step['sent'])} sent, {size_text(step['received'])} received"
    ),
}
