"""HTTP/1 heads: what real clients send is read, what can be read in two ways is not (C9, C10, C12, C14, D9, G5)."""

from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netstack.wire.http_head import MAX_HEAD, HeadReader, RequestHead, http_refusal, plain_head
from netstack.wire.request_stream import RequestStream

from .http_requests import HEAD, REAL, WEBSOCKET, get, heard_by_http_server, written


def read(stream: bytes, *cuts: int) -> RequestHead | str | None:
    """What the reader says of a stream that arrives in pieces."""
    reader = HeadReader()
    for start, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
        result = reader.feed(stream[start:end])
        if result is not None:
            return result
    return None


def read_singly(stream: bytes) -> RequestHead | str | None:
    return read(stream, *range(1, len(stream)))


# Heads


def test_a_head_by_http_client() -> None:
    stream = written("GET", "/index.html?q=1", headers={"Accept": "*/*"})
    assert read(stream) == RequestHead("GET", b"/index.html?q=1", 1, b"example.com", 0, False, 0, False, len(stream))
    assert read_singly(stream) == read(stream)


def test_a_port_by_http_client() -> None:
    head = read(written("OPTIONS", "*", "Example.COM:8080"))
    assert isinstance(head, RequestHead)
    assert (head.host, head.port, head.target) == (b"Example.COM", 8080, b"*")


def test_a_head_of_a_browser_with_what_follows() -> None:
    stream = get(
        "Host: www.example.com",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) \t\u00e4\u00f6",
        "X-Empty:",
        'Cookie: a=b; c="d"',
        line="M-SEARCH /path|{}~%20 HTTP/1.1",
    )
    head = read(stream + b"\x00garbage\n")
    assert isinstance(head, RequestHead)
    assert (head.method, head.host, head.size) == ("M-SEARCH", b"www.example.com", len(stream))


@pytest.mark.parametrize("blanks", ["", " ", "\t", " \t "])
def test_blanks_around_a_value(blanks: str) -> None:
    head = read(get(f"hOsT:{blanks}example.com{blanks}"))
    assert isinstance(head, RequestHead)
    assert head.host == b"example.com"


def test_http_1_0_without_host_has_no_name() -> None:
    head = read(get(line="GET / HTTP/1.0"))
    assert isinstance(head, RequestHead)
    assert (head.host, head.version) == (b"", 0)


