"""What boxlite promised of its network allowlist (its pull requests 410 and 411) holds here, with a real guest.

Full access by default; a listed host resolves and is reached, others resolve to exactly 0.0.0.0; wildcards by any depth
but not the apex; rules for addresses and networks; direct connections to addresses refused; HTTPS allowed by SNI and
HTTP by Host; the gateway's DNS answers under a list; a port that no rule covers is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .open_internet import ATTACKER, BANNER, PRIVATE, SITE, SITE_TOO, Guest, OpenInternet, start_guest

pytestmark = pytest.mark.guest("ip", "openssl", "curl", "dig")

Start = Callable[..., Guest]


@pytest.fixture(scope="module")
def start(internet: OpenInternet) -> Iterator[Start]:
    """`start(RULE, ...)`: the guest under these rules, made once; without rules, under no list."""
    guests: dict[tuple[str, ...], Guest] = {}

    def get(*rules: str) -> Guest:
        if rules not in guests:
            guests[rules] = start_guest(internet, *(["--allow-net", ",".join(rules)] if rules else []))
        return guests[rules]

    yield get
    for guest in guests.values():
        guest.network.close()


def dig(guest: Guest, *arguments: str) -> str:
    """What dig prints of the answers."""
    return guest.namespace.run("dig", "+short", "+time=5", "+tries=1", *arguments).stdout.strip()


def fetched(guest: Guest, url: str, *arguments: str) -> str:
    """The page, or curl's exit status in words."""
    status, said = guest.curl(*arguments, url)
    return said.strip() if status == 0 else f"exit {status}"


def test_full_access_by_default(start: Start) -> None:
    guest = start()
    assert dig(guest, "evil.test") == ATTACKER
    assert fetched(guest, "http://evil.test/") == f"{ATTACKER} for evil.test"
    assert fetched(guest, f"http://{ATTACKER}/") == f"{ATTACKER} for {ATTACKER}"
    assert fetched(guest, "https://real.test/") == f"{SITE} for real.test"
    for address, port in ((ATTACKER, 22), (PRIVATE, 8080)):
        with guest.connect(address, port) as connection:
            assert connection.recv(100) == BANNER
    opened = guest.told(5)
    assert {event["reason_code"] for event in opened} == {"no-list"}


def test_a_listed_host_resolves_and_others_to_nowhere(start: Start, internet: OpenInternet) -> None:
    guest = start("real.test")
    before = len(internet.asked())
    assert dig(guest, "real.test") == SITE
    assert dig(guest, "REAL.test.") == SITE
    for name in ("evil.test", "sub.real.test", "test", "realxtest", "nonexistent.example"):
        assert dig(guest, name) == "0.0.0.0", name
    whole = guest.namespace.run("dig", "evil.test").stdout
    assert "status: NOERROR" in whole
    assert "ANSWER: 1" in whole
    assert set(internet.asked()[before:]) <= {"real.test A", "real.test AAAA"}, "no other name left"


def test_the_gateways_dns_answers_under_a_list(start: Start) -> None:
    guest = start("real.test")
    gateway = guest.network.addresses.gateway
    assert dig(guest, "+tcp", f"@{gateway}", "real.test") == SITE
    assert dig(guest, "+tcp", f"@{gateway}", "evil.test") == "0.0.0.0"
    assert dig(guest, "host.containers.internal") == guest.network.addresses.host
    assert dig(guest, "AAAA", "evil.test") == ""
    assert {event["reason_code"] for event in guest.told(2)} == {"gateway-service"}


def test_wildcards(start: Start) -> None:
    guest = start("*.wild.test")
    assert dig(guest, "a.wild.test") == SITE
    assert dig(guest, "deep.a.wild.test") == SITE_TOO
    assert dig(guest, "wild.test") == "0.0.0.0"
    assert dig(guest, "notwild.test") == "0.0.0.0"
    assert fetched(guest, "http://a.wild.test/") == f"{SITE} for a.wild.test"
    assert fetched(guest, "https://deep.a.wild.test/") == f"{SITE_TOO} for deep.a.wild.test"
    guest.told(2)
    with guest.refused("http", "name-not-allowed", "forbidden", name="wild.test"):
        assert "wild.test is refused" in fetched(guest, "http://wild.test/", "--resolve", f"wild.test:80:{SITE}")


