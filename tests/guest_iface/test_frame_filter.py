"""The filter language: scapy's frames, words that read back the same, and what is said of words that cannot be read."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from guest_iface.frame_fields import read_fields
from guest_iface.frame_filter import (
    MAX_DEPTH,
    MAX_TEXT,
    And,
    EtherHost,
    Filter,
    FilterError,
    Flow,
    FlowEnds,
    Host,
    Known,
    LibpcapOnlyError,
    Name,
    Not,
    NumberedFlow,
    Or,
    Port,
    Protocols,
    parse_filter,
    parse_words,
    split_words,
)
from guest_iface.frame_matching import frame_matcher, uses_names
from guest_iface.libpcap_words import TcpFlags

GUEST_MAC, GATEWAY_MAC = "5a:94:ef:e4:0c:ee", "5a:94:ef:e4:0c:dd"
GUEST, SITE = "192.168.127.2", "93.184.216.34"


def frame(packet: Packet) -> bytes:
    return bytes(Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / packet)


FRAMES = {
    "web": frame(IP(src=GUEST, dst=SITE) / TCP(sport=40000, dport=443)),
    "page": frame(IP(src=SITE, dst=GUEST) / TCP(sport=443, dport=40000)),
    "dns": frame(IP(src=GUEST, dst="192.168.127.1") / UDP(sport=5000, dport=53)),
    "ping": frame(IP(src=GUEST, dst=SITE) / ICMP()),
    "options": frame(IP(src=GUEST, dst=SITE, options=b"\x94\x04\0\0") / TCP(sport=40001, dport=22)),
    "first": frame(IP(src=GUEST, dst=SITE, flags="MF") / UDP(sport=7000, dport=7001) / Raw(bytes(64))),
    "later": frame(IP(src=GUEST, dst=SITE, frag=9, proto=17) / Raw(b"\x1b\x58\x1b\x59" + bytes(60))),
    "vlan": bytes(
        Ether(src=GUEST_MAC, dst=GATEWAY_MAC) / Dot1Q(vlan=7) / IP(src=GUEST, dst="10.1.2.3") / TCP(dport=80)
    ),
    "arp": frame(ARP(psrc=GUEST, pdst="192.168.127.1")),
    "six": frame(
        IPv6(src="2001:db8::2", dst="2001:db8::9") / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / TCP(dport=443)
    ),
    "six-later": frame(
        IPv6(src="2001:db8::2", dst="2001:db8::9") / IPv6ExtHdrFragment(offset=4, nh=17) / Raw(bytes(32))
    ),
    "cut": frame(IP(src=GUEST, dst=SITE))[:30],
}


class Gateway(Known):
    def flow(self, number: int) -> FlowEnds | None:
        known = FlowEnds(6, (ipaddress.ip_address(GUEST).packed, 40000), (ipaddress.ip_address(SITE).packed, 443))
        return known if number == 17 else None

    def addresses(self, name: str) -> Collection[bytes]:
        return [ipaddress.ip_address(SITE).packed] if name in ("pypi.org", "*.org") else []


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("tcp", "web page options vlan six"),
        ("udp", "dns first later six-later"),
        ("icmp", "ping"),
        ("arp", "arp"),
        ("ip6", "six six-later"),
        (f"host {SITE}", "web page ping options first later"),
        (f"src host {SITE}", "page"),
        (f"dst {'host'} {SITE}", "web ping options first later"),
        ("net 192.168.127.0/24 and not ip", "arp"),
        ("host 192.168.127.1", "dns arp"),
        ("net 2001:db8::/32", "six six-later"),
        ("host 2001:db8::9 and port 443", "six"),
        ("port 443", "web page six"),
        ("dst port 443", "web six"),
        ("src port 443", "page"),
        ("port 7000-7001", "first"),
        ("portrange 21-60", "dns options"),
        ("tcp port 443", "web page six"),
        ("udp dst port 53", "dns"),
        ("tcp and net 10.0.0.0/8", "vlan"),
        (f"ether src {GUEST_MAC}", " ".join(FRAMES)),
        (f"ether host {GUEST_MAC} && !(ip || ip6)", "arp"),
        ("icmp or arp and host 192.168.127.1", "ping arp"),
        ("(icmp or arp) and host 192.168.127.1", "arp"),
        ("not not arp", "arp"),
        (f"flow tcp {GUEST}:40000 {SITE}:443", "web page"),
        (f"flow tcp {SITE}:443 {GUEST}:40000", "web page"),
        (f"flow udp {GUEST}:40000 {SITE}:443", ""),
        (f"flow icmp {GUEST}:1 {SITE}:0", "ping"),
        ("flow 17", "web page"),
        ("name pypi.org", "web page ping options first later"),
        ("name PyPI.org. and port 22", "options"),
        ("name *.org and src port 443", "page"),
        ("name other.org", ""),
        # libpcap's other ways to say it.
        ("tcp port 22 or 80", "options vlan"),
        ("tcp src port 443 or 22", "page"),
        ("udp port 53 or 7001", "dns first"),
        ("port domain or https", "web page dns six"),
        (f"not host {SITE} and not 192.168.127.1", "vlan six six-later cut"),
        (f"src {SITE}", "page"),
        (GUEST, "web page dns ping options first later vlan arp"),
        ("src or dst port 443", "web page six"),
        ("src and dst net 192.168.127", "dns arp"),
        ("src net 93.184 or 192.168.127.0/24 and arp", "page arp"),
        ("net 10", "vlan"),
        ("net 10.1.0.0 mask 255.255.0.0", "vlan"),
        ("ip proto 6", "web page options vlan"),
        ("ip6 proto \\udp", "six-later"),
        ("proto icmp or ether proto 0x0806", "ping arp"),
        ("ip host 192.168.127.1", "dns"),
        ("arp host 192.168.127.1", "arp"),
    ],
)
def test_what_is_meant(text: str, meant: str) -> None:
    matches = frame_matcher(parse_filter(text), Gateway())
    assert " ".join(name for name, each in FRAMES.items() if matches(each)) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("tcp[tcpflags] & tcp-syn != 0", "S SA"),
        ("tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "S SA FA"),
        ("tcp[13]&2!=0", "S SA"),
        ("(tcp[13] & 0x02) != 0", "S SA"),
        ("tcp[tcpflags] == tcp-syn", "S"),
        ("tcp[tcpflags] = tcp-syn|tcp-ack", "SA"),
        ("tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn", "S"),
        ("tcp[tcpflags] & tcp-push = 0", "S SA FA R CE"),
        ("not tcp[tcpflags] & tcp-ack != 0 and tcp port 80", "S R CE"),
        ("tcp[tcpflags] & (tcp-ece | tcp-cwr) != 0", "CE"),
    ],
)
def test_flags_of_tcp(text: str, meant: str) -> None:
    flags = ("S", "SA", "FA", "PA", "R", "CE")
    frames = {each: frame(IP(src=GUEST, dst=SITE) / TCP(dport=80, flags=each)) for each in flags}
    matches = frame_matcher(parse_filter(text))
    assert " ".join(name for name, each in frames.items() if matches(each)) == meant
    six = bytes(Ether() / IPv6(src="2001:db8::2", dst="2001:db8::9") / TCP(dport=80, flags="S"))
    assert matches(six) is ("S" in meant.split()), "in IPv6 too"
    assert not matches(FRAMES["later"]), "UDP, and a fragment"


@given(st.binary(max_size=200))
def test_no_frame_raises(data: bytes) -> None:
    read_fields(data)
    matches = frame_matcher(
        parse_filter("tcp port 443 or host 10.0.0.1 or ip6 and not flow 17 or name a or tcp[13]=1"), Gateway()
    )
    matches(data)
    matches(data[:12] + b"\x08\x00\x45" + data)
    matches(data[:12] + b"\x86\xdd\x60" + data)


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
sides = st.sampled_from(["", "src", "dst"])
ports = st.integers(0, 65_535)
ends = st.tuples(addresses.map(lambda each: each.packed), ports)
terms = st.one_of(
    st.sampled_from(["tcp", "udp", "icmp", "icmp6", "ip", "ip6", "arp"]).map(Protocols),
    st.builds(lambda address, side: Host(ipaddress.ip_network(address), side), addresses, sides),
    st.builds(lambda address, length, side: Host(ipaddress.ip_network((address, length), strict=False), side),
              addresses, st.integers(0, 32), sides),
    st.builds(lambda one, other, side: Port(min(one, other), max(one, other), side), ports, ports, sides),
    st.builds(TcpFlags, st.integers(0, 255), st.integers(0, 255), st.booleans()),
    st.builds(EtherHost, st.binary(min_size=6, max_size=6), sides),
    st.builds(lambda kind, one, other: Flow(FlowEnds(kind, one, other)), st.sampled_from([1, 6, 17, 58]), ends, ends),
    st.integers(0, 10**17).map(NumberedFlow),
    st.sampled_from(["pypi.org", "*.pypi.org", "a", "xn--bcher-kva.example"]).map(Name),
)  # fmt: skip
filters: st.SearchStrategy[Filter] = st.recursive(
    terms,
    lambda inner: st.one_of(st.builds(Not, inner), st.builds(And, inner, inner), st.builds(Or, inner, inner)),
    max_leaves=12,
)


@given(filters)
def test_a_filter_in_words_reads_back_the_same(made: Filter) -> None:
    assert parse_filter(str(made)) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected host, net"),
        ("hst 10.0.0.1", "instead of 'hst'"),
        ("host pypi.org", r"expected an IP address .*name pypi.org.* instead of 'pypi.org'"),
        ("host", "expected an IP address at the end"),
        ("net 10.0.0.1/8", "host bits set"),
        ("port 70000", "expected a port such as 443"),
        ("port 9-3", "instead of '9-3'"),
        ("src ether 1", "expected host, net or port instead of 'ether'"),
        ("ether host 5a:94", "expected a MAC address"),
        ("(tcp", r"expected '\)' at the end"),
        ("(tcp udp", r"expected 'and', 'or' or '\)' instead of 'udp'"),
        ("tcp udp", "expected 'and', 'or' or the end at 'udp'"),
        ("tcp and", "expected host, net"),
        ("name .", "expected a DNS name"),
        ("name a..b", "expected a DNS name"),
        ("flow x", "expected a flow's number"),
        ("flow tcp 10.0.0.1 10.0.0.2:1", "expected an end of the flow"),
        ("flow tcp 10.0.0.1:1 [::1]:70000", "expected an end of the flow"),
        ("not " * (MAX_DEPTH + 1) + "tcp", "at most 32 parentheses"),
        ("tcp or " * MAX_TEXT, "expected at most 4096"),
        ("port nosuchservice", "expected a port such as 443"),
        ("net 10.0.0.0 mask 255.0.255.0", "expected a network such as"),
        ("net 10.0.0.0 mask", "expected a netmask at the end"),
        ("net 300", "expected a network such as"),
        ("80", "expected host, net"),
        ("src 80", "expected host, net or port instead of '80'"),
        ("host 10.0.0.1 or 80", "expected host, net"),
    ],
)
def test_what_cannot_be_read_is_explained(text: str, said: str) -> None:
    with pytest.raises(FilterError, match=said):
        parse_filter(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ip[8] < 5", r"'ip\[8\] < 5': of the bytes of headers only TCP's flags can be compared here"),
        ("icmp[icmptype] == icmp-echo", "only TCP's flags can be compared here"),
        ("tcp[0:2] = 80", "only TCP's flags can be compared here"),
        ("tcp[tcpflags] & tcp-syn", "expected a test of TCP's flags such as"),
        ("tcp[13] > 2", "expected a test of TCP's flags such as"),
        ("tcp[tcpflags] & tcp-sin != 0", "expected flags by their names .tcp-fin, tcp-syn"),
        ("tcp[tcpflags] = 256", "expected flags from 0 to 255"),
        ("greater 1000", "'greater' is one of libpcap's words that are not read here: lengths cannot be chosen"),
        ("tcp and len > 100", "'len' is one of libpcap's words"),
        ("broadcast", "write: ether host ff:ff:ff:ff:ff:ff"),
        ("vlan 7 and port 80", "leave it out"),
        ("ip proto gre", "expected tcp, udp, icmp, icmp6 or its number instead of 'gre'"),
        ("ether proto 0x88cc", "expected ip, ip6, arp or its number"),
    ],
)
def test_what_only_libpcap_can_choose_is_said_to_be_that(text: str, said: str) -> None:
    with pytest.raises(LibpcapOnlyError, match=said):
        parse_filter(text)


@given(st.text("tcp[]()&|!=<>0123456789 -flags.\\", max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    with contextlib.suppress(FilterError):
        parse_filter(text)


def test_only_a_gateway_knows_numbers_and_names() -> None:
    for text in ("flow 17", "not name a", "tcp or name a"):
        with pytest.raises(FilterError, match="only a running gateway"):
            frame_matcher(parse_filter(text))
    with pytest.raises(FilterError, match="'flow 18': expected the number of a flow that is open"):
        frame_matcher(parse_filter("flow 18"), Gateway())
    assert uses_names(parse_filter("tcp and not (arp or name a)"))
    assert not uses_names(parse_filter("tcp and not (arp or flow 17)"))
    assert not uses_names(None)


def test_a_filter_ends_where_other_words_begin() -> None:
    words = split_words("match host 10.0.0.5 and (port 443 or icmp) delay 50ms")
    found, position = parse_words(words, 1)
    assert str(found) == "host 10.0.0.5 and (port 443 or icmp)"
    assert words[position:] == ["delay", "50ms"]
