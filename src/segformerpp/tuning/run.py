"""A search from beginning to end: search, time the best ones again, check on other images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segformerpp.benchmark.gains import Gain
from segformerpp.benchmark.run import machine
from segformerpp.merging import MergePlan
from segformerpp.tuning.assess import Judged
from segformerpp.tuning.images import Images
from segformerpp.tuning.quality import Budget
from segformerpp.tuning.report import Checked, Outcome
from segformerpp.tuning.search import best, best_preset, judged, leaders, search
from segformerpp.tuning.segmenting import Segmenting, measure

if TYPE_CHECKING:
    import optuna

    from segformerpp.models import Segformer

#: The share of the time that is for searching; the rest is for the last timing and the check.
_SEARCHING = 0.75
#: The fastest plans that are timed once more: of many that were timed in haste the best was lucky.
_FINALISTS = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop.

    Args:
        minutes: for everything.
        trials: how many plans; None for as many as there is time for.
    """

    minutes: float
    trials: int | None = None


def tune(
    network: Segformer,
    images: tuple[Images, Images],
    options: dict[str, Any],
    budget: Budget,
    limits: Limits,
    begin: Callable[[Segmenting], optuna.Study],
    facts: Mapping[str, Any],
    on_judged: Callable[[Judged, Judged | None], None],
) -> tuple[Outcome, bool]:
    """Search for a plan.

    Args:
        network: the model.
        images: to search with, and to check with.
        options: for `Predictor`; see `Segmenting`.
        budget: what a plan may cost.
        limits: when to stop.
        begin: opens the study, when it is known what computes.
        facts: for the report.
        on_judged: called with each plan, and the best one so far.

    Returns:
        What was found, and whether the user interrupted.

    Raises:
        KeyboardInterrupt: before any plan was judged.
        UsageError: see `Segmenting` and `search.open_study`.
    """
    deadline = time.monotonic() + 60 * limits.minutes * _SEARCHING
    evaluator = Segmenting(network, images[0], options)
    study = begin(evaluator)
    chosen: MergePlan | None = None
    checked: list[Checked] = []
    interrupted = False
    try:
        search(study, evaluator, budget, limits.trials, deadline, on_judged)
        chosen, preset = _finals(evaluator, judged(study))
        del evaluator  # its network is in memory
        other = Segmenting(network, images[1], options)
        checked = [Checked(plan, *measure(other, plan)) for plan in dict.fromkeys((chosen, preset))]
    except KeyboardInterrupt:
        interrupted = True
        if not judged(study):
            raise
    found = judged(study)
    if chosen is None:
        leader = best(found)
        chosen = leader.plan if leader else MergePlan()
    facts = {**facts, "images": len(images[0]), "plans": len(found), **machine()}
    return Outcome(chosen, found, budget, checked, facts), interrupted


def _finals(evaluator: Segmenting, found: list[Judged]) -> tuple[MergePlan, MergePlan]:
    """Time the fastest plans once more; the winner, and the fastest preset within the budget."""
    preset = best_preset(found)
    plans = [j.plan for j in leaders(found, _FINALISTS)]
    plans += [preset.plan] if preset and preset.plan not in plans else []
    gains: dict[MergePlan, Gain] = {}
    for plan in plans:
        gains[plan] = evaluator.gain(plan)
    winner = max(gains, key=lambda plan: gains[plan].value, default=MergePlan())
    return winner, preset.plan if preset else MergePlan()
