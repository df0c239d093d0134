"""The driver with links in memory, a guest that speaks scapy, and real servers on the loopback.

Nothing sleeps: the guest waits for frames, tests wait for events. Where time has to pass, it is trio's mock clock's.
"""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count

import dns.message
import pytest
import trio
import trio.testing
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import NoPayload, Packet, Raw

from guest_iface.link import Link, LinkCapabilities, LinkClosed, LinkCounters, LinkError
from netstack.engine.events import Event, FlowClosed, FlowOpened, LeaseEvent
from netstack.engine.settings import LinkTraits, NetworkSettings
from netstack.gateway import driver as driver_module
from netstack.gateway.driver import MAX_BACKLOG, Driver, keyed_sequence_numbers
from netstack.gateway.resolver import AnswersDns

GATEWAY_MAC, BROADCAST_MAC = "5a:94:ef:e4:0c:dd", "ff:ff:ff:ff:ff:ff"
GATEWAY, ALIAS = "192.168.127.1", "192.168.127.254"
LIMIT = 15.0
"""Seconds a test may wait for what it expects."""


class MemoryLink(Link):
    """A link whose guest is in the same program."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.capabilities = LinkCapabilities()
        self.counters = LinkCounters()
        self.to_guest: list[bytes] = []
        self.waiting = 0
        self.ended: Exception | None = None
        self.closed = False
        self._from_guest: list[bytes] = []
        self._heard = trio.Event()
        self._said = trio.Event()
        self._drained = trio.Event()

    # The driver's side.

    async def receive_batch(self) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        while not self._from_guest:
            if self.ended is not None:
                raise self.ended
            self._said = trio.Event()
            await self._said.wait()
        frames, self._from_guest = self._from_guest[:64], self._from_guest[64:]
        return frames

    def send_batch(self, frames: Sequence[bytes]) -> None:
        assert not self.closed
        self.to_guest.extend(frames)
        self._heard.set()

    @property
    def backlog(self) -> int:
        return self.waiting

    async def wait_backlog_drained(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.waiting:
            self._drained = trio.Event()
            await self._drained.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    def close(self) -> None:
        self.closed = True

    # The guest's side.

    def put(self, *frames: bytes) -> None:
        self._from_guest.extend(frames)
        self._said.set()

    def end(self, error: Exception) -> None:
        self.ended = error
        self._said.set()

    def drain(self) -> None:
        self.waiting = 0
        self._drained.set()

    async def frame(self) -> Ether:
        with trio.fail_after(LIMIT):
            while not self.to_guest:
                self._heard = trio.Event()
                await self._heard.wait()
        return Ether(self.to_guest.pop(0))


class NoResolver(AnswersDns):
    async def ask(self, message: bytes) -> bytes | None:
        raise AssertionError("nothing is to be asked upstream")


class Guest:
    """A machine with one interface, by scapy."""

    def __init__(self, link: MemoryLink, mac: str = "02:00:00:00:00:02") -> None:
        self.link = link
        self.mac = mac
        self.address = ""
        self._ports = count(40_000)

    def send(self, *packets: Packet) -> None:
        self.link.put(*(bytes(Ether(src=self.mac, dst=GATEWAY_MAC) / packet) for packet in packets))

    def broadcast(self, packet: Packet) -> None:
        self.link.put(bytes(Ether(src=self.mac, dst=BROADCAST_MAC) / packet))

    async def dhcp(self) -> str:
        def request(*options: object) -> Packet:
            bootp = BOOTP(chaddr=bytes.fromhex(self.mac.replace(":", "")), xid=7) / DHCP(options=[*options, "end"])
            return IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / bootp

        self.broadcast(request(("message-type", "discover")))
        offer = await self.link.frame()
        address = offer[BOOTP].yiaddr
        self.broadcast(request(("message-type", "request"), ("server_id", GATEWAY), ("requested_addr", address)))
        acknowledged = await self.link.frame()
        assert ("message-type", 5) in acknowledged[DHCP].options
        self.address = str(address)
        return self.address

    async def arp(self, address: str) -> str:
        self.broadcast(ARP(op="who-has", hwsrc=self.mac, psrc=self.address, pdst=address))
        answer = await self.link.frame()
        assert (answer[ARP].op, answer[ARP].psrc) == (2, address)
        return str(answer[ARP].hwsrc)

    async def connect(self, address: str, port: int) -> GuestStream:
        stream = GuestStream(self, address, port, next(self._ports))
        stream.put("S", options=[("MSS", 1460)])
        stream.sent += 1
        answer = await stream.segment()
        assert str(answer.flags) == "SA"
        stream.heard = answer.seq + 1
        stream.put("A")
        return stream


class GuestStream:
    """One connection of the guest; loss does not happen here."""

    def __init__(self, guest: Guest, address: str, port: int, source_port: int) -> None:
        self.guest = guest
        self.address, self.port, self.source_port = address, port, source_port
        self.sent, self.heard = 1000, 0

    def put(self, flags: str, data: bytes = b"", **fields: object) -> None:
        header = TCP(
            sport=self.source_port, dport=self.port, flags=flags, seq=self.sent % 2**32, ack=self.heard % 2**32,
            window=65_535, **fields,
        )  # fmt: skip
        packet = IP(src=self.guest.address, dst=self.address) / header
        self.guest.send(packet / Raw(data) if data else packet)

    async def segment(self) -> TCP:
        packet = (await self.guest.link.frame())[IP]
        assert (packet.src, packet.sport, packet.dport) == (self.address, self.port, self.source_port), packet.summary()
        return packet[TCP]

    def say(self, data: bytes) -> None:
        for at in range(0, len(data), 1460):
            piece = data[at : at + 1460]
            self.put("PA", piece)
            self.sent += len(piece)

    async def read(self, size: int) -> bytes:
        """Bytes in order, each segment acknowledged."""
        data = b""
        while len(data) < size:
            data += await self.read_some()
        return data

    async def read_some(self) -> bytes:
        segment = await self.segment()
        assert "R" not in segment.flags
        if segment.seq != self.heard % 2**32:
            return b""
        piece = b"" if isinstance(segment.payload, NoPayload) else bytes(segment.payload)
        self.heard += len(piece) + ("F" in segment.flags)
        if piece or "F" in segment.flags:
            self.put("A")
        return piece

    async def until(self, flag: str) -> TCP:
        """The first segment with a flag, empty acknowledgements passed over."""
        while flag not in (segment := await self.segment()).flags:
            assert isinstance(segment.payload, NoPayload)
        return segment


class Gateway:
    """A driver that runs, and what it told."""

    def __init__(self, driver: Driver, nursery: trio.Nursery) -> None:
        self.driver = driver
        self.nursery = nursery
        self.events: list[Event] = []
        self.served: dict[str, trio.Event] = {}
        self.errors: dict[str, BaseException] = {}

    def attach(self, name: str = "memory", mac: str = "02:00:00:00:00:02") -> Guest:
        link = MemoryLink(name)
        self.served[name] = trio.Event()
        self.nursery.start_soon(self._serve, link)
        return Guest(link, mac)

    async def _serve(self, link: MemoryLink) -> None:
        try:
            await self.driver.serve(link)
        except* LinkError as errors:
            self.errors[link.name] = errors.exceptions[0]
        finally:
            self.served[link.name].set()

    def told(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def wait_for_event(self, kind: type, number: int = 1) -> list[Event]:
        with trio.fail_after(LIMIT):
            while len(found := self.told(kind)) < number:
                await trio.testing.wait_all_tasks_blocked(0.001)
        return found


def settings(*, verify: bool = False, **changes: object) -> NetworkSettings:
    return NetworkSettings(link=LinkTraits(verify_checksums=verify), **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def running(resolver: object = None, **changes: object) -> AsyncIterator[Gateway]:
    """A gateway for the time of the block; afterwards every host socket is closed."""
    box: list[Gateway] = []
    driver = Driver(
        settings(**changes),
        resolver=resolver or NoResolver(),  # type: ignore[arg-type]
        event_sink=lambda event, now: box[0].events.append(event),
    )
    async with trio.open_nursery() as nursery:
        box.append(Gateway(driver, nursery))
        await nursery.start(driver.run)
        yield box[0]
        nursery.cancel_scope.cancel()
    assert len(driver.sockets) == 0


@asynccontextmanager
async def server(handle: Callable[[trio.SocketStream], object]) -> AsyncIterator[int]:
    """A TCP server on the loopback; its port."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    """Says back what it hears, and ends when the other side does, in whichever way."""
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


async def settled() -> None:
    """Give the other tasks and the kernel room."""
    await trio.testing.wait_all_tasks_blocked(0.005)


# -- a guest's day ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [True, False])
async def test_a_guest_gets_an_address_and_talks_to_a_server(verify: bool) -> None:
    async with running(verify=verify) as gateway, server(echo) as port:
        guest = gateway.attach()
        assert await guest.dhcp() == "192.168.127.2"
        assert await guest.arp(GATEWAY) == GATEWAY_MAC
        stream = await guest.connect(ALIAS, port)
        data = bytes(number * 7 & 0xFF for number in range(30_000))
        stream.say(data)
        assert await stream.read(len(data)) == data
        stream.put("FA")
        stream.sent += 1
        segment = await stream.until("F")
        stream.heard = segment.seq + 1
        stream.put("A")
        (closed,) = await gateway.wait_for_event(FlowClosed)
        assert (closed.reason, closed.sent, closed.received) == ("finished", len(data), len(data))
        assert [event.action for event in gateway.told(LeaseEvent)] == ["offered", "acknowledged"]
        assert len(gateway.told(FlowOpened)) == 1
        assert len(gateway.driver.sockets) == 0


async def test_a_port_that_nobody_listens_on_is_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with running() as gateway:
            guest = gateway.attach()
            await guest.dhcp()
            stream = GuestStream(guest, ALIAS, port, 40_000)
            stream.put("S")
            assert str((await stream.segment()).flags) == "RA"


async def test_a_reset_by_the_server_reaches_the_guest() -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()

    async with running() as gateway, server(reset) as port:
        guest = gateway.attach()
        await guest.dhcp()
        stream = await guest.connect(ALIAS, port)
        stream.say(b"x")
        assert (await stream.until("R")).seq == stream.heard
        (closed,) = await gateway.wait_for_event(FlowClosed)
        assert closed.reason == "reset by destination"


async def test_a_reset_by_the_guest_reaches_the_server() -> None:
    ended: list[str] = []
    done = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        try:
            while await stream.receive_some(100):
                pass
            ended.append("end")
        except trio.BrokenResourceError as error:
            ended.append(type(error.__cause__).__name__)
        done.set()

    async with running() as gateway, server(listen) as port:
        guest = gateway.attach()
        await guest.dhcp()
        stream = await guest.connect(ALIAS, port)
        stream.say(b"x")
        stream.put("R")
        with trio.fail_after(LIMIT):
            await done.wait()
    assert ended == ["ConnectionResetError"]


async def test_datagrams_and_their_refusal() -> None:
    with trio.socket.socket(type=socket.SOCK_DGRAM) as peer, socket.socket(type=socket.SOCK_DGRAM) as unused:
        await peer.bind(("127.0.0.1", 0))
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()[1]
        unused.close()
        async with running() as gateway:
            guest = gateway.attach()
            await guest.dhcp()
            guest.send(IP(src=guest.address, dst=ALIAS) / UDP(sport=5000, dport=peer.getsockname()[1]) / b"hello")
            data, source = await peer.recvfrom(100)
            await peer.sendto(data.upper(), source)
            answer = await guest.link.frame()
            assert (answer[IP].src, bytes(answer[UDP].payload)) == (ALIAS, b"HELLO")
            guest.send(IP(src=guest.address, dst=ALIAS) / UDP(sport=5000, dport=closed) / b"anyone?")
            error = await guest.link.frame()
            assert (error[IP].src, error[ICMP].type, error[ICMP].code) == (ALIAS, 3, 3)


async def test_the_gateway_answers_ping() -> None:
    async with running() as gateway:
        guest = gateway.attach()
        await guest.dhcp()
        guest.send(IP(src=guest.address, dst=GATEWAY) / ICMP(type=8, id=1, seq=2) / b"abc")
        assert (await guest.link.frame())[ICMP].type == 0


# -- names -----------------------------------------------------------------------------------------------------------


class SlowResolver(AnswersDns):
    """Answers each question when it is told to."""

    def __init__(self) -> None:
        self.asked: dict[str, trio.Event] = {}
        self.arrived = trio.Event()

    async def ask(self, message: bytes) -> bytes | None:
        question = dns.message.from_wire(message)
        name = question.question[0].name.to_text()
        self.asked[name] = trio.Event()
        self.arrived.set()
        await self.asked[name].wait()
        if name.startswith("nobody"):
            return None
        return dns.message.make_response(question).to_wire()


async def test_questions_are_asked_side_by_side() -> None:
    """A slow answer delays no other."""
    resolver = SlowResolver()
    async with running(resolver) as gateway:
        guest = gateway.attach()
        await guest.dhcp()
        names = ["slow.example.", "quick.example.", "nobody.example."]
        for ident, name in enumerate(names):
            message = dns.message.make_query(name, "A", id=ident).to_wire()
            guest.send(IP(src=guest.address, dst=GATEWAY) / UDP(sport=5000 + ident, dport=53) / message)
        with trio.fail_after(LIMIT):
            while len(resolver.asked) < 3:
                resolver.arrived = trio.Event()
                await resolver.arrived.wait()
        answers = []
        for name in ("quick.example.", "nobody.example.", "slow.example."):
            resolver.asked[name].set()
            packet = await guest.link.frame()
            message = dns.message.from_wire(bytes(packet[UDP].payload))
            answers.append((packet[UDP].dport, message.id, int(message.rcode())))
        assert answers == [(5001, 1, 0), (5002, 2, 2), (5000, 0, 0)]


async def test_questions_under_way_end_with_the_gateway() -> None:
    resolver = SlowResolver()
    async with running(resolver) as gateway:
        guest = gateway.attach()
        await guest.dhcp()
        message = dns.message.make_query("slow.example.", "A").to_wire()
        guest.send(IP(src=guest.address, dst=GATEWAY) / UDP(sport=5000, dport=53) / message)
        with trio.fail_after(LIMIT):
            await resolver.arrived.wait()


# -- links that come and go ------------------------------------------------------------------------------------------


async def test_l6_flows_end_with_their_link() -> None:
    """Conformance L6."""
    ended = trio.Event()

    async def hold(stream: trio.SocketStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(10)
        ended.set()

    async with running() as gateway, server(hold) as port:
        guest = gateway.attach()
        await guest.dhcp()
        await guest.connect(ALIAS, port)
        await gateway.wait_for_event(FlowOpened)
        guest.link.end(LinkClosed("gone"))
        with trio.fail_after(LIMIT):
            await gateway.served["memory"].wait()
            await ended.wait()
        assert guest.link.closed
        assert [event.reason for event in gateway.told(FlowClosed)] == ["guest left"]
        assert len(gateway.driver.sockets) == 0
        assert gateway.errors == {}


async def test_a_link_that_cannot_be_understood_is_an_error_of_its_own() -> None:
    async with running() as gateway:
        broken, other = gateway.attach("broken"), gateway.attach("other", "02:00:00:00:00:03")
        await other.dhcp()
        broken.link.end(LinkError("a length of 4 GiB"))
        with trio.fail_after(LIMIT):
            await gateway.served["broken"].wait()
        assert "4 GiB" in str(gateway.errors["broken"])
        assert broken.link.closed
        assert await other.arp(GATEWAY) == GATEWAY_MAC


async def test_a_guest_that_restarts_on_a_link_that_stays() -> None:
    """A datagram link outlives its guests: the same MAC begins anew, its old flows are over."""
    async with running() as gateway, server(echo) as port:
        guest = gateway.attach()
        guest.link.counters.guests = 1
        await guest.dhcp()
        await guest.connect(ALIAS, port)
        await gateway.wait_for_event(FlowOpened)
        guest.link.counters.guests = 2
        guest.send(IP(src=guest.address, dst=GATEWAY) / ICMP(type=8, id=1, seq=2) / b"abc")
        assert (await guest.link.frame())[ICMP].type == 0
        assert await guest.dhcp() == "192.168.127.2"
        assert [event.reason for event in gateway.told(FlowClosed)] == ["guest left"]
        stream = await guest.connect(ALIAS, port)
        stream.say(b"again")
        assert await stream.read(5) == b"again"


async def test_two_guests_on_one_gateway() -> None:
    """Each has its address, its flows, its frames; what they say to each other passes by the engine."""
    async with running() as gateway, server(echo) as port:
        first = gateway.attach("one", "02:00:00:00:00:02")
        second = gateway.attach("two", "02:00:00:00:00:03")
        assert await first.dhcp() == "192.168.127.2"
        await settled()
        second.link.to_guest.clear()  # the other's broadcasts
        assert await second.dhcp() == "192.168.127.3"
        await settled()
        first.link.to_guest.clear()
        streams = [await guest.connect(ALIAS, port) for guest in (first, second)]
        for number, stream in enumerate(streams):
            stream.say(b"from %d" % number)
        assert [await stream.read(6) for stream in streams] == [b"from 0", b"from 1"]
        first.link.put(bytes(Ether(src=first.mac, dst=second.mac) / IP(src=first.address, dst=second.address) / b"hi"))
        assert (await second.link.frame())[IP].src == first.address
        first.link.end(LinkClosed("gone"))
        await gateway.wait_for_event(FlowClosed)
        streams[1].say(b"still here")
        assert await streams[1].read(10) == b"still here"
        assert len(gateway.driver.sockets) == 1


# -- links that are behind -------------------------------------------------------------------------------------------


def source_of(size: int) -> Callable[[trio.SocketStream], object]:
    async def give(stream: trio.SocketStream) -> None:
        await stream.send_all(bytes(size))

    return give


async def test_a_link_that_is_behind_is_sent_no_more_data_until_it_has_caught_up() -> None:
    async with running() as gateway, server(source_of(40_000)) as port:
        guest = gateway.attach()
        await guest.dhcp()
        guest.link.waiting = MAX_BACKLOG
        stream = await guest.connect(ALIAS, port)
        await gateway.wait_for_event(FlowOpened)
        await settled()
        assert guest.link.to_guest == []
        guest.send(IP(src=guest.address, dst=GATEWAY) / ICMP(type=8) / b"abc")
        assert (await guest.link.frame()).haslayer(ICMP), "answers go out all the same"
        await settled()
        assert guest.link.to_guest == []
        guest.link.drain()
        assert await stream.read(40_000) == bytes(40_000)


async def test_a_guest_that_does_not_read_its_link_holds_back_nobody_else() -> None:
    async with running() as gateway, server(source_of(400_000)) as port:
        stuck = gateway.attach("stuck", "02:00:00:00:00:02")
        quick = gateway.attach("quick", "02:00:00:00:00:03")
        await stuck.dhcp()
        await settled()
        quick.link.to_guest.clear()
        await quick.dhcp()
        await settled()
        stuck.link.to_guest.clear()
        await stuck.connect(ALIAS, port)
        stuck.link.waiting = 4096
        await gateway.wait_for_event(FlowOpened)
        stream = await quick.connect(ALIAS, port)
        assert await stream.read(400_000) == bytes(400_000)
        assert stuck.link.waiting == 4096


async def test_data_that_one_flush_has_no_room_for_goes_out_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame of the guest is needed to go on."""
    monkeypatch.setattr(driver_module, "FRAMES_PER_FLUSH", 2)
    async with running() as gateway, server(source_of(14_600)) as port:
        guest = gateway.attach()
        await guest.dhcp()
        stream = await guest.connect(ALIAS, port)
        data = b""
        while len(data) < 14_600:
            data += bytes((await stream.segment()).payload)
        assert len(data) == 14_600


