"""HTTP/1.1 for the tests, plain and over TLS: `python web_server.py CERTIFICATE KEY ADDRESS...`, ports 80 and 443.

GET /bytes/SIZE gives the body `payload.body(SIZE)`; PUT or POST anywhere gives the SHA-256 and the size of what came;
GET /peer gives the client's address as seen here. A thread each, plain blocking sockets, nothing of the project.
"""

from __future__ import annotations

import hashlib
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # python -I leaves a program's own directory out
import payload


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    rbufsize = 1 << 18

    def do_GET(self) -> None:
        """A body of the size asked for, or the peer's address."""
        if self.path == "/peer":
            return self._answer(f"{self.client_address[0]} {self.client_address[1]}\n".encode())
        try:
            size = int(self.path.removeprefix("/bytes/"))
        except ValueError:
            return self.send_error(404)
        self._head(size)
        for part in payload.body(size):
            self.wfile.write(part)
        return None

    def do_PUT(self) -> None:
        """Swallow the body; answer its digest."""
        digest = hashlib.sha256()
        left = size = int(self.headers["Content-Length"])
        while left and (part := self.rfile.read1(min(left, 1 << 18))):
            digest.update(part)
            left -= len(part)
        self._answer(f"{digest.hexdigest()} {size - left}\n".encode())

    def do_POST(self) -> None:
        """The same."""
        self.do_PUT()

    def _head(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def _answer(self, text: bytes) -> None:
        self._head(len(text))
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a thousand requests would bury what matters."""


class Server(ThreadingHTTPServer):
    """Takes 200 connections at once, and lets clients that vanish go without a word."""

    request_queue_size = 1024
    daemon_threads = True

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext | None) -> None:
        super().__init__(address, Handler)
        self._tls = tls

    def finish_request(self, request: object, client_address: object) -> None:
        """Make the TLS handshake here, in the connection's own thread."""
        if self._tls is not None:
            request = self._tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is part of the tests."""
        if not isinstance(sys.exception() if sys.version_info >= (3, 12) else sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def main(certificate: str, key: str, *addresses: str) -> None:
    """Serve until killed; prints `ready` once every port is bound."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    servers = [Server((address, port), context) for address in addresses for port, context in ((80, None), (443, tls))]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    servers[0].serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
