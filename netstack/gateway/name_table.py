"""Which addresses names stand for, for filters that say `name`: read from the answers that guests are given.

Only names that somebody asks for are kept, and nothing is read before there is one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from guest_iface.pcapng import OUTBOUND
from netstack.engine.stack import Stack
from netstack.wire import dns, dns_answers, ethernet, ipv4, udp

if TYPE_CHECKING:
    from guest_iface.frame_filter import FlowEnds

MAX_NAMES: Final = 256
"""Names that are looked out for; another one takes the oldest's place."""
MAX_ADDRESSES: Final = 1024
"""Addresses kept for one name, or pattern; a newer one takes the oldest's place."""
_AAAA: Final = 28
_SIZES: Final = {dns.A: 4, _AAAA: 16}
_TEXT: Final = ethernet.HEADER + ipv4.HEADER + udp.HEADER
_FROM_DNS: Final = (53).to_bytes(2, "big")


class NameTable:
    """What a gateway knows of names and flows (guest_iface.frame_filter.Known). Listens on cables (cable.Listener)."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._names: OrderedDict[str, OrderedDict[bytes, None]] = OrderedDict()

    # What filters ask.

    def flow(self, number: int) -> FlowEnds | None:
        """See Known."""
        from guest_iface.frame_filter import FlowEnds

        for table in (self._stack.tcp.table, self._stack.udp.table):
            for flow in table.values():
                if flow.id == number:
                    question = flow.question
                    return FlowEnds(question.protocol, question.guest, question.destination)
        key = self._stack.tcp.time_wait.key_of(number)
        if key is None:
            return None
        guest, other = (key[:4], int.from_bytes(key[8:10], "big")), (key[4:8], int.from_bytes(key[10:], "big"))
        return FlowEnds(ipv4.TCP, guest, other)

    def addresses(self, name: str) -> OrderedDict[bytes, None]:
        """See Known. From the first call on, answers are looked at for it."""
        known = self._names.get(name)
        if known is None:
            known = self._names[name] = OrderedDict()
            if len(self._names) > MAX_NAMES:
                self._names.popitem(last=False)
            if not name.startswith("*."):
                for qtype in _SIZES:
                    _keep(known, self._stack.names.known(name, qtype, trio.current_time()) or ())
        return known

    # What cables tell.

    def add_interface(self, _name: str) -> int:
        """See Listener."""
        return 0

    def hold(self, interface: int, frames: Sequence[bytes]) -> None:
        """See Listener. What guests say of names means nothing."""

    def release(self) -> None:
        """See Listener."""

    def write(self, _interface: int, frames: Sequence[bytes], direction: int) -> None:
        """See Listener."""
        if direction == OUTBOUND and self._names:
            for frame in frames:
                # A datagram from port 53, in a packet without options, as the gateway's own are.
                if frame[34:36] == _FROM_DNS and frame[12:15] == b"\x08\x00\x45" and frame[23] == ipv4.UDP:
                    self._read(frame[_TEXT:])

    def _read(self, message: bytes) -> None:
        response = dns.parse_response(message)
        if not isinstance(response, dns.Response) or response.qtype not in _SIZES:
            return
        name = b".".join(dns.labels(response.name)).decode("latin-1").lower()
        wanted = [known for pattern, known in self._names.items() if covers(pattern, name)]
        if wanted:
            answers = dns_answers.read(
                response.records, response.name.lower(), response.qtype, _SIZES[response.qtype]
            ).data.values()
            for known in wanted:
                _keep(known, [data for each in answers for _, data in each])


def covers(pattern: str, name: str) -> bool:
    """Whether a name is meant: by itself, by `*.` and what it ends with, or by `*`."""
    return pattern in (name, "*") or (pattern.startswith("*.") and name.endswith(pattern[1:]))


def _keep(known: OrderedDict[bytes, None], addresses: Sequence[bytes]) -> None:
    for address in addresses:
        known[address] = None
        known.move_to_end(address)
        if len(known) > MAX_ADDRESSES:
            known.popitem(last=False)
