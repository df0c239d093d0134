"""The resolver against real UDP and TCP servers on loopback, on a clock that jumps when everyone waits."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.dns_server import Answer, Ask, DnsServer, DnsStream, Transport
from netstack.engine.events import Event
from netstack.engine.judge import Judge
from netstack.engine.outbox import Outbox
from netstack.engine.policy import Policy, PolicySettings
from netstack.engine.settings import NetworkSettings, Zone, ZoneRecord
from netstack.engine.zones import Zones
from netstack.gateway import resolv_conf
from netstack.gateway import resolver as module
from netstack.gateway.busy_poll import BusyPoll
from netstack.gateway.resolv_conf import LOCALHOST, TIMEOUT, Configuration, Server, parse_resolv_conf, parse_server
from netstack.gateway.resolver import DEADLINE, Resolver

ADDRESS = "192.0.2.1"


class Begins(Resolver):
    """Asks as the driver does: without a task where that is possible."""

    _runs = False

    async def ask(self, message: bytes) -> bytes | None:
        if not self._runs:
            self._runs = True
            trio.lowlevel.spawn_system_task(self.run, lambda: None, BusyPoll(lambda _now: False).attend)
            await trio.testing.wait_all_tasks_blocked()
        over = trio.Event()
        answers: list[bytes | None] = []

        def done(answer: bytes | None) -> None:
            answers.append(answer)
            over.set()

        if not self.begin(message, done):
            return await super().ask(message)
        await over.wait()
        assert len(answers) == 1
        return answers[0]


@pytest.fixture(autouse=True, params=["ask", "begin"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is said of both ways."""
    if request.param == "begin":
        monkeypatch.setitem(globals(), "Resolver", Begins)


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps to the next deadline when nothing has happened for 20 ms of real time: loopback is faster than that."""
    return trio.testing.MockClock(autojump_threshold=0.02)


Handler = Callable[["Upstream", bytes, tuple[str, int]], Awaitable[bytes | None]]


class Upstream:
    """A DNS server: `respond` makes the answer of each datagram or connection, None for silence."""

    def __init__(self, respond: Handler, udp: trio.socket.SocketType) -> None:
        self.respond = respond
        self.udp = udp
        self.port: int = udp.getsockname()[1]
        self.queries: list[bytes] = []
        self.clients: list[tuple[str, int]] = []
        self.over_tcp = 0

    @property
    def name(self) -> str:
        host = self.udp.getsockname()[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def serve_udp(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                message, client = await self.udp.recvfrom(65535)
                self.queries.append(message)
                self.clients.append(client[:2])
                nursery.start_soon(self._answer, message, client)

    async def _answer(self, message: bytes, client: tuple[str, int]) -> None:
        answer = await self.respond(self, message, client)
        if answer is not None:
            await self.udp.sendto(answer, client)

    async def serve_tcp(self, stream: trio.SocketStream) -> None:
        self.over_tcp += 1
        framing = DnsStream()
        async for data in stream:
            for message in framing.receive(data):
                answer = await self.respond(self, message, ("tcp", 0))
                if answer is None:
                    return
                await stream.send_all(DnsStream.frame(answer))


async def same_port(family: int, host: str, *, tcp: bool) -> tuple[trio.socket.SocketType, list[trio.SocketListener]]:
    """A UDP socket and, if wanted, a TCP listener on a port that is free for both."""
    for _ in range(20):
        udp = trio.socket.socket(family, socket.SOCK_DGRAM)
        await udp.bind((host, 0))
        try:
            return udp, await trio.open_tcp_listeners(udp.getsockname()[1], host=host) if tcp else []
        except OSError:
            udp.close()  # somebody else's TCP has this port
    raise AssertionError("no port is free for both")


@asynccontextmanager
async def upstream(respond: Handler, host: str = "127.0.0.1", *, tcp: bool = True) -> AsyncIterator[Upstream]:
    """A server on a free port, UDP and TCP, for the length of a block."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    async with trio.open_nursery() as nursery:
        udp, listeners = await same_port(family, host, tcp=tcp)
        with udp:
            server = Upstream(respond, udp)
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            nursery.start_soon(server.serve_udp)
            if tcp:
                nursery.start_soon(trio.serve_listeners, server.serve_tcp, listeners)
            yield server
            nursery.cancel_scope.cancel()


