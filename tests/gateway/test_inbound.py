"""Streams to guests and services at the gateway, with a guest by scapy: what comes back, and which error if nothing."""

from __future__ import annotations

import errno
import gc
import os

import dns.message
import dns.rcode
import pytest
import trio
from callee import ADDRESS, CLOSED, EAGER, ECHO, GATEWAY, GREETING, RESETS, SILENT, Called, called, until

from netstack.engine.events import FlowRefused
from netstack.gateway import inbound
from netstack.gateway.resolver import Resolver


async def read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    async for piece in stream:
        data += piece
    return data


async def test_a_stream_to_a_guest() -> None:
    async with called() as net, await net.gateway.dial_guest(ADDRESS, ECHO) as stream:
        await stream.send_all(b"x" * 5000)
        await stream.send_eof()
        assert await read_all(stream) == b"x" * 5000
        (closed,) = await net.closed()
        assert (closed.reason, closed.sent, closed.received, closed.direction) == ("finished", 5000, 5000, "in")
        assert net.guest.callers[0][0] == GATEWAY


async def test_a_guest_that_speaks_first_and_ends_its_side() -> None:
    async with called() as net, await net.gateway.dial_guest(ADDRESS, EAGER) as stream:
        assert await read_all(stream) == GREETING
        await stream.send_all(b"still heard")
        await until(lambda: any(b"still heard" in bytes(segment.payload) for segment in net.guest.heard))


@pytest.mark.parametrize(
    ("address", "port", "number"),
    [
        (ADDRESS, CLOSED, errno.ECONNREFUSED),
        (ADDRESS, SILENT, errno.ETIMEDOUT),
        ("192.168.127.77", 80, errno.EHOSTUNREACH),
        ("10.0.0.1", 80, errno.EHOSTUNREACH),
        (GATEWAY, 81, errno.ECONNREFUSED),
    ],
)
async def test_what_cannot_be_reached(address: str, port: int, number: int, autojump_clock: object) -> None:
    async with called() as net:
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            await net.gateway.dial_guest(address, port, timeout=2)
        assert raised.value.errno == number
        assert len(net.gateway.driver.sockets) == 0


async def test_no_address_and_no_port() -> None:
    async with called() as net:
        for address, port in (("guest.example", 80), (ADDRESS, 0), (ADDRESS, 65_536)):
            with pytest.raises(ValueError, match=r"guest\.example|outside"):
                await net.gateway.dial_guest(address, port)


async def test_a_dial_that_is_cancelled_leaves_nothing() -> None:
    async with called() as net:
        with trio.move_on_after(0.05) as scope:
            await net.gateway.dial_guest(ADDRESS, SILENT)
        assert scope.cancelled_caught
        assert len(net.gateway.driver.stack.tcp.inbound) == 0
        assert [event.reason for event in await net.closed()] == ["called off"]


async def test_the_kill_switch_ends_streams_and_dials() -> None:
    async with called() as net, await net.gateway.dial_guest(ADDRESS, ECHO) as stream:
        net.gateway.kill_network()
        assert await read_all(stream) == b""
        with pytest.raises(PermissionError):
            await net.gateway.dial_guest(ADDRESS, ECHO)


@pytest.mark.parametrize("address", [ADDRESS, "192.168.127.77"])
async def test_a_gateway_that_ends_tells_who_waits(address: str) -> None:
    raised: list[OSError] = []

    async def dial(net: Called) -> None:
        try:
            await net.gateway.dial_guest(address, SILENT)
        except OSError as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        async with called() as net:
            nursery.start_soon(dial, net)
            await until(lambda: len(net.gateway.driver.stack.tcp.inbound))
        nursery.start_soon(trio.sleep, 0)
    (error,) = raised
    # Links and host sockets end together: either the guest has left first, or there is nobody to dial it any more.
    assert error.errno in ((errno.EHOSTUNREACH, errno.ECANCELED) if address == ADDRESS else (errno.ECANCELED,))


# -- services ----------------------------------------------------------------------------------------------------------


async def test_a_service_in_the_network_for_guests_and_for_us() -> None:
    clients: list[tuple[str, int]] = []

    async def greet(stream: trio.SocketStream, client: tuple[str, int]) -> None:
        clients.append(client)
        await stream.send_all(b"hello")

    async with called() as net:
        await net.guest.open(80)
        await until(lambda: net.guest.heard)
        assert str(net.guest.heard.pop().flags) == "RA"
        net.gateway.serve_in_network(80, greet)
        for port in (80, 53, 0):
            with pytest.raises(ValueError, match="cannot be served"):
                net.gateway.serve_in_network(port, greet)
        async with await net.gateway.dial_guest(GATEWAY, 80) as stream:
            assert await read_all(stream) == b"hello"
        await net.guest.open(80, 40_001)
        await until(lambda: net.guest.heard)
        assert str(net.guest.heard.pop(0).flags) == "SA"
        assert clients[0] == (GATEWAY, 0)
        await until(lambda: len(clients) == 2)
        assert clients[1] == (ADDRESS, 40_001)
        net.gateway.driver.inbound.stop_serving(80)
        net.guest.heard.clear()
        await net.guest.open(80, 40_002)
        await until(lambda: [segment for segment in net.guest.heard if segment.dport == 40_002])
        assert [str(segment.flags) for segment in net.guest.heard if segment.dport == 40_002] == ["RA"]
        assert len(net.told(FlowRefused)) == 1, "the second is not the tenth"


