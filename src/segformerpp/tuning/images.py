"""The images that plans are judged on: some to search with, others to check the result."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segformerpp.data.datasets import SegmentationDataset
from segformerpp.data.files import find_images
from segformerpp.data.images import read_image
from segformerpp.data.poses import Person, PoseDataset
from segformerpp.errors import UsageError

#: Every so many-th image is left out of the search, for checking.
HELD_OUT = 3

Read = Callable[[int], tuple[np.ndarray, Any]]


@dataclass(frozen=True, slots=True)
class Images:
    """Images, and what is true of them, if that is known.

    Args:
        paths: the files.
        read: gives an image (H, W, 3) uint8, and its mask (H, W) of training ids, its people, or
            None; an `ImageError` where that cannot be read.
    """

    paths: tuple[Path, ...]
    read: Read

    def __len__(self) -> int:
        return len(self.paths)

    def some(self, indices: Sequence[int]) -> Images:
        """Those images, in that order."""
        order = tuple(indices)
        paths = tuple(self.paths[i] for i in order)
        return Images(paths, lambda i: self.read(order[i]))


def of_dataset(dataset: SegmentationDataset) -> Images:
    """Images with masks."""
    return Images(tuple(pair.image for pair in dataset.pairs), dataset.read)


def of_people(dataset: PoseDataset) -> Images:
    """Images with people: all of an image at once."""
    people: dict[Path, list[Person]] = {}
    for person in dataset.people:
        people.setdefault(person.image, []).append(person)
    paths = tuple(people)
    return Images(paths, lambda i: (read_image(paths[i]), people[paths[i]]))


def of_folder(folder: str) -> Images:
    """A plain folder of images.

    Raises:
        UsageError: if there are none.
    """
    paths = tuple(file.path for file in find_images([folder]))
    return Images(paths, lambda i: (read_image(paths[i]), None))


def noisy(image: np.ndarray, spread: float, seed: int) -> np.ndarray:
    """An image (H, W, 3) uint8 with noise of a standard deviation of `spread`, of 255."""
    noise = np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32)
    return (image + spread * noise).round().clip(0, 255).astype(np.uint8)


def with_noise(images: Images, spread: float) -> Images:
    """The same images with noise, the same on every reading.

    Images that come later are rarely as easy as those at hand.

    Args:
        images: the images.
        spread: the standard deviation of the noise, of 255; 0 for none.
    """

    def read(index: int) -> tuple[np.ndarray, Any]:
        image, truth = images.read(index)
        return noisy(image, spread, index), truth

    return Images(images.paths, read) if spread else images


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
    return sample(images.some(others), most), sample(images.some(held_out), most)


def sample(images: Images, most: int) -> Images:
    """At most so many, evenly spread over all, in an order in which the first few stand for all."""
    chosen = spread(range(len(images)), most)
    random.Random(0).shuffle(chosen)
    return images.some(chosen)


def spread(indices: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly spread over all."""
    count = min(most, len(indices))
    return [indices[i * len(indices) // count] for i in range(count)]
