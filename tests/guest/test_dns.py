"""dig, busybox nslookup and the C library ask the gateway; the upstream is dns_authority.py."""

from __future__ import annotations

import pytest

from .dns_authority import BIG
from .lab import wait_until
from .network import Network

pytestmark = pytest.mark.guest("ip", "openssl", "dig")


def dig(network: Network, *arguments: str) -> str:
    """Ask the gateway; dig's whole output."""
    return network.guest.run("dig", "+tries=1", "+time=10", f"@{network.addresses.dns}", *arguments).stdout


def short(network: Network, *arguments: str) -> list[str]:
    """The answers alone, sorted."""
    return sorted(dig(network, "+short", *arguments).split("\n")[:-1])


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("www", "A", ["198.51.100.10"]),
        ("WwW", "A", ["198.51.100.10"]),
        ("www", "AAAA", ["2001:db8::10"]),
        ("four", "A", ["198.51.100.11", "198.51.100.12", "198.51.100.13", "198.51.100.14"]),
        ("text", "TXT", [f'"{"a" * 200}" "{"b" * 100}"', '"v=test one"']),
        ("mail", "MX", ["10 mx1.guest.test.", "20 mx2.guest.test."]),
        ("_imaps._tcp", "SRV", ["0 1 993 imap.guest.test."]),
        ("ca", "CAA", ['0 issue "ca.guest.test"']),
        ("web", "HTTPS", ['1 . alpn="h2,h3" port=8443']),
        ("alias", "CNAME", ["www.guest.test."]),
        ("alias", "A", ["198.51.100.10", "www.guest.test."]),
    ],
)
def test_every_type(network: Network, transport: str, name: str, kind: str, expected: list[str]) -> None:
    assert short(network, transport, f"{name}.guest.test", kind) == expected


@pytest.mark.parametrize(
    ("name", "kind", "status"),
    [
        ("servfail", "A", "SERVFAIL"),
        ("refused", "A", "REFUSED"),
        ("nothing-here", "A", "NXDOMAIN"),
        ("nothing-here", "TXT", "NXDOMAIN"),
        ("empty", "A", "NOERROR"),
        ("www", "NAPTR", "NOERROR"),
    ],
)
def test_status_is_the_upstreams(network: Network, name: str, kind: str, status: str) -> None:
    out = dig(network, f"{name}.guest.test", kind)
    assert f"status: {status}" in out
    assert "ANSWER: 0" in out


def test_negative_answers_carry_the_soa(network: Network) -> None:
    assert "ns.guest.test. admin.guest.test." in dig(network, "nothing-here.guest.test", "A")


def test_big_answer_is_truncated_then_fetched_by_tcp(network: Network) -> None:
    expected = sorted(f'"{text}"' for text in BIG)
    cut = dig(network, "+ignore", "+bufsize=1232", "big.guest.test", "TXT")
    assert " tc" in next(line for line in cut.splitlines() if "flags:" in line)
    whole = dig(network, "big.guest.test", "TXT")
    assert "Truncated, retrying in TCP mode" in whole
    assert short(network, "big.guest.test", "TXT") == expected
    assert short(network, "+tcp", "big.guest.test", "TXT") == expected


def test_without_edns_no_more_than_512_bytes(network: Network) -> None:
    cut = dig(network, "+noedns", "+ignore", "text.guest.test", "TXT", "+qr")
    size = int(next(line for line in cut.splitlines() if "MSG SIZE  rcvd:" in line).split()[-1])
    assert size <= 512


def test_edns_is_answered_with_edns(network: Network) -> None:
    assert "EDNS: version: 0" in dig(network, "www.guest.test", "A")
    assert "EDNS: version: 0" not in dig(network, "+noedns", "www.guest.test", "A")


@pytest.mark.parametrize("zone", ["containers.internal", "docker.internal"])
def test_local_zones(network: Network, zone: str) -> None:
    asked = len(network.world.dns_questions())
    assert short(network, f"gateway.{zone}") == [network.addresses.gateway]
    assert short(network, f"host.{zone}") == [network.addresses.host]
    assert short(network, f"HOST.{zone.upper()}") == [network.addresses.host]
    assert short(network, "+tcp", f"host.{zone}") == [network.addresses.host]
    # A name of the zone has no other types, and one that is not in it does not exist: nothing of it leaves the host.
    assert "status: NOERROR" in dig(network, f"host.{zone}", "AAAA")
    assert "status: NOERROR" in dig(network, f"host.{zone}", "TXT")
    assert "status: NXDOMAIN" in dig(network, f"nobody.{zone}")
    assert len(network.world.dns_questions()) == asked


def test_slow_name_holds_nobody_up(network: Network) -> None:
    """A question the upstream sits on, and others answered meanwhile."""
    question = "udp slow.guest.test. A"
    before = network.world.dns_questions().count(question)
    slow = network.guest.spawn("dig-slow", "dig", "+short", "+time=20", f"@{network.addresses.dns}", "slow.guest.test")
    wait_until(lambda: network.world.dns_questions().count(question) > before, "the slow question upstream")
    assert short(network, "www.guest.test", "A") == ["198.51.100.10"]
    assert slow.running
    assert short(network, "hurry.guest.test", "A") == ["203.0.113.10"]
    assert slow.wait() == 0
    assert slow.log.strip() == "203.0.113.9"


@pytest.mark.guest("busybox")
@pytest.mark.parametrize("name", ["www.guest.test", "alias.guest.test", "host.containers.internal"])
def test_busybox_nslookup(network: Network, name: str) -> None:
    """It asks A and AAAA, and fails unless both come back NOERROR."""
    out = network.guest.run("busybox", "nslookup", name, network.addresses.dns).stdout
    address = network.addresses.host if "host" in name else "198.51.100.10"
    assert f"Address: {address}" in out


def test_getaddrinfo(network: Network) -> None:
    """The C library, by /etc/resolv.conf."""
    assert "198.51.100.10" in network.guest.run("getent", "ahostsv4", "www.guest.test").stdout
    assert network.guest.run("getent", "ahostsv4", "nothing-here.guest.test", check=False).returncode == 2


def test_hundred_questions_at_once(network: Network) -> None:
    """dig's batch mode on one command line, and dnsperf's manner by shell: a hundred processes' worth of questions."""
    script = "\n".join(f"dig +short @{network.addresses.dns} four.guest.test A >/dev/null &" for _ in range(20))
    network.guest.sh(f"{script}\nwait")
    names = [word for number in range(100) for word in (f"n{number}.guest.test", "A")]
    assert dig(network, *names).count("status: NXDOMAIN") == 100
