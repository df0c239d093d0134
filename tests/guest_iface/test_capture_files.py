"""Captures of some frames, of their beginnings, into rows of files and to readers, judged by Wireshark's tools."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing
from dpkt import pcapng as dpkt_pcapng

from guest_iface import pcapng
from guest_iface.capture import MAX_INTERFACES, Capture, CaptureWriter
from guest_iface.capture_file import MIN_FILE_BYTES
from guest_iface.capture_stream import CaptureStream
from guest_iface.frame_filter import parse_filter
from guest_iface.frame_matching import frame_matcher
from guest_iface.pcapng import INBOUND, OUTBOUND
from tests.guest_iface.conftest import frame_of
from tests.guest_iface.test_capture import PINGS, blocks

wireshark = pytest.mark.skipif(
    not shutil.which("tshark") or not shutil.which("capinfos"), reason="Wireshark's tools are missing"
)


def tshark(path: Path, *fields: str) -> list[str]:
    """A line a frame; no complaint is accepted."""
    words = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(["tshark", "-r", path, "-T", "fields", *words], capture_output=True, text=True, check=True)
    assert [line for line in done.stderr.splitlines() if "Running as user" not in line] == []
    return done.stdout.splitlines()


def capinfos(path: Path) -> str:
    done = subprocess.run(["capinfos", "-M", path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def statistics(data: bytes) -> list[tuple[int, int]]:
    """Received and dropped of each interface statistics block, by a walk of the test's own."""
    found = []
    while data:
        kind, length = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
        if kind == pcapng.INTERFACE_STATISTICS:
            options, counts = data[20 : length - 4], {}
            while options[:2] != b"\0\0":
                code, size = int.from_bytes(options[:2], "little"), int.from_bytes(options[2:4], "little")
                counts[code] = int.from_bytes(options[4 : 4 + size], "little")
                options = options[4 + size + (-size & 3) :]
            found.append((counts[4], counts[5]))
        data = data[length:]
    return found


@wireshark
def test_a_row_of_files_each_of_which_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "row.pcapng"
    writer = CaptureWriter(path, clock=lambda: 0.0, max_bytes=MIN_FILE_BYTES, max_files=3)
    first, second = writer.add_interface("tap0"), writer.add_interface("tap1")
    for number in range(100):
        writer.write(first, [frame_of(900, number)] * 5, INBOUND)
        writer.write(second, [frame_of(901, number)] * 5, OUTBOUND)
    third = writer.add_interface("late")
    writer.write(third, [frame_of(902)], INBOUND)
    writer.close()
    files = [path, tmp_path / "row.pcapng.1", tmp_path / "row.pcapng.2"]
    assert sorted(tmp_path.iterdir()) == files
    shown: list[str] = []
    for each in reversed(files):
        assert MIN_FILE_BYTES / 2 < each.stat().st_size <= MIN_FILE_BYTES + 300 or each == path
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
        assert f"Number of interfaces in file: {3 if each == path else 2}" in capinfos(each)
        shown += tshark(each, "frame.interface_name", "frame.len", "frame.packet_flags_direction")
    # The newest frames, none missing where one file ends and the next begins.
    wanted = [line for _ in range(100) for line in ["tap0\t900\t0x00000001"] * 5 + ["tap1\t901\t0x00000002"] * 5]
    wanted.append("late\t902\t0x00000001")
    assert len(shown) > 150
    assert shown == wanted[-len(shown) :]
    assert statistics(path.read_bytes()) == [(500, 0), (500, 0), (1, 0)]


def test_one_file_of_a_row_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    writer = CaptureWriter(path, clock=lambda: 0.0, max_bytes=MIN_FILE_BYTES, max_files=1)
    interface = writer.add_interface("x")
    for number in range(200):
        writer.write(interface, [frame_of(1000, number)], INBOUND)
    writer.close()
    assert list(tmp_path.iterdir()) == [path]
    assert [block.pkt_data[0] for block in blocks(path)][-1] == 199
    assert path.stat().st_size < MIN_FILE_BYTES


def test_a_row_that_cannot_go_on_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.pcapng"
    (tmp_path / "a.pcapng.1").mkdir()
    (tmp_path / "a.pcapng.1" / "in the way").touch()
    writer = CaptureWriter(path, clock=lambda: 0.0, max_bytes=MIN_FILE_BYTES, max_files=2)
    interface = writer.add_interface("x")
    writer.write(interface, [frame_of(1000)] * 100, INBOUND)
    assert "the capture ends here: Is a directory" in writer.failure
    assert writer.failure in caplog.text
    writer.write(interface, [frame_of(1000)], INBOUND)
    assert writer.counts[interface].received == 100
    writer.close()
    assert len(blocks(path)) > 50, "what was written stays"