# -- time ------------------------------------------------------------------------------------------------------------


async def test_timers_are_kept(autojump_clock: trio.testing.MockClock) -> None:
    """A mapping that is idle ends after its 30 seconds, and the alarm for it moves no earlier one."""
    async with running() as gateway:
        guest = gateway.attach()
        await guest.dhcp()
        guest.send(IP(src=guest.address, dst=ALIAS) / UDP(sport=5000, dport=9) / b"x")
        await trio.sleep(29.9)
        assert len(gateway.driver.sockets) == 1
        await trio.sleep(0.2)
        assert len(gateway.driver.sockets) == 0
        assert [event.seconds for event in gateway.told(FlowClosed)] == [pytest.approx(30, abs=0.01)]


async def test_an_earlier_deadline_moves_the_alarm(autojump_clock: trio.testing.MockClock) -> None:
    """The mapping's 30 s are waited for when the delayed acknowledgement's 40 ms come."""
    async with running() as gateway:
        guest = gateway.attach()
        await guest.dhcp()
        guest.send(IP(src=guest.address, dst=ALIAS) / UDP(sport=5000, dport=9) / b"x")
        await trio.sleep(1)
        guest.link.to_guest.clear()
        stream = await guest.connect(GATEWAY, 53)
        stream.say(b"\x00")
        before = trio.current_time()
        assert str((await stream.segment()).flags) == "A"
        assert trio.current_time() - before < 0.5


