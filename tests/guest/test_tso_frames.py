"""Links whose card leaves segmentation and checksums undone and says nothing of it (libkrun: CSUM and HOST_TSO4)."""

from __future__ import annotations

import socket
from pathlib import Path

import dpkt
import pytest

from . import payload
from .network import PUBLIC, Network
from .test_transfers import download, upload
from .test_udp import echo

pytestmark = pytest.mark.guest("ip", "openssl", "curl")
SIZE = 50 << 20
LESS = 20 << 20
MTU_FRAME = 1514
BRIDGE = ("--offload",)


@pytest.fixture
def body_file(tmp_path: Path) -> Path:
    """A body of SIZE bytes to upload."""
    path = tmp_path / "body"
    with path.open("wb") as file:
        file.writelines(payload.body(SIZE))
    return path


def checksum_is_right(packet: dpkt.ip.IP, text: bytes) -> bool:
    """Whether what lies behind an IP header sums up with its pseudo-header."""
    pseudo = packet.src + packet.dst + bytes((0, packet.p)) + len(text).to_bytes(2, "big")
    return dpkt.in_cksum(pseudo + text) == 0


def captured(path: Path) -> tuple[list[bytes], list[bytes]]:
    """The IPv4 packets of a capture by netstack: from the guest, and to it."""
    from_guest, to_guest = [], []
    with path.open("rb") as file:
        for _, frame in dpkt.pcapng.Reader(file):
            if frame[12:14] == b"\x08\x00":
                (to_guest if frame[6:12] == bytes.fromhex("5a94efe40cdd") else from_guest).append(frame[14:])
    return from_guest, to_guest


@pytest.mark.parametrize("link", ["dgram", "stream"])
def test_50_megabytes_both_ways(fresh, body_file: Path, tmp_path: Path, link: str) -> None:
    """At MTU 1500, frames of up to 64 KiB with partial checksums come in, and whole ones of 1,500 bytes go out."""
    capture = tmp_path / "all.pcapng"
    network: Network = fresh(link, bridge=BRIDGE, options=["--capture", str(capture)])
    assert upload(network, body_file, SIZE) == [payload.sha256(SIZE), str(SIZE)]
    assert download(network, LESS) == payload.sha256(LESS)
    with echo(network.host, PUBLIC) as at, network.guest.socket(socket.SOCK_DGRAM) as udp:
        for size in (0, 1, 1472, 1473, 65_507):
            udp.sendto(payload.block(1)[:size], at)
            assert udp.recv(1 << 16) == payload.block(1)[:size]
    network.close()
    from_guest, to_guest = captured(capture)
    assert max(map(len, from_guest)) > 60_000
    assert max(map(len, to_guest)) <= MTU_FRAME - 14
    segments = [packet for packet in map(dpkt.ip.IP, from_guest) if packet.p == dpkt.ip.IP_PROTO_TCP]
    assert not any(checksum_is_right(packet, bytes(packet.data)) for packet in segments[:100])
    for raw in to_guest:
        packet = dpkt.ip.IP(raw)
        assert dpkt.in_cksum(raw[:20]) == 0
        if packet.p == dpkt.ip.IP_PROTO_TCP:
            assert checksum_is_right(packet, raw[20:])


@pytest.mark.parametrize("direction", ["--to-guest", "--from-guest"])
def test_lost_frames_are_repeated(fresh, body_file: Path, direction: str) -> None:
    """One frame in fifty is lost, 64 KiB of it at once or 1,460 bytes."""
    network: Network = fresh("dgram", bridge=[*BRIDGE, direction, "loss=2", "--seed", "3"])
    assert upload(network, body_file, SIZE) == [payload.sha256(SIZE), str(SIZE)]
    assert download(network, LESS) == payload.sha256(LESS)


def test_a_guest_without_full_checksums_is_not_heard_where_they_are_verified(fresh) -> None:
    """Nothing says that they are partial. The warning at the start does, and the events name the reason."""
    network: Network = fresh("dgram", bridge=BRIDGE, options=["--verify-checksums", "on", "--events", "-"])
    assert "--verify-checksums on: a guest on a socket" in network.gateway.process.log
    code = network.guest.run("curl", "-s", "-m", "2", f"http://{PUBLIC}/", check=False).returncode
    assert code == 28, "curl: timeout"
    assert '"reason":"tcp-checksum"' in network.gateway.process.log


def test_frames_beyond_the_mtu_are_dropped_where_nobody_wants_them(fresh, body_file: Path) -> None:
    """Requests and downloads go on; an upload does not, until the guest's card cuts the frames itself."""
    network: Network = fresh("dgram", bridge=BRIDGE, options=["--offload", "off"])
    assert download(network, 1 << 20) == payload.sha256(1 << 20)
    text = ["-s", "-m", "3", "-T", str(body_file), f"http://{PUBLIC}/upload"]
    assert network.guest.run("curl", *text, check=False).returncode == 28, "curl: timeout"
