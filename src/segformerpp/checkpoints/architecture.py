"""The architecture that the tensors of a checkpoint belong to, and which of them do not fit it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segformerpp.checkpoints.layouts import Layout
from segformerpp.checkpoints.renaming import Renaming, Tensors
from segformerpp.errors import CheckpointError
from segformerpp.models import SIZES, SegformerConfig
from segformerpp.plans.plan import STAGES

_MOST_LISTED = 12


class Problems:
    """Lists of wrong tensors, by the names that they have in the user's file.

    Args:
        origin: the checkpoint's name.
        renaming: from our names to the file's.
        wrapper: what the file puts before every name.
    """

    def __init__(self, origin: str, renaming: Renaming, wrapper: str) -> None:
        self.origin, self.renaming, self.wrapper = origin, renaming, wrapper
        kinds = ("missing", "unexpected", "misshapen", "of a wrong type")
        self.lists: dict[str, list[str]] = {kind: [] for kind in kinds}

    def note_missing(self, ours: str) -> None:
        """Note that the tensor with our name is missing."""
        self.lists["missing"] += self._theirs(ours)

    def note_misshapen(self, ours: str, shape: tuple[int, ...], expected: str) -> None:
        """Note that the tensor with our name has a shape that is not as `expected`."""
        self.lists["misshapen"] += [f"{n} is {shape}, not {expected}" for n in self._theirs(ours)]

    def _theirs(self, ours: str) -> list[str]:
        names = self.renaming.to_theirs({ours: torch.empty(1, 1)})
        return [self.wrapper + name for name in names]

    def compare(self, tensors: Tensors, wanted: Tensors) -> None:
        """Note how `tensors` (in their names) differ from `wanted` (in ours)."""
        expected = self.renaming.to_theirs(wanted)
        for name, like in expected.items():
            full_name, tensor = self.wrapper + name, tensors.get(name)
            if tensor is None:
                self.lists["missing"].append(full_name)
            elif _matrix_shape(tensor) != _matrix_shape(like):
                text = f"{full_name} is {tuple(tensor.shape)}, not {tuple(like.shape)}"
                self.lists["misshapen"].append(text)
            elif not tensor.is_floating_point():
                text = f"{full_name} is {tensor.dtype}, not floating point"
                self.lists["of a wrong type"].append(text)
        self.note_unexpected((name for name in tensors if name not in expected), self.wrapper)

    def note_unexpected(self, names: Iterable[str], wrapper: str = "") -> None:
        """Note tensors that belong nowhere, less those that are known to stand beside networks."""
        for name in names:
            if not self.renaming.ignores(name):
                full_name = wrapper + name
                # A file may name them as it likes, even with codes that terminals obey.
                shown = full_name if full_name.isprintable() else repr(full_name)
                self.lists["unexpected"].append(shown)

    def report(self) -> None:
        """Raise `CheckpointError` with all that was noted; do nothing if that is nothing."""
        texts = []
        for kind, items in self.lists.items():
            if items:
                left_out = len(items) - _MOST_LISTED
                more = f" and {left_out} more" if left_out > 0 else ""
                texts.append(f"{kind}: {', '.join(items[:_MOST_LISTED])}{more}")
        if texts:
            raise CheckpointError(
                f"{self.origin}: does not fit SegFormer ({self.renaming.layout.name} layout): "
                + "; ".join(texts)
            )


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
        found = tuple(tensor.shape) if form is _KERNEL else _matrix_shape(tensor)
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


def _matrix_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape; of a 1x1 convolution that of the linear layer it is, since files have either."""
    shape = tuple(tensor.shape)
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
