"""The architecture that the tensors of a checkpoint belong to, read from their shapes."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from segformerpp.checkpoints.layouts import Layout
from segformerpp.checkpoints.problems import Problems, matrix_shape
from segformerpp.checkpoints.renaming import Tensors
from segformerpp.errors import CheckpointError
from segformerpp.merging.plan import STAGES
from segformerpp.models import SIZES, SegformerConfig


class _Form(NamedTuple):
    """What a weight's shape has to look like."""

    text: str
    ndim: int
    ratio: int | None  # of the last dimension to the one before


_LINEAR = _Form("(D, C)", 2, None)
_SQUARE = _Form("(C, C)", 2, 1)
_FUSE = _Form("(D, 4 D)", 2, STAGES)
_KERNEL = _Form("(D, C, k, k)", 4, 1)


def infer(tensors: Tensors, problems: Problems) -> dict[str, Any]:
    """Read the fields of `SegformerConfig` that shapes tell.

    The fields of the head are absent where the tensors are those of an encoder. The network is
    built by the result, so it is only drawn from tensors as large as what they stand for.

    Args:
        tensors: in our names.
        problems: takes note of missing and impossible tensors; if there are any, the result is
            of no use.
    """

    def shape(pattern: str, form: _Form) -> tuple[int, ...]:
        """The shape of the first tensor that matches, or ones if it is not as it should be."""
        name = next(iter(fnmatch.filter(tensors, pattern)), None)
        if name is None:
            problems.note_missing(pattern.replace("*", "0"))
            return (1,) * form.ndim
        tensor = tensors[name]
        found = tuple(tensor.shape) if form is _KERNEL else matrix_shape(tensor)
        right = len(found) == form.ndim and 0 not in found
        if not right or (form.ratio and found[-1] != form.ratio * found[-2]):
            problems.note_misshapen(name, found, form.text)
            return (1,) * form.ndim
        return found

    stages = []
    for stage in range(STAGES):
        prefix = f"encoder.stages.{stage}."
        block = f"{prefix}blocks.*."
        kernel = shape(f"{prefix}patch_embed.conv.weight", _KERNEL)
        dim = shape(f"{block}attention.proj.weight", _SQUARE)[0]
        hidden = shape(f"{block}ffn.fc1.weight", _LINEAR)[0]
        reduces = fnmatch.filter(tensors, f"{block}attention.sr*")
        numbers = {name.split(".")[4] for name in tensors if name.startswith(f"{prefix}blocks.")}
        stages.append(
            {
                "depths": len(numbers),
                "dims": dim,
                "sr_ratios": shape(f"{block}attention.sr.weight", _KERNEL)[2] if reduces else 1,
                "mlp_ratios": max(hidden // dim, 1),
                "patch_sizes": kernel[2],
                "in_channels": kernel[1],
            }
        )
    inferred: dict[str, Any] = {key: tuple(s[key] for s in stages) for key in stages[0]}
    inferred["in_channels"] = stages[0]["in_channels"]
    if any(name.startswith("head.") for name in tensors):
        has_norms = any(name.startswith("head.scale_norms.") for name in tensors)
        inferred["head_kind"] = "conv" if has_norms else "linear"
        inferred["head_dim"] = shape("head.fuse.weight", _FUSE)[0]
        inferred["num_outputs"] = shape("head.classifier.weight", _LINEAR)[0]
    return inferred


def configure(
    inferred: Mapping[str, Any], stated: Mapping[str, Any], layout: Layout, origin: str
) -> SegformerConfig:
    """Put together what shapes tell, what is stated beside them, and what the layout implies.

    Raises:
        CheckpointError: if the attention heads are not stated and cannot be the usual ones.
    """
    known = {
        "norm_eps": layout.norm_eps,
        "embed_norm_eps": layout.embed_norm_eps,
        **stated,
        **inferred,
    }
    config = SegformerConfig(**known)
    if "head_dim" not in known and config.size in SIZES:
        config = replace(config, head_dim=SIZES[config.size]["head_dim"])
    if any(dim % heads for dim, heads in zip(config.dims, config.heads, strict=True)):
        raise CheckpointError(
            f"{origin}: {config.dims} channels cannot be split over {config.heads} attention "
            f"heads; tensors do not tell the heads, only a config.json beside them does"
        )
    return config


def refuse_conflicts(inferred: Mapping[str, Any], stated: Mapping[str, Any], origin: str) -> None:
    """Raise `CheckpointError` if something is stated that is not so."""
    for key, value in inferred.items():
        if stated.get(key, value) != value:
            raise CheckpointError(
                f"{origin}: {key} is stated as {stated[key]}, but the tensors have {value}"
            )
