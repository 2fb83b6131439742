"""What a plan costs in quality, how sure that is, and whether it is within the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segformerpp.metrics.segmentation import mean_iou

_RESAMPLES = 200
#: The standard error of a single image, in percent: it may be anything.
_UNKNOWN = 100.0


@dataclass(frozen=True, slots=True)
class Words:
    """What is judged of a task.

    Attributes:
        score: the name of the score, and its key in JSON.
        things: what must stay as it is.
    """

    score: str
    key: str
    things: str


LABELS = Words("mIoU", "miou", "labels")
KEYPOINTS = Words("PCK@0.1", "pck_0.1", "keypoints")


@dataclass(frozen=True, slots=True)
class Quality:
    """A plan beside `none` on the same images.

    Attributes:
        images: how many.
        agreement: pixels with the label that they have under `none`, or keypoints where they are
            under `none`, in percent.
        agreement_error: the standard error of that, over images.
        drop: points of the score, mIoU or PCK@0.1, that are lost; None without masks.
        drop_error: its standard error (paired bootstrap over images); 0 without masks.
        score: of the plan, in percent; None without masks.
    """

    images: int
    agreement: float
    agreement_error: float
    drop: float | None = None
    drop_error: float = 0.0
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def quality(
    agreements: Sequence[float],
    counts: Sequence[np.ndarray] = (),
    none_counts: Sequence[np.ndarray] = (),
    score: Callable[[np.ndarray], float] = mean_iou,
) -> Quality:
    """Sum up what is known of each image.

    Args:
        agreements: the share of each image, 0 to 1, that is as under `none`.
        counts: of each image, such as (K, K), true class by predicted class; empty without masks.
        none_counts: the same under `none`.
        score: of the sum of counts of many images, in percent.
    """
    percent = 100 * np.asarray(agreements)
    n = len(percent)
    error = float(percent.std(ddof=1) / math.sqrt(n)) if n > 1 else _UNKNOWN
    if not counts:
        return Quality(n, float(percent.mean()), error)
    one, other = np.stack(counts), np.stack(none_counts)
    total = score(one.sum(0))
    drops = []
    draw = np.random.default_rng(0)
    for _ in range(_RESAMPLES if n > 1 else 0):
        chosen = draw.integers(0, n, n)
        drops.append(score(other[chosen].sum(0)) - score(one[chosen].sum(0)))
    drop = score(other.sum(0)) - total
    drop_error = float(np.nanstd(drops)) if drops else _UNKNOWN
    return Quality(n, float(percent.mean()), error, drop, drop_error, total)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a plan may cost; one of the two, or both.

    Args:
        max_drop: points of the score.
        min_agreement: percent of labels or keypoints that must stay what they are under `none`.
        words: for people.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    words: Words = LABELS

    def overshoot(self, found: Quality, errors: float) -> float:
        """By how much a plan is over the budget, in parts of it; 0 or less: within.

        Args:
            found: what it costs.
            errors: standard errors to add to that: 1 to be on the safe side, since few images may
                flatter a plan, and the best of many plans is one that they flatter; -2 to refuse
                nothing that may be within.
        """
        over = []
        if self.max_drop is not None and found.drop is not None:
            over.append(
                (found.drop + errors * found.drop_error - self.max_drop) / max(self.max_drop, 0.1)
            )
        if self.min_agreement is not None:
            allowed = 100 - self.min_agreement
            lost = 100 - found.agreement + errors * found.agreement_error
            over.append((lost - allowed) / max(allowed, 0.1))
        return max(over)

    def __str__(self) -> str:
        parts = []
        if self.max_drop is not None:
            parts.append(f"at most {self.max_drop:g} points of {self.words.score} lost")
        if self.min_agreement is not None:
            parts.append(f"at least {self.min_agreement:g} % of the {self.words.things} kept")
        return ", ".join(parts)


def from_dict(data: Mapping[str, Any] | None) -> Quality | None:
    """What `Quality.to_dict` made."""
    return None if data is None else Quality(**data)
