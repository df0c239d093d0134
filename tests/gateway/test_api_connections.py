"""The API's connections: who takes one over gets every byte, the next request is found, the slow and the many wait."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing
from api_client import served
from callee import ADDRESS, CLOSED, ECHO, GATEWAY, until
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP, Ether

from netstack.config import ListenLink, TcpEndpoint
from netstack.gateway import RunFailed
from netstack.gateway.api import endpoints
from netstack.gateway.api.endpoints import ApiListener
from netstack.gateway.api.request_head import MAX_HEAD, BadRequest, parse_head
from netstack.gateway.api.streams import RequestStream
from netstack.setting_values import UnixEndpoint

MAC = "02:00:00:00:00:77"
WHO_HAS = bytes(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=MAC, psrc="192.168.127.9", pdst=GATEWAY))


async def exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        assert piece, f"the end after {data!r}"
        data += piece
    return data


@pytest.mark.parametrize("prefix", ["<H", ">I"])
async def test_a_frame_right_behind_connect_is_the_guests_first(tmp_path: Path, prefix: str) -> None:
    """Defect 10 of gvproxy: there these bytes are lost, and the stream is out of step for ever."""
    qemu = (ListenLink("qemu", TcpEndpoint("127.0.0.1", 1)),) if prefix == ">I" else ()
    async with served(tmp_path) as api:
        # QEMU's framing where a QEMU is waited for; the listener itself is not needed for that.
        object.__setattr__(api.gateway.config, "links", (*api.gateway.config.links, *qemu))
        frame = struct.pack(prefix, len(WHO_HAS)) + WHO_HAS
        async with await api.connect() as stream:
            await stream.send_all(b"POST /connect HTTP/1.1\r\nHost: x\r\n\r\n" + frame + frame[:7])
            (size,) = struct.unpack(prefix, await exactly(stream, struct.calcsize(prefix)))
            answer = Ether(await exactly(stream, size))
            assert (answer[ARP].op, answer[ARP].psrc, answer.dst) == (2, GATEWAY, MAC), "and no HTTP before it"
            await stream.send_all(frame[7:])
            await exactly(stream, size + struct.calcsize(prefix))
            assert "/connect guest 1" in [link.name for link in api.gateway.driver.links.values()]
        await until(lambda: len(api.gateway.driver.links) == 1)


async def test_bytes_right_behind_tunnel_reach_the_guest(tmp_path: Path) -> None:
    async with served(tmp_path) as api, await api.connect() as stream:
        request = f"POST /tunnel?ip={ADDRESS}&port={ECHO} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        await stream.send_all(request.encode() + b"early")
        assert await exactly(stream, 7) == b"OKearly", "OK first, and no HTTP"
        await stream.send_all(b" and late")
        await stream.send_eof()
        assert await exactly(stream, 9) == b" and late"
        assert await stream.receive_some() == b"", "the guest's end is passed on"


async def test_a_tunnel_to_the_gateway_itself(tmp_path: Path) -> None:
    """In gvproxy that does not work."""
    async with served(tmp_path, guest_api=True) as api, await api.connect() as stream:
        inner = b"GET /services/forwarder/all HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
        await stream.send_all(f"POST /tunnel?ip={GATEWAY}&port=80 HTTP/1.1\r\nHost: x\r\n\r\n".encode() + inner)
        data = b""
        async for piece in stream:
            data += piece
        assert data.startswith(b"OKHTTP/1.1 200")
        assert data.endswith(b"[]\n")


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", "ip is mandatory"),
        ("?port=80", "ip is mandatory"),
        ("?ip=192.168.127.2", 'strconv.ParseUint: parsing "": invalid syntax'),
        ("?ip=192.168.127.2&port=x", 'strconv.ParseUint: parsing "x": invalid syntax'),
        ("?ip=192.168.127.2&port=65536", 'strconv.ParseUint: parsing "65536": value out of range'),
        ("?ip=guest&port=80", "ip 'guest' is no IPv4 address"),
    ],
)
async def test_a_tunnel_that_leads_nowhere_is_an_answer(tmp_path: Path, query: str, text: str) -> None:
    async with served(tmp_path) as api, await api.connect() as stream:
        await stream.send_all(f"POST /tunnel{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        data = b""
        async for piece in stream:
            data += piece
        assert data.startswith(b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain; charset=utf-8\r\n")
        assert b"X-Content-Type-Options: nosniff\r\n" in data
        assert data.endswith(f"\r\n\r\n{text}\n".encode())


@pytest.mark.parametrize("port", [CLOSED, 0])
async def test_a_tunnel_that_is_refused_says_ok_and_ends(tmp_path: Path, port: int) -> None:
    async with served(tmp_path) as api, await api.connect() as stream:
        await stream.send_all(f"POST /tunnel?ip={ADDRESS}&port={port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert await exactly(stream, 2) == b"OK"
        assert await stream.receive_some() == b""


async def test_a_connection_that_is_kept_alive_becomes_a_tunnel(tmp_path: Path) -> None:
    async with served(tmp_path) as api, await api.connect() as stream:
        for _ in range(3):
            await stream.send_all(
                b"POST /services/forwarder/unexpose HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
            )
            answer = b""
            while not answer.endswith(b"proxy not found\n"):
                answer += await exactly(stream, 1)
        await stream.send_all(f"POST /tunnel?ip={ADDRESS}&port={ECHO} HTTP/1.1\r\nHost: x\r\n\r\nhello".encode())
        assert await exactly(stream, 7) == b"OKhello"


async def test_services_has_no_connect(tmp_path: Path) -> None:
    async with served(tmp_path, services=f"unix://{tmp_path}/services") as api:
        transport = httpx.AsyncHTTPTransport(uds=f"{tmp_path}/services")
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            assert (await http.post("/connect")).status_code == 404
            assert (await http.get("/leases")).status_code == 200
        async with await trio.open_unix_socket(f"{tmp_path}/services") as stream:
            await stream.send_all(f"POST /tunnel?ip={ADDRESS}&port={ECHO} HTTP/1.1\r\nHost: x\r\n\r\nhi".encode())
            assert await exactly(stream, 4) == b"OKhi"
        assert api.path.exists()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/2.0\r\n\r\n", b"505 HTTP Version Not Supported"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nContent-Length : 1\r\n\r\n", b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413 Content Too Large"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * MAX_HEAD + b"\r\n\r\n", b"431 Request Header Fields Too Large"),
    ],
)
async def test_what_is_no_request_is_told_so(tmp_path: Path, request_bytes: bytes, status: bytes) -> None:
    async with served(tmp_path) as api, await api.connect() as stream:
        await stream.send_all(request_bytes)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 " + status + b"\r\n")


async def test_a_thousand_requests_at_once_while_a_guest_is_served(tmp_path: Path) -> None:
    async with served(tmp_path) as api, await api.gateway.dial_guest(ADDRESS, ECHO) as traffic:
        answers: list[bytes] = []
        all_asked = trio.Event()

        async def ask(path: str, open_streams: list[trio.SocketStream]) -> None:
            async with await api.connect() as stream:
                open_streams.append(stream)
                if len(open_streams) == 1000:
                    all_asked.set()
                await all_asked.wait()  # all of them are connected at once
                await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                data = b""
                async for piece in stream:
                    data += piece
                answers.append(data)

        exchanges = 0
        async with trio.open_nursery() as nursery:
            streams: list[trio.SocketStream] = []
            for number in range(1000):
                path = ("/leases", "/v1/leases", "/cam", "/services/dns/all")[number % 4]
                nursery.start_soon(ask, path, streams)
            while len(answers) < 1000:
                await traffic.send_all(b"x" * 1000)
                assert await exactly(traffic, 1000) == b"x" * 1000
                exchanges += 1
                for _ in range(10):  # scapy takes as long for one of these as the API for many
                    await trio.lowlevel.checkpoint()
        assert all(data.startswith(b"HTTP/1.1 200") and data.rstrip()[-1:] in b"]}" for data in answers)
        assert exchanges > 3, "the guest was served all the while"


async def test_connections_beyond_the_bound_wait_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "MAX_CONNECTIONS", 2)
    async with served(tmp_path) as api:
        request = b"GET /leases HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        first, second = await api.connect(), await api.connect()
        await first.send_all(request[:10])
        await second.send_all(request[:10])
        third = await api.connect()
        await third.send_all(request)
        with trio.move_on_after(0.05) as waited:
            await third.receive_some()
        assert waited.cancelled_caught
        await first.send_all(request[10:])
        assert (await first.receive_some()).startswith(b"HTTP/1.1 200")
        await first.aclose()
        assert (await third.receive_some()).startswith(b"HTTP/1.1 200")
        await second.aclose()
        await third.aclose()


class UnixSocket:
    """What a RequestStream asks of a stream's socket."""

    family = socket.AF_UNIX


