"""Unix sockets that lead to a guest's by SSH, with asyncssh as its server here. tests/guest has a real one."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest
import trio
from callee import until

from netstack.engine.settings import NetworkSettings
from netstack.gateway import ssh_forwards
from netstack.gateway.asyncio_thread import AsyncioThread
from netstack.gateway.forwards import Forwards


class Server(asyncssh.SSHServer):
    """Lets everybody with the key in, to unix sockets of this host."""

    connections: list[asyncssh.SSHServerConnection]

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connections.append(conn)

    def unix_connection_requested(self, dest_path: str) -> bool:
        return dest_path.endswith(".sock")


class GuestSide:
    """A thread with an SSH server, and behind it a unix socket that says back what it hears."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "podman.sock"
        self.key = directory / "key"
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(self.key)
        (directory / "authorized").write_bytes(key.export_public_key())
        key.write_private_key(directory / "locked", passphrase="secret")
        self.locked = directory / "locked"
        self._authorized = str(directory / "authorized")
        self.port = 0
        self.connections: list[asyncssh.SSHServerConnection] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(20)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
            writer.close()

        server = type("Serving", (Server,), {"connections": self.connections})
        self._over = asyncio.Event()
        listening = asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=server,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=self._authorized,
        )
        async with await asyncio.start_unix_server(echo, self.socket), listening as acceptor:
            self.port = acceptor.get_port()
            self._ready.set()
            await self._over.wait()
            for connection in self.connections:
                connection.close()
                await connection.wait_closed()

    def hang_up(self) -> None:
        """End every SSH connection."""
        for connection in self.connections:
            self._loop.call_soon_threadsafe(connection.abort)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)


class Shortcut:
    """Reaches the server on the loopback, in place of a guest behind an engine."""

    def __init__(self, nursery: trio.Nursery, port: int) -> None:
        self._nursery = nursery
        self.port = port
        self.dials = 0
        self.refuse = 0

    async def splice(self, sock: socket.socket, guest: tuple[bytes, int], **_: float) -> None:
        self.dials += 1
        if self.refuse:
            self.refuse -= 1
            raise ConnectionRefusedError(111, "Connection refused")
        far = await trio.open_tcp_stream("127.0.0.1", self.port)
        near = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._nursery.start_soon(self._carry, near, far)
        self._nursery.start_soon(self._carry, far, near)

    async def _carry(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            async for data in source:
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await trio.aclose_forcefully(target)
        await trio.aclose_forcefully(source)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestSide]:
    made = GuestSide(tmp_path_factory.mktemp("ssh"))
    yield made
    made.close()


@asynccontextmanager
async def forwarding(guest: GuestSide) -> AsyncIterator[tuple[Forwards, Shortcut]]:
    with trio.fail_after(30):
        async with trio.open_nursery() as outer:
            shortcut = Shortcut(outer, guest.port)
            async with trio.open_nursery() as nursery:
                forwards = Forwards(shortcut, NetworkSettings())  # type: ignore[arg-type]  # as much of it as SSH needs
                await nursery.start(forwards.run)
                yield forwards, shortcut
                nursery.cancel_scope.cancel()
            outer.cancel_scope.cancel()
    assert not [thread for thread in threading.enumerate() if thread.name == "asyncio"]


async def say(path: Path, data: bytes) -> bytes:
    """What comes back for `data` and its end."""
    async with await trio.open_unix_socket(path) as client:
        await client.send_all(data)
        await client.send_eof()
        heard = b""
        async for piece in client:
            heard += piece
        return heard


async def test_a_socket_forward_waits_for_the_guest_and_lives_through_lost_connections(
    guest: GuestSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_forwards, "FIRST_PAUSE", 0.001)
    path = tmp_path / "host.sock"
    async with forwarding(guest) as (forwards, shortcut):
        shortcut.refuse = 3
        forward = await forwards.expose_ssh(str(path), str(guest.socket), "core", str(guest.key), port=guest.port)
        assert path.stat().st_mode & 0o777 == 0o600, "bound at once"
        assert forwards.listing() == []
        assert await say(path, b"x" * 300_000) == b"x" * 300_000
        assert shortcut.dials == 4
        async with trio.open_nursery() as nursery:  # several at a time, by one connection
            for number in range(5):
                nursery.start_soon(say, path, b"%d" % number)
        assert shortcut.dials == 4
        guest.hang_up()
        assert await say(path, b"again") == b"again"
        assert shortcut.dials == 5
        await until(lambda: forward.active == 0)
        assert forward.failed == 0
    assert not path.exists()


