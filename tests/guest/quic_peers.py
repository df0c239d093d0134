"""QUIC by aioquic at both ends of the lab: a client on a guest's socket, a server on a thread of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, QuicEvent, StreamDataReceived
from aioquic.quic.packet import QuicPacketType, pull_quic_header

from .lab import DEADLINE, Namespace

ALPN = ["hq-interop"]
V1, V2 = 0x00000001, 0x6B3343CF
_CONNECTION_ID = 8


def _events(connection: QuicConnection) -> list[QuicEvent]:
    found = []
    while (event := connection.next_event()) is not None:
        found.append(event)
    return found


def fetch(
    sock: socket.socket, address: str, name: str, data: bytes, *, trust: Path, version: int = V1, large: bool = False
) -> bytes:
    """Connect to `address`:443, ask for `name`, say `data` on a stream; what is said back until its end.

    `large`: a hello over several datagrams. Raises what the socket does: ConnectionRefusedError for a port that is
    unreachable; AssertionError when the other end terminates.
    """
    configuration = QuicConfiguration(
        is_client=True,
        server_name=name,
        alpn_protocols=ALPN,
        cafile=str(trust),
        original_version=version,
        supported_versions=[version],
        quantum_readiness_test=large,
    )
    connection = QuicConnection(configuration=configuration)
    sock.connect((address, 443))
    connection.connect((address, 443), now=time.monotonic())
    said = b""
    limit = time.monotonic() + DEADLINE
    while time.monotonic() < limit:
        now = time.monotonic()
        for datagram, _ in connection.datagrams_to_send(now):
            sock.send(datagram)
        due = connection.get_timer()
        sock.settimeout(max(0.001, min(limit, due if due is not None else limit) - now))
        try:
            connection.receive_datagram(sock.recv(65_536), (address, 443), time.monotonic())
        except TimeoutError:
            connection.handle_timer(time.monotonic())
        for event in _events(connection):
            assert not isinstance(event, ConnectionTerminated), event
            if isinstance(event, HandshakeCompleted):
                connection.send_stream_data(0, data, end_stream=True)
            elif isinstance(event, StreamDataReceived):
                said += event.data
                if event.end_stream:
                    connection.close()
                    for datagram, _ in connection.datagrams_to_send(time.monotonic()):
                        sock.send(datagram)
                    return said
    raise AssertionError(f"QUIC with {name} at {address} hangs")


class QuicServer:
    """Port 443 of one address; says back `ADDRESS: ` and what it was told.

    `datagrams` counts what came, `versions` has that of each connection.
    """

    def __init__(self, host: Namespace, address: str, certificate: Path, key: Path) -> None:
        self.address = address
        self.datagrams = 0
        self.versions: list[int] = []
        self._configuration = QuicConfiguration(is_client=False, alpn_protocols=ALPN)
        self._configuration.load_cert_chain(certificate, key)
        self._connections: dict[tuple[str, int], QuicConnection] = {}
        self._stopped = False
        self._socket = host.socket(socket.SOCK_DGRAM)
        self._socket.bind((address, 443))
        self._socket.settimeout(0.05)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """Say nothing more to those who came so far: a connection that ended is not kept alive by repetitions."""
        self._connections = {}

    def close(self) -> None:
        """Stop."""
        self._stopped = True
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._stopped:
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                self._receive(*self._socket.recvfrom(65_536))
            for peer, connection in list(self._connections.items()):
                due = connection.get_timer()
                if due is not None and due <= time.monotonic():
                    connection.handle_timer(time.monotonic())
                self._step(peer, connection)

    def _receive(self, data: bytes, peer: tuple[str, int]) -> None:
        self.datagrams += 1
        connection = self._connections.get(peer)
        if connection is None:
            header = pull_quic_header(Buffer(data=data), host_cid_length=_CONNECTION_ID)
            if header.packet_type != QuicPacketType.INITIAL:
                return  # the end of a connection that is forgotten
            self.versions.append(header.version or 0)
            connection = self._connections[peer] = QuicConnection(
                configuration=self._configuration, original_destination_connection_id=header.destination_cid
            )
        connection.receive_datagram(data, peer, time.monotonic())
        self._step(peer, connection)

    def _step(self, peer: tuple[str, int], connection: QuicConnection) -> None:
        for event in _events(connection):
            if isinstance(event, StreamDataReceived):
                answer = f"{self.address}: ".encode() + event.data
                connection.send_stream_data(event.stream_id, answer, end_stream=event.end_stream)
            elif isinstance(event, ConnectionTerminated):
                self._connections.pop(peer, None)
        for datagram, _ in connection.datagrams_to_send(time.monotonic()):
            self._socket.sendto(datagram, peer)
