"""Conformance K6, K10 and K11 where descriptors and links are real: what is left of flows, streams and frames that lie.

The other rows of class K are in test_k_past_cves.py.
"""

from __future__ import annotations

import gc
import os
import socket
import struct
from pathlib import Path

import pytest
import trio
from engine.wire_guest import BROADCAST_MAC, GATEWAY, GUEST, GUEST_MAC, ping, udp
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from guest_iface.vnet_header import BAD_HEADER, GSO_TCPV4, NEEDS_CSUM, VnetHeader, finish
from netstack.config import FdLink, ListenLink, RunConfig, UnixEndpoint, network_settings
from netstack.engine.events import FlowClosed
from netstack.gateway.attachments import open_attachments
from netstack.gateway.run_command import Gateway

from . import live

# -- K6: descriptors --------------------------------------------------------------------------------------------------


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - links that are gone while they are looked at are not asked


async def test_k6_no_descriptor_is_left_of_many_flows() -> None:
    """Connections that end in every way, dials that fail, datagrams, pings: as many descriptors as before."""
    with live.listener() as (server, port), socket.create_server(("127.0.0.1", 0)) as gone:
        closed_port = gone.getsockname()[1]
        gone.close()
        async with live.running() as gateway:
            guest = await gateway.attach()
            host = "192.168.127.254"
            await guest.send(ARP(op="who-has", hwsrc=GUEST_MAC, psrc=GUEST, pdst=GATEWAY), to=BROADCAST_MAC)
            gc.collect()  # what other tests have left
            before = open_descriptors()
            for number in range(50):
                await guest.syn(host, port if number % 2 else closed_port, 20_000 + number)
            await gateway.wait_for(FlowClosed, 25)
            await gateway.settle_until(lambda: live.accepted(server) or len(gateway.driver.sockets) == 0)
            for number in range(50):
                await guest.send(udp(host, closed_port, b"x", 30_000 + number))
            await guest.send(ping(host))
            assert open_descriptors() > before
            for number in range(1, 50, 2):
                await guest.send(
                    IP(src=GUEST, dst=host) / TCP(sport=20_000 + number, dport=port, flags="R", seq=2, ack=0)
                )
            gateway.driver.stack.guest_left(bytes.fromhex(GUEST_MAC.replace(":", "")), trio.current_time())
            gateway.driver.flush()
            await gateway.settle_until(lambda: len(gateway.driver.sockets) == 0)
            live.accepted(server)
            assert open_descriptors() == before


# -- K10: framing ----------------------------------------------------------------------------------------------------

_ARP = bytes(Ether(src=GUEST_MAC, dst=BROADCAST_MAC) / ARP(op="who-has", hwsrc=GUEST_MAC, psrc=GUEST, pdst=GATEWAY))
LIES = {
    "length 0": struct.pack(">I", 0),
    "length 13": struct.pack(">I", 13) + bytes(13),
    "length 65,551": struct.pack(">I", 65_551) + bytes(65_551),
    "length 2^32-1": struct.pack(">I", 2**32 - 1),
    "end inside a length": b"\0\0",
    "end inside a frame": struct.pack(">I", 60) + bytes(59),
}


async def answer_of(stream: trio.SocketStream) -> bytes:
    """The next frame from a stream link."""
    data = b""
    with trio.fail_after(live.LIMIT):
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            more = await stream.receive_some(65_536)
            assert more, "the link was closed"
            data += more
    return data[4:]


@pytest.mark.parametrize("what", LIES)
async def test_k10_f15_streams_that_lie(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """The link ends with a word about why; another guest is served all the while, and the next one after it."""
    path = tmp_path / "net.sock"
    config = RunConfig(
        network=network_settings(), links=(ListenLink("qemu", UnixEndpoint(str(path))),), dns_upstreams=("127.0.0.1:9",)
    )
    gateway = Gateway(config, open_attachments(config.links, 1500))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        async with await trio.open_unix_socket(str(path)) as honest, await trio.open_unix_socket(str(path)) as liar:
            await honest.send_all(struct.pack(">I", len(_ARP)) + _ARP)
            assert Ether(await answer_of(honest))[ARP].psrc == GATEWAY
            await liar.send_all(LIES[what])
            await liar.send_eof()
            with trio.fail_after(live.LIMIT):
                while await liar.receive_some(65_536):
                    pass  # what was broadcast meanwhile
            for byte in struct.pack(">I", len(_ARP)) + _ARP:
                await honest.send_all(bytes([byte]))
            assert Ether(await answer_of(honest))[ARP].psrc == GATEWAY
        nursery.start_soon(_stop, gateway)
    assert any("bytes" in record.getMessage() or "inside" in record.getMessage() for record in caplog.records)


async def _stop(gateway: Gateway) -> None:
    gateway.stop()


async def test_k10_datagrams_that_are_no_frames() -> None:
    """Of 0, 1, 5 and 13 bytes, and one beyond the largest: counted, and the link goes on (gvproxy hangs or dies)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    config = RunConfig(network=network_settings(), links=(FdLink(ours.detach()),), dns_upstreams=("127.0.0.1:9",))
    attachments = open_attachments(config.links, 1500)
    gateway = Gateway(config, attachments)
    with theirs:
        theirs.setblocking(False)
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run)
            for size in (0, 1, 5, 13, 65_563):
                theirs.send(bytes(size))
            theirs.send(_ARP)
            with trio.fail_after(live.LIMIT):
                await trio.lowlevel.wait_readable(theirs)
            assert Ether(theirs.recv(65_536))[ARP].psrc == GATEWAY
            assert attachments.links[0].counters.drops == {"frame too short": 4, "frame too long": 1}
            gateway.stop()


# -- K11: segmentation headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"segment_size": 0},
        {"segment_size": 1},
        {"header_length": 0xFFFF},
        {"header_length": 0},
        {"checksum_start": 0xFFFF},
        {"checksum_start": 0},
        {"checksum_offset": 0xFFFF},
        {"gso_type": 0x7F},
        {"gso_type": 4},
        {"flags": 0},
    ],
    ids=str,
)
def test_k11_segmentation_headers_that_lie(lie: dict[str, int]) -> None:
    """Refused, or cut as if they had said the truth: the lengths believed are those of the packet itself."""
    whole = bytes(
        Ether(src=GUEST_MAC, dst="02:00:00:00:00:99")
        / IP(src=GUEST, dst="192.168.127.9")
        / TCP(sport=1, dport=2)
        / Raw(bytes(range(250)) * 12)
    )
    header = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1460, 34, 16)
    honest = finish(header, whole)
    assert isinstance(honest, list)
    assert len(honest) == 3
    made = finish(header._replace(**lie), whole)
    assert made in (BAD_HEADER, honest)
    assert (made == BAD_HEADER) == (lie.keys().isdisjoint({"header_length", "checksum_offset"}))
