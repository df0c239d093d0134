"""What Linux offers for unix sockets beyond Python's socket module: a private bind, a disconnect, and whether a peer
still lives.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from guest_iface.link import LinkError

PATH_LIMIT: Final = 107
"""Bytes of a unix socket's path (sun_path holds 108 with the closing zero)."""

# linux/sock_diag.h, linux/unix_diag.h, linux/netlink.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_UDIAG_SHOW_PEER: Final = 4
_UNIX_DIAG_PEER: Final = 2
_NLMSG_HEADER: Final = struct.Struct("=IHHII")
_UNIX_DIAG_REQUEST: Final = struct.Struct("=BBHIIIII")
_UNIX_DIAG_REPLY: Final = struct.Struct("=BBBBIII")
_ATTRIBUTE: Final = struct.Struct("=HH")


class BoundPath:
    """A unix socket file of ours, removed again only while it is still ours."""

    def __init__(self, path: str) -> None:
        self.path = path
        status = Path(path).stat()
        self._identity = (status.st_dev, status.st_ino)

    def remove(self) -> None:
        """Unlink the file unless another process has put its own there."""
        try:
            status = Path(self.path).stat()
            if (status.st_dev, status.st_ino) == self._identity:
                Path(self.path).unlink()
        except OSError:
            # Gone already, or no longer ours to remove: either way nothing of ours is left to do at close.
            return


def bind_unix(path: str, kind: socket.SocketKind) -> tuple[socket.socket, BoundPath]:
    """A non-blocking unix socket bound to `path`, usable by its owner only (mode 0600).

    A socket file that a dead process left behind is removed. Raises LinkError when the path is too long, is something
    else than a socket, is served by a living process, or cannot be bound.
    """
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise LinkError(
            f"{path}: a unix socket's path has at most {PATH_LIMIT} bytes, this one has {len(os.fsencode(path))}"
        )
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.setblocking(False)
        # The file's mode is the socket's own mode less the umask (unix_bind in net/unix/af_unix.c): set before bind,
        # nobody finds it open to others for a moment, and the process-wide umask stays alone.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        return sock, BoundPath(path)
    except OSError as error:
        sock.close()
        raise LinkError(f"{path}: cannot bind a unix socket there: {error.strerror}") from error


def is_taken(path: str | os.PathLike[str]) -> bool:
    """Whether something is at `path` that `bind_unix` would not take the place of."""
    try:
        _state(os.fspath(path))
    except LinkError:
        return True
    return False


_ABSENT: Final = 0
_STALE: Final = 1


def _state(path: str) -> int:
    """Whether there is nothing or what a dead process left. Raises LinkError for all else."""
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return _ABSENT
    except OSError as error:
        raise LinkError(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise LinkError(f"{path}: exists and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        # A datagram connect disturbs nobody: a living stream or seqpacket server shows as EPROTOTYPE without noticing
        # anything.
        answer = probe.connect_ex(path)
    if answer == errno.ENOENT:
        return _ABSENT
    if answer != errno.ECONNREFUSED:
        raise LinkError(f"{path}: already in use by another process")
    return _STALE


def _remove_stale(path: str) -> None:
    if _state(path) == _STALE:
        try:
            Path(path).unlink()
        except OSError as error:
            raise LinkError(f"{path}: left by a dead process, but cannot be removed: {error.strerror}") from error


def disconnect(sock: socket.socket) -> None:
    """Take a datagram socket's peer away, so that anybody may send to it again. What it had queued is lost.

    That is connect(2) with AF_UNSPEC, an address that Python's socket objects cannot express.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), struct.pack("=H", socket.AF_UNSPEC), 2) != 0:
        raise OSError(ctypes.get_errno(), "cannot disconnect the socket")


class PeerProbe:
    """Asks the kernel whether a datagram socket's peer still exists.

    Closing one end of a unix datagram pair tells the other nothing, and a test by sending would reach the guest. The
    socket monitoring interface (sock_diag(7)) names the peer's inode, which is 0 once that socket was closed.
    """

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None
        try:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
            self._netlink.setblocking(False)
        except OSError:
            # Sandboxes forbid netlink: then nothing is known, and a dead peer shows when something is sent to it.
            self.close()

    def peer_alive(self, sock: socket.socket) -> bool | None:
        """Whether the socket's peer lives; None when the kernel will not say."""
        if self._netlink is None:
            return None
        inode = os.fstat(sock.fileno()).st_ino & 0xFFFFFFFF
        request = _UNIX_DIAG_REQUEST.pack(
            socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, _UDIAG_SHOW_PEER, 0xFFFFFFFF, 0xFFFFFFFF
        )
        header = _NLMSG_HEADER.pack(_NLMSG_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
        try:
            self._netlink.send(header + request)
            reply = self._netlink.recv(4096)  # netlink answers within the send, so this never waits
        except OSError:
            return None
        return _peer_in_reply(reply)

    def close(self) -> None:
        """Close the netlink socket. Safe to call twice."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None


def _peer_in_reply(reply: bytes) -> bool | None:
    length, kind, _, _, _ = _NLMSG_HEADER.unpack_from(reply)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None
    offset = _NLMSG_HEADER.size + _UNIX_DIAG_REPLY.size
    while offset + _ATTRIBUTE.size <= length:
        size, attribute = _ATTRIBUTE.unpack_from(reply, offset)
        if attribute == _UNIX_DIAG_PEER:
            return reply[offset + 4 : offset + 8] != bytes(4)
        offset += (size + 3) & ~3
    return False
