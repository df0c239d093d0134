"""Bodies and errors as Go's standard library has them, in its words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.gateway.api import go_json
from netstack.gateway.api.go_texts import parse_uint, quote, split_host_port

DECODING = [
    ("", "EOF"),
    (" \t\r\n", "EOF"),
    ("{", "unexpected EOF"),
    ('{"a"', "unexpected EOF"),
    ('{"a":', "unexpected EOF"),
    ('{"a":1', "unexpected EOF"),
    ('{"a":"x', "unexpected EOF"),
    ("tru", "unexpected EOF"),
    ("x", "invalid character 'x' looking for beginning of value"),
    ("'a'", r"invalid character '\'' looking for beginning of value"),
    ("{a", "invalid character 'a' looking for beginning of object key string"),
    ('{"a" 1}', "invalid character '1' after object key"),
    ('{"a":1 "b"', "invalid character '\"' after object key:value pair"),
    ('{"a":1,}', "invalid character '}' looking for beginning of object key string"),
    ("[1 2]", "invalid character '2' after array element"),
    ("[1,]", "invalid character ']' looking for beginning of value"),
    ('{"a":}', "invalid character '}' looking for beginning of value"),
    ("tru}", "invalid character '}' in literal true (expecting 'e')"),
    ("nil", "invalid character 'i' in literal null (expecting 'u')"),
    ("-x", "invalid character 'x' in numeric literal"),
    ('"a\nb"', r"invalid character '\n' in string literal"),
    (r'"\x"', "invalid character 'x' in string escape code"),
    (r'"\u12g4"', r"invalid character 'g' in \u hexadecimal character escape"),
    ("NaN", "invalid character 'N' looking for beginning of value"),
]


@pytest.mark.parametrize(("body", "text"), DECODING)
def test_what_is_no_json(body: str, text: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is the point
        go_json.decode(body.encode())
    assert str(raised.value) == text


_TEXTS = st.text(st.characters(codec="utf-8"))
_SCALARS = st.none() | st.booleans() | st.integers() | _TEXTS
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_TEXTS, inner), max_leaves=10)


@given(_VALUES)
def test_what_is_json_is_read_and_what_follows_is_not(value: object) -> None:
    assert go_json.decode(f"  {json.dumps(value, ensure_ascii=False)} and so on".encode()) == value


@given(st.binary(max_size=60))
def test_no_body_raises_anything_else(body: bytes) -> None:
    for whole in (body, b'{"a":' + body, b'["' + body):
        try:
            go_json.decode(whole)
        except json.JSONDecodeError:
            pytest.fail("every fault has Go's words")
        except ValueError:
            continue


def test_depth_has_a_bound() -> None:
    with pytest.raises(ValueError, match="exceeded max depth"):
        go_json.decode(b"[" * 100_000)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "json: cannot unmarshal array into Go value of type types.Thing"),
        ("x", "json: cannot unmarshal string into Go value of type types.Thing"),
        ({"NAME": True}, "json: cannot unmarshal bool into Go struct field Thing.name of type string"),
        ({"name": {}}, "json: cannot unmarshal object into Go struct field Thing.name of type string"),
        ({"name": 1.5}, "json: cannot unmarshal number into Go struct field Thing.name of type string"),
    ],
)
def test_values_of_another_type(value: object, text: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is the point
        go_json.fields(value, "Thing", {"name": (str, "string")})
    assert str(raised.value) == text


def test_keys_in_any_case_the_last_one_counts_and_null_is_nothing() -> None:
    kinds = {"name": (str, "string"), "other": (str, "string")}
    assert go_json.fields({"Name": "a", "NAME": "b", "else": 1, "other": None}, "Thing", kinds) == {"name": "b"}
    assert go_json.fields(None, "Thing", kinds) == {}


def test_encoding() -> None:
    assert (
        go_json.encode({"b": "<&>\u2028é", "a": [1, None]})
        == b'{"b":"\\u003c\\u0026\\u003e\\u2028\xc3\xa9","a":[1,null]}\n'
    )
    assert list(go_json.ordered({"b": 1, "a": 2})) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", 'strconv.ParseUint: parsing "": invalid syntax'),
        ("-1", 'strconv.ParseUint: parsing "-1": invalid syntax'),
        ("\N{ARABIC-INDIC DIGIT ONE}", 'strconv.ParseUint: parsing "\N{ARABIC-INDIC DIGIT ONE}": invalid syntax'),
        ('1"\n', r'strconv.ParseUint: parsing "1\"\n": invalid syntax'),
        ("65536", 'strconv.ParseUint: parsing "65536": value out of range'),
        ("9" * 99, f'strconv.ParseUint: parsing "{"9" * 99}": value out of range'),
    ],
)
def test_numbers_that_are_none(text: str, error: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is the point
        parse_uint(text, 16)
    assert str(raised.value) == error


def test_numbers() -> None:
    assert (parse_uint("0065535", 16), parse_uint("0", 16)) == (65535, 0)
    assert quote("a\x00\x85") == r'"a\x00\u0085"'


@pytest.mark.parametrize(
    ("text", "made"),
    [("a:1", ("a", "1")), (":1", ("", "1")), ("[::1]:2", ("::1", "2")), ("a:", ("a", "")), ("[a]:", ("a", ""))],
)
def test_addresses(text: str, made: tuple[str, str]) -> None:
    assert split_host_port(text) == made


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "missing port in address"),
        ("@", "address @: missing port in address"),
        ("a", "address a: missing port in address"),
        ("a:b:c", "address a:b:c: too many colons in address"),
        ("::1", "address ::1: too many colons in address"),
        ("[::1]", "address [::1]: missing port in address"),
        ("[::1", "address [::1: missing ']' in address"),
        ("[a]:1:2", "address [a]:1:2: too many colons in address"),
        ("a]:1", "address a]:1: unexpected ']' in address"),
    ],
)
def test_addresses_that_are_none(text: str, error: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is the point
        split_host_port(text)
    assert str(raised.value) == error
