"""TCP options and whole frames, with scapy and dpkt on the other side."""

from __future__ import annotations

import dpkt.ethernet
import dpkt.ip
import dpkt.tcp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from netstack.wire import tcp

from . import samples

numbers = st.integers(0, 0xFFFF_FFFF)
words = st.integers(0, 0xFFFF)
stamps = st.tuples(numbers, numbers)


def scapys(options: list[tuple[str, object]]) -> bytes:
    return samples.transport(TCP(flags="S", options=options))[20:]


@given(mss=words, scale=st.none() | st.integers(0, 14), sack=st.booleans(), timestamps=st.none() | stamps)
def test_syn_options_against_scapy_and_parse(
    mss: int, scale: int | None, sack: bool, timestamps: tuple[int, int] | None
) -> None:
    ours = tcp.build_syn_options(mss, window_scale=scale, sack_permitted=sack, timestamps=timestamps)
    assert len(ours) % 4 == 0
    assert len(ours) <= 40
    header = bytes(TCP())[:12] + b"\xf0" + bytes(7)
    read = dict(TCP(header + ours.ljust(40, b"\x00")).options)
    assert read["MSS"] == mss
    assert read.get("WScale") == scale
    assert ("SAckOK" in read) is sack
    assert read.get("Timestamp") == timestamps
    assert tcp.parse_options(ours) == tcp.TcpOptions(mss, scale, sack, timestamps, ())


@given(
    mss=st.none() | words,
    scale=st.none() | st.integers(0, 255),
    sack=st.booleans(),
    timestamps=st.none() | stamps,
    order=st.randoms(use_true_random=False),
)
def test_scapys_syn_options_in_any_order_are_read(
    mss: int | None, scale: int | None, sack: bool, timestamps: tuple[int, int] | None, order: object
) -> None:
    options: list[tuple[str, object]] = [("NOP", None)]
    options += [("MSS", mss)] if mss is not None else []
    options += [("WScale", scale)] if scale is not None else []
    options += [("SAckOK", b"")] if sack else []
    options += [("Timestamp", timestamps)] if timestamps is not None else []
    order.shuffle(options)  # type: ignore[attr-defined] # hypothesis gives a random.Random, which we may not name
    # RFC 7323 section 2.3: a shift above 14 counts as 14.
    expected = tcp.TcpOptions(mss, None if scale is None else min(scale, 14), sack, timestamps, ())
    assert tcp.parse_options(scapys(options)) == expected


@given(blocks=st.lists(stamps, min_size=1, max_size=4), timestamps=st.none() | stamps)
def test_sack_against_scapy_and_parse(blocks: list[tuple[int, int]], timestamps: tuple[int, int] | None) -> None:
    if timestamps is not None:
        blocks = blocks[:3]
    ours = (tcp.build_timestamps(*timestamps) if timestamps else b"") + tcp.build_sack(blocks)
    flat = tuple(edge for block in blocks for edge in block)
    theirs = [("NOP", None), ("NOP", None), ("SAck", flat)]
    if timestamps:
        theirs = [("NOP", None), ("NOP", None), ("Timestamp", timestamps), *theirs]
    assert ours == scapys(theirs)
    assert len(ours) <= 40
    parsed = tcp.parse_options(ours)
    assert parsed.sack == tuple(blocks)
    assert parsed.timestamps == timestamps


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", tcp.NO_OPTIONS),
        ("00020405b4", tcp.NO_OPTIONS),  # nothing counts behind the end
        ("02", tcp.NO_OPTIONS),  # no length
        ("0200", tcp.NO_OPTIONS),  # length 0 would never end
        ("0201", tcp.NO_OPTIONS),
        ("020405", tcp.NO_OPTIONS),  # one byte short
        ("0203050101020405b4", tcp.TcpOptions(mss=1460)),  # MSS of a wrong length is passed over
        ("020405b4030a", tcp.TcpOptions(mss=1460)),  # what came before the fault counts
        ("0402040200", tcp.TcpOptions(sack_permitted=True)),
        ("0506000000010101", tcp.NO_OPTIONS),  # half a SACK block
        ("0502", tcp.NO_OPTIONS),  # no SACK block
    ],
)
def test_malformed_options_end_the_reading(options: str, expected: tcp.TcpOptions) -> None:
    assert tcp.parse_options(bytes.fromhex(options)) == expected


def test_more_sack_blocks_than_a_header_can_hold() -> None:
    """K8: the list is bounded whatever the length says."""
    blocks = [(number, number + 1) for number in range(31)]
    assert tcp.parse_options(tcp.build_sack(blocks)).sack == tuple(blocks[:4])


@given(
    sequence=numbers,
    acknowledgement=numbers,
    flags=st.integers(0, 0xFF),
    window=words,
    options=st.sampled_from(sorted(samples.TCP_OPTIONS.values(), key=len)),
    payload=st.binary(max_size=200),
    ports=st.tuples(words, words),
)
def test_frames_against_scapy_and_dpkt(
    sequence: int,
    acknowledgement: int,
    flags: int,
    window: int,
    options: bytes,
    payload: bytes,
    ports: tuple[int, int],
) -> None:
    writer = tcp.SegmentWriter(
        destination_mac=samples.GUEST_MAC,
        source_mac=samples.GATEWAY_MAC,
        source=samples.GATEWAY,
        destination=samples.GUEST,
        source_port=ports[0],
        destination_port=ports[1],
    )
    frame = writer.frame(sequence, acknowledgement, flags, window, options, payload)
    ether = dpkt.ethernet.Ethernet(frame)
    assert (ether.dst, ether.src) == (samples.GUEST_MAC, samples.GATEWAY_MAC)
    packet = ether.data
    assert isinstance(packet, dpkt.ip.IP)
    assert (packet.src, packet.dst, packet.len) == (samples.GATEWAY, samples.GUEST, len(frame) - 14)
    segment = packet.data
    assert isinstance(segment, dpkt.tcp.TCP)
    assert (segment.sport, segment.dport) == ports
    assert (segment.seq, segment.ack, segment.flags, segment.win) == (sequence, acknowledgement, flags, window)
    assert (segment.opts, bytes(segment.data)) == (options, payload)
    theirs = Ether(frame)
    written = (theirs[IP].chksum, theirs[TCP].chksum)
    del theirs[IP].chksum
    del theirs[TCP].chksum
    redone = Ether(bytes(theirs))
    assert (redone[IP].chksum, redone[TCP].chksum) == written
