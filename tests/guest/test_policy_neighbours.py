"""Conformance E11 and E13 with two real guests on one gateway: DHCP that starves or lies, and guest against guest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from .network import GUEST_MAC, TAP, Network, start_bridge, start_network
from .open_internet import SITE, OpenInternet
from .row_guest import BROADCAST_MAC, GATEWAY, GATEWAY_MAC, GUEST, RowGuest
from .test_dhcp import SCRIPT, udhcpc

pytestmark = pytest.mark.guest("ip", "openssl", "curl", "busybox")
OTHER, OTHER_MAC = "192.168.127.3", "02:00:00:00:00:03"
RULES = "real.test,192.168.127.0/24"
"""Also the guests' own subnet: no rule makes neighbours of them."""


class Pair(NamedTuple):
    """One guest on a TAP, the other on a datagram socket, of the same gateway."""

    one: RowGuest
    other: RowGuest

    def close(self) -> None:
        """End both and their gateway."""
        self.other.unplug()
        self.one.close()
        self.other.network.discard()


def start_pair(internet: OpenInternet, *options: str) -> Pair:
    lab = internet.lab
    number = len(lab.processes)
    path = lab.directory / f"other-{number}.sock"
    arguments = [*options, "--listen-vfkit", f"unixgram://{path}"]
    first = start_network(internet, "tap", options=arguments, ipv6=False)  # type: ignore[arg-type]  # lab and host are all it needs
    namespace = lab.namespace(f"other-{number}")
    namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1", check=False)
    bridge = start_bridge(namespace, "vfkit", path)
    second = Network(first.world, "dgram", namespace, first.gateway, bridge)
    second.configure(mac=OTHER_MAC, address=OTHER)
    for network in (first, second):
        network.guest.run("ip", "neighbour", "replace", GATEWAY, "lladdr", GATEWAY_MAC, "dev", TAP)
    pair = Pair(RowGuest(internet, first), RowGuest(internet, second))
    for guest in pair:
        guest.settle()  # it has said something: the switch knows whose MAC is on which port
    return pair


@pytest.fixture(scope="module")
def _pair(internet: OpenInternet) -> Iterator[Pair]:
    made = start_pair(internet, "--allow-net", RULES)
    yield made
    made.close()


@pytest.fixture
def pair(_pair: Pair) -> Iterator[Pair]:
    """Both; whatever the test did, what is allowed works for each afterwards."""
    yield _pair
    for guest in _pair:
        guest.still_works()


# -- E13: guest against guest ----------------------------------------------------------------------------------------


def test_E13_nobody_answers_for_the_other_guest(pair: Pair) -> None:
    """The guest's kernel asks everybody, and the question does not reach the other."""
    pair.one.namespace.sysctl(f"net.ipv4.neigh.{TAP}.mcast_solicit", "1")
    pair.other.drain()
    pair.other.hear(all_senders=True)
    with pair.one.tells(), pair.one.nothing_leaves():
        assert pair.one.error(OTHER, 22) == "OSError", "no route to host"
    pair.other.drain()
    assert pair.other.hear(all_senders=True) == []


@pytest.mark.parametrize("kind", ["TCP", "UDP", "ping"])
def test_E13_by_way_of_the_gateway(pair: Pair, kind: str) -> None:
    """A guest that takes the gateway for its neighbour is told that there is no such host."""
    packet = {
        "TCP": IP(src=GUEST, dst=OTHER) / TCP(sport=40_000, dport=22, flags="S"),
        "UDP": IP(src=GUEST, dst=OTHER) / UDP(sport=4000, dport=5000) / Raw(b"x"),
        "ping": IP(src=GUEST, dst=OTHER) / ICMP(type=8, id=7),
    }[kind]
    step = {"TCP": "syn", "UDP": "datagram", "ping": "echo"}[kind]
    pair.other.drain()
    pair.other.hear(all_senders=True)
    with pair.one.turned_away(step, "unused-address", "unreachable"):
        (error,) = pair.one.answers(packet)
    assert (error[ICMP].type, error[ICMP].code) == (3, 1)
    pair.other.drain()
    assert pair.other.hear(all_senders=True) == []


def test_E13_by_the_other_guests_mac(pair: Pair) -> None:
    """From card to card, past the gateway: the switch carries none of it."""
    to_all: list[Packet] = [
        Ether(src=GUEST_MAC, dst=BROADCAST_MAC) / ARP(op=1, hwsrc=GUEST_MAC, psrc=GUEST, pdst=OTHER),
        Ether(src=GUEST_MAC, dst=BROADCAST_MAC)
        / ARP(op=2, hwsrc=GUEST_MAC, psrc=GATEWAY, hwdst=BROADCAST_MAC, pdst=OTHER),
    ]
    direct: list[Packet] = [
        Ether(src=GUEST_MAC, dst=OTHER_MAC) / ARP(op=2, hwsrc=GUEST_MAC, psrc=GATEWAY, hwdst=OTHER_MAC, pdst=OTHER),
        Ether(src=GUEST_MAC, dst=OTHER_MAC) / IP(src=GUEST, dst=OTHER) / TCP(sport=1, dport=22, flags="S"),
        Ether(src=GUEST_MAC, dst=OTHER_MAC) / IP(src=GUEST, dst=OTHER) / UDP(sport=4000, dport=5000) / Raw(b"x"),
        Ether(src=GUEST_MAC, dst=OTHER_MAC, type=0x88B5) / Raw(b"of our own making".ljust(46, b"\0")),
    ]
    pair.other.drain()
    pair.other.hear(all_senders=True)
    pair.one.dropped("switch-guests-are-kept-apart", *direct)
    pair.one.send(*to_all)
    pair.other.drain()
    assert pair.other.hear(all_senders=True) == []


