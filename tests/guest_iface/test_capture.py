"""The pcapng writer, read back by dpkt and by Wireshark's own tools."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from dpkt import pcapng
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether

from guest_iface import pcapng as our_pcapng
from guest_iface.cable import Cable
from guest_iface.capture import Capture, CaptureWriter, Sink
from guest_iface.capture_file import FLUSH_INTERVAL
from guest_iface.link import LinkError
from guest_iface.pcapng import INBOUND, OUTBOUND
from guest_iface.seqpacket import SeqpacketLink
from tests.guest_iface.conftest import frame_of, running
from tests.guest_iface.test_switch import RecordingLink

ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
"""Given, because scapy would ask for a missing MAC by ARP, on the real network."""
PINGS = [bytes(ETHERNET / IP(src="192.0.2.1", dst="192.0.2.2") / ICMP(seq=size) / bytes(size)) for size in range(5)]


def blocks(path: Path) -> list[pcapng.EnhancedPacketBlockLE]:
    """The packet blocks of a file, by a walk over its blocks: dpkt's own reader hides the options."""
    data, found = memoryview(path.read_bytes()), []
    while data:
        kind, length = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
        assert length % 4 == 0
        assert data[length - 4 : length] == data[4:8]
        if kind == pcapng.PCAPNG_BT_EPB:
            found.append(pcapng.EnhancedPacketBlockLE(bytes(data[:length])))
        data = data[length:]
    return found


def test_dpkt_reads_what_was_written(tmp_path: Path) -> None:
    now = 1000.0
    writer = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: now)
    before = time.time_ns()
    interface = writer.add_interface("unixgram:///net")
    writer.write(interface, PINGS[:3], INBOUND)
    after = time.time_ns()
    now += 12.5
    writer.write(interface, PINGS[3:], OUTBOUND)
    writer.close()
    writer.close()
    read = blocks(tmp_path / "a.pcapng")
    assert [block.pkt_data for block in read] == PINGS
    assert [block.opts[0].data[0] for block in read] == [1, 1, 1, 2, 2]
    times = [block.ts_high << 32 | block.ts_low for block in read]
    assert before <= times[0] <= after
    assert times[3] - times[0] == 12_500_000_000
    with (tmp_path / "a.pcapng").open("rb") as file:
        reader = pcapng.Reader(file)
        assert reader.datalink() == pcapng.DLT_EN10MB
        assert [frame for _, frame in reader] == PINGS
        assert abs(reader.idb.snaplen) == 65_562
    assert stat.S_IMODE((tmp_path / "a.pcapng").stat().st_mode) == 0o600


@pytest.mark.parametrize("snaplen", [65_562, 60])
def test_frames_of_one_length_each_with_its_own(tmp_path: Path, snaplen: int) -> None:
    """What stands around a frame is made once for those of a length: comments and cuts are of one frame alone."""
    frames = [bytes((number,)) * size for number, size in enumerate((61, 61, 61, 61, 64, 64, 61, 60, 60))]
    said = {frames[1]: "one", frames[2]: "another", frames[5]: "x" * 7}
    writer = CaptureWriter(
        tmp_path / "a.pcapng", clock=lambda: 1.0, comment=lambda frame, _: said.get(frame, ""), snaplen=snaplen
    )
    writer.write(writer.add_interface("a"), frames, OUTBOUND)
    writer.close()
    read = blocks(tmp_path / "a.pcapng")
    assert [block.pkt_data for block in read] == [frame[:snaplen] for frame in frames]
    assert [block.pkt_len for block in read] == list(map(len, frames))
    comments = [[option.text for option in block.opts if option.code == 1] for block in read]
    assert comments == [[said[frame]] if frame in said else [] for frame in frames]
    assert all(option.data[0] == OUTBOUND for block in read for option in block.opts if option.code == 2)


