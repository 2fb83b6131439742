"""What a plan costs in quality, how sure that is, and whether it is within the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segformerpp.metrics.segmentation import mean_iou

_RESAMPLES = 200
#: The standard error of a single image, in percent: it may be anything.
_UNKNOWN = 100.0


@dataclass(frozen=True, slots=True)
class Quality:
    """A plan beside `none` on the same images.

    Attributes:
        images: how many.
        agreement: pixels with the label that they have under `none`, in percent.
        agreement_error: the standard error of that, over images.
        drop: points of mIoU that are lost; None without masks.
        drop_error: its standard error (paired bootstrap over images); 0 without masks.
        miou: of the plan, in percent; None without masks.
    """

    images: int
    agreement: float
    agreement_error: float
    drop: float | None = None
    drop_error: float = 0.0
    miou: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def quality(
    agreements: Sequence[float],
    counts: Sequence[np.ndarray] = (),
    none_counts: Sequence[np.ndarray] = (),
) -> Quality:
    """Sum up what is known of each image.

    Args:
        agreements: the share of equal labels of each image, 0 to 1.
        counts: (K, K) of each image, true class by predicted class; empty without masks.
        none_counts: the same under `none`.
    """
    percent = 100 * np.asarray(agreements)
    n = len(percent)
    error = float(percent.std(ddof=1) / math.sqrt(n)) if n > 1 else _UNKNOWN
    if not counts:
        return Quality(n, float(percent.mean()), error)
    one, other = np.stack(counts), np.stack(none_counts)
    miou = mean_iou(one.sum(0))
    drops = []
    draw = np.random.default_rng(0)
    for _ in range(_RESAMPLES if n > 1 else 0):
        chosen = draw.integers(0, n, n)
        drops.append(mean_iou(other[chosen].sum(0)) - mean_iou(one[chosen].sum(0)))
    drop = mean_iou(other.sum(0)) - miou
    drop_error = float(np.nanstd(drops)) if drops else _UNKNOWN
    return Quality(n, float(percent.mean()), error, drop, drop_error, miou)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a plan may cost; one of the two, or both.

    Args:
        max_drop: points of mIoU.
        min_agreement: percent of labels that must stay what they are under `none`.
    """

    max_drop: float | None = None
    min_agreement: float | None = None

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
            parts.append(f"at most {self.max_drop:g} points of mIoU lost")
        if self.min_agreement is not None:
            parts.append(f"at least {self.min_agreement:g} % of the labels kept")
        return ", ".join(parts)


def from_dict(data: Mapping[str, Any] | None) -> Quality | None:
    """What `Quality.to_dict` made."""
    return None if data is None else Quality(**data)
