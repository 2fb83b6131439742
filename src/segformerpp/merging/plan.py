"""What is merged where: `MergePlan`, its presets, and the notations it is read from.

Nothing here needs torch; the functions that carry a plan out are in the modules beside this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segformerpp.errors import PlanError
from segformerpp.merging.strategies import (
    BipartiteMatching,
    Merge,
    Neighbour2d,
    merge_from,
    merge_to,
    refuse_unknown,
)
from segformerpp.merging.tome_cfg import read_tome_cfg

STAGES = 4


@dataclass(frozen=True, slots=True)
class StageMerge:
    """What is merged in each block of one stage: the queries, the keys/values, both or neither."""

    q: Merge | None = None
    kv: Merge | None = None

    def __post_init__(self) -> None:
        for key, merge in (("q", self.q), ("kv", self.kv)):
            if not isinstance(merge, Merge | None):
                raise PlanError(f"{key}: a strategy such as Neighbour1d(2), or None, not {merge!r}")
        if self.q and self.q.proportional:
            raise PlanError("q.proportional: only merged keys/values (kv) have a weight to mend")


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
            refuse_unknown(stage, {"q", "kv"}, where)
            merges = [merge_from(stage.get(k), where, f"{k}.") for k in ("q", "kv")]
            try:
                parsed.append(StageMerge(*merges))
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
        queries of stages 3 and 4, ``kv1:...`` the keys/values of stage 1, ``input_scale=0.5``
        shrinks the image.
        """
        stages: list[dict[str, Any]] = [{} for _ in range(STAGES)]
        data: dict[str, Any] = {"stages": stages}
        for part in re.split(r"[\s;]+", text.strip()):
            target, colon, rest = part.partition(":")
            if not colon and target.startswith("input_scale="):
                if "input_scale" in data:
                    raise PlanError("input_scale: given twice")
                data["input_scale"] = _value(target.removeprefix("input_scale="))
                continue
            match = re.fullmatch(r"(q|kv)([1-4]+)", target)
            if not (colon and match):
                raise PlanError(
                    f"{part!r}: expected q or kv, stage numbers and a colon (q34:mode=bsm,...), "
                    f"or input_scale=NUMBER"
                )
            spec: dict[str, Any] = {}
            for item in rest.split(","):
                key, equals, value = item.partition("=")
                if not equals:
                    raise PlanError(f"{part!r}: expected key=value, not {item!r}")
                if key in spec:
                    raise PlanError(f"{part!r}: {key} is given twice")
                spec[key] = _value(value)
            for digit in match[2]:
                stage = stages[int(digit) - 1]
                if match[1] in stage:
                    raise PlanError(f"stage {digit}, {match[1]}: given twice")
                stage[match[1]] = spec
        return cls.from_dict(data)

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
        stages = [{"q": merge_to(s.q), "kv": merge_to(s.kv)} for s in self.stages]
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
        parts: dict[tuple[str, Merge], str] = {}
        for number, stage in enumerate(self.stages, 1):
            for key, merge in (("q", stage.q), ("kv", stage.kv)):
                if merge:
                    parts[key, merge] = parts.get((key, merge), "") + str(number)
        words = [f"{key}{digits}:{_keywords(merge)}" for (key, merge), digits in parts.items()]
        if self.input_scale != 1:
            words.append(f"input_scale={self.input_scale}")
        return " ".join(words) or "none"


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):  # as in YAML
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _keywords(merge: Merge) -> str:
    values = {k: "true" if v is True else v for k, v in (merge_to(merge) or {}).items()}
    return ",".join(f"{k}={v}" for k, v in values.items())


def _paper(q34: Merge | None = None, kv12: Merge | None = None) -> MergePlan:
    early, late = StageMerge(kv=kv12), StageMerge(q=q34)
    return MergePlan((early, early, late, late))


#: The plans of the paper by name (SegFormer++, table 1; `downsample` is its baseline).
PRESETS: dict[str, MergePlan] = {
    "none": MergePlan(),
    "hq": _paper(BipartiteMatching(0.8, 4, 4), BipartiteMatching(0.6, 2, 2)),
    "fast": _paper(BipartiteMatching(0.9, 4, 4), BipartiteMatching(0.9, 4, 4)),
    "2x2": MergePlan((StageMerge(q=Neighbour2d(2, 2)),) * STAGES),
    "downsample": MergePlan(input_scale=0.5),
}
