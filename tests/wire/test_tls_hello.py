"""ClientHellos: real clients say what they were told, crafted hellos say nothing (C6, C7, C8, D1, D2, D3, D5)."""

from __future__ import annotations

import struct

import pytest
import scapy.layers.tls.all as tls
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from netstack.wire import tls_hello
from netstack.wire.tls_hello import ClientHello, HelloReader, parse_client_hello

from . import hellos
from .hellos import body, extension, handshake, message, records, server_name

NAME = server_name(b"example.com")
PLAIN = records(message(NAME))
# Made once: their random parts, and with GREASE their lengths, differ from one to the next.
REAL = (PLAIN, hellos.python_ssl(), hellos.openssl(), hellos.openssl(ech=True))


def read(stream: bytes, *cuts: int) -> ClientHello | str | None:
    """What the reader says of a stream that arrives in pieces."""
    reader = HelloReader()
    for start, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
        result = reader.feed(stream[start:end])
        if result is not None:
            return result
    return None


def read_singly(stream: bytes) -> ClientHello | str | None:
    return read(stream, *range(1, len(stream)))


# What real clients send


def test_python_ssl() -> None:
    assert read(hellos.python_ssl("example.com", ["h2", "http/1.1"])) == ClientHello(
        b"example.com", False, (b"h2", b"http/1.1")
    )


def test_python_ssl_without_a_name() -> None:
    assert read(hellos.python_ssl(None)) == ClientHello(None, False, ())


@pytest.mark.parametrize(
    "version", [SSL.TLS1_VERSION, SSL.TLS1_1_VERSION, SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=hex
)
def test_any_version(version: int) -> None:
    hello = hellos.openssl(b"Example.COM", version=version)
    assert read(hello) == ClientHello(b"Example.COM", False, ())
    assert read_singly(hello) == ClientHello(b"Example.COM", False, ())


def test_post_quantum_key_share_in_one_byte_segments() -> None:
    hello = hellos.openssl()
    # The client really offers what this test is about.
    shares = hello.index(struct.pack("!HH", hellos.X25519MLKEM768, 1216))
    assert len(hello) > 1460 > shares
    assert read(hello) == read_singly(hello) == read(hello, 1460) == ClientHello(b"example.com", False, ())


def test_c8_ech_is_seen_and_the_outer_name_read() -> None:
    assert read(hellos.openssl(ech=True)) == ClientHello(b"example.com", True, ())
    assert read(records(message(NAME, extension(hellos.ECH, b"\x00" * 40)))) == ClientHello(b"example.com", True, ())
    assert read(records(message(NAME, extension(0xFFCE, b"\x00" * 40)))) == ClientHello(b"example.com", True, ())


def test_scapy_hello() -> None:
    name = tls.TLS_Ext_ServerName(servernames=[tls.ServerName(servername=b"scapy.example")])
    alpn = tls.TLS_Ext_ALPN(protocols=[tls.ProtocolName(protocol=b"h2")])
    hello = bytes(tls.TLS(msg=[tls.TLSClientHello(ext=[name, alpn])]))
    assert read(hello) == ClientHello(b"scapy.example", False, (b"h2",))


def test_ssl3_hello_ends_before_the_extensions() -> None:
    assert read(records(handshake(body(version=0x0300)), version=0x0300)) == ClientHello(None, False, ())


# D1, D2: pieces and records


@given(data=st.data())
def test_d1_any_segments_give_the_same_answer(data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from([*REAL, PLAIN + b"\x14\x03\x03\x00\x01\x01", PLAIN[:-3]]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    assert read(stream, *cuts) == read(stream)


@given(sizes=st.lists(st.integers(1, 600), max_size=40), data=st.data())
def test_d2_any_records_give_the_same_answer(sizes: list[int], data: st.DataObject) -> None:
    stream = records(hellos.message_of(REAL[2]), sizes)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=3)))
    assert read(stream, *cuts) == ClientHello(b"example.com", False, ())


def test_d2_one_byte_records_in_one_byte_segments() -> None:
    content = hellos.message_of(hellos.openssl())
    stream = records(content, [1] * len(content))
    assert len(stream) == 6 * len(content)
    assert read(stream) == read_singly(stream) == ClientHello(b"example.com", False, ())


