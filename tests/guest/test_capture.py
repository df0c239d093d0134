"""What netstack wrote by --capture, judged by tshark: nothing malformed, no bad checksum, no sequence error of ours."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import dpkt
import pytest

from netstack.engine.events import FlowOpened
from netstack.testing import replay_capture

from . import payload
from .expert import bad_checksums, faults, kinds
from .lab import closing_all
from .network import FAR, PUBLIC, TAP, UNREACHABLE, Network, start_bridge
from .test_dhcp import Udhcpc
from .test_tcp import outcome, read_all, reset
from .test_udp import echo

pytestmark = pytest.mark.guest("ip", "openssl", "curl", "tshark", "busybox", "dig", "ping", "traceroute")
SIZE = 5 << 20
ETH_P_ALL = 3


def a_bit_of_everything(network: Network, directory: Path) -> None:
    """Each kind of frame we make, at least once."""
    guest, addresses = network.guest, network.addresses
    client = Udhcpc(network, directory / "lease", "-R")
    client.wait("bound")
    guest.use_resolver(f"nameserver {addresses.dns}\n")
    guest.run("dig", f"@{addresses.dns}", "www.guest.test", "A", "big.guest.test", "TXT", "nothing.guest.test", "A")
    guest.run("ping", "-c2", "-i0.1", "-s4000", addresses.gateway)
    guest.run("ping", "-c2", "-i0.1", "-s1473", PUBLIC)
    guest.run("ping", "-c1", UNREACHABLE, check=False)
    guest.run("traceroute", "-n", "-q1", FAR)
    with echo(network.host, PUBLIC) as at, guest.socket(socket.SOCK_DGRAM) as udp:
        for size in (0, 1, 1472, 1473, 65_507):
            udp.sendto(payload.block(1)[:size], at)
            assert len(udp.recv(1 << 16)) == size
    with guest.socket(socket.SOCK_DGRAM) as udp:
        udp.connect((PUBLIC, 9))
        udp.send(b"refused")
        with pytest.raises(ConnectionRefusedError):
            udp.recv(1)
    for address in (PUBLIC, UNREACHABLE, addresses.gateway):
        assert outcome(guest, address, 9) != "connected"
    with network.host.listen(PUBLIC) as listener:
        for end in ("guest closes", "server closes", "guest resets", "server resets"):
            ours = guest.connect(*listener.getsockname())
            theirs, _ = listener.accept()
            with closing_all(ours, theirs):
                first, second = (ours, theirs) if end.startswith("guest") else (theirs, ours)
                first.sendall(payload.block(1)[:100_000])
                if end.endswith("resets"):
                    assert second.recv(1)
                    reset(first)
                    with pytest.raises(ConnectionResetError):
                        read_all(second)
                else:
                    first.shutdown(socket.SHUT_WR)
                    assert len(read_all(second)) == 100_000


def transfers(network: Network, directory: Path) -> None:
    """SIZE bytes each way, and a download by a slow reader."""
    body = directory / "body"
    body.write_bytes(b"".join(payload.body(SIZE)))
    assert network.curl("-T", str(body), f"http://{PUBLIC}/upload").split()[0] == payload.sha256(SIZE)
    network.curl("-o", str(body), f"http://{PUBLIC}/bytes/{SIZE}")
    assert body.read_bytes() == b"".join(payload.body(SIZE))
    network.curl("-o", "/dev/null", "--limit-rate", "4M", f"http://{PUBLIC}/bytes/{SIZE}")


@pytest.mark.parametrize("link", ["tap", "dgram"])
def test_lossless_capture_is_beyond_reproach(fresh, tmp_path: Path, link: str) -> None:
    """Nothing of ours is wrong, ever; and nothing is sent twice, unless the machine stood still: not three times."""
    for attempt in range(3):
        directory = tmp_path / str(attempt)  # the last attempt's lease would pass for this one's
        directory.mkdir()
        capture = directory / "lossless.pcapng"
        # With offload the TAP's checksums are only partial: test_offload.py looks at such captures.
        network = fresh(link, options=["--capture", str(capture), "--offload", "off"], configure=False)
        a_bit_of_everything(network, directory)
        transfers(network, directory)
        assert network.gateway.stop() == 0
        wanted = {"arp", "dhcp", "dns", "udp", "icmp 0", "icmp 3", "icmp 11", "tcp", "tcp reset"}
        assert kinds(capture, network.addresses.gateway_mac) >= wanted
        assert not faults(capture, network.addresses.gateway_mac, lossless=False)
        assert not bad_checksums(capture, network.addresses.gateway_mac)
        repeated = faults(capture, network.addresses.gateway_mac)
        if not repeated:
            break
    assert not repeated


def test_lossy_capture_has_no_broken_frame(fresh, tmp_path: Path) -> None:
    capture = tmp_path / "lossy.pcapng"
    words = "loss=2,duplicate=1,reorder=5"
    network = fresh("dgram", options=["--capture", str(capture)], bridge=["--to-guest", words, "--from-guest", words])
    transfers(network, tmp_path)
    assert network.gateway.stop() == 0
    assert not faults(capture, network.addresses.gateway_mac, lossless=False)
    assert not bad_checksums(capture, network.addresses.gateway_mac)
    # And it repeats itself: each frame we sent, each retransmission among them, is made again out of the capture alone.
    replayed = replay_capture(capture)
    assert replayed.exact
    assert replayed.summary.sent > SIZE // 1500
    assert replayed.differences == ()


def test_several_guests_are_replayed_too(fresh, tmp_path: Path) -> None:
    """Kernels on three links, to servers and to each other; one leaves and comes back, one on a link that stays."""
    capture, datagrams = tmp_path / "several.pcapng", tmp_path / "dgram.sock"
    options = ["--capture", str(capture), "--listen-vfkit", f"unixgram://{datagrams}"]
    first = fresh("stream", options=options)
    (stream,) = (path for path in first.gateway.files if path.suffix == ".sock" and path != datagrams)
    others = []
    for number, (kind, path) in enumerate((("qemu", stream), ("vfkit", datagrams)), 3):
        guest = first.world.lab.namespace(f"several-{number}")
        bridge = start_bridge(guest, kind, path)
        others.append(Network(first.world, first.link, guest, first.gateway, bridge))
        others[-1].configure(mac=f"02:00:00:00:00:{number:02x}", address=f"192.168.127.{number}")
    try:
        for network in (first, *others):
            network.curl("-o", "/dev/null", f"http://{PUBLIC}/bytes/200000")
        first.guest.run("ping", "-c3", "-i0.1", "192.168.127.3")
        others[1].guest.run("ping", "-c1", "192.168.127.3")
        for network, kind, path in zip(others, ("qemu", "vfkit"), (stream, datagrams), strict=True):
            network.bridge.kill()
            first.curl("-o", "/dev/null", f"http://{PUBLIC}/bytes/20000")
            network.bridge = start_bridge(network.guest, kind, path)
            address = network.guest.run("ip", "-br", "address", "show", "dev", TAP).stdout
            number = 3 + others.index(network)
            assert f"127.{number}" not in address, "a new card"
            network.configure(mac=f"02:00:00:00:00:{number:02x}", address=f"192.168.127.{number}")
            network.curl("-o", "/dev/null", f"http://{PUBLIC}/bytes/20000")
        assert first.gateway.stop() == 0
    finally:
        for network in others:
            network.bridge.kill()
            network.guest.close()
    replayed = replay_capture(capture)
    assert replayed.exact
    assert replayed.differences == ()
    assert replayed.summary.skipped.keys() == {"not for the gateway"}
    assert replayed.summary.skipped["not for the gateway"] >= 8, "pings between guests"
    assert len(replayed.told(FlowOpened)) >= 7


def test_capture_holds_what_the_guest_saw(fresh, tmp_path: Path) -> None:
    """A packet socket in the guest is the witness: the same frames from us, in the same order, to the byte."""
    capture = tmp_path / "ours.pcapng"
    network = fresh("dgram", options=["--capture", str(capture)])
    mac = network.addresses.gateway_mac
    source = bytes.fromhex(mac.replace(":", ""))
    seen = []
    with network.guest.socket(socket.SOCK_RAW, socket.AF_PACKET, socket.htons(ETH_P_ALL)) as witness:
        witness.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        network.curl("-o", "/dev/null", f"http://{PUBLIC}/bytes/100000")
        network.guest.run("ping", "-c1", network.addresses.gateway)
        assert network.gateway.stop() == 0
        witness.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = witness.recv(1 << 16)
                if frame[6:12] == source:
                    seen.append(frame)
    with capture.open("rb") as file:
        written = [frame for _, frame in dpkt.pcapng.Reader(file) if frame[6:12] == source]
    # The witness came late.
    assert len(seen) > 20
    assert written[-len(seen) :] == seen


def test_the_experts_are_awake(fresh, tmp_path: Path) -> None:
    """The judges themselves: a capture with one frame spoilt, one missing and one swapped is not passed."""
    capture, spoilt = tmp_path / "good.pcapng", tmp_path / "bad.pcap"
    network = fresh("dgram", options=["--capture", str(capture)])
    network.curl("-o", "/dev/null", f"http://{PUBLIC}/bytes/100000")
    assert network.gateway.stop() == 0
    mac = network.addresses.gateway_mac
    source = bytes.fromhex(mac.replace(":", ""))
    with capture.open("rb") as file:
        frames = [bytearray(frame) for _, frame in dpkt.pcapng.Reader(file)]
    ours = [number for number, frame in enumerate(frames) if frame[6:12] == source and len(frame) > 1400]
    frames[ours[5]][-1] ^= 1
    frames[ours[9]], frames[ours[10]] = frames[ours[10]], frames[ours[9]]
    del frames[ours[20]]
    with spoilt.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for number, frame in enumerate(frames):
            writer.writepkt(bytes(frame), ts=number / 1000)
    assert len(bad_checksums(spoilt, mac)) == 1
    said = " ".join(finding.message for finding in faults(spoilt, mac))
    assert "Bad checksum" in said
    assert "Previous segment(s) not captured" in said
    assert "retransmission" in said or "Out-Of-Order" in said
