"""Judging one plan with as little work as it takes: arithmetic, then images, then time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from segformerpp.benchmark.gains import Gain
from segformerpp.errors import SegformerppError
from segformerpp.plans import MergePlan
from segformerpp.tuning.quality import Budget, Quality, from_dict

#: Images after each of which a plan may be given up, and before which none is.
_STEP, _FEWEST = 5, 10
#: Standard errors: to be surely over the budget, and to be within it on the safe side.
_SURE, _MARGIN = -2.0, 1.0
#: A gain that is known this well is known well enough, in parts of itself.
_PRECISE = 0.01


class Opened(Protocol):
    """A plan, ready to run."""

    def score(self, images: int) -> Quality:
        """Look at so many of the images, those that were looked at before among them.

        Raises:
            SegformerppError: if it does not run here.
        """

    def gain(self, decided: Callable[[Gain], bool]) -> Gain:
        """Take turns with `none` until it is decided."""


class Evaluator(Protocol):
    """What plans are judged with.

    Attributes:
        images: how many there are to score on.
        scales: of the image, that plans may have.
    """

    images: int
    scales: tuple[float, ...]

    def macs(self, plan: MergePlan) -> int:
        """Multiply-accumulates for one image."""

    def open(self, plan: MergePlan) -> Opened:
        """Make a plan ready.

        Raises:
            SegformerppError: if it does not run here.
        """


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of a plan.

    Attributes:
        plan: the plan.
        outcome: ``within`` the budget and timed; ``over`` it; within and ``slower`` than the best
            one; ``arithmetic``: no less of it than `none`; ``refused``: does not run here.
        quality: on the images that it took to know.
        gain: times as fast as `none`; None where that was not measured.
        overshoot: over the budget by so much, in parts of it, with the margin; see `Budget`.
    """

    plan: MergePlan
    outcome: str
    quality: Quality | None = None
    gain: Gain | None = None
    overshoot: float = 0.0

    @property
    def value(self) -> float | None:
        """What the search makes as large as it can; None where there is nothing to learn."""
        if self.outcome in ("within", "slower"):
            return self.gain.value if self.gain else None
        return -self.overshoot if self.outcome == "over" else None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "plan": self.plan.to_dict(),
            "outcome": self.outcome,
            "quality": self.quality and self.quality.to_dict(),
            "ratios": self.gain and list(self.gain.ratios),
            "overshoot": self.overshoot,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Judged:
        """What `to_dict` made."""
        gain = Gain(tuple(data["ratios"])) if data["ratios"] else None
        found = from_dict(data["quality"])
        return cls(
            *(MergePlan.from_dict(data["plan"]), data["outcome"], found, gain, data["overshoot"])
        )


def judge(evaluator: Evaluator, plan: MergePlan, budget: Budget, to_beat: float) -> Judged:
    """Judge a plan, and stop when it is clear that it is out.

    Args:
        evaluator: runs it.
        plan: the plan.
        budget: what it may cost.
        to_beat: the gain of the best plan so far.
    """
    if evaluator.macs(plan) >= evaluator.macs(MergePlan()) and plan != MergePlan():
        return Judged(plan, "arithmetic")
    try:
        opened = evaluator.open(plan)
        counts = [*range(_FEWEST, evaluator.images, _STEP), evaluator.images]
        for count in counts:
            found = opened.score(count)
            sure = _MARGIN if count == evaluator.images else _SURE
            over = budget.overshoot(found, sure)
            if over > 0:
                return Judged(plan, "over", found, overshoot=budget.overshoot(found, _MARGIN))

        def decided(gain: Gain) -> bool:
            return gain.most < to_beat or gain.uncertainty < _PRECISE

        gain = opened.gain(decided)
    except SegformerppError:
        return Judged(plan, "refused")
    return Judged(plan, "slower" if gain.most < to_beat else "within", found, gain, over)
