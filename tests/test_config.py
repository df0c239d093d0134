"""The configuration model: gvproxy's defaults and rules, and errors that name option, value and what was expected."""

from __future__ import annotations

import contextlib
import ipaddress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netstack import config
from netstack.config import (
    ConfigError,
    FdLink,
    ListenLink,
    StdioLink,
    TapLink,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from netstack.engine.settings import NetworkSettings


def ip(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


def test_defaults_are_those_of_gvproxy_without_a_configuration_file():
    made = config.network_settings()
    assert made.subnet == ip("192.168.127.0")
    assert made.prefix_length == 24
    assert made.gateway_ip == ip("192.168.127.1")
    assert made.device_ip == ip("192.168.127.2")
    assert made.host_ip == ip("192.168.127.254")
    assert made.gateway_mac.hex(":") == "5a:94:ef:e4:0c:dd"
    assert made.link.mtu == 1500
    assert made.nat == {ip("192.168.127.254"): ip("127.0.0.1")}
    assert made.virtual_ips == {ip("192.168.127.254")}
    assert made.static_leases == {bytes.fromhex("5a94efe40cee"): ip("192.168.127.2")}
    assert made.udp_replied_timeout == 180
    assert made.udp_unreplied_timeout == 30
    assert made.tcp_keepalive == float("inf")
    assert made.metadata_access is False
    assert [zone.name for zone in made.zones] == ["containers.internal", "docker.internal"]
    for zone in made.zones:
        assert {record.name: record.address for record in zone.records} == {
            "gateway": ip("192.168.127.1"),
            "host": ip("192.168.127.254"),
        }
        assert zone.default_ip is None


@pytest.mark.parametrize(
    ("subnet", "network", "gateway", "device", "host"),
    [
        ("192.168.127.1/24", "192.168.127.0/24", "192.168.127.1", "192.168.127.2", "192.168.127.254"),
        ("10.10.0.0/16", "10.10.0.0/16", "10.10.0.1", "10.10.0.2", "10.10.255.254"),
        ("172.16.16.16/12", "172.16.0.0/12", "172.16.0.1", "172.16.0.2", "172.31.255.254"),
        ("10.0.0.5/24", "10.0.0.0/24", "10.0.0.1", "10.0.0.2", "10.0.0.254"),
        ("10.0.0.8/29", "10.0.0.8/29", "10.0.0.9", "10.0.0.10", "10.0.0.14"),
    ],
)
def test_addresses_follow_from_the_subnet(subnet: str, network: str, gateway: str, device: str, host: str):
    made = config.network_settings(subnet=subnet)
    assert f"{ipaddress.IPv4Address(made.subnet)}/{made.prefix_length}" == network
    assert (made.gateway_ip, made.device_ip, made.host_ip) == (ip(gateway), ip(device), ip(host))
    assert made.nat == {ip(host): ip("127.0.0.1")}
    assert made.virtual_ips == {ip(host)}
    assert made.static_leases == {config.DEFAULT_GUEST_MAC: ip(device)}
    assert made.zones[0].records[1].address == ip(host)


@given(
    address=st.ip_addresses(v=4, network="10.0.0.0/8"),
    prefix=st.integers(min_value=8, max_value=29),
)
def test_in_every_subnet_the_three_addresses_are_usable_and_distinct(address: ipaddress.IPv4Address, prefix: int):
    made = config.network_settings(subnet=f"{address}/{prefix}")
    own = {made.gateway_ip, made.device_ip, made.host_ip}
    assert len(own) == 3
    for each in own:
        assert made.in_subnet(each)
        assert each not in (made.subnet, made.broadcast_ip)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"subnet": "10.0.0.0/30"}, "--subnet '10.0.0.0/30'", "from /8 to /29"),
    ({"subnet": "0.0.0.0/0"}, "--subnet", "from /8 to /29"),
    ({"subnet": "fc00::/64"}, "--subnet 'fc00::/64'", "an IPv4 network"),
    ({"subnet": ""}, "--subnet ''", "an IPv4 network"),
    ({"subnet": "10.0.0.300/24"}, "--subnet", "an IPv4 network"),
    ({"subnet": "127.0.0.0/8"}, "--subnet", "not loopback"),
    ({"subnet": "169.254.0.0/16"}, "--subnet", "link-local"),
    ({"subnet": "224.0.0.0/24"}, "--subnet", "multicast"),
    ({"subnet": "0.0.0.0/8"}, "--subnet", "ordinary addresses"),
    ({"gateway_ip": "one"}, "--gateway-ip 'one'", "an IPv4 address"),
    ({"gateway_ip": "10.0.0.1"}, "--gateway-ip '10.0.0.1'", "192.168.127.1 to 192.168.127.254"),
    ({"gateway_ip": "192.168.127.0"}, "--gateway-ip", "192.168.127.1 to"),
    ({"host_ip": "192.168.127.255"}, "--host-ip", "192.168.127.1 to"),
    ({"device_ip": "192.168.127.1"}, "--device-ip", "the gateway's"),
    ({"host_ip": "192.168.127.2"}, "--host-ip", "the guest's"),
    ({"mtu": 575}, "--mtu '575'", "from 576 to 65521"),
    ({"mtu": 65522}, "--mtu", "from 576 to 65521"),
    ({"udp_timeout": 0.5}, "--udp-timeout '0.5'", "from 1 to 86400"),
    ({"tcp_keepalive": 0.0}, "--tcp-keepalive", "from 1 to 86400"),
    ({"udp_unreplied_timeout": float("nan")}, "--udp-unreplied-timeout", "from 1 to 86400"),
    ({"nat": ["10.0.0.1"]}, "--nat '10.0.0.1'", "IP=IP"),
    ({"nat": ["10.0.0.1=::1"]}, "--nat '::1'", "an IPv4 address"),
    ({"nat": ["10.0.0.1=1.1.1.1", "10.0.0.1=1.1.1.2"]}, "--nat '10.0.0.1=1.1.1.2'", "once"),
    ({"nat": ["224.0.0.1=1.1.1.1"]}, "--nat", "unicast"),
    ({"nat": ["127.0.0.1=1.1.1.1"]}, "--nat", "not loopback"),
    ({"nat": ["192.168.127.255=1.1.1.1"]}, "--nat", "unicast"),
    ({"nat": ["192.168.127.1=127.0.0.1"]}, "--nat", "not the gateway"),
    ({"nat": ["192.168.127.2=127.0.0.1"]}, "--nat", "not the gateway, the guest"),
    ({"nat": ["10.0.0.1=192.168.127.77"]}, "--nat", "outside the guest's subnet"),
    ({"nat": ["10.0.0.1=0.0.0.0"]}, "--nat", "can dial"),
    ({"zones": ["internal"]}, "--zone 'internal'", "NAME:WHAT=IP"),
    ({"zones": ["int ernal:a=1.1.1.1"]}, "--zone 'int ernal'", "a DNS name"),
    ({"zones": [":a=1.1.1.1"]}, "--zone ''", "a DNS name"),
    ({"zones": ["x:a"]}, "--zone 'x:a'", "NAME:WHAT=IP"),
    ({"zones": ["x:a=b"]}, "--zone 'b'", "an IPv4 address"),
    ({"zones": ["x:a=::1"]}, "--zone '::1'", "an IPv4 address"),
    ({"zones": ["x:a b=1.1.1.1"]}, "--zone 'a b'", "a DNS name"),
    ({"zones": ["x:/(/=1.1.1.1"]}, "--zone '('", "a regular expression"),
    ({"zones": ["x:*=1.1.1.1,*=1.1.1.2"]}, "--zone", "'*' once"),
    ({"zones": ["x:a=1.1.1.1", "X.:a=1.1.1.2"]}, "--zone 'X.:a=1.1.1.2'", "once"),
    ({"static_leases": ["5a:94:ef:e4:0c=192.168.127.3"]}, "--static-lease '5a:94:ef:e4:0c'", "a MAC address"),
    ({"static_leases": ["5a:94:ef-e4:0c:01=192.168.127.3"]}, "--static-lease", "a MAC address"),
    ({"static_leases": ["ff:ff:ff:ff:ff:ff=192.168.127.3"]}, "--static-lease", "one station"),
    ({"static_leases": ["00:00:00:00:00:00=192.168.127.3"]}, "--static-lease", "one station"),
    ({"static_leases": ["5a:94:ef:e4:0c:01"]}, "--static-lease", "MAC=IP"),
    ({"static_leases": ["5a:94:ef:e4:0c:01=10.0.0.1"]}, "--static-lease", "the guest's subnet"),
    ({"static_leases": ["5a:94:ef:e4:0c:01=192.168.127.255"]}, "--static-lease", "usable"),
    ({"static_leases": ["5a:94:ef:e4:0c:01=192.168.127.1"]}, "--static-lease", "does not answer for itself"),
    ({"static_leases": ["5a:94:ef:e4:0c:01=192.168.127.254"]}, "--static-lease", "does not answer for itself"),
    (
        {"static_leases": ["5a:94:ef:e4:0c:01=192.168.127.9", "5A:94:EF:E4:0C:01=192.168.127.8"]},
        "--static-lease '5A:94:EF:E4:0C:01=192.168.127.8'",
        "once",
    ),
]


