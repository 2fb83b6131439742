"""Token merging in a graph: `segformerpp.merging.match` for tensors that are yet to come."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, assert_never

import numpy as np

from segformerpp.merging.strategies import BipartiteMatching, Merge, Neighbour1d, Neighbour2d
from segformerpp.runtimes.graph.builder import Dim, Graph, Index, Operand, Value

#: Below any length that a token has behind a layer norm, and more than zero in half precisions.
_TINY = np.float32(1e-6)
#: More than any cosine.
_NOT_CHOSEN = np.float32(2)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What is known of tokens (B, h * w, C)."""

    batch: Dim
    grid: tuple[Dim, Dim]
    channels: int

    @property
    def count(self) -> Dim:
        """H * w."""
        return self.grid[0] * self.grid[1]


class Match(Protocol):
    """Which of N tokens form M groups."""

    def merge(self, x: Value) -> Value:
        """Average each group: (B, N, C) -> (B, M, C)."""

    def unmerge(self, x: Value) -> Value:
        """Give every token its group's value: (B, M, C) -> (B, N, C)."""


def match(g: Graph, merge: Merge | None, x: Value, tokens: Tokens) -> Match | None:
    """Find the groups that a strategy forms on tokens; None where nothing is merged."""
    if isinstance(merge, Neighbour1d):
        return _Pool1d(g, tokens, merge.s) if merge.s > 1 else None
    if isinstance(merge, Neighbour2d):
        return _Pool2d(g, tokens, merge.sy, merge.sx) if merge.sy * merge.sx > 1 else None
    if isinstance(merge, BipartiteMatching):
        return _match_bipartite(g, merge, x, tokens)
    if merge is not None:
        assert_never(merge)
    return None


def share_of(share: float, count: Dim) -> Dim:
    """`int(share * count)`; where the count follows the image, by the share's decimal digits."""
    if isinstance(count, int):
        return int(share * count)
    exact = Fraction(str(share))
    return count * exact.numerator // exact.denominator


def _match_bipartite(
    g: Graph, merge: BipartiteMatching, x: Value, tokens: Tokens
) -> _Groups | None:
    h, w = tokens.grid
    rows, columns = h // merge.sy, w // merge.sx
    destinations = rows * columns
    sources = tokens.count + destinations * -1
    merged = g.least(share_of(merge.r, tokens.count), sources)
    if 0 in (merged, destinations):
        return None
    at, is_destination, own = _corners(g, merge, tokens, rows, columns)
    targets = g.op("Gather", x, at, axis=1)
    lengths = g.op("ReduceL2", targets, np.array([-1]), keepdims=1)
    targets = targets / g.op("Max", lengths, _TINY)
    products = g.op("MatMul", x, g.transpose(targets, 0, 2, 1))  # (B, N, destinations)
    kept = sources + merged * -1
    if isinstance(kept, int) and kept == 0:
        nearest = g.op("ArgMax", products, axis=2, keepdims=0)
        return _Groups(g, tokens, g.where(is_destination, own, nearest), destinations)
    best, nearest = g.ops("TopK", 2, products, np.array([1]), axis=2)
    group = g.where(is_destination, own, g.reshape(nearest, tokens.batch, tokens.count))
    lengths = g.op("ReduceL2", x, np.array([-1]), keepdims=0)
    similarity = g.reshape(best, tokens.batch, tokens.count) / g.op("Max", lengths, _TINY)
    similarity = g.where(is_destination, _NOT_CHOSEN, similarity)
    alone = g.ops("TopK", 2, similarity, g.dims(kept), axis=1, largest=0, sorted=0)[1]
    numbers = g.reshape(g.arange(destinations, destinations + kept), 1, -1)
    if tokens.batch != 1:
        numbers = g.op("Expand", numbers, g.op("Shape", alone))
    group = g.op("ScatterElements", group, alone, numbers, axis=1)
    return _Groups(g, tokens, group, destinations + kept)


def _corners(
    g: Graph, merge: BipartiteMatching, tokens: Tokens, rows: Dim, columns: Dim
) -> tuple[Index, Index, Index]:
    """The destinations: where they are, which tokens they are, and each token's cell's number."""
    _, w = tokens.grid
    down = g.reshape(g.arange(0, rows) * (w * merge.sy), -1, 1)
    at = g.reshape(down + g.arange(0, columns) * merge.sx, -1)
    i = g.arange(0, tokens.count)
    y, x = i // w, i % w
    whole = (y < rows * merge.sy) & (x < columns * merge.sx)
    is_destination = (y % merge.sy + x % merge.sx < 1) & whole
    return at, is_destination, y // merge.sy * columns + x // merge.sx


