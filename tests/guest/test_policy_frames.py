"""Conformance E7 to E10 and E12 with a real guest: fragments, options, spoofing, ARP, strange frames, IPv6.

Frames go out of the guest's own card by AF_PACKET, and its kernel sends what a kernel can. Each row is held to what the
guest sees, to what leaves the host (nothing), and to what is told; then the same guest fetches a page.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_NOP,
    IPOption_SSRR,
    fragment,
)
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from netstack.engine import fragments

from .network import GUEST_MAC, TAP
from .open_internet import ATTACKER, SITE, OpenInternet
from .row_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GATEWAY_MAC,
    GUEST,
    HOST_ALIAS,
    OTHER_MAC,
    UNUSED,
    RowGuest,
    framed,
    start_row_guest,
)

pytestmark = pytest.mark.guest("ip", "openssl", "curl")
PORT = 5000
RULES = f"real.test,udp/{SITE}:{PORT}"
RULE = f"udp/{SITE}:{PORT}"


@pytest.fixture(scope="module")
def _guest(internet: OpenInternet) -> Iterator[RowGuest]:
    """Allowed a name and a UDP port."""
    made = start_row_guest(internet, "--allow-net", RULES)
    yield made
    made.close()


@pytest.fixture
def guest(_guest: RowGuest) -> Iterator[RowGuest]:
    """The same; whatever the test did to it, what is allowed works afterwards."""
    yield _guest
    _guest.still_works()


def udp(address: str, port: int, data: bytes, **fields: object) -> Packet:
    return IP(**({"src": GUEST, "dst": address} | fields)) / UDP(sport=4000, dport=port) / Raw(data)


def syn(address: str, port: int, sport: int = 40_000, **fields: object) -> Packet:
    return IP(**({"src": GUEST, "dst": address} | fields)) / TCP(sport=sport, dport=port, flags="S", seq=1)


def pieces(packet: Packet, size: int) -> list[Packet]:
    return list(fragment(IP(bytes(packet)), fragsize=size))


def heard_by(receiver: socket.socket) -> list[bytes]:
    """What has come to a socket."""
    receiver.setblocking(False)
    found = []
    while True:
        try:
            found.append(receiver.recv(65_536))
        except BlockingIOError:
            return found


# -- E7: fragments ---------------------------------------------------------------------------------------------------


def test_E7_the_kernels_own_fragments_are_judged_whole(guest: RowGuest, internet: OpenInternet) -> None:
    data = bytes(range(256)) * 60
    with guest.namespace.socket(socket.SOCK_DGRAM) as sender, internet.host.socket(socket.SOCK_DGRAM) as receiver:
        receiver.bind((SITE, PORT))
        opened = {"event": "flow_opened", "dialled": f"{SITE}:{PORT}", "reason_code": "address-rule", "rule": RULE}
        with guest.tells(opened):
            sender.sendto(data, (SITE, PORT))
            assert receiver.recv(65_536) == data
        sender.connect((SITE, PORT + 1))
        with guest.turned_away(
            "datagram", "port-not-covered", "unreachable", rule=RULE, destination=f"{SITE}:{PORT + 1}"
        ):
            sender.send(data)
            with pytest.raises(ConnectionRefusedError):
                sender.recv(100)


@pytest.mark.parametrize("size", [8, 504])
@pytest.mark.parametrize("order", [1, -1], ids=["in-order", "backwards"])
def test_E7_ports_in_whichever_fragment(guest: RowGuest, size: int, order: int) -> None:
    """One verdict, when it is whole: the ports of a datagram sent backwards come last."""
    port = 6000 + size + order
    *some, last = pieces(udp(SITE, port, bytes(1200), id=size), size)[::order]
    with guest.tells(), guest.nothing_leaves():
        assert guest.answers(*some) == []
    destination = f"{SITE}:{port}"
    with guest.turned_away("datagram", "port-not-covered", "unreachable", rule=RULE, destination=destination):
        (error,) = guest.answers(last)
    assert (error[ICMP].type, error[ICMP].code) == (3, 3)


def test_E7_a_tiny_first_fragment_hides_no_flags(guest: RowGuest) -> None:
    """RFC 1858: ports in the first one, SYN in the second."""
    with guest.turned_away("syn", "port-not-covered", "reset", rule=RULE, destination=f"{SITE}:22"):
        (reset,) = guest.answers(*pieces(syn(SITE, 22, id=9), 8))
    assert (str(reset[TCP].flags), reset[TCP].ack, reset[TCP].sport) == ("RA", 2, 22)


@pytest.mark.parametrize("second", [8, 0, 16], ids=["teardrop", "the-same-place", "inside"])
def test_E7_overlaps_drop_all_of_it(guest: RowGuest, internet: OpenInternet, second: int) -> None:
    """An allowed datagram with other ports, or other bytes, over it: nobody guesses which count."""
    whole = bytes(udp(SITE, PORT, bytes(64)))[20:]
    other = bytes(udp(SITE, 9, b"\xff" * 64))[20:]

    def piece(at: int, data: bytes, *, more: bool) -> Packet:
        return IP(src=GUEST, dst=SITE, id=50 + second, proto=17, flags="MF" if more else 0, frag=at // 8) / Raw(data)

    with internet.host.socket(socket.SOCK_DGRAM) as receiver:
        receiver.bind((SITE, PORT))
        first = piece(0, whole[:24], more=True)
        with guest.tells(), guest.nothing_leaves():
            assert guest.answers(first, piece(second, other[second : second + 24], more=True)) == []
            assert guest.answers(piece(24, whole[24:], more=False)) == []
        assert heard_by(receiver) == []


def test_E7_overlaps_are_counted(internet: OpenInternet) -> None:
    """On a gateway of its own, for the counts: each drop of a reason has its place among them."""
    one = start_row_guest(internet, "--allow-net", RULES)
    frames = []
    for number in range(10):
        first = IP(src=GUEST, dst=SITE, id=number, proto=17, flags="MF") / Raw(bytes(24))
        frames += [first, IP(src=GUEST, dst=SITE, id=number, proto=17, flags="MF", frag=1) / Raw(bytes(24))]
    overlaps = [{"event": "frame_dropped", "reason": "fragment-overlap", "total": total} for total in (1, 10)]
    with one.tells(*overlaps, kinds=("flow_opened", "flow_refused", "frame_dropped")), one.nothing_leaves():
        assert one.answers(*frames) == []
    one.still_works()
    one.close()


def test_E7_ten_thousand_that_are_never_completed(guest: RowGuest) -> None:
    """The table is bounded, and who comes later is not kept out: the guest's own fragments are put together."""
    head = bytearray(
        bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / IP(src=GUEST, dst=SITE, proto=17, flags="MF", len=84))
    )
    frames = []
    for number in range(10_000 + fragments.MAX_DATAGRAMS_PER_GUEST):
        head[18:20], head[24:26] = number.to_bytes(2, "big"), bytes(2)
        words = sum(struct.unpack("!10H", head[14:34]))
        words = (words & 0xFFFF) + (words >> 16)
        head[24:26] = (0xFFFF - (words & 0xFFFF) - (words >> 16)).to_bytes(2, "big")
        frames.append(bytes(head) + bytes(64))
    expected = [
        {"event": "frame_dropped", "reason": "fragment-no-room", "total": total} for total in (1, 10, 100, 1000, 10_000)
    ]
    with (
        guest.tells(*expected, kinds=("flow_opened", "flow_refused", "frame_dropped")),
        guest.nothing_leaves(),
    ):
        assert guest.answers(*frames) == []
    out = guest.namespace.run("ping", "-n", "-c1", "-W10", "-s4000", GATEWAY).stdout
    assert " 0% packet loss" in out


