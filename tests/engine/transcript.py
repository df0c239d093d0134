"""Tests of the TCP connection that read as a dialogue on virtual time, in packetdrill's manner.

A script is a list of lines: a time relative to the line before (seconds), who acts, and what is done or expected.

    +0      guest   S 1000:1000(0) win 64240 <mss 1460,sackOK,TS val 100 ecr 0,nop,wscale 7>
    +0.010  accept
    +0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460,sackOK,TS val 10 ecr 100,nop,wscale 7>
    +0.001  guest   . 1001 ack 1
    +0      write   "hello"
    +0      engine  P. 1:6(5) ack 1001
    +0.2    engine  P. 1:6(5) ack 1001          # not acknowledged: said again

Numbers are relative: the engine's to its own ISN, the guest's as the script has them. Every script is played at
several places of the sequence space, so that both directions wrap. Segments are written as tcpdump does: flags (S F R
P U and `.` for ACK), `start:end(length)` (one number for an empty one; `@0` is the number on the wire), `ack`, `win`
(as on the wire), `<options>`. Times may be half a millisecond off.

Who acts:
    guest SEG           a segment comes in, and the batch ends; `guest+ SEG` leaves the batch open for the next line
    engine SEG          the next thing the engine says, at this time. `win` and time stamps are compared where written,
                        other options always (`<...,*>` leaves the rest open), payloads always with what was written
    nothing             the engine says nothing up to this time
    accept connect finish abort
    write N | "text"    the host has bytes for the guest
    host stops | goes on | takes N     what the host side does with the guest's bytes (it takes them at once by default)
    room N | all        how many data frames `output` may make at a time
    expect state NAME | signals NAMES | received N | "text" | deadline none | waiting | not waiting | room N

On a connection that uses time stamps the guest's segments carry them without being told: TS val is 100 and the
milliseconds since the start, ecr the last value heard. `<no TS>` leaves them out.

Frames are encoded and decoded here and by dpkt, never by our own code; dpkt verifies both checksums of every frame.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from struct import Struct

import dpkt
import pytest

from guest_iface.link import all_whole
from netstack.engine import tcp_states as st
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.tcp_limits import TcpLimits
from netstack.wire.tcp import Frame, SegmentWriter, parse_options

from .segments import MASK, Segment, decode_options, encode_options, host_pattern, near, parse_segment, pattern

START = 50_000.0
"""The time at which every script begins; the engine may not take 0 for the beginning of time."""
TOLERANCE = 0.0005
"""Seconds the engine may be early or late: its time stamps count whole milliseconds."""
PLACES = ((0, 0), (0xFFFF_FFFE, 0xFFFF_FC14), (0x7FFF_FFF0, 0x7FFF_FC00))
"""(the engine's ISN, what is added to the guest's numbers): plain, wrapping at once, crossing the sign bit."""

GUEST_MAC, GATEWAY_MAC = b"\x02\0\0\0\0\x01", b"\x5a\x94\xef\xe4\x0c\xdd"
GUEST, SERVER = b"\xc0\xa8\x7f\x02", b"\xcb\0\x71\x05"
GUEST_PORT, SERVER_PORT = 40_000, 443

_STATES = {name: number for number, name in enumerate(st.STATE_NAMES)}
_SIGNALS = {name: getattr(st, name) for name in ("OPENED", "PEER_FINISHED", "PEER_RESET", "GAVE_UP", "ENDED", "ROOM")}
_ALIGNED = ("TS", "sack")
_FLAGS = {"F": 0x01, "S": 0x02, "R": 0x04, "P": 0x08, ".": 0x10, "U": 0x20}
_SEGMENT = Struct("!HHIIHHHH")


# -- playing ----------------------------------------------------------------------------------------------------------


class MismatchError(AssertionError):
    """The engine did not say what the script has; the message shows the dialogue up to there."""


@dataclass
class Player:
    """Plays one script against one connection."""

    limits: TcpLimits = field(default_factory=TcpLimits)
    isn: int = 0
    offset: int = 0

    def __post_init__(self) -> None:
        self.now = START
        self.frames: list[tuple[float, Segment]] = []
        self.urgent: list[bytes] = []
        writer = SegmentWriter(
            destination_mac=GUEST_MAC,
            source_mac=GATEWAY_MAC,
            source=SERVER,
            destination=GUEST,
            source_port=SERVER_PORT,
            destination_port=GUEST_PORT,
        )
        self.connection = TcpConnection(writer, self.limits, self.isn, self.urgent)
        self.dialogue: list[str] = []
        self.written = bytearray()
        self.received = bytearray()
        self.signals = 0
        self.host_takes = True
        self.room = 1 << 30
        self.waiting = False
        self.open_batch = False
        self.guest_isn: int | None = None
        self.guest_win = 65535
        self.engine_highest = 0
        self.guest_highest = 0
        self.timestamps = False
        self.echo = 0
        self.scripted_text = False

    # -- the engine's side

    def settle(self) -> None:
        """End a batch as the stack and its driver do: the host may take its bytes, then frames are collected."""
        self._take_ready()
        if self.host_takes:
            self.connection.receive_buffer.unsent = 0
        self._output()

    def _take_ready(self) -> None:
        buffer = self.connection.receive_buffer
        self.signals |= self.connection.signals
        self.connection.signals = 0
        chunks, buffer.ready = buffer.ready, []
        data = b"".join(chunks)
        buffer.unsent += len(data)
        if data and not self.scripted_text and self.guest_isn is not None:
            start = self.guest_isn + 1 + len(self.received)
            if data != pattern(start, len(data)):
                self._fail(f"the host got other bytes than the guest sent at {start}")
        self.received += data

    def _output(self) -> None:
        out: list[Frame] = []
        self.waiting = self.connection.output(out, self.room, self.now)
        said, self.urgent[:] = self.urgent[:] + all_whole(out), []
        self.signals |= self.connection.signals
        self.connection.signals = 0
        for frame in said:
            segment = self._decode(frame)
            self.frames.append((self.now, segment))

    def run_until(self, moment: float) -> None:
        """Let the engine's timers do what is due up to `moment`."""
        for _ in range(100_000):
            deadline = self.connection.deadline
            if deadline > moment + 1e-9:
                break
            if deadline < self.now - 1e-9:
                self._fail(f"the deadline {deadline - START:.3f} lies in the past")
            self.now = max(self.now, deadline)
            self.connection.advance(self.now)
            self.settle()
        else:
            self._fail("timers run without an end")
        self.now = moment

    def _decode(self, frame: bytes) -> Segment:
        """A frame of the engine by dpkt, its checksums verified, its numbers made relative."""
        ether = dpkt.ethernet.Ethernet(frame)
        assert ether.dst == GUEST_MAC
        assert ether.src == GATEWAY_MAC
        ip = ether.data
        assert isinstance(ip, dpkt.ip.IP)
        assert ip.len == len(frame) - 14
        assert (ip.src, ip.dst, ip.p, ip.df) == (SERVER, GUEST, 6, 1)
        assert dpkt.in_cksum(frame[14:34]) == 0, "IP checksum"
        segment = ip.data
        assert isinstance(segment, dpkt.tcp.TCP)
        pseudo = SERVER + GUEST + b"\0\6" + (ip.len - 20).to_bytes(2, "big")
        assert dpkt.in_cksum(pseudo + frame[34:]) == 0, "TCP checksum"
        assert (segment.sport, segment.dport) == (SERVER_PORT, GUEST_PORT)
        flags = "".join(letter for letter, bit in _FLAGS.items() if segment.flags & bit and letter != ".")
        flags += "." if segment.flags & 0x10 else ""
        start = near(segment.seq - self.isn, self.engine_highest)
        options = decode_options(segment.opts, self.guest_highest, self.offset)
        for index, option in enumerate(options):
            if option[0] == "TS":
                value = int(str(option[1]))
                self.echo = value
                relative = (value - self.isn - int(START * 1000)) & MASK
                options[index] = ("TS", relative, option[2])
        ack = near(segment.ack - self.offset, self.guest_highest) if segment.flags & 0x10 else None
        decoded = Segment(
            flags, start, len(segment.data), ack, segment.win, options, payload=segment.data, on_wire=segment.seq
        )
        if segment.data:
            if bytes(self.written[start - 1 : start - 1 + len(segment.data)]) != segment.data:
                self._fail(f"other bytes than were written: {decoded}")
            if len(segment.data) > self.limits.mss:
                self._fail(f"larger than the link: {decoded}")
        self.engine_highest = max(self.engine_highest, start + len(segment.data))
        return decoded

    # -- the script's side

    def play(self, script: str) -> None:
        """Play the whole script; raises MismatchError with the dialogue where the engine says something else."""
        for raw in script.splitlines():
            line = raw.split("#")[0].strip()
            if not line:
                continue
            moment = self.now
            words = line.split(maxsplit=1)
            if words[0].startswith("+"):
                moment += float(words[0])
                words = words[1].split(maxsplit=1)
            action, rest = words[0], words[1] if len(words) > 1 else ""
            self.current = line
            self._do(action, rest, moment)
            self.dialogue.append(line)
        self.current = "the end of the script"
        self._expect_silence()

    def _do(self, action: str, rest: str, moment: float) -> None:
        if action == "engine":
            self._expect_segment(parse_segment(rest), moment)
            return
        if action != "expect" or moment > self.now:
            self.run_until(moment)
        if action == "nothing":
            self._expect_silence()
            return
        if action == "expect":
            self._expect(*shlex.split(rest))
            return
        if not self.open_batch:
            self._expect_silence()
        self.open_batch = action == "guest+"
        connection = self.connection
        if action in ("guest", "guest+"):
            self._guest(parse_segment(rest))
        elif action == "accept":
            connection.accept(self.now)
        elif action == "connect":
            connection.connect(self.now)
        elif action == "write":
            data = rest[1:-1].encode() if rest.startswith('"') else host_pattern(len(self.written), int(rest))
            self.written += data
            connection.write(data)
        elif action == "finish":
            connection.finish()
        elif action == "abort":
            connection.abort()
        elif action == "host":
            self._host(rest)
        elif action == "room":
            self.room = 1 << 30 if rest == "all" else int(rest)
        else:
            raise ValueError(f"nobody is called {action!r}")
        if not self.open_batch:
            self.settle()

    def _host(self, rest: str) -> None:
        buffer = self.connection.receive_buffer
        if rest == "stops":
            self.host_takes = False
        elif rest == "goes on":
            self.host_takes = True
            buffer.unsent = 0
        elif rest.startswith("takes"):
            count = int(rest.split()[1])
            assert count <= buffer.unsent, f"the host has only {buffer.unsent} bytes to take"
            buffer.unsent -= count
        else:
            raise ValueError(f"the host does not {rest!r}")

    def _guest(self, segment: Segment) -> None:
        """Encode a segment by dpkt, and hand its fields over as the stack reads them."""
        if segment.win is not None:
            self.guest_win = segment.win
        options = list(segment.options or [])
        if "S" in segment.flags:
            self.timestamps = any(option[0] == "TS" for option in options)
            if self.guest_isn is None:
                self.guest_isn = segment.start
        elif self.timestamps and segment.options is None:
            options.append(("TS", 100 + round((self.now - START) * 1000), self.echo))
        elif self.timestamps and segment.options and not any(option[0] == "TS" for option in segment.options):
            options.insert(0, ("TS", 100 + round((self.now - START) * 1000), self.echo))
        if segment.text is not None:
            self.scripted_text = True
            payload = segment.text
            assert len(payload) == segment.length, f"{payload!r} is {len(payload)} bytes"
        else:
            payload = pattern(segment.start, segment.length)
        # The engine's time stamps are given as the engine counts them, whatever its ISN.
        for index, option in enumerate(options):
            if option[0] == "TS" and segment.options is not None and option in segment.options and option[2] != 0:
                options[index] = ("TS", option[1], int(str(option[2])) + self.isn + int(START * 1000))
        if "S" not in segment.flags:
            # Aligned as every kernel does it: the engine's fast path knows that layout.
            options = [
                item
                for option in options
                for item in ((("nop",), ("nop",), option) if option[0] in _ALIGNED else (option,))
            ]
        data = encode_options(options, self.isn)
        flags = sum(_FLAGS[letter] for letter in segment.flags)
        tcp = dpkt.tcp.TCP(
            sport=GUEST_PORT,
            dport=SERVER_PORT,
            seq=(segment.start + self.offset) & MASK,
            ack=0 if segment.ack is None else (segment.ack + self.isn) & MASK,
            off=5 + len(data) // 4,
            flags=flags,
            win=self.guest_win,
            urp=segment.urgent,
            opts=data,
            data=payload,
        )
        packet = dpkt.ip.IP(src=GUEST, dst=SERVER, p=6, ttl=64, data=tcp)
        packet.len = len(packet)
        self.guest_highest = max(self.guest_highest, segment.start + segment.length)
        self._receive(bytes(packet))

    def _receive(self, packet: bytes) -> None:
        _, _, sequence, acknowledgement, flags, window, _, _ = _SEGMENT.unpack_from(packet, 20)
        text = 20 + (flags >> 12) * 4
        options, payload = packet[40:text], packet[text:]
        flags &= 0x3F
        connection = self.connection
        if connection.state == st.CLOSED and flags & 0x12 == 0x02 and not self.signals:
            connection.syn_came(sequence, window, parse_options(options), self.now)
        else:
            connection.receive(sequence, acknowledgement, flags, window, options, payload, self.now)

    # -- comparing

    def _expect_segment(self, expected: Segment, moment: float) -> None:
        if not self.frames:
            self.run_until(moment)
        if not self.frames and self.connection.deadline <= moment + TOLERANCE:
            self.run_until(self.connection.deadline)
        if not self.frames:
            self._fail("the engine says nothing")
        said_at, said = self.frames[0]
        late = abs(said_at - moment) > TOLERANCE
        if late or not self._same(expected, said):
            self._fail(f"the engine says it at +{said_at - moment:.6f}" if late else "the engine says something else")
        self.frames.pop(0)

    @staticmethod
    def _same(expected: Segment, said: Segment) -> bool:
        start = said.on_wire if expected.absolute else said.start
        if (expected.flags, expected.start, expected.length, expected.ack) != (
            said.flags,
            start,
            said.length,
            said.ack,
        ):
            return False
        if expected.win is not None and expected.win != said.win:
            return False
        if expected.text is not None and expected.text != said.payload:
            return False
        wanted = [option for option in expected.options or [] if option[0] != "nop"]
        got = [option for option in said.options or [] if option[0] != "TS" or any(o[0] == "TS" for o in wanted)]
        if expected.open_options:
            got = [option for option in got if any(option[0] == other[0] for other in wanted)]
        if len(wanted) != len(got):
            return False
        for want, have in zip(wanted, got, strict=True):
            if want[0] == "TS" and have[0] == "TS":
                # The engine's clock counts whole milliseconds.
                if abs(int(str(want[1])) - int(str(have[1]))) > 1 or want[2] != have[2]:
                    return False
            elif want != have:
                return False
        return True

    def _expect_silence(self) -> None:
        if self.frames:
            self._fail("the engine says more than the script has")

    def _expect(self, what: str, *words: str) -> None:
        connection = self.connection
        if what == "not":
            self._check(words[0] == "waiting" and not self.waiting, "output is waiting for room")
        elif what == "waiting":
            self._check(self.waiting, "output is not waiting for room")
        elif what == "state":
            have = st.STATE_NAMES[connection.state]
            self._check(connection.state == _STATES[words[0]], f"the state is {have}")
        elif what == "signals":
            wanted = sum(_SIGNALS[word] for word in words if word != "none")
            have = [name for name, bit in _SIGNALS.items() if self.signals & bit]
            self._check(self.signals & ~st.ROOM == wanted & ~st.ROOM, f"the signals are {have}")
        elif what == "received":
            number = int(words[0]) if words[0].isdigit() else None
            right = len(self.received) == number if number is not None else self.received == words[0].encode()
            shown = bytes(self.received) if self.scripted_text else len(self.received)
            self._check(right, f"the host has received {shown!r}")
        elif what == "deadline":
            self._check(connection.deadline == inf, f"the deadline is in {connection.deadline - self.now} s")
        elif what == "room":
            self._check(connection.room == int(words[0]), f"room is {connection.room}")
        else:
            raise ValueError(f"nothing is known of {what!r}")

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._fail(otherwise)

    def _fail(self, why: str) -> None:
        lines = [f"  {line}" for line in self.dialogue]
        lines.append(f"> {self.current}")
        lines += [f"! engine at {moment - START:.6f}: {segment}" for moment, segment in self.frames]
        place = (
            f"engine ISN {self.isn:#x}, guest offset {self.offset:#x}, state {st.STATE_NAMES[self.connection.state]}"
        )
        raise MismatchError("\n".join([why, *lines, f"({place})"]))