@pytest.mark.parametrize(("options", "named", "expected"), WRONG)
def test_an_error_names_option_value_and_what_was_expected(options: dict[str, Any], named: str, expected: str):
    with pytest.raises(ConfigError) as caught:
        config.network_settings(**options)
    message = str(caught.value)
    assert message.startswith(named)
    assert ": expected " in message
    assert expected in message
    assert "\n" not in message


def test_nat_entries_add_to_the_default_and_make_virtual_ips():
    made = config.network_settings(nat=["192.168.127.50=127.0.0.1", "203.0.113.9=10.9.8.7"])
    assert made.nat == {
        ip("192.168.127.254"): ip("127.0.0.1"),
        ip("192.168.127.50"): ip("127.0.0.1"),
        ip("203.0.113.9"): ip("10.9.8.7"),
    }
    assert made.virtual_ips == {ip("192.168.127.254"), ip("192.168.127.50")}


def test_the_host_ips_nat_entry_can_be_replaced():
    assert config.network_settings(nat=["192.168.127.254=10.0.0.7"]).nat == {ip("192.168.127.254"): ip("10.0.0.7")}


def test_static_leases_in_any_case_and_the_default_gives_way():
    made = config.network_settings(static_leases=["AA-bb-CC-00-00-02=192.168.127.9"])
    assert made.static_leases == {
        bytes.fromhex("aabbcc000002"): ip("192.168.127.9"),
        config.DEFAULT_GUEST_MAC: ip("192.168.127.2"),
    }
    took_ip = config.network_settings(static_leases=["aa:bb:cc:00:00:02=192.168.127.2"])
    assert took_ip.static_leases == {bytes.fromhex("aabbcc000002"): ip("192.168.127.2")}
    moved = config.network_settings(static_leases=["5A:94:EF:E4:0C:EE=192.168.127.9"])
    assert moved.static_leases == {config.DEFAULT_GUEST_MAC: ip("192.168.127.9")}


