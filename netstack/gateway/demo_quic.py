"""The first datagram of a QUIC client (RFC 9000 section 17.2.2), for the demonstration's guest: it says a name.

Made with OpenSSL's hello and the public Initial keys (RFC 9001 section 5.2); none of our wire code has a part in it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import ssl
import struct
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_SALT: Final = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
_VERSION: Final = b"\x00\x00\x00\x01"
_SIZE: Final = 1200
"""Bytes a client's first datagram has at least (RFC 9000 section 14.1)."""
_NUMBER: Final = bytes(4)
"""The packet number, in as many bytes as there can be."""
_TAG: Final = 16
_RECORD: Final = 5


def initial_datagram(name: str) -> bytes:
    """An Initial packet whose ClientHello asks for `name`."""
    hello = _client_hello(name)
    connection = os.urandom(8)
    head = b"\xc3" + _VERSION + bytes((len(connection),)) + connection + b"\x00\x00"
    length = _SIZE - len(head) - 2
    head += struct.pack("!H", 0x4000 | length) + _NUMBER
    frame = b"\x06\x00" + struct.pack("!H", 0x4000 | len(hello)) + hello
    secret = hmac.digest(_SALT, connection, hashlib.sha256)
    client = _expand(secret, b"client in", 32)
    key, nonce, mask_key = (
        _expand(client, b"quic " + word, size) for word, size in ((b"key", 16), (b"iv", 12), (b"hp", 16))
    )
    sealed = AESGCM(key).encrypt(nonce, frame.ljust(length - len(_NUMBER) - _TAG, b"\x00"), head)
    encryptor = Cipher(algorithms.AES(mask_key), modes.ECB()).encryptor()  # noqa: S305 - as RFC 9001 section 5.4.3 has it
    mask = encryptor.update(sealed[:16])
    number = bytes(one ^ other for one, other in zip(_NUMBER, mask[1:5], strict=True))
    return bytes((head[0] ^ (mask[0] & 0x0F),)) + head[1 : -len(_NUMBER)] + number + sealed


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1) without a context."""
    label = b"tls13 " + label
    return HKDFExpand(SHA256(), size, struct.pack("!HB", size, len(label)) + label + b"\x00").derive(secret)


def _client_hello(name: str) -> bytes:
    """OpenSSL's ClientHello, taken out of its records. With one small key share it fits a datagram."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h3"])
    context.set_ecdh_curve("prime256v1")
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        records = out.read()
    hello = b""
    while records:
        end = _RECORD + int.from_bytes(records[3:5], "big")
        hello += records[_RECORD:end]
        records = records[end:]
    return hello
