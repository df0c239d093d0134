"""A guest behind a TAP: the kernel of this or another network namespace, and what it bridges or routes to.

With offload, frames of up to 64 KiB pass in both directions at any MTU, and nobody sums anything: each has a header
(vnet_header.py) that says what a network card would still have to do. That holds between the guest and one station, the
gateway. What the guest sends to others is finished here, as a card would, because their links may know no such frames.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from typing import Final

from guest_iface import device, vnet_header
from guest_iface.link import LinkCapabilities, LinkError, Pieces, frame_size
from guest_iface.transmit import NO_GUEST, PacketLink

_DEVICE_GONE: Final = frozenset({errno.EBADFD, errno.EFAULT, errno.ENODEV})
DEVICE_DOWN: Final = "device is down"
NOT_ACCEPTED: Final = "not accepted by the device"


MAX_SEGMENT_TEXT: Final = 65_535 - 20 - 60
"""Bytes of text in a TCP segment that fills an IPv4 packet, whatever its options."""
_PLAIN: Final = vnet_header.VnetHeader().encode()
_IP: Final = 14
_TCP: Final = 34
"""Where the IPv4 header and, as it has no options, the TCP header begin."""
_PARTIAL: Final = vnet_header.VnetHeader(
    vnet_header.NEEDS_CSUM, checksum_start=_TCP, checksum_offset=vnet_header.TCP_CHECKSUM
).encode()


class TapLink(PacketLink):
    """Frames through a TAP's descriptor."""

    def __init__(self, fd: int, name: str, *, mtu: int, queue_frames: int, offload_with: bytes | None = None) -> None:
        """Use a non-blocking TAP descriptor. `mtu` in bytes; `queue_frames`: the device's transmit queue.

        `offload_with` is the MAC (6 bytes) that the guest's frames for, and the TCP frames from, are passed on as they
        are, partial checksums and all; the descriptor must then be one with offload. None where it is one without.
        """
        # Bytes pass through memory only, and with offload off the kernel sums them.
        capabilities = LinkCapabilities(
            mtu=mtu,
            queue_frames=queue_frames,
            segment_offload=0 if offload_with is None else MAX_SEGMENT_TEXT,
        )
        super().__init__(f"tap {name}", capabilities, read_fd=fd, write_fd=fd)
        self.device = name
        """The network device's name in its namespace."""
        self._read = functools.partial(os.read, fd)
        self._write = functools.partial(os.write, fd)
        self._write_pieces = functools.partial(os.writev, fd)
        self._peer = offload_with
        self._completes = False
        if offload_with is not None:
            # What each frame of the peer's begins with behind the guest's MAC: its own, and IPv4 without options.
            self._peer_ipv4 = offload_with + b"\x08\x00\x45"
            self._cut = _segment_headers(mtu)
            self._largest_whole = _IP + mtu
            self._write = self._write_with_header
            self._write_pieces = self._write_pieces_with_header
        self.counters.guests = 1

    @classmethod
    def open(
        cls,
        name: str = "",
        *,
        netns: str | int | None = None,
        mtu: int = 1500,
        mac: bytes | None = None,
        offload_with: bytes | None = None,
    ) -> TapLink:
        """Open a TAP, created if there is none of that name, and set it up. An empty name takes a free one.

        `netns` is the name, path or process number of another network namespace. `mtu` in bytes, 68..65521 (what
        Linux lets a TAP have); `mac` is the guest's, 6 bytes; with `offload_with`, the gateway's, frames between the
        two go with offload if the kernel can do that. Raises LinkError with what the kernel refused.
        """
        if netns is not None:
            return _open_in_namespace(name, netns, mtu, mac, offload_with)
        try:
            fd, name, offload = device.open_tap_device(name, offload=offload_with is not None)
        except OSError as error:
            raise tap_error(name, error) from error
        try:
            if mac is not None:
                device.set_mac(name, mac)
            device.set_mtu(name, mtu)
            device.set_up(name)
            queue_frames = device.device_queue(name)
            return cls(fd, name, mtu=mtu, queue_frames=queue_frames, offload_with=offload_with if offload else None)
        except OSError as error:
            os.close(fd)
            raise LinkError(
                f"TAP {name}: cannot set its MAC, its MTU of {mtu} or its state: {error.strerror}"
            ) from error

    def complete_checksums(self) -> None:
        """Complete the partial checksums of the peer's frames from here on: somebody is going to verify them."""
        self._completes = True

    def _checked(self, frames: list[bytes]) -> list[bytes]:
        if self._peer is None:
            return super()._checked(frames)
        peer, header, as_they_are = self._peer, vnet_header.SIZE, not self._completes
        finished: list[bytes] = []
        for read in frames:
            ours = read.startswith(peer, header)
            if ours and as_they_are:
                finished.append(read[header:])
            elif len(read) >= header:
                work = vnet_header.complete if ours else vnet_header.finish
                made = work(vnet_header.decode(read), read[header:])
                if isinstance(made, str):
                    self.counters.drop_received(made)
                else:
                    finished += made
        return super()._checked(finished) if finished else finished

    def _write_with_header(self, frame: bytes) -> int:
        """Write a frame, behind the header that says what is left to do for it; the frame's bytes that were written."""
        return os.writev(self._write_fd, (self._header(frame, len(frame)), frame)) - vnet_header.SIZE

    def _write_pieces_with_header(self, pieces: Pieces) -> int:
        header = self._header(pieces[0], frame_size(pieces))
        return os.writev(self._write_fd, (header, *pieces)) - vnet_header.SIZE

    def _header(self, frame: bytes, size: int) -> bytes:
        """What goes before a frame of that size, of which this is all or the piece with the headers."""
        if len(frame) >= _TCP + 20 and frame.startswith(self._peer_ipv4, 6) and frame[_IP + 9] == vnet_header.TCP:
            return _PARTIAL if size <= self._largest_whole else self._cut[frame[_TCP + 12] >> 4]
        return _PLAIN

    def _read_failed(self, error: OSError) -> None:
        if error.errno in _DEVICE_GONE:
            self._fail("the device is gone")
            self._discard_queue()
        else:
            super()._read_failed(error)

    def _write_failed(self, error: OSError) -> str:
        if error.errno in _DEVICE_GONE:
            self._fail("the device is gone")
            return NO_GUEST
        return DEVICE_DOWN if error.errno == errno.EIO else NOT_ACCEPTED

    def _release(self) -> None:
        if self._peer is not None:
            with contextlib.suppress(OSError):  # the device is gone: there is no next user
                device.end_offload(self._read_fd)
        os.close(self._read_fd)


