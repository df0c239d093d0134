"""The guest and the network in memory: what docs/testing.md shows, and what both ends are told."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from netstack import NetworkSpec
from netstack.engine import effects
from netstack.engine.events import DnsEvent, FlowClosed, FlowOpened, FlowRefused, LeaseEvent
from netstack.testing import ServerStream, VirtualGuest, VirtualNetwork, replay_capture

DOCUMENT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
SERVER = "203.0.113.5"


def _examples() -> list[Any]:
    found = []
    for source in re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL):
        made: dict[str, Any] = {}
        exec(source, made)
        found += [value for name, value in made.items() if name.startswith("test_")]
    return found


@pytest.mark.parametrize("example", [each for each in _examples() if inspect.iscoroutinefunction(each)])
def test_the_examples_of_the_document_pass(example: Any):
    trio.run(example, None, clock=MockClock(autojump_threshold=0))


def test_the_document_has_examples():
    assert len(_examples()) >= 4


async def test_a_lease_then_pings(autojump_clock: MockClock):
    async with VirtualNetwork() as network:
        network.answers_ping.add(SERVER)
        guest = network.attach(VirtualGuest())
        assert await guest.lease() == guest.address
        assert [event.action for event in network.told(LeaseEvent)] == ["offered", "acknowledged"]
        assert await guest.ping(SERVER) < 1e-6
        with pytest.raises(OSError, match="host unreachable"):
            await guest.ping("198.51.100.1")
        assert await guest.ping("192.168.127.1") < 1e-6, "the gateway's own"


async def test_datagrams_come_and_errors_too(autojump_clock: MockClock):
    async with VirtualNetwork() as network:
        network.serve_udp(SERVER, 7, lambda payload: [payload, payload.upper()])
        sockets = network.attach(VirtualGuest()).open_datagrams()
        sockets.send_to(b"abc", SERVER, 7)
        assert [await sockets.receive(), await sockets.receive()] == [(b"abc", SERVER, 7), (b"ABC", SERVER, 7)]
        sockets.send_to(b"abc", SERVER, 8)
        with pytest.raises(OSError, match="port unreachable"):
            await sockets.receive()


async def test_dials_that_fail(autojump_clock: MockClock):
    async with VirtualNetwork() as network:
        network.fail_tcp(SERVER, 81, effects.HOST_UNREACHABLE)
        guest = network.attach(VirtualGuest())
        with pytest.raises(ConnectionRefusedError):
            await guest.connect(SERVER, 80)
        with pytest.raises(OSError, match="host unreachable"):
            await guest.connect(SERVER, 81)
        assert [event.reason for event in network.told(FlowClosed)] == ["refused", "host unreachable"]


async def test_a_slow_reader_holds_the_server_up_and_nothing_is_lost(autojump_clock: MockClock):
    sent = 0
    data = bytes(range(256)) * 40_000  # more than any buffer on the way

    async def server(stream: ServerStream) -> None:
        nonlocal sent
        for at in range(0, len(data), 64_000):
            await stream.send_all(data[at : at + 64_000])
            sent = at

    async with VirtualNetwork() as network:
        network.serve_tcp(SERVER, 80, server)
        connection = await network.attach(VirtualGuest()).connect(SERVER, 80)
        await trio.sleep(10)
        assert 0 < sent < len(data) // 2
        assert await connection.receive_all() == data


async def test_resets_reach_the_other_end(autojump_clock: MockClock):
    async def server(stream: ServerStream) -> None:
        await stream.receive_some()
        stream.reset()

    told = []

    async def patient(stream: ServerStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        told.append("reset")

    async with VirtualNetwork() as network:
        network.serve_tcp(SERVER, 80, server)
        network.serve_tcp(SERVER, 81, patient)
        guest = network.attach(VirtualGuest())
        connection = await guest.connect(SERVER, 80)
        await connection.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await connection.receive_some()
        (await guest.connect(SERVER, 81)).reset()
        await trio.testing.wait_all_tasks_blocked()
        assert told == ["reset"]


async def test_half_close_passes_through(autojump_clock: MockClock):
    async def server(stream: ServerStream) -> None:
        data = b""
        while piece := await stream.receive_some(100):
            data += piece
        await stream.send_all(data[::-1])

    async with VirtualNetwork() as network:
        network.serve_tcp(SERVER, 80, server)
        connection = await network.attach(VirtualGuest()).connect(SERVER, 80)
        await connection.send_all(b"stressed" * 1000)
        await connection.send_eof()
        assert await connection.receive_all() == b"desserts" * 1000
        await trio.sleep(120)
        assert [event.reason for event in network.told(FlowClosed)] == ["finished"]


async def test_a_name_is_dialled_by_the_gateway(autojump_clock: MockClock):
    """Under a list what the guest dials does not matter: the name's own server is reached, or none."""

    async def server(stream: ServerStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    names = {"pypi.org": ["151.101.0.223"], "inside.example.com": ["10.0.0.1"]}
    spec = NetworkSpec.enabled(["pypi.org", "inside.example.com"])
    async with VirtualNetwork(spec, names=names) as network:
        network.serve_tcp("151.101.0.223", 80, server)
        guest = network.attach(VirtualGuest())
        connection = await guest.connect("93.184.216.34", 80)
        await connection.send_all(b"GET / HTTP/1.1\r\nHost: pypi.org\r\n\r\n")
        assert (await connection.receive_some()).startswith(b"HTTP/1.1 200")
        inside = await guest.connect("93.184.216.34", 80)
        await inside.send_all(b"GET / HTTP/1.1\r\nHost: inside.example.com\r\n\r\n")
        assert (await inside.receive_all()).startswith(b"HTTP/1.1 403")
        (opened,) = network.told(FlowOpened)
        assert opened.dialled == (bytes([151, 101, 0, 223]), 80)
        (refused,) = network.told(FlowRefused)
        assert refused.verdict.reason == "private-address"


async def test_questions_and_odd_answers(autojump_clock: MockClock):
    async with VirtualNetwork(names={"a.example": ["192.0.2.1"]}) as network:
        guest = network.attach(VirtualGuest())
        assert await guest.resolve("a.example") == ["192.0.2.1"]
        assert await guest.resolve("b.example") == []
        network.answer_dns = lambda _message: None
        assert await guest.resolve("c.example") == []
        assert [event.rcode for event in network.told(DnsEvent)] == ["NOERROR", "NXDOMAIN", "SERVFAIL"]


async def test_its_capture_replays_byte_for_byte(autojump_clock: MockClock, tmp_path: Path):
    count = 0

    def wire(frame: bytes, from_guest: bool) -> list[bytes]:
        nonlocal count
        count += 1
        return [] if count > 40 and count % 17 == 0 else [frame]

    async def server(stream: ServerStream) -> None:
        await stream.receive_some()
        await stream.send_all(bytes(150_000))

    async with VirtualNetwork(wire=wire, capture=tmp_path / "a.pcapng", names={"e.example": [SERVER]}) as network:
        network.serve_tcp(SERVER, 80, server)
        guest = network.attach(VirtualGuest())
        await guest.lease()
        await guest.resolve("e.example")
        connection = await guest.connect(SERVER, 80)
        await connection.send_all(b"x" * 20_000)
        assert len(await connection.receive_all()) == 150_000
        await connection.aclose()
        await trio.sleep(1)
    replayed = replay_capture(tmp_path / "a.pcapng")
    assert replayed.exact
    assert replayed.differences == ()
    assert list(replayed.frames) == [frame for _, from_guest, frame in network.frames if not from_guest]


async def test_a_guest_that_is_nowhere_says_so():
    with pytest.raises(RuntimeError, match="on no network"):
        VirtualGuest().send_frame(bytes(60))
