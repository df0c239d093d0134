"""Conformance E4 to E6 with a real guest: ping, ICMP that lies, and the IP protocols that nothing here carries."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from .lab import wait_until
from .open_internet import ATTACKER, BANNER, METADATA, PRIVATE, SITE, SITE_TOO, OpenInternet
from .row_guest import GATEWAY, GUEST, HOST_ALIAS, RowGuest, framed, start_row_guest

pytestmark = pytest.mark.guest("ip", "openssl", "curl", "ping")
RULES = f"real.test,{SITE_TOO}"


@pytest.fixture(scope="module")
def listed(internet: OpenInternet) -> Iterator[RowGuest]:
    """Allowed a name and an address."""
    made = start_row_guest(internet, "--allow-net", RULES)
    yield made
    made.close()


@pytest.fixture(scope="module")
def denied(internet: OpenInternet) -> Iterator[RowGuest]:
    """Allowed nothing."""
    made = start_row_guest(internet, "--deny-all")
    yield made
    made.close()


@pytest.fixture
def guest(listed: RowGuest) -> Iterator[RowGuest]:
    """Under RULES; whatever the test did to it, what is allowed works afterwards."""
    yield listed
    listed.still_works()


def ping(guest: RowGuest, address: str, size: int = 56) -> str:
    done = guest.namespace.run("ping", "-n", "-c1", "-W20", f"-s{size}", address, check=False)
    return done.stdout + done.stderr


# -- E4: echo --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["listed", "denied"])
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (ATTACKER, "no-rule"),
        (PRIVATE, "no-rule"),
        (HOST_ALIAS, "no-rule"),
        (METADATA, "metadata"),
    ],
)
def test_E4_ping_of_what_is_not_listed(request: pytest.FixtureRequest, which: str, address: str, reason: str) -> None:
    """The gateway says at once that it is not let through."""
    guest: RowGuest = request.getfixturevalue(which)
    with guest.turned_away("echo", reason, "unreachable", protocol="icmp", destination=f"{address}:0"):
        said = ping(guest, address)
    assert f"From {GATEWAY} icmp_seq=1 Packet filtered" in said
    assert "100% packet loss" in said


@pytest.mark.parametrize("which", ["listed", "denied"])
@pytest.mark.parametrize("size", [0, 56, 4000, 60_000])
def test_E4_the_gateway_answers_for_itself(request: pytest.FixtureRequest, which: str, size: int) -> None:
    guest: RowGuest = request.getfixturevalue(which)
    with guest.tells(), guest.nothing_leaves():
        assert " 0% packet loss" in ping(guest, GATEWAY, size)


@pytest.mark.parametrize("size", [56, 1472, 60_000])
def test_E4_a_listed_address_is_really_pinged(guest: RowGuest, internet: OpenInternet, size: int) -> None:
    sent = internet.departures()["Icmp OutEchos"]
    opened = {"event": "flow_opened", "protocol": "icmp", "dialled": f"{SITE_TOO}:0", "rule": SITE_TOO}
    with guest.tells(opened):
        assert " 0% packet loss" in ping(guest, SITE_TOO, size)
    assert internet.departures()["Icmp OutEchos"] == sent + 1


def test_E4_under_deny_all_nothing_else_goes(denied: RowGuest) -> None:
    """The control of that guest: neither names nor addresses."""
    assert denied.resolved("real.test") == ["0.0.0.0"]
    with denied.turned_away("syn", "no-rule", "reset", destination=f"{SITE}:80"):
        assert denied.error(SITE, 80) == "ConnectionRefusedError"


# -- E5: ICMP as a channel, and ICMP that lies -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1472, 8000, 65_507])
def test_E5_a_tunnel_in_the_payload_of_pings(guest: RowGuest, size: int) -> None:
    """Of any size, in as many fragments as it takes: one refusal."""
    address = guest.elsewhere()
    with guest.turned_away("echo", "no-rule", "unreachable", destination=f"{address}:0"):
        assert "Packet filtered" in ping(guest, address, size)


def test_E5_a_flood_of_pings_is_told_by_orders_of_magnitude(guest: RowGuest) -> None:
    address = guest.elsewhere()
    frame = framed(IP(src=GUEST, dst=address) / ICMP(type=8, id=7) / Raw(b"data"))
    expected = [{"event": "flow_refused", "reason_code": "no-rule", "total": total} for total in (1, 10, 100, 1000)]
    with guest.tells(*expected), guest.nothing_leaves():
        heard = guest.answers(*[frame] * 1000)
    assert {(frame[ICMP].type, frame[ICMP].code) for frame in heard} == {(3, 13)}


LIES = {
    "unreachable": ICMP(type=3, code=1),
    "port-unreachable": ICMP(type=3, code=3),
    "fragmentation-needed": ICMP(type=3, code=4, nexthopmtu=68),
    "source-quench": ICMP(type=4),
    "redirect": ICMP(type=5, code=1, gw="192.168.127.66"),
    "time-exceeded": ICMP(type=11),
}


@pytest.mark.parametrize("kind", LIES)
def test_E5_errors_from_the_guest_are_applied_to_nothing(guest: RowGuest, kind: str) -> None:
    """Each quotes a segment of an open connection, as a router would; the connection does not notice."""
    with guest.reaches(f"{SITE_TOO}:8080", "address-rule"):
        connection = guest.connect(SITE_TOO, 8080)
        assert connection.recv(100) == BANNER
    with connection:
        quoted = IP(src=SITE_TOO, dst=GUEST) / TCP(sport=8080, dport=connection.getsockname()[1], flags="A")
        lie = IP(src=GUEST, dst=GATEWAY) / LIES[kind] / Raw(bytes(quoted)[:28])
        guest.dropped("icmp-type" if kind in {"source-quench", "redirect"} else "icmp-error-from-guest", lie)
        data = bytes(range(256)) * 64
        connection.sendall(data)
        back = b""
        while len(back) < len(data):
            back += connection.recv(65_536)
        assert back == data


def test_E5_other_messages_are_dropped(guest: RowGuest) -> None:
    """Router advertisements and solicitations, timestamps, address masks."""
    kinds = (9, 10, 13, 17)
    guest.dropped("icmp-type", *(IP(src=GUEST, dst=SITE_TOO) / ICMP(type=kind) / Raw(bytes(20)) for kind in kinds))


def test_E5_answers_to_no_question(guest: RowGuest) -> None:
    guest.dropped("icmp-unasked-reply", IP(src=GUEST, dst=SITE_TOO) / ICMP(type=0, id=7, seq=1) / Raw(b"abc"))


# -- E6: other IP protocols ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [4, 41, 47, 50, 51, 132], ids=["IPIP", "6in4", "GRE", "ESP", "AH", "SCTP"])
@pytest.mark.parametrize("address", [SITE_TOO, ATTACKER], ids=["listed", "not-listed"])
def test_E6_other_protocols(guest: RowGuest, number: int, address: str) -> None:
    """By a raw socket of the kernel's, which is told at once; it does not matter what is listed."""
    inner = bytes(IP(src=GUEST, dst=address) / UDP(dport=5000) / Raw(b"inside"))
    with guest.namespace.socket(socket.SOCK_RAW, protocol=number) as sender:
        sender.settimeout(20)
        sender.connect((address, 0))
        with guest.turned_away(
            "datagram", "ip-protocol", "unreachable", protocol=str(number), destination=f"{address}:0"
        ):
            sender.send(inner)
            with pytest.raises(OSError, match="Errno") as caught:
                sender.recv(100)
    assert caught.value.errno == errno.ENOPROTOOPT, "protocol unreachable, in the kernel's words"


def test_E6_igmp_is_met_with_silence(guest: RowGuest) -> None:
    """The kernel reports a group it joins; nobody is told of an error in a packet to a group."""

    def reported() -> list[object]:
        return [event["destination"] for event in guest.events(["flow_refused"])]

    guest.drain()
    guest.hear()
    with (
        guest.turned_away("datagram", "ip-protocol", "nothing", protocol="2", destination="224.0.0.22:0"),
        guest.namespace.socket(socket.SOCK_DGRAM) as member,
    ):
        member.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            struct.pack("4s4s", socket.inet_aton("239.1.2.3"), socket.inet_aton(GUEST)),
        )
        wait_until(lambda: "224.0.0.22:0" in reported(), "the kernel's report")
    assert guest.hear() == []
