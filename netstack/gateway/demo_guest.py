"""The demonstration's guest: a program that is given a network card and reports, a JSON line a step, what it got.

In a network namespace the card is a device and the Linux kernel does TCP and IP. Where namespaces are forbidden the
card is a socket that carries frames, and `scripted_guest` does it. None of our wire code runs here: messages are made
by dpkt and dnspython, so the guest is an independent witness.

    python -m netstack.gateway.demo_guest --device eth0 PLAN      (PLAN: a JSON object, see Plan)
    python -m netstack.gateway.demo_guest --fd 5 PLAN

After each line it waits for one on standard input: whoever reads the report can tell which step is next, and change
the policy between the acts, which a line `{"act": 2}` parts.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import io
import ipaddress
import json
import random
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

import dns.message
import dns.rcode
import dpkt

TIMEOUT: Final = 10.0
"""Seconds a step may take."""
PING_TIMEOUT: Final = 2.0
T = TypeVar("T")
BROADCAST: Final = b"\xff" * 6
DHCP_OPTIONS: Final = bytes((1, 3, 6, 26, 51, 119))


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask for. Without `pings_leave` the ping beyond us is left out.

    In the second act `web_name` and `listed_address` are allowed, the other name and address are not.
    """

    web_name: str
    missing_name: str
    local_name: str
    http_port: int
    https_port: int
    closed_port: int
    certificate: str
    page_sha256: str
    pings_leave: bool
    listed_address: str
    other_name: str
    other_address: str


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the report. `milliseconds` is None for a step that was left out."""

    name: str
    asked: str
    answer: str
    state: str
    milliseconds: float | None


@dataclass(frozen=True, slots=True)
class Lease:
    """What DHCP gave."""

    address: ipaddress.IPv4Interface
    router: str
    resolver: str
    mtu: int
    seconds: int
    mac: bytes


class Stream(Protocol):
    """A TCP connection as a program sees it."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of it."""

    def recv(self, size: int, /) -> bytes:
        """What came next, at most `size` bytes; none at the end."""

    def close(self) -> None:
        """End both directions."""


class Network(Protocol):
    """A network card with an address, and what is on top of it."""

    mac: bytes

    def send_frame(self, frame: bytes) -> None:
        """Send an Ethernet frame."""

    def receive_frame(self, deadline: float) -> bytes | None:
        """The next frame, None at the deadline (seconds of time.monotonic)."""

    def configure(self, lease: Lease) -> None:
        """Take the lease's address and route."""

    def connect(self, address: str, port: int) -> Stream:
        """Open a TCP connection. Raises ConnectionRefusedError, TimeoutError."""

    def exchange_datagram(self, address: str, port: int, payload: bytes) -> bytes:
        """Send a UDP datagram and wait for one back. Raises TimeoutError, ConnectionRefusedError (ICMP unreachable)."""

    def ping(self, address: str, payload: bytes) -> bool:
        """One ICMP echo request; whether its reply came back as it should.

        Raises ConnectionRefusedError when an ICMP unreachable did.
        """

    def close(self) -> None:
        """Let the card go."""


def get_lease(network: Network) -> Lease:
    """DISCOVER, OFFER, REQUEST, ACK (RFC 2131 section 3.1) in frames. Raises TimeoutError or ValueError."""
    number = random.getrandbits(32)
    offer = _ask_dhcp(network, number, dpkt.dhcp.DHCPDISCOVER, [])
    server = dict(offer.opts)[dpkt.dhcp.DHCP_OPT_SERVER_ID]
    wanted = [(dpkt.dhcp.DHCP_OPT_REQ_IP, offer.yiaddr.to_bytes(4, "big")), (dpkt.dhcp.DHCP_OPT_SERVER_ID, server)]
    answer = _ask_dhcp(network, number, dpkt.dhcp.DHCPREQUEST, wanted)
    options = dict(answer.opts)
    if options[dpkt.dhcp.DHCP_OPT_MSGTYPE] != bytes((dpkt.dhcp.DHCPACK,)):
        raise ValueError("the DHCP server refused its own offer")
    address = socket.inet_ntoa(answer.yiaddr.to_bytes(4, "big"))
    mask = socket.inet_ntoa(options[dpkt.dhcp.DHCP_OPT_NETMASK])
    return Lease(
        address=ipaddress.IPv4Interface(f"{address}/{mask}"),
        router=socket.inet_ntoa(options[dpkt.dhcp.DHCP_OPT_ROUTER][:4]),
        resolver=socket.inet_ntoa(options[dpkt.dhcp.DHCP_OPT_DNS_SVRS][:4]),
        mtu=int.from_bytes(options[dpkt.dhcp.DHCP_OPT_MTUSIZE], "big"),
        seconds=int.from_bytes(options[dpkt.dhcp.DHCP_OPT_LEASE_SEC], "big"),
        mac=network.mac,
    )


