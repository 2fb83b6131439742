"""What is wrong with the tensors of a checkpoint, collected and then said at once."""

from __future__ import annotations

import torch
from torch import Tensor

from segformerpp.checkpoints.renaming import Renaming, Tensors
from segformerpp.errors import CheckpointError

_MOST_LISTED = 12


def matrix_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape; of a 1x1 convolution that of the linear layer it is, since files have either."""
    shape = tuple(tensor.shape)
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


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
        expected = self.renaming.to_theirs({k: v.to("meta") for k, v in wanted.items()})
        for name, like in expected.items():
            full_name, tensor = self.wrapper + name, tensors.get(name)
            if tensor is None:
                self.lists["missing"].append(full_name)
            elif matrix_shape(tensor) != matrix_shape(like):
                text = f"{full_name} is {tuple(tensor.shape)}, not {tuple(like.shape)}"
                self.lists["misshapen"].append(text)
            elif not tensor.is_floating_point():
                text = f"{full_name} is {tensor.dtype}, not floating point"
                self.lists["of a wrong type"].append(text)
        for name in tensors:
            if name not in expected and not self.renaming.ignores(name):
                self.lists["unexpected"].append(self.wrapper + name)

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
