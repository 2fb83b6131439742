"""The MLP decode head, in both kinds that checkpoints come in, evaluated at low resolution.

Both kinds fuse the four scales by a 1x1 convolution over their concatenation, all resized to a
quarter of the image. A 1x1 convolution and bilinear resizing commute, so here each scale goes
through its own part of that convolution first and is resized after; the sum of the four is the
same as the standard formulation to rounding, at a thirteenth (``linear``) or less than half
(``conv``) of its arithmetic for B0. In inference the batch norms are folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformerpp.models.config import SegformerConfig


class DecodeHead(nn.Module):
    """Fuse the four stage outputs into logits or heatmaps (SegFormer, eq. 4)."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        dim = config.head_dim
        self.kind = config.head_kind
        if self.kind == "linear":
            self.scales = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in config.dims)
        else:
            self.scales = nn.ModuleList(nn.Conv2d(c, dim, 1, bias=False) for c in config.dims)
            self.scale_norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in config.dims)
        self.fuse = nn.Conv2d(dim * len(config.dims), dim, 1, bias=False)  # in order of the stages
        self.fuse_norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout2d(config.dropout, inplace=True)
        self.classifier = nn.Conv2d(dim, config.num_outputs, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Decode: four stage outputs (B, C_i, H_i, W_i) -> (B, K, H_1, W_1)."""
        scales = cast("Sequence[nn.Conv2d]", self.scales)
        weight, bias = self.fuse.weight[:, :, 0, 0], torch.zeros_like(self.fuse_norm.bias)
        if not self.training:
            scale, bias = _folded(self.fuse_norm)
            weight = weight * scale[:, None]
        parts = list(weight.chunk(len(scales), dim=1))
        if self.kind == "linear":
            # Nothing non-linear stands between the two layers: their product is one layer.
            for i, layer in enumerate(scales):
                assert layer.bias is not None
                bias = bias + parts[i] @ layer.bias
                parts[i] = parts[i] @ layer.weight[:, :, 0, 0]
        size = features[0].shape[2:]
        fused: Tensor | None = None
        # From the smallest scale up; the bias rides along with the smallest.
        for i in reversed(range(len(features))):
            x, part = features[i], parts[i]
            if self.kind == "conv":
                x = self._scale(x, scales[i], cast("nn.BatchNorm2d", self.scale_norms[i]))
            x = F.conv2d(x, part[:, :, None, None], bias if fused is None else None)
            if x.shape[2:] != size:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            fused = x if fused is None else fused.add_(x)  # in place: memory is what costs here
        assert fused is not None
        if self.training:
            fused = self.fuse_norm(fused)
        # Channels that are dropped may as well be so before the ReLU: then both are in place.
        return self.classifier(F.relu(self.dropout(fused), inplace=True))

    def _scale(self, x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
        """The layer of one scale of the ``conv`` kind: (B, C_i, H_i, W_i) -> (B, D, H_i, W_i)."""
        if self.training:
            return F.relu(norm(conv(x)))
        scale, bias = _folded(norm)
        return F.relu(F.conv2d(x, conv.weight * scale[:, None, None, None], bias))


def _folded(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The factor (C,) and the shift (C,) that a batch norm amounts to in inference."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale
