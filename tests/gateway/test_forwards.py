"""Port forwards with a guest by scapy and clients on the loopback: both ways, ends, resets, bounds, every refusal."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
import trio
from callee import ADDRESS, CLOSED, EAGER, ECHO, GATEWAY, GREETING, RESETS, SILENT, Called, called, until

from netstack.config import network_settings
from netstack.engine.events import FlowClosed
from netstack.gateway import port_forwards
from netstack.gateway.forward_addresses import ForwardError, GuestSocket, parse_unix_remote, remote_for
from netstack.gateway.host_streams import KEEPALIVE_IDLE
from netstack.gateway.inbound import Endpoint
from netstack.gateway.port_forwards import KeepSource, endpoint_of


def port_of(local: str) -> int:
    return int(local.rpartition(":")[2])


async def exposed(net: Called, port: int, local: str = "127.0.0.1:0") -> int:
    """The local port of a TCP forward to this port of the guest."""
    return port_of((await net.gateway.forwards.expose("tcp", local, f"{ADDRESS}:{port}")).local)


async def read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    async for piece in stream:
        data += piece
    return data


async def test_tcp_both_ways_and_ends() -> None:
    async with called() as net:
        port = await exposed(net, ECHO)
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"x" * 3000)
            await client.send_eof()
            assert await read_all(client) == b"x" * 3000
        (closed,) = await net.closed()
        assert (closed.reason, closed.sent, closed.received) == ("finished", 3000, 3000)
        assert net.guest.callers[0][0] == GATEWAY, "as gvproxy has it"
        host, source = socket.inet_ntoa(closed.dialled[0]), closed.dialled[1]
        assert (host, source) != (GATEWAY, net.guest.callers[0][1]), "the record has the client itself"
        assert host == "127.0.0.1"


async def test_a_guest_that_speaks_first_and_ends_its_side() -> None:
    async with called() as net, await trio.open_tcp_stream("127.0.0.1", await exposed(net, EAGER)) as client:
        assert await read_all(client) == GREETING
        await client.send_all(b"still heard")
        await until(lambda: any(b"still heard" in bytes(segment.payload) for segment in net.guest.heard))


async def test_who_has_spoken_by_then_is_heard_with_the_end_of_the_handshake() -> None:
    async with called() as net, await trio.open_tcp_stream("127.0.0.1", await exposed(net, ECHO)) as client:
        await client.send_all(b"first word")
        assert await client.receive_some(100) == b"first word"
        opening, word = net.guest.heard[:2]
        assert (opening.flags, bytes(word.payload)) == ("S", b"first word"), (
            "no acknowledgement on its own between them"
        )


async def test_what_a_forward_accepts_has_every_host_connections_options(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted: list[socket.socket] = []
    take = port_forwards.StreamForward.take

    def taken(forward: port_forwards.StreamForward, sock: socket.socket, client: Endpoint | None) -> None:
        accepted.append(sock)
        take(forward, sock, client)

    monkeypatch.setattr(port_forwards.StreamForward, "take", taken)
    async with called() as net, await trio.open_tcp_stream("127.0.0.1", await exposed(net, ECHO)) as client:
        await client.send_all(b"x")
        assert await client.receive_some(1) == b"x"
        (sock,) = accepted
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE


async def talk(port: int, data: bytes) -> bytes:
    """What a client hears that says `data`."""
    with trio.socket.socket() as client:
        await client.connect(("127.0.0.1", port))
        if data:
            await client.send(data)
        return await client.recv(1)


async def is_reset(port: int, data: bytes = b"") -> None:
    """Connect, and be reset: perhaps before the connection is seen to stand."""
    with pytest.raises(ConnectionResetError):
        await talk(port, data)


@pytest.mark.parametrize(("port", "data"), [(CLOSED, b""), (RESETS, b"x"), (SILENT, b"")])
async def test_h2_what_the_guest_refuses_or_resets_is_a_reset(port: int, data: bytes) -> None:
    """gvproxy's clients see a connection that ends in order."""
    async with called() as net:
        local = await exposed(net, port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_reset, local, data)
            if port == SILENT:
                await until(lambda: net.guest.heard)
                net.gateway.kill_network()


async def test_a_client_that_resets_is_a_reset_to_the_guest() -> None:
    async with called() as net:
        client = await trio.open_tcp_stream("127.0.0.1", await exposed(net, ECHO))
        await client.send_all(b"x")
        assert await client.receive_some(10) == b"x"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()
        assert [event.reason for event in await net.closed()] == ["reset by client"]
        await until(lambda: [segment for segment in net.guest.heard if "R" in str(segment.flags)])


