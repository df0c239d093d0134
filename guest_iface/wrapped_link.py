"""A link around a link: all is the inner one's, but for what a subclass does otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from guest_iface.link import Link


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

    def send_batch(self, frames: Sequence[bytes]) -> None:
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
