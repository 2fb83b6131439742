"""Token merging in a graph: `segformerpp.merging.match` for tensors that are yet to come."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, assert_never

import numpy as np

from segformerpp.plans.strategies import (
    BipartiteMatching,
    Merge,
    Neighbour1d,
    Neighbour2d,
    warn_small_grid,
)
from segformerpp.runtimes.graph.builder import Dim, Graph, Index, Operand, Value
from segformerpp.runtimes.sizes import share_of

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

    def log_sizes(self) -> Operand | None:
        """Logarithms of the groups' sizes as (B, M) or (1, M); None where all are the same."""


class Matches(NamedTuple):
    """What a block's queries and keys/values are merged by."""

    q: Match | None
    kv: Match | None


def match(
    g: Graph, merge: Merge | None, x: Value, tokens: Tokens, given: Value | None = None
) -> Match | None:
    """Find the groups that a strategy forms on tokens; None where nothing is merged.

    Args:
        g: the graph.
        merge: the strategy, or None for no merging.
        x: the tokens.
        tokens: what is known of them.
        given: for bipartite matching of a known size: the `Groups.group` that was found elsewhere
            and is to be used here; None to find it.
    """
    if merge is None:
        return None
    if isinstance(merge, BipartiteMatching):
        return _match_bipartite(g, merge, x, tokens, given)
    h, w = tokens.grid
    if isinstance(h, int) and isinstance(w, int) and merge.left(h, w) == h * w:
        return None
    if isinstance(merge, Neighbour1d):
        if merge.s == 1:
            return None
        (s,) = _strides(g, _cells(tokens.count, merge.s), merge.min_tokens, merge.s)
        return _Pool1d(g, tokens, s)
    if isinstance(merge, Neighbour2d):
        if merge.sy == merge.sx == 1:
            return None
        cells = _cells(h, merge.sy) * _cells(w, merge.sx)
        return _Pool2d(g, tokens, *_strides(g, cells, merge.min_tokens, merge.sy, merge.sx))
    assert_never(merge)


def _strides(g: Graph, cells: Dim, least: int, *strides: int) -> tuple[Dim, ...]:
    """Strides of cells; 1 where a grid that follows the image would have fewer than `least`."""
    if not least or not isinstance(cells, Value):
        return strides
    return tuple(g.where(cells < least, 1, stride) for stride in strides)


def _match_bipartite(
    g: Graph, merge: BipartiteMatching, x: Value, tokens: Tokens, given: Value | None
) -> Groups | None:
    h, w = tokens.grid
    rows, columns = h // merge.sy, w // merge.sx
    destinations = rows * columns
    kept: Dim
    if isinstance(h, int) and isinstance(w, int):
        left = merge.left(h, w)
        if left == h * w:
            if merge.lacks_cells(h, w):
                warn_small_grid(h, w, merge.sy, merge.sx)
            return None
        kept = left - destinations
    elif merge.r == 0:
        return None
    elif merge.r == 1 and not merge.min_tokens:
        kept = 0
    else:
        sources = g.difference(tokens.count, destinations)
        merged = g.least(share_of(merge.r, tokens.count), sources)
        if merge.min_tokens:
            merged = g.least(merged, g.difference(tokens.count, merge.min_tokens))
        kept = g.difference(sources, merged)
    if given is not None:
        return Groups(g, tokens, given, destinations, kept=kept)
    at, is_destination, own = _corners(g, merge, tokens, rows, columns)
    targets = g.op("Gather", x, at, axis=1)
    lengths = g.op("ReduceL2", targets, np.array([-1]), keepdims=1)
    targets = targets / g.op("Max", lengths, _TINY)
    products = g.op("MatMul", x, g.transpose(targets, 0, 2, 1))  # (B, N, destinations)
    if isinstance(kept, int) and kept == 0:
        nearest = g.op("ArgMax", products, axis=2, keepdims=0)
        return Groups(g, tokens, g.where(is_destination, own, nearest), destinations)
    best, nearest = g.ops("TopK", 2, products, np.array([1]), axis=2)
    group = g.where(is_destination, own, g.reshape(nearest, tokens.batch, tokens.count))
    lengths = g.op("ReduceL2", x, np.array([-1]), keepdims=0)
    similarity = g.reshape(best, tokens.batch, tokens.count) / g.op("Max", lengths, _TINY)
    similarity = g.where(is_destination, _NOT_CHOSEN, similarity)
    alone = _least(g, similarity, kept)
    numbers = g.reshape(g.arange(destinations, destinations + kept), 1, -1)
    if tokens.batch != 1:
        numbers = g.op("Expand", numbers, g.op("Shape", alone))
    group = g.op("ScatterElements", group, alone, numbers, axis=1)
    return Groups(g, tokens, group, destinations, alone, kept)


def _least(g: Graph, x: Value, count: Dim) -> Value:
    """Where the `count` least values of each row stand: (B, N) -> (B, count)."""
    most = g.op("Max", count, 1) if isinstance(count, Value) else count
    found = g.ops("TopK", 2, x, g.dims(most), axis=1, largest=0, sorted=int(g.form == "tensorrt"))[
        1
    ]
    # OpenVINO does not select nothing, but takes nothing of what was selected.
    return g.cut(found, 1, 0, count) if isinstance(count, Value) else found


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


