"""What a gateway remembers of its flows: questions, dials, verdicts, ends, in order and bounded."""

from __future__ import annotations

import errno
from typing import Any

import trio
from conformance.live import Live, listener
from conformance.policy_wire import NAME, SITE
from conformance.recorded import answer
from engine.wire_guest import GUEST, HOST_ALIAS, SERVER, ip
from scapy.layers.inet import IP, TCP
from wire import hellos

from netstack.config import network_settings
from netstack.engine.counters import LossTotals
from netstack.engine.events import DnsEvent, FlowClosed, FlowOpened, FlowRefused
from netstack.engine.snapshot import ConnectionSnapshot, FlowSnapshot
from netstack.engine.verdict import ALLOW, REFUSE, Verdict
from netstack.gateway.driver import Driver
from netstack.gateway.flow_stories import MAX_FLOWS, MAX_QUESTIONS, MAX_STEPS, FlowStories
from netstack.gateway.resolver import AnswersDns
from netstack.network_spec import NetworkSpec

NAMED = Verdict(ALLOW, "tls", "name-rule", "pypi.org", "pypi.org", "sni")
ENDS = ((ip(GUEST), 40_000), (ip(SERVER), 443))
REAL = (ip("151.101.0.223"), 443)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def told(stories: FlowStories, flow: int) -> list[str]:
    story = stories.flow(flow)
    assert story is not None
    steps: Any = story["steps"]
    return [step["what"] for step in steps]


def test_a_flow_by_name_is_told_from_its_question_to_its_end() -> None:
    stories = FlowStories(Clock())
    stories.note(DnsEvent(ip(GUEST), "PyPI.org", "A", "udp", "upstream", "NOERROR", 2, 0.02, NAMED))
    stories.note(DnsEvent(ip("192.168.127.3"), "pypi.org", "A", "udp", "upstream", "NOERROR", 2, 0.02, NAMED))
    stories.looked_up(7, "pypi.org", [ip("10.0.0.1"), REAL[0]], {ip("10.0.0.1"): "private-address"})
    stories.dialling(7, *REAL)
    stories.dialled(7, *REAL, 0)
    stories.note(FlowOpened(7, "tcp", *ENDS, REAL, NAMED, "address-not-answered"))
    stories.note(FlowClosed(7, "tcp", *ENDS, REAL, "finished", 10, 2000, 1.5, NAMED))
    assert told(stories, 7) == ["asked", "looked-up", "dialling", "connected", "opened", "closed"]
    story = stories.flow(7)
    assert story is not None
    assert story["closed"] is True
    assert (story["sent"], story["received"], story["dialled"]) == (10, 2000, "151.101.0.223:443")
    steps: Any = story["steps"]
    assert steps[0]["guest"] == GUEST, "its own guest's question"
    assert steps[1]["objections"] == {"10.0.0.1": "private-address"}
    assert [step["time"] for step in steps] == sorted(step["time"] for step in steps)
    assert stories.flows() == [story]
    assert [each["guest"] for each in stories.questions()] == [GUEST, "192.168.127.3"]


def test_failed_dials_and_refusals() -> None:
    stories = FlowStories(Clock())
    stories.dialling(3, *REAL)
    stories.dialled(3, *REAL, errno.ECONNREFUSED)
    assert stories.flows() == [], "nothing is known of it yet"
    stories.note(FlowClosed(3, "tcp", *ENDS, REAL, "refused", 0, 0, 0.1, NAMED))
    assert told(stories, 3) == ["dialling", "dial-failed", "closed"]
    steps: Any = stories.flows()[0]["steps"]
    assert (steps[1]["error"], steps[1]["message"]) == ("ECONNREFUSED", "Connection refused")
    stories.note(FlowRefused(4, "tcp", *ENDS, Verdict(REFUSE, "syn", "no-rule"), "reset", 1, 1))
    assert told(stories, 4) == ["refused"]
    assert stories.flow(5) is None


def test_everything_is_bounded() -> None:
    stories = FlowStories(Clock())
    for number in range(MAX_FLOWS + 3):
        stories.note(FlowOpened(number, "tcp", *ENDS, REAL, NAMED))
    assert len(stories.flows()) == MAX_FLOWS
    assert stories.flow(2) is None
    for _ in range(MAX_STEPS + 10):
        stories.dialling(MAX_FLOWS, *REAL)
    story = stories.flow(MAX_FLOWS)
    assert story is not None
    steps: Any = story["steps"]
    assert len(steps) == MAX_STEPS
    assert story["steps_left_out"] == 11
    for _ in range(MAX_QUESTIONS + 2):
        stories.note(DnsEvent(ip(GUEST), "a.example", "A", "udp", "cache", "NOERROR", 1, 0.0))
    assert len(stories.questions()) == MAX_QUESTIONS


