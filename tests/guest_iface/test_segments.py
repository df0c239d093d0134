"""Large frames in pieces, judged by scapy's checksums and by the kernel's rules for segments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from guest_iface.segments import checksum_covers, cut_frame
from guest_iface.vnet_header import GSO_NONE, NEEDS_CSUM, VnetHeader, finish

TEXT = bytes(range(256)) * 100


def large(size: int, *, flags: str = "PA", options: bytes = b"") -> bytes:
    header = IP(src="10.0.0.1", dst="10.0.0.2", id=65_530, options=options)
    return bytes(Ether() / header / TCP(seq=2**32 - 3000, flags=flags, options=[("NOP", None)] * 4) / Raw(TEXT[:size]))


@pytest.mark.parametrize("options", [b"", b"\x94\x04\0\0"])
def test_pieces_carry_the_same_and_their_checksums_are_partial(options: bytes) -> None:
    pieces = cut_frame(large(10_000, flags="FPAC", options=options), 1500)
    assert max(map(len, pieces)) == 14 + 1500
    read = [Ether(piece) for piece in pieces]
    assert b"".join(bytes(each[TCP].payload) for each in read) == TEXT[:10_000]
    start = 2**32 - 3000
    for number, each in enumerate(read):
        assert each[TCP].seq == (start + number * len(read[0][TCP].payload)) % 2**32
        assert each[IP].id == (65_530 + number) % 65_536
        assert str(each[TCP].flags) == ("FPA" if number == len(read) - 1 else "AC" if number == 0 else "A")
        # A card completes the sum; then it is what scapy makes of the same fields.
        tcp = 14 + 4 * each[IP].ihl
        (whole,) = finish(VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, tcp, 16), bytes(each))
        again = Ether(whole)
        del again[IP].chksum, again[TCP].chksum
        assert bytes(Ether(bytes(again))) == whole


@pytest.mark.parametrize(
    "frame",
    [
        large(1400),
        bytes(Ether() / IP() / UDP() / Raw(TEXT[:3000])),
        bytes(Ether() / IPv6() / TCP() / Raw(TEXT[:3000])),
        bytes(Ether(type=0x88B5) / Raw(TEXT[:3000])),
        large(3000)[:46] + b"\xf0" + large(3000)[47:66],
    ],
    ids=["small", "udp", "ipv6", "other", "cut"],
)
def test_what_is_no_large_tcp_stays_whole(frame: bytes) -> None:
    assert cut_frame(frame, 1500) == [frame]


@given(st.binary(max_size=3000), st.integers(28, 1500))
def test_no_frame_raises(data: bytes, mtu: int) -> None:
    for frame in (
        data,
        data[:12] + b"\x08\x00" + data[14:],
        data[:12] + b"\x08\x00\x45" + data[15:23] + b"\x06" + data[24:],
    ):
        assert sum(map(len, cut_frame(frame, mtu))) >= len(frame)
        for position in range(0, len(frame), 7):
            checksum_covers(frame, position)