# -- E8: IP options and IPv6's headers -------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [IPOption_LSRR, IPOption_SSRR], ids=["loose", "strict"])
def test_E8_source_routes(guest: RowGuest, option: type) -> None:
    frames = [
        udp(SITE, PORT, b"x", options=[*before, option(routers=["10.0.0.1"])]) for before in ([], [IPOption_NOP()])
    ]
    frames.append(syn(SITE, 443, options=[option(routers=["10.0.0.1"])]))
    frames.append(IP(src=GUEST, dst=GATEWAY, options=[option(routers=["10.0.0.1"])]) / ICMP())
    guest.dropped("ip-source-route", *frames)


def test_E8_a_source_route_by_the_kernel(guest: RowGuest) -> None:
    """IP_OPTIONS on a socket: by SITE, which is listed, to the attacker."""
    route = b"\x83\x07\x04" + socket.inet_aton(ATTACKER) + b"\x00"
    with guest.namespace.socket(socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
        with guest.tells(), guest.nothing_leaves():
            sender.sendto(b"x", (SITE, PORT))
            guest.drain()
    guest.counted("ip-source-route")
    guest.dropped("ip-source-route", udp(SITE, PORT, b"x", options=[IPOption_LSRR(routers=["10.0.0.1"])]))


def test_E8_other_options_do_not_hide_the_ports(guest: RowGuest) -> None:
    packet = udp(SITE, 9, b"x", options=[IPOption_NOP()] * 40)
    with guest.turned_away("datagram", "port-not-covered", "unreachable", rule=RULE, destination=f"{SITE}:9"):
        (error,) = guest.answers(packet)
    assert (error[ICMP].type, error[ICMP].code) == (3, 3)


# -- E9: spoofed sources ---------------------------------------------------------------------------------------------

SPOOFED = {
    "ip-source-off-subnet": ["8.8.8.8", "127.0.0.1", "0.0.0.0", "192.168.127.255"],
    "ip-source-is-gateway": [GATEWAY, HOST_ALIAS],
}


@pytest.mark.parametrize("reason", SPOOFED)
def test_E9_addresses_that_are_not_the_guests(guest: RowGuest, reason: str) -> None:
    """To what is listed: it is who sends that counts."""
    frames: list[Packet] = []
    for source in SPOOFED[reason]:
        frames += [udp(SITE, PORT, b"x", src=source), syn(SITE, 443, src=source)]
        frames.append(IP(src=source, dst=GATEWAY) / ICMP())
    guest.dropped(reason, *frames)


def test_E9_a_spoofed_source_by_the_kernel(guest: RowGuest) -> None:
    """An address the guest gave itself."""
    guest.namespace.run("ip", "address", "add", "8.8.8.8/32", "dev", TAP)
    with guest.namespace.socket(socket.SOCK_DGRAM) as sender:
        sender.bind(("8.8.8.8", 0))
        with guest.tells(), guest.nothing_leaves():
            sender.sendto(b"x", (SITE, PORT))
            guest.drain()
    guest.namespace.run("ip", "address", "delete", "8.8.8.8/32", "dev", TAP)
    guest.counted("ip-source-off-subnet")
    guest.dropped("ip-source-off-subnet", udp(SITE, PORT, b"x", src="8.8.4.4"))


@pytest.mark.parametrize("address", [GUEST, "192.168.127.9"], ids=["the guest's address", "one of its own"])
def test_E9_a_second_mac(guest: RowGuest, address: str) -> None:
    """Under a list a guest is one card: nobody behind it speaks, not even to be known."""
    claim = Ether(src=OTHER_MAC, dst=BROADCAST_MAC) / ARP(hwsrc=OTHER_MAC, psrc=address, pdst=GATEWAY)
    frames = [claim, *(framed(each, source=OTHER_MAC) for each in (udp(SITE, PORT, b"x", src=address), syn(SITE, 443)))]
    guest.dropped("switch-second-mac-on-one-port", *frames)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (GATEWAY_MAC, "switch-source-is-the-gateways-mac"),
        (BROADCAST_MAC, "switch-source-is-a-multicast-mac"),
        ("01:00:5e:00:00:01", "switch-source-is-a-multicast-mac"),
    ],
)
def test_E9_macs_that_are_no_guests(guest: RowGuest, source: str, reason: str) -> None:
    guest.dropped(reason, udp(SITE, PORT, b"x"), source=source)


