"""What the first bytes of a flow say: real clients, crafted ones, and any bytes in any pieces.

Conformance C6 to C12, C14, D1, D2, D3, D5, D9, E3, as far as they are about reading.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire import hellos, quic_packets, quic_vectors
from wire.http_requests import HEAD, REAL, WEBSOCKET, get, written

from netstack.engine.peek import NEED_MORE, DatagramPeek, Named, Outcome, Refuse, RequestGuard, StreamPeek
from netstack.wire.http_head import RequestHead
from netstack.wire.tls_hello import ClientHello

Curl = Callable[..., bytes]


def peek(stream: bytes, *cuts: int, port: int = 443, strict_ech: bool = False) -> Outcome:
    """The outcome for a stream that arrives in pieces."""
    reader = StreamPeek(port, strict_ech=strict_ech)
    outcome: Outcome = NEED_MORE
    for start, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
        outcome = reader.feed(stream[start:end])
        assert outcome is NEED_MORE or outcome.protocol == reader.protocol
    return outcome


def peek_singly(stream: bytes, port: int = 443) -> Outcome:
    return peek(stream, *range(1, len(stream)), port=port)


def named(outcome: Outcome) -> tuple[str, str, str]:
    assert isinstance(outcome, Named), outcome
    return outcome.name, outcome.source, outcome.protocol


# Real clients: what they write into a unix socket


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    path = str(tmp_path / "server")
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(20)
        server.bind(path)
        server.listen()
        yield server, path


def first_words(server: socket.socket, command: list[str], enough: Callable[[bytes], bool]) -> bytes:
    """What a client says before it is cut off, as soon as that is enough."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(20)
                said = b""
                while not enough(said):
                    part = connection.recv(65536)
                    assert part, f"{command} says no more than {said!r}"
                    said += part
        finally:
            process.kill()
    return said


def decided(said: bytes) -> bool:
    return peek(said, port=80) is not NEED_MORE


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client(listener: tuple[socket.socket, str], version: str) -> None:
    server, path = listener
    command = ["openssl", "s_client", "-unix", path, version, "-servername", "Example.com", "-alpn", "h2,http/1.1"]
    said = first_words(server, command, decided)
    outcome = peek(said)
    assert named(outcome) == ("example.com", "sni", "tls")
    assert outcome.details == ClientHello(b"Example.com", False, (b"h2", b"http/1.1"))
    assert peek_singly(said) == outcome


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_c6_openssl_s_client_without_a_name(listener: tuple[socket.socket, str]) -> None:
    server, path = listener
    said = first_words(server, ["openssl", "s_client", "-unix", path, "-noservername"], decided)
    assert peek(said) == Refuse("no-name", "tls")


@pytest.fixture
def curl(listener: tuple[socket.socket, str]) -> Curl:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    server, path = listener

    def run(*arguments: str, enough: Callable[[bytes], bool] = decided) -> bytes:
        return first_words(server, ["curl", "-q", "-s", "--unix-socket", path, *arguments], enough)

    return run


def test_curl_https(curl: Curl) -> None:
    assert named(peek(curl("https://curl.example/"))) == ("curl.example", "sni", "tls")


def test_c6_curl_https_to_an_address(curl: Curl) -> None:
    assert peek(curl("https://198.51.100.1/")) == Refuse("no-name", "tls")


def test_curl_http(curl: Curl) -> None:
    said = curl("http://CURL.example:8080/path")
    assert named(peek(said, port=8080)) == ("curl.example", "host", "http")
    assert peek_singly(said, port=8080) == peek(said, port=8080)
    assert peek(said, port=80) == Refuse("host-port", "http", "curl.example")


def test_curl_absolute_form(curl: Curl) -> None:
    assert named(peek(curl("--request-target", "http://a.example/", "http://a.example/"))) == (
        "a.example",
        "host",
        "http",
    )
    said = curl("--request-target", "http://b.example/", "http://a.example/")
    assert peek(said) == Refuse("host-differs-from-target", "http")


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        (["--http2"], Refuse("http-h2c", "http")),
        (["--http2-prior-knowledge"], Refuse("http2-prior-knowledge", "http")),
        (["--haproxy-protocol"], Refuse("proxy-protocol", "other")),
        (["-X", "get"], Refuse("http-method", "http")),
        (["-X", "CONNECT"], Refuse("http-connect", "http")),
        (["-H", "Host:"], Refuse("host-missing", "http")),
        (["-H", "Host: 127.0.0.1"], Refuse("host-ip-literal", "http")),
        (["-H", "Host: user@a.example"], Refuse("host-userinfo", "http")),
        (["-0", "-H", "Host:"], Refuse("no-name", "http")),
    ],
)
def test_c9_c10_c12_curl(curl: Curl, arguments: list[str], outcome: Refuse) -> None:
    said = curl(*arguments, "http://a.example/")
    assert peek(said, port=80) == outcome


