"""HTTP/1 requests: by Python's http.client, and by hand where it would not write such things."""

from __future__ import annotations

import http.client
import http.server
import io

HEAD = b"GET /a HTTP/1.1\r\nHost: example.com\r\n\r\n"
WEBSOCKET = [
    "Connection: keep-alive, Upgrade",
    "Upgrade: WebSocket",
    "Sec-WebSocket-Key: x",
    "Sec-WebSocket-Version: 13",
]


def get(*fields: str, line: str = "GET / HTTP/1.1") -> bytes:
    return "".join(f"{each}\r\n" for each in (line, *fields, "")).encode("latin-1")


class _Wire(io.BytesIO):
    """A connection's other end, as far as http.client needs one."""

    def sendall(self, data: bytes) -> None:
        self.write(data)


class _Recorded(http.client.HTTPConnection):
    """http.client without a network: what it would have sent."""

    def connect(self) -> None:
        self.sock = _Wire()

    @property
    def sent(self) -> bytes:
        return self.sock.getvalue()


def written(method: str, url: str, host: str = "example.com", **options: object) -> bytes:
    """A request as Python's http.client writes it."""
    connection = _Recorded(host)
    connection.request(method, url, **options)
    return connection.sent


class _Heard(http.server.BaseHTTPRequestHandler):
    """http.server without a network: what it would have understood."""

    def __init__(self, stream: bytes) -> None:
        self.rfile = io.BytesIO(stream)
        self.wfile = io.BytesIO()
        self.raw_requestline = self.rfile.readline(65537)
        self.understood = self.parse_request()

    def send_error(self, *_: object, **__: object) -> None:
        pass


def heard_by_http_server(stream: bytes) -> tuple[str, str, list[str]] | None:
    """Method, target and all Host fields of a request as Python's http.server reads it; None when it refuses it."""
    heard = _Heard(stream)
    if not heard.understood:
        return None
    # It leaves blanks behind a value to its handlers.
    return heard.command, heard.path, [value.strip(" \t") for value in heard.headers.get_all("Host", [])]


REAL = (
    HEAD,
    get("Host: a.example", *WEBSOCKET),
    get("Host: a.example:80", "Content-Length: 5", line="POST http://a.example:80/ HTTP/1.0") + b"hello",
    written("PUT", "/x", body=iter([b"one", b"two"]), encode_chunked=True),
    get("Host: a.example", "Host: b.example"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)
