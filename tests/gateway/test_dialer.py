"""The dialer: names looked up, addresses objected to, attempts in turn, and flows that end meanwhile. Virtual time.

Sockets are real and never leave this machine: connecting itself is replaced by a plan of who answers when.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import dns.message
import dns.rrset
import pytest
import trio

from netstack.engine import effects
from netstack.engine.effects import OpenNamed, ResolveName
from netstack.engine.policy import PolicySettings
from netstack.engine.settings import NetworkSettings
from netstack.engine.stack import Stack
from netstack.gateway import dialer
from netstack.gateway.dialer import ATTEMPT_DELAY, MAX_ATTEMPTS, Dialer
from netstack.gateway.resolver import AnswersDns
from netstack.network_spec import NetworkSpec

NAME = "api.example.com"
FIRST, SECOND, THIRD = "93.184.216.34", "151.101.1.6", "104.16.132.229"
FIRST_V6 = "2606:2800:220:1::1"
NEVER = float("inf")


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


class Upstream(AnswersDns):
    """A resolver with a zone; `delay` seconds for each answer."""

    def __init__(self) -> None:
        self.zone: dict[tuple[str, str], list[str]] = {}
        self.ttl = 300
        self.delay = 0.0
        self.asked: list[tuple[str, str]] = []

    async def ask(self, message: bytes) -> bytes | None:
        query = dns.message.from_wire(message)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), question.rdtype.name
        self.asked.append((name, kind))
        await trio.sleep(self.delay)
        answer = dns.message.make_response(query, recursion_available=True)
        for address in self.zone.get((name, kind), ()):  # one by one: dnspython shuffles the records of a set
            answer.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", kind, address))
        return answer.to_wire()


class Told:
    """Notes what a stack is told of streams, and asks a real one the rest."""

    def __init__(self, policy: PolicySettings) -> None:
        self.real = Stack(NetworkSettings(), initial_sequence=lambda _key, _now: 0, policy=policy)
        self.told: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def stream_opened(self, flow: int, now: float, address: bytes | None = None) -> None:
        self.told.append(("opened", flow, address))

    def stream_failed(self, flow: int, failure: int, now: float) -> None:
        self.told.append(("failed", flow, failure))

    def stream_objected(self, flow: int, fault: str, now: float) -> None:
        self.told.append(("objected", flow, fault))

    def name_resolved(self, flow: int, address: bytes | None, now: float) -> None:
        self.told.append(("resolved", flow, address))


class Sockets:
    """Takes what the dialer won."""

    def __init__(self) -> None:
        self.taken: dict[int, socket.socket] = {}
        self.dialled: list[tuple[int, bytes, int]] = []

    def dial(self, flow: int, address: bytes, port: int, _now: float) -> None:
        self.dialled.append((flow, address, port))

    def adopt(self, flow: int, sock: socket.socket) -> None:
        self.taken[flow] = sock


@dataclass
class Bench:
    """A dialer, and who answers when: address -> (seconds, errno)."""

    stack: Told
    upstream: Upstream = field(default_factory=Upstream)
    sockets: Sockets = field(default_factory=Sockets)
    plan: dict[str, tuple[float, int]] = field(default_factory=dict)
    attempts: list[tuple[str, int, float]] = field(default_factory=list)
    made: list[socket.socket] = field(default_factory=list)
    flushes: int = 0
    dialer: Dialer = field(init=False)

    def __post_init__(self) -> None:
        self.dialer = Dialer(self.stack, self.sockets, self.upstream, self.flush)  # type: ignore[arg-type]  # see above
        self.dialer._families = (1, 28)

    def flush(self) -> None:
        self.flushes += 1

    async def open_named(self, effect: OpenNamed) -> None:
        """What the driver does with one."""
        self.dialer.begin(effect.flow)
        await self.dialer.open_named(effect)

    def closed(self) -> bool:
        """Whether every socket that was made is closed, except for what was taken over."""
        return all(sock.fileno() < 0 for sock in self.made if sock not in self.sockets.taken.values())


Make = Callable[..., Bench]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    benches: list[Bench] = []

    def make(*rules: str) -> Bench:
        made = Bench(Told(NetworkSpec.enabled(rules or (NAME,)).policy()))
        benches.append(made)
        start = trio.current_time()

        async def connect(_sock: socket.socket, address: bytes, port: int) -> int:
            text = socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
            made.attempts.append((text, port, round(trio.current_time() - start, 3)))
            seconds, number = made.plan.get(text, (0.0, 0))
            await trio.sleep(seconds)
            return number

        def new_socket(address: bytes) -> socket.socket:
            sock = socket.socket()
            made.made.append(sock)
            return sock

        monkeypatch.setattr(dialer, "_connect", connect)
        monkeypatch.setattr(dialer, "new_stream_socket", new_socket)
        return made

    yield make
    for one in benches:
        for sock in one.made:
            sock.close()


async def test_the_first_address_that_answers(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench()
    one.upstream.zone[NAME, "A"] = [FIRST, SECOND]
    await one.open_named(OpenNamed(7, NAME, 443))
    assert one.stack.told == [("opened", 7, packed(FIRST))]
    assert one.attempts == [(FIRST, 443, 0.0)]
    assert list(one.sockets.taken) == [7]
    assert one.flushes == 1


async def test_one_known_address_needs_no_race(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench()
    one.dialer._families = (1,)  # that there is no AAAA is not kept: the answer has no SOA
    one.upstream.zone = {(NAME, "A"): [FIRST]}
    assert not one.dialer.open_at_once(OpenNamed(7, NAME, 443), trio.current_time()), "nobody knows yet"
    await one.dialer.addresses(NAME)
    assert one.dialer.open_at_once(OpenNamed(7, NAME, 443), trio.current_time())
    assert one.sockets.dialled == [(7, packed(FIRST), 443)]
    await trio.sleep(301)
    assert not one.dialer.open_at_once(OpenNamed(8, NAME, 443), trio.current_time()), "no longer"
    assert len(one.sockets.dialled) == 1


@pytest.mark.parametrize("zone", [[FIRST, SECOND], ["10.0.0.7"], []], ids=["two", "an objection", "none"])
async def test_c15_all_else_is_for_the_race(
    bench: Make, autojump_clock: trio.testing.MockClock, zone: list[str]
) -> None:
    """Conformance C15: nothing that is objected to is dialled, known or not."""
    one = bench()
    one.dialer._families = (1,)
    one.upstream.zone = {(NAME, "A"): zone}
    await one.dialer.addresses(NAME)
    assert not one.dialer.open_at_once(OpenNamed(7, NAME, 443), trio.current_time())
    assert one.sockets.dialled == []


async def test_names_are_dialled_through_the_nat_table(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    """As addresses are: what a guest reaches at the name's address without a list, it reaches by the name under one."""
    one = bench()
    one.dialer._families = (1,)
    one.stack.real.settings = replace(one.stack.real.settings, nat={packed(FIRST): packed("127.0.0.1")})
    one.upstream.zone = {(NAME, "A"): [FIRST]}
    await one.open_named(OpenNamed(7, NAME, 443))
    assert [attempt[:2] for attempt in one.attempts] == [("127.0.0.1", 443)]
    assert one.stack.told == [("opened", 7, packed("127.0.0.1"))]
    assert one.dialer.open_at_once(OpenNamed(8, NAME, 443), trio.current_time())
    assert one.sockets.dialled == [(8, packed("127.0.0.1"), 443)]
    await one.dialer.resolve_name(ResolveName(9, NAME, 443))
    assert one.stack.told[-1] == ("resolved", 9, packed("127.0.0.1"))


