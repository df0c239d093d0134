"""Zone answers kept whole: the same as those that are made, as long as they hold, and no more of them than allowed."""

from __future__ import annotations

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.engine import dns_ready
from netstack.engine.dns_server import Answer
from netstack.engine.settings import Zone, ZoneRecord
from netstack.engine.zones import Zones

from .dns_guest import GUEST, OTHER_GUEST, Gateway, query, texts

NAMES = [
    "host.containers.internal.",
    "HOST.containers.INTERNAL.",
    "nobody.containers.internal.",
    "containers.internal.",
    "all.many.internal.",
    "254.127.168.192.in-addr.arpa.",
]


def with_id(message: dns.message.Message, number: int) -> bytes:
    return number.to_bytes(2, "big") + message.to_wire()[2:]


@given(
    name=st.sampled_from(NAMES),
    rtype=st.sampled_from(["A", "AAAA", "ANY", "SOA", "NS", "PTR", "TYPE65280"]),
    edns=st.sampled_from([{}, {"use_edns": 0}, {"payload": 600}, {"want_dnssec": True}, {"use_edns": 3}]),
    flags=st.integers(0, 0xFFFF),
)
def test_what_was_answered_before_is_answered_the_same(name: str, rtype: str, edns: dict[str, int], flags: int) -> None:
    """Another id and another guest: the same answer with that id, and the same event of that guest."""
    message = query(name, rtype, **edns)
    wire = bytearray(message.to_wire())
    wire[2:4] = (flags & 0x7FFF).to_bytes(2, "big")
    gateway = Gateway()
    made = gateway.send(b"\x00\x01" + bytes(wire[2:]))
    assert isinstance(made, Answer)
    told = gateway.event()
    kept = gateway.send(b"\xab\xcd" + bytes(wire[2:]), guest=OTHER_GUEST)
    assert isinstance(kept, Answer)
    assert kept.message == b"\xab\xcd" + made.message[2:]
    assert gateway.event() == told._replace(guest=OTHER_GUEST)
    assert told.guest == GUEST


def test_the_spelling_is_the_guests() -> None:
    gateway = Gateway()
    for spelled in ("host.containers.internal.", "Host.Containers.Internal.", "host.containers.internal."):
        assert texts(gateway.answer(query(spelled))) == [f"{spelled} 60 IN A 192.168.127.254"]


def test_a_zone_that_changes_answers_anew_at_once() -> None:
    gateway = Gateway()
    zones = gateway.server.zones
    question = query("host.containers.internal.")
    assert texts(gateway.answer(question))[0].endswith("192.168.127.254")
    zones.put(Zone("containers.internal", (ZoneRecord("host", b"\x0a\0\0\1"),)))
    assert texts(gateway.answer(question))[0].endswith("10.0.0.1")
    assert zones.remove("containers.internal")
    gateway.asked(question)
    # Other zones, though as often changed as the first.
    fresh = Zones([Zone("containers.internal", (ZoneRecord("host", b"\x0a\0\0\2"),)), Zone("a.test"), Zone("b.test")])
    fresh.put(Zone("c.test"))
    assert fresh.serial == zones.serial
    gateway.server.zones = fresh
    assert texts(gateway.answer(query("host.containers.internal.")))[0].endswith("10.0.0.2")


def test_nothing_else_is_kept() -> None:
    """Not what upstream or the policy said, not over TCP, and no error."""
    gateway = Gateway(["example.com"])
    gateway.forward(query("example.com."))
    gateway.answer(query("evil.test."))
    gateway.answer(query("host.containers.internal."), "tcp")
    gateway.answer(b"\0\1\1\0\0\2\0\0\0\0\0\0" + b"\1a\0\0\1\0\1" * 2)
    assert len(gateway.server._ready) == 0
    gateway.answer(query("host.containers.internal."))
    assert len(gateway.server._ready) == 1


def test_the_bounds_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_ready, "MAX_ANSWERS", 10)
    gateway = Gateway()
    for number in range(100):
        gateway.answer(query(f"n{number}.containers.internal."))
        assert len(gateway.server._ready) <= 10
    long = query("host.containers.internal.", pad=600)
    gateway.answer(long)
    gateway.answer(query("all.many.internal.", payload=4096))
    assert all(
        len(question) <= dns_ready.MAX_QUESTION and len(answer.rest) <= dns_ready.MAX_ANSWER
        for question, answer in gateway.server._ready._answers.items()
    )
    assert not any(len(question) > 500 for question in gateway.server._ready._answers)
