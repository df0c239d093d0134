"""Many at once: connections, idle flows, dials that nobody answers. Memory is recorded, time is not judged."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from .lab import closing_all
from .network import PUBLIC, Network

pytestmark = pytest.mark.guest("ip", "openssl")
SILENT = "198.18.0.77"
"""Routed, and swallowed there without a word."""


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    """Both ends of a thousand connections are held here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(16_384, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def upper_case_server(network: Network) -> Iterator[tuple[str, int]]:
    """A server that answers each line in upper case; one thread, any number of connections."""
    stop = threading.Event()
    with network.host.listen(PUBLIC, backlog=4096) as listener, select.epoll() as poll:
        listener.setblocking(False)
        poll.register(listener, select.EPOLLIN)
        open_connections: dict[int, socket.socket] = {}

        def serve() -> None:
            while not stop.is_set():
                for fd, _ in poll.poll(0.1):
                    if fd == listener.fileno():
                        connection, _ = listener.accept()
                        open_connections[connection.fileno()] = connection
                        poll.register(connection, select.EPOLLIN)
                        continue
                    data = b""
                    with contextlib.suppress(ConnectionError):
                        data = open_connections[fd].recv(1000)
                    if data:
                        open_connections[fd].sendall(data.upper())
                    else:
                        open_connections.pop(fd).close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            stop.set()
            thread.join()
            for connection in open_connections.values():
                connection.close()


def ask(network: Network, at: tuple[str, int], text: bytes) -> bytes:
    """Connect, send a line, read until the answer has come, close."""
    with network.guest.connect(*at) as connection:
        connection.sendall(text)
        return connection.recv(1000)


def test_l9_64_clients_at_once(network: Network) -> None:
    """Conformance L9: connect, ask, close; 64 at a time, 20 rounds each. Where ten dials fill the table this stalls."""
    with upper_case_server(network) as at, ThreadPoolExecutor(64) as pool:
        words = [b"word %d" % number for number in range(64 * 20)]
        assert list(pool.map(lambda word: ask(network, at, word), words)) == [word.upper() for word in words]


def test_a_thousand_idle_flows(network: Network, record_property) -> None:
    process = network.gateway.process
    before = process.rss_bytes()
    with upper_case_server(network) as at:
        flows = [network.guest.connect(*at) for _ in range(1000)]
        with closing_all(*flows):
            for flow in flows:
                flow.sendall(b"x")
            for flow in flows:
                assert flow.recv(10) == b"X"
            record_property("rss before, bytes", before)
            record_property("rss with 1000 idle flows, bytes", process.rss_bytes())
            # Others are served meanwhile, and each idle one still is.
            assert ask(network, at, b"newcomer") == b"NEWCOMER"
            for flow in (flows[0], flows[500], flows[999]):
                flow.sendall(b"still there")
                assert flow.recv(100) == b"STILL THERE"


def test_l3_dials_that_hang_delay_nobody(network: Network) -> None:
    """Conformance L3, small: 300 connects to a silent address under way, and others go through."""
    waiting = [network.guest.socket() for _ in range(300)]
    with closing_all(*waiting), upper_case_server(network) as at:
        for one in waiting:
            one.setblocking(False)
            assert one.connect_ex((SILENT, 80)) != 0
        for number in range(20):
            assert ask(network, at, b"%d" % number) == b"%d" % number
        # Nobody was told that the silent address had answered.
        assert not select.select([], waiting, [], 0)[1]


def test_l4_udp_to_thousands_of_ports(network: Network) -> None:
    """Conformance L4, small: a datagram each to 3,000 ports, most of them refused; a conversation goes on."""
    with (
        upper_case_server(network) as at,
        network.guest.connect(*at) as talk,
        network.guest.socket(socket.SOCK_DGRAM) as udp,
    ):
        for port in range(20_000, 23_000):
            udp.sendto(b"anyone?", (PUBLIC, port))
            if port % 500 == 0:
                talk.sendall(b"%d" % port)
                assert talk.recv(100) == b"%d" % port
