"""A guest that is called: a machine of few words at the other end of a datagram socket, by scapy.

TCP: `echo` says back what it hears and ends when the other side does, `eager` speaks first and ends its side, `resets`
resets at the first byte, `silent` never answers a SYN; other ports refuse. UDP: `echo` too, else port unreachable.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import NoPayload, Packet, Raw

from netstack.config import FdLink, RunConfig, network_settings
from netstack.engine.events import Event, FlowClosed, FlowOpened
from netstack.gateway.attachments import open_attachments
from netstack.gateway.run_command import Gateway

ADDRESS, MAC = "192.168.127.2", "5a:94:ef:e4:0c:ee"
GATEWAY, GATEWAY_MAC = "192.168.127.1", "5a:94:ef:e4:0c:dd"
ECHO, EAGER, RESETS, SILENT, CLOSED = 7, 8, 9, 10, 11
GREETING = b"SSH-2.0-guest\r\n"
LIMIT = 20.0


class Callee:
    """Answers frames; `callers` are the addresses it was called from."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._next: dict[tuple[str, int, int], int] = {}
        self._expected: dict[tuple[str, int, int], int] = {}
        self.callers: list[tuple[str, int]] = []
        self.heard: list[Packet] = []

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            frame = Ether(self._sock.recv(65_536))
            if ARP in frame and frame[ARP].op == 1 and frame[ARP].pdst == ADDRESS:
                answer = ARP(op=2, hwsrc=MAC, psrc=ADDRESS, hwdst=frame.src, pdst=frame[ARP].psrc)
                self._put(answer)
            elif TCP in frame:
                self._tcp(frame[IP])
            elif UDP in frame:
                self._udp(frame[IP])

    def _put(self, packet: Packet) -> None:
        self._sock.send(bytes(Ether(src=MAC, dst=GATEWAY_MAC) / packet))

    async def open(self, port: int, source_port: int = 40_000) -> None:
        """Say SYN to a port of the gateway's, and take its answer from `heard`."""
        self._put(
            IP(src=ADDRESS, dst=GATEWAY) / TCP(sport=source_port, dport=port, flags="S", seq=1, options=[("MSS", 1460)])
        )

    def _say(self, packet: IP, flags: str, ack: int, data: bytes = b"") -> None:
        key = (packet.src, packet[TCP].sport, packet[TCP].dport)
        sequence = self._next.get(key, 0)
        header = TCP(sport=key[2], dport=key[1], flags=flags, seq=sequence, ack=ack & 0xFFFFFFFF, window=60_000)
        answer = IP(src=ADDRESS, dst=packet.src) / header
        self._put(answer / Raw(data) if data else answer)
        self._next[key] = sequence + len(data) + ("F" in flags) + ("S" in flags)

    def _tcp(self, packet: IP) -> None:
        segment = packet[TCP]
        self.heard.append(segment)
        port, flags = segment.dport, str(segment.flags)
        data = b"" if isinstance(segment.payload, NoPayload) else bytes(segment.payload)
        ack = segment.seq + len(data) + ("F" in flags)
        if "R" in flags:
            return
        if flags == "S":
            if port == SILENT:
                return
            self._next[packet.src, segment.sport, port] = 1000
            self._expected[packet.src, segment.sport, port] = segment.seq + 1 & 0xFFFFFFFF
            if port not in (ECHO, EAGER, RESETS):
                self._say(packet, "RA", segment.seq + 1)
                return
            self.callers.append((packet.src, segment.sport))
            self._say(packet, "SA", segment.seq + 1)
            if port == EAGER:
                self._say(packet, "PA", segment.seq + 1, GREETING)
                self._say(packet, "FA", segment.seq + 1)
        elif port == RESETS and data:
            self._say(packet, "RA", ack)
        elif data or "F" in flags:
            key = (packet.src, segment.sport, port)
            if segment.seq != self._expected.get(key):
                self._say(packet, "A", self._expected.get(key, ack))  # said again: this guest was slow to answer
                return
            self._expected[key] = ack & 0xFFFFFFFF
            ends = port == ECHO and "F" in flags
            self._say(packet, "FA" if ends else "A", ack, data if port == ECHO else b"")

    def _udp(self, packet: IP) -> None:
        datagram = packet[UDP]
        if datagram.dport != ECHO:
            self._put(IP(src=ADDRESS, dst=packet.src) / ICMP(type=3, code=3) / Raw(bytes(packet)[:28]))
            return
        self.callers.append((packet.src, datagram.sport))
        data = b"" if isinstance(datagram.payload, NoPayload) else bytes(datagram.payload)[: datagram.len - 8]
        answer = IP(src=ADDRESS, dst=packet.src) / UDP(sport=ECHO, dport=datagram.sport)
        self._put(answer / Raw(data) if data else answer)


class Called:
    """A gateway with such a guest, and what it told."""

    def __init__(self, gateway: Gateway, guest: Callee, events: list[Event]) -> None:
        self.gateway, self.guest, self.events = gateway, guest, events

    def told(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def closed(self, count: int = 1) -> list[FlowClosed]:
        """The ends of that many flows."""
        await until(lambda: len(self.told(FlowClosed)) >= count)
        return self.told(FlowClosed)

    @property
    def opened(self) -> list[FlowOpened]:
        return self.told(FlowOpened)


async def until(condition: object) -> None:
    """Give other tasks and the kernel room until something has become true."""
    with trio.fail_after(LIMIT):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


@asynccontextmanager
async def called(**options: object) -> AsyncIterator[Called]:
    """A gateway that runs for the time of the block; afterwards it has no host socket left."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    config = RunConfig(
        network=network_settings(), links=(FdLink(ours.detach()),), dns_upstreams=("127.0.0.1:9",), **options
    )
    events: list[Event] = []
    gateway = Gateway(config, open_attachments(config.links, 1500, batch_calls=config.batch_calls), watch=events.append)
    guest = Callee(theirs)
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.run)
            await nursery.start(gateway.run)
            with contextlib.ExitStack() as stack:
                stack.callback(nursery.cancel_scope.cancel)
                with trio.fail_after(LIMIT):
                    yield Called(gateway, guest, events)
    assert len(gateway.driver.sockets) == 0