@pytest.fixture
def refusing() -> str:
    """An address where nobody listens: the kernel answers with ICMP port unreachable."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def query(name: str = "www.example.com.", **how: object) -> bytes:
    how = {"use_edns": 0, "payload": 1232} | how
    return dns.message.make_query(name, "A", **how).to_wire()  # type: ignore[arg-type]  # the keywords of make_query


def reply(message: bytes, address: str = ADDRESS) -> dns.message.Message:
    asked = dns.message.from_wire(message)
    response = dns.message.make_response(asked, recursion_available=True)
    response.answer.append(dns.rrset.from_text(asked.question[0].name, 60, "IN", "A", address))
    return response


async def good(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
    return reply(message).to_wire()


async def other(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
    return reply(message, "192.0.2.2").to_wire()


async def silent(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
    return None


def failing(rcode: dns.rcode.Rcode) -> Handler:
    async def respond(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        response = dns.message.make_response(dns.message.from_wire(message))
        response.set_rcode(rcode)
        return response.to_wire()

    return respond


def after(seconds: float) -> Handler:
    async def respond(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        await trio.sleep(seconds)
        return reply(message).to_wire()

    return respond


def address_in(answer: bytes | None) -> str:
    assert answer is not None
    return dns.message.from_wire(answer).answer[0][0].to_text()


def rcode_of(answer: bytes | None) -> dns.rcode.Rcode:
    assert answer is not None
    return dns.message.from_wire(answer).rcode()


# One server.


async def test_an_answer(clock: trio.testing.MockClock) -> None:
    async with upstream(good) as server:
        resolver = Resolver([server.name])
        message = query()
        assert address_in(await resolver.ask(message)) == ADDRESS
        assert server.queries[0][2:] == message[2:]
        assert (resolver.asked, resolver.unanswered, resolver.over_tcp, resolver.ignored) == (1, 0, 0, 0)


async def test_ipv6_server(clock: trio.testing.MockClock) -> None:
    async with upstream(good, "::1") as server:
        assert address_in(await Resolver([server.name]).ask(query())) == ADDRESS


async def test_ids_and_source_ports_are_fresh_for_each_question(clock: trio.testing.MockClock) -> None:
    async with upstream(good) as server:
        resolver = Resolver([server.name])
        for _ in range(40):
            await resolver.ask(query(id=0))
        assert len({message[:2] for message in server.queries}) > 30
        assert len({port for _, port in server.clients}) > 30


async def test_forged_answers_are_ignored_and_the_wait_goes_on(clock: trio.testing.MockClock) -> None:
    async def forge(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        forged = reply(message, "203.0.113.66").to_wire()
        wrong_id = (int.from_bytes(message[:2], "big") ^ 1).to_bytes(2, "big")
        other_name = reply(query("www.example.net.", id=int.from_bytes(message[:2], "big")), "203.0.113.66").to_wire()
        for datagram in (wrong_id + forged[2:], other_name, message, b"", b"x" * 12, forged[:2]):
            await server.udp.sendto(datagram, client)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
            elsewhere.sendto(forged, client)
        await trio.sleep(0.5)
        return reply(message).to_wire()

    async with upstream(forge) as server:
        resolver = Resolver([server.name])
        assert address_in(await resolver.ask(query())) == ADDRESS
        # The one from another port never reached us: the socket is connected.
        assert resolver.ignored == 6


async def test_a_lost_datagram_is_asked_again(clock: trio.testing.MockClock) -> None:
    async def lossy(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        return None if len(server.queries) == 1 else reply(message).to_wire()

    async with upstream(lossy) as server:
        begin = trio.current_time()
        assert address_in(await Resolver([server.name]).ask(query())) == ADDRESS
        assert TIMEOUT <= trio.current_time() - begin < TIMEOUT + 0.5
        assert server.queries[0][:2] != server.queries[1][:2]
        assert server.clients[0] != server.clients[1]


async def test_a_slow_answer_is_waited_for(clock: trio.testing.MockClock) -> None:
    """The last attempt lasts as long as the question."""
    async with upstream(after(7)) as server:
        assert address_in(await Resolver([server.name]).ask(query())) == ADDRESS


async def test_silence_ends_at_the_deadline(clock: trio.testing.MockClock) -> None:
    async with upstream(silent) as server:
        resolver = Resolver([server.name])
        begin = trio.current_time()
        assert await resolver.ask(query()) is None
        assert DEADLINE <= trio.current_time() - begin < DEADLINE + 0.5
        assert resolver.unanswered == 1


async def test_a_single_refusing_server_is_told_at_once(clock: trio.testing.MockClock, refusing: str) -> None:
    begin = trio.current_time()
    assert await Resolver([refusing]).ask(query()) is None
    assert trio.current_time() - begin < 0.5


async def test_servfail_of_the_only_server_is_the_answer(clock: trio.testing.MockClock) -> None:
    async with upstream(failing(dns.rcode.SERVFAIL)) as server:
        assert rcode_of(await Resolver([server.name]).ask(query())) == dns.rcode.SERVFAIL
        assert len(server.queries) == 1


async def test_servers_older_than_edns_are_asked_without(clock: trio.testing.MockClock) -> None:
    """RFC 6891 section 7."""

    async def old(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        if dns.message.from_wire(message).edns >= 0:
            return message[:2] + b"\x80\x01" + bytes(8)
        return reply(message).to_wire()

    async with upstream(old) as server:
        assert address_in(await Resolver([server.name]).ask(query())) == ADDRESS
        assert len(server.queries) == 2


async def test_a_format_error_stays_one(clock: trio.testing.MockClock) -> None:
    async with upstream(failing(dns.rcode.FORMERR)) as server:
        assert rcode_of(await Resolver([server.name]).ask(query())) == dns.rcode.FORMERR
        assert rcode_of(await Resolver([server.name]).ask(query(use_edns=-1))) == dns.rcode.FORMERR


async def test_cancelling_a_question_closes_its_socket(clock: trio.testing.MockClock) -> None:
    async with upstream(silent) as server:
        resolver = Resolver([server.name], max_in_flight=2)
        with trio.move_on_after(1) as scope:
            await resolver.ask(query())
        assert scope.cancelled_caught
        server.respond = good
        # Its place is free again, too.
        assert address_in(await resolver.ask(query())) == ADDRESS


# Truncation.


def whole_over_tcp(*, over_tcp: Handler = good) -> Handler:
    async def respond(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        if client == ("tcp", 0):
            return await over_tcp(server, message, client)
        response = reply(message, "192.0.2.9")
        response.flags |= dns.flags.TC
        return response.to_wire()

    return respond


async def test_a_truncated_answer_is_fetched_over_tcp(clock: trio.testing.MockClock) -> None:
    async with upstream(whole_over_tcp()) as server:
        resolver = Resolver([server.name])
        assert address_in(await resolver.ask(query())) == ADDRESS
        assert (server.over_tcp, resolver.over_tcp) == (1, 1)


async def test_a_64_kib_answer(clock: trio.testing.MockClock) -> None:
    async def large(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        response = reply(message)
        texts = [f'"{"x" * 250}" "{number}"' for number in range(230)]
        response.answer.append(dns.rrset.from_text_list("www.example.com.", 60, "IN", "TXT", texts))
        return response.to_wire(max_size=65535)

    async with upstream(whole_over_tcp(over_tcp=large)) as server:
        answer = await Resolver([server.name]).ask(query())
        assert answer is not None
        assert len(answer) > 60_000
        assert len(dns.message.from_wire(answer).answer[1]) == 230


@pytest.mark.parametrize("over_tcp", [silent, after(60), other], ids=["closed", "stuck", "wrong"])
async def test_without_tcp_the_truncated_answer_is_better_than_none(
    clock: trio.testing.MockClock, over_tcp: Handler
) -> None:
    async def wrong_id(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        answer = await over_tcp(server, message, client)
        return None if answer is None else b"\x00\x00" + answer[2:] if message[:2] != b"\x00\x00" else b"\x00\x01"

    async with upstream(whole_over_tcp(over_tcp=wrong_id)) as server:
        answer = await Resolver([server.name]).ask(query())
        assert address_in(answer) == "192.0.2.9"
        assert dns.message.from_wire(answer or b"").flags & dns.flags.TC


async def test_a_server_without_tcp_and_another_with(clock: trio.testing.MockClock) -> None:
    async with upstream(whole_over_tcp(), tcp=False) as first, upstream(whole_over_tcp()) as second:
        assert address_in(await Resolver([first.name, second.name]).ask(query())) == ADDRESS


# Several servers.


async def test_the_next_server_is_asked_when_the_first_is_silent(clock: trio.testing.MockClock) -> None:
    async with upstream(silent) as dead, upstream(good) as server:
        begin = trio.current_time()
        assert address_in(await Resolver([dead.name, server.name]).ask(query())) == ADDRESS
        assert TIMEOUT <= trio.current_time() - begin < TIMEOUT + 0.5


async def test_a_refusing_server_costs_no_time(clock: trio.testing.MockClock, refusing: str) -> None:
    async with upstream(good) as server:
        begin = trio.current_time()
        assert address_in(await Resolver([refusing, server.name]).ask(query())) == ADDRESS
        assert trio.current_time() - begin < 0.5


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP])
async def test_a_failure_of_one_server_is_not_the_answer_of_all(
    clock: trio.testing.MockClock, rcode: dns.rcode.Rcode
) -> None:
    async with upstream(failing(rcode)) as first, upstream(good) as second:
        resolver = Resolver([first.name, second.name])
        assert address_in(await resolver.ask(query())) == ADDRESS
        # It is well, and knows other names: still the first.
        await resolver.ask(query())
        assert len(first.queries) >= 2


async def test_no_such_name_is_an_answer(clock: trio.testing.MockClock) -> None:
    async with upstream(failing(dns.rcode.NXDOMAIN)) as first, upstream(good) as second:
        assert rcode_of(await Resolver([first.name, second.name]).ask(query())) == dns.rcode.NXDOMAIN
        assert not second.queries


async def test_a_failure_is_the_answer_when_the_others_are_silent(clock: trio.testing.MockClock) -> None:
    async with upstream(failing(dns.rcode.SERVFAIL)) as first, upstream(silent) as second:
        assert rcode_of(await Resolver([first.name, second.name]).ask(query())) == dns.rcode.SERVFAIL
        assert len(first.queries) == 1


async def test_a_dead_first_server_does_not_slow_everything_for_ever(clock: trio.testing.MockClock) -> None:
    async with upstream(silent) as dead, upstream(good) as server:
        resolver = Resolver([dead.name, server.name])
        begin = trio.current_time()
        for _ in range(100):
            assert address_in(await resolver.ask(query())) == ADDRESS
            await trio.sleep(3)
        waited = trio.current_time() - begin - 300
        # Two seconds once, then a quarter after 5, 10, 20, 40, 60, 60, 60 seconds.
        assert waited < 2 + 8 * 0.25 + 0.5
        assert len(dead.queries) < 10


async def test_many_questions_at_once_with_a_dead_first_server(clock: trio.testing.MockClock) -> None:
    async with upstream(silent) as dead, upstream(good) as server:
        resolver = Resolver([dead.name, server.name], max_in_flight=64)
        begin = trio.current_time()
        assert await ask_many(resolver, 500) == 500
        assert trio.current_time() - begin < 2 * TIMEOUT
        assert len(dead.queries) <= 64


async def test_a_server_that_is_back_is_first_again(clock: trio.testing.MockClock) -> None:
    async with upstream(silent) as first, upstream(other) as second:
        resolver = Resolver([first.name, second.name])
        assert address_in(await resolver.ask(query())) == "192.0.2.2"
        first.respond = good
        await trio.sleep(6)
        assert address_in(await resolver.ask(query())) == ADDRESS
        assert address_in(await resolver.ask(query())) == ADDRESS


async def test_one_slow_name_does_not_make_its_server_suspect(clock: trio.testing.MockClock) -> None:
    async def slow_for_some(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        return None if b"slow" in message else reply(message).to_wire()

    async with upstream(slow_for_some) as first, upstream(other) as second:
        resolver = Resolver([first.name, second.name])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resolver.ask, query("slow.example.com."))
            await trio.sleep(TIMEOUT / 2)
            assert address_in(await resolver.ask(query())) == ADDRESS
        assert address_in(await resolver.ask(query())) == ADDRESS


async def test_rotate(clock: trio.testing.MockClock, tmp_path: Path) -> None:
    async with upstream(good) as first, upstream(other) as second:
        file = tmp_path / "resolv.conf"
        file.write_text(f"nameserver {first.name}\nnameserver {second.name}\noptions rotate\n")
        resolver = Resolver(resolv_conf=file)
        assert {address_in(await resolver.ask(query())) for _ in range(2)} == {ADDRESS, "192.0.2.2"}


async def test_timeout_and_attempts_of_resolv_conf(clock: trio.testing.MockClock, tmp_path: Path) -> None:
    async with upstream(silent) as first, upstream(silent) as second:
        file = tmp_path / "resolv.conf"
        file.write_text(f"nameserver {first.name}\nnameserver {second.name}\noptions timeout:1 attempts:1\n")
        begin = trio.current_time()
        assert await Resolver(resolv_conf=file).ask(query()) is None
        assert DEADLINE <= trio.current_time() - begin < DEADLINE + 0.5
        assert (len(first.queries), len(second.queries)) == (1, 1)


# Load.


async def ask_many(resolver: Resolver, count: int, prefix: str = "n") -> int:
    """How many of `count` questions at once were answered."""
    answered = 0

    async def ask(number: int) -> None:
        nonlocal answered
        answer = await resolver.ask(query(f"{prefix}{number}.example.com."))
        answered += answer is not None

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(ask, number)
    return answered


async def test_a_thousand_questions_at_once(clock: trio.testing.MockClock) -> None:
    async with upstream(good) as server:
        resolver = Resolver([server.name])
        begin = trio.current_time()
        assert await ask_many(resolver, 1000) == 1000
        assert trio.current_time() - begin < TIMEOUT
        assert len(server.queries) == 1000


async def test_no_more_sockets_than_places(clock: trio.testing.MockClock) -> None:
    under_way = most = 0

    async def counting(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.sleep(0.1)
        under_way -= 1
        return reply(message).to_wire()

    async with upstream(counting) as server:
        assert await ask_many(Resolver([server.name], max_in_flight=16), 60) == 60
    assert most == 8  # first attempts have half of them


async def test_slow_names_do_not_starve_the_others(clock: trio.testing.MockClock) -> None:
    async def slow_for_some(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        return None if b"slow" in message else reply(message).to_wire()

    async with upstream(slow_for_some) as server:
        resolver = Resolver([server.name], max_in_flight=16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_many, resolver, 24, "slow")
            await trio.sleep(0.1)
            begin = trio.current_time()
            assert await ask_many(resolver, 50) == 50
            # Three groups of eight leave the first places after one timeout each.
            assert trio.current_time() - begin < 3 * TIMEOUT + 0.5
            nursery.cancel_scope.cancel()


async def test_who_gets_no_place_in_time_is_not_answered(clock: trio.testing.MockClock) -> None:
    async with upstream(silent) as server:
        resolver = Resolver([server.name], max_in_flight=2)
        begin = trio.current_time()
        assert await ask_many(resolver, 20) == 0
        assert trio.current_time() - begin < DEADLINE + 0.5
        assert resolver.unanswered == 20
        server.respond = good
        assert await resolver.ask(query()) is not None


# The host's own trouble.


async def test_no_sockets_left_is_not_held_against_a_server(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with upstream(good) as first, upstream(other) as second:
        resolver = Resolver([first.name, second.name])

        class Exhausted(socket.socket):
            def __init__(self, *arguments: object) -> None:
                raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(module.socket, "socket", Exhausted)
            assert await resolver.ask(query()) is None
        assert address_in(await resolver.ask(query())) == ADDRESS


async def test_a_wake_up_for_nothing_is_no_answer(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux reports a datagram readable before it looks at its checksum."""
    wait_readable = trio.lowlevel.wait_readable
    early = [True]

    async def wait(sock: socket.socket) -> None:
        if early:
            early.clear()
            await trio.lowlevel.checkpoint()
        else:
            await wait_readable(sock)

    async with upstream(after(1)) as server:
        monkeypatch.setattr(module.trio.lowlevel, "wait_readable", wait)
        assert address_in(await Resolver([server.name]).ask(query())) == ADDRESS
        assert not early