def snapshot(sent: int, received: int, state: str = "spliced", **changes: Any) -> FlowSnapshot:
    plain = {
        "state": "ESTABLISHED", "round_trip": 0.01, "timeout": 0.2, "segment": 1460, "congestion_window": 14_600,
        "recovering": False, "guest_window": 65_535, "own_window": 65_535, "in_flight": 0, "queued": 0, "unread": 0,
        "losses": LossTotals(),
    }  # fmt: skip
    connection = ConnectionSnapshot(**(plain | changes))
    return FlowSnapshot(7, "tcp", "out", state, *ENDS, REAL, NAMED, 1.0, sent, received, connection)


def test_where_the_time_of_a_living_flow_goes() -> None:
    stories = FlowStories(Clock())
    stories.sample([snapshot(0, 0)], 1.0)
    assert stories.flows() == [], "nothing is remembered of it"
    stories.note(FlowOpened(7, "tcp", *ENDS, REAL, NAMED))
    for word, seen in (
        ("connecting", snapshot(0, 0, "peeking")),
        ("upstream", snapshot(10, 0)),
        ("loss", snapshot(10, 500, recovering=True, in_flight=500)),
        ("receiver window", snapshot(10, 500, queued=9000, guest_window=100, in_flight=100)),
        ("receiver window", snapshot(10, 500, unread=9000)),
        ("network", snapshot(10, 700, in_flight=200)),
        ("idle", snapshot(10, 700)),
    ):
        before: Any = (stories.flow(7) or {})["seconds_by_cause"]
        stories.sample([seen], 0.5)
        after: Any = (stories.flow(7) or {})["seconds_by_cause"]
        assert after.get(word, 0.0) == before.get(word, 0.0) + 0.5, word


class Rebinding(AnswersDns):
    """A resolver that knows one name, which leads to this machine."""

    async def ask(self, message: bytes) -> bytes | None:
        return answer(message, {NAME: "127.0.0.1"})


async def test_a_driver_tells_of_its_dials() -> None:
    """One that connects, one that is refused, and a name whose address must not be dialled."""
    stories = FlowStories()
    policy = NetworkSpec.enabled([NAME, "@host"]).policy()
    with listener() as (_, port), listener() as (gone, dead_port):
        gone.close()
        async with trio.open_nursery() as nursery:
            driver = Driver(
                network_settings(),
                resolver=Rebinding(),
                policy=policy,
                event_sink=lambda event, _now: stories.note(event),
                dial_watch=stories,
            )
            live = Live(driver, nursery)
            await nursery.start(driver.run)
            guest = await live.attach()
            await guest.syn(HOST_ALIAS, port, 40_001)
            await guest.syn(HOST_ALIAS, dead_port, 40_002)
            await guest.syn(SITE, 443, 40_003)
            await live.settle_until(lambda: any(flags == (40_003, "SA") for flags in guest.flags()))
            hello = hellos.python_ssl(NAME)
            header = TCP(sport=40_003, dport=443, flags="PA", seq=2, ack=1)
            flow = next(each for each in driver.stack.tcp.table.values() if each.question.guest[1] == 40_003)
            header.ack = flow.connection.send_next
            await guest.send(IP(src=GUEST, dst=SITE) / header / hello)
            await live.settle_until(lambda: len([each for each in stories.flows() if each["closed"]]) == 2)
            nursery.cancel_scope.cancel()
    by_port = {str(each["guest"]): each["flow"] for each in stories.flows()}
    assert told(stories, by_port[f"{GUEST}:40001"]) == ["dialling", "connected", "closed"]  # type: ignore[arg-type]
    assert told(stories, by_port[f"{GUEST}:40002"]) == ["dialling", "dial-failed", "closed"]  # type: ignore[arg-type]
    named: Any = stories.flow(by_port[f"{GUEST}:40003"])  # type: ignore[arg-type]
    assert [step["what"] for step in named["steps"]] == ["looked-up", "refused"]
    assert named["steps"][0]["objections"] == {"127.0.0.1": "loopback-address"}