def test_absolute_form() -> None:
    head = read(get("Host: EXAMPLE.com:80", line="GET HTTP://example.com:80/path HTTP/1.1"))
    assert isinstance(head, RequestHead)
    assert (head.host, head.port) == (b"EXAMPLE.com", 80)
    for target in ("http://example.com", "http://example.com?q", "http://example.com/@evil.example"):
        assert isinstance(read(get("Host: example.com", line=f"GET {target} HTTP/1.1")), RequestHead)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:80", "[::1]", "[::ffff:1.2.3.4]:8080", "0x7f000001", "017700000001", "1.2.3.0x4."]
)
def test_c9_a11_addresses_in_any_form(host: str) -> None:
    head = read(get(f"Host: {host}"))
    assert isinstance(head, RequestHead)
    assert head.is_address


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([], "host-missing"),
        (["Host: a.example", "Host: a.example"], "host-duplicate"),
        (["Host: a.example", "host: b.example"], "host-duplicate"),
        (["Host: a.example", "X: y", "HOST:"], "host-duplicate"),
        (["Host:"], "host-empty"),
        (["Host: \t"], "host-empty"),
        (["Host: user@example.com"], "host-userinfo"),
        (["Host: user:password@example.com:80"], "host-userinfo"),
        (["Host: a.example, b.example"], "host-not-a-name"),
        (["Host: a.example b.example"], "host-not-a-name"),
        (["Host: a%2eexample"], "host-not-a-name"),
        (["Host: [::1"], "host-not-a-name"),
        (["Host: ::1"], "host-not-a-name"),
        (["Host: [fe80::1%25eth0]"], "host-not-a-name"),
        (["Host: example.com/"], "host-not-a-name"),
        (["Host: b\u00fccher.example"], "host-not-ascii"),
        (["Host: example.com:"], "host-port"),
        (["Host: example.com:080"], "host-port"),
        (["Host: example.com:0"], "host-port"),
        (["Host: example.com:65536"], "host-port"),
        (["Host: example.com:+80"], "host-port"),
        (["Host: example.com:80a"], "host-port"),
        (["Host : example.com"], "http-space-before-colon"),
        (["Host\t: example.com"], "http-space-before-colon"),
        (["Host: example.com", " evil.example"], "http-obs-fold"),
        (["Host: example.com", "\tevil.example"], "http-obs-fold"),
        ([" Host: example.com"], "http-obs-fold"),
        (["Host: example.com\x00"], "http-nul"),
        (["X: \x00", "Host: example.com"], "http-nul"),
        (["Host: example.com", "X: a\rb"], "http-control-character"),
        (["Host: example.com", "X: a\x7f"], "http-control-character"),
        (["Host: example.com", "X\x01: a"], "http-control-character"),
        (["Host: example.com", "no colon"], "http-field-line"),
        (["Host: example.com", ": nameless"], "http-field-line"),
        (["Host: example.com", "X(): a"], "http-field-line"),
        (["Host: example.com", "X\u00e4: a"], "http-field-line"),
        (["Host example.com"], "http-field-line"),
        (["Host: example.com", *["X: y"] * 256], "http-too-many-fields"),
    ],
)
def test_c9_fields(fields: list[str], reason: str) -> None:
    assert read(get(*fields)) == read_singly(get(*fields)) == reason


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (get("Host: a.example", line="GET http://b.example/ HTTP/1.1"), "host-differs-from-target"),
        (get("Host: a.example", line="GET http://a.example:80/ HTTP/1.1"), "host-differs-from-target"),
        (get("Host: a.example:80", line="GET http://a.example/ HTTP/1.1"), "host-differs-from-target"),
        (get("Host: a.example", line="GET http:///path HTTP/1.1"), "host-differs-from-target"),
        (get(line="GET http://a.example/ HTTP/1.0"), "host-differs-from-target"),
        (get("Host: a.example", line="GET http://a.example@b.example/ HTTP/1.1"), "host-userinfo"),
        (get("Host: a.example", line="GET https://a.example/ HTTP/1.1"), "http-target"),
        (get("Host: a.example", line="GET a.example:80 HTTP/1.1"), "http-target"),
        (get("Host: a.example", line="GET path HTTP/1.1"), "http-target"),
        (get("Host: a.example", line="GET * HTTP/1.1"), "http-target"),
        (get("Host: a.example", line="PRI * HTTP/1.1"), "http-target"),
        (b"\r\n" + HEAD, "http-leading-newline"),
        (b"\n" + HEAD, "http-leading-newline"),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + HEAD, "http-leading-newline"),  # PROXY protocol, version 2
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 80\r\n" + HEAD, "proxy-protocol"),
        (b"PROXY UNKNOWN\r\n" + HEAD, "proxy-protocol"),
        (b"GET /\r\n", "http-0.9"),
        (b"GET /\n", "http-0.9"),
        (HEAD.replace(b"\r\n", b"\n"), "http-bare-lf"),
        (HEAD.replace(b"\r\n\r\n", b"\n\r\n"), "http-bare-lf"),
        (HEAD.replace(b"\r\n\r\n", b"\r\n\n"), "http-bare-lf"),
        (HEAD.replace(b"GET", b"get"), "http-method"),
        (HEAD.replace(b"GET", b"Get"), "http-method"),
        (HEAD.replace(b"GET", b"GE,T"), "http-method"),
        (HEAD.replace(b"GET", b"G" * 33), "http-method"),
        (HEAD.replace(b"HTTP/1.1", b"HTTP/1.2"), "http-version"),
        (HEAD.replace(b"HTTP/1.1", b"HTTP/2"), "http-version"),
        (HEAD.replace(b"HTTP/1.1", b"HTTP/2.0"), "http-version"),
        (HEAD.replace(b"HTTP/1.1", b"http/1.1"), "not-http"),
        (HEAD.replace(b" /a", b"  /a"), "http-request-line"),
        (HEAD.replace(b" /a", b" /a b"), "http-request-line"),
        (HEAD.replace(b" /a", b" /\xc3\xa4"), "http-request-line"),
        (HEAD.replace(b" /a", b" /\x00"), "http-nul"),
        (HEAD.replace(b" /a", b" /\x01"), "http-control-character"),
        (HEAD.replace(b" /a", b"\t/a"), "http-request-line"),
        (HEAD.replace(b"GET ", b"GET\r"), "http-control-character"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2-prior-knowledge"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not-http"),
        (b"EHLO example.com\r\n", "not-http"),
        (b"HTTP/1.1 200 OK\r\n", "not-http"),
        (b"\x15\x03\x01\x00\x02\x01\x00", "not-http"),
        (b" GET / HTTP/1.1\r\n", "not-http"),
        (b"\x00", "not-http"),
    ],
)
def test_c10_request_lines(stream: bytes, reason: str) -> None:
    assert read(stream) == read_singly(stream) == reason


