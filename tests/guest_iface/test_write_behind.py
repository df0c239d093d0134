"""Writing in a thread: in order, whatever the pace, and to the end."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from guest_iface import capture_file
from guest_iface.capture import CaptureWriter
from guest_iface.capture_file import UNCACHED
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


@pytest.mark.parametrize("error", [OSError(errno.EOPNOTSUPP, "not supported"), OSError(errno.EINVAL, "no such flag")])
def test_where_pages_cannot_be_let_go_of_a_capture_is_written_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    asked = []

    def refuses(*given: object) -> int:
        asked.append(given[2:])
        raise error

    monkeypatch.setattr("os.pwritev", refuses)
    path = written_in_batches(tmp_path)
    assert [block.pkt_data[0] for block in blocks(path)] == list(range(100))
    assert asked == [(-1, UNCACHED)], "once"


def test_much_is_written_past_the_cache_and_what_was_not_taken_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel may take less than it is given."""
    taken = []

    def takes_some(fd: int, pieces: list[bytes], offset: int, flags: int) -> int:
        assert (offset, flags) == (-1, UNCACHED)
        taken.append(os.write(fd, b"".join(pieces)[:70_000]))
        return taken[-1]

    monkeypatch.setattr("os.pwritev", takes_some)
    path = written_in_batches(tmp_path)
    assert [block.pkt_data[0] for block in blocks(path)] == list(range(100))
    assert len(taken) > 1


def test_a_disk_that_gets_full_meanwhile_ends_the_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(*_given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwritev", is_full)
    writer = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: 0.0)
    interface = writer.add_interface("x")
    for number in range(100):
        writer.write(interface, [frame_of(60_000, number)], INBOUND)
    writer.file._behind.drain()
    assert writer.failure.endswith("the capture ends here: No space left on device")
    writer.close()


def written_in_batches(tmp_path: Path) -> Path:
    """A capture of a hundred frames: more than is kept back."""
    writer = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: 0.0)
    interface = writer.add_interface("x")
    for number in range(100):
        writer.write(interface, [frame_of(60_000, number)], INBOUND)
    writer.close()
    return writer.path
