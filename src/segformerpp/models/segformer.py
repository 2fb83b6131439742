"""SegFormer with token merging: the encoder and the decode head in one module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from segformerpp.models.config import Metadata, SegformerConfig
from segformerpp.models.encoder import Encoder, Found
from segformerpp.models.heads import DecodeHead
from segformerpp.plans import MergePlan


class Segformer(nn.Module):
    """SegFormer (Xie et al., 2021) with the token merging of SegFormer++ (Kienzle et al., 2024).

    Args:
        config: the architecture.
        metadata: what inputs and outputs mean.
        merge: the merge plan, in any notation that `MergePlan.parse` reads.

    Attributes:
        encoder: gives the four stage outputs (B, C_i, H_i, W_i) of an image.
        head: turns these into logits.
    """

    def __init__(
        self,
        config: SegformerConfig,
        metadata: Metadata | None = None,
        merge: MergePlan | str | Path | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.metadata = metadata or Metadata()
        self.encoder = Encoder(config)
        self.head = DecodeHead(config)
        self.merge_plan = merge
        if not self.head.classifier.weight.is_meta:
            self.apply(_initialise)
            nn.init.normal_(self.head.classifier.weight, std=0.01)

    @property
    def merge_plan(self) -> MergePlan:
        """The plan in force. Takes any notation that `MergePlan.parse` reads, at any time."""
        return self.encoder.merge_plan

    @merge_plan.setter
    def merge_plan(self, merge: MergePlan | str | Path | Mapping[str, Any] | None) -> None:
        self.encoder.merge_plan = MergePlan.parse(merge)

    @property
    def min_image_size(self) -> int:
        """The least height and width of an image under the plan in force."""
        return self.config.min_image_size_at(self.merge_plan.input_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Predict: normalised images (B, C, H, W) -> logits (B, K, h, w) at a quarter of the size.

        Sizes follow PyTorch's convolution arithmetic: 251 -> 63. Under a plan with an
        `input_scale` they follow the smaller image.

        Raises:
            UsageError: if the images are smaller than 32 pixels on a side (after `input_scale`).
        """
        return self.head(self.encoder(x))

    def matched(self, x: Tensor, given: Found | None = None) -> tuple[Tensor, Found]:
        """Predict as `forward` does, and tell what was merged; see `Encoder.matched`."""
        features, found = self.encoder.matched(x, given)
        return self.head(features), found


def _initialise(module: nn.Module) -> None:
    """Initial weights as in the paper's code base (timm's for linear layers, He's for the rest)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
