"""From the name of a checkpoint to a network that is ready to use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from segformerpp.checkpoints.description import describe
from segformerpp.checkpoints.fitting import fit
from segformerpp.checkpoints.reading import read
from segformerpp.checkpoints.sources import locate
from segformerpp.errors import UsageError
from segformerpp.merging import MergePlan
from segformerpp.models import Segformer


def load(
    source: str | Path,
    merge: MergePlan | str | Path | Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    device: str = "cpu",
    offline: bool = False,
    revision: str | None = None,
) -> Segformer:
    """Load a SegFormer from wherever it is, whatever layout it is in.

    Size, head kind, channels and classes are read from the tensors; layer-norm epsilons from the
    configuration saved with them, else from the layout. ImageNet backbones get a fresh head.

    Args:
        source: a bundled name (see `bundled`), a weights file (``.safetensors``, ``.pth``,
            ``.pt``, ``.bin``, ``.ckpt``), a folder as `save_pretrained` or transformers write
            it, or a hub id ``owner/name``. An existing path wins over a hub id.
        merge: the merge plan, in any notation that `MergePlan.parse` reads; None for the plan
            saved with the checkpoint, else ``none``.
        num_classes: outputs that are wanted. Where they differ from the checkpoint's, the
            classifier is freshly initialised, for training. None: the checkpoint's; 19 for a
            backbone.
        device: of the parameters, in PyTorch's terms.
        offline: whether to take hub models from the local cache only.
        revision: branch, tag or commit of a hub model.

    Returns:
        The network in evaluation mode, with float32 parameters.

    Raises:
        CheckpointError: if there is no such checkpoint, it cannot be read without executing
            code, or it does not fit; one line, with the list of tensors that are wrong.
        PlanError: if the merge plan is not understood.
        UsageError: on an impossible number of classes or device.
    """
    plan = None if merge is None else MergePlan.parse(merge)
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes: at least 1, not {num_classes}")
    found = locate(source, revision, offline)
    contents = read(found.weights)
    description = describe(contents, found.folder, found.name)
    model = fit(contents.tensors, description.stated, description.metadata, num_classes, found.name)
    model.merge_plan = description.plan if plan is None else plan
    try:
        return model.eval().to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device: {device!r} cannot be used: {reason}") from None
