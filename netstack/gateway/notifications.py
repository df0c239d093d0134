"""What a manager of virtual machines wants to know, told to its unix socket as gvproxy tells it: one JSON line for each
connection. Ready, guests that come and leave, links that fail.

Telling waits for nobody: what finds no room in the queue is dropped, and that is logged.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from pathlib import Path
from typing import Final

import trio

log = logging.getLogger(__name__)

QUEUE: Final = 100
"""Messages that wait to be told."""
MAX_GUESTS: Final = 4096
"""Guests whose coming was told and whose leaving will be: as many MACs as the switch knows."""
TELL_SECONDS: Final = 5.0
"""How long one message may take."""
CLOSE_SECONDS: Final = 1.0
"""How long the end of the program waits for what is still queued."""


class Notifications:
    """Tells the listening unix socket `path`. `run` must be running for anything to be told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = 0
        """Messages that found no room."""
        self._queue: deque[bytes] = deque()
        self._woken = trio.Event()
        self._closing = False
        self._guests: dict[bytes, int] = {}

    def ready(self) -> None:
        """Everything is bound: guests can attach."""
        self._tell({"notification_type": "ready"})

    def link_failed(self) -> None:
        """A link could not be opened, or has ended with an error."""
        self._tell({"notification_type": "hypervisor_error"})

    def guest_came(self, port: int, mac: bytes) -> None:
        """A first frame from `mac` came in on a port of the switch. Told once until `guests_left`."""
        if self._guests.get(mac) == port or (mac not in self._guests and len(self._guests) >= MAX_GUESTS):
            return
        self._guests[mac] = port
        self._tell({"notification_type": "connection_established", "mac_address": mac.hex(":")})

    def guests_left(self, port: int) -> None:
        """All guests of a port of the switch have gone."""
        for mac in [mac for mac, place in self._guests.items() if place == port]:
            del self._guests[mac]
            self._tell({"notification_type": "connection_closed", "mac_address": mac.hex(":")})

    def _tell(self, message: dict[str, str]) -> None:
        if len(self._queue) >= QUEUE:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("unable to send notification: %d wait for %s already", QUEUE, self.path)
            return
        self._queue.append(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        self._woken.set()

    async def run(self) -> None:
        """Tell what is queued until cancelled; then what is left, for at most CLOSE_SECONDS."""
        telling = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_all, telling)
            try:
                await trio.sleep_forever()
            finally:
                self._closing = True
                telling.deadline = trio.current_time() + CLOSE_SECONDS
                self._woken.set()

    async def _tell_all(self, scope: trio.CancelScope) -> None:
        with scope:
            while self._queue or not self._closing:
                if not self._queue:
                    await self._woken.wait()
                    self._woken = trio.Event()
                    continue
                await self._send(self._queue.popleft())

    async def _send(self, message: bytes) -> None:
        try:
            with trio.fail_after(TELL_SECONDS):
                async with await trio.open_unix_socket(self.path) as stream:
                    await stream.send_all(message)
        except (OSError, trio.BrokenResourceError) as error:
            log.warning("unable to send notification to %s: %s", self.path, error)
        except trio.TooSlowError:
            log.warning("unable to send notification to %s: not taken within %g s", self.path, TELL_SECONDS)
