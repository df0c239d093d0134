"""Notifications: what is told, to a real unix socket, one JSON line a connection, and never waiting for who listens."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from guest_iface.link import Link
from guest_iface.switch import AGEING_TIME, Switch
from netstack.config import ListenLink, RunConfig, UnixEndpoint, network_settings
from netstack.gateway import RunFailed, run_command
from netstack.gateway.notifications import CLOSE_SECONDS, MAX_GUESTS, QUEUE, Notifications

MAC = bytes.fromhex("5a94efe40cee")
CAME = {"notification_type": "connection_established", "mac_address": "5a:94:ef:e4:0c:ee"}
LEFT = {"notification_type": "connection_closed", "mac_address": "5a:94:ef:e4:0c:ee"}


class Manager:
    """A listening unix socket, as podman has one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(QUEUE + 8)
        self._socket.setblocking(False)

    async def told(self) -> dict[str, str]:
        """The next message: all that one connection brings."""
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(self._socket)
            connection = trio.SocketStream(trio.socket.from_stdlib_socket(self._socket.accept()[0]))
            async with connection:
                data = b"".join([piece async for piece in connection])
        assert data.endswith(b"\n")
        message = json.loads(data)
        assert data == json.dumps(message, separators=(",", ":")).encode() + b"\n"
        return message

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    listening = Manager(tmp_path / "notify.sock")
    yield listening
    listening.close()


async def test_each_kind_of_message_is_told(manager: Manager):
    notifications = Notifications(manager.path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifications.run)
        notifications.ready()
        assert await manager.told() == {"notification_type": "ready"}
        notifications.guest_came(0, MAC)
        notifications.guest_came(0, MAC)
        assert await manager.told() == CAME
        notifications.guests_left(1)
        notifications.guests_left(0)
        notifications.link_failed()
        assert await manager.told() == LEFT
        assert await manager.told() == {"notification_type": "hypervisor_error"}
        nursery.cancel_scope.cancel()


async def test_what_is_queued_at_the_end_is_still_told(manager: Manager):
    notifications = Notifications(manager.path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifications.run)
        await trio.testing.wait_all_tasks_blocked()
        notifications.ready()
        notifications.link_failed()
        nursery.cancel_scope.cancel()
    assert [(await manager.told())["notification_type"] for _ in range(2)] == ["ready", "hypervisor_error"]


async def test_nobody_listens_and_that_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    notifications = Notifications(tmp_path / "none")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifications.run)
        notifications.ready()
        nursery.cancel_scope.cancel()
    assert f"unable to send notification to {tmp_path}/none: " in caplog.text


async def test_a_full_queue_drops_and_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    notifications = Notifications(tmp_path / "none")
    for _ in range(QUEUE + 5):
        notifications.ready()
    assert notifications.dropped == 5
    assert len([record for record in caplog.records if "wait for" in record.getMessage()]) == 1


async def test_one_that_does_not_answer_holds_up_the_end_for_a_moment_only(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
):
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(tmp_path / "full"))
        full.listen(0)
        first.connect(str(tmp_path / "full"))  # the backlog is full: the next one waits
        notifications = Notifications(tmp_path / "full")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifications.run)
            notifications.ready()
            await trio.testing.wait_all_tasks_blocked()
            started = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - started <= CLOSE_SECONDS


async def test_the_guests_that_are_remembered_are_bounded(tmp_path: Path):
    notifications = Notifications(tmp_path / "none")
    for number in range(MAX_GUESTS + 10):
        notifications.guest_came(0, number.to_bytes(6, "big"))
    assert len(notifications._guests) == MAX_GUESTS


def test_the_switch_says_who_comes_and_which_port_is_left(monkeypatch: pytest.MonkeyPatch):
    class Silent(Link):
        name = "silent"

    for missing in list(Silent.__abstractmethods__):
        monkeypatch.setattr(Silent, missing, None, raising=False)
    monkeypatch.setattr(Silent, "__abstractmethods__", frozenset())
    switch = Switch(bytes.fromhex("5a94efe40cdd"))
    seen: list[tuple[str, int, bytes]] = []
    switch.watch(lambda port, mac: seen.append(("came", port, mac)), lambda port: seen.append(("left", port, b"")))
    port = switch.attach(Silent())  # type: ignore[abstract]  # made whole above
    frame = b"\xff" * 6 + MAC + b"\x08\x06" + bytes(28)
    switch.ingress(port, [frame, frame], 0.0)
    switch.ingress(port, [frame], 1.0)
    switch.ingress(port, [b"\xff" * 6 + b"\xff" * 6 + b"\x08\x06" + bytes(28)], 1.0)
    assert seen == [("came", port, MAC)]
    switch.ingress(port, [frame], AGEING_TIME + 2)
    switch.detach(port)
    assert seen[-1] == ("left", port, b"")


async def test_a_gateway_tells_of_its_guests(manager: Manager, tmp_path: Path):
    path = tmp_path / "qemu"
    arp = bytes.fromhex("ffffffffffff5a94efe40cee08060001080006040001" + "5a94efe40ceec0a87f02000000000000c0a87f01")
    config = RunConfig(
        network=network_settings(),
        links=(ListenLink("qemu", UnixEndpoint(path)),),
        dns_upstreams=("127.0.0.1:9",),
        notification=manager.path,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_command._serve_until_told, config)
        assert await manager.told() == {"notification_type": "ready"}
        guest = await trio.open_unix_socket(path)
        async with guest:
            await guest.send_all(len(arp).to_bytes(4, "big") + arp)
            assert await manager.told() == CAME
        assert await manager.told() == LEFT
        nursery.cancel_scope.cancel()


async def test_a_link_that_cannot_be_opened_is_told(manager: Manager, tmp_path: Path):
    config = RunConfig(
        network=network_settings(),
        links=(ListenLink("qemu", UnixEndpoint(tmp_path / "missing" / "qemu")),),
        notification=manager.path,
    )
    with pytest.RaisesGroup(RunFailed, flatten_subgroups=True):
        await run_command._serve_until_told(config)
    assert await manager.told() == {"notification_type": "hypervisor_error"}