@given(
    st.lists(st.integers(14, 80), min_size=1, max_size=20),
    st.sampled_from((16, 61, 65_562)),
    st.dictionaries(st.integers(14, 80), st.text(min_size=1, max_size=5), max_size=3),
)
def test_a_batch_is_written_as_its_frames_would_be_one_by_one(
    sizes: list[int], snaplen: int, said: dict[int, str]
) -> None:
    """Byte for byte, whatever follows what; and when nothing is known, as if nobody had been asked."""
    frames = [bytes((number,)) * size for number, size in enumerate(sizes)]

    def written(batches: list[list[bytes]], **options: Any) -> bytes:
        sink = Kept()
        capture = Capture(sink, clock=lambda: 1.0, snaplen=snaplen, **options)
        capture._wall_offset = 1_764_000_000_000_000_000  # the same each time
        for batch in batches:
            capture.write(0 if capture.counts else capture.add_interface("a"), batch, OUTBOUND)
        return sink.blocks

    def comment(frame: bytes, _direction: int) -> str:
        return said.get(len(frame), "")

    one_by_one = [[frame] for frame in frames]
    assert written([frames], comment=comment) == written(one_by_one, comment=comment)
    assert written([frames]) == written(one_by_one)
    assert written([frames], comment=comment, knows=lambda: False) == written([frames])
    assert written([frames], comment=comment, knows=lambda: True) == written([frames], comment=comment)


class Kept(Sink):
    """A sink that keeps the blocks of frames."""

    def __init__(self) -> None:
        self.blocks = b""

    def put(self, blocks: bytes) -> bool:
        self.blocks += blocks
        return True

    def describe(self, block: bytes) -> None: ...

    def close(self, last: bytes) -> None: ...


@pytest.mark.skipif(not shutil.which("tshark") or not shutil.which("capinfos"), reason="Wireshark's tools are missing")
def test_wireshark_reads_it_without_a_warning(tmp_path: Path) -> None:
    now = 5.0
    path = tmp_path / "a.pcapng"
    writer = CaptureWriter(path, clock=lambda: now)
    first, second = writer.add_interface("unix:///net guest 1"), writer.add_interface("tap0")
    writer.write(first, PINGS, INBOUND)
    now += 0.25
    writer.write(second, [bytes(Ether() / ARP()), frame_of(65_562)], OUTBOUND)
    third = writer.add_interface("late")
    writer.write(third, PINGS[:1], INBOUND)
    writer.close()
    shown = subprocess.run(
        ["tshark", "-r", path, "-T", "fields", "-E", "separator=|"]
        + [
            word
            for field in ("interface_name", "cap_len", "packet_flags_direction")
            for word in ("-e", f"frame.{field}")
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    complaints = [line for line in shown.stderr.splitlines() if "Running as user" not in line]
    assert complaints == []
    assert shown.stdout.splitlines() == [
        *(f"unix:///net guest 1|{len(ping)}|0x00000001" for ping in PINGS),
        "tap0|42|0x00000002",
        "tap0|65562|0x00000002",
        f"late|{len(PINGS[0])}|0x00000001",
    ]
    infos = subprocess.run(["capinfos", "-M", path], capture_output=True, text=True, check=True)
    assert infos.stderr == ""
    words = {
        line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in infos.stdout.splitlines() if ":" in line
    }
    assert words["File type"] == "pcapng"
    assert words["File encapsulation"] == "ether"
    assert words["Number of packets"] == "8"
    assert words["Number of interfaces in file"] == "3"
    assert words["File timestamp precision"].startswith("nanoseconds")
    assert words["Capture duration"].startswith("0.250000000")
    assert words["Capture application"] == "netstack"


def comments_of(path: Path) -> list[str]:
    """What stands beside each frame."""
    return [
        next((option.text for option in block.opts if option.code == pcapng.PCAPNG_OPT_COMMENT), "")
        for block in blocks(path)
    ]


def test_comments_stand_beside_their_frames(tmp_path: Path) -> None:
    """Of any length, in any alphabet; each frame is asked about once, with its direction."""
    said = {PINGS[0]: "", PINGS[1]: "a", PINGS[2]: "four", PINGS[3]: "\u00fcber \U0001f600", PINGS[4]: "x" * 100_000}
    asked = []

    def comment(frame: bytes, direction: int) -> str:
        asked.append((frame, direction))
        return said[frame]

    writer = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: 0.0, comment=comment)
    interface = writer.add_interface("x")
    writer.write(interface, PINGS[:3], INBOUND)
    writer.write(interface, PINGS[3:], OUTBOUND)
    writer.close()
    assert asked == [(ping, INBOUND) for ping in PINGS[:3]] + [(ping, OUTBOUND) for ping in PINGS[3:]]
    assert comments_of(writer.path) == ["", "a", "four", "\u00fcber \U0001f600", "x" * our_pcapng.MAX_COMMENT]
    assert [block.pkt_data for block in blocks(writer.path)] == PINGS
    assert [block.opts[-2].data[0] for block in blocks(writer.path)] == [1, 1, 1, 2, 2]


def test_held_frames_keep_their_place_and_hear_what_became_of_them(tmp_path: Path) -> None:
    known, now = "", 10.0
    writer = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: now, comment=lambda _frame, _direction: known)
    interface = writer.add_interface("x")
    writer.hold(interface, PINGS[:1])
    writer.flush()
    assert blocks(writer.path) == [], "nothing is known of it yet"
    known, now = "judged", 12.0
    writer.write(interface, PINGS[1:2], OUTBOUND)
    writer.hold(interface, PINGS[2:3])
    writer.release()
    writer.hold(interface, PINGS[3:4])
    writer.close()
    assert [block.pkt_data for block in blocks(writer.path)] == PINGS[:4]
    times = [block.ts_high << 32 | block.ts_low for block in blocks(writer.path)]
    assert times == [times[0]] * 4, "a batch has the time of what became of it"
    assert comments_of(writer.path) == ["judged"] * 4


