"""Predictions against the masks of a dataset: several predictors side by side, image by image."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segformerpp.data.datasets import Problem, SegmentationDataset
from segformerpp.data.labels import LabelSet
from segformerpp.errors import ImageError, UsageError
from segformerpp.metrics.segmentation import (
    confusion,
    frequency_weighted_iou,
    iou,
    mean_iou,
    pixel_accuracy,
)
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
        mious: for each image, by its place in the dataset, in percent; NaN where nothing counts.
    """

    classes: int
    counts: np.ndarray = field(init=False)
    agreements: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    mious: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes), np.int64)

    def row(self, labels: Sequence[str], first: Score) -> dict[str, Any]:
        """The figures, in percent and milliseconds, with the keys of all our JSON files."""
        # Image by image: what disturbs the machine for a while disturbs both.
        gains = [a / b for a, b in zip(first.seconds, self.seconds, strict=False)]
        return {
            "miou": _rounded(mean_iou(self.counts)),
            "fwiou": _rounded(frequency_weighted_iou(self.counts)),
            "pixel_accuracy": _rounded(pixel_accuracy(self.counts)),
            "per_class_iou": dict(zip(labels, map(_rounded, iou(self.counts)), strict=True)),
            "agreement": _rounded(100 * float(np.mean(self.agreements or [np.nan]))),
            "median_ms": round(1000 * statistics.median(self.seconds), 2) if gains else None,
            "speed_up": round(statistics.median(gains), 3) if gains else None,
            "images": len(self.mious),
        }


@dataclass(frozen=True, slots=True)
class Views:
    """How often an image is looked at; the class probabilities of all views are averaged.

    Args:
        scales: factors by which the image is resized for the network.
        flip: whether each is looked at in the mirror too.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def single(self) -> bool:
        """Whether it is the image alone, as it is."""
        return self.scales == (1.0,) and not self.flip


def check_classes(predictor: Predictor, classes: LabelSet) -> None:
    """Refuse a model for other classes than the dataset's.

    Raises:
        UsageError: naming both.
    """
    own, wanted = predictor.labels, classes.labels
    if len(own) != len(wanted):
        raise UsageError(
            f"model: tells {len(own)} classes apart ({_some(own)}), the dataset {len(wanted)} "
            f"({_some(wanted)})"
        )
    if not predictor.metadata.labels:
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
    """Predict every image with every predictor, in turns.

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
    for index, pair in enumerate(dataset.pairs):
        try:
            image, mask = dataset.read(index)
            found = [segment(predict, image, views) for predict in predictors]
        except ImageError as error:
            on_error(Problem(pair, str(error)))
            advance()
            continue
        timed = image.shape in seen  # the first time, it compiles
        seen.add(image.shape)
        for score, (label_map, seconds) in zip(scores, found, strict=True):
            counts = confusion(label_map, mask, score.classes)
            score.counts += counts
            score.mious[index] = mean_iou(counts)
            score.agreements.append(float((label_map == found[0][0]).mean()))
            score.seconds += [seconds] * timed
        advance()


def segment(predict: Predictor, image: np.ndarray, views: Views) -> tuple[np.ndarray, float]:
    """Look at an image (H, W, 3) uint8.

    Returns:
        The label map (H, W), and the seconds that the network took for all views.

    Raises:
        ImageError: if it does not fit into the memory.
    """
    if views.single:
        result = predict(image)
        return result.label_map, result.network_seconds
    height, width = image.shape[:2]
    total, seconds = np.zeros((len(predict.labels), height, width), np.float32), 0.0
    for scale in views.scales:
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        for view in (scaled, scaled[:, ::-1])[: 1 + views.flip]:
            result = predict(view)
            assert result.probabilities is not None
            chances = result.probabilities.astype(np.float32)
            if view is not scaled:
                chances = chances[:, :, ::-1]
            for k, plane in enumerate(chances):
                total[k] += cv2.resize(np.ascontiguousarray(plane), (width, height))
            seconds += result.network_seconds
    return total.argmax(0), seconds


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 2)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
