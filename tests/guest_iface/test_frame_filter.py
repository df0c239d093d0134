"""The filter language: scapy's frames, words that read back the same, and what is said of words that cannot be read."""

from __future__ import annotations

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
    Name,
    Not,
    NumberedFlow,
    Or,
    Port,
    Protocols,
    frame_matcher,
    parse_filter,
    parse_words,
    split_words,
    uses_names,
)

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
    ],
)
def test_what_is_meant(text: str, meant: str) -> None:
    matches = frame_matcher(parse_filter(text), Gateway())
    assert " ".join(name for name, each in FRAMES.items() if matches(each)) == meant


@given(st.binary(max_size=200))
def test_no_frame_raises(data: bytes) -> None:
    read_fields(data)
    matches = frame_matcher(parse_filter("tcp port 443 or host 10.0.0.1 or ip6 and not flow 17 or name a"), Gateway())
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
    ],
)
def test_what_cannot_be_read_is_explained(text: str, said: str) -> None:
    with pytest.raises(FilterError, match=said):
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
