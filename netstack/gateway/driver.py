"""The thin trio driver of one engine: moves frames and bytes, carries out effects, arms one timer.

Everything between a wake-up and the frames it leads to is plain calls: `flush` runs once a batch, whoever was woken.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import trio

from guest_iface.link import BATCH, Link, LinkClosed, LinkCounters
from guest_iface.switch import Switch
from netstack.engine.effects import (
    AbortStream,
    ConsultDns,
    ConsultFlow,
    OpenNamed,
    Report,
    ResolveName,
    ResolveUpstream,
)
from netstack.engine.events import Event
from netstack.engine.policy import FULL_ACCESS, PolicySettings
from netstack.engine.settings import NetworkSettings
from netstack.engine.stack import Stack
from netstack.gateway.busy_poll import BusyPoll
from netstack.gateway.dialer import Dialer, DialsNames
from netstack.gateway.heard_engine import heard
from netstack.gateway.host_sockets import HostSockets
from netstack.gateway.host_streams import DialWatch
from netstack.gateway.inbound import Inbound
from netstack.gateway.resolver import AnswersDns
from netstack.hooks import HookRunner
from netstack.setting_values import DEFAULT_BUSY_POLL

_Asked = TypeVar("_Asked")

MAX_BACKLOG: Final = 256
"""Frames a link may have waiting before its guests' bulk data is held back in the engine, where nothing is lost."""
TICK: Final = 0.002
"""Seconds by which a timer may be late: what falls due while there is traffic needs no wake-up of its own."""
_NOBODY: Final[frozenset[bytes]] = frozenset()
FRAMES_PER_FLUSH: Final = 256
"""Frames with bulk data in one batch; then others are heard."""


def keyed_sequence_numbers() -> Callable[[bytes, float], int]:
    """Initial sequence numbers of RFC 6528 section 3: a clock of 4 us and a keyed hash of addresses and ports."""
    keyed = hashlib.blake2s(key=secrets.token_bytes(32), digest_size=4)

    def initial_sequence(flow: bytes, now: float) -> int:
        digest = keyed.copy()
        digest.update(flow)
        return (int.from_bytes(digest.digest(), "big") + int(now * 250_000)) & 0xFFFFFFFF

    return initial_sequence


class _Attachment:
    """A link that is being served."""

    __slots__ = ("_take", "behind", "guests", "link", "port")

    def __init__(self, link: Link, port: int, take: Callable[[_Attachment, list[bytes], float], None]) -> None:
        """`take(attachment, frames, now)` does with frames what is to be done."""
        self.link = link
        self.port = port
        self.guests = link.counters.guests
        """LinkCounters.guests when frames were taken last."""
        self.behind = trio.Event()
        """Set when a flush found that it had too much waiting."""
        self._take = take

    def fileno(self) -> int:
        """See Pollable."""
        return self.link.descriptor

    def handle_ready(self, now: float, rounds: int) -> bool:
        """See Pollable."""
        # Most often there is one, and a look for another would be in vain: the next poll tells of it.
        frames = self.link.receive_now(BATCH if rounds else 1)
        if frames:
            self._take(self, frames, now)
        return bool(frames)


