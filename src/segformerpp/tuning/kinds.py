"""What plans are judged by: labels of pixels, or keypoints of people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from segformerpp.data.poses import Person
from segformerpp.evaluation.pose import SAME, THRESHOLDS
from segformerpp.metrics.pose import correct
from segformerpp.metrics.segmentation import confusion, mean_iou
from segformerpp.predictor import Predictor

_PCK = "pck_0.1"


class Kind(Protocol):
    """A task, and how good something found in an image is.

    Attributes:
        scales: of the image, that plans may have.
    """

    scales: tuple[float, ...]

    def form(self, image: np.ndarray) -> tuple[int, int]:
        """(H, W) that the network sees of an image (H, W, 3)."""

    def find(self, predict: Predictor, image: np.ndarray, truth: Any) -> Any:
        """What a predictor finds in an image."""

    def seconds(self, predict: Predictor, image: np.ndarray, truth: Any) -> float:
        """How long the network takes for it."""

    def same(self, found: Any, reference: Any, truth: Any) -> float:
        """The share, 0 to 1, that is as in what was found without merging."""

    def count(self, found: Any, truth: Any) -> np.ndarray:
        """What is right and wrong, to be summed over images."""

    def score(self, counts: np.ndarray) -> float:
        """In percent; NaN where nothing was counted."""


class Labels:
    """Label maps, and mIoU where there are masks (H, W).

    Args:
        classes: how many.
        size: (H, W) for the network; None for the image's own.
    """

    scales: tuple[float, ...] = (1.0, 0.75, 0.5)

    def __init__(self, classes: int, size: tuple[int, int] | None) -> None:
        self._classes, self._size = classes, size

    def form(self, image: np.ndarray) -> tuple[int, int]:
        """See `Kind`."""
        return self._size or (image.shape[0], image.shape[1])

    def find(self, predict: Predictor, image: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
        """See `Kind`."""
        return predict(image).label_map

    def seconds(self, predict: Predictor, image: np.ndarray, truth: np.ndarray | None) -> float:
        """See `Kind`."""
        return predict.logits(image)[1]

    def same(self, found: np.ndarray, reference: np.ndarray, truth: np.ndarray | None) -> float:
        """See `Kind`."""
        return float((found == reference).mean())

    def count(self, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Pixels by true and predicted class, (K, K)."""
        return confusion(found, truth, self._classes)

    def score(self, counts: np.ndarray) -> float:
        """The mIoU."""
        return mean_iou(counts)


class Keypoints:
    """Keypoints of the people of a dataset in their boxes, and PCK@0.1.

    Args:
        size: (H, W) that people are looked at.
    """

    scales: tuple[float, ...] = (1.0,)

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size

    def form(self, image: np.ndarray) -> tuple[int, int]:
        """See `Kind`."""
        return self._size

    def find(self, predict: Predictor, image: np.ndarray, truth: Sequence[Person]) -> np.ndarray:
        """(P, K, 3); see `PoseResult`."""
        return predict(image, boxes=_boxes(truth)).keypoints

    def seconds(self, predict: Predictor, image: np.ndarray, truth: Sequence[Person]) -> float:
        """For one person."""
        return predict(image, boxes=_boxes(truth)).network_seconds / len(truth)

    def same(self, found: np.ndarray, reference: np.ndarray, truth: Sequence[Person]) -> float:
        """Of the labelled keypoints, those within 5 % of the box's larger side."""
        near = []
        for own, other, person in zip(found, reference, truth, strict=True):
            there = np.column_stack((other[:, :2], person.keypoints[:, 2]))
            near.append(correct(own, there, person.box, SAME))
        return float(np.nanmean(near))

    def count(self, found: np.ndarray, truth: Sequence[Person]) -> np.ndarray:
        """How many of the labelled keypoints are right, and how many there are: (2,)."""
        right = np.concatenate(
            [
                correct(own, person.keypoints, person.box, THRESHOLDS[_PCK])
                for own, person in zip(found, truth, strict=True)
            ]
        )
        return np.array([np.nansum(right), np.isfinite(right).sum()])

    def score(self, counts: np.ndarray) -> float:
        """The PCK@0.1."""
        right, labelled = map(float, counts)
        return 100 * right / labelled if labelled else float("nan")


def kind_of(predict: Predictor, size: tuple[int, int] | None) -> Kind:
    """How plans are judged.

    Args:
        predict: a predictor of the model.
        size: (H, W) for the network; None for the image's own, or what people are looked at.
    """
    if predict.metadata.task == "pose":
        return Keypoints(size or predict.metadata.image_size or (0, 0))  # refused by the predictor
    return Labels(len(predict.labels), size)


def _boxes(people: Sequence[Person]) -> list[list[float]]:
    return [person.box.tolist() for person in people]
