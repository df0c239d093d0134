"""Conformance classes C and D with real programs in a real guest: what they see, who is dialled, what is told.

Each refusal is held to three things: the program's own outcome, that no connection was begun by the gateway (the
kernel's count) nor arrived anywhere (every address of this Internet is listened on), and exactly one event.
"""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Iterator

import pytest

from .lab import closing_all
from .open_internet import (
    ATTACKER,
    FRAME,
    RULES,
    SITE,
    SITE_TOO,
    Guest,
    OpenInternet,
    read_all,
    request,
    start_guest,
)

pytestmark = pytest.mark.guest("ip", "openssl", "curl")

ALERT = b"\x15\x03\x03\x00\x02\x02\x70"


@pytest.fixture(scope="module")
def guest(internet: OpenInternet) -> Iterator[Guest]:
    """Under RULES."""
    made = start_guest(internet, "--allow-net", RULES)
    yield made
    made.network.close()


def context(internet: OpenInternet) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(internet.certificate))


# -- C1 to C8: TLS ----------------------------------------------------------------------------------------------------


def test_C1_python_to_the_attackers_address(guest: Guest, internet: OpenInternet) -> None:
    """The certificate fits: it is the real host that answers."""
    with (
        guest.reaches(f"{SITE}:443", "name-rule", name="real.test", name_source="sni", destination=f"{ATTACKER}:443"),
        guest.connect(ATTACKER, 443) as plain,
        context(internet).wrap_socket(plain, server_hostname="real.test") as secure,
    ):
        secure.sendall(request("Host: real.test"))
        assert secure.recv(65536).endswith(f"{SITE} for real.test\n".encode())


def test_C1_curl_to_the_attackers_address(guest: Guest) -> None:
    note = "address-not-answered"
    with guest.reaches(f"{SITE}:443", "name-rule", destination=f"{ATTACKER}:443", note=note):
        status, said = guest.curl("--resolve", f"real.test:443:{ATTACKER}", "https://real.test/")
    assert (status, said) == (0, f"{SITE} for real.test\n")


def test_C1_curl_as_usual(guest: Guest) -> None:
    with guest.reaches(f"{SITE}:443", "name-rule", destination=f"{SITE}:443", note=None):
        assert guest.curl("https://real.test/")[1] == f"{SITE} for real.test\n"