async def test_an_unreachable_network_is_a_failure_at_once(clock: trio.testing.MockClock) -> None:
    async with upstream(good) as server:
        begin = trio.current_time()
        # The kernel refuses to send UDP to a broadcast address unasked: EACCES.
        assert address_in(await Resolver(["255.255.255.255", server.name]).ask(query())) == ADDRESS
        assert trio.current_time() - begin < 0.5


# resolv.conf.


@pytest.mark.parametrize("attempts", [1, 2])
async def test_that_nobody_answers_is_said_and_that_somebody_does_again(
    clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, attempts: int
) -> None:
    """Once a minute at most, whatever guests ask for; one slow name is no matter while others are answered."""
    well = True

    async def respond(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
        return reply(message).to_wire() if well and b"slow" not in message else None

    async with upstream(respond) as server:
        resolver = Resolver([server.name])
        resolver._configuration = resolver._configuration._replace(attempts=attempts)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resolver.ask, query("slow.example."))
            await trio.sleep(3)
            assert await resolver.ask(query()) is not None
        assert caplog.messages == []
        well = False
        for _ in range(4):
            assert await resolver.ask(query()) is None
        said = f"no DNS server answers (asked: {server.name}): guests are told SERVFAIL, and names cannot be dialled"
        assert caplog.messages == [said]
        await trio.sleep(60)
        assert await resolver.ask(query()) is None
        assert caplog.messages == [said, said]
        well = True
        for _ in range(2):
            assert await resolver.ask(query()) is not None
        assert caplog.messages == [said, said, "a DNS server answers again"]


