"""`netstack run`: opens links, puts driver, resolver, capture and event log together, and ends them all on a signal.

A guest that leaves a listening link is waited for again (a VM restarts). An inherited socket, standard input or a TAP
comes to an end with its guest; when nothing is left that a guest could come back to, the program ends.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from guest_iface.heap import keep_freed_frames
from guest_iface.link import Link, LinkError, Listener
from guest_iface.stream import STREAM_QUEUE_FRAMES
from guest_iface.tap import TapLink
from netstack.config import (
    DEFAULT_GUEST_MAC,
    ConfigError,
    FdLink,
    LinkSpec,
    ListenLink,
    RunConfig,
    StdioLink,
    TcpEndpoint,
    UnixEndpoint,
)
from netstack.engine.events import Event
from netstack.engine.settings import LinkTraits
from netstack.gateway import RunFailed
from netstack.gateway.capture_comments import CaptureComments
from netstack.gateway.driver import Driver
from netstack.gateway.event_log import EventLog, EventLogError
from netstack.gateway.host_datagrams import open_ping_socket
from netstack.gateway.resolver import Resolver
from netstack.network_spec import NetworkSpec
from netstack.recorded_settings import recorder

if TYPE_CHECKING:
    from guest_iface.capture import CaptureWriter

log = logging.getLogger(__name__)

VPNKIT_MACS: Final = {"c3d68012-0208-11ea-9fd7-f2189899ab08": DEFAULT_GUEST_MAC}
"""The UUID that vpnkit's users start their VM with, and the address gvproxy gives it."""


@dataclass(slots=True)
class Attachments:
    """Where guests are, and where guests may come."""

    links: list[Link] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)

    def close(self) -> None:
        """Close all of them and remove what they bound in the file system."""
        for link in self.links:
            link.close()
        for listener in self.listeners:
            listener.close()

    def names(self) -> list[str]:
        """What people call them."""
        return [_described(link) for link in self.links] + [listener.name for listener in self.listeners]


def _described(link: Link) -> str:
    offload = link.capabilities.segment_offload
    return f"{link.name} (offload: frames of 64 KiB, no checksums)" if offload else link.name


def open_attachments(specs: tuple[LinkSpec, ...], mtu: int, offload_with: bytes | None = None) -> Attachments:
    """Open what the configuration names: all of it or, with a LinkError, nothing. `offload_with` is TapLink.open's."""
    opened = Attachments()
    try:
        for spec in specs:
            made = _open(spec, mtu, offload_with)
            if isinstance(made, Listener):
                opened.listeners.append(made)
            else:
                opened.links.append(made)
    except LinkError:
        opened.close()
        raise
    return opened


def _open(spec: LinkSpec, mtu: int, offload_with: bytes | None) -> Link | Listener:
    # A link's module is imported when it is used: most runs use one.
    if isinstance(spec, ListenLink):
        return _listen(spec, mtu)
    if isinstance(spec, FdLink):
        return _inherited(spec.fd, mtu)
    if isinstance(spec, StdioLink):
        from guest_iface import stream

        return stream.StdioLink(mtu=mtu)
    return TapLink.open(spec.name, netns=spec.netns, mtu=mtu, offload_with=offload_with)


def _listen(spec: ListenLink, mtu: int) -> Link | Listener:
    endpoint = spec.endpoint
    if spec.protocol == "vfkit":
        from guest_iface.unixgram import UnixgramLink

        if isinstance(endpoint, UnixEndpoint):
            return UnixgramLink.bind(endpoint.path, mtu=mtu)
    from guest_iface.listener import LinkMaker, SocketListener

    make: LinkMaker
    kind = socket.SOCK_STREAM
    if spec.protocol == "bess":
        from guest_iface.seqpacket import SeqpacketLink

        make, kind = partial(SeqpacketLink, mtu=mtu), socket.SOCK_SEQPACKET
    elif spec.protocol == "vpnkit":
        from guest_iface.vpnkit import VpnkitLink

        make = partial(VpnkitLink, mtu=mtu, macs=VPNKIT_MACS)
    else:
        from guest_iface.stream import StreamLink

        make = partial(StreamLink.from_socket, mtu=mtu)
    if isinstance(endpoint, TcpEndpoint):
        return SocketListener.bind_tcp(endpoint.host, endpoint.port, make)
    return SocketListener.bind_unix(endpoint.path, make, kind=kind)