class Groups:
    """Groups given by the number of its group for each token: (B, N).

    The first of them are the destinations'; then come the tokens that stay alone.

    Attributes:
        group: the numbers, int64.
    """

    def __init__(
        self,
        g: Graph,
        tokens: Tokens,
        group: Value,
        destinations: Dim,
        alone: Value | None = None,
        kept: Dim = 0,
    ) -> None:
        self._g, self._tokens, self.group = g, tokens, group
        self._destinations, self._alone, self._kept = destinations, alone, kept
        self._count = destinations + kept
        self._index = self._flat(group, self._count)

    def _flat(self, index: Value, count: Dim) -> Value:
        """Numbers within each image as numbers within the batch, in one row."""
        g, batch = self._g, self._tokens.batch
        if batch != 1:
            index = index + g.reshape(g.arange(0, batch) * count, -1, 1)
        return g.reshape(index, -1)

    def merge(self, x: Value) -> Value:
        """See `Match`."""
        if self._g.form == "tensorrt":
            return self._merge_by_product(x)
        g, batch, channels = self._g, self._tokens.batch, self._tokens.channels
        zeros, index = g.full(np.float32(0), batch * self._count, channels), self._row()
        sums = g.op("ScatterND", zeros, index, g.reshape(x, -1, channels), reduction="add")
        return g.reshape(sums / self._sizes, batch, self._count, channels)

    def log_sizes(self) -> Value:
        """See `Match`."""
        g, batch = self._g, self._tokens.batch
        sizes = self._sizes
        if g.form == "tensorrt" and self._alone is not None:
            alone = g.full(np.float32(1), batch, self._kept, 1)
            sizes = g.op("Concat", sizes, alone, axis=1)
        return g.reshape(g.op("Log", sizes), batch, self._count)

    def _row(self) -> Value:
        return self._g.reshape(self._index, -1, 1)

    @cached_property
    def _sizes(self) -> Value:
        """(B * M, 1); for TensorRT (B, destinations, 1)."""
        g, batch = self._g, self._tokens.batch
        if g.form == "tensorrt":
            return g.op("ReduceSum", self._members, np.array([2]), keepdims=1)
        # In whole numbers: half precisions do not count beyond a few hundred.
        total, many = batch * self._count, batch * self._tokens.count
        zeros, ones = g.full(np.int64(0), total, 1), g.full(np.int64(1), many, 1)
        return g.op("Cast", g.op("ScatterND", zeros, self._row(), ones, reduction="add"), to=1)

    @cached_property
    def _members(self) -> Value:
        """Which tokens each destination's group has: (B, destinations, N), 1 or 0."""
        g, tokens = self._g, self._tokens
        numbers = g.reshape(g.arange(0, self._destinations), -1, 1)
        members = g.op("Equal", g.reshape(self.group, tokens.batch, 1, tokens.count), numbers)
        return g.op("Cast", members, to=1)

    def _merge_by_product(self, x: Value) -> Value:
        """The same without adding up by index, at the price of matching once more."""
        g, tokens = self._g, self._tokens
        merged = g.op("MatMul", self._members, x) / self._sizes
        if self._alone is None:
            return merged
        rows = g.reshape(x, -1, tokens.channels)
        alone = g.op("Gather", rows, self._flat(self._alone, tokens.count), axis=0)
        alone = g.reshape(alone, tokens.batch, -1, tokens.channels)
        return g.op("Concat", merged, alone, axis=1)

    def unmerge(self, x: Value) -> Value:
        """See `Match`."""
        g, tokens = self._g, self._tokens
        rows = g.op("Gather", g.reshape(x, -1, tokens.channels), self._index, axis=0)
        return g.reshape(rows, tokens.batch, tokens.count, tokens.channels)