def test_what_follows_the_hello_is_not_looked_at() -> None:
    # 0-RTT data comes right behind the hello.
    assert read(PLAIN + b"\x17\x03\x03\x00\x10" + bytes(16)) == ClientHello(b"example.com", False, ())
    assert read(PLAIN + b"garbage") == ClientHello(b"example.com", False, ())


def test_nothing_is_said_before_the_last_byte() -> None:
    for end in range(len(PLAIN)):
        assert HelloReader().feed(PLAIN[:end]) is None


def test_an_answer_stays() -> None:
    reader = HelloReader()
    first = reader.feed(PLAIN)
    assert reader.feed(records(message(server_name(b"evil.example")))) is first
    reader = HelloReader()
    assert reader.feed(b"\x17\x03\x03\x00\x10") == reader.feed(PLAIN) == "tls-content-type"


# D3: sizes


def test_d3_a_padded_hello_up_to_64_kib() -> None:
    for size in (16384, 40000, 65000):
        stream = records(message(NAME, extension(21, bytes(size))))
        assert read(stream) == read(stream, 1, 7, 16389, 20000, 40001) == ClientHello(b"example.com", False, ())


def test_d3_a_hello_beyond_64_kib() -> None:
    body_of_two = body(NAME, extension(21, bytes(65000)))
    assert read(records(handshake(body_of_two + bytes(600)))) == "tls-too-long"
    assert read(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff") == "tls-too-long"


def test_d3_records_so_small_that_they_are_64_kib() -> None:
    content = message(NAME, extension(21, bytes(20000)))
    stream = records(content, [1] * len(content))
    assert read(stream[:65535]) is None
    assert read(stream[:65536]) == read(stream) == read(stream, 65535) == read(stream, 7, 65536) == "tls-too-long"
    reader = HelloReader()
    results = {reader.feed(stream[at : at + 1]) for at in range(70000)}
    assert results == {None, "tls-too-long"}


def test_d3_bounded_memory() -> None:
    reader = HelloReader()
    assert reader.feed(b"\x16\x03\x01\x40\x00\x01\x00\xff\xf0" + bytes(1_000_000)) == "tls-content-type"
    assert not reader._pending
    assert not reader._message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (body(NAME, session_id=bytes(33)), "tls-session-id"),
        (body(NAME, suites=b"\x13\x01\x13"), "tls-cipher-suites"),
        (body(NAME, suites=b""), "tls-cipher-suites"),
        (body(NAME, version=0x0203), "tls-version"),
        (body(NAME) + b"\x00", "tls-extensions-length"),
        (body(NAME)[:-1], "tls-extensions-length"),
        (body(NAME, b"\x00\x15\x00"), "tls-extension-length"),
        (body(NAME, b"\x00\x15\x00\x01"), "tls-extension-length"),
        (body(b"\x00\x00\x00\x20" + NAME[4:]), "tls-extension-length"),
        (body(*(extension(kind, b"") for kind in range(1000, 1257))), "tls-too-many-extensions"),
        (body()[:-2] + b"\x00", "tls-compression"),
        (body()[:-2] + b"\x02\x00", "tls-truncated"),
        (body()[:-2], "tls-truncated"),
        (body() + b"\x00", "tls-truncated"),
        (body()[:34], "tls-truncated"),
        (body()[:35], "tls-truncated"),
        (b"", "tls-truncated"),
        (body(NAME, NAME), "tls-duplicate-extension"),
        (body(NAME, extension(21, b""), extension(21, b"")), "tls-duplicate-extension"),
        (body(NAME, extension(16, b"\x00\x03\x02h2\x00")), "alpn-length"),
        (body(NAME, extension(16, b"\x00\x03\x03h2")), "alpn-length"),
        (body(NAME, extension(16, b"\x00\x04\x02h2\x00")), "alpn-length"),
        (body(NAME, extension(16, b"\x00\x00")), "alpn-length"),
    ],
)
def test_d3_malformed_hello(content: bytes, reason: str) -> None:
    assert parse_client_hello(handshake(content)) == reason
    assert read(records(handshake(content))) == read_singly(records(handshake(content), [3, 1, 9])) == reason


