"""The result of segmenting an image: it can plot and save itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segformerpp.data.files import write_whole
from segformerpp.data.images import write_image
from segformerpp.data.labels import Palette
from segformerpp.errors import UsageError
from segformerpp.tasks.legend import LegendEntry, add_legend

#: What `SegmentationResult.save` can write, and how the names of the files end.
OUTPUTS = {
    "labels": "_labels.png",
    "overlay": "_overlay.png",
    "color": "_color.png",
    "probs": "_probs.npz",
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
            than 256 classes.
        labels: the K class names.
        palette: the RGB colour of each class.
        image: (H, W, 3) uint8 RGB, as read.
        path: the file that the image came from, if it did.
        probabilities: (K, H, W) float16 if they were asked for.
        network_seconds: how long the network took for this image; in a batch, its share.
    """

    label_map: np.ndarray
    labels: tuple[str, ...]
    palette: Palette
    image: np.ndarray
    path: Path | None = None
    probabilities: np.ndarray | None = None
    network_seconds: float = 0.0

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        shares = self.shares
        largest = ", ".join(
            f"{self.labels[i]} {shares[i]:.0%}" for i in np.argsort(-shares)[:3] if shares[i]
        )
        return f"SegmentationResult({self.path or 'image'}, {height}x{width}: {largest})"

    @property
    def shares(self) -> np.ndarray:
        """The fraction of pixels of each class: (K,) float64; their sum is 1."""
        # Counting converts what it counts to 64 bits.
        counts = np.zeros(len(self.labels), np.int64)
        for rows in self._strips():
            counts += np.bincount(self.label_map[rows].ravel(), minlength=len(counts))
        return counts / self.label_map.size

    def row(self) -> dict[str, Any]:
        """What a JSON row says of it: how long the network took, the shares of classes present."""
        shares: Counter[str] = Counter()  # adds up classes of the same name
        for label, share in zip(self.labels, self.shares, strict=True):
            shares[label] += share
        return {
            "network_ms": round(1000 * self.network_seconds, 3),
            "shares": {k: round(float(share), 6) for k, share in shares.items() if share},
        }

    def color_map(self) -> Image.Image:
        """The label map in the colours of its classes: RGB, at the image's own size."""
        return Image.fromarray(self._colours(self.label_map))

    def plot(self, alpha: float = 0.5, legend: bool = True) -> Image.Image:
        """The image with the class colours laid over it.

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
                than 256 classes), ``overlay`` (`plot`), ``color`` (`color_map`) and ``probs``
                (``<stem>_probs.npz`` with `probabilities`).

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
        }
        for key, path in paths.items():
            writers[key](path)
        return list(paths.values())

    def _overlay(self, alpha: float = 0.5, legend: bool = True) -> np.ndarray:
        """What `plot` shows: (h, w, 3) uint8."""
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha: a number from 0 to 1, not {alpha}")
        overlay = np.empty_like(self.image)
        for rows in self._strips():
            colours = self._colours(self.label_map[rows])
            overlay[rows] = cv2.addWeighted(self.image[rows], 1 - alpha, colours, alpha, 0)
        if not legend:
            return overlay
        shares = self.shares
        present = sorted(np.flatnonzero(shares), key=lambda i: -shares[i])
        return add_legend(
            overlay, [LegendEntry(self.labels[i], self.palette[i], shares[i]) for i in present]
        )

    def _strips(self) -> Iterator[slice]:
        """Rows that make up about a million pixels: what takes a lot of memory goes in these."""
        height, width = self.label_map.shape
        step = max(2**20 // width, 1)
        return (slice(top, min(top + step, height)) for top in range(0, height, step))

    def _colours(self, label_map: np.ndarray) -> np.ndarray:
        """(h, w) -> (h, w, 3) uint8."""
        return np.take(np.array(self.palette, np.uint8), label_map, axis=0)

    def _write_probabilities(self, path: Path) -> None:
        assert self.probabilities is not None
        with write_whole(path) as file:
            np.savez(file, probabilities=self.probabilities)