async def test_that_there_is_nobody_to_ask_is_said(
    clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = Resolver(["192.0.2.1"], never_ask=["192.0.2.1"])
    assert await resolver.ask(query()) is None
    assert caplog.messages == ["there is no DNS server to ask: guests are told SERVFAIL, and names cannot be dialled"]


async def test_resolv_conf_is_read_again_when_it_changes(clock: trio.testing.MockClock, tmp_path: Path) -> None:
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    async with upstream(good) as first, upstream(other) as second:
        file = tmp_path / "resolv.conf"
        file.write_text(f"nameserver {first.name}\n")
        resolver = Resolver(resolv_conf=file, servers_changed=changed)
        assert address_in(await resolver.ask(query())) == ADDRESS
        # As every tool does it: a new file under the old name.
        new = tmp_path / "new"
        new.write_text(f"nameserver {second.name}\n")
        new.rename(file)
        assert address_in(await resolver.ask(query())) == ADDRESS  # looked at a moment ago
        await trio.sleep(1)
        assert address_in(await resolver.ask(query())) == "192.0.2.2"
        assert changes == 1
        file.write_text(f"# the same servers\nnameserver {second.name}\n")
        await trio.sleep(1)
        await resolver.ask(query())
        await trio.sleep(1)
        await resolver.ask(query())
        assert changes == 1


async def test_a_missing_resolv_conf_is_the_local_host(
    clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As glibc does. Port 53 here may be anyone's, so another one stands for it."""
    async with upstream(good) as local, upstream(other) as named:
        monkeypatch.setattr(resolv_conf, "LOCALHOST", Server(socket.AF_INET, ("127.0.0.1", local.port)))
        file = tmp_path / "resolv.conf"
        resolver = Resolver(resolv_conf=file)
        assert address_in(await resolver.ask(query())) == ADDRESS
        file.write_text(f"nameserver {named.name}\n")
        await trio.sleep(1)
        assert address_in(await resolver.ask(query())) == "192.0.2.2"
        file.unlink()
        await trio.sleep(1)
        assert address_in(await resolver.ask(query())) == ADDRESS


async def test_the_resolver_does_not_ask_itself(clock: trio.testing.MockClock, tmp_path: Path) -> None:
    async with upstream(good) as server:
        file = tmp_path / "resolv.conf"
        file.write_text(f"nameserver 192.168.127.1\nnameserver {server.name}\n")
        begin = trio.current_time()
        assert address_in(await Resolver(resolv_conf=file, never_ask=["192.168.127.1"]).ask(query())) == ADDRESS
        file.write_text("nameserver 192.168.127.1\noptions rotate\n")
        assert await Resolver(resolv_conf=file, never_ask=["192.168.127.1"]).ask(query()) is None
        assert trio.current_time() - begin < 0.5


async def test_servers_that_change_while_a_question_waits(clock: trio.testing.MockClock, tmp_path: Path) -> None:
    async with upstream(silent) as dead, upstream(good) as server:
        file = tmp_path / "resolv.conf"
        file.write_text(f"nameserver {dead.name}\nnameserver {dead.name}\n")
        resolver = Resolver(resolv_conf=file)
        answers: list[bytes | None] = []

        async def ask() -> None:
            answers.append(await resolver.ask(query()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(1.5)
            file.write_text(f"nameserver {server.name}\n")
            nursery.start_soon(ask)
        assert [address_in(answer) for answer in answers] == [ADDRESS, ADDRESS]


async def test_no_server_left_when_the_turn_comes(clock: trio.testing.MockClock, tmp_path: Path) -> None:
    async with upstream(silent) as dead:
        file = tmp_path / "resolv.conf"
        file.write_text(f"nameserver {dead.name}\n")
        resolver = Resolver(resolv_conf=file, never_ask=["192.168.127.1"], max_in_flight=2)
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resolver.ask, query())
            nursery.start_soon(resolver.ask, query())
            await trio.sleep(1.5)
            file.write_text("nameserver 192.168.127.1\n")
            assert await resolver.ask(query()) is None
        assert trio.current_time() - begin < TIMEOUT + 0.5
        assert len(dead.queries) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Configuration((LOCALHOST,))),
        ("# nameserver 192.0.2.1\n; nameserver 192.0.2.2\nsearch example.com\n", Configuration((LOCALHOST,))),
        ("nameserver\nnameserver nonsense\nnameserver 300.1.1.1\n", Configuration((LOCALHOST,))),
        (
            "nameserver 192.0.2.1\n  nameserver\t2001:db8::1 # comment\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
            Configuration(
                (
                    Server(socket.AF_INET, ("192.0.2.1", 53)),
                    Server(socket.AF_INET6, ("2001:db8::1", 53, 0, 0)),
                    Server(socket.AF_INET, ("192.0.2.3", 53)),
                )
            ),
        ),
        (
            "options timeout:1 attempts:3\noptions rotate edns0 trust-ad ndots:1\n",
            Configuration((LOCALHOST,), 1.0, 3, rotate=True),
        ),
        ("options timeout:0 attempts:0\n", Configuration((LOCALHOST,), 1.0, 1)),
        ("options timeout:30 attempts:99\n", Configuration((LOCALHOST,), 5.0, 5)),
        ("options timeout: attempts:-1 timeout:x timeout:²\n", Configuration((LOCALHOST,))),
    ],
)
def test_resolv_conf(text: str, expected: Configuration) -> None:
    assert parse_resolv_conf(text) == expected


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["nameserver ", "options ", "timeout:", "[", "%", "9", "\n"])).map("".join)
)
def test_any_resolv_conf_names_a_server(text: str) -> None:
    configuration = parse_resolv_conf(text)
    assert 1 <= len(configuration.servers) <= 3
    assert 1 <= configuration.timeout <= 5
    assert 1 <= configuration.attempts <= 5


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53, 0, 0)),
        ("[2001:db8::1]", ("2001:db8::1", 53, 0, 0)),
        ("[2001:DB8::1]:5353", ("2001:db8::1", 5353, 0, 0)),
    ],
)
def test_servers(text: str, address: object) -> None:
    assert parse_server(text).address == address


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":53",
            "192.0.2.1:",
            "192.0.2.1:0",
            "192.0.2.1:65536",
            "192.0.2.1:dns",
            "dns.example",
            "1.2.3",
            "010.0.0.1",
        ),
        *("[::1", "[::1]53", "[]", "[::1]:²", "a\x00b", "ü" * 70),
    ],
)
def test_what_is_no_server(text: str) -> None:
    with pytest.raises(ValueError, match="is no server"):
        parse_server(text)


