"""The states of a TCP connection, what moves it from one to the next, and what its owner has to know of it."""

from __future__ import annotations

from typing import Final

# States (RFC 9293 section 3.3.2). In LISTEN a connection's SYN has come and is not answered yet: the dial is under way.
CLOSED: Final = 0
LISTEN: Final = 1
SYN_SENT: Final = 2
SYN_RECEIVED: Final = 3
ESTABLISHED: Final = 4
FIN_WAIT_1: Final = 5
FIN_WAIT_2: Final = 6
CLOSE_WAIT: Final = 7
CLOSING: Final = 8
LAST_ACK: Final = 9
TIME_WAIT: Final = 10

STATE_NAMES: Final = (
    "CLOSED", "LISTEN", "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING",
    "LAST-ACK", "TIME-WAIT",
)  # fmt: skip

TIME_WAIT_SECONDS: Final = 60.0
"""Twice a segment lifetime of 30 s, as Linux and gVisor have it."""

# What moves a connection from one state to the next.
ACCEPT: Final = 1
"""We answer the guest's SYN."""
CONNECT: Final = 2
"""We send a SYN of our own."""
SYN_CAME: Final = 3
SYN_ACK_CAME: Final = 4
SYN_ACKED: Final = 5
FIN_SENT: Final = 6
FIN_CAME: Final = 7
FIN_ACKED: Final = 8
OVER: Final = 9
"""Reset by either side, given up, or TIME-WAIT has run out."""

TRANSITIONS: dict[tuple[int, int], int] = {
    (LISTEN, ACCEPT): SYN_RECEIVED,
    (CLOSED, CONNECT): SYN_SENT,
    (SYN_SENT, SYN_ACK_CAME): ESTABLISHED,
    (SYN_SENT, SYN_CAME): SYN_RECEIVED,  # simultaneous open
    (SYN_RECEIVED, SYN_ACKED): ESTABLISHED,
    (ESTABLISHED, FIN_SENT): FIN_WAIT_1,
    (ESTABLISHED, FIN_CAME): CLOSE_WAIT,
    (FIN_WAIT_1, FIN_ACKED): FIN_WAIT_2,
    (FIN_WAIT_1, FIN_CAME): CLOSING,  # simultaneous close
    (FIN_WAIT_2, FIN_CAME): TIME_WAIT,
    (CLOSE_WAIT, FIN_SENT): LAST_ACK,
    (CLOSING, FIN_ACKED): TIME_WAIT,
    (LAST_ACK, FIN_ACKED): CLOSED,
    (LISTEN, OVER): CLOSED,
    (SYN_SENT, OVER): CLOSED,
    (SYN_RECEIVED, OVER): CLOSED,
    (ESTABLISHED, OVER): CLOSED,
    (FIN_WAIT_1, OVER): CLOSED,
    (FIN_WAIT_2, OVER): CLOSED,
    (CLOSE_WAIT, OVER): CLOSED,
    (CLOSING, OVER): CLOSED,
    (LAST_ACK, OVER): CLOSED,
    (TIME_WAIT, OVER): CLOSED,
}

CAN_SEND: Final = frozenset((SYN_SENT, SYN_RECEIVED, ESTABLISHED, CLOSE_WAIT))
"""Our side has not finished: the host's bytes are welcome."""
CAN_RECEIVE: Final = frozenset((ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2))
"""The guest has not finished."""
UNFINISHED: Final = CAN_RECEIVE | {SYN_RECEIVED}
"""Text or its end may come with an acknowledgement that is nothing special."""
ANSWERING: Final = UNFINISHED | {CLOSE_WAIT, CLOSING, LAST_ACK}
"""Such an acknowledgement may come."""
SYNCHRONIZED: Final = frozenset((ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, CLOSING, LAST_ACK))
"""Both sides know each other's numbers, and there is something left to say or hear (TIME-WAIT only answers)."""

# Signals: bits a connection sets for its owner, who clears them.
OPENED: Final = 1
"""The handshake is complete."""
PEER_FINISHED: Final = 2
"""The guest sends nothing more; what it sent before waits in `receive_buffer.ready`."""
PEER_RESET: Final = 4
"""The guest sent a reset."""
GAVE_UP: Final = 8
"""The guest has not answered for too long."""
ENDED: Final = 16
"""Both directions are done (TIME-WAIT or CLOSED)."""
ROOM: Final = 32
"""Acknowledged bytes made room in the send buffer."""
