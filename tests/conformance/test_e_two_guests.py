"""Conformance E13 and E9 where there are several guests on one gateway: the switch between them, and the policy."""

from __future__ import annotations

import pytest
from engine.wire_guest import BROADCAST_MAC, GATEWAY, GUEST, GUEST_MAC, OTHER_MAC, ip, ping, udp
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from netstack.engine.events import FlowRefused, FrameDropped
from netstack.network_spec import NetworkSpec

from .live import Live, LiveGuest, running, settled

OTHER = "192.168.127.3"


async def two(live: Live) -> tuple[LiveGuest, LiveGuest]:
    """Two guests whose MACs the switch knows."""
    guests = await live.attach(), await live.attach(OTHER_MAC, OTHER)
    for guest in guests:
        await guest.send(ping(GATEWAY, src=guest.address))
        guest.hear()
    live.events.clear()
    return guests


def tries() -> list[Packet]:
    """What one guest may send to the other by its MAC, and to all."""
    direct = [
        IP(src=GUEST, dst=OTHER) / TCP(sport=40_000, dport=22, flags="S"),
        udp(OTHER, 5000, b"x"),
        ping(OTHER),
        ARP(op="is-at", hwsrc=GUEST_MAC, psrc=GATEWAY, hwdst=OTHER_MAC, pdst=OTHER),
    ]
    who_has = ARP(op="who-has", hwsrc=GUEST_MAC, psrc=GUEST, pdst=OTHER)
    to_all = [who_has, udp("192.168.127.255", 137, b"x"), udp("224.0.0.251", 5353, b"x")]
    return [
        *(Ether(src=GUEST_MAC, dst=OTHER_MAC) / packet for packet in direct),
        *(Ether(src=GUEST_MAC, dst=BROADCAST_MAC) / packet for packet in to_all),
    ]


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec.enabled(["example.com"]),
        NetworkSpec.enabled(["0.0.0.0/0", "192.168.127.0/24"]),
        NetworkSpec.enabled(deny_all=True),
        NetworkSpec.disabled(),
    ],
    ids=str,
)
async def test_E13_under_a_policy_guests_do_not_reach_each_other(spec: NetworkSpec) -> None:
    """Not by the gateway, and not past it: a frame from guest to guest is judged by nobody."""
    async with running(spec=spec) as live:
        one, other = await two(live)
        await one.send(*tries())
        assert other.hear() == []
        assert {frame.src for frame in one.hear()} <= {"5a:94:ef:e4:0c:dd"}
        told = [event for event in live.told(FrameDropped) if event.reason == "switch-guests-are-kept-apart"]
        assert [event.total for event in told] == [1]
        assert live.driver.stack.dropped["switch-guests-are-kept-apart"] == 4
        assert len(live.driver.sockets) == 0


async def test_E13_without_a_list_they_share_a_network() -> None:
    """As behind gvproxy; and a policy that comes later parts them, one that goes joins them again."""
    async with running() as live:
        one, other = await two(live)
        await one.send(*tries())
        assert len(other.hear()) == 7
        live.driver.replace_policy(NetworkSpec.enabled(["example.com"]).policy(), "reload")
        await one.send(*tries())
        assert other.hear() == []
        live.driver.replace_policy(NetworkSpec.enabled().policy(), "reload")
        await one.send(*tries())
        assert len(other.hear()) == 7


async def test_E9_a_mac_belongs_to_its_link() -> None:
    """The other guest's MAC, from here: dropped, told of, and its owner goes on."""
    async with running("10.0.0.0/8") as live:
        one, other = await two(live)
        await one.send(Ether(src=OTHER_MAC, dst="5a:94:ef:e4:0c:dd") / udp("8.8.8.8", 53, b"x", src=OTHER))
        assert one.hear() == []
        (event,) = live.told(FrameDropped)
        assert (event.reason, event.total) == ("switch-source-mac-belongs-to-another-port", 1)
        assert not live.told(FlowRefused)
        await other.send(ping(GATEWAY, src=OTHER))
        assert len(other.hear()) == 1


async def test_E9_an_address_belongs_to_its_guest() -> None:
    async with running("10.0.0.0/8") as live:
        one, other = await two(live)
        await one.send(udp("8.8.8.8", 53, b"x", src=OTHER))
        assert one.hear() == other.hear() == []
        assert [event.reason for event in live.told(FrameDropped)] == ["ip-source-of-another"]


async def test_F13_each_guests_refusals_are_told() -> None:
    async with running("10.0.0.0/8") as live:
        one, other = await two(live)
        await one.send(*(udp("8.8.8.8", port, b"x") for port in range(1, 400)))
        await other.send(udp("8.8.8.8", 53, b"x", src=OTHER))
        await settled()
        refused = live.told(FlowRefused)
        assert len(refused) < 270
        assert refused[-1].guest == (ip(OTHER), 5000)
        assert refused[-1].total == 1
