"""The result of segmenting an image: it can plot and save itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segformerpp.data.files import write_whole
from segformerpp.data.images import write_image
from segformerpp.data.labels import Palette, class_ids
from segformerpp.errors import UsageError
from segformerpp.tasks.legend import LegendEntry, add_legend
from segformerpp.tasks.polygons import SMALLEST_REGION, TOLERANCE, to_coco
from segformerpp.tasks.segmentation import ignored_label, keep_classes

#: What `SegmentationResult.save` can write, and how the names of the files end.
OUTPUTS = {
    "labels": "_labels.png",
    "overlay": "_overlay.png",
    "color": "_color.png",
    "probs": "_probs.npz",
    "polygons": "_polygons.json",
}


def output_paths(
    folder: str | Path, stem: str, what: Iterable[str], outputs: Mapping[str, str] = OUTPUTS
) -> dict[str, Path]:
    """Where the `save` of a result writes each output.

    Args:
        folder: where to.
        stem: what the names start with.
        what: any of the outputs.
        outputs: how the names of the files end.

    Raises:
        UsageError: if there is no such output.
    """
    what = list(what)
    if unknown := [key for key in what if key not in outputs]:
        raise UsageError(f"save: any of {', '.join(outputs)}, not {unknown[0]!r}")
    return {key: Path(folder, stem + outputs[key]) for key in what}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SegmentationResult:
    """What an image shows, pixel by pixel.

    Args:
        label_map: class of each pixel at the image's own size: (H, W), uint8, or uint16 for more
            than 256 classes. Where some classes were chosen, pixels of others are 255 (with 256
            classes or more 65535, in uint16).
        labels: the K class names.
        palette: the RGB colour of each class.
        image: (H, W, 3) uint8 RGB, as read.
        path: the file that the image came from, if it did.
        probabilities: (K, H, W) float16 if they were asked for; of chosen classes, their planes.
        network_seconds: how long the network took for this image: its share of the time of a
            batch, and of the threads where several went through it at the same time.
        classes: the ids of the classes that were chosen, in rising order; None for all.
        merge: the preset that was taken for this image under ``merge="auto"``; else empty.
    """

    label_map: np.ndarray
    labels: tuple[str, ...]
    palette: Palette
    image: np.ndarray
    path: Path | None = None
    probabilities: np.ndarray | None = None
    network_seconds: float = 0.0
    classes: tuple[int, ...] | None = None
    merge: str = ""

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        shares = self.shares
        largest = ", ".join(
            f"{self.labels[i]} {shares[i]:.0%}" for i in np.argsort(-shares)[:3] if shares[i]
        )
        return f"SegmentationResult({self.path or 'image'}, {height}x{width}: {largest})"

    @property
    def shares(self) -> np.ndarray:
        """The fraction of pixels of each class: (K,) float64; 0 of what was left out."""
        counts = np.zeros(len(self.labels), np.int64)
        for rows in self._strips():  # for counting converts what it counts to 64 bits
            strip = np.bincount(self.label_map[rows].ravel(), minlength=len(counts))
            counts += strip[: len(counts)]
        return counts / self.label_map.size

    def row(self) -> dict[str, Any]:
        """What a JSON row says of it: how long the network took, the shares of classes present.

        And ``merge`` under ``merge="auto"``.
        """
        shares: Counter[str] = Counter()  # adds up classes of the same name
        for label, share in zip(self.labels, self.shares, strict=True):
            shares[label] += share
        return {
            **({"merge": f"auto: {self.merge}"} if self.merge else {}),
            "network_ms": round(1000 * self.network_seconds, 3),
            "shares": {k: round(float(share), 6) for k, share in shares.items() if share},
        }

    def only(self, classes: str | Iterable[str | int]) -> SegmentationResult:
        """The same result of some classes alone: pixels of others are ignored.

        Args:
            classes: names, whatever their case, and ids; or a text of them with commas between.

        Raises:
            UsageError: if one is no class of the model's; it lists what there is.
        """
        before = self._class_ids
        chosen = [i for i in class_ids(classes, self.labels) if i in before]
        planes = self.probabilities
        return replace(
            self,
            label_map=keep_classes(self.label_map, chosen, len(self.labels)),
            probabilities=None if planes is None else planes[[before.index(i) for i in chosen]],
            classes=tuple(chosen),
        )

    def polygons(
        self,
        smallest: int = SMALLEST_REGION,
        tolerance: float = TOLERANCE,
        image_id: int = 1,
    ) -> dict[str, Any]:
        """The regions of each class as a data set of COCO's kind, for annotation tools.

        See `polygons.to_coco` for what it holds. Category ids are the class ids.

        Args:
            smallest: regions and holes of fewer pixels are left out.
            tolerance: how far outlines may depart from the pixels' edges, in pixels; 0 follows
                every edge, with many more points.
            image_id: the image's number.

        Raises:
            UsageError: if `smallest` or `tolerance` is below 0.
        """
        return to_coco(
            self.label_map,
            {i: self.labels[i] for i in self._class_ids},
            self.path.name if self.path else "",
            smallest=smallest,
            tolerance=tolerance,
            image_id=image_id,
        )

    def color_map(self) -> Image.Image:
        """The label map in the colours of its classes: RGB, at the image's own size.

        Pixels of classes that were not chosen are black.
        """
        return Image.fromarray(self._colours(self.label_map))

    def plot(self, alpha: float = 0.5, legend: bool = True) -> Image.Image:
        """The image with the class colours laid over it; pixels that are ignored stay as they are.

        Args:
            alpha: opacity of the colours, from 0 to 1.
            legend: whether to add the names and shares of the classes that are present, beside
                the image, or below it where it is very wide. The image keeps its size.

        Raises:
            UsageError: if `alpha` is not in 0..1.
        """
        return Image.fromarray(self._overlay(alpha, legend))

    def save(
        self, folder: str | Path, stem: str, what: Iterable[str] = ("labels", "overlay")
    ) -> list[Path]:
        """Write files, each whole or not at all; missing folders are made.

        Args:
            folder: where to.
            stem: what the names start with; may contain subfolders.
            what: any of ``labels`` (``<stem>_labels.png``: class ids, 8 bits grey, 16 for more
                than 256 classes), ``overlay`` (`plot`), ``color`` (`color_map`), ``probs``
                (``<stem>_probs.npz`` with `probabilities`, and the ids of their classes as
                ``class_ids``) and ``polygons`` (``<stem>_polygons.json``: `polygons`).

        Returns:
            The paths written.

        Raises:
            UsageError: if there is no such output, or no probabilities were asked for.
            OSError: if a file cannot be written.
        """
        paths = output_paths(folder, stem, what)
        if "probs" in paths and self.probabilities is None:
            raise UsageError("save: no probs, because the Predictor has probabilities=False")
        writers: dict[str, Callable[[Path], None]] = {
            "labels": lambda path: write_image(path, self.label_map),
            "overlay": lambda path: write_image(path, self._overlay()),
            "color": lambda path: write_image(path, self._colours(self.label_map)),
            "probs": self._write_probabilities,
            "polygons": self._write_polygons,
        }
        for key, path in paths.items():
            writers[key](path)
        return list(paths.values())

    @property
    def _class_ids(self) -> Sequence[int]:
        """The ids of the classes that it is about."""
        return range(len(self.labels)) if self.classes is None else self.classes

    def _overlay(self, alpha: float = 0.5, legend: bool = True) -> np.ndarray:
        """What `plot` shows: (h, w, 3) uint8."""
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha: a number from 0 to 1, not {alpha}")
        overlay = np.empty_like(self.image)
        for rows in self._strips():
            labels, pixels = self.label_map[rows], self.image[rows]
            overlay[rows] = cv2.addWeighted(pixels, 1 - alpha, self._colours(labels), alpha, 0)
            if self.classes is not None:
                ignored = labels == ignored_label(len(self.labels))
                np.copyto(overlay[rows], pixels, where=ignored[..., None])
        if not legend:
            return overlay
        shares = self.shares
        present = sorted(np.flatnonzero(shares), key=lambda i: -shares[i])
        if not present:
            return overlay
        return add_legend(
            overlay, [LegendEntry(self.labels[i], self.palette[i], shares[i]) for i in present]
        )

    def _strips(self) -> Iterator[slice]:
        """Rows that make up about a million pixels: what takes a lot of memory goes in these."""
        height, width = self.label_map.shape
        step = max(2**20 // width, 1)
        return (slice(top, min(top + step, height)) for top in range(0, height, step))

    def _colours(self, label_map: np.ndarray) -> np.ndarray:
        """(h, w) -> (h, w, 3) uint8; black where ignored."""
        colours = np.array([*self.palette, (0, 0, 0)], np.uint8)
        return np.take(colours, label_map, axis=0, mode="clip")

    def _write_probabilities(self, path: Path) -> None:
        assert self.probabilities is not None
        with write_whole(path) as file:
            np.savez(file, probabilities=self.probabilities, class_ids=np.array(self._class_ids))

    def _write_polygons(self, path: Path) -> None:
        with write_whole(path) as file:
            file.write(json.dumps(self.polygons()).encode() + b"\n")
