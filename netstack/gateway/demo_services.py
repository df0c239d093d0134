"""What the demonstration's guest talks to, on this machine's loopback: a resolver, web servers, a closed port.

They run in threads of their own and end with the `with` block. The certificate is made by openssl for this one run.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

DOMAIN: Final = "demo.test"
WEB_NAME: Final = f"www.{DOMAIN}"
WEB_ADDRESS: Final = "203.0.113.10"
"""An address for documentation (RFC 5737): the guest dials it, the NAT table leads to this machine's loopback."""
PAGE: Final = b"".join(b"line %d of a page served on the host's loopback\n" % number for number in range(4096))


@dataclass(frozen=True, slots=True)
class Services:
    """Where the services are, on 127.0.0.1. Without openssl, `https_port` and `certificate` (a PEM file) are None."""

    dns_port: int
    http_port: int
    https_port: int | None
    closed_port: int
    certificate: Path | None


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
        response = dns.message.make_response(query, recursion_available=True)
        if not query.question or query.question[0].name.to_text(omit_final_dot=True).lower() != WEB_NAME:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif query.question[0].rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", WEB_ADDRESS))
        sock.sendto(response.to_wire(), self.client_address)


def _make_certificate(directory: Path) -> tuple[Path, Path] | None:
    """A key and a self-signed certificate for WEB_NAME, valid a day; None without openssl."""
    if shutil.which("openssl") is None:
        return None
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", f"/CN={WEB_NAME}"]
    command += ["-addext", f"subjectAltName=DNS:{WEB_NAME}"]
    done = subprocess.run(command, capture_output=True, check=False)
    return (certificate, key) if done.returncode == 0 else None


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
        resolver = socketserver.ThreadingUDPServer(("127.0.0.1", 0), _Resolver)
        web = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
        stack.enter_context(_serving(resolver))
        stack.enter_context(_serving(web))
        pair = _make_certificate(directory)
        https_port = None
        if pair:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*pair)
            secure = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
            secure.socket = context.wrap_socket(secure.socket, server_side=True)
            stack.enter_context(_serving(secure))
            https_port = secure.server_port
        # Bound and not listening: nobody else gets this port, and connections to it are refused.
        closed = stack.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))
        yield Services(
            dns_port=resolver.server_address[1],
            http_port=web.server_port,
            https_port=https_port,
            closed_port=closed.getsockname()[1],
            certificate=pair[0] if pair else None,
        )
