"""Initial packets: the RFCs' own, those of aioquic's client, and crafted ones (E3)."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from aioquic.quic.packet import QuicPacketType, encode_quic_retry, encode_quic_version_negotiation
from aioquic.quic.packet import decode_packet_number as aioquic_packet_number
from hypothesis import given
from hypothesis import strategies as st

from netstack.wire import quic_initial
from netstack.wire.quic_initial import InitialReader
from netstack.wire.tls_hello import ClientHello

from . import hellos, quic_vectors
from .quic_packets import ACK, ACK_ECN, CONNECTION, PING, V1, V2, client, crypto, datagram, packet, shards

HELLO = hellos.message(hellos.server_name(b"example.com"))
NAMED = ClientHello(b"example.com", False, ())
POST_QUANTUM = hellos.message_of(hellos.openssl())

versions = pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])


def read(*datagrams: bytes) -> ClientHello | str | None:
    reader = InitialReader()
    result = None
    for each in datagrams:
        result = reader.feed(each)
    return result


# Vectors and real clients


@pytest.mark.parametrize("vector", [quic_vectors.RFC_9001, quic_vectors.RFC_9369], ids=["rfc9001-a2", "rfc9369-a2"])
def test_the_packets_printed_in_the_rfcs(vector: bytes) -> None:
    assert read(vector) == ClientHello(b"example.com", False, (b"\x05\x04\x61\x6c\x70\x6e"[2:],))


@pytest.mark.parametrize(
    ("version", "key", "iv", "hp"),
    [
        # RFC 9001 appendix A.1 and RFC 9369 appendix A.1
        (V1, "1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c", "9f50449e04a0e810283a1e9933adedd2"),
        (V2, "8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f", "45b95e15235d6f45a6b19cbcb0294ba9"),
    ],
    ids=["rfc9001-a1", "rfc9369-a1"],
)
def test_the_keys_printed_in_the_rfcs(version: int, key: str, iv: str, hp: str) -> None:
    parameters = quic_initial._VERSIONS[version]
    secret = quic_initial._client_secret(parameters, CONNECTION)
    for name, length, expected in ((b"key", 16, key), (b"iv", 12, iv), (b"hp", 16, hp)):
        assert quic_initial._expand_label(secret, parameters.label + name, length).hex() == expected


@versions
def test_aioquic(version: int) -> None:
    assert read(*client("Example.com", version=version)) == ClientHello(b"Example.com", False, (b"h3",))
    assert read(*client("a.example", version=version, token=b"t" * 100)) == ClientHello(b"a.example", False, (b"h3",))
    assert read(*client(None, version=version)) == ClientHello(None, False, (b"h3",))


@versions
def test_aioquic_over_several_datagrams(version: int) -> None:
    first, *rest = client(version=version, large=True)
    assert rest
    reader = InitialReader()
    assert reader.feed(first) is None
    for each in rest:
        result = reader.feed(each)
    assert result == ClientHello(b"example.com", False, (b"h3",))
    assert read(*rest, first) == result  # in any order
    assert read(first, first, *rest, *rest) == result  # and more than once


# Crafted: what clients may do


@versions
def test_post_quantum_hello_over_two_datagrams(version: int) -> None:
    assert len(POST_QUANTUM) > 1300
    one = packet(crypto(0, POST_QUANTUM[:1100]), 0, version=version, pad=1200)
    two = packet(crypto(1100, POST_QUANTUM[1100:]), 1, version=version, pad=1200)
    assert read(one) is None
    assert read(one, two) == read(two, one) == read(one, one, two) == NAMED


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 300), max_size=30))
def test_shuffled_crypto_frames_as_chrome_sends_them(seed: int, sizes: list[int]) -> None:
    dice = random.Random(seed)
    frames = shards(POST_QUANTUM, sizes)
    frames += [bytes(dice.randint(1, 20)) for _ in range(10)] + [PING] * 5
    dice.shuffle(frames)
    # As many frames to a packet as fit.
    packets = [b""]
    for frame in frames:
        if len(packets[-1]) + len(frame) > 1100 and packets[-1]:
            packets.append(b"")
        packets[-1] += frame
    sent = [packet(each, number, pad=1200) for number, each in enumerate(packets)]
    assert read(*sent) == NAMED


def test_other_frames_and_coalesced_packets() -> None:
    frames = PING + ACK + bytes(3) + ACK_ECN + crypto(0, HELLO) + bytes(2) + PING
    assert read(packet(frames, pad=1200)) == NAMED
    half = len(HELLO) // 2
    first, second = packet(crypto(half, HELLO[half:]), 0), packet(crypto(0, HELLO[:half]), 1)
    early = packet(b"\x01" * 30, 0, kind=QuicPacketType.ZERO_RTT)
    assert read(datagram(first, early, second)) == NAMED
    # Behind the last packet padding without a packet, or a short header of which nothing can be said.
    assert read(datagram(packet(crypto(0, HELLO)), b"\x40" + bytes(30))) == NAMED
    assert read(packet(crypto(0, HELLO), pad=1200) + b"\xc0\x00\x00") == NAMED


def test_early_data_between_the_datagrams() -> None:
    one = packet(crypto(0, POST_QUANTUM[:1100]), 0, pad=1200)
    early = packet(b"\x01" * 30, 0, kind=QuicPacketType.ZERO_RTT)
    two = packet(crypto(1100, POST_QUANTUM[1100:]), 1, pad=1200)
    assert read(one, early, b"\x40 short header", b"", two) == NAMED


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("number", [0, 1, 2, 200])
@versions
def test_packet_numbers(version: int, width: int, number: int) -> None:
    for source in (b"", b"s" * 20):
        sent = packet(
            crypto(0, HELLO), number, version=version, width=width, source=source, connection=b"d" * 20, pad=1200
        )
        assert read(sent) == NAMED


@given(width=st.integers(1, 4), expected=st.integers(0, 2**62 - 1), data=st.data())
def test_packet_numbers_as_aioquic_decodes_them(width: int, expected: int, data: st.DataObject) -> None:
    truncated = data.draw(st.integers(0, (1 << 8 * width) - 1))
    theirs = aioquic_packet_number(truncated, 8 * width, expected)
    assert quic_initial._packet_number(truncated, width, expected) == theirs


def test_packet_number_of_the_rfc() -> None:
    assert quic_initial._packet_number(0x9B32, 2, 0xA82F30EB) == 0xA82F9B32  # RFC 9000 appendix A.3


def test_of_packets_with_one_number_the_first_counts() -> None:
    evil = hellos.message(hellos.server_name(b"evil.example"))
    one = packet(crypto(0, HELLO[:20]), 0, pad=1200)
    again = packet(crypto(20, evil[20:]), 0, pad=1200)
    rest = packet(crypto(20, HELLO[20:]), 1, pad=1200)
    assert read(one, again, rest) == NAMED


# Crafted: what no client does


def test_e3_overlap_with_other_bytes() -> None:
    evil = HELLO.replace(b"example", b"evilbad")
    one = packet(crypto(0, HELLO[:100]), 0, pad=1200)
    assert read(one, packet(crypto(80, HELLO[80:]), 1, pad=1200)) == NAMED
    assert read(one, packet(crypto(0, HELLO), 1, pad=1200)) == NAMED
    assert HELLO[80:100] != evil[80:100]
    assert read(one, packet(crypto(80, evil[80:]), 1, pad=1200)) == "quic-crypto-overlap"
    assert read(one, packet(crypto(0, evil), 1, pad=1200)) == "quic-crypto-overlap"
    gap = packet(crypto(0, HELLO[:10]) + crypto(90, HELLO[90:]) + crypto(0, evil), 1, pad=1200)
    assert read(gap) == "quic-crypto-overlap"


def test_a_gap_is_waited_for() -> None:
    assert read(packet(crypto(0, HELLO[:10]) + crypto(11, HELLO[11:]), pad=1200)) is None
    assert read(packet(crypto(1, HELLO[1:]), pad=1200)) is None
    assert read(packet(crypto(0, b"") + PING, pad=1200)) is None


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (crypto(0, HELLO) + crypto(len(HELLO), b"x"), "tls-trailing-bytes"),
        (crypto(0, HELLO[:9]) + crypto(len(HELLO) + 5, b"x"), "tls-trailing-bytes"),
        (crypto(65536, b"x"), "tls-too-long"),
        (crypto((1 << 62) - 1, b"x"), "tls-too-long"),
        (crypto(0, b"\x02" + HELLO[1:]), "tls-not-client-hello"),
        (crypto(0, b"\x01\xff\xff\xff"), "tls-too-long"),
        (crypto(0, hellos.message(hellos.server_name(b"a"), hellos.server_name(b"b"))), "tls-duplicate-extension"),
        (crypto(0, hellos.message(hellos.server_name(b"127.0.0.1"))), "sni-ip-literal"),
        (b"\x06", "quic-frame"),
        (b"\x06\x00\x45\x00abc", "quic-frame"),
        (b"\x06\x00\xff\xff\xff\xff\xff\xff\xff\xff", "quic-frame"),
        (b"\x40\x06\x00\x01a", "quic-frame-type"),
        (b"\x08\x00\x01a", "quic-frame-type"),
        (b"\x1c\x00\x00\x00", "quic-frame-type"),
        (b"\x1e", "quic-frame-type"),
        (b"\x02\x05\x00\xbf\xff\xff\xff\x00", "quic-frame"),
        (b"\x02", "quic-frame"),
        (b"\x03\x05\x00\x00\x00" + b"\xc0", "quic-frame"),
        (PING * 1025, "quic-too-many-frames"),
    ],
)
def test_e3_frames(frames: bytes, reason: str) -> None:
    # No PADDING behind them: a frame that is cut off ends the packet.
    assert read(datagram(packet(bytes(3) + frames))) == reason


def test_a_packet_without_frames() -> None:
    # Nothing but a packet number of four bytes and the tag: long enough to be opened.
    assert read(datagram(packet(b"", width=4))) == "quic-frame"


def test_reserved_bits() -> None:
    assert read(packet(crypto(0, HELLO), reserved=0x04, pad=1200)) == "quic-reserved-bits"
    assert read(packet(crypto(0, HELLO), reserved=0x08, pad=1200)) == "quic-reserved-bits"


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "not-quic"),
        (b"\x00" * 1200, "not-quic"),
        (b"GET / HTTP/1.1\r\n\r\n", "not-quic"),
        (b"\x40" + bytes(1199), "not-quic"),  # a short header
        (b"\x80\x00\x00\x00\x01" + bytes(1195), "not-quic"),  # the fixed bit is 0
        (b"\xc0\x00\x00\x00\x01", "not-quic"),
        (b"\xc0\x00\x00\x00\x02" + bytes(1195), "quic-version"),
        (b"\xc0\xfa\xda\xda\xda" + bytes(1195), "quic-version"),  # asks for version negotiation
        (b"\xc0Q050" + bytes(1195), "quic-version"),
        (b"\xe0\x00\x00\x00\x01\x08" + bytes(1194), "quic-not-initial"),  # Handshake
        (b"\xd0\x00\x00\x00\x01\x08" + bytes(1194), "quic-not-initial"),  # 0-RTT
        (b"\xf0\x00\x00\x00\x01\x08" + bytes(1194), "quic-not-initial"),  # Retry
        (b"\xc0\x6b\x33\x43\xcf\x08" + bytes(1194), "quic-not-initial"),  # Retry of version 2
        (b"\xc0\x00\x00\x00\x01\x15" + bytes(1194), "quic-connection-id"),
        (b"\xc0\x00\x00\x00\x01\x07" + bytes(1194), "quic-connection-id"),
        (b"\xc0\x00\x00\x00\x01\x00" + bytes(1194), "quic-connection-id"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(8) + b"\x15" + bytes(1185), "quic-connection-id"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(7), "quic-truncated"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(8), "quic-truncated"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(8) + b"\x05abcd", "quic-truncated"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(9), "quic-token"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(9) + b"\x40", "quic-token"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(9) + b"\x7f\xff" + bytes(1183), "quic-token"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(9) + b"\xff" * 8 + bytes(1183), "quic-token"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(10), "quic-length"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(10) + b"\x7f\xff" + bytes(1182), "quic-length"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(10) + b"\x13" + bytes(1183), "quic-length"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(10) + b"\x00" + bytes(1183), "quic-length"),
        (b"\xc0\x00\x00\x00\x01\x08" + bytes(10) + b"\x14" + bytes(1183), "quic-undecryptable"),
        (b"\xc0" + encode_quic_version_negotiation(CONNECTION, CONNECTION, [V1])[1:], "quic-version"),  # was random
        (encode_quic_retry(V1, CONNECTION, CONNECTION, CONNECTION, b"token"), "quic-not-initial"),
        (packet(crypto(0, HELLO)), "quic-short-datagram"),
        (datagram(packet(crypto(0, HELLO)), size=1199), "quic-short-datagram"),
        (packet(crypto(0, HELLO), key_connection=b"otherkey", pad=1200), "quic-undecryptable"),
    ],
)
def test_e3_headers(sent: bytes, reason: str) -> None:
    assert read(sent) == reason


def test_e3_one_connection_only() -> None:
    one = packet(crypto(0, HELLO[:20]), 0, pad=1200)
    rest = crypto(20, HELLO[20:])
    assert read(one, packet(rest, 1, connection=b"another1", pad=1200)) == "quic-other-connection"
    assert read(one, packet(rest, 1, version=V2, pad=1200)) == "quic-other-connection"
    coalesced = datagram(packet(crypto(0, HELLO)), packet(crypto(0, HELLO), 1, connection=b"another1"))
    assert read(coalesced) == "quic-other-connection"
    assert read(one, b"\xc0\x00\x00\x00\x09" + bytes(1200)) == "quic-version"
    assert read(one, packet(rest, 1)) == "quic-short-datagram"


def test_bounds() -> None:
    one = packet(crypto(0, HELLO[:20]), 0, pad=1200)
    assert read(*[one] * 7) is None
    assert read(*[one] * 8) == read(one, *[b""] * 7) == "quic-too-many-datagrams"
    assert read(one, bytes(65536)) == "quic-too-long"
    assert read(*[one] * 7, packet(crypto(20, HELLO[20:]), 1, pad=1200)) == NAMED
    small = packet(PING * 4)
    assert read(datagram(*[small] * 32)) is None
    assert read(datagram(*[small] * 33)) == "quic-too-many-packets"


def test_an_answer_stays() -> None:
    reader = InitialReader()
    first = reader.feed(packet(crypto(0, HELLO), pad=1200))
    assert reader.feed(b"") is reader.feed(client("evil.example")[0]) is first
    assert not reader._crypto._data


# K3: no bytes raise


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_any_bytes(datagrams: list[bytes]) -> None:
    assert isinstance(read(b"", *datagrams), str)
    read(packet(PING, pad=1200), *datagrams)
    for each in datagrams:
        read(b"\xc0\x00\x00\x00\x01\x08" + each)
        read(datagram(b"\xd0\x6b\x33\x43\xcf\x08" + each))


@given(st.binary(max_size=300))
def test_any_frames(frames: bytes) -> None:
    assert isinstance(read(packet(frames, pad=1200)), ClientHello | str | None)


@given(data=st.data())
def test_real_packets_with_damage(data: st.DataObject) -> None:
    sent = bytearray(data.draw(st.sampled_from([quic_vectors.RFC_9001, quic_vectors.RFC_9369])))
    for _ in range(data.draw(st.integers(1, 3))):
        sent[data.draw(st.integers(0, 40) | st.integers(0, 1199))] ^= data.draw(st.integers(1, 255))
    # All of a packet is authenticated: nothing can be changed and still say a name.
    assert isinstance(read(bytes(sent)), str) or sent in (quic_vectors.RFC_9001, quic_vectors.RFC_9369)
    cut = data.draw(st.integers(0, 1199))
    assert isinstance(read(quic_vectors.RFC_9001[:cut]), str)


def test_cryptography_is_loaded_with_the_first_packet_only() -> None:
    program = (
        "import sys; import netstack.engine.peek as peek; assert 'cryptography' not in sys.modules;"
        "peek.DatagramPeek(strict_ech=False).feed(bytes.fromhex(sys.argv[1])); assert 'cryptography' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, quic_vectors.RFC_9001.hex()], check=True)
