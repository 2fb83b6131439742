"""Finding the keypoints of people in an image: crops, network, heatmaps, keypoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from segformerpp.arguments import Size
from segformerpp.batching import Network, Prepared, Steps, known
from segformerpp.data.images import ImageSource
from segformerpp.data.skeletons import Skeleton
from segformerpp.errors import UsageError
from segformerpp.models.config import Metadata
from segformerpp.runtimes import Runtime
from segformerpp.tasks.pose import PoseCodec, checked_box, to_image
from segformerpp.tasks.pose_result import PoseResult
from segformerpp.tasks.segmentation import normalise

#: Boxes of people (x, y, width, height) in image pixels; or the whole image as the one person's.
Boxes = np.ndarray | Sequence[Sequence[float]] | Literal["image"]


@dataclass(frozen=True, slots=True)
class PeopleFinder:
    """A network for poses, ready to run.

    Args:
        runtime: executes it.
        codec: cuts people out and reads heatmaps.
        metadata: for the normalisation, and the names, colours and links of the keypoints.
        flip: whether to look at everyone in a mirror too, and take the mean.
        batch: how many people go through the network together at most.
        detect: finds people in an image for which no boxes are given; None for one who fills it.
    """

    runtime: Runtime
    codec: PoseCodec
    metadata: Metadata
    flip: bool
    batch: int
    detect: Callable[[np.ndarray], Boxes] | None = None

    def prepare(self, source: ImageSource, image: np.ndarray, boxes: Boxes | None) -> Prepared:
        """Find out where people are in an image (H, W, 3) uint8, unless there are boxes.

        Raises:
            UsageError: if one of the boxes is none.
        """
        if boxes is None:
            boxes = self.detect(image) if self.detect else "image"
        return Prepared(source, image, image, None, checked_boxes(boxes, image))

    def together(self, size: Size) -> int:
        """1: people of different images do not go through the network together."""
        return 1

    def shape(self, group: list[Prepared]) -> tuple[int, ...] | None:
        """(B, 3, H, W) of what goes through the network; None if there are several shapes of it."""
        people = 0 if group[0].boxes is None else len(group[0].boxes)
        return (self.batch, 3, *self.codec.size) if people and not people % self.batch else None

    def run(self, group: list[Prepared], network: Network, share: float = 1) -> Steps:
        """Find the people's keypoints in an image; nothing is left to do.

        Args:
            group: the image.
            network: what executes it.
            share: of the threads, that it does so on.
        """
        (prepared,) = group
        assert prepared.boxes is not None
        result = self.find(prepared.image, prepared.boxes, prepared.path, network)
        return [known(replace(result, network_seconds=result.network_seconds * share))]

    def find(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        path: Path | None = None,
        network: Network | None = None,
    ) -> PoseResult:
        """Find keypoints.

        Args:
            image: (H, W, 3) uint8.
            boxes: (P, 4) float64: x, y, width, height of each person.
            path: the file that the image is from.
            network: what executes it, if not the runtime.
        """
        network = self.runtime if network is None else network
        keypoints, seconds = self._keypoints(image, boxes, network)
        return PoseResult(
            keypoints=keypoints,
            boxes=boxes,
            labels=self.metadata.labels,
            skeleton=self.metadata.skeleton,
            palette=self.metadata.palette,
            image=image,
            path=path,
            network_seconds=seconds,
        )

    def _keypoints(
        self, image: np.ndarray, boxes: np.ndarray, network: Network
    ) -> tuple[np.ndarray, float]:
        """Those of `PoseResult`, and the seconds that the network took.

        The confidence is 0 for people whose box lies outside the image.
        """
        found = np.zeros((len(boxes), len(self.metadata.labels), 3), np.float32)
        seconds = 0.0
        for first in range(0, len(boxes), self.batch):
            transforms = [self.codec.transform(box) for box in boxes[first : first + self.batch]]
            x = np.stack(
                [normalise(self.codec.crop(image, one), self.metadata) for one in transforms]
            )
            heatmaps, passed = self._run(x, network)
            seconds += passed
            for i, points in enumerate(self.codec.decode(heatmaps)):
                found[first + i] = to_image(points, transforms[i])
        height, width = image.shape[:2]
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        outside = (high <= -0.5).any(axis=1) | (low >= (width - 0.5, height - 0.5)).any(axis=1)
        found[outside, :, 2] = 0
        return found, seconds

    def _run(self, x: np.ndarray, network: Network) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        heatmaps = network(x)
        if self.flip:
            mirrored = network(np.ascontiguousarray(x[..., ::-1]))
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