def test_c11_curl_sends_a_chunked_body(curl: Curl) -> None:
    body = "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n" * 50
    said = curl(
        "-H", "Transfer-Encoding: chunked", "--data-binary", body, "http://a.example/",
        enough=lambda said: said.endswith(b"\r\n0\r\n\r\n"),
    )  # fmt: skip
    guard = RequestGuard("a.example", 80)
    assert guard.feed(said) == (said, None)
    assert guard.feed(HEAD) == (b"", Refuse("host-changed", "http", "example.com"))


def test_post_quantum_hello() -> None:
    hello = hellos.openssl()
    assert named(peek(hello)) == named(peek_singly(hello)) == named(peek(hello, 1460)) == ("example.com", "sni", "tls")


# TLS


@pytest.mark.parametrize(
    ("extensions", "outcome"),
    [
        ([hellos.extension(21, b"")], Refuse("no-name", "tls")),
        ([hellos.server_name(b"198.51.100.1")], Refuse("sni-ip-literal", "tls")),
        ([hellos.server_name(b"")], Refuse("sni-empty", "tls")),
        ([hellos.server_name(b"a\x00b.example")], Refuse("sni-nul", "tls")),
        ([hellos.server_name(b"a b.example")], Refuse("sni-whitespace", "tls")),
        ([hellos.server_name("b\u00fccher.example".encode())], Refuse("sni-not-ascii", "tls")),
        ([hellos.server_name(b"a" * 300)], Refuse("sni-too-long", "tls")),
        ([hellos.server_name(b"a" * 64 + b".example")], Refuse("sni-not-a-name", "tls")),
        ([hellos.server_name(b"x." * 127 + b"y")], Refuse("sni-not-a-name", "tls")),
        ([hellos.server_name(b"-a.example")], Refuse("sni-not-a-name", "tls")),
        ([hellos.server_name(b"a..example")], Refuse("sni-not-a-name", "tls")),
        ([hellos.server_name(b"a.example.")], Refuse("sni-trailing-dot", "tls")),
        ([hellos.server_name(b"a.example", b"b.example")], Refuse("sni-several-names", "tls")),
        ([hellos.server_name(b"a.example")] * 2, Refuse("tls-duplicate-extension", "tls")),
    ],
)
def test_c6_c7_no_one_name(extensions: list[bytes], outcome: Refuse) -> None:
    message = hellos.message(*extensions)
    assert peek(hellos.records(message)) == peek_singly(hellos.records(message, [1] * 99)) == outcome
    sent = quic_packets.packet(quic_packets.crypto(0, message), pad=1200)
    assert DatagramPeek(strict_ech=False).feed(sent) == outcome._replace(protocol="quic")


def test_c8_ech() -> None:
    hello = hellos.openssl(b"outer.example", ech=True)
    assert named(peek(hello)) == ("outer.example", "sni", "tls")
    assert peek(hello, strict_ech=True) == Refuse("ech", "tls", "outer.example")
    assert named(peek(hellos.openssl(), strict_ech=True)) == ("example.com", "sni", "tls")
    message = hellos.message_of(hello)
    frames = [quic_packets.crypto(0, message[:1000]), quic_packets.crypto(1000, message[1000:])]
    for strict, outcome in ((True, Refuse("ech", "quic", "outer.example")), (False, ("outer.example", "quic", "quic"))):
        datagrams = DatagramPeek(strict_ech=strict)
        assert datagrams.feed(quic_packets.packet(frames[0], 0, pad=1200)) is NEED_MORE
        second = datagrams.feed(quic_packets.packet(frames[1], 1, pad=1200))
        assert (second if strict else named(second)) == outcome


@pytest.mark.parametrize(
    ("stream", "outcome"),
    [
        (b"\x16GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", Refuse("tls-version", "tls")),
        (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", Refuse("not-http", "other")),
        (b"\x15\x03\x01\x00\x02\x01\x00", Refuse("not-http", "other")),
        (b"EHLO a.example\r\nSTARTTLS\r\n", Refuse("not-http", "other")),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Refuse("not-http", "other")),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Refuse("not-http", "other")),  # PostgreSQL asks for TLS
        (b"\r\n\r\n\x00\r\nQUIT\n", Refuse("http-leading-newline", "http")),
        (b"*1\r\n$4\r\nPING\r\n", Refuse("not-http", "other")),
    ],
)
def test_d5_other_protocols(stream: bytes, outcome: Refuse) -> None:
    assert peek(stream) == peek_singly(stream) == outcome


