"""`/connect` and `/tunnel`: requests after which a connection carries frames, or the bytes of another connection."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from typing import TYPE_CHECKING, Final

import trio

from guest_iface.framing import BIG_ENDIAN_32, LITTLE_ENDIAN_16
from guest_iface.stream import StreamLink
from netstack.config import ListenLink
from netstack.gateway.api.go_texts import parse_uint
from netstack.gateway.api.request_head import RequestHead
from netstack.gateway.api.streams import RequestStream

if TYPE_CHECKING:
    from netstack.gateway.run_command import Gateway

log = logging.getLogger(__name__)

MAX_GUESTS: Final = 64
"""Links made by `/connect` at once; further ones are refused (503)."""
MAX_TUNNELS: Final = 256
"""Tunnels at once."""
DIAL_TIMEOUT: Final = 10.0
"""Seconds a guest has to answer a tunnel."""
_PIECE: Final = 64 * 1024


class RawPaths:
    """Serves both for one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._guests = 0
        self._came = 0
        self._tunnels = 0

    async def serve(self, requests: RequestStream, head: RequestHead) -> None:
        """Take a connection over, until it ends."""
        if head.path == "/connect":
            await self._connect(requests)
        else:
            await self._tunnel(requests, head)

    # -- /connect -----------------------------------------------------------------------------------------------------

    async def _connect(self, requests: RequestStream) -> None:
        """The connection is a guest's network card. Nothing is said before the first frame, as in gvproxy."""
        if self._guests >= MAX_GUESTS:
            await requests.refuse("503 Service Unavailable", f"{MAX_GUESTS} guests are connected already")
            return
        stream, early = requests.detach()
        # gvproxy has one protocol for all streams: QEMU's where a QEMU is waited for, else vpnkit's.
        qemu = any(isinstance(spec, ListenLink) and spec.protocol == "qemu" for spec in self._gateway.config.links)
        self._came += 1
        link = StreamLink.from_socket(
            socket.socket(fileno=stream.socket.detach()),
            f"/connect guest {self._came}",
            framing=BIG_ENDIAN_32 if qemu else LITTLE_ENDIAN_16,
            mtu=self._gateway.config.network.link.mtu,
            already_read=early,
        )
        self._guests += 1
        try:
            await self._gateway.serve_link(link)
        finally:
            self._guests -= 1

    # -- /tunnel ------------------------------------------------------------------------------------------------------

    async def _tunnel(self, requests: RequestStream, head: RequestHead) -> None:
        """The connection leads to a port inside the network. `OK` is said before it is dialled, as in gvproxy."""
        error = "500 Internal Server Error"
        address = head.query.get("ip", "")
        if not address:
            await requests.refuse(error, "ip is mandatory")
            return
        try:
            port = parse_uint(head.query.get("port", ""), 16)
        except ValueError as problem:
            await requests.refuse(error, str(problem))
            return
        if not _is_ipv4(address):
            await requests.refuse(error, f"ip {address!r} is no IPv4 address")
            return
        if self._tunnels >= MAX_TUNNELS:
            await requests.refuse("503 Service Unavailable", f"{MAX_TUNNELS} tunnels are open already")
            return
        self._tunnels += 1
        try:
            await requests.send_all(b"OK")
            stream, early = requests.detach()
            try:
                inside = await self._gateway.dial_guest(address, port, timeout=DIAL_TIMEOUT)
            except (OSError, ValueError) as problem:
                log.info("/tunnel: cannot dial %s:%d: %s", address, port, problem)
                return
            async with inside:
                await _splice(stream, inside, early)
        finally:
            self._tunnels -= 1


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return bool(re.fullmatch(r"[0-9.]+", text, re.ASCII))


async def _splice(one: trio.SocketStream, other: trio.SocketStream, early: bytes) -> None:
    """Carry bytes both ways until both have ended, or one is broken; the end of one direction is passed on."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_carry, one, other, early, nursery.cancel_scope)
        nursery.start_soon(_carry, other, one, b"", nursery.cancel_scope)


async def _carry(source: trio.SocketStream, sink: trio.SocketStream, first: bytes, both: trio.CancelScope) -> None:
    try:
        data = first or await source.receive_some(_PIECE)
        while data:
            await sink.send_all(data)
            data = await source.receive_some(_PIECE)
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        both.cancel()
