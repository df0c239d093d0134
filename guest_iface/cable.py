"""The cable between a guest's link and the switch: where captures listen, and where shaping and impairments act.

A capture sees what the guest's own card sends and receives: frames from the guest before anything happens to them,
frames to the guest after everything has. Without a capture, a limit and an impairment the cable costs a call a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

import trio

from guest_iface.link import BATCH, Frame, Link, all_whole
from guest_iface.pcapng import OUTBOUND
from guest_iface.wrapped_link import WrappedLink

if TYPE_CHECKING:
    from guest_iface.cable_way import Way

BEHIND: Final = 1 << 16
"""The backlog of a link whose shaped queue is full enough: more than anybody sends on."""


class Listener(Protocol):
    """Who is told of all frames of a cable: a capture."""

    def add_interface(self, name: str) -> int:
        """Another cable: the number that its frames come with."""

    def hold(self, interface: int, frames: Sequence[bytes]) -> None:
        """Frames from the guest, which are about to be looked at."""

    def release(self) -> None:
        """They have been."""

    def write(self, interface: int, frames: Sequence[bytes], direction: int) -> None:
        """Frames that pass now; `direction` as guest_iface.pcapng has it."""


class Cable(WrappedLink):
    """A link, and what was put on the way to it. All else is the link's own."""

    def __init__(self, link: Link, listeners: Sequence[Listener] = ()) -> None:
        """Wrap `link`, with listeners from its first frame on."""
        super().__init__(link)
        self._listeners: tuple[tuple[Listener, int], ...] = ()
        self._from_guest: Way | None = None
        self._to_guest: Way | None = None
        self._stranded: list[bytes] = []
        """Frames from the guest that waited on a way that is no more."""
        self._reading = trio.CancelScope()
        self._sending = trio.CancelScope()
        self._drained = trio.lowlevel.ParkingLot()
        for listener in listeners:
            self.add_listener(listener)

    # What is put on, and taken off.

    def add_listener(self, listener: Listener) -> None:
        """Tell it of all frames from now on."""
        self._listeners += ((listener, listener.add_interface(self.name)),)

    def remove_listener(self, listener: Listener) -> None:
        """Tell it nothing any more. Does nothing if it was told nothing."""
        self._listeners = tuple(each for each in self._listeners if each[0] is not listener)

    def way(self, *, to_guest: bool) -> Way | None:
        """What is put on in that direction."""
        return self._to_guest if to_guest else self._from_guest

    def put_on(self, from_guest: Way | None, to_guest: Way | None) -> None:
        """Send frames over these ways from now on, None where nothing happens. What waits on the old ones goes at once.

        A way that is there already stays as it is, with what waits on it.
        """
        if self._from_guest is not from_guest:
            if self._from_guest is not None:
                self._stranded += self._from_guest.clear()
            self._from_guest = from_guest
            self._reading.cancel()
        if self._to_guest is not to_guest:
            old, self._to_guest = self._to_guest, to_guest
            if old is not None:
                self._deliver(old.clear())
                self._drained.unpark_all()

    # From the guest.

    async def receive_batch(self) -> list[bytes]:
        """See Link."""
        for listener, _ in self._listeners:
            listener.release()
        if self._from_guest is None and not self._stranded:
            frames = await self._link.receive_batch()
            if not self._take(frames):
                return frames
        return await self._receive_on_the_way()

    def receive_now(self, limit: int = BATCH) -> list[bytes]:
        """See Link."""
        if self._from_guest is not None or self._stranded:
            return []
        for listener, _ in self._listeners:
            listener.release()
        frames = self._link.receive_now(limit)
        if frames:
            self._take(frames)
        return frames

    def _take(self, frames: list[bytes]) -> bool:
        """Have frames captured, and put them on the way; False if there is none any more."""
        for listener, interface in self._listeners:
            listener.hold(interface, frames)
        if self._from_guest is None:
            return False
        self._from_guest.admit(frames, trio.current_time())
        return True

    async def _receive_on_the_way(self) -> list[bytes]:
        """Frames whose time has come. While some are held by a limit, the link is not read: the guest has to wait."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._stranded:
                frames, self._stranded = self._stranded[:BATCH], self._stranded[BATCH:]
                return frames
            way = self._from_guest
            due = inf
            if way is not None:
                frames = way.due(trio.current_time(), BATCH)
                if frames:
                    return frames
                due = way.next_due
            with trio.CancelScope(deadline=due) as self._reading:
                if way is not None and way.is_full:
                    await trio.sleep_forever()
                frames = await self._link.receive_batch()
                if not self._take(frames):
                    return frames
            for listener, _ in self._listeners:
                listener.release()

    # To the guest.

    def send_batch(self, frames: Sequence[Frame]) -> None:
        """See Link."""
        if self._to_guest is None:
            self._deliver(frames)
        else:
            self._to_guest.admit(all_whole(frames), trio.current_time())
            self._pump()

    def _deliver(self, frames: Sequence[Frame]) -> None:
        if not frames:
            return
        if self._listeners:
            seen = all_whole(frames)
            for listener, interface in self._listeners:
                listener.write(interface, seen, OUTBOUND)
            frames = seen
        self._link.send_batch(frames)

    def _pump(self) -> None:
        """Send what is due, and be there when the next is."""
        way = self._to_guest
        if way is not None:
            self._deliver(way.due(trio.current_time()))
            self._sending.deadline = way.next_due
            if not way.is_behind:
                self._drained.unpark_all()

    async def _send_when_due(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._to_guest.next_due if self._to_guest else inf) as self._sending:
                await trio.sleep_forever()
            self._pump()

    # The rest.

    @property
    def backlog(self) -> int:
        """See Link."""
        if self._to_guest is not None and self._to_guest.is_behind:
            return BEHIND
        return self._link.backlog

    async def wait_backlog_drained(self) -> None:
        """See Link."""
        while self._to_guest is not None and self._to_guest.is_behind:
            await self._drained.park()
        await self._link.wait_backlog_drained()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Link. Also sends what has waited."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_when_due)
            await self._link.run(task_status=task_status)
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """See Link. What waits on the way is gone."""
        self._from_guest = self._to_guest = None
        self._stranded.clear()
        self._reading.cancel()
        self._drained.unpark_all()
        self._link.close()
