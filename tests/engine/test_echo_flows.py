"""ICMP echo in virtual time: what the gateway answers itself, what goes through ping sockets, and under which names."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, fragment

from netstack.engine import echo_flows, effects
from netstack.engine.effects import CloseEcho, OpenEcho, SendEcho
from netstack.engine.events import FlowClosed, FlowOpened
from netstack.engine.verdict import ALLOW, Verdict

from .wire_guest import (
    GATEWAY,
    GUEST,
    GUEST_MAC,
    HOST_ALIAS,
    LOOPBACK,
    OTHER_MAC,
    OTHER_SERVER,
    SERVER,
    UNUSED,
    VirtualWire,
    ip,
    mac,
    payload_of,
    ping,
)


def pinged(wire: VirtualWire, destination: str = SERVER, **fields: object) -> int:
    """Send the first request of an identifier; the number of its flow."""
    wire.send(ping(destination, **fields))
    opened, sent = wire.asked()
    assert isinstance(opened, OpenEcho)
    assert isinstance(sent, SendEcho)
    return opened.flow


def heard(wire: VirtualWire) -> tuple[str, str, int, int, bytes]:
    """The one echo reply that came: from whom, to whom, identifier, sequence, payload."""
    packet = wire.hear_one()[IP]
    message = packet[ICMP]
    assert (message.type, message.code) == (0, 0)
    return packet.src, packet.dst, message.id, message.seq, payload_of(message)


@pytest.mark.parametrize("size", [0, 1, 56, 1472, 65_507])
@pytest.mark.parametrize("verify", [True, False], ids=["verified", "trusted"])
def test_the_gateway_answers_for_itself(size: int, verify: bool) -> None:
    wire = VirtualWire(verify=verify)
    data = bytes(number & 0xFF for number in range(size))
    wire.send(*fragment(ping(GATEWAY, data, sequence=9, identifier=0xFFFF), fragsize=1480))
    reply = wire.reassembled()
    assert (reply.src, reply.dst, reply.ttl) == (GATEWAY, GUEST, 64)
    assert (reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq, payload_of(reply[ICMP])) == (0, 0xFFFF, 9, data)
    assert wire.asks_nothing()
    assert wire.rests()


def test_a_virtual_ip_without_nat_answers_under_its_own_name() -> None:
    wire = VirtualWire(nat={}, virtual_ips=frozenset({ip(HOST_ALIAS)}))
    wire.send(ping(HOST_ALIAS))
    assert heard(wire) == (HOST_ALIAS, GUEST, 77, 1, b"abc")


def test_others_are_asked_through_a_ping_socket() -> None:
    wire = VirtualWire()
    wire.send(ping(SERVER, b"payload", sequence=5, identifier=1234))
    assert wire.asked() == [OpenEcho(1), SendEcho(1, ip(SERVER), 5, b"payload", 63)]
    assert wire.hears_nothing(), "nothing is faked"
    wire.stack.echo_received(1, ip(SERVER), 5, b"payload", wire.now)
    assert heard(wire) == (SERVER, GUEST, 1234, 5, b"payload")


def test_a_ping_of_the_host_alias_is_answered_by_the_alias() -> None:
    """gvproxy defect 5: there the answer comes from 127.0.0.1, and the guest drops it."""
    wire = VirtualWire()
    flow = pinged(wire, HOST_ALIAS)
    wire.stack.echo_received(flow, ip(LOOPBACK), 1, b"abc", wire.now)
    assert heard(wire) == (HOST_ALIAS, GUEST, 77, 1, b"abc")


def test_one_socket_for_each_guest_and_identifier() -> None:
    wire = VirtualWire()
    first = pinged(wire)
    wire.send(ping(OTHER_SERVER, sequence=2))
    assert wire.asked() == [SendEcho(first, ip(OTHER_SERVER), 2, b"abc", 63)]
    second = pinged(wire, identifier=78)
    wire.send(ping(SERVER, src="192.168.127.3"), source=OTHER_MAC)
    third = wire.asked()[0].flow
    assert len({first, second, third}) == 3
    wire.stack.echo_received(third, ip(SERVER), 1, b"abc", wire.now)
    assert wire.hear_one().dst == OTHER_MAC
    wire.stack.echo_received(second, ip(SERVER), 1, b"abc", wire.now)
    assert heard(wire)[2] == 78


def test_nobody_answers_who_was_not_asked() -> None:
    wire = VirtualWire()
    flow = pinged(wire)
    wire.stack.echo_received(flow, ip(OTHER_SERVER), 1, b"abc", wire.now)
    wire.stack.echo_received(999, ip(SERVER), 1, b"abc", wire.now)
    assert wire.hears_nothing()
    assert wire.dropped == {"icmp-from-stranger": 2}


def test_answers_of_any_size() -> None:
    wire = VirtualWire()
    flow = pinged(wire)
    wire.stack.echo_received(flow, ip(SERVER), 1, bytes(65_507), wire.now)
    assert payload_of(wire.reassembled()[ICMP]) == bytes(65_507)
    wire.stack.echo_received(flow, ip(SERVER), 1, b"", wire.now)
    assert heard(wire)[4] == b""


WORDS = {
    "refused": (effects.REFUSED, (3, 1)),
    "network": (effects.NETWORK_UNREACHABLE, (3, 0)),
    "host": (effects.HOST_UNREACHABLE, (3, 1)),
    "prohibited": (effects.PROHIBITED, (3, 13)),
    "ttl": (effects.TTL_EXCEEDED, (11, 0)),
}


@pytest.mark.parametrize(("failure", "message"), WORDS.values(), ids=WORDS)
def test_each_failure_is_the_icmp_error_it_stands_for(failure: int, message: tuple[int, int]) -> None:
    """A host that is there refuses no echo: refused is an unreachable host."""
    wire = VirtualWire()
    packet = ping(SERVER, b"x" * 100)
    wire.send(packet)
    wire.stack.echo_failed(1, ip(SERVER), failure, wire.now)
    assert bytes(wire.quoted(wire.hear_one(), *message)) == bytes(packet)


def test_a_router_on_the_way_speaks_for_itself() -> None:
    """traceroute -I."""
    wire = VirtualWire()
    flow = pinged(wire, ttl=2)
    wire.stack.echo_failed(flow, ip(SERVER), effects.TTL_EXCEEDED, wire.now, offender=ip("198.51.100.1"))
    quoted = wire.quoted(wire.hear_one(), 11, 0, source="198.51.100.1")
    assert (quoted[ICMP].id, quoted[ICMP].seq) == (77, 1)


def test_an_alias_that_fails_is_named_as_the_guest_named_it() -> None:
    wire = VirtualWire(nat={ip(HOST_ALIAS): ip("10.0.0.7")})
    flow = pinged(wire, HOST_ALIAS)
    wire.stack.echo_failed(flow, ip("10.0.0.7"), effects.PROHIBITED, wire.now, offender=ip("10.0.0.7"))
    assert wire.quoted(wire.hear_one(), 3, 13, source=HOST_ALIAS).dst == HOST_ALIAS


def test_a_large_ping_that_does_not_fit_the_path() -> None:
    wire = VirtualWire()
    flow = pinged(wire, data=bytes(1400), flags="DF")
    wire.stack.echo_failed(flow, ip(SERVER), effects.TOO_BIG, wire.now, offender=ip("198.51.100.1"), mtu=1280)
    frame = wire.hear_one()
    assert wire.quoted(frame, 3, 4, source="198.51.100.1").len == 1428
    assert frame[ICMP].nexthopmtu == 1280


def test_the_request_that_failed_is_quoted() -> None:
    """traceroute -I has sixteen under way and knows them by their sequence numbers."""
    wire = VirtualWire()
    flow = pinged(wire)
    wire.send(*(ping(SERVER, sequence=number, ttl=number) for number in range(2, 17)))
    for number in (5, 16, 1):
        wire.stack.echo_failed(
            flow, ip(SERVER), effects.TTL_EXCEEDED, wire.now, sequence=number, offender=ip("198.51.100.1")
        )
        assert wire.quoted(wire.hear_one(), 11, 0, source="198.51.100.1")[ICMP].seq == number
    wire.stack.echo_failed(flow, ip(SERVER), effects.TTL_EXCEEDED, wire.now, sequence=17)
    wire.stack.echo_failed(flow, ip(OTHER_SERVER), effects.TTL_EXCEEDED, wire.now, sequence=5)
    assert wire.hears_nothing()


def test_requests_are_remembered_up_to_a_bound() -> None:
    wire = VirtualWire()
    flow = pinged(wire, sequence=0)
    for number in range(1, echo_flows.MAX_REQUESTS + 1):
        wire.send(ping(SERVER, sequence=number))
    assert len(wire.stack.echo._by_number[flow].requests) == echo_flows.MAX_REQUESTS
    wire.stack.echo_failed(flow, ip(SERVER), effects.HOST_UNREACHABLE, wire.now, sequence=0)
    assert wire.hears_nothing()
    wire.stack.echo_failed(flow, ip(SERVER), effects.HOST_UNREACHABLE, wire.now, sequence=1)
    assert wire.quoted(wire.hear_one(), 3, 1)[ICMP].seq == 1


def test_the_last_request_is_quoted_where_it_is_not_known_which() -> None:
    wire = VirtualWire()
    flow = pinged(wire)
    wire.send(ping(SERVER, sequence=2), ping(OTHER_SERVER, sequence=3))
    wire.stack.echo_failed(flow, ip(SERVER), effects.HOST_UNREACHABLE, wire.now)
    assert wire.quoted(wire.hear_one(), 3, 1)[ICMP].seq == 2
    wire.stack.echo_failed(flow, ip("9.9.9.9"), effects.HOST_UNREACHABLE, wire.now)
    wire.stack.echo_failed(999, ip(SERVER), effects.HOST_UNREACHABLE, wire.now)
    assert wire.hears_nothing()


def test_a_minute_of_silence_ends_it() -> None:
    """RFC 5508 section 3.2, REQ-1."""
    wire = VirtualWire()
    flow = pinged(wire, HOST_ALIAS, data=b"12345")
    wire.wait(59)
    wire.stack.echo_received(flow, ip(LOOPBACK), 1, b"123", wire.now)
    wire.wait(59)
    wire.send(ping(HOST_ALIAS, b"67"))
    assert wire.asked_one(SendEcho)
    wire.wait(59.9)
    assert wire.asks_nothing()
    wire.wait(0.2)
    assert wire.asked_one(CloseEcho) == CloseEcho(flow)
    assert wire.rests()
    guest, alias, dialled = (ip(GUEST), 77), (ip(HOST_ALIAS), 0), (ip(LOOPBACK), 0)
    verdict = Verdict(ALLOW, "echo", "no-list")
    assert wire.told(FlowOpened) == [FlowOpened(flow, "icmp", guest, alias, dialled, verdict)]
    assert wire.told(FlowClosed) == [FlowClosed(flow, "icmp", guest, alias, dialled, "idle", 7, 3, 178.0, verdict)]


def test_the_guest_that_left() -> None:
    wire = VirtualWire()
    flow = pinged(wire)
    wire.stack.guest_left(mac(GUEST_MAC), wire.now)
    assert wire.asked_one(CloseEcho) == CloseEcho(flow)
    wire.stack.echo_received(flow, ip(SERVER), 1, b"abc", wire.now)
    assert wire.hears_nothing()


def test_at_the_bound_the_oldest_makes_room() -> None:
    wire = VirtualWire(max_echo_flows=2)
    first, second = pinged(wire), pinged(wire, identifier=78)
    wire.send(ping(SERVER, identifier=79))
    closed, opened, sent = wire.asked()
    assert closed == CloseEcho(first)
    assert opened.flow == sent.flow
    assert wire.dropped == {"icmp-table-full": 1}
    wire.stack.echo_received(second, ip(SERVER), 1, b"abc", wire.now)
    assert heard(wire)[2] == 78


def test_an_identifier_that_pings_everybody_forgets_the_first() -> None:
    wire = VirtualWire()
    flow = pinged(wire, "10.0.0.0")
    for last in range(1, echo_flows.MAX_DESTINATIONS + 1):
        wire.send(ping(f"10.0.0.{last}"))
    wire.asked()
    wire.stack.echo_received(flow, ip("10.0.0.0"), 1, b"abc", wire.now)
    assert wire.hears_nothing()
    for last in (1, echo_flows.MAX_DESTINATIONS):
        wire.stack.echo_received(flow, ip(f"10.0.0.{last}"), 1, b"abc", wire.now)
        assert heard(wire)[0] == f"10.0.0.{last}"


def test_unused_addresses_have_no_socket() -> None:
    wire = VirtualWire()
    wire.send(ping(UNUSED))
    assert wire.asks_nothing()
    assert wire.quoted(wire.hear_one(), 3, 1).dst == UNUSED
