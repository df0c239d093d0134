"""The TLS ClientHello inside a QUIC client's first packets (RFC 9000, RFC 9001; version 2: RFC 9369).

Initial packets are encrypted with keys that follow from the packet itself: that keeps middleboxes from tampering by
accident, and hides nothing. They are read here as a server reads them; what a server would discard, or close the
connection for, is a fault: a reason word.
"""

from __future__ import annotations

import hmac
import re
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from netstack.wire.tls_hello import MAX_HELLO, ClientHello, client_hello_size, parse_client_hello

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION_1: Final = 0x00000001
VERSION_2: Final = 0x6B3343CF

MIN_DATAGRAM: Final = 1200
"""Bytes. Clients pad what carries an Initial packet to this, servers discard shorter ones (RFC 9000 section 14.1)."""
MAX_DATAGRAMS: Final = 8
MAX_BYTES: Final = 65536
MAX_PACKETS: Final = 32
"""Coalesced ones counted singly."""
MAX_FRAMES: Final = 1024
"""CRYPTO, PING and ACK frames over all datagrams. Chrome's shuffled hellos have a few dozen."""

_MAX_CONNECTION_ID: Final = 20  # RFC 9000 section 17.2
_MIN_FIRST_CONNECTION_ID: Final = 8  # RFC 9000 section 7.2
_TAG: Final = 16
_SAMPLE: Final = 16
_SAMPLE_OFFSET: Final = 4  # from the packet number, as if that had four bytes (RFC 9001 section 5.4.2)
_MAX_VARINT: Final = (1 << 62) - 1

# The first byte of a packet.
_LONG: Final = 0x80
_FIXED: Final = 0x40
_RESERVED: Final = 0x0C

# The frames that an Initial packet may carry, but for CONNECTION_CLOSE, which opens nothing (RFC 9000 section 12.4).
_PADDING: Final = 0x00
_PING: Final = 0x01
_ACK: Final = 0x02
_ACK_ECN: Final = 0x03
_CRYPTO: Final = 0x06

_VERSION_AND_ID = Struct("!BIB")  # first byte, version, length of the destination connection id
_AFTER_PADDING = re.compile(rb"[^\x00]")


class _Version(NamedTuple):
    types: tuple[int, int, int, int]  # long packet types of Initial, 0-RTT, Handshake, Retry
    salt: bytes
    label: bytes


_VERSIONS: Final = {
    # RFC 9001 sections 5.1 and 5.2
    VERSION_1: _Version((0, 1, 2, 3), bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), b"quic "),
    # RFC 9369 sections 3.2 and 3.3
    VERSION_2: _Version((1, 2, 3, 0), bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), b"quicv2 "),
}


class _Header(NamedTuple):
    """A long header that can be skipped or opened. The packet is `start` to `end`, its number at `number`."""

    initial: bool
    version: int
    connection_id: bytes
    start: int
    number: int
    end: int


class _FaultError(Exception):
    """Carries the reason word out of the readers below; never leaves this file."""


