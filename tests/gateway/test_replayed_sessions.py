"""What a running gateway captures from its start is replayed as it was: frame by frame, event by event.

The gateway is the one of `netstack run`, its guests are on links in memory, its hosts on the loopback.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dns.message
import pytest
import trio
import trio.testing
from callee import ADDRESS, CLOSED, EAGER, ECHO, GREETING, RESETS, Callee
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from guest_iface import capture as capture_module
from guest_iface.link import Link, LinkClosed, Listener
from guest_iface.shaping import Limit
from netstack.build_kind import build_kind
from netstack.debug.replay import BY_HAND
from netstack.engine.events import DnsEvent, Event, FlowClosed, FlowOpened, FlowRefused, LeaseEvent
from netstack.gateway import driver as driver_module
from netstack.gateway.attachments import open_attachments
from netstack.gateway.journal import TOO_MANY, TOUCHED
from netstack.gateway.run_command import Gateway
from netstack.gateway.wires import NO_LIMITS, Limits
from netstack.hooks import Decision, DnsQuestion, Flow, HookRunner, Hooks, allow, refuse
from netstack.impairments import parse_impairments
from netstack.network_spec import NetworkSpec
from netstack.testing.replayed import Replayed, replay_capture
from netstack.wire import ipv4
from tests.gateway.test_driver import ALIAS, GATEWAY, GATEWAY_MAC, Guest, MemoryLink, echo, server
from tests.gateway.test_run_command import configuration

LIMIT = 15.0
LOSES_ALL = parse_impairments(["loss 100%"], "impair")
SLOW = Limits(tx=Limit(8, 0))
MACS = tuple(f"02:00:00:00:00:{number:02x}" for number in range(2, 9))
TO_ALL = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(autouse=True, params=["heard", "itself"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that was made to be heard, and one whose own methods a journal replaces: no compiled one's."""
    if request.param == "itself":
        if build_kind() == "compiled":
            pytest.skip("a compiled object's methods stay as they are")
        monkeypatch.setattr(driver_module, "heard", lambda stack: stack)


class Card(MemoryLink):
    """A link whose guest sees what the gateway sends to it; the rest is in `others`."""

    def __init__(self, name: str, mac: str) -> None:
        super().__init__(name)
        self._ends = bytes.fromhex((mac + GATEWAY_MAC).replace(":", ""))
        self.tcp_alone = False
        """The rest is all but segments: answers whose moment nobody waits for are passed over."""
        self.others: list[bytes] = []

    def send_batch(self, frames: Sequence[bytes]) -> None:
        mine = [
            frame for frame in frames if frame.startswith(self._ends) and (not self.tcp_alone or frame[23] == ipv4.TCP)
        ]
        self.others += (frame for frame in frames if frame not in mine)
        super().send_batch(mine)


class Arrivals(Listener):
    """Where guests come, one link each."""

    name = "memory"

    def __init__(self) -> None:
        self._give, self._take = trio.open_memory_channel[Link](16)

    async def accept(self) -> Link:
        return await self._take.receive()

    def come(self, link: Link) -> None:
        self._give.send_nowait(link)

    def close(self) -> None:
        self._give.close()


class Session:
    """A gateway, what it told, and its guests."""

    def __init__(self, gateway: Gateway, arrivals: Arrivals, events: list[Event], capture: Path) -> None:
        self.gateway, self.events, self.capture = gateway, events, capture
        self._arrivals = arrivals
        self._links = 0

    async def join(self, mac: str) -> Guest:
        """One more guest on a link of its own, with a lease."""
        self._links += 1
        link = Card(f"link{self._links}", mac)
        self._arrivals.come(link)
        guest = Guest(link, mac)
        await guest.dhcp()
        return guest

    def port(self, guest: Guest) -> int:
        """The switch's, of a guest's link."""
        return next(port for port, link in self.gateway.driver.links.items() if link.name == guest.link.name)

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(LIMIT):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked(0.002)


