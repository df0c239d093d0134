"""An upstream resolver that knows the names it is told: `python names_authority.py ADDRESS PORT NAME=IP[,IP...]...`.

Everything else does not exist. Prints one line a question: `NAME TYPE`. UDP only; made with dnspython.
"""

from __future__ import annotations

import socket
import sys

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

TTL = 300


def main(address: str, port: str, *names: str) -> None:
    """Serve until killed; prints `ready` once the port is bound."""
    known = {name.lower(): found.split(",") for name, _, found in (each.partition("=") for each in names)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, int(port)))
        print("ready", flush=True)
        while True:
            message, client = sock.recvfrom(65_535)
            query = dns.message.from_wire(message)
            question = query.question[0]
            name = question.name.to_text(omit_final_dot=True).lower()
            print(name, dns.rdatatype.to_text(question.rdtype), flush=True)
            reply = dns.message.make_response(query, recursion_available=True)
            if name not in known:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            elif question.rdtype == dns.rdatatype.A:
                reply.answer.append(dns.rrset.from_text_list(question.name, TTL, "IN", "A", known[name]))
            sock.sendto(reply.to_wire(), client)


if __name__ == "__main__":
    main(*sys.argv[1:])
