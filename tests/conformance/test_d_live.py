"""Conformance D7 with a driver that runs: what a guest ends in the same batch in which it said a name."""

from __future__ import annotations

import pytest
from engine.wire_guest import GUEST
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw
from wire import hellos

from netstack.engine.events import FlowClosed

from . import live
from .policy_wire import NAME, SITE

HELLO = hellos.python_ssl(NAME)


@pytest.mark.parametrize("end", ["R", "RA"])
async def test_D7_hello_and_reset_in_one_batch(end: str) -> None:
    """(G) Nothing more, (D) the name is neither asked for nor dialled: no socket is left; (E) one end of one flow."""
    async with live.running(NAME) as gateway:
        guest = await gateway.attach()
        await guest.syn(SITE, 443)
        answer = next(frame[TCP] for frame in guest.hear() if frame.haslayer(TCP))
        at = {"sport": 40_000, "dport": 443}

        def segment(flags: str, sequence: int, data: bytes = b"") -> object:
            return IP(src=GUEST, dst=SITE) / TCP(flags=flags, seq=sequence, ack=answer.seq + 1, **at) / Raw(data)

        assert len(HELLO) <= 1460
        await guest.send(segment("A", 2), segment("PA", 2, HELLO), segment(end, 2 + len(HELLO)))
        (closed,) = await gateway.wait_for(FlowClosed)
        assert (closed.reason, closed.sent) == ("reset by guest", 0)
        await live.settled()
        # `running` holds every question to the resolver to be an error.
        assert len(gateway.driver.sockets) == 0
        assert [frame for frame in guest.hear() if frame.haslayer(TCP)] == []
        assert len(gateway.told(FlowClosed)) == 1
