"""`/v1/events`: what happens, as it happens, as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Final

import trio
from fastapi import APIRouter, HTTPException, Query
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from netstack.gateway.api.v1 import records_of
from netstack.gateway.api.v1_words import utc
from netstack.gateway.event_log import event_fields
from netstack.gateway.records import MAX_SUBSCRIBERS, Recorded, Records

if TYPE_CHECKING:
    from netstack.gateway.run_command import Gateway

PING_INTERVAL: Final = 15.0
"""Seconds after which a line that says nothing shows that the connection lives."""


def router(gateway: Gateway) -> APIRouter:
    """All of it."""
    made = APIRouter(prefix="/v1", tags=["events"])

    @made.get("/events", response_class=Response)
    async def follow(
        kinds: Annotated[str, Query(description="Kinds of events, with commas between; all if empty.")] = "",
    ) -> Response:
        """Events from now on, each as one message: `event` its kind, `data` the object that `--events` would write.

        A client that does not keep up is told how many it lost (`events_lost`).
        """
        wanted = frozenset(kind.strip() for kind in kinds.split(",") if kind.strip())
        records = records_of(gateway)
        if records.subscribers >= MAX_SUBSCRIBERS:
            raise HTTPException(503, f"{MAX_SUBSCRIBERS} clients are following already")
        return _Following(records, wanted)

    return made


class _Following(Response):
    """Sends events for as long as the client stays. It subscribes when it is sent, and so always ends that too."""

    def __init__(self, records: Records, kinds: frozenset[str]) -> None:
        super().__init__(
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, media_type="text/event-stream"
        )
        del self.headers["content-length"]
        self._records = records
        self._kinds = kinds

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        with self._records.subscribe() as subscription:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_client, receive, nursery.cancel_scope)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._say(send, ": events from here on\n\n")
                while True:
                    with trio.move_on_after(PING_INTERVAL) as waiting:
                        events, lost = await subscription.take()
                    if waiting.cancelled_caught:
                        await self._say(send, ": still here\n\n")
                        continue
                    pieces = [message for each in events if (message := _message(each, self._kinds))]
                    if lost:
                        pieces.append(f'event: events_lost\ndata: {{"event":"events_lost","lost":{lost}}}\n\n')
                    if pieces:
                        await self._say(send, "".join(pieces))

    async def _say(self, send: Send, text: str) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    async def _watch_client(self, receive: Receive, everything: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        everything.cancel()


def _message(recorded: Recorded, wanted: frozenset[str]) -> str:
    fields = event_fields(recorded.event)
    if wanted and fields["event"] not in wanted:
        return ""
    data = json.dumps({"time": utc(recorded.when), **fields}, separators=(",", ":"))
    return f"id: {recorded.number}\nevent: {fields['event']}\ndata: {data}\n\n"
