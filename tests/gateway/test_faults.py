"""Faults of streams and of DNS: a guest in memory, servers on the loopback, and what either of them sees."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
import trio
import trio.testing
from scapy.layers.inet import TCP

from netstack.engine.events import FlowClosed
from netstack.engine.verdict import Question
from netstack.fault_spec import StreamFault
from netstack.gateway.fault_table import FaultTable
from netstack.gateway.faulty_dns import FaultyResolver
from netstack.gateway.resolver import DEADLINE, AnswersDns
from netstack.gateway.wires import Wires
from netstack.impairments import parse_impairments
from tests.gateway.test_driver import ALIAS, Gateway, Guest, GuestStream, echo, running, server, settled

BODY = bytes(range(256)) * 1000


class Scene:
    """A gateway with impairments, a guest, and a server that says back what it hears."""

    def __init__(self, gateway: Gateway, guest: Guest, port: int) -> None:
        self.gateway, self.guest, self.port = gateway, guest, port
        self.wires = Wires(gateway.driver)

    def impair(self, *texts: str) -> None:
        self.wires.impair(parse_impairments([text.format(port=self.port) for text in texts], "test"))

    async def connect(self) -> GuestStream:
        with trio.fail_after(15):
            return await self.guest.connect(ALIAS, self.port)

    @property
    def counts(self) -> list[dict[str, int]]:
        return self.wires.counts()


@asynccontextmanager
async def scene(handle: Callable[[trio.SocketStream], object] = echo) -> AsyncIterator[Scene]:
    async with server(handle) as port, running() as gateway:
        guest = gateway.attach()
        await guest.dhcp()
        await guest.arp(ALIAS)
        yield Scene(gateway, guest, port)


async def exchange(stream: GuestStream, data: bytes) -> bytes:
    stream.say(data)
    with trio.fail_after(15):
        return await stream.read(len(data))


async def read_until_reset(stream: GuestStream) -> bytes:
    data = b""
    with trio.fail_after(15):
        while True:
            segment: TCP = await stream.segment()
            if "R" in segment.flags:
                return data
            if segment.seq == stream.heard % 2**32 and segment.payload:
                data += bytes(segment.payload)
                stream.heard += len(segment.payload)
                stream.put("A")


async def test_a_flow_is_reset_after_so_many_bytes_from_the_host() -> None:
    over = trio.Event()

    async def talk(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(BODY)
        over.set()

    async with scene(talk) as here:
        here.impair("stream match tcp port {port} reset after 100k seed 1")
        stream = await here.connect()
        data = await read_until_reset(stream)
        assert data == BODY[: 100 << 10], "exactly so many, and then the reset"
        with trio.fail_after(15):
            await over.wait()
        (closed,) = await here.gateway.wait_for_event(FlowClosed)
        assert isinstance(closed, FlowClosed)
        assert closed.reason == "reset by destination"
        assert here.counts == [{"seen": 1, "hit": 1}]


async def test_a_flow_is_reset_after_so_many_bytes_in_both_directions() -> None:
    async with scene() as here:
        here.impair("stream match port {port} reset after 2000 seed 1")
        stream = await here.connect()
        assert await exchange(stream, BODY[:900]) == BODY[:900]
        stream.say(BODY[900:1200])
        assert await read_until_reset(stream) == b"", "1800 and 200 of what was said"


async def test_reset_at_once() -> None:
    async with scene() as here:
        here.impair("stream reset seed 1")
        stream = await here.connect()
        assert await read_until_reset(stream) == b""


async def test_a_black_hole_swallows_and_gives_back_when_it_is_lifted() -> None:
    async with scene() as here:
        here.impair("stream match port {port} black-hole after 1000 seed 1")
        stream, other = await here.connect(), None
        assert await exchange(stream, BODY[:500]) == BODY[:500]
        stream.say(BODY[500:2000])
        await settled()
        heard = [frame for frame in here.guest.link.to_guest if len(frame) > 60]
        assert heard == [], "acknowledgements at most"
        here.impair("stream match port 1 reset")
        with trio.fail_after(15):
            assert await stream.read(1500) == BODY[500:2000]
        other = await here.connect()
        assert await exchange(other, BODY[:3000]) == BODY[:3000]
        here.impair()
        assert await exchange(other, BODY[:3000]) == BODY[:3000]
        assert await exchange(stream, BODY[:3000]) == BODY[:3000]


async def test_an_end_that_comes_late(autojump_clock: trio.testing.MockClock) -> None:
    async def bye(stream: trio.SocketStream) -> None:
        await stream.send_all(b"bye")
        await stream.aclose()

    async with scene(bye) as here:
        here.impair("stream slow-close 5s seed 1")
        began = trio.current_time()
        stream = await here.connect()
        assert await stream.read(3) == b"bye"
        await stream.until("F")
        assert trio.current_time() - began >= 5


@pytest.mark.parametrize(
    ("words", "answer"),
    [("dial refused", "RA"), ("dial timed-out", ""), ("dial-delay 3s", "SA"), ("dial-delay 3s dial refused", "RA")],
)
async def test_dials_that_fail_or_are_late(words: str, answer: str, autojump_clock: trio.testing.MockClock) -> None:
    async with scene() as here:
        here.impair(f"stream match port {{port}} {words} seed 1")
        began = trio.current_time()
        stream = GuestStream(here.guest, ALIAS, here.port, 39_000)
        stream.put("S", options=[("MSS", 1460)])
        said = await stream.guest.link.frame()
        if answer:
            assert str(said[TCP].flags) == answer
            assert (trio.current_time() - began >= 3) == ("delay" in words)
        else:
            assert said.summary().count("ICMP") >= 1


async def test_a_guest_that_gives_up_ends_a_late_dial(autojump_clock: trio.testing.MockClock) -> None:
    async with scene() as here:
        here.impair("stream dial-delay 30s seed 1")
        stream = GuestStream(here.guest, ALIAS, here.port, 39_000)
        stream.put("S", options=[("MSS", 1460)])
        stream.sent += 1
        await trio.sleep(1)
        stream.put("R")
        (closed,) = await here.gateway.wait_for_event(FlowClosed)
        assert closed.reason == "reset by guest"  # type: ignore[attr-defined]  # it is a FlowClosed
        await trio.sleep(60)
        assert len(here.gateway.driver.sockets) == 0


async def test_dice_and_order() -> None:
    faults = parse_impairments("stream match port 80 reset; stream chance 30% black-hole seed 5", "test")
    table = FaultTable([fault for fault in faults if isinstance(fault, StreamFault)])

    def asked(port: int) -> str:
        question = Question(1, 6, (bytes([192, 168, 127, 2]), 40_000), (bytes([10, 0, 0, 1]), port))
        return str(table.for_flow(question) or "")

    assert {asked(80) for _ in range(10)} == {"stream match (port 80) reset after 0"}
    hit = [bool(asked(81)) for _ in range(1000)]
    assert sum(hit) == pytest.approx(300, abs=60)
    again = FaultTable([fault for fault in faults if isinstance(fault, StreamFault)])
    assert [bool(again.for_flow(Question(1, 6, (b"\1" * 4, 1), (b"\2" * 4, 81)))) for _ in range(1000)] == hit
    assert (table.counts[1].seen, table.counts[1].hit) == (1000, sum(hit))


# -- DNS -----------------------------------------------------------------------------------------------------------


class Upstream(AnswersDns):
    """Answers A questions with 192.0.2.1."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.began = 0

    def begin(self, message: bytes, done: Callable[[bytes | None], None]) -> bool:
        self.began += 1
        done(self._answer(message))
        return True

    async def ask(self, message: bytes) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._answer(message)

    def _answer(self, message: bytes) -> bytes:
        query = dns.message.from_wire(message)
        self.asked.append(str(query.question[0].name))
        answer = dns.message.make_response(query, recursion_available=True)
        answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.1"))
        return answer.to_wire()