async def test_unexpose_ends_the_listening_and_on_request_the_connections() -> None:
    async with called() as net:
        forwards = net.gateway.forwards
        for close_flows in (False, True):
            port = await exposed(net, ECHO)
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                await client.send_all(b"x")
                assert await client.receive_some(10) == b"x"
                await forwards.unexpose("tcp", f"127.0.0.1:{port}", close_flows=close_flows)
                with pytest.raises(OSError, match="all attempts to connect"):
                    await trio.open_tcp_stream("127.0.0.1", port)
                if close_flows:
                    with pytest.raises(trio.BrokenResourceError):
                        await read_all(client)
                else:
                    await client.send_all(b"y")
                    assert await client.receive_some(10) == b"y"
        assert forwards.listing() == []
        with pytest.raises(ForwardError, match=r"^proxy not found$") as raised:
            await forwards.unexpose("tcp", "127.0.0.1:1")
        assert raised.value.status == 500


async def test_h5_what_is_exposed_is_listed_in_order_and_once() -> None:
    async with called() as net, called() as other:
        forwards = net.gateway.forwards
        made = await forwards.expose("tcp", "127.0.0.1:0", f"{ADDRESS}:80")
        local = made.local
        assert port_of(local) > 0
        await forwards.expose("udp", local, f"{ADDRESS}:53")
        with pytest.raises(ForwardError, match=f"^proxy already running for tcp on {local}$"):
            await forwards.expose("tcp", local, f"{ADDRESS}:81")
        with pytest.raises(ForwardError, match=f"^listen tcp {local}: bind: address already in use$"):
            await other.gateway.forwards.expose("tcp", local, f"{ADDRESS}:81")
        listed = [(each.local, each.protocol, each.remote) for each in forwards.listing()]
        assert listed == [(local, "tcp", f"{ADDRESS}:80"), (local, "udp", f"{ADDRESS}:53")]


@pytest.mark.parametrize(
    ("protocol", "local", "remote", "words", "status"),
    [
        ("tcp", "9.9.9.9:1", f"{ADDRESS}:80", "listen tcp 9.9.9.9:1: bind: cannot assign requested address", 500),
        ("tcp", "19007", f"{ADDRESS}:80", "listen tcp: address 19007: missing port in address", 500),
        ("tcp", ":99999", f"{ADDRESS}:80", "listen tcp: address 99999: invalid port", 500),
        ("udp", "nowhere.invalid:1", f"{ADDRESS}:80", "listen udp: lookup nowhere.invalid: no such host", 500),
        ("tcp", ":0", "80", "invalid remote addr", 500),
        ("udp", ":0", "[::1]:80", "invalid remote addr", 500),
        ("tcp", ":0", f"{ADDRESS}:99999", 'strconv.ParseUint: parsing "99999": value out of range', 500),
        ("tcp", ":0", f"{ADDRESS}:http", 'strconv.ParseUint: parsing "http": invalid syntax', 500),
        ("tcp", ":0", "guest.example:80", "invalid remote addr 'guest.example:80': expected the IPv4 address "
         "of a guest and a port", 400),
        ("sctp", ":0", f"{ADDRESS}:80", "unknown protocol sctp", 500),
        ("npipe", "x", "tcp://192.168.127.2:80", "named pipes are not supported by this platform", 500),
        ("unix", "/nowhere/x", "http://192.168.127.2:80",
         "remote protocol for unix forwarder is not implemented: http", 500),
        ("unix", "/nowhere/x", "192.168.127.2:80", "remote protocol for unix forwarder is not implemented: ", 500),
        ("unix", "/nowhere/x", "ssh-tunnel://u@192.168.127.2/s", "key not provided for unix-ssh connection", 500),
        ("unix", "/nowhere/x", "ssh-tunnel://u@192.168.127.2/?key=k",
         "remote uri must contain a path to a socket file", 500),
        ("unix", "/nowhere/x", "tcp://[192.168.127.2", "failed to parse remote uri :tcp://[192.168.127.2 : "
         "Invalid IPv6 URL", 500),
        ("unix", "/nowhere/x", "tcp://192.168.127.2:80",
         "listen unix /nowhere/x: bind: cannot bind a unix socket there: No such file or directory", 500),
    ],
)  # fmt: skip
async def test_refusals_are_in_the_words_clients_know(
    protocol: str, local: str, remote: str, words: str, status: int
) -> None:
    async with called() as net:
        with pytest.raises(ForwardError) as raised:
            await net.gateway.forwards.expose(protocol, local, remote)
        assert (str(raised.value), raised.value.status) == (words, status)
        assert net.gateway.forwards.listing() == []