@pytest.mark.parametrize("target", [b"evil.example:443", b"/", b"http://a.example/"])
def test_c12_connect(target: bytes) -> None:
    assert read(b"CONNECT " + target + b" HTTP/1.1\r\nHost: a.example\r\n\r\n") == "http-connect"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"],
            "http-h2c",
        ),
        (["Connection: Upgrade", "Upgrade: websocket, H2C"], "http-h2c"),
        (["Upgrade: h2c-14"], "http-h2c"),
        (["HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"], "http-h2c"),
        (["Connection: Upgrade", "Upgrade: TLS/1.0"], "http-upgrade"),
        (["Connection: Upgrade", "Upgrade:"], "http-upgrade"),
        (["Connection: Upgrade", "Upgrade: websocket", "Upgrade: websocket"], "http-upgrade"),
        (["Upgrade: websocket"], "http-upgrade"),
        (["Connection: keep-alive", "Upgrade: websocket"], "http-upgrade"),
        (["Connection: Upgrade", "Upgrade: websocket", "Content-Length: 1"], "http-upgrade"),
        (["Connection: Upgrade", "Upgrade: websocket", "Transfer-Encoding: chunked"], "http-upgrade"),
    ],
)
def test_c10_upgrades(fields: list[str], reason: str) -> None:
    assert read(get("Host: a.example", *fields)) == reason


def test_c14_a_websocket_request() -> None:
    head = read(get("Host: a.example", *WEBSOCKET))
    assert isinstance(head, RequestHead)
    assert head.websocket
    assert read(get("Host: a.example", *WEBSOCKET, line="POST / HTTP/1.1")) == "http-upgrade"
    assert read(get("Host: a.example", *WEBSOCKET, line="GET / HTTP/1.0")) == "http-upgrade"


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ([], 0),
        (["Content-Length: 0"], 0),
        (["content-length:12345"], 12345),
        (["Content-Length: 007"], 7),
        (["Transfer-Encoding: chunked"], -1),
        (["Transfer-Encoding: Chunked "], -1),
        (["Content-Length: 5", "Content-Length: 5"], "http-content-length"),
        (["Content-Length: 5, 5"], "http-content-length"),
        (["Content-Length: +5"], "http-content-length"),
        (["Content-Length: -5"], "http-content-length"),
        (["Content-Length: 5_0"], "http-content-length"),
        (["Content-Length: 0x5"], "http-content-length"),
        (["Content-Length:"], "http-content-length"),
        (["Content-Length: 9999999999999999999"], "http-content-length"),
        (["Content-Length: \u00b2"], "http-content-length"),
        (["Content-Length: 5", "Transfer-Encoding: chunked"], "http-length-and-coding"),
        (["Content-Length: 5", "Transfer-Encoding: identity"], "http-length-and-coding"),
        (["Transfer-Encoding: gzip, chunked"], "http-transfer-coding"),
        (["Transfer-Encoding: chunked, gzip"], "http-transfer-coding"),
        (["Transfer-Encoding: chunked, chunked"], "http-transfer-coding"),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], "http-transfer-coding"),
        (["Transfer-Encoding: identity"], "http-transfer-coding"),
        (["Transfer-Encoding: xchunked"], "http-transfer-coding"),
        (["Transfer-Encoding:"], "http-transfer-coding"),
    ],
)
def test_g5_body_lengths(fields: list[str], body: int | str) -> None:
    head = read(get("Host: a.example", *fields))
    assert (head.body if isinstance(head, RequestHead) else head) == body


def test_g5_no_transfer_coding_in_http_1_0() -> None:
    stream = get("Host: a.example", "Transfer-Encoding: chunked", line="GET / HTTP/1.0")
    assert read(stream) == "http-transfer-coding"