def _ask_dhcp(network: Network, number: int, kind: int, options: list[tuple[int, bytes]]) -> dpkt.dhcp.DHCP:
    message = dpkt.dhcp.DHCP(
        op=dpkt.dhcp.DHCP_OP_REQUEST,
        xid=number,
        chaddr=network.mac,
        opts=[
            (dpkt.dhcp.DHCP_OPT_MSGTYPE, bytes((kind,))),
            *options,
            (dpkt.dhcp.DHCP_OPT_PARAM_REQ, DHCP_OPTIONS),
        ],
    )
    datagram = dpkt.udp.UDP(sport=68, dport=67, data=bytes(message))
    datagram.ulen = len(datagram)
    packet = dpkt.ip.IP(src=bytes(4), dst=b"\xff" * 4, p=dpkt.ip.IP_PROTO_UDP, data=datagram)
    packet.len = len(packet)
    network.send_frame(bytes(dpkt.ethernet.Ethernet(src=network.mac, dst=BROADCAST, data=packet)))
    deadline = time.monotonic() + TIMEOUT
    while frame := network.receive_frame(deadline):
        try:
            packet = dpkt.ethernet.Ethernet(frame).data
            if isinstance(packet.data, dpkt.udp.UDP) and packet.data.dport == 68:
                answer = dpkt.dhcp.DHCP(packet.data.data)
                if answer.xid == number:
                    return answer
        except (dpkt.UnpackError, AttributeError):
            continue
    raise TimeoutError("no answer from a DHCP server")


def resolve(network: Network, resolver: str, name: str, qtype: str = "A") -> tuple[str, list[str]]:
    """Ask for a name's records of a type. The response code in words, and the records."""
    query = dns.message.make_query(name, qtype)
    answer = dns.message.from_wire(network.exchange_datagram(resolver, 53, query.to_wire()))
    wanted = query.question[0].rdtype
    found = [item.to_text() for rrset in answer.answer if rrset.rdtype == wanted for item in rrset]
    return dns.rcode.to_text(answer.rcode()), found