def test_a_remote_without_a_host_is_the_caller() -> None:
    assert remote_for("tcp", ":80", ADDRESS) == f"{ADDRESS}:80"
    assert remote_for("udp", "192.168.127.3:80", ADDRESS) == "192.168.127.3:80"
    assert remote_for("unix", "tcp://x", "") == "tcp://x"
    for remote, caller, words in (
        ("80", ADDRESS, "address 80: missing port in address"),
        ("", ADDRESS, "missing port in address"),
        ("::1", ADDRESS, "address ::1: too many colons in address"),
        (":80", "", "address @: missing port in address"),
    ):
        with pytest.raises(ForwardError) as raised:
            remote_for("tcp", remote, caller)
        assert (str(raised.value), raised.value.status) == (words, 400)


def test_an_ssh_remote_and_its_defaults() -> None:
    target = parse_unix_remote("ssh-tunnel://core@192.168.127.2/run/podman.sock?key=/k%20ey&passphrase=p%26q")
    address = socket.inet_aton(ADDRESS)
    assert target == GuestSocket(address, 22, "core", "/run/podman.sock", "/k ey", "p&q")
    assert "p&q" not in repr(target), "no secret in a log"
    assert parse_unix_remote("ssh-tunnel://u@192.168.127.2:2222/s?key=k") == GuestSocket(address, 2222, "u", "/s", "k")


async def test_h1_a_forward_that_everybody_reaches_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with called() as net:
        await exposed(net, ECHO)
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
        for count, local in enumerate((":0", "0.0.0.0:0", "[::]:0"), 1):
            await exposed(net, ECHO, local)
            assert caplog.text.count("whoever reaches this host reaches it") == count


# -- IPv6, unix --------------------------------------------------------------------------------------------------------


async def test_ipv6_listeners() -> None:
    async with called() as net:
        for local, hosts in (("[::1]:0", ["::1"]), (":0", ["::1", "127.0.0.1"]), ("0.0.0.0:0", ["127.0.0.1"])):
            forward = await net.gateway.forwards.expose("tcp", local, f"{ADDRESS}:{ECHO}")
            assert forward.local.startswith(local[:-1])
            for host in hosts:
                async with await trio.open_tcp_stream(host, port_of(forward.local)) as client:
                    await client.send_all(b"x")
                    assert await client.receive_some(10) == b"x"
            await net.gateway.forwards.unexpose("tcp", forward.local, close_flows=True)
        assert [len(event.dialled[0]) for event in net.opened] == [16, 16, 4, 4]


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    async with called() as net:
        forward = await net.gateway.forwards.expose("unix", f"unix://{path}", f"tcp://{ADDRESS}:{ECHO}")
        assert (forward.local, path.stat().st_mode & 0o777) == (str(path), 0o600)
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(b"x")
            await client.send_eof()
            assert await read_all(client) == b"x"
        with pytest.raises(ForwardError, match=f"^proxy already running for unix on {path}$"):
            await net.gateway.forwards.expose("unix", str(path), f"tcp://{ADDRESS}:{ECHO}")
        await net.gateway.forwards.unexpose("unix", str(path))
        assert not path.exists()
        await net.gateway.forwards.expose("unix", str(path), f"tcp://{ADDRESS}:{ECHO}")
        async with called() as other:
            with pytest.raises(ForwardError, match="already in use by another process"):
                await other.gateway.forwards.expose("unix", str(path), f"tcp://{ADDRESS}:{ECHO}")
    assert not path.exists(), "removed at the end"


async def test_no_file_is_deleted(tmp_path: Path) -> None:
    """gvproxy defect 9: whatever is at the path of a unix forward goes away."""
    path = tmp_path / "precious"
    path.write_text("data")
    async with called() as net:
        with pytest.raises(ForwardError, match="exists and is not a socket"):
            await net.gateway.forwards.expose("unix", str(path), f"tcp://{ADDRESS}:{ECHO}")
    assert path.read_text() == "data"


# -- UDP ---------------------------------------------------------------------------------------------------------------


async def test_datagrams_of_two_clients_empty_ones_too() -> None:
    async with called() as net:
        forward = await net.gateway.forwards.expose("udp", "127.0.0.1:0", f"{ADDRESS}:{ECHO}")
        target = ("127.0.0.1", port_of(forward.local))
        with trio.socket.socket(type=socket.SOCK_DGRAM) as one, trio.socket.socket(type=socket.SOCK_DGRAM) as two:
            for sock, data in ((one, b"one"), (two, b"two"), (one, b""), (one, b"x" * 1400)):
                await sock.sendto(data, target)
                assert await sock.recvfrom(65_536) == (data, target)
            assert forward.active == 2
        assert len(set(net.guest.callers)) == 2
        assert {host for host, _ in net.guest.callers} == {GATEWAY}
        await net.gateway.forwards.unexpose("udp", forward.local)
        assert [event.reason for event in await net.closed(2)] == ["closed", "closed"]


