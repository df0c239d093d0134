"""What the configuration says of links, opened: links that carry frames, and listeners that guests connect to."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from guest_iface.link import Link, LinkError, Listener
from guest_iface.stream import STREAM_QUEUE_FRAMES
from guest_iface.tap import TapLink
from netstack.config import (
    DEFAULT_VPNKIT_MACS,
    FdLink,
    LinkSpec,
    ListenLink,
    StdioLink,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from netstack.engine.settings import LinkTraits


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


def open_attachments(
    specs: tuple[LinkSpec, ...],
    mtu: int,
    offload_with: bytes | None = None,
    *,
    vpnkit_macs: Mapping[str, bytes] = DEFAULT_VPNKIT_MACS,
    batch_calls: bool = True,
) -> Attachments:
    """Open what the configuration names: all of it or, with a LinkError, nothing.

    `offload_with` is TapLink.open's, `batch_calls` UnixgramLink's.
    """
    opened = Attachments()
    try:
        for spec in specs:
            made = _open(spec, mtu, offload_with, vpnkit_macs, batch_calls=batch_calls)
            if isinstance(made, Listener):
                opened.listeners.append(made)
            else:
                opened.links.append(made)
    except LinkError:
        opened.close()
        raise
    return opened


def _open(
    spec: LinkSpec,
    mtu: int,
    offload_with: bytes | None,
    macs: Mapping[str, bytes],
    *,
    batch_calls: bool,
) -> Link | Listener:
    # A link's module is imported when it is used: most runs use one.
    if isinstance(spec, ListenLink):
        return _listen(spec, mtu, macs, batch_calls=batch_calls)
    if isinstance(spec, FdLink):
        return _inherited(spec.fd, mtu, batch_calls=batch_calls)
    if isinstance(spec, StdioLink):
        from guest_iface import stream

        return stream.StdioLink(mtu=mtu)
    return TapLink.open(spec.name, netns=spec.netns, mtu=mtu, offload_with=offload_with)


def _listen(spec: ListenLink, mtu: int, macs: Mapping[str, bytes], *, batch_calls: bool) -> Link | Listener:
    endpoint = spec.endpoint
    if spec.protocol == "vfkit":
        from guest_iface.unixgram import UnixgramLink

        if isinstance(endpoint, UnixEndpoint):
            return UnixgramLink.bind(endpoint.path, mtu=mtu, batch_calls=batch_calls)
    from guest_iface.listener import LinkMaker, SocketListener

    make: LinkMaker
    kind = socket.SOCK_STREAM
    if spec.protocol == "bess":
        from guest_iface.seqpacket import SeqpacketLink

        make, kind = partial(SeqpacketLink, mtu=mtu), socket.SOCK_SEQPACKET
    elif spec.protocol == "vpnkit":
        from guest_iface.vpnkit import VpnkitLink

        make = partial(VpnkitLink, mtu=mtu, macs=macs)
    else:
        from guest_iface.stream import StreamLink

        make = partial(StreamLink.from_socket, mtu=mtu)
    if isinstance(endpoint, TcpEndpoint):
        return SocketListener.bind_tcp(endpoint.host, endpoint.port, make)
    if isinstance(endpoint, VsockEndpoint):
        return SocketListener.bind_vsock(endpoint.cid, endpoint.port, make)
    return SocketListener.bind_unix(endpoint.path, make, kind=kind)


def _inherited(fd: int, mtu: int, *, batch_calls: bool) -> Link:
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

        return UnixgramLink.from_fd(fd, mtu=mtu, batch_calls=batch_calls)
    from guest_iface.stream import StreamLink

    return StreamLink.from_fd(fd, mtu=mtu)


def link_traits(attachments: Attachments, asked: LinkTraits, verify_checksums: bool | None = None) -> LinkTraits:
    """What the engine is told of its links: what the most careful of them says. Every listener makes streams.

    `asked` is the configuration's. Unless `verify_checksums` says whether to verify them, the links do. Where somebody
    verifies checksums, those that a TAP's header calls partial are completed before.
    """
    capabilities = [link.capabilities for link in attachments.links]
    if verify_checksums is None:
        verify_checksums = not all(each.reliable_bytes for each in capabilities)
    if verify_checksums:
        for link in attachments.links:
            if isinstance(link, TapLink):
                link.complete_checksums()
    return replace(
        asked,
        queue_frames=min((each.queue_frames for each in capabilities), default=STREAM_QUEUE_FRAMES),
        verify_checksums=verify_checksums,
    )
