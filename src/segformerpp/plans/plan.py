"""What is merged where: `MergePlan`, its presets, and the notations it is read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segformerpp.errors import PlanError
from segformerpp.plans.keywords import read_keywords, write_keywords
from segformerpp.plans.strategies import (
    BipartiteMatching,
    Merge,
    Neighbour2d,
    StageMerge,
    merge_from,
    merge_to,
    refuse_unknown,
)
from segformerpp.plans.tome_cfg import read_tome_cfg

STAGES = 4
#: Where networks are run: the preset that is the fastest there (`segformerpp.auto_plan`).
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What is merged in each of the four stages, and how much the image is shrunk before.

    `MergePlan.parse` reads every notation. A plan is immutable, hashable and independent of the
    model and of the image size.

    Args:
        stages: one `StageMerge` for each stage.
        input_scale: factor in (0, 1] that the image's height and width are multiplied with first
            (nearest neighbour, sizes rounded down).

    Raises:
        PlanError: on a wrong value; the text names the stage and the key.
    """

    stages: tuple[StageMerge, ...] = (StageMerge(),) * STAGES
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if len(self.stages) != STAGES:
            raise PlanError(f"stages: a plan has {STAGES} stages, not {len(self.stages)}")
        for number, stage in enumerate(self.stages, 1):
            if not isinstance(stage, StageMerge):
                raise PlanError(f"stage {number}: a StageMerge, not {stage!r}")
        scale = self.input_scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= 1:
            raise PlanError(f"input_scale: a number above 0 and up to 1, not {scale!r}")

    @classmethod
    def parse(cls, value: MergePlan | str | Path | Mapping[str, Any] | None) -> MergePlan:
        """Read a plan from whatever a user has.

        Args:
            value: a plan, a preset name (``"hq"``), the path of a YAML file (``.yaml`` or
                ``.yml``), a keyword string (see `from_string`), the mapping that a YAML plan
                holds, or None for ``none``.
        """
        if value is None:
            return cls()
        if isinstance(value, MergePlan):
            return value
        if isinstance(value, Path):
            return cls.from_yaml(value)
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        if not isinstance(value, str):
            raise PlanError(
                f"merge: a preset name, a YAML file, a keyword string or a MergePlan, not a "
                f"{type(value).__name__} (for a SegFormer++ config: MergePlan.from_tome_cfg)"
            )
        text = value.strip()
        if text in PRESETS:
            return PRESETS[text]
        if text.endswith((".yaml", ".yml")):
            return cls.from_yaml(Path(text))
        if ":" in text or "=" in text:
            return cls.from_string(text)
        if is_auto(text):
            raise PlanError(
                "merge: auto is measured where a network is run (Predictor, segformerpp predict, "
                "eval and bench); name a plan here"
            )
        raise PlanError(
            f"merge: {value!r} is neither a preset ({', '.join(PRESETS)}), a .yaml file nor a "
            f"keyword string such as 'q34:mode=bsm,r=0.8,sx=4,sy=4'"
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MergePlan:
        """Read the mapping that a YAML plan holds.

        ``{"version": 1, "stages": [{"q": {"mode": "bsm", "r": 0.8, "sx": 4, "sy": 4},
        "kv": None}, ...], "input_scale": 1.0}``; ``version`` and ``input_scale`` may be left out.
        """
        refuse_unknown(data, {"version", "stages", "input_scale"}, "plan")
        if data.get("version", 1) != 1:
            raise PlanError(f"version: this release reads version 1, not {data['version']!r}")
        stages = data.get("stages", [None] * STAGES)
        if isinstance(stages, str) or not isinstance(stages, Iterable):
            raise PlanError(f"stages: a list of {STAGES} stages, not {stages!r}")
        parsed = []
        for number, stage in enumerate(stages, 1):
            stage = {} if stage is None else stage
            where = f"stage {number}"
            refuse_unknown(stage, {"q", "kv", "reuse"}, where)
            q, kv = (merge_from(stage.get(key), where, f"{key}.") for key in ("q", "kv"))
            try:
                parsed.append(StageMerge(q, kv, stage.get("reuse", 0)))
            except PlanError as error:
                raise PlanError(f"{where}, {error}") from None
        return cls(tuple(parsed), data.get("input_scale", 1.0))

    @classmethod
    def from_yaml(cls, path: str | Path) -> MergePlan:
        """Read a YAML file (see `from_dict` for its keys)."""
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError, yaml.YAMLError) as error:  # odd bytes, dates, nesting
            raise PlanError(f"{path}: not a YAML plan: {' '.join(str(error).split())}") from None
        if not isinstance(data, Mapping):
            raise PlanError(f"{path}: a plan is a mapping with the key 'stages'")
        try:
            return cls.from_dict(data)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

    @classmethod
    def from_string(cls, text: str) -> MergePlan:
        """Read a keyword string: YAML's keys for people in a hurry.

        Parts are separated by blanks or semicolons. ``q34:mode=bsm,r=0.8,sx=4,sy=4`` merges the
        queries of stages 3 and 4, ``kv1:...`` the keys/values of stage 1, ``reuse3=4`` matches in
        every fourth block of stage 3, ``input_scale=0.5`` shrinks the image.
        """
        return cls.from_dict(read_keywords(text))

    @classmethod
    def from_tome_cfg(cls, cfg: Iterable[Mapping[str, Any] | None]) -> MergePlan:
        """Read the list of four dicts that SegFormer++ users have in their configs.

        Keys: ``q_mode``, ``kv_mode`` (``bsm``, ``n1d``, ``n2d``; ``bsm_r2D`` and ``neighbor_2D``
        mean ``bsm`` and ``n2d``; None or missing: no merging) and, with the same prefixes,
        ``r``, ``sx``, ``sy``, ``s`` (a number, for ``n2d`` also a pair: rows, columns).
        """
        return cls(tuple(StageMerge(q, kv) for q, kv in read_tome_cfg(cfg)))

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` reads, of plain values."""
        stages: list[dict[str, Any]] = []
        for stage in self.stages:
            stages.append({"q": merge_to(stage.q), "kv": merge_to(stage.kv)})
            if stage.reuse:
                stages[-1]["reuse"] = stage.reuse
        data: dict[str, Any] = {"version": 1, "stages": stages}
        if self.input_scale != 1:
            data["input_scale"] = self.input_scale
        return data

    def to_yaml(self) -> str:
        """The text that `from_yaml` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None)

    @property
    def name(self) -> str:
        """The name of the preset that equals this plan, else its keyword string."""
        return next((name for name, plan in PRESETS.items() if plan == self), None) or str(self)

    def __str__(self) -> str:
        return write_keywords(self.to_dict()) or "none"


def is_auto(merge: object) -> bool:
    """Whether a plan is to be chosen by measuring, which takes more than a plan to do."""
    return isinstance(merge, str) and merge.strip() == AUTO


def _paper(q34: Merge | None = None, kv12: Merge | None = None) -> MergePlan:
    early, late = StageMerge(kv=kv12), StageMerge(q=q34)
    return MergePlan((early, early, late, late))


#: What our presets leave at least: attention to so few tokens takes hardly any time.
_ENOUGH = 64
_CELL = Neighbour2d(2, 2, min_tokens=_ENOUGH)
_FEW_KEYS = BipartiteMatching(0.9, 4, 4, proportional=True, min_tokens=_ENOUGH)


def _keys(r: float) -> BipartiteMatching:
    return BipartiteMatching(r, 2, 2, proportional=True, min_tokens=_ENOUGH)


#: Plans by name: the paper's (SegFormer++, table 1; `downsample` is its baseline), then ours, which
#: `benchmarks/strategies.py` found.
PRESETS: dict[str, MergePlan] = {
    "none": MergePlan(),
    "hq": _paper(BipartiteMatching(0.8, 4, 4), BipartiteMatching(0.6, 2, 2)),
    "fast": _paper(BipartiteMatching(0.9, 4, 4), BipartiteMatching(0.9, 4, 4)),
    "2x2": MergePlan((StageMerge(q=Neighbour2d(2, 2)),) * STAGES),
    "downsample": MergePlan(input_scale=0.5),
    "balanced": MergePlan(
        (
            StageMerge(q=_CELL, kv=_FEW_KEYS),
            StageMerge(kv=_FEW_KEYS),
            StageMerge(q=_CELL, kv=_keys(0.5)),
            StageMerge(q=BipartiteMatching(0.75, 2, 2, min_tokens=_ENOUGH)),
        )
    ),
    "turbo": MergePlan(
        (
            StageMerge(q=_CELL, kv=_FEW_KEYS),
            StageMerge(q=_CELL, kv=_FEW_KEYS),
            StageMerge(q=_CELL, kv=_keys(0.75), reuse=4),
            StageMerge(q=_CELL),
        )
    ),
}