@asynccontextmanager
async def session(path: Path, *fds: int, **options: Any) -> AsyncIterator[Session]:
    """A gateway that captures from its start, for the time of the block."""
    events: list[Event] = []
    config = configuration(*fds, capture=path, **options)
    attachments = open_attachments(config.links, 1500)
    arrivals = Arrivals()
    attachments.listeners.append(arrivals)
    gateway = Gateway(config, attachments, watch=events.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        yield Session(gateway, arrivals, events, path)
        gateway.stop()


def the_same(made: Session, *, passed_by: int = 0, by_hand: int = 0) -> Replayed:
    """Replay it: byte for byte the same frames, the same events in the same order, and nothing else left out."""
    replayed = replay_capture(made.capture)
    assert replayed.exact
    assert replayed.differences == (), "\n".join(replayed.lines)
    assert replayed.events == tuple(made.events)
    assert replayed.summary.skipped == Counter({"not for the gateway": passed_by, BY_HAND: by_hand})
    return replayed


def ping(guest: Guest, number: int = 1) -> Packet:
    return IP(src=guest.address, dst=GATEWAY) / ICMP(type=8, id=1, seq=number) / b"abc"


def question(guest: Guest, name: str) -> Packet:
    message = dns.message.make_query(name, "A", id=7).to_wire()
    return IP(src=guest.address, dst=GATEWAY) / UDP(sport=5000, dport=53) / message


async def test_guests_that_talk_to_the_host_and_to_each_other(tmp_path: Path) -> None:
    async with server(echo) as port, session(tmp_path / "a.pcapng") as made:
        guests = [await made.join(mac) for mac in MACS[:3]]
        streams = [await guest.connect(ALIAS, port) for guest in guests]
        for guest in guests:
            assert await guest.arp(GATEWAY) == GATEWAY_MAC
        data = bytes(range(256)) * 40
        for stream in streams:
            stream.say(data)
        assert [await stream.read(len(data)) for stream in streams] == [data] * 3
        one, other, _ = guests
        between = IP(src=one.address, dst=other.address) / UDP(sport=9, dport=9) / b"hi"
        # Behind one another in a batch: for the other, for all, for the gateway, for nobody.
        one.link.put(
            bytes(Ether(src=one.mac, dst=other.mac) / between),
            bytes(Ether(src=one.mac, dst=TO_ALL) / between),
            bytes(Ether(src=one.mac, dst=GATEWAY_MAC) / ping(one)),
            bytes(Ether(src=one.mac, dst=one.mac) / between),
            bytes(Ether(src=GATEWAY_MAC, dst=other.mac) / between),
        )
        assert (await one.link.frame())[ICMP].type == 0
        assert len(other.link.others) >= 2
    the_same(made, passed_by=3)


async def test_a_guest_that_poses_as_a_host_towards_another(tmp_path: Path) -> None:
    """What the host said is read out of the gateway's frames alone, not of what guests tell each other."""
    async with server(echo) as port, session(tmp_path / "a.pcapng") as made:
        one, other = [await made.join(mac) for mac in MACS[:2]]
        stream = await other.connect(ALIAS, port)
        forged = IP(src=ALIAS, dst=other.address) / next_segment(stream, b"forged")
        one.link.put(bytes(Ether(src=one.mac, dst=other.mac) / forged))
        await settled()
        stream.say(b"honest")
        assert await stream.read(6) == b"honest"
    the_same(made, passed_by=1)


def next_segment(stream: Any, data: bytes) -> Packet:
    """A segment as the stream's host would send it next."""
    return TCP(sport=stream.port, dport=stream.source_port, flags="PA", seq=stream.heard, ack=stream.sent) / data


async def test_guests_that_leave_and_come_back(tmp_path: Path) -> None:
    """A link that ends, another guest with the same MAC; a datagram link that outlives its guest."""
    async with server(echo) as port, session(tmp_path / "a.pcapng") as made:
        one, other = [await made.join(mac) for mac in MACS[:2]]
        streams = [await guest.connect(ALIAS, port) for guest in (one, other)]
        streams[0].say(b"before")
        await streams[0].read(6)
        one.link.end(LinkClosed("gone"))
        await until(lambda: made.told(FlowClosed))
        streams[1].say(b"meanwhile")
        assert await streams[1].read(9) == b"meanwhile"
        again = await made.join(MACS[0])
        assert again.address == one.address
        stream = await again.connect(ALIAS, port)
        stream.say(b"after")
        assert await stream.read(5) == b"after"
        # The same link, another guest.
        other.link.counters.guests += 1
        other.send(ping(other))
        assert (await other.link.frame())[ICMP].type == 0
        assert await other.dhcp() == other.address
        anew = await other.connect(ALIAS, port)
        anew.say(b"anew")
        assert await anew.read(4) == b"anew"
        # Everybody goes, and one comes to an empty network.
        for guest in (again, other):
            guest.link.end(LinkClosed("gone"))
        await until(lambda: not made.gateway.driver.links)
        last = await made.join(MACS[2])
        await last.connect(ALIAS, port)
    the_same(made)
    assert [event.reason for event in made.told(FlowClosed)].count("guest left") == 5


async def test_frames_put_in_by_hand(tmp_path: Path) -> None:
    """As the console does: as if a guest had sent them, and as if the gateway had."""
    async with server(echo) as port, session(tmp_path / "a.pcapng") as made:
        one, other = [await made.join(mac) for mac in MACS[:2]]
        driver = made.gateway.driver
        forged = bytes(Ether(src=one.mac, dst=GATEWAY_MAC) / ping(one, 7))
        between = bytes(Ether(src=one.mac, dst=other.mac) / ping(one, 8))
        driver.take_frames(made.port(one), [forged, between, forged[:20]])
        assert (await one.link.frame())[ICMP].seq == 7
        assert bytes(other.link.others[-1]) == between
        spoken = bytes(Ether(src=GATEWAY_MAC, dst=other.mac) / IP(src=GATEWAY, dst=other.address) / ICMP() / b"hand")
        driver.put_frames(made.port(other), [spoken, spoken])
        assert bytes(await other.link.frame()) == spoken
        await other.link.frame()
        stream = await other.connect(ALIAS, port)
        stream.say(b"and on")
        assert await stream.read(6) == b"and on"
    the_same(made, by_hand=2)


class Doorman(Hooks):
    """Lets guests to the host, whatever the list says, but for one port; and nobody to anywhere outside."""

    async def on_flow(self, flow: Flow) -> Decision | None:
        if flow.policy_allows or flow.destination == ALIAS:
            return allow("asked") if flow.destination == ALIAS and flow.port != 65_535 else refuse("closed")
        return None

    async def on_dns(self, question: DnsQuestion) -> Decision | None:
        return refuse("not that") if question.name.startswith("bad.") else None


async def test_policies_kill_switch_and_hooks(tmp_path: Path) -> None:
    spec = NetworkSpec.enabled(["example.com"])
    hooks = HookRunner(Doorman(), may_allow=True)
    async with server(echo) as port, session(tmp_path / "a.pcapng", policy=spec, hooks=hooks) as made:
        one, other = [await made.join(mac) for mac in MACS[:2]]
        one.link.tcp_alone = other.link.tcp_alone = True

        async def tries() -> None:
            for guest in (one, other):
                guest.send(
                    question(guest, "bad.example.com"),
                    question(guest, "example.com"),
                    question(guest, "elsewhere.example"),
                    IP(src=guest.address, dst="93.184.216.34") / UDP(sport=5002, dport=9) / b"x",
                    IP(src=guest.address, dst=ALIAS) / UDP(sport=5003, dport=65_535) / b"x",
                )
                guest.link.put(bytes(Ether(src=guest.mac, dst=one.mac) / ping(guest)))
            await settled()

        async def says(guest: Guest, data: bytes) -> None:
            guest.link.to_guest.clear()  # resets, of streams that a policy ended
            stream = await guest.connect(ALIAS, port)
            stream.say(data)
            assert await stream.read(len(data)) == data

        await says(one, b"under a list")
        await tries()
        made.gateway.kill_network()
        await tries()
        assert made.gateway.lift_kill_switch()
        await says(other, b"lifted")
        await made.gateway.replace_policy(NetworkSpec.enabled())
        await tries()
        await says(one, b"no list")
        await made.gateway.replace_policy(NetworkSpec.disabled())
        await tries()
        await made.gateway.reload_policy()
        await says(one, b"back")
        await tries()
    the_same(made, passed_by=10)
    verdicts = [event.verdict.reason for event in made.told(FlowRefused)]
    assert {"closed", "no-rule", "disabled"} <= set(verdicts)
    assert "asked" in {event.verdict.reason for event in made.told(FlowOpened)}
    assert {event.verdict.reason for event in made.told(DnsEvent)} >= {"not that", "name-not-allowed"}


async def test_port_forwards(tmp_path: Path) -> None:
    """Towards a guest that is one of several: who it is the gateway asks all of them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    callee = Callee(theirs)
    with theirs:
        async with (
            trio.open_nursery() as nursery,
            server(echo) as port,
            session(tmp_path / "a.pcapng", ours.detach()) as made,
        ):
            other = await made.join(MACS[0])
            await made.join(MACS[1])
            with contextlib.suppress(BlockingIOError):
                while True:
                    theirs.recv(65_536)  # the others' broadcasts: nothing has been heard of it yet
            nursery.start_soon(callee.run)
            expose = made.gateway.forwards.expose
            assert other.address != ADDRESS
            for guest_port in (ECHO, EAGER, RESETS, CLOSED):
                forward = await expose("tcp", "127.0.0.1:0", f"{ADDRESS}:{guest_port}")
                local = int(forward.local.rpartition(":")[2])
                with trio.fail_after(LIMIT):
                    async with await trio.open_tcp_stream("127.0.0.1", local) as client:
                        if guest_port == ECHO:
                            await client.send_all(b"x" * 5000)
                            await client.send_eof()
                        elif guest_port == RESETS:
                            await client.send_all(b"x")
                        try:
                            heard = b"".join([piece async for piece in client])
                        except trio.BrokenResourceError:
                            heard = b""
                assert heard == {ECHO: b"x" * 5000, EAGER: GREETING}.get(guest_port, b"")
            forward = await expose("udp", "127.0.0.1:0", f"{ADDRESS}:{ECHO}")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client_socket:
                client_socket.setblocking(False)
                client_socket.connect(("127.0.0.1", int(forward.local.rpartition(":")[2])))
                client_socket.send(b"datagram")
                with trio.fail_after(LIMIT):
                    await trio.lowlevel.wait_readable(client_socket)
                assert client_socket.recv(100) == b"datagram"
            stream = await other.connect(ALIAS, port)
            stream.say(b"meanwhile")
            assert await stream.read(9) == b"meanwhile"
            made.gateway.kill_network()
            nursery.cancel_scope.cancel()
    replayed = the_same(made)
    assert [event.direction for event in replayed.told(FlowOpened)].count("in") >= 4


async def test_what_is_put_on_the_way_ends_the_journal_and_it_says_so(tmp_path: Path) -> None:
    """Losses that nobody but the capture saw, while nothing else was said, and that are over when something is."""
    api = {"api_listen": (f"unix://{tmp_path}/api.sock",)}
    for name, begin, end, options in (
        ("impair", lambda gateway: gateway.wires.impair(LOSES_ALL), lambda gateway: gateway.wires.impair([]), {}),
        ("limit", lambda gateway: gateway.wires.limit(SLOW), lambda gateway: gateway.wires.limit(NO_LIMITS), {}),
        ("breakpoint", hold_everything, lambda gateway: gateway.debugging.breakpoints.remove(1), api),
    ):
        async with session(tmp_path / f"{name}.pcapng", **options) as made:
            one, other = [await made.join(mac) for mac in MACS[:2]]
            one.send(ping(one, 1))
            assert (await one.link.frame())[ICMP].seq == 1
            begin(made.gateway)
            one.send(ping(one, 2))
            await settled()
            end(made.gateway)
            other.send(ping(other, 3))
            assert (await other.link.frame())[ICMP].seq == 3
        replayed = replay_capture(made.capture)
        assert replayed.differences == (), name
        assert replayed.exact
        assert replayed.summary.skipped == {TOUCHED: 2}, name
        assert replayed.lines[-1].endswith(f" s: {TOUCHED}")
        assert [event for event in replayed.events if isinstance(event, LeaseEvent)] == made.told(LeaseEvent)


def hold_everything(gateway: Gateway) -> None:
    gateway.debugging.breakpoints.add("icmp", lambda frame: True)


async def test_a_capture_that_begins_later_has_no_journal(tmp_path: Path) -> None:
    """Its replay leaves out what was open before and what passes by, and plays the rest byte for byte."""
    path = tmp_path / "later.pcapng"
    async with server(echo) as port, session(tmp_path / "a.pcapng") as made:
        one, other = [await made.join(mac) for mac in MACS[:2]]
        before = await one.connect(ALIAS, port)
        number = made.gateway.captures.start(path)
        before.say(b"left out")
        assert await before.read(8) == b"left out"
        for guest in (one, other):
            assert await guest.arp(GATEWAY) == GATEWAY_MAC
            stream = await guest.connect(ALIAS, port)
            stream.say(b"played")
            assert await stream.read(6) == b"played"
        between = IP(src=one.address, dst=other.address) / UDP(sport=9, dport=9) / b"hi"
        one.link.put(bytes(Ether(src=one.mac, dst=other.mac) / between))
        await settled()
        made.gateway.captures.stop(number)
    replayed = replay_capture(path)
    assert replayed.differences == (), "\n".join(replayed.lines)
    assert replayed.summary.compared >= 6
    assert replayed.summary.skipped["for another guest"] == 1
    the_same(made, passed_by=1)


async def test_what_a_capture_without_a_journal_cannot_know_is_said(tmp_path: Path) -> None:
    path = tmp_path / "later.pcapng"
    async with session(tmp_path / "a.pcapng") as made:
        one = await made.join(MACS[0])
        number = made.gateway.captures.start(path)
        forged = bytes(Ether(src=one.mac, dst=GATEWAY_MAC) / ping(one))
        made.gateway.driver.take_frames(made.port(one), [forged])
        assert (await one.link.frame())[ICMP].type == 0
        made.gateway.captures.stop(number)
    replayed = replay_capture(path)
    assert [each.what for each in replayed.differences] == ["recorded, and not sent by us"]
    assert "no journal, so what no frame shows was reckoned" in replayed.lines[-1]
    assert "no journal" not in the_same(made).lines[-1]


async def test_links_beyond_what_a_capture_describes_end_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "MAX_INTERFACES", 2)
    async with session(tmp_path / "a.pcapng") as made:
        for mac in MACS[:3]:
            guest = await made.join(mac)
            assert await guest.arp(GATEWAY) == GATEWAY_MAC
    replayed = replay_capture(made.capture)
    assert replayed.differences == ()
    assert replayed.summary.compared >= 6
    assert replayed.lines[-1].endswith(f" s: {TOO_MANY}")
