"""TAP links, with the kernel of a namespace as the guest."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether

from guest_iface.link import BATCH, LinkClosed, LinkError
from guest_iface.namespaces import GuestNamespace, namespace_path
from guest_iface.tap import TapLink
from tests.guest_iface.conftest import DEADLINE, receive_frames, running
from tests.guest_iface.kernel_guest import GUEST_MAC, PROJECT, command, guest_and_tap, guest_namespace, output_of

pytestmark = pytest.mark.guest

GATEWAY_MAC = "5a:94:ef:e4:0c:dd"


async def next_with(tap: TapLink, layer: type[IP] | type[ARP] | type[UDP]) -> Ether:
    """The next frame of the guest that has this layer. Its kernel says other things as well."""
    with trio.fail_after(DEADLINE):
        while True:
            for frame in await tap.receive_batch():
                packet = Ether(frame)
                if packet.haslayer(layer) and not packet.haslayer("IPv6"):
                    return packet


SEND = """
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x" * int(sys.argv[1]), ("192.168.127.1", 9))
"""


OFFLOAD = pytest.mark.parametrize(
    "offload_with", [None, bytes.fromhex(GATEWAY_MAC.replace(":", ""))], ids=["plain", "offload"]
)


@OFFLOAD
async def test_the_kernel_as_guest_talks_to_us(offload_with: bytes | None) -> None:
    async with guest_and_tap(offload_with=offload_with) as (namespace, tap):
        assert await namespace.run_command(command(SEND, "100")) == 0
        question = await next_with(tap, ARP)
        assert (question.src, question[ARP].psrc, question[ARP].pdst) == (
            "5a:94:ef:e4:0c:ee",
            "192.168.127.2",
            "192.168.127.1",
        )
        answer = Ether(src=GATEWAY_MAC, dst=question.src) / ARP(
            op="is-at", hwsrc=GATEWAY_MAC, psrc="192.168.127.1", hwdst=question.src, pdst="192.168.127.2"
        )
        tap.send_batch([bytes(answer)])
        datagram = await next_with(tap, UDP)
        assert bytes(datagram[UDP].payload) == b"x" * 100
        assert datagram.dst == GATEWAY_MAC
        ping = Ether(src=GATEWAY_MAC, dst=question.src) / IP(src="192.168.127.1", dst="192.168.127.2") / ICMP(id=7)
        tap.send_batch([bytes(ping)])
        assert (await next_with(tap, ICMP))[ICMP].id == 7
        assert (tap.counters.tx_frames, tap.counters.tx_bytes) == (2, 42 + 42)
        assert tap.counters.rx_frames >= 3
        assert tap.counters.drops == {}


@pytest.mark.parametrize("mtu", [576, 65_521])
async def test_the_mtu_is_the_devices(mtu: int) -> None:
    async with guest_and_tap(mtu) as (namespace, tap):
        assert tap.capabilities.mtu == mtu
        assert tap.capabilities.queue_frames >= 500
        show = """
            import sys
            sys.path.insert(0, sys.argv[1])
            from guest_iface import device
            print(device.device_mtu("eth0"))
        """
        assert await output_of(namespace, *command(textwrap.dedent(show), str(PROJECT))) == (0, f"{mtu}\n")


@OFFLOAD
async def test_a_large_frame_passes_whole(offload_with: bytes | None) -> None:
    async with guest_and_tap(65_521, offload_with) as (namespace, tap):
        assert await namespace.run_command(command(SEND, "60000")) == 0
        question = await next_with(tap, ARP)
        answer = Ether(src=GATEWAY_MAC, dst=question.src) / ARP(
            op="is-at", hwsrc=GATEWAY_MAC, psrc="192.168.127.1", hwdst=question.src, pdst="192.168.127.2"
        )
        tap.send_batch([bytes(answer)])
        assert len((await next_with(tap, UDP))[UDP].payload) == 60_000


@OFFLOAD
async def test_what_is_shorter_than_what_it_says_it_is_goes_out_as_it_is(offload_with: bytes | None) -> None:
    """The engine makes no such frame, but somebody may put one on the link by hand."""
    packet = bytes(
        Ether(src=GATEWAY_MAC, dst="5a:94:ef:e4:0c:ee") / IP(src="192.168.127.1", dst="192.168.127.2", proto=6)
    )
    async with guest_and_tap(offload_with=offload_with) as (_, tap):
        for length in (14, 20, 23, 24, 34):
            tap.send_batch([packet[:length]])
        assert (tap.counters.tx_frames, tap.counters.drops) == (5, {})


@OFFLOAD
async def test_a_flood_comes_in_batches(offload_with: bytes | None) -> None:
    async with guest_and_tap(offload_with=offload_with) as (namespace, tap):
        flood = """
            import socket
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sock.bind(("eth0", 0x88b5))
            for number in range(500):
                sock.send(bytes(12) + b"\\x88\\xb5" + number.to_bytes(2, "big") + bytes(1498))
        """
        assert await namespace.run_command(command(textwrap.dedent(flood))) == 0
        numbers: list[int] = []
        while len(numbers) < 500:
            batch = await tap.receive_batch()
            assert len(batch) <= BATCH
            numbers += [int.from_bytes(frame[14:16], "big") for frame in batch if frame[12:14] == b"\x88\xb5"]
        assert numbers == list(range(500))


async def test_the_tap_is_opened_once_and_closed_with_the_namespace() -> None:
    namespace = GuestNamespace.create(mac=GUEST_MAC)
    namespace.close()
    namespace.close()
    with guest_namespace() as namespace:
        namespace.open_tap().close()
        with pytest.raises(LinkError, match="already opened"):
            namespace.open_tap()


async def test_a_device_that_is_down_or_deleted() -> None:
    async with guest_and_tap() as (namespace, tap):
        switch = """
            import sys
            sys.path.insert(0, sys.argv[1])
            from guest_iface import device
            device.set_up("eth0", up=sys.argv[2] == "up")
            assert device.device_up("eth0") == (sys.argv[2] == "up")
            assert device.device_mac("eth0").hex() == "5a94efe40cee"
        """
        script = textwrap.dedent(switch)
        assert await namespace.run_command(command(script, str(PROJECT), "down")) == 0
        tap.send_batch([bytes(60)] * 2)
        assert tap.counters.drops == {"device is down": 2}
        assert await namespace.run_command(command(script, str(PROJECT), "up")) == 0
        tap.send_batch([bytes(60)])
        assert tap.counters.tx_frames == 1


@pytest.mark.guest("ip")
async def test_a_deleted_device_ends_the_link() -> None:
    async with guest_and_tap() as (namespace, tap):
        assert await namespace.run_command(["ip", "link", "delete", "eth0"]) == 0
        with pytest.raises(LinkClosed, match="the device is gone"):
            await receive_frames(tap, 1000)
        tap.send_batch([bytes(60)])
        assert tap.counters.drops == {"no guest attached": 1}


@pytest.mark.parametrize("form", ["number", "word", "path"])
async def test_a_tap_in_a_namespace_that_exists(form: str) -> None:
    with guest_namespace() as namespace:
        netns = {"number": namespace.pid, "word": str(namespace.pid), "path": f"/proc/{namespace.pid}/ns/net"}[form]
        tap = TapLink.open("tap7", netns=netns, mtu=9000, mac=b"\x02\0\0\0\0\7")
        async with running(tap):
            _, shown = await output_of(namespace, "cat", "/proc/net/dev")
            assert "tap7" in shown
            assert "tap7" not in Path("/proc/net/dev").read_text()  # noqa: ASYNC240 - a line
            assert tap.capabilities.mtu == 9000
            with pytest.raises(LinkError, match="tap7: in use by another process"):
                TapLink.open("tap7", netns=netns)
        _, shown = await output_of(namespace, "cat", "/proc/net/dev")
        assert "tap7" not in shown


@pytest.mark.guest("ip", "root")
async def test_a_tap_in_a_named_namespace_that_others_made() -> None:
    """A persistent TAP is found as it is; its name and number forms work."""
    name = f"netstack-test-{os.getpid()}"

    def run(*words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "tuntap", "add", "vm0", "mode", "tap")
        tap = TapLink.open("vm0", netns=name, mtu=1400)
        assert tap.name == "tap vm0"
        assert "mtu 1400" in run("ip", "-n", name, "link", "show", "vm0")
        tap.close()
        assert "vm0" in run("ip", "-n", name, "link", "show", "vm0")
        numbered = [TapLink.open("vm%d", netns=name) for _ in range(2)]
        assert [tap.device for tap in numbered] == ["vm1", "vm2"]
        for tap in numbered:
            tap.close()
    finally:
        run("ip", "netns", "delete", name)


async def test_a_tap_in_our_own_namespace() -> None:
    """Run inside a guest namespace, where nobody is disturbed."""
    script = """
        import sys
        from guest_iface import device
        from guest_iface.link import LinkError
        from guest_iface.tap import TapLink
        tap = TapLink.open("tap3", mtu=1280, mac=bytes.fromhex("020000000003"))
        assert (tap.device, device.device_mtu("tap3"), device.device_up("tap3")) == ("tap3", 1280, True)
        assert device.device_mac("tap3").hex() == "020000000003"
        assert TapLink.open().device.startswith("tap")
        for name, options, words in [
            ("tap3", {}, "in use by another process"),
            ("lo", {}, "Invalid argument"),
            ("x" * 16, {}, "at most 15 bytes"),
            ("a/b", {}, "no slash"),
            ("tap4", {"mtu": 65_522}, "MTU of 65522"),
        ]:
            try:
                TapLink.open(name, **options)
            except LinkError as error:
                assert words in str(error), error
            else:
                raise AssertionError(name)
        tap.close()
        tap.close()
    """
    with guest_namespace() as namespace:
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        status, shown = await output_of(
            namespace, sys.executable, "-c", textwrap.dedent(script), environment=environment
        )
        assert (status, shown) == (0, "")


async def test_offload_where_the_kernel_has_it_and_where_it_has_not() -> None:
    """No header known, or a header but not the features: plain frames then."""
    script = """
        from guest_iface import device
        from guest_iface.tap import TapLink
        def opened(name):
            tap = TapLink.open(name, offload_with=bytes.fromhex("5a94efe40cdd"))
            tap.close()
            return tap.capabilities.segment_offload
        assert opened("tap4") > 65_000
        known = device.tap_offload_known
        device.tap_offload_known = lambda fd: False
        assert opened("tap5") == 0
        device.tap_offload_known = known
        device._TUN_F_TSO4 = 0x4000_0000
        assert opened("tap6") == 0
        tap = TapLink.open("tap7")
        assert tap.capabilities.segment_offload == 0
        tap.close()
    """
    with guest_namespace() as namespace:
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        status, shown = await output_of(
            namespace, sys.executable, "-c", textwrap.dedent(script), environment=environment
        )
        assert (status, shown) == (0, "")


@pytest.mark.guest("ip", "ethtool", "root")
async def test_a_device_that_lives_on_is_left_without_offload() -> None:
    name = f"netstack-test-{os.getpid()}-offload"

    def run(*words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "tuntap", "add", "vm0", "mode", "tap")
        tap = TapLink.open("vm0", netns=name, offload_with=bytes.fromhex("5a94efe40cdd"))
        shown = ["ip", "netns", "exec", name, "ethtool", "-k", "vm0"]
        assert "tx-checksumming: on" in run(*shown)
        tap.close()
        assert "tx-checksumming: off" in run(*shown)
    finally:
        run("ip", "netns", "delete", name)


async def test_a_namespace_that_does_not_exist_is_explained() -> None:
    with pytest.raises(LinkError, match=r"there is no network namespace nowhere \(/run/netns/nowhere\)"):
        TapLink.open("tap0", netns="nowhere")
    with pytest.raises(LinkError, match="network namespace /dev/null: enter /dev/null: Invalid argument"):
        TapLink.open("tap0", netns="/dev/null")


def test_names_of_namespaces() -> None:
    assert namespace_path("blue") == "/run/netns/blue"
    assert namespace_path("123") == "/proc/123/ns/net"
    assert namespace_path(123) == "/proc/123/ns/net"
    assert namespace_path("./mine") == "./mine"
