"""The plans that are searched: choices by name, and the plan that they make."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from segformerpp.plans import (
    PRESETS,
    BipartiteMatching,
    Merge,
    MergePlan,
    Neighbour2d,
    StageMerge,
)
from segformerpp.plans.plan import STAGES

_CELLS = {"2x2": (2, 2), "4x2": (4, 2), "4x4": (4, 4)}  # sx, sy
_MATCHED_CELLS = ("2x2", "4x4")
_REUSE = (0, 2, 4, 40)  # the last: once for a whole stage
_MIN_TOKENS = (0, 64)  # of all strategies of a plan; the first for the paper's presets
_LEAST_RATIO, _MOST_RATIO, _STEP = 0.3, 0.95, 0.05

Choices = dict[str, Any]


class Asker(Protocol):
    """Who makes the choices; `optuna.Trial` does."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Choose one."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        """Choose a number."""


def suggest(ask: Asker, scales: Sequence[float]) -> MergePlan:
    """Make a plan of what is chosen; what would do nothing in any image is not asked for.

    Args:
        ask: chooses.
        scales: of the image, that the plan may have.
    """
    stages = []
    for number in range(1, STAGES + 1):
        q = _suggest_merge(ask, f"q{number}", proportional=False)
        kv = _suggest_merge(ask, f"kv{number}", proportional=True)
        reuse = 0
        if any(isinstance(merge, BipartiteMatching) for merge in (q, kv)):
            reuse = ask.suggest_categorical(f"reuse{number}", _REUSE)
        stages.append(StageMerge(q, kv, reuse))
    if any(stage.q or stage.kv for stage in stages):
        least = ask.suggest_categorical("min_tokens", _MIN_TOKENS)
        stages = [
            replace(stage, q=_leaving(least, stage.q), kv=_leaving(least, stage.kv))
            for stage in stages
        ]
    return MergePlan(tuple(stages), ask.suggest_categorical("input_scale", tuple(scales)))


def _leaving(least: int, merge: Merge | None) -> Merge | None:
    return merge and replace(merge, min_tokens=least)


def _suggest_merge(ask: Asker, name: str, *, proportional: bool) -> Merge | None:
    mode = ask.suggest_categorical(f"{name}.mode", ("none", "n2d", "bsm"))
    if mode == "none":
        return None
    switch = proportional and ask.suggest_categorical(f"{name}.proportional", (True, False))
    if mode == "n2d":
        cell = ask.suggest_categorical(f"{name}.cell", (*_CELLS,))
        return Neighbour2d(*_CELLS[cell], switch)
    cell = ask.suggest_categorical(f"{name}.destinations", _MATCHED_CELLS)
    ratio = ask.suggest_float(f"{name}.r", _LEAST_RATIO, _MOST_RATIO, step=_STEP)
    return BipartiteMatching(round(ratio, 2), *_CELLS[cell], switch)


def presets(scales: Sequence[float]) -> list[MergePlan]:
    """Those that `suggest` can make."""
    return [plan for plan in PRESETS.values() if choices(plan, scales) is not None]


def choices(plan: MergePlan, scales: Sequence[float]) -> Choices | None:
    """What `suggest` must be told to make a plan; None if it never makes it."""
    found: Choices = {"input_scale": plan.input_scale}
    merges = [merge for stage in plan.stages for merge in (stage.q, stage.kv) if merge]
    if merges:
        found["min_tokens"] = max(merge.min_tokens for merge in merges)
    for number, stage in enumerate(plan.stages, 1):
        found |= _merge_choices(f"q{number}", stage.q, proportional=False)
        found |= _merge_choices(f"kv{number}", stage.kv, proportional=True)
        if any(isinstance(merge, BipartiteMatching) for merge in (stage.q, stage.kv)):
            found[f"reuse{number}"] = stage.reuse
    try:
        return found if suggest(_Told(found), scales) == plan else None
    except LookupError:  # such as another cell
        return None


def _merge_choices(name: str, merge: Merge | None, *, proportional: bool) -> Choices:
    found: Choices = {f"{name}.mode": merge.mode if merge else "none"}
    if merge is None:
        return found
    if proportional:
        found[f"{name}.proportional"] = merge.proportional
    if isinstance(merge, BipartiteMatching):
        found |= {f"{name}.destinations": f"{merge.sx}x{merge.sy}", f"{name}.r": merge.r}
    elif isinstance(merge, Neighbour2d):
        found[f"{name}.cell"] = f"{merge.sx}x{merge.sy}"
    return found


def neighbour(plan: MergePlan, draw: random.Random, scales: Sequence[float]) -> MergePlan:
    """A plan that differs in what one stage's queries or keys are merged by, or in the scale.

    What is left at least stays: at one size of images it rarely matters.

    Args:
        plan: one of the space.
        draw: what is random about it.
        scales: of the image, that plans may have.

    Raises:
        LookupError: if the space does not have the plan.
    """
    told = choices(plan, scales)
    if told is None:
        raise LookupError(plan.name)
    number = draw.randint(1, STAGES)
    slots = (f"q{number}.", f"kv{number}.", f"reuse{number}", "input_scale")
    slot = draw.choices(slots, weights=(4, 4, 1, 1))[0]
    kept = {k: v for k, v in told.items() if not k.startswith(slot)}
    return suggest(_Varied(kept, draw), scales)


class _Varied:
    """Gives the choices that it was told, and others at random."""

    def __init__(self, told: Mapping[str, Any], draw: random.Random) -> None:
        self._told, self._draw = told, draw

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._told.get(name, self._draw.choice(choices))

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        steps = self._draw.randint(0, round((high - low) / step))
        value: float = self._told.get(name, low + steps * step)
        return value


class _Told:
    """Gives the choices that it was told."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._told = told

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        value = self._told[name]
        if value not in choices:
            raise KeyError(name)
        return value

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        value: float = self._told[name]
        if not low <= value <= high:
            raise KeyError(name)
        return round(low + step * round((value - low) / step), 2)
