"""Random changes of training images and their masks, the usual ones for segmentation."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from segformerpp.arguments import Size
from segformerpp.data.datasets import Sample
from segformerpp.data.masks import IGNORED

#: How often a crop that shows too much of one class is drawn anew.
_TRIES = 10
#: Every how many pixels a mask is looked at to judge a crop.
_EVERY = 4
#: Degrees of 360 by which the full strength turns the hue.
_HUE = 72


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Scale, crop, flip, colour; as mmsegmentation's recipes for SegFormer have them.

    Args:
        crop: (H, W) of what comes out.
        scale: the least and the largest factor by which an image is resized.
        max_class_share: see `TrainSettings`; so are the others.
    """

    crop: Size
    scale: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    balanced_crops: float = 0.0
    colour: float = 0.5

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Sample:
        """Change an image (H, W, 3) uint8 and its mask (H, W) uint8.

        Returns:
            Both, at most as large as the crop: smaller where the resized image is.
        """
        # Scales are as likely to halve as to double. Cropping first is the same as last, and
        # saves resizing what is not needed.
        low, high = np.log2(self.scale)
        factor = 2 ** rng.uniform(low, high)
        height, width = mask.shape
        window = (
            min(height, max(round(self.crop[0] / factor), 1)),
            min(width, max(round(self.crop[1] / factor), 1)),
        )
        y, x = self._place(mask, window, rng)
        image, mask = (a[y : y + window[0], x : x + window[1]] for a in (image, mask))
        size = tuple(
            min(side, max(round(part * factor), 1))
            for side, part in zip(self.crop, window, strict=True)
        )
        area = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, size[::-1], interpolation=area)
        mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        if rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        return recolour(image, self.colour, rng), np.ascontiguousarray(mask)

    def _place(self, mask: np.ndarray, window: Size, rng: np.random.Generator) -> tuple[int, int]:
        """The upper left corner of the part to take."""
        rows, columns = mask.shape[0] - window[0], mask.shape[1] - window[1]
        wanted = self._wanted(mask, rng)
        y = x = 0
        for _ in range(_TRIES):
            y, x = int(rng.integers(rows + 1)), int(rng.integers(columns + 1))
            if wanted is not None:
                y = int(np.clip(wanted[0] - rng.integers(window[0]), 0, rows))
                x = int(np.clip(wanted[1] - rng.integers(window[1]), 0, columns))
            seen = mask[y : y + window[0] : _EVERY, x : x + window[1] : _EVERY]
            counts = np.bincount(seen.ravel(), minlength=256)[:IGNORED]
            if np.count_nonzero(counts) > 1 and counts.max() <= self.max_class_share * counts.sum():
                break
        return y, x

    def _wanted(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """A pixel (y, x) that the crop is to hold, of a class drawn from those in the image."""
        if rng.random() >= self.balanced_crops:
            return None
        few = mask[::_EVERY, ::_EVERY]
        classes = np.unique(few[few != IGNORED])
        if not len(classes):
            return None
        pixels = np.argwhere(few == rng.choice(classes)) * _EVERY
        return pixels[rng.integers(len(pixels))]


def mix_classes(under: Sample, over: Sample, rng: np.random.Generator) -> Sample:
    """Paste half of the classes of an image onto another (Olsson et al., 2021, ClassMix).

    Args:
        under: an image (H, W, 3) and its mask (H, W).
        over: those to paste from, from the upper left corner on; of any size.
        rng: where the random numbers come from.

    Returns:
        Both, of the size of `under`.
    """
    (image, mask), (pasted, ids) = under, over
    rows, columns = (min(sides) for sides in zip(mask.shape, ids.shape, strict=True))
    ids = ids[:rows, :columns]
    classes = np.unique(ids[ids != IGNORED])
    chosen = np.isin(ids, rng.permutation(classes)[: (len(classes) + 1) // 2])
    image, mask = image.copy(), mask.copy()
    image[:rows, :columns][chosen] = pasted[:rows, :columns][chosen]
    mask[:rows, :columns][chosen] = ids[chosen]
    return image, mask


def recolour(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue at random, each of them half of the time.

    Args:
        image: (H, W, 3) uint8.
        strength: 0.5 means factors from 0.5 to 1.5, and hues turned by up to 36 degrees.
        rng: where the random numbers come from.

    Returns:
        (H, W, 3) uint8.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if rng.random() < 0.5:
            picture = enhance(picture).enhance(rng.uniform(1 - strength, 1 + strength))
    if rng.random() < 0.5:
        turn = round(rng.uniform(-1, 1) * strength * _HUE / 360 * 256)
        hue, saturation, value = picture.convert("HSV").split()
        hue = hue.point([(level + turn) % 256 for level in range(256)])
        picture = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return np.asarray(picture)