def test_d3_bounds() -> None:
    assert peek(b"\x16\x03\x01\x40\x00\x01\x00\xff\xf0" + bytes(16400)) == Refuse("tls-content-type", "tls")
    padded = hellos.message(hellos.server_name(b"a.example"), hellos.extension(21, bytes(40000)))
    assert named(peek(hellos.records(padded))) == ("a.example", "sni", "tls")
    assert peek(hellos.records(padded, [1] * 20000)) == Refuse("tls-too-long", "tls")
    assert peek(b"GET /" + b"a" * 16379) == Refuse("http-too-long", "http")


def test_what_is_said_of_a_flow_that_never_decides() -> None:
    reader = StreamPeek(443, strict_ech=False)
    assert reader.protocol == ""
    assert reader.feed(b"") is NEED_MORE
    assert reader.protocol == ""
    assert reader.feed(b"\x16") is NEED_MORE
    assert reader.protocol == "tls"
    reader = StreamPeek(443, strict_ech=False)
    assert reader.feed(b"G") is NEED_MORE
    assert reader.protocol == "http"


# HTTP


@pytest.mark.parametrize(
    ("host", "port", "outcome"),
    [
        ("A.Example", 80, ("a.example", "host", "http")),
        ("a.example.", 80, ("a.example", "host", "http")),
        ("a.example:80", 80, ("a.example", "host", "http")),
        ("a.example", 8080, ("a.example", "host", "http")),
        ("a.example:8080", 8080, ("a.example", "host", "http")),
        ("a.example:80", 8080, Refuse("host-port", "http", "a.example")),
        ("a.example:443", 80, Refuse("host-port", "http", "a.example")),
        ("198.51.100.1", 80, Refuse("host-ip-literal", "http")),
        ("0x7f000001:80", 80, Refuse("host-ip-literal", "http")),
        ("[::ffff:127.0.0.1]", 80, Refuse("host-ip-literal", "http")),
        ("a..example", 80, Refuse("host-not-a-name", "http")),
        (".", 80, Refuse("host-not-a-name", "http")),
        ("-", 80, Refuse("host-not-a-name", "http")),
        ("a" * 64, 80, Refuse("host-not-a-name", "http")),
    ],
)
def test_c9_host(host: str, port: int, outcome: Refuse | tuple[str, str, str]) -> None:
    found = peek(get(f"Host: {host}"), port=port)
    assert (found if isinstance(found, Refuse) else named(found)) == outcome


def test_details_of_a_request() -> None:
    outcome = peek(HEAD)
    assert isinstance(outcome, Named)
    assert isinstance(outcome.details, RequestHead)
    assert outcome.details.target == b"/a"


# The guard


def test_c11_second_request_with_another_host() -> None:
    first = get("Host: a.example")
    second = get("Host: A.example:80")
    guard = RequestGuard("a.example", 80)
    assert guard.feed(first + second) == (first + second, None)
    assert guard.feed(get("Host: evil.example")) == (b"", Refuse("host-changed", "http", "evil.example"))
    # And nothing after that.
    assert guard.feed(first) == (b"", Refuse("host-changed", "http", "evil.example"))


def test_c11_the_first_request_is_judged_like_the_others() -> None:
    assert RequestGuard("b.example", 80).feed(HEAD).refuse == Refuse("host-changed", "http", "example.com")


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        (get("Host: evil.example"), Refuse("host-changed", "http", "evil.example")),
        (get("Host: a.example:81"), Refuse("host-port", "http", "a.example")),
        (get("Host: 127.0.0.1"), Refuse("host-ip-literal", "http")),
        (get("Host: a_.example-"), Refuse("host-not-a-name", "http")),
        (get(line="GET / HTTP/1.0"), Refuse("no-name", "http")),
        (get("Host: a.example", line="CONNECT evil.example:443 HTTP/1.1"), Refuse("http-connect", "http")),
        (get("Host: a.example", line="GET http://evil.example/ HTTP/1.1"), Refuse("host-differs-from-target", "http")),
        (b"\x16\x03\x01", Refuse("not-http", "http")),
    ],
)
def test_c11_pipelined_requests_pass_up_to_the_one_that_is_refused(second: bytes, outcome: Refuse) -> None:
    first = written("POST", "/", "a.example", body=iter([b"x" * 100]), encode_chunked=True)
    assert RequestGuard("a.example", 80).feed(first + second + first) == (first, outcome)
    guard = RequestGuard("a.example", 80)
    passages = [guard.feed(bytes((byte,))) for byte in first + second + first]
    assert b"".join(passage.data for passage in passages) == first
    assert passages[-1].refuse == outcome


