"""QUIC datagrams of a client: by aioquic's client, and packet by packet, encrypted by aioquic."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType, encode_long_header_first_byte

V1 = 0x00000001
V2 = 0x6B3343CF
CONNECTION = b"\x83\x94\xc8\xf0\x3e\x51\x57\x08"
PING = b"\x01"
ACK = b"\x02\x05\x00\x01\x02\x00\x00"  # 5, 4 and 3, then 1
ACK_ECN = b"\x03\x05\x40\x19\x00\x00\x01\x02\x03"


def client(
    name: str | None = "example.com", *, version: int = V1, large: bool = False, token: bytes = b""
) -> list[bytes]:
    """The first flight of aioquic's client; a large one has a transport parameter of 1200 bytes."""
    configuration = QuicConfiguration(
        is_client=True,
        server_name=name,
        alpn_protocols=["h3"],
        original_version=version,
        supported_versions=[version],
        quantum_readiness_test=large,
        token=token,
    )
    connection = QuicConnection(configuration=configuration)
    connection.connect(("192.0.2.1", 443), now=0.0)
    return [datagram for datagram, _ in connection.datagrams_to_send(now=0.0)]


def crypto(offset: int, data: bytes) -> bytes:
    return b"\x06" + encode_uint_var(offset) + encode_uint_var(len(data)) + data


def shards(message: bytes, sizes: Iterable[int]) -> list[bytes]:
    """The message as CRYPTO frames of these sizes, in order; the last takes what is left."""
    frames = []
    at = 0
    for size in sizes:
        if at + size < len(message):
            frames.append(crypto(at, message[at : at + size]))
            at += size
    return [*frames, crypto(at, message[at:])]


def packet(
    frames: bytes,
    number: int = 0,
    *,
    version: int = V1,
    connection: bytes = CONNECTION,
    source: bytes = b"",
    token: bytes = b"",
    width: int = 2,
    kind: QuicPacketType = QuicPacketType.INITIAL,
    key_connection: bytes | None = None,
    reserved: int = 0,
    pad: int = 0,
) -> bytes:
    """One protected packet. `pad`: PADDING frames up to this many bytes of packet."""
    buffer = Buffer(capacity=4096 + len(token))
    buffer.push_uint8(encode_long_header_first_byte(version, kind, width - 1 | reserved))
    buffer.push_uint32(version)
    for connection_id in (connection, source):
        buffer.push_uint8(len(connection_id))
        buffer.push_bytes(connection_id)
    if kind == QuicPacketType.INITIAL:
        buffer.push_uint_var(len(token))
        buffer.push_bytes(token)
    frames += bytes(max(pad - buffer.tell() - 2 - width - 16 - len(frames), 0))
    buffer.push_uint16(0x4000 | width + len(frames) + 16)
    buffer.push_bytes(struct.pack("!I", number)[-width:])
    pair = CryptoPair()
    pair.setup_initial(key_connection or connection, is_client=True, version=version)
    return pair.encrypt_packet(buffer.data, frames, number)


def datagram(*packets: bytes, size: int = 1200) -> bytes:
    """Coalesced packets, padded behind them."""
    return b"".join(packets).ljust(size, b"\x00")
