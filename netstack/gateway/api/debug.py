"""`/v1/` for those who look closely: stories of flows, frames put in by hand, breakpoints that hold frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final, Literal

import trio
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from guest_iface.breakpoints import FROM_GUEST, TO_GUEST, Breakpoint, TooManyError
from guest_iface.frame_filter import FilterError, parse_filter
from guest_iface.frame_matching import frame_matcher, uses_names
from guest_iface.link import MAX_FRAME, MIN_FRAME
from netstack.wire import ethernet, ipv4

if TYPE_CHECKING:
    from netstack.gateway.debugging import Debugging
    from netstack.gateway.run_command import Gateway

MAX_FRAMES: Final = 64
"""Frames of one injection, and answers that are collected."""
MAX_WAIT: Final = 10.0
"""Seconds that answers are waited for."""


class Injection(BaseModel):
    """Frames to be put on a link."""

    side: Literal["guest", "host"] = "guest"
    """guest: as if the guest had sent them; host: they are sent to the guest."""
    link: str = ""
    """The link's name; may be left out where there is one."""
    frames: Annotated[list[str], Field(max_length=MAX_FRAMES)] = []
    """Ethernet frames, hexadecimal."""
    packets: Annotated[list[str], Field(max_length=MAX_FRAMES)] = []
    """IPv4 packets, hexadecimal: in frames between the gateway and the guest that has the address."""
    wait: Annotated[float, Field(ge=0, le=MAX_WAIT)] = 0.5
    """Seconds to collect what comes back: frames of the other direction on that link."""


class SeenFrame(BaseModel):
    """A frame, hexadecimal, and which way it went."""

    direction: str
    link: str
    frame: str
    seconds: float = 0.0
    """Since the injection, or since 1970 where it is held."""


class NewBreakpoint(BaseModel):
    """What is to be held."""

    filter: str
    """tcpdump's words: `tcp and port 443 and host 10.0.0.5`, `flow 17`."""


class BreakpointState(BaseModel):
    """A breakpoint and what it holds, the oldest frame first."""

    id: int
    filter: str
    hits: int
    dropped: int
    held: list[SeenFrame]


class Count(BaseModel):
    """How many frames."""

    frames: int


class Frames(BaseModel):
    """Which frames: the oldest so many, all without a number."""

    frames: Annotated[int, Field(ge=1)] | None = None


def _debugging(gateway: Gateway) -> Debugging:
    if gateway.debugging is None:
        raise HTTPException(503, "this gateway keeps no stories and has no breakpoints")
    return gateway.debugging


def router(gateway: Gateway) -> APIRouter:
    """All of it."""
    made = APIRouter(prefix="/v1", tags=["debugging"])
    _add_stories(made, gateway)
    _add_injection(made, gateway)
    _add_breakpoints(made, gateway)
    return made


def _add_stories(made: APIRouter, gateway: Gateway) -> None:
    @made.get("/stories")
    async def list_stories() -> dict[str, list[dict[str, object]]]:
        """What happened to the flows that are remembered, and the DNS questions: both in the order of their news."""
        stories = _debugging(gateway).stories
        return {"flows": stories.flows(), "questions": stories.questions()}

    @made.get("/stories/{flow}")
    async def show_story(flow: int) -> dict[str, object]:
        """One flow's story, by the number its events have."""
        found = _debugging(gateway).stories.flow(flow)
        if found is None:
            raise HTTPException(404, f"flow {flow}: nothing is remembered of it")
        return found


def _add_injection(made: APIRouter, gateway: Gateway) -> None:
    @made.post("/inject")
    async def inject(wanted: Injection) -> list[SeenFrame]:
        """Put frames on a link, and give back what came the other way meanwhile. At most 64 of them."""
        port, name = _port(gateway, wanted.link)
        frames = [_frame(_bytes(text)) for text in wanted.frames]
        frames += [_frame(_framed(gateway, _bytes(text), wanted.side)) for text in wanted.packets]
        breakpoints = _debugging(gateway).breakpoints
        answers: list[SeenFrame] = []
        answered = TO_GUEST if wanted.side == "guest" else FROM_GUEST
        begin = trio.current_time()

        def watch(link: str, direction: str, frame: bytes) -> None:
            if link == name and direction == answered and len(answers) < MAX_FRAMES:
                since = trio.current_time() - begin
                answers.append(SeenFrame(direction=direction, link=link, frame=frame.hex(), seconds=round(since, 6)))

        breakpoints.watch(watch)
        try:
            if wanted.side == "guest":
                gateway.driver.take_frames(port, frames)
            else:
                gateway.driver.put_frames(port, frames)
            await trio.sleep(wanted.wait)
        finally:
            breakpoints.unwatch(watch)
        return answers


