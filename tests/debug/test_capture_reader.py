"""Capture files: both formats, both byte orders, resolutions, several interfaces, and every way of being cut off."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from dpkt import pcap
from hypothesis import given
from hypothesis import strategies as st

from netstack.debug.capture_reader import INBOUND, OUTBOUND, CaptureError, CaptureReader

FRAME = bytes(range(60))


def old_pcap(order: str, magic: int, link_type: int = 1, fraction: int = 500) -> bytes:
    head = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65_535, link_type)
    return head + struct.pack(order + "IIII", 7, fraction, len(FRAME), len(FRAME) + 4) + FRAME


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) & 3)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) & 3)


def section(order: str, comment: bytes = b"") -> bytes:
    return block(
        order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1) + option(order, 1, comment) + bytes(4)
    )


def interface(order: str, link_type: int = 1, resolution: bytes = b"\x09", offset: int = 0) -> bytes:
    options = option(order, 9, resolution) + option(order, 14, struct.pack(order + "q", offset)) + bytes(4)
    return block(order, 1, struct.pack(order + "HHI", link_type, 0, 65_535) + options)


def packet(order: str, number: int, stamp: int, flags: int, comment: bytes = b"") -> bytes:
    head = struct.pack(order + "IIIII", number, stamp >> 32, stamp & 0xFFFFFFFF, len(FRAME), len(FRAME))
    options = option(order, 1, comment) + option(order, 2, struct.pack(order + "I", flags)) + bytes(4)
    return block(order, 6, head + FRAME + options)


def read(path: Path, data: bytes) -> CaptureReader:
    path.write_bytes(data)
    return CaptureReader(path)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "time"), [(0xA1B2C3D4, 7_000_500_000), (0xA1B23C4D, 7_000_000_500)])
def test_pcap_in_both_byte_orders_and_resolutions(tmp_path: Path, order: str, magic: int, time: int):
    (frame,) = read(tmp_path / "a.pcap", old_pcap(order, magic))
    assert (frame.number, frame.time, frame.data, frame.length, frame.ethernet) == (1, time, FRAME, 64, True)


def test_what_dpkt_writes_is_read(tmp_path: Path):
    with (tmp_path / "a.pcap").open("wb") as out:
        writer = pcap.Writer(out)
        for number in range(3):
            writer.writepkt(FRAME, ts=number + 0.25)
    assert [each.time for each in CaptureReader(tmp_path / "a.pcap")] == [250_000_000, 1_250_000_000, 2_250_000_000]


@pytest.mark.parametrize("order", "<>")
def test_pcapng_has_interfaces_directions_and_comments(tmp_path: Path, order: str):
    data = section(order, b"whole") + interface(order) + interface(order, resolution=b"\x03", offset=100)
    data += packet(order, 0, 5, 1, b"said") + block(order, 5, bytes(12)) + packet(order, 1, 5, 2)
    reader = read(tmp_path / "a.pcapng", data)
    first, second = reader
    assert reader.comment == "whole"
    assert (first.time, first.direction, first.comment, first.interface) == (5, INBOUND, "said", 0)
    assert (second.time, second.direction, second.comment, second.interface) == (100_005_000_000, OUTBOUND, "", 1)


def test_a_power_of_two_is_a_resolution_too(tmp_path: Path):
    (frame,) = read(tmp_path / "a", section("<") + interface("<", resolution=b"\x8a") + packet("<", 0, 512, 0))
    assert frame.time == 500_000_000


def test_a_second_section_may_have_another_byte_order(tmp_path: Path):
    one = section("<") + interface("<") + packet("<", 0, 1, 0)
    two = section(">") + interface(">") + packet(">", 0, 2, 0)
    assert [each.time for each in read(tmp_path / "a", one + two)] == [1, 2]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "found bytes (none)"),
        (b"hello", "expected a pcap or pcapng file"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (old_pcap("<", 0xA1B2C3D4, link_type=113), "capture on one interface"),
        (old_pcap("<", 0xA1B2C3D4, link_type=195), "expected Ethernet"),
        (section("<") + interface("<", link_type=105), "802.11"),
        (old_pcap("<", 0xA1B2C3D4)[:-10], "after frame 0: the file is cut off within a packet (50 of 60 bytes)"),
        (section("<") + interface("<") + packet("<", 0, 1, 0) + b"\x06\0\0\0", "after frame 1: the file is cut off"),
        (section("<") + interface("<") + packet("<", 3, 1, 0), "names no interface"),
        (section("<") + b"\x06\0\0\0\x05\0\0\0", "a block of 5 bytes"),
        (section("<") + block("<", 2, bytes(40)), "obsolete Packet Block"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, data: bytes, words: str):
    with pytest.raises(CaptureError) as caught:
        list(read(tmp_path / "a.pcapng", data))
    assert words in str(caught.value)
    assert str(tmp_path / "a.pcapng") in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(CaptureError, match="No such file"):
        CaptureReader(tmp_path / "a.pcap")


@given(st.binary(max_size=300), st.sampled_from([b"", section("<") + interface("<"), old_pcap(">", 0xA1B23C4D)]))
def test_no_bytes_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes, begins: bytes):
    path = tmp_path_factory.getbasetemp() / "any.pcap"
    with contextlib.suppress(CaptureError):
        list(read(path, begins + data))
