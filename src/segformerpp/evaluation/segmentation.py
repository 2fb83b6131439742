"""Label maps against the masks of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from segformerpp.data.datasets import Sample, SegmentationDataset
from segformerpp.evaluation.names import check_names
from segformerpp.evaluation.pictures import worst_case
from segformerpp.evaluation.side_by_side import Evaluation, Score, rounded
from segformerpp.evaluation.views import Views, segment
from segformerpp.metrics.segmentation import (
    confusion,
    frequency_weighted_iou,
    image_iou,
    iou,
    mean_iou,
    pixel_accuracy,
)
from segformerpp.predictor import Predictor


class SegmentationScore(Score[Sample, np.ndarray]):
    """What one predictor has got right so far.

    Args:
        labels: names of the K classes.

    Attributes:
        counts: pixels by true and predicted class, (K, K).
        agreements: for each image, the share of pixels labelled as by the first predictor.
        quality: of each image, `image_iou`.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = labels
        self.counts = np.zeros((len(labels), len(labels)), np.int64)
        self.agreements: list[float] = []

    def add(self, index: int, sample: Sample, found: np.ndarray, first: np.ndarray) -> None:
        """Count an image; `found` and `first` are label maps (H, W)."""
        counts = confusion(found, sample[1], len(self.labels))
        self.counts += counts
        self.quality[index] = image_iou(counts)
        self.agreements.append(float((found == first).mean()))

    def figures(self) -> dict[str, Any]:
        """How good it is, in percent; None for the IoU of a class that never occurs."""
        each = map(rounded, iou(self.counts))
        return {
            "miou": rounded(mean_iou(self.counts)),
            "fwiou": rounded(frequency_weighted_iou(self.counts)),
            "pixel_accuracy": rounded(pixel_accuracy(self.counts)),
            "per_class_iou": dict(zip(self.labels, each, strict=True)),
            "agreement": rounded(100 * float(np.mean(self.agreements or [np.nan]))),
        }


class SegmentationEvaluation(Evaluation[Sample, np.ndarray]):
    """Images with masks.

    Args:
        dataset: the images.
        views: how to look at each.
    """

    columns: ClassVar = {
        "miou": "mIoU",
        "fwiou": "fwIoU",
        "pixel_accuracy": "accuracy",
        "agreement": "agreement",
    }
    details = ("per_class_iou", "IoU in %")

    def __init__(self, dataset: SegmentationDataset, views: Views) -> None:
        self.dataset, self.views = dataset, views

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.dataset)

    def check(self, predictor: Predictor) -> None:
        """Refuse a model for other classes than the dataset's."""
        labels = self.dataset.classes.labels
        check_names(
            predictor.metadata, predictor.labels, labels, "segmentation", "classes", "masks"
        )

    def score(self) -> SegmentationScore:
        """A score in which nothing has been counted."""
        return SegmentationScore(self.dataset.classes.labels)

    def file(self, index: int) -> Path:
        """The file of an image."""
        return self.dataset.pairs[index].image

    def read(self, index: int) -> Sample:
        """An image and its mask."""
        return self.dataset.read(index)

    def predict(self, predictor: Predictor, sample: Sample) -> tuple[np.ndarray, float]:
        """The label map, and the seconds that the network took; see `views.segment`."""
        return segment(predictor, sample[0], self.views)

    def form(self, sample: Sample) -> tuple[int, ...]:
        """The image's size."""
        return sample[0].shape

    def picture(self, predictor: Predictor, index: int, quality: float) -> Image.Image:
        """Image, mask, prediction and errors."""
        image, mask = self.read(index)
        label_map = segment(predictor, image, self.views)[0]
        name, plan = self.file(index).stem, predictor.merge_plan.name
        title = f"{name}: IoU of its classes {quality:.1f} %, merge {plan}"
        return worst_case(image, mask, label_map, self.dataset.classes, title)