def test_E9_frames_for_others(guest: RowGuest) -> None:
    guest.dropped("switch-guests-are-kept-apart", udp(SITE, PORT, b"x"), to="02:00:00:00:00:77")
    guest.dropped("ip-unicast-in-group-frame", udp(SITE, PORT, b"x"), to=BROADCAST_MAC)


# -- E10: ARP and strange frames -------------------------------------------------------------------------------------


def arp(**fields: object) -> Packet:
    values = {"op": "who-has", "hwsrc": GUEST_MAC, "psrc": GUEST, "pdst": GATEWAY}
    return Ether(src=fields.get("hwsrc", GUEST_MAC), dst=BROADCAST_MAC) / ARP(**(values | fields))


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("arp-claims-gateway", {"op": "is-at", "psrc": GATEWAY, "pdst": GUEST}),
        ("arp-claims-gateway", {"psrc": GATEWAY, "pdst": GATEWAY}),
        ("arp-claims-gateway", {"psrc": HOST_ALIAS, "pdst": HOST_ALIAS}),
        ("switch-second-mac-on-one-port", {"psrc": GATEWAY, "pdst": GATEWAY, "hwsrc": OTHER_MAC}),
    ],
    ids=["reply", "gratuitous", "host-alias", "gratuitous-by-a-second-mac"],
)
def test_E10_poison(guest: RowGuest, reason: str, fields: dict[str, object]) -> None:
    guest.dropped(reason, arp(**fields))
    (reply,) = guest.answers(arp())
    assert (reply[ARP].op, reply[ARP].hwsrc, reply[ARP].psrc) == (2, GATEWAY_MAC, GATEWAY)


