"""Opening a model that something can be predicted with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from segformerpp import checkpoints
from segformerpp.checkpoints import Checkpoint
from segformerpp.errors import UsageError
from segformerpp.plans import MergePlan

if TYPE_CHECKING:
    from segformerpp.models import Segformer


def open_trained(
    model: str | Path | Segformer, plan: MergePlan | None, offline: bool, revision: str | None
) -> Checkpoint:
    """Open a model that is not shared with anyone; for the arguments see `Predictor`.

    Raises:
        UsageError: if its head is untrained, or it is not for RGB images and a task of ours.
        CheckpointError: if it cannot be loaded.
    """
    if isinstance(model, str | Path):
        network = checkpoints.open_checkpoint(model, plan, offline=offline, revision=revision)
    else:
        network = Checkpoint.of_model(copy.deepcopy(model).cpu().float(), plan)
    if not network.metadata.head_trained:
        raise UsageError(
            f"model: {network.metadata.source or 'this one'} has a fresh decode head; train it "
            f"before predicting with it"
        )
    if network.config.in_channels != 3:
        raise UsageError(f"model: reads RGB images, not {network.config.in_channels} channels")
    if network.metadata.task not in ("segmentation", "pose"):
        raise UsageError(f"model: for an unknown task, {network.metadata.task}")
    return network
