"""Carrying a strategy out: which tokens form a group, and merging and unmerging by it.

Shapes are static for a given grid and strategy; only the assignment depends on the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, assert_never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segformerpp.merging.constants import constant
from segformerpp.plans.strategies import (
    BipartiteMatching,
    Merge,
    Neighbour1d,
    Neighbour2d,
    warn_small_grid,
)

Grid = tuple[int, int]  # (h, w) of the token grid; N = h * w tokens in row order


class Match(Protocol):
    """Which of N tokens form M groups."""

    def merge(self, x: Tensor) -> Tensor:
        """Average each group: (B, N, C) -> (B, M, C)."""

    def unmerge(self, x: Tensor) -> Tensor:
        """Give every token its group's value: (B, M, C) -> (B, N, C)."""

    def log_sizes(self, x: Tensor) -> Tensor | None:
        """Logarithms of the groups' sizes as (B, M) or (1, M), like `x` in type and device.

        None where all groups are of one size.
        """

    def numbers(self, x: Tensor) -> Tensor:
        """The group that each token is averaged into, from 0 to M - 1: (B, N) or (1, N).

        On the device of `x`.
        """


class Matches(NamedTuple):
    """What a block's queries and keys/values are merged by."""

    q: Match | None
    kv: Match | None


def match(merge: Merge | None, x: Tensor, grid: Grid) -> Match | None:
    """Find the groups that a strategy forms on these tokens; None where nothing is merged.

    Args:
        merge: the strategy, or None for no merging.
        x: tokens (B, N, C) in row order.
        grid: (h, w) with h * w == N.
    """
    if merge is None:
        return None
    if isinstance(merge, BipartiteMatching):
        return _match_bipartite(merge, x, grid)
    if merge.left(*grid) == grid[0] * grid[1]:
        return None
    if isinstance(merge, Neighbour1d):
        return _Pool1d(grid, merge.s)
    if isinstance(merge, Neighbour2d):
        return _Pool2d(grid, merge.sy, merge.sx)
    assert_never(merge)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Groups given by the number of its group for each token: (B, N), from 0 to M - 1."""

    group: Tensor
    count: int

    def _flat(self) -> Tensor:
        """The numbers of the groups of all images in one row: (B * N,), from 0 to B * M - 1."""
        first = torch.arange(self.group.shape[0], device=self.group.device) * self.count
        return (self.group + first[:, None]).flatten()

    def merge(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        # Half precisions cannot even count the hundreds of tokens that a group may have.
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        sums = x.new_zeros(b * self.count, c, dtype=dtype)
        sums = sums.index_add(0, self._flat(), x.reshape(b * n, c).to(dtype))
        return (sums / self._sizes(sums)[:, None]).to(x.dtype).view(b, self.count, c)

    def unmerge(self, x: Tensor) -> Tensor:
        b, n = self.group.shape
        return x.flatten(0, 1).index_select(0, self._flat()).view(b, n, x.shape[2])

    def log_sizes(self, x: Tensor) -> Tensor:
        sizes = self._sizes(x.new_zeros((), dtype=_wide(x)))
        return sizes.log().to(x.dtype).view(-1, self.count)

    def numbers(self, x: Tensor) -> Tensor:
        return self.group

    def _sizes(self, like: Tensor) -> Tensor:
        b, n = self.group.shape
        return like.new_zeros(b * self.count).index_add(0, self._flat(), like.new_ones(b * n))


def _match_bipartite(merge: BipartiteMatching, x: Tensor, grid: Grid) -> _Groups | None:
    """Bipartite soft matching (SegFormer++, section 3) by cosine similarity of `x`."""
    h, w = grid
    rows, columns = h // merge.sy, w // merge.sx
    destinations = rows * columns
    left = merge.left(h, w)
    if left == h * w:
        # Compiled code cannot log.
        if merge.lacks_cells(h, w) and not torch.compiler.is_dynamo_compiling():
            warn_small_grid(*grid, merge.sy, merge.sx)
        return None
    with torch.no_grad():
        size = (*grid, merge.sy, merge.sx)
        targets = x.detach().index_select(1, constant(_destinations, x.device, *size))
        tiny = torch.finfo(x.dtype).tiny
        targets = targets / targets.norm(dim=-1, keepdim=True).clamp_min(tiny)
        similarity, group = (x.detach() @ targets.transpose(1, 2)).max(dim=-1)
        is_destination = constant(_is_destination, x.device, *size)
        own = constant(_own_group, x.device, *size)
        group = torch.where(is_destination, own, group)
        kept = left - destinations
        if kept:
            # A source's own length matters only here, where sources are compared to each other.
            similarity = similarity / x.detach().norm(dim=-1).clamp_min(tiny)
            similarity = similarity.masked_fill(is_destination, torch.inf)
            alone = similarity.topk(kept, largest=False, sorted=False).indices
            numbers = torch.arange(destinations, destinations + kept, device=x.device)
            group = group.scatter(1, alone, numbers.expand_as(alone))
    return _Groups(group, destinations + kept)


def _destinations(h: int, w: int, sy: int, sx: int) -> np.ndarray:
    """The top-left tokens of a grid's whole cells."""
    rows, columns = np.arange(h // sy) * sy, np.arange(w // sx) * sx
    return (rows[:, None] * w + columns).ravel()


def _is_destination(h: int, w: int, sy: int, sx: int) -> np.ndarray:
    mask = np.zeros(h * w, dtype=bool)
    mask[_destinations(h, w, sy, sx)] = True
    return mask


def _own_group(h: int, w: int, sy: int, sx: int) -> np.ndarray:
    """The number of each destination; 0 for the other tokens."""
    own, destinations = np.zeros(h * w, dtype=np.int64), _destinations(h, w, sy, sx)
    own[destinations] = np.arange(len(destinations))
    return own


@dataclass(frozen=True, slots=True)
class _Pool1d:
    grid: Grid
    s: int

    def merge(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x.transpose(1, 2), self.s, ceil_mode=True).transpose(1, 2)

    def unmerge(self, x: Tensor) -> Tensor:
        n = self.grid[0] * self.grid[1]
        return x.index_select(1, constant(nearest, x.device, n, x.shape[1]))

    def log_sizes(self, x: Tensor) -> Tensor | None:
        n = self.grid[0] * self.grid[1]
        if n % self.s == 0:
            return None
        return _log(constant(_inside, x.device, 1, n, 1, self.s), x)

    def numbers(self, x: Tensor) -> Tensor:
        return constant(_cells, x.device, 1, self.grid[0] * self.grid[1], 1, self.s)


@dataclass(frozen=True, slots=True)
class _Pool2d:
    grid: Grid
    sy: int
    sx: int

    def merge(self, x: Tensor) -> Tensor:
        image = x.unflatten(1, self.grid).permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(image, (self.sy, self.sx), ceil_mode=True)
        return pooled.permute(0, 2, 3, 1).flatten(1, 2)

    def unmerge(self, x: Tensor) -> Tensor:
        return x.index_select(1, constant(_nearest2d, x.device, *self.grid, self.sy, self.sx))

    def log_sizes(self, x: Tensor) -> Tensor | None:
        if self.grid[0] % self.sy == self.grid[1] % self.sx == 0:
            return None
        return _log(constant(_inside, x.device, *self.grid, self.sy, self.sx), x)

    def numbers(self, x: Tensor) -> Tensor:
        return constant(_cells, x.device, *self.grid, self.sy, self.sx)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _log(counts: Tensor, x: Tensor) -> Tensor:
    return counts.to(_wide(x)).log().to(x.dtype)


def _inside(h: int, w: int, sy: int, sx: int) -> np.ndarray:
    """How many tokens each cell has, (1, M): those at the edge have fewer."""
    rows, columns = (np.minimum(n - np.arange(0, n, s), s) for n, s in ((h, sy), (w, sx)))
    return (rows[:, None] * columns).reshape(1, -1)


def _cells(h: int, w: int, sy: int, sx: int) -> np.ndarray:
    """Which cell each token lies in, (1, N)."""
    rows, columns = np.arange(h) // sy, np.arange(w) // sx
    return (rows[:, None] * -(-w // sx) + columns).reshape(1, -1)


def _nearest2d(h: int, w: int, sy: int, sx: int) -> np.ndarray:
    """Which pooled token each token reads."""
    rows, columns = -(-h // sy), -(-w // sx)
    return (nearest(h, rows)[:, None] * columns + nearest(w, columns)).ravel()


def nearest(size: int, pooled: int) -> np.ndarray:
    """Which of `pooled` values nearest interpolation to `size` reads: i * pooled // size."""
    return np.arange(size) * pooled // size