def test_d9_a_head_of_16_kib_and_one_byte_more() -> None:
    filler = "X: " + "y" * (MAX_HEAD - len(get("Host: a.example", "X: ")))
    stream = get("Host: a.example", filler)
    assert len(stream) == MAX_HEAD
    assert isinstance(read(stream), RequestHead)
    assert isinstance(read_singly(stream), RequestHead)
    longer = get("Host: a.example", filler + "y")
    assert read(longer) == read_singly(longer) == read(longer, MAX_HEAD) == "http-too-long"
    assert read(b"GET /" + bytes(b"a" * 100_000)) == "http-too-long"


def test_d9_split_between_name_and_value() -> None:
    at = HEAD.index(b"Host:") + 5
    assert read(HEAD, at) == read(HEAD, at - 3, at) == read(HEAD)


def test_nothing_is_kept_beyond_the_bound() -> None:
    reader = HeadReader()
    reader.feed(b"GET /" + bytes(b"a" * 1_000_000))
    assert reader.kept == MAX_HEAD
    assert reader.feed(HEAD) == "http-too-long"


# Pieces and damage


@given(data=st.data())
def test_any_cuts_of_damaged_heads(data: st.DataObject) -> None:
    stream = bytearray(data.draw(st.sampled_from(REAL)))
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(
            st.sampled_from(b"\r\n\0 :\t,;") | st.integers(0, 255)
        )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    whole = read(bytes(stream))
    assert whole is None or isinstance(whole, RequestHead | str)
    assert read(bytes(stream), *cuts) == read_singly(bytes(stream)) == whole
    assert plain_head(bytes(stream)) in (None, whole), "read at once, or line by line"


@given(data=st.data())
def test_a_server_reads_the_same_or_nothing(data: st.DataObject) -> None:
    """Whatever is done to a head: when it is taken for a request, Python's server takes it for no other."""
    stream = bytearray(data.draw(st.sampled_from(REAL)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(stream)))
        stream[at : at + data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from(
                [b"\r", b"\n", b"\r\n", b"\0", b" ", b":", b"\t", b"\r\nHost: evil.example", b"@", b"http://b"]
            )
        )
    head = read(bytes(stream))
    if isinstance(head, RequestHead):
        host = head.host + (b":%d" % head.port if head.port else b"")
        target = head.target.decode()
        # It takes leading slashes together, against open redirects.
        target = "/" + target.lstrip("/") if target.startswith("//") else target
        assert heard_by_http_server(bytes(stream)) in (None, (head.method, target, [host.decode()] if host else []))


def test_a_server_reads_what_is_read() -> None:
    assert heard_by_http_server(HEAD) == ("GET", "/a", ["example.com"])


@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes(data: bytes) -> None:
    for stream in (data, b"GET / HTTP/1.1\r\n" + data, b"GET / HTTP/1.1\r\nHost: " + data, HEAD + data):
        assert read(stream) == read_singly(stream)
        requests = RequestStream()
        pieces = requests.feed(stream)
        assert stream.startswith(b"".join(piece.data for piece in pieces))


# The answer


def parsed(answer: bytes) -> http.client.HTTPResponse:
    """A response as Python's http.client reads it."""

    class Connection:
        def makefile(self, _mode: str) -> io.BytesIO:
            return io.BytesIO(answer)

    response = http.client.HTTPResponse(Connection())  # type: ignore[arg-type]  # all it needs of a socket
    response.begin()
    return response


def test_a_refusal_says_which_name() -> None:
    response = parsed(http_refusal("evil.example", "name-not-allowed"))
    assert (response.status, response.getheader("Connection")) == (403, "close")
    assert response.getheader("Content-Type") == "text/plain; charset=us-ascii"
    assert response.read() == b"netstack: evil.example is refused, no rule allows it (name-not-allowed)\n"
    assert response.will_close


def test_a_refusal_without_a_name() -> None:
    body = parsed(http_refusal("", "host-missing")).read()
    assert body.count(b"\n") == 1
    assert b"host-missing" in body


@given(st.text(), st.text())
def test_j6_a_refusal_is_one_line_whatever_the_name(name: str, reason: str) -> None:
    response = parsed(http_refusal(name, reason))
    assert response.headers.keys() == ["Content-Type", "Content-Length", "Connection"]
    body = response.read()
    assert body.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in body[:-1])
