"""Reading the `tome_cfg` dialect of SegFormer++ configs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from segformerpp.errors import PlanError
from segformerpp.plans.strategies import Merge, merge_from, refuse_unknown

# The second name of each is what the published package's preset file says and its code ignores.
_MODES = {"bsm": "bsm", "bsm_r2D": "bsm", "n1d": "n1d", "n2d": "n2d", "neighbor_2D": "n2d"}
_PARAMETERS = ("r", "sx", "sy", "s")


def read_tome_cfg(
    cfg: Iterable[Mapping[str, Any] | None],
) -> list[tuple[Merge | None, Merge | None]]:
    """Read a `tome_cfg` list: for each stage what its queries and its keys/values are merged by.

    Raises:
        PlanError: on an unknown key or mode, a wrong value, or a parameter that would silently
            do nothing; the text names the stage and the key.
    """
    if isinstance(cfg, str | Mapping) or not isinstance(cfg, Iterable):
        raise PlanError(f"tome_cfg: a list of four dicts, not {cfg!r}")
    known = {f"{prefix}_{key}" for prefix in ("q", "kv") for key in ("mode", *_PARAMETERS)}
    stages = []
    for number, stage in enumerate(cfg, 1):
        stage = {} if stage is None else stage
        where = f"stage {number}"
        refuse_unknown(stage, known, where)
        stages.append((_merge(stage, "q_", where), _merge(stage, "kv_", where)))
    return stages


def _merge(stage: Mapping[str, Any], prefix: str, where: str) -> Merge | None:
    values = {k: stage[prefix + k] for k in _PARAMETERS if stage.get(prefix + k) is not None}
    mode = stage.get(f"{prefix}mode")
    if mode is None:
        # An explicit None switches merging off whatever else is there.
        if values and f"{prefix}mode" not in stage:
            key = prefix + next(iter(values))
            raise PlanError(f"{where}, {key}: given without {prefix}mode, so nothing is merged")
        return None
    mode = _MODES.get(mode, mode) if isinstance(mode, str) else mode
    if mode == "n2d" and "s" in values:
        if clash := {"sx", "sy"} & set(values):
            raise PlanError(f"{where}, {prefix}{min(clash)}: given beside {prefix}s")
        s = values.pop("s")
        pair = tuple(s) if isinstance(s, list | tuple) else (s, s)
        if len(pair) != 2:
            raise PlanError(f"{where}, {prefix}s: a number or a pair (rows, columns), not {s!r}")
        values["sy"], values["sx"] = pair
    return merge_from({"mode": mode, **values}, where, prefix)