def test_E10_the_senders_mac_in_two_versions(guest: RowGuest) -> None:
    frame = Ether(src=GUEST_MAC, dst=BROADCAST_MAC) / ARP(op=1, hwsrc=OTHER_MAC, psrc=GUEST, pdst=GATEWAY)
    guest.dropped("arp-mac-mismatch", frame)


@pytest.mark.parametrize("address", [UNUSED, GUEST, "10.0.0.1", SITE, "0.0.0.0"])
def test_E10_no_address_but_the_gateways_own_is_answered_for(guest: RowGuest, address: str) -> None:
    """No proxy ARP, and an address conflict probe (RFC 5227) is a question like any."""
    with guest.tells(kinds=("dns", "flow_opened", "flow_refused", "frame_dropped")), guest.nothing_leaves():
        assert guest.answers(arp(pdst=address)) == []
        assert guest.answers(arp(psrc="0.0.0.0", pdst=address)) == []


def test_E10_the_kernel_asks(guest: RowGuest) -> None:
    """The kernel looks for a neighbour, and nobody answers in its name."""
    guest.namespace.sysctl(f"net.ipv4.neigh.{TAP}.mcast_solicit", "1")
    with guest.tells(), guest.nothing_leaves():
        assert guest.error(UNUSED, 80) == "OSError", "no route to host, says the guest's own kernel"


STRANGE = {
    "802.1Q": ("frame-vlan", Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / Dot1Q(vlan=5) / udp(SITE, PORT, b"x")),
    "802.1Q-tag-0": ("frame-vlan", Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / Dot1Q(vlan=0) / udp(SITE, PORT, b"x")),
    "802.1ad": ("frame-type", Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x88A8) / Raw(bytes(46))),
    "802.3": ("frame-type", Dot3(src=GUEST_MAC, dst=GATEWAY_MAC, len=46) / LLC() / SNAP() / Raw(bytes(38))),
    "MPLS": ("frame-type", Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x8847) / Raw(bytes(46))),
    "PPPoE": ("frame-type", Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x8863) / Raw(bytes(46))),
    "runt": ("ip-truncated", Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x0800)),
    "runt-arp": ("arp-truncated", Ether(src=GUEST_MAC, dst=GATEWAY_MAC, type=0x0806) / Raw(bytes(27))),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_E10_strange_frames(guest: RowGuest, kind: str) -> None:
    reason, frame = STRANGE[kind]
    guest.dropped(reason, bytes(frame))


