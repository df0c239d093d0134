"""Which of many descriptors are ready: epoll itself on Linux, whatever the standard library finds elsewhere.

`selectors` keeps an object for each descriptor and costs 3 us a call more; with seven calls a connection that shows.
"""

from __future__ import annotations

import select
import selectors
import sys
from typing import Final

READ: Final = 1
WRITE: Final = 4
"""The bits of EPOLLIN and EPOLLOUT. An error or a hang-up shows as both: the next call on the socket tells."""


class PortablePoller:
    """The same with `selectors`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def fileno(self) -> int:
        """Readable while any descriptor is ready."""
        return self._selector.fileno()

    def register(self, descriptor: int, mask: int) -> None:
        """Watch a descriptor. Raises OSError when the kernel has no place for it."""
        self._selector.register(descriptor, _events(mask))

    def modify(self, descriptor: int, mask: int) -> None:
        """Watch for something else. Raises OSError."""
        self._selector.modify(descriptor, _events(mask))

    def unregister(self, descriptor: int) -> None:
        """Watch it no more. To be called before it is closed."""
        self._selector.unregister(descriptor)

    def poll(self) -> list[tuple[int, int]]:
        """(descriptor, READ | WRITE) of those that are ready now."""
        return [
            (key.fd, (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0))
            for key, events in self._selector.select(0)
        ]

    def close(self) -> None:
        """Let go of all of them."""
        self._selector.close()


def _events(mask: int) -> int:
    return (selectors.EVENT_READ if mask & READ else 0) | (selectors.EVENT_WRITE if mask & WRITE else 0)


if sys.platform == "linux":

    class Poller:
        """Ready descriptors by epoll(7), level-triggered."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self.fileno = self._epoll.fileno
            self.register = self._epoll.register
            self.modify = self._epoll.modify
            self.unregister = self._epoll.unregister
            self.close = self._epoll.close

        def poll(self) -> list[tuple[int, int]]:
            """(descriptor, READ | WRITE) of those that are ready now."""
            return [
                (descriptor, READ | WRITE if events & ~(READ | WRITE) else events)
                for descriptor, events in self._epoll.poll(0, 256)
            ]

else:
    Poller = PortablePoller