def test_a_length_that_lies_about_the_message() -> None:
    plain = message(NAME)
    assert parse_client_hello(plain + b"\x00") == parse_client_hello(plain[:-1]) == "tls-length"
    assert read(records(plain + b"\x00")) == "tls-trailing-bytes"
    assert read(records(plain + handshake(b"", kind=20))) == "tls-trailing-bytes"
    longer = plain[:3] + bytes((plain[3] + 1,)) + plain[4:]
    assert read(records(longer)) is None
    assert read(records(longer + b"\x00")) == "tls-extensions-length"


# D5: other content


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"\x16\x03\x01\x00\x00", "tls-record-length"),
        (b"\x16\x03\x01\x40\x01", "tls-record-length"),
        (b"\x16\x02\x01\x00\x10", "tls-version"),
        (b"\x16GET / HTTP/1.1\r\n\r\n", "tls-version"),
        (b"\x15\x03\x01\x00\x02\x01\x00", "tls-content-type"),
        (b"\x17\x03\x03\x00\x10", "tls-content-type"),
        (b"\x80\x2e\x01\x00\x02\x00\x15", "tls-sslv2"),
        (b"\x80\x2e\x04\x00\x02\x00\x15", "tls-content-type"),
        (records(handshake(bytes(60), kind=2)), "tls-not-client-hello"),
        (records(handshake(b"", kind=0)), "tls-not-client-hello"),
        (records(message(NAME), [10])[:15] + b"\x14\x03\x03\x00\x01\x01", "tls-content-type"),
        (records(message(NAME), [10])[:15] + b"\x16\x03\x03\x00\x00", "tls-record-length"),
        (records(message(NAME), [10])[:15] + b"\x80\x2e\x01\x00\x02", "tls-content-type"),
    ],
)
def test_d5_not_a_handshake(stream: bytes, reason: str) -> None:
    assert read(stream) == read_singly(stream) == reason


# C6, C7: names


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"", "sni-empty"),
        (b"a" * 256, "sni-too-long"),
        (b"example.com\x00.evil.org", "sni-nul"),
        (b"\x00", "sni-nul"),
        ("b\u00fccher.example".encode(), "sni-not-ascii"),
        ("\u4f8b.example".encode()[:2], "sni-not-ascii"),
        (b"exam ple.com", "sni-whitespace"),
        (b" example.com", "sni-whitespace"),
        (b"example.com\r\n", "sni-whitespace"),
        (b"example.com\t", "sni-whitespace"),
        (b"example.com.", "sni-trailing-dot"),
        (b"127.0.0.1", "sni-ip-literal"),
        (b"0x7f000001", "sni-ip-literal"),
        (b"017700000001", "sni-ip-literal"),
        (b"1.2.3.0X4", "sni-ip-literal"),
        (b"::1", "sni-ip-literal"),
        (b"fe80::1%eth0", "sni-ip-literal"),
        (b"[::1]", "sni-ip-literal"),
        (b"example.com:443", "sni-ip-literal"),
        (b"user@example.com", "sni-not-a-name"),
        (b"*.example.com", "sni-not-a-name"),
        (b"example.com\x7f", "sni-not-a-name"),
        (b"example.com/", "sni-not-a-name"),
    ],
)
def test_c6_names_that_are_none(name: bytes, reason: str) -> None:
    assert read(records(message(server_name(name)))) == reason


@pytest.mark.parametrize("name", [b"a", b"_x-y.Example.COM", b"1.example", b"x" * 255, b"4chan.example", b"a.0xg"])
def test_names_are_given_as_sent(name: bytes) -> None:
    assert read(records(message(server_name(name)))) == ClientHello(name, False, ())


def test_c6_no_name() -> None:
    assert read(records(message(extension(21, b"")))) == ClientHello(None, False, ())
    assert read(records(message(b""))) == ClientHello(None, False, ())


