"""From the name of a checkpoint to a network that is ready to use."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segformerpp.arguments import whole_number
from segformerpp.checkpoints.architecture import Problems, configure, infer
from segformerpp.checkpoints.description import MOST_OUTPUTS, describe, fitted
from segformerpp.checkpoints.layouts import LAYOUTS
from segformerpp.checkpoints.reading import read
from segformerpp.checkpoints.renaming import COUNTER, Tensors, recognise
from segformerpp.checkpoints.sources import locate
from segformerpp.errors import CheckpointError, UsageError
from segformerpp.models import Metadata, Segformer, SegformerConfig
from segformerpp.plans import MergePlan

logger = logging.getLogger(__name__)

# What training, compilation and data parallelism put before every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_CLASSIFIER = "head.classifier."


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
    if num_classes is not None:
        num_classes = whole_number("num_classes", num_classes, 1, MOST_OUTPUTS)
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


def fit(
    tensors: Tensors,
    stated: Mapping[str, Any],
    metadata: Metadata,
    num_classes: int | None,
    origin: str,
) -> Segformer:
    """Build the network that tensors of any layout belong in, and fill it.

    Args:
        tensors: a whole model's or an encoder's.
        stated: the fields of `SegformerConfig` that are written beside the tensors.
        metadata: for the model; corrected where it does not fit or the head is fresh.
        num_classes: outputs that are wanted; None for the checkpoint's, or 19 for an encoder.
        origin: the checkpoint's name, for errors.

    Raises:
        CheckpointError: if the layout is none that we know, or a tensor is missing, extra or has
            a wrong shape.
    """
    wrapper, tensors, beside = _unwrapped(tensors)
    renaming = recognise(tensors)
    if renaming is None:
        example = wrapper + next(iter(tensors), "")
        layouts = ", ".join(layout.name for layout in LAYOUTS)
        raise CheckpointError(
            f"{origin}: not a SegFormer: tensors are named like {example!r}, as in none of the "
            f"layouts that are known ({layouts})"
        )
    problems = Problems(origin, renaming, wrapper)
    inferred = infer(renaming.whole(tensors), problems)
    problems.report()
    config = configure(inferred, stated, renaming.layout, origin)
    has_head = "head_kind" in inferred
    network = _without_numbers(config)
    shapes = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.endswith(COUNTER) and (has_head or name.startswith("encoder."))
    }
    problems.compare(tensors, shapes)
    problems.note_unexpected(beside)
    problems.report()
    for key, value in inferred.items():
        if stated.get(key, value) != value:
            raise CheckpointError(
                f"{origin}: {key} is stated as {stated[key]}, but the tensors have {value}"
            )
    known = {name: tensor for name, tensor in tensors.items() if not renaming.ignores(name)}
    ours = {name: _own(tensor) for name, tensor in renaming.to_ours(known, shapes).items()}

    fresh = "" if has_head else "decode head"
    if num_classes and num_classes != config.num_outputs:
        fresh = fresh or "classifier"
        config = replace(config, num_outputs=num_classes)
        ours = {name: t for name, t in ours.items() if not name.startswith(_CLASSIFIER)}
    if fresh:
        logger.warning("%s: the %s is freshly initialised: train it before use", origin, fresh)
        network = Segformer(config).float()
        metadata = Metadata(
            mean=metadata.mean,
            std=metadata.std,
            head_trained=False,
            source=metadata.source,
            license=metadata.license,
        )
    else:
        layout = renaming.layout
        if layout.task == "pose" != metadata.task:
            metadata = replace(metadata, task=layout.task, sigma=layout.sigma)
        counters = (name for name in network.state_dict() if name.endswith(COUNTER))
        ours |= {name: torch.tensor(0) for name in counters}
    network.load_state_dict(ours, strict=not fresh, assign=True)
    network.metadata = fitted(metadata, config, origin)
    return network


def _without_numbers(config: SegformerConfig) -> Segformer:
    """A network on the meta device: initial weights would cost time and the caller's seed."""
    with torch.device("meta"):
        return Segformer(config)


def _own(tensor: Tensor) -> Tensor:
    """In float32 and in memory of its own, not mapped from a file that may change."""
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _unwrapped(tensors: Tensors) -> tuple[str, Tensors, list[str]]:
    """Take the prefixes off that most names share.

    Returns:
        What was taken off, the tensors that had it, and the names of the others.
    """
    taken, beside = "", []
    for _ in _WRAPPERS:
        for prefix in _WRAPPERS:
            inside = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            if 2 * len(inside) > len(tensors):
                beside += [taken + name for name in tensors if not name.startswith(prefix)]
                tensors, taken = inside, taken + prefix
    return taken, tensors, beside
