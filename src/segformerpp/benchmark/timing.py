"""Timing candidates beside each other, so that what disturbs one disturbs all."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

#: A median that is less certain than this, in shares of itself, says nothing.
MAX_UNCERTAINTY = 0.05
FEWEST_ROUNDS = 3

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds that the runs of a candidate took, round by round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def median(self) -> float:
        """Seconds: the median over the rounds of each round's median."""
        return statistics.median(self._medians)

    @property
    def p95(self) -> float:
        """Seconds that 95 % of all runs stay below."""
        return _quantile([seconds for runs in self.rounds for seconds in runs], 0.95)

    @property
    def uncertainty(self) -> float:
        """How far the median may be off, over the median; see `median_uncertainty`."""
        return median_uncertainty(self._medians)

    @property
    def meaningless(self) -> bool:
        """Whether the rounds differ too much for their number to tell anything."""
        return is_meaningless(self._medians)

    @property
    def _medians(self) -> list[float]:
        return [statistics.median(runs) for runs in self.rounds]


class Interrupted(KeyboardInterrupt):
    """The user interrupted.

    Attributes:
        timings: of the rounds that were whole by then; empty if there was none.
    """

    def __init__(self, timings: Mapping[Any, Timing]) -> None:
        super().__init__()
        self.timings = timings


def median_uncertainty(values: Sequence[float]) -> float:
    """How far the median of some figures above 0 may be off, over the median.

    The notch of a box plot: 1.57 times the width of the middle half of the values over the
    square root of how many there are (McGill, Tukey, Larsen: Variations of Box Plots, 1978).
    """
    width = _quantile(values, 0.75) - _quantile(values, 0.25)
    return 1.57 * width / math.sqrt(len(values)) / statistics.median(values)


def is_meaningless(values: Sequence[float]) -> bool:
    """Whether figures are too few, or differ too much, for their median to tell anything."""
    return len(values) < FEWEST_ROUNDS or median_uncertainty(values) > MAX_UNCERTAINTY


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share))


def interleave(
    candidates: Mapping[Key, Callable[[], Sequence[float]]],
    rounds: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[Key, Timing]:
    """Give every candidate a turn in each round, each round in another order.

    Args:
        candidates: what runs, once or more often, and says how many seconds each run took.
        rounds: how many.
        advance: called after each turn.

    Returns:
        The timings in the order of the candidates.

    Raises:
        Interrupted: if the user interrupts; it holds the timings of the rounds that were whole.
    """
    times: dict[Key, list[tuple[float, ...]]] = {key: [] for key in candidates}
    order, shuffle = list(candidates), random.Random(0).shuffle
    done = 0
    try:
        for _ in range(rounds):
            shuffle(order)
            for key in order:
                times[key].append(tuple(candidates[key]()))
                advance()
            done += 1
    except KeyboardInterrupt:
        raise Interrupted(_timings(times, done)) from None
    return _timings(times, done)


def _timings(times: Mapping[Key, Sequence[tuple[float, ...]]], rounds: int) -> dict[Key, Timing]:
    return {key: Timing(tuple(turns[:rounds])) for key, turns in times.items()} if rounds else {}
