"""A service of the gateway's own on a TCP flow: bytes to and from it, no faster than the guest takes what it says."""

from __future__ import annotations

from typing import Final

from netstack.engine.tcp_flow import DRAINING, Session, TcpFlow
from netstack.engine.tcp_table import TcpTable

SERVED_IDLE: Final = 30.0
"""Seconds in which a connection to a service of the gateway has to move a byte (RFC 7766 section 6.2.3 asks for a few).

It is closed then, and reset when it takes as long again for that.
"""


def serve(flow: TcpFlow, session: Session, table: TcpTable, now: float) -> None:
    """Give a session what the guest has said; it gets no more before what it said has room."""
    connection = flow.connection
    ready = connection.receive_buffer.ready
    before = flow.sent + flow.received
    taken = 0
    while not session.failed:
        while session.out and connection.room:
            data = session.out.pop(0)
            flow.received += len(data)
            connection.write(data)
        if session.out:
            break
        session.more(now)
        if not session.out:
            if taken == len(ready):
                break
            text = bytes(ready[taken])
            taken += 1
            flow.sent += len(text)
            session.receive(text, now)
    del ready[:taken]
    if session.failed:
        connection.abort()
        table.abandon(flow, "not understood", now)
        return
    if flow.sent + flow.received != before:
        flow.limit_at = now + SERVED_IDLE
    if flow.state == DRAINING and session.idle and not session.out and not ready:
        connection.finish()