class _Pool1d:
    def __init__(self, g: Graph, tokens: Tokens, s: Dim) -> None:
        self._g, self._tokens, self._s = g, tokens, s
        self._count = _cells(tokens.count, s)

    def merge(self, x: Value) -> Value:
        g, tokens, s = self._g, self._tokens, self._s
        missing = g.difference(self._count * s, tokens.count)
        x = g.op("Pad", x, g.dims(0, 0, 0, 0, missing, 0))
        x = g.reshape(x, tokens.batch, self._count, s, tokens.channels)
        sizes = g.reshape(_sizes(g, tokens.count, self._count, s), -1, 1)
        return g.op("ReduceSum", x, np.array([2]), keepdims=0) / sizes

    def unmerge(self, x: Value) -> Value:
        # i * cells // tokens, as `nearest` has it, of factors that stay small.
        g, tokens, s = self._g, self._tokens, self._s
        i, missing = g.arange(0, tokens.count), g.difference(self._count * s, tokens.count)
        return g.op("Gather", x, (i + i * missing // tokens.count) // s, axis=1)

    def log_sizes(self) -> Operand | None:
        return _log_inside(self._g, (1, self._tokens.count), (1, self._s))


class _Pool2d:
    def __init__(self, g: Graph, tokens: Tokens, sy: Dim, sx: Dim) -> None:
        self._g, self._tokens, self._cell = g, tokens, (sy, sx)
        self._cells = _cells(tokens.grid[0], sy), _cells(tokens.grid[1], sx)

    def merge(self, x: Value) -> Value:
        g, tokens, (h, w) = self._g, self._tokens, self._tokens.grid
        (sy, sx), (rows, columns) = self._cell, self._cells
        if not (isinstance(sy, int) and isinstance(sx, int)):
            return self._merge_by_sums(x)
        image = g.transpose(g.reshape(x, tokens.batch, h, w, tokens.channels), 0, 3, 1, 2)
        missing = g.difference(rows * sy, h), g.difference(columns * sx, w)
        ragged = missing != (0, 0)
        if ragged:  # cells that reach over the edge average what they have
            image = g.op("Pad", image, g.dims(0, 0, 0, 0, 0, 0, *missing))
        cell = {"kernel_shape": [sy, sx], "strides": [sy, sx]}
        if g.on_processor:
            # What AveragePool would do; but to that OpenVINO hands another layout, and back. Not in
            # int8, where it would be quantised.
            share = np.full((tokens.channels, 1, sy, sx), 1 / (sy * sx), np.float32)
            pooled = g.op("Conv", image, share, group=tokens.channels, **cell)
        else:
            pooled = g.op("AveragePool", image, **cell)
        if ragged:
            pooled = pooled / (self._inside() / np.float32(sy * sx))
        pooled = g.transpose(pooled, 0, 2, 3, 1)
        return g.reshape(pooled, tokens.batch, rows * columns, tokens.channels)

    def _merge_by_sums(self, x: Value) -> Value:
        """The same for cells whose size follows the image, which no pooling has."""
        g, tokens, (h, w) = self._g, self._tokens, self._tokens.grid
        (sy, sx), (rows, columns) = self._cell, self._cells
        batch, channels = tokens.batch, tokens.channels
        missing = g.difference(rows * sy, h), g.difference(columns * sx, w)
        image = g.reshape(x, batch, h, w, channels)
        image = g.op("Pad", image, g.dims(0, 0, 0, 0, 0, *missing, 0))
        # Over one axis at a time, of few: OpenVINO has no fast kernel for more.
        lines = g.reshape(image, batch * rows, sy, columns * sx * channels)
        lines = g.op("ReduceSum", lines, np.array([1]), keepdims=0)
        pooled = g.reshape(lines, batch * rows * columns, sx, channels)
        pooled = g.op("ReduceSum", pooled, np.array([1]), keepdims=0)
        pooled = g.reshape(pooled, batch, rows, columns, channels)
        pooled = pooled / g.reshape(self._inside(), rows, columns, 1)
        return g.reshape(pooled, tokens.batch, rows * columns, tokens.channels)

    def _inside(self) -> Index:
        """How many tokens each cell has, (rows, columns)."""
        g, (h, w), (sy, sx) = self._g, self._tokens.grid, self._cell
        rows, columns = self._cells
        return g.reshape(_sizes(g, h, rows, sy), -1, 1) * _sizes(g, w, columns, sx)

    def unmerge(self, x: Value) -> Value:
        g, (h, w), (rows, columns) = self._g, self._tokens.grid, self._cells
        down = g.reshape(nearest(g, h, rows) * columns, -1, 1)
        return g.op("Gather", x, g.reshape(down + nearest(g, w, columns), -1), axis=1)

    def log_sizes(self) -> Operand | None:
        return _log_inside(self._g, self._tokens.grid, self._cell)


def _log_inside(g: Graph, grid: tuple[Dim, Dim], cell: tuple[Dim, Dim]) -> Operand | None:
    """Logarithms of how many tokens each cell has, (1, M); None where all have as many."""
    (h, w), (sy, sx) = grid, cell
    if not any(isinstance(dim, Value) for dim in (h, w, sy, sx)) and h % sy == w % sx == 0:
        return None
    sizes = g.reshape(_sizes(g, h, _cells(h, sy), sy), -1, 1) * _sizes(g, w, _cells(w, sx), sx)
    sizes = g.reshape(sizes, 1, -1)
    return g.op("Log", sizes) if isinstance(sizes, Value) else np.log(sizes)


def _cells(size: Dim, s: Dim) -> Dim:
    """How many cells of `s` cover a size."""
    return (size + (s - 1)) // s


def _sizes(g: Graph, size: Dim, cells: Dim, s: Dim) -> Index:
    """How much of each cell lies inside, as float32."""
    left = size - g.arange(0, cells) * s
    if isinstance(left, Value):
        return g.op("Cast", g.op("Min", left, s), to=1)
    return left.clip(max=s).astype(np.float32)


def nearest(g: Graph, size: Dim, source: Dim) -> Index:
    """Which of `source` values nearest interpolation to `size` reads: i * source // size.

    The whole part of the ratio goes apart: OpenVINO divides whole numbers in f32, which knows them
    up to 2**24 only.
    """
    i = g.arange(0, size)
    return i * (source // size) + i * (source % size) // size