def _inherited(fd: int, mtu: int) -> Link:
    """The link that an inherited socket's type asks for. Raises LinkError."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise LinkError(f"--fd {fd}: not an open socket: {error.strerror}") from error
    if sock.type == socket.SOCK_SEQPACKET:
        from guest_iface.seqpacket import SeqpacketLink

        return SeqpacketLink(sock, f"fd {fd}", mtu=mtu)
    kind = sock.type
    sock.detach()
    if kind == socket.SOCK_DGRAM:
        from guest_iface.unixgram import UnixgramLink

        return UnixgramLink.from_fd(fd, mtu=mtu)
    from guest_iface.stream import StreamLink

    return StreamLink.from_fd(fd, mtu=mtu)


def link_traits(attachments: Attachments, mtu: int) -> LinkTraits:
    """What the engine is told of its links: what the most careful of them says. Every listener makes streams."""
    capabilities = [link.capabilities for link in attachments.links]
    return LinkTraits(
        mtu=mtu,
        queue_frames=min((each.queue_frames for each in capabilities), default=STREAM_QUEUE_FRAMES),
        verify_checksums=not all(each.reliable_bytes for each in capabilities),
    )


class Gateway:
    """One driver with its links, resolver, event log and capture: what `run`, `guest` and `demo` run."""

    def __init__(
        self, config: RunConfig, attachments: Attachments, *, watch: Callable[[Event], None] | None = None
    ) -> None:
        """Open the files that the configuration names. Owns the attachments from here on. `watch` sees every event.

        Raises RunFailed.
        """
        self._attachments = attachments
        self._watch = watch
        self._capture: CaptureWriter | None = None
        self._comments: CaptureComments | None = None
        self._events: EventLog | None = None
        self._serving = trio.CancelScope()
        self._failure = ""
        network = replace(config.network, link=link_traits(attachments, config.network.link.mtu))
        try:
            if config.events is not None:
                self._events = EventLog(config.events)
            if config.capture is not None:
                from guest_iface.capture import CaptureWriter

                self._comments = CaptureComments()
                self._capture = CaptureWriter(
                    config.capture, comment=self._comments.take, remark=recorder(network, config.policy.policy())
                )
        except (EventLogError, LinkError) as error:
            attachments.close()
            raise RunFailed(str(error)) from error
        resolver = Resolver(
            config.dns_upstreams,
            never_ask=[socket.inet_ntoa(network.gateway_ip)],
            servers_changed=self._forget_names,
        )
        self._config = config
        self.killed = False
        """The kill switch is on: nothing is allowed until `reload_policy`."""
        self._policies_asked = 0
        _tell(self._warnings(config.policy))
        self.driver = Driver(
            network,
            resolver=resolver,
            policy=config.policy.policy(),
            hooks=config.hooks,
            event_sink=self._report if self._events or self._comments or watch else None,
        )

    def _forget_names(self) -> None:
        self.driver.stack.dns.cache.clear()

    def _report(self, event: Event, _now: float) -> None:
        if self._events is not None:
            self._events.write(event)
        if self._comments is not None:
            self._comments.note(event)
        if self._watch is not None:
            self._watch(event)

    def stop(self) -> None:
        """End `run` in order: guests first, so that the ends of their flows are still told."""
        self._serving.cancel()

    @property
    def has_policy_file(self) -> bool:
        """Whether there is a file that the policy can be read from again."""
        return self._config.reload_policy is not None

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
        self.killed = False
        self.driver.replace_policy(spec.policy(), "reload")
        log.info("policy read again: %s", spec)
        _tell(warnings)

    def _read_policy(self) -> tuple[NetworkSpec, list[str]]:
        spec = self._config.reload_policy() if self._config.reload_policy else self._config.policy
        return spec, self._warnings(spec)

    def _warnings(self, spec: NetworkSpec) -> list[str]:
        return spec.warnings(metadata_access=self._config.network.metadata_access)

    def kill_network(self) -> None:
        """The kill switch: every flow is reset, and nothing goes out or comes in any more until `reload_policy`."""
        self._policies_asked += 1
        self.killed = True
        self.driver.replace_policy(NetworkSpec.enabled(deny_all=True).policy(), "kill-switch", final=True)
        log.warning("kill switch: every flow is reset and nothing is allowed until SIGUSR1")

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
                async with trio.open_nursery() as engine:
                    await engine.start(self.driver.run)
                    with self._serving:
                        await self._serve_all(task_status)
                    engine.cancel_scope.cancel()
                writing.cancel_scope.cancel()
        finally:
            self._attachments.close()
            if self._capture is not None:
                self._capture.close()
        if self._failure and not self._serving.cancel_called:
            raise RunFailed(self._failure)

    async def _serve_all(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            for link in self._attachments.links:
                nursery.start_soon(self._serve, link)
            for listener in self._attachments.listeners:
                nursery.start_soon(self._accept, listener, nursery)
            task_status.started()

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        while True:
            link = await listener.accept()
            log.info("%s: a guest has come", link.name)
            nursery.start_soon(self._serve, link)

    async def _serve(self, link: Link) -> None:
        try:
            await self.driver.serve(link if self._capture is None else self._capture.tee(link))
        except* LinkError as errors:
            self._failure = _first(errors)
            log.warning("%s", self._failure)
        else:
            if isinstance(link, TapLink):
                self._failure = f"{link.name}: the device is gone"
            log.info("%s: the guest has left", link.name)


def _first(errors: BaseExceptionGroup[BaseException]) -> str:
    """The message of a group's first error."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def _tell(warnings: list[str]) -> None:
    for warning in warnings:
        log.warning("%s", warning)


