"""A guest on a unix SOCK_SEQPACKET connection, as bess and User Mode Linux speak it: one record is one frame."""

from __future__ import annotations

import errno
import select
import socket
from typing import Final

from guest_iface.link import LinkCapabilities
from guest_iface.stream import STREAM_QUEUE_FRAMES
from guest_iface.transmit import PacketLink

SEND_BUFFER: Final = 7 << 20
"""SO_SNDBUF asked for, bytes; net.core.wmem_max limits it."""


class SeqpacketLink(PacketLink):
    """Bare frames over a connected sequenced-packet socket."""

    def __init__(self, sock: socket.socket, name: str, *, mtu: int = 1500) -> None:
        """Take over a connected socket. `mtu` in bytes, 68..65535."""
        # Like a stream, the kernel makes a guest wait whose buffer is full.
        capabilities = LinkCapabilities(mtu=mtu, queue_frames=STREAM_QUEUE_FRAMES)
        super().__init__(name, capabilities, read_fd=sock.fileno(), write_fd=sock.fileno())
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._sock = sock
        self._read = self._read_record
        self._write = sock.send
        self._write_pieces = sock.sendmsg
        self.counters.guests = 1

    def _read_record(self, size: int) -> bytes:
        record = self._sock.recv(size)
        if not record and self._guest_hung_up():
            raise BrokenPipeError(errno.EPIPE, "the guest has closed the connection")
        return record

    def _guest_hung_up(self) -> bool:
        """An empty record and the end of the connection read the same; only the latter shows in poll."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _release(self) -> None:
        self._sock.close()