class TlsStream:
    """TLS over any Stream, certificate and name verified."""

    def __init__(self, stream: Stream, context: ssl.SSLContext, name: str) -> None:
        self._stream = stream
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        self._drive(self._tls.do_handshake)

    @property
    def version(self) -> str:
        """As in TLSv1.3."""
        return self._tls.version() or "no TLS"

    def _drive(self, action: Callable[[], T]) -> T:
        while True:
            try:
                result = action()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._stream.recv(65536)
                if data:
                    self._in.write(data)
                else:
                    self._in.write_eof()
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        if self._out.pending:
            self._stream.sendall(self._out.read())

    def sendall(self, data: bytes) -> None:
        """Encrypt and send."""
        self._drive(lambda: self._tls.write(data))

    def recv(self, size: int) -> bytes:
        """Decrypted bytes; none at the end, with or without the peer's closing alert."""
        try:
            return self._drive(lambda: self._tls.read(size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def close(self) -> None:
        """Close the connection beneath."""
        self._stream.close()


class _Recorded:
    """What http.client wants of a socket, once everything was received."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def fetch(stream: Stream, host: str) -> tuple[int, bytes]:
    """GET / of a server that closes the connection after its answer. The status and the body."""
    try:
        stream.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        received = bytearray()
        while data := stream.recv(65536):
            received += data
    finally:
        stream.close()
    response = http.client.HTTPResponse(_Recorded(bytes(received)))  # type: ignore[arg-type]  # only makefile is used
    response.begin()
    return response.status, response.read()


class Act:
    """What the steps of both acts share: each is timed, and an error becomes its answer."""

    def __init__(self, network: Network, plan: Plan) -> None:
        self.network = network
        self.plan = plan
        self.lease: Lease | None = None
        self.address = ""
        """What `web_name` resolved to."""

    def step(self, name: str, asked: str, action: Callable[[], str]) -> Step:
        """Carry out one step. `action` gives what it got, or raises."""
        started = time.monotonic()
        try:
            answer, state = action(), "ok"
        except (OSError, ValueError, KeyError, dns.exception.DNSException, http.client.HTTPException) as error:
            answer, state = f"{type(error).__name__}: {error}", "failed"
        return Step(name, asked, answer, state, round((time.monotonic() - started) * 1000, 1))

    def resolve(self, name: str, qtype: str = "A") -> tuple[str, list[str]]:
        """Ask the resolver of the lease."""
        return resolve(self.network, self.lease.resolver if self.lease else "", name, qtype)

    def fetch(self, address: str, port: int, host: str) -> str:
        """The page by HTTP from there, asked for as `host`."""
        return self._check_page(*fetch(self.network.connect(address, port), host))

    def fetch_securely(self, address: str, port: int, name: str) -> str:
        """The page by HTTPS from there; the certificate has to be the one of `name`."""
        context = ssl.create_default_context(cafile=self.plan.certificate)
        secure = TlsStream(self.network.connect(address, port), context, name)
        version = secure.version
        page = self._check_page(*fetch(secure, name))
        return f"{page}, {version}, certificate verified"

    def _check_page(self, status: int, body: bytes) -> str:
        if hashlib.sha256(body).hexdigest() != self.plan.page_sha256:
            raise ValueError(f"{status}, {len(body)} bytes that are not the page")
        return f"{status}, {len(body)} bytes, sha256 as served"

    def get_refused(self, address: str, port: int) -> str:
        """Connect, and be refused."""
        try:
            self.network.connect(address, port).close()
        except ConnectionRefusedError:
            return "connection refused (RST)"
        raise ValueError("the connection was accepted")


class FullAccess(Act):
    """The first act: no list, everything is reached."""

    def steps(self) -> Iterator[Step]:
        """Take them one by one; without a lease there is only the first."""
        plan = self.plan
        yield self.step("lease", "DHCP DISCOVER, REQUEST", self._get_lease)
        if self.lease is None:
            return
        router = self.lease.router
        yield self.step("local name", f"DNS A {plan.local_name}", partial(self._resolve, plan.local_name, local=True))
        yield self.step("forwarded name", f"DNS A {plan.web_name}", partial(self._resolve, plan.web_name))
        yield self.step("no such name", f"DNS A {plan.missing_name}", self._miss)
        if self.address:
            http = (self.address, plan.http_port, plan.web_name)
            https = (self.address, plan.https_port, plan.web_name)
            yield self.step("web page", _url("http", *http[1:]), partial(self.fetch, *http))
            yield self.step("web page, TLS", _url("https", *https[1:]), partial(self.fetch_securely, *https))
        yield self.step("ping, gateway", f"ICMP echo {router}", partial(self._ping, router))
        if self.address:
            if plan.pings_leave:
                yield self.step("ping, beyond", f"ICMP echo {self.address}", partial(self._ping, self.address))
            else:
                why = "left out: this host gives us no ping sockets (netstack doctor says how to change that)"
                yield Step("ping, beyond", f"ICMP echo {self.address}", why, "skipped", None)
            closed = plan.closed_port
            refused = partial(self.get_refused, self.address, closed)
            yield self.step("refused port", f"TCP {self.address}:{closed}", refused)

    def _get_lease(self) -> str:
        lease = get_lease(self.network)
        self.network.configure(lease)
        self.lease = lease
        return f"{lease.address}, router and DNS {lease.router}, MTU {lease.mtu}, for {lease.seconds} s"

    def _resolve(self, name: str, *, local: bool = False) -> str:
        rcode, found = self.resolve(name)
        if not found:
            raise ValueError(f"{rcode} without an address")
        if not local:
            self.address = found[0]
        return f"{rcode}, {', '.join(found)}"

    def _miss(self) -> str:
        rcode, found = self.resolve(self.plan.missing_name)
        if rcode != "NXDOMAIN" or found:
            raise ValueError(f"{rcode}, expected NXDOMAIN")
        return rcode

    def _ping(self, address: str) -> str:
        payload = bytes(range(48))
        if not self.network.ping(address, payload):
            raise TimeoutError(f"no reply within {PING_TIMEOUT:.0f} s")
        return f"reply with the same {len(payload)} bytes"


def _url(scheme: str, port: int, name: str) -> str:
    return f"{scheme}://{name}/" if port in (80, 443) else f"{scheme}://{name}:{port}/"


class KernelNetwork:
    """A device of this network namespace. DHCP goes through a packet socket, all else through the kernel's own."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(dpkt.ethernet.ETH_TYPE_IP))
        self._packets.bind((device, dpkt.ethernet.ETH_TYPE_IP))
        self.mac: bytes = self._packets.getsockname()[4]

    def send_frame(self, frame: bytes) -> None:
        """Send an Ethernet frame past the kernel's IP."""
        self._packets.send(frame)

    def receive_frame(self, deadline: float) -> bytes | None:
        """The next IP frame, None at the deadline (seconds of time.monotonic)."""
        self._packets.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            return self._packets.recv(65536)
        except TimeoutError:
            return None

    def close(self) -> None:
        """Close the packet socket; the device stays as it is."""
        self._packets.close()

    def configure(self, lease: Lease) -> None:
        """Give the device its address and the default route."""
        from guest_iface.namespaces import configure_device

        configure_device(
            self._device, lease.address.ip.packed, lease.address.network.prefixlen, socket.inet_aton(lease.router)
        )

    def connect(self, address: str, port: int) -> Stream:
        """A TCP connection of the kernel's."""
        return socket.create_connection((address, port), timeout=TIMEOUT)

    def exchange_datagram(self, address: str, port: int, payload: bytes) -> bytes:
        """Send a datagram and wait for one back."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect((address, port))
            sock.send(payload)
            return sock.recv(65536)

    def ping(self, address: str, payload: bytes) -> bool:
        """One ICMP echo request through a raw socket; whether its reply came back as it should.

        Raises ConnectionRefusedError when an ICMP unreachable did.
        """
        identifier = random.getrandbits(16)
        request = dpkt.icmp.ICMP(type=dpkt.icmp.ICMP_ECHO, data=dpkt.icmp.ICMP.Echo(id=identifier, seq=1, data=payload))
        wanted = struct.pack("!HH", identifier, 1) + payload
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.sendto(bytes(request), (address, 0))
            deadline = time.monotonic() + PING_TIMEOUT
            while (left := deadline - time.monotonic()) > 0:
                sock.settimeout(left)
                try:
                    packet, sender = sock.recvfrom(65536)
                except TimeoutError:
                    return False
                message = packet[(packet[0] & 0x0F) * 4 :]
                if message[0] == dpkt.icmp.ICMP_UNREACH and message.endswith(payload):
                    raise ConnectionRefusedError(f"ICMP unreachable, code {message[1]}")
                if sender[0] == address and message[0] == dpkt.icmp.ICMP_ECHOREPLY and message[4:] == wanted:
                    return True
        return False


def main() -> None:
    """Carry out the plan and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device")
    parser.add_argument("--fd", type=int)
    parser.add_argument("plan")
    arguments = parser.parse_args()
    network: Network
    if arguments.device:
        network = KernelNetwork(arguments.device)
    else:
        from netstack.gateway.scripted_guest import ScriptedNetwork

        network = ScriptedNetwork(socket.socket(fileno=arguments.fd))
    from netstack.gateway.demo_listed import OnlyListed

    with contextlib.closing(network):
        plan = Plan(**json.loads(arguments.plan))
        first = FullAccess(network, plan)
        for step in first.steps():
            _tell(asdict(step))
        if first.address:
            _tell({"act": 2})
            for step in OnlyListed(network, plan, first.lease).steps():
                _tell(asdict(step))


def _tell(line: dict[str, object]) -> None:
    """Write a line, and wait until it was read."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    main()
