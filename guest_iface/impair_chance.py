"""The dice of impairments: chances with a memory, loss models with states, and how far a delay strays. All randomness
comes from the `random.Random` that is passed in.

A correlation of C per cent means here: with that chance the last outcome is repeated, else a new one is drawn. So the
share is what was asked for whatever the correlation, and outcomes k frames apart correlate by C to the power of k.
(netem averages its random numbers instead, which draws them to the middle: `loss 1% 25%` loses less than that there.)
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from guest_iface.impair_spec import Chance, Delay, GilbertElliott, Loss, StateLoss

Dice = Callable[[], bool]

_PARETO_SHAPE: Final = 3.0
_PARETO_MEAN: Final = 1.5
_PARETO_DEVIATION: Final = 0.75**0.5
"""Of the Pareto distribution of that shape with the minimum 1."""


def chance_dice(chance: Chance, random: Random) -> Dice:
    """Whether it happens this time."""
    share, memory, roll = chance.percent / 100, chance.correlation / 100, random.random
    if not memory:
        return lambda: roll() < share
    last: bool | None = None

    def correlated() -> bool:
        nonlocal last
        if last is None or roll() >= memory:
            last = roll() < share
        return last

    return correlated


def loss_dice(loss: Loss, random: Random) -> Dice:
    """Whether this frame is lost."""
    if isinstance(loss, Chance):
        return chance_dice(loss, random)
    if isinstance(loss, GilbertElliott):
        return _gilbert_elliott(loss, random)
    return _four_states(loss, random)


def _gilbert_elliott(loss: GilbertElliott, random: Random) -> Dice:
    to_bad, to_good = loss.to_bad / 100, loss.to_good / 100
    in_bad, in_good = loss.lost_in_bad / 100, loss.lost_in_good / 100
    roll = random.random
    bad = False

    def lost() -> bool:
        nonlocal bad
        if roll() < (to_good if bad else to_bad):
            bad = not bad
        return roll() < (in_bad if bad else in_good)

    return lost


def _four_states(loss: StateLoss, random: Random) -> Dice:
    """netem's Markov chain: 1 received in a gap, 2 received in a burst, 3 lost in a burst, 4 lost in a gap."""
    ways = {
        1: ((3, loss.p13 / 100), (4, loss.p14 / 100)),
        2: ((3, loss.p23 / 100),),
        3: ((1, loss.p31 / 100), (2, loss.p32 / 100)),
        4: ((1, 1.0),),
    }
    state = 1

    def lost() -> bool:
        nonlocal state
        rolled = random.random()
        for there, share in ways[state]:
            if rolled < share:
                state = there
                break
            rolled -= share
        return state in (3, 4)

    return lost


def delay_dice(delay: Delay, random: Random) -> Callable[[], float]:
    """Seconds that a frame is held, 0 or more."""
    middle, jitter, memory = delay.time / 1e9, delay.jitter / 1e9, delay.correlation / 100
    if not jitter:
        return lambda: middle
    stray = _STRAYS[delay.distribution]
    last: float | None = None

    def held() -> float:
        nonlocal last
        if last is None or not memory or random.random() >= memory:
            last = stray(random)
        return max(0.0, middle + jitter * last)

    return held


def _uniform(random: Random) -> float:
    return random.uniform(-1.0, 1.0)


def _normal(random: Random) -> float:
    return random.gauss(0.0, 1.0)


def _pareto(random: Random) -> float:
    return (random.paretovariate(_PARETO_SHAPE) - _PARETO_MEAN) / _PARETO_DEVIATION


def _pareto_normal(random: Random) -> float:
    return 0.25 * _normal(random) + 0.75 * _pareto(random)


_STRAYS: Final = {
    "uniform": _uniform,
    "normal": _normal,
    "pareto": _pareto,
    "paretonormal": _pareto_normal,
}
"""How many times the jitter: the uniform one at most once, the others with a mean of 0 and a deviation of 1."""
