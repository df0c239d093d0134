"""Links that take no frames beyond the MTU, where somebody wants none."""

from __future__ import annotations

import socket

import trio

from guest_iface.ordinary_frames import BEYOND_MTU, OrdinaryFramesLink
from guest_iface.unixgram import UnixgramLink
from tests.guest_iface.conftest import DEADLINE, frame_of


async def test_frames_beyond_the_mtu_are_dropped_and_counted() -> None:
    ours, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with guest:
        link = OrdinaryFramesLink(UnixgramLink.from_fd(ours.detach(), mtu=1400))
        assert link.capabilities.largest_frame == 14 + 1400 + 4
        for size in (1419, 60, 1418, 60_000, 1419, 1420, 61):
            guest.send(frame_of(size))
        received: list[bytes] = []
        with trio.fail_after(DEADLINE):
            while len(received) < 3:
                received += await link.receive_batch()
        assert list(map(len, received)) == [60, 1418, 61]
        assert link.counters.drops == {BEYOND_MTU: 4}
        assert link.counters.rx_dropped == 4
        link.send_batch([frame_of(1414)])
        assert guest.recv(2000) == frame_of(1414)
        link.close()
