"""A driver that runs, with guests on links in memory: for rows about hooks, several guests, and the log."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio
import trio.testing
from engine.wire_guest import GATEWAY_MAC, GUEST, GUEST_MAC
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from guest_iface.cable import Cable
from guest_iface.capture import CaptureWriter
from guest_iface.link import Link, LinkCapabilities, LinkClosed, LinkCounters
from netstack.config import network_settings
from netstack.engine.events import Event
from netstack.gateway.capture_comments import CaptureComments
from netstack.gateway.driver import Driver
from netstack.gateway.resolver import AnswersDns
from netstack.hooks import HookRunner, Hooks
from netstack.network_spec import NetworkSpec

LIMIT = 15.0
"""Real seconds after which something is taken to hang."""
E = TypeVar("E")


class MemoryLink(Link):
    """A link whose guest is in the same program."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.capabilities = LinkCapabilities()
        self.counters = LinkCounters()
        self.heard: list[bytes] = []
        self.closed = False
        self._said: list[bytes] = []
        self._more = trio.Event()

    async def receive_batch(self) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        while not self._said:
            if self.closed:
                raise LinkClosed(self.name)
            self._more = trio.Event()
            await self._more.wait()
        frames, self._said = self._said, []
        return frames

    def send_batch(self, frames: Sequence[bytes]) -> None:
        self.heard += frames

    @property
    def backlog(self) -> int:
        return 0

    async def wait_backlog_drained(self) -> None:
        await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    def close(self) -> None:
        self.closed = True
        self._more.set()

    def put(self, frames: Sequence[bytes]) -> None:
        self._said += frames
        self._more.set()


class LiveGuest:
    """One guest, by scapy."""

    def __init__(self, link: MemoryLink, mac: str, address: str) -> None:
        self.link, self.mac, self.address = link, mac, address

    async def send(self, *packets: Packet, to: str = GATEWAY_MAC) -> None:
        """Send packets, and let everything that follows at once happen."""
        self.link.put(
            [bytes(each if isinstance(each, Ether) else Ether(src=self.mac, dst=to) / each) for each in packets]
        )
        await settled()

    def hear(self) -> list[Ether]:
        """The frames that came since the last look."""
        frames, self.link.heard = self.link.heard, []
        return [Ether(frame) for frame in frames]

    async def syn(self, address: str, port: int, source_port: int = 40_000) -> None:
        """Begin a connection."""
        header = TCP(sport=source_port, dport=port, flags="S", seq=1, options=[("MSS", 1460)])
        await self.send(IP(src=self.address, dst=address) / header)

    def flags(self) -> list[tuple[int, str]]:
        """Of the segments that came: for which of our ports, and the flags."""
        return [(frame[TCP].dport, str(frame[TCP].flags)) for frame in self.hear() if frame.haslayer(TCP)]


class Live:
    """A running driver and what it told."""

    def __init__(self, driver: Driver, nursery: trio.Nursery, capture: CaptureWriter | None = None) -> None:
        self.driver = driver
        self.events: list[Event] = []
        self._nursery = nursery
        self._capture = capture

    def serve(self, link: Link) -> None:
        """Attach a guest on a link of the test's."""
        self._nursery.start_soon(self.driver.serve, link if self._capture is None else Cable(link, [self._capture]))

    async def attach(self, mac: str = GUEST_MAC, address: str = GUEST) -> LiveGuest:
        """One more guest, on a link of its own."""
        link = MemoryLink(mac)
        self.serve(link)
        await settled()
        return LiveGuest(link, mac, address)

    def told(self, kind: type[E]) -> list[E]:
        """All events of a kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    async def settle_until(self, condition: Callable[[], object]) -> None:
        """Let sockets and tasks go on until something holds."""
        for _ in range(int(LIMIT * 1000)):
            if condition():
                return
            await trio.testing.wait_all_tasks_blocked(0.001)
        raise AssertionError("it does not come to pass")

    async def wait_for(self, kind: type[E], number: int = 1) -> list[E]:
        """The same once there are so many."""
        for _ in range(int(LIMIT * 1000)):
            if len(found := self.told(kind)) >= number:
                return found
            await trio.testing.wait_all_tasks_blocked(0.001)
        raise AssertionError(f"{number} events of {kind.__name__} did not come: {self.events}")


class NoUpstream(AnswersDns):
    """A resolver nobody may ask."""

    async def ask(self, message: bytes) -> bytes | None:
        raise AssertionError(f"asked upstream: {message!r}")


async def settled() -> None:
    """Let every task do what it has to do."""
    await trio.testing.wait_all_tasks_blocked(0.002)


@asynccontextmanager
async def running(
    *rules: str,
    spec: NetworkSpec | None = None,
    hooks: Hooks | None = None,
    may_allow: bool = False,
    deadline: float = 5.0,
    resolver: AnswersDns | None = None,
    capture: Path | None = None,
) -> AsyncIterator[Live]:
    """A gateway under a list for the time of the block; afterwards every host socket is closed.

    Without a `resolver` nothing may be asked upstream; what guests send and are sent goes into `capture`.
    """
    box: list[Live] = []
    comments = CaptureComments()
    writer = None if capture is None else CaptureWriter(capture, comment=comments.take)

    def tell(event: Event, _now: float) -> None:
        box[0].events.append(event)
        comments.note(event)

    driver = Driver(
        network_settings(),
        resolver=resolver or NoUpstream(),
        policy=(spec or NetworkSpec.enabled(rules)).policy(),
        hooks=HookRunner(hooks, may_allow=may_allow, deadline=deadline) if hooks else None,
        event_sink=tell,
    )
    async with trio.open_nursery() as nursery:
        box.append(Live(driver, nursery, writer))
        await nursery.start(driver.run)
        yield box[0]
        nursery.cancel_scope.cancel()
    assert len(driver.sockets) == 0
    if writer is not None:
        writer.close()


@contextlib.contextmanager
def listener() -> Iterator[tuple[socket.socket, int]]:
    """A TCP server on the loopback that accepts what comes; its socket and port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server, server.getsockname()[1]


def accepted(server: socket.socket) -> int:
    """How many connections have come to a listener since the last look."""
    count = 0
    while True:
        try:
            connection, _ = server.accept()
        except BlockingIOError:
            return count
        connection.close()
        count += 1
