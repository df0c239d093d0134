"""Whole transfers on virtual time over links that lose, repeat, delay and reorder: every byte arrives, both ends."""

from __future__ import annotations

from random import Random

import pytest

from netstack.engine import tcp_states as st
from netstack.engine.tcp_limits import TcpLimits
from netstack.engine.tcp_recovery import MAX_QUEUEING

from .tcp_guest import GuestModel
from .tcp_simulation import EngineEnd, Link, Simulation

HOURS = 3600.0


def text(seed: int, size: int) -> bytes:
    return Random(seed).randbytes(size)


def finished(end: EngineEnd) -> bool:
    return end.over and end.connection.state in (st.TIME_WAIT, st.CLOSED)


@pytest.fixture
def timeouts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each retransmission timeout of the engine."""
    seen: list[int] = []
    original = EngineEnd.settle

    def counted(self: EngineEnd, now: float) -> list[bytes]:
        sender = self.connection._sender
        before = sender.retransmissions
        said = original(self, now)
        if sender.retransmissions > before:
            seen.append(sender.retransmissions)
        return said

    monkeypatch.setattr(EngineEnd, "settle", counted)
    return seen


@pytest.mark.parametrize("seed", range(40))
def test_the_engine_and_a_guest_of_another_make(seed: int) -> None:
    random = Random(seed)
    down, up = text(seed, random.randint(0, 60_000)), text(seed + 1, random.randint(0, 60_000))
    engine = EngineEnd(
        TcpLimits(mss=random.choice((1460, 1460, 536)), max_receive_window=random.choice((1 << 20, 20_000, 3_000))),
        random.choice((1, 0xFFFF_FFFF - 20_000, 0x7FFF_F000)),
        outgoing=down,
        take_rate=random.choice((float("inf"), float("inf"), 100_000)),
    )
    guest = GuestModel(
        random.choice((1, 0xFFFF_FFFF - 20_000, 0x7FFF_F000)),
        up,
        sack=random.random() < 0.6,
        timestamps=random.random() < 0.6,
        scale=random.choice((None, 0, 7)),
        window=random.choice((1 << 18, 20_000, 3_000)),
        mss=random.choice((1460, 1000, 200)),
        segments=random.choice((2, 10, 40)),
        delayed_ack=random.choice((0.0, 0.04, 0.2)),
        read_rate=random.choice((float("inf"), float("inf"), 100_000)),
    )
    link = Link(
        delay=random.choice((0.0005, 0.01, 0.1)),
        jitter=random.choice((0.0, 0.002)),
        loss=random.choice((0.0, 0.01, 0.05, 0.15)),
        duplicate=random.choice((0.0, 0.05)),
        reorder=random.choice((0.0, 0.1, 0.3)),
        reorder_delay=random.choice((0.001, 0.03)),
    )
    simulation = Simulation(engine, guest, link, seed)
    simulation.run(HOURS, lambda: engine.over and guest.over)
    assert bytes(engine.received) == up
    assert bytes(guest.received) == down
    assert not guest.reset
    assert guest.peer_finished
    assert engine.signals & st.PEER_FINISHED
    assert finished(engine)
    assert guest.beyond <= 1, "bytes beyond the guest's window, and not just a probe"
    assert engine.worst_window <= engine.connection._limits.max_receive_window + 128
    assert engine.worst_waiting <= engine.connection._limits.max_receive_window * 5 // 4 + 128


@pytest.mark.parametrize("seed", range(25))
def test_two_engines(seed: int) -> None:
    random = Random(1000 + seed)
    one, other = text(seed, random.randint(0, 300_000)), text(seed + 1, random.randint(0, 300_000))
    limits = TcpLimits(max_receive_window=random.choice((1 << 20, 30_000)))
    passive = EngineEnd(limits, 0xFFFF_FFFF - random.randint(0, 200_000), outgoing=one)
    active = EngineEnd(
        TcpLimits(mss=random.choice((1460, 1200))),
        0xFFFF_FFFF - random.randint(0, 200_000),
        active=True,
        outgoing=other,
        take_rate=random.choice((float("inf"), 500_000)),
    )
    link = Link(
        delay=random.choice((0.0005, 0.01)),
        jitter=random.choice((0.0, 0.003)),
        loss=random.choice((0.0, 0.02, 0.1)),
        duplicate=random.choice((0.0, 0.05)),
        reorder=random.choice((0.0, 0.2)),
        rate=random.choice((float("inf"), 2e6)),
    )
    simulation = Simulation(passive, active, link, seed)
    simulation.run(HOURS, lambda: passive.over and active.over)
    assert bytes(passive.received) == other
    assert bytes(active.received) == one
    assert finished(passive)
    assert finished(active)
    simulation.run(2 * HOURS, lambda: False)
    assert (passive.connection.state, active.connection.state) == (st.CLOSED, st.CLOSED)


def test_both_engines_open_at_once() -> None:
    one, other = text(1, 50_000), text(2, 50_000)
    left = EngineEnd(TcpLimits(), 5, active=True, outgoing=one)
    right = EngineEnd(TcpLimits(), 0xFFFF_FFF0, active=True, outgoing=other)
    simulation = Simulation(left, right, Link(loss=0.05), 3)
    simulation.run(HOURS, lambda: left.over and right.over)
    assert (bytes(left.received), bytes(right.received)) == (other, one)


def test_a_guest_that_stops_reading_for_minutes() -> None:
    """F6, F7: what waits is bounded by the window, and all of it arrives in the end."""
    size = 200_000
    engine = EngineEnd(TcpLimits(), 9, outgoing=text(4, size))
    guest = GuestModel(7, b"", window=20_000, read_rate=2_000)
    simulation = Simulation(engine, guest, Link(delay=0.001, loss=0.02), 5)
    simulation.run(HOURS, lambda: engine.over and guest.over)
    assert bytes(guest.received) == text(4, size)
    assert simulation.now > 80
    assert guest.beyond <= 1


def transfer(size: int, link: Link, seed: int, **guest: object) -> tuple[float, int]:
    """Seconds until `size` bytes have reached the guest, and data frames sent."""
    engine = EngineEnd(TcpLimits(), 1, outgoing=bytes(size))
    other = GuestModel(5, b"", window=1 << 20, **guest)  # type: ignore[arg-type] # options of the model
    simulation = Simulation(engine, other, link, seed)
    frames = [0]

    def watch(side: int, frame: bytes, now: float) -> None:
        frames[0] += side == 0 and len(frame) > 100

    simulation.watch = watch
    simulation.run(HOURS, lambda: engine.over and other.over)
    assert len(other.received) == size
    return simulation.now, frames[0]


@pytest.mark.parametrize("rtt", [0.001, 0.02])
def test_losses_are_repaired_without_the_timer(rtt: float, timeouts: list[int]) -> None:
    """3 % loss in both directions: next to every loss is repaired by SACK, and little is sent in vain."""
    size, frames, seconds = 500_000, 0, 0.0
    for seed in range(4):
        link = Link(delay=rtt / 2, loss=0.03)
        elapsed, sent = transfer(size, link, seed)
        seconds += elapsed
        frames += sent
    lost = 4 * size / 1448 * 0.03
    assert len(timeouts) <= lost / 12
    assert frames <= 1.08 * 4 * size / 1448
    # Mathis et al.: MSS / RTT * 1.22 / sqrt(p). Half of it is what short transfers with two timeouts may come down to.
    if rtt > 0.01:
        assert 4 * size / seconds > 0.5 * 1448 / rtt * 1.22 / 0.03**0.5


def test_reordering_is_learnt_and_not_taken_for_loss(timeouts: list[int]) -> None:
    """A quarter of the frames half a round trip late, none lost."""
    _, frames = transfer(1_000_000, Link(delay=0.01, reorder=0.25, reorder_delay=0.01), 1)
    assert not timeouts
    assert frames <= 1.03 * 1_000_000 / 1448


def test_without_sack_losses_are_repaired_too(timeouts: list[int]) -> None:
    size = 500_000
    link = Link(delay=0.01, loss=0.01, rate=2e6)
    elapsed, frames = transfer(size, link, 2, sack=False)
    assert len(timeouts) <= 3
    assert frames <= 1.05 * size / 1448
    assert elapsed < 5


def test_a_duplicating_link_causes_no_repetitions(timeouts: list[int]) -> None:
    _, frames = transfer(500_000, Link(delay=0.01, duplicate=0.3), 2)
    assert not timeouts
    assert frames == -(-500_000 // 1448)


def test_a_queue_that_overflows_costs_little(timeouts: list[int]) -> None:
    """2 MB/s with a queue of 30 frames: slow start overshoots once, then the window finds its size."""
    size = 2_000_000
    elapsed, frames = transfer(size, Link(delay=0.005, rate=2e6, queue=30), 1)
    assert size / elapsed > 0.85 * 2e6
    assert not timeouts
    assert frames <= 1.05 * size / 1448


def test_a_queue_without_end_is_kept_short() -> None:
    """100 MB/s and a queue that loses nothing: a window that has grown too large comes back, and the way stays busy."""
    size, rate, delay = 12_000_000, 1e8, 0.0001
    engine = EngineEnd(TcpLimits(), 1, outgoing=bytes(size))
    guest = GuestModel(5, b"", window=1 << 22)
    simulation = Simulation(engine, guest, Link(delay=delay, rate=rate, queue=1 << 20), 1)
    sent: list[tuple[float, float]] = []

    def watch(side: int, _frame: bytes, now: float) -> None:
        if side == 0:
            sent.append((now, max(0.0, simulation.free_at[0] - now)))

    simulation.watch = watch
    simulation.run(HOURS, lambda: engine.over and guest.over)
    assert len(guest.received) == size
    assert size / sent[-1][0] > 0.9 * rate
    waits = [wait for _, wait in sent]
    longest = max(waits[: len(waits) // 2])
    came_back = min(waits[waits.index(longest) :])
    assert 0 < came_back < 2 * delay + MAX_QUEUEING < longest


def test_the_last_segments_of_a_transfer_do_not_wait_for_the_timer(timeouts: list[int]) -> None:
    """Each of the last segments of a burst lost, one experiment each: two or three round trips more, not 200 ms."""
    for victim in range(1, 6):
        engine = EngineEnd(TcpLimits(), 1, outgoing=bytes(5 * 1448))
        guest = GuestModel(5, b"")
        simulation = Simulation(engine, guest, Link(delay=0.001), 0)
        seen: list[int] = []

        def drop(side: int, frame: bytes, now: float, victim: int = victim, seen: list[int] = seen) -> bool:
            if side == 0 and len(frame) > 100:
                seen.append(len(frame))
                return len(seen) == victim
            return False

        simulation.drop = drop
        simulation.run(60, lambda guest=guest: guest.peer_finished)  # type: ignore[misc] # one of this round
        assert len(guest.received) == 5 * 1448
        assert simulation.now < 0.05
    assert not timeouts
