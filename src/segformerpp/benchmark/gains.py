"""How much faster one network is than another, in turns in one process: only ratios count."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segformerpp.benchmark.timing import FEWEST_ROUNDS, is_meaningless, median_uncertainty

#: A network that is quicker than this runs more than once in its turn.
TURN_SECONDS = 0.1
#: Rounds between which it is asked whether enough is known.
_STEP = 5

Turn = Callable[[], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Gain:
    """How many times as fast something is as what it is compared to, round by round.

    Args:
        ratios: seconds of the other over seconds of this, one for each round.
    """

    ratios: tuple[float, ...]

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)

    @property
    def uncertainty(self) -> float:
        """How far `value` may be off, over itself; see `timing.median_uncertainty`."""
        return median_uncertainty(self.ratios)

    @property
    def meaningless(self) -> bool:
        """Whether the rounds are too few, or differ too much, to tell anything."""
        return is_meaningless(self.ratios)

    @property
    def least(self) -> float:
        """What it is at least."""
        return self.value * (1 - self.uncertainty)

    @property
    def most(self) -> float:
        """What it is at most."""
        return self.value * (1 + self.uncertainty)

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.value * self.uncertainty:.2f}"


def turn(run: Callable[[], object]) -> Turn:
    """Make something ready to be timed: warm it up; a turn is then as many runs as make sense."""
    return timed_turn(lambda: _seconds(run))


def timed_turn(run: Callable[[], float]) -> Turn:
    """The same for what says itself how many seconds it took."""
    run()
    once = run()

    def take() -> list[float]:
        if once < TURN_SECONDS:
            run()  # the other's turn has emptied the caches
        return [run() for _ in range(math.ceil(TURN_SECONDS / once))]

    return take


def race(
    reference: Turn,
    candidate: Turn,
    decided: Callable[[Gain], bool],
    most_rounds: int,
    most_seconds: float,
) -> Gain:
    """Let two take turns until enough is known.

    Args:
        reference: what the other is compared to.
        candidate: what it is about.
        decided: asked after every few rounds whether what is known is enough.
        most_rounds: after which it ends in any case.
        most_seconds: after which it ends too, if there were the fewest rounds that tell anything.

    Returns:
        How many times as fast the candidate is.
    """
    ratios: list[float] = []
    start = time.perf_counter()
    while len(ratios) < most_rounds:
        # Each goes first in every other round: what warms up or cools down favours neither.
        first, second = (reference, candidate)[:: 1 if len(ratios) % 2 else -1]
        times = {first: statistics.median(first()), second: statistics.median(second())}
        ratios.append(times[reference] / times[candidate])
        late = time.perf_counter() - start > most_seconds and len(ratios) >= FEWEST_ROUNDS
        if late or (len(ratios) % _STEP == 0 and decided(Gain(tuple(ratios)))):
            break
    return Gain(tuple(ratios))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
