"""Label maps at the images' size from logits at a quarter of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from segformerpp.arguments import Size

#: Logits of a class, and cells, that are worked on at a time: they stay in the processor's cache.
_STRIP_LOGITS, _CELLS_AT_ONCE = 2**16, 2**12


class LogitRows(Protocol):
    """Logits (K, h, w) float32 that are read in slices of rows, from the top down."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, h, w)."""

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """``logits[:, first:last]``."""


def from_logits(logits: LogitRows, size: Size) -> np.ndarray:
    """Resize logits to the image's size, then take the class with the highest.

    Bilinear, with pixel centres at halves (`align_corners=False` of PyTorch). Of equal logits the
    lower class wins. Full-size logits never exist: between four logits (a cell) at which the same
    class is the highest, no other can win, and only the other cells are resized.

    Args:
        logits: (K, h, w) float32.
        size: the image's own (H, W).

    Returns:
        The label map (H, W): uint8, or uint16 for more than 256 classes.
    """
    rows, columns = (_Axis(*sides) for sides in zip(logits.shape[1:], size, strict=True))
    step = max(_STRIP_LOGITS // logits.shape[2], 1)
    firsts = range(0, logits.shape[1] + 1, step)
    return np.concatenate(
        [_strip(logits, rows.cut(first, first + step), columns) for first in firsts]
    )


class _Axis:
    """Where the pixels of one side lie among its logits.

    Cell i is between logits i - 1 and i; beyond an edge they are as at the edge.

    Attributes:
        corners: the logits around each cell, of which there are one more than of cells.
        cells: the cell of each pixel.
        weights: of the later logit of its cell, for each pixel.
        starts: the first pixel of each cell, and how many pixels there are.
    """

    def __init__(self, source: int, size: int) -> None:
        at = (np.arange(size) + 0.5) * source / size - 0.5
        before = np.floor(at)
        self.corners = np.arange(-1, source + 1).clip(0, source - 1)
        self.cells = before.astype(np.int64) + 1
        self.weights = (at - before).astype(np.float32)
        self.starts = np.searchsorted(self.cells, np.arange(source + 2))

    def cut(self, first: int, end: int) -> _Axis:
        """That of some of its cells; logits keep their numbers."""
        part, starts = copy.copy(self), self.starts[first : end + 1]
        pixels = slice(starts[0], starts[-1])
        part.corners, part.starts = self.corners[first : end + 1], starts - starts[0]
        part.cells, part.weights = self.cells[pixels] - first, self.weights[pixels]
        return part

    def pixels(self, cells: np.ndarray) -> np.ndarray:
        """The pixels (n, M) of some cells (M,); where one has fewer than n, its last stands in."""
        most = np.diff(self.starts).max()
        return np.minimum(self.starts[cells] + np.arange(most)[:, None], self.starts[cells + 1] - 1)


def _strip(logits: LogitRows, rows: _Axis, columns: _Axis) -> np.ndarray:
    """The rows of a label map that lie between some of the logits."""
    near = logits[:, rows.corners[0] : rows.corners[-1] + 1]
    classes, _, width = near.shape
    tops, lefts = rows.corners - rows.corners[0], columns.corners
    corner = _highest(near, classes).take(tops, axis=0).take(lefts, axis=1)
    label = corner[:-1, :-1]
    out = label.take(columns.cells, axis=1).take(rows.cells, axis=0)
    mixed = (label != corner[:-1, 1:]) | (label != corner[1:, :-1]) | (label != corner[1:, 1:])
    mixed &= np.outer(np.diff(rows.starts) > 0, np.diff(columns.starts) > 0)
    y_mixed, x_mixed = np.nonzero(mixed)
    for i in range(0, len(y_mixed), _CELLS_AT_ONCE):
        y_cells, x_cells = y_mixed[i : i + _CELLS_AT_ONCE], x_mixed[i : i + _CELLS_AT_ONCE]
        y, x = rows.pixels(y_cells), columns.pixels(x_cells)
        corners = np.stack(
            [
                tops[y_cells + down] * width + lefts[x_cells + right]
                for down in (0, 1)
                for right in (0, 1)
            ]
        )
        planes = _between(near, corners, rows.weights[y], columns.weights[x])
        out[y[:, None], x] = _highest(planes, classes)
    return out


def _between(
    logits: np.ndarray, corners: np.ndarray, down: np.ndarray, right: np.ndarray
) -> Iterator[np.ndarray]:
    """For each class, the logits (n, m, M) at the pixels of M cells.

    Args:
        logits: (K, h, w).
        corners: where those around each cell are in a plane of them, row by row; (4, M).
        down: the weights of the lower ones (n, M).
        right: of those on the right (m, M).
    """
    for plane in logits:
        a, b, c, d = plane.ravel().take(corners, mode="clip")  # faster than with a check
        left = a + down * (c - a)
        step = b + down * (d - b) - left
        yield left[:, None] + step[:, None] * right


def _highest(planes: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """The class of the highest logit, the lower one of equals; there is a plane for each class."""
    planes, dtype = iter(planes), np.uint8 if classes <= 256 else np.uint16
    best = next(planes).copy()
    labels, higher = np.zeros(best.shape, dtype), np.empty(best.shape, bool)
    ones = higher.view(np.uint8)  # not converted, which would take as long as all the rest
    for label, plane in enumerate(planes, 1):
        np.greater(plane, best, out=higher)
        # Labels only grow, so a later one that beats all before it is also the larger.
        np.maximum(labels, ones * dtype(label), out=labels)
        np.maximum(best, plane, out=best)
    return labels
