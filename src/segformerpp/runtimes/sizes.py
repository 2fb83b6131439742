"""Sizes inside the network, and what follows from them for exported graphs."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from segformerpp.arguments import Size
from segformerpp.models.config import SegformerConfig
from segformerpp.plans import MergePlan
from segformerpp.plans.strategies import BipartiteMatching, warn_small_grid

if TYPE_CHECKING:
    from segformerpp.runtimes.graph.builder import Dim

#: Ratios whose products with a number of tokens stay whole numbers of 32 bits.
_LARGEST_DENOMINATOR = 4096


class Matching(NamedTuple):
    """A bipartite matching at one place of the network.

    Attributes:
        stage: 1 to 4.
        destinations: tokens that others are merged into.
        alone: sources that are not merged, which are the ones that are selected.
    """

    stage: int
    destinations: int
    alone: int


def share_of(share: float, size: Dim) -> Dim:
    """`share` of a size, rounded down.

    Where the size follows the image, it is exact in the share's decimal digits, up to three of
    them; rounding of floats may give one less.
    """
    if isinstance(size, int):
        return int(share * size)
    exact = Fraction(str(share)).limit_denominator(_LARGEST_DENOMINATOR)
    return size * exact.numerator // exact.denominator


def patch_grid(config: SegformerConfig, number: int, size: tuple[Dim, Dim]) -> tuple[Dim, Dim]:
    """The token grid (h, w) of a stage, counted from 0, for what goes into it (H, W)."""
    kernel, stride = config.patch_sizes[number], 2 if number else 4
    height, width = ((side + (2 * (kernel // 2) - kernel)) // stride + 1 for side in size)
    return height, width


def logit_size(config: SegformerConfig, plan: MergePlan, size: Size) -> Size:
    """(h, w) of the logits for images (H, W)."""
    return next(_grids(config, plan, size))


def matchings(config: SegformerConfig, plan: MergePlan, size: Size) -> Iterator[Matching]:
    """What images (H, W) go through, in the order of the stages; none where nothing is merged."""
    for stage, merge, (h, w) in _bipartite(config, plan, size):
        left = merge.left(h, w)
        if left < h * w:
            destinations = (h // merge.sy) * (w // merge.sx)
            yield Matching(stage, destinations, left - destinations)


def warn_small_grids(config: SegformerConfig, plan: MergePlan, size: Size) -> None:
    """Say where images (H, W) have too few tokens for anything to be merged."""
    for _, merge, (h, w) in _bipartite(config, plan, size):
        if merge.lacks_cells(h, w):
            warn_small_grid(h, w, merge.sy, merge.sx)


def least_size(config: SegformerConfig, plan: MergePlan) -> Size:
    """The least images (H, W) in which every grid has a whole cell; graphs for any size need it."""
    height, width = (
        next(
            side
            for side in count(config.min_image_size)
            if int(side * plan.input_scale) >= config.min_image_size
            and all(
                grid[axis] >= (merge.sy, merge.sx)[axis]
                for _, merge, grid in _bipartite(config, plan, (side, side))
            )
        )
        for axis in (0, 1)
    )
    return height, width


def _bipartite(
    config: SegformerConfig, plan: MergePlan, size: Size
) -> Iterator[tuple[int, BipartiteMatching, Size]]:
    """Each stage (1 to 4) that matches, how, and the grid (h, w) of the tokens that are matched."""
    for number, (h, w) in enumerate(_grids(config, plan, size)):
        stage, ratio = plan.stages[number], config.sr_ratios[number]
        for merge, grid in ((stage.q, (h, w)), (stage.kv, (h // ratio, w // ratio))):
            if isinstance(merge, BipartiteMatching) and merge.r > 0:
                yield number + 1, merge, grid


def _grids(config: SegformerConfig, plan: MergePlan, size: Size) -> Iterator[Size]:
    """The token grid of each stage."""
    height, width = (int(side * plan.input_scale) for side in size)
    for number in range(len(config.depths)):
        # Whole numbers in, whole numbers out.
        height, width = patch_grid(config, number, (height, width))  # type: ignore[assignment]
        yield height, width