def question(name: str, qtype: str = "A") -> bytes:
    return dns.message.make_query(name, qtype, use_edns=0).to_wire()


async def fate(words: str, name: str, qtype: str = "A") -> tuple[str, list[str], float]:
    """What a question is told under faults: response code, addresses, seconds."""
    upstream = Upstream()
    resolver = FaultyResolver(upstream)
    resolver.table = FaultTable([each for each in parse_impairments(words, "test") if not hasattr(each, "limit")])  # type: ignore[misc]  # no impairments of links
    told: list[bytes | None] = []
    began = trio.current_time()
    if not resolver.begin(question(name, qtype), told.append):
        told.append(await resolver.ask(question(name, qtype)))
    (answer,) = told
    seconds = round(trio.current_time() - began, 3)
    if answer is None:
        return "nothing", [], seconds
    read = dns.message.from_wire(answer)
    assert read.flags & dns.flags.QR
    assert read.question == dns.message.from_wire(question(name, qtype)).question
    addresses = [item.to_text() for rrset in read.answer for item in rrset]
    return dns.rcode.to_text(read.rcode()), addresses, seconds


@pytest.mark.parametrize(
    ("words", "name", "qtype", "told"),
    [
        ("dns a.example servfail", "a.example", "A", ("SERVFAIL", [], 0)),
        ("dns a.example servfail", "A.Example", "AAAA", ("SERVFAIL", [], 0)),
        ("dns a.example servfail", "b.a.example", "A", ("NOERROR", ["192.0.2.1"], 0)),
        ("dns *.a.example nxdomain", "b.a.example", "A", ("NXDOMAIN", [], 0)),
        ("dns *.a.example nxdomain", "a.example", "A", ("NOERROR", ["192.0.2.1"], 0)),
        ("dns * refused delay 2s", "x", "A", ("REFUSED", [], 2.0)),
        ("dns x timeout", "x", "A", ("nothing", [], DEADLINE)),
        ("dns x delay 700ms", "x", "A", ("NOERROR", ["192.0.2.1"], 0.7)),
        ("dns x answer 10.0.0.9,10.0.0.10", "x", "A", ("NOERROR", ["10.0.0.9", "10.0.0.10"], 0)),
        ("dns x answer 10.0.0.9", "x", "AAAA", ("NOERROR", [], 0)),
        ("dns x servfail; dns * nxdomain", "y", "A", ("NXDOMAIN", [], 0)),
        ("dns x servfail chance 0%", "x", "A", ("NOERROR", ["192.0.2.1"], 0)),
    ],
)
async def test_what_a_question_is_told(
    words: str, name: str, qtype: str, told: tuple[str, list[str], float], autojump_clock: trio.testing.MockClock
) -> None:
    assert await fate(words, name, qtype) == told


