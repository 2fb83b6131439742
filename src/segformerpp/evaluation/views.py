"""Looking at an image: as it is, or averaged over scales and its mirror image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segformerpp.arguments import Size
from segformerpp.errors import UsageError
from segformerpp.predictor import Predictor
from segformerpp.tasks import segmentation

#: Larger factors make images that nobody means.
LARGEST_SCALE = 8


@dataclass(frozen=True, slots=True)
class Views:
    """How often an image is looked at; the class probabilities of all views are averaged.

    Args:
        scales: factors of the size that the network sees.
        flip: whether each is looked at in the mirror too.
        size: (H, W) that the factors belong to; None for the image's own.

    Raises:
        UsageError: if a scale is not above 0 and up to `LARGEST_SCALE`.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    size: Size | None = None

    def __post_init__(self) -> None:
        if wrong := [scale for scale in self.scales if not 0 < scale <= LARGEST_SCALE]:
            raise UsageError(f"scales: factors from above 0 to {LARGEST_SCALE}, not {wrong[0]}")

    @property
    def single(self) -> bool:
        """Whether there is nothing to average, nor to scale."""
        return self.scales == (1.0,) and not self.flip

    def sizes(self, own: Size) -> list[Size]:
        """(H, W) for the network of an image of this size, at every scale."""
        height, width = self.size or own
        return [
            (max(math.floor(height * scale + 0.5), 1), max(math.floor(width * scale + 0.5), 1))
            for scale in self.scales
        ]


def segment(predict: Predictor, image: np.ndarray, views: Views) -> tuple[np.ndarray, float]:
    """Look at an image as often as `views` says.

    Several views are averaged as the field does it: the logits of each are resized to the image's
    own size, softmax makes probabilities of them, and the class with the largest sum wins.

    Args:
        predict: made with the size of `views`.
        image: (H, W, 3) uint8.
        views: see there.

    Returns:
        The label map (H, W), and the seconds that the network took for all views.

    Raises:
        ImageError: if it does not fit into the memory.
        MemoryError: if the probabilities do not.
    """
    if views.single:
        result = predict(image)
        return result.label_map, result.network_seconds
    own = (image.shape[0], image.shape[1])
    total, seconds = np.zeros((len(predict.labels), *own), np.float32), 0.0
    for size in views.sizes(own):
        for mirrored in (False, True)[: 1 + views.flip]:
            logits, took = predict.logits(image[:, ::-1] if mirrored else image, size)
            found = segmentation.probabilities(logits, own, np.float32)
            total += found[..., ::-1] if mirrored else found
            seconds += took
    return total.argmax(0).astype(np.uint8 if len(total) <= 256 else np.uint16), seconds
