"""Conformance class A and C17 with a real guest: addresses, the host and the gateway, names on other ports.

Each refusal is held to three things: the program's own outcome, that no connection was begun by the gateway (the
kernel's count) nor arrived anywhere (every address of this Internet is listened on), and exactly one event.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import wait_until
from .open_internet import (
    ATTACKER,
    AZURE,
    BANNER,
    CGNAT,
    METADATA,
    PRIVATE,
    RULES,
    SITE,
    SITE_TOO,
    Guest,
    OpenInternet,
    request,
    start_guest,
)

pytestmark = pytest.mark.guest("ip", "openssl", "curl")


@pytest.fixture(scope="module")
def guest(internet: OpenInternet) -> Iterator[Guest]:
    """Under RULES."""
    made = start_guest(internet, "--allow-net", RULES)
    yield made
    made.network.close()


@pytest.fixture(scope="module")
def synthetic(internet: OpenInternet) -> Iterator[Guest]:
    made = start_guest(internet, "--allow-net", RULES, "--dns-answers", "synthetic")
    yield made
    made.network.close()


# -- A ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port", "reason"),
    [
        (PRIVATE, 443, "private-address"),
        (PRIVATE, 22, "private-address"),
        ("192.168.1.1", 80, "private-address"),
        (METADATA, 80, "metadata"),
        (METADATA, 8080, "metadata"),
        (AZURE, 80, "metadata"),
        (CGNAT, 443, "metadata"),
        ("100.64.0.1", 443, "cgnat-address"),
        ("198.18.0.1", 443, "reserved-address"),
        (ATTACKER, 22, "no-rule"),
        (SITE, 8443, "no-rule"),
    ],
)
def test_A1_A3_A4_A5_addresses(guest: Guest, address: str, port: int, reason: str) -> None:
    with guest.refused("syn", reason, "reset", destination=f"{address}:{port}"):
        assert guest.error(address, port) == "ConnectionRefusedError"


def test_A8_the_gateways_unserved_ports(guest: Guest) -> None:
    """The host listens on every address, 127.0.0.1 among them; the gateway's is no way there."""
    gateway = guest.network.addresses.gateway
    for port in (22, 80, 2222):
        with guest.refused("syn", "unserved-port", "reset", destination=f"{gateway}:{port}"):
            assert guest.error(gateway, port) == "ConnectionRefusedError"


def test_A9_the_host_without_opt_in(guest: Guest) -> None:
    host = guest.network.addresses.host
    assert guest.resolved("host.containers.internal") == [host]
    with guest.refused("syn", "private-address", "reset", destination=f"{host}:80"):
        status, _ = guest.curl("http://host.containers.internal/")
        assert status == 7


def test_A9_the_host_with_opt_in(internet: OpenInternet) -> None:
    one = start_guest(internet, "--allow-net", "@host:80,0.0.0.0/0:8080")
    host = one.network.addresses.host
    with one.reaches("127.0.0.1:80", "address-rule", rule="@host:80", destination=f"{host}:80"):
        assert one.curl(f"http://{host}/")[1] == f"127.0.0.1 for {host}\n"
    with one.refused("syn", "port-not-covered", "reset", rule="@host:80"):
        assert one.error(host, 8080) == "ConnectionRefusedError"
    one.network.close()


@pytest.mark.parametrize("url", ["http://0x0a000007/", "http://012.0.0.7/", "http://167772167/"])
def test_A11_addresses_in_every_base(internet: OpenInternet, url: str) -> None:
    """curl reads them as 10.0.0.7 itself."""
    one = start_guest(internet, "--allow-net", "real.test")
    with one.refused("syn", "private-address", "reset", destination=f"{PRIVATE}:80"):
        assert one.curl(url)[0] == 7
    with one.refused("http", "host-ip-literal", "forbidden", destination=f"{SITE}:80"):
        host = url.removeprefix("http://").rstrip("/")
        assert b"403" in one.ask(SITE, request(f"Host: {host}"))
    one.network.close()


def test_A13_a_port_of_an_address_rule(guest: Guest) -> None:
    with (
        guest.reaches(f"{SITE_TOO}:8080", "address-rule", rule=f"{SITE_TOO}:8080"),
        guest.connect(SITE_TOO, 8080) as one,
    ):
        assert one.recv(100) == BANNER
    with guest.refused("syn", "port-not-covered", "reset", rule=f"{SITE_TOO}:8080"):
        assert guest.error(SITE_TOO, 2222) == "ConnectionRefusedError"


# -- C17: names on other ports ----------------------------------------------------------------------------------------