async def test_an_ssh_tunnel_logs_in_when_somebody_comes(
    guest: GuestSide, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    path = tmp_path / "host.sock"
    remote = f"ssh-tunnel://core@192.168.127.2:{guest.port}{guest.socket}?key={guest.locked}&passphrase=secret"
    async with forwarding(guest) as (forwards, shortcut):
        await forwards.expose("unix", str(path), remote)
        assert shortcut.dials == 0
        (listed,) = forwards.listing()
        assert listed.remote == remote.replace("passphrase=secret", "passphrase=...")
        assert await say(path, b"/_ping") == b"/_ping"
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(b"x")
            assert await client.receive_some(1) == b"x"
            await forwards.unexpose("unix", str(path))
            await client.send_all(b"y")  # what is open goes on
            assert await client.receive_some(1) == b"y"
        assert not path.exists()
    assert "ssh-tunnel://core@" in caplog.text
    assert "secret" not in caplog.text, "conformance J9"


async def test_unexpose_ends_connections_when_told_so(guest: GuestSide, tmp_path: Path) -> None:
    path = tmp_path / "host.sock"
    remote = f"ssh-tunnel://core@192.168.127.2{guest.socket}?key={guest.key}"
    async with forwarding(guest) as (forwards, _):
        await forwards.expose("unix", str(path), remote)
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(b"x")
            assert await client.receive_some(1) == b"x"
            await forwards.unexpose("unix", str(path), close_flows=True)
            assert await client.receive_some(1) == b""


@pytest.mark.parametrize(
    ("dest", "key", "words"),
    [
        ("/nowhere/podman.sock", "key", "/nowhere/podman.sock: "),
        ("/etc/passwd", "key", "/etc/passwd: "),
        ("podman", "nothing", "No such file or directory"),
        ("podman", "locked", "Passphrase must be specified"),
        ("podman", "stranger", "Permission denied"),
    ],
)
async def test_what_does_not_work_is_said_and_ends_nothing(
    guest: GuestSide, tmp_path: Path, dest: str, key: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "host.sock"
    if key == "stranger":
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "stranger")
    where = {"key": guest.key, "locked": guest.locked}.get(key, tmp_path / key)
    dest = str(guest.socket) if dest == "podman" else dest
    async with forwarding(guest) as (forwards, _):
        await forwards.expose("unix", str(path), f"ssh-tunnel://core@192.168.127.2{dest}?key={where}")
        for _ in range(2):
            async with await trio.open_unix_socket(path) as client:
                assert await client.receive_some(1) == b""
    assert caplog.text.count(f"forward {path}: ") == 2
    assert words in caplog.text


async def test_a_host_key_that_is_not_known_is_refused_where_that_is_asked(
    guest: GuestSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ssh_forwards, "ATTEMPTS", 1)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text("")
    async with forwarding(guest) as (forwards, _):
        await forwards.expose_ssh(
            str(tmp_path / "s"), str(guest.socket), "core", str(guest.key), port=guest.port, secure=True
        )
        await until(lambda: "no way in to the guest" in caplog.text)
    assert "Host key is not trusted" in caplog.text


async def test_a_thread_passes_cancellation_on() -> None:
    thread = AsyncioThread()
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("cancelled")

    async def broken() -> None:
        raise KeyError(os.getpid())

    with trio.move_on_after(0.05) as scope:
        await thread.run(forever)
    assert scope.cancelled_caught
    assert ended == ["cancelled"]
    with pytest.raises(KeyError):
        await thread.run(broken)
    await thread.close()
    await thread.close()
