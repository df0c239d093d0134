"""ARP in virtual time: what is answered, what is believed, how an address is resolved (conformance E10)."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether

from netstack.engine import neighbours
from netstack.engine.neighbours import Neighbours
from netstack.engine.settings import NetworkSettings

GATEWAY_MAC = "5a:94:ef:e4:0c:dd"
GUEST_MAC = "02:00:00:00:00:02"
OTHER_MAC = "02:00:00:00:00:99"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ip(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


class Table:
    """Neighbours with a guest that speaks scapy."""

    def __init__(self, leases: dict[bytes, bytes] | None = None, settings: NetworkSettings | None = None) -> None:
        self.drops: Counter[str] = Counter()
        self.leases = {} if leases is None else leases
        self.arp = Neighbours(
            settings or NetworkSettings(), drop=lambda reason: self.drops.update([reason]), holder=self.leases.get
        )

    def hear(self, now: float = 0.0, source: str = GUEST_MAC, **fields: object) -> list[Ether]:
        fields = {"op": "who-has", "hwsrc": source, "psrc": "192.168.127.2", "pdst": "192.168.127.1"} | fields
        self.arp.receive(bytes(ARP(**fields)) + bytes(18), mac(source), now)
        return self.frames()

    def frames(self) -> list[Ether]:
        return [Ether(frame) for frame in self.arp.take_frames()]

    def requests(self) -> list[tuple[str, str]]:
        """Destination MAC and address asked for, of all frames, which are all requests of ours."""
        asked = []
        for frame in self.frames():
            request = frame[ARP]
            assert (request.op, request.hwsrc, request.psrc) == (1, GATEWAY_MAC, "192.168.127.1")
            assert (frame.src, frame.type) == (GATEWAY_MAC, 0x0806)
            asked.append((frame.dst, request.pdst))
        return asked


def packet(number: int = 0, destination: str = "192.168.127.2") -> bytes:
    return bytes(IP(src="192.168.127.1", dst=destination) / UDP() / bytes([number]))


# -- what is answered


@pytest.mark.parametrize("target", ["192.168.127.1", "192.168.127.254"])
@pytest.mark.parametrize("sender", ["192.168.127.2", "0.0.0.0", "169.254.1.1"])
def test_the_gateways_addresses_are_answered(target: str, sender: str) -> None:
    """A probe (sender 0.0.0.0, RFC 5227) too, or two guests could not find out that the address is taken."""
    (reply,) = Table().hear(pdst=target, psrc=sender)
    assert (reply.dst, reply.src, reply.type) == (GUEST_MAC, GATEWAY_MAC, 0x0806)
    answer = reply[ARP]
    assert (answer.op, answer.hwsrc, answer.psrc) == (2, GATEWAY_MAC, target)
    assert (answer.hwdst, answer.pdst) == (GUEST_MAC, sender)


def test_a_virtual_address_outside_the_subnet_is_answered() -> None:
    table = Table(settings=NetworkSettings(virtual_ips=frozenset({ip("10.9.8.7")})))
    (reply,) = table.hear(pdst="10.9.8.7")
    assert reply[ARP].psrc == "10.9.8.7"


@pytest.mark.parametrize("target", ["192.168.127.2", "192.168.127.77", "8.8.8.8", "0.0.0.0", "255.255.255.255"])
def test_no_other_address_is_answered(target: str) -> None:
    """E10: neither other guests' addresses nor those behind the gateway (no proxy ARP)."""
    assert not Table().hear(pdst=target)


def test_replies_are_not_answered() -> None:
    assert not Table().hear(op="is-at")


# -- what is believed


def test_a_request_for_the_gateway_teaches_the_sender() -> None:
    table = Table()
    table.hear()
    assert table.arp.lookup(ip("192.168.127.2")) == mac(GUEST_MAC)
    assert table.arp.entries() == {ip("192.168.127.2"): mac(GUEST_MAC)}


def test_a_probe_teaches_nothing() -> None:
    table = Table()
    table.hear(psrc="0.0.0.0")
    assert not table.arp.entries()


def test_talk_between_others_updates_but_does_not_add() -> None:
    """RFC 826's merge flag."""
    table = Table()
    table.hear(pdst="192.168.127.3")
    assert not table.arp.entries()
    table.hear()
    table.hear(source=OTHER_MAC, pdst="192.168.127.3")
    assert table.arp.lookup(ip("192.168.127.2")) == mac(OTHER_MAC)


@pytest.mark.parametrize("claimed", ["192.168.127.1", "192.168.127.254"])
@pytest.mark.parametrize("operation", ["who-has", "is-at"])
@pytest.mark.parametrize("target", ["192.168.127.1", "192.168.127.254", "192.168.127.9"])
def test_nobody_else_can_be_the_gateway(claimed: str, operation: str, target: str) -> None:
    """E10: a gratuitous message, a poisoned reply, a request in the gateway's name."""
    table = Table()
    assert not table.hear(op=operation, psrc=claimed, pdst=target)
    assert not table.arp.entries()
    assert table.drops == {"arp-claims-gateway": 1}


