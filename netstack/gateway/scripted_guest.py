"""A guest without a kernel: enough ARP, IP, UDP, ICMP and TCP for the demonstration, over a socket that carries frames.

It stands in where network namespaces are forbidden. Its card is one end of a unix datagram pair, which loses and
reorders nothing, so its TCP retransmits nothing and takes segments in order. Frames are made and read by dpkt.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections import deque
from typing import Final

import dpkt

from netstack.gateway.demo_guest import BROADCAST, PING_TIMEOUT, TIMEOUT, Lease

MAC: Final = bytes.fromhex("5a94efe40cee")
WINDOW: Final = 65_535
SEQUENCE_MODULUS: Final = 1 << 32


class ScriptedNetwork:
    """The guest's whole network: `sock` is a connected datagram socket, one datagram a frame."""

    def __init__(self, sock: socket.socket) -> None:
        self.mac = MAC
        self._sock = sock
        self._address = bytes(4)
        self._gateway_mac = BROADCAST
        self._router = ""
        self._next_port = random.randrange(49152, 60000)  # noqa: S311 - nothing to be kept secret
        self.mss = 1460

    # -- frames and packets ------------------------------------------------------------------------------------------

    def send_frame(self, frame: bytes) -> None:
        """Send one Ethernet frame."""
        self._sock.send(frame)

    def receive_frame(self, deadline: float) -> bytes | None:
        """The next frame, None at the deadline (seconds of time.monotonic). ARP is dealt with on the way."""
        while (left := deadline - time.monotonic()) > 0:
            self._sock.settimeout(left)
            try:
                frame = self._sock.recv(65_562)
            except TimeoutError:
                return None
            if not self._answer_arp(frame):
                return frame
        return None

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _answer_arp(self, frame: bytes) -> bool:
        ethernet = dpkt.ethernet.Ethernet(frame)
        if not isinstance(ethernet.data, dpkt.arp.ARP):
            return False
        question = ethernet.data
        if question.op == dpkt.arp.ARP_OP_REQUEST and question.tpa == self._address:
            self._send_arp(dpkt.arp.ARP_OP_REPLY, question.spa, question.sha)
        elif question.op == dpkt.arp.ARP_OP_REPLY and socket.inet_ntoa(question.spa) == self._router:
            self._gateway_mac = question.sha
        return True

    def _send_arp(self, operation: int, address: bytes, mac: bytes) -> None:
        message = dpkt.arp.ARP(op=operation, sha=self.mac, spa=self._address, tha=mac, tpa=address)
        destination = mac if operation == dpkt.arp.ARP_OP_REPLY else BROADCAST
        frame = dpkt.ethernet.Ethernet(src=self.mac, dst=destination, type=dpkt.ethernet.ETH_TYPE_ARP, data=message)
        self.send_frame(bytes(frame))

    def configure(self, lease: Lease) -> None:
        """Take the address and learn the router's MAC address (RFC 826)."""
        self._address = lease.address.ip.packed
        self._router = lease.router
        self.mss = lease.mtu - 40
        self._send_arp(dpkt.arp.ARP_OP_REQUEST, socket.inet_aton(lease.router), bytes(6))
        deadline = time.monotonic() + TIMEOUT
        while self._gateway_mac == BROADCAST:
            if self.receive_frame(min(deadline, time.monotonic() + 0.05)) is None and time.monotonic() > deadline:
                raise TimeoutError(f"{lease.router} does not answer ARP")

    def _send_packet(self, address: str, protocol: int, payload: dpkt.Packet) -> None:
        packet = dpkt.ip.IP(src=self._address, dst=socket.inet_aton(address), p=protocol, ttl=64, data=payload)
        packet.len = len(packet)
        self.send_frame(bytes(dpkt.ethernet.Ethernet(src=self.mac, dst=self._gateway_mac, data=packet)))

    def receive_packet(self, deadline: float) -> dpkt.ip.IP | None:
        """The next IP packet for us, None at the deadline."""
        while frame := self.receive_frame(deadline):
            packet = dpkt.ethernet.Ethernet(frame).data
            if isinstance(packet, dpkt.ip.IP) and packet.dst == self._address:
                return packet
        return None

    def _port(self) -> int:
        self._next_port += 1
        return self._next_port

    # -- what runs on top ----------------------------------------------------------------------------------------------

    def exchange_datagram(self, address: str, port: int, payload: bytes) -> bytes:
        """Send a datagram and wait for one back."""
        own = self._port()
        datagram = dpkt.udp.UDP(sport=own, dport=port, data=payload)
        datagram.ulen = len(datagram)
        self._send_packet(address, dpkt.ip.IP_PROTO_UDP, datagram)
        deadline = time.monotonic() + TIMEOUT
        while packet := self.receive_packet(deadline):
            answer = packet.data
            if isinstance(answer, dpkt.udp.UDP) and (answer.dport, answer.sport) == (own, port):
                return bytes(answer.data)
            _raise_unreachable(answer, struct.pack("!HH", own, port))
        raise TimeoutError(f"no datagram from {address}:{port}")

    def ping(self, address: str, payload: bytes) -> bool:
        """One ICMP echo request; whether its reply came back as it should.

        Raises ConnectionRefusedError when an ICMP unreachable did.
        """
        identifier = self._port() & 0xFFFF
        request = dpkt.icmp.ICMP(type=dpkt.icmp.ICMP_ECHO, data=dpkt.icmp.ICMP.Echo(id=identifier, seq=1, data=payload))
        self._send_packet(address, dpkt.ip.IP_PROTO_ICMP, request)
        deadline = time.monotonic() + PING_TIMEOUT
        while packet := self.receive_packet(deadline):
            reply = packet.data
            _raise_unreachable(reply, struct.pack("!HH", identifier, 1) + payload)
            if isinstance(reply, dpkt.icmp.ICMP) and reply.type == dpkt.icmp.ICMP_ECHOREPLY:
                return bytes(reply.data) == struct.pack("!HH", identifier, 1) + payload
        return False

    def connect(self, address: str, port: int) -> ScriptedStream:
        """A TCP connection. Raises ConnectionRefusedError for a RST."""
        return ScriptedStream(self, address, port, self._port())

    def send_segment(self, address: str, segment: dpkt.tcp.TCP) -> None:
        """Send one TCP segment."""
        self._send_packet(address, dpkt.ip.IP_PROTO_TCP, segment)