POLICY_SIGNALS: Final = (signal.SIGUSR1, signal.SIGUSR2)


async def obey_policy_signals(signals: AsyncIterator[int], gateway: Gateway) -> None:
    """SIGUSR2 is the kill switch; SIGUSR1 reads the policy again, and lifts it. Obeyed until cancelled."""
    async with trio.open_nursery() as nursery:
        async for number in signals:
            _obey_policy_signal(number, gateway, nursery)


def _obey_policy_signal(number: int, gateway: Gateway, nursery: trio.Nursery) -> None:
    if number == signal.SIGUSR2:
        gateway.kill_network()
    else:
        nursery.start_soon(gateway.reload_policy)


async def _obey(signals: AsyncIterator[int], gateway: Gateway) -> None:
    async with trio.open_nursery() as nursery:
        async for number in signals:
            if number in POLICY_SIGNALS:
                _obey_policy_signal(number, gateway, nursery)
            elif number != signal.SIGHUP or not _refresh(gateway, nursery):
                log.info("%s: ending", signal.Signals(number).name)
                gateway.stop()


def _refresh(gateway: Gateway, nursery: trio.Nursery) -> bool:
    """What SIGHUP asks of a gateway with files: read the policy's, open the events' again. False if it has none."""
    reopened = gateway.reopen_events()
    if gateway.killed:  # log rotation sends SIGHUP too, and must not open what somebody has closed
        log.warning("SIGHUP: the kill switch stays on until SIGUSR1")
    elif gateway.has_policy_file:
        nursery.start_soon(gateway.reload_policy)
    return reopened or gateway.has_policy_file


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
    try:
        open_ping_socket().close()
    except OSError as error:
        log.info("no ping sockets on this host (%s): pings beyond the gateway are prohibited", error.strerror)


async def _serve_until_told(config: RunConfig) -> None:
    # Signals first: from the moment a socket exists, something must be there to remove it.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *POLICY_SIGNALS) as signals:
        try:
            offload_with = config.network.gateway_mac if config.offload else None
            attachments = open_attachments(config.links, config.network.link.mtu, offload_with)
        except LinkError as error:
            raise RunFailed(str(error)) from error
        gateway = Gateway(config, attachments)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, gateway)

            async def run_and_end(task_status: trio.TaskStatus[None]) -> None:
                await gateway.run(task_status=task_status)
                nursery.cancel_scope.cancel()

            await nursery.start(run_and_end)
            _tell_what_runs(config, attachments)
            if config.ready_fd is not None:
                tell_ready(config.ready_fd)


def prepare_process(log_level: str) -> None:
    """Log to standard error, and allow as many open files as the hard limit says: each flow takes one."""
    logging.basicConfig(level=log_level.upper(), stream=sys.stderr, format="netstack: %(message)s")
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
    prepare_process(config.log_level)
    run_trio(_serve_until_told, config)
