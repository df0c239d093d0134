"""The composition root: every kind of link, comings and goings of guests, ends by signal, error and last guest."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dpkt
import pytest
import trio
import trio.testing
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from guest_iface.link import LinkError
from guest_iface.tap import TapLink
from guest_iface.vnet_header import BAD_HEADER, NEEDS_CSUM, VnetHeader
from netstack.config import FdLink, ListenLink, RunConfig, TcpEndpoint, UnixEndpoint, network_settings
from netstack.engine.settings import LinkTraits
from netstack.engine.verdict import REFUSE, Verdict
from netstack.gateway import RunFailed, run_command, signals
from netstack.gateway.attachments import Attachments, link_traits, open_attachments
from netstack.gateway.run_command import Gateway, run_trio, tell_ready
from netstack.hooks import HookRunner, Hooks
from netstack.network_spec import NetworkSpec
from netstack.policy_config import PolicyError

ROOT = Path(__file__).parents[2]
ARP_REQUEST = bytes.fromhex("ffffffffffff5a94efe40cee08060001080006040001") + bytes.fromhex(
    "5a94efe40ceec0a87f02000000000000c0a87f01"
)
"""Who has 192.168.127.1, tell 192.168.127.2."""
GATEWAY_MAC = bytes.fromhex("5a94efe40cdd")


def test_what_only_some_need_is_not_imported_by_all() -> None:
    """Start-up: dpkt for a capture, dnspython's names for names that are not plain, packages of other commands."""
    heavy = ["dpkt", "dns.name", "email", "rich", "yaml", "scapy", "cryptography", "publicsuffixlist", "numpy"]
    code = (
        "import sys; from netstack.config import network_settings; from netstack.gateway import run_command;"
        "run_command.Driver(network_settings(), resolver=None);"
        "print([name for name in sys.argv if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def configuration(*fds: int, **options: object) -> RunConfig:
    links = tuple(FdLink(fd) for fd in fds)
    return RunConfig(network=network_settings(), links=links, dns_upstreams=("127.0.0.1:9",), **options)  # type: ignore[arg-type]


def opened(config: RunConfig) -> Attachments:
    return open_attachments(config.links, config.network.link.mtu)


@pytest.fixture
def pair() -> Iterator[tuple[int, socket.socket]]:
    """An inherited descriptor, and the guest's end of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs:
        theirs.setblocking(False)
        yield ours.detach(), theirs


async def receive(sock: socket.socket) -> bytes:
    await trio.lowlevel.wait_readable(sock)
    return sock.recv(65536)


@pytest.mark.parametrize(
    ("kind", "link"),
    [(socket.SOCK_DGRAM, "UnixgramLink"), (socket.SOCK_STREAM, "StreamLink"), (socket.SOCK_SEQPACKET, "SeqpacketLink")],
)
async def test_an_inherited_socket_is_known_by_its_type(kind: socket.SocketKind, link: str):
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with theirs:
        attachments = opened(configuration(ours.detach()))
        assert [type(each).__name__ for each in attachments.links] == [link]
        attachments.close()


def test_a_descriptor_that_is_no_socket_is_named(tmp_path: Path):
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(LinkError, match=f"--fd {file.fileno()}: not an open socket"),
    ):
        opened(configuration(file.fileno()))


def test_all_listeners_open_and_vanish_again(tmp_path: Path):
    def endpoint(name: str) -> UnixEndpoint:
        return UnixEndpoint(tmp_path / name)

    specs = (
        ListenLink("vfkit", endpoint("vfkit")),
        ListenLink("qemu", endpoint("qemu")),
        ListenLink("bess", endpoint("bess")),
        ListenLink("vpnkit", endpoint("vpnkit")),
    )
    attachments = open_attachments(specs, 1500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bess", "qemu", "vfkit", "vpnkit"]
    assert len(attachments.names()) == 4
    attachments.close()
    assert not list(tmp_path.iterdir())


def test_one_link_that_cannot_be_opened_closes_the_others(tmp_path: Path):
    specs = (
        ListenLink("vfkit", UnixEndpoint(tmp_path / "vfkit")),
        ListenLink("qemu", UnixEndpoint(tmp_path / "missing" / "qemu")),
    )
    with pytest.raises(LinkError, match="missing/qemu"):
        open_attachments(specs, 1500)
    assert not list(tmp_path.iterdir())


def test_tcp_listener():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    attachments = open_attachments((ListenLink("qemu", TcpEndpoint("127.0.0.1", port)),), 1500)
    assert attachments.names() == [f"tcp://127.0.0.1:{port}"]
    attachments.close()


async def test_the_engine_is_told_of_the_most_careful_link(pair: tuple[int, socket.socket], tmp_path: Path):
    fd, _ = pair
    stream_only = open_attachments((ListenLink("qemu", UnixEndpoint(tmp_path / "qemu")),), 9000)
    traits = link_traits(stream_only, LinkTraits(mtu=9000))
    assert (traits.mtu, traits.queue_frames, traits.verify_checksums) == (9000, 65_536, False)
    stream_only.close()
    datagrams = opened(configuration(fd))
    assert link_traits(datagrams, LinkTraits()).queue_frames == datagrams.links[0].capabilities.queue_frames
    for asked, verified in ((None, False), (True, True), (False, False)):
        assert link_traits(datagrams, LinkTraits(), asked).verify_checksums is verified
    datagrams.links[0].capabilities = replace(datagrams.links[0].capabilities, reliable_bytes=False)
    for asked, verified in ((None, True), (True, True), (False, False)):
        assert link_traits(datagrams, LinkTraits(), asked).verify_checksums is verified
    datagrams.close()


async def test_partial_checksums_of_a_tap_are_completed_for_whoever_verifies_them():
    """Its header says which they are. The descriptor is a socket here, which keeps frames apart as a TAP does."""
    ends = {"src": "192.168.127.2", "dst": "192.168.127.1"}
    right = bytes(Ether(dst=GATEWAY_MAC, src="5a:94:ef:e4:0c:ee") / IP(**ends) / UDP(dport=9) / Raw(b"x" * 999))
    pseudo = sum(struct.unpack("!4H", right[26:34])) + 17 + len(right) - 34
    partial = right[:40] + (pseudo % 0xFFFF).to_bytes(2, "big") + right[42:]
    header = VnetHeader(NEEDS_CSUM, checksum_start=34, checksum_offset=6).encode()
    for asked, expected in ((True, right), (None, partial)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            tap = TapLink(ours.detach(), "tap9", mtu=1500, queue_frames=1000, offload_with=GATEWAY_MAC)
            attachments = Attachments(links=[tap])
            assert link_traits(attachments, LinkTraits(), asked).verify_checksums is (asked is True)
            theirs.send(header + partial)
            theirs.send(VnetHeader().encode() + right)
            theirs.send(header[:6] + b"\xff\xff\xff\xff" + partial)
            received = await tap.receive_batch()
            assert received == ([expected, right] if asked else [expected, right, partial])
            assert tap.counters.drops == ({BAD_HEADER: 1} if asked else {})
            attachments.close()


async def test_a_guest_on_an_inherited_socket_is_answered_and_its_end_ends_the_gateway(pair: tuple[int, socket.socket]):
    fd, guest = pair
    config = configuration(fd)
    gateway = Gateway(config, opened(config))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        guest.send(ARP_REQUEST)
        reply = await receive(guest)
        assert reply[6:12] == GATEWAY_MAC
        guest.close()


async def test_stop_ends_it_and_the_events_are_written(pair: tuple[int, socket.socket], tmp_path: Path):
    fd, guest = pair
    config = configuration(fd, events=tmp_path / "events.jsonl")
    gateway = Gateway(config, opened(config))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        guest.send(GATEWAY_MAC + ARP_REQUEST[6:12] + b"\x12\x34nonsense")
        guest.send(ARP_REQUEST)
        await receive(guest)
        assert gateway.reopen_events()
        gateway.stop()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["total"]) for event in events] == [("frame_dropped", 1)]


async def test_the_capture_holds_both_directions(pair: tuple[int, socket.socket], tmp_path: Path):
    fd, guest = pair
    config = configuration(fd, capture=tmp_path / "capture.pcapng")
    gateway = Gateway(config, opened(config))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        guest.send(ARP_REQUEST)
        reply = await receive(guest)
        gateway.stop()
    with (tmp_path / "capture.pcapng").open("rb") as file:
        assert [frame for _, frame in dpkt.pcapng.Reader(file)] == [ARP_REQUEST, reply]


async def test_a_gateway_lingers_as_long_as_it_is_told_to(
    tmp_path: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
):
    """A guest that is back in time keeps it up, however long it stays; the last one that is not ends it, status 0."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "qemu"
    config = RunConfig(network=network_settings(), links=(ListenLink("qemu", UnixEndpoint(path)),), linger=10.0)
    gateway = Gateway(config, opened(config))
    ended = trio.Event()

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await gateway.run(task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        mock_clock.jump(3600)
        for left, seconds in ((1, 9), (2, 3600)):
            async with await trio.open_unix_socket(path) as guest:
                for _ in range(2):
                    await guest.send_all(len(ARP_REQUEST).to_bytes(4, "big") + ARP_REQUEST)
                    assert (await guest.receive_some(4096))[10:16] == GATEWAY_MAC
                    mock_clock.jump(3600)
                    await trio.testing.wait_all_tasks_blocked(0.05)
            while caplog.text.count("the guest has left") < left:
                await trio.testing.wait_all_tasks_blocked(0.01)
            mock_clock.jump(seconds)
        await ended.wait()
    assert not path.exists()


async def test_a_guest_that_leaves_a_listener_may_come_back(tmp_path: Path):
    path = tmp_path / "qemu"
    config = RunConfig(network=network_settings(), links=(ListenLink("qemu", UnixEndpoint(path)),))
    gateway = Gateway(config, opened(config))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        for _ in range(2):
            guest = await trio.open_unix_socket(path)
            async with guest:
                await guest.send_all(len(ARP_REQUEST).to_bytes(4, "big") + ARP_REQUEST)
                assert (await guest.receive_some(4096))[4 + 6 : 4 + 12] == GATEWAY_MAC
        gateway.stop()
    assert not path.exists()


async def test_nonsense_from_one_guest_is_a_warning_while_another_may_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "qemu"
    config = RunConfig(network=network_settings(), links=(ListenLink("qemu", UnixEndpoint(path)),))
    gateway = Gateway(config, opened(config))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        guest = await trio.open_unix_socket(path)
        async with guest:
            await guest.send_all(b"GET / HTTP/1.1\r\n\r\n")
            assert await guest.receive_some(1) == b""
        gateway.stop()
    assert "a frame of 1195725856 bytes" in caplog.text


def test_nonsense_from_the_only_guest_is_the_failure(tmp_path: Path):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    config = configuration(ours.detach())

    async def main() -> None:
        await Gateway(config, opened(config)).run()

    with theirs:
        theirs.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(RunFailed, match="a frame of 1195725856 bytes"):
            run_trio(main)


async def test_an_events_file_that_cannot_be_opened_closes_the_links(tmp_path: Path):
    path = tmp_path / "vfkit"
    links = (ListenLink("vfkit", UnixEndpoint(path)),)
    config = RunConfig(network=network_settings(), links=links, events=tmp_path / "missing" / "events")
    with pytest.raises(RunFailed, match=r"--events .*missing/events: No such file"):
        Gateway(config, opened(config))
    assert not path.exists()


def test_ready_is_one_line_and_the_end():
    read_end, write_end = os.pipe()
    tell_ready(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == b"ready\n"
    with pytest.raises(RunFailed, match=f"--ready-fd {write_end}: Bad file descriptor"):
        tell_ready(write_end)


def test_process_preparation_raises_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch):
    limits = []
    monkeypatch.setattr(run_command.resource, "getrlimit", lambda _which: (1024, 5000))
    monkeypatch.setattr(run_command.resource, "setrlimit", lambda _which, pair: limits.append(pair))
    monkeypatch.setattr(logging, "basicConfig", lambda **_options: None)
    run_command.prepare_process("info")
    assert limits == [(5000, 5000)]


async def test_sighup_ends_no_gateway_that_has_a_file(tmp_path: Path):
    for files, wanted in (({"log_file": tmp_path / "log"}, True), ({"events": tmp_path / "events"}, True), ({}, False)):
        config = configuration(**files)
        gateway = Gateway(config, Attachments())
        async with trio.open_nursery() as nursery:
            assert signals._refresh(gateway, nursery) is wanted
            if gateway._events is not None:
                nursery.start_soon(gateway._events.run)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()


async def test_a_machine_on_vpnkits_link_is_told_the_mac_of_its_uuid(tmp_path: Path):
    uuid, mac = "0f0f0f0f-0000-4000-8000-0123456789ab", bytes.fromhex("020000000007")
    specs = (ListenLink("vpnkit", UnixEndpoint(tmp_path / "vpnkit")),)
    config = RunConfig(network=network_settings(), links=specs, vpnkit_macs={uuid: mac})
    gateway = Gateway(config, open_attachments(specs, 1500, vpnkit_macs=config.vpnkit_macs))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        guest = await trio.open_unix_socket(tmp_path / "vpnkit")
        async with guest:
            await guest.send_all(bytes(49) + b"\x01" + uuid.upper().encode() + bytes(4))
            received = b""
            while len(received) < 49 + 258:
                received += await guest.receive_some(4096)
            assert received[49 + 5 : 49 + 11] == mac
        gateway.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_command_is_ready_says_so_and_ends_on_a_signal(number: int, tmp_path: Path):
    path = tmp_path / "vfkit"
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "netstack", "run", "--listen-vfkit", f"unixgram://{path}", "--ready-fd", str(write_end)],
        pass_fds=[write_end],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == b"ready\n"
    assert path.is_socket()
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert not path.exists()
    assert f"{signal.Signals(number).name}: ending" in told


# -- the policy while it runs ----------------------------------------------------------------------------------------


def access(gateway: Gateway) -> str:
    return gateway.driver.stack.judge.policy.access


async def test_i8_a_kill_while_the_file_is_read_wins(pair: tuple[int, socket.socket]):
    """Conformance I8. The file is read in a thread; what was asked for later is what is in force."""
    reading, go_on = threading.Event(), threading.Event()

    def read() -> NetworkSpec:
        reading.set()
        assert go_on.wait(60)
        return NetworkSpec.enabled()

    config = configuration(pair[0], policy=NetworkSpec.enabled(["a.example"]), reload_policy=read)
    gateway = Gateway(config, opened(config))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.reload_policy)
        await trio.to_thread.run_sync(reading.wait, 60)
        gateway.kill_network()
        assert (access(gateway), gateway.killed) == ("nothing", True)
        go_on.set()
    assert (access(gateway), gateway.killed) == ("nothing", True)
    await gateway.reload_policy()
    assert (access(gateway), gateway.killed) == ("full", False)
    gateway._attachments.close()


