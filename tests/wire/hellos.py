"""TLS ClientHellos: by real clients in memory, and by hand where a real one would not say such things."""

from __future__ import annotations

import contextlib
import ssl
import struct
import warnings
from collections.abc import Iterable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from OpenSSL import SSL

RECORD_HEADER = 5
KEY_SHARE = 51
X25519MLKEM768 = 0x11EC
ECH = 0xFE0D

_ECH_GREASE = 1 << 37  # SSL_OP_ECH_GREASE of OpenSSL 4.0, which pyOpenSSL has no name for


def python_ssl(name: str | None = "example.com", alpn: Iterable[str] = ()) -> bytes:
    """What Python's ssl sends first: the system's OpenSSL."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")


def openssl(name: bytes | None = b"example.com", *, version: int = 0, ech: bool = False) -> bytes:
    """What the newest OpenSSL sends first: with a post-quantum key share, unless `version` is older than TLS 1.3."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    if version:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if ech:
        context.set_options(_ECH_GREASE)
    connection = SSL.Connection(context, None)
    if name is not None:
        connection.set_tlsext_host_name(name)
    connection.set_connect_state()
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        return connection.bio_read(1 << 16)
    raise AssertionError("a handshake without a server")


def heard_by_openssl(stream: bytes) -> list[bytes | None]:
    """The names for which an OpenSSL server is asked to choose a certificate when it reads this."""
    names: list[bytes | None] = []
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_tlsext_servername_callback(lambda connection: names.append(connection.get_servername()))
    connection = SSL.Connection(context, None)
    connection.set_accept_state()
    connection.bio_write(stream)
    with contextlib.suppress(SSL.Error):
        connection.do_handshake()
    return names


def message_of(stream: bytes) -> bytes:
    """The handshake message inside one record."""
    assert struct.unpack_from("!H", stream, 3)[0] == len(stream) - RECORD_HEADER
    return stream[RECORD_HEADER:]


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack("!HH", kind, len(data)) + data


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(struct.pack("!BH", kind, len(name)) + name for name in names)
    return extension(0, struct.pack("!H", len(entries)) + entries)


def body(
    *extensions: bytes, version: int = 0x0303, session_id: bytes = bytes(32), suites: bytes = b"\x13\x01\x13\x02"
) -> bytes:
    """A hello without its four bytes of header; at least one extension, empty strings count."""
    joined = b"".join(extensions)
    return (
        struct.pack("!H32sB", version, bytes(range(32)), len(session_id))
        + session_id
        + struct.pack("!H", len(suites))
        + suites
        + b"\x01\x00"
        + (struct.pack("!H", len(joined)) + joined if extensions else b"")
    )


def message(*extensions: bytes) -> bytes:
    return handshake(body(*extensions))


def handshake(content: bytes, kind: int = 1) -> bytes:
    return bytes((kind,)) + len(content).to_bytes(3, "big") + content


def records(handshake_message: bytes, sizes: Iterable[int] = (), version: int = 0x0301) -> bytes:
    """The message in records: of the given sizes, what is left over in records as large as may be."""
    out = bytearray()
    at = 0
    remaining = iter(sizes)
    while at < len(handshake_message):
        part = handshake_message[at : at + next(remaining, 16384)]
        out += struct.pack("!BHH", 0x16, version, len(part)) + part
        at += len(part)
    return bytes(out)
