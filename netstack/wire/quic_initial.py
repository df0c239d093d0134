"""The TLS ClientHello inside a QUIC client's first packets (RFC 9000, RFC 9001; version 2: RFC 9369).

Initial packets are encrypted with keys that follow from the packet itself: that keeps middleboxes from tampering by
accident, and hides nothing. Read here as a server reads them; what a server would discard or close the connection for is
a fault, a reason word.
"""

from __future__ import annotations

import hmac
import re
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from netstack.wire.tls_hello import MAX_HELLO, ClientHello, client_hello_size, parse_client_hello

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION_1: Final = 0x00000001
VERSION_2: Final = 0x6B3343CF

MIN_DATAGRAM: Final = 1200
"""Bytes. Clients pad every datagram with an Initial packet to this, servers discard shorter ones (RFC 9000 section 14.1)."""
MAX_DATAGRAMS: Final = 8
MAX_BYTES: Final = 65536
MAX_FRAMES: Final = 1024
"""CRYPTO, PING and ACK frames over all datagrams. Chrome's shuffled hellos have a few dozen."""

_MAX_CONNECTION_ID: Final = 20
_MIN_FIRST_CONNECTION_ID: Final = 8  # RFC 9000 section 7.2
_TAG: Final = 16
_SAMPLE: Final = 16
_MAX_PACKET_NUMBER: Final = 4  # bytes

# Header bits.
_LONG: Final = 0x80
_FIXED: Final = 0x40
_RESERVED: Final = 0x0C

# Frame types of an Initial packet (RFC 9000 section 12.4).
_PING: Final = 0x01
_ACK: Final = 0x02
_ACK_ECN: Final = 0x03
_CRYPTO: Final = 0x06

_VERSION_AND_ID = Struct("!BIB")  # first byte, version, length of the destination connection id
_AFTER_PADDING = re.compile(rb"[^\x00]")


class _Version(NamedTuple):
    initial_type: int
    salt: bytes
    label: bytes


_VERSIONS: Final = {
    VERSION_1: _Version(0, bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), b"quic "),  # RFC 9001 section 5.2
    VERSION_2: _Version(1, bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), b"quicv2 "),  # RFC 9369 section 3
}


class _FaultError(Exception):
    """Carries the reason word out of the readers below; never leaves this file."""


class InitialReader:
    """Reads the hello of one connection out of a client's datagrams. All Initial packets must be of that connection."""

    def __init__(self) -> None:
        self._version = 0
        self._connection_id = b""
        self._keys: _ClientKeys | None = None
        self._packet_numbers: set[int] = set()
        self._crypto = _CryptoData()
        self._datagrams = 0
        self._bytes = 0
        self._frames = 0
        self._result: ClientHello | str | None = None

    def feed(self, datagram: bytes) -> ClientHello | str | None:
        """The next datagram, whole. None: more are needed; a reason word: this names no server."""
        if self._result is None:
            try:
                self._result = self._read(datagram)
            except _FaultError as fault:
                self._result = str(fault)
            if self._result is not None:
                self._crypto = _CryptoData()
        return self._result
