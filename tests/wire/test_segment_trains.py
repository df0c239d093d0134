"""Many segments at once: the same frames as one by one, with numpy and without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netstack.wire import segment_trains as module
from netstack.wire.tcp import ACK, PSH, SegmentWriter, build_timestamps

ROOT = Path(__file__).parents[2]


def writer(offload: int = 0) -> SegmentWriter:
    return SegmentWriter(
        destination_mac=b"\x5a\x94\xef\xe4\x0c\xee",
        source_mac=b"\x5a\x94\xef\xe4\x0c\xdd",
        source=b"\xc6\x33\x64\x0a",
        destination=b"\xc0\xa8\x7f\x02",
        source_port=80,
        destination_port=40_000,
        offload=offload,
    )


@pytest.fixture(params=["numpy", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of making them, from the first one on."""
    monkeypatch.setattr(module, "_made", module.SINGLE_AT_FIRST)
    monkeypatch.setattr(module, "_without_numpy", request.param == "plain")
    monkeypatch.setattr(module, "_cutter", None)
    return str(request.param)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the way is the same for all of them
@given(
    seed=st.binary(min_size=1, max_size=64),
    size=st.integers(48, 1460),
    count=st.integers(1, 45),
    start=st.integers(0, 50),
    sequence=st.integers(0, 2**32 - 1) | st.integers(2**32 - 30_000, 2**32 - 1),
    acknowledgement=st.integers(0, 2**32 - 1),
    window=st.integers(0, 0xFFFF),
    stamps=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)) | st.none(),
    offload=st.sampled_from([0, 65_160]),
    push=st.booleans(),
)
def test_a_train_is_its_segments(
    way: str, seed: bytes, size: int, count: int, start: int, sequence: int, acknowledgement: int, window: int,
    stamps: tuple[int, int] | None, offload: int, push: bool,
) -> None:  # fmt: skip
    length = start + size * count + 7
    text = (seed * (length // len(seed) + 1))[:length]
    options = build_timestamps(*stamps) if stamps else b""
    make = writer(offload)
    single = [
        make.frame(
            (sequence + at * size) & 0xFFFFFFFF, acknowledgement,
            ACK | PSH if push and at == count - 1 else ACK, window, options,
            text[start + at * size : start + (at + 1) * size],
        )
        for at in range(count)
    ]  # fmt: skip
    train = make.train(sequence, acknowledgement, window, options, text, start, count, size, push=push)
    assert train == single
    assert {type(frame) for frame in train} == {bytes}


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_the_two_zeros_of_a_sum_are_the_same_in_a_train(way: str, byte: bytes) -> None:
    """Texts that sum to nothing, with sequence numbers that make the whole sum a multiple of 65,535."""
    make, text = writer(), byte * 100 * 8
    for sequence in range(0, 0x20000, 97):
        train = make.train(sequence, 0, 0, b"", text, 0, 8, 100, push=False)
        assert train == [make.frame(sequence + at, 0, ACK, 0, b"", text[:100]) for at in range(0, 800, 100)]
        assert make.train(sequence, 0, 0, b"", text, 0, 1, 100, push=True) == [
            make.frame(sequence, 0, ACK | PSH, 0, b"", text[:100])
        ]


def test_a_train_longer_than_what_is_laid_out_at_once(way: str) -> None:
    make, text = writer(), bytes(range(250)) * 1000
    train = make.train(2**32 - 70_000, 1, 2, b"", text, 0, 2500, 100, push=True)
    assert train[:-1] == [
        make.frame((2**32 - 70_000 + at) % 2**32, 1, ACK, 2, b"", text[at : at + 100]) for at in range(0, 249_900, 100)
    ]
    assert train[-1] == make.frame(179_900, 1, ACK | PSH, 2, b"", text[-100:])


WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
from netstack.wire import segment_trains as trains
print([trains.cutter(1 << 20) for _ in range(3)], trains._without_numpy)
"""
SMALL = """
import sys
from netstack.wire import segment_trains as trains
first = [trains.cutter(trains.SINGLE_AT_FIRST // 2) for _ in range(2)]
print(first, "numpy" in sys.modules, callable(trains.cutter(1)), "numpy" in sys.modules)
"""


def _said(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_without_numpy_segments_are_made_one_by_one() -> None:
    assert _said(WITHOUT_NUMPY) == "[None, None, None] True"


def test_a_process_that_sends_little_does_not_import_numpy() -> None:
    assert _said(SMALL) == "[None, None] False True True"


@given(
    texts=st.lists(st.binary(min_size=1, max_size=9_000), min_size=1, max_size=3),
    sequence=st.integers(0, 2**32 - 1),
    window=st.integers(0, 0xFFFF),
    stamps=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)) | st.none(),
    offload=st.sampled_from([0, 65_160]),
    view=st.booleans(),
)
def test_a_frame_in_pieces_is_the_frame(
    texts: list[bytes], sequence: int, window: int, stamps: tuple[int, int] | None, offload: int, view: bool
) -> None:
    """Pieces of odd lengths too: what follows them is at an odd place, and its bytes count in the other halves."""
    options = build_timestamps(*stamps) if stamps else b""
    make = writer(offload)
    gathered = make.gathered(
        sequence, 7, ACK | PSH, window, options, [memoryview(each) if view else each for each in texts]
    )
    assert len(gathered) == 1 + len(texts)
    assert b"".join(gathered) == make.frame(sequence, 7, ACK | PSH, window, options, b"".join(texts))