def test_zone_with_names_apex_default_and_a_regexp_that_holds_commas_and_slashes():
    zone = config.parse_zone(
        r"Dev.Test.:a=10.0.0.1,a=10.0.0.2,b.C=10.0.0.3,@=10.0.0.4,/^n[0-9]{1,3}\/x,y=z$/=10.0.0.5,*=10.0.0.6", "--zone"
    )
    assert zone.name == "dev.test"
    assert zone.default_ip == ip("10.0.0.6")
    plain = [(record.name, record.address) for record in zone.records if record.regexp is None]
    assert plain == [("a", ip("10.0.0.1")), ("a", ip("10.0.0.2")), ("b.c", ip("10.0.0.3")), ("", ip("10.0.0.4"))]
    [pattern] = [record.regexp for record in zone.records if record.regexp is not None]
    assert pattern.pattern == "^n[0-9]{1,3}/x,y=z$"
    assert pattern.search("N12/X,Y=Z")


def test_a_zone_replaces_the_default_one_of_its_name_only():
    made = config.network_settings(zones=["Containers.Internal:", "lab:*=10.0.0.1"])
    assert [(zone.name, len(zone.records)) for zone in made.zones] == [
        ("containers.internal", 0),
        ("docker.internal", 2),
        ("lab", 0),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9.9.9.9", "9.9.9.9:53"),
        ("127.0.0.1:5353", "127.0.0.1:5353"),
        ("::1", "[::1]:53"),
        ("[::1]:54", "[::1]:54"),
        (" [2001:DB8::1] ", "[2001:db8::1]:53"),
    ],
)
def test_dns_upstream_forms(text: str, expected: str):
    assert config.parse_dns_upstream(text, "--dns-upstream") == expected


@pytest.mark.parametrize(
    "text", ["", "dns.example", "1.1.1.1:", "1.1.1.1:0", "1.1.1.1:65536", "1.1.1.1:5x", "224.0.0.1", "0.0.0.0"]
)
def test_dns_upstream_errors(text: str):
    with pytest.raises(ConfigError, match="--dns-upstream"):
        config.parse_dns_upstream(text, "--dns-upstream")


