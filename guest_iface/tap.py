"""A guest behind a TAP: the kernel of this or another network namespace, and what it bridges or routes to."""

from __future__ import annotations

import errno
import functools
import os
from typing import Final

from guest_iface import device
from guest_iface.link import LinkCapabilities, LinkError
from guest_iface.transmit import NO_GUEST, PacketLink

_DEVICE_GONE: Final = frozenset({errno.EBADFD, errno.EFAULT, errno.ENODEV})
DEVICE_DOWN: Final = "device is down"
NOT_ACCEPTED: Final = "not accepted by the device"


class TapLink(PacketLink):
    """Frames through a TAP's descriptor, without the virtio header."""

    def __init__(self, fd: int, name: str, *, mtu: int, queue_frames: int) -> None:
        """Use a non-blocking TAP descriptor. `mtu` in bytes; `queue_frames`: the device's transmit queue."""
        # Bytes pass through memory only, and with offload off the kernel sums them.
        super().__init__(f"tap {name}", LinkCapabilities(mtu=mtu, queue_frames=queue_frames), read_fd=fd, write_fd=fd)
        self.device = name
        """The network device's name in its namespace."""
        self._read = functools.partial(os.read, fd)
        self._write = functools.partial(os.write, fd)
        self.counters.guests = 1

    @classmethod
    def open(
        cls, name: str = "", *, netns: str | int | None = None, mtu: int = 1500, mac: bytes | None = None
    ) -> TapLink:
        """Open a TAP, created if there is none of that name, and set it up. An empty name takes a free one.

        `netns` is the name, path or process number of another network namespace. `mtu` in bytes, 68..65521 (what
        Linux lets a TAP have); `mac` is the guest's, 6 bytes. Raises LinkError with what the kernel refused.
        """
        if netns is not None:
            return _open_in_namespace(name, netns, mtu, mac)
        try:
            fd, name = device.open_tap_device(name)
        except OSError as error:
            raise tap_error(name, error) from error
        try:
            if mac is not None:
                device.set_mac(name, mac)
            device.set_mtu(name, mtu)
            device.set_up(name)
            return cls(fd, name, mtu=mtu, queue_frames=device.device_queue(name))
        except OSError as error:
            os.close(fd)
            raise LinkError(
                f"TAP {name}: cannot set its MAC, its MTU of {mtu} or its state: {error.strerror}"
            ) from error

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
        os.close(self._read_fd)


def _open_in_namespace(name: str, netns: str | int, mtu: int, mac: bytes | None) -> TapLink:
    from guest_iface.namespaces import NamespaceHelper, namespace_path

    helper = NamespaceHelper()
    try:
        helper.request("join", path=namespace_path(netns))
        return helper.open_tap(name, mtu=mtu, mac=mac)
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