def test_a_leased_address_stays_with_its_holder() -> None:
    """E10: one guest cannot draw another's packets to itself."""
    leases = {ip("192.168.127.2"): mac(GUEST_MAC)}
    table = Table(leases)
    table.hear()
    assert not table.hear(source=OTHER_MAC)
    table.arp.learn(ip("192.168.127.2"), mac(OTHER_MAC), 0.0)
    assert table.arp.lookup(ip("192.168.127.2")) == mac(GUEST_MAC)
    assert table.drops == {"arp-claims-lease": 1}


def test_a_new_lease_moves_the_address() -> None:
    leases: dict[bytes, bytes] = {}
    table = Table(leases)
    table.hear()
    leases[ip("192.168.127.2")] = mac(OTHER_MAC)
    table.arp.learn(ip("192.168.127.2"), mac(OTHER_MAC), 1.0)
    assert table.arp.lookup(ip("192.168.127.2")) == mac(OTHER_MAC)


@pytest.mark.parametrize(
    ("source", "fields", "reason"),
    [
        (GUEST_MAC, {"hwsrc": OTHER_MAC}, "arp-mac-mismatch"),
        ("01:00:5e:00:00:01", {}, "arp-bad-mac"),
        ("ff:ff:ff:ff:ff:ff", {}, "arp-bad-mac"),
        ("00:00:00:00:00:00", {}, "arp-bad-mac"),
        (GATEWAY_MAC, {}, "arp-bad-mac"),
        (GUEST_MAC, {"op": 9}, "arp-operation"),
        (GUEST_MAC, {"hwtype": 6}, "arp-type"),
    ],
)
def test_what_no_guest_sends_is_dropped(source: str, fields: dict[str, object], reason: str) -> None:
    table = Table()
    assert not table.hear(source=source, **fields)
    assert not table.arp.entries()
    assert table.drops == {reason: 1}


@pytest.mark.parametrize(
    ("address", "sender"),
    [
        ("10.0.0.1", GUEST_MAC),
        ("0.0.0.0", GUEST_MAC),
        ("192.168.127.0", GUEST_MAC),
        ("192.168.127.255", GUEST_MAC),
        ("192.168.127.1", GUEST_MAC),
        ("192.168.127.254", GUEST_MAC),
        ("192.168.127.2", "ff:ff:ff:ff:ff:ff"),
        ("192.168.127.2", GATEWAY_MAC),
    ],
)
def test_senders_of_packets_that_cannot_be(address: str, sender: str) -> None:
    table = Table()
    table.arp.learn(ip(address), mac(sender), 0.0)
    table.hear(psrc=address, source=sender)
    assert not table.arp.entries()


def test_packets_teach_but_do_not_overrule() -> None:
    table = Table()
    table.arp.learn(ip("192.168.127.2"), mac(GUEST_MAC), 0.0)
    table.arp.learn(ip("192.168.127.2"), mac(OTHER_MAC), 1.0)
    assert table.arp.lookup(ip("192.168.127.2")) == mac(GUEST_MAC)


@given(payload=st.binary(max_size=64), source=st.binary(min_size=6, max_size=6), now=st.floats(0, 1e9))
def test_any_bytes(payload: bytes, source: bytes, now: float) -> None:
    table = Table()
    table.arp.receive(payload, source, now)
    assert len(table.arp.take_frames()) <= 1


# -- resolving


def test_a_known_neighbour_is_sent_to_at_once() -> None:
    table = Table()
    table.hear()
    table.arp.send(ip("192.168.127.2"), packet(1), 0.0)
    (frame,) = table.frames()
    assert (frame.dst, frame.src, frame.type) == (GUEST_MAC, GATEWAY_MAC, 0x0800)
    assert bytes(frame[IP]) == packet(1)
    assert table.arp.next_deadline() == math.inf


def test_packets_wait_for_the_answer_in_order() -> None:
    table = Table()
    for number in range(3):
        table.arp.send(ip("192.168.127.2"), packet(number), 10.0)
    assert table.requests() == [("ff:ff:ff:ff:ff:ff", "192.168.127.2")]
    assert table.arp.next_deadline() == 11.0
    sent = table.hear(op="is-at", hwdst=GATEWAY_MAC, now=10.2)
    assert [bytes(frame[IP]) for frame in sent] == [packet(0), packet(1), packet(2)]
    assert {frame.dst for frame in sent} == {GUEST_MAC}
    assert table.arp.next_deadline() == math.inf
    assert not table.arp.take_unreachable()


