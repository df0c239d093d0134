"""The one canonical form of host names: what it makes of every spelling, and what is no host name at all."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine.names import MAX_NAME, canonical, suffixes

LONGEST_LABEL = "a" * 63
LONGEST_NAME = ".".join([LONGEST_LABEL] * 3 + ["a" * 61])


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com", "example.com"),
        ("example.com.", "example.com"),
        (" \texample.com\r\n", "example.com"),
        ("localhost", "localhost"),
        ("_imaps._tcp.example.com", "_imaps._tcp.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a--b.1e100.net", "a--b.1e100.net"),
        ("1.2.3.4.in-addr.arpa", "1.2.3.4.in-addr.arpa"),
        ("1.2.3.com", "1.2.3.com"),
        ("0x7f.com", "0x7f.com"),
        (f"{LONGEST_LABEL}.com", f"{LONGEST_LABEL}.com"),
        (LONGEST_NAME, LONGEST_NAME),
        (f"{LONGEST_NAME}.", LONGEST_NAME),
    ],
)
def test_spellings_of_one_name(spelled: str, name: str) -> None:
    assert canonical(spelled) == name
    assert canonical(spelled.encode()) == name


@pytest.mark.parametrize(
    "spelled",
    [
        "", " ", ".", "..", ".com", "example..com", "example.com..", "-a.com", "a-.com", "-", "a b.com", "a\tb.com",
        "example.com\0", "\0example.com", "exam\nple.com", "example.com:443", "user@example.com", "example.com/",
        "[::1]", "::1", "*.example.com", "exa%6dple.com", "a,b.com", "bücher.de", "example。com", "example.com \u200b",
        f"{LONGEST_LABEL}a.com", f"{LONGEST_NAME}a", "ex\u0131mple.com",
    ],
)  # fmt: skip
def test_no_host_names(spelled: str) -> None:
    assert canonical(spelled) is None
    assert canonical(spelled.encode()) is None


@pytest.mark.parametrize(
    "spelled",
    [
        "1.2.3.4", "127.0.0.1.", "1.2.3", "127.1", "2130706433", "0x7f000001", "0X7F000001", "017700000001", "0x",
        "0x7f.0.0.0x1", "999.999.999.999", "example.0x1f", "example.123", "1.2.3.4.5", "a.0x",
    ],
)  # fmt: skip
def test_a11_an_address_in_whatever_base_is_never_a_host_name(spelled: str) -> None:
    """Conformance A11: URL parsers and inet_aton take all of these for IPv4 addresses, or for nothing."""
    assert canonical(spelled) is None


def test_a_letter_that_turns_into_ascii_is_refused_before_it_does() -> None:
    """The Kelvin sign in lower case is the letter k: two spellings of one name would be judged alike, and differ."""
    assert "\u212a".lower() == "k"
    assert canonical("\u212aey.example") is None


@given(st.one_of(st.text(), st.from_regex(r"\A[a-zA-Z0-9._\- ]{0,80}\Z"), st.binary()))
def test_canonical_is_idempotent_and_plain(spelled: str | bytes) -> None:
    name = canonical(spelled)
    if name is None:
        return
    assert canonical(name) == name
    assert canonical(name.upper()) == name
    assert canonical(name + ".") == name
    assert name.isascii()
    assert name == name.lower().strip()
    assert 0 < len(name) <= MAX_NAME
    assert all(0 < len(label) <= 63 for label in name.split("."))


@given(st.ip_addresses())
def test_no_address_has_a_canonical_name(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert canonical(str(address)) is None
    if address.version == 4:
        for number in (str(int(address)), hex(int(address)), oct(int(address)).replace("o", "")):
            assert canonical(number) is None


def test_suffixes_from_the_longest() -> None:
    assert suffixes("a.b.example.com") == ["b.example.com", "example.com", "com"]
    assert suffixes("localhost") == []
