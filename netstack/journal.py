"""The journal of a capture: what the engine was told that no frame shows, as bytes, and back.

The engine is a function of the calls on it. Frames are in the capture; the rest is here, in the order of the calls: the
times, how much each host socket gave and took, answers of resolvers, datagrams, dice. The text of streams is left out:
the recorded frames have it. With a journal a capture is replayed as it was made and not as it may have been.

A record is a code of one byte and values of fixed order (`CALLS`). Numbers are little-endian. Times are doubles, the
engine's own, and are written where they change. Files are other people's: decoding raises JournalError alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Any, Final, NamedTuple

from netstack import recorded_settings
from netstack.engine.verdict import Question, Verdict

FORMAT: Final = 2
"""Counts changes of records that older programs cannot read; those of older formats are read."""


class JournalError(ValueError):
    """Bytes that are no journal of this format."""


class Call(NamedTuple):
    """One method of the engine.

    `letters` are its positional arguments, `keywords` the others: n a number, d a float, f a flag, b bytes, s a string,
    t the time (written apart), x text that the frames have (its length), e an endpoint (address, port), l some MACs,
    q a question, v a verdict, p a policy, z a zone; N, B, E: or None.
    """

    code: int
    place: str
    """Where the method is, from the stack; empty for its own."""
    name: str
    letters: str
    keywords: Mapping[str, str]
    defaults: Mapping[str, Any]
    """Of the last arguments, those that may be left out: a compiled method does not always tell its own."""


_CALLS: Final[tuple[tuple[str, str, str, dict[str, str]], ...]] = (
    ("", "stream_opened", "ntB", {}),
    ("", "stream_failed", "nnt", {}),
    ("", "stream_objected", "nst", {}),
    ("", "stream_sent", "nn", {}),
    ("", "stream_room", "n", {}),
    ("", "stream_received", "nx", {}),
    ("", "stream_ended", "n", {}),
    ("", "stream_reset", "nt", {}),
    ("", "name_resolved", "nBt", {}),
    ("", "datagram_received", "nbnbt", {}),
    ("", "datagram_failed", "nbnnt", {"offender": "b", "mtu": "n"}),
    ("", "echo_received", "nbnbt", {}),
    ("", "echo_failed", "nbnt", {"sequence": "N", "offender": "b", "mtu": "n"}),
    ("", "dns_resolved", "nBt", {}),
    ("", "flow_consulted", "qvt", {}),
    ("", "dns_consulted", "nvt", {}),
    ("", "guest_left", "bt", {}),
    ("", "end_flow", "nt", {}),
    ("", "host_service", "n", {}),
    ("", "unhost_service", "n", {}),
    ("", "open_inbound", "eet", {"client": "E", "timeout": "d"}),
    ("", "call_off_inbound", "nt", {}),
    ("", "open_inbound_datagrams", "eet", {"client": "E", "timeout": "d"}),
    ("", "send_inbound_datagram", "nbt", {}),
    ("", "close_inbound_datagrams", "nt", {}),
    ("", "replace_policy", "pst", {"final": "f"}),
    ("", "note_drop", "s", {}),
    ("", "advance", "t", {}),
    ("", "take_effects", "t", {}),
    ("", "take_batch", "tnl", {}),
    ("names", "known", "snt", {}),
    ("names", "learn", "snBt", {}),
    ("dns.cache", "clear", "", {}),
    ("dns.zones", "put", "z", {}),
    ("dns.zones", "remove", "s", {}),
)
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "stream_opened": {"address": None},
    "datagram_failed": {"offender": b"", "mtu": 0},
    "echo_failed": {"sequence": None, "offender": b"", "mtu": 0},
    "open_inbound": {"client": None, "timeout": 10.0},
    "open_inbound_datagrams": {"client": None, "timeout": 90.0},
    "replace_policy": {"final": False},
    "take_batch": {"room": 1 << 30, "held": frozenset()},
}
CALLS: Final = tuple(Call(code, *entry, _DEFAULTS.get(entry[1], {})) for code, entry in enumerate(_CALLS, 1))
BY_NAME: Final = {call.name: call for call in CALLS}
TAKE_BATCH: Final = BY_NAME["take_batch"].code

# What is no call.
NOW: Final = 128
"""d: the time of what follows."""
FRAMES: Final = 129
"""nb: so many recorded frames came in one batch; the bits say which the engine was given, without any all."""
INJECTED: Final = 130
"""b: a frame that somebody put in by hand. No link had it."""
SEQUENCE: Final = 131
"""n: what `initial_sequence` said."""
OFFLOAD: Final = 132
"""n: what `segment_offload` said."""
JUDGE: Final = 133
"""ff: whether hooks are asked, and whether they may allow."""
NOBODY: Final = 134
"""The frames that were just taken went nowhere: there was no link."""
STOPPED: Final = 135
"""s: the journal ends here, and why."""
COPIES: Final = 136
"""b: on how many links each of the frames that were just taken went out, two bytes each; one without this."""
BY_HAND: Final = 137
"""b: a frame that somebody puts on a link, which the engine has not sent. Such records begin a block, and are all of
it.
"""
_OTHERS: Final = {
    NOW: "d", FRAMES: "nb", INJECTED: "b", SEQUENCE: "n", OFFLOAD: "n", JUDGE: "ff", NOBODY: "", STOPPED: "s",
    COPIES: "b", BY_HAND: "b",
}  # fmt: skip
LETTERS: Final[Mapping[int, str]] = {
    **{call.code: call.letters + "".join(call.keywords.values()) for call in CALLS},
    **_OTHERS,
}

_NUMBER = Struct("<Q")
_FLOAT = Struct("<d")
_LENGTH = Struct("<I")
_FIXED: Final = {"n": "Q", "x": "Q", "d": "d", "f": "?", "t": ""}
FIXED: Final = {
    code: Struct("<B" + "".join(_FIXED[letter] for letter in letters))
    for code, letters in LETTERS.items()
    if set(letters) <= set(_FIXED)
}
"""Records of a fixed length: what packs the code, and values as `encode` has them."""


def encode(code: int, values: tuple[Any, ...]) -> bytes:
    """One record. `values` are in the order of LETTERS, without times; text of a stream is its length."""
    whole = FIXED.get(code)
    if whole is not None:
        return whole.pack(code, *values)
    letters = LETTERS[code].replace("t", "")
    return bytes((code,)) + b"".join(map(_packed, letters, values))


def _packed(letter: str, value: Any) -> bytes:
    if letter in "NBE":
        return b"\0" if value is None else b"\1" + _packed(letter.lower(), value)
    if letter in "nx":
        return _NUMBER.pack(value)
    if letter == "d":
        return _FLOAT.pack(value)
    if letter == "f":
        return b"\1" if value else b"\0"
    if letter == "e":
        return _packed("b", value[0]) + _NUMBER.pack(value[1])
    if letter == "l":
        return _packed("b", b"".join(sorted(value)))
    if letter == "s":
        return _packed("b", value.encode(errors="surrogatepass"))
    if letter == "q":
        return _packed("n", value.flow) + _packed("n", value.protocol) + _packed("e", value[2]) + _packed("e", value[3])
    if letter == "v":
        return _packed("s", json.dumps(value))
    if letter in "pz":
        return _packed("s", recorded_settings.text(value))
    data: bytes = value
    return _LENGTH.pack(len(data)) + data


def decode(data: bytes) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The records: code and values; times are None. Raises JournalError at the first that cannot be read."""
    at = 0
    try:
        while at < len(data):
            code = data[at]
            letters = LETTERS[code]
            at += 1
            values = []
            for letter in letters:
                value, at = _unpacked(letter, data, at)
                values.append(value)
            yield code, tuple(values)
    except (KeyError, ValueError, TypeError, struct.error) as error:
        raise JournalError(f"its journal cannot be read ({type(error).__name__}: {error})") from error


