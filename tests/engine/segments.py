"""TCP segments as the transcripts write them, and their options as bytes: encoded here, decoded by dpkt."""

from __future__ import annotations

import re
from dataclasses import dataclass

import dpkt

MASK = 0xFFFF_FFFF


@dataclass
class Segment:
    """One segment in the script's numbers. None where a script left something open."""

    flags: str
    start: int
    length: int
    ack: int | None = None
    win: int | None = None
    options: list[tuple[object, ...]] | None = None
    text: bytes | None = None
    open_options: bool = False
    urgent: int = 0
    payload: bytes = b""
    absolute: bool = False
    on_wire: int = 0

    def __str__(self) -> str:
        parts = [f"{self.flags:2}", f"{self.start}:{self.start + self.length}({self.length})"]
        if self.ack is not None:
            parts.append(f"ack {self.ack}")
        if self.win is not None:
            parts.append(f"win {self.win}")
        if self.urgent:
            parts.append(f"urg {self.urgent}")
        if self.options:
            parts.append(f"<{','.join(map(_option_text, self.options))}>")
        return " ".join(parts)


def _option_text(option: tuple[object, ...]) -> str:
    kind, *values = option
    if kind == "TS":
        return f"TS val {values[0]} ecr {values[1]}"
    if kind == "sack":
        return "sack " + " ".join(f"{left}:{right}" for left, right in values)
    return " ".join(map(str, option))


_SEGMENT_TEXT = re.compile(
    r"""(?P<flags>[SFRPU.]+|-)\s+(?P<absolute>@)?(?P<start>\d+)(?::(?P<end>\d+)\((?P<length>\d+)\))?
    (?:\s+ack\s+(?P<ack>\d+))?(?:\s+win\s+(?P<win>\d+))?(?:\s+urg\s+(?P<urgent>\d+))?(?:\s+<(?P<options>[^>]*)>)?
    (?:\s+"(?P<text>[^"]*)")?\s*$""",
    re.VERBOSE,
)


def parse_segment(text: str) -> Segment:
    """Read a segment of a script."""
    match = _SEGMENT_TEXT.match(text)
    if match is None:
        raise ValueError(f"not a segment: {text!r}")
    flags = "" if match["flags"] == "-" else match["flags"]
    start = int(match["start"])
    length = int(match["length"] or 0)
    if int(match["end"] or start) != start + length:
        raise ValueError(f"{text!r}: {match['end']} is not {start} + {length}")
    options = None if match["options"] is None else _parse_options(match["options"])
    return Segment(
        flags=flags,
        start=start,
        length=length,
        ack=None if match["ack"] is None else int(match["ack"]),
        win=None if match["win"] is None else int(match["win"]),
        options=None if options is None else [option for option in options if option[0] not in ("*", "no TS")],
        open_options=options is not None and ("*",) in options,
        text=None if match["text"] is None else match["text"].encode(),
        urgent=int(match["urgent"] or 0),
        absolute=match["absolute"] is not None,
    )


def _parse_options(text: str) -> list[tuple[object, ...]]:
    options: list[tuple[object, ...]] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        words = item.split()
        if words[0] == "TS":
            options.append(("TS", int(words[2]), int(words[4])))
        elif words[0] == "sack":
            blocks = [tuple(map(int, word.split(":"))) for word in words[1:]]
            options.append(("sack", *blocks))
        elif words[0] in ("mss", "wscale"):
            options.append((words[0], int(words[1])))
        elif words[0] == "raw":
            options.append(("raw", bytes.fromhex(words[1])))
        else:
            options.append((item,))
    return options


def encode_options(options: list[tuple[object, ...]], offset: int) -> bytes:
    """Options as bytes, `offset` added to SACK blocks, padded with end-of-options."""
    data = b""
    for kind, *values in options:
        if kind == "mss":
            data += b"\x02\x04" + int(str(values[0])).to_bytes(2, "big")
        elif kind == "wscale":
            data += bytes((3, 3, int(str(values[0]))))
        elif kind == "sackOK":
            data += b"\x04\x02"
        elif kind == "TS":
            data += b"\x08\x0a" + b"".join((int(str(value)) & MASK).to_bytes(4, "big") for value in values)
        elif kind == "sack":
            data += bytes((5, 2 + 8 * len(values)))
            for block in values:
                assert isinstance(block, tuple)
                data += b"".join(((number + offset) & MASK).to_bytes(4, "big") for number in block)
        elif kind == "nop":
            data += b"\x01"
        elif kind == "raw":
            assert isinstance(values[0], bytes)
            data += values[0]
        else:
            raise ValueError(f"option {kind!r}")
    return data.ljust(-(-len(data) // 4) * 4, b"\0")


def decode_options(data: bytes, sack_base: int, sack_offset: int) -> list[tuple[object, ...]]:
    """Options as a script writes them, by dpkt; padding is left out. SACK blocks are made relative to `sack_offset`."""
    options: list[tuple[object, ...]] = []
    for kind, value in dpkt.tcp.parse_opts(data):
        if kind == dpkt.tcp.TCP_OPT_MSS:
            options.append(("mss", int.from_bytes(value, "big")))
        elif kind == dpkt.tcp.TCP_OPT_WSCALE:
            options.append(("wscale", value[0]))
        elif kind == dpkt.tcp.TCP_OPT_SACKOK:
            options.append(("sackOK",))
        elif kind == dpkt.tcp.TCP_OPT_TIMESTAMP:
            options.append(("TS", int.from_bytes(value[:4], "big"), int.from_bytes(value[4:], "big")))
        elif kind == dpkt.tcp.TCP_OPT_SACK:
            numbers = [int.from_bytes(value[i : i + 4], "big") for i in range(0, len(value), 4)]
            script = [near(number - sack_offset, sack_base) for number in numbers]
            options.append(("sack", *zip(script[::2], script[1::2], strict=True)))
        elif kind != dpkt.tcp.TCP_OPT_NOP:
            options.append((f"option {kind}", value.hex()))
    return options


def near(number: int, base: int) -> int:
    """The number congruent to `number` modulo 2**32 that is nearest to `base`."""
    return base + ((number - base + 0x8000_0000) & MASK) - 0x8000_0000


def pattern(start: int, length: int) -> bytes:
    """The guest's bytes from position `start` of its script, where the script does not give them."""
    return bytes((position * 31 + (position >> 8)) & 0xFF for position in range(start, start + length))


def host_pattern(start: int, length: int) -> bytes:
    """The host's bytes from position `start`, where the script does not give them."""
    return bytes((position * 17 + (position >> 8) + 7) & 0xFF for position in range(start, start + length))
