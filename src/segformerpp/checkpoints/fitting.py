"""From the tensors of a checkpoint to the network that they belong in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from segformerpp.checkpoints.inference import configure, infer, refuse_conflicts
from segformerpp.checkpoints.layouts import LAYOUTS
from segformerpp.checkpoints.problems import Problems
from segformerpp.checkpoints.renaming import COUNTER, Tensors, recognise
from segformerpp.errors import CheckpointError
from segformerpp.models import Metadata, Segformer

logger = logging.getLogger(__name__)

# What training, compilation and data parallelism put before every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_CLASSIFIER = "head.classifier."


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
        metadata: for the model; corrected where the head turns out to be fresh.
        num_classes: outputs that are wanted; None for the checkpoint's, or 19 for an encoder.
        origin: the checkpoint's name, for errors.

    Raises:
        CheckpointError: if the layout is none that we know, or a tensor is missing, extra or has
            a wrong shape.
    """
    wrapper, tensors = _unwrapped(tensors)
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
    if not has_head and num_classes:
        config = replace(config, num_outputs=num_classes)
    model = Segformer(config)
    wanted = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith(COUNTER) and (has_head or name.startswith("encoder."))
    }
    problems.compare(tensors, wanted)
    problems.report()
    refuse_conflicts(inferred, stated, origin)
    ours = renaming.to_ours({k: v for k, v in tensors.items() if not renaming.ignores(k)}, wanted)
    if has_head and num_classes and num_classes != config.num_outputs:
        model = Segformer(replace(config, num_outputs=num_classes))
        ours = {name: t for name, t in ours.items() if not name.startswith(_CLASSIFIER)}
    model.load_state_dict(ours, strict=False)
    fresh = "" if f"{_CLASSIFIER}weight" in ours else "classifier" if has_head else "decode head"
    model.metadata = _corrected(metadata, model.config.num_outputs, fresh, origin)
    return model


def _unwrapped(tensors: Tensors) -> tuple[str, Tensors]:
    """Take the prefixes off that all names share; also what was taken off."""
    taken = ""
    for _ in _WRAPPERS:
        for prefix in _WRAPPERS:
            if tensors and all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
                taken += prefix
    return taken, tensors


def _corrected(metadata: Metadata, outputs: int, fresh: str, origin: str) -> Metadata:
    """Metadata without what does not hold for the head that the model has."""
    if fresh:
        logger.warning("%s: the %s is freshly initialised: train it before use", origin, fresh)
        kept = Metadata(mean=metadata.mean, std=metadata.std, head_trained=False)
        return replace(kept, source=metadata.source, license=metadata.license)
    for key in ("labels", "palette"):
        named = len(getattr(metadata, key))
        if named not in (0, outputs):
            logger.warning("%s: %d %s for %d outputs: left out", origin, named, key, outputs)
            metadata = replace(metadata, **{key: ()})  # type: ignore[arg-type]  # both are tuples
    return metadata
