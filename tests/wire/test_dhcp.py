"""DHCP messages, with scapy, dpkt and dnspython on the other side."""

from __future__ import annotations

import dns.name
import dns.wire
import dpkt.dhcp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from netstack.wire import dhcp

from . import samples

addresses = st.binary(min_size=4, max_size=4)
options_maps = st.dictionaries(
    st.integers(1, 254).filter(lambda code: code != dhcp.OVERLOAD),
    st.binary(max_size=40) | st.sampled_from([254, 255, 256, 510, 511]).map(lambda size: b"v" * size),
    max_size=8,
)
messages = st.builds(
    dhcp.DhcpMessage,
    op=st.sampled_from([dhcp.BOOT_REQUEST, dhcp.BOOT_REPLY]),
    xid=addresses,
    chaddr=st.binary(max_size=16),
    options=options_maps,
    htype=st.integers(0, 255),
    hops=st.integers(0, 255),
    secs=st.integers(0, 65535),
    flags=st.integers(0, 65535),
    ciaddr=addresses,
    yiaddr=addresses,
    siaddr=addresses,
    giaddr=addresses,
)


def parsed(message: bytes) -> dhcp.DhcpMessage:
    result = dhcp.parse(message)
    assert isinstance(result, dhcp.DhcpMessage), result
    return result


@given(message=messages)
def test_what_is_built_is_read_back(message: dhcp.DhcpMessage) -> None:
    """With values over 255 bytes, which RFC 3396 splits."""
    built = dhcp.build(message)
    assert len(built) >= 300
    assert parsed(built) == message


@given(message=messages)
def test_build_against_dpkt_and_scapy(message: dhcp.DhcpMessage) -> None:
    built = dhcp.build(message)
    theirs = dpkt.dhcp.DHCP(built)
    assert (theirs.op, theirs.hrd, theirs.hln, theirs.hops) == (
        message.op,
        message.htype,
        len(message.chaddr),
        message.hops,
    )
    assert (theirs.xid.to_bytes(4, "big"), theirs.secs, theirs.flags) == (message.xid, message.secs, message.flags)
    assert theirs.ciaddr.to_bytes(4, "big") == message.ciaddr
    assert theirs.yiaddr.to_bytes(4, "big") == message.yiaddr
    joined: dict[int, bytes] = {}
    for code, value in theirs.opts:
        joined[code] = joined.get(code, b"") + value
    assert joined == dict(message.options)
    scapys = BOOTP(built)
    assert bytes(scapys.chaddr)[: len(message.chaddr)] == message.chaddr
    assert scapys.haslayer(DHCP)


def test_scapys_discover_is_read() -> None:
    message = parsed(samples.DHCP_MESSAGES["discover"])
    assert (message.op, message.htype, message.chaddr) == (1, 1, samples.GUEST_MAC)
    assert message.xid == b"\x12\x34\x56\x78"
    assert dict(message.options) == {
        dhcp.MESSAGE_TYPE: b"\x01",
        dhcp.CLIENT_IDENTIFIER: b"\x01" + samples.GUEST_MAC,
        dhcp.MAX_MESSAGE_SIZE: b"\x05\xdc",
        55: bytes([1, 3, 6, 26, 119]),
        dhcp.HOST_NAME: b"guest",
    }
    renew = parsed(samples.DHCP_MESSAGES["renew"])
    assert (renew.ciaddr, renew.giaddr) == (samples.GUEST, dhcp.UNSPECIFIED)
    assert parsed(samples.DHCP_MESSAGES["request"]).flags == dhcp.BROADCAST_FLAG


@pytest.mark.parametrize(
    ("overload", "seen"),
    [
        (1, {61: b"AB", 12: b"file"}),
        (2, {61: b"AC", 15: b"sname"}),
        (3, {61: b"ABC", 12: b"file", 15: b"sname"}),
    ],
)
def test_options_go_on_in_file_then_sname(overload: int, seen: dict[int, bytes]) -> None:
    """RFC 2131 section 4.1; RFC 3396 section 5 says in which order the pieces of a split option are joined."""
    message = samples.overloaded_dhcp(
        overload, options=b"\x3d\x01A\xff", file=b"\x3d\x01B\x0c\x04file\xff", sname=b"\x3d\x01C\x0f\x05sname\xff"
    )
    assert dict(parsed(message).options) == {53: b"\x01", **seen}