async def test_families_take_turns(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    """RFC 8305 section 4: IPv6 first, then alternating; each 250 ms after the one before."""
    one = bench()
    one.upstream.zone[NAME, "A"] = [FIRST, SECOND]
    one.upstream.zone[NAME, "AAAA"] = [FIRST_V6]
    one.plan = {FIRST_V6: (NEVER, 0), FIRST: (NEVER, 0), SECOND: (0.1, 0)}
    await one.open_named(OpenNamed(7, NAME, 443))
    assert [address for address, _, _ in one.attempts] == [FIRST_V6, FIRST, SECOND]
    assert [when for _, _, when in one.attempts] == [0, ATTEMPT_DELAY, 2 * ATTEMPT_DELAY]
    assert one.stack.told == [("opened", 7, packed(SECOND))]
    assert one.closed()


async def test_a_refusal_starts_the_next_at_once(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench()
    one.upstream.zone[NAME, "A"] = [FIRST, SECOND]
    one.plan = {FIRST: (0.01, errno.ECONNREFUSED)}
    await one.open_named(OpenNamed(7, NAME, 22))
    assert one.attempts == [(FIRST, 22, 0.0), (SECOND, 22, 0.01)]
    assert one.stack.told == [("opened", 7, packed(SECOND))]


@pytest.mark.parametrize(
    ("number", "failure"),
    [(errno.ECONNREFUSED, effects.REFUSED), (errno.ENETUNREACH, effects.NETWORK_UNREACHABLE)],
)
async def test_all_fail(bench: Make, autojump_clock: trio.testing.MockClock, number: int, failure: int) -> None:
    one = bench()
    one.upstream.zone[NAME, "A"] = [FIRST, SECOND]
    one.plan = {FIRST: (0, errno.EHOSTUNREACH), SECOND: (0.5, number)}
    await one.open_named(OpenNamed(7, NAME, 443))
    assert one.stack.told == [("failed", 7, failure)]
    assert one.closed()


async def test_an_early_attempt_may_still_win(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench()
    one.upstream.zone[NAME, "A"] = [FIRST, SECOND]
    one.plan = {FIRST: (0.4, 0), SECOND: (1, 0)}
    await one.open_named(OpenNamed(7, NAME, 443))
    assert one.stack.told == [("opened", 7, packed(FIRST))]
    assert one.closed()


async def test_no_more_than_so_many_are_tried(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench()
    addresses = [f"93.184.216.{last}" for last in range(1, 60)]
    one.upstream.zone[NAME, "A"] = addresses
    one.plan = dict.fromkeys(addresses, (0, errno.ECONNREFUSED))
    await one.open_named(OpenNamed(7, NAME, 443))
    assert len(one.attempts) == MAX_ATTEMPTS


# -- what the policy objects to ---------------------------------------------------------------------------------------


async def test_C15_only_what_may_be_dialled_is(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench()
    one.upstream.zone[NAME, "A"] = ["10.0.0.5", "127.0.0.1", FIRST, "169.254.169.254", "192.168.127.254"]
    one.upstream.zone[NAME, "AAAA"] = ["::ffff:10.0.0.5", "::1", "64:ff9b::a00:1", "fd00:ec2::254"]
    await one.open_named(OpenNamed(7, NAME, 443))
    assert one.attempts == [(FIRST, 443, 0.0)]


@pytest.mark.parametrize(
    ("address", "reason"),
    [("10.0.0.5", "private-address"), ("127.0.0.1", "loopback-address"), ("192.168.127.2", "own-subnet"),
     ("169.254.169.254", "metadata"), ("0.0.0.0", "unspecified-address")],
)  # fmt: skip
async def test_C15_nothing_is_dialled(
    bench: Make, autojump_clock: trio.testing.MockClock, address: str, reason: str
) -> None:
    one = bench()
    one.upstream.zone[NAME, "A"] = [address]
    one.upstream.zone[NAME, "AAAA"] = ["fec0::1"]
    await one.open_named(OpenNamed(7, NAME, 443))
    assert one.attempts == []
    ((word, flow, told),) = one.stack.told
    assert (word, flow) == ("objected", 7)
    assert told in (reason, "reserved-address")


async def test_C15_an_address_rule_lets_it(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench(NAME, "10.0.0.0/8:443")
    one.upstream.zone[NAME, "A"] = ["10.0.0.5"]
    await one.open_named(OpenNamed(7, NAME, 443))
    await one.open_named(OpenNamed(8, NAME, 80))
    assert one.attempts == [("10.0.0.5", 443, 0.0)]
    assert one.stack.told == [("opened", 7, packed("10.0.0.5")), ("objected", 8, "private-address")]


async def test_datagrams_get_an_ipv4_address(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench()
    one.upstream.zone[NAME, "A"] = ["10.0.0.5", FIRST]
    one.upstream.zone[NAME, "AAAA"] = [FIRST_V6]
    await one.dialer.resolve_name(ResolveName(3, NAME, 443))
    one.upstream.zone["b.example.com", "A"] = ["10.0.0.5"]
    await one.dialer.resolve_name(ResolveName(4, "b.example.com", 443))
    assert one.stack.told == [("resolved", 3, packed(FIRST)), ("resolved", 4, None)]
    assert one.attempts == []


# -- looking up -------------------------------------------------------------------------------------------------------


async def test_a_name_without_addresses(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench()
    await one.open_named(OpenNamed(7, NAME, 443))
    assert one.stack.told == [("failed", 7, effects.NO_ADDRESS)]


async def test_answers_are_kept(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench()
    one.upstream.zone = {(NAME, "A"): [FIRST], (NAME, "AAAA"): [FIRST_V6]}
    for flow in range(3):
        await one.open_named(OpenNamed(flow, NAME, 443))
    assert sorted(one.upstream.asked) == [(NAME, "A"), (NAME, "AAAA")]


async def test_one_question_at_a_time(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    """A thousand flows to a name nobody may remember (TTL 0) are one question upstream, not a thousand."""
    one = bench()
    one.upstream.zone[NAME, "A"] = [FIRST]
    one.upstream.ttl = 0
    one.upstream.delay = 1.0
    async with trio.open_nursery() as nursery:
        for flow in range(200):
            nursery.start_soon(one.open_named, OpenNamed(flow, NAME, 443))
    assert [kind for _, kind in one.upstream.asked].count("A") == 1
    assert len(one.sockets.taken) == 200


async def test_who_asked_first_may_leave(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    one = bench()
    one.upstream.zone[NAME, "A"] = [FIRST]
    one.upstream.delay = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.open_named, OpenNamed(1, NAME, 443))
        await trio.sleep(0.5)
        nursery.start_soon(one.open_named, OpenNamed(2, NAME, 443))
        await trio.sleep(0.1)
        one.dialer.cancel(1)
    assert one.stack.told == [("opened", 2, packed(FIRST))]


# -- flows that end meanwhile, and a host that cannot -----------------------------------------------------------------


@pytest.mark.parametrize("when", [0.5, 1.1, 1.4])
async def test_a_flow_that_ends_meanwhile(bench: Make, autojump_clock: trio.testing.MockClock, when: float) -> None:
    """While its name is looked up, while the first is dialled, while two are."""
    one = bench()
    one.upstream.zone[NAME, "A"] = [FIRST, SECOND]
    one.upstream.delay = 1.0
    one.plan = {FIRST: (NEVER, 0), SECOND: (NEVER, 0)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.open_named, OpenNamed(7, NAME, 443))
        await trio.sleep(when)
        one.dialer.cancel(7)
    assert one.stack.told == []
    assert one.closed()
    assert one.dialer._scopes == {}


async def test_a_flow_that_ends_as_its_dial_does(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    """In the same moment, in either order: the socket is closed or taken over, and never both or neither."""
    for early in (-1e-9, 0.0, 1e-9):
        one = bench()
        one.upstream.zone[NAME, "A"] = [FIRST]
        one.plan = {FIRST: (1.0, 0)}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.open_named, OpenNamed(7, NAME, 443))
            await trio.sleep(1.0 + early)
            one.dialer.cancel(7)
        assert one.closed()
        assert bool(one.stack.told) == bool(one.sockets.taken)


async def test_no_descriptors_left(
    bench: Make, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That flow fails, and nothing else."""
    one = bench()
    one.upstream.zone[NAME, "A"] = [FIRST, SECOND]

    def none_left(_address: bytes) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(dialer, "new_stream_socket", none_left)
    await one.open_named(OpenNamed(7, NAME, 443))
    assert one.stack.told == [("failed", 7, effects.NO_RESOURCES)]


async def test_d7_a_flow_that_ends_before_its_dial_has_begun(bench: Make) -> None:
    """Hello and reset in one batch: the task that was to dial has not had its turn yet."""
    one = bench()
    one.upstream.zone[NAME, "A"] = [FIRST]
    one.plan = {FIRST: (0, 0)}
    async with trio.open_nursery() as nursery:
        one.dialer.begin(7)
        nursery.start_soon(one.dialer.open_named, OpenNamed(7, NAME, 443))
        one.dialer.cancel(7)
    assert (one.attempts, one.sockets.taken, one.stack.told) == ([], {}, [])


async def test_a_thousand_black_holes_delay_nobody(bench: Make, autojump_clock: trio.testing.MockClock) -> None:
    """policy.md: 1,000 dials that nobody answers must not delay the 1,001st by 10 ms."""
    one = bench(NAME, "*.example.com")
    one.plan = {FIRST: (NEVER, 0)}
    async with trio.open_nursery() as nursery:
        for flow in range(1000):
            one.upstream.zone[f"n{flow}.example.com", "A"] = [FIRST]
            nursery.start_soon(one.open_named, OpenNamed(flow, f"n{flow}.example.com", 443))
        await trio.testing.wait_all_tasks_blocked()
        one.upstream.zone[NAME, "A"] = [SECOND]
        start = trio.current_time()
        await one.open_named(OpenNamed(1000, NAME, 443))
        assert trio.current_time() - start < 0.01
        assert one.stack.told == [("opened", 1000, packed(SECOND))]
        for flow in range(1000):
            one.dialer.cancel(flow)
    assert one.closed()