async def test_the_tee_sees_both_directions(tmp_path: Path) -> None:
    ours, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    writer = CaptureWriter(tmp_path / "a.pcapng")
    link = SeqpacketLink(ours, "test")
    async with running(Cable(link, [writer])) as tee:
        assert (tee.name, tee.capabilities, tee.counters) == (link.name, link.capabilities, link.counters)
        guest.send(frame_of(60, 1))
        assert await tee.receive_batch() == [frame_of(60, 1)]
        tee.send_batch([frame_of(61, 2), frame_of(62, 3)])
        assert [guest.recv(100), guest.recv(100)] == [frame_of(61, 2), frame_of(62, 3)]
        assert tee.backlog == 0
        await tee.wait_backlog_drained()
    writer.close()
    guest.close()
    assert [(block.pkt_data, block.opts[0].data[0]) for block in blocks(writer.path)] == [
        (frame_of(60, 1), 1),
        (frame_of(61, 2), 2),
        (frame_of(62, 3), 2),
    ]


async def test_a_quiet_capture_is_written_out(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    class Quiet(RecordingLink):
        async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()
            await trio.sleep_forever()

    writer = CaptureWriter(tmp_path / "a.pcapng")
    tee = Cable(Quiet(), [writer])
    async with trio.open_nursery() as nursery:
        await nursery.start(tee.run)
        nursery.start_soon(writer.flush_when_waiting)
        for count in (1, 2):
            tee.send_batch([frame_of(60)])
            await trio.sleep(2 * FLUSH_INTERVAL)
            assert len(blocks(writer.path)) == count
        nursery.cancel_scope.cancel()
    writer.close()


def test_much_is_written_at_once_without_waiting(tmp_path: Path) -> None:
    writer = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: 0.0)
    interface = writer.add_interface("x")
    for _ in range(100):
        writer.write(interface, [frame_of(65_000)] * 10, INBOUND)
        assert writer.file._pending < 2 << 20
    writer.close()
    assert len(blocks(writer.path)) == 1000


def test_a_full_disk_ends_the_capture_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    writer = CaptureWriter("/dev/full", clock=lambda: 0.0)
    link = RecordingLink()
    tee = Cable(link, [writer])
    tee.send_batch([frame_of(60)])
    writer.flush()
    assert writer.failure == "/dev/full: the capture ends here: No space left on device"
    assert writer.failure in caplog.text
    tee.send_batch([frame_of(61)])
    assert link.taken() == [frame_of(60), frame_of(61)]
    writer.close()


def test_a_path_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="cannot write the capture there: No such file"):
        CaptureWriter(tmp_path / "missing" / "a.pcapng")


def test_frames_after_the_end_are_ignored(tmp_path: Path) -> None:
    writer = CaptureWriter(os.fspath(tmp_path / "a.pcapng"), clock=lambda: 0.0)
    interface = writer.add_interface("x")
    writer.close()
    writer.write(interface, PINGS, INBOUND)
    assert blocks(tmp_path / "a.pcapng") == []
