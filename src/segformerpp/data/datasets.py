"""Segmentation datasets: images with masks, and what the numbers in the masks mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segformerpp.data.classes import FolderClasses
from segformerpp.data.files import IMAGE_EXTENSIONS, expand_user
from segformerpp.data.images import read_image
from segformerpp.data.labels import LabelSet, label_set
from segformerpp.data.masks import IGNORED, Encode, from_ids, read_mask
from segformerpp.errors import ImageError, UsageError

Sample = tuple[np.ndarray, np.ndarray]

#: The numbers of Cityscapes' 19 classes in its ``labelIds`` files, by training id.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_ADE20K_SPLITS = {"train": "training", "val": "validation"}
_READERS = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, and its mask."""

    image: Path
    mask: Path


@dataclass(frozen=True, slots=True)
class Problem:
    """A pair that cannot be used, and why."""

    pair: Pair
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class SegmentationDataset:
    """Images with masks.

    Args:
        name: of the dataset and its split, for people.
        classes: names and colours by training id.
        pairs: the files.
        encode: from what a mask file holds, (H, W) or (H, W, 3), to training ids (H, W) uint8,
            255 where a pixel does not count.
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
            ImageError: if one of them cannot be read, or the mask has unknown values or another
                size.
        """
        pair = self.pairs[index]
        image = read_image(pair.image)
        return image, read_mask(pair.mask, (image.shape[0], image.shape[1]), self.encode)

    def without(self, problems: Sequence[Problem]) -> SegmentationDataset:
        """The rest."""
        out = {problem.pair for problem in problems}
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair not in out))


def open_dataset(
    name: str, root: str | Path, split: str, classes: str | Path | None = None
) -> SegmentationDataset:
    """Find the images of a dataset, and their masks.

    Args:
        name: ``camvid`` (as SegNet split it), ``cityscapes``, ``ade20k``, or ``folder``.
        root: its folder.
        split: such as ``train`` or ``val``; for ``folder`` it may be empty.
        classes: for ``folder``: the file with its classes; None for ``classes.yaml`` in the root.

    Raises:
        UsageError: if there is no such dataset or split, or an image has no mask.
    """
    if name not in DATASETS:
        raise UsageError(f"data: one of {', '.join(DATASETS)}, not {name!r}")
    if classes is not None and name != "folder":
        raise UsageError(f"classes: only for folders; those of {name} are known")
    folder = expand_user(root)
    if not folder.is_dir():
        raise UsageError(f"root: there is no folder {str(root)!r}")
    if name == "folder":
        return _folder(folder, split, classes)
    return DATASETS[name](folder, split)


def check(
    dataset: SegmentationDataset, advance: Callable[[], None] = lambda: None
) -> list[Problem]:
    """Read everything; what cannot be used, in order.

    Args:
        dataset: what to read.
        advance: called after each image.
    """

    def problem(index: int) -> Problem | None:
        try:
            dataset.read(index)
        except ImageError as error:
            return Problem(dataset.pairs[index], str(error))
        return None

    problems = []
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(problem, range(len(dataset))):
            problems += [found] if found else []
            advance()
    return problems


def _camvid(root: Path, split: str) -> SegmentationDataset:
    pairs = _pairs(root, split, split, f"{split}annot")
    encode = from_ids(range(11), ignored=(11, IGNORED))
    return SegmentationDataset(f"camvid {split}", label_set("camvid"), pairs, encode)


def _cityscapes(root: Path, split: str) -> SegmentationDataset:
    image, mask = "_leftImg8bit.png", "_gtFine_labelIds.png"
    pairs = _pairs(root, split, f"leftImg8bit/{split}", f"gtFine/{split}", image, mask)
    ignored = [i for i in range(34) if i not in _CITYSCAPES_IDS]
    encode = from_ids(_CITYSCAPES_IDS, ignored=(*ignored, IGNORED))  # 255 is what -1 becomes
    return SegmentationDataset(f"cityscapes {split}", label_set("cityscapes"), pairs, encode)


def _ade20k(root: Path, split: str) -> SegmentationDataset:
    folder = _ADE20K_SPLITS.get(split, split)
    pairs = _pairs(root, split, f"images/{folder}", f"annotations/{folder}")
    encode = from_ids(range(1, 151), ignored=(0, IGNORED))
    classes = label_set("ade20k")
    return SegmentationDataset(f"ade20k {split}", classes, pairs, encode, reduce_labels=True)


def _folder(root: Path, split: str, classes: str | Path | None) -> SegmentationDataset:
    described = FolderClasses.read(expand_user(classes) if classes else root / "classes.yaml")
    inside = (root / split / "images").is_dir() and split
    images, masks = (f"{split}/{n}" if inside else f"{n}/{split}" for n in ("images", "masks"))
    pairs = _pairs(root, split, images, masks)
    name = f"{root.name} {split}".strip()
    return SegmentationDataset(name, described.classes, pairs, described.encode)


DATASETS: dict[str, Callable[[Path, str], SegmentationDataset]] = {
    "camvid": _camvid,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "folder": lambda root, split: _folder(root, split, None),
}


def mask_files(folder: Path, end: str = "") -> dict[str, Path]:
    """Masks by their relative path, without `end`, or else without extension.

    Raises:
        UsageError: if two have the same.
    """
    found: dict[str, Path] = {}
    for name, path in _image_files(folder, end):
        if name in found:
            raise UsageError(f"masks: {found[name]} and {path.name} are masks of the same image")
        found[name] = path
    return found


def _pairs(
    root: Path, split: str, images: str, masks: str, image_end: str = "", mask_end: str = ""
) -> tuple[Pair, ...]:
    """Images, and masks of the same relative path without the ends, whatever their extensions."""
    for name in (images, masks):
        if not (root / name).is_dir():
            raise UsageError(f"split: {split!r} is not there: no folder {root / name}")
    by_name = mask_files(root / masks, mask_end)
    found = [(path, by_name.get(name)) for name, path in _image_files(root / images, image_end)]
    if not found:
        raise UsageError(f"root: there are no images in {root / images}")
    without = [path.name for path, mask in found if mask is None]
    if without:
        more = f" and {len(without) - 5} others" if len(without) > 5 else ""
        raise UsageError(f"root: no mask in {root / masks} for {', '.join(without[:5])}{more}")
    return tuple(Pair(path, mask) for path, mask in found if mask is not None)


def _image_files(folder: Path, end: str) -> list[tuple[str, Path]]:
    """Relative names, without the end or else the extension, and paths, in order."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        # Hidden ones are what file managers and editors leave behind.
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or path.suffix.lower() not in IMAGE_EXTENSIONS or not path.name.endswith(end):
            continue
        plain = name.as_posix().removesuffix(end) if end else name.with_suffix("").as_posix()
        found.append((plain, path))
    return found