@pytest.mark.parametrize("rule", [SITE, f"{SITE}/32", "93.184.216.0/24"])
def test_addresses_and_networks(start: Start, rule: str) -> None:
    guest = start(rule)
    with guest.reaches(f"{SITE}:80", "address-rule", rule=rule):
        assert fetched(guest, f"http://{SITE}/") == f"{SITE} for {SITE}"
    with guest.reaches(f"{SITE}:22", "address-rule", rule=rule), guest.connect(SITE, 22) as connection:
        assert connection.recv(100) == BANNER
    for port in (80, 443, 22):
        with guest.refused("syn", "no-rule", "reset", destination=f"{ATTACKER}:{port}"):
            assert guest.error(ATTACKER, port) == "ConnectionRefusedError"
    assert dig(guest, "real.test") == "0.0.0.0", "an address opens no name"


def test_a_mixed_list(start: Start) -> None:
    guest = start("real.test", "*.wild.test", "10.0.0.0/8", f"{SITE_TOO}:8443")
    with guest.reaches(f"{SITE}:443", "name-rule", rule="real.test"):
        assert fetched(guest, "https://real.test/") == f"{SITE} for real.test"
    with guest.reaches(f"{SITE}:80", "name-rule", rule="*.wild.test"):
        assert fetched(guest, "http://a.wild.test/") == f"{SITE} for a.wild.test"
    with guest.reaches(f"{PRIVATE}:80", "address-rule", rule="10.0.0.0/8"):
        assert fetched(guest, f"http://{PRIVATE}/") == f"{PRIVATE} for {PRIVATE}"
    with guest.reaches(f"{SITE_TOO}:8443", "address-rule"), guest.connect(SITE_TOO, 8443) as connection:
        assert connection.recv(100) == BANNER
    with guest.refused("syn", "no-rule", "reset"):
        assert guest.error(ATTACKER, 22) == "ConnectionRefusedError"


def test_direct_connections_to_addresses(start: Start) -> None:
    """By address alone nothing is reached, not even the listed host's own."""
    guest = start("real.test")
    for address in (SITE, ATTACKER):
        with guest.refused("syn", "no-rule", "reset", destination=f"{address}:22"):
            assert guest.error(address, 22) == "ConnectionRefusedError"
        with guest.refused("tls", "no-name", "alert", destination=f"{address}:443"):
            assert fetched(guest, f"https://{address}/", "-k") == "exit 35"
        with guest.refused("http", "host-ip-literal", "forbidden", destination=f"{address}:80"):
            assert "403" in fetched(guest, f"http://{address}/", "-w", "%{http_code}")
    with guest.refused("syn", "private-address", "reset"):
        assert guest.error(PRIVATE, 80) == "ConnectionRefusedError"


def test_https_by_sni_and_http_by_host(start: Start) -> None:
    guest = start("real.test")
    with guest.reaches(f"{SITE}:443", "name-rule", name="real.test", name_source="sni"):
        assert fetched(guest, "https://real.test/") == f"{SITE} for real.test"
    with guest.reaches(f"{SITE}:80", "name-rule", name="real.test", name_source="host"):
        assert fetched(guest, "http://real.test/") == f"{SITE} for real.test"
    with guest.refused("tls", "name-not-allowed", "alert", name="evil.test"):
        assert fetched(guest, "https://evil.test/", "-k", "--resolve", f"evil.test:443:{ATTACKER}") == "exit 35"
    with guest.refused("http", "name-not-allowed", "forbidden", name="evil.test"):
        fetched(guest, "http://evil.test/", "--resolve", f"evil.test:80:{ATTACKER}")


def test_a_port_that_no_rule_covers(start: Start) -> None:
    guest = start("real.test:443", "shell.test:2222")
    with guest.reaches(f"{SITE}:443", "name-rule", rule="real.test:443"):
        assert fetched(guest, "https://real.test/") == f"{SITE} for real.test"
    for port in (80, 8443, 22):
        with guest.refused("syn", "no-rule", "reset", destination=f"{SITE}:{port}"):
            assert fetched(guest, f"http://real.test:{port}/") == "exit 7"
    assert dig(guest, "shell.test") == SITE
    with (
        guest.reaches(f"{SITE}:2222", "answered-name", rule="shell.test:2222"),
        guest.connect(SITE, 2222) as connection,
    ):
        assert connection.recv(100) == BANNER
