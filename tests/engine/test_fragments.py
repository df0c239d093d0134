"""Fragments, put together and cut, with scapy on the other side (conformance E7 and K2)."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, IPOption, IPOption_LSRR, IPOption_NOP, IPOption_RR, defragment
from scapy.layers.inet import fragment as scapy_fragment
from scapy.packet import Raw

from netstack.engine import fragments
from netstack.engine.fragments import Reassembler, fragment
from netstack.wire import ipv4

GUEST = b"\x02\x00\x00\x00\x00\x02"
OTHER = b"\x02\x00\x00\x00\x00\x03"


class Table:
    """A Reassembler and the drops it counted."""

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        self.reassembler = Reassembler(drop=lambda reason: self.drops.update([reason]))

    def take(self, packet: bytes | IP, now: float = 0.0, guest: bytes = GUEST) -> bytes | None:
        data = bytes(packet)
        header = ipv4.parse(data, verify_checksum=True)
        assert isinstance(header, ipv4.Ipv4), header
        return self.reassembler.receive(data, header, guest, now)

    def check(self) -> None:
        """What holds at every moment."""
        assert len(self.reassembler) <= fragments.MAX_DATAGRAMS
        assert 0 <= self.reassembler.held_bytes <= fragments.MAX_BYTES
        assert (len(self.reassembler) == 0) == (self.reassembler.held_bytes == 0)
        assert (self.reassembler.next_deadline() == math.inf) == (len(self.reassembler) == 0)


def whole(size: int = 3000, **fields: object) -> IP:
    payload = random.Random(size).randbytes(size)
    return IP(src="192.168.127.2", dst="1.2.3.4", id=99, ttl=61, **fields) / UDP(sport=1234, dport=4321) / payload


def piece(
    start: int, size: int, *, more: bool = True, fill: bytes = b"a", options: bytes = b"", identification: int = 7
) -> bytes:
    """One UDP fragment by hand."""
    assert start % 8 == 0
    return ipv4.build(
        b"\xc0\xa8\x7f\x02",
        b"\x01\x02\x03\x04",
        ipv4.UDP,
        fill * size,
        identification=identification,
        flags_offset=(ipv4.MORE_FRAGMENTS if more else 0) | start // 8,
        options=options,
    )


# -- put together


@pytest.mark.parametrize(
    ("size", "step"), [(9, 8), (100, 8), (3000, 8), (100, 1480), (1480, 1480), (65_507, 40), (65_507, 1480)]
)
@pytest.mark.parametrize("order", ["straight", "reversed", "shuffled"])
def test_scapys_fragments_in_any_order(size: int, step: int, order: str) -> None:
    packet = whole(size)
    pieces = scapy_fragment(packet, fragsize=step)
    if order == "reversed":
        pieces.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(pieces)
    table = Table()
    results = [table.take(each) for each in pieces]
    assert results[:-1] == [None] * (len(pieces) - 1)
    assert results[-1] == bytes(packet)
    assert not table.drops
    table.check()
    assert len(table.reassembler) == 0


@given(size=st.integers(1, 5000), data=st.data())
def test_any_cut_any_order_with_duplicates(size: int, data: st.DataObject) -> None:
    packet = bytes(whole(size))
    payload = packet[20:]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, (len(payload) - 1) // 8)), max_size=30)))
    edges = [0, *(cut * 8 for cut in cuts if cut * 8 < len(payload)), len(payload)]
    pieces = [
        ipv4.build(
            packet[12:16],
            packet[16:20],
            packet[9],
            payload[start:end],
            identification=99,
            ttl=61,
            flags_offset=(ipv4.MORE_FRAGMENTS if end < len(payload) else 0) | start // 8,
        )
        for start, end in itertools.pairwise(edges)
    ]
    doubled = data.draw(st.permutations(pieces + pieces[: data.draw(st.integers(0, len(pieces)))]))
    table = Table()
    results = [result for result in map(table.take, doubled) if result is not None]
    assert results[0] == packet
    # Once complete, duplicates begin a datagram of their own; they can complete it only if all of it came twice.
    assert all(result == packet for result in results)
    assert set(table.drops) <= {"fragment-duplicate"}
    table.check()


def test_header_of_the_first_fragment_is_kept() -> None:
    """K2: the header length changes between fragments, as it does when options are not copied (RFC 791)."""
    options = bytes([7, 7, 4, 0, 0, 0, 0, 0])  # record route, one slot; padded
    table = Table()
    assert table.take(piece(8, 4, more=False)) is None
    result = table.take(piece(0, 8, options=options))
    assert result is not None
    read = IP(result)
    assert (read.ihl, read.len, int(read.flags), read.frag, read.id) == (7, 40, 0, 0, 7)
    assert bytes(read.payload) == b"a" * 12
    header = ipv4.parse(result, verify_checksum=True)
    assert isinstance(header, ipv4.Ipv4)
    assert header.options == options


def test_ports_in_the_second_fragment() -> None:
    """E7: nobody looks at ports before the packet is whole. 8 bytes are the least a first fragment can carry."""
    packet = whole(32)
    table = Table()
    results = [table.take(each) for each in scapy_fragment(packet, fragsize=8)]
    assert results[-1] == bytes(packet)
    tcp_like = IP(src="192.168.127.2", dst="1.2.3.4", id=5, proto=6) / Raw(bytes(range(40)))
    results = [table.take(each) for each in scapy_fragment(tcp_like, fragsize=8)]
    assert results[-1] == bytes(tcp_like)


def test_the_key_is_all_five_parts() -> None:
    """Fragments that differ in sender, receiver, protocol, identification or guest never meet."""
    first, last = piece(0, 8), piece(8, 8, more=False)

    def changed(offset: int, value: int) -> bytes:
        data = bytearray(last)
        data[offset] ^= value
        data[10:12] = bytes(2)
        data[10:12] = fragments.checksum(data[:20]).to_bytes(2, "big")
        return bytes(data)

    table = Table()
    assert table.take(first) is None
    for offset in (15, 19, 9, 5):
        assert table.take(changed(offset, 1)) is None
    assert table.take(last, guest=OTHER) is None
    assert len(table.reassembler) == 6
    assert table.take(last) is not None


# -- overlap: the whole datagram is dropped, and stays dropped


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("teardrop: the second lies inside the first", [piece(0, 40), piece(24, 4, more=False)]),
        ("the first inside the second", [piece(8, 8), piece(0, 40)]),
        ("by one block from the left", [piece(0, 24), piece(16, 24)]),
        ("by one block from the right", [piece(16, 24), piece(0, 24)]),
        ("same place, other bytes", [piece(0, 16, fill=b"a"), piece(0, 16, fill=b"b")]),
        ("same place, longer", [piece(0, 16), piece(0, 24)]),
        ("same place, shorter", [piece(0, 24), piece(0, 16)]),
        ("covering two", [piece(8, 8), piece(24, 8), piece(0, 40)]),
        ("between two, into the next", [piece(0, 8), piece(16, 8), piece(8, 16)]),
    ],
)
def test_any_overlap_drops_the_datagram(name: str, pieces: list[bytes]) -> None:
    table = Table()
    assert [table.take(each) for each in pieces] == [None] * len(pieces), name
    assert table.drops == {"fragment-overlap": 1}
    held = table.reassembler.held_bytes
    assert held <= fragments.FRAGMENT_OVERHEAD
    # What would have completed it, and the datagram sent once more, are dropped with it until the time-out.
    assert table.take(piece(0, 8)) is None
    assert table.take(piece(8, 8, more=False)) is None
    assert table.drops["fragment-of-dropped"] == 2
    assert table.reassembler.held_bytes == held
    assert table.reassembler.advance(fragments.TIMEOUT) == []
    assert table.take(piece(0, 8), now=31.0) is None
    assert table.take(piece(8, 8, more=False), now=31.0) is not None


def test_a_repeated_fragment_is_no_overlap() -> None:
    table = Table()
    assert table.take(piece(0, 16)) is None
    assert table.take(piece(0, 16)) is None
    assert table.drops == {"fragment-duplicate": 1}
    assert table.take(piece(16, 3, more=False)) is not None


def test_an_expired_datagram_does_not_meet_its_successor() -> None:
    """The identification comes round again before `advance` was called."""
    table = Table()
    assert table.take(piece(0, 8, fill=b"x")) is None
    assert table.take(piece(8, 8, more=False, fill=b"y"), now=30.0) is None
    assert table.take(piece(0, 8, fill=b"z"), now=30.0) is not None


# -- lengths that lie


@pytest.mark.parametrize(
    ("reason", "pieces"),
    [
        ("fragment-beyond-maximum", [piece(65_512, 100, more=False)]),  # ping of death
        ("fragment-beyond-maximum", [piece(65_528, 8)]),
        ("fragment-beyond-maximum", [piece(65_512, 4, more=False)]),
        ("fragment-unaligned", [piece(0, 9)]),
        ("fragment-unaligned", [piece(8, 7)]),
        ("fragment-empty", [piece(0, 0)]),
        ("fragment-empty", [piece(16, 0, more=False)]),
        ("fragment-length-changed", [piece(8, 8, more=False), piece(16, 8, more=False)]),
        ("fragment-length-changed", [piece(8, 8, more=False), piece(16, 8)]),
        ("fragment-length-changed", [piece(16, 8), piece(8, 8, more=False)]),
        ("fragment-length-changed", [piece(16, 8, more=False), piece(8, 8, more=False)]),
    ],
)
def test_lying_lengths(reason: str, pieces: list[bytes]) -> None:
    table = Table()
    assert [table.take(each) for each in pieces] == [None] * len(pieces)
    assert table.drops == {reason: 1}
    assert table.take(piece(0, 8)) is None
    assert table.drops["fragment-of-dropped"] == 1


def test_the_largest_packet_there_is() -> None:
    table = Table()
    for start in range(0, 65_000, 1000):
        assert table.take(piece(start, 1000)) is None
    result = table.take(piece(65_000, 515, more=False))
    assert result is not None
    assert len(result) == 65_535


def test_a_first_header_that_makes_it_too_long() -> None:
    """K2: every fragment fits, but the first has 40 bytes of options that the others lack."""
    table = Table()
    options = b"\x01" * 40
    assert table.take(piece(0, 1000, options=options)) is None
    for start in range(1000, 65_000, 1000):
        assert table.take(piece(start, 1000)) is None
    assert table.take(piece(65_000, 515, more=False)) is None
    assert table.drops == {"fragment-beyond-maximum": 1}
    assert len(table.reassembler) == 0
    table.check()


def test_fragments_per_datagram_are_bounded() -> None:
    table = Table()
    for number in range(fragments.MAX_FRAGMENTS):
        assert table.take(piece(number * 16, 8)) is None
    assert table.take(piece(fragments.MAX_FRAGMENTS * 16, 8)) is None
    assert table.drops == {"fragment-too-many": 1}
    assert table.reassembler.held_bytes == fragments.FRAGMENT_OVERHEAD


def test_the_smallest_mtu_fits_the_bound() -> None:
    packet = bytes(whole(65_507))
    pieces = fragment(packet, 68)
    table = Table()
    results = [table.take(each) for each in pieces]
    assert results[-1] == packet


# -- exhaustion


def test_ten_thousand_datagrams_that_never_end() -> None:
    """E7, K2: bounded in number and bytes, and a whole datagram still gets through."""
    table = Table()
    for number in range(10_000):
        assert table.take(piece(0, 1400, identification=number), now=number / 1000) is None
        table.check()
    assert len(table.reassembler) == fragments.MAX_DATAGRAMS_PER_GUEST
    assert table.drops == {"fragment-no-room": 10_000 - fragments.MAX_DATAGRAMS_PER_GUEST}
    packet = whole(3000)
    assert [table.take(each, now=10.0) for each in scapy_fragment(packet, fragsize=1480)][-1] == bytes(packet)


def test_one_guest_does_not_push_out_another() -> None:
    table = Table()
    first, *others = scapy_fragment(whole(3000), fragsize=1480)
    assert table.take(first, guest=OTHER) is None
    for number in range(1000):
        table.take(piece(0, 1400, identification=number))
    assert [table.take(each, guest=OTHER) for each in others][-1] == bytes(whole(3000))


def test_many_guests_together_are_bounded() -> None:
    table = Table()
    for guest in range(20):
        for number in range(fragments.MAX_DATAGRAMS_PER_GUEST):
            table.take(piece(0, 64, identification=number), guest=GUEST[:5] + bytes([guest]))
            table.check()
    assert len(table.reassembler) == fragments.MAX_DATAGRAMS


def test_bytes_are_bounded_for_a_guest_and_for_all() -> None:
    table = Table()
    for guest in range(8):
        for number in range(40):
            for start in range(0, 60_000, 6000):
                table.take(piece(start, 6000, identification=number), guest=GUEST[:5] + bytes([guest]))
                table.check()
    assert table.drops["fragment-no-room"] > 0
    # One guest alone stays within its share.
    table = Table()
    for number in range(60):
        for start in range(0, 60_000, 6000):
            table.take(piece(start, 6000, identification=number))
            assert table.reassembler.held_bytes <= fragments.MAX_BYTES_PER_GUEST


def test_spoiled_datagrams_count_too() -> None:
    table = Table()
    for number in range(1000):
        table.take(piece(0, 9, identification=number))
    assert len(table.reassembler) == fragments.MAX_DATAGRAMS_PER_GUEST
    assert table.reassembler.held_bytes == fragments.MAX_DATAGRAMS_PER_GUEST * fragments.FRAGMENT_OVERHEAD


# -- expiry


def test_thirty_seconds_from_the_first_to_arrive() -> None:
    """RFC 1122 section 3.3.2: time exceeded only if the first fragment is there to be quoted."""
    table = Table()
    assert table.reassembler.next_deadline() == math.inf
    table.take(piece(0, 8, identification=1), now=5.0)
    table.take(piece(8, 8, identification=2), now=6.0)
    table.take(piece(8, 8, identification=1), now=20.0)
    assert table.reassembler.next_deadline() == 35.0
    assert table.reassembler.advance(34.999) == []
    assert table.reassembler.advance(35.0) == [piece(0, 8, identification=1)]
    assert table.reassembler.next_deadline() == 36.0
    assert table.reassembler.advance(36.0) == []
    assert table.drops == {"fragment-timeout": 2}
    assert table.reassembler.next_deadline() == math.inf
    table.check()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12),  # offset in blocks
            st.integers(0, 40),  # bytes
            st.booleans(),
            st.integers(0, 2),  # identification
            st.sampled_from([b"a", b"b"]),
            st.sampled_from([GUEST, OTHER]),
            st.floats(0, 12),  # seconds passed
        ),
        max_size=40,
    )
)
def test_whatever_comes_the_books_balance(steps: list[tuple[int, int, bool, int, bytes, bytes, float]]) -> None:
    table = Table()
    now = 0.0
    for blocks, size, more, identification, fill, guest, passed in steps:
        now += passed
        table.reassembler.advance(now)
        result = table.take(
            piece(blocks * 8, size, more=more, fill=fill, identification=identification), now=now, guest=guest
        )
        if result is not None:
            header = ipv4.parse(result, verify_checksum=True)
            assert isinstance(header, ipv4.Ipv4)
            assert header.total_length == len(result)
            assert not header.more_fragments
            assert not header.fragment_offset
        table.check()
    table.reassembler.advance(now + fragments.TIMEOUT)
    assert table.reassembler.held_bytes == 0
    table.check()


# -- cut


@pytest.mark.parametrize("mtu", [68, 576, 1280, 1499, 1500, 9000])
@pytest.mark.parametrize("size", [1, 1472, 1473, 8000, 65_507])
def test_scapy_puts_our_fragments_together(mtu: int, size: int) -> None:
    packet = whole(size)
    pieces = fragment(bytes(packet), mtu)
    assert all(len(each) <= mtu for each in pieces)
    assert (len(pieces) == 1) == (len(packet) <= mtu)
    assert all((len(each) - 20) % 8 == 0 for each in pieces[:-1])
    (theirs,) = defragment([IP(each) for each in pieces])
    assert bytes(theirs) == bytes(packet)


def test_our_cut_is_scapys_cut() -> None:
    packet = whole(5000)
    assert fragment(bytes(packet), 1500) == [bytes(each) for each in scapy_fragment(packet, fragsize=1480)]


def test_fragments_are_cut_again() -> None:
    packet = bytes(whole(5000))
    table = Table()
    results = [table.take(small) for large in fragment(packet, 1500) for small in fragment(large, 576)]
    assert results[-1] == packet
    assert not table.drops


def test_only_options_marked_for_copying_go_on() -> None:
    """RFC 791 section 3.1: the top bit of the option's type."""
    options: list[IPOption] = [IPOption_RR(routers=["0.0.0.0"]), IPOption_NOP(), IPOption_LSRR(routers=["9.9.9.9"])]
    packet = bytes(IP(src="192.168.127.2", dst="1.2.3.4", id=9, options=options) / ICMP() / bytes(3000))
    first, second, *_ = fragment(packet, 1000)
    assert [option.option for option in IP(first).options if option.option] == [7, 1, 3]
    assert [option.option for option in IP(second).options if option.option] == [3]
    assert (IP(first).ihl, IP(second).ihl) == (9, 7)
    table = Table()
    assert [table.take(each) for each in fragment(packet, 1000)][-1] == packet


@pytest.mark.parametrize("options", ["83000000", "83010000", "83090000", "01010183"])
def test_malformed_options_are_not_copied(options: str) -> None:
    field = bytes.fromhex(options)
    pieces = fragment(ipv4.build(b"\x01\x02\x03\x04", b"\x05\x06\x07\x08", 17, bytes(200), options=field), 100)
    assert len(pieces) == 3
    assert pieces[0][20:24] == field
    assert pieces[1][0] == 0x45


def test_what_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="67"):
        fragment(bytes(whole()), 67)
    with pytest.raises(ValueError, match="ip-version"):
        fragment(bytes(100), 68)
