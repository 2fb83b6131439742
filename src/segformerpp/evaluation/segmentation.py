"""Predictions against the masks of a dataset: several predictors side by side, image by image."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segformerpp.benchmark.timing import is_meaningless
from segformerpp.data.datasets import Problem, SegmentationDataset
from segformerpp.data.labels import LabelSet
from segformerpp.errors import ImageError, UsageError
from segformerpp.evaluation.views import Views, segment
from segformerpp.metrics.segmentation import (
    confusion,
    frequency_weighted_iou,
    image_iou,
    iou,
    mean_iou,
    pixel_accuracy,
)
from segformerpp.models.config import Metadata
from segformerpp.predictor import Predictor

#: Class names may differ for so many of them: lists of a dataset's classes differ in synonyms.
_LEAST_EQUAL = 0.8


@dataclass(slots=True)
class Score:
    """What one predictor has got right so far.

    Args:
        classes: K.

    Attributes:
        counts: pixels by true and predicted class, (K, K).
        agreements: for each image, the share of pixels labelled as by the first predictor.
        seconds: of the network, for each image but the first of its size.
        ious: for each image, by its place in the dataset, `image_iou`; NaN where nothing counts.
    """

    classes: int
    counts: np.ndarray = field(init=False)
    agreements: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ious: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes), np.int64)

    def row(self, labels: Sequence[str], first: Score) -> dict[str, Any]:
        """The figures, in percent and milliseconds, with the keys of all our JSON files.

        What there is no figure for is None: the IoU of a class that never occurs, and a time or a
        speed-up whose median may be off by more than 5 % (see `benchmark.timing`); `withheld` is
        whether that is so of either.
        """
        # Image by image: what disturbs the machine for a while disturbs both.
        gains = [a / b for a, b in zip(first.seconds, self.seconds, strict=False)]
        seconds, gain = _median(self.seconds), _median(gains)
        return {
            "miou": _rounded(mean_iou(self.counts)),
            "fwiou": _rounded(frequency_weighted_iou(self.counts)),
            "pixel_accuracy": _rounded(pixel_accuracy(self.counts)),
            "per_class_iou": dict(zip(labels, map(_rounded, iou(self.counts)), strict=True)),
            "agreement": _rounded(100 * float(np.mean(self.agreements or [np.nan]))),
            "median_ms": None if seconds is None else round(1000 * seconds, 2),
            "speed_up": None if gain is None else round(gain, 3),
            "withheld": seconds is None or gain is None,
            "images": len(self.ious),
        }


def check_classes(predictor: Predictor, classes: LabelSet) -> None:
    """Refuse a model for other classes than the dataset's.

    Raises:
        UsageError: naming both.
    """
    check_labels(predictor.metadata, predictor.labels, classes)


def check_labels(metadata: Metadata, own: Sequence[str], classes: LabelSet) -> None:
    """The same for a model that is not ready to run: what it is, and its classes' names."""
    if metadata.task != "segmentation":
        raise UsageError(f"model: one for {metadata.task}, and the dataset has masks")
    wanted = classes.labels
    if len(own) != len(wanted):
        raise UsageError(
            f"model: tells {len(own)} classes apart ({_some(own)}), the dataset {len(wanted)} "
            f"({_some(wanted)})"
        )
    if not metadata.labels:
        return
    a, b = ([name.strip().casefold() for name in names] for names in (own, wanted))
    different = [i for i, names in enumerate(zip(a, b, strict=True)) if names[0] != names[1]]
    if sorted(a) == sorted(b) and different:
        raise UsageError(
            f"model: has the classes of the dataset in another order: {different[0]} is "
            f"{own[different[0]]!r}, in the dataset {wanted[different[0]]!r}"
        )
    if len(different) > (1 - _LEAST_EQUAL) * len(a):
        raise UsageError(
            f"model: tells other classes apart ({_some(own)}) than the dataset ({_some(wanted)})"
        )


def evaluate(
    predictors: Sequence[Predictor],
    dataset: SegmentationDataset,
    scores: Sequence[Score],
    views: Views,
    on_error: Callable[[Problem], None],
    advance: Callable[[], None],
) -> None:
    """Predict every image with every predictor, in turns, in another order for each image.

    Nothing is read meanwhile, which would take processor time from the network.

    Args:
        predictors: to compare; agreement is with the first.
        dataset: images with masks.
        scores: of each predictor, added to image by image: they hold what is known when the user
            interrupts.
        views: how to look at an image.
        on_error: called with what cannot be read; the image does not count.
        advance: called after each image.
    """
    seen: set[tuple[int, ...]] = set()
    order, shuffle = list(range(len(predictors))), random.Random(0).shuffle
    for index, pair in enumerate(dataset.pairs):
        try:
            image, mask = dataset.read(index)
            shuffle(order)
            found = {i: _segment(predictors[i], image, views, pair.image) for i in order}
        except ImageError as error:
            on_error(Problem(pair, str(error)))
            advance()
            continue
        timed = image.shape in seen  # the first time, it compiles
        seen.add(image.shape)
        for i, score in enumerate(scores):
            label_map, seconds = found[i]
            counts = confusion(label_map, mask, score.classes)
            score.counts += counts
            score.ious[index] = image_iou(counts)
            score.agreements.append(float((label_map == found[0][0]).mean()))
            score.seconds += [seconds] * timed
        advance()


def _segment(
    predict: Predictor, image: np.ndarray, views: Views, path: Path
) -> tuple[np.ndarray, float]:
    """`segment`, whose errors name the file."""
    try:
        return segment(predict, image, views)
    except (ImageError, MemoryError, UsageError) as error:  # the last: a view is too large
        reason = str(error).removeprefix("image: ") or "too large for the memory"
        raise ImageError(f"{path}: {reason}") from None


def _median(values: Sequence[float]) -> float | None:
    return None if is_meaningless(values) else statistics.median(values)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 2)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
