"""The vpnkit handshake, and the frames behind it."""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from guest_iface import vpnkit
from guest_iface.link import LinkClosed, LinkError
from guest_iface.listener import SocketListener
from guest_iface.vpnkit import VpnkitLink, random_mac
from tests.guest_iface.conftest import frame_of, read_exactly, receive_frames, running, until, vpn

UUID = "C3D68012-0208-11EA-9FD7-F2189899AB08"
INIT = b"VMN3T" + struct.pack("<I", 22) + b"c" * 40


@contextlib.asynccontextmanager
async def vpnkit_guest(directory: Path, mtu: int = 1500) -> AsyncIterator[tuple[VpnkitLink, trio.SocketStream]]:
    macs = {UUID: bytes.fromhex("5a94efe40cee")}
    listener = SocketListener.bind_unix(directory / "net", functools.partial(VpnkitLink, mtu=mtu, macs=macs))
    guest = await trio.open_unix_socket(directory / "net")
    link = await listener.accept()
    assert isinstance(link, VpnkitLink)
    async with running(link), guest:
        yield link, guest
    listener.close()


async def shake_hands(guest: trio.SocketStream, uuid: str) -> bytes:
    await guest.send_all(INIT)
    assert await read_exactly(guest, 49) == INIT
    await guest.send_all(b"\x01" + uuid.encode() + bytes(4))
    return await read_exactly(guest, 258)


async def test_vpnkit_handshake_and_frames(directory: Path) -> None:
    async with vpnkit_guest(directory, mtu=4000) as (link, guest), trio.open_nursery() as nursery:
        received: list[bytes] = []

        @nursery.start_soon
        async def receiver() -> None:
            received.extend(await receive_frames(link, 2))

        reply = await shake_hands(guest, UUID.lower())
        assert reply == bytes.fromhex("01 a00f ae0f 5a94efe40cee") + bytes(258 - 11)
        await guest.send_all(vpn(frame_of(60, 1), frame_of(60, 2)))
        await until(lambda: len(received) == 2)
        assert received == [frame_of(60, 1), frame_of(60, 2)]
        assert link.guest_mac == bytes.fromhex("5a94efe40cee")
        link.send_batch([frame_of(60, 3)])
        assert await read_exactly(guest, 62) == vpn(frame_of(60, 3))


async def test_vpnkit_everything_in_one_write_one_byte_at_a_time(directory: Path) -> None:
    """Frames glued to the handshake are not lost, wherever the cuts fall."""
    async with vpnkit_guest(directory) as (link, guest), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def drip() -> None:
            for byte in INIT + b"\x01" + b"u" * 36 + bytes(4) + vpn(frame_of(60)):
                await guest.send_all(bytes([byte]))

        assert await receive_frames(link, 1) == [frame_of(60)]
        assert link.guest_mac is not None
        assert link.guest_mac[0] & 3 == 2


async def test_vpnkit_sends_no_frame_before_the_handshake_is_over(directory: Path) -> None:
    async with vpnkit_guest(directory) as (link, guest), trio.open_nursery() as nursery:
        nursery.start_soon(link.receive_batch)
        link.send_batch([frame_of(60)])
        await guest.send_all(INIT)
        assert await read_exactly(guest, 49) == INIT
        link.send_batch([frame_of(60)])
        assert link.counters.drops == {"no guest attached": 2}
        nursery.cancel_scope.cancel()


async def test_vpnkit_guest_that_leaves_in_the_handshake(directory: Path) -> None:
    async with vpnkit_guest(directory) as (link, guest):
        await guest.send_all(INIT[:20])
        await guest.aclose()
        with pytest.raises(LinkClosed, match="left during the vpnkit handshake"):
            await link.receive_batch()


async def test_vpnkit_handshake_has_a_deadline(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vpnkit, "DEADLINE", 0.01)
    async with vpnkit_guest(directory) as (link, guest):
        await guest.send_all(INIT)
        with pytest.raises(LinkError, match=r"no vpnkit handshake within 0\.01 s"):
            await link.receive_batch()


def test_random_macs_are_unicast_and_local() -> None:
    assert {random_mac()[0] & 3 for _ in range(50)} == {2}
