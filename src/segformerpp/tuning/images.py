"""The images that plans are judged on: some to search with, others to check the result."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from segformerpp.data.datasets import SegmentationDataset
from segformerpp.data.files import find_images
from segformerpp.data.images import read_image
from segformerpp.errors import ImageError, UsageError

#: Every so many-th image is left out of the search, for checking.
HELD_OUT = 3
#: Decoded images that stay in memory.
_KEPT = 64

Read = Callable[[int], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True, slots=True)
class Images:
    """Images, with masks or without.

    Args:
        paths: the files.
        read: gives an image (H, W, 3) uint8 and its mask (H, W) of training ids, or None.
        masked: whether there are masks.
    """

    paths: tuple[Path, ...]
    read: Read
    masked: bool

    def __len__(self) -> int:
        return len(self.paths)

    def some(self, indices: Sequence[int]) -> Images:
        """Those images, in that order."""
        order = tuple(indices)
        paths = tuple(self.paths[i] for i in order)
        return Images(paths, lru_cache(_KEPT)(lambda i: self.read(order[i])), self.masked)

    def usable(self, on_error: Callable[[ImageError], None]) -> Images:
        """Those that can be read; `on_error` is called with what is wrong with the others."""
        good = []
        for index in range(len(self)):
            try:
                self.read(index)
            except ImageError as error:
                on_error(error)
            else:
                good.append(index)
        return self.some(good)


def of_dataset(dataset: SegmentationDataset) -> Images:
    """Images with masks."""
    return Images(tuple(pair.image for pair in dataset.pairs), dataset.read, masked=True)


def of_folder(folder: str) -> Images:
    """A plain folder of images.

    Raises:
        UsageError: if there are none.
    """
    paths = tuple(file.path for file in find_images([folder]))
    return Images(paths, lambda i: (read_image(paths[i]), None), masked=False)


def divide(images: Images, most: int) -> tuple[Images, Images]:
    """Some images to search with, in an order in which the first few stand for all; some to check.

    Every third image is for checking, so that both are from everywhere.

    Args:
        images: all of them.
        most: how many to search with at most, evenly spread; and how many to check with.

    Raises:
        UsageError: if there are fewer than six.
    """
    if len(images) < 2 * HELD_OUT:
        raise UsageError(
            f"root: {len(images)} images are too few: at least {2 * HELD_OUT}, as every "
            f"{HELD_OUT}rd is for checking alone"
        )
    held_out = list(range(HELD_OUT - 1, len(images), HELD_OUT))
    others = [i for i in range(len(images)) if i % HELD_OUT != HELD_OUT - 1]
    searched = spread(others, most)
    random.Random(0).shuffle(searched)
    return images.some(searched), images.some(spread(held_out, most))


def spread(indices: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly spread over all."""
    count = min(most, len(indices))
    return [indices[i * len(indices) // count] for i in range(count)]
