"""A capture played again into the very same Stack, on virtual time: `Replay` yields a record for each step.

The contract, which `netstack replay`, `netstack explain` and the pytest plugin lean on:

    with Replay.open("some.pcapng") as replay:
        for record in replay:
            ...
    replay.summary

Each frame of the file gives one Record, in file order; what time alone did (a retransmission, an expired flow) gives a
record without a frame. A record holds the engine's events of that step, the frames that we sent in it, and the
differences that became certain. The same file with the same options gives the same records, byte for byte.

*Guest* frames are received by the engine. *Host* frames, the recorded answers, are read as the upstream's script
(`host_script`) and compared with what we send (`comparison`). Of a capture of our own the settings and the policy come
out of the file, initial sequence numbers and times are the recorded ones, and frames that came in one batch are in one
batch again: such a capture replays byte for byte. Of another stack's our options are bounded by the recorded SYN-ACK,
and the guest's acknowledgements are mapped to our numbers where they differ.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from types import TracebackType
from typing import Final, NamedTuple, Self

from guest_iface.tap import MAX_SEGMENT_TEXT
from netstack import journal, recorded_settings
from netstack.debug import packets
from netstack.debug.capture_reader import CaptureError, CaptureReader
from netstack.debug.comparison import Comparison, Difference
from netstack.debug.connections import Connections
from netstack.debug.host_script import HostScript
from netstack.debug.journal_player import Ahead, JournalPlayer
from netstack.debug.lookahead import LOOKAHEAD, Lookahead, Seen
from netstack.debug.parties import Parties, find
from netstack.debug.replay_records import CLOCK, GUEST, HOST, Record, Summary
from netstack.debug.sight import Sight
from netstack.engine.events import Event, FlowClosed, FlowOpened, FlowRefused
from netstack.engine.policy import FULL_ACCESS, PolicySettings
from netstack.engine.settings import NetworkSettings
from netstack.engine.stack import Stack
from netstack.journal import JournalError
from netstack.wire import tcp

MAX_NUMBERS: Final = 65_536
"""Flows whose numbers are remembered by their addresses; the oldest makes room."""
PROGRESS: Final = 1024
LATE: Final = 0.1
"""Seconds by which a live driver's timer may have been late: a deadline that near waits for the recorded frame."""
TICK: Final = 0.004
"""Seconds within which a recorded frame behind a batch of the guest's may be what that led to."""
JITTER: Final = 0.0002
"""Seconds by which a deadline of ours may lie behind the recorded one: round trips are measured on times cut short."""
NANOSECONDS: Final = 5e-9
BY_HAND: Final = "put on the link by hand"
_MASK: Final = 0xFFFFFFFF


