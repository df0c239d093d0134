"""A link around a link: all is the inner one's, but for what a subclass does otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from guest_iface.link import BATCH, Frame, Link


class WrappedLink(Link):
    """Passes everything on. Shares the inner link's counters."""

    def __init__(self, link: Link) -> None:
        self.name = link.name
        self.capabilities = link.capabilities
        self.counters = link.counters
        self._link = link

    async def receive_batch(self) -> list[bytes]:
        """See Link."""
        return await self._link.receive_batch()

    @property
    def descriptor(self) -> int:
        """See Link."""
        return self._link.descriptor

    @property
    def holds_frames(self) -> bool:
        """See Link."""
        return self._link.holds_frames

    def receive_now(self, limit: int = BATCH) -> list[bytes]:
        """See Link. What a subclass does with frames in `receive_batch`, it has to do here too."""
        return self._link.receive_now(limit)

    def send_batch(self, frames: Sequence[Frame]) -> None:
        """See Link."""
        self._link.send_batch(frames)

    @property
    def backlog(self) -> int:
        """See Link."""
        return self._link.backlog

    async def wait_backlog_drained(self) -> None:
        """See Link."""
        await self._link.wait_backlog_drained()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Link."""
        await self._link.run(task_status=task_status)

    def close(self) -> None:
        """See Link."""
        self._link.close()
