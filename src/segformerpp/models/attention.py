"""Efficient self-attention with token merging, and the Mix-FFN: the two halves of a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segformerpp.merging.match import Grid, Matches, match
from segformerpp.plans import StageMerge

#: Up to so many, PyTorch's fused attention and its gradient take longer in bfloat16 on a CPU than
#: the matrices written out: 5 times as long with 36 keys, 1.2 times with 128. With more, or in
#: float32, they do not.
_FEW_KEYS = 128


def to_image(x: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, h * w, C) as an image (B, C, h, w): no copy, its memory is channels-last."""
    # Not transpose and unflatten: for one image its strides would not show PyTorch the format.
    return x.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """An image (B, C, h, w) as tokens (B, h * w, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class Attention(nn.Module):
    """Self-attention whose keys/values are reduced by a strided convolution (SegFormer, eq. 2).

    Merging happens before the projections and unmerging after the last one: averaging commutes
    with linear layers, and there are fewer tokens in between.
    """

    def __init__(self, dim: int, heads: int, sr_ratio: int, embed_norm_eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.sr: nn.Conv2d | None = None
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
            self.sr_norm = nn.LayerNorm(dim, eps=embed_norm_eps)

    def forward(
        self, x: Tensor, grid: Grid, merge: StageMerge, known: Matches | None = None
    ) -> tuple[Tensor, Matches]:
        """Attend: (B, N, C) -> (B, N, C), and what was merged.

        Args:
            x: tokens after the block's first norm.
            grid: (h, w) with h * w == N.
            merge: what to merge; None for a half of it merges nothing there.
            known: what an earlier block merged, to be merged here too; None to find out.
        """
        keys, key_grid = x, grid
        if self.sr is not None:
            reduced = self.sr(to_image(x, grid))
            keys, key_grid = self.sr_norm(to_tokens(reduced)), (reduced.shape[2], reduced.shape[3])
        found = known or Matches(match(merge.q, x, grid), match(merge.kv, keys, key_grid))
        queries, weights = found.q.merge(x) if found.q else x, None
        if found.kv:
            keys = found.kv.merge(keys)
            if merge.kv and merge.kv.proportional:
                weights = found.kv.log_sizes(x)

        q = self.q(queries).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, M, C/heads)
        k, v = self.kv(keys).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # As small as this the mask is broadcast inside of the fused kernels.
        mask = None if weights is None else weights[:, None, None]
        out = _attend(q, k, v, mask)
        out = self.proj(out.transpose(1, 2).flatten(2))
        return found.q.unmerge(out) if found.q else out, found


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries (B, heads, N, d) to keys and values (B, heads, M, d).

    The mask (B, 1, 1, M), if there is one, is added to the scores.
    """
    differentiated = torch.is_grad_enabled() and q.requires_grad
    if differentiated and q.is_cpu and q.dtype == torch.bfloat16 and k.shape[2] <= _FEW_KEYS:
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        return (scores if mask is None else scores + mask).softmax(3) @ v
    return F.scaled_dot_product_attention(q, k, v, mask)


class MixFFN(nn.Module):
    """Feed-forward network with a depthwise 3x3 convolution inside (SegFormer, eq. 3)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Mix: (B, N, C) -> (B, N, C)."""
        hidden = self.fc1(x)
        if self.training and torch.is_grad_enabled():
            # Two thirds of the hidden features, the largest of all, are cheap to make again.
            return checkpoint(
                self._mixed, hidden, grid, use_reentrant=False, preserve_rng_state=False
            )
        return self._mixed(hidden, grid)

    def _mixed(self, hidden: Tensor, grid: Grid) -> Tensor:
        return self.fc2(F.gelu(to_tokens(self.dwconv(to_image(hidden, grid)))))
