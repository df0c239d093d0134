"""Conformance E1 to E3 and E14 with a real guest: UDP to whom no rule names, QUIC by name, groups and broadcasts.

Each row is held to what the guest's socket says, to what leaves the host (nothing, for refusals), and to one event.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from .open_internet import ATTACKER, METADATA, PRIVATE, SITE, SITE_TOO, OpenInternet
from .quic_peers import V1, V2, QuicServer, fetch
from .row_guest import GATEWAY, RowGuest, start_row_guest

pytestmark = pytest.mark.guest("ip", "openssl", "curl")
RULES = f"real.test,*.wild.test,udp/{SITE_TOO}:5000"


@pytest.fixture(scope="module", params=["real", "synthetic"])
def guest(request: pytest.FixtureRequest, internet: OpenInternet) -> Iterator[RowGuest]:
    """Under RULES, with answers of both kinds."""
    made = start_row_guest(internet, "--allow-net", RULES, "--dns-answers", request.param)
    yield made
    made.close()


@pytest.fixture
def sender(guest: RowGuest) -> Iterator[socket.socket]:
    with guest.namespace.socket(socket.SOCK_DGRAM) as made:
        made.settimeout(20)
        yield made


@pytest.fixture(scope="module")
def servers(internet: OpenInternet) -> Iterator[dict[str, QuicServer]]:
    """QUIC at the allowed site and at the attacker's."""
    key = internet.lab.directory / "server.key"
    made = {address: QuicServer(internet.host, address, internet.certificate, key) for address in (SITE, ATTACKER)}
    yield made
    for server in made.values():
        server.close()


def bounced(sender: socket.socket, address: str, port: int, data: bytes) -> str:
    """What the kernel says of a datagram: it is told at once, rather than left to wait."""
    sender.connect((address, port))
    sender.send(data)
    with pytest.raises(OSError, match="Errno") as caught:
        sender.recv(100)
    return errno.errorcode[caught.value.errno or 0]


# -- E1, E2: UDP -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port", "data", "step", "reason", "rule"),
    [
        (ATTACKER, 53, b"\x12\x34\1\0\0\1\0\0\0\0\0\0\1x\0\0\1\0\1", "datagram", "no-rule", None),
        (ATTACKER, 123, b"\x23" + bytes(47), "datagram", "no-rule", None),
        (ATTACKER, 5000, b"exfiltrated", "datagram", "no-rule", None),
        (ATTACKER, 443, b"no hello", "quic", "not-quic", None),
        (ATTACKER, 33434, b"", "datagram", "no-rule", None),
        (PRIVATE, 514, b"<1>x", "datagram", "private-address", None),
        (METADATA, 80, b"x", "datagram", "metadata", None),
        (SITE_TOO, 5001, b"x", "datagram", "port-not-covered", f"udp/{SITE_TOO}:5000"),
        (GATEWAY, 123, bytes(48), "datagram", "unserved-port", None),
        (GATEWAY, 5353, bytes(12), "datagram", "unserved-port", None),
    ],
    ids=["DNS", "NTP", "any-port", "443", "traceroute", "private", "metadata", "another-port", "gateway", "mDNS"],
)
def test_E1_udp_to_an_unlisted_host(
    guest: RowGuest, sender: socket.socket, address: str, port: int, data: bytes, step: str, reason: str, rule: str
) -> None:
    with guest.turned_away(step, reason, "unreachable", protocol="udp", destination=f"{address}:{port}", rule=rule):
        # The metadata service is behind a router that says no (ICMP code 13), the rest are closed ports.
        assert bounced(sender, address, port, data) == ("EHOSTUNREACH" if address == METADATA else "ECONNREFUSED")


def test_E1_what_is_listed_goes(guest: RowGuest, sender: socket.socket, internet: OpenInternet) -> None:
    """The control: the same socket calls, and it arrives."""
    with internet.host.socket(socket.SOCK_DGRAM) as receiver:
        receiver.bind((SITE_TOO, 5000))
        with guest.tells({"event": "flow_opened", "protocol": "udp", "dialled": f"{SITE_TOO}:5000"}):
            sender.sendto(b"hello", (SITE_TOO, 5000))
            data, peer = receiver.recvfrom(100)
            receiver.sendto(data[::-1], peer)
            assert sender.recvfrom(100) == (b"olleh", (SITE_TOO, 5000))


def test_E2_udp_to_the_address_of_an_allowed_name(guest: RowGuest, sender: socket.socket) -> None:
    """Real answers: nothing in a datagram says whom it is for. Synthetic: the rule allows TCP there, and QUIC."""
    (address,) = guest.resolved("real.test")
    synthetic = address != SITE
    fields = {"name": "real.test", "rule": "real.test"} if synthetic else {"name": None, "rule": None}
    reason = "port-not-covered" if synthetic else "no-rule"
    with guest.turned_away("datagram", reason, "unreachable", destination=f"{address}:5000", **fields):
        assert bounced(sender, address, 5000, b"x") == "ECONNREFUSED"