@wireshark
def test_the_beginning_of_frames_is_kept_with_their_length(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    writer = CaptureWriter(path, clock=lambda: 0.0, snaplen=45, comment=lambda frame, _: f"{len(frame)} bytes")
    interface = writer.add_interface("x")
    writer.write(interface, [*PINGS, frame_of(44), frame_of(46)], INBOUND)
    writer.close()
    lengths = [*map(len, PINGS), 44, 46]
    assert tshark(path, "frame.cap_len", "frame.len", "frame.comment") == [
        f"{min(45, size)}\t{size}\t{size} bytes" for size in lengths
    ]
    assert "Capture length = 45" in capinfos(path)


def test_only_what_is_meant_is_written_and_asked_about(tmp_path: Path) -> None:
    asked: list[bytes] = []
    writer = CaptureWriter(
        tmp_path / "a.pcapng",
        clock=lambda: 0.0,
        comment=lambda frame, _: asked.append(frame) or "",  # type: ignore[func-returns-value]  # None, and then ""
        chooses=frame_matcher(parse_filter("icmp and host 192.0.2.1")),
    )
    interface = writer.add_interface("x")
    writer.hold(interface, [frame_of(60), *PINGS[:2]])
    writer.write(interface, [PINGS[2], frame_of(61)], OUTBOUND)
    writer.write(interface, [frame_of(62)], OUTBOUND)
    writer.close()
    assert [block.pkt_data for block in blocks(tmp_path / "a.pcapng")] == PINGS[:3] == asked
    assert statistics((tmp_path / "a.pcapng").read_bytes()) == [(3, 0)]


def test_one_link_too_many_is_left_out(tmp_path: Path) -> None:
    writer = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: 0.0)
    assert [writer.add_interface("x") for _ in range(MAX_INTERFACES + 1)][-2:] == [MAX_INTERFACES - 1, -1]
    writer.write(-1, PINGS, INBOUND)
    writer.close()
    assert blocks(tmp_path / "a.pcapng") == []


@wireshark
async def test_a_reader_gets_a_file_piece_by_piece_with_its_losses(tmp_path: Path) -> None:
    sink = CaptureStream(queue_bytes=10_000)
    capture = Capture(sink, clock=lambda: 0.0)
    pieces: list[bytes] = []

    async def read() -> None:
        async for piece in sink:
            assert len(piece) % 4 == 0
            pieces.append(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        interface = capture.add_interface("x")
        for ping in PINGS:
            capture.write(interface, [ping], INBOUND)
            await trio.testing.wait_all_tasks_blocked()
        assert len(pieces) >= len(PINGS), "each frame at once, not when a buffer is full"
        capture.write(interface, [frame_of(1000)] * 9, OUTBOUND)
        capture.write(interface, [frame_of(1001)] * 3, OUTBOUND)  # nobody has read meanwhile: no room
        late = capture.add_interface("late")
        await trio.testing.wait_all_tasks_blocked()
        capture.write(late, [frame_of(1002)], INBOUND)
        capture.hold(late, [frame_of(1003)])
        capture.close()
        capture.close()
        capture.write(late, [frame_of(1004)], INBOUND)
    data = b"".join(pieces)
    (tmp_path / "a.pcapng").write_bytes(data)
    sizes = [*map(len, PINGS), *[1000] * 9, 1002, 1003]
    assert [int(line) for line in tshark(tmp_path / "a.pcapng", "frame.len")] == sizes
    assert statistics(data) == [(len(PINGS) + 12, 3), (2, 0)]
    assert "Number of interfaces in file: 2" in capinfos(tmp_path / "a.pcapng")
    assert [count.lost for count in capture.counts] == [3, 0]


def test_dpkt_reads_our_headers_and_options() -> None:
    block = dpkt_pcapng.InterfaceDescriptionBlockLE(pcapng.interface_description("unix:///a b", 128))
    assert (block.linktype, block.snaplen) == (dpkt_pcapng.DLT_EN10MB, 128)
    assert [(option.code, option.data) for option in block.opts] == [(2, b"unix:///a b"), (9, b"\x09"), (0, b"")]
    head = dpkt_pcapng.SectionHeaderBlockLE(pcapng.section_header("netstack"))
    assert (head.v_major, head.v_minor, head.sec_len, head.opts[0].data) == (1, 0, -1, b"netstack")