def _raise_unreachable(message: object, quoted: bytes) -> None:
    """Raise ConnectionRefusedError for an ICMP unreachable that quotes what we sent."""
    if not isinstance(message, dpkt.icmp.ICMP) or message.type != dpkt.icmp.ICMP_UNREACH:
        return
    if quoted in bytes(message.data):
        raise ConnectionRefusedError(f"ICMP unreachable, code {message.code}")


class ScriptedStream:
    """One TCP connection that we opened. Data goes out within the peer's window and comes in in order."""

    def __init__(self, network: ScriptedNetwork, address: str, port: int, own_port: int) -> None:
        """Three-way handshake (RFC 9293 section 3.5)."""
        self._network = network
        self._address = address
        self._ports = (own_port, port)
        self._sequence = random.getrandbits(32)
        self._acknowledged = self._sequence
        self._expected = 0
        self._peer_window = 0
        self._received: deque[bytes] = deque()
        self._peer_done = False
        mss = struct.pack("!BBH", dpkt.tcp.TCP_OPT_MSS, 4, network.mss)
        self._send(dpkt.tcp.TH_SYN, options=mss)
        self._sequence = (self._sequence + 1) % SEQUENCE_MODULUS
        answer = self._next_segment()
        if answer.flags & dpkt.tcp.TH_RST:
            raise ConnectionRefusedError(f"{address}:{port} refused the connection")
        self._expected = (answer.seq + 1) % SEQUENCE_MODULUS
        self._acknowledged, self._peer_window = answer.ack, answer.win
        self._send(dpkt.tcp.TH_ACK)

    def _send(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        segment = dpkt.tcp.TCP(
            sport=self._ports[0],
            dport=self._ports[1],
            seq=self._sequence,
            ack=self._expected,
            flags=flags,
            win=WINDOW,
            opts=options,
            data=data,
        )
        segment.off = 5 + len(options) // 4
        self._network.send_segment(self._address, segment)

    def _next_segment(self) -> dpkt.tcp.TCP:
        deadline = time.monotonic() + TIMEOUT
        while packet := self._network.receive_packet(deadline):
            segment = packet.data
            if isinstance(segment, dpkt.tcp.TCP) and (segment.dport, segment.sport) == self._ports:
                return segment
        raise TimeoutError(f"nothing more from {self._address}:{self._ports[1]}")

    def _take(self, segment: dpkt.tcp.TCP) -> None:
        if segment.flags & dpkt.tcp.TH_RST:
            raise ConnectionResetError(f"{self._address}:{self._ports[1]} reset the connection")
        self._acknowledged, self._peer_window = segment.ack, segment.win
        if segment.seq != self._expected:
            return
        data = bytes(segment.data)
        finished = bool(segment.flags & dpkt.tcp.TH_FIN)
        if data:
            self._received.append(data)
        if data or finished:
            self._peer_done = finished
            self._expected = (self._expected + len(data) + finished) % SEQUENCE_MODULUS
            self._send(dpkt.tcp.TH_ACK)

    def sendall(self, data: bytes) -> None:
        """Send, waiting for acknowledgements where the peer's window is full."""
        while data:
            in_flight = (self._sequence - self._acknowledged) % SEQUENCE_MODULUS
            size = min(len(data), self._network.mss, self._peer_window - in_flight)
            if size <= 0:
                self._take(self._next_segment())
                continue
            self._send(dpkt.tcp.TH_ACK | dpkt.tcp.TH_PUSH, data[:size])
            self._sequence = (self._sequence + size) % SEQUENCE_MODULUS
            data = data[size:]

    def recv(self, size: int) -> bytes:
        """What came next, at most `size` bytes; none at the end of the stream."""
        while not self._received and not self._peer_done:
            self._take(self._next_segment())
        if not self._received:
            return b""
        data = self._received.popleft()
        if len(data) > size:
            self._received.appendleft(data[size:])
        return data[:size]

    def close(self) -> None:
        """FIN, and wait for the peer's (RFC 9293 section 3.6)."""
        self._send(dpkt.tcp.TH_FIN | dpkt.tcp.TH_ACK)
        self._sequence = (self._sequence + 1) % SEQUENCE_MODULUS
        while not self._peer_done:
            self._take(self._next_segment())
        if self._acknowledged != self._sequence:
            self._take(self._next_segment())