def test_E9_the_other_guests_mac_and_address(pair: Pair) -> None:
    """Both belong to it, from whichever link they come."""
    packet = IP(src=OTHER, dst=SITE) / UDP(sport=4000, dport=5000) / Raw(b"x")
    pair.one.dropped("switch-source-mac-belongs-to-another-port", packet, source=OTHER_MAC)
    pair.one.dropped("ip-source-of-another", packet)


# -- E11: DHCP -------------------------------------------------------------------------------------------------------


def dhcp(mac: str, *options: object, **fields: object) -> Packet:
    head = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    message = BOOTP(chaddr=bytes.fromhex(mac.replace(":", "")), xid=7, **fields) / DHCP(options=[*options, "end"])
    return Ether(src=mac, dst=BROADCAST_MAC) / head / message


def leased(guest: RowGuest, log: Path) -> str:
    """The address that udhcpc gets in a guest."""
    environment = {**os.environ, "LEASE_LOG": str(log)}
    command = [*udhcpc(), "-f", "-q", "-n", "-i", TAP, "-s", str(SCRIPT), "-t", "5", "-T", "2"]
    process = guest.namespace.spawn("udhcpc", *command, env=environment)
    assert process.wait() == 0, process.log
    return next(line.partition("=")[2] for line in log.read_text().splitlines() if line.startswith("ip="))


def test_E11_starvation(internet: OpenInternet, tmp_path: Path) -> None:
    """300 cards ask at one link, each would take what it is offered at once: a guest is one card, and has one lease."""
    pair = start_pair(internet, "--allow-net", RULES)
    one, other = pair
    cards = [f"02:11:00:00:{number >> 8:02x}:{number & 255:02x}" for number in range(300)]
    leases = len(one.events(["lease"]))
    with one.nothing_leaves():
        one.answers(*(dhcp(card, ("message-type", "discover"), (80, b"")) for card in cards))
    one.settle()
    assert one.events(["lease"])[leases:] == []
    assert leased(one, tmp_path / "one") == GUEST, "its own, by a static lease"
    assert leased(other, tmp_path / "other").startswith("192.168.127.")
    for guest in pair:
        guest.still_works()
    pair.close()


def test_E11_a_servers_answer_from_the_guest(pair: Pair, tmp_path: Path) -> None:
    """Sent to all, in the guest's own name and in the gateway's: the other guest hears none of it."""
    options = [("message-type", "offer"), ("server_id", GUEST), ("router", GUEST), ("name_server", GUEST), "end"]
    offer = BOOTP(op=2, yiaddr=OTHER, siaddr=GUEST, chaddr=bytes.fromhex(OTHER_MAC.replace(":", ""))) / DHCP(
        options=options
    )
    pair.other.drain()
    pair.other.hear(all_senders=True)
    mine = IP(src=GUEST, dst="255.255.255.255") / UDP(sport=67, dport=68) / offer
    with pair.one.turned_away("datagram", "group-address", "nothing", destination="255.255.255.255:68"):
        assert pair.one.answers(mine, to=BROADCAST_MAC) == []
    forged = IP(src=GATEWAY, dst="255.255.255.255") / UDP(sport=67, dport=68) / offer
    pair.one.dropped("ip-source-is-gateway", forged, to=BROADCAST_MAC)
    to_server = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=67, dport=67) / offer
    pair.one.dropped("dhcp-not-a-request", to_server, to=BROADCAST_MAC)
    direct = Ether(src=GUEST_MAC, dst=OTHER_MAC) / mine
    pair.one.dropped("switch-guests-are-kept-apart", direct)
    pair.other.drain()
    assert pair.other.hear(all_senders=True) == []
    assert leased(pair.one, tmp_path / "lease") == GUEST


def test_E11_options_that_overflow(pair: Pair, tmp_path: Path) -> None:
    base = bytes(dhcp(GUEST_MAC, ("message-type", "discover"))[BOOTP])[:240]
    head = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    broken = [b"\x35\xff\x01", b"\x3d\xff" + bytes(10), b"\x35\x01\x01" + b"\x0c\xff" + b"a" * 30, b"\xff" * 300]
    with pair.one.tells(kinds=("flow_opened", "flow_refused", "lease")), pair.one.nothing_leaves():
        assert pair.one.answers(*(head / Raw(base + options) for options in broken), to=BROADCAST_MAC) == []
    assert leased(pair.one, tmp_path / "lease") == GUEST


def test_E11_other_client_ids(pair: Pair) -> None:
    """Fifty of one card's are offered one address."""
    frames = [
        dhcp(GUEST_MAC, ("message-type", "discover"), ("client_id", bytes([1, number] * 8))) for number in range(50)
    ]
    with pair.one.nothing_leaves():
        heard = pair.one.answers(*frames)
    assert len(heard) == 50
    assert {frame[BOOTP].yiaddr for frame in heard} == {GUEST}


def test_E13_a_service_of_the_other_guests(pair: Pair) -> None:
    """The other guest listens; with a route and a neighbour entry of its own making this one gets nowhere."""
    with pair.other.namespace.listen("0.0.0.0", 2222) as listener, pair.one.namespace.socket() as client:
        listener.setblocking(False)
        pair.one.namespace.run("ip", "neighbour", "replace", OTHER, "lladdr", OTHER_MAC, "dev", TAP)
        client.settimeout(0.2)
        with pair.one.tells(), pair.one.nothing_leaves(), pytest.raises(TimeoutError):
            client.connect((OTHER, 2222))
        client.close()  # before it tries again
        pair.one.counted("switch-guests-are-kept-apart")
        pair.one.namespace.run("ip", "neighbour", "delete", OTHER, "dev", TAP)
        with pytest.raises(BlockingIOError):
            listener.accept()