@pytest.mark.parametrize(
    ("sni", "reason"),
    [
        (server_name(b"example.com", b"evil.example"), "sni-several-names"),
        (server_name(b"example.com", b"example.com"), "sni-several-names"),
        (server_name(b"example.com", kind=1), "sni-type"),
        (server_name(b"example.com") + server_name(b"evil.example"), "tls-duplicate-extension"),
        (extension(0, b""), "sni-length"),
        (extension(0, b"\x00\x00"), "sni-length"),
        (extension(0, b"\x00\x04\x00\x00\x02a"), "sni-length"),
        (extension(0, b"\x00\x05\x00\x00\x01a"), "sni-length"),
        (extension(0, b"\x00\x03\x00\x00\x01a"), "sni-length"),
        (extension(0, b"\x00\x05\x00\x00\x01ab"), "sni-several-names"),
    ],
)
def test_c7_more_or_less_than_one_name(sni: bytes, reason: str) -> None:
    assert read(records(message(sni))) == reason


# K3: no bytes raise


def check(stream: bytes) -> None:
    result = read(stream)
    assert result is None or isinstance(result, ClientHello | str)
    assert read_singly(stream[:300]) == read(stream[:300])


@given(st.binary(max_size=400))
def test_any_bytes(stream: bytes) -> None:
    check(stream)
    check(b"\x16\x03\x01" + stream)
    result = parse_client_hello(stream)
    assert isinstance(result, ClientHello | str)


@given(st.binary(max_size=200))
def test_any_extensions(data: bytes) -> None:
    assert isinstance(parse_client_hello(message(NAME, data)), ClientHello | str)
    assert isinstance(parse_client_hello(message(extension(0, data))), ClientHello | str)
    assert isinstance(parse_client_hello(message(extension(16, data))), ClientHello | str)


@given(data=st.data())
def test_real_hellos_with_damage(data: st.DataObject) -> None:
    hello = bytearray(data.draw(st.sampled_from(REAL)))
    for _ in range(data.draw(st.integers(1, 4))):
        hello[data.draw(st.integers(0, 4095)) % len(hello)] = data.draw(st.integers(0, 255))
    check(bytes(hello))


@given(data=st.data())
def test_a_server_hears_the_same_name_or_none(data: st.DataObject) -> None:
    """Whatever is done to a hello: when it is taken for a name, OpenSSL's server takes it for no other."""
    message = bytearray(hellos.message_of(data.draw(st.sampled_from(REAL))))
    name = message.find(b"example.com")
    # Close to the name and its lengths, in the lengths before it, or anywhere.
    places = st.integers(name - 12, name + 20) if name > 0 else st.integers(0, 100)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(places | st.integers(0, 80) | st.integers(0, 4095)) % len(message)
        message[place] = data.draw(st.sampled_from(b"\x00\x01\x02.a ") | st.integers(0, 255))
    if data.draw(st.booleans()):
        other = server_name(b"evil.example")
        at = data.draw(places) % len(message)
        message[at:at] = other
    stream = records(bytes(message), data.draw(st.lists(st.integers(1, 2000), max_size=5)))
    result = read(stream)
    if isinstance(result, ClientHello):
        assert hellos.heard_by_openssl(stream) in ([], [result.server_name])


def test_openssl_hears_what_is_read() -> None:
    for stream in REAL:
        assert hellos.heard_by_openssl(stream) == [b"example.com"]


def test_each_length_field_at_its_limits() -> None:
    hello = message(NAME, extension(16, b"\x00\x03\x02h2"))
    at = hello.index(NAME)
    fields = [(1, 3), (38, 1), (71, 2), (77, 1), (79, 2), (at + 2, 2), (at + 4, 2), (at + 7, 2)]
    for offset, width in [*fields, (at + len(NAME) + 2, 2), (at + len(NAME) + 4, 2), (at + len(NAME) + 6, 1)]:
        real = int.from_bytes(hello[offset : offset + width], "big")
        limit = (1 << 8 * width) - 1
        for value in {0, 1, max(real - 1, 0), min(real + 1, limit), limit} - {real}:
            damaged = hello[:offset] + value.to_bytes(width, "big") + hello[offset + width :]
            assert not isinstance(parse_client_hello(damaged), ClientHello) or offset == 77


def test_the_alert_is_what_a_client_takes_for_unrecognized_name() -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    connection.bio_write(tls_hello.tls_alert())
    with pytest.raises(SSL.Error, match="unrecognized name"):
        connection.do_handshake()
    assert tls_hello.tls_alert(40) == b"\x15\x03\x03\x00\x02\x02\x28"
