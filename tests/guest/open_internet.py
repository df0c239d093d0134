"""An Internet of public-looking addresses inside one namespace, where every connection that arrives is noted.

Under a list a name opens public addresses only, and those that tests usually take are reserved. So the hosts here have
real ones, on the namespace's loopback; nothing leaves it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dns.message
import dns.rdatatype
import dns.rrset

from .lab import Lab, Namespace, Process, wait_until
from .network import HERE, Network, start_network

RULES = (
    "real.test,other.test,two.test,*.wild.test,inside.test,metadata.test,loopback.test,shell.test:2222,"
    "104.16.132.229:8080"
)
"""What most guests here are allowed."""
SITE, SITE_TOO, ATTACKER = "93.184.216.34", "104.16.132.229", "151.101.1.6"
PRIVATE, METADATA, AZURE, CGNAT = "10.0.0.7", "169.254.169.254", "168.63.129.16", "100.100.100.200"
ADDRESSES = (SITE, SITE_TOO, ATTACKER, PRIVATE, METADATA, AZURE, CGNAT)
NAMES = {
    "real.test": [SITE],
    "other.test": [SITE],
    "two.test": [SITE, SITE_TOO],
    "shell.test": [SITE],
    "evil.test": [ATTACKER],
    "wild.test": [SITE],
    "a.wild.test": [SITE],
    "deep.a.wild.test": [SITE_TOO],
    "inside.test": [PRIVATE],
    "metadata.test": [METADATA],
    "loopback.test": ["127.0.0.1"],
}
BANNER = b"SSH-2.0-shell.test\r\n"
FRAME = b"\x81\x85\x01\x02\x03\x04igoho"
"""A masked WebSocket text frame of a client, `hello`."""

Talk = Callable[[socket.socket], None]


@dataclass
class Visit:
    """A connection that arrived somewhere."""

    address: str
    port: int
    data: bytes = b""


@dataclass
class Witness:
    """Servers on threads of the test: they note who came, and answer."""

    host: Namespace
    visits: list[Visit] = field(default_factory=list)
    _listeners: list[socket.socket] = field(default_factory=list)

    def serve(self, address: str, port: int, talk: Callable[[Visit, socket.socket], None]) -> None:
        """Answer on one address, or on all (0.0.0.0) that nobody answers on otherwise."""
        listener = self.host.listen(address, port)
        listener.settimeout(None)
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener, port, talk), daemon=True).start()

    def _accept(self, listener: socket.socket, port: int, talk: Callable[[Visit, socket.socket], None]) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(20)
                visit = Visit(connection.getsockname()[0], port)
                self.visits.append(visit)
                threading.Thread(target=self._talk, args=(connection, visit, talk), daemon=True).start()

    def _talk(self, connection: socket.socket, visit: Visit, talk: Callable[[Visit, socket.socket], None]) -> None:
        with connection, contextlib.suppress(OSError):
            talk(visit, connection)

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def web(visit: Visit, connection: socket.socket) -> None:
    """HTTP/1.1, kept alive: says which address answered for which Host.

    /away redirects; WebSocket frames come back; DNS messages that are posted are answered.
    """
    rest = b""
    while True:
        while b"\r\n\r\n" not in rest:
            data = connection.recv(65536)
            if not data:
                return
            visit.data += data
            rest += data
        head, _, rest = rest.partition(b"\r\n\r\n")
        fields = {key.lower(): value for key, _, value in (line.partition(b": ") for line in head.split(b"\r\n")[1:])}
        if fields.get(b"content-type") == b"application/dns-message":
            while len(rest) < int(fields[b"content-length"]):
                rest += connection.recv(65536)
            answer, rest = doh_answer(rest), b""
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/dns-message\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(head % len(answer) + answer)
            continue
        if fields.get(b"upgrade") == b"websocket":
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            while data := connection.recv(65536):
                visit.data += data
                connection.sendall(data)
            return
        body = f"{visit.address} for {fields.get(b'host', b'nobody').decode()}\n".encode()
        status = b"302 Found\r\nLocation: http://evil.test/" if b" /away " in head else b"200 OK"
        connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))


def doh_answer(message: bytes) -> bytes:
    """DNS over HTTPS (RFC 8484): a resolver that knows NAMES, and does not mind who asks."""
    reply = dns.message.make_response(dns.message.from_wire(message), recursion_available=True)
    question = reply.question[0]
    if question.rdtype == dns.rdatatype.A:
        addresses = NAMES.get(question.name.to_text(omit_final_dot=True).lower(), [])
        reply.answer += [dns.rrset.from_text(question.name, 60, "IN", "A", *addresses)] if addresses else []
    return reply.to_wire()


def banner(visit: Visit, connection: socket.socket) -> None:
    """Speak first, then say back what comes."""
    connection.sendall(BANNER)
    while data := connection.recv(65536):
        visit.data += data
        connection.sendall(data)


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the other side ends; a reset shows as `<reset>`."""
    said = b""
    try:
        while data := connection.recv(65536):
            said += data
    except ConnectionResetError:
        said += b"<reset>"
    return said


