"""Keeps a set of namespaces alive, and makes sockets in them for the test that started it.

Run inside fresh namespaces as `unshare ... python ns_holder.py FD`. FD is one end of a unix datagram-like (seqpacket)
socket pair: each request is `family type protocol` in ASCII, each answer is `ok` with the new socket attached, or
`error ERRNO`. A socket keeps the network namespace it was made in, whoever holds it, so a test in the outer namespace
uses the guest's TCP as if it ran in the guest. End of file ends the holder, and with it the namespaces.
"""

from __future__ import annotations

import contextlib
import socket
import sys


def serve(channel: socket.socket) -> None:
    """Answer requests until the other end goes."""
    channel.send(b"ready")
    while request := channel.recv(64):
        try:
            made = socket.socket(*(int(word) for word in request.split()))
        except OSError as error:
            channel.send(b"error %d" % (error.errno or 0))
            continue
        with made:
            socket.send_fds(channel, [b"ok"], [made.fileno()])


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, ConnectionError), socket.socket(fileno=int(sys.argv[1])) as channel:
        serve(channel)
