"""A TAP with offload and one without: the kernel as guest does checksums and cutting, and every byte arrives."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import threading
from pathlib import Path

import dpkt
import pytest

from . import payload
from .impairment import damaged, impair
from .lab import closing_all
from .network import GUEST_MAC, PUBLIC, TAP, Network, start_bridge

pytestmark = pytest.mark.guest("ip", "curl", "ethtool", "openssl")
SIZE = 50 << 20
SMALL = 4 << 20
MTU_FRAME = 1514


def both_ways(network: Network, body: Path, size: int) -> None:
    """Send a body and fetch it."""
    with body.open("wb") as file:
        file.writelines(payload.body(size))
    sent = network.curl("-T", str(body), f"http://{PUBLIC}/upload", timeout=150).split()
    assert sent == [payload.sha256(size), str(size)]
    network.curl("-o", str(body), f"http://{PUBLIC}/bytes/{size}", timeout=150)
    assert hashlib.sha256(body.read_bytes()).hexdigest() == payload.sha256(size)


def features(network: Network) -> dict[str, str]:
    """What ethtool says of the guest's card."""
    lines = network.guest.run("ethtool", "-k", TAP).stdout.splitlines()[1:]
    return {name.strip(): value.split()[0] for name, _, value in (line.partition(": ") for line in lines) if value}


def sizes(capture: Path, mac: str) -> list[int]:
    """The lengths of one sender's TCP frames in a capture."""
    source = bytes.fromhex(mac.replace(":", ""))
    with capture.open("rb") as file:
        frames = [frame for _, frame in dpkt.pcapng.Reader(file)]
    return [len(frame) for frame in frames if frame[6:12] == source and frame[23] == 6]


@pytest.mark.parametrize("offload", ["on", "off"])
def test_50_megabytes_each_way(fresh, tmp_path: Path, offload: str) -> None:
    network = fresh("tap", options=["--offload", offload])
    found = features(network)
    assert (found["tx-checksumming"], found["tcp-segmentation-offload"]) == (offload, offload)
    assert ("offload: frames of 64 KiB" in network.gateway.process.log) == (offload == "on")
    both_ways(network, tmp_path / "body", SIZE)


@pytest.mark.guest("tc")
@pytest.mark.parametrize("kind", ["loss", "duplicate", "reorder"])
def test_large_frames_are_lost_doubled_and_late(fresh, tmp_path: Path, kind: str) -> None:
    """The kernel does it to whole frames, 45 segments at once.

    16 MB are only a few hundred of them, of which it may hit none: then there are more.
    """
    network = fresh("tap", options=["--offload", "on"])
    impair(network.guest, TAP, kind)
    for _ in range(8):
        both_ways(network, tmp_path / "body", SMALL * 4)
        if damaged(network.guest, TAP):
            return
    pytest.fail(f"no frame was hit by {kind} in 128 MB")


@pytest.mark.guest("tshark")
def test_a_capture_shows_the_frames_as_they_passed(fresh, tmp_path: Path) -> None:
    capture = tmp_path / "offload.pcapng"
    network = fresh("tap", options=["--capture", str(capture)])
    both_ways(network, tmp_path / "body", SMALL)
    assert network.gateway.stop() == 0
    for mac in (GUEST_MAC, network.addresses.gateway_mac):
        assert max(sizes(capture, mac)) > 20 * MTU_FRAME
    read = ["tshark", "-n", "-r", str(capture), "-Y", "_ws.malformed || tcp.analysis.lost_segment", "-T", "fields"]
    done = subprocess.run([*read, "-e", "frame.number"], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == ""


def test_a_guest_that_asks_for_smaller_segments_gets_them(fresh, tmp_path: Path) -> None:
    """Its kernel would cut larger frames to the MTU, not to what it asked for."""
    capture = tmp_path / "small.pcapng"
    network = fresh("tap", options=["--capture", str(capture)])
    network.guest.run("ip", "route", "change", "default", "via", network.addresses.gateway, "advmss", "1000")
    both_ways(network, tmp_path / "body", SMALL)
    assert network.gateway.stop() == 0
    assert max(sizes(capture, network.addresses.gateway_mac)) == 14 + 20 + 20 + 1000


def test_a_guest_with_offload_and_one_without_on_one_gateway(fresh, tmp_path: Path) -> None:
    """Each gets frames its link can carry, from the gateway and from the other guest."""
    path = tmp_path / "other.sock"
    capture = tmp_path / "both.pcapng"
    options = ["--listen-vfkit", f"unixgram://{path}", "--capture", str(capture)]
    network = fresh("tap", options=options)
    other = network.world.lab.namespace(f"other-{len(network.world.lab.processes)}")
    start_bridge(other, "vfkit", path)
    other.run("ip", "link", "set", TAP, "address", "02:00:00:00:00:99")
    other.sh(
        f"ip link set {TAP} up; ip address add 192.168.127.9/24 dev {TAP};"
        f"ip route add default via {network.addresses.gateway}"
    )
    both_ways(network, tmp_path / "body", SMALL)
    fetched = other.run("curl", "-sSf", "-o", str(tmp_path / "theirs"), f"http://{PUBLIC}/bytes/{SMALL}", timeout=150)
    assert not fetched.stderr
    assert hashlib.sha256((tmp_path / "theirs").read_bytes()).hexdigest() == payload.sha256(SMALL)
    body = (tmp_path / "theirs").read_bytes()
    for sender, receiver, address in (
        (network.guest, other, "192.168.127.9"),
        (other, network.guest, network.addresses.guest),
    ):
        with receiver.listen(address) as listener:
            ours = sender.connect(*listener.getsockname())
            theirs, _ = listener.accept()
            with closing_all(ours, theirs):
                assert exchange(ours, theirs, body) == body
    assert network.gateway.stop() == 0
    # Nothing that a card without offload could not take went to the other guest.
    with capture.open("rb") as file:
        frames = [frame for _, frame in dpkt.pcapng.Reader(file)]
    theirs_only = [frame for frame in frames if frame[:6] == bytes.fromhex("020000000099")]
    assert len(theirs_only) > 100
    assert max(map(len, theirs_only)) == MTU_FRAME
    assert max(len(frame) for frame in frames if frame[6:12] == bytes.fromhex("5a94efe40cee")) > 20 * MTU_FRAME


def exchange(ours: socket.socket, theirs: socket.socket, body: bytes) -> bytes:
    """Send all of it through one socket, and what came out of the other."""
    sending = threading.Thread(target=lambda: (ours.sendall(body), ours.shutdown(socket.SHUT_WR)))
    sending.start()
    received = bytearray()
    while data := theirs.recv(1 << 16):
        received += data
    sending.join()
    return bytes(received)


def test_checksums_are_verified_where_somebody_wants_that(fresh, tmp_path: Path) -> None:
    """The kernel leaves them partial and says so in the header: then they are completed, and looked at."""
    network = fresh("tap", options=["--offload", "on", "--verify-checksums", "on"])
    assert features(network)["tx-checksumming"] == "on"
    both_ways(network, tmp_path / "body", SMALL)
