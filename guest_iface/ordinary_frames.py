"""A link on which frames beyond the MTU are dropped, as by a card that knows no segmentation offload.

Links take frames of 64 KiB at any MTU, because guests that leave segmentation to their card send them without a word.
Whoever wants none puts this around the link; the others pay nothing for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from guest_iface.link import BATCH, MIN_FRAME, Link
from guest_iface.wrapped_link import WrappedLink

BEYOND_MTU: Final = "frame beyond the MTU"
_VLAN_TAG: Final = 4
"""Bytes of IEEE 802.1Q's tag, which is no part of the packet."""


class OrdinaryFramesLink(WrappedLink):
    """The guest's frames of at most one packet of the MTU. All else is the link's own."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._largest = MIN_FRAME + link.capabilities.mtu + _VLAN_TAG
        self.capabilities = replace(link.capabilities, largest_frame=self._largest)

    async def receive_batch(self) -> list[bytes]:
        """See Link."""
        while True:
            kept = self._ordinary(await self._link.receive_batch())
            if kept:
                return kept

    def receive_now(self, limit: int = BATCH) -> list[bytes]:
        """See Link."""
        return self._ordinary(self._link.receive_now(limit))

    def _ordinary(self, frames: list[bytes]) -> list[bytes]:
        kept = [frame for frame in frames if len(frame) <= self._largest]
        if len(kept) < len(frames):
            self.counters.drop_received(BEYOND_MTU, len(frames) - len(kept))
        return kept