def request(*fields: str, line: str = "GET / HTTP/1.1") -> bytes:
    """An HTTP request, as it is written here."""
    return "".join(f"{each}\r\n" for each in (line, *fields, "")).encode()


class OpenInternet:
    """The namespace where gateways run, and the Internet as they know it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host = lab.namespace("internet")
        for address in ADDRESSES:
            self.host.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        if not self.host.sysctl("net.ipv4.ping_group_range", "0 2147483647", check=False):
            self.host.sysctl("net.ipv4.ping_group_range", "0 0")
        self.certificate = lab.directory / "server.pem"
        names = ",".join(f"DNS:{name}" for name in NAMES)
        self.host.sh(
            f"""cd {lab.directory}
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=test \
                -addext subjectAltName={names} -keyout server.key -out server.pem 2>&1"""
        )
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate, lab.directory / "server.key")
        self.witness = Witness(self.host)
        for address in ("0.0.0.0",):
            self.witness.serve(address, 80, web)
            self.witness.serve(address, 443, self._secure_web)
            for port in (22, 2222, 8080, 8443):
                self.witness.serve(address, port, banner)
        known = [f"{name}={','.join(addresses)}" for name, addresses in NAMES.items()]
        self.dns = self._authority(*known)

    def _secure_web(self, visit: Visit, connection: socket.socket) -> None:
        connection.recv(1, socket.MSG_PEEK)  # ssl leaves a socket open that was reset before its first byte
        with self.tls.wrap_socket(connection, server_side=True) as secure:
            web(visit, secure)

    def _authority(self, *known: str) -> Process:
        script = str(HERE / "names_authority.py")
        server = self.host.spawn("names", sys.executable, "-I", script, "127.0.0.1", "5353", *known)
        wait_until(lambda: "ready" in server.log or not server.running, "the authority")
        assert server.running, server.log
        return server

    def asked(self) -> list[str]:
        """What the resolver was asked so far: `real.test A`."""
        return [line for line in self.dns.log.splitlines() if line != "ready"]

    def dials(self) -> int:
        """TCP connections that anybody in the namespace has begun: the kernel's ActiveOpens."""
        return self.departures()["Tcp ActiveOpens"]

    def departures(self) -> dict[str, int]:
        """What anybody in the namespace has begun to say, as the kernel counts it: TCP, UDP (answers too), pings."""
        table: dict[str, int] = {}
        lines = iter(Path(f"/proc/{self.host.pid}/net/snmp").read_text().splitlines())
        for names, values in zip(lines, lines, strict=True):
            protocol = names.partition(":")[0]
            table |= {
                f"{protocol} {name}": int(value)
                for name, value in zip(names.split()[1:], values.split()[1:], strict=True)
            }
        return {key: table[key] for key in ("Tcp ActiveOpens", "Udp OutDatagrams", "Icmp OutEchos")}


