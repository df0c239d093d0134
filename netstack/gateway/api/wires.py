"""`/v1/capture` and `/v1/shaping`: captures begun, ended and read while they go on, and the limits of links."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import trio
from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, Field

from netstack.config import CaptureOptions, ConfigError
from netstack.gateway.captures import CaptureError
from netstack.gateway.wires import Limits
from netstack.wire_options import check_capture

if TYPE_CHECKING:
    from guest_iface.shaping import Limit
    from netstack.gateway.captures import Captures
    from netstack.gateway.run_command import Gateway


class WantedOptions(BaseModel):
    """What of the frames is captured."""

    snaplen: int | None = Field(default=None, description="Bytes kept of each frame.")
    filter: str | None = Field(default=None, description="Which frames: 'host 10.0.0.5 and tcp port 443'.")

    def options(self, rotate_size: int | None = None, rotate_count: int | None = None) -> CaptureOptions:
        """Checked. Raises HTTPException."""
        made = CaptureOptions(
            snaplen=self.snaplen, rotate_size=rotate_size, rotate_count=rotate_count, filter=self.filter
        )
        names = {name: name for name in ("snaplen", "rotate_size", "rotate_count", "filter")}
        try:
            check_capture(made, names)
        except ConfigError as error:
            raise HTTPException(400, str(error)) from error
        return made


class WantedCapture(WantedOptions):
    """A capture into a file of the gateway's host."""

    file: str = Field(description="An absolute path.")
    rotate_size: int | None = Field(default=None, description="Bytes of a file; then the next.")
    rotate_count: int | None = Field(default=None, description="Files kept.")


class RunningCapture(BaseModel):
    """One that is running."""

    id: int
    file: str | None = Field(description="Null: it goes to a reader.")
    filter: str | None
    snaplen: int | None
    frames: int
    lost: int = Field(description="Frames that found no room.")
    failure: str = Field(description="Why it has ended; empty while all is well.")


class LinkLimit(BaseModel):
    """Of one direction."""

    kbps: float = Field(gt=0, description="Kilobits per second of whole frames.")
    burst: int = Field(default=0, description="Bytes that may go at once after a pause; 0: 25 ms of the rate.")


class LinkLimits(BaseModel):
    """As the guest sees them; null: none."""

    tx: LinkLimit | None = Field(default=None, description="What it sends.")
    rx: LinkLimit | None = Field(default=None, description="What it receives.")


def router(gateway: Gateway) -> APIRouter:
    """The paths of one gateway."""
    made = APIRouter(prefix="/v1")
    captures, wires = gateway.captures, gateway.wires

    @made.get("/capture", tags=["captures"])
    async def list_captures() -> list[RunningCapture]:
        """All that are running."""
        return [
            RunningCapture(
                id=each.id,
                file=None if each.path is None else str(each.path),
                filter=each.options.filter,
                snaplen=each.options.snaplen,
                frames=each.frames,
                lost=each.lost,
                failure=each.failure,
            )
            for each in captures.states()
        ]

    @made.post("/capture", status_code=201, tags=["captures"])
    async def start_capture(wanted: WantedCapture) -> dict[str, int]:
        """Begin one; its number."""
        path = Path(wanted.file)
        if not path.is_absolute():
            raise HTTPException(400, f"file {wanted.file!r}: expected an absolute path")
        options = wanted.options(wanted.rotate_size, wanted.rotate_count)
        try:
            return {"id": captures.start(path, options)}
        except CaptureError as error:
            raise HTTPException(409, str(error)) from error

    @made.delete("/capture/{number}", status_code=204, tags=["captures"])
    async def stop_capture(number: int) -> None:
        """End one: the file is complete then."""
        if not captures.stop(number):
            raise HTTPException(404, f"there is no capture {number}")

    @made.get("/capture/stream", tags=["captures"], response_class=Response)
    async def stream(options: Annotated[WantedOptions, Query()]) -> Response:
        """Frames as they pass, as a pcapng file without end: `curl ... | tshark -r -`."""
        return _CaptureResponse(captures, options.options())

    @made.get("/shaping", tags=["limits"])
    async def show_limits() -> dict[str, LinkLimits]:
        """By link; `*` is all others."""
        return {link: _shown(limits) for link, limits in wires.limits.items()}

    @made.put("/shaping", tags=["limits"])
    async def set_limits(wanted: LinkLimits, link: str = "*") -> dict[str, LinkLimits]:
        """Limit a link, by its name or a pattern, from now on. Null lifts a direction's limit."""
        try:
            limits = Limits(tx=_limit(wanted.tx), rx=_limit(wanted.rx))
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        wires.limit(limits, link)
        return await show_limits()

    @made.delete("/shaping", tags=["limits"])
    async def lift_limits(link: str = "*") -> dict[str, LinkLimits]:
        """Lift the limits of a link or a pattern."""
        wires.limit(Limits(), link)
        return await show_limits()

    return made


def _limit(wanted: LinkLimit | None) -> Limit | None:
    from guest_iface.shaping import Limit

    return None if wanted is None else Limit(wanted.kbps, wanted.burst)


def _shown(limits: Limits) -> LinkLimits:
    return LinkLimits(tx=_shown_limit(limits.tx), rx=_shown_limit(limits.rx))


def _shown_limit(limit: Limit | None) -> LinkLimit | None:
    return None if limit is None else LinkLimit(kbps=limit.kbps, burst=limit.burst)


class _CaptureResponse(Response):
    """Sends a capture for as long as the client stays."""

    media_type = "application/x-pcapng"

    def __init__(self, captures: Captures, options: CaptureOptions) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._captures = captures
        self._options = options

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        async with self._captures.stream(self._options) as pieces, trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_client, receive, nursery.cancel_scope)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()

    async def _watch_client(self, receive: Any, everything: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        everything.cancel()