class InitialReader:
    """Reads the hello of one connection out of a client's datagrams. All Initial packets must be of that connection."""

    def __init__(self) -> None:
        self._version = 0
        self._connection_id = b""
        self._keys: _ClientKeys | None = None
        self._numbers: set[int] = set()
        self._crypto = _CryptoData()
        self._datagrams = self._bytes = self._packets = self._frames = 0
        self._result: ClientHello | str | None = None

    def feed(self, datagram: bytes) -> ClientHello | str | None:
        """The next datagram, whole. None: more are needed; a reason word: this names no server.

        `not-quic` is said of a first datagram that is no QUIC at all, by its first bytes.
        """
        if self._result is None:
            try:
                self._result = self._read_datagram(datagram)
            except _FaultError as fault:
                self._result = str(fault)
            if self._result is not None:
                self._crypto = _CryptoData()
        return self._result

    def _read_datagram(self, datagram: bytes) -> ClientHello | str | None:
        self._datagrams += 1
        self._bytes += len(datagram)
        if self._bytes > MAX_BYTES:
            return "quic-too-long"
        if not self._keys and not _is_long(datagram, 0):
            return "not-quic"
        at = 0
        # Behind the last packet there may be padding, or packets whose keys nobody has yet: both are no long header.
        while _is_long(datagram, at):
            header = _parse_header(datagram, at)
            self._packets += 1
            if self._packets > MAX_PACKETS:
                return "quic-too-many-packets"
            keys = self._keys
            if keys is None:
                keys = self._begin(header)
            elif header.version != self._version or (header.initial and header.connection_id != self._connection_id):
                return "quic-other-connection"
            if header.initial:
                if len(datagram) < MIN_DATAGRAM:
                    return "quic-short-datagram"
                self._read_packet(keys, datagram, header)
            at = header.end
        result = self._crypto.hello()
        if result is None and self._datagrams >= MAX_DATAGRAMS:
            return "quic-too-many-datagrams"
        return result

    def _begin(self, header: _Header) -> _ClientKeys:
        if not header.initial:
            raise _FaultError("quic-not-initial")
        if len(header.connection_id) < _MIN_FIRST_CONNECTION_ID:
            raise _FaultError("quic-connection-id")
        self._version = header.version
        self._connection_id = header.connection_id
        self._keys = keys = _ClientKeys(_VERSIONS[header.version], header.connection_id)
        return keys

    def _read_packet(self, keys: _ClientKeys, datagram: bytes, header: _Header) -> None:
        number, payload = keys.open(datagram, header, max(self._numbers, default=-1))
        # RFC 9000 section 12.3: of packets with one number only the first counts.
        if number not in self._numbers:
            self._numbers.add(number)
            self._read_frames(payload)

    def _read_frames(self, payload: bytes) -> None:
        size = len(payload)
        if not size:
            raise _FaultError("quic-frame")  # RFC 9000 section 12.4: at least one
        at = 0
        while at < size:
            # One byte: RFC 9000 section 12.4 demands the shortest form.
            kind = payload[at]
            if kind == _PADDING:
                behind = _AFTER_PADDING.search(payload, at)
                at = behind.start() if behind else size
                continue
            self._frames += 1
            if self._frames > MAX_FRAMES:
                raise _FaultError("quic-too-many-frames")
            at += 1
            if kind == _CRYPTO:
                offset, at = _varint(payload, at, "quic-frame")
                length, at = _varint(payload, at, "quic-frame")
                if length > size - at:
                    raise _FaultError("quic-frame")
                self._crypto.add(offset, payload[at : at + length])
                at += length
            elif kind in (_ACK, _ACK_ECN):
                at = _skip_ack(payload, at, ecn=kind == _ACK_ECN)
            elif kind != _PING:
                raise _FaultError("quic-frame-type")


class _CryptoData:
    """The handshake stream, put together by offset. Every byte has one value: the one that came first."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._present = bytearray()  # 0xFF where there is a byte, 0 in the gaps
        self._contiguous = 0

    def add(self, offset: int, fragment: bytes) -> None:
        size = len(fragment)
        end = offset + size
        if end > MAX_HELLO:
            raise _FaultError("tls-too-long")
        data, present = self._data, self._present
        if end > len(data):
            data.extend(bytes(end - len(data)))
            present.extend(bytes(end - len(present)))
        known = present[offset:end]
        if any(known):
            # All positions at once; only those count where there was a byte.
            difference = int.from_bytes(data[offset:end], "big") ^ int.from_bytes(fragment, "big")
            if difference & int.from_bytes(known, "big"):
                raise _FaultError("quic-crypto-overlap")
        data[offset:end] = fragment
        present[offset:end] = b"\xff" * size
        gap = present.find(0, self._contiguous)
        self._contiguous = gap if gap >= 0 else len(present)

    def hello(self) -> ClientHello | str | None:
        """The hello once it is whole; nothing may lie behind it before the server has answered."""
        if self._contiguous < 4:
            return None
        size = client_hello_size(self._data)
        if isinstance(size, str):
            return size
        if len(self._data) > size:
            return "tls-trailing-bytes"
        return parse_client_hello(bytes(self._data)) if self._contiguous == size else None


class _ClientKeys:
    """What protects a client's Initial packets: AES-128-GCM and AES-128 header protection (RFC 9001 section 5)."""

    def __init__(self, version: _Version, connection_id: bytes) -> None:
        # Loaded with the first QUIC flow: only those who use it wait for it.
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        secret = _client_secret(version, connection_id)
        self._iv = int.from_bytes(_expand_label(secret, version.label + b"iv", 12), "big")
        self._decrypt: Callable[[bytes, bytes, bytes], bytes] = AESGCM(
            _expand_label(secret, version.label + b"key", 16)
        ).decrypt
        header_key = _expand_label(secret, version.label + b"hp", 16)
        # ECB of one block: what header protection is made of, nothing is encrypted with it.
        self._mask: Callable[[bytes], bytes] = Cipher(algorithms.AES(header_key), modes.ECB()).encryptor().update  # noqa: S305 - see above
        self._invalid = InvalidTag

    def open(self, datagram: bytes, header: _Header, largest: int) -> tuple[int, bytes]:
        """The packet's number and its frames. `largest` number seen before, -1 for none."""
        sample = header.number + _SAMPLE_OFFSET
        if sample + _SAMPLE > header.end:
            raise _FaultError("quic-length")
        mask = self._mask(datagram[sample : sample + _SAMPLE])
        first = datagram[header.start] ^ (mask[0] & 0x0F)
        width = (first & 0x03) + 1
        payload = header.number + width
        number_bytes = bytes(a ^ b for a, b in zip(datagram[header.number : payload], mask[1:], strict=False))
        number = _packet_number(int.from_bytes(number_bytes, "big"), width, largest + 1)
        nonce = (self._iv ^ number).to_bytes(12, "big")
        associated = bytes((first,)) + datagram[header.start + 1 : header.number] + number_bytes
        try:
            frames = self._decrypt(nonce, datagram[payload : header.end], associated)
        except self._invalid:
            raise _FaultError("quic-undecryptable") from None
        if first & _RESERVED:  # RFC 9000 section 17.2: only now is it known that the sender meant them
            raise _FaultError("quic-reserved-bits")
        return number, frames