class _Groups:
    """Groups given by the number of its group for each token: (B, N)."""

    def __init__(self, g: Graph, tokens: Tokens, group: Value, count: Dim) -> None:
        self._g, self._tokens, self._count = g, tokens, count
        if tokens.batch != 1:
            group = group + g.reshape(g.arange(0, tokens.batch) * count, -1, 1)
        self._index = g.reshape(group, -1)

    def merge(self, x: Value) -> Value:
        g, batch, channels = self._g, self._tokens.batch, self._tokens.channels
        total, many = batch * self._count, batch * self._tokens.count
        index = g.reshape(self._index, -1, 1)
        zeros, ones = g.full(np.float32(0), total, channels), g.full(np.int64(1), many, 1)
        sums = g.op("ScatterND", zeros, index, g.reshape(x, -1, channels), reduction="add")
        # In whole numbers: half precisions do not count beyond a few hundred.
        sizes = g.op("ScatterND", g.full(np.int64(0), total, 1), index, ones, reduction="add")
        return g.reshape(sums / g.op("Cast", sizes, to=1), batch, self._count, channels)

    def unmerge(self, x: Value) -> Value:
        g, tokens = self._g, self._tokens
        rows = g.op("Gather", g.reshape(x, -1, tokens.channels), self._index, axis=0)
        return g.reshape(rows, tokens.batch, tokens.count, tokens.channels)


class _Pool1d:
    def __init__(self, g: Graph, tokens: Tokens, s: int) -> None:
        self._g, self._tokens, self._s = g, tokens, s
        self._count = _cells(tokens.count, s)

    def merge(self, x: Value) -> Value:
        g, tokens, s = self._g, self._tokens, self._s
        missing = self._count * s + tokens.count * -1
        x = g.op("Pad", x, g.dims(0, 0, 0, 0, missing, 0))
        x = g.reshape(x, tokens.batch, self._count, s, tokens.channels)
        sizes = g.reshape(_sizes(g, tokens.count, self._count, s), -1, 1)
        return g.op("ReduceSum", x, np.array([2]), keepdims=0) / sizes

    def unmerge(self, x: Value) -> Value:
        return self._g.op("Gather", x, nearest(self._g, self._tokens.count, self._count), axis=1)


class _Pool2d:
    def __init__(self, g: Graph, tokens: Tokens, sy: int, sx: int) -> None:
        self._g, self._tokens, self._cell = g, tokens, [sy, sx]
        self._cells = _cells(tokens.grid[0], sy), _cells(tokens.grid[1], sx)

    def merge(self, x: Value) -> Value:
        g, tokens, (h, w) = self._g, self._tokens, self._tokens.grid
        (sy, sx), (rows, columns) = self._cell, self._cells
        image = g.transpose(g.reshape(x, tokens.batch, h, w, tokens.channels), 0, 3, 1, 2)
        missing = rows * sy + h * -1, columns * sx + w * -1
        ragged = missing != (0, 0)
        if ragged:  # cells that reach over the edge average what they have
            image = g.op("Pad", image, g.dims(0, 0, 0, 0, 0, 0, *missing))
        pooled = g.op("AveragePool", image, kernel_shape=self._cell, strides=self._cell)
        if ragged:
            share_y = _sizes(g, h, rows, sy) / np.float32(sy)
            share_x = _sizes(g, w, columns, sx) / np.float32(sx)
            pooled = pooled / (g.reshape(share_y, -1, 1) * share_x)
        pooled = g.transpose(pooled, 0, 2, 3, 1)
        return g.reshape(pooled, tokens.batch, rows * columns, tokens.channels)

    def unmerge(self, x: Value) -> Value:
        g, (h, w), (rows, columns) = self._g, self._tokens.grid, self._cells
        down = g.reshape(nearest(g, h, rows) * columns, -1, 1)
        return g.op("Gather", x, g.reshape(down + nearest(g, w, columns), -1), axis=1)


def _cells(size: Dim, s: int) -> Dim:
    """How many cells of `s` cover a size."""
    return (size + (s - 1)) // s


def _sizes(g: Graph, size: Dim, cells: Dim, s: int) -> Operand:
    """How much of each cell lies inside, as float32."""
    left = g.arange(0, cells) * -s + size
    if isinstance(left, Value):
        return g.op("Cast", g.op("Min", left, s), to=1)
    return np.minimum(left, s).astype(np.float32)


def nearest(g: Graph, size: Dim, source: Dim) -> Index:
    """Which of `source` values nearest interpolation to `size` reads: i * source // size."""
    return g.arange(0, size) * source // size