REGISTRY: list[tuple[str, TcpLimits]] = []
"""Every script made by `transcript`, to be played again by whoever wants to know what they cover together."""


def transcript(script: str, **limits: float) -> Callable[[int, int], None]:
    """A test that plays `script` at each of PLACES. `limits`: what of TcpLimits is not the default."""
    bounds = replace(TcpLimits(), **limits)
    REGISTRY.append((script, bounds))

    @pytest.mark.parametrize(("isn", "offset"), PLACES, ids=("plain", "wrap", "sign"))
    def test(isn: int, offset: int) -> None:
        Player(bounds, isn, offset).play(script)

    return test


# What most dialogues begin with; the round trip of OPEN and OPEN_TS is 1 ms, of the other two 20 ms.
OPEN = """
+0      guest   S 1000:1000(0) win 65535 <mss 1460>
+0      accept
+0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460>
+0.001  guest   . 1001 ack 1
+0      expect  state ESTABLISHED
"""
OPEN_SACK = """
+0      guest   S 1000:1000(0) win 65535 <mss 1460,sackOK,wscale 0>
+0      accept
+0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460,sackOK,wscale 7>
+0.020  guest   . 1001 ack 1
+0      expect  state ESTABLISHED
"""
OPEN_TS = """
+0      guest   S 1000:1000(0) win 64240 <mss 1460,sackOK,TS val 100 ecr 0,nop,wscale 7>
+0      accept
+0      engine  S. 0:0(0) ack 1001 win 65535 <mss 1460,sackOK,TS val 0 ecr 100,nop,wscale 7>
+0.001  guest   . 1001 ack 1 win 512
+0      expect  state ESTABLISHED
"""
OPEN_SLOW = OPEN_TS.replace("+0.001  guest", "+0.020  guest")


def burst(first: int, count: int, size: int = 1460, *, ack: int = 1001) -> str:
    """Lines for `count` full segments of the engine, the first at position `first`."""
    return "".join(
        f"+0 engine . {start}:{start + size}({size}) ack {ack}\n" for start in range(first, first + count * size, size)
    )