class Driver:
    """One gateway. `run` keeps it going, `serve` attaches a guest; both raise nothing for what a guest does."""

    def __init__(
        self,
        settings: NetworkSettings,
        *,
        resolver: AnswersDns,
        policy: PolicySettings = FULL_ACCESS,
        hooks: HookRunner | None = None,
        event_sink: Callable[[Event, float], None] | None = None,
        dial_watch: DialWatch | None = None,
        busy_poll: float = DEFAULT_BUSY_POLL / 1e6,
        may_be_heard: bool = False,
    ) -> None:
        """`policy` is what the guests may reach; `hooks` are asked about every flow and DNS question.

        `event_sink(event, now)` is called for everything worth telling, `dial_watch` for dials; neither may block.
        `busy_poll`: seconds for which the next batch is waited for awake, at most. `may_be_heard`: a journal may be
        wanted (heard_engine.py).
        """
        self.switch = switch = Switch(settings.gateway_mac, note_drop=self._note_drop)
        # Each guest is on a link of its own, and one may do what another cannot.
        self.initial_sequence = keyed_sequence_numbers()
        """What the engine asks for TCP's numbers."""
        # Both once a connection, and not as they are now: a journal listens to the answers.
        self.engine = Stack(
            settings,
            initial_sequence=lambda key, now: self.initial_sequence(key, now),  # noqa: PLW0108 - looked up each time
            policy=policy,
            segment_offload=lambda mac: switch.segment_offload(mac),  # noqa: PLW0108 - looked up each time
        )
        """The engine itself, for those who look into it."""
        self.stack = heard(self.engine) if may_be_heard else self.engine
        """The same, for all calls on it."""
        self._keep_guests_apart()
        self.sockets = HostSockets(self.stack)
        self.busy_poll = BusyPoll(self._flush, busy_poll)
        self.inbound = Inbound(self.stack, self.sockets.streams, self.flush, self.busy_poll)
        self.sockets.perform.update(self.inbound.perform)
        self._resolver = resolver
        self._hooks = hooks
        if hooks is not None:
            self.stack.judge.consults = True
            self.stack.judge.loosens = hooks.may_allow
        dialer = Dialer(self.stack, self.sockets.streams, resolver, self.flush)
        dialer.watch = self.sockets.streams.watch = dial_watch
        self._dialer: DialsNames = dialer
        self._event_sink = event_sink
        # What the driver has a part in itself; the rest is for sockets alone.
        self._perform: dict[type, Callable[[Any, float], None]] = {
            Report: self._report,
            ResolveUpstream: self._resolve_upstream,
            OpenNamed: self._open_named,
            ResolveName: lambda effect, _now: self._start(self._dialer.resolve_name, effect),
            ConsultFlow: lambda effect, _now: self._start(self._consult_flow, effect),
            ConsultDns: lambda effect, _now: self._start(self._consult_dns, effect),
            AbortStream: self._abort_stream,
        }
        self._attached: dict[int, _Attachment] = {}
        self._departed = LinkCounters()
        self._nursery: trio.Nursery | None = None
        self._alarm = trio.CancelScope()
        self._due = math.inf
        self.now = -math.inf
        """The time of what the engine does at this moment, or did last: with it a capture can be replayed exactly."""
        self._more = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve host sockets, timers and DNS until cancelled; then every host socket is closed."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.busy_poll.attend, self.sockets)
                nursery.start_soon(self._watch_time)
                nursery.start_soon(self._send_more)
                nursery.start_soon(self._resolver.run, self.flush, self.busy_poll.attend)
                await nursery.start(self.inbound.run)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # before the nursery is closed: links may still flush
        finally:
            self.busy_poll.close()
            self.inbound.close()
            self.sockets.close()

    def go_through(
        self, *, resolver: Callable[[AnswersDns], AnswersDns] | None, dialer: Callable[[DialsNames], DialsNames] | None
    ) -> None:
        """Ask and dial through these from now on, each made of what did it before; None leaves it. Faults use it."""
        if resolver is not None:
            self._resolver = resolver(self._resolver)
            self._dialer.ask(self._resolver)
        if dialer is not None:
            self._dialer = dialer(self._dialer)

    def start_soon(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run a task for as long as `run` does. Nothing, while it does not."""
        if self._nursery is not None:
            self._nursery.start_soon(task, *arguments)

    async def serve(self, link: Link) -> None:
        """Carry frames between one link and the engine until the link ends.

        Returns when the guest's side is gone; raises LinkError, or a group with one, when it sends what cannot be
        understood. `run` must be running. The link is closed on the way out.
        """
        port = self.switch.attach(link)
        attached = self._attached[port] = _Attachment(link, port, self._take)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(link.run)
                nursery.start_soon(self._catch_up, attached)
                try:
                    await self._pump(attached)
                except LinkClosed:
                    nursery.cancel_scope.cancel()
        finally:
            del self._attached[port]
            self.busy_poll.remove(attached)
            link.close()
            _add_counters(self._departed, link.counters)
            self._guests_left(self.switch.detach(port), trio.current_time())
            self.flush()

    @property
    def links(self) -> dict[int, Link]:
        """The links that are served, by the switch's port."""
        return {port: attached.link for port, attached in self._attached.items()}

    @property
    def link_count(self) -> int:
        """How many of them there are."""
        return len(self._attached)

    def link_totals(self) -> LinkCounters:
        """What all links have carried together, those that are gone among them; without the reasons of drops."""
        total = LinkCounters()
        for counters in (self._departed, *(attached.link.counters for attached in self._attached.values())):
            _add_counters(total, counters)
        return total

    def take_frames(self, port: int, frames: list[bytes]) -> None:
        """Take frames as if the guest at the switch's `port` had sent them. Raises KeyError for a port that is none."""
        now = self.now = trio.current_time()
        for frame in self.switch.ingress(port, frames, now):
            self.stack.receive_frame(frame, now)
        self.flush()

    def put_frames(self, port: int, frames: list[bytes]) -> None:
        """Send frames on the link at the switch's `port` as if they were the gateway's. Raises KeyError as well."""
        self.now = trio.current_time()
        self._attached[port].link.send_batch(frames)

    def end_flow(self, number: int) -> bool:
        """End a flow, at both ends; False when there is none of that number."""
        found = self.stack.end_flow(number, trio.current_time())
        self.flush()
        return found

    def _guests_left(self, macs: list[bytes], now: float) -> None:
        for mac in macs:
            self.stack.guest_left(mac, now)

    async def _pump(self, attached: _Attachment) -> None:
        link, busy_poll = attached.link, self.busy_poll
        frames = await link.receive_batch()
        busy_poll.add(attached)  # what a link does before its first frame is nothing to poll for
        while True:
            now = trio.current_time()
            self._take(attached, frames, now)
            await busy_poll.stay_awake(attached, more=self._flush(now))
            frames = await link.receive_batch()

    def _take(self, attached: _Attachment, frames: list[bytes], now: float) -> None:
        guests = attached.link.counters.guests
        if guests != attached.guests:  # a datagram link outlives its guests: what the last one had open is over
            attached.guests = guests
            self._guests_left(self.switch.forget(attached.port), now)
        stack = self.stack
        self.now = now  # of what guests say to each other as well
        passed = self.switch.ingress(attached.port, frames, now)
        self.engine.counters.frames += len(passed)
        stack.receive_frames(passed, now)
        if attached.link.holds_frames:
            self.busy_poll.look_again(attached)

    async def _watch_time(self) -> None:
        while True:
            with trio.CancelScope(deadline=max(self._due, trio.current_time() + TICK)) as self._alarm:
                await trio.sleep_forever()
            self.flush()

    async def _send_more(self) -> None:
        """Data for which one flush had no room goes on once the other tasks have had their turn."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            await trio.lowlevel.checkpoint()
            await self.busy_poll.stay_awake(None, more=True)

    async def _catch_up(self, attached: _Attachment) -> None:
        """Data that was held back because this link had too much waiting goes on once it has caught up."""
        while True:
            await attached.behind.wait()
            await attached.link.wait_backlog_drained()
            attached.behind = trio.Event()
            await trio.lowlevel.checkpoint()
            self.flush()

    def _held(self, now: float) -> frozenset[bytes]:
        """The MACs on links that are behind. One guest that does not read holds back nobody else."""
        behind = None
        for port, attached in self._attached.items():
            if attached.link.backlog >= MAX_BACKLOG:
                attached.behind.set()
                behind = {port} if behind is None else behind | {port}
        if behind is None:
            return _NOBODY
        return frozenset(entry.mac for entry in self.switch.table(now) if entry.port in behind)

    def flush(self) -> None:
        """Let time pass in the engine, carry out what it asks, send what it has for the guests, and set the alarm."""
        if self._flush(trio.current_time()):
            self._more.set()

    def _flush(self, now: float) -> bool:
        """`now` is what the engine was told of a batch that this ends; what goes out has the same time.

        Whether there is data for which this flush had no room.
        """
        stack = self.stack
        self.now = now
        if self._due <= now:
            stack.advance(now)
        perform, perform_socket = self._perform, self.sockets.perform
        asked = stack.take_effects(now)
        while asked:
            for effect in asked:
                kind = type(effect)
                (perform.get(kind) or perform_socket[kind])(effect, now)
            asked = stack.take_effects(now)
        frames = stack.take_batch(now, FRAMES_PER_FLUSH, self._held(now))
        if frames:
            self.switch.egress(frames)
        due = self._due = stack.next_deadline()
        alarm = self._alarm.deadline
        # Moving it costs, and so does waking for what the next flush sees anyhow.
        if due < alarm or alarm - now < TICK / 2:
            self._alarm.deadline = max(due, now + TICK)
        return self.engine.frames_wait

    def _report(self, effect: Report, now: float) -> None:
        if self._event_sink is not None:
            self._event_sink(effect.event, now)

    def _resolve_upstream(self, effect: ResolveUpstream, _now: float) -> None:
        if not self._resolver.begin(effect.message, partial(self._resolved, effect.query)):
            self._start(self._resolve, effect)

    def _open_named(self, effect: OpenNamed, now: float) -> None:
        if not self._dialer.open_at_once(effect, now):
            self._dialer.begin(effect.flow)
            self._start(self._dialer.open_named, effect)

    def _abort_stream(self, effect: AbortStream, now: float) -> None:
        self._dialer.cancel(effect.flow)
        self.sockets.perform[AbortStream](effect, now)

    def _start(self, task: Callable[[_Asked], Awaitable[None]], effect: _Asked) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task, effect)

    async def _consult_flow(self, effect: ConsultFlow) -> None:
        verdict = effect.verdict
        if self._hooks is not None:
            verdict = await self._hooks.flow(effect.question, verdict)
        self.stack.flow_consulted(effect.question, verdict, trio.current_time())
        self.flush()

    async def _consult_dns(self, effect: ConsultDns) -> None:
        verdict = effect.verdict
        if self._hooks is not None:
            verdict = await self._hooks.dns(effect.guest, effect.name, effect.qtype, verdict)
        self.stack.dns_consulted(effect.number, verdict, trio.current_time())
        self.flush()

    def replace_policy(self, policy: PolicySettings, why: str, *, final: bool = False) -> None:
        """Put another policy in force, whole, and end the flows it would refuse. `why` is for the record.

        What a `final` one refuses no hook may allow, whatever it may otherwise, and it closes the ways to the guests.
        """
        self.stack.judge.loosens = self._hooks is not None and self._hooks.may_allow and not final
        self.stack.replace_policy(policy, why, trio.current_time(), final=final)
        self._keep_guests_apart()
        self.flush()

    def _keep_guests_apart(self) -> None:
        """Under a list, and without a network, guests do not reach each other either."""
        self.switch.keeps_apart = not self.stack.judge.policy.unrestricted

    def _note_drop(self, reason: str) -> None:
        self.stack.note_drop(f"switch-{reason.replace(' ', '-').replace(chr(39), '').lower()}")

    async def _resolve(self, effect: ResolveUpstream) -> None:
        self._resolved(effect.query, await self._resolver.ask(effect.message))
        self.flush()

    def _resolved(self, query: int, answer: bytes | None) -> None:
        self.stack.dns_resolved(query, answer, trio.current_time())


def _add_counters(total: LinkCounters, more: LinkCounters) -> None:
    total.rx_frames += more.rx_frames
    total.rx_bytes += more.rx_bytes
    total.rx_dropped += more.rx_dropped
    total.tx_frames += more.tx_frames
    total.tx_bytes += more.tx_bytes
    total.tx_dropped += more.tx_dropped
    total.guests += more.guests
