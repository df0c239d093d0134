"""What a gateway keeps for those who look into it: the stories of its flows, and breakpoints at its links."""

from __future__ import annotations

import trio

from guest_iface.breakpoints import Breakpoints
from netstack.engine import snapshot
from netstack.engine.stack import Stack
from netstack.gateway.flow_stories import SAMPLE_SECONDS, FlowStories


class Debugging:
    """One gateway's."""

    def __init__(self) -> None:
        self.stories = FlowStories()
        self.breakpoints = Breakpoints()

    async def run(self, stack: Stack) -> None:
        """Look at the living flows now and then, for ever: what is their time spent on?"""
        before = trio.current_time()
        while True:
            await trio.sleep(SAMPLE_SECONDS)
            now = trio.current_time()
            self.stories.sample(snapshot.flows(stack, now), now - before)
            before = now
