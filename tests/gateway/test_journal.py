"""A journal listens only while a capture wants it, and only from an engine's beginning."""

from __future__ import annotations

import pytest

from netstack import journal
from netstack.engine.policy import PolicySettings
from netstack.engine.verdict import ALLOW, Question, Verdict
from netstack.journal import BY_NAME, JournalError, decode, encode


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
        ("take_frames", (256, frozenset({b"abcdef", b"ghijkl"}))),
    ],
)
def test_a_record_is_read_as_it_was_written(name: str, values: tuple[object, ...]):
    ((code, read),) = decode(encode(BY_NAME[name].code, values))
    letters = journal.LETTERS[code]
    assert tuple(value for letter, value in zip(letters, read, strict=True) if letter != "t") == values


def test_damage_is_told_and_nothing_else_raised():
    record = encode(BY_NAME["datagram_received"].code, (1, b"abcd", 53, b"hello"))
    for end in range(1, len(record)):
        with pytest.raises(JournalError):
            list(decode(record[:end]))
    with pytest.raises(JournalError):
        list(decode(b"\xff"))
