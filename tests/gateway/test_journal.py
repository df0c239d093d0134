"""A journal listens only while a capture wants it, and only from an engine's beginning."""

from __future__ import annotations

import inspect
from operator import attrgetter
from pathlib import Path

import pytest

from guest_iface.capture import CaptureWriter
from netstack import journal
from netstack.debug.capture_reader import CaptureReader
from netstack.engine.policy import PolicySettings
from netstack.engine.settings import NetworkSettings, Zone
from netstack.engine.stack import Stack
from netstack.engine.verdict import ALLOW, Question, Verdict
from netstack.gateway.driver import Driver
from netstack.gateway.journal import Journal
from netstack.journal import BY_NAME, CALLS, JournalError, decode, encode
from tests.gateway.test_driver import NoResolver

MAC = bytes.fromhex("525400000001")


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


def journal_of(path: Path) -> bytes:
    """The journal of a capture without frames."""
    reader = CaptureReader(path)
    assert list(reader) == []
    return b"".join(reader.journal)


VALUES = {
    "n": 7, "x": b"text", "d": 2.5, "f": True, "b": b"abcd", "s": "word", "e": (b"abcd", 80), "l": frozenset({MAC}),
    "q": Question(1, 6, (b"abcd", 1), (b"efgh", 2)), "v": Verdict(ALLOW, "hook", "asked"), "p": PolicySettings(),
    "z": Zone("bench.example"), "N": None, "B": b"abcd", "E": None, "t": 5.0,
}  # fmt: skip
"""A value for each letter."""


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_what_is_heard_of_a_call_is_its_record(call: journal.Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whichever way it is heard: one record with its values, and the time before it where that is another."""
    made: list[object] = []
    answer: list[object] = []

    def method(*given: object, **named: object) -> list[object]:
        made.append((given, named))
        return answer

    driver = Driver(NetworkSettings(), resolver=NoResolver(), may_be_heard=True)
    owner = attrgetter(call.place)(driver.stack) if call.place else driver.stack
    monkeypatch.setitem(owner.__dict__, call.name, method)
    capture = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: 0.0)
    recorder = Journal(driver, lambda: True)
    recorder.begin(capture)
    given = tuple(VALUES[letter] for letter in call.letters)
    named = {name: VALUES[letter] for name, letter in call.keywords.items()}
    for _ in range(2):
        got = getattr(owner, call.name)(*given, **named)
        assert got is (None if call.name == "replace_policy" else answer)
    assert made == [(given, named)] * 2
    recorder.end(capture)
    capture.close()
    values = [len(value) if letter == "x" else value for letter, value in zip(call.letters, given, strict=True)]
    values = [value for letter, value in zip(call.letters, values, strict=True) if letter != "t"] + list(named.values())
    own = encode(call.code, tuple(values))
    judged = encode(journal.JUDGE, (False, False))
    before = judged if call.name == "replace_policy" else b""
    at = encode(journal.NOW, (5.0,)) if "t" in call.letters else b""
    assert journal_of(tmp_path / "a.pcapng") == judged + before + at + own + before + own


def test_frames_are_taken_with_what_was_asked(tmp_path: Path):
    """What is asked as ever has the record it had; what differs, its own."""
    driver = Driver(NetworkSettings(), resolver=NoResolver(), may_be_heard=True)
    capture = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: 0.0)
    recorder = Journal(driver, lambda: True)
    recorder.begin(capture)
    asked = [(256, frozenset()), (256, frozenset()), (256, frozenset({MAC})), (1 << 30, frozenset())]
    for room, held in asked:
        driver.stack.take_batch(1.0, room, held)
    driver.stack.take_batch(2.0)
    recorder.end(capture)
    capture.close()
    read = [each for each in decode(journal_of(tmp_path / "a.pcapng")) if each[0] != journal.JUDGE]
    taken = [(journal.TAKE_BATCH, (None, *each)) for each in asked]
    last = (journal.TAKE_BATCH, (None, 1 << 30, frozenset()))
    assert read == [(journal.NOW, (1.0,)), *taken, (journal.NOW, (2.0,)), last]


def test_a_frame_in_pieces_goes_where_its_first_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On how many of several links frames went out, large ones too."""
    driver = Driver(NetworkSettings(), resolver=NoResolver(), may_be_heard=True)
    data = memoryview(bytearray(1000))
    frames = [(MAC + bytes(48), data), MAC + bytes(60), (b"\xff" * 6 + bytes(48), data)]
    monkeypatch.setitem(driver.stack.__dict__, "take_batch", lambda *_: frames)
    monkeypatch.setattr(Driver, "link_count", 2)
    monkeypatch.setattr(driver.switch, "spread", lambda mac: 1 if mac == MAC else 2)
    capture = CaptureWriter(tmp_path / "a.pcapng", clock=lambda: 0.0)
    recorder = Journal(driver, lambda: True)
    recorder.begin(capture)
    assert driver.stack.take_batch(1.0, 256, frozenset()) is frames
    recorder.end(capture)
    capture.close()
    copies = [values for code, values in decode(journal_of(tmp_path / "a.pcapng")) if code == journal.COPIES]
    assert copies == [(b"\1\0\1\0\2\0",)]


def test_damage_is_told_and_nothing_else_raised():
    record = encode(BY_NAME["datagram_received"].code, (1, b"abcd", 53, b"hello"))
    for end in range(1, len(record)):
        with pytest.raises(JournalError):
            list(decode(record[:end]))
    with pytest.raises(JournalError):
        list(decode(b"\xff"))