async def test_names_are_answered_to_us_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions in one piece: one of a zone, one whose answer comes from upstream, and then the client's end."""

    async def ask(_resolver: object, message: bytes) -> bytes:
        await trio.sleep(0.01)
        return dns.message.make_response(dns.message.from_wire(message)).to_wire()

    monkeypatch.setattr(Resolver, "begin", lambda *_: False)
    monkeypatch.setattr(Resolver, "ask", ask)
    questions = [dns.message.make_query(name, "A") for name in ("gateway.containers.internal", "example.org")]
    async with called() as net, await net.gateway.dial_guest(GATEWAY, 53) as stream:
        wires = [question.to_wire() for question in questions]
        await stream.send_all(b"".join(len(wire).to_bytes(2, "big") + wire for wire in wires))
        await stream.send_eof()
        data, answers = await read_all(stream), {}
        while data:
            size = int.from_bytes(data[:2], "big")
            answer = dns.message.from_wire(data[2 : 2 + size])
            answers[answer.id] = answer
            data = data[2 + size :]
        assert [record.address for record in answers[questions[0].id].answer[0]] == [GATEWAY]
        assert answers[questions[1].id].rcode() == dns.rcode.NOERROR
        assert net.gateway.driver.stack._dns_port._sessions == {}
    async with called() as net, await net.gateway.dial_guest(GATEWAY, 53) as stream:
        await stream.send_all(b"\0\3abc")
        assert await read_all(stream) == b"", "what is no DNS ends it"


async def test_a_host_without_descriptors_refuses_its_services(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(stream: trio.SocketStream, client: tuple[str, int]) -> None:
        raise AssertionError("no stream could be made")

    def none_left() -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with called() as net:
        net.gateway.serve_in_network(80, never)
        monkeypatch.setattr(inbound, "_pair", none_left)
        await net.guest.open(80)
        await until(lambda: net.guest.heard)
        assert str(net.guest.heard.pop().flags) == "RA"
        with pytest.raises(OSError, match="Too many open files"):
            await net.gateway.dial_guest(ADDRESS, ECHO)


async def test_a_service_that_fails_or_is_full(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inbound, "MAX_CONNECTIONS", 1)

    async def fail(stream: trio.SocketStream, client: tuple[str, int]) -> None:
        await stream.receive_some(1)
        raise RuntimeError("a mistake of the service's")

    async with called() as net:
        net.gateway.serve_in_network(80, fail)
        async with await net.gateway.dial_guest(GATEWAY, 80) as stream:
            with pytest.raises(ConnectionRefusedError):
                await net.gateway.dial_guest(GATEWAY, 80)
            await net.guest.open(80)
            await until(lambda: net.guest.heard)
            assert str(net.guest.heard.pop().flags) == "RA"
            await net.guest.open(80)
            await until(lambda: net.guest.heard)
            assert caplog.text.count("1 connections are served already") == 1, "once a minute"
            await stream.send_all(b"x")
            assert await read_all(stream) == b""
        assert "a mistake of the service's" in caplog.text
        async with await net.gateway.dial_guest(GATEWAY, 80):
            pass
    gc.collect()


async def test_a_guest_with_many_connections_keeps_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "MAX_OF_GUEST", 2)
    monkeypatch.setattr(inbound, "MAX_CONNECTIONS", 6)
    served: list[str] = []

    async def idle(stream: trio.SocketStream, client: tuple[str, int]) -> None:
        served.append(client[0])
        await stream.receive_some(1)

    async with called() as net:
        net.gateway.serve_in_network(80, idle)
        own = net.gateway.driver.inbound
        ends = []

        def connect(guest: str) -> None:
            ours, theirs = inbound._pair()
            try:
                own._start_handler(80, theirs, (guest, 40_000))
            except OSError:
                ours.close()
                theirs.close()
                raise
            ends.append(ours)

        for guest in ("192.168.127.2", "192.168.127.3"):
            connect(guest)
            connect(guest)
            with pytest.raises(ConnectionRefusedError, match=rf"2 connections of {guest} are served already"):
                connect(guest)
        await until(lambda: len(served) == 4)
        # By its own link it is reset, as at a port where nobody is.
        await net.guest.open(80)
        await until(lambda: net.guest.heard)
        assert str(net.guest.heard.pop().flags) == "RA"
        # Programs on the host have no such bound, but the one that is for all.
        tunnels = [await net.gateway.dial_guest(GATEWAY, 80) for _ in range(2)]
        with pytest.raises(ConnectionRefusedError, match="6 connections are served already"):
            await net.gateway.dial_guest(GATEWAY, 80)
        for stream in tunnels:
            await stream.aclose()
        ends.pop(0).close()
        await until(lambda: own._services[80].by_guest == {"192.168.127.2": 1, "192.168.127.3": 2})
        connect("192.168.127.2")
        for end in ends:
            end.close()
        await until(lambda: not own._services[80].by_guest)


async def test_a_reset_by_the_guest_ends_the_stream() -> None:
    async with called() as net, await net.gateway.dial_guest(ADDRESS, RESETS) as stream:
        await stream.send_all(b"x")
        assert await read_all(stream) == b""
        assert [event.reason for event in await net.closed()] == ["reset by guest"]
