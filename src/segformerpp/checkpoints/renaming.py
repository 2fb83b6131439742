"""Translating tensors between a layout and ours, by the layout's table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from segformerpp.checkpoints.layouts import LAYOUTS, Layout
from segformerpp.plans.plan import STAGES

Tensors = dict[str, Tensor]

# Counted by batch norms in training; nothing depends on it.
COUNTER = "num_batches_tracked"
_NUMBER = "(0|[1-9][0-9]{0,5})"
_PARAMETERS = f"(weight|bias|running_mean|running_var|{COUNTER})"
_FUSE = "head.fuse.weight"


class _Slot(NamedTuple):
    """A side of a row of a table: names of tensors, and which equal part of their rows."""

    pattern: str  # as in a table, with {p} for the parameter
    regex: re.Pattern[str]
    part: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> _Slot:
        pattern, _, part = text.partition("@")
        pattern = pattern if "{p}" in pattern else pattern + ".{p}"
        regex = re.escape(pattern).replace(r"\{", "{").replace(r"\}", "}")
        for key in ("s", "s1", "b", "p"):
            group = _PARAMETERS if key == "p" else _NUMBER
            regex = regex.replace(f"{{{key}}}", f"(?P<{key}>{group})")
        number, count = (int(n) for n in part.split("/")) if part else (1, 1)
        return cls(pattern, re.compile(regex), number - 1, count)

    def match(self, name: str) -> dict[str, str | int] | None:
        """The stage, block and parameter in a name, or None if it is none of these."""
        match = self.regex.fullmatch(name)
        if match is None:
            return None
        fields: dict[str, str | int] = dict(match.groupdict())
        if "s1" in fields:
            fields["s"] = int(fields["s1"]) - 1
        elif "s" in fields:
            fields["s1"] = int(fields["s"]) + 1
        return fields


Row = tuple[_Slot, _Slot]


@dataclass(frozen=True, slots=True)
class Renaming:
    """A layout with one of its prefixes: translates in both directions.

    Attributes:
        rows: the layout's table, ours to theirs, in full names.
    """

    layout: Layout
    prefix: str
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, layout: Layout, prefix: str) -> Renaming:
        """Write out the layout's table for a prefix of the encoder's names."""
        stage = "encoder.stages.{s}."
        names = {
            **{stage + ours: prefix + theirs for ours, theirs in layout.stage.items()},
            **{stage + "blocks.{b}." + ours: prefix + t for ours, t in layout.block.items()},
            **{"head." + ours: theirs for ours, theirs in layout.head.items()},
        }
        rows = tuple((_Slot.parse(ours), _Slot.parse(theirs)) for ours, theirs in names.items())
        return cls(layout, prefix, rows)

    def ignores(self, name: str) -> bool:
        """Whether a tensor of that name is known to stand beside the network."""
        return name.endswith(COUNTER) or name.startswith(self.layout.ignored)

    def knows(self, name: str) -> bool:
        """Whether the table has a tensor of that name."""
        return any(theirs.match(name) for _, theirs in self.rows)

    def whole(self, tensors: Tensors) -> Tensors:
        """Rename those tensors that are one in both layouts; this cannot fail."""
        return _rename(tensors, [(t, o) for o, t in self.rows if t.parts == o.parts == 1])

    def to_ours(self, tensors: Tensors, like: Tensors) -> Tensors:
        """Translate tensors that are known to fit, into the shapes of `like`."""
        ours = _rename(tensors, [(t, o) for o, t in self.rows])
        ours = {name: tensor.reshape(like[name].shape) for name, tensor in ours.items()}
        return self._fuse(ours)

    def to_theirs(self, tensors: Tensors) -> Tensors:
        """Translate our tensors (a state dict or a part of one) into the layout's."""
        tensors = self._fuse(tensors)
        if self.layout.linear_scales:
            linear = re.compile(r"head\.scales\.[0-9]+\.weight")
            tensors = {k: v.flatten(1) if linear.fullmatch(k) else v for k, v in tensors.items()}
        return _rename(tensors, self.rows)

    def _fuse(self, tensors: Tensors) -> Tensors:
        if self.layout.fuse_reversed and _FUSE in tensors:
            parts = tensors[_FUSE].chunk(STAGES, dim=1)
            return {**tensors, _FUSE: _joined(list(parts[::-1]), dim=1)}
        return tensors


_RENAMINGS = [Renaming.of(layout, prefix) for layout in LAYOUTS for prefix in layout.prefixes]


def recognise(names: Iterable[str]) -> Renaming | None:
    """Which layout tensors of these names are in; None if most of them are in none."""
    names = list(names)

    def known(renaming: Renaming) -> int:
        return sum(renaming.knows(name) for name in names)

    best = max(_RENAMINGS, key=known)
    passed_over = sum(best.ignores(name) for name in names)
    return best if 2 * known(best) > len(names) - passed_over else None


def _rename(tensors: Mapping[str, Tensor], rows: Iterable[Row]) -> Tensors:
    rows = list(rows)
    pieces: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        for source, target in rows:
            fields = source.match(name)
            if fields is not None:
                piece = tensor if source.parts == 1 else tensor.chunk(source.parts)[source.part]
                pieces.setdefault(target.pattern.format(**fields), {})[target.part] = piece
    return {
        name: _joined([parts[i] for i in sorted(parts)]) if len(parts) > 1 else parts[0]
        for name, parts in pieces.items()
    }


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    if parts[0].is_meta:  # torch.cat would import torch._dynamo there, which takes a second
        shape = list(parts[0].shape)
        shape[dim] = sum(part.shape[dim] for part in parts)
        return torch.empty(shape, device="meta")
    return torch.cat(parts, dim=dim)