# -- E2, E3: QUIC ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("large", [False, True], ids=["one-datagram", "several"])
@pytest.mark.parametrize("where", ["as-answered", "attackers-address"])
def test_E2_quic_by_an_allowed_name(
    guest: RowGuest,
    sender: socket.socket,
    servers: dict[str, QuicServer],
    version: int,
    large: bool,
    where: str,
) -> None:
    """A handshake with the true host and data both ways, also where the guest addressed another."""
    address = guest.resolved("a.wild.test")[0] if where == "as-answered" else ATTACKER
    opened = {
        "event": "flow_opened",
        "protocol": "udp",
        "destination": f"{address}:443",
        "dialled": f"{SITE}:443",
        "reason_code": "name-rule",
        "rule": "*.wild.test",
        "name": "a.wild.test",
        "name_source": "quic",
        "note": "address-not-answered" if where == "attackers-address" else None,
    }
    attacked, versions = servers[ATTACKER].datagrams, len(servers[SITE].versions)
    with guest.tells(opened):
        said = fetch(
            sender, address, "a.wild.test", b"hello", trust=guest.internet.certificate, version=version, large=large
        )
    assert said == f"{SITE}: hello".encode()
    assert servers[SITE].versions[versions:] == [version]
    assert servers[ATTACKER].datagrams == attacked
    for server in servers.values():
        server.forget()


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("large", [False, True], ids=["one-datagram", "several"])
@pytest.mark.parametrize("address", [SITE, ATTACKER], ids=["at-the-allowed-address", "at-its-own"])
def test_E3_quic_by_another_name(
    guest: RowGuest, sender: socket.socket, servers: dict[str, QuicServer], version: int, large: bool, address: str
) -> None:
    name = f"v{version}-{'large' if large else 'small'}.evil.test"  # repetitions of a refusal are counted, not told
    before = {server.address: server.datagrams for server in servers.values()}
    with (
        guest.turned_away(
            "quic", "name-not-allowed", "unreachable", name=name, name_source="quic", destination=f"{address}:443"
        ),
        pytest.raises(ConnectionRefusedError),
    ):
        fetch(sender, address, name, b"x", trust=guest.internet.certificate, version=version, large=large)
    assert {server.address: server.datagrams for server in servers.values()} == before


def test_E3_another_allowed_name_than_the_addresss(
    guest: RowGuest, sender: socket.socket, servers: dict[str, QuicServer]
) -> None:
    """A real address may be two names'; a synthetic one is the one's it was made for."""
    (address,) = guest.resolved("real.test")
    trust = guest.internet.certificate
    if address == SITE:
        with guest.tells({"event": "flow_opened", "name": "a.wild.test", "dialled": f"{SITE}:443"}):
            assert fetch(sender, address, "a.wild.test", b"x", trust=trust) == f"{SITE}: x".encode()
        servers[SITE].forget()
        return
    with (
        guest.turned_away("quic", "name-disagrees-with-address", "unreachable", name="a.wild.test"),
        pytest.raises(ConnectionRefusedError),
    ):
        fetch(sender, address, "a.wild.test", b"x", trust=trust)


# -- E14: groups and broadcasts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("239.255.255.250", 1900),
        ("224.0.0.251", 5353),
        ("224.0.0.252", 5355),
        ("192.168.127.255", 137),
        ("192.168.127.255", 138),
        ("255.255.255.255", 9999),
    ],
    ids=["SSDP", "mDNS", "LLMNR", "NetBIOS-name", "NetBIOS-datagram", "broadcast"],
)
def test_E14_groups_and_broadcasts(guest: RowGuest, sender: socket.socket, address: str, port: int) -> None:
    """Nothing is heard: nobody is told of an error in what was sent to all."""
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sender.settimeout(0)
    interface = struct.pack("4s4s", bytes(4), socket.inet_aton("192.168.127.2"))
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface[4:])
    sender.bind(("192.168.127.2", 0))
    guest.drain()
    guest.hear()
    with guest.turned_away("datagram", "group-address", "nothing", destination=f"{address}:{port}"):
        sender.sendto(b"M-SEARCH * HTTP/1.1\r\nST: ssdp:all\r\n\r\n", (address, port))
    assert guest.hear() == []
    with pytest.raises(BlockingIOError):
        sender.recv(100)


def test_E_and_what_is_allowed_goes_on(guest: RowGuest) -> None:
    source = "synthetic" if guest.resolved("real.test") != [SITE] else "host"
    with guest.reaches(f"{SITE}:80", "name-rule", name="real.test", name_source=source):
        assert guest.curl("http://real.test/") == (0, f"{SITE} for real.test\n")