def test_E10_a_frame_below_a_header_does_not_leave_the_guest(guest: RowGuest) -> None:
    """The kernel keeps it; that it is dropped where it does arrive is a row of the engine's."""
    with pytest.raises(OSError, match=re.escape(f"[Errno {errno.EINVAL}]")):
        guest.send(bytes(13))


def test_E10_a_jumbo_frame_is_judged_like_any(guest: RowGuest) -> None:
    guest.namespace.run("ip", "link", "set", TAP, "mtu", "9000")
    with guest.turned_away("datagram", "port-not-covered", "unreachable", rule=RULE, destination=f"{SITE}:{PORT + 2}"):
        (error,) = guest.answers(udp(SITE, PORT + 2, bytes(8900)))
    guest.namespace.run("ip", "link", "set", TAP, "mtu", "1500")
    assert (error[ICMP].type, error[ICMP].code) == (3, 3)


# -- E12: IPv6 -------------------------------------------------------------------------------------------------------

IPV6 = {
    "RS": IPv6(src="fe80::1", dst="ff02::2") / ICMPv6ND_RS(),
    "RA": IPv6(src="fe80::1", dst="ff02::1") / ICMPv6ND_RA(),
    "DAD": IPv6(src="::", dst="ff02::1:ff00:1") / ICMPv6ND_NS(tgt="fe80::1"),
    "NA": IPv6(src="fe80::1", dst="fe80::2") / ICMPv6ND_NA(tgt="fe80::2"),
    "mDNS": IPv6(src="fe80::1", dst="ff02::fb") / UDP(sport=5353, dport=5353),
    "ULA": IPv6(src="fd00::2", dst="fd00::3") / TCP(dport=22, flags="S"),
    "mapped": IPv6(src="fe80::1", dst="::ffff:10.0.0.1") / TCP(dport=80, flags="S"),
    "ping": IPv6(src="fe80::1", dst="2606:4700::1111") / ICMPv6EchoRequest(),
    "metadata": IPv6(src="fe80::1", dst="fd00:ec2::254") / TCP(dport=80, flags="S"),
    "E8-routing-header": IPv6(dst="2606:4700::1")
    / IPv6ExtHdrRouting(type=0, addresses=["::1"])
    / TCP(dport=443, flags="S"),
    "E8-hop-by-hop": IPv6(dst="2606:4700::1") / IPv6ExtHdrHopByHop() / UDP(dport=53),
}


def test_E12_E8_there_is_no_ipv6(guest: RowGuest) -> None:
    for to in (GATEWAY_MAC, "33:33:00:00:00:02"):
        guest.dropped("frame-ipv6", *(Ether(src=GUEST_MAC, dst=to) / packet for packet in IPV6.values()))


def test_E12_the_kernels_own_ipv6(internet: OpenInternet) -> None:
    """It looks for routers and neighbours and finds none, whatever route it is given; IPv4 goes on."""
    one = start_row_guest(internet, "--allow-net", "real.test,[::]/0", ipv6=True)
    one.still_works()  # also as another card than the one whose IPv6 spoke before it was given its MAC
    one.namespace.sh(
        f"ip -6 address add 2001:db8::2/64 dev {TAP} nodad; ip -6 route add default via fe80::1 dev {TAP};"
        f"ip -6 neighbour replace fe80::1 lladdr {GATEWAY_MAC} dev {TAP}"
    )
    with (
        one.tells(),
        one.nothing_leaves(),
        one.namespace.socket(socket.SOCK_DGRAM, socket.AF_INET6) as datagram,
        one.namespace.socket(socket.SOCK_STREAM, socket.AF_INET6) as stream,
    ):
        datagram.sendto(b"x", ("2606:4700::1111", 443))
        stream.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stream.connect(("2606:4700::1111", 443))
        assert {frame.type for frame in one.hear()} <= {0x0800, 0x0806}, "nothing of IPv6 comes back"
    drops = [event for event in one.events(["frame_dropped"]) if event["reason"] == "frame-ipv6"]
    assert drops[0]["total"] == 1
    one.still_works()
    one.close()
