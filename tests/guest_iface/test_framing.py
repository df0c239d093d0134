"""Length prefixes: any split of a stream gives the same frames, and no announced length is believed beyond its
bounds.
"""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_iface.framing import BIG_ENDIAN_32, LITTLE_ENDIAN_16, FrameReader, Framing
from guest_iface.link import LinkError

FRAMINGS = {"big-endian 32": (BIG_ENDIAN_32, ">I"), "little-endian 16": (LITTLE_ENDIAN_16, "<H")}
"""The second of each is written down here a second time: the tests do not encode with what they test."""


def encode(layout: str, frames: list[bytes]) -> bytes:
    return b"".join(struct.pack(layout, len(frame)) + frame for frame in frames)


def feed(reader: FrameReader, data: bytes) -> list[bytes]:
    """Read data in as a link does: as much as there is room for, then take everything."""
    frames: list[bytes] = []
    while data:
        room = reader.room()
        assert len(room) > 0
        count = min(len(room), len(data))
        room[:count] = data[:count]
        reader.filled(count)
        data = data[count:]
        while batch := reader.take(64):
            assert len(batch) <= 64
            frames += batch
    return frames


@pytest.mark.parametrize("which", FRAMINGS)
@given(
    sizes=st.lists(st.one_of(st.integers(14, 200), st.integers(60_000, 65_535)), max_size=12),
    cuts=st.lists(st.integers(0, 200_000), max_size=40),
    read_bytes=st.sampled_from([1, 7, 100, 70_000, 1 << 20]),
)
def test_any_split_gives_the_same_frames(which: str, sizes: list[int], cuts: list[int], read_bytes: int) -> None:
    framing, layout = FRAMINGS[which]
    if sum(sizes) > 3000 and read_bytes < 70_000:
        read_bytes = 70_000  # a read a byte is for small streams: this is a test, not a benchmark
    frames = [bytes([number]) * size for number, size in enumerate(sizes)]
    stream = encode(layout, frames)
    reader = FrameReader(framing, "test", size=read_bytes)
    received: list[bytes] = []
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, end in itertools.pairwise(edges):
        received += feed(reader, stream[start:end])
    assert received == frames
    reader.check_end()


@pytest.mark.parametrize("which", FRAMINGS)
@given(data=st.binary(max_size=300))
def test_garbage_gives_frames_or_an_error_and_nothing_else(which: str, data: bytes) -> None:
    framing, layout = FRAMINGS[which]
    reader = FrameReader(framing, "test", size=64)
    consumed = 0
    try:
        for frame in feed(reader, data):
            assert framing.shortest <= len(frame) <= framing.longest
            consumed += struct.calcsize(layout) + len(frame)
        reader.check_end()
    except LinkError:
        return
    assert consumed == len(data)


@pytest.mark.parametrize("which", FRAMINGS)
def test_one_byte_at_a_time(which: str) -> None:
    framing, layout = FRAMINGS[which]
    frames = [bytes([number]) * (14 + 700 * number) for number in range(8)]
    reader = FrameReader(framing, "test")
    received: list[bytes] = []
    for byte in encode(layout, frames):
        received += feed(reader, bytes([byte]))
    assert received == frames


@pytest.mark.parametrize("length", [0, 13, 65_551, 2**31, 2**32 - 1])
def test_a_length_out_of_bounds_is_named_with_the_bounds(length: int) -> None:
    reader = FrameReader(BIG_ENDIAN_32, "qemu unix:///net")
    good = bytes(60)
    data = encode(">I", [good]) + struct.pack(">I", length) + bytes(100)
    room = reader.room()
    room[: len(data)] = data
    reader.filled(len(data))
    assert reader.take(64) == [good]  # what came before it is delivered first
    with pytest.raises(LinkError, match=rf"qemu unix:///net: .* {length} bytes .* 14 to 65550"):
        reader.take(64)


@pytest.mark.parametrize("length", [0, 13])
def test_a_short_16_bit_length_is_refused(length: int) -> None:
    with pytest.raises(LinkError, match=f"{length} bytes .* 14 to 65535"):
        feed(FrameReader(LITTLE_ENDIAN_16, "stdio"), struct.pack("<H", length))


@pytest.mark.parametrize(("length", "framing"), [(65_550, BIG_ENDIAN_32), (65_535, LITTLE_ENDIAN_16)])
def test_the_longest_frame_passes(length: int, framing: Framing) -> None:
    frame = bytes(range(256)) * 256 + bytes(14)
    frame = frame[:length]
    reader = FrameReader(framing, "test", size=4096)
    assert feed(reader, framing.prefix.pack(length) + frame) == [frame]


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\0", "inside a frame's length, after 1 of 4"), (b"\0\0\0\x3c" + bytes(59), "inside a frame, after 59 of 60")],
)
def test_an_end_inside_a_frame_says_how_far_it_came(data: bytes, words: str) -> None:
    reader = FrameReader(BIG_ENDIAN_32, "test")
    assert feed(reader, data) == []
    with pytest.raises(LinkError, match=words):
        reader.check_end()


def test_taking_is_bounded_and_loses_nothing() -> None:
    frames = [bytes([number]) * 20 for number in range(200)]
    reader = FrameReader(BIG_ENDIAN_32, "test")
    data = encode(">I", frames)
    reader.room()[: len(data)] = data
    reader.filled(len(data))
    batches = [reader.take(64) for _ in range(5)]
    assert [len(batch) for batch in batches] == [64, 64, 64, 8, 0]
    assert list(itertools.chain(*batches)) == frames
