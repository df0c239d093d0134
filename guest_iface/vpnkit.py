"""hyperkit's link to vpnkit: a handshake of fixed-size messages, then frames with 2-byte little-endian lengths."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio

from guest_iface.framing import LITTLE_ENDIAN_16
from guest_iface.link import LinkClosed, LinkError
from guest_iface.stream import StreamLink, prepare_stream_socket

INIT_BYTES: Final = 49
"""The guest's first message: a magic word, a version, a commit. It is sent back as it came."""
COMMAND_BYTES: Final = 41
"""Its second one: a command, the virtual machine's UUID in ASCII, four bytes of padding."""
REPLY_BYTES: Final = 258
"""Our answer: 1, the MTU, the largest frame (both 16 bits, little-endian), the guest's MAC, zeros."""
DEADLINE: Final = 10.0
"""Seconds a guest has for the handshake."""


class VpnkitLink(StreamLink):
    """Tells the guest its MTU and MAC, then carries frames.

    The first `receive_batch` carries the handshake out, so that a slow guest delays nobody else. Frames sent before its
    end are dropped and counted.
    """

    guest_mac: bytes | None
    """The MAC that the guest was told, 6 bytes; None before the handshake."""

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        *,
        mtu: int = 1500,
        macs: Mapping[str, bytes] | None = None,
        new_mac: Callable[[], bytes] | None = None,
    ) -> None:
        """Take over a connected stream socket. `macs`: virtual machine UUID (any case) -> MAC; a UUID that is not in
        it gets one from `new_mac`, by default a random locally administered one. `mtu` in bytes, 68..65521.
        """
        prepare_stream_socket(sock)
        fd = sock.detach()
        super().__init__(fd, fd, name, framing=LITTLE_ENDIAN_16, mtu=mtu)
        self._macs = {uuid.lower(): mac for uuid, mac in (macs or {}).items()}
        self._new_mac = new_mac or random_mac
        self._attached = False
        self.counters.guests = 0
        self.guest_mac = None

    async def receive_batch(self) -> list[bytes]:
        """See Link. Raises LinkError when the handshake is not carried out within DEADLINE seconds."""
        if self.guest_mac is None and not self._closed:
            with trio.move_on_after(DEADLINE) as deadline:
                await self._handshake()
            if deadline.cancelled_caught:
                raise LinkError(f"{self.name}: no vpnkit handshake within {DEADLINE:g} s")
        return await super().receive_batch()

    async def _handshake(self) -> None:
        await self._write_all(await self._read_exactly(INIT_BYTES))
        command = await self._read_exactly(COMMAND_BYTES)
        uuid = command[1:37].decode("ascii", "replace").lower()
        mac = self._macs.get(uuid) or self._new_mac()
        mtu = self.capabilities.mtu
        reply = b"\x01" + mtu.to_bytes(2, "little") + (mtu + 14).to_bytes(2, "little") + mac
        await self._write_all(reply.ljust(REPLY_BYTES, b"\0"))
        self.guest_mac = mac
        self._attached = True
        self.counters.guests = 1

    async def _read_exactly(self, count: int) -> bytes:
        """Not a byte more than that: what follows is frames."""
        data = b""
        while len(data) < count:
            await self._wait_for(trio.lowlevel.wait_readable)
            try:
                piece = os.read(self._read_fd, count - len(data))
            except BlockingIOError:
                continue
            except OSError as error:
                raise LinkClosed(f"{self.name}: {error.strerror}") from error
            if not piece:
                raise LinkClosed(f"{self.name}: the guest left during the vpnkit handshake")
            data += piece
        return data

    async def _write_all(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            await self._wait_for(trio.lowlevel.wait_writable)
            rest = rest[self._write([rest]) :]
            if self._failure:
                raise LinkClosed(self._failure)

    async def _wait_for(self, ready: Callable[[int], Awaitable[None]]) -> None:
        try:
            await ready(self._read_fd)
        except trio.ClosedResourceError as error:
            raise LinkClosed(f"{self.name}: the link was closed") from error


def random_mac() -> bytes:
    """A random MAC that is locally administered and no multicast address (IEEE 802 section 8.2.2)."""
    first, *rest = secrets.token_bytes(6)
    return bytes([first & 0xFC | 0x02, *rest])