class Replay:
    """One replay of one file. Iterate over it once."""

    def __init__(
        self,
        reader: CaptureReader,
        *,
        policy: PolicySettings | None = None,
        network: NetworkSettings | None = None,
        guest: bytes | None = None,
        lookahead: int = LOOKAHEAD,
        batches: int | None = None,
    ) -> None:
        """`policy` replaces the recorded one (of other stacks: full access); `network` replaces what is found out.

        `guest`: its IPv4 address or MAC, where it cannot be found out. `batches`: how many of the guest's frames that
        follow one another are one batch; None is as recorded. With any of these the comparison is by meaning.

        Raises CaptureError.
        """
        self.reader = reader
        self.summary = Summary()
        self.streams: dict[bytes, bytearray] | None = None
        """Set to a dictionary before iterating: collects what went out to the host, by the flow's four-tuple."""
        self.on_progress: Callable[[int], None] = lambda _position: None
        """Told the bytes read of the file, every PROGRESS frames."""
        self._ahead = Lookahead(reader, lookahead)
        first = self._ahead.first()
        recorded = self._recorded()
        self.own = recorded is not None
        """The capture is one of ours, and says under which settings it was made."""
        where = str(reader.path)
        if recorded is not None:
            self.parties = Parties(network or recorded.network, b"", b"", "the capture's own record")
            self._clock = recorded.clock
        else:
            self.parties = find(first, guest, where) if first else _nobody()
            if network is not None:
                self.parties = replace(self.parties, network=network)
            self._clock = first[0].time if first else 0
        self.policy = policy or (recorded.policy if recorded is not None else None) or FULL_ACCESS
        as_it_ran = recorded is not None and recorded.faithful and policy in (None, recorded.policy)
        self.exact = as_it_ran and network is None and batches is None
        """Answers are compared byte for byte."""
        if recorded is not None and recorded.journal > journal.FORMAT:
            raise CaptureError(
                f"{where}: its journal is of format {recorded.journal}, this program knows {journal.FORMAT}"
            )
        has_journal = self.exact and recorded is not None and recorded.journal > 0
        self._sight = Sight(self.parties, own=self.own, copies_counted=has_journal)
        self._batches = batches
        self._numbers: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self.stack = Stack(
            self.parties.network,
            initial_sequence=self._initial_sequence,
            policy=self.policy,
            segment_offload=self._segment_offload,
        )
        if recorded is not None:
            self.stack.tcp.hosted |= recorded.services
        self._connections = Connections(self.stack, self._ahead, exact=self.exact)
        self._script = HostScript(self.stack, self._connections.table, self._ahead, self._report, own=self.exact)
        self._script.sent = self._sent_to_host
        self._journal: _Journal | None = None
        if has_journal:
            read_ahead = Ahead(self._ahead.play(self._sight.see))
            player = JournalPlayer(self.stack, read_ahead, report=self._report, sent=self._sent_to_host)
            self._journal = _Journal(read_ahead, player)
        self._comparison = Comparison(exact=self.exact)
        self._events: list[Event] = []
        self._answers: list[bytes] = []
        self._now = 0.0
        self._due = inf
        self._start: float | None = None

    @property
    def reckons(self) -> bool:
        """What no frame shows is reckoned from the frames, and still compared byte by byte: there is no journal."""
        return self.exact and self._journal is None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        policy: PolicySettings | None = None,
        network: NetworkSettings | None = None,
        guest: bytes | None = None,
        batches: int | None = None,
    ) -> Self:
        """A replay of a file; see the constructor. Raises CaptureError."""
        reader = CaptureReader(path)
        try:
            return cls(reader, policy=policy, network=network, guest=guest, batches=batches)
        except BaseException:
            reader.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.close()

    def _recorded(self) -> recorded_settings.RecordedSettings | None:
        try:
            return recorded_settings.read(self.reader.comment)
        except recorded_settings.RecordedSettingsError as error:
            raise CaptureError(f"{self.reader.path}: {error}") from error

    # -- the loop ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Record]:
        """The records. Raises CaptureError where the file cannot be read any further."""
        if self._journal is not None:
            yield from self._play_journal(self._journal)
            yield from self._finish()
            return
        group: list[Seen] = []
        for count, seen in enumerate(self._ahead.play(self._sight.see)):
            if not count % PROGRESS:
                self.on_progress(self.reader.position)
            following = self._ahead.peek()
            group.append(seen)
            if following is not None and self._together(seen, following, len(group)):
                continue
            yield from self._play(group)
            group = []
        yield from self._finish()

    def _play_journal(self, journal: _Journal) -> Iterator[Record]:
        """As it was: what the engine was told stands between the frames."""
        arrived: deque[Seen] = deque()
        for count, seen in enumerate(journal.ahead):
            if not count % PROGRESS:
                self.on_progress(self.reader.position)
            when = (seen.captured.time - self._clock) / 1e9
            if self._start is None:
                self._start = self._now = when
            for block in seen.captured.journal:
                yield from self._play_block(journal.player, block, arrived)
            if journal.player.stopped:
                yield self._record(seen, (), (), (), journal.player.stopped if seen.from_guest else "")
            elif seen.from_guest:
                arrived.append(seen)
            elif journal.player.by_hand and seen.frame == journal.player.by_hand[0]:
                journal.player.by_hand.popleft()
                yield self._record(seen, (), (), (), BY_HAND)
            else:
                if not seen.passes_by:
                    self._comparison.recorded(seen.captured.number, when - self._start, seen.frame)
                yield self._record(seen, (), (), self._differences(), "")
        for block in self.reader.journal:
            yield from self._play_block(journal.player, block, arrived)
        for seen in arrived:
            yield self._record(seen, (), (), (), journal.player.stopped or "the capture ended before it was looked at")

    def _play_block(self, player: JournalPlayer, block: bytes, arrived: deque[Seen]) -> Iterator[Record]:
        before = list(arrived)
        try:
            sent = player.play(block, arrived)
        except JournalError as error:
            raise CaptureError(f"{self.reader.path}: {error}") from error
        self._now = max(self._now, player.now)
        time = self._now - (self._start or 0.0)
        for frame in sent:
            self._answers.append(frame)
            self._comparison.sent(frame, time)
        self.summary.sent += len(sent)
        taken = before[: len(player.skipped)]
        for seen, skipped in zip(taken[:-1], player.skipped, strict=False):
            yield self._record(seen, (), (), (), skipped)
        if player.stopped and self.summary.told_until is None:
            self.summary.told_until, self.summary.why_no_longer = time, player.stopped
        events, answers = self._take()
        if taken:
            yield self._record(taken[-1], events, answers, (), player.skipped[-1])
        elif events or answers:
            yield Record(0, time, CLOCK, b"", 0, events, answers, ())

    def _initial_sequence(self, key: bytes, _now: float) -> int:
        if self._journal is not None:
            return self._journal.player.initial_sequence()
        return self._connections.initial_sequence(key)

    def _segment_offload(self, mac: bytes) -> int:
        if self._journal is not None:
            return self._journal.player.segment_offload()
        return MAX_SEGMENT_TEXT if mac in self._connections.offloads else 0

    def _together(self, seen: Seen, following: Seen, count: int) -> bool:
        """Whether two frames were one batch: they have the same time and direction, on the same interface."""
        one, other = seen.captured, following.captured
        if self._batches is not None:
            return seen.from_guest and following.from_guest and count < self._batches
        if not self.own:
            return False
        return seen.from_guest == following.from_guest and one.time == other.time and one.interface == other.interface

    def _play(self, group: list[Seen]) -> Iterator[Record]:
        last = group[-1]
        when = (last.captured.time - self._clock) / 1e9
        if self._start is None:
            self._start = (group[0].captured.time - self._clock) / 1e9
            self._now = self._start
        skipped: list[str] = []
        if self.exact and not last.from_guest:
            when = self._exact_time(group, when)
        yield from self._let_time_pass(when)
        if last.from_guest and self.exact:
            before = max(self._now, when - NANOSECONDS)
            refused = {seen.packet.key for seen in group if " refused at " in seen.captured.comment}
            if self._script.had_said(last.captured.time, before, besides=refused):
                self._flush(before)
        if last.from_guest:
            self._now = max(self._now, when)
            skipped = [self._from_guest(seen) for seen in group]
            self._flush(self._flush_time(when))
            self._comparison.matched()
        else:
            self._from_host(group, when)
        differences = self._differences()
        for seen in group[:-1]:
            yield self._record(seen, (), (), (), skipped.pop(0) if skipped else "")
        events, answers = self._take()
        yield self._record(last, events, answers, differences, skipped.pop(0) if skipped else "")

    def _record(
        self,
        seen: Seen,
        events: tuple[Event, ...],
        answers: tuple[bytes, ...],
        differences: tuple[Difference, ...],
        skipped: str,
    ) -> Record:
        captured, summary = seen.captured, self.summary
        summary.frames += 1
        summary.cut_off = self._sight.cut_off
        if seen.from_guest:
            summary.guest_frames += 1
        else:
            summary.host_frames += 1
        if skipped:
            summary.skipped[skipped] += 1
        time = (captured.time - self._clock) / 1e9 - (self._start or 0.0)
        summary.seconds = max(summary.seconds, time)
        direction = GUEST if seen.from_guest else HOST
        flow = self._flow_number(seen)
        return Record(
            captured.number, time, direction, seen.frame, flow, events, answers, differences, skipped, captured.comment
        )

    def _take(self) -> tuple[tuple[Event, ...], tuple[bytes, ...]]:
        events, answers = tuple(self._events), tuple(self._answers)
        self._events, self._answers = [], []
        return events, answers

    def _flow_number(self, seen: Seen) -> int:
        packet = seen.packet
        if packet.kind == "icmp" and (quoted := packets.quoted(packet)) is not None:
            packet = quoted
            return self._numbers.get((packet.kind, packet.key), 0)
        if packet.kind == "icmp":
            guest, other = (
                (packet.source, packet.destination) if seen.from_guest else (packet.destination, packet.source)
            )
            return self._numbers.get(("icmp", guest + other + packet.source_port.to_bytes(2, "big") + b"\0\0"), 0)
        key = packet.key if seen.from_guest else packet.reversed_key
        if packet.kind == "tcp" and (flow := self.stack.tcp.table.get(key)) is not None:
            return flow.id
        return self._numbers.get((packet.kind, key), 0)

    # -- the guest's side ----------------------------------------------------------------------------------------------

    def _from_guest(self, seen: Seen) -> str:
        """Give the engine a frame of the guest's; why not, if not."""
        frame, packet = seen.frame, seen.packet
        if seen.passes_by:
            return "for another guest"
        if packet.kind == "tcp" and not packet.fault:
            word, frame = self._connections.segment(frame, packet)
            if word:
                return word
        if seen.captured.comment and self.exact:
            self._script.comment(packet, seen.captured.comment, from_guest=True, now=self._now)
        self.stack.receive_frame(frame, self._now)
        return ""

    # -- the host's side -----------------------------------------------------------------------------------------------

    def _from_host(self, group: list[Seen], when: float) -> None:
        time = when - (self._start or 0.0)
        for seen in group:
            if seen.passes_by:
                continue
            if not self.own and seen.frame[6:12] != self.parties.gateway_mac and seen.frame[0] & 1:
                continue  # of some other station, to everybody
            if seen.packet.kind == "tcp" and self._connections.is_strange(seen.packet):
                continue
            self._comparison.recorded(seen.captured.number, time, seen.frame)
        now = self._now = max(self._now, self._exact_time(group, when))
        last = {seen.packet.key: seen for seen in group if seen.packet.kind == "tcp" and seen.packet.body}
        for seen in group:
            if seen.passes_by:
                continue
            if self.exact and seen.captured.comment:
                self._script.comment(seen.packet, seen.captured.comment, from_guest=False, now=now)
            self._script.hear(seen.frame, seen.packet, now, last=last.get(seen.packet.key, seen) is seen)
        self._flush(now)
        if self._comparison.matched() or not self.exact:
            return
        # A timer that is due in a moment by our reckoning was due already by the recorded one.
        deadline = self.stack.next_deadline()
        if deadline <= now + JITTER:
            self.stack.advance(deadline)
            self._flush(now)
            self._comparison.matched()

    def _exact_time(self, group: list[Seen], when: float) -> float:
        """When the engine made these frames: a time stamp of TCP says it to the millisecond (own captures only)."""
        if not self.exact:
            return when
        for seen in group:
            if seen.packet.kind != "tcp":
                continue
            stamps = tcp.parse_options(seen.packet.options).timestamps
            conversation = self._connections.table.get(seen.packet.reversed_key)
            if stamps is None or conversation is None or conversation.isn is None:
                continue
            behind = (int(when * 1000) - stamps[0] + conversation.isn) & _MASK
            if behind > 1 << 31:
                behind -= 1 << 32
            if behind and abs(behind) <= 1000:
                # The nearest moment within the millisecond it says.
                edge = 0.999 if behind > 0 else 0.001
                return (int(when * 1000) - behind + edge) / 1000
            return when
        return when

    def _flush_time(self, when: float) -> float:
        """When what a batch led to was sent: with the frames recorded behind it, if they came at once."""
        following = self._ahead.peek()
        if not self.exact or following is None or following.from_guest:
            return when
        then = self._exact_time([following], (following.captured.time - self._clock) / 1e9)
        return max(when, then) if then - when <= TICK else when

    # -- time, and what comes of it ------------------------------------------------------------------------------------

    def _let_time_pass(self, until: float) -> Iterator[Record]:
        """Timers that are due before `until`."""
        slack = LATE if self.exact else 0.0
        while (deadline := self.stack.next_deadline()) <= until - slack:
            self._now = max(self._now, deadline)
            self.stack.advance(self._now)
            self._flush(self._now)
            events, answers = self._take()
            if events or answers:
                time = self._now - (self._start or 0.0)
                yield Record(0, time, CLOCK, b"", 0, events, answers, ())

    def _flush(self, now: float) -> None:
        """Carry out what the engine asks, and take what it sends; then acknowledge what the guest has had already."""
        # As a driver does it: by what was due when it last looked. The file's times are cut to the nanosecond.
        if (self._due if self.exact else self.stack.next_deadline()) <= now + NANOSECONDS:
            self.stack.advance(now)
        self._carry_out(now)
        while owed := self._connections.pay():
            for frame in owed:
                self.stack.receive_frame(frame, now)
            self._carry_out(now)
        self._due = self.stack.next_deadline()

    def _carry_out(self, now: float) -> None:
        self._now = max(self._now, now)
        stack = self.stack
        while asked := stack.take_effects(now):
            for effect in asked:
                self._script.carry_out(effect, now)
        time = now - (self._start or 0.0)
        for frame in stack.take_frames(now):
            self._answers.append(frame)
            self._comparison.sent(frame, time)
            self._connections.sent(frame)
            self.summary.sent += 1
        self._script.expire(now)

    def _sent_to_host(self, key: bytes, data: bytes) -> None:
        if self.streams is not None:
            self.streams.setdefault(key, bytearray()).extend(data)

    def _report(self, event: Event) -> None:
        self._events.append(event)
        self.summary.events[type(event).__name__] += 1
        if isinstance(event, FlowOpened | FlowRefused | FlowClosed):
            (guest, port), (destination, other) = event.guest, event.destination
            key = guest + destination + port.to_bytes(2, "big") + other.to_bytes(2, "big")
            self._numbers.pop((event.protocol, key), None)
            self._numbers[event.protocol, key] = event.flow
            if len(self._numbers) > MAX_NUMBERS:
                self._numbers.popitem(last=False)

    # -- what differs --------------------------------------------------------------------------------------------------

    def _differences(self, *, over: bool = False) -> tuple[Difference, ...]:
        found = self._comparison.due(self._now - (self._start or 0.0), over=over)
        time = self._now - (self._start or 0.0)
        found += [Difference(0, time, what) for what in self._connections.take_differences()]
        self.summary.differences += len(found)
        self.summary.compared = self._comparison.compared
        return tuple(found)

    def _finish(self) -> Iterator[Record]:
        """The end of the file: what was on its way is judged."""
        if not self.exact:
            # What the engine has in its buffers goes out when its timers say so.
            yield from self._let_time_pass(self._now + 1.0)
        self._connections.end()
        differences = self._differences(over=True)
        events, answers = self._take()
        if differences or events or answers:
            yield Record(0, self._now - (self._start or 0.0), CLOCK, b"", 0, events, answers, differences)


class _Journal(NamedTuple):
    ahead: Ahead
    player: JournalPlayer


def _nobody() -> Parties:
    """Of a capture without a frame."""
    return Parties(NetworkSettings(), b"", b"", "nothing to be found")
