from __future__ import annotations

import dpkt.ethernet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import Ether

from netstack.wire import ethernet

macs = st.binary(min_size=6, max_size=6)


@given(destination=macs, source=macs, payload=st.binary(max_size=100))
def test_a_frame_as_scapy_writes_it_and_dpkt_reads_it(destination: bytes, source: bytes, payload: bytes) -> None:
    frame = ethernet.frame(destination, source, b"\x88\xb5", payload)
    assert frame == bytes(Ether(dst=destination, src=source, type=0x88B5)) + payload
    read = dpkt.ethernet.Ethernet(frame)
    assert (read.dst, read.src, read.type, bytes(read.data)) == (destination, source, 0x88B5, payload)


@pytest.mark.parametrize(
    ("mac", "unicast"),
    [
        ("02:00:00:00:00:01", True),
        ("00:00:00:00:00:01", True),
        ("fe:ff:ff:ff:ff:ff", True),
        ("00:00:00:00:00:00", False),
        ("ff:ff:ff:ff:ff:ff", False),
        ("01:00:5e:00:00:fb", False),
        ("33:33:00:00:00:01", False),
    ],
)
def test_unicast(mac: str, unicast: bool) -> None:
    packed = bytes.fromhex(mac.replace(":", ""))
    assert ethernet.is_unicast(packed) is unicast
    assert ethernet.format_mac(packed) == mac
