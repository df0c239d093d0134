"""Listening on vsock(7), where this kernel has it; what a guest then does on it is what it does on any stream."""

from __future__ import annotations

import socket
from functools import partial

import pytest

from guest_iface.link import LinkError
from guest_iface.listener import SocketListener, bind_vsock
from guest_iface.stream import StreamLink, prepare_stream_socket


@pytest.fixture
def port() -> int:
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            return int(probe.getsockname()[1])
    except OSError as error:
        pytest.skip(f"no vsock on this host: {error}")


async def test_a_port_is_listened_on_once(port: int):
    listener = SocketListener.bind_vsock(None, port, partial(StreamLink.from_socket, mtu=1500))
    assert listener.name == f"vsock://:{port}"
    with pytest.raises(LinkError, match=f"vsock://:{port}: cannot listen there: Address already in use"):
        bind_vsock(None, port)
    listener.close()
    bind_vsock(None, port).close()


def test_a_context_that_is_not_ours(port: int):
    with pytest.raises(LinkError, match=f"vsock://77777:{port}: cannot listen there"):
        bind_vsock(77777, port)


def test_its_sockets_have_no_options_of_tcp(port: int):
    with bind_vsock(None, port) as sock:
        prepare_stream_socket(sock)


def test_a_host_without_vsock(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> socket.socket:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(LinkError, match="vsock://3:5: this host has no vsock: Address family"):
        bind_vsock(3, 5)
