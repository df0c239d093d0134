"""A guest in memory, speaking frames: ARP, DHCP, TCP, UDP, ping and DNS, for tests that are dialogues.

Its TCP is the engine's own connection turned round (`TcpConnection.connect`): it repeats what is lost, and closes as it
should. It is therefore no independent witness of the engine's TCP; for that there are kernels, and tests/engine. What a
guest must not do is done with `send_frame`.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final

import dns.message
import dns.rdatatype
import trio

from guest_iface.link import whole
from netstack.debug import packets
from netstack.engine import tcp_states as st
from netstack.engine.tcp_connection import TcpConnection
from netstack.engine.tcp_limits import TcpLimits
from netstack.wire import arp, dhcp, ethernet, icmp, ipv4, tcp, udp

if TYPE_CHECKING:
    from netstack.testing.virtual_network import VirtualNetwork

DEFAULT_MAC: Final = "02:00:00:00:00:02"
FIRST_PORT: Final = 40_000
FIRST_SEQUENCE: Final = 1_000
ANSWER_SECONDS: Final = 5.0
"""How long DHCP and ARP are waited for."""
MAX_HEARD: Final = 10_000
"""Frames kept in `heard`."""
WINDOW: Final = 1 << 20

Key = tuple[int, bytes, int]
"""Own port, other address, other port."""


class VirtualConnection(trio.abc.HalfCloseableStream):
    """One TCP connection of a guest's: a stream of trio's, so TLS and HTTP libraries run on it."""

    def __init__(self, guest: VirtualGuest, machine: TcpConnection, urgent: list[bytes]) -> None:
        self._guest = guest
        self.machine = machine
        """The TCP machine, for tests that look into it."""
        self.urgent = urgent
        self._received = bytearray()
        self._peer_finished = False
        self.failure: OSError | None = None
        self.opened = False
        self._changed = trio.Event()

    def settle(self) -> None:
        """Take what the machine has for us."""
        machine = self.machine
        signals, machine.signals = machine.signals, 0
        buffer = machine.receive_buffer
        if buffer.ready:
            chunks, buffer.ready = buffer.ready, []
            data = b"".join(chunks)
            buffer.unsent += len(data)  # counts against the window until it is read
            self._received += data
        if signals & st.OPENED:
            self.opened = True
        if signals & st.PEER_FINISHED:
            self._peer_finished = True
        if signals & st.PEER_RESET:
            refused = not self.opened
            number = errno.ECONNREFUSED if refused else errno.ECONNRESET
            self.fail(OSError(number, "connection refused" if refused else "connection reset by the gateway"))
        if signals & st.GAVE_UP:
            self.fail(TimeoutError(errno.ETIMEDOUT, "the gateway does not answer"))
        self._changed.set()
        self._changed = trio.Event()

    def fail(self, error: OSError) -> None:
        """The connection is over, with an error for whoever waits."""
        self.failure = self.failure or error

    async def until(self, state: str) -> None:
        """Wait until it is "opened". Raises OSError (ConnectionRefusedError, ...) if it does not come to that."""
        while not getattr(self, state):
            if self.failure is not None:
                raise self.failure
            await self._changed.wait()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send; waits while what was sent before is not acknowledged. Raises trio.BrokenResourceError after a reset."""
        await trio.lowlevel.checkpoint()
        rest = memoryview(bytes(data))
        while rest:
            self._check()
            room = self.machine.room
            if not room:
                await self._changed.wait()
                continue
            self.machine.write(bytes(rest[:room]))
            rest = rest[room:]
            self._guest.touch()

    def _check(self) -> None:
        if self.failure is not None:
            raise trio.BrokenResourceError(str(self.failure)) from self.failure

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room."""
        await trio.lowlevel.checkpoint()
        while not self.machine.room and self.failure is None:
            await self._changed.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What came next, b"" at the end. Raises trio.BrokenResourceError after a reset."""
        await trio.lowlevel.checkpoint()
        while not self._received:
            self._check()
            if self._peer_finished:
                return b""
            await self._changed.wait()
        data = bytes(self._received[:max_bytes])
        del self._received[: len(data)]
        self.machine.receive_buffer.unsent -= len(data)
        self._guest.touch()
        return data

    async def receive_all(self) -> bytes:
        """Everything up to the end of the stream."""
        data = b""
        while piece := await self.receive_some():
            data += piece
        return data

    async def send_eof(self) -> None:
        """End this direction (FIN)."""
        await trio.lowlevel.checkpoint()
        self.machine.finish()
        self._guest.touch()

    def reset(self) -> None:
        """Reset the connection (RST)."""
        self.machine.abort()
        self.fail(ConnectionResetError(errno.ECONNRESET, "reset by the guest"))
        self._guest.touch()

    async def aclose(self) -> None:
        """Finish: FIN, if it was not sent. What is on its way arrives."""
        self.machine.finish()
        self._guest.touch()
        await trio.lowlevel.checkpoint()


