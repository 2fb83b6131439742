"""Sliding windows: logits of an image too large for the network, computed as they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsIndex

import cv2
import numpy as np

from segformerpp.arguments import Size, checked_size
from segformerpp.errors import UsageError

#: Logits (B, K, h', w') of windows (B, h, w, 3) of the image.
Network = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Which images go through the network in windows, and what these are like.

    Args:
        tile: height and width of a window in pixels.
        overlap: pixels in height and width that neighbours share at least.
        above: images with no more pixels than this go whole, and so do those no larger than the
            tile.
    """

    tile: Size
    overlap: Size
    above: int = 0

    @classmethod
    def of(
        cls, tile: Size, overlap: SupportsIndex | Size | None, least: int, above: int = 0
    ) -> Tiling:
        """Check and complete what a user gives.

        Args:
            tile: see above.
            overlap: as above, or one number for both, or None for a quarter of the tile.
            least: height and width that the network needs at least.
            above: see above.

        Raises:
            UsageError: if the tile is too small, or the overlap not smaller than the tile.
        """
        tile = checked_size("tile", tile, least)
        if overlap is None:
            overlap = (tile[0] // 4, tile[1] // 4)
        pair = (overlap, overlap) if isinstance(overlap, SupportsIndex) else overlap
        pair = checked_size("overlap", pair, 0)
        if pair[0] >= tile[0] or pair[1] >= tile[1]:
            raise UsageError(
                f"overlap: less than the tile's {tile[0]}x{tile[1]} pixels, not {pair[0]}x{pair[1]}"
            )
        return cls(tile, pair, above)

    def takes(self, size: Size) -> bool:
        """Whether an image of this size goes in windows."""
        larger = size[0] > self.tile[0] or size[1] > self.tile[1]
        return larger and size[0] * size[1] > self.above


class Windows:
    """Logits (K, h, w) of an image from overlapping windows, averaged where they overlap.

    Towards its borders, across the overlap, the weight of a window falls linearly: there it knows
    least of what is around, and so no seams show.

    The image is padded by its edges to whole cells of the logit grid. The windows lie on that
    grid and are all of the same size; the last one in each direction is moved back to end with
    the image. Rows are read like those of an array, from the top down: the windows that they
    need are computed then, and what lies above is forgotten. So memory grows with the image's
    width, not with its area.

    Args:
        image: (H, W, 3) uint8.
        network: maps windows (B, h, w, 3) uint8 to logits (B, K, h', w') float32; where these
            do not have one value for each cell they are resized to that.
        classes: the K of the logits.
        tiling: size and overlap of the windows; rounded up to whole cells, and no larger than
            the image.
        cell: pixels in height and width that one logit stands for.
        batch: windows that the network gets at a time.

    Attributes:
        shape: (K, h, w).
    """

    def __init__(
        self,
        image: np.ndarray,
        network: Network,
        classes: int,
        tiling: Tiling,
        cell: int = 4,
        batch: int = 1,
    ) -> None:
        self._image, self._network, self._cell, self._batch = image, network, cell, batch
        tile, overlap = tiling.tile, tiling.overlap
        h, w = (-(-side // cell) for side in image.shape[:2])
        self.shape = (classes, h, w)
        self._window = (min(-(-tile[0] // cell), h), min(-(-tile[1] // cell), w))
        self._tops = _starts(h, self._window[0], (tile[0] - overlap[0]) // cell)
        self._lefts = _starts(w, self._window[1], (tile[1] - overlap[1]) // cell)
        self._weights = np.outer(
            _ramp(self._window[0], overlap[0] // cell), _ramp(self._window[1], overlap[1] // cell)
        )
        self._first = 0  # the row that the sums begin with
        self._sums = np.zeros((classes, 0, w), np.float32)
        self._total = np.zeros((0, w), np.float32)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Rows ``[:, first:last]`` as (K, last - first, w); `first` must not decrease."""
        first, last = index[1].start, index[1].stop
        while self._tops and self._tops[0] < last:
            self._add_row_of_windows(self._tops.pop(0))
        done = first - self._first
        self._sums, self._total = self._sums[:, done:], self._total[done:]
        self._first = first
        return self._sums[:, : last - first] / self._total[: last - first]

    def _add_row_of_windows(self, top: int) -> None:
        height, width = self._window
        grow = top + height - self._first - self._sums.shape[1]
        self._sums = np.pad(self._sums, ((0, 0), (0, grow), (0, 0)))
        self._total = np.pad(self._total, ((0, grow), (0, 0)))
        rows = slice(top - self._first, top - self._first + height)
        for i in range(0, len(self._lefts), self._batch):
            lefts = self._lefts[i : i + self._batch]
            logits = self._network(np.stack([self._crop(top, left) for left in lefts]))
            for left, window in zip(lefts, logits, strict=True):
                columns = slice(left, left + width)
                self._sums[:, rows, columns] += self._on_grid(window) * self._weights
                self._total[rows, columns] += self._weights

    def _crop(self, top: int, left: int) -> np.ndarray:
        """One window of the padded image: (h, w, 3) uint8."""
        height, width = (side * self._cell for side in self._window)
        top, left = top * self._cell, left * self._cell
        crop = self._image[top : top + height, left : left + width]
        below, right = height - crop.shape[0], width - crop.shape[1]
        return np.pad(crop, ((0, below), (0, right), (0, 0)), mode="edge")

    def _on_grid(self, logits: np.ndarray) -> np.ndarray:
        """Logits (K, h', w') of one window, with one value for each of its cells."""
        height, width = self._window
        if logits.shape[1:] == self._window:
            return logits
        return np.stack([cv2.resize(plane, (width, height)) for plane in logits])


def _starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin that cover the whole length."""
    return [*range(0, length - window, max(step, 1)), length - window]


def _ramp(length: int, overlap: int) -> np.ndarray:
    """Weights that rise from either end over the overlap: (length,) float32."""
    distance = np.arange(1, length + 1)
    distance = np.minimum(distance, distance[::-1])
    return np.minimum(distance, overlap + 1).astype(np.float32)