def test_an_overload_inside_an_overloaded_field_means_nothing() -> None:
    message = samples.overloaded_dhcp(1, options=b"\xff", file=b"\x34\x01\x02\xff", sname=b"\x0c\x04name\xff")
    assert dict(parsed(message).options) == {53: b"\x01"}


def test_pieces_that_are_not_adjacent_are_one_option() -> None:
    message = samples.overloaded_dhcp(0, options=b"\x3d\x01a\x0c\x01x\x00\x00\x3d\x02bc\xff", file=b"", sname=b"")
    assert parsed(message).options[61] == b"abc"


def test_a_repeated_message_type_is_not_a_message_type() -> None:
    message = samples.overloaded_dhcp(0, options=b"\x35\x01\x03\xff", file=b"", sname=b"")
    assert parsed(message).options[53] == b"\x01\x03"


def test_nothing_is_read_behind_the_end_option() -> None:
    message = samples.overloaded_dhcp(0, options=b"\xff\x3d\xff", file=b"", sname=b"")
    assert 61 not in parsed(message).options


def test_a_missing_end_option_is_forgiven() -> None:
    message = samples.overloaded_dhcp(0, options=b"\x3d\x01a", file=b"", sname=b"")
    assert parsed(message).options[61] == b"a"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (samples.DHCP_MESSAGES["discover"][:239], "dhcp-truncated"),
        (samples.DHCP_MESSAGES["discover"].replace(b"\x63\x82\x53\x63", b"\x63\x82\x53\x64"), "dhcp-cookie"),
        (b"\x01\x01\x11" + samples.DHCP_MESSAGES["discover"][3:], "dhcp-hlen"),
        (samples.overloaded_dhcp(0, options=b"\x3d", file=b"", sname=b""), "dhcp-options"),
        (samples.overloaded_dhcp(0, options=b"\x3d\x02a", file=b"", sname=b""), "dhcp-options"),
        (samples.overloaded_dhcp(4, options=b"\xff", file=b"", sname=b""), "dhcp-overload"),
        (samples.overloaded_dhcp(1, options=b"\x34\x01\x01\xff", file=b"", sname=b""), "dhcp-overload"),
        (samples.overloaded_dhcp(1, options=b"\xff", file=b"\x3d\x7f", sname=b""), "dhcp-options"),
        (samples.overloaded_dhcp(2, options=b"\xff", file=b"", sname=b"\x00" * 63 + b"\x3d"), "dhcp-options"),
    ],
)
def test_faults_have_reasons(message: bytes, reason: str) -> None:
    assert dhcp.parse(message) == reason


def test_a_hardware_address_that_does_not_fit_is_not_built() -> None:
    with pytest.raises(ValueError, match="17"):
        dhcp.build(dhcp.DhcpMessage(1, bytes(4), bytes(17), {}))


labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)


@given(domains=st.lists(st.lists(labels, min_size=1, max_size=3).map(".".join), max_size=5))
def test_search_lists_as_dnspython_reads_them(domains: list[str]) -> None:
    parser = dns.wire.Parser(dhcp.encode_search_list(domains))
    names = []
    while parser.remaining():
        names.append(parser.get_name().to_text(omit_final_dot=True))
    assert names == domains


def test_a_search_list_by_hand() -> None:
    assert dhcp.encode_search_list(["eng.example.com", "b."]) == b"\x03eng\x07example\x03com\x00\x01b\x00"
    assert dhcp.encode_search_list([]) == b""


@pytest.mark.parametrize(
    ("domain", "complaint"),
    [
        ("", "empty label"),
        (".", "empty label"),
        ("a..b", "empty label"),
        ("a" * 64, "63 bytes"),
        (".".join(["a" * 63] * 4), "255 bytes"),
        ("münchen.example", "ASCII"),
    ],
)
def test_search_domains_that_cannot_be_written(domain: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dhcp.encode_search_list(["ok.example", domain])