def test_a_packet_from_the_guest_answers_as_well() -> None:
    table = Table()
    table.arp.send(ip("192.168.127.2"), packet(), 0.0)
    table.frames()
    table.arp.learn(ip("192.168.127.2"), mac(GUEST_MAC), 0.1)
    assert [bytes(frame[IP]) for frame in table.frames()] == [packet()]


def test_three_requests_a_second_apart_then_unreachable() -> None:
    table = Table()
    table.arp.send(ip("192.168.127.2"), packet(1), 0.0)
    table.arp.send(ip("192.168.127.2"), packet(2), 0.5)
    transcript = [(0.0, len(table.requests()))]
    while (now := table.arp.next_deadline()) < math.inf:
        assert not table.arp.take_unreachable()
        table.arp.advance(now)
        transcript.append((now, len(table.requests())))
    assert transcript == [(0.0, 1), (1.0, 1), (2.0, 1), (3.0, 0)]
    assert table.arp.take_unreachable() == [packet(1), packet(2)]
    assert not table.arp.take_unreachable()
    # A later packet begins anew.
    table.arp.send(ip("192.168.127.2"), packet(3), 3.0)
    assert len(table.requests()) == 1


def test_waiting_packets_are_bounded_and_the_latest_kept() -> None:
    table = Table()
    for number in range(neighbours.PACKETS_PER_ADDRESS + 2):
        table.arp.send(ip("192.168.127.2"), packet(number), 0.0)
    table.frames()
    sent = table.hear(op="is-at")
    assert [bytes(frame[IP]) for frame in sent] == [
        packet(number) for number in range(2, neighbours.PACKETS_PER_ADDRESS + 2)
    ]
    assert table.drops == {"arp-queue-full": 2}


def test_addresses_being_resolved_are_bounded() -> None:
    table = Table()
    for host in range(neighbours.MAX_PENDING + 5):
        table.arp.send(ip(f"192.168.127.{host + 2}"), packet(), 0.0)
    assert len(table.requests()) == neighbours.MAX_PENDING
    assert table.drops == {"arp-too-many-unresolved": 5}


# -- bounds and age


def test_the_table_is_bounded_and_the_oldest_goes() -> None:
    table = Table(settings=NetworkSettings(subnet=ip("10.0.0.0"), prefix_length=8, gateway_ip=ip("10.0.0.1")))
    for number in range(neighbours.TABLE_SIZE + 10):
        table.arp.learn((0x0A010000 + number).to_bytes(4, "big"), mac(GUEST_MAC), 0.0)
    entries = table.arp.entries()
    assert len(entries) == neighbours.TABLE_SIZE
    assert ip("10.1.0.9") not in entries
    assert ip("10.1.0.10") in entries


def test_an_old_entry_is_asked_after_and_stays_if_it_answers() -> None:
    table = Table()
    table.hear(now=0.0)
    table.arp.advance(neighbours.LIFETIME - 1)
    assert not table.frames()
    now = neighbours.LIFETIME + neighbours.SWEEP_INTERVAL
    table.arp.advance(now)
    # Asked directly, not by broadcast; still used meanwhile.
    assert table.requests() == [(GUEST_MAC, "192.168.127.2")]
    assert table.arp.lookup(ip("192.168.127.2")) == mac(GUEST_MAC)
    table.hear(op="is-at", hwdst=GATEWAY_MAC, now=now + 0.1)
    assert table.arp.next_deadline() == math.inf
    table.arp.advance(now + neighbours.SWEEP_INTERVAL + 1)
    assert not table.frames()


def test_an_old_entry_that_stays_silent_is_forgotten() -> None:
    table = Table()
    table.hear(now=0.0)
    table.arp.advance(1000.0)
    for now in (1001.0, 1002.0):
        assert len(table.requests()) == 1
        table.arp.advance(now)
    table.arp.advance(1003.0)
    assert not table.arp.entries()
    assert table.arp.next_deadline() == math.inf
    assert not table.arp.take_unreachable()


def test_traffic_keeps_an_entry_fresh() -> None:
    table = Table()
    table.hear(now=0.0)
    for now in range(0, 3000, 50):
        table.arp.learn(ip("192.168.127.2"), mac(GUEST_MAC), float(now))
        table.arp.advance(float(now))
    assert not table.frames()


def test_too_many_old_entries_are_dropped_rather_than_asked() -> None:
    table = Table()
    for host in range(2, 200):
        table.arp.learn(ip(f"192.168.127.{host}"), mac(GUEST_MAC), 0.0)
    table.arp.advance(1000.0)
    assert len(table.requests()) == len(table.arp.entries()) == neighbours.MAX_PENDING


def test_an_idle_table_wakes_nobody() -> None:
    table = Table()
    table.hear()
    assert table.arp.next_deadline() == math.inf
