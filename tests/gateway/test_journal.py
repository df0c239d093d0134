"""A journal listens only while a capture wants it, and only from an engine's beginning."""

from __future__ import annotations

import inspect
from operator import attrgetter

import pytest

from netstack import journal
from netstack.engine.policy import PolicySettings
from netstack.engine.settings import NetworkSettings
from netstack.engine.stack import Stack
from netstack.engine.verdict import ALLOW, Question, Verdict
from netstack.journal import BY_NAME, CALLS, JournalError, decode, encode


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("stream_sent", (3, 1460)),
        ("stream_opened", (3, b"\1\2\3\4")),
        ("stream_opened", (3, None)),
        ("echo_failed", (1, b"\1\2\3\4", 2, None, b"", 0)),
        ("open_inbound", ((b"\1\2\3\4", 0), (b"\5\6\7\x08", 80), None, 10.0)),
        ("flow_consulted", (Question(1, 6, (b"abcd", 1), (b"efgh", 2)), Verdict(ALLOW, "hook", "asked"))),
        ("replace_policy", (PolicySettings(disabled=True), "kill-switch", True)),
        ("take_batch", (256, frozenset({b"abcdef", b"ghijkl"}))),
    ],
)
def test_a_record_is_read_as_it_was_written(name: str, values: tuple[object, ...]):
    ((code, read),) = decode(encode(BY_NAME[name].code, values))
    letters = journal.LETTERS[code]
    assert tuple(value for letter, value in zip(letters, read, strict=True) if letter != "t") == values


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_a_call_is_what_the_engine_has(call: journal.Call):
    """Names, order and defaults; of a compiled method as far as it tells."""
    stack = Stack(NetworkSettings(), initial_sequence=lambda _key, _now: 0)
    method = attrgetter(f"{call.place}.{call.name}" if call.place else call.name)(stack)
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except ValueError:
        pytest.skip("it does not tell")
    assert len(parameters) == len(call.letters) + len(call.keywords)
    assert [each.name for each in parameters[len(call.letters) :]] == list(call.keywords)
    optional = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    assert optional == dict(call.defaults)
    assert list(optional) == [each.name for each in parameters][len(parameters) - len(optional) :]


def test_damage_is_told_and_nothing_else_raised():
    record = encode(BY_NAME["datagram_received"].code, (1, b"abcd", 53, b"hello"))
    for end in range(1, len(record)):
        with pytest.raises(JournalError):
            list(decode(record[:end]))
    with pytest.raises(JournalError):
        list(decode(b"\xff"))