# The whole of it: dig asks the engine's name server, which asks the resolver, which asks an authority.


class DnsGateway:
    """DnsServer and Resolver joined as the gateway joins them, on UDP and TCP sockets of loopback."""

    def __init__(self, servers: list[str], nursery: trio.Nursery) -> None:
        self.events: list[Event] = []
        zone = Zone(
            "containers.internal", (ZoneRecord("host", b"\xc0\xa8\x7f\xfe"), ZoneRecord("host", b"\xc0\xa8\x7f\xfd"))
        )
        network = NetworkSettings()
        judge = Judge(Policy(PolicySettings(), network), network, Outbox())
        self.server = DnsServer(Zones([zone]), self.events.append, judge=judge)
        self.resolver = Resolver(servers, servers_changed=self.server.cache.clear)
        self.nursery = nursery
        self.udp = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    async def start(self) -> int:
        """Serve on a free port, which is returned."""
        await self.udp.bind(("127.0.0.1", 0))
        port: int = self.udp.getsockname()[1]
        (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
        self.nursery.start_soon(self._serve_udp)
        self.nursery.start_soon(trio.serve_listeners, self._serve_tcp, [listener])
        return port

    async def _serve_udp(self) -> None:
        while True:
            message, client = await self.udp.recvfrom(65535)
            await self._ask(message, "udp", client)

    async def _serve_tcp(self, stream: trio.SocketStream) -> None:
        framing = DnsStream()
        async for data in stream:
            for message in framing.receive(data):
                await self._ask(message, "tcp", stream)

    async def _ask(self, message: bytes, transport: Transport, token: object) -> None:
        outcome = self.server.ask(message, b"\x7f\x00\x00\x01", transport, token, trio.current_time())
        if isinstance(outcome, Answer):
            await self._send(token, outcome.message)
        elif isinstance(outcome, Ask):
            self.nursery.start_soon(self._resolve, outcome.effect.query, outcome.effect.message)

    async def _resolve(self, number: int, message: bytes) -> None:
        answer = await self.resolver.ask(message)
        for token, out in self.server.resolved(number, answer, trio.current_time()):
            await self._send(token, out)

    async def _send(self, token: object, message: bytes) -> None:
        if isinstance(token, trio.SocketStream):
            await token.send_all(DnsStream.frame(message))
        else:
            await self.udp.sendto(message, token)


def authority(server_name: str) -> dict[tuple[str, str], list[str]]:
    return {
        ("www", "A"): ["198.51.100.1", "198.51.100.2"],
        ("www", "AAAA"): ["2001:db8::1"],
        ("www", "HTTPS"): ['1 . alpn="h2,h3"'],
        ("guest", "CAA"): ['0 issue "ca.guest.test"'],
        ("big", "TXT"): [f'"{number:03d}{"x" * 200}"' for number in range(30)],
    }


async def guest_test(server: Upstream, message: bytes, client: tuple[str, int]) -> bytes | None:
    asked = dns.message.from_wire(message)
    question = asked.question[0]
    response = dns.message.make_response(asked, recursion_available=True)
    label = question.name.labels[0].decode().lower()
    known = authority(server.name)
    kind = dns.rdatatype.to_text(question.rdtype)
    if label == "broken":
        response.set_rcode(dns.rcode.SERVFAIL)
    elif (label, kind) in known:
        response.answer.append(dns.rrset.from_text_list(question.name, 300, "IN", kind, known[label, kind]))
    else:
        response.authority.append(
            dns.rrset.from_text("guest.test.", 60, "IN", "SOA", "ns.guest.test. a.guest.test. 1 2 3 4 60")
        )
        if not any(name == label for name, _ in known):
            response.set_rcode(dns.rcode.NXDOMAIN)
    wire = response.to_wire(max_size=65535)
    if client != ("tcp", 0) and len(wire) > max(512, asked.payload):
        response = dns.message.make_response(asked, recursion_available=True)
        response.flags |= dns.flags.TC
        wire = response.to_wire()
    return wire


async def dig(port: int, *arguments: str) -> str:
    command = ["dig", "@127.0.0.1", "-p", str(port), "+tries=1", "+timeout=8", *arguments]
    done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    text = done.stdout.decode()
    assert done.returncode == 0, text
    assert "WARNING" not in text
    assert "malformed" not in text
    return text


@pytest.mark.guest("dig")
async def test_dig() -> None:
    async with trio.open_nursery() as nursery, upstream(guest_test) as server:
        gateway = DnsGateway([server.name], nursery)
        with gateway.udp:
            port = await gateway.start()
            assert (await dig(port, "+short", "HOST.Containers.Internal")).split() == [
                "192.168.127.254",
                "192.168.127.253",
            ]
            local = await dig(port, "AAAA", "host.containers.internal")
            assert "status: NOERROR" in local
            assert "flags: qr aa rd ra" in local
            assert "ANSWER: 0, AUTHORITY: 1" in local
            assert "status: NXDOMAIN" in await dig(port, "MX", "nobody.containers.internal")
            assert (await dig(port, "+short", "-x", "192.168.127.254")).strip() == "host.containers.internal."
            assert sorted((await dig(port, "+short", "www.guest.test")).split()) == ["198.51.100.1", "198.51.100.2"]
            assert (await dig(port, "+short", "www.guest.test", "AAAA")).strip() == "2001:db8::1"
            assert (await dig(port, "+short", "www.guest.test", "HTTPS")).strip() == '1 . alpn="h2,h3"'
            assert (await dig(port, "+short", "guest.test", "CAA")).strip() == '0 issue "ca.guest.test"'
            assert "status: NXDOMAIN" in await dig(port, "gone.guest.test")
            assert "status: SERVFAIL" in await dig(port, "broken.guest.test")
            no_data = await dig(port, "+noedns", "www.guest.test", "MX")
            assert "status: NOERROR" in no_data
            assert "SOA" in no_data
            assert "OPT PSEUDOSECTION" not in no_data
            with_edns = await dig(port, "+dnssec", "+nsid", "+subnet=192.0.2.0/24", "www.guest.test")
            assert "EDNS: version: 0, flags: do; udp: 1232" in with_edns
            assert "CLIENT-SUBNET" not in with_edns
            assert "BADVERS" in await dig(port, "+edns=1", "+noednsneg", "www.guest.test")
            assert "status: NOTIMP" in await dig(port, "+opcode=notify", "www.guest.test")
            cut = await dig(port, "+ignore", "+bufsize=1232", "TXT", "big.guest.test")
            assert "flags: qr tc rd ra" in cut
            whole = await dig(port, "+bufsize=1232", "TXT", "big.guest.test")
            assert "Truncated, retrying in TCP mode" in whole
            assert "ANSWER: 30" in whole
            assert "ANSWER: 30" in await dig(port, "+tcp", "TXT", "big.guest.test")
            assert (await dig(port, "+tcp", "+keepopen", "+short", "www.guest.test", "host.containers.internal")).count(
                "\n"
            ) == 4
        nursery.cancel_scope.cancel()