# -- the end ---------------------------------------------------------------------------------------------------------


async def test_cancelling_closes_every_socket(recwarn: pytest.WarningsRecorder) -> None:
    """Links and driver are cancelled at one moment, in whichever order; no warning of an open socket follows."""
    async with server(echo) as port:
        async with running() as gateway:
            guest = gateway.attach()
            await guest.dhcp()
            for _ in range(5):
                await guest.connect(ALIAS, port)
            guest.send(IP(src=guest.address, dst=ALIAS) / UDP(sport=5000, dport=9) / b"x")
            await gateway.wait_for_event(FlowOpened, 6)
            assert len(gateway.driver.sockets) == 6
            driver = gateway.driver
        assert len(driver.sockets) == 0
        assert guest.link.closed
        del gateway, driver
        gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


async def test_a_link_that_outlives_the_driver_still_flushes() -> None:
    driver = Driver(settings(), resolver=NoResolver())
    link = MemoryLink()
    guest = Guest(link)
    async with trio.open_nursery() as nursery:
        stop = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with stop:
                await driver.run(task_status=task_status)

        await nursery.start(run)
        nursery.start_soon(driver.serve, link)
        await guest.dhcp()
        stop.cancel()
        await settled()
        assert len(driver.sockets) == 0
        stream = GuestStream(guest, ALIAS, 80, 40_000)
        stream.put("S")
        assert str((await stream.segment()).flags) == "RA"
        message = dns.message.make_query("example.com.", "A").to_wire()
        guest.send(IP(src=guest.address, dst=GATEWAY) / UDP(sport=5000, dport=53) / message)
        await settled()
        link.end(LinkClosed("gone"))


def test_sequence_numbers_are_keyed_and_move_with_the_clock() -> None:
    """RFC 6528 section 3."""
    first, second = keyed_sequence_numbers(), keyed_sequence_numbers()
    assert first(b"a" * 12, 1.0) != second(b"a" * 12, 1.0)
    assert first(b"a" * 12, 1.0) != first(b"b" * 12, 1.0)
    assert (first(b"a" * 12, 2.0) - first(b"a" * 12, 1.0)) % 2**32 == 250_000
    assert all(0 <= first(b"c" * 12, float(second)) < 2**32 for second in range(0, 100_000, 977))
