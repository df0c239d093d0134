"""Port forwards to a real kernel: its sockets in the guest's namespace, clients and the gateway in the test's own."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from guest_iface.tap import TapLink
from netstack.config import RunConfig, network_settings
from netstack.engine.events import Event, FlowClosed
from netstack.gateway.attachments import Attachments
from netstack.gateway.port_forwards import KeepSource
from netstack.gateway.run_command import Gateway

from .lab import Lab, Namespace, Process, wait_until
from .network import TAP

pytestmark = pytest.mark.guest("ip")

GUEST, GATEWAY = "192.168.127.2", "192.168.127.1"
LIMIT = 60.0
BULK = bytes(range(256)) * 16_384
"""4 MiB."""


class Called:
    """A gateway of this process, and its guest."""

    def __init__(self, guest: Namespace, gateway: Gateway, events: list[Event]) -> None:
        self.guest, self.gateway, self.events = guest, gateway, events

    def listener(self, port: int = 0) -> trio.SocketListener:
        """A TCP server's socket in the guest."""
        sock = self.guest.listen("0.0.0.0", port)
        sock.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    async def exposed(self, port: int) -> int:
        """The local port of a forward to this port of the guest."""
        forward = await self.gateway.forwards.expose("tcp", "127.0.0.1:0", f"{GUEST}:{port}")
        return int(forward.local.rpartition(":")[2])

    async def closed(self, count: int) -> list[FlowClosed]:
        """The ends of that many flows."""
        await until(lambda: len([each for each in self.events if isinstance(each, FlowClosed)]) >= count)
        return [each for each in self.events if isinstance(each, FlowClosed)]


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(LIMIT):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.fixture
def guest(tmp_path: Path) -> AsyncIterator[Namespace]:
    with Lab(tmp_path) as lab:
        yield lab.namespace("guest")


@asynccontextmanager
async def called(guest: Namespace, **options: object) -> AsyncIterator[Called]:
    config = RunConfig(network=network_settings(), links=(), dns_upstreams=("127.0.0.1:9",), **options)
    events: list[Event] = []
    link = TapLink.open(TAP, netns=guest.path, mtu=1500, offload_with=config.network.gateway_mac)
    gateway = Gateway(config, Attachments(links=[link]), watch=events.append)
    guest.sh(f"ip link set {TAP} up; ip address add {GUEST}/24 dev {TAP}; ip route add default via {GATEWAY}")
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run)
            yield Called(guest, gateway, events)
            nursery.cancel_scope.cancel()
    assert len(gateway.driver.sockets) == 0


