"""The one-big-number checksum against the word-by-word one of RFC 1071, and against scapy's and dpkt's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dpkt.dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from netstack.wire import checksum as module
from netstack.wire.checksum import LARGE, checksum, fold, ones_sum, pseudo_header_sum, sum_in_pieces

ROOT = Path(__file__).parents[2]


def word_by_word(data: bytes) -> int:
    """RFC 1071 section 4.1, literally."""
    padded = data + b"\x00" * (len(data) % 2)
    total = sum(int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# Words that sum to multiples of 65,535 are where ones' complement has two zeros.
edge_words = st.lists(st.sampled_from([b"\x00\x00", b"\xff\xff", b"\xff\xfe", b"\x00\x01"]), max_size=20).map(b"".join)


@given(data=st.binary(max_size=3000) | edge_words)
def test_agrees_with_the_loop_over_words(data: bytes) -> None:
    assert checksum(data) == word_by_word(data) == checksum(bytearray(data)) == checksum(memoryview(data))


@pytest.mark.parametrize("numpy", [True, False], ids=["numpy", "pieces"])
@given(seed=st.binary(min_size=1, max_size=64), size=st.integers(LARGE - 1, 65_536), zero=st.booleans())
def test_large_data_agrees_too(numpy: bool, seed: bytes, size: int, zero: bool) -> None:
    data = bytes(size) if zero else (seed * (size // len(seed) + 1))[:size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_large_sum", None if numpy else sum_in_pieces)
        assert checksum(data) == word_by_word(data) == checksum(memoryview(b"x" + data)[1:])


WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
from netstack.wire import checksum
print(checksum.checksum(bytes(range(256)) * 200), checksum._large_sum is checksum.sum_in_pieces)
"""


def test_without_numpy_large_data_is_summed_all_the_same() -> None:
    """In a process of its own: compiled code asks for numpy once and keeps it."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMPY], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(word_by_word(bytes(range(256)) * 200)), "True"]


@given(data=st.binary(min_size=2, max_size=1600).filter(lambda data: any(data)))
def test_agrees_with_scapy_and_dpkt(data: bytes) -> None:
    # dpkt sums in the host's byte order and swaps, which gives the other zero for some multiples of 65,535.
    assert checksum(data) == scapy_checksum(data)
    assert checksum(data) % 0xFFFF == dpkt.dpkt.in_cksum(data) % 0xFFFF


@given(data=st.binary(max_size=200), at=st.integers(0, 100))
def test_data_that_holds_its_checksum_sums_to_zero(data: bytes, at: int) -> None:
    at = min(at * 2, len(data) // 2 * 2)
    whole = data[:at] + b"\x00\x00" + data[at:]
    whole = data[:at] + checksum(whole).to_bytes(2, "big") + data[at:]
    assert checksum(whole) == 0


@given(first=st.binary(max_size=100), second=st.binary(max_size=101))
def test_a_sum_can_be_carried_over(first: bytes, second: bytes) -> None:
    """`initial` stands for what precedes, an even number of bytes of it."""
    first += b"\x00" * (len(first) % 2)
    assert checksum(second, ones_sum(first)) == checksum(first + second)


@given(
    source=st.binary(min_size=4, max_size=4),
    destination=st.binary(min_size=4, max_size=4),
    length=st.integers(0, 65535),
)
def test_the_pseudo_header(source: bytes, destination: bytes, length: int) -> None:
    laid_out = source + destination + b"\x00\x11" + length.to_bytes(2, "big")
    assert fold(pseudo_header_sum(source, destination, 17, length)) == word_by_word(laid_out)


@pytest.mark.parametrize(("total", "field"), [(0, 0xFFFF), (0xFFFF, 0), (0x1FFFE, 0), (1, 0xFFFE), (0x10000, 0xFFFE)])
def test_both_zeros(total: int, field: int) -> None:
    assert fold(total) == field
