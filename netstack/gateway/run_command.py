"""`netstack run`: opens links, puts driver, resolver, capture and event log together, and ends them all on a signal.

A guest that leaves a listening link is waited for again (a VM restarts). An inherited socket, standard input or a TAP
comes to an end with its guest; when nothing is left that a guest could come back to, the program ends.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from guest_iface.heap import keep_freed_frames
from guest_iface.link import Link, LinkError, Listener
from guest_iface.ordinary_frames import OrdinaryFramesLink
from guest_iface.stream import StdioLink
from guest_iface.tap import TapLink
from netstack import __version__
from netstack.config import ConfigError, LogFormat, RunConfig
from netstack.engine.events import Event
from netstack.gateway import RunFailed
from netstack.gateway.assembly import open_forwards
from netstack.gateway.attachments import Attachments, link_traits, open_attachments
from netstack.gateway.captures import EVERYTHING, CaptureError, Captures
from netstack.gateway.debugging import Debugging
from netstack.gateway.driver import Driver
from netstack.gateway.event_log import EventLog, EventLogError
from netstack.gateway.forwards import Forwards
from netstack.gateway.host_datagrams import open_ping_socket
from netstack.gateway.idle_memory import IdleMemory
from netstack.gateway.inbound import DIAL_TIMEOUT, Endpoint, Handler
from netstack.gateway.notifications import Notifications
from netstack.gateway.pid_file import pid_file
from netstack.gateway.process_log import start_logging
from netstack.gateway.records import Records
from netstack.gateway.resolver import Resolver
from netstack.gateway.signals import POLICY_SIGNALS, obey
from netstack.gateway.wires import Wires
from netstack.network_spec import NetworkSpec

if TYPE_CHECKING:
    from netstack.gateway.api.app import Api

log = logging.getLogger(__name__)


class Gateway:
    """One driver with its links, resolver, event log and capture: what `run`, `guest` and `demo` run."""

    def __init__(
        self,
        config: RunConfig,
        attachments: Attachments,
        *,
        watch: Callable[[Event], None] | None = None,
        notifications: Notifications | None = None,
    ) -> None:
        """Open the files that the configuration names. Owns the attachments from here on. `watch` sees every event.
        `notifications` are told of guests and of links that fail; somebody else runs them.

        Raises RunFailed.
        """
        self._attachments = attachments
        self._watch = watch
        self._notifications = notifications
        self._events: EventLog | None = None
        self._api: Api | None = None
        self._serving = trio.CancelScope()
        self._failure = ""
        self._guests = self._guests_ever = 0
        try:
            if config.events is not None:
                self._events = EventLog(config.events)
            if config.has_api:
                from netstack.gateway.api.app import Api, ApiOptions

                self._api = Api(self, ApiOptions.of(config))
        except ConfigError:
            attachments.close()
            raise
        except (EventLogError, RunFailed) as error:
            attachments.close()
            raise RunFailed(str(error)) from error
        link = link_traits(attachments, config.network.link, config.verify_checksums)
        network = replace(config.network, link=link)
        resolver = Resolver(
            config.dns_upstreams,
            never_ask=[socket.inet_ntoa(network.gateway_ip)],
            servers_changed=self._forget_names,
        )
        self.config = config
        self.policy = config.policy
        """What is in force, unless the kill switch is on: what is in force again after it."""
        self.records = None if self._api is None else Records()
        """What has happened lately, for the API; None where there is none."""
        self.debugging = None if self._api is None else Debugging()
        """What `netstack explain` and `console` ask for; None without an API."""
        self.killed = False
        """The kill switch is on: nothing is allowed until `reload_policy`."""
        self._policies_asked = 0
        _tell([*config.notes, *self._warnings(config.policy)])
        self.driver = Driver(
            network,
            resolver=resolver,
            policy=config.policy.policy(),
            hooks=config.hooks,
            event_sink=self._report,
            dial_watch=self.debugging.stories if self.debugging else None,
            busy_poll=config.busy_poll / 1e6,
            may_be_heard=config.capture is not None and config.capture_options == EVERYTHING,
        )
        self._memory = IdleMemory(self.driver.engine, self.driver.sockets)
        if notifications is not None:
            self.driver.switch.watch(notifications.guest_came, notifications.guests_left)
        self.forwards = Forwards(self.driver.inbound, network, keep_source=config.keep_source)
        self.wires = Wires(self.driver)
        self.captures = Captures(self.wires, self.driver, holds=self._has_breakpoints)
        if self.debugging is not None:
            self.debugging.breakpoints.on_add = self.captures.touched
        try:
            self.wires.begin(config)
            if config.capture is not None:
                self.captures.start(config.capture, config.capture_options)
        except (CaptureError, ValueError) as error:
            self._close_files()
            raise RunFailed(str(error)) from error

    def _has_breakpoints(self) -> bool:
        return self.debugging is not None and bool(self.debugging.breakpoints.all())

    def _forget_names(self) -> None:
        self.driver.stack.dns.cache.clear()

    def _report(self, event: Event, _now: float) -> None:
        self._memory.note(event)
        if self._events is not None:
            self._events.write(event)
        if self.captures:
            self.captures.note(event)
        if self.records is not None:
            self.records.note(event)
        if self.debugging is not None:
            self.debugging.stories.note(event)
        if self._watch is not None:
            self._watch(event)

    def _close_files(self) -> None:
        self._attachments.close()
        if self._api is not None:
            self._api.close()
        self.captures.close()

    def stop(self) -> None:
        """End `run` in order: guests first, so that the ends of their flows are still told."""
        self._serving.cancel()

    @property
    def has_policy_file(self) -> bool:
        """Whether there is a file that the policy can be read from again."""
        return self.config.reload_policy is not None

    async def reload_policy(self) -> None:
        """Put the policy of options and file, read again, in force: the whole of it, or none and the old one stays.

        What is asked for while the file is read takes its place.
        """
        self._policies_asked += 1
        asked = self._policies_asked
        try:
            # In a thread: a hundred thousand rules take a second, and frames do not wait.
            spec, warnings = await trio.to_thread.run_sync(self._read_policy, abandon_on_cancel=True)
        except ConfigError as error:
            log.warning("%s; %s", error, "the kill switch stays on" if self.killed else "the policy in force stays")
            return
        if asked != self._policies_asked:
            return
        self._put_in_force(spec, "reload")
        log.info("policy read again: %s", spec)
        _tell(warnings)

    async def replace_policy(self, spec: NetworkSpec) -> list[str]:
        """Put a policy in force that a program asks for, whole; what is odd about it. It ends the kill switch.

        What is asked for while its rules are made ready takes its place.
        """
        self._policies_asked += 1
        asked = self._policies_asked
        warnings = await trio.to_thread.run_sync(self._make_ready, spec)
        if asked == self._policies_asked:
            self._put_in_force(spec, "api")
            log.info("policy replaced by the API: %s", spec)
        return warnings

    def _make_ready(self, spec: NetworkSpec) -> list[str]:
        spec.policy()
        return self._warnings(spec)

    def lift_kill_switch(self) -> bool:
        """Put the policy in force again that was before the kill switch; False when it is not on."""
        if not self.killed:
            return False
        self._policies_asked += 1
        self._put_in_force(self.policy, "api")
        log.info("the kill switch is off: %s", self.policy)
        return True

    def _put_in_force(self, spec: NetworkSpec, why: str) -> None:
        self.killed = False
        self.policy = spec
        self.driver.replace_policy(spec.policy(), why)

    def _read_policy(self) -> tuple[NetworkSpec, list[str]]:
        spec = self.config.reload_policy() if self.config.reload_policy else self.config.policy
        return spec, self._warnings(spec)

    def _warnings(self, spec: NetworkSpec) -> list[str]:
        return spec.warnings(metadata_access=self.config.network.metadata_access)

    def kill_network(self) -> None:
        """The kill switch: every flow is reset, and nothing goes out or comes in any more until `reload_policy`."""
        self._policies_asked += 1
        self.killed = True
        self.driver.replace_policy(NetworkSpec.enabled(deny_all=True).policy(), "kill-switch", final=True)
        log.warning("kill switch: every flow is reset and nothing is allowed until SIGUSR1")

    async def dial_guest(
        self,
        address: str,
        port: int,
        *,
        source: Endpoint | None = None,
        timeout: float = DIAL_TIMEOUT,  # noqa: ASYNC109  # the engine keeps it
    ) -> trio.SocketStream:
        """A stream to a guest's port, or to a service at the gateway's address (`serve_in_network`).

        `address` is dotted; the guest sees `source` (the gateway, unless told otherwise). Raises ValueError for what is
        no address, and OSError: ECONNREFUSED, EHOSTUNREACH, ETIMEDOUT (after `timeout` seconds), EACCES while there is
        no way in (kill switch, disabled network), ENOBUFS.
        """
        packed = ipaddress.IPv4Address(address).packed
        if not 0 < port < 65_536:
            raise ValueError(f"port {port} is outside 1..65535")
        return await self.driver.inbound.dial(packed, port, source=source, timeout=timeout)

    def serve_in_network(self, port: int, handler: Handler) -> None:
        """Have `handler(stream, (address, port))` called for guests' connections to this port of the gateway.

        256 of them at a time, 32 of one guest. Its stream is closed when it returns; what it raises is logged and ends
        nothing else.
        The port is the gateway's own, whatever list there is; the kill switch and a disabled network close it. Raises
        ValueError for a port that is served already, as 53 is.
        """
        self.driver.inbound.serve(port, handler)

    def reopen_events(self) -> bool:
        """Open the events file again by its name; False if there is none."""
        if self._events is None:
            return False
        self._events.reopen()
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`, or until there is no link left that a guest could be on.

        Raises RunFailed if an inherited link ended with an error and no other is left.
        """
        try:
            async with trio.open_nursery() as writing:
                if self._events is not None:
                    writing.start_soon(self._events.run)
                writing.start_soon(self.captures.run)
                async with trio.open_nursery() as engine:
                    await engine.start(self.driver.run)
                    await engine.start(self.forwards.run)
                    engine.start_soon(self._memory.run)
                    if self.debugging is not None:
                        engine.start_soon(self.debugging.run, self.driver.engine)
                    if self._api is not None:
                        engine.start_soon(self._api.run)
                        if self.config.guest_api:
                            self.serve_in_network(80, self._api.serve_guest)
                    with self._serving:
                        await self._serve_all(task_status)
                    engine.cancel_scope.cancel()
                writing.cancel_scope.cancel()
        finally:
            self._close_files()
        if self._failure and not self._serving.cancel_called:
            raise RunFailed(self._failure)

    async def _serve_all(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            for link in self._attachments.links:
                nursery.start_soon(self._serve, link)
            for listener in self._attachments.listeners:
                nursery.start_soon(self._accept, listener, nursery)
            if not self._attachments.links and not self._attachments.listeners:
                nursery.start_soon(trio.sleep_forever)  # guests come by /connect alone
            task_status.started()

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        while True:
            link = await listener.accept()
            log.info("%s: a guest has come", link.name)
            nursery.start_soon(self._serve_and_linger, link)

    async def _serve_and_linger(self, link: Link) -> None:
        await self._serve(link)
        if self.config.linger is None or self._guests:
            return
        ever = self._guests_ever
        await trio.sleep(self.config.linger)
        if self._guests_ever == ever:
            log.info("no guest for %g seconds: ending", self.config.linger)
            self._serving.cancel()

    async def serve_link(self, link: Link) -> None:
        """Carry the frames of one more guest until its link ends. What it sends that makes no sense ends only that."""
        log.info("%s: a guest has come", link.name)
        failure = self._failure
        await self._serve(link)
        self._failure = failure

    async def _serve(self, link: Link) -> None:
        cable = self.wires.lay(link if self.config.offload else OrdinaryFramesLink(link))
        self._guests += 1
        self._guests_ever += 1
        try:
            await self.driver.serve(cable if self.debugging is None else self.debugging.breakpoints.wrap(cable))
        except* LinkError as errors:
            self._failure = _first(errors)
            log.warning("%s", self._failure)
            self._notify_failure()
        else:
            if isinstance(link, StdioLink):
                self._notify_failure()
            if isinstance(link, TapLink):
                self._failure = f"{link.name}: the device is gone"
            log.info("%s: the guest has left", link.name)
        finally:
            self._guests -= 1
            self.wires.take_up(cable)

    def _notify_failure(self) -> None:
        if self._notifications is not None:
            self._notifications.link_failed()


def _first(errors: BaseExceptionGroup[BaseException]) -> str:
    """The message of a group's first error."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def _tell(warnings: list[str]) -> None:
    for warning in warnings:
        log.warning("%s", warning)


def tell_ready(fd: int) -> None:
    """Write a line to a descriptor and close it. Raises RunFailed."""
    try:
        os.write(fd, b"ready\n")
        os.close(fd)
    except OSError as error:
        raise RunFailed(f"--ready-fd {fd}: {error.strerror}") from error


def _tell_what_runs(config: RunConfig, attachments: Attachments) -> None:
    network = config.network
    addresses = [socket.inet_ntoa(each) for each in (network.gateway_ip, network.device_ip, network.host_ip)]
    log.info("policy: %s", config.policy)
    log.info("gateway %s, guest %s, host %s, MTU %d", *addresses, network.link.mtu)
    for name in attachments.names():
        log.info("waiting for a guest on %s", name)
    if config.log_format == "logrus":  # what gvproxy's users look for in its log
        log.info("gvproxy version netstack-%s", __version__)
        log.info("waiting for clients...")
    for url in config.api_listen:
        log.info("listening %s", url)
    if config.services is not None:
        log.info("enabling services API. Listening %s", config.services)
    try:
        open_ping_socket().close()
    except OSError as error:
        log.info("no ping sockets on this host (%s): pings beyond the gateway are prohibited", error.strerror)


async def _serve_until_told(config: RunConfig) -> None:
    # Signals first: from the moment a socket exists, something must be there to remove it.
    signals = trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *POLICY_SIGNALS)
    with signals as received, pid_file(config.pid_file):
        async with trio.open_nursery() as telling:
            notifications = None
            if config.notification is not None:
                notifications = Notifications(config.notification)
                telling.start_soon(notifications.run)
            try:
                await _serve_with(config, received, notifications)
            finally:
                telling.cancel_scope.cancel()


async def _serve_with(config: RunConfig, signals: AsyncIterator[int], notifications: Notifications | None) -> None:
    try:
        offload_with = config.network.gateway_mac if config.offload else None
        attachments = open_attachments(
            config.links,
            config.network.link.mtu,
            offload_with,
            vpnkit_macs=config.vpnkit_macs,
            batch_calls=config.batch_calls,
        )
    except LinkError as error:
        if notifications is not None:
            notifications.link_failed()
        raise RunFailed(str(error)) from error
    gateway = Gateway(config, attachments, notifications=notifications)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey, signals, gateway)

        async def run_and_end(task_status: trio.TaskStatus[None]) -> None:
            await gateway.run(task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(run_and_end)
        await open_forwards(gateway, config)
        _tell_what_runs(config, attachments)
        if notifications is not None:
            notifications.ready()
        if config.ready_fd is not None:
            tell_ready(config.ready_fd)


def prepare_process(log_level: str, log_format: LogFormat = "plain", log_file: Path | None = None) -> None:
    """Start to log, and allow as many open files as the hard limit says: each flow takes one. Raises RunFailed."""
    start_logging(log_level, log_format, log_file)
    keep_freed_frames()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_trio(main: Callable[..., Awaitable[int | None]], *arguments: object) -> int:
    """Run an asynchronous main function to its end. Raises RunFailed by itself, not wrapped in groups."""
    failure: str
    try:
        return trio.run(main, *arguments) or 0
    except* RunFailed as errors:
        failure = _first(errors)
    raise RunFailed(failure)


def run_gateway(config: RunConfig) -> None:
    """Run until a signal comes or the last guest has left. Raises RunFailed."""
    prepare_process(config.log_level, config.log_format, config.log_file)
    try:
        run_trio(_serve_until_told, config)
    except RunFailed as error:
        if config.log_file is not None:  # standard error gets it from the command
            log.error("%s", error)  # noqa: TRY400 - the reason is in the message, a traceback says no more
        raise