def test_links_of_every_kind_in_one_call():
    assert config.link_specs(
        vfkit=["unixgram:///run/vm.sock"],
        qemu=["unix:///run/q%20emu", "tcp://127.0.0.1:5555", "tcp://[::1]:5556"],
        bess=["unixpacket:///run/bess"],
        vpnkit=["unix:///run/vpnkit", "vsock://:1024", "vsock://2:1024"],
        stdio="accept",
        fds=[5, 5, 6],
        taps=["tap0"],
        netns="guest",
    ) == (
        ListenLink("vfkit", UnixEndpoint(Path("/run/vm.sock"))),
        ListenLink("qemu", UnixEndpoint(Path("/run/q emu"))),
        ListenLink("qemu", TcpEndpoint("127.0.0.1", 5555)),
        ListenLink("qemu", TcpEndpoint("::1", 5556)),
        ListenLink("bess", UnixEndpoint(Path("/run/bess"))),
        ListenLink("vpnkit", UnixEndpoint(Path("/run/vpnkit"))),
        ListenLink("vpnkit", VsockEndpoint(None, 1024)),
        ListenLink("vpnkit", VsockEndpoint(2, 1024)),
        StdioLink(),
        FdLink(5),
        FdLink(6),
        TapLink("tap0", "guest"),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "link 'none': expected one of --listen-vfkit"),
        ({"vfkit": ["/run/vm.sock"]}, "--listen-vfkit '/run/vm.sock': expected unixgram://PATH"),
        ({"vfkit": ["unix:///run/vm.sock"]}, "expected unixgram://PATH"),
        ({"vfkit": ["unixgram://"]}, "expected unixgram://PATH"),
        ({"vfkit": ["unixgram:///" + "x" * 107]}, "at most 107 bytes"),
        ({"vfkit": ["unixgram:///a%00b"]}, "at most 107 bytes"),
        ({"qemu": ["http://127.0.0.1:80"]}, "expected unix://PATH or tcp://HOST:PORT or vsock://[CID]:PORT"),
        ({"qemu": ["tcp://:5555"]}, "0.0.0.0 as HOST"),
        ({"qemu": ["tcp://127.0.0.1"]}, "tcp://HOST:PORT"),
        ({"qemu": ["tcp://127.0.0.1:0"]}, "a port from 1 to 65535"),
        ({"qemu": ["unix:///a"], "vpnkit": ["unix:///a"]}, "an endpoint of its own"),
        ({"qemu": ["vsock://guest:1024"]}, "both are numbers"),
        ({"qemu": ["vsock://1024"]}, "both are numbers"),
        ({"qemu": ["vsock://4294967295:1"]}, "both are numbers"),
        ({"qemu": ["vsock://:1"], "vpnkit": ["vsock://:1"]}, "':1': expected an endpoint of its own"),
        ({"bess": ["unix:///a"]}, "expected unixpacket://PATH"),
        ({"stdio": "yes"}, "--listen-stdio 'yes'"),
        ({"fds": [2]}, "--fd '2': expected the number of an open file descriptor, 3 or more"),
        ({"netns": "guest", "fds": [5]}, "--netns 'guest': expected --tap"),
        ({"taps": ["a/b"]}, "--tap 'a/b'"),
        ({"taps": ["abcdefghijklmnop"]}, "at most 15 characters"),
        ({"taps": ["ééééééééé"]}, "at most 15 characters"),
    ],
)
def test_link_errors(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        config.link_specs(**options)
    assert message in str(caught.value)


def test_search_domains_of_the_last_line_that_has_any():
    text = "# comment\nsearch old.example\nnameserver 9.9.9.9\n\nsearch\tcorp.Example  lab.example. b@d x\n"
    assert config.search_domains(text) == ("corp.example", "lab.example", "x")
    assert config.search_domains("domain one.example two.example\n") == ("one.example",)
    assert config.search_domains("nameserver 9.9.9.9\n") == ()


def test_search_domains_are_bounded():
    assert len(config.search_domains("search " + " ".join(f"d{n}.example" for n in range(50)))) == 6
    long = ".".join(["x" * 60] * 4)
    assert config.search_domains(f"search {long} {long}") == (long,)


@given(st.text())
@example("search \x85 a\n")
def test_no_resolv_conf_raises(text: str):
    assert sum(len(name) + 1 for name in config.search_domains("search " + text)) <= 257


@given(st.text())
def test_a_zone_is_read_or_refused_with_a_config_error(text: str):
    with contextlib.suppress(ConfigError):
        zone = config.parse_zone(text, "--zone")
        assert zone.name
        assert zone.name == zone.name.lower()


@given(st.text(), st.sampled_from(["subnet", "gateway_ip", "device_ip", "host_ip"]))
def test_any_text_as_address_is_taken_or_refused_with_a_config_error(text: str, option: str):
    with contextlib.suppress(ConfigError):
        assert isinstance(config.network_settings(**{option: text}), NetworkSettings)