async def test_i1_i2_a_file_that_cannot_be_used_leaves_what_is_in_force(
    pair: tuple[int, socket.socket], caplog: pytest.LogCaptureFixture
):
    """Conformance I1, I2: also the kill switch stays on."""

    def read() -> NetworkSpec:
        raise PolicyError("policy.yaml: policy", "allow_net rule 'x y': no")

    config = configuration(pair[0], policy=NetworkSpec.enabled(["a.example"]), reload_policy=read)
    gateway = Gateway(config, opened(config))
    await gateway.reload_policy()
    assert access(gateway) == "listed"
    gateway.kill_network()
    await gateway.reload_policy()
    assert (access(gateway), gateway.killed) == ("nothing", True)
    told = [record.getMessage() for record in caplog.records if "policy.yaml" in record.getMessage()]
    assert told == [
        "policy.yaml: policy: allow_net rule 'x y': no; the policy in force stays",
        "policy.yaml: policy: allow_net rule 'x y': no; the kill switch stays on",
    ]
    gateway._attachments.close()


async def test_without_a_file_the_kill_switch_is_lifted_to_what_the_options_say(pair: tuple[int, socket.socket]):
    config = configuration(pair[0], policy=NetworkSpec.enabled(["a.example"]))
    gateway = Gateway(config, opened(config))
    gateway.kill_network()
    await gateway.reload_policy()
    assert access(gateway) == "listed"
    gateway._attachments.close()


async def test_no_hook_overrules_the_kill_switch(pair: tuple[int, socket.socket]):
    config = configuration(pair[0], hooks=HookRunner(Hooks(), may_allow=True))
    gateway = Gateway(config, opened(config))
    judge = gateway.driver.stack.judge
    refusal = Verdict(REFUSE, "syn", "no-rule")
    assert judge.overrulable(refusal)
    gateway.kill_network()
    assert not judge.overrulable(refusal)
    await gateway.reload_policy()
    assert judge.overrulable(refusal)
    gateway._attachments.close()


async def test_sighup_opens_the_events_again_and_leaves_the_kill_switch_on(
    pair: tuple[int, socket.socket], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = configuration(pair[0], events=tmp_path / "events.jsonl", reload_policy=NetworkSpec.enabled)
    gateway = Gateway(config, opened(config))
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.run)
        gateway.kill_network()
        (tmp_path / "events.jsonl").rename(tmp_path / "rotated.jsonl")
        assert signals._refresh(gateway, nursery)
        await trio.testing.wait_all_tasks_blocked()
        assert access(gateway) == "nothing"
        gateway.stop()
    assert "stays on until SIGUSR1" in caplog.text
    assert (tmp_path / "events.jsonl").exists()
