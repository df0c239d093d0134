"""`netstack ctl SOCKET watch`: flows, names, verdicts and rates on a terminal, again and again; in a pipe, once."""

from __future__ import annotations

import time
from typing import Final

from rich.console import Group
from rich.live import Live
from rich.text import Text

from netstack.api_models import Counters, Flow
from netstack.client import Client
from netstack.ctl_report import console, flow_table, link_words, question_table, size_words

MAX_FLOWS: Final = 200
MAX_QUESTIONS: Final = 50
_LINES_BESIDE: Final = 8
"""Lines of the screen that are not for flows and questions."""


class _View:
    """One look after the other; rates are what has changed between two."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._before: tuple[float, Counters] | None = None
        self._carried: dict[int, int] = {}

    def look(self, lines: int) -> Group:
        """What there is now, in so many lines."""
        client = self._client
        counters, policy = client.counters(), client.policy()
        now = time.monotonic()
        flows = client.flows(limit=MAX_FLOWS)
        questions = client.questions(limit=MAX_QUESTIONS)
        room = max(2, lines - _LINES_BESIDE)
        for_flows = max(1, room * 2 // 3)
        shown = self._busiest(flows.flows)[:for_flows]
        head = Text(f"{client.where}  {link_words(counters.links)}{self._rates(now, counters)}\n")
        state = "KILL SWITCH ON" if policy.killed else policy.access
        head.append(f"policy {policy.generation}: {state}", style="bold red" if policy.killed else "bold")
        head.append(f"  {flows.open} flows open, {sum(counters.refused.values())} refused so far")
        self._before = (now, counters)
        return Group(
            head,
            Text(""),
            flow_table(shown, f"flows ({len(shown)} of {len(flows.flows)})"),
            Text(""),
            question_table(questions[: max(1, room - for_flows)], "questions"),
        )

    def _busiest(self, flows: list[Flow]) -> list[Flow]:
        """Open flows by what they have carried since the last look, then those that are over."""
        carried = {flow.id: flow.sent + flow.received for flow in flows}
        before, self._carried = self._carried, carried
        return sorted(flows, key=lambda flow: (bool(flow.ended), -(carried[flow.id] - before.get(flow.id, 0))))

    def _rates(self, now: float, counters: Counters) -> str:
        if self._before is None:
            return ""
        then, old = self._before
        seconds = max(now - then, 0.001)
        up = (counters.links.rx_bytes - old.links.rx_bytes) / seconds
        down = (counters.links.tx_bytes - old.links.tx_bytes) / seconds
        return f"; now {size_words(up)}/s up, {size_words(down)}/s down"


def watch_network(client: Client, *, interval: float) -> None:
    """Show it until interrupted. Raises ApiError when the gateway has gone."""
    out = console()
    view = _View(client)
    if not out.is_terminal:
        out.print(view.look(80))
        return
    with Live(view.look(out.height), console=out, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(view.look(out.height), refresh=True)
