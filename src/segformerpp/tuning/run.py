"""A search from beginning to end: search, time the best ones again, check on other images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformerpp.benchmark.gains import Gain
from segformerpp.benchmark.run import machine
from segformerpp.errors import ImageError, SegformerppError
from segformerpp.plans import MergePlan
from segformerpp.tuning.assess import Judged
from segformerpp.tuning.evaluator import PlanEvaluator
from segformerpp.tuning.images import Images
from segformerpp.tuning.quality import Budget
from segformerpp.tuning.report import Checked, Findings
from segformerpp.tuning.search import best, best_preset, judged, leaders, search

if TYPE_CHECKING:
    import optuna

    from segformerpp.models import Segformer

#: The share of the time that is for searching; the rest is for the last timing and the check.
_SEARCHING = 0.75
#: The fastest plans that are timed once more: of many that were timed in haste the best was lucky.
_FINALISTS = 3
_INTERRUPTED = "interrupted before it was checked on held-out images"


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop.

    Args:
        minutes: for everything.
        trials: how many plans; None for as many as there is time for.
    """

    minutes: float
    trials: int | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told how it goes.

    Args:
        on_judged: called with each plan, and the best one so far.
        on_phase: called with what is done next, in a few words.
        on_error: called with what is wrong with an image.
    """

    on_judged: Callable[[Judged, Judged | None], None]
    on_phase: Callable[[str], None]
    on_error: Callable[[ImageError], None]


def tune(
    network: Segformer,
    images: tuple[Images, Images],
    options: dict[str, Any],
    precisions: Sequence[str],
    budget: Budget,
    limits: Limits,
    begin: Callable[[PlanEvaluator], optuna.Study],
    facts: Mapping[str, Any],
    listener: Listener,
) -> tuple[Findings, bool]:
    """Search for a plan.

    Args:
        network: the model.
        images: to search with, and to check with.
        options: for `Predictor`; see `PlanEvaluator`.
        precisions: others, which the chosen plan is tried in when it has been found.
        budget: what a plan may cost.
        limits: when to stop.
        begin: opens the study, when it is known what computes.
        facts: for the report.
        listener: is told how it goes.

    Returns:
        What was found, and whether the user interrupted.

    Raises:
        KeyboardInterrupt: before any plan was judged.
        UsageError: see `PlanEvaluator` and `search.open_study`.
    """
    deadline = time.monotonic() + 60 * limits.minutes * _SEARCHING
    listener.on_phase("predicting without merging")
    evaluator = PlanEvaluator(network, images[0], options, listener.on_error)
    study = begin(evaluator)
    chosen: MergePlan | None = None
    checked: list[Checked] = []
    interrupted, unchecked = False, ""
    try:
        search(study, evaluator, budget, limits.trials, deadline, listener.on_judged)
        listener.on_phase("timing the best ones once more")
        chosen, preset = _finals(evaluator, judged(study))
        del evaluator  # its network is in memory
        listener.on_phase("checking on held-out images")
        other = PlanEvaluator(network, images[1], options, listener.on_error)
        for plan in dict.fromkeys((chosen, preset)):
            checked.append(Checked(plan, other.facts["precision"], *other.measure(plan)))
        for precision in precisions:
            listener.on_phase(f"trying {precision}")
            checked.append(_in_precision(other, chosen, precision, images[0].paths))
    except KeyboardInterrupt:
        interrupted, unchecked = True, _INTERRUPTED
        if not judged(study):
            raise
    except SegformerppError as error:
        if chosen is None:
            raise
        unchecked = f"not checked on held-out images: {error}"
    found = judged(study)
    if chosen is None:
        leader = best(found)
        chosen = leader.plan if leader else MergePlan()
    facts = {**facts, "images_to_search": len(images[0]), "plans": len(found), **machine()}
    return Findings(chosen, found, budget, checked, unchecked, facts), interrupted


def _in_precision(
    evaluator: PlanEvaluator, plan: MergePlan, precision: str, searched: Sequence[Path]
) -> Checked:
    # What it is quantised on is not what it is judged on.
    other = {"calibrate": searched} if precision == "int8" else {}
    try:
        return Checked(plan, precision, *evaluator.measure(plan, precision=precision, **other))
    except SegformerppError as error:
        return Checked(plan, precision, refused=str(error))


def _finals(evaluator: PlanEvaluator, found: list[Judged]) -> tuple[MergePlan, MergePlan]:
    """Time the fastest plans once more; the winner, and the fastest preset within the budget."""
    preset = best_preset(found)
    plans = [j.plan for j in leaders(found, _FINALISTS)]
    plans += [preset.plan] if preset and preset.plan not in plans else []
    gains: dict[MergePlan, Gain] = {}
    for plan in plans:
        gains[plan] = evaluator.gain(plan)
    winner = max(gains, key=lambda plan: gains[plan].value, default=MergePlan())
    return winner, preset.plan if preset else MergePlan()
