"""The prompt and the API under it: a gateway with a guest in memory, asked through its real routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from conformance.live import MemoryLink
from engine.wire_guest import GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from guest_iface.breakpoints import Breakpoints
from netstack.config import RunConfig, network_settings
from netstack.debug.console import Net, Record, Records, run_console
from netstack.debug.live_api import LiveApi, SourceError
from netstack.debug.live_stories import live_reports
from netstack.gateway.api.app import host_app
from netstack.gateway.attachments import Attachments
from netstack.gateway.run_command import Gateway
from netstack.network_spec import NetworkSpec


class InTrio(httpx.BaseTransport):
    """Gives each request to an application, in a run of trio of its own; time stands still."""

    def __init__(self, app: Any) -> None:
        self._transport = httpx.ASGITransport(app)
        self._clock = trio.testing.MockClock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport) as client:
                return await client.request(
                    request.method, request.url, content=request.read(), headers=dict(request.headers)
                )

        answer = trio.run(ask, clock=self._clock)
        return httpx.Response(answer.status_code, content=answer.content)


class InMemory:
    """A gateway whose one guest is a MemoryLink. Its tasks do not run: what happens, happens in the calls."""

    def __init__(self, path: Path) -> None:
        config = RunConfig(
            network=network_settings(),
            links=(),
            dns_upstreams=("127.0.0.1:9",),
            api_listen=(f"unix://{path}/api.sock",),
            policy=NetworkSpec.enabled(["pypi.org"]),
        )
        self.gateway = Gateway(config, Attachments())
        assert self.gateway.debugging is not None
        self.points: Breakpoints = self.gateway.debugging.breakpoints
        self.link = MemoryLink("memory")
        self.http = httpx.Client(transport=InTrio(host_app(self.gateway)), base_url="http://netstack")
        self.api = LiveApi("http://netstack", http=self.http)
        self.net = Net(self.api)

    def attach(self) -> None:
        """Have the guest's link served, as far as frames need it. Runs where the API's calls run: in trio."""
        wrapped = self.points.wrap(self.link)
        driver = self.gateway.driver
        port = driver.switch.attach(wrapped)

        class Attached:
            link = wrapped
            behind = trio.Event()

        driver._attached[port] = Attached()  # type: ignore[assignment]  # what the driver keeps of a link


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[InMemory]:
    made = InMemory(tmp_path)
    made.attach()
    with made.http:
        arp = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=GUEST_MAC, psrc=GUEST, pdst=GATEWAY)
        (answer,) = made.net.inject(arp, wait=0)
        assert answer.packet[ARP].hwsrc == GATEWAY_MAC
        yield made
    made.gateway.stop()
    made.gateway._close_files()


def test_injected_packets_are_the_guests_and_their_answers_come_back(memory: InMemory) -> None:
    (reply,) = memory.net.inject(IP(dst=GATEWAY) / ICMP(id=7) / b"hello", wait=0)
    assert reply.direction == "to-guest"
    assert (reply.packet[IP].src, reply.packet[IP].dst, reply.packet[ICMP].type) == (GATEWAY, GUEST, 0)
    assert repr(reply).startswith("<to-guest Ether / IP / ICMP")
    refused = memory.net.inject([IP(dst="45.33.32.156") / TCP(sport=1000, dport=22, flags="S")], wait=0)
    assert [str(each.packet[TCP].flags) for each in refused] == ["RA"]
    both = memory.net.inject(
        [bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / IP(src=GUEST, dst=GATEWAY) / ICMP())], wait=0
    )
    assert len(both) == 1


def test_packets_for_the_guest_reach_its_link(memory: InMemory) -> None:
    memory.link.heard.clear()
    assert memory.net.inject(IP(src="10.1.1.1") / UDP(dport=9) / b"hi", from_="host", wait=0) == []
    (frame,) = memory.link.heard
    assert (Ether(frame).dst, Ether(frame)[IP].dst, Ether(frame)[IP].src) == (GUEST_MAC, GUEST, "10.1.1.1")


def test_a_breakpoint_holds_steps_drops_and_releases(memory: InMemory) -> None:
    net = memory.net
    memory.link.heard.clear()
    with net.break_on(f"icmp and host {GATEWAY}") as stop:
        assert net.inject(IP(dst=GATEWAY) / ICMP(id=1), wait=0) == [], "the answer is held"
        net.inject(IP(dst=GATEWAY) / ICMP(id=2), wait=0)
        net.inject(IP(dst=GATEWAY) / ICMP(id=3), wait=0)
        assert [each.packet[ICMP].id for each in stop.held] == [1, 2, 3]
        assert "3 held, 3 hits" in repr(stop)
        assert len(net.breakpoints) == 1
        assert stop.step() == 1
        assert stop.drop(1) == 1
        assert [Ether(frame)[ICMP].id for frame in memory.link.heard] == [1]
    assert [Ether(frame)[ICMP].id for frame in memory.link.heard] == [1, 3]
    assert repr(stop) == f"<breakpoint {stop.number}, released>"
    assert net.breakpoints == []


def test_the_network_as_objects(memory: InMemory) -> None:
    net = memory.net
    net.inject(IP(dst="45.33.32.156") / TCP(sport=1000, dport=22, flags="S"), wait=0)
    (flow,) = net.flows
    assert (flow.state, flow.verdict.reason, flow.destination) == ("refused", "no-rule", "45.33.32.156:22")
    assert "refused no-rule" in repr(net.flows)
    assert net.flows[0].id == flow["id"]
    assert "destination" in dir(flow)
    with pytest.raises(AttributeError, match="there is no 'colour'; there are: id, protocol"):
        _ = flow.colour
    assert net.policy.spec.allow_net == ["pypi.org"]
    assert [link.name for link in net.links] == ["memory"]
    assert net.neighbours[0].mac == GUEST_MAC
    assert net.counters.refused.values() == {"no-rule": 1}
    for listed in (net.questions, net.leases, net.zones):
        assert isinstance(listed, Records)
        repr(listed)
    assert isinstance(net.flow(flow.id), Record)


def test_stories_of_a_running_gateway(memory: InMemory, capsys: pytest.CaptureFixture[str]) -> None:
    memory.net.inject(IP(dst="45.33.32.156") / TCP(sport=1000, dport=22, flags="S"), wait=0)
    (report,) = live_reports(memory.api)
    assert report.cause.word == "refused-no-rule"
    assert report.cause.advice == "add '45.33.32.156:22' to allow_net"
    memory.net.story(report.number)
    told = capsys.readouterr().out
    assert "refused it when the connection was opened (SYN): no-rule; the guest was told: reset" in told


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda net: net.break_on("host nowhere"), "expected an IP address"),
        (lambda net: net.story(99), "nothing is remembered of it"),
        (lambda net: net.inject(b"short", wait=0), "a frame of 5 bytes: expected 14 to"),
        (lambda net: net.inject(IP(src="192.168.127.9", dst=GATEWAY) / ICMP(), wait=0), "no guest has been heard of"),
        (lambda net: net.inject(b"x" * 60, link="other", wait=0), "expected the name of one link; there are: memory"),
        (lambda net: net.inject(b"x" * 60, wait=11), "wait"),
        (lambda net: net.inject(ARP()), "expected an IPv4 packet, or a whole frame"),
        (lambda net: net.inject(b"x" * 60, from_="space"), "expected 'guest' or 'host'"),
    ],
)
def test_nonsense_is_one_clear_error(memory: InMemory, ask: Any, message: str) -> None:
    with pytest.raises((SourceError, ValueError), match=message):
        ask(memory.net)


def test_a_command_in_place_of_a_prompt(memory: InMemory, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_console(memory.api, "net.policy.access") == 0
    assert run_console(memory.api, "found = net.leases\nprint(len(found))") == 0
    assert capsys.readouterr().out == "'listed'\n1\n"


def test_values_are_shown_in_few_words() -> None:
    rows = Records([Record({"a": 1, "long": "x" * 40, "none": None}), Record({"a": 20, "long": "y", "none": None})])
    assert repr(rows).splitlines() == ["a   long", f"1   {'x' * 29}...", "20  y"]
    assert repr(Records([1, 2])) == "[1, 2]"
