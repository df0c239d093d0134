"""UDP between the guest's kernel and sockets on the host."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from . import payload
from .lab import Namespace, closing_all
from .network import FAR, PUBLIC, UNREACHABLE, Network

pytestmark = pytest.mark.guest("ip", "openssl")
REFUSED_PORT = 9
IP_RECVERR = 11


SO_RCVBUFFORCE = 33


@contextlib.contextmanager
def echo(where: Namespace, address: str, port: int = 0) -> Iterator[tuple[str, int]]:
    """An echo server in a thread; yields its address."""
    with where.socket(socket.SOCK_DGRAM) as server:
        server.bind((address, port))
        server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)  # by default it holds 277 small datagrams
        server.settimeout(0.2)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    data, peer = server.recvfrom(1 << 16)
                    server.sendto(data, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def guest_socket(network: Network) -> Iterator[socket.socket]:
    with network.guest.socket(socket.SOCK_DGRAM) as made:
        made.settimeout(10)
        yield made


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 8192, 65_507])
def test_echo_of_every_size(network: Network, guest_socket: socket.socket, size: int) -> None:
    data = payload.block(3)[:size]
    with echo(network.host, PUBLIC) as at:
        for _ in range(3):
            guest_socket.sendto(data, at)
            back, peer = guest_socket.recvfrom(1 << 16)
            assert (back, peer) == (data, at)


def test_echo_through_the_host_alias(network: Network, guest_socket: socket.socket) -> None:
    with echo(network.host, "127.0.0.1") as (_, port):
        guest_socket.sendto(b"hello", (network.addresses.host, port))
        assert guest_socket.recvfrom(100) == (b"hello", (network.addresses.host, port))


def test_echo_from_beyond_the_router(network: Network, guest_socket: socket.socket) -> None:
    with echo(network.world.inet, FAR) as at:
        guest_socket.sendto(b"far", at)
        assert guest_socket.recvfrom(100) == (b"far", at)


def test_refused_port_is_reported(network: Network, guest_socket: socket.socket) -> None:
    """ICMP port unreachable comes back with our packet in it: the kernel finds the socket (RFC 1122, 4.1.3.3)."""
    guest_socket.connect((PUBLIC, REFUSED_PORT))
    guest_socket.send(b"anyone?")
    with pytest.raises(ConnectionRefusedError):
        guest_socket.recv(100)


def test_refused_port_beyond_the_router_is_reported(network: Network, guest_socket: socket.socket) -> None:
    guest_socket.connect((FAR, REFUSED_PORT))
    guest_socket.send(b"anyone?")
    with pytest.raises(ConnectionRefusedError):
        guest_socket.recv(100)


def test_unreachable_host_is_reported(network: Network, guest_socket: socket.socket) -> None:
    # Only who asks for it learns of a host that cannot be reached: the error counts as one that may pass.
    guest_socket.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    guest_socket.connect((UNREACHABLE, REFUSED_PORT))
    guest_socket.send(b"anyone?")
    with pytest.raises(OSError, match="No route to host"):
        guest_socket.recv(100)


def test_a_refusal_does_not_end_the_mapping(network: Network, guest_socket: socket.socket) -> None:
    """One guest port talks to several destinations; that one of them refuses is no matter to the others."""
    guest_socket.bind(("", 0))
    with echo(network.host, PUBLIC) as at:
        guest_socket.sendto(b"1", at)
        assert guest_socket.recv(10) == b"1"
        guest_socket.sendto(b"2", (PUBLIC, REFUSED_PORT))
        guest_socket.sendto(b"3", at)
        assert guest_socket.recv(10) == b"3"


def test_mapping_is_endpoint_independent(network: Network, guest_socket: socket.socket) -> None:
    """RFC 4787 section 4.1: the same guest port is the same host port for every destination."""
    ports = set()
    with network.host.socket(socket.SOCK_DGRAM) as one, network.host.socket(socket.SOCK_DGRAM) as two:
        for server in (one, two):
            server.bind((PUBLIC, 0))
            guest_socket.sendto(b"who am I?", server.getsockname())
            data, peer = server.recvfrom(100)
            assert data == b"who am I?"
            ports.add(peer[1])
    assert len(ports) == 1


def test_empty_reply_keeps_the_flow(network: Network, guest_socket: socket.socket) -> None:
    with network.host.socket(socket.SOCK_DGRAM) as server:
        server.bind((PUBLIC, 0))
        peers = []
        for _ in range(3):
            guest_socket.sendto(b"", server.getsockname())
            data, peer = server.recvfrom(100)
            assert data == b""
            server.sendto(b"", peer)
            assert guest_socket.recv(100) == b""
            peers.append(peer)
        assert len(set(peers)) == 1


def test_many_ports_at_once(network: Network) -> None:
    """300 guest ports talk to one server; each gets its own answer."""
    guests = [network.guest.socket(socket.SOCK_DGRAM) for _ in range(300)]
    with echo(network.host, PUBLIC) as at, closing_all(*guests):
        guests[0].sendto(b"first", at)  # no more than 277 wait for the answer to the guest's ARP request either
        assert guests[0].recv(10) == b"first"
        for number, one in enumerate(guests):
            one.sendto(b"%d" % number, at)
        for number, one in enumerate(guests):
            assert one.recv(10) == b"%d" % number
