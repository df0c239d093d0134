"""ARP, with scapy and dpkt on the other side."""

from __future__ import annotations

import dpkt.arp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from netstack.wire import arp

from . import samples

macs = st.binary(min_size=6, max_size=6)
addresses = st.binary(min_size=4, max_size=4)


@given(
    operation=st.sampled_from([arp.REQUEST, arp.REPLY]),
    sender_mac=macs,
    sender_ip=addresses,
    target_mac=macs,
    target_ip=addresses,
)
def test_build_against_scapy_dpkt_and_parse(
    operation: int, sender_mac: bytes, sender_ip: bytes, target_mac: bytes, target_ip: bytes
) -> None:
    message = arp.build(operation, sender_mac, sender_ip, target_mac, target_ip)
    theirs = dpkt.arp.ARP(message)
    assert (theirs.op, theirs.sha, theirs.spa, theirs.tha, theirs.tpa) == (
        operation,
        sender_mac,
        sender_ip,
        target_mac,
        target_ip,
    )
    assert bytes(ARP(message)) == message
    assert arp.parse(message) == arp.Arp(operation, sender_mac, sender_ip, target_mac, target_ip)


def test_scapys_messages_are_read() -> None:
    expected = arp.Arp(arp.REQUEST, samples.GUEST_MAC, samples.GUEST, bytes(6), samples.GATEWAY)
    assert arp.parse(samples.ARP_MESSAGES["request"]) == expected
    assert arp.parse(samples.ARP_MESSAGES["padded"]) == expected
    assert arp.parse(samples.ARP_MESSAGES["probe"]) == expected._replace(sender_ip=bytes(4))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hwtype": 6}, "arp-type"),
        ({"ptype": 0x86DD}, "arp-type"),
        ({"hwlen": 8}, "arp-type"),
        ({"plen": 16}, "arp-type"),
        ({"op": 0}, "arp-operation"),
        ({"op": 3}, "arp-operation"),
        ({"op": 65535}, "arp-operation"),
    ],
)
def test_what_is_not_arp_of_ipv4_over_ethernet(fields: dict[str, int], reason: str) -> None:
    # Addresses of the usual size, whatever the length fields say.
    message = bytes(ARP(**({"op": 1, "hwlen": 6, "plen": 4} | {k: v for k, v in fields.items() if k == "op"})))
    layout = {"hwtype": (0, 2), "ptype": (2, 2), "hwlen": (4, 1), "plen": (5, 1)}
    for name, value in fields.items():
        if name in layout:
            offset, width = layout[name]
            message = message[:offset] + value.to_bytes(width, "big") + message[offset + width :]
    assert arp.parse(message) == reason
