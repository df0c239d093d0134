"""The host's end of every flow: the only place that dials, and the only one that opens sockets for a guest.

One poller holds all host sockets; the driver waits for the poller itself, so an established flow costs no task, and
everything that is ready is handled in one wake-up before anything is sent to the guest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from netstack.engine.stack import Stack
from netstack.gateway.host_datagrams import DatagramSocket, HostDatagrams, PingSocket
from netstack.gateway.host_streams import HostStream, HostStreams
from netstack.gateway.poller import READ, WRITE
from netstack.gateway.socket_table import HostSocket, SocketTable

SOCKETS_PER_WAKE: Final = 128
"""Sockets handled before what came of it is sent to the guest, and before the guest is heard again."""
MORE_READS: Final = 3
"""Reads in one wake-up beyond one for each ready stream, all streams together."""


class HostSockets:
    """Carries out the engine's effects on host sockets and reports what they do. Never awaits."""

    def __init__(self, stack: Stack) -> None:
        self._table = table = SocketTable()
        self._ready: deque[tuple[HostSocket, int]] = deque()
        self.streams = HostStreams(stack, table)
        self._datagrams = HostDatagrams(stack, table)
        self.perform: dict[type, Callable[[Any, float], None]] = {**self.streams.perform, **self._datagrams.perform}
        """What to do for each kind of effect."""

    def fileno(self) -> int:
        """Readable when any host socket has something to be handled by `handle_ready`."""
        return self._table.poller.fileno()

    def __len__(self) -> int:
        """Host sockets open."""
        return len(self._table.by_flow)

    def compact(self) -> None:
        """Give back the room of sockets that are gone."""
        self._table.compact()

    def close(self) -> None:
        """Close every host socket. Established connections are reset: their guest is going away.

        What is asked for afterwards fails as on a host without resources. Safe to call twice.
        """
        table = self._table
        if table.closed:
            return
        for host in list(table.by_flow.values()):
            if isinstance(host, HostStream):
                self.streams.abort(host)
            else:
                table.drop(host)
        table.close()

    def handle_ready(self, now: float, _rounds: int = 0) -> bool:
        """Handle host sockets that are ready, each once and SOCKETS_PER_WAKE at most; the others are next."""
        ready = self._ready
        if not ready:
            watched = self._table.watched
            ready.extend([(watched[descriptor], mask) for descriptor, mask in self._table.poller.poll()])
            if not ready:
                return False
        streams = self.streams
        streams.more_reads = MORE_READS
        for _ in range(min(len(ready), SOCKETS_PER_WAKE)):
            host, mask = ready.popleft()
            mask &= host.interest  # what was ready may have been closed since, or be watched no more
            if not mask:
                continue
            if type(host) is HostStream:
                if host.connecting:
                    streams.connected(host, now)
                    continue
                if mask & WRITE:
                    streams.flush(host, now)
                if mask & host.interest & READ:
                    streams.read(host, now)
            elif type(host) is PingSocket:
                self._datagrams.receive_echoes(host, now)
            elif type(host) is DatagramSocket:
                self._datagrams.receive_datagrams(host, now)
        return True
