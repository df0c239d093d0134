"""Messages as the rest of the world writes them: made by scapy, by hand where scapy would put them right."""

from __future__ import annotations

import struct

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_RR
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw

GUEST_MAC = b"\x02\x00\x00\x00\x00\x02"
GATEWAY_MAC = b"\x5a\x94\xef\xe4\x0c\xdd"
GUEST = b"\xc0\xa8\x7f\x02"
GATEWAY = b"\xc0\xa8\x7f\x01"
GUEST_TEXT = "192.168.127.2"
GATEWAY_TEXT = "192.168.127.1"


def ip(payload: Packet, **fields: object) -> bytes:
    """A packet from the guest to the gateway, lengths and checksums by scapy."""
    return bytes(IP(src=GUEST_TEXT, dst=GATEWAY_TEXT, **fields) / payload)


def transport(payload: Packet) -> bytes:
    """The bytes behind the IP header of such a packet."""
    return ip(payload)[20:]


def dhcp_message(*options: object, op: int = 1, mac: bytes = GUEST_MAC, **fields: object) -> bytes:
    return bytes(BOOTP(op=op, chaddr=mac, xid=0x1234_5678, **fields) / DHCP(options=[*options, "end"]))


def overloaded_dhcp(overload: int, *, options: bytes, file: bytes, sname: bytes) -> bytes:
    """A DISCOVER whose options go on in `file` and `sname`, as `overload` says or not."""
    fixed = struct.pack("!BBBB4sHH16s16s", 1, 1, 6, 0, b"abcd", 0, 0, bytes(16), GUEST_MAC.ljust(16, b"\x00"))
    head = b"\x63\x82\x53\x63\x35\x01\x01" + bytes((52, 1, overload))
    return fixed + sname.ljust(64, b"\x00") + file.ljust(128, b"\x00") + head + options


ARP_MESSAGES = {
    "request": bytes(ARP(op=1, hwsrc="02:00:00:00:00:02", psrc=GUEST_TEXT, pdst=GATEWAY_TEXT)),
    "reply": bytes(ARP(op=2, hwsrc="02:00:00:00:00:02", psrc=GUEST_TEXT, hwdst="5a:94:ef:e4:0c:dd", pdst=GATEWAY_TEXT)),
    "probe": bytes(ARP(op=1, hwsrc="02:00:00:00:00:02", psrc="0.0.0.0", pdst=GATEWAY_TEXT)),
    "padded": bytes(ARP(op=1, hwsrc="02:00:00:00:00:02", psrc=GUEST_TEXT, pdst=GATEWAY_TEXT)) + bytes(18),
}

IPV4_MESSAGES = {
    "plain": ip(UDP(sport=1, dport=2) / b"x"),
    "padded": ip(UDP(sport=1, dport=2) / b"x") + bytes(18),
    "record-route": ip(UDP(sport=1, dport=2) / b"x", options=[IPOption_RR(routers=["0.0.0.0"] * 9)]),
    "source-route": ip(TCP(), options=[IPOption_LSRR(routers=["1.2.3.4"]), IPOption_NOP()]),
    "fragment": ip(Raw(b"y" * 16), flags="MF", frag=5, id=77),
    "bare": ip(Raw(b"")),
}

UDP_MESSAGES = {
    "one": transport(UDP(sport=5000, dport=53) / b"x"),
    "empty": transport(UDP(sport=5000, dport=53)),
    "dns": transport(UDP(sport=5000, dport=53) / DNS(qd=DNSQR(qname="example.com"))),
    "without-checksum": transport(UDP(sport=5000, dport=53, chksum=0) / b"abc"),
    "padded": transport(UDP(sport=5000, dport=53) / b"abc") + b"\x00\x00",
}

_OFFENDING = ip(UDP(sport=4000, dport=33434) / (b"z" * 32))

ICMP_MESSAGES = {
    "echo": transport(ICMP(type=8, id=7, seq=9) / b"payload"),
    "echo-reply": transport(ICMP(type=0, id=7, seq=9) / b"payload"),
    "echo-empty": transport(ICMP(type=8, id=0xFFFF, seq=0xFFFF)),
    "port-unreachable": transport(ICMP(type=3, code=3) / Raw(_OFFENDING)),
    "port-unreachable-short": transport(ICMP(type=3, code=3) / Raw(_OFFENDING[:28])),
    "fragmentation-needed": transport(ICMP(type=3, code=4, nexthopmtu=1400) / Raw(ip(TCP(sport=80, seq=5)))),
    "time-exceeded": transport(ICMP(type=11, code=0) / Raw(IPV4_MESSAGES["record-route"])),
    "parameter-problem": transport(ICMP(type=12, code=0, ptr=20) / Raw(IPV4_MESSAGES["source-route"])),
    "timestamp": transport(ICMP(type=13)),
    "redirect": transport(ICMP(type=5, code=1, gw="1.2.3.4") / Raw(_OFFENDING)),
}

DHCP_MESSAGES = {
    "discover": dhcp_message(
        ("message-type", "discover"),
        ("client_id", b"\x01" + GUEST_MAC),
        ("max_dhcp_size", 1500),
        ("param_req_list", [1, 3, 6, 26, 119]),
        ("hostname", b"guest"),
    ),
    "request": dhcp_message(
        ("message-type", "request"), ("requested_addr", GUEST_TEXT), ("server_id", GATEWAY_TEXT), flags=0x8000
    ),
    "renew": dhcp_message(("message-type", "request"), ciaddr=GUEST_TEXT),
    "inform": dhcp_message(("message-type", "inform"), ciaddr=GUEST_TEXT),
    "overload-both": overloaded_dhcp(3, options=b"\xff", file=b"\x3d\x02ab\xff", sname=b"\x0c\x04name\xff"),
    "long-option": overloaded_dhcp(
        0,
        options=b"\x3d\xff" + b"a" * 255 + b"\x3d\x05bbbbb\xff",
        file=b"",
        sname=b"",
    ),
}

TCP_OPTIONS = {
    "linux-syn": bytes.fromhex("020405b40402080a00112233000000000103030a"),
    "timestamps": bytes.fromhex("0101080a0011223344556677"),
    "sack": bytes.fromhex("0101050a0000000100000002"),
    "sack-and-timestamps": bytes.fromhex("0101080a00112233445566770101050a0000000100000002"),
    "windows-syn": bytes.fromhex("020405b40103030801010402"),
    "mss-only": bytes.fromhex("020405b4"),
    "unknown": bytes.fromhex("fe04abcd020405b400000000"),
}
