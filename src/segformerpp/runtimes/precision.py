"""Whether a lower precision is good enough for a model."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from segformerpp.models import Metadata

#: The share of pixels whose label must stay the same.
LEAST_AGREEMENT = 0.995
#: Of the photograph, in pixels.
SHORTER_SIDE = 384

Network = Callable[[np.ndarray], np.ndarray]


def keeps_labels(full: Network, lower: Network, metadata: Metadata) -> bool:
    """Compare a network in a lower precision with itself in f32 on a photograph of ours.

    A street, 384 x 768, at the resolution of the logits, where borders weigh more than at the
    image's: what passes here passes there.

    Args:
        full: the network in f32: normalised images (B, 3, H, W) -> logits (B, K, h, w).
        lower: the same in a lower precision.
        metadata: for the normalisation.
    """
    with files("segformerpp").joinpath("runtimes", "street.jpg").open("rb") as file:
        pixels = np.asarray(Image.open(file).convert("RGB"), np.float32)
    mean, std = (np.array(values, np.float32) for values in (metadata.mean, metadata.std))
    x = np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None])
    same = full(x).argmax(axis=1) == lower(x).argmax(axis=1)
    return bool(same.mean() >= LEAST_AGREEMENT)
