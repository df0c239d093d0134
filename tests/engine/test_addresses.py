"""What kind of place an address is: every special-purpose block at its edges, addresses inside addresses, metadata."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from netstack.engine.addresses import is_metadata, kind

# Conformance A1, A3 to A5: each block by its first and last address; those beside it are public unless named here.
BLOCKS = {
    "0.0.0.0/8": "unspecified",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "cgnat",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "reserved",
    "192.88.99.0/24": "reserved",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "reserved",
    "198.51.100.0/24": "reserved",
    "203.0.113.0/24": "reserved",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@pytest.mark.parametrize(("block", "word"), BLOCKS.items())
def test_a1_a5_blocks_begin_and_end_where_the_registries_say(block: str, word: str) -> None:
    network = ipaddress.IPv4Network(block)
    others = [ipaddress.IPv4Network(other) for other in BLOCKS if other != block]
    first, last = int(network.network_address), int(network.broadcast_address)
    assert kind(network.network_address.packed) == kind(network.broadcast_address.packed) == word
    for number in (first - 1, last + 1):
        if 0 <= number < 1 << 32:
            beyond = ipaddress.IPv4Address(number)
            assert (kind(beyond.packed) == "public") == all(beyond not in other for other in others)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.0.1", "169.254.255.255", "168.63.129.16", "192.0.0.192", "100.100.100.200",
        "fe80::a9fe:a9fe", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe",
        "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::169.254.169.254",
        "::ffff:168.63.129.16",
    ],
)  # fmt: skip
def test_a3_a4_where_clouds_keep_their_metadata(address: str) -> None:
    assert is_metadata(packed(address))
    assert kind(packed(address)) != "public"


@pytest.mark.parametrize("address", ["168.63.129.15", "168.63.129.17", "8.8.8.8", "10.0.0.1", "fd00:ec3::254", "::1"])
def test_what_is_no_metadata_service(address: str) -> None:
    assert not is_metadata(packed(address))


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::2", "unspecified"),
        ("fc00::1", "private"),
        ("fdff:ffff::1", "private"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("fec0::1", "reserved"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "reserved"),
        ("3fff::1", "reserved"),
        ("2001::1", "reserved"),
        ("2001:1ff:ffff::1", "reserved"),
        ("2001:200::1", "public"),
        ("2001:4860:4860::8888", "public"),
        ("2606:4700::6810:84e5", "public"),
        ("3ffe::1", "public"),
        ("100::1", "reserved"),
        ("5f00::1", "reserved"),
        ("4000::1", "reserved"),
        ("1fff::1", "reserved"),
    ],
)
def test_ipv6(address: str, word: str) -> None:
    assert kind(packed(address)) == word


@pytest.mark.parametrize("form", ["::ffff:{}", "::{}", "64:ff9b::{}"])
@pytest.mark.parametrize(
    ("inner", "word"),
    [
        ("10.0.0.1", "private"),
        ("127.0.0.1", "loopback"),
        ("100.64.0.1", "cgnat"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("8.8.8.8", "embedded"),
    ],
)
def test_a6_a7_an_ipv4_address_in_ipv6_clothes_is_what_it_is(form: str, inner: str, word: str) -> None:
    assert kind(packed(form.format(inner))) == word


@pytest.mark.parametrize(
    ("address", "word"),
    [("2002:0a00:0001::", "private"), ("2002:7f00:1::1", "loopback"), ("2002:808:808::1", "embedded")],
)
def test_a7_6to4(address: str, word: str) -> None:
    assert kind(packed(address)) == word


def test_a7_nat64_of_the_local_network_is_the_local_network() -> None:
    assert kind(packed("64:ff9b:1::808:808")) == "private"


# What Python's registry calls global although it is a protocol's own, and the places that only clouds know of.
_PYTHON_CALLS_PUBLIC = [ipaddress.ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")]
_PYTHON_CALLS_PUBLIC += [
    ipaddress.ip_network(each)
    for each in ("2001::/23", "2002::/16", "3fff::/16", "::/3", "4000::/2", "8000::/1", "64:ff9b::/96", "ff00::/8")
]


@given(st.ip_addresses())
def test_public_as_python_has_it(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Nothing that Python calls private is public here; what it calls global is, but for the blocks named above."""
    word = kind(address.packed)
    if not address.is_global or address.is_multicast:
        assert word != "public"
    elif not any(address.version == each.version and address in each for each in _PYTHON_CALLS_PUBLIC):
        assert word == "public"


@given(st.sampled_from([*BLOCKS, "168.63.129.0/24", "8.0.0.0/8"]), st.integers(min_value=0))
def test_the_words_are_pythons(block: str, number: int) -> None:
    network = ipaddress.IPv4Network(block)
    address = network[number % network.num_addresses]
    word = kind(address.packed)
    assert address.is_loopback == (word == "loopback")
    assert address.is_multicast == (word == "multicast")
    assert address.is_link_local == (word == "link-local")
    if address.is_unspecified:
        assert word == "unspecified"
    if address.is_reserved:
        assert word == "reserved"


@given(st.ip_addresses(v=6))
def test_ipv6_words_are_pythons(address: ipaddress.IPv6Address) -> None:
    assume(address.ipv4_mapped is None and address.sixtofour is None)
    # Python does not look for an IPv4 address inside of these.
    assume(not any(address in ipaddress.IPv6Network(network) for network in ("64:ff9b::/96", "::/96")))
    word = kind(address.packed)
    assert address.is_multicast == (word == "multicast")
    if address.is_link_local:
        assert word == "link-local"
    if word == "public":
        assert {address.is_private, address.is_reserved, address.is_loopback, address.is_unspecified} == {False}


@given(st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)))
def test_every_address_has_a_word(address: bytes) -> None:
    assert kind(address) in {
        "public", "private", "loopback", "link-local", "cgnat", "multicast", "reserved", "metadata", "unspecified",
        "embedded",
    }  # fmt: skip
