"""Writing in a thread: in order, whatever the pace, and to the end."""

from __future__ import annotations

import threading

from guest_iface import capture_file
from guest_iface.capture import CaptureWriter
from guest_iface.pcapng import INBOUND
from guest_iface.write_behind import WriteBehind
from tests.guest_iface.conftest import frame_of
from tests.guest_iface.test_capture import blocks


def test_batches_are_written_in_order_to_the_end() -> None:
    written: list[bytes] = []
    behind = WriteBehind(written.extend)
    behind.drain()
    behind.close()
    for number in range(1000):
        behind.put([bytes([number % 256])] * 3, 3)
        if number == 500:
            behind.drain()
            assert (behind.waiting, len(written)) == (0, 1503)
    behind.close()
    assert (behind.waiting, b"".join(written)) == (0, b"".join(bytes([number % 256]) * 3 for number in range(1000)))
    behind.put([b"again"], 5)
    behind.close()
    behind.close()
    assert written[-1] == b"again"


def test_a_disk_that_stands_still_costs_frames_and_not_memory(tmp_path, monkeypatch) -> None:
    """The writing thread is held up until the test lets it go; what found no room is counted, all else is there."""
    go = threading.Event()
    monkeypatch.setattr(capture_file, "MAX_BEHIND", 1 << 20)
    writer = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: 0.0)
    write = writer.file._write
    monkeypatch.setattr(writer.file._behind, "_write", lambda pieces: (go.wait(30), write(pieces)))
    interface = writer.add_interface("x")
    for number in range(100):
        writer.write(interface, [frame_of(60_000, number)], INBOUND)
    (counts,) = writer.counts
    assert 0 < counts.lost < 90
    go.set()
    writer.close()
    kept = [block.pkt_data[0] for block in blocks(tmp_path / "a.pcapng")]
    assert kept == list(range(100 - counts.lost)), "the first ones, in order"
    assert counts.received == 100
