"""What the demonstration's guest talks to, on this machine's loopback: a resolver, web servers, a closed port.

They run in threads of their own and end with the `with` block. The certificate is made for this one run.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

DOMAIN: Final = "demo.test"
WEB_NAME: Final = f"www.{DOMAIN}"
WEB_ADDRESS: Final = "93.184.216.34"
"""A public address, as a name needs that a list allows. The guest dials it; the NAT table leads to the loopback."""
OFFICE_ADDRESS: Final = "198.51.100.7"
"""An address for documentation (RFC 5737) that leads to the same servers."""
LOOPBACK: Final = "127.83.0.10"
"""Where the web servers are, if this system takes all of 127.0.0.0/8 for its own: nobody else is likely to be there."""
PAGE: Final = b"".join(b"line %d of a page served on the host's loopback\n" % number for number in range(4096))


@dataclass(frozen=True, slots=True)
class Services:
    """Where the services are. `certificate` is a PEM file."""

    loopback: str
    dns_port: int
    http_port: int
    https_port: int
    closed_port: int
    certificate: Path
    asked: list[str] = field(default_factory=list)
    """What the resolver was asked so far: `www.demo.test A`."""

    @property
    def web_ports(self) -> bool:
        """Whether the web servers have the ports on which a list reads names."""
        return (self.http_port, self.https_port) == (80, 443)


class _Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(PAGE)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(PAGE)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the demonstration's table is the report."""


class _Resolver(socketserver.BaseRequestHandler):
    """Answers A questions for WEB_NAME; every other name does not exist."""

    def handle(self) -> None:
        data, sock = self.request
        try:
            query = dns.message.from_wire(data)
        except (dns.exception.DNSException, ValueError):
            return
        if not query.question:
            return
        response = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.server.asked.append(f"{name} {dns.rdatatype.to_text(question.rdtype)}")  # type: ignore[attr-defined]  # ours
        if name != WEB_NAME:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", WEB_ADDRESS))
        sock.sendto(response.to_wire(), self.client_address)


def _make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for WEB_NAME, valid a day, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, WEB_NAME)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(WEB_NAME)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate_path, key_path = directory / "certificate.pem", directory / "key.pem"
    certificate_path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return certificate_path, key_path


def _web_server(loopback: str, port: int) -> ThreadingHTTPServer:
    """A server on that port, or on any that can be had: ports below 1024 may be root's, or taken."""
    try:
        return ThreadingHTTPServer((loopback, port), _Page)
    except OSError:
        return ThreadingHTTPServer((loopback, 0), _Page)


def _loopback() -> str:
    """LOOPBACK, or 127.0.0.1 on systems that have no other."""
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, 0))
        except OSError:
            return "127.0.0.1"
    return LOOPBACK


@contextlib.contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def demo_services(directory: Path) -> Iterator[Services]:
    """Run the services; key and certificate go to `directory`."""
    with contextlib.ExitStack() as stack:
        loopback = _loopback()
        resolver = socketserver.ThreadingUDPServer(("127.0.0.1", 0), _Resolver)
        web = _web_server(loopback, 80)
        secure = _web_server(loopback, 443)
        certificate, key = _make_certificate(directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        # Bound and not listening: nobody else gets this port, and connections to it are refused.
        closed = stack.enter_context(socket.socket())
        closed.bind((loopback, 0))
        services = Services(
            loopback=loopback,
            dns_port=resolver.server_address[1],
            http_port=web.server_port,
            https_port=secure.server_port,
            closed_port=closed.getsockname()[1],
            certificate=certificate,
        )
        resolver.asked = services.asked  # type: ignore[attr-defined]  # for its handler
        for server in (resolver, web, secure):
            stack.enter_context(_serving(server))
        yield services
