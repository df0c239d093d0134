"""Names the gateway itself has to find the addresses of, because a flow is dialled by its name."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from netstack.engine import dns_screen
from netstack.engine.dns_cache import DnsCache, Key
from netstack.engine.zones import Zones
from netstack.wire import dns as wire

ANSWERS_READ: Final = 64
"""Answers whose addresses are kept as they were read, of at most 64 KiB each."""
NAMES_WRITTEN: Final = 1024
"""Names whose wire form is kept, of at most 255 bytes."""


@lru_cache(maxsize=NAMES_WRITTEN)
def _wire_name(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode("ascii") for label in name.split(".")) + b"\0"


class HostNames:
    """Looks into the same cache the guests' answers come from: what a guest was just told costs no second question.

    What the policy thinks of an address is for the dialer to ask, about each, when it dials.
    """

    def __init__(self, zones: Zones, cache: DnsCache) -> None:
        self._zones = zones
        self._cache = cache

    def known(self, name: str, qtype: int, now: float) -> list[bytes] | None:
        """The addresses of a canonical name (`qtype` A or AAAA) as the gateway knows them; None: ask upstream."""
        wire_name = _wire_name(name)
        reply = self._zones.answer(wire_name, qtype, wire.CLASS_IN)  # internal names never leak
        if reply is None:
            entry = self._cache.find(Key(wire_name, qtype, wire.CLASS_IN, False, False), now)
            reply = None if entry is None else entry.reply
        return None if reply is None else _addresses(reply, wire_name, qtype)

    def question(self, name: str, qtype: int) -> bytes:
        """The message to ask upstream; its id is to be replaced."""
        question = wire.question_wire(_wire_name(name), qtype, wire.CLASS_IN)
        return wire.question(0, wire.RD | wire.AD, question, wire.opt_record(wire.SAFE_UDP_SIZE))

    def learn(self, name: str, qtype: int, message: bytes | None, now: float) -> list[bytes]:
        """The addresses in upstream's answer, which goes into the cache; none when nobody answered."""
        wire_name = _wire_name(name)
        key = Key(wire_name, qtype, wire.CLASS_IN, False, False)
        response = None if message is None else wire.parse_response(message)
        if not isinstance(response, wire.Response) or response.name.lower() != wire_name or response.qtype != qtype:
            return []
        reply = wire.Reply(response.rcode, response.records, truncated=bool(response.flags & wire.TC))
        self._cache.put(key, reply, now)
        return _addresses(reply, wire_name, qtype)


def _addresses(reply: wire.Reply, wire_name: bytes, qtype: int) -> list[bytes]:
    return list(_read_addresses(reply.records, wire_name, qtype)) if reply.rcode == wire.NOERROR else []


@lru_cache(maxsize=ANSWERS_READ)
def _read_addresses(records: wire.Records, wire_name: bytes, qtype: int) -> tuple[bytes, ...]:
    """What is dialled by name is dialled again and again: the records that are kept for it are read once."""
    screened = dns_screen.addresses(records, wire_name, qtype, lambda _address: "")
    return () if screened is None else tuple(screened.addresses)
