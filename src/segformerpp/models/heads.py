"""The MLP decode head, in both kinds that checkpoints come in, evaluated at low resolution.

Both kinds fuse the four scales by a 1x1 convolution over their concatenation, all resized to a
quarter of the image. A 1x1 convolution and bilinear resizing commute, so here each scale goes
through its own part of that convolution first and is resized after; the sum of the four is the
same as the standard formulation to rounding, at a thirteenth (``linear``) or less than half
(``conv``) of its arithmetic for B0. In inference the batch norms are folded into the convolutions.
"""

from __future__ import annotations

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
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(dim, config.num_outputs, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Decode: four stage outputs (B, C_i, H_i, W_i) -> (B, K, H_1, W_1)."""
        weight, bias = self.fuse.weight[:, :, 0, 0], None
        if not self.training:
            scale, bias = _folded(self.fuse_norm)
            weight = weight * scale[:, None]
        parts = weight.chunk(len(features), dim=1)
        size = features[0].shape[2:]
        if self.kind == "linear":
            # Nothing non-linear stands between the two layers: their product is one layer.
            linears = [layer.weight[:, :, 0, 0] for layer in self.scales]
            shift = sum(part @ layer.bias for part, layer in zip(parts, self.scales, strict=True))
            bias = shift if bias is None else bias + shift
            parts = tuple(part @ linear for part, linear in zip(parts, linears, strict=True))
        else:
            features = [self._scale(i, x) for i, x in enumerate(features)]
        fused: Tensor | None = None
        # From the smallest scale up; the bias rides along with the smallest.
        for part, x in zip(reversed(parts), reversed(features), strict=True):
            x = F.conv2d(x, part[:, :, None, None], bias if fused is None else None)
            if x.shape[2:] != size:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            fused = x if fused is None else fused + x
        assert fused is not None
        if self.training:
            fused = self.fuse_norm(fused)
        return self.classifier(self.dropout(F.relu(fused)))

    def _scale(self, index: int, x: Tensor) -> Tensor:
        """The layer of one scale of the ``conv`` kind: (B, C_i, H_i, W_i) -> (B, D, H_i, W_i)."""
        conv, norm = self.scales[index], self.scale_norms[index]
        if self.training:
            return F.relu(norm(conv(x)))
        scale, bias = _folded(norm)
        return F.relu(F.conv2d(x, conv.weight * scale[:, None, None, None], bias))


def _folded(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The factor (C,) and the shift (C,) that a batch norm amounts to in inference."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale
