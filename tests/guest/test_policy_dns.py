"""Conformance class B with dig in a real guest: which names, types and answers, and who else may be asked.

Each row is held to what dig says, to what upstream is asked and what leaves the host, and to one event.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, TCP

from .open_internet import ATTACKER, PRIVATE, SITE, SITE_TOO, OpenInternet
from .row_guest import GATEWAY, GUEST, RowGuest, start_row_guest
from .zone_authority import ZoneAuthority

pytestmark = pytest.mark.guest("ip", "openssl", "curl", "dig")
RULES = (
    "example.com,*.example.org,xn--bcher-kva.example,_dmarc.example.com,pinned.example.com:2222,"
    "rebind.example.com:2222,mixed.example.com:2222,chain.example.com:2222,flap.example.com:2222,real.test"
)
BIG = [f'example.com 60 TXT "{number:04d}{"x" * 200}"' for number in range(30)]


def zone() -> dict[tuple[str, str], list[str]]:
    return {
        ("real.test", "A"): [f"real.test 60 A {SITE}"],
        ("example.com", "A"): [f"example.com 60 A {SITE}"],
        ("example.com", "MX"): ["example.com 60 MX 10 mx.example.com."],
        ("example.com", "TXT"): BIG,
        ("example.com", "SRV"): ["example.com 60 SRV 0 0 443 a.example.com."],
        ("example.com", "CNAME"): ["example.com 60 CNAME www.example.net."],
        ("_dmarc.example.com", "TXT"): ['_dmarc.example.com 60 TXT "v=DMARC1"'],
        ("a.example.org", "A"): [f"a.example.org 60 A {SITE}"],
        ("a.b.c.example.org", "A"): [f"a.b.c.example.org 60 A {SITE_TOO}"],
        ("xn--bcher-kva.example", "A"): [f"xn--bcher-kva.example 60 A {SITE}"],
        ("pinned.example.com", "A"): [f"pinned.example.com 60 A {SITE}"],
        ("rebind.example.com", "A"): [f"rebind.example.com 60 A {PRIVATE}"],
        ("mixed.example.com", "A"): ["mixed.example.com 60 A 10.0.0.5", f"mixed.example.com 60 A {SITE}"],
        ("chain.example.com", "A"): [
            "chain.example.com 60 CNAME cdn.example.net.",
            f"cdn.example.net 60 A {SITE}",
            f"other.example.org 60 A {ATTACKER}",
        ],
        ("flap.example.com", "A"): [f"flap.example.com 0 A {SITE}"],
        ("example.com", "HTTPS"): [f"example.com 60 HTTPS 1 . alpn=h2 ipv4hint={ATTACKER}"],
    }


@pytest.fixture(scope="module")
def authority(internet: OpenInternet) -> Iterator[ZoneAuthority]:
    made = ZoneAuthority(internet.host, zone())
    yield made
    made.close()


@pytest.fixture(scope="module")
def guest(internet: OpenInternet, authority: ZoneAuthority) -> Iterator[RowGuest]:
    made = start_row_guest(internet, "--allow-net", RULES, "--dns-upstream", authority.option, upstream=False)
    yield made
    made.close()


@dataclass
class Reply:
    """What dig prints, taken apart. `answers`: `TYPE DATA`."""

    status: str
    flags: list[str]
    answers: list[str]
    text: str


def dig(guest: RowGuest, *arguments: str) -> Reply:
    done = guest.namespace.run("dig", "+time=10", "+tries=1", *arguments, check=False)
    text = done.stdout + done.stderr
    status = re.search(r"status: (\w+)", text)
    flags = re.search(r";; flags: ([a-z ]*);", text)
    section = text.partition(";; ANSWER SECTION:\n")[2].partition("\n\n")[0]
    answers = [" ".join(line.split()[3:]) for line in section.splitlines()]
    return Reply(status[1] if status else "", flags[1].split() if flags else [], answers, text)


def event(name: str, verdict: str, reason: str, source: str = "policy", **fields: object) -> dict[str, object]:
    """A question's event, as it is told."""
    return {"event": "dns", "name": name, "verdict": verdict, "reason_code": reason, "source": source} | fields


def sunk(guest: RowGuest, authority: ZoneAuthority, name: str, kind: str = "A") -> None:
    """(G) The sinkhole, (D) nobody is asked, (E) one refusal."""
    asked = len(authority.asked)
    refused = event(name, "refused", "name-not-allowed", qtype=kind, rcode="NOERROR")
    with guest.tells(refused), guest.nothing_leaves():
        reply = dig(guest, "+notcp", name, kind)  # for ANY it would begin with TCP
    answers = {"A": ["A 0.0.0.0"], "ANY": ['HINFO "RFC8482" ""']}.get(kind, [])
    assert (reply.status, reply.answers) == ("NOERROR", answers)
    assert "AUTHORITY: 0" in reply.text
    assert "name-not-allowed" in reply.text, "the extended error says why"
    assert len(authority.asked) == asked


# -- which names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "NULL", "CNAME", "SRV", "HTTPS", "SVCB", "MX", "ANY"])
def test_B1_B10_B16_an_unlisted_name_of_any_type(guest: RowGuest, authority: ZoneAuthority, kind: str) -> None:
    """NOERROR, also for AAAA: a client would believe NXDOMAIN for A too."""
    sunk(guest, authority, f"exfiltrated-{kind.lower()}.attacker.example", kind)


@pytest.mark.parametrize(
    "name", ["evilexample.com", "example.com.evil.org", "com", "example.co", "xn--example.com", "sub.example.com"]
)
def test_B2_suffix_traps(guest: RowGuest, authority: ZoneAuthority, name: str) -> None:
    sunk(guest, authority, name)


@pytest.mark.parametrize("name", ["EXAMPLE.com", "example.com.", "eXaMpLe.CoM"])
def test_B2_spellings_of_a_listed_name(guest: RowGuest, name: str) -> None:
    with guest.tells({"event": "dns", "name": name.rstrip("."), "verdict": "allowed", "rule": "example.com"}):
        reply = dig(guest, name)
    assert reply.answers == [f"A {SITE}"]
    assert f"\n{name.rstrip('.')}.\t" in reply.text, "spelled as it was"


@pytest.mark.parametrize(
    ("name", "kind", "rule", "data"),
    [
        ("_dmarc.example.com", "TXT", "_dmarc.example.com", 'TXT "v=DMARC1"'),
        ("xn--bcher-kva.example", "A", "xn--bcher-kva.example", f"A {SITE}"),
        ("bücher.example", "A", "xn--bcher-kva.example", f"A {SITE}"),
    ],
    ids=["underscore", "A-label", "U-label"],
)
def test_B2_underscores_and_idna(guest: RowGuest, name: str, kind: str, rule: str, data: str) -> None:
    with guest.tells({"event": "dns", "name": rule, "verdict": "allowed", "rule": rule}):
        assert dig(guest, "+idnin", "+noidnout", name, kind).answers == [data]


def test_B3_a_wildcard_is_any_depth_and_not_the_apex(guest: RowGuest, authority: ZoneAuthority) -> None:
    for name, address in (("a.example.org", SITE), ("a.b.c.example.org", SITE_TOO)):
        with guest.tells(event(name, "allowed", "name-rule", "upstream", rule="*.example.org")):
            assert dig(guest, name).answers == [f"A {address}"]
        assert authority.asked[-1] == f"udp {name} A"
    sunk(guest, authority, "example.org")


# -- who else may be asked -------------------------------------------------------------------------------------------


def test_B4_direct_resolver(guest: RowGuest) -> None:
    """Neither let through nor answered in its name: refused at once, by UDP and TCP."""
    with guest.turned_away("datagram", "no-rule", "unreachable", protocol="udp", destination="8.8.8.8:53"):
        reply = dig(guest, "@8.8.8.8", "example.com")
    assert "connection refused" in reply.text
    with guest.turned_away("syn", "no-rule", "reset", protocol="tcp", destination="8.8.8.8:53"):
        reply = dig(guest, "@8.8.8.8", "+tcp", "example.com")
    assert "connection refused" in reply.text


@pytest.mark.parametrize(
    ("address", "reason"), [("1.1.1.1", "no-rule"), (GATEWAY, "unserved-port")], ids=["resolver", "gateway"]
)
def test_B6_dns_over_tls(guest: RowGuest, address: str, reason: str) -> None:
    with guest.turned_away("syn", reason, "reset", destination=f"{address}:853"):
        assert "connection refused" in dig(guest, f"@{address}", "+tls", "example.com").text


@pytest.mark.parametrize(
    ("address", "port", "step", "reason", "told"),
    [
        ("1.1.1.1", 853, "datagram", "no-rule", "unreachable"),
        ("208.67.220.220", 5443, "datagram", "no-rule", "unreachable"),
        ("208.67.220.220", 443, "quic", "not-quic", "unreachable"),
        (GATEWAY, 5353, "datagram", "unserved-port", "unreachable"),
        ("224.0.0.251", 5353, "datagram", "group-address", "nothing"),
        ("224.0.0.252", 5355, "datagram", "group-address", "nothing"),
        ("192.168.127.255", 137, "datagram", "group-address", "nothing"),
    ],
    ids=["DoQ", "DNSCrypt", "DNSCrypt-443", "mDNS-unicast", "mDNS", "LLMNR", "NetBIOS"],
)
def test_B6_other_ways_to_ask(guest: RowGuest, address: str, port: int, step: str, reason: str, told: str) -> None:
    """Where somebody could answer the kernel is told at once; in a group nobody does."""
    with guest.namespace.socket(socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.connect((address, port))
        with guest.turned_away(step, reason, told, destination=f"{address}:{port}"):
            sender.send(b"who is evil.local?")
            guest.drain()
            sender.setblocking(False)
            with pytest.raises(ConnectionRefusedError if told == "unreachable" else BlockingIOError):
                sender.recv(100)


# -- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("MX", "MX 10 mx.example.com."),
        ("SRV", "SRV 0 0 443 a.example.com."),
        ("CNAME", "CNAME www.example.net."),
    ],
)
def test_B10_types_of_an_allowed_name_are_asked(
    guest: RowGuest, authority: ZoneAuthority, kind: str, data: str
) -> None:
    with guest.tells(event("example.com", "allowed", "name-rule", "upstream", qtype=kind, rule="example.com")):
        assert dig(guest, "example.com", kind).answers == [data]
    assert authority.asked[-1] == f"udp example.com {kind}"


@pytest.mark.parametrize(
    ("kind", "reason", "answers"),
    [
        ("HTTPS", "service-binding-withheld", []),
        ("SVCB", "service-binding-withheld", []),
        ("ANY", "any-not-forwarded", ['HINFO "RFC8482" ""']),
    ],
)
def test_B10_types_that_are_not(
    guest: RowGuest, authority: ZoneAuthority, kind: str, reason: str, answers: list[str]
) -> None:
    """ECH keys and address hints would hide the name or go around it; ANY is answered as RFC 8482 says."""
    asked = len(authority.asked)
    with guest.tells(event("example.com", "allowed", reason, qtype=kind)), guest.nothing_leaves():
        reply = dig(guest, "+notcp", "example.com", kind)
    assert (reply.status, reply.answers) == ("NOERROR", answers)
    assert len(authority.asked) == asked


# -- what upstream says ----------------------------------------------------------------------------------------------


def test_B12_rebinding(guest: RowGuest, authority: ZoneAuthority) -> None:
    """An allowed name that leads inside leads nowhere, and opens nothing."""
    refused = event("rebind.example.com", "refused", "private-address", "upstream", rule="rebind.example.com:2222")
    with guest.tells(refused):
        reply = dig(guest, "rebind.example.com")
    assert (reply.status, reply.answers) == ("NOERROR", [])
    with guest.turned_away("syn", "private-address", "reset", destination=f"{PRIVATE}:2222"):
        assert guest.error(PRIVATE, 2222) == "ConnectionRefusedError"
    for address in ("127.0.0.1", "169.254.169.254", "0.0.0.0", "192.168.127.254", "100.64.0.1", "224.0.0.1"):
        name = f"to-{address.replace('.', '-')}.example.org"
        authority.records[name, "A"] = [f"{name} 60 A {address}"]
        with guest.tells({"event": "dns", "name": name, "verdict": "refused", "source": "upstream"}):
            assert dig(guest, name).answers == []


def test_B12_of_a_mixed_answer_the_public_part_stays(guest: RowGuest) -> None:
    with guest.tells(event("mixed.example.com", "allowed", "private-address-removed", "upstream")):
        assert dig(guest, "mixed.example.com").answers == [f"A {SITE}"]
    with guest.turned_away("syn", "private-address", "reset", destination="10.0.0.5:2222"):
        assert guest.error("10.0.0.5", 2222) == "ConnectionRefusedError"
    with guest.reaches(f"{SITE}:2222", "answered-name", rule="mixed.example.com:2222"):
        guest.ask(SITE, b"", 2222)


def test_B13_only_the_chain_from_the_question_counts(guest: RowGuest) -> None:
    with guest.tells(event("chain.example.com", "allowed", "name-rule", "upstream")):
        reply = dig(guest, "chain.example.com")
    assert reply.answers == ["CNAME cdn.example.net.", f"A {SITE}"]
    assert "other.example.org" not in reply.text
    with guest.turned_away("syn", "no-rule", "reset", destination=f"{ATTACKER}:2222"):
        assert guest.error(ATTACKER, 2222) == "ConnectionRefusedError"


def test_B14_answers_that_change_and_live_for_no_time(guest: RowGuest, authority: ZoneAuthority) -> None:
    """Between look-up and connection the address changes: both work, each as it was answered."""
    for address in (SITE, SITE_TOO):
        authority.records["flap.example.com", "A"] = [f"flap.example.com 0 A {address}"]
        with guest.tells(event("flap.example.com", "allowed", "name-rule", "upstream")):
            assert dig(guest, "flap.example.com").answers == [f"A {address}"]
    for address in (SITE, SITE_TOO):
        with guest.reaches(f"{address}:2222", "answered-name"):
            guest.ask(address, b"", 2222)


def test_B17_the_sinkholes_address(guest: RowGuest) -> None:
    """The question's event names the name. 0.0.0.0 is the guest's loopback to its kernel, and refused on the wire."""
    refused = {"event": "dns", "name": "sunk.evil.example", "verdict": "refused"}
    with guest.tells({**refused, "qtype": "A"}, {**refused, "qtype": "AAAA"}), guest.nothing_leaves():
        assert guest.curl("http://sunk.evil.example/")[0] == 7, "curl: could not connect, at once"
    guest.still_works()
    with guest.turned_away("syn", "forbidden-address", "reset", destination="0.0.0.0:443"):
        (reset,) = guest.answers(IP(src=GUEST, dst="0.0.0.0") / TCP(sport=40_000, dport=443, flags="S", seq=1))
    assert (str(reset[TCP].flags), reset[TCP].ack) == ("RA", 2)
