"""Many requests on one connection: each head is found, and nothing else is taken for one (C11, C14, G5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.wire.http_head import RequestHead
from netstack.wire.request_stream import Piece, RequestStream

from .http_requests import HEAD, REAL, WEBSOCKET, get, written


def cut(stream: bytes, *cuts: int) -> tuple[bytes, list[RequestHead], str]:
    """What passes, which heads there were, and the fault."""
    requests = RequestStream()
    pieces: list[Piece] = []
    for start, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
        pieces += requests.feed(stream[start:end])
    return b"".join(p.data for p in pieces), [p.head for p in pieces if p.head], requests.fault


def cut_singly(stream: bytes) -> tuple[bytes, list[RequestHead], str]:
    return cut(stream, *range(1, len(stream)))


def names(stream: bytes) -> list[bytes]:
    passed, heads, fault = cut(stream)
    assert not fault
    assert passed == stream
    assert cut_singly(stream) == (passed, heads, fault)
    return [head.host for head in heads]


def test_c11_requests_with_bodies_of_all_kinds() -> None:
    stream = (
        written("GET", "/", "one.example")
        + written("POST", "/", "two.example", body=b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        + written("PUT", "/", "three.example", body=iter([b"x" * 300, b"GET / HTTP/1.1\r\n"]), encode_chunked=True)
        + written("POST", "/", "four.example", body=b"")
        + get("Host: five.example", "Transfer-Encoding: chunked")
        + b"5\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX-Trailer: a\r\nDigest: b\r\n\r\n"
        + written("GET", "/", "six.example")
    )
    numbers = (b"one", b"two", b"three", b"four", b"five", b"six")
    assert names(stream) == [number + b".example" for number in numbers]


def test_c11_a_head_is_held_back_until_it_is_whole() -> None:
    requests = RequestStream()
    first = get("Host: a.example", "Content-Length: 3", line="POST / HTTP/1.1")
    assert [piece.data for piece in requests.feed(first + b"ab")] == [first, b"ab"]
    assert [piece.data for piece in requests.feed(b"c" + HEAD[:-1])] == [b"c"]
    (piece,) = requests.feed(HEAD[-1:])
    assert piece.data == HEAD
    assert piece.head is not None
    assert piece.head.host == b"example.com"


def test_bodies_are_never_kept() -> None:
    requests = RequestStream()
    requests.feed(get("Host: a.example", "Content-Length: 100000000", line="POST / HTTP/1.1"))
    chunk = bytes(65536)
    for _ in range(100):
        (piece,) = requests.feed(chunk)
        assert piece.data is chunk
    assert not requests._line
    assert requests._reader is None, "and no head either"


@given(data=st.data())
def test_any_cuts_of_a_stream(data: st.DataObject) -> None:
    stream = b"".join(data.draw(st.lists(st.sampled_from(REAL), min_size=1, max_size=4)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    passed, heads, fault = cut(stream, *cuts)
    whole, same_heads, same_fault = cut(stream)
    assert (heads, fault) == (same_heads, same_fault)
    # Of what lies before a fault, the beginning of a line may have passed or not.
    assert stream.startswith(passed)
    assert passed == whole or fault


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"5;name=value\r\nhello\r\n", "http-chunk"),
        (b"5 \r\nhello\r\n", "http-chunk"),
        (b" 5\r\nhello\r\n", "http-chunk"),
        (b"5\nhello\r\n", "http-chunk"),
        (b"+5\r\nhello\r\n", "http-chunk"),
        (b"0x5\r\nhello\r\n", "http-chunk"),
        (b"\r\nhello\r\n", "http-chunk"),
        (b"-1\r\nhello\r\n", "http-chunk"),
        (b"5_0\r\nhello\r\n", "http-chunk"),
        (b"0000000000000005\r\nhello\r\n", "http-chunk"),
        (b"ffffffffffffffffffff\r\n", "http-chunk"),
        (b"5\r\nhelloX\r\n", "http-chunk"),
        (b"5\r\nhello\n0\r\n\r\n", "http-chunk"),
        (b"5\r\nhello\rX", "http-chunk"),
        (b"0\r\nno colon\r\n\r\n", "http-field-line"),
        (b"0\r\nX: a\n\r\n", "http-bare-lf"),
        (b"0\r\n folded\r\n\r\n", "http-obs-fold"),
        (b"0\r\nHost: evil.example\r\n\r\n", "http-trailer"),
        (b"0\r\nTransfer-Encoding: chunked\r\n\r\n", "http-trailer"),
        (b"0\r\nContent-length: 3\r\n\r\n", "http-trailer"),
        (b"0\r\n" + b"X: y\r\n" * 3000, "http-too-long"),
        (b"0\r\nX: " + b"y" * 20000, "http-too-long"),
        (b"0\r\n\r\n\r\n", "http-leading-newline"),
        (b"0\r\n\r\n\x00", "not-http"),
    ],
)
def test_g5_malformed_chunks(body: bytes, reason: str) -> None:
    stream = get("Host: a.example", "Transfer-Encoding: chunked", line="POST / HTTP/1.1") + body
    passed, heads, fault = cut(stream + HEAD)
    assert (fault, [head.host for head in heads]) == (reason, [b"a.example"])
    assert stream.startswith(passed)
    passed, heads, fault = cut_singly(stream + HEAD)
    assert (fault, [head.host for head in heads]) == (reason, [b"a.example"])
    assert stream.startswith(passed)


def test_after_a_fault_nothing_passes() -> None:
    requests = RequestStream()
    assert requests.feed(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n") == []
    assert requests.fault == "host-duplicate"
    assert requests.feed(HEAD) == []


# WebSocket


@pytest.mark.parametrize("first", [b"\x81", b"\xc1", b"\x41", b"\x02", b"\x88", b"\x89", b"\x8a"])
def test_c14_frames_after_an_upgrade_make_the_connection_opaque(first: bytes) -> None:
    stream = get("Host: a.example", *WEBSOCKET) + first + b"\x85abcdhello" + b"GET / HTTP/1.1\r\nHost: b\r\n\r\n\x00"
    assert names(stream) == [b"a.example"]
    requests = RequestStream()
    requests.feed(stream)
    assert requests.opaque
    (piece,) = requests.feed(b"anything")
    assert piece == Piece(b"anything", None)


def test_c14_a_server_that_does_not_upgrade_opens_no_hole() -> None:
    upgrade = get("Host: a.example", *WEBSOCKET)
    assert names(upgrade + HEAD) == [b"a.example", b"example.com"]
    assert cut(upgrade + b"\x81\x05hello")[2] == "not-http"  # not masked
    assert cut(upgrade + b"\x83\x85hello")[2] == "not-http"  # no such opcode
    assert cut(upgrade + b"\x80\x85hello")[2] == "not-http"  # continues nothing
    assert cut(upgrade + b"G\xc5T / HTTP/1.1\r\n")[2] != ""
    for stream in (upgrade + b"\x81\x05hello", upgrade + b"\r\n", upgrade + b"G\x00"):
        assert cut(stream)[1:] == cut_singly(stream)[1:]