def test_C17_a_banner(guest: Guest) -> None:
    """The server speaks first; the address is open because this guest was told it for the name."""
    with guest.refused("syn", "no-rule", "reset", destination=f"{SITE}:2222"):
        assert guest.error(SITE, 2222) == "ConnectionRefusedError"
    assert guest.resolved("shell.test") == [SITE]
    with (
        guest.reaches(f"{SITE}:2222", "answered-name", name="shell.test", rule="shell.test:2222", name_source="dns"),
        guest.connect(SITE, 2222) as connection,
    ):
        assert connection.recv(100) == BANNER
        connection.sendall(b"SSH-2.0-client\r\n")
        assert connection.recv(100) == b"SSH-2.0-client\r\n"
    with guest.refused("syn", "no-rule", "reset", destination=f"{SITE}:22"):
        assert guest.error(SITE, 22) == "ConnectionRefusedError"
    with guest.refused("syn", "no-rule", "reset", destination=f"{ATTACKER}:2222"):
        assert guest.error(ATTACKER, 2222) == "ConnectionRefusedError"


def test_C17_synthetic_answers(synthetic: Guest) -> None:
    (address,) = synthetic.resolved("shell.test")
    assert address.startswith("198.18.")
    with (
        synthetic.reaches(f"{SITE}:2222", "name-rule", name="shell.test", name_source="synthetic"),
        synthetic.connect(address, 2222) as connection,
    ):
        assert connection.recv(100) == BANNER
    with synthetic.refused("syn", "port-not-covered", "reset", name="shell.test", destination=f"{address}:22"):
        assert synthetic.error(address, 22) == "ConnectionRefusedError"
    with synthetic.refused("syn", "no-rule", "reset", destination=f"{SITE}:2222"):
        assert synthetic.error(SITE, 2222) == "ConnectionRefusedError"
    with synthetic.reaches(f"{SITE}:443", "name-rule", name="real.test", name_source="synthetic"):
        assert synthetic.curl("https://real.test/")[1] == f"{SITE} for real.test\n"
    with synthetic.reaches(f"{SITE}:80", "name-rule", name="real.test", name_source="synthetic"):
        assert synthetic.curl("http://real.test/")[1] == f"{SITE} for real.test\n"


def test_C17_a_synthetic_address_and_another_name(synthetic: Guest) -> None:
    (address,) = synthetic.resolved("real.test")
    for url, status, told in (("https://other.test/", 35, "alert"), ("http://other.test/", 0, "forbidden")):
        port = 443 if told == "alert" else 80
        synthetic.told(0)
        assert synthetic.curl("--resolve", f"other.test:{port}:{address}", url)[0] == status
        opened, refused = synthetic.told(2)
        assert opened["event"] == "flow_opened"
        assert (refused["reason_code"], refused["told"]) == ("name-disagrees-with-address", told)


# -- I8 ---------------------------------------------------------------------------------------------------------------


def test_I8_a_storm_of_reloads(internet: OpenInternet, tmp_path: Path) -> None:
    """Good files and bad ones, faster than anybody reads them: the last good one is in force, live flows live on."""
    file = tmp_path / "policy.yaml"
    file.write_text(f"policy: {{allow_net: [real.test, '{SITE_TOO}:8080']}}")
    one = start_guest(internet, "--config", str(file))
    process = one.network.gateway.process
    with one.reaches(f"{SITE_TOO}:8080", "address-rule"):
        kept = one.connect(SITE_TOO, 8080)
    assert kept.recv(100) == BANNER
    for turn in range(150):
        rules = [f"'{SITE_TOO}:8080'", f"n{turn}.test", "'*.com'" if turn % 3 == 0 else "10.0.0.0/8"]
        file.write_text("policy: {allow_net: [" if turn % 5 == 0 else f"policy: {{allow_net: [{', '.join(rules)}]}}")
        process.signal(signal.SIGHUP)
        if turn % 50 == 0:
            kept.sendall(b"still here")
            assert kept.recv(100) == b"still here"
    file.write_text(f"policy: {{allow_net: [other.test, '{SITE_TOO}:8080', 10.1.0.0/16, 10.2.0.0/16]}}")
    process.signal(signal.SIGHUP)
    replaced = one.network.gateway.events
    wait_until(lambda: any(event["rules"] == 4 for event in replaced("policy_replaced")), "the last policy")
    events = one.network.gateway.events("policy_replaced")
    assert [event["generation"] for event in events] == list(range(2, len(events) + 2)), "each told once, in order"
    kept.sendall(b"still here")
    assert kept.recv(100) == b"still here"
    kept.close()
    with one.reaches(f"{SITE}:80", "name-rule", name="other.test"):
        assert one.curl("http://other.test/")[0] == 0
    with one.refused("http", "name-not-allowed", "forbidden", name="real.test"):
        assert "403" in one.curl("-w", "%{http_code}", "--resolve", f"real.test:80:{SITE}", "http://real.test/")[1]
    (refused,) = one.network.gateway.events("flow_refused")
    # The last file may have been read twice: by a reload that was asked for before it was written, too.
    last = {event["generation"] for event in replaced("policy_replaced") if event["rules"] == 4}
    assert refused["generation"] in last
    one.network.close()
