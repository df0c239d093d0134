"""An upstream resolver on threads of the test, UDP and TCP: what it says can be changed while it runs.

Made with dnspython. It answers what is in `records`, and that nothing else exists.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from .lab import Namespace


class ZoneAuthority:
    """`records`: name and type -> `NAME TTL TYPE DATA` lines, whoever they are about. `asked`: `udp name TYPE`."""

    def __init__(self, host: Namespace, records: dict[tuple[str, str], list[str]]) -> None:
        self.records = records
        self.asked: list[str] = []
        self._udp = host.socket(socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self.port = int(self._udp.getsockname()[1])
        self._tcp = host.listen("127.0.0.1", self.port)
        for sock in (self._udp, self._tcp):
            sock.settimeout(None)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._datagrams, self._streams)]
        for thread in self._threads:
            thread.start()

    @property
    def option(self) -> str:
        """What --dns-upstream takes."""
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop."""
        for sock in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._udp.close()
        self._tcp.close()

    def _answer(self, wire: bytes, transport: str) -> bytes:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{transport} {name} {kind}")
        reply = dns.message.make_response(query, recursion_available=True)
        lines = self.records.get((name, kind), [])
        if not any(known == name for known, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        for line in lines:
            owner, ttl, rtype, data = line.split(" ", 3)
            reply.answer.append(dns.rrset.from_text(dns.name.from_text(owner), int(ttl), "IN", rtype, data))
        limit = 65_535 if transport == "tcp" else max(512, query.payload if query.edns >= 0 else 0)
        if len(whole := reply.to_wire(max_size=65_535)) <= limit:
            return whole
        reply.answer.clear()
        reply.flags |= dns.flags.TC
        return reply.to_wire()

    def _datagrams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                wire, client = self._udp.recvfrom(65_535)
                if not wire:
                    return
                self._udp.sendto(self._answer(wire, "udp"), client)

    def _streams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._tcp.accept()
                connection.settimeout(20)
                with connection, contextlib.suppress(OSError, struct.error), connection.makefile("rb") as stream:
                    while True:
                        (length,) = struct.unpack("!H", stream.read(2))
                        reply = self._answer(stream.read(length), "tcp")
                        connection.sendall(struct.pack("!H", len(reply)) + reply)
