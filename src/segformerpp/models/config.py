"""What a SegFormer is made of, and what its numbers mean: plain data that is saved with weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

HeadKind = Literal["linear", "conv"]


@dataclass(frozen=True, slots=True)
class SegformerConfig:
    """The architecture (Xie et al., *SegFormer*, NeurIPS 2021, table 6).

    Args:
        depths: blocks of each stage.
        dims: channels of each stage.
        heads: attention heads of each stage.
        sr_ratios: spatial reduction of the keys/values in each stage.
        mlp_ratios: hidden over outer channels of the Mix-FFN in each stage.
        patch_sizes: kernel size of each stage's patch embedding.
        head_dim: channels of the decode head.
        head_kind: ``linear``, as NVlabs and Hugging Face have it (a linear layer per scale), or
            ``conv``, as mmsegmentation 1.x and SegFormer++ have it (convolution, batch norm and
            ReLU per scale).
        in_channels: channels of the image.
        num_outputs: classes, or keypoints.
        embed_norm_eps: epsilon of the layer norms after patch embedding and spatial reduction.
        norm_eps: epsilon of all other layer norms. NVlabs: 1e-5 and 1e-6; mmsegmentation 1e-6
            and 1e-6; transformers 1e-5 and 1e-5.
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0.
        dropout: rate before the classifier.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    patch_sizes: tuple[int, ...] = (7, 3, 3, 3)
    head_dim: int = 256
    head_kind: HeadKind = "linear"
    in_channels: int = 3
    num_outputs: int = 19
    embed_norm_eps: float = 1e-5
    norm_eps: float = 1e-5
    drop_path: float = 0.1
    dropout: float = 0.1

    @classmethod
    def of_size(cls, size: str, **changes: Any) -> SegformerConfig:
        """The configuration of a published size, ``b0`` to ``b5``, with changes.

        Raises:
            ValueError: if there is no such size.
        """
        if size not in SIZES:
            raise ValueError(f"size: one of {', '.join(SIZES)}, not {size!r}")
        return cls(**{**SIZES[size], **changes})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SegformerConfig:
        """Read what `to_dict` wrote."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def min_image_size(self) -> int:
        """The least height and width of an image: below it a spatial reduction has no input."""
        return max((4 << stage) * ratio for stage, ratio in enumerate(self.sr_ratios))

    def min_image_size_at(self, input_scale: float) -> int:
        """`min_image_size` of images that a plan shrinks to `input_scale` times their size."""
        return math.ceil(self.min_image_size / input_scale)

    @property
    def size(self) -> str:
        """``b0`` to ``b5`` by depths and channels; ``custom`` if no published size has them."""
        for name, size in SIZES.items():
            if (self.depths, self.dims) == (size["depths"], size["dims"]):
                return name
        return "custom"


_SMALL, _LARGE = (32, 64, 160, 256), (64, 128, 320, 512)
SIZES: dict[str, dict[str, Any]] = {
    "b0": {"depths": (2, 2, 2, 2), "dims": _SMALL, "head_dim": 256},
    "b1": {"depths": (2, 2, 2, 2), "dims": _LARGE, "head_dim": 256},
    "b2": {"depths": (3, 4, 6, 3), "dims": _LARGE, "head_dim": 768},
    "b3": {"depths": (3, 4, 18, 3), "dims": _LARGE, "head_dim": 768},
    "b4": {"depths": (3, 8, 27, 3), "dims": _LARGE, "head_dim": 768},
    "b5": {"depths": (3, 6, 40, 3), "dims": _LARGE, "head_dim": 768},
}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a model's inputs and outputs mean.

    Args:
        task: ``segmentation`` or ``pose``.
        labels: class names by training id, or names of keypoints; empty if unknown.
        palette: RGB colour of each class or keypoint; empty if unknown.
        mean, std: of the RGB channels in 0..255, for normalisation.
        image_size: (H, W) that it was trained or published with; None if unknown. Nothing is
            resized to it unless asked.
        reduce_labels: whether the label files count from 1, with 0 ignored (ADE20K); training
            ids count from 0.
        head_trained: False if the decode head was freshly initialised by `load`.
        source: where the weights came from.
        license: terms of the weights, as far as known.
        skeleton: for poses: pairs of keypoints with a line between them.
        sigma: for poses: of the Gaussians in the heatmaps, in heatmap pixels.
        coding: for poses: how keypoints lie in heatmaps, ``udp`` or ``msra``; see `PoseCodec`.
    """

    task: str = "segmentation"
    labels: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    image_size: tuple[int, int] | None = None
    reduce_labels: bool = False
    head_trained: bool = True
    source: str = field(default="", compare=False)
    license: str = ""
    skeleton: tuple[tuple[int, int], ...] = ()
    sigma: float = 2.0
    coding: str = "udp"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Metadata:
        """Read what `to_dict` wrote."""
        data = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        for key in ("palette", "skeleton"):
            data[key] = tuple(tuple(values) for values in data.get(key, ()))
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; without what is for poses if it is not one's."""
        values = asdict(self)
        if self.task != "pose":
            for key in ("skeleton", "sigma", "coding"):
                del values[key]
        return values
