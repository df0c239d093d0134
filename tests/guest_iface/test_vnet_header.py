"""The virtio_net_hdr, and the frames that are finished by it, against scapy's idea of a right one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from guest_iface.vnet_header import (
    BAD_HEADER,
    GSO_NONE,
    GSO_TCPV4,
    NEEDS_CSUM,
    SIZE,
    VnetHeader,
    complete,
    decode,
    finish,
)

ENDS = {"src": "192.168.127.2", "dst": "192.168.127.3"}
FIELD = st.integers(0, 0xFFFF)
HEADERS = st.builds(VnetHeader, st.integers(0, 255), st.integers(0, 255), FIELD, FIELD, FIELD, FIELD)


def framed(packet: Packet, *, tagged: bool = False) -> bytes:
    """A frame between two guests, every sum in it right."""
    tag = Dot1Q(vlan=7) if tagged else None
    outer = Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:0b")
    return bytes(outer / tag / packet if tag else outer / packet)


def partial(frame: bytes, start: int, offset: int) -> bytes:
    """The frame as it leaves a kernel with offload: the pseudo-header's sum in place of the checksum."""
    ip = next(at for at in (14, 18) if at + 20 == start)
    words = struct.unpack("!4H", frame[ip + 12 : ip + 20])
    total = sum(words) + frame[ip + 9] + len(frame) - start
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return frame[: start + offset] + total.to_bytes(2, "big") + frame[start + offset + 2 :]


@given(HEADERS)
def test_what_is_encoded_is_decoded(header: VnetHeader) -> None:
    assert len(header.encode()) == SIZE == 10
    assert decode(header.encode() + b"frame") == header


def test_the_layout_is_the_kernels() -> None:
    """linux/virtio_net.h: flags, gso_type, then four 16-bit fields in the machine's own order."""
    assert VnetHeader(1, 2, 3, 4, 5, 6).encode() == struct.pack("=BBHHHH", 1, 2, 3, 4, 5, 6)


def test_a_frame_that_needs_nothing_stays_as_it_is() -> None:
    frame = framed(IP(**ENDS) / UDP() / Raw(b"x"))
    assert finish(VnetHeader(), frame) == [frame]


@given(st.binary(max_size=300), st.booleans(), st.sampled_from([(UDP, 6), (TCP, 16)]))
def test_a_checksum_is_completed(text: bytes, tagged: bool, kind: tuple[type[Packet], int]) -> None:
    layer, offset = kind
    whole = framed(IP(**ENDS) / layer() / Raw(text), tagged=tagged)
    start = 38 if tagged else 34
    header = VnetHeader(NEEDS_CSUM, checksum_start=start, checksum_offset=offset)
    [finished] = finish(header, partial(whole, start, offset))
    assert finished == whole


@given(st.binary(max_size=4000))
def test_a_large_frame_is_completed_in_one_piece(text: bytes) -> None:
    whole = framed(IP(**ENDS) / TCP() / Raw(text))
    header = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16)
    assert complete(header, partial(whole, 34, 16)) == [whole]
    assert complete(VnetHeader(), whole) == [whole]


@given(HEADERS, st.binary(max_size=200))
def test_whatever_a_guest_writes_is_completed_or_refused(header: VnetHeader, frame: bytes) -> None:
    made = complete(header, frame)
    assert made == BAD_HEADER or list(map(len, made)) == [len(frame)]


def test_a_udp_checksum_of_zero_is_written_as_ones() -> None:
    """RFC 768: nothing but zeros says that there is none."""
    checksum = framed(IP(**ENDS) / UDP() / Raw(bytes(2)))[40:42]
    datagram = framed(IP(**ENDS) / UDP() / Raw(checksum))  # the sum of everything is now 0xFFFF, its complement 0
    assert datagram[40:42] == b"\xff\xff"
    header = VnetHeader(NEEDS_CSUM, checksum_start=34, checksum_offset=6)
    assert finish(header, partial(datagram, 34, 6)) == [datagram]


@given(
    text=st.binary(min_size=0, max_size=4000),
    size=st.integers(48, 2000),
    sequence=st.integers(0, 0xFFFFFFFF),
    flags=st.sampled_from(["A", "PA", "FPA", "PAC"]),
    tagged=st.booleans(),
    options=st.sampled_from([[], [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]]),
)
def test_a_large_frame_is_cut_into_segments(
    text: bytes,
    size: int,
    sequence: int,
    flags: str,
    tagged: bool,
    options: list[tuple[str, object]],
) -> None:
    large = framed(IP(**ENDS, id=0xFFFF) / TCP(seq=sequence, flags=flags, options=options) / Raw(text), tagged=tagged)
    start = 38 if tagged else 34
    head = start + (32 if options else 20)
    header = VnetHeader(NEEDS_CSUM, GSO_TCPV4, head, size, start, 16)
    made = finish(header, partial(large, start, 16))
    assert not isinstance(made, str)
    pieces = [text[at : at + size] for at in range(0, len(text), size)] or [b""]
    assert len(made) == len(pieces)
    for number, (frame, piece) in enumerate(zip(made, pieces, strict=True)):
        last = number == len(pieces) - 1
        expected = "".join(flag for flag in flags if (last or flag not in "FP") and (not number or flag != "C"))
        packet = TCP(seq=(sequence + number * size) & 0xFFFFFFFF, flags=expected, options=options) / Raw(piece)
        assert frame == framed(IP(**ENDS, id=(0xFFFF + number) & 0xFFFF) / packet, tagged=tagged)


@given(HEADERS, st.binary(max_size=200))
@example(VnetHeader(NEEDS_CSUM, GSO_TCPV4, 0, 48, 0, 0), bytes(20))  # too short for an IPv4 header anywhere
def test_whatever_a_guest_writes_is_finished_or_refused(header: VnetHeader, frame: bytes) -> None:
    made = finish(header, frame)
    assert made == BAD_HEADER or all(isinstance(each, bytes) for each in made)


@given(header=HEADERS, text=st.binary(max_size=3000))
def test_a_wrong_header_on_a_right_frame(header: VnetHeader, text: bytes) -> None:
    frame = framed(IP(**ENDS) / TCP() / Raw(text))
    for gso in (GSO_NONE, GSO_TCPV4, 0x81):
        made = finish(header._replace(flags=NEEDS_CSUM, gso_type=gso), frame)
        assert isinstance(made, str) or sum(map(len, made)) >= len(frame)


@pytest.mark.parametrize(
    "changes",
    [
        {"segment_size": 47},
        {"segment_size": 0},
        {"gso_type": 3},
        {"flags": 0},
        {"checksum_start": 30},
        {"checksum_start": 0xFFFF},
        {"checksum_start": 0},
    ],
    ids=str,
)
def test_refused(changes: dict[str, int]) -> None:
    frame = framed(IP(**ENDS) / TCP() / Raw(bytes(3000)))
    header = VnetHeader(NEEDS_CSUM, GSO_TCPV4, 54, 1460, 34, 16)
    assert len(finish(header, frame)) == 3
    assert finish(header._replace(**changes), frame) == BAD_HEADER