async def test_questions_without_a_fault_take_no_task() -> None:
    upstream = Upstream()
    resolver = FaultyResolver(upstream)
    resolver.table = FaultTable(parse_impairments("dns x servfail", "test"))  # type: ignore[arg-type]  # only faults
    told: list[bytes | None] = []
    assert resolver.begin(question("y"), told.append)
    assert not resolver.begin(question("x"), told.append)
    assert (upstream.asked, len(told)) == (["y."], 1)


async def test_a_guest_hears_a_fault_and_what_was_cached_is_forgotten() -> None:
    upstream = Upstream()

    async def told(guest: Guest) -> tuple[str, list[str]]:
        from scapy.layers.inet import IP, UDP
        from scapy.packet import Raw

        query = dns.message.make_query("a.example", "A")
        guest.send(IP(src=guest.address, dst="192.168.127.1") / UDP(sport=5353, dport=53) / Raw(query.to_wire()))
        answer = dns.message.from_wire(bytes((await guest.link.frame())[UDP].payload))
        return dns.rcode.to_text(answer.rcode()), [item.to_text() for rrset in answer.answer for item in rrset]

    async with running(upstream) as gateway:
        guest = gateway.attach()
        await guest.dhcp()
        await guest.arp("192.168.127.1")
        wires = Wires(gateway.driver)
        assert await told(guest) == await told(guest) == ("NOERROR", ["192.0.2.1"])
        assert len(upstream.asked) == 1, "the second was from the cache"
        wires.impair(parse_impairments("dns a.example servfail", "test"))
        assert await told(guest) == ("SERVFAIL", [])
        wires.impair(parse_impairments("dns a.example answer 10.0.0.9", "test"))
        assert await told(guest) == ("NOERROR", ["10.0.0.9"])
        wires.impair(())
        assert await told(guest) == ("NOERROR", ["192.0.2.1"])
