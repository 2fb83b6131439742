"""The search: plans judged one after the other, kept in a file that can go on.

First the presets, then by turns what optuna's sampler proposes, and the best plan so far with one
thing changed: in the few dozen plans that there is time for, the sampler alone learns little.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformerpp.errors import UsageError
from segformerpp.plans import PRESETS
from segformerpp.tuning.assess import Evaluator, Judged, judge
from segformerpp.tuning.quality import Budget
from segformerpp.tuning.space import choices, neighbour, presets, suggest

if TYPE_CHECKING:
    import optuna

_NAME = "merge plan"
_SETTINGS, _JUDGED = "settings", "judged"
#: Plans at random before the sampler learns, besides the presets.
_RANDOM = 8
#: Of a setting in an error, in characters.
_LONGEST = 60


def check_installed() -> None:
    """Refuse to begin without optuna.

    Raises:
        UsageError: which says how to install it.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UsageError('tune: needs optuna: pip install "segformerpp[tune]"') from None


def open_study(file: Path, settings: Mapping[str, Any]) -> optuna.Study:
    """Begin a study, or go on with one.

    Args:
        file: where it is kept.
        settings: plain values; those of the study in the file must be the same.

    Raises:
        UsageError: if the file is of other settings, or no study.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings = json.loads(json.dumps(settings))  # as they come back
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        if file.exists() and (first := file.read_text().partition("\n")[0]):
            json.loads(first)["op_code"]  # optuna would write into a file of another kind
        lock = JournalFileOpenLock(str(file))  # the usual one needs symbolic links
        storage = JournalStorage(JournalFileBackend(str(file), lock))
        study = optuna.create_study(
            storage=storage, study_name=_NAME, direction="maximize", load_if_exists=True
        )
        study.sampler = optuna.samplers.TPESampler(
            # Another seed when it goes on: the same would ask for the same plans at random.
            seed=len(study.trials),
            n_startup_trials=len(PRESETS) + _RANDOM,
            multivariate=True,
        )
    except (ValueError, LookupError, TypeError, AssertionError):
        raise UsageError(f"study: {file} is no study of merge plans") from None
    before = study.user_attrs.get(_SETTINGS)
    if before is None:
        study.set_user_attr(_SETTINGS, settings)
    elif before != settings:
        keys = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
        key = keys[0]
        raise UsageError(
            f"study: {file} is of other settings: {key} was {_short(before.get(key))}, and is "
            f"{_short(settings.get(key))} now; name another file, or remove it"
        )
    return study


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < _LONGEST else text[:_LONGEST] + "..."


def judged(study: optuna.Study) -> list[Judged]:
    """What is known of each plan of a study, in the order of judging; each plan once."""
    every = (trial.user_attrs for trial in study.get_trials(deepcopy=False))
    found = [notes[_JUDGED] for notes in every if _JUDGED in notes]
    return list({j.plan: j for j in map(Judged.from_dict, found)}.values())


def search(
    study: optuna.Study,
    evaluator: Evaluator,
    budget: Budget,
    trials: int | None,
    deadline: float,
    on_judged: Callable[[Judged, Judged | None], None],
) -> None:
    """Judge plans until there were enough, or time is over; the presets first.

    Args:
        study: of `open_study`; holds what is found even when the user interrupts.
        evaluator: what plans are judged with.
        budget: what they may cost.
        trials: how many plans the study is to have; None for as many as there is time for.
        deadline: in the seconds of `time.monotonic`; the presets are judged in any case.
        on_judged: called with each plan, and the best one so far.
    """
    from optuna.trial import TrialState

    known = {j.plan: j for j in judged(study)}
    scales, first = evaluator.scales, presets(evaluator.scales)
    while trials is None or len(known) < trials:
        if time.monotonic() > deadline and set(first) <= known.keys():
            break
        leader = best(list(known.values()))
        wanted = next((preset for preset in first if preset not in known), None)
        if wanted is None and leader and len(study.trials) % 2:
            wanted = neighbour(leader.plan, random.Random(len(study.trials)), scales)
        if wanted is not None:
            study.enqueue_trial(choices(wanted, scales) or {})
        trial = study.ask()
        plan = suggest(trial, scales)
        new = plan not in known
        if new:
            to_beat = leader.value if leader else None
            known[plan] = judge(evaluator, plan, budget, to_beat or 0)
        trial.set_user_attr(_JUDGED, known[plan].to_dict())
        value = known[plan].value
        study.tell(trial, value, TrialState.PRUNED if value is None else None)
        if new:
            on_judged(known[plan], best(list(known.values())))


def best(found: Sequence[Judged]) -> Judged | None:
    """The fastest plan within the budget."""
    within = leaders(found, 1)
    return within[0] if within else None


def leaders(found: Sequence[Judged], count: int) -> list[Judged]:
    """The fastest plans within the budget, the fastest first."""
    within = [j for j in found if j.outcome == "within"]
    return sorted(within, key=lambda j: j.value or 0, reverse=True)[:count]


def best_preset(found: Sequence[Judged]) -> Judged | None:
    """The fastest preset within the budget; one that was slower than another plan counts too."""
    presets = set(PRESETS.values())
    fit = [j for j in found if j.plan in presets and j.outcome in ("within", "slower")]
    return max(fit, key=lambda j: j.value or 0, default=None)