class Guest:
    """A guest under a policy, and what may be asked of the three oracles."""

    def __init__(self, internet: OpenInternet, network: Network) -> None:
        self.internet = internet
        self.network = network
        self.namespace = network.guest
        self._told = 0
        self._elsewhere = 0

    def elsewhere(self) -> str:
        """A public address that nothing was said of yet: repetitions of a refusal are counted, not told."""
        self._elsewhere += 1
        return f"104.16.200.{self._elsewhere}"

    def connect(self, address: str, port: int) -> socket.socket:
        """A connection of the guest's."""
        return self.namespace.connect(address, port)

    def curl(self, *arguments: str) -> tuple[int, str]:
        """Run curl; its exit status and standard output."""
        command = ["curl", "-sS", "-m", "20", "--noproxy", "*", "--cacert", str(self.internet.certificate), *arguments]
        done = self.namespace.run(*command, check=False)
        return done.returncode, done.stdout

    def error(self, address: str, port: int) -> str:
        """What connect(2) gives: the name of the exception, or `connected`."""
        try:
            self.connect(address, port).close()
        except OSError as error:
            return type(error).__name__
        return "connected"

    def ask(self, address: str, data: bytes, port: int = 80, *, piece: int = 0) -> bytes:
        """Send bytes, end, and read until the end; `piece`: in writes of so many bytes, each a segment of its own."""
        with self.connect(address, port) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            piece = piece or len(data) or 1
            for at in range(0, len(data), piece):
                connection.sendall(data[at : at + piece])
            with contextlib.suppress(OSError):  # refused and closed already
                connection.shutdown(socket.SHUT_WR)
            return read_all(connection)

    def resolved(self, name: str) -> list[str]:
        """The IPv4 addresses that the guest's own C library finds."""
        return self.namespace.sh(f"getent ahostsv4 {name} | cut -d' ' -f1 | sort -u").stdout.split()

    def told(self, count: int = 1, *kinds: str) -> list[dict[str, object]]:
        """(E) The events about flows since the last call: exactly so many."""
        wanted = kinds or ("flow_opened", "flow_refused")

        def found() -> list[dict[str, object]]:
            events = self.network.gateway.events()[self._told :]
            return [event for event in events if event["event"] in wanted]

        wait_until(lambda: len(found()) >= count, f"{count} events", timeout=10)
        events = found()
        self._told = len(self.network.gateway.events())
        assert len(events) == count, events
        return events

    @contextlib.contextmanager
    def nothing_dialled(self) -> Iterator[None]:
        """(D) No connection is begun by the gateway, and none arrives anywhere."""
        dials, visits = self.internet.dials(), len(self.internet.witness.visits)
        yield
        assert self.internet.witness.visits[visits:] == []
        assert self.internet.dials() == dials

    @contextlib.contextmanager
    def refused(self, step: str, reason: str, told: str, **fields: object) -> Iterator[None]:
        """Nothing is dialled, and one event says that the flow was refused, and how."""
        self.told(0)
        with self.nothing_dialled():
            yield
        (event,) = self.told(1)
        expected = {"event": "flow_refused", "step": step, "reason_code": reason, "told": told, "total": 1} | fields
        assert {key: event.get(key) for key in expected} == expected

    @contextlib.contextmanager
    def reaches(self, dialled: str, reason: str, **fields: object) -> Iterator[list[Visit]]:
        """One connection is made, to `dialled` (address:port), and one event says why. Gives the visits."""
        self.told(0)
        before, visits = len(self.internet.witness.visits), []
        yield visits
        # The guest is connected as soon as the host's kernel is: the witness's thread may be yet to accept.
        wait_until(lambda: len(self.internet.witness.visits) > before, f"a visit to {dialled}", timeout=10)
        visits += self.internet.witness.visits[before:]
        assert [f"{visit.address}:{visit.port}" for visit in visits] == [dialled]
        (event,) = self.told(1)
        expected = {"event": "flow_opened", "dialled": dialled, "reason_code": reason} | fields
        assert {key: event.get(key) for key in expected} == expected


def start_guest(internet: OpenInternet, *options: str) -> Guest:
    """A fresh guest on a TAP of a fresh `netstack run OPTIONS`."""
    return Guest(internet, start_network(internet, "tap", options=options))  # type: ignore[arg-type]  # lab and host are all it needs
