"""A guest's network card as a process: a TAP on one side, netstack's socket on the other, as a VM's device model does.

    python tap_bridge.py TAP vfkit PATH          unix datagram socket: bind a path of our own, connect, say VFKT
    python tap_bridge.py TAP qemu PATH           unix stream socket: 4-byte big-endian length before each frame

Options `--to-guest WORDS` and `--from-guest WORDS` damage one direction, repeatably (`--seed N`): comma-separated
`loss=PERCENT`, `duplicate=PERCENT`, `reorder=PERCENT` (held back 5 ms, so that later frames overtake). With `--offload`
the card takes segmentation and checksums off the guest and says so to nobody, as libkrun does with CSUM and HOST_TSO4:
frames up to 64 KiB with partial checksums, without the virtio header that tells of them. Prints `ready`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUNSETOFFLOAD = 0x400454D0
TUN_F_CSUM = 1
TUN_F_TSO4 = 2
VNET_HEADER = 10
"""Bytes of struct virtio_net_hdr; all zero, it says that a frame is complete."""
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
BATCH = 64
MAX_FRAME = 65_562
SOCKET_BUFFER = 7 << 20
HELD_SECONDS = 0.005


def open_tap(name: str, *, offload: bool = False) -> int:
    """Make the TAP in this network namespace; its file descriptor, non-blocking."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if offload else 0)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    if offload:
        fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return fd


class Damage:
    """Decides each frame's fate: gone, once, twice, or late."""

    def __init__(self, words: str, seed: int) -> None:
        chances = {"loss": 0.0, "duplicate": 0.0, "reorder": 0.0}
        for word in filter(None, words.split(",")):
            name, _, percent = word.partition("=")
            chances[name] = float(percent) / 100
        self.loss, self.duplicate, self.reorder = chances["loss"], chances["duplicate"], chances["reorder"]
        self.none = not any(chances.values())
        self._dice = random.Random(seed)
        self._held: list[tuple[float, int, bytes]] = []
        self._count = 0

    def pass_on(self, frame: bytes) -> list[bytes]:
        """The frames to send now in place of this one."""
        roll = self._dice.random
        if roll() < self.loss:
            return []
        if roll() < self.reorder:
            self._count += 1
            heapq.heappush(self._held, (time.monotonic() + HELD_SECONDS, self._count, frame))
            return []
        return [frame, frame] if roll() < self.duplicate else [frame]

    def due(self) -> list[bytes]:
        """Held frames whose time has come."""
        now, out = time.monotonic(), []
        while self._held and self._held[0][0] <= now:
            out.append(heapq.heappop(self._held)[2])
        return out

    def wait(self) -> float | None:
        """Seconds until `due` has something, None for ever."""
        return max(0.0, self._held[0][0] - time.monotonic()) if self._held else None


class Datagrams:
    """The vfkit way."""

    def __init__(self, path: str) -> None:
        self._own = f"{path}.{os.getpid()}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for option, forced in ((socket.SO_SNDBUF, SO_SNDBUFFORCE), (socket.SO_RCVBUF, SO_RCVBUFFORCE)):
            self.socket.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
            with contextlib.suppress(PermissionError):  # without privileges: as much as net.core.wmem_max allows
                self.socket.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
        self.socket.bind(self._own)
        self.socket.connect(path)
        self.socket.send(b"VFKT")
        self.socket.setblocking(False)

    def receive(self) -> list[bytes]:
        """What is there, a frame a datagram."""
        out = []
        with contextlib.suppress(BlockingIOError):
            while len(out) < BATCH:
                out.append(self.socket.recv(MAX_FRAME))
        return out

    def send(self, frame: bytes) -> None:
        """Send, waiting for room as QEMU does: a full socket slows the card down."""
        while True:
            try:
                self.socket.send(frame)
            except BlockingIOError:
                select.select([], [self.socket], [])
            else:
                return

    def close(self) -> None:
        """Take our own path away."""
        Path(self._own).unlink(missing_ok=True)


class Stream:
    """The QEMU way."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self._buffer = bytearray()

    def receive(self) -> list[bytes]:
        """The whole frames in what is there. Raises ConnectionError at the end."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "netstack closed the link")
        buffer, out, at = self._buffer, [], 0
        buffer += data
        while len(buffer) - at >= 4:
            end = at + 4 + int.from_bytes(buffer[at : at + 4], "big")
            if end > len(buffer):
                break
            out.append(bytes(buffer[at + 4 : end]))
            at = end
        del buffer[:at]
        return out

    def send(self, frame: bytes) -> None:
        """Send, waiting for room."""
        self.socket.sendall(struct.pack("!I", len(frame)) + frame)

    def close(self) -> None:
        """Nothing was left in the file system."""


def pump(tap: int, header: int, link: Datagrams | Stream, to_guest: Damage, from_guest: Damage) -> None:
    """Carry frames both ways until the link fails. On the TAP each has a header of so many bytes, which goes no further
    and says nothing to the guest.
    """
    nothing = bytes(header)

    def write_tap(frame: bytes) -> None:
        with contextlib.suppress(OSError):  # an interface that is down, or a runt: a real card drops these too
            os.write(tap, nothing + frame)

    def carry(frames: list[bytes], damage: Damage, send: Callable[[bytes], None]) -> None:
        if damage.none:
            for frame in frames:
                send(frame)
            return
        for frame in frames:
            for one in damage.pass_on(frame):
                send(one)
        for one in damage.due():
            send(one)

    poll = select.poll()
    poll.register(tap, select.POLLIN)
    poll.register(link.socket, select.POLLIN)
    while True:
        waits = [wait for wait in (to_guest.wait(), from_guest.wait()) if wait is not None]
        ready = {fd for fd, _ in poll.poll(min(waits) * 1000 + 1 if waits else None)}
        from_tap: list[bytes] = []
        if tap in ready:
            with contextlib.suppress(BlockingIOError):
                while len(from_tap) < BATCH:
                    from_tap.append(os.read(tap, header + MAX_FRAME)[header:])
        carry(from_tap, from_guest, link.send)
        carry(link.receive() if link.socket.fileno() in ready else [], to_guest, write_tap)


def main() -> None:
    """Run until killed, or until netstack goes."""
    parser = argparse.ArgumentParser(description="A TAP on one side, netstack's socket on the other.")
    parser.add_argument("tap")
    parser.add_argument("kind", choices=("vfkit", "qemu"))
    parser.add_argument("path")
    parser.add_argument("--to-guest", default="")
    parser.add_argument("--from-guest", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--offload", action="store_true")
    options = parser.parse_args()
    tap = open_tap(options.tap, offload=options.offload)
    header = VNET_HEADER if options.offload else 0
    link = Datagrams(options.path) if options.kind == "vfkit" else Stream(options.path)
    print("ready", flush=True)
    try:
        to_guest, from_guest = Damage(options.to_guest, options.seed), Damage(options.from_guest, options.seed + 1)
        pump(tap, header, link, to_guest, from_guest)
    except ConnectionError as error:
        print(f"link gone: {error}", flush=True)
    finally:
        link.close()


if __name__ == "__main__":
    main()
