"""`/v1/events`: what happens, as it happens, as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Final

import trio
from fastapi import APIRouter, HTTPException, Query
from starlette.responses import StreamingResponse

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

    @made.get("/events", response_class=StreamingResponse)
    async def follow(
        kinds: Annotated[str, Query(description="Kinds of events, with commas between; all if empty.")] = "",
    ) -> StreamingResponse:
        """Events from now on, each as one message: `event` its kind, `data` the object that `--events` would write.

        A client that does not keep up is told how many it lost (`events_lost`).
        """
        wanted = frozenset(kind.strip() for kind in kinds.split(",") if kind.strip())
        records = records_of(gateway)
        if records.subscribers >= MAX_SUBSCRIBERS:
            raise HTTPException(503, f"{MAX_SUBSCRIBERS} clients are following already")
        return StreamingResponse(
            _messages(records, wanted),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return made


async def _messages(records: Records, wanted: frozenset[str]) -> AsyncIterator[str]:
    with records.subscribe() as subscription:
        yield ": events from here on\n\n"
        while True:
            with trio.move_on_after(PING_INTERVAL) as waiting:
                events, lost = await subscription.take()
            if waiting.cancelled_caught:
                yield ": still here\n\n"
                continue
            pieces = [message for each in events if (message := _message(each, wanted))]
            if lost:
                pieces.append(f'event: events_lost\ndata: {{"event":"events_lost","lost":{lost}}}\n\n')
            if pieces:
                yield "".join(pieces)


def _message(recorded: Recorded, wanted: frozenset[str]) -> str:
    fields = event_fields(recorded.event)
    if wanted and fields["event"] not in wanted:
        return ""
    data = json.dumps({"time": utc(recorded.when), **fields}, separators=(",", ":"))
    return f"id: {recorded.number}\nevent: {fields['event']}\ndata: {data}\n\n"
