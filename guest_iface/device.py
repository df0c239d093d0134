"""Network devices by ioctl: open a TAP, set MAC, MTU, address and route, up and down. Acts in the caller's network
namespace.

Imports nothing but the standard library, because namespace_helper.py starts in a bare interpreter. Errors are OSError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Final

TUN_DEVICE: Final = "/dev/net/tun"
NAME_LIMIT: Final = 15
"""Bytes of a device's name (IFNAMSIZ less the closing zero)."""

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNGETFEATURES: Final = 0x800454CF
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_TUN_F_CSUM: Final = 0x01
_TUN_F_TSO4: Final = 0x02

VNET_HEADER: Final = 10
"""Bytes of the virtio_net_hdr before each frame of a TAP with offload (linux/virtio_net.h)."""

# linux/sockios.h, linux/if.h, linux/route.h
_SIOCADDRT: Final = 0x890B
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFBRDADDR: Final = 0x891A
_SIOCSIFNETMASK: Final = 0x891C
_SIOCGIFMTU: Final = 0x8921
_SIOCSIFMTU: Final = 0x8922
_SIOCSIFHWADDR: Final = 0x8924
_SIOCGIFHWADDR: Final = 0x8927
_SIOCGIFTXQLEN: Final = 0x8942
_IFF_UP: Final = 1
_RTF_UP: Final = 1
_RTF_GATEWAY: Final = 2
_ARPHRD_ETHER: Final = 1
_REQUEST_BYTES: Final = 40
_ROUTE_ENTRY: Final = struct.Struct("L16s16s16sHhLPhPLLH")
"""struct rtentry, in the machine's own layout."""


def open_tap_device(name: str, *, offload: bool = False) -> tuple[int, str, bool]:
    """Open a TAP, created if there is none of that name: a non-blocking descriptor, its name, whether it offloads.

    An empty name takes a free one, and `vm%d` the first free number. With `offload`, and where the kernel has it, each
    frame has a virtio_net_hdr of VNET_HEADER bytes before it, checksums may be partial, and TCP frames of IPv4 up to
    64 KiB long. Else frames carry no extra header.
    """
    if offload:
        opened = _open_offloading(name)
        if opened is not None:
            return *opened, True
    fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        name = _attach(fd, name, 0)
        # A device that outlives its users keeps what the last of them had asked for.
        fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
    except OSError:
        os.close(fd)
        raise
    return fd, name, False


def _open_offloading(name: str) -> tuple[int, str] | None:
    """The same with offload; None where this kernel has none."""
    fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not tap_offload_known(fd):
            os.close(fd)
            return None
        name = _attach(fd, name, _IFF_VNET_HDR)
    except OSError:
        os.close(fd)
        raise
    try:
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    except OSError:
        os.close(fd)
        return None
    return fd, name


def _attach(fd: int, name: str, flags: int) -> str:
    answer = fcntl.ioctl(fd, _TUNSETIFF, _request(name, struct.pack("H", _IFF_TAP | _IFF_NO_PI | flags)))
    return answer[:16].rstrip(b"\0").decode()


def tap_offload_known(fd: int) -> bool:
    """Whether TAPs of TUN_DEVICE, which is open as `fd`, can have the header that offload needs (TUNGETFEATURES)."""
    try:
        features: int = struct.unpack("I", fcntl.ioctl(fd, _TUNGETFEATURES, bytes(4)))[0]
    except OSError:
        return False  # a kernel too old to say
    return bool(features & _IFF_VNET_HDR)


def end_offload(fd: int) -> None:
    """Leave a TAP to its next user without offload."""
    fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)


def device_mtu(name: str) -> int:
    """A device's MTU, bytes."""
    return _get_int(name, _SIOCGIFMTU)


def device_queue(name: str) -> int:
    """How many frames a device's transmit queue holds; for a TAP that is how many wait for us."""
    return _get_int(name, _SIOCGIFTXQLEN)


def device_mac(name: str) -> bytes:
    """A device's MAC, 6 bytes."""
    return _ioctl(_SIOCGIFHWADDR, _request(name))[18:24]


def device_up(name: str) -> bool:
    """Whether a device is set up."""
    return bool(_flags(name) & _IFF_UP)


def set_mtu(name: str, mtu: int) -> None:
    """Set a device's MTU, bytes. Does nothing if it is that already, so that it needs no privilege then."""
    if device_mtu(name) != mtu:
        _ioctl(_SIOCSIFMTU, _request(name, struct.pack("i", mtu)))


def set_mac(name: str, mac: bytes) -> None:
    """Set a device's MAC, 6 bytes."""
    _ioctl(_SIOCSIFHWADDR, _request(name, struct.pack("H6s", _ARPHRD_ETHER, mac)))


def set_up(name: str, *, up: bool = True) -> None:
    """Set a device up or down. Does nothing if it is that already."""
    flags = _flags(name)
    if bool(flags & _IFF_UP) != up:
        _ioctl(_SIOCSIFFLAGS, _request(name, struct.pack("H", flags ^ _IFF_UP)))


def configure_device(name: str, address: bytes, prefix_length: int, gateway: bytes | None) -> None:
    """Give a device its IPv4 address (4 bytes) and subnet, set it up, and send everything else through `gateway`, if
    any.
    """
    mask = (0xFFFFFFFF << (32 - prefix_length)) & 0xFFFFFFFF
    broadcast = int.from_bytes(address, "big") | ~mask & 0xFFFFFFFF
    _ioctl(_SIOCSIFADDR, _request(name, _socket_address(address)))
    _ioctl(_SIOCSIFNETMASK, _request(name, _socket_address(mask.to_bytes(4, "big"))))
    _ioctl(_SIOCSIFBRDADDR, _request(name, _socket_address(broadcast.to_bytes(4, "big"))))
    set_up(name)
    if gateway is not None:
        anywhere = _socket_address(bytes(4))
        entry = _ROUTE_ENTRY.pack(
            0, anywhere, _socket_address(gateway), anywhere, _RTF_UP | _RTF_GATEWAY, 0, 0, 0, 0, 0, 0, 0, 0
        )
        _ioctl(_SIOCADDRT, entry)


def _socket_address(address: bytes) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, address)


def _request(name: str, value: bytes = b"") -> bytes:
    """struct ifreq: a name and a union."""
    encoded = name.encode()
    if len(encoded) > NAME_LIMIT or "/" in name:
        raise OSError(errno.EINVAL, f"a device's name has at most {NAME_LIMIT} bytes and no slash: {name!r}")
    return struct.pack("16s", encoded) + value.ljust(_REQUEST_BYTES - 16, b"\0")


def _flags(name: str) -> int:
    flags: int = struct.unpack_from("H", _ioctl(_SIOCGIFFLAGS, _request(name)), 16)[0]
    return flags


def _get_int(name: str, number: int) -> int:
    value: int = struct.unpack_from("i", _ioctl(number, _request(name)), 16)[0]
    return value


def _ioctl(number: int, request: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, number, request)
