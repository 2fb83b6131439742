"""Semantic segmentation around the network: image to input, logits to label map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

from segformerpp.arguments import Size
from segformerpp.tasks.label_maps import LogitRows

if TYPE_CHECKING:
    from segformerpp.models import Metadata

#: Pixels of an output strip: what is worked on at a time stays in the processor's cache.
_STRIP_PIXELS = 2**16


def fit(image: np.ndarray, size: Size | None = None, least: int = 32) -> np.ndarray:
    """Bring an image to the size that the network is to see.

    Args:
        image: (H, W, 3) uint8.
        size: the size (H, W) to resize to, bilinear with antialiasing; None to keep its own.
        least: sides shorter than this, in pixels, are scaled up to it.
    """
    height, width = (max(side, least) for side in size or image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def normalise(image: np.ndarray, metadata: Metadata) -> np.ndarray:
    """Subtract the mean and divide by the deviation: (H, W, 3) uint8 -> (3, H, W) float32."""
    values = np.arange(256.0)
    out = np.empty((3, *image.shape[:2]), np.float32)
    for channel, (mean, std) in enumerate(zip(metadata.mean, metadata.std, strict=True)):
        table = ((values - mean) / std).astype(np.float32)
        np.take(table, image[..., channel], out=out[channel], mode="clip")
    return out


def probabilities(
    logits: LogitRows,
    size: Size,
    dtype: DTypeLike = np.float16,
    classes: Sequence[int] | None = None,
) -> np.ndarray:
    """Resize logits to the image's size, then softmax: (K, H, W) of a floating type.

    With `classes`, (C, H, W): the planes of these alone, in their order. The softmax is over all.
    """
    kept = range(logits.shape[0]) if classes is None else classes
    out = np.empty((len(kept), *size), dtype)
    for top, rows in _strips(logits, size):
        strip = np.stack([_widen(row, size[1]) for row in rows])
        strip -= strip.max(axis=0)
        np.exp(strip, out=strip)
        strip /= strip.sum(axis=0)
        out[:, top : top + rows.shape[1]] = strip if classes is None else strip[list(kept)]
    return out


def ignored_label(num_classes: int) -> int:
    """What a label map has where a pixel counts as none of its classes.

    255, as everywhere; 65535 for 256 classes or more, of which 255 is one.
    """
    return 255 if num_classes < 256 else 65535


def keep_classes(label_map: np.ndarray, classes: Sequence[int], num_classes: int) -> np.ndarray:
    """A label map (H, W) in which only some classes count: all else is `ignored_label`."""
    ignored = ignored_label(num_classes)
    table = np.full(ignored + 1, ignored, np.uint8 if ignored == 255 else np.uint16)
    table[list(classes)] = classes
    return np.take(table, label_map)


def _strips(logits: LogitRows, size: Size) -> Iterator[tuple[int, np.ndarray]]:
    """Logits resized in height only, in strips: the strip's first row, and (K, rows, w)."""
    source_height, height = logits.shape[1], size[0]
    step = max(_STRIP_PIXELS // size[1], 1)
    for top in range(0, height, step):
        y = (np.arange(top, min(top + step, height)) + 0.5) * source_height / height - 0.5
        y = y.clip(0, source_height - 1)
        upper = y.astype(np.int64)
        lower = np.minimum(upper + 1, source_height - 1)
        weight = (y - upper).astype(np.float32)[:, None]
        first = int(upper[0])
        rows = logits[:, first : int(lower[-1]) + 1]
        yield top, rows[:, upper - first] * (1 - weight) + rows[:, lower - first] * weight


def _widen(rows: np.ndarray, width: int) -> np.ndarray:
    """Resize (rows, w) float32 in width only."""
    return cv2.resize(rows, (width, rows.shape[0]), interpolation=cv2.INTER_LINEAR)