@pytest.mark.parametrize(
    ("sent", "left"), [(b"GET / HT", True), (b"", True), (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc", False)]
)
async def test_who_is_too_slow_is_hung_up_on(autojump_clock: trio.testing.MockClock, sent: bytes, left: bool) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    ours.socket = UnixSocket()  # type: ignore[attr-defined]
    requests = RequestStream(ours, guest=None, raw_paths=frozenset())  # type: ignore[arg-type]
    await theirs.send_all(sent)
    began = trio.current_time()
    if left:
        assert await requests.next_request() is None
    else:
        assert await requests.next_request() is not None
        while await requests.receive_some():
            pass
    assert trio.current_time() - began == pytest.approx(10)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for whole in (data, b"GET /x?y=%zz HTTP/1.1\r\n" + data + b"\r\n\r\n"):
        try:
            head = parse_head(whole)
        except BadRequest:
            continue
        assert head is None or 0 < head.size <= len(whole)


def test_a_head_is_passed_on_without_an_offer_of_another_protocol() -> None:
    head = parse_head(b"\r\nGET /a%20b?x=1&x=2 HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc")
    assert head is not None
    assert (head.path, head.query, head.body) == ("/a b", {"x": "1"}, 3)
    assert head.forwarded == b"GET /a%20b?x=1&x=2 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n"


def test_a_living_socket_and_a_file_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RunFailed, match="is not a socket"):
        ApiListener(UnixEndpoint(tmp_path / "file"))
    first = ApiListener(UnixEndpoint(tmp_path / "api.sock"))
    with pytest.raises(RunFailed, match="already in use"):
        ApiListener(UnixEndpoint(tmp_path / "api.sock"))
    with pytest.raises(RunFailed, match="cannot listen there"):
        ApiListener(TcpEndpoint("192.0.2.1", 80))
    first.close()
    first.close()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