async def read_all(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    async for piece in stream:
        data += piece
    return bytes(data)


async def answer(port: int, data: bytes = b"") -> bytes:
    """What a client hears from a forward's port."""
    with trio.socket.socket() as client:
        await client.connect(("127.0.0.1", port))
        if data:
            await client.send(data)
        return await client.recv(100)


async def test_h3_streams_and_their_ends(guest: Namespace, tmp_path: Path) -> None:
    """Both ways at once, half-close by either side, resets either way, refusals, and by a unix socket."""
    peers: list[tuple[str, int]] = []

    async def echo(stream: trio.SocketStream) -> None:
        """Ends when the other side does."""
        peers.append(stream.socket.getpeername())
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError as error:
            broken.append(error.__cause__)

    async def first(stream: trio.SocketStream) -> None:
        """Speaks first, ends its side, and hears on."""
        await send(stream)
        heard.append(await read_all(stream))

    async def send(stream: trio.SocketStream) -> None:
        await stream.send_all(BULK)
        await stream.send_eof()

    async def resets(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    heard: list[bytes] = []
    broken: list[BaseException | None] = []
    async with called(guest) as net, trio.open_nursery() as nursery:
        ports = {}
        for handler in (echo, first, resets):
            listener = net.listener()
            ports[handler] = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, handler, [listener])

        async with await trio.open_tcp_stream("127.0.0.1", await net.exposed(ports[echo])) as client:
            nursery.start_soon(send, client)
            assert await read_all(client) == BULK
        assert peers[0][0] == GATEWAY

        async with await trio.open_tcp_stream("127.0.0.1", await net.exposed(ports[first])) as client:
            assert await read_all(client) == BULK
            await client.send_all(b"after the end")
            await client.send_eof()
            await until(lambda: heard)
            assert heard == [b"after the end"]

        with pytest.raises(ConnectionResetError):
            await answer(await net.exposed(ports[resets]), b"x")
        with pytest.raises(ConnectionResetError):
            await answer(await net.exposed(9), b"x")

        client = await trio.open_tcp_stream("127.0.0.1", await net.exposed(ports[echo]))
        await client.send_all(b"x")
        assert await client.receive_some(1) == b"x"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()

        reasons = [event.reason for event in await net.closed(5)]
        assert reasons == ["finished", "finished", "reset by guest", "reset by guest", "reset by client"]
        await until(lambda: broken)
        assert isinstance(broken[0], ConnectionResetError)

        path = tmp_path / "unix.sock"
        await net.gateway.forwards.expose("unix", str(path), f"tcp://{GUEST}:{ports[echo]}")
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(b"by unix")
            await client.send_eof()
            assert await read_all(client) == b"by unix"
        nursery.cancel_scope.cancel()


async def test_h4_a_client_that_does_not_read_stops_the_guest(guest: Namespace) -> None:
    """What is on its way meanwhile is bounded, and nothing is lost."""
    size = 64 * len(BULK)
    sent = 0

    async def pour(stream: trio.SocketStream) -> None:
        nonlocal sent
        while sent < size:
            sent += await stream.socket.send(BULK)
        await stream.send_eof()
        await read_all(stream)

    async with called(guest) as net, trio.open_nursery() as nursery:
        listener = net.listener()
        nursery.start_soon(trio.serve_listeners, pour, [listener])
        async with await trio.open_tcp_stream(
            "127.0.0.1", await net.exposed(listener.socket.getsockname()[1])
        ) as client:
            before = -1
            while not sent or sent > before:
                before = sent
                await trio.testing.wait_all_tasks_blocked(0.1)
            assert sent < size / 4
            received = 0
            while piece := await client.receive_some(1 << 20):
                received += len(piece)
            assert received == sent >= size
        nursery.cancel_scope.cancel()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_many_connections_leave_no_descriptor(guest: Namespace) -> None:
    """Each is closed by the client first, so that their ports wait out TIME-WAIT here, and all ports differ."""
    peers: list[int] = []

    async def one_word(stream: trio.SocketStream) -> None:
        peers.append(stream.socket.getpeername()[1])
        await stream.send_all(await stream.receive_some(10))

    async def ask(port: int, limit: trio.CapacityLimiter) -> None:
        async with limit:
            assert await answer(port, b"x") == b"x"

    async with called(guest) as net, trio.open_nursery() as nursery:
        listener = net.listener()
        nursery.start_soon(trio.serve_listeners, one_word, [listener])
        port = await net.exposed(listener.socket.getsockname()[1])
        assert await answer(port, b"x") == b"x"
        await net.closed(1)
        before = descriptors()
        limit = trio.CapacityLimiter(50)
        async with trio.open_nursery() as asking:
            for _ in range(400):
                asking.start_soon(ask, port, limit)
        await net.closed(401)
        assert len(set(peers)) == 401
        await until(lambda: descriptors() <= before)
        (forward,) = net.gateway.forwards.listing()
        assert (forward.accepted, forward.failed, forward.active) == (401, 0, 0)
        nursery.cancel_scope.cancel()


async def test_datagrams_and_the_kernels_refusal(guest: Namespace) -> None:
    async with called(guest) as net, trio.open_nursery() as nursery:
        sock = guest.socket(socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0", 5353))
        sock.setblocking(False)
        server = trio.socket.from_stdlib_socket(sock)

        async def echo() -> None:
            while True:
                await server.sendto(*await server.recvfrom(65_536))

        nursery.start_soon(echo)
        forward = await net.gateway.forwards.expose("udp", "127.0.0.1:0", f"{GUEST}:5353")
        nobody = await net.gateway.forwards.expose("udp", "127.0.0.1:0", f"{GUEST}:5354")
        with trio.socket.socket(type=socket.SOCK_DGRAM) as client:
            for data in (b"abc", b"", bytes(9000)):
                await client.sendto(data, ("127.0.0.1", int(forward.local.rpartition(":")[2])))
                assert await client.recv(65_536) == data
            await client.sendto(b"x", ("127.0.0.1", int(nobody.local.rpartition(":")[2])))
            assert [event.reason for event in await net.closed(1)] == ["refused"]
        nursery.cancel_scope.cancel()
        server.close()


async def test_the_guest_sees_the_client(guest: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of this machine are on its loopback, which no guest can answer: they are given another address here."""
    monkeypatch.setattr(KeepSource, "kept", lambda _self, client: (bytes((10, 9, 8, 7)), client[1]))

    async def who(stream: trio.SocketStream) -> None:
        await stream.send_all(stream.socket.getpeername()[0].encode())

    async with called(guest, keep_source=True) as net, trio.open_nursery() as nursery:
        listener = net.listener()
        nursery.start_soon(trio.serve_listeners, who, [listener])
        assert await answer(await net.exposed(listener.socket.getsockname()[1])) == b"10.9.8.7"
        nursery.cancel_scope.cancel()


def start_sshd(guest: Namespace, directory: Path) -> Process:
    """OpenSSH's server at port 22 of the guest, for root with a key it makes: `directory`/key."""
    guest.sh(f"""
        mount -t tmpfs none /run
        mkdir -p /run/sshd
        ssh-keygen -q -t ed25519 -N secret -f {directory}/key
        ssh-keygen -q -t ed25519 -N '' -f {directory}/host_key
    """)
    (directory / "sshd_config").write_text(
        f"HostKey {directory}/host_key\nAuthorizedKeysFile {directory}/key.pub\nStrictModes no\n"
        "PermitRootLogin prohibit-password\nPidFile none\nUseDNS no\nUsePAM yes\n"
    )
    sshd = guest.spawn("sshd", "/usr/sbin/sshd", "-D", "-e", "-f", str(directory / "sshd_config"))
    wait_until(lambda: "Server listening" in sshd.log or not sshd.running, "sshd")
    assert sshd.running, sshd.log
    return sshd


@pytest.mark.guest("root", "sshd", "ssh-keygen")
async def test_a_socket_of_the_guest_by_its_ssh_server(guest: Namespace, tmp_path: Path) -> None:
    """As podman's clients have it: /_ping, twice, half-closed; and after the SSH connection was lost."""
    directory = tmp_path / "ssh"
    directory.mkdir()
    path, dest = tmp_path / "host.sock", directory / "podman.sock"

    async def ping(stream: trio.SocketStream) -> None:
        assert await read_all(stream) == b"GET /_ping"
        await stream.send_all(b"OK")

    async def ask() -> bytes:
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(b"GET /_ping")
            await client.send_eof()
            return await read_all(client)

    async with called(guest) as net, trio.open_nursery() as nursery:
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.bind(str(dest))
        sock.listen()
        nursery.start_soon(trio.serve_listeners, ping, [trio.SocketListener(sock)])
        # First the forward: a VM takes its time to boot.
        forward = await net.gateway.forwards.expose_ssh(path, str(dest), "root", directory / "key", passphrase="secret")
        sshd = await trio.to_thread.run_sync(start_sshd, guest, directory)
        assert await ask() == b"OK"
        assert await ask() == b"OK"
        net.gateway.kill_network()
        await net.gateway.reload_policy()
        assert await ask() == b"OK"
        assert sshd.log.count("Accepted publickey") == 2
        await until(lambda: forward.active == 0)
        nursery.cancel_scope.cancel()
    assert not path.exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "asyncio"]
