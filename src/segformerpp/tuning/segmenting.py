"""Judging plans of a model that segments: its predictors beside that of `none`, image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from segformerpp.benchmark.cost import cost
from segformerpp.benchmark.gains import Gain, Turn, race, timed_turn
from segformerpp.errors import MemoryLimitError, UsageError
from segformerpp.merging import MergePlan
from segformerpp.metrics.segmentation import confusion
from segformerpp.predictor import Predictor
from segformerpp.tuning.images import Images
from segformerpp.tuning.quality import Quality, quality

if TYPE_CHECKING:
    from segformerpp.models import Segformer

#: For timing a plan while searching, and when it is to be known well.
QUICK, CAREFUL = (10, 8.0), (21, 60.0)  # rounds and seconds at most


class Segmenting:
    """Judges plans on images (see `assess.Evaluator`).

    Args:
        network: the model.
        images: those to score on.
        options: for `Predictor`: runtime, precision, device, threads, size. Its `precision` is
            decided by `none`, and all plans compute in it.
        advance: called after each image that `none` has predicted.

    Attributes:
        facts: of the predictor of `none`.

    Raises:
        UsageError: if the model is for another task, or the machine lacks what was asked for.
    """

    def __init__(
        self,
        network: Segformer,
        images: Images,
        options: dict[str, Any],
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        if network.metadata.task != "segmentation":
            raise UsageError(f"model: tune is for segmentation, not for {network.metadata.task}")
        if options.get("precision") == "int8":
            raise UsageError("precision: tune has no int8, which quantises every plan by itself")
        self.images = len(images)
        self._network, self._data = network, images
        self._none = Predictor(network, merge=MergePlan(), **options)
        self.facts = self._none.facts
        self._options = {**options, **{k: self.facts[k] for k in ("runtime", "precision")}}
        self._options["device"] = self.facts["device"]
        self._maps: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        shapes: Counter[tuple[int, ...]] = Counter()
        for index in range(len(images)):
            image, mask = images.read(index)
            self._maps.append(self._none(image).label_map)
            shapes[image.shape] += 1
            if mask is not None:
                self._counts.append(self._count(self._maps[-1], mask))
            advance()
        if images.masked and not sum(int(table.sum()) for table in self._counts):
            raise UsageError("root: no mask of those to search with has a pixel that counts")
        shape = shapes.most_common(1)[0][0]
        self.size: tuple[int, int] = options.get("size") or (shape[0], shape[1])
        indices = range(len(images))
        self._timed = next(i for i in indices if images.read(i)[0].shape == shape)
        self._turn = self._turn_of(self._none)

    def macs(self, plan: MergePlan) -> int:
        """Multiply-accumulates for one image of the commonest size."""
        return cost(self._network.config, plan, self.size).macs

    def open(self, plan: MergePlan) -> _Opened:
        """Make a plan ready; see `assess.Evaluator`."""
        return _Opened(self, Predictor(self._network, merge=plan, **self._options))

    def gain(self, plan: MergePlan) -> Gain:
        """Time a plan that ran before, with care."""
        return self.open(plan).gain(_known_well, careful=True)

    def _count(self, label_map: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return confusion(label_map, mask, self._network.config.num_outputs)

    def _turn_of(self, predict: Predictor) -> Turn:
        image = self._data.read(self._timed)[0]
        return timed_turn(lambda: predict.logits(image)[1])


class _Opened:
    """A plan, ready to run (see `assess.Opened`)."""

    def __init__(self, judge: Segmenting, predict: Predictor) -> None:
        self._judge, self._predict = judge, predict
        self._agreements: list[float] = []
        self._counts: list[np.ndarray] = []

    def score(self, images: int) -> Quality:
        """See `assess.Opened`."""
        judge = self._judge
        for index in range(len(self._agreements), images):
            image, mask = judge._data.read(index)
            label_map = self._predict(image).label_map
            self._agreements.append(float((label_map == judge._maps[index]).mean()))
            if mask is not None:
                self._counts.append(judge._count(label_map, mask))
        return quality(self._agreements, self._counts, judge._counts[: len(self._counts)])

    def gain(self, decided: Callable[[Gain], bool], careful: bool = False) -> Gain:
        """See `assess.Opened`."""
        most = CAREFUL if careful else QUICK
        return race(self._judge._turn, self._judge._turn_of(self._predict), decided, *most)


def _known_well(gain: Gain) -> bool:
    return gain.uncertainty < 0.005


def measure(evaluator: Segmenting, plan: MergePlan) -> tuple[Quality, Gain]:
    """Everything about one plan, with care: all images, and time until it is known well.

    Raises:
        UsageError: if it does not run here.
    """
    try:
        opened = evaluator.open(plan)
        return opened.score(evaluator.images), opened.gain(_known_well, careful=True)
    except MemoryLimitError as error:
        raise UsageError(str(error)) from None
