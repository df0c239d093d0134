"""The learning switch, against links that only remember what they were given. Time is a number."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from guest_iface.link import Link, LinkCapabilities, LinkCounters
from guest_iface.switch import AGEING_TIME, MAX_ENTRIES, MAX_ENTRIES_PER_PORT, TAKE_OVER, Switch

GATEWAY = bytes.fromhex("5a94efe40cdd")
BROADCAST = b"\xff" * 6
A, B, C = (bytes([0x02, 0, 0, 0, 0, number]) for number in (0xA, 0xB, 0xC))


class RecordingLink(Link):
    """A link that sends nowhere."""

    def __init__(self, name: str = "link") -> None:
        self.name = name
        self.capabilities = LinkCapabilities()
        self.counters = LinkCounters()
        self.sent: list[bytes] = []
        self.waiting = 0

    def taken(self) -> list[bytes]:
        """What was sent since the last call."""
        sent, self.sent = self.sent, []
        return sent

    async def receive_batch(self) -> list[bytes]:
        raise NotImplementedError

    def send_batch(self, frames: Sequence[bytes]) -> None:
        self.sent += frames

    @property
    def backlog(self) -> int:
        return self.waiting

    async def wait_backlog_drained(self) -> None:
        raise NotImplementedError

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Net:
    """A switch with some links."""

    def __init__(self, ports: int) -> None:
        self.switch = Switch(GATEWAY)
        self.links = [RecordingLink(f"link {number}") for number in range(ports)]
        self.ports = [self.switch.attach(link) for link in self.links]

    def send(self, port: int, *frames: bytes, now: float = 0.0) -> list[bytes]:
        return self.switch.ingress(self.ports[port], list(frames), now)

    def taken(self) -> list[list[bytes]]:
        return [link.taken() for link in self.links]


def frame(destination: bytes, source: bytes, number: int = 0) -> bytes:
    return destination + source + b"\x08\x00" + bytes([number]) * 46


def test_one_guest_and_the_gateway() -> None:
    net = Net(1)
    frames = [frame(BROADCAST, A), *(frame(GATEWAY, A, number) for number in range(10))]
    assert net.send(0, *frames) == frames
    assert net.send(0, *frames[1:]) == frames[1:]  # the fast path
    assert net.send(0) == []
    net.switch.egress([frame(A, GATEWAY), frame(BROADCAST, GATEWAY), frame(B, GATEWAY)])
    assert len(net.links[0].taken()) == 3
    assert net.switch.drops == {}


def test_frames_to_nobody_go_nowhere() -> None:
    net = Net(1)
    assert net.send(0, frame(B, A), frame(GATEWAY, A)) == [frame(GATEWAY, A)]
    assert net.switch.drops == {"nobody on another port": 1}


def test_unknown_unicast_is_flooded_and_known_unicast_is_not() -> None:
    net = Net(3)
    assert net.send(0, frame(B, A)) == []
    assert net.taken() == [[], [frame(B, A)], [frame(B, A)]]
    net.send(1, frame(GATEWAY, B))
    assert net.send(0, frame(B, A)) == []
    assert net.taken() == [[], [frame(B, A)], []]


def test_groups_reach_everybody_but_the_sender() -> None:
    net = Net(3)
    for group in (BROADCAST, bytes.fromhex("01005e0000fb"), bytes.fromhex("333300000001")):
        assert net.send(1, frame(group, B)) == [frame(group, B)]
        assert net.taken() == [[frame(group, B)], [], [frame(group, B)]]


@pytest.mark.parametrize("last", [0x00, 0x01, 0x0E, 0x0F])
def test_frames_for_the_link_itself_are_not_forwarded(last: int) -> None:
    net = Net(2)
    assert net.send(0, frame(bytes.fromhex("0180c20000") + bytes([last]), A)) == []
    assert net.taken() == [[], []]
    assert net.switch.drops == {"reserved for the link itself": 1}


def test_the_group_behind_the_reserved_ones_is_forwarded() -> None:
    net = Net(2)
    assert len(net.send(0, frame(bytes.fromhex("0180c2000010"), A))) == 1
    assert len(net.links[1].taken()) == 1


def test_never_back_to_the_port_it_came_from() -> None:
    net = Net(2)
    net.send(0, frame(GATEWAY, A), frame(GATEWAY, B))
    assert net.send(0, frame(A, B)) == []
    assert net.taken() == [[], []]
    assert net.switch.drops == {"nobody on another port": 1}


def test_egress_goes_where_the_destination_is() -> None:
    net = Net(3)
    net.send(0, frame(GATEWAY, A))
    net.send(1, frame(GATEWAY, B))
    frames = [frame(A, GATEWAY, 1), frame(B, GATEWAY, 2), frame(A, GATEWAY, 3), frame(C, GATEWAY, 4)]
    net.switch.egress([*frames, frame(BROADCAST, GATEWAY, 5)])
    unknown = [frames[3], frame(BROADCAST, GATEWAY, 5)]
    assert net.taken() == [[frames[0], frames[2], *unknown], [frames[1], *unknown], unknown]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (A, "source MAC belongs to another port"),
        (GATEWAY, "source is the gateway's MAC"),
        (BROADCAST, "source is a multicast MAC"),
        (bytes.fromhex("01005e000001"), "source is a multicast MAC"),
    ],
)
def test_claimed_sources_are_refused(source: bytes, reason: str) -> None:
    net = Net(2)
    net.send(0, frame(GATEWAY, A))
    net.send(1, frame(GATEWAY, B))
    assert net.send(1, frame(GATEWAY, source), frame(BROADCAST, source), frame(GATEWAY, B)) == [frame(GATEWAY, B)]
    assert net.switch.drops == {reason: 2}
    assert net.taken() == [[], []]
    net.switch.egress([frame(A, GATEWAY)])
    assert net.taken() == [[frame(A, GATEWAY)], []]


@pytest.mark.parametrize("size", range(14))
def test_short_frames_are_dropped_on_every_path(size: int) -> None:
    net = Net(1)
    short = frame(GATEWAY, A)[:size]
    assert net.send(0, short) == []
    net.send(0, frame(GATEWAY, A))
    assert net.send(0, short) == []
    assert net.send(0, frame(GATEWAY, A), short) == [frame(GATEWAY, A)]
    assert net.switch.drops == {"frame too short": 3}


def test_a_silent_mac_is_free_again_after_its_time() -> None:
    net = Net(2)
    net.send(0, frame(GATEWAY, A), now=0.0)
    assert net.send(1, frame(GATEWAY, A), now=AGEING_TIME - 1) == []
    assert net.send(1, frame(GATEWAY, A), now=AGEING_TIME) == [frame(GATEWAY, A)]
    assert net.send(0, frame(GATEWAY, A), now=AGEING_TIME) == []  # not even by what its old port remembers
    assert [(entry.mac, entry.link) for entry in net.switch.table(AGEING_TIME)] == [(A, "link 1")]


@pytest.mark.parametrize("others", [0, 1])
def test_a_busy_mac_stays_bound(others: int) -> None:
    """On the fast path and on the general one."""
    net = Net(2)
    sources = (A, C)[: others + 1]
    for second in range(0, 700, 100):
        for source in sources:
            assert net.send(0, frame(GATEWAY, source), now=float(second)) != []
    assert net.send(1, frame(GATEWAY, A), now=700.0) == []
    assert {entry.mac for entry in net.switch.table(700.0)} == set(sources)


def test_detach_frees_what_was_bound_and_tells_it() -> None:
    net = Net(2)
    net.send(0, frame(GATEWAY, A), frame(GATEWAY, C))
    net.send(1, frame(GATEWAY, B))
    assert sorted(net.switch.detach(net.ports[0])) == sorted([A, C])
    assert net.send(1, frame(GATEWAY, A)) == [frame(GATEWAY, A)]
    assert net.send(1, frame(C, B)) == []
    assert net.links[0].taken() == []
    with pytest.raises(KeyError):
        net.switch.detach(net.ports[0])
    assert net.switch.attach(RecordingLink()) not in net.ports


def test_one_port_cannot_fill_the_table() -> None:
    net = Net(2)
    flood = [frame(GATEWAY, number.to_bytes(6, "big")) for number in range(1 << 33, (1 << 33) + 1000)]
    assert len(net.send(0, *flood)) == MAX_ENTRIES_PER_PORT
    assert net.switch.drops == {"too many MACs on one port": 1000 - MAX_ENTRIES_PER_PORT}
    assert net.send(1, frame(GATEWAY, B)) == [frame(GATEWAY, B)]
    assert len(net.send(0, *flood[500:510], now=AGEING_TIME)) == 10  # the old ones have aged


def test_the_table_is_bounded_in_total() -> None:
    ports = MAX_ENTRIES // MAX_ENTRIES_PER_PORT
    net = Net(ports + 1)
    for port in range(ports):
        macs = [bytes([2, 0, 0, 0, port, number]) for number in range(MAX_ENTRIES_PER_PORT)]
        net.send(port, *(frame(GATEWAY, mac) for mac in macs))
    assert len(net.switch.table(0.0)) == MAX_ENTRIES
    assert net.send(ports, frame(GATEWAY, b"\x02\0\0\0\xff\0")) == []
    assert net.switch.drops == {"too many MACs": 1}


def test_the_table_lists_ages() -> None:
    net = Net(2)
    net.send(0, frame(GATEWAY, A), now=1.0)
    net.send(1, frame(GATEWAY, B), now=3.0)
    assert [tuple(entry) for entry in net.switch.table(10.0)] == [
        (A, net.ports[0], "link 0", 9.0),
        (B, net.ports[1], "link 1", 7.0),
    ]


def test_one_full_guest_does_not_hold_the_others_back() -> None:
    net = Net(2)
    assert Switch(GATEWAY).backlog == 0
    net.links[0].waiting = 4096
    assert net.switch.backlog == 0
    net.links[1].waiting = 10
    assert net.switch.backlog == 10


MACS = st.sampled_from([A, B, C, GATEWAY, BROADCAST, bytes.fromhex("01005e000001"), bytes(6)])
FRAMES = st.one_of(
    st.builds(frame, MACS, MACS, st.integers(0, 255)),
    st.binary(max_size=20),
    st.builds(lambda head, cut: head[:cut], st.builds(frame, MACS, MACS), st.integers(0, 20)),
)


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(FRAMES, max_size=4), st.floats(0, 200)), max_size=30))
def test_any_traffic_keeps_the_rules(traffic: list[tuple[int, list[bytes], float]]) -> None:
    """Nothing raises; nothing returns to its port; nothing is doubled; nobody sends as the gateway; the table is
    right.
    """
    net = Net(3)
    now = 0.0
    for port, frames, passed in traffic:
        now += passed
        for_gateway = net.send(port, *frames, now=now)
        sent = net.taken()
        assert sent[port] == []
        for given_on in (for_gateway, *sent):
            remaining = list(frames)
            for one in given_on:
                remaining.remove(one)
                assert len(one) >= 14
                assert one[6:12] != GATEWAY
                assert not one[6] & 1
        assert all(one[:6] == GATEWAY or one[0] & 1 for one in for_gateway)
        entries = net.switch.table(now)
        assert len({entry.mac for entry in entries}) == len(entries)
        for number in net.ports:
            station_count = sum(entry.port == number for entry in entries)
            assert net.switch._ports[number].stations == station_count <= MAX_ENTRIES_PER_PORT
        owners = {entry.mac: entry.port for entry in entries}
        assert all(owners[one[6:12]] == net.ports[port] for one in for_gateway)


def test_e13_guests_kept_apart_reach_the_gateway_and_nobody_else() -> None:
    """Conformance E13: what goes from guest to guest here passes by every policy."""
    noted: list[str] = []
    net = Net(3)
    net.switch = Switch(GATEWAY, note_drop=noted.append)
    net.ports = [net.switch.attach(link) for link in net.links]
    net.switch.keeps_apart = True
    net.send(1, frame(GATEWAY, B))
    frames = [frame(BROADCAST, A), frame(bytes.fromhex("01005e0000fb"), A), frame(GATEWAY, A)]
    assert net.send(0, *frames, frame(B, A), frame(C, A)) == frames
    assert net.taken() == [[], [], []]
    assert net.switch.drops == {"guests are kept apart": 2}
    assert noted == ["guests are kept apart"] * 2
    net.switch.egress([frame(A, GATEWAY), frame(B, GATEWAY)])
    assert net.taken() == [[frame(A, GATEWAY)], [frame(B, GATEWAY)], []]
    net.switch.keeps_apart = False
    assert net.send(0, frame(B, A)) == []
    assert net.taken() == [[], [frame(B, A)], []]


def test_e9_e11_guests_kept_apart_have_one_mac_each() -> None:
    """Conformance E9, E11: one card at a time, so one lease at a time. Another comes in when that one is silent."""
    net = Net(2)
    assert net.send(0, frame(GATEWAY, A), frame(GATEWAY, C)) == [frame(GATEWAY, A), frame(GATEWAY, C)]
    net.switch.keeps_apart = True
    assert net.send(0, frame(GATEWAY, C), frame(GATEWAY, A)) == [frame(GATEWAY, C)], "looked at anew"
    assert net.send(1, frame(GATEWAY, B), frame(GATEWAY, A)) == [frame(GATEWAY, B)]
    assert net.switch.drops == {"second MAC on one port": 2}
    assert net.send(0, frame(GATEWAY, A), now=TAKE_OVER - 0.1) == []
    assert net.send(0, frame(GATEWAY, A), frame(GATEWAY, C), now=TAKE_OVER) == [frame(GATEWAY, A)]
    assert [entry.mac for entry in net.switch.table(TAKE_OVER)] == [B, A]
    net.switch.keeps_apart = False
    assert net.send(0, frame(GATEWAY, C), now=TAKE_OVER) == [frame(GATEWAY, C)]


def test_keeping_apart_forgets_nobody_who_is_alone() -> None:
    net = Net(2)
    net.send(0, frame(GATEWAY, A))
    net.switch.keeps_apart = True
    net.switch.egress([frame(A, GATEWAY)])
    assert net.taken() == [[frame(A, GATEWAY)], []]


def test_keeping_apart_when_the_last_to_speak_is_forgotten_and_another_is_not() -> None:
    """What A said right after B did not count as news of A, so that A is the first to be forgotten."""
    switch = Switch(GATEWAY)
    port = switch.attach(RecordingLink())
    for mac, when in ((A, 0.0), (B, 0.5), (A, 0.9)):
        assert switch.ingress(port, [frame(GATEWAY, mac)], when)
    now = AGEING_TIME + 0.2
    assert [entry.mac for entry in switch.table(now)] == [B]
    switch.keeps_apart = True
    assert switch.ingress(port, [frame(GATEWAY, C)], now) == [frame(GATEWAY, C)]
    assert [entry.mac for entry in switch.table(now)] == [C]


def test_offload_is_that_of_the_link_a_guest_is_on() -> None:
    net = Net(2)
    net.links[1].capabilities = LinkCapabilities(segment_offload=65_455)
    net.switch.ingress(0, [GATEWAY + A + bytes(50)], 0.0)
    net.switch.ingress(1, [GATEWAY + B + bytes(50)], 0.0)
    assert [net.switch.segment_offload(mac) for mac in (A, B, C)] == [0, 65_455, 0]
    net.switch.forget(1)
    assert net.switch.segment_offload(B) == 0
