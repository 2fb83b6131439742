"""Label maps at the images' size from logits at a quarter of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from segformerpp.arguments import Size

#: Logits of a class, and pixels, that are worked on at a time: they stay in the processor's cache.
_STRIP_LOGITS, _PIXELS = 2**16, 2**16


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
    label_map = np.empty(size, _dtype(logits.shape[0]))
    down, across = (_Axis(*sides) for sides in zip(logits.shape[1:], size, strict=True))
    step = max(_STRIP_LOGITS // logits.shape[2], 1)
    for first in range(0, logits.shape[1] + 1, step):
        rows, part = down.cut(first, first + step)
        if rows.start < rows.stop:
            _fill(label_map[rows], logits, part, across)
    return label_map


class _Axis:
    """Where the pixels of one side lie among its logits.

    Cell i is between logits i - 1 and i; beyond an edge they are as at the edge.

    Attributes:
        ends: the logits at the ends of the cells, of which there are one more than of cells.
        cells: the cell of each pixel.
        weights: of the logit behind it, for each pixel.
        starts: the first pixel of each cell, and how many pixels there are.
    """

    def __init__(self, source: int, size: int) -> None:
        at = (np.arange(size) + 0.5) * source / size - 0.5
        before = np.floor(at)
        self.ends = np.arange(-1, source + 1).clip(0, source - 1)
        self.cells = before.astype(np.int64) + 1
        self.weights = (at - before).astype(np.float32)
        self.starts = np.searchsorted(self.cells, np.arange(source + 2))

    @property
    def sizes(self) -> np.ndarray:
        """How many pixels each cell has."""
        return np.diff(self.starts)

    def cut(self, first: int, end: int) -> tuple[slice, _Axis]:
        """The pixels of some cells, and where these lie; logits keep their numbers."""
        part, starts = copy.copy(self), self.starts[first : end + 1]
        pixels = slice(starts[0], starts[-1])
        part.ends, part.starts = self.ends[first : end + 1], starts - starts[0]
        part.cells, part.weights = self.cells[pixels] - first, self.weights[pixels]
        return pixels, part

    def pixels(self, cells: np.ndarray) -> np.ndarray:
        """The pixels (n, M) of some cells (M,); where one has fewer than n, its last stands in."""
        number = np.arange(self.sizes.max())[:, None]
        return np.minimum(self.starts[cells] + number, self.starts[cells + 1] - 1)


def _fill(label_map: np.ndarray, logits: LogitRows, down: _Axis, across: _Axis) -> None:
    """Fill the rows of a label map that lie between some of the logits."""
    near = logits[:, down.ends[0] : down.ends[-1] + 1]
    if not near[0].flags.c_contiguous:
        near = np.ascontiguousarray(near)  # once, not for each class and chunk
    classes, _, width = near.shape
    tops, lefts = down.ends - down.ends[0], across.ends
    winner = _highest(near, classes).take(tops, axis=0).take(lefts, axis=1)
    label = winner[:-1, :-1]
    label.take(across.cells, axis=1).take(down.cells, axis=0, out=label_map, mode="clip")
    mixed = (label != winner[:-1, 1:]) | (label != winner[1:, :-1]) | (label != winner[1:, 1:])
    mixed &= np.outer(down.sizes > 0, across.sizes > 0)
    y_mixed, x_mixed = np.nonzero(mixed)
    together = max(_PIXELS // (down.sizes.max() * across.sizes.max()), 1)
    for i in range(0, len(y_mixed), together):
        y_cells, x_cells = y_mixed[i : i + together], x_mixed[i : i + together]
        y, x = down.pixels(y_cells), across.pixels(x_cells)
        around = np.stack(
            [
                tops[y_cells + lower] * width + lefts[x_cells + right]
                for lower in (0, 1)
                for right in (0, 1)
            ]
        )
        planes = _between(near, around, down.weights[y], across.weights[x])
        label_map[y[:, None], x] = _highest(planes, classes)


def _between(
    logits: np.ndarray, around: np.ndarray, lower: np.ndarray, right: np.ndarray
) -> Iterator[np.ndarray]:
    """For each class, the logits (n, m, M) at the pixels of M cells.

    Args:
        logits: (K, h, w).
        around: where in a plane of them those around each cell are, row by row; (4, M).
        lower: the weights of the lower ones (n, M).
        right: of those on the right (m, M).
    """
    for plane in logits:
        a, b, c, d = plane.ravel().take(around, mode="clip")  # faster than with a check
        left = a + lower * (c - a)
        step = b + lower * (d - b) - left
        yield left[:, None] + step[:, None] * right


def _highest(planes: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """The class of the highest logit, the lower one of equals; there is a plane for each class."""
    planes, dtype = iter(planes), _dtype(classes)
    best = next(planes).copy()
    labels, higher = np.zeros(best.shape, dtype), np.empty(best.shape, bool)
    ones = higher.view(np.uint8)  # not converted, which would take as long as all the rest
    for label, plane in enumerate(planes, 1):
        np.greater(plane, best, out=higher)
        # Labels only grow, so a later one that beats all before it is also the larger.
        np.maximum(labels, ones * dtype(label), out=labels)
        np.maximum(best, plane, out=best)
    return labels


def _dtype(classes: int) -> type[np.unsignedinteger]:
    return np.uint8 if classes <= 256 else np.uint16