def test_C1_a_post_quantum_hello(guest: Guest) -> None:
    """The newest OpenSSL, whose hello does not fit one segment; the server's is older and takes another group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ssl_library = pytest.importorskip("OpenSSL.SSL")
    with (
        guest.reaches(f"{SITE}:443", "name-rule", name="real.test", destination=f"{SITE}:443") as visits,
        guest.connect(SITE, 443) as plain,
    ):
        plain.settimeout(None)
        secure = ssl_library.Connection(ssl_library.Context(ssl_library.TLS_CLIENT_METHOD), plain)
        secure.set_tlsext_host_name(b"real.test")
        secure.set_connect_state()
        secure.do_handshake()
        secure.sendall(request("Host: real.test"))
        assert secure.recv(65536).startswith(b"HTTP/1.1 200")
    assert visits[0].data


def s_client(guest: Guest, address: str, *arguments: str) -> str:
    command = ["openssl", "s_client", "-connect", f"{address}:443", "-CAfile", str(guest.internet.certificate)]
    done = guest.namespace.run(*command, *arguments, check=False, stdin="")
    return done.stdout + done.stderr


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_C1_openssl(guest: Guest, version: str) -> None:
    with guest.reaches(f"{SITE}:443", "name-rule", name="real.test"):
        said = s_client(guest, ATTACKER, "-servername", "Real.Test", version, "-verify_return_error")
    assert "Verify return code: 0" in said


@pytest.mark.parametrize(
    ("arguments", "reason", "fields"),
    [
        (["-servername", "evil.test"], "name-not-allowed", {"name": "evil.test", "name_source": "sni"}),
        (["-servername", "real.test.evil.test"], "name-not-allowed", {"name": "real.test.evil.test"}),
        (["-servername", "wild.test"], "name-not-allowed", {"name": "wild.test"}),
        (["-noservername"], "no-name", {}),
        (["-servername", SITE], "sni-ip-literal", {}),
        (["-servername", "real.test."], "sni-trailing-dot", {}),
        (["-servername", "a b.test"], "sni-whitespace", {}),
        (["-servername", "b\u00fccher.test"], "sni-not-ascii", {}),
        (["-servername", "shell.test"], "port-not-covered", {"rule": "shell.test:2222"}),
    ],
)
def test_C3_C6_openssl_with_another_name(
    guest: Guest, arguments: list[str], reason: str, fields: dict[str, str]
) -> None:
    with guest.refused("tls", reason, "alert", destination=f"{SITE}:443", **fields):
        said = s_client(guest, SITE, *arguments)
    assert "unrecognized name" in said, "OpenSSL's words for alert 112"


def test_C5_nothing_said(guest: Guest) -> None:
    """A port scan of a port where names are read: the handshake is completed, and then it is over."""
    with guest.refused("syn", "closed-without-name", "reset", destination=f"{ATTACKER}:443"):
        assert guest.ask(ATTACKER, b"", 443) == b"<reset>"


def test_C15_names_that_lead_inside(guest: Guest) -> None:
    """The guest is told of no address; asking for the name all the same leads nowhere, and the 403 says why."""
    for name, reason in (
        ("inside.test", "private-address"),
        ("metadata.test", "metadata"),
        ("loopback.test", "loopback-address"),
    ):
        assert guest.resolved(name) == []
        with guest.refused("dial", reason, "forbidden", name=name, rule=name, destination=f"{SITE}:80"):
            status, said = guest.curl("--resolve", f"{name}:80:{SITE}", f"http://{name}/")
        assert status == 0
        assert said == f"netstack: {name} is refused, no rule allows it ({reason})\n"
        with guest.refused("dial", reason, "alert", name=name, destination=f"{SITE}:443"):
            assert guest.curl("--resolve", f"{name}:443:{SITE}", f"https://{name}/")[0] == 35


def test_C16_an_unlisted_name_by_address(guest: Guest) -> None:
    with guest.refused("tls", "name-not-allowed", "alert", name="evil.test", destination=f"{ATTACKER}:443"):
        assert guest.curl("-k", "--resolve", f"evil.test:443:{ATTACKER}", "https://evil.test/")[0] == 35


# -- C2, C9 to C14: HTTP ----------------------------------------------------------------------------------------------


def test_C2_an_allowed_host_at_the_attackers_address(guest: Guest) -> None:
    with guest.reaches(f"{SITE}:80", "name-rule", name="real.test", name_source="host", destination=f"{ATTACKER}:80"):
        said = guest.curl("--resolve", f"real.test:80:{ATTACKER}", "http://real.test/")[1]
    assert said == f"{SITE} for real.test\n"


def test_C2_another_host_at_an_allowed_address(guest: Guest) -> None:
    with guest.refused("http", "name-not-allowed", "forbidden", name="evil.test", destination=f"{SITE}:80"):
        status, said = guest.curl("-w", "%{http_code}", "-H", "Host: evil.test", "http://real.test/")
    assert (status, said) == (0, "netstack: evil.test is refused, no rule allows it (name-not-allowed)\n403")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-H", f"Host: {SITE}"], "host-ip-literal"),
        (["-H", "Host:"], "host-missing"),
        (["-H", "Host: user@real.test"], "host-userinfo"),
        (["-H", "Host: real.test:8080"], "host-port"),
        (["--request-target", "http://evil.test/", "-H", "Host: real.test"], "host-differs-from-target"),
        (["-X", "get"], "http-method"),
        (["--http2-prior-knowledge"], "http2-prior-knowledge"),
        (["--http2"], "http-h2c"),
        (["--haproxy-protocol"], "proxy-protocol"),
    ],
)
def test_C9_C10_curl_says_strange_things(guest: Guest, arguments: list[str], reason: str) -> None:
    spoken = reason != "proxy-protocol"
    address = guest.elsewhere()
    with guest.refused("http" if spoken else "other", reason, "forbidden" if spoken else "reset"):
        resolve = ["--resolve", f"real.test:80:{address}", "-w", "%{http_code}"]
        status, said = guest.curl(*resolve, *arguments, "http://real.test/")
    if not spoken or reason == "http2-prior-knowledge":
        assert status, "nothing that this client could read"
    else:
        assert said.endswith(f"({reason})\n403")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\r\n" + request("Host: real.test"), "http-leading-newline"),
        (b"GET /\r\n", "http-0.9"),
        (request("Host: real.test").replace(b"\r\n", b"\n"), "http-bare-lf"),
        (request("Host: real.test", "Host: evil.test"), "host-duplicate"),
        (request("Host : real.test"), "http-space-before-colon"),
        (request("Host: real.test", " evil.test"), "http-obs-fold"),
    ],
)
def test_C9_C10_raw(guest: Guest, data: bytes, reason: str) -> None:
    with guest.refused("http", reason, "forbidden"):
        said = guest.ask(SITE, data)
    assert said.startswith(b"HTTP/1.1 403 ")
    assert said.endswith(f"({reason})\n".encode())


def test_C11_kept_alive(guest: Guest) -> None:
    """curl asks for three pages on one connection; the third is for another host."""
    guest.told(0)
    before = len(guest.internet.witness.visits)
    url = "http://real.test/"
    status, said = guest.curl(
        url, url, "--next", "-sS", "-w", "%{http_code} %{num_connects}", "-H", "Host: other.test", url
    )
    assert status == 0
    mine = f"{SITE} for real.test\n"
    assert said == f"{mine}{mine}netstack: other.test is refused, no rule allows it (host-changed)\n403 0"
    (visit,) = guest.internet.witness.visits[before:]
    assert visit.data.count(b"GET ") == 2
    assert b"other.test" not in visit.data
    opened, refused = guest.told(2)
    assert (opened["event"], opened["dialled"]) == ("flow_opened", f"{SITE}:80")
    assert (refused["event"], refused["reason_code"], refused["flow"]) == (
        "flow_refused",
        "host-changed",
        opened["flow"],
    )


def test_C12_connect(guest: Guest) -> None:
    """An allowed host, and the gateway itself, as a proxy."""
    with guest.refused("http", "http-connect", "forbidden"):
        assert guest.curl("-x", "http://real.test:80", "--noproxy", "", "https://evil.test/")[0] == 56
    gateway = guest.network.addresses.gateway
    with guest.refused("syn", "unserved-port", "reset", destination=f"{gateway}:3128"):
        assert guest.curl("-x", f"http://{gateway}:3128", "--noproxy", "", "https://evil.test/")[0] == 7


def test_C13_a_redirect(guest: Guest) -> None:
    """The next connection is judged: its name leads to 0.0.0.0, and by address it is refused."""
    with guest.reaches(f"{SITE}:80", "name-rule"):
        assert guest.curl("-L", "http://real.test/away")[0] == 7
    with guest.reaches(f"{SITE}:80", "name-rule"):
        assert guest.curl("http://real.test/away")[0] == 0
    guest.told(0)
    status, said = guest.curl("-L", "--resolve", f"evil.test:80:{ATTACKER}", "http://real.test/away")
    assert (status, said) == (0, "netstack: evil.test is refused, no rule allows it (name-not-allowed)\n")
    opened, refused = guest.told(2)
    assert (opened["dialled"], refused["destination"]) == (f"{SITE}:80", f"{ATTACKER}:80")


def test_C14_websocket(guest: Guest) -> None:
    upgrade = request(
        "Host: real.test", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )  # fmt: skip
    with guest.reaches(f"{SITE}:80", "name-rule") as visits, guest.connect(SITE, 80) as connection:
        connection.sendall(upgrade)
        assert connection.recv(65536).startswith(b"HTTP/1.1 101 ")
        for data in (FRAME, request("Host: evil.test"), bytes(range(256))):
            connection.sendall(data)
            assert connection.recv(65536) == data
    assert visits[0].data == upgrade + FRAME + request("Host: evil.test") + bytes(range(256))


# -- D ----------------------------------------------------------------------------------------------------------------


def hello_of(internet: OpenInternet, name: str | None) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO, bytes]:
    """A TLS client in memory, and its hello."""
    client = context(internet)
    client.check_hostname = name is not None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = client.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return connection, incoming, outgoing, outgoing.read()


def test_D1_one_byte_segments(guest: Guest, internet: OpenInternet) -> None:
    client, incoming, outgoing, hello = hello_of(internet, "real.test")
    with guest.reaches(f"{SITE}:443", "name-rule", name="real.test"), guest.connect(ATTACKER, 443) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in hello:
            connection.sendall(bytes((byte,)))
        while True:
            incoming.write(connection.recv(65536))
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        assert client.getpeercert()
        client.write(request("Host: real.test"))
        connection.sendall(outgoing.read())
        assert connection.recv(65536)
    with guest.refused("tls", "name-not-allowed", "alert", name="evil.test", destination=f"{SITE_TOO}:443"):
        assert guest.ask(SITE_TOO, hello_of(internet, "evil.test")[3], 443, piece=1).startswith(ALERT)


def test_D1_D9_a_request_in_pieces(guest: Guest) -> None:
    with guest.reaches(f"{SITE}:80", "name-rule") as visits:
        said = guest.ask(SITE, request("Host: real.test"), piece=1)
    assert said.endswith(f"{SITE} for real.test\n".encode())
    assert visits[0].data == request("Host: real.test")


@pytest.mark.parametrize(
    ("data", "step", "reason", "told"),
    [
        (b"SSH-2.0-client\r\n", "other", "not-http", b"<reset>"),
        (b"\x00" * 50, "other", "not-http", b"<reset>"),
        (b"\x80\x2e\x01\x03\x01" + bytes(40), "other", "not-http", b"<reset>"),
        (b"\x16GET / HTTP/1.1\r\nHost: real.test\r\n\r\n", "tls", "tls-version", ALERT),
        (b"\x16\x03\x01\x00\x00" * 10, "tls", "tls-record-length", ALERT),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "tls", "closed-without-name", ALERT),
    ],
)
def test_D5_D7_other_first_bytes(guest: Guest, data: bytes, step: str, reason: str, told: bytes) -> None:
    address = guest.elsewhere()
    with guest.refused(step, reason, "alert" if told == ALERT else "reset", destination=f"{address}:443"):
        assert guest.ask(address, data, 443).startswith(told)


def test_D6_tcp_fast_open(guest: Guest) -> None:
    """A kernel that would send data in its SYN learns from the SYN-ACK that it cannot, and loses nothing."""
    guest.namespace.sysctl("net.ipv4.tcp_fastopen", "5", check=False)
    with guest.reaches(f"{SITE}:80", "name-rule") as visits, guest.namespace.socket() as connection:
        connection.sendto(request("Host: real.test"), socket.MSG_FASTOPEN, (SITE, 80))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert visits[0].data == request("Host: real.test")


def test_D7_half_closed_after_the_request(guest: Guest) -> None:
    with guest.reaches(f"{SITE}:80", "name-rule"), guest.connect(SITE, 80) as connection:
        connection.sendall(request("Host: real.test"))
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).endswith(b"for real.test\n")


def test_D8_urgent_data(guest: Guest) -> None:
    with guest.reaches(f"{SITE}:80", "name-rule") as visits, guest.connect(SITE, 80) as connection:
        data = request("Host: real.test")
        connection.send(data[:30], socket.MSG_OOB)
        connection.sendall(data[30:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert visits[0].data == data, "in place, not out of band"


def test_many_at_once(guest: Guest) -> None:
    """Twenty allowed and twenty refused, interleaved: each gets its own verdict."""
    guest.told(0)
    connections = [guest.connect(SITE if turn % 2 else SITE_TOO, 80) for turn in range(40)]
    with closing_all(*connections):
        for turn, connection in enumerate(connections):
            connection.sendall(request(f"Host: {'two.test' if turn % 2 else f'no{turn}.test'}"))
        said = [connection.recv(65536)[:12] for connection in connections]
    assert said == [b"HTTP/1.1 403", b"HTTP/1.1 200"] * 20
    assert len(guest.told(20, "flow_opened")) == 20


def test_nothing_hangs(guest: Guest) -> None:
    """curl against what is refused ends at once."""
    address = guest.elsewhere()
    script = f"""
        set +e
        for port in 22 8443 5432; do curl -sS -m 20 telnet://{address}:$port </dev/null; echo $?; done
        curl -sSk -m 20 https://{address}/; echo $?
    """
    guest.told(0)
    with guest.nothing_dialled():
        assert guest.namespace.sh(script, timeout=15).stdout.split() == ["7", "7", "7", "35"]
    guest.told(4)