def _segment_headers(mtu: int) -> list[bytes]:
    """What goes before a TCP frame that is longer than the MTU, by its data offset (RFC 9293 section 3.1)."""
    headers = []
    for offset in range(16):
        length = _TCP + 4 * offset
        size = max(1, _IP + mtu - length)
        cut = vnet_header.VnetHeader(
            vnet_header.NEEDS_CSUM, vnet_header.GSO_TCPV4, length, size, _TCP, vnet_header.TCP_CHECKSUM
        )
        headers.append(cut.encode())
    return headers


def _open_in_namespace(name: str, netns: str | int, mtu: int, mac: bytes | None, offload_with: bytes | None) -> TapLink:
    from guest_iface.namespaces import NamespaceHelper, namespace_path

    helper = NamespaceHelper()
    try:
        helper.request("join", path=namespace_path(netns))
        return helper.open_tap(name, mtu=mtu, mac=mac, offload_with=offload_with)
    except FileNotFoundError as error:
        raise LinkError(f"there is no network namespace {netns} ({namespace_path(netns)})") from error
    except OSError as error:
        raise LinkError(f"network namespace {netns}: {error.strerror}") from error
    finally:
        helper.close()


def tap_error(name: str, error: OSError) -> LinkError:
    """What the kernel said to opening a TAP, and what it means here."""
    hints = {
        errno.ENOENT: f"there is no {device.TUN_DEVICE}: load the tun module, or give the container that device",
        errno.EPERM: "not permitted: making a TAP takes CAP_NET_ADMIN, using one takes being its owner",
        errno.EACCES: f"not permitted to open {device.TUN_DEVICE}",
        errno.EBUSY: "in use by another process",
    }
    return LinkError(f"TAP {name or '(new)'}: {hints.get(error.errno or 0, error.strerror)}")
