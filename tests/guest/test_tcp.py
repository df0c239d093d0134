"""TCP between the kernel's stack in the guest and servers on the host: every way to begin and to end."""

from __future__ import annotations

import errno
import select
import socket
import struct
from functools import partial

import pytest

from . import payload
from .lab import Namespace, closing_all, wait_until
from .network import FAR, NO_ROUTE, PROHIBITED, PUBLIC, PUBLIC_TOO, UNREACHABLE, Network

pytestmark = pytest.mark.guest("ip", "curl", "openssl")
HUNDRED_KB = payload.block(0)[:100_000]


def reset(connection: socket.socket) -> None:
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    parts = []
    while part := connection.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


@pytest.fixture
def pair(network: Network):
    """A connection from the guest to the public-looking address: the guest's end and the server's."""
    with network.host.listen(PUBLIC) as listener:
        guest_end = network.guest.connect(*listener.getsockname())
        server_end, _ = listener.accept()
    server_end.settimeout(60)
    with closing_all(guest_end, server_end):
        yield guest_end, server_end


@pytest.mark.parametrize("address", [PUBLIC, PUBLIC_TOO, "host"])
def test_http_and_https(network: Network, address: str) -> None:
    at = network.addresses.host if address == "host" else address
    for scheme in ("http", "https"):
        seen_from = network.curl(f"{scheme}://{at}/peer").split()[0]
        assert seen_from == ("127.0.0.1" if address == "host" else address)


def test_https_by_name(network: Network) -> None:
    assert network.curl("https://www.guest.test/peer").split()[0] == PUBLIC


def test_server_speaks_first(pair) -> None:
    guest, server = pair
    server.sendall(b"220 ready\r\n")
    assert guest.recv(100) == b"220 ready\r\n"
    guest.sendall(b"QUIT\r\n")
    assert server.recv(100) == b"QUIT\r\n"


def test_guest_half_closes_and_reads_on(pair) -> None:
    guest, server = pair
    guest.sendall(b"that is all")
    guest.shutdown(socket.SHUT_WR)
    assert read_all(server) == b"that is all"
    server.sendall(HUNDRED_KB)
    server.close()
    assert read_all(guest) == HUNDRED_KB


def test_server_half_closes_and_reads_on(pair) -> None:
    guest, server = pair
    server.sendall(b"banner")
    server.shutdown(socket.SHUT_WR)
    assert read_all(guest) == b"banner"
    guest.sendall(HUNDRED_KB)
    guest.close()
    assert read_all(server) == HUNDRED_KB


def test_both_half_close_at_once(pair) -> None:
    guest, server = pair
    guest.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)
    assert read_all(guest) == read_all(server) == b""


def test_urgent_data_is_data(pair) -> None:
    guest, server = pair
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    guest.sendall(b"before")
    guest.send(b"!", socket.MSG_OOB)
    guest.sendall(b"after")
    guest.shutdown(socket.SHUT_WR)
    assert read_all(server) == b"before!after"


def test_reset_by_the_server_reaches_the_guest(pair) -> None:
    guest, server = pair
    guest.sendall(b"x")
    assert server.recv(1) == b"x"
    reset(server)
    with pytest.raises(ConnectionResetError):
        read_all(guest)


def test_reset_by_the_guest_reaches_the_server(pair) -> None:
    guest, server = pair
    guest.sendall(b"x")
    assert server.recv(1) == b"x"
    reset(guest)
    with pytest.raises(ConnectionResetError):
        read_all(server)


def test_server_that_resets_on_accept(network: Network) -> None:
    with network.host.listen(PUBLIC) as listener:
        guest = network.guest.connect(*listener.getsockname())
        server, _ = listener.accept()
        reset(server)
    with guest, pytest.raises(ConnectionResetError):
        read_all(guest)


def test_close_with_unread_data_resets(pair) -> None:
    """A server that closes before it has read everything resets (RFC 2525 section 2.17); the guest learns of it."""
    guest, server = pair
    guest.sendall(b"never read")
    wait_until(lambda: select.select([server], [], [], 0)[0], "the data at the server")
    server.close()
    with pytest.raises(ConnectionResetError):
        read_all(guest)


def outcome(guest: Namespace, address: str, port: int) -> str:
    """The errno of a connect, by name; "connected" if it works."""
    try:
        guest.connect(address, port).close()
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else repr(error)
    return "connected"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (PUBLIC, {"ECONNREFUSED"}),
        ("host", {"ECONNREFUSED"}),
        (FAR, {"ECONNREFUSED"}),
        (UNREACHABLE, {"EHOSTUNREACH"}),
        (NO_ROUTE, {"ENETUNREACH"}),
        # EACCES at the host; Linux turns "communication administratively prohibited" (RFC 1812) into EHOSTUNREACH.
        (PROHIBITED, {"EHOSTUNREACH", "EACCES"}),
    ],
)
def test_failed_connects_say_why(network: Network, address: str, expected: set[str]) -> None:
    address = network.addresses.host if address == "host" else address
    assert outcome(network.guest, address, 9) in expected


def test_back_to_back_connections_from_one_port(network: Network) -> None:
    """The same four-tuple again and again: TIME-WAIT on our side must give way (RFC 9293 section 3.6.1, RFC 6191)."""
    with network.host.listen(PUBLIC) as listener:
        for round_number in range(5):
            with network.guest.socket() as guest:
                guest.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                guest.bind((network.addresses.guest, 40_123))
                # The guest's kernel has the old connection until its last FIN is acknowledged, and refuses until then.
                connect = partial(guest.connect_ex, listener.getsockname())
                wait_until(lambda connect=connect: connect() != errno.EADDRNOTAVAIL, "the old connection to end")
                guest.getpeername()
                server, _ = listener.accept()
                with server:
                    guest.sendall(b"%d" % round_number)
                    assert server.recv(10) == b"%d" % round_number
                    # The server ends first, so TIME-WAIT is not in the guest's kernel.
                    server.shutdown(socket.SHUT_WR)
                    assert guest.recv(1) == b""


@pytest.mark.parametrize("sender", ["guest", "server"])
def test_who_does_not_read_stops_the_sender(pair, sender: str) -> None:
    """Back-pressure end to end: little is buffered on the way, and nothing is lost when reading begins."""
    guest, server = pair
    source, drain = (guest, server) if sender == "guest" else (server, guest)
    source.setblocking(False)
    sent, data = 0, memoryview(payload.block(1))
    while select.select([], [source], [], 2.0)[1]:
        sent += source.send(data[sent % payload.BLOCK :][: 1 << 16])
        assert sent < 64 << 20, "64 MiB and still no back-pressure"
    source.shutdown(socket.SHUT_WR)
    received = read_all(drain)
    assert len(received) == sent
    whole, rest = divmod(sent, payload.BLOCK)
    assert received == bytes(data) * whole + bytes(data[:rest])


def test_link_carries_many_sizes(pair) -> None:
    """Echo of writes around the MSS and the TSO size, one at a time."""
    guest, server = pair
    for size in (1, 2, 535, 536, 537, 1447, 1448, 1449, 1460, 1461, 2896, 4096, 65_535, 65_536, 65_549):
        data = payload.block(2)[:size]
        guest.sendall(data)
        got = b""
        while len(got) < size:
            got += server.recv(1 << 17)
        assert got == data
        server.sendall(got)
        back = b""
        while len(back) < size:
            back += guest.recv(1 << 17)
        assert back == data
