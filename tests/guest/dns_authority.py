"""An upstream resolver that knows one zone: `python dns_authority.py ADDRESS PORT [PORT...]`, UDP and TCP.

Made with dnspython. Prints one line a question: `PROTOCOL NAME TYPE`. Names under `guest.test`:
    www A, AAAA     text TXT (one of 300 bytes in two strings)     mail MX     _imaps._tcp SRV     ca CAA     web HTTPS
    alias CNAME www     four A x4     big TXT of 3,000 bytes: TC over UDP, whole over TCP
    servfail SERVFAIL     refused REFUSED     slow answers once hurry is asked for     empty no data of any type but TXT
    any-... A, AAAA, as many names as a test needs
Everything else there is NXDOMAIN, with the SOA.
"""

from __future__ import annotations

import asyncio
import struct
import sys

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

ZONE = dns.name.from_text("guest.test.")
BIG = [f"{number:04d}" + "x" * 96 for number in range(30)]
RECORDS = {
    ("www", "A"): ["198.51.100.10"],
    ("www", "AAAA"): ["2001:db8::10"],
    ("text", "TXT"): ['"v=test one"', '"' + "a" * 200 + '" "' + "b" * 100 + '"'],
    ("mail", "MX"): ["10 mx1.guest.test.", "20 mx2.guest.test."],
    ("_imaps._tcp", "SRV"): ["0 1 993 imap.guest.test."],
    ("ca", "CAA"): ['0 issue "ca.guest.test"'],
    ("web", "HTTPS"): ['1 . alpn="h2,h3" port=8443'],
    ("alias", "CNAME"): ["www.guest.test."],
    ("four", "A"): [f"198.51.100.{last}" for last in (11, 12, 13, 14)],
    ("big", "TXT"): [f'"{text}"' for text in BIG],
    ("slow", "A"): ["203.0.113.9"],
    ("hurry", "A"): ["203.0.113.10"],
    ("empty", "TXT"): ['"here"'],
}
TTL = 300
SOA = dns.rrset.from_text(ZONE, 60, "IN", "SOA", "ns.guest.test. admin.guest.test. 1 3600 600 86400 60")
RCODES = {"servfail": dns.rcode.SERVFAIL, "refused": dns.rcode.REFUSED}
SLOW: list[asyncio.Event] = []
"""What questions for `slow` wait for: the next one for `hurry`."""


def answer(query: dns.message.Message) -> dns.message.Message:
    """The authority's answer."""
    reply = dns.message.make_response(query, recursion_available=True)
    question = query.question[0]
    kind = dns.rdatatype.to_text(question.rdtype)
    if not question.name.is_subdomain(ZONE):
        reply.set_rcode(dns.rcode.REFUSED)
        return reply
    label = question.name.relativize(ZONE).to_text().lower()
    label = "www" if label.startswith("any-") else label
    if label in RCODES:
        reply.set_rcode(RCODES[label])
    elif (label, "CNAME") in RECORDS and kind != "CNAME":
        target = RECORDS[label, "CNAME"]
        reply.answer.append(dns.rrset.from_text_list(question.name, TTL, "IN", "CNAME", target))
        www = dns.name.from_text(target[0])
        if ("www", kind) in RECORDS:
            reply.answer.append(dns.rrset.from_text_list(www, TTL, "IN", kind, RECORDS["www", kind]))
    elif (label, kind) in RECORDS:
        reply.answer.append(dns.rrset.from_text_list(question.name, TTL, "IN", kind, RECORDS[label, kind]))
    else:
        if all(known != label for known, _ in RECORDS):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        reply.authority.append(SOA)
    return reply


async def respond(wire: bytes, protocol: str) -> bytes:
    """Answer one message, if its name is `slow` once somebody has asked for `hurry`; note it on stdout."""
    query = dns.message.from_wire(wire)
    question = query.question[0]
    print(protocol, question.name.to_text(), dns.rdatatype.to_text(question.rdtype), flush=True)
    first = question.name.labels[0].lower() if len(question.name) else b""
    if first == b"hurry":
        while SLOW:
            SLOW.pop().set()
    elif first == b"slow":
        SLOW.append(asyncio.Event())
        await SLOW[-1].wait()
    reply = answer(query)
    limit = 65535 if protocol == "tcp" else max(512, query.payload if query.edns >= 0 else 0)
    whole = reply.to_wire(max_size=65535)
    if len(whole) <= limit:
        return whole
    reply.answer.clear()
    reply.flags |= dns.flags.TC
    return reply.to_wire()


class Udp(asyncio.DatagramProtocol):
    """Questions by datagram."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.get_running_loop().create_task(self._reply(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(await respond(data, "udp"), addr)


async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Questions by stream (RFC 1035 section 4.2.2)."""
    try:
        while True:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            reply = await respond(await reader.readexactly(length), "tcp")
            writer.write(struct.pack("!H", len(reply)) + reply)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(address: str, *ports: str) -> None:
    """Serve until killed; prints `ready` once every port is bound."""
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_datagram_endpoint(Udp, (address, int(port)))
        await asyncio.start_server(tcp, address, int(port))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
