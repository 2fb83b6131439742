"""Segmentation datasets: images with masks, and what the numbers in the masks mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segformerpp.data.files import IMAGE_EXTENSIONS, expand_user
from segformerpp.data.images import read_image
from segformerpp.data.labels import LabelSet, label_set
from segformerpp.data.masks import Encode, from_ids, read_mask
from segformerpp.errors import UsageError

Sample = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, and its mask of class ids if there is one."""

    image: Path
    mask: Path | None


@dataclass(frozen=True, slots=True)
class SegmentationDataset:
    """Images with masks.

    Args:
        name: of the dataset and its split, for people.
        classes: names and colours by training id.
        pairs: the files, every one with a mask.
        encode: from what a mask file holds, (H, W) or (H, W, 3), to training ids (H, W) uint8,
            `IGNORED` where a pixel does not count.
        reduce_labels: whether the files count from 1, with 0 ignored; see `Metadata`.
    """

    name: str
    classes: LabelSet
    pairs: tuple[Pair, ...]
    encode: Encode
    reduce_labels: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Sample:
        """The image (H, W, 3) uint8 RGB and its mask (H, W) uint8 of training ids.

        Raises:
            ImageError: if one of them cannot be read, or the mask has unknown ids or another size.
        """
        pair = self.pairs[index]
        image = read_image(pair.image)
        assert pair.mask is not None
        return image, read_mask(pair.mask, (image.shape[0], image.shape[1]), self.encode)


def camvid(root: Path, split: str) -> SegmentationDataset:
    """CamVid as SegNet split it: ``train``, ``val`` or ``test``, 11 classes and void (11)."""
    classes = label_set("camvid")
    pairs = _pairs(root / split, root / f"{split}annot")
    encode = from_ids(range(11), ignored=(11, 255))
    return SegmentationDataset(f"camvid {split}", classes, pairs, encode)


def _pairs(images: Path, masks: Path) -> tuple[Pair, ...]:
    """Images, and masks of the same names, whatever their extensions; every image needs one."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise UsageError(f"root: there is no folder {folder}")
    by_stem = {path.stem: path for path in _image_files(masks)}
    pairs = tuple(Pair(path, by_stem.get(path.stem)) for path in _image_files(images))
    without = [pair.image.name for pair in pairs if pair.mask is None]
    if not pairs:
        raise UsageError(f"root: there are no images in {images}")
    if without:
        raise UsageError(f"root: no mask in {masks} for {', '.join(without[:5])}")
    return pairs


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in expand_user(folder).iterdir() if p.suffix.lower() in IMAGE_EXTENSIONS)