def test_c14_websocket_then_opaque() -> None:
    guard = RequestGuard("a.example", 80)
    upgrade = get("Host: a.example", *WEBSOCKET)
    assert guard.feed(upgrade) == (upgrade, None)
    frame = b"\x81\x85abcd" + b"hello"
    assert guard.feed(frame + b"\x00\xff") == (frame + b"\x00\xff", None)
    # Without a frame it is the next request: the server may not have agreed.
    guard = RequestGuard("a.example", 80)
    assert guard.feed(upgrade + HEAD) == (upgrade, Refuse("host-changed", "http", "example.com"))


@given(data=st.data())
def test_the_guard_passes_what_it_was_given_in_order(data: st.DataObject) -> None:
    requests = [get("Host: a.example"), written("PUT", "/", "a.example", body=b"x" * 50), get("Host: b.example"), HEAD]
    stream = b"".join(data.draw(st.lists(st.sampled_from(requests), min_size=1, max_size=5)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    guard = RequestGuard("a.example", 80)
    passages = [guard.feed(stream[a:b]) for a, b in zip((0, *cuts), (*cuts, len(stream)), strict=True)]
    assert b"".join(passage.data for passage in passages) == RequestGuard("a.example", 80).feed(stream).data
    assert b"".join(passage.data for passage in passages) == stream[: find_other(stream)]


def find_other(stream: bytes) -> int:
    """Where the first request for another host starts."""
    at = [
        stream.rfind(b"GET", 0, place)
        for host in (b"b.example", b"example.com")
        if (place := stream.find(b"Host: " + host)) >= 0
    ]
    return min(at, default=len(stream))


# QUIC


@pytest.mark.parametrize("version", [quic_packets.V1, quic_packets.V2])
def test_quic(version: int) -> None:
    datagrams = DatagramPeek(strict_ech=True)
    first, *rest = quic_packets.client("QUIC.example", version=version, large=True)
    assert datagrams.feed(first) is NEED_MORE
    outcomes = [datagrams.feed(each) for each in rest]
    assert named(outcomes[-1]) == ("quic.example", "quic", "quic")
    assert datagrams.feed(b"") is outcomes[-1]


def test_e3_what_is_not_quic() -> None:
    for sent, outcome in (
        (b"", Refuse("not-quic", "other")),
        (b"\x00\x01\x00\x00", Refuse("not-quic", "other")),
        (b"\x16\xfe\xfd" + bytes(50), Refuse("not-quic", "other")),  # DTLS
        (b"\xc0\x00\x00\x00\x02" + bytes(1195), Refuse("quic-version", "quic")),
        (quic_vectors.RFC_9001[:-1], Refuse("quic-length", "quic")),
        (quic_packets.client(None)[0], Refuse("no-name", "quic")),
    ):
        datagrams = DatagramPeek(strict_ech=False)
        assert datagrams.feed(sent) == outcome
        assert datagrams.feed(quic_vectors.RFC_9001) == outcome


# Properties

STREAMS = (
    *REAL,
    hellos.python_ssl(),
    hellos.openssl(),
    hellos.records(hellos.message(hellos.server_name(b"a")), [1] * 50),
)


@given(data=st.data())
def test_d1_d2_d9_any_split_gives_the_same_outcome(data: st.DataObject) -> None:
    stream = bytearray(data.draw(st.sampled_from(STREAMS)) + data.draw(st.binary(max_size=20)))
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, 4095)) % len(stream)] = data.draw(st.integers(0, 255))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    whole = peek(bytes(stream), port=80)
    assert peek(bytes(stream), *cuts, port=80) == peek_singly(bytes(stream), port=80) == whole


@given(st.lists(st.binary(max_size=200), max_size=4))
@example([b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"])
def test_no_bytes_make_a_peek_raise(chunks: list[bytes]) -> None:
    stream, datagrams, guard = StreamPeek(80, strict_ech=True), DatagramPeek(strict_ech=True), RequestGuard("a", 80)
    for chunk in chunks:
        for outcome in (stream.feed(chunk), datagrams.feed(chunk), guard.feed(chunk).refuse):
            assert outcome is NEED_MORE or isinstance(outcome, Named | Refuse)


def test_a_head_that_a_peek_has_read_is_not_read_again() -> None:
    """The guard begins where the peek has ended, however the bytes are cut, and reads all that comes after."""
    first = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\n"
    named = StreamPeek(80, strict_ech=False).feed(first)
    assert isinstance(named, Named)
    assert isinstance(named.details, RequestHead)
    stream = first + b"abc" + HEAD
    for cut in range(1, len(stream)):
        guard = RequestGuard("a.example", 80, named.details)
        passages = [guard.feed(stream[:cut]), guard.feed(stream[cut:])]
        assert b"".join(passage.data for passage in passages) == first + b"abc", cut
        assert passages[1].refuse == Refuse("host-changed", "http", "example.com")