def _unpacked(letter: str, data: bytes, at: int) -> tuple[Any, int]:
    if letter == "t":
        return None, at
    if letter in "NBE":
        present, at = _unpacked("f", data, at)
        return _unpacked(letter.lower(), data, at) if present else (None, at)
    if letter in "nx":
        return _NUMBER.unpack_from(data, at)[0], at + 8
    if letter == "d":
        return _FLOAT.unpack_from(data, at)[0], at + 8
    if letter == "f":
        if at >= len(data):
            raise ValueError("a record is cut off")
        return bool(data[at]), at + 1
    if letter == "e":
        address, at = _unpacked("b", data, at)
        port, at = _unpacked("n", data, at)
        return (address, port), at
    if letter == "q":
        flow, at = _unpacked("n", data, at)
        protocol, at = _unpacked("n", data, at)
        guest, at = _unpacked("e", data, at)
        destination, at = _unpacked("e", data, at)
        return Question(flow, protocol, guest, destination), at
    (length,) = _LENGTH.unpack_from(data, at)
    at += 4
    value = data[at : at + length]
    at += length
    if len(value) < length:
        raise ValueError("a record is cut off")
    return _meant(letter, value), at


def _meant(letter: str, value: bytes) -> Any:
    if letter == "b":
        return value
    if letter == "l":
        return frozenset(value[start : start + 6] for start in range(0, len(value), 6))
    text = value.decode(errors="surrogatepass")
    if letter == "v":
        return Verdict(*json.loads(text))
    if letter == "p":
        return recorded_settings.policy(text)
    if letter == "z":
        return recorded_settings.zone(text)
    return text
