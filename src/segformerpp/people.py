"""Finding the keypoints of people in an image: crops, network, heatmaps, keypoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from segformerpp.data.skeletons import Skeleton
from segformerpp.errors import UsageError
from segformerpp.models.config import Metadata
from segformerpp.runtimes import Runtime
from segformerpp.tasks.pose import PoseCodec, checked_box, to_image
from segformerpp.tasks.segmentation import normalise

#: Boxes of people (x, y, width, height) in image pixels; or the whole image as the one person's.
Boxes = np.ndarray | Sequence[Sequence[float]] | Literal["image"]


@dataclass(frozen=True, slots=True)
class PeopleFinder:
    """A network for poses, ready to run.

    Args:
        runtime: executes it.
        codec: cuts people out and reads heatmaps.
        metadata: for the normalisation, and the names of the keypoints.
        flip: whether to look at everyone in a mirror too, and take the mean.
        batch: how many people go through the network together at most.
    """

    runtime: Runtime
    codec: PoseCodec
    metadata: Metadata
    flip: bool
    batch: int

    def find(self, image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, float]:
        """Find keypoints.

        Args:
            image: (H, W, 3) uint8.
            boxes: (P, 4) float64: x, y, width, height of each person.

        Returns:
            (P, K, 3) float32: x, y in image pixels and the confidence, which is 0 for people whose
            box lies outside the image; and the seconds that the network took.
        """
        found = np.zeros((len(boxes), len(self.metadata.labels), 3), np.float32)
        seconds = 0.0
        for first in range(0, len(boxes), self.batch):
            transforms = [self.codec.transform(box) for box in boxes[first : first + self.batch]]
            x = np.stack(
                [normalise(self.codec.crop(image, one), self.metadata) for one in transforms]
            )
            heatmaps, passed = self._run(x)
            seconds += passed
            for i, points in enumerate(self.codec.decode(heatmaps)):
                found[first + i] = to_image(points, transforms[i])
        height, width = image.shape[:2]
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        outside = (high <= -0.5).any(axis=1) | (low >= (width - 0.5, height - 0.5)).any(axis=1)
        found[outside, :, 2] = 0
        return found, seconds

    def _run(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        heatmaps = self.runtime(x)
        if self.flip:
            mirrored = self.runtime(np.ascontiguousarray(x[..., ::-1]))
            swaps = Skeleton(self.metadata.labels).mirror
            heatmaps = (heatmaps + self.codec.mirror(mirrored, swaps)) / 2
        return heatmaps, time.perf_counter() - start


def checked_boxes(boxes: Boxes, image: np.ndarray) -> np.ndarray:
    """Take boxes as (P, 4) float64.

    The whole image begins half a pixel before the centre of its first one: its box and that of its
    mirror image are mirror images.

    Raises:
        UsageError: if one of them is none; see `checked_box`.
    """
    if isinstance(boxes, str):
        if boxes != "image":
            raise UsageError(
                f"boxes: x, y, width, height of each person, or 'image', not {boxes!r}"
            )
        return np.array([[-0.5, -0.5, image.shape[1], image.shape[0]]], np.float64)
    try:
        people = list(boxes)
    except TypeError:
        raise UsageError(f"boxes: a list of x, y, width, height, not {boxes!r}") from None
    return np.array([checked_box(box) for box in people], np.float64).reshape(-1, 4)