def _port(gateway: Gateway, name: str) -> tuple[int, str]:
    """The switch's port of a link. Raises HTTPException."""
    links = gateway.driver.links
    fitting = [(port, link.name) for port, link in links.items() if not name or link.name == name]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(sorted(link.name for link in links.values())) or "none"
    raise HTTPException(
        404 if not fitting else 409, f"link {name!r}: expected the name of one link; there are: {known}"
    )


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise HTTPException(422, f"frame {text[:40]!r}: expected hexadecimal digits") from None


def _framed(gateway: Gateway, packet: bytes, side: str) -> bytes:
    """A packet in a frame: from the guest with its source address, or to the one with its destination."""
    if len(packet) < ipv4.HEADER or packet[0] >> 4 != 4:
        raise HTTPException(422, f"packet {packet.hex()[:40]!r}: expected IPv4")
    own = gateway.driver.stack.settings.gateway_mac
    address = packet[12:16] if side == "guest" else packet[16:20]
    mac = gateway.driver.stack.neighbours.entries().get(address)
    if mac is None:
        raise HTTPException(409, f"no guest has been heard of at {ipv4.format_address(address)}: give whole frames")
    ends = (own, mac) if side == "guest" else (mac, own)
    return ethernet.frame(*ends, ethernet.IPV4, packet)


def _frame(frame: bytes) -> bytes:
    """The frame, if it is one."""
    if not MIN_FRAME <= len(frame) <= MAX_FRAME:
        raise HTTPException(422, f"a frame of {len(frame)} bytes: expected {MIN_FRAME} to {MAX_FRAME}")
    return frame


def _add_breakpoints(made: APIRouter, gateway: Gateway) -> None:
    def find(number: int) -> Breakpoint:
        found = _debugging(gateway).breakpoints.get(number)
        if found is None:
            raise HTTPException(404, f"breakpoint {number}: there is none")
        return found

    @made.get("/breakpoints")
    async def list_breakpoints() -> list[BreakpointState]:
        """All breakpoints, the oldest first."""
        return [_state(each) for each in _debugging(gateway).breakpoints.all()]

    @made.post("/breakpoints", status_code=201)
    async def add_breakpoint(wanted: NewBreakpoint) -> BreakpointState:
        """Hold frames from now on, of both directions. What a breakpoint cannot hold any more is dropped."""
        try:
            matches = _matcher(gateway, wanted.filter)
            return _state(_debugging(gateway).breakpoints.add(wanted.filter, matches))
        except FilterError as error:
            raise HTTPException(422, str(error)) from None
        except TooManyError as error:
            raise HTTPException(409, str(error)) from None

    @made.get("/breakpoints/{number}")
    async def show_breakpoint(number: int) -> BreakpointState:
        """One breakpoint, and the frames it holds."""
        return _state(find(number))

    @made.post("/breakpoints/{number}/step")
    async def step(number: int, wanted: Frames) -> Count:
        """Let the oldest frames go on, one if it is not said how many."""
        return Count(frames=find(number).step(wanted.frames or 1))

    @made.post("/breakpoints/{number}/drop")
    async def drop(number: int, wanted: Frames) -> Count:
        """Drop the oldest frames, all if it is not said how many."""
        return Count(frames=find(number).drop(wanted.frames))

    @made.delete("/breakpoints/{number}")
    async def release(number: int) -> Count:
        """Take the breakpoint away, and let go what it holds."""
        find(number)
        return Count(frames=_debugging(gateway).breakpoints.remove(number))


def _state(found: Breakpoint) -> BreakpointState:
    held = [
        SeenFrame(direction=each.direction, link=each.link.name, frame=each.frame.hex(), seconds=each.time)
        for each in found.held
    ]
    return BreakpointState(id=found.number, filter=found.text, hits=found.hits, dropped=found.dropped, held=held)


def _matcher(gateway: Gateway, text: str) -> Callable[[bytes], bool]:
    """What a filter means here and now. Raises FilterError."""
    term = parse_filter(text)
    if uses_names(term):
        gateway.wires.learn_names()
    return frame_matcher(term, gateway.wires.names)
