"""SegFormer with token merging: faster on high-resolution images, without retraining.

Names are imported when they are first used, so that ``import segformerpp`` does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from segformerpp.lazy_names import getter

if TYPE_CHECKING:
    from segformerpp.checkpoints import bundled, load, push_to_hub, save, save_pretrained
    from segformerpp.errors import (
        CheckpointError,
        ImageError,
        PlanError,
        SegformerppError,
        UsageError,
    )
    from segformerpp.exporting import export
    from segformerpp.integrations.transformers import accelerate, restore
    from segformerpp.models import Metadata, Segformer, SegformerConfig
    from segformerpp.plans import PRESETS, MergePlan
    from segformerpp.predictor import Predictor
    from segformerpp.tasks.segmentation_result import SegmentationResult

__version__ = "0.1.0"

_HOMES = {
    "segformerpp.checkpoints": ("bundled", "load", "push_to_hub", "save", "save_pretrained"),
    "segformerpp.errors": (
        *("CheckpointError", "ImageError", "PlanError", "SegformerppError", "UsageError"),
    ),
    "segformerpp.exporting": ("export",),
    "segformerpp.integrations.transformers": ("accelerate", "restore"),
    "segformerpp.plans": ("PRESETS", "MergePlan"),
    "segformerpp.models": ("Metadata", "Segformer", "SegformerConfig"),
    "segformerpp.predictor": ("Predictor",),
    "segformerpp.tasks.segmentation_result": ("SegmentationResult",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "PRESETS",
    "CheckpointError",
    "ImageError",
    "MergePlan",
    "Metadata",
    "PlanError",
    "Predictor",
    "Segformer",
    "SegformerConfig",
    "SegformerppError",
    "SegmentationResult",
    "UsageError",
    "__version__",
    "accelerate",
    "bundled",
    "export",
    "load",
    "push_to_hub",
    "restore",
    "save",
    "save_pretrained",
]


__getattr__ = getter(__name__, _HOME_OF)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
