"""Which tokens a block merged, as arrays: seen from outside, the same way for every strategy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segformerpp.merging.match import Grid, Match, Matches
from segformerpp.models.attention import Attention, to_image, to_tokens
from segformerpp.models.encoder import Encoder
from segformerpp.plans import BipartiteMatching, Merge, StageMerge

Part = Literal["q", "kv"]
Place = tuple[int, int]  # stage and block, counted from 1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Grouping:
    """What was merged of a block's queries or keys/values.

    Args:
        stage, block: counted from 1.
        part: ``q`` or ``kv``.
        merge: the strategy.
        reused: whether an earlier block of the stage found the groups.
        cell: (height, width) of a token in pixels of the image that the network was given.
        group: (h, w) int64: the group that each token is averaged into, from 0 to M - 1.
        similarity: (h, w) float32: cosine similarity of each token to the destination that it
            joins; where the strategy has none, to the average of its group. NaN for a token that
            is alone in its group.
        destinations: (D, 2): row and column of each destination; (0, 2) where there are none.
    """

    stage: int
    block: int
    part: Part
    merge: Merge
    reused: bool
    cell: tuple[float, float]
    group: np.ndarray
    similarity: np.ndarray
    destinations: np.ndarray

    def __repr__(self) -> str:
        where = f"stage {self.stage}, block {self.block}, {self.part}"
        return f"Grouping({where}: {self.tokens} tokens in {self.groups} groups)"

    @property
    def tokens(self) -> int:
        """How many tokens there are: N."""
        return self.group.size

    @property
    def sizes(self) -> np.ndarray:
        """Tokens in each group: (M,)."""
        return np.bincount(self.group.ravel())

    @property
    def groups(self) -> int:
        """How many tokens are left: M."""
        return len(self.sizes)

    @property
    def merged(self) -> int:
        """How many tokens attention is spared: N - M."""
        return self.tokens - self.groups

    @property
    def alone(self) -> np.ndarray:
        """The tokens that stay as they are: (h, w) bool."""
        return self.sizes[self.group] == 1

    @property
    def joined(self) -> np.ndarray:
        """The similarities of tokens that joined others, without the destinations': (J,)."""
        others = ~self.alone
        others[tuple(self.destinations.T)] = False
        return self.similarity[others]


@contextmanager
def recording(
    encoder: Encoder, places: Collection[Place], pixel: float = 1.0
) -> Iterator[list[Grouping]]:
    """Note what an encoder merges as images go through it, one at a time.

    Args:
        encoder: whose forward passes are watched as long as the context lasts.
        places: the blocks to note.
        pixel: height and width of one of its pixels in pixels of the image.

    Yields:
        A list that fills in the order of the blocks, for each the queries before the keys/values.
    """
    found: list[Grouping] = []
    with ExitStack() as stack:
        for stage, block in sorted(places):
            attention = encoder.stages[stage - 1].blocks[block - 1].attention  # type: ignore[union-attr, index]
            assert isinstance(attention, Attention)
            ratio = encoder.config.sr_ratios[stage - 1] if attention.sr is not None else 1
            hook = partial(_note, found, (stage, block), pixel * (2 << stage), ratio)
            stack.callback(attention.register_forward_hook(hook).remove)
        yield found


def _note(
    found: list[Grouping],
    place: Place,
    stride: float,
    ratio: int,
    attention: Attention,
    inputs: tuple[Tensor, Grid, StageMerge, Matches | None],
    output: tuple[Tensor, Matches],
) -> None:
    """A forward hook of `Attention`: queries are its input, keys that input reduced."""
    x, (h, w), merge, known = inputs
    keys = x
    if attention.sr is not None:  # what the block reduced does not come out of it: once more
        keys = attention.sr_norm(to_tokens(attention.sr(to_image(x, (h, w)))))
    key_grid = (h // ratio, w // ratio)
    halves: tuple[tuple[Part, Any, Match | None, Tensor, Grid, float], ...] = (
        ("q", merge.q, output[1].q, x, (h, w), stride),
        ("kv", merge.kv, output[1].kv, keys, key_grid, stride * ratio),
    )
    for part, strategy, match, tokens, grid, cell in halves:
        if strategy is not None:
            group, similarity, destinations = groups_of(strategy, match, tokens, grid)
            size = (cell, cell)
            found.append(
                Grouping(
                    *(*place, part, strategy, known is not None, size),
                    *(group, similarity, destinations),
                )
            )


def groups_of(
    merge: Merge, match: Match | None, x: Tensor, grid: Grid
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`Grouping`'s `group`, `similarity` and `destinations` of a match of one image's tokens.

    Args:
        merge: the strategy.
        match: what it found; None where it found nothing to merge.
        x: the tokens (1, N, C) that are merged.
        grid: (h, w) with h * w == N.
    """
    count = x.shape[1]
    if match is None:
        alone = np.full(grid, np.nan, np.float32)
        return np.arange(count).reshape(grid), alone, np.empty((0, 2), np.int64)
    merged, group = match.merge(x), match.numbers(x)[0]
    places = _destinations(merge, grid)
    if len(places):
        at = torch.from_numpy(places[:, 0] * grid[1] + places[:, 1]).to(x.device)
        destination = group.new_zeros(merged.shape[1])  # of each group; those without are alone
        destination[group[at]] = at
        others = x[0, destination[group]]
    else:
        others = merged[0, group]
    similarity = F.cosine_similarity(x[0].float(), others.float(), dim=-1)
    similarity[torch.bincount(group)[group] == 1] = torch.nan
    return group.view(grid).cpu().numpy(), similarity.view(grid).cpu().numpy(), places


def _destinations(merge: Merge, grid: Grid) -> np.ndarray:
    """(D, 2): rows and columns of the top-left tokens of a grid's whole cells, for `bsm`."""
    if not isinstance(merge, BipartiteMatching):
        return np.empty((0, 2), np.int64)
    rows, columns = (n // s for n, s in zip(grid, (merge.sy, merge.sx), strict=True))
    return np.argwhere(np.ones((rows, columns), bool)) * (merge.sy, merge.sx)
