"""A guest for the rows of conformance classes B and E: what it sees, what leaves the host, and what is told of it.

`settle` is what makes the oracles exact: a question to the gateway that is answered there. Once its answer and its
event are here, everything the guest sent before has been dealt with, answered and told of.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterable, Iterator

import dns.message
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from .lab import wait_until
from .network import GUEST_MAC, TAP, Network, start_network
from .open_internet import SITE, Guest, OpenInternet

GATEWAY, GUEST, HOST_ALIAS, UNUSED = "192.168.127.1", "192.168.127.2", "192.168.127.254", "192.168.127.77"
GATEWAY_MAC, OTHER_MAC, BROADCAST_MAC = "5a:94:ef:e4:0c:dd", "02:00:00:00:00:99", "ff:ff:ff:ff:ff:ff"
TELLING = ("dns", "flow_opened", "flow_refused")
"""Events about what a guest wanted; drops are counted by their reasons."""
ETH_P_ALL = 3
CHUNK = 200
"""Frames sent before the gateway is waited for: a TAP holds 500 to 1000."""


def framed(packet: Packet | bytes, *, source: str = GUEST_MAC, to: str = GATEWAY_MAC) -> bytes:
    """The bytes of a frame; an IP packet is put into one."""
    if isinstance(packet, bytes):
        return packet
    return bytes(packet if not isinstance(packet, IP) else Ether(src=source, dst=to) / packet)


class RowGuest(Guest):
    """A guest under a list, with a card that sends whatever it is told to."""

    def __init__(self, internet: OpenInternet, network: Network) -> None:
        super().__init__(internet, network)
        self._asker = self.namespace.socket(socket.SOCK_DGRAM)
        self._asker.bind(("0.0.0.0", 0))
        self._questions = itertools.count()
        self._drops: dict[str, int] = {}
        self._card = self.namespace.socket(socket.SOCK_RAW, socket.AF_PACKET)
        self._card.bind((TAP, ETH_P_ALL))
        self._card.settimeout(None)  # with a deadline MSG_DONTWAIT would wait for it

    def unplug(self) -> None:
        """Close what the test holds of it."""
        self._card.close()
        self._asker.close()

    def close(self) -> None:
        """End the gateway, and hold it to its word."""
        self.unplug()
        self.network.close()

    # -- oracles -----------------------------------------------------------------------------------------------------

    def drain(self) -> str:
        """Wait until the gateway has dealt with what was sent so far; the name it was asked for."""
        name = f"settled-{self.namespace.pid}-{next(self._questions)}.containers.internal"
        query = dns.message.make_query(name, "A")
        self._asker.settimeout(2.5)
        for _ in range(24):  # a guest whose MAC has just changed is not heard for two seconds
            self._asker.sendto(query.to_wire(), (GATEWAY, 53))
            with contextlib.suppress(TimeoutError):
                while not query.is_response(dns.message.from_wire(self._asker.recv(512))):
                    pass  # of a question that was asked again
                return name
        raise AssertionError(f"{name} was not answered")

    def settle(self) -> None:
        """The same, and it has been told."""
        name = self.drain()

        def told() -> bool:
            return any(event["name"] == name for event in reversed(self.network.gateway.events("dns")))

        wait_until(told, "the event of a question", timeout=20)

    def events(self, kinds: Iterable[str]) -> list[dict[str, object]]:
        """All events of these kinds so far, without those of `settle`."""
        events = self.network.gateway.events()
        return [
            event
            for event in events
            if event["event"] in kinds and not str(event.get("name", "")).startswith("settled-")
        ]

    @contextlib.contextmanager
    def tells(self, *expected: dict[str, object], kinds: Iterable[str] = TELLING) -> Iterator[None]:
        """(E) In the block these events come, in this order, with at least these fields, and no others."""
        self.settle()
        before = len(self.events(kinds))
        yield
        self.settle()
        told = self.events(kinds)[before:]
        assert [{key: event.get(key) for key in want} for event, want in zip(told, expected, strict=False)] == [
            *expected
        ], told
        assert len(told) == len(expected), told
        self._told = len(self.network.gateway.events())

    @contextlib.contextmanager
    def nothing_leaves(self) -> Iterator[None]:
        """(D) No connection, no datagram and no ping is sent by anybody on the host's side, and nobody comes."""
        before, visits = self.internet.departures(), len(self.internet.witness.visits)
        yield
        assert self.internet.witness.visits[visits:] == []
        assert self.internet.departures() == before

    @contextlib.contextmanager
    def turned_away(
        self, step: str, reason: str, told: str, *, kinds: Iterable[str] = TELLING, **fields: object
    ) -> Iterator[None]:
        """(D) Nothing leaves; (E) one event says that a flow was refused, and how."""
        event = {"event": "flow_refused", "step": step, "reason_code": reason, "told": told, "total": 1}
        with self.tells(event | fields, kinds=kinds), self.nothing_leaves():
            yield
            self.drain()

    def still_works(self) -> None:
        """What is allowed goes on: a page by its name, with all three oracles. Afterwards no connection is open."""
        visits = len(self.internet.witness.visits)
        opened = {"event": "flow_opened", "dialled": f"{SITE}:80", "reason_code": "name-rule", "name": "real.test"}
        with self.tells(opened, kinds=("flow_opened", "flow_refused")):
            assert self.curl("http://real.test/") == (0, f"{SITE} for real.test\n")
        assert [visit.address for visit in self.internet.witness.visits[visits:]] == [SITE]
        wait_until(lambda: not self._open_connections(), "the end of every connection")

    def _open_connections(self) -> set[object]:
        """The TCP flows that have not ended: the gateway may still say something of them."""
        flows = [event for event in self.events(["flow_opened", "flow_closed"]) if event["protocol"] == "tcp"]
        ends = {event["flow"] for event in flows if event["event"] == "flow_closed"}
        return {event["flow"] for event in flows} - ends

    # -- frames ------------------------------------------------------------------------------------------------------

    def send(self, *packets: Packet | bytes, source: str = GUEST_MAC, to: str = GATEWAY_MAC) -> None:
        """Send frames as they are; the gateway has dealt with them afterwards."""
        for at in range(0, len(packets), CHUNK):
            for packet in packets[at : at + CHUNK]:
                self._card.send(framed(packet, source=source, to=to))
            self.drain()

    def hear(self, *, all_senders: bool = False) -> list[Packet]:
        """The frames that came since the last look: the gateway's, or anybody's."""
        heard: list[Packet] = []
        mine = self._asker.getsockname()[1]
        while True:
            try:
                data, origin = self._card.recvfrom(65_600, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return heard
            frame = Ether(data)
            if origin[2] == socket.PACKET_OUTGOING or not (all_senders or frame.src == GATEWAY_MAC):
                continue
            if not (frame.haslayer(UDP) and frame[UDP].dport == mine):
                heard.append(frame)

    def answers(self, *packets: Packet | bytes, source: str = GUEST_MAC, to: str = GATEWAY_MAC) -> list[Packet]:
        """(G) What the gateway says to these frames."""
        self.drain()
        self.hear()
        self.send(*packets, source=source, to=to)
        return self.hear()

    def counted(self, reason: str) -> None:
        """The kernel sent a frame that is dropped for this reason."""
        self._drops[reason] = self._drops.get(reason, 0) + 1

    def dropped(self, reason: str, *packets: Packet | bytes, source: str = GUEST_MAC, to: str = GATEWAY_MAC) -> None:
        """(G) Silence, (D) nothing leaves, (E) each frame is counted under this reason, and no flow is told of.

        A reason is told for the 1st, 10th, 100th time: the frames are repeated up to the next.
        """
        before = self._drops.get(reason, 0)
        total = 1
        while total < before + len(packets):
            total *= 10
        self._drops[reason] = total
        frames = [framed(packet, source=source, to=to) for packet in packets]
        powers = [10**power for power in range(9)]
        told = [power for power in powers if before < power <= total]
        expected = [{"event": "frame_dropped", "reason": reason, "total": power} for power in told]
        with self.tells(*expected, kinds=(*TELLING, "frame_dropped")), self.nothing_leaves():
            heard = self.answers(*itertools.islice(itertools.cycle(frames), total - before))
        assert heard == []


def start_row_guest(internet: OpenInternet, *options: str, upstream: bool = True, ipv6: bool = False) -> RowGuest:
    """A fresh guest on a TAP of a fresh `netstack run OPTIONS`; its kernel knows the gateway's MAC."""
    network = start_network(
        internet,  # type: ignore[arg-type]  # lab and host are all it needs
        "tap",
        options=options,
        upstream=upstream,
        ipv6=ipv6,
    )
    network.guest.run("ip", "neighbour", "replace", GATEWAY, "lladdr", GATEWAY_MAC, "dev", TAP)
    return RowGuest(internet, network)