async def test_datagrams_that_the_guest_refuses_end_their_flow() -> None:
    async with called() as net:
        forward = await net.gateway.forwards.expose("udp", "[::1]:0", f"{ADDRESS}:{CLOSED}")
        with trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            await client.sendto(b"x", ("::1", port_of(forward.local)))
            assert [event.reason for event in await net.closed()] == ["refused"]
        await until(lambda: not forward.active)
        assert (forward.accepted, forward.failed) == (1, 1)


async def test_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_forwards, "MAX_CLIENTS", 2)
    async with called() as net:
        forward = await net.gateway.forwards.expose("udp", "127.0.0.1:0", f"{ADDRESS}:{ECHO}")
        for _ in range(4):
            with trio.socket.socket(type=socket.SOCK_DGRAM) as client:
                await client.sendto(b"x", ("127.0.0.1", port_of(forward.local)))
                assert await client.recv(10) == b"x"
        assert forward.active == 2
        assert len(net.told(FlowClosed)) == 2


# -- bounds, sources, resources ----------------------------------------------------------------------------------------


async def test_connections_of_a_forward_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_forwards, "MAX_FLOWS", 1)
    async with called() as net:
        port = await exposed(net, ECHO)
        async with await trio.open_tcp_stream("127.0.0.1", port) as first:
            await first.send_all(b"x")
            assert await first.receive_some(1) == b"x"
            await is_reset(port)
        await net.closed()
        async with await trio.open_tcp_stream("127.0.0.1", port) as third:
            await third.send_all(b"x")
            assert await third.receive_some(1) == b"x"


async def test_dials_are_bounded_and_the_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_forwards, "MAX_DIALS", 2)
    async with called() as net:
        local = await exposed(net, SILENT)
        streams = [await trio.open_tcp_stream("127.0.0.1", local) for _ in range(3)]
        (forward,) = net.gateway.forwards.listing()
        await until(lambda: forward.accepted == 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert forward.accepted == 2
        net.gateway.kill_network()
        await until(lambda: forward.accepted == 3)
        for stream in streams:
            await stream.aclose()


async def test_a_host_without_descriptors_lets_them_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(port_forwards, "PAUSE", 0.01)
    fails = [OSError(24, "Too many open files") for _ in range(5)]
    accept = socket.socket.accept

    def scarce(sock: socket.socket) -> object:
        if fails and sock.family == socket.AF_INET:
            raise fails.pop()
        return accept(sock)

    async with called() as net:
        port = await exposed(net, ECHO)
        monkeypatch.setattr(socket.socket, "accept", scarce)
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"x")
            assert await client.receive_some(1) == b"x"
    assert caplog.text.count("Too many open files; connections wait") == 1


def test_which_clients_a_guest_may_see() -> None:
    keep = KeepSource(network_settings())

    def kept(host: str, port: int = 5000) -> bool:
        return keep.kept(endpoint_of((host, port))) is not None

    assert kept("10.0.0.9")
    assert kept("::ffff:10.0.0.9")
    assert keep.kept(endpoint_of(("::ffff:10.0.0.9", 5000))) == (bytes((10, 0, 0, 9)), 5000)
    for host in ("127.0.0.1", "192.168.127.9", "192.168.127.254", "fe80::1%lo", "2001:db8::1", "0.0.0.0", "240.0.0.1"):
        assert not kept(host), host
    assert not kept("10.0.0.9", 0)
    assert keep.kept(endpoint_of("")) is None


async def test_a_client_whose_place_is_taken_comes_from_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same client port, by two forwards, to one port of the guest."""
    monkeypatch.setattr(KeepSource, "kept", lambda _self, client: (bytes((10, 9, 8, 7)), 999))
    async with called(keep_source=True) as net:
        port = await exposed(net, ECHO)
        async with (
            await trio.open_tcp_stream("127.0.0.1", port) as one,
            await trio.open_tcp_stream("127.0.0.1", port) as two,
        ):
            for stream in (one, two):
                await stream.send_all(b"x")
                assert await stream.receive_some(1) == b"x"
        assert sorted(host for host, _ in net.guest.callers) == ["10.9.8.7", GATEWAY]
