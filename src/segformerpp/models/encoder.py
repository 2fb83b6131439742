"""MiT, the encoder of SegFormer: four stages of blocks, each behind a strided patch embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segformerpp.errors import UsageError
from segformerpp.merging.constants import constant
from segformerpp.merging.match import Grid, Matches, nearest
from segformerpp.models.attention import Attention, MixFFN, to_image, to_tokens
from segformerpp.models.config import SegformerConfig
from segformerpp.plans import MergePlan, StageMerge

#: What was merged in each block of each stage.
Found = Sequence[Sequence[Matches]]


class PatchEmbedding(nn.Module):
    """Overlapping patches by a strided convolution, then layer norm."""

    def __init__(self, channels: int, dim: int, kernel: int, stride: int, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Embed: (B, C_in, H, W) -> tokens (B, h * w, C) and their grid (h, w)."""
        x = self.conv(x)
        return self.norm(to_tokens(x)), (x.shape[2], x.shape[3])


class DropPath(nn.Module):
    """Stochastic depth: in training, leave a branch out for a random share of the images."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Leave out: (B, N, C) -> (B, N, C)."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * (torch.rand(x.shape[0], 1, 1, device=x.device) < keep).to(x.dtype) / keep


class Block(nn.Module):
    """Attention and Mix-FFN, each with a norm before and a residual around."""

    def __init__(self, config: SegformerConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        dim, eps = config.dims[stage], config.norm_eps
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attention = Attention(
            dim, config.heads[stage], config.sr_ratios[stage], config.embed_norm_eps
        )
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.ffn = MixFFN(dim, dim * config.mlp_ratios[stage])
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, grid: Grid, merge: StageMerge, known: Matches | None
    ) -> tuple[Tensor, Matches]:
        """Transform: (B, N, C) -> (B, N, C); `known` and the other output as in `Attention`."""
        y, found = self.attention(self.norm1(x), grid, merge, known)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.ffn(self.norm2(x), grid)), found


class Stage(nn.Module):
    """Patch embedding, blocks, layer norm."""

    def __init__(self, config: SegformerConfig, stage: int, drop_paths: list[float]) -> None:
        super().__init__()
        dim = config.dims[stage]
        channels = config.dims[stage - 1] if stage else config.in_channels
        self.patch_embed = PatchEmbedding(
            channels, dim, config.patch_sizes[stage], 2 if stage else 4, config.embed_norm_eps
        )
        self.blocks = nn.ModuleList(Block(config, stage, rate) for rate in drop_paths)
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)

    def forward(
        self, x: Tensor, merge: StageMerge, checkpointing: bool, given: Sequence[Matches] | None
    ) -> tuple[Tensor, list[Matches]]:
        """Encode: (B, C_in, H, W) -> (B, C, h, w), and what each block merged.

        Args:
            x: the image, or what the stage before made of it.
            merge: what to merge.
            checkpointing: whether to recompute each block instead of keeping what is inside.
            given: what to merge in each block; None to find out.
        """
        x, grid = self.patch_embed(x)
        merged: list[Matches] = []
        for number, block in enumerate(self.blocks):
            known = merged[-1] if merge.reuse and number % merge.reuse else None
            if given is not None:
                known = given[number]
            if checkpointing:
                x, found = checkpoint(block, x, grid, merge, known, use_reentrant=False)
            else:
                x, found = block(x, grid, merge, known)
            merged.append(found)
        return to_image(self.norm(x), grid), merged


class Encoder(nn.Module):
    """MiT-B0 to B5 (SegFormer, section 3.1), with token merging in its attention.

    Attributes:
        merge_plan: the `MergePlan` in force; may be changed at any time.
        gradient_checkpointing: whether training recomputes each block to save memory.
    """

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        self.config = config
        self.merge_plan = MergePlan()
        self.gradient_checkpointing = False
        last = max(sum(config.depths) - 1, 1)
        rates = [config.drop_path * block / last for block in range(sum(config.depths))]
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            first = sum(config.depths[:stage])
            self.stages.append(Stage(config, stage, rates[first : first + depth]))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode images.

        Args:
            x: normalised images (B, C, H, W), 32 pixels or more on each side after the plan's
                `input_scale`.

        Returns:
            The four stage outputs (B, C_i, H_i, W_i), at a 4th, 8th, 16th and 32nd of the size.

        Raises:
            UsageError: if the images are too small, or not of such a shape.
        """
        return self.matched(x)[0]

    def matched(self, x: Tensor, given: Found | None = None) -> tuple[list[Tensor], Found]:
        """Encode images, and tell what was merged; see `forward`.

        Args:
            x: as for `forward`.
            given: what is to be merged, as this found it in images of the same shape, under the
                same plan; None to find out.
        """
        channels = self.config.in_channels
        if x.ndim != 4 or x.shape[1] != channels:
            raise UsageError(f"images: (B, {channels}, H, W), not {tuple(x.shape)}")
        x = shrink(x, self.merge_plan.input_scale)
        if min(x.shape[2:]) < self.config.min_image_size:
            least = self.config.min_image_size_at(self.merge_plan.input_scale)
            raise UsageError(f"images: at least {least} pixels on each side under this plan")
        checkpointing = self.gradient_checkpointing and self.training
        outputs, found = [], []
        for number, (stage, merge) in enumerate(
            zip(self.stages, self.merge_plan.stages, strict=True)
        ):
            x, merged = stage(x, merge, checkpointing, given[number] if given else None)
            outputs.append(x)
            found.append(merged)
        return outputs, found


def shrink(x: Tensor, scale: float) -> Tensor:
    """Resize (B, C, H, W) by nearest neighbour to `scale` times its size, rounded down."""
    for dim in (2, 3) if scale != 1 else ():
        size = x.shape[dim]
        x = x.index_select(dim, constant(nearest, x.device, max(int(size * scale), 1), size))
    return x
