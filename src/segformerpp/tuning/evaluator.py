"""Judging plans of a model: its predictors beside that of `none`, image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from segformerpp.benchmark.cost import cost
from segformerpp.benchmark.gains import Gain, Turn, race, timed_turn
from segformerpp.errors import ImageError, UsageError
from segformerpp.plans import MergePlan
from segformerpp.predictor import Predictor
from segformerpp.tuning.images import Images
from segformerpp.tuning.kinds import kind_of
from segformerpp.tuning.quality import Quality, quality

if TYPE_CHECKING:
    from segformerpp.models import Segformer

#: For timing a plan while searching, and when it is to be known well.
QUICK, CAREFUL = (10, 8.0), (21, 60.0)  # rounds and seconds at most
#: For decoded images that stay in memory.
_MOST_BYTES = 2**29


class PlanEvaluator:
    """Judges plans on images (see `assess.Evaluator`).

    Args:
        network: the model.
        images: those to score on.
        options: for `Predictor`: runtime, precision, device, threads, size. Its `precision` is
            decided by `none`, and all plans compute in it.
        on_error: called with what is wrong with an image that `none` cannot predict, which is then
            left out.

    Attributes:
        facts: of the predictor of `none`.

    Raises:
        UsageError: if the machine lacks what was asked for, or nothing is left to score on.
    """

    def __init__(
        self,
        network: Segformer,
        images: Images,
        options: dict[str, Any],
        on_error: Callable[[ImageError], None],
    ) -> None:
        self._network = network
        self._none = Predictor(network, merge=MergePlan(), **options)
        self.facts = self._none.facts
        self._options = {**options, **{k: self.facts[k] for k in ("runtime", "precision")}}
        self._options["device"] = self.facts["device"]
        self._kind = kind_of(self._none, options.get("size"))
        self.scales = self._kind.scales
        self._references: list[Any] = []
        self._counts: list[np.ndarray] = []
        forms, good, largest = [], [], 1
        for index, path in enumerate(images.paths):
            try:
                image, truth = images.read(index)
                found = self._kind.find(self._none, image, truth)
            except ImageError as error:
                text = str(error)
                on_error(ImageError(text if str(path) in text else f"{path}: {text}"))
                continue
            self._references.append(found)
            forms.append(self._kind.form(image))
            good.append(index)
            largest = max(largest, image.nbytes)
            if truth is not None:
                self._counts.append(self._kind.count(found, truth))
        if not good:
            raise UsageError("root: no image can be read, or fits into the memory")
        if self._counts and not sum(int(counts.sum()) for counts in self._counts):
            raise UsageError("root: nothing in the masks counts")
        self._data = images.some(good)
        self.images = len(good)
        self._read = lru_cache(max(1, _MOST_BYTES // largest))(self._data.read)
        self.size = Counter(forms).most_common(1)[0][0]
        self._timed = forms.index(self.size)
        self._turn = self._turn_of(self._none)

    def macs(self, plan: MergePlan) -> int:
        """Multiply-accumulates for one image of the commonest size, or one person."""
        return cost(self._network.config, plan, self.size).macs

    def open(self, plan: MergePlan, **other: Any) -> _Opened:
        """Make a plan ready; see `assess.Evaluator`.

        Args:
            plan: the plan.
            other: options for `Predictor` in the place of those of `none`.
        """
        return _Opened(self, Predictor(self._network, merge=plan, **(self._options | other)))

    def gain(self, plan: MergePlan) -> Gain:
        """Time a plan that ran before, with care."""
        return self.open(plan).gain(_known_well, careful=True)

    def measure(self, plan: MergePlan, **other: Any) -> tuple[Quality, Gain]:
        """Everything about one plan, with care: all images, and time until it is known well.

        Args:
            plan: the plan.
            other: as for `open`.

        Raises:
            SegformerppError: if it does not run here.
        """
        opened = self.open(plan, **other)
        return opened.score(self.images), opened.gain(_known_well, careful=True)

    def _turn_of(self, predict: Predictor) -> Turn:
        image, truth = self._read(self._timed)
        return timed_turn(lambda: self._kind.seconds(predict, image, truth))


class _Opened:
    """A plan, ready to run (see `assess.Opened`)."""

    def __init__(self, evaluator: PlanEvaluator, predict: Predictor) -> None:
        self._evaluator, self._predict = evaluator, predict
        self._agreements: list[float] = []
        self._counts: list[np.ndarray] = []

    def score(self, images: int) -> Quality:
        """See `assess.Opened`."""
        own = self._evaluator
        kind = own._kind
        for index in range(len(self._agreements), images):
            image, truth = own._read(index)
            found = kind.find(self._predict, image, truth)
            self._agreements.append(kind.same(found, own._references[index], truth))
            if truth is not None:
                self._counts.append(kind.count(found, truth))
        before = own._counts[: len(self._counts)]
        return quality(self._agreements, self._counts, before, kind.score)

    def gain(self, decided: Callable[[Gain], bool], careful: bool = False) -> Gain:
        """See `assess.Opened`."""
        most = CAREFUL if careful else QUICK
        return race(self._evaluator._turn, self._evaluator._turn_of(self._predict), decided, *most)


def _known_well(gain: Gain) -> bool:
    return gain.uncertainty < 0.005
