"""Counting a network's arithmetic, and the tokens that its attention works on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from segformerpp.models.config import SegformerConfig
from segformerpp.plans import MergePlan
from segformerpp.plans.strategies import BipartiteMatching, Merge


@dataclass(frozen=True, slots=True)
class Cost:
    """What one image costs.

    Attributes:
        macs: multiply-accumulates of linear layers, convolutions, attention and matching. Not
            counted: norms, activations, softmax, resizes.
        tokens: queries that attention works on, summed over all blocks.
    """

    macs: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage costs for one image, all of its blocks together.

    Attributes:
        grid: (h, w) of its tokens.
        tokens: queries that its attention works on, summed over its blocks.
        embedding: multiply-accumulates of the patch embedding; so are the others.
        attention: of projections, spatial reduction, and what is done for each query and key.
        matching: of finding out what is merged.
        mix_ffn: of the feed-forward networks.
    """

    grid: tuple[int, int]
    tokens: int
    embedding: int
    attention: int
    matching: int
    mix_ffn: int


def cost(config: SegformerConfig, plan: MergePlan, size: tuple[int, int]) -> Cost:
    """Count for one image of `size` (H, W), with the decode head in its exact cheap form."""
    stages = stage_costs(config, plan, size)
    macs = sum(s.embedding + s.attention + s.matching + s.mix_ffn for s in stages)
    counts = [math.prod(stage.grid) for stage in stages]
    for count, dim in zip(counts, config.dims, strict=True):
        inner = config.head_dim if config.head_kind == "conv" else 0
        macs += count * config.head_dim * (dim + inner)
    macs += counts[0] * config.head_dim * config.num_outputs
    return Cost(macs, sum(stage.tokens for stage in stages))


def stage_costs(config: SegformerConfig, plan: MergePlan, size: tuple[int, int]) -> list[StageCost]:
    """Count for each stage and one image of `size` (H, W)."""
    if plan.input_scale != 1:
        size = max(int(size[0] * plan.input_scale), 1), max(int(size[1] * plan.input_scale), 1)
    stages, channels = [], config.in_channels
    for stage, dim in enumerate(config.dims):
        kernel, stride = config.patch_sizes[stage], 2 if stage else 4
        height, width = ((side + 2 * (kernel // 2) - kernel) // stride + 1 for side in size)
        size, count = (height, width), height * width
        merge, ratio = plan.stages[stage], config.sr_ratios[stage]
        key_size = (height // ratio, width // ratio) if ratio > 1 else size
        queries, matching = _merged(merge.q, size, dim)
        keys, key_matching = _merged(merge.kv, key_size, dim)
        reduction = math.prod(key_size) * (dim * ratio) ** 2 if ratio > 1 else 0
        attention = 2 * queries * dim**2 + 2 * keys * dim**2 + 2 * queries * keys * dim
        hidden, depth = dim * config.mlp_ratios[stage], config.depths[stage]
        stages.append(
            StageCost(
                grid=size,
                tokens=depth * queries,
                embedding=count * dim * channels * kernel**2,
                attention=depth * (reduction + attention),
                matching=-(-depth // (merge.reuse or 1)) * (matching + key_matching),
                mix_ffn=depth * count * (2 * dim * hidden + 9 * hidden),
            )
        )
        channels = dim
    return stages


def _merged(merge: Merge | None, size: tuple[int, int], dim: int) -> tuple[int, int]:
    """How many tokens are left of a grid, and the multiply-accumulates of finding out which."""
    height, width = size
    count = height * width
    if merge is None:
        return count, 0
    left = merge.left(height, width)
    if left == count or not isinstance(merge, BipartiteMatching):
        return left, 0
    destinations = (height // merge.sy) * (width // merge.sx)
    return left, count * destinations * dim