def _client_secret(version: _Version, connection_id: bytes) -> bytes:
    """What a client's Initial keys are made from (RFC 9001 section 5.2)."""
    return _expand_label(hmac.digest(version.salt, connection_id, "sha256"), b"client in", 32)


def _expand_label(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1), up to one block of SHA-256, 32 bytes."""
    label = b"tls13 " + label
    info = bytes((0, length, len(label))) + label + b"\x00"
    return hmac.digest(secret, info + b"\x01", "sha256")[:length]


def _packet_number(truncated: int, width: int, expected: int) -> int:
    """The whole packet number, nearest to the expected one (RFC 9000 appendix A.3)."""
    window = 1 << 8 * width
    half = window >> 1
    candidate = expected & -window | truncated
    if candidate <= expected - half and candidate <= _MAX_VARINT - window:
        return candidate + window
    if candidate > expected + half and candidate >= window:
        return candidate - window
    return candidate


def _is_long(datagram: bytes, at: int) -> bool:
    """Whether a packet with a long header may begin here."""
    return len(datagram) - at >= _VERSION_AND_ID.size and datagram[at] & (_LONG | _FIXED) == _LONG | _FIXED


def _parse_header(datagram: bytes, start: int) -> _Header:
    """Read the part of a long header that is not protected (RFC 9000 section 17.2)."""
    first, version, length = _VERSION_AND_ID.unpack_from(datagram, start)
    known = _VERSIONS.get(version)
    if known is None:  # 0, version negotiation, among them: only servers send that
        raise _FaultError("quic-version")
    connection_id, at = _connection_id(datagram, start + _VERSION_AND_ID.size, length)
    if at == len(datagram):
        raise _FaultError("quic-truncated")
    _, at = _connection_id(datagram, at + 1, datagram[at])
    initial, _, _, retry = known.types
    kind = first >> 4 & 0x03
    if kind == retry:
        raise _FaultError("quic-not-initial")
    if kind == initial:
        token, at = _varint(datagram, at, "quic-token")
        if token > len(datagram) - at:
            raise _FaultError("quic-token")
        at += token
    length, at = _varint(datagram, at, "quic-length")
    if length > len(datagram) - at:
        raise _FaultError("quic-length")
    return _Header(kind == initial, version, connection_id, start, at, at + length)


def _connection_id(datagram: bytes, at: int, length: int) -> tuple[bytes, int]:
    if length > _MAX_CONNECTION_ID:
        raise _FaultError("quic-connection-id")
    end = at + length
    if end > len(datagram):
        raise _FaultError("quic-truncated")
    return datagram[at:end], end


def _varint(data: bytes, at: int, fault: str) -> tuple[int, int]:
    """An integer and where it ends (RFC 9000 section 16)."""
    if at >= len(data):
        raise _FaultError(fault)
    first = data[at]
    end = at + (1 << (first >> 6))
    if end > len(data):
        raise _FaultError(fault)
    if end == at + 1:
        return first, end
    return int.from_bytes(data[at:end], "big") & (1 << 8 * (end - at) - 2) - 1, end


def _skip_ack(payload: bytes, at: int, *, ecn: bool) -> int:
    """Where an ACK frame ends (RFC 9000 section 19.3)."""
    _, at = _varint(payload, at, "quic-frame")  # largest acknowledged
    _, at = _varint(payload, at, "quic-frame")  # delay
    ranges, at = _varint(payload, at, "quic-frame")
    # The first range, then a gap and a range each, then the three ECN counts. Two bytes a range at the least.
    if 2 * ranges > len(payload) - at:
        raise _FaultError("quic-frame")
    for _ in range(1 + 2 * ranges + (3 if ecn else 0)):
        _, at = _varint(payload, at, "quic-frame")
    return at
