"""What impairments do to 10,000 frames: shares, delays, order, on time that is a number. Seeds are fixed, so that
nothing here is a matter of luck; tolerances are four deviations of the share or the mean that was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf, sqrt
from random import Random
from statistics import fmean, pstdev

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from guest_iface.impair import Impairer, ImpairmentCounts
from guest_iface.impair_spec import parse_impairment

FRAMES = 10_000
SPACING = 0.001
"""Seconds between two frames, as `ping -i 0.001` sends them."""
SIZE = 64


def numbered(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SIZE // 4)


def impairer(words: str, seed: int = 7, **options: bool) -> Impairer:
    return Impairer(parse_impairment(words), Random(seed), **options)


def passed(subject: Impairer, frames: int = FRAMES, spacing: float = SPACING) -> list[tuple[int, float]]:
    """Send numbered frames, and let the rest come out: number and seconds under way of each."""
    out: list[tuple[int, float]] = []

    def collect(now: float) -> None:
        for frame in subject.due(now):
            number = int.from_bytes(frame[:4], "big")
            out.append((number, now - number * spacing))

    for number in range(frames):
        now = number * spacing
        while (due := subject.next_due) <= now:
            collect(max(due, now - spacing))
        subject.admit(numbered(number), now)
        collect(now)
    while (due := subject.next_due) < inf:
        collect(max(due, (frames - 1) * spacing))
    assert subject.waiting == 0
    return out


def close_to(share: float, wanted: float, *, memory: float = 0.0, frames: int = FRAMES) -> bool:
    """Within four deviations of a share of so many outcomes, which may be correlated."""
    deviation = sqrt(wanted * (1 - wanted) / frames * (1 + memory) / (1 - memory))
    return abs(share - wanted) <= 4 * deviation


def runs(numbers: Sequence[int]) -> list[int]:
    """How many frames are missing in each gap."""
    return [after - before - 1 for before, after in pairwise(numbers) if after - before > 1]


@pytest.mark.parametrize("percent", [0.5, 1, 10, 50])
def test_loss_is_what_was_asked_for(percent: float) -> None:
    subject = impairer(f"loss {percent}%")
    out = passed(subject)
    assert close_to(1 - len(out) / FRAMES, percent / 100)
    assert subject.counts == ImpairmentCounts(seen=FRAMES, passed=len(out), lost=FRAMES - len(out))
    assert [delay for _, delay in out] == pytest.approx([0] * len(out), abs=1e-9)


def test_correlated_loss_keeps_its_share_and_comes_in_runs() -> None:
    numbers = [number for number, _ in passed(impairer("loss 10% 50%"))]
    assert close_to(1 - len(numbers) / FRAMES, 0.1, memory=0.5)
    # A run goes on with the chance 0.5 + 0.5 * 0.1; without correlation with 0.1.
    assert fmean(runs(numbers)) == pytest.approx(1 / (1 - 0.55), rel=0.15)
    assert fmean(runs([number for number, _ in passed(impairer("loss 10%"))])) == pytest.approx(1 / 0.9, rel=0.1)


def test_gilbert_elliott_loses_in_bursts() -> None:
    numbers = [number for number, _ in passed(impairer("loss gemodel 1% 10%"))]
    # Bad for 1 / 0.1 frames, good for 1 / 0.01.
    assert 1 - len(numbers) / FRAMES == pytest.approx(0.01 / 0.11, rel=0.25)
    assert fmean(runs(numbers)) == pytest.approx(10, rel=0.25)
    some = [number for number, _ in passed(impairer("loss gemodel 1% 10% 50% 1%"))]
    assert 1 - len(some) / FRAMES == pytest.approx(0.5 * 0.01 / 0.11 + 0.01 * 0.1 / 0.11, rel=0.25)


def test_four_states() -> None:
    alone = [number for number, _ in passed(impairer("loss state 0% 100% 0% 100% 5%"))]
    assert set(runs(alone)) == {1}, "from state 4 it is always back to 1"
    assert 1 - len(alone) / FRAMES == pytest.approx(0.05 / 1.05, rel=0.2)
    bursts = [number for number, _ in passed(impairer("loss state 1% 20%"))]
    assert fmean(runs(bursts)) == pytest.approx(5, rel=0.25)


def test_duplicates_and_limit() -> None:
    subject = impairer("duplicate 5%")
    numbers = [number for number, _ in passed(subject)]
    assert numbers == sorted(numbers)
    assert close_to(subject.counts.duplicated / FRAMES, 0.05)
    assert len(numbers) == FRAMES + subject.counts.duplicated
    full = impairer("delay 100ms limit 10")
    assert len(passed(full, 100, 0.0001)) == 10
    assert full.counts.overlimit == 90


def test_delay_and_jitter() -> None:
    out = passed(impairer("delay 50ms"))
    assert [number for number, _ in out] == list(range(FRAMES))
    assert [delay for _, delay in out] == pytest.approx([0.05] * FRAMES, abs=1e-6)
    uniform = [delay for _, delay in passed(impairer("delay 50ms 10ms"))]
    assert 0.040 <= min(uniform) < 0.0402
    assert 0.0598 < max(uniform) <= 0.060
    assert fmean(uniform) == pytest.approx(0.05, abs=4 * 0.01 / sqrt(3 * FRAMES))
    assert pstdev(uniform) == pytest.approx(0.01 / sqrt(3), rel=0.03)


@pytest.mark.parametrize("distribution", ["normal", "pareto", "paretonormal"])
@pytest.mark.parametrize("memory", ["", " 50%"])
def test_distributions_have_the_mean_and_the_deviation_that_was_asked_for(distribution: str, memory: str) -> None:
    delays = [delay for _, delay in passed(impairer(f"delay 50ms 10ms{memory} distribution {distribution}"))]
    assert fmean(delays) == pytest.approx(0.05, abs=0.0008)
    # A Pareto distribution's tail has no fourth moment: its deviation settles slowly.
    wanted = 0.01 if distribution != "paretonormal" else 0.01 * sqrt(0.25**2 + 0.75**2)
    assert pstdev(delays) == pytest.approx(wanted, rel=0.05 if distribution == "normal" else 0.3)
    if distribution == "normal":
        within = sum(abs(delay - 0.05) < 0.01 for delay in delays) / FRAMES
        assert close_to(within, 0.6827, memory=0.5 if memory else 0)
    else:
        assert 0.05 - min(delays) < max(delays) - 0.05, "the tail is on the late side"


def test_correlated_delays_resemble_each_other() -> None:
    def correlation(words: str) -> float:
        by_number = [delay for _, delay in sorted(passed(impairer(words)))]
        mean, spread = fmean(by_number), pstdev(by_number)
        return fmean((one - mean) * (other - mean) for one, other in pairwise(by_number)) / spread**2

    assert correlation("delay 50ms 10ms 75% distribution normal") == pytest.approx(0.75, abs=0.05)
    assert correlation("delay 50ms 10ms distribution normal") == pytest.approx(0, abs=0.05)


def test_a_jitter_larger_than_the_delay_travels_in_no_time_but_not_back() -> None:
    delays = [delay for _, delay in passed(impairer("delay 1ms 10ms distribution normal"))]
    assert min(delays) == pytest.approx(0, abs=1e-9)


def test_reordered_frames_overtake() -> None:
    subject = impairer("delay 10ms reorder 25%")
    out = passed(subject)
    early = [number for number, delay in out if delay < 0.001]
    assert subject.counts.reordered == len(early)
    assert close_to(len(early) / FRAMES, 0.25)
    assert [number for number, _ in out] != list(range(FRAMES))
    gap = [number for number, delay in passed(impairer("delay 10ms reorder 100% gap 5")) if delay < 0.001]
    assert gap == list(range(4, FRAMES, 5))


def test_rate_is_kept_and_its_queue_is_first_in_first_out() -> None:
    # 512 bits a frame at 256 kbit/s: 2 ms each, half of what is sent.
    subject = impairer("rate 256kbit limit 50")
    out = passed(subject, 2000)
    numbers = [number for number, _ in out]
    assert numbers == sorted(numbers)
    assert len(out) == pytest.approx(1000, abs=60)
    assert subject.counts.overlimit == 2000 - len(out)
    assert max(delay for _, delay in out) == pytest.approx(50 * 0.002, abs=0.005)
    alone = passed(impairer("delay 10ms rate 512kbit"), 10, 1.0)
    assert [delay for _, delay in alone] == pytest.approx([0.011] * 10)


def test_slots() -> None:
    out = passed(impairer("slot 20ms"))
    times = sorted({round(number * SPACING + delay, 6) for number, delay in out})
    assert len(out) == FRAMES
    assert min(after - before for before, after in pairwise(times)) >= 0.0199
    few = passed(impairer("slot 10ms 20ms packets 3 limit 20"), 1000)
    by_time: dict[float, int] = {}
    for number, delay in few:
        by_time[round(number * SPACING + delay, 6)] = by_time.get(round(number * SPACING + delay, 6), 0) + 1
    assert set(by_time.values()) <= {1, 2, 3}
    assert max(by_time.values()) == 3
    assert all(0.0099 <= after - before <= 0.0211 for before, after in pairwise(sorted(by_time)))
    bytes_of = passed(impairer("slot 10ms bytes 128"), 100)
    assert len({round(number * SPACING + delay, 6) for number, delay in bytes_of}) == pytest.approx(50, abs=2)


@pytest.mark.parametrize(
    "words",
    ["loss 5% 20%", "loss gemodel 2% 20%", "delay 9ms 3ms 10% distribution pareto duplicate 2%", "corrupt 5% loss 1%",
     "delay 5ms reorder 30% 50% gap 3 loss 2%", "slot 5ms 20ms"],
)  # fmt: skip
def test_the_same_seed_has_the_same_fate(words: str) -> None:
    def fate(seed: int) -> list[tuple[int, float]]:
        return passed(impairer(words, seed), 2000)

    assert fate(7) == fate(7)
    assert fate(7) != fate(8)


SEGMENT = bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP() / Raw(bytes(100)))
UNSUMMED = bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(chksum=0) / Raw(bytes(100)))
WHO_HAS = bytes(Ether() / ARP())
PING = bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP() / Raw(bytes(50)))


def bits_apart(one: bytes, other: bytes) -> list[int]:
    return [8 * at + bit for at in range(len(one)) for bit in range(8) if (one[at] ^ other[at]) >> bit & 1]


@pytest.mark.parametrize("frame", [SEGMENT, UNSUMMED, WHO_HAS, PING], ids=["tcp", "unsummed", "arp", "icmp"])
def test_corruption_flips_one_bit_anywhere(frame: bytes) -> None:
    subject = impairer("corrupt 100%")
    seen = set()
    for _ in range(3000):
        subject.admit(frame, 0.0)
        (damaged,) = subject.due(0.0)
        flipped = bits_apart(frame, damaged)
        assert len(flipped) == 1
        seen.add(flipped[0] // 8)
    assert len(seen) == len(frame), "every byte was hit"


@pytest.mark.parametrize(
    ("frame", "passing"),
    [(SEGMENT, 14 / len(SEGMENT)), (PING, 14 / len(PING)), (WHO_HAS, 1.0), (UNSUMMED, (14 + 108) / len(UNSUMMED))],
    ids=["tcp", "icmp", "arp", "unsummed"],
)
def test_damage_that_a_checksum_would_show_does_not_arrive_where_nobody_sums(frame: bytes, passing: float) -> None:
    """A guest's card and we trust checksums of each other: what a card that sums would drop is dropped here."""
    subject = impairer("corrupt 100%", receiver_sums=False)
    for _ in range(3000):
        subject.admit(frame, 0.0)
        for damaged in subject.due(0.0):
            (flipped,) = bits_apart(frame, damaged)
            if frame is not WHO_HAS:
                assert flipped < 8 * 14 or (frame is UNSUMMED and flipped >= 8 * 34)
    assert close_to(subject.counts.passed / 3000, passing, frames=3000) or passing == 1.0
    assert subject.counts.unreadable + subject.counts.passed == 3000


def test_what_waits_can_be_let_go() -> None:
    subject = impairer("delay 1s 500ms")
    for number in range(20):
        subject.admit(numbered(number), number * 0.1)
    assert subject.clear() == [numbered(number) for number in range(20)]
    assert subject.next_due == inf
