"""A guest on a unix datagram socket: vfkit and krunkit/libkrun, QEMU's `-netdev dgram`, or an inherited socket pair.

One datagram is one frame. We bind a path and wait; whoever sends the first datagram is the guest, and we connect back
to it. Connecting matters: the kernel lets 11 datagrams wait on a socket that is not connected to their sender, and as
many as the sender's buffer holds on one that is. It also shuts everybody else out, so the death of the guest has to
be noticed, or the restarted VM could not get in (its connect fails with EPERM): by its process ending, by asking the
kernel four times a second while the link is silent, and by a send that fails.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
from typing import Final, Self

import trio

from guest_iface.batch_calls import BatchCalls, available
from guest_iface.link import BATCH, MAX_FRAME, MIN_FRAME, LinkCapabilities, LinkError
from guest_iface.transmit import NO_GUEST, PacketLink
from guest_iface.unix_socket import BoundPath, PeerProbe, bind_unix, disconnect

HANDSHAKE: Final = b"VFKT"
"""What vfkit and libkrun may send first. Four bytes are no frame, so it is swallowed whenever it comes."""
BUFFER_BYTES: Final = 7 << 20
"""What libkrun asks for on its side; SO_SNDBUF is what counts, the kernel charges a unix datagram to its sender."""
PROBE_INTERVAL: Final = 0.25
"""Seconds between two looks at whether a silent guest still lives."""

_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_SCM_CREDENTIALS: Final = 2
_CREDENTIALS: Final = struct.Struct("=iII")
_LEFTOVER_FRAMES: Final = 4096

UNNAMED_SENDER: Final = "sender has no address"
SECOND_SENDER: Final = "second sender"
UNREACHABLE_SENDER: Final = "sender cannot be connected to"
NOT_ACCEPTED: Final = "not accepted by the guest's socket"


class UnixgramLink(PacketLink):
    """A datagram link that outlives its guests: when one has gone, the next sender of a first datagram is taken over.

    Only a link made of an already connected descriptor ends with its guest.
    """

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        *,
        mtu: int = 1500,
        bound: BoundPath | None = None,
        batch_calls: bool = True,
    ) -> None:
        """Use a non-blocking unix datagram socket, connected or not. `mtu` in bytes, 68..65535. Without `batch_calls`
        each frame has a system call of its own, as where the platform has no others.
        """
        self._sock = sock
        self._bound = bound
        self.buffers, guest_buffer = _enlarge_buffers(sock)
        self._batch_calls = BatchCalls(sock.fileno()) if batch_calls and available() else None
        capabilities = LinkCapabilities(
            mtu=mtu,
            # The kernel looks whether there is room at all before it takes a datagram, not whether it is enough.
            queue_frames=guest_buffer // _charge(MIN_FRAME + mtu) + 1,
            batch_calls=self._batch_calls is not None,
        )
        super().__init__(name, capabilities, read_fd=sock.fileno(), write_fd=sock.fileno())
        self._read = sock.recv
        self._write = sock.send
        self._write_pieces = sock.sendmsg
        self._probe = PeerProbe()
        self._peer: str | bytes | None = None
        self._pidfd = -1
        self._settled = False
        self._leftover: list[bytes] = []
        self._frames_at_last_look = 0
        self._arrived = trio.lowlevel.ParkingLot()
        self._single_guest = _is_connected(sock)
        if self._single_guest:
            self._settled = True
            self.counters.guests = 1
        else:
            self._attached = False
            self._ask_for_credentials(wanted=True)

    @classmethod
    def bind(cls, path: str | os.PathLike[str], *, mtu: int = 1500, batch_calls: bool = True) -> Self:
        """Bind `path` (mode 0600) and wait for a guest there. Raises LinkError when the path is taken or unusable."""
        sock, bound = bind_unix(os.fspath(path), socket.SOCK_DGRAM)
        return cls(sock, f"unixgram://{bound.path}", mtu=mtu, bound=bound, batch_calls=batch_calls)

    @classmethod
    def from_fd(cls, fd: int, *, mtu: int = 1500, batch_calls: bool = True) -> Self:
        """Take over an inherited unix datagram socket, such as one end of a socket pair. Raises LinkError if it is no
        such thing.
        """
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise LinkError(f"fd {fd}: not a socket: {error.strerror}") from error
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_DGRAM:
            family, kind = sock.family, sock.type
            sock.detach()
            raise LinkError(f"fd {fd}: not a unix datagram socket (family {family!r}, type {kind!r})")
        sock.setblocking(False)
        return cls(sock, f"fd {fd}", mtu=mtu, batch_calls=batch_calls)

    buffers: tuple[int, int]
    """SO_SNDBUF and SO_RCVBUF as granted, bytes; the kernel counts its own overhead in them."""

    @property
    def peer(self) -> str | bytes | None:
        """The path the guest's socket is bound to; None while there is no guest, or on an inherited socket pair."""
        return self._peer

    # The guest's arrival.

    @property
    def holds_frames(self) -> bool:
        """See Link."""
        return bool(self._leftover)

    def _receive(self, limit: int) -> list[bytes]:
        if self._leftover:
            frames, self._leftover = self._leftover[:limit], self._leftover[limit:]
            return frames
        return self._read_socket(limit)

    def _read_socket(self, limit: int) -> list[bytes]:
        return super()._receive(limit) if self._settled else self._receive_addressed(limit)

    def _receive_addressed(self, limit: int) -> list[bytes]:
        """While there is no guest, and until what had been queued before we connected to it is read: look at each
        sender.
        """
        frames: list[bytes] = []
        space = socket.CMSG_SPACE(_CREDENTIALS.size)
        try:
            for _ in range(limit):
                datagram, ancillary, _, sender = self._sock.recvmsg(MAX_FRAME + 1, space)
                if self._peer is None:
                    if not self._adopt(sender, ancillary):
                        continue
                elif sender != self._peer:
                    self.counters.drop_received(SECOND_SENDER)
                    continue
                frames.append(datagram)
        except BlockingIOError:
            if self._peer is not None:
                # From here on the kernel admits this guest's datagrams only.
                self._settled = True
                self._ask_for_credentials(wanted=False)
        except OSError as error:
            self._read_failed(error)
        return self._checked(frames) if frames else frames

    def _adopt(self, sender: str | bytes | None, ancillary: list[tuple[int, int, bytes]]) -> bool:
        """Make the sender of a first datagram our guest. False, and counted, when it cannot be answered."""
        if not sender:
            self.counters.drop_received(UNNAMED_SENDER)
            return False
        try:
            self._sock.connect(sender)
        except OSError:
            # It has gone meanwhile, is connected to somebody else, or its path is not ours to write to.
            self.counters.drop_received(UNREACHABLE_SENDER)
            return False
        self._peer = sender
        self._attached = True
        self.counters.guests += 1
        self._pidfd = _open_pidfd(ancillary)
        self._arrived.unpark_all()
        return True

    def _is_frame(self, datagram: bytes) -> bool:
        return datagram != HANDSHAKE and super()._is_frame(datagram)

    def _ask_for_credentials(self, *, wanted: bool) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, wanted)

    # The guest's death.

    def _read_failed(self, error: OSError) -> None:
        # ECONNRESET says that the peer took another peer, once; whether it still lives shows elsewhere.
        if not isinstance(error, ConnectionResetError):
            super()._read_failed(error)

    def _write_failed(self, error: OSError) -> str:
        if error.errno in (errno.ECONNREFUSED, errno.ENOTCONN):
            # The kernel has disconnected us with this answer, and thrown away what the guest had sent. A batch call in
            # which it did keeps the answer to itself, and then we are just not connected any more.
            self._detach(keep_what_it_sent=False)
            return NO_GUEST
        # EMSGSIZE, EPERM (the guest connected its socket to somebody else), EPIPE: this frame's misfortune only.
        return NOT_ACCEPTED

    def _detach(self, *, keep_what_it_sent: bool) -> None:
        """The guest has gone: let the next one in."""
        if self._pidfd >= 0:
            self._wake(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if keep_what_it_sent:
            while len(self._leftover) < _LEFTOVER_FRAMES and (frames := self._read_socket(BATCH)):
                self._leftover += frames
        if self._single_guest:
            self._fail("the guest has gone")
            return
        disconnect(self._sock)
        self._ask_for_credentials(wanted=True)
        self._peer = None
        self._attached = False
        self._settled = False
        if self._leftover:
            self._look_again()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Link. Also watches for the guest's death."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_guest)
            await super().run(task_status=task_status)
            nursery.cancel_scope.cancel()

    async def _watch_guest(self) -> None:
        while not self._failure:
            if not self._attached:
                await self._arrived.park()
                continue
            process_ended = False
            with trio.move_on_after(PROBE_INTERVAL):
                process_ended = await self._wait_process_end()
            if self._attached:
                self._look_at_guest(process_ended=process_ended)

    async def _wait_process_end(self) -> bool:
        guest = self.counters.guests
        if self._pidfd < 0:
            await trio.sleep_forever()
        try:
            await trio.lowlevel.wait_readable(self._pidfd)
        except trio.ClosedResourceError:
            return False
        if self._pidfd < 0 or self.counters.guests != guest:
            # A refused write told of the same death while we were waiting our turn: the descriptor is closed already,
            # or it is the next guest's.
            return False
        os.close(self._pidfd)
        self._pidfd = -1
        return True

    def _look_at_guest(self, *, process_ended: bool) -> None:
        heard = self.counters.rx_frames
        silent, self._frames_at_last_look = heard == self._frames_at_last_look, heard
        if not process_ended and not silent:
            return
        alive = self._probe.peer_alive(self._sock)
        # The process may have handed its socket to another one: the kernel's word counts, the process's end only
        # without it.
        if alive is False or (alive is None and process_ended):
            self._detach(keep_what_it_sent=True)
            self._discard_queue()

    def _release(self) -> None:
        if self._bound is not None:
            self._bound.remove()
        if self._pidfd >= 0:
            self._wake(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._probe.close()
        self._sock.close()


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _open_pidfd(ancillary: list[tuple[int, int, bytes]]) -> int:
    """A descriptor that becomes readable when the sender's process ends; -1 when that process cannot be seen from
    here.
    """
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SCM_CREDENTIALS and len(data) >= _CREDENTIALS.size:
            pid, _, _ = _CREDENTIALS.unpack_from(data)
            try:
                return os.pidfd_open(pid)
            except OSError:
                # Pid 0 (another pid namespace), gone already, or pidfds forbidden: the kernel is asked by timer
                # instead.
                return -1
    return -1


def _charge(size: int) -> int:
    """Bytes of its sender's SO_SNDBUF that a waiting datagram of `size` bytes costs.

    The kernel counts what it allocates (on Linux 6.18: 2,304 for 1,514 bytes, 69,888 for 65,534), so that one is sent
    and the kernel asked. Where it does not say, twice the size is more than it takes for any but the smallest.
    """
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        sender.setblocking(False)
        try:
            sender.send(bytes(size))
            (charge,) = struct.unpack("i", fcntl.ioctl(sender, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            return 2 * size
    return charge if charge >= size else 2 * size


def _enlarge_buffers(sock: socket.socket) -> tuple[tuple[int, int], int]:
    """Ask for BUFFER_BYTES both ways. Gives what we got, and what a guest that asks for as much gets without
    privilege.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    guest_buffer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
    except PermissionError:
        # Needs CAP_NET_ADMIN in the initial user namespace; without it net.core.wmem_max is the limit, and doctor
        # tells.
        return (guest_buffer, sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)), guest_buffer
    granted = (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
    )
    return granted, guest_buffer