class VirtualDatagrams:
    """A UDP socket of a guest's."""

    def __init__(self, guest: VirtualGuest, port: int) -> None:
        self._guest = guest
        self.port = port
        self._send, self._receive = trio.open_memory_channel[tuple[bytes, str, int] | OSError](1024)

    def send_to(self, payload: bytes, address: str, port: int) -> None:
        """Send one datagram."""
        destination = socket.inet_aton(address)
        datagram = udp.build(self._guest.ip, self.port, destination, port, payload)
        self._guest.send_packet(destination, ipv4.UDP, datagram)

    def take(self, answer: tuple[bytes, str, int] | OSError) -> None:
        """A datagram, or an ICMP error, has come; beyond 1,024 that wait it is lost."""
        try:
            self._send.send_nowait(answer)
        except trio.WouldBlock:
            return

    async def receive(self) -> tuple[bytes, str, int]:
        """The next datagram: payload, address, port. Raises OSError for an ICMP error about what was sent."""
        answer = await self._receive.receive()
        if isinstance(answer, OSError):
            raise answer
        return answer


class VirtualGuest:
    """One machine on a VirtualNetwork. Its address is the network's guest address, unless `address` or `lease` says."""

    def __init__(self, *, mac: str = DEFAULT_MAC, address: str | None = None) -> None:
        """`mac` with colons; `address` dotted."""
        self.mac = bytes.fromhex(mac.replace(":", ""))
        self.heard: deque[bytes] = deque(maxlen=MAX_HEARD)
        """The frames that came, the latest last."""
        self.ip = socket.inet_aton(address) if address else bytes(4)
        self._network: VirtualNetwork | None = None
        self._gateway_mac = b""
        self._waiting: list[bytes] = []
        self._port = FIRST_PORT
        self._sequence = 0
        self._connections: dict[Key, VirtualConnection] = {}
        self._sockets: dict[int, VirtualDatagrams] = {}
        self._pings: dict[tuple[int, int], float | OSError] = {}
        self._identifier = 0
        self._changed = trio.Event()

    @property
    def network(self) -> VirtualNetwork:
        """The network it is on. Raises RuntimeError before it is attached."""
        if self._network is None:
            raise RuntimeError("the guest is on no network: VirtualNetwork.attach(guest) puts it there")
        return self._network

    @property
    def address(self) -> str:
        """Its address, dotted."""
        return socket.inet_ntoa(self.ip)

    def attach(self, network: VirtualNetwork) -> None:
        """Called by VirtualNetwork.attach."""
        self._network = network
        if not any(self.ip):
            self.ip = network.settings.device_ip

    # -- frames --------------------------------------------------------------------------------------------------------

    def send_frame(self, frame: bytes) -> None:
        """Put any bytes on the wire."""
        self.network.send(frame)
        self.network.flush()

    def send_packet(self, destination: bytes, protocol: int, payload: bytes) -> None:
        """Send an IP packet; the gateway's MAC is asked for first, if it is not known."""
        packet = ipv4.build(self.ip, destination, protocol, payload)
        if not self._gateway_mac:
            self._waiting.append(packet)
            self._ask_for_gateway()
        else:
            self.network.send(ethernet.frame(self._gateway_mac, self.mac, ethernet.IPV4, packet))
        self.network.flush()

    def _ask_for_gateway(self) -> None:
        gateway = self.network.settings.gateway_ip
        request = arp.build(arp.REQUEST, self.mac, self.ip, bytes(6), gateway)
        self.network.send(ethernet.frame(ethernet.BROADCAST, self.mac, ethernet.ARP, request))

    def receive_frame(self, frame: bytes, now: float) -> None:
        """A frame came: called by the network."""
        self.heard.append(frame)
        packet = packets.read(frame)
        if packet.kind == "arp":
            self._receive_arp(frame, packet)
        elif packet.kind == "tcp" and not packet.fault:
            self._receive_segment(packet, now)
        elif packet.kind == "udp" and packet.destination_port in self._sockets:
            source = socket.inet_ntoa(packet.source)
            self._sockets[packet.destination_port].take((packet.body, source, packet.source_port))
        elif packet.kind == "icmp":
            self._receive_icmp(packet, now)
        self._changed.set()
        self._changed = trio.Event()

    def _receive_arp(self, frame: bytes, packet: packets.Packet) -> None:
        if packet.flags == arp.REQUEST and packet.destination == self.ip:
            reply = arp.build(arp.REPLY, self.mac, self.ip, frame[6:12], packet.source)
            self.network.send(ethernet.frame(frame[6:12], self.mac, ethernet.ARP, reply))
        elif packet.flags == arp.REPLY and packet.source == self.network.settings.gateway_ip:
            self._gateway_mac = frame[6:12]
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                self.network.send(ethernet.frame(self._gateway_mac, self.mac, ethernet.IPV4, each))

    # -- addresses -----------------------------------------------------------------------------------------------------

    async def lease(self) -> str:
        """Ask for an address as a booting machine does, and use it. Raises TimeoutError."""
        self.ip = bytes(4)
        offer = await self._ask_dhcp({dhcp.MESSAGE_TYPE: bytes((dhcp.DISCOVER,))}, dhcp.OFFER)
        wanted = {
            dhcp.MESSAGE_TYPE: bytes((dhcp.REQUEST,)),
            dhcp.REQUESTED_ADDRESS: offer.yiaddr,
            dhcp.SERVER_IDENTIFIER: offer.options[dhcp.SERVER_IDENTIFIER],
        }
        answer = await self._ask_dhcp(wanted, dhcp.ACK)
        self.ip = answer.yiaddr
        return self.address

    async def _ask_dhcp(self, options: dict[int, bytes], wanted: int) -> dhcp.DhcpMessage:
        message = dhcp.build(dhcp.DhcpMessage(dhcp.BOOT_REQUEST, b"test", self.mac, options))
        datagram = udp.build(bytes(4), dhcp.CLIENT_PORT, b"\xff" * 4, dhcp.SERVER_PORT, message)
        packet = ipv4.build(bytes(4), b"\xff" * 4, ipv4.UDP, datagram)
        sockets = VirtualDatagrams(self, dhcp.CLIENT_PORT)
        self._sockets[dhcp.CLIENT_PORT] = sockets
        try:
            self.send_frame(ethernet.frame(ethernet.BROADCAST, self.mac, ethernet.IPV4, packet))
            with trio.fail_after(ANSWER_SECONDS):
                while True:
                    payload, _, _ = await sockets.receive()
                    answer = dhcp.parse(payload)
                    if isinstance(answer, dhcp.DhcpMessage) and answer.options[dhcp.MESSAGE_TYPE][0] == wanted:
                        return answer
        except trio.TooSlowError:
            raise TimeoutError("no answer from the DHCP server") from None
        finally:
            del self._sockets[dhcp.CLIENT_PORT]

    async def _find_gateway(self) -> bytes:
        if not self._gateway_mac:
            self._ask_for_gateway()
            self.network.flush()
            with trio.move_on_after(ANSWER_SECONDS):
                while not self._gateway_mac:
                    await self._changed.wait()
        if not self._gateway_mac:
            raise TimeoutError("the gateway does not answer ARP")
        return self._gateway_mac

    # -- TCP -----------------------------------------------------------------------------------------------------------

    async def connect(self, address: str, port: int) -> VirtualConnection:
        """Open a connection. Raises ConnectionRefusedError for a reset, OSError for an ICMP error, TimeoutError."""
        gateway_mac = await self._find_gateway()
        destination = socket.inet_aton(address)
        self._port += 1
        self._sequence += FIRST_SEQUENCE
        writer = tcp.SegmentWriter(
            destination_mac=gateway_mac,
            source_mac=self.mac,
            source=self.ip,
            destination=destination,
            source_port=self._port,
            destination_port=port,
        )
        urgent: list[bytes] = []
        limits = TcpLimits(mss=self.network.settings.link.mtu - 40, max_receive_window=WINDOW)
        machine = TcpConnection(writer, limits, self._sequence, urgent)
        connection = VirtualConnection(self, machine, urgent)
        key = (self._port, destination, port)
        self._connections[key] = connection
        machine.connect(self.network.now())
        self.touch()
        await connection.until("opened")
        return connection

    def _receive_segment(self, packet: packets.Packet, now: float) -> None:
        connection = self._connections.get((packet.destination_port, packet.source, packet.source_port))
        if connection is not None:
            connection.machine.receive(
                packet.sequence, packet.acknowledgement, packet.flags, packet.window, packet.options, packet.body, now
            )

    def touch(self) -> None:
        """A connection has something to say."""
        self.network.flush()

    def speak(self, now: float) -> None:
        """Put on the wire what connections have to say, timers included: called by the network."""
        frames: list[tcp.Frame] = []
        for key, connection in list(self._connections.items()):
            machine = connection.machine
            if machine.deadline <= now:
                machine.advance(now)
            connection.settle()
            frames += connection.urgent
            connection.urgent.clear()
            machine.output(frames, 1 << 30, now)
            if machine.state == st.CLOSED:
                connection.settle()
                del self._connections[key]
        for frame in frames:
            self.network.send(whole(frame))

    @property
    def deadline(self) -> float:
        """When a connection wants to be woken."""
        return min((each.machine.deadline for each in self._connections.values()), default=inf)

    # -- UDP, DNS, ping ------------------------------------------------------------------------------------------------

    def open_datagrams(self, port: int | None = None) -> VirtualDatagrams:
        """A UDP socket; on a port of its own unless told."""
        if port is None:
            self._port += 1
            port = self._port
        made = self._sockets[port] = VirtualDatagrams(self, port)
        return made

    async def query(self, message: bytes) -> bytes:
        """Send a DNS message to the gateway and give its answer. Raises TimeoutError."""
        asked = self.open_datagrams()
        try:
            asked.send_to(message, socket.inet_ntoa(self.network.settings.gateway_ip), 53)
            with trio.fail_after(ANSWER_SECONDS):
                answer, _, _ = await asked.receive()
        except trio.TooSlowError:
            raise TimeoutError("no answer from the gateway's DNS") from None
        finally:
            del self._sockets[asked.port]
        return answer

    async def resolve(self, name: str, kind: str = "A") -> list[str]:
        """The records of one type, as text; an empty list for an answer without any."""
        self._sequence += 1
        answer = dns.message.from_wire(
            await self.query(dns.message.make_query(name, kind, id=self._sequence & 0xFFFF).to_wire())
        )
        wanted = dns.rdatatype.from_text(kind)
        return [item.to_text() for each in answer.answer if each.rdtype == wanted for item in each]

    async def ping(self, address: str, payload: bytes = b"netstack") -> float:
        """One echo request; the seconds until the reply. Raises OSError for an ICMP error, TimeoutError after 5 s."""
        destination = socket.inet_aton(address)
        self._identifier += 1
        place = (self._identifier, 1)
        sent = self.network.now()
        message = icmp.build_echo(request=True, identifier=place[0], sequence=place[1], payload=payload)
        self.send_packet(destination, ipv4.ICMP, message)
        with trio.move_on_after(ANSWER_SECONDS):
            while place not in self._pings:
                await self._changed.wait()
        came = self._pings.pop(place, None)
        if came is None:
            raise TimeoutError(f"{address} does not answer")
        if isinstance(came, OSError):
            raise came
        return came - sent

    def _receive_icmp(self, packet: packets.Packet, now: float) -> None:
        if packet.flags >> 8 == icmp.ECHO_REPLY:
            self._pings[packet.source_port, packet.destination_port] = now
            return
        quoted = packets.quoted(packet)
        if quoted is None:
            return
        error = _icmp_error(packet)
        if quoted.kind == "icmp":
            self._pings[quoted.source_port, quoted.destination_port] = error
        elif quoted.kind == "udp" and quoted.source_port in self._sockets:
            self._sockets[quoted.source_port].take(error)
        elif quoted.kind == "tcp":
            key = (quoted.source_port, quoted.destination, quoted.destination_port)
            if (connection := self._connections.get(key)) is not None and not connection.opened:
                connection.fail(error)


def _icmp_error(packet: packets.Packet) -> OSError:
    """What a program would get of its kernel."""
    kind, code = packet.flags >> 8, packet.flags & 0xFF
    if kind == icmp.TIME_EXCEEDED:
        return OSError(errno.EHOSTUNREACH, "time to live exceeded")
    words = {
        icmp.NET_UNREACHABLE: (errno.ENETUNREACH, "network unreachable"),
        icmp.PORT_UNREACHABLE: (errno.ECONNREFUSED, "port unreachable"),
        icmp.ADMINISTRATIVELY_PROHIBITED: (errno.EACCES, "prohibited"),
        icmp.FRAGMENTATION_NEEDED: (errno.EMSGSIZE, "message too long"),
    }
    return OSError(*words.get(code, (errno.EHOSTUNREACH, "host unreachable")))
